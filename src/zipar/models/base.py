"""What the engine asks of a model."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from zipar.arguments import shown
from zipar.decoding.cache import SlotCache
from zipar.decoding.decodable import Prefix
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.double import Double
from zipar.models.packing import is_bare
from zipar.prompts import PromptVocabulary

T = TypeVar("T")


def to_bytes(pixels: Tensor) -> Tensor:
    """Floating-point pixels, 0 to 255 but for what is cut off -> uint8 of the same shape.

    Raises:
        ZipARError: some are no numbers.
    """
    if not bool(pixels.isfinite().all()):
        raise ZipARError(
            "the image decoder's pixels are no finite numbers (NaN or infinity): its weights may be damaged, or too "
            "large for float16, so load it in bfloat16 or float32"
        )
    return pixels.clamp(0, 255).to(torch.uint8)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def in_own_precision(method: _Method) -> _Method:
    """Of what has a ``model``: a method that computes in its number format, whatever ``torch.autocast`` says."""

    @functools.wraps(method)
    def shielded(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.model.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return cast(_Method, shielded)


class VisualModel(ABC, nn.Module):
    """A model that writes an image as a sequence of codebook indices.

    Rows of a pass are images or, with guidance, two an image, side by side: conditional, then unconditional.
    """

    family: ClassVar[str]
    """The ``model_type`` of its ``config.json``."""
    wordless: ClassVar[bool] = False
    """Whether all its prompts are empty, for it only goes on from given frames."""
    defaults: Sampling
    """How the model's authors sample from it."""
    layers: int
    """Attention layers, each of which keeps keys and values."""
    image_size: tuple[int, int]
    """(height, width) in pixels of the images it makes unless told otherwise."""
    positions: int | None = None
    """The most tokens of a prompt and its image together, where the model has a limit."""
    classes: int | None = None
    """Where prompts are the numbers of classes: how many there are."""
    vocabulary: PromptVocabulary | None = None
    """What prompts may say, where the model knows."""
    quantized: str | None = None
    """What its linear layers were quantised to, "int8", if they were."""
    _double: Double | None = None

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def grid(self, height: int, width: int) -> TokenGrid:
        """The token grid of an image of ``height`` x ``width`` pixels.

        Raises:
            ZipARError: the model makes no images of that size.
        """

    def grids(self, grid: TokenGrid) -> list[TokenGrid]:
        """All grids that are decoded for an image of ``grid``, one after the other: itself last."""
        return [grid]

    def of(self, grid: TokenGrid) -> "VisualModel":
        """What decodes this one of ``grids``."""
        return self

    def followed(self, prefix: Prefix, tokens: Tensor) -> Prefix:
        """The prefix of the next of ``grids``: this one's with its tokens, int64 (images, slots), behind it."""
        raise NotImplementedError

    def drawn(self, sampling: Sampling) -> Sampling:
        """How tokens are drawn for an image that is asked for so; guidance may be for what makes its pixels."""
        return sampling

    @abstractmethod
    def prefix(
        self, prompts: Sequence[str], negative_prompts: Sequence[str] | None, guided: bool, grid: TokenGrid
    ) -> Prefix:
        """The prefix of each prompt and, if ``guided``, of the unconditional branch, for an image of ``grid``.

        Where ``grids`` has others before that, it is the first one's.

        Raises:
            ZipARError: a prompt that the model cannot take.
        """

    def fitting(self, prefix: Prefix, *grids: TokenGrid) -> Prefix:
        """``prefix``, where the model has as many positions as it and an image of ``grids`` take.

        Raises:
            ZipARError: it has not.
        """
        longest, slots = int(prefix.valid.sum(1).max()), sum(grid.slots for grid in grids)
        if self.positions is not None and longest + slots > self.positions:
            raise ZipARError(
                f"a prompt of {longest} tokens leaves no room for an image of {slots}, for this "
                f"{type(self).__name__} reads {self.positions} at most: shorten the prompt, or make the image smaller"
            )
        return prefix

    @abstractmethod
    def prefill(self, prefix: Prefix, cache: SlotCache, mask: Tensor) -> Tensor:
        """Float32 logits (rows, 1, vocabulary) of slot 0. ``mask`` is additive (rows, 1, length, length)."""

    @abstractmethod
    def step(self, tokens: Tensor, slots: Tensor, lengths: Tensor, cache: SlotCache, mask: Tensor) -> Tensor:
        """Float32 logits (rows, queries, vocabulary) of the slots after ``slots``.

        Args:
            tokens: int64 (rows, queries), the tokens fed.
            slots: int64 (rows, queries), where they are.
            lengths: int64 (rows,), the unpadded length of each prefix.
            cache: has been told where this pass writes.
            mask: additive (rows, 1, queries, keys).
        """

    @abstractmethod
    def stepped(self) -> list[nn.Module]:
        """The modules that every forward pass runs through."""

    def running(self, module: nn.Module) -> Any:
        """What runs in a pass in place of ``module``, a part of the model: its double, once there is one."""
        return module if self._double is None else self._double.of(module)

    def _follow(self, root: nn.Module, config: Any = None, ours: Any = None) -> None:
        """Take up what was done with ``root``, of which all parts that run are parts, since its double was made."""
        double = self._double
        if double is None or double.root is not root:
            double = Double(root)
        double.refresh(self.stepped(), config, ours)
        self._double = double

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which make a double of their own."""
        return {name: value for name, value in vars(self).items() if name != "_double"}

    def capturable(self) -> bool:
        """Whether passes may be replayed as CUDA graphs: one GPU holds all that runs, and nothing is wrapped around it.

        What a hook does on the processor would be done once and then no more.
        """
        if self.device.type != "cuda":
            return False
        parts = [part for module in self.stepped() for part in module.modules()]
        held = [weight for part in parts for weight in part.parameters(recurse=False)]
        return all(map(is_bare, parts)) and all(weight.device == self.device for weight in held)

    def exact(self) -> list[nn.Module]:
        """The modules that compute in float32, as their authors run them, whatever number format the others have."""
        return []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What ``to``, ``half`` and the like do to all tensors; of exact modules they change the device alone.

        Raises:
            ZipARError: the model is quantised, and would leave its device.
        """
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device)).device
        if self.quantized is not None and moved != self.device:
            raise ZipARError(
                f"weights in {self.quantized} are laid out for {str(self.device)!r}, where they were loaded: load the "
                f"checkpoint for {str(moved)!r} instead"
            )
        exact = [
            (held, name, tensor.data)
            for module in self.exact()
            for part in module.modules()
            for held in (part._parameters, part._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]
        super()._apply(fn, recurse)
        for held, name, tensor in exact:
            now = held[name]
            if now is not None and now.dtype != tensor.dtype:
                now.data = tensor.to(now.device)
        return self

    @abstractmethod
    def pixels(self, tokens: Tensor) -> Tensor:
        """Codebook indices (images, rows, columns) -> uint8 pixels (images, height, width, 3)."""

    def painted(self, tokens: Tensor, prompts: Sequence[str], seeds: Sequence[int], guidance_scale: float) -> Tensor:
        """``pixels`` of images of these prompts, for models whose pixels depend on more than on codebook indices.

        Args:
            prompts, seeds: one an image; what chance has a part in belongs to the image's seed.
        """
        return self.pixels(tokens)

    def codes(self, tokens: Tensor) -> Tensor:
        """Tokens as the sequence holds them -> codebook indices, both int64 of one shape."""
        return tokens

    def pick(self, sequences: Tensor, grid: TokenGrid) -> Tensor:
        """What sequences (images, slots) hold of pictures: (images, rows, columns); of clips with a frames axis."""
        return grid.pick(sequences)

    def examples(self, count: int) -> list[str]:
        """Prompts to try the model with, always the same ones."""
        if self.wordless:
            return [""] * count
        lines = files("zipar.models").joinpath("prompts.txt").read_text(encoding="utf-8").splitlines()
        return [lines[i % len(lines)] for i in range(count)]

    @classmethod
    @abstractmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: torch.device) -> "VisualModel":
        """The model of a checkpoint directory.

        Raises:
            ZipARError: the checkpoint is damaged or incomplete.
        """

    @classmethod
    @abstractmethod
    def outline(cls, directory: Path) -> "VisualModel":
        """The model without its weights, on the meta device, for those who only ask what it looks like.

        Raises:
            ZipARError: the checkpoint's config is damaged.
        """


class VideoModel(VisualModel):
    """A model that writes a clip: the token grids of its frames, one after the other.

    A frame of tokens may stand for several of pixels.
    """

    frames: int
    """Of pixels, in the clips it makes unless told otherwise."""
    fps: float
    """Frames of pixels a second, as it was trained."""
    context: int
    """Frames of pixels that it sees at most. Clips go on past them: the last ``carry`` are given anew."""

    @abstractmethod
    def clip(self, height: int, width: int, frames: int, given: int = 0) -> TokenGrid:
        """The token grid of a clip of ``frames`` frames of pixels, the first ``given`` of which come with the prompt.

        Raises:
            ZipARError: the model makes no such clips.
        """

    def grid(self, height: int, width: int) -> TokenGrid:
        return self.clip(height, width, self.frames)

    def pick(self, sequences: Tensor, grid: TokenGrid) -> Tensor:
        return grid.pick(sequences).view(len(sequences), grid.frames, grid.rows, grid.columns)

    def decodings(self, height: int, width: int, frames: int, given: int = 0) -> list[TokenGrid]:
        """The grids of the decodings that a clip takes: one, and more where it goes on past the model's context.

        Raises:
            ZipARError: the model makes no such clips.
        """
        grids = [self.clip(height, width, min(self.context, frames), given)]
        left = frames - self.context
        while left > 0:
            grids.append(self.clip(height, width, min(self.context, self.carry + left), self.carry))
            left -= self.context - self.carry
        return grids

    @abstractmethod
    def prefix(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None,
        guided: bool,
        grid: TokenGrid,
        given: Tensor | None = None,
    ) -> Prefix:
        """As for images; ``given`` are the codes of the grid's given frames, int64 (clips, given, rows, columns)."""

    @abstractmethod
    def read(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (clips, frames, height, width, 3) -> codes, int64 (clips, frames of tokens, rows, columns)."""

    @abstractmethod
    def pixels(self, tokens: Tensor) -> Tensor:
        """Codes (clips, frames of tokens, rows, columns) -> uint8 pixels (clips, frames, height, width, 3)."""

    @property
    def carry(self) -> int:
        """Frames of pixels that a clip goes on from."""
        return max(1, self.context // 2)

    def carried(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """The codes of a clip's last ``carry`` frames.

        Args:
            tokens: codes of all its frames, as ``pixels`` takes them.
            pixels: what they stand for, as ``read`` takes them.
        """
        return tokens[:, -self.carry :]


def configured(defaults: Sampling, config: Any) -> Sampling:
    """``defaults``, but greedy where a generation config of transformers asks for it."""
    return replace(defaults, temperature=0.0) if config.do_sample is False else defaults


def tokenized(read: Callable[[list[str]], T], prompts: Sequence[str]) -> T:
    """What ``read``, a tokenizer or processor, makes of prompts.

    Raises:
        ZipARError: it raised something, over the prompt that is named.
    """
    try:
        return read(list(prompts))
    except Exception as error:  # tokenizers and processors raise all kinds
        for prompt in prompts if len(prompts) > 1 else ():
            tokenized(read, [prompt])
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ZipARError(
            f"prompt {shown(prompts[0])} cannot be read by the model's tokenizer ({reason}): put it in other words"
        ) from error
