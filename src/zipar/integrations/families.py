"""How the classes of transformers that write images are asked for them through ``generate``, and how they answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PrefixConstrainedLogitsProcessor, PreTrainedModel

from zipar.decoding.decodable import Prefix
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.image_tokenizers.chameleon import PUBLISHED as CHAMELEON
from zipar.image_tokenizers.chameleon import code_name
from zipar.models.backbone import TransformersModel
from zipar.models.emu3 import BEFORE_IMAGE, Emu3
from zipar.models.emu35 import Emu35, names_images
from zipar.models.glm_image import GlmImage
from zipar.models.janus import Janus
from zipar.models.lumina_mgpt import Anole, Chameleon, LuminaMGPT
from zipar.models.lumina_mgpt2 import LuminaMGPT2
from zipar.models.mixed_modal import MixedModal

_T = TypeVar("_T")


class Call(NamedTuple):
    """A call of ``generate`` for images, prepared by transformers: a row an image."""

    input_ids: Tensor
    """int64 (images, length), padded on the left."""
    valid: Tensor
    """bool (images, length), False where padded."""
    negative_ids: Tensor | None
    """``negative_prompt_ids`` as they were given: transformers does not repeat them for several images a prompt."""
    negative_mask: Tensor | None
    constraints: list[PrefixConstrainedLogitsProcessor]
    """``prefix_allowed_tokens_fn``, where it was given; only families that take it find any."""
    config: GenerationConfig
    guided: bool
    inputs: dict[str, Any]
    """The other inputs of the model."""


class Family(ABC):
    """What is peculiar to one class; ``generate`` and ``accelerate`` do the rest."""

    model_type: ClassVar[str]
    """Of its config."""
    arguments: ClassVar[frozenset[str]] = frozenset()
    """Arguments of ``generate`` that other families would refuse."""

    def knows(self, model: Any) -> bool:
        """Whether a model of the class is one that writes images."""
        return True

    @abstractmethod
    def wanted(self, model: Any, arguments: dict[str, Any]) -> bool:
        """Whether a call of ``generate`` with these arguments asks for images."""

    @abstractmethod
    def visual(self, model: Any, call: Call) -> TransformersModel:
        """The model as the engine wants it for this call.

        Raises:
            ZipARError: the call asks for no image.
        """

    @abstractmethod
    def read(self, visual: Any, call: Call) -> tuple[Prefix, list[TokenGrid]]:
        """The prefix of a call, with the unconditional branch if it is guided, and the grids to decode, in turn.

        Raises:
            ZipARError: the call cannot be honoured.
        """

    @abstractmethod
    def write(self, visual: Any, call: Call, tokens: Tensor) -> Tensor:
        """Decoded tokens, int64 (images, slots) -> the sequences that the model's own ``generate`` returns."""

    def guidance_scale(self, config: GenerationConfig) -> float:
        """The scale that the class uses where the config has this."""
        return 1.0 if config.guidance_scale is None else config.guidance_scale

    def run(self, model: Any, arguments: dict[str, Any], decoding: Callable[..., Any]) -> Any:
        """``generate`` of the model with ``decoding`` in place of its own loop."""
        return GenerationMixin.generate(model, custom_generate=decoding, **arguments)


class JanusFamily(Family):
    model_type = "janus"
    arguments = frozenset({"generation_mode"})

    def wanted(self, model: Any, arguments: dict[str, Any]) -> bool:
        return arguments.get("generation_mode", "text") != "text"

    def visual(self, model: Any, call: Call) -> Janus:
        return Janus(model)

    def read(self, visual: Janus, call: Call) -> tuple[Prefix, list[TokenGrid]]:
        grid = visual.grid(*visual.image_size)
        if call.guided:
            return visual.guided_prompt(call.input_ids, call.valid, call.config), [grid]
        return visual.prompt(call.input_ids, call.valid), [grid]

    def write(self, visual: Janus, call: Call, tokens: Tensor) -> Tensor:
        return tokens

    def guidance_scale(self, config: GenerationConfig) -> float:
        return 5.0 if config.guidance_scale is None else config.guidance_scale

    def run(self, model: Any, arguments: dict[str, Any], decoding: Callable[..., Any]) -> Any:
        """Past Janus's own ``generate``, whose image loop cannot be replaced, with what that makes of its config."""
        arguments.pop("generation_mode")
        config, rest = model._prepare_generation_config(arguments.pop("generation_config", None), **arguments)
        unset = {"guidance_scale": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # an explicit None means these
        config.update(**{name: value for name, value in unset.items() if getattr(config, name) is None})
        # it pays no heed to lengths, and its prompts may be longer than those
        config.max_length, config.max_new_tokens = None, model.config.vision_config.num_image_tokens
        return GenerationMixin.generate(model, generation_config=config, custom_generate=decoding, **rest)


class Emu3Family(Family):
    """A prompt that ends with the marker of visual tokens asks for an image of the size that it names."""

    model_type = "emu3"
    arguments = frozenset(
        {"image_sizes", "negative_prompt_attention_mask", "negative_prompt_ids", "prefix_allowed_tokens_fn"}
    )

    def wanted(self, model: Any, arguments: dict[str, Any]) -> bool:
        marker = (model.config.vocabulary_map or {}).get(BEFORE_IMAGE[-1], -1)
        return bool((_prompts(model, arguments)[:, -1:] == marker).any())

    def visual(self, model: Any, call: Call) -> Emu3:
        return Emu3(model)

    def read(self, visual: Emu3, call: Call) -> tuple[Prefix, list[TokenGrid]]:
        grid = visual.grid_of(call.input_ids)
        for constraint in call.constraints:
            _check_constraint(visual, constraint, call.input_ids, grid)
        # without a negative prompt, transformers lets the unconditional branch start with the last token alone
        return _prefix(visual, call, call.input_ids[:, -1:]), [grid]

    def write(self, visual: Emu3, call: Call, tokens: Tensor) -> Tensor:
        return _continued(call, visual.vocabulary_ids(tokens))


class Emu35Family(Family):
    """A Qwen3 whose config names what is around an image; a prompt that ends with a size asks for an image of it."""

    model_type = "qwen3"
    arguments = frozenset({"negative_prompt_attention_mask", "negative_prompt_ids"})

    def knows(self, model: Any) -> bool:
        return names_images(model.config)

    def wanted(self, model: Any, arguments: dict[str, Any]) -> bool:
        return bool((_prompts(model, arguments)[:, -1:] == model.config.img_token_id).any())

    def visual(self, model: Any, call: Call) -> Emu35:
        return Emu35(model)

    def read(self, visual: Emu35, call: Call) -> tuple[Prefix, list[TokenGrid]]:
        # as transformers does without a negative prompt
        return _prefix(visual, call, call.input_ids[:, -1:]), [visual.grid_of(call.input_ids)]

    def write(self, visual: Emu35, call: Call, tokens: Tensor) -> Tensor:
        return _continued(call, visual.written(tokens))


class ChameleonFamily(Family):
    """A prompt that ends with begin-of-image asks for an image: Anole's, or Lumina-mGPT's if a size follows it.

    The class itself writes none, so without a negative prompt the unconditional branch is that of the authors.
    What is written ends with end-of-image, after which the model's own ``generate`` can go on.
    """

    model_type = "chameleon"
    arguments = frozenset({"negative_prompt_attention_mask", "negative_prompt_ids"})

    def wanted(self, model: Any, arguments: dict[str, Any]) -> bool:
        ids = _prompts(model, arguments)
        return any(bool(ended.any()) for ended in self._ended(model, ids).values())

    def visual(self, model: Any, call: Call) -> Chameleon:
        for kind, ended in self._ended(model, call.input_ids).items():
            if bool(ended.all()):
                return kind(model)
        raise ZipARError(
            "the prompts should all end with begin-of-image (<racm3:break>) for Anole, or with it and the two tokens "
            "of a size for Lumina-mGPT: pad them on the left, and ask for text in a call of its own"
        )

    def read(self, visual: Any, call: Call) -> tuple[Prefix, list[TokenGrid]]:
        grid = visual.grid_of(call.input_ids) if isinstance(visual, LuminaMGPT) else visual.grid(*visual.image_size)
        unconditional = torch.tensor([visual.unconditional(grid)]).expand(len(call.input_ids), -1)
        return _prefix(visual, call, unconditional), [grid]

    def write(self, visual: Chameleon, call: Call, tokens: Tensor) -> Tensor:
        return _continued(call, F.pad(visual.vocabulary_ids(tokens), (0, 1), value=visual.end))

    def _ended(self, model: Any, ids: Tensor) -> dict[type[Chameleon], Tensor]:
        """Which prompts, int64 (rows, length), end as each family's do: bool (rows,) each."""
        names = model.config.vocabulary_map or {}
        begin = ids == names.get("<racm3:break>", -1)
        lumina = LuminaMGPT2 if code_name(CHAMELEON.codebook_size) in names else LuminaMGPT
        size = torch.isin(ids[:, -2:], torch.tensor([*lumina.size_tokens(names)], device=ids.device)).all(1)
        return {lumina: begin[:, -3:-2].any(1) & size, Anole: begin[:, -1:].any(1)}


class GlmImageFamily(Family):
    """Always writes images, as ``image_grid_thw`` tells: the grids that the prompts do not hold, the last one first.

    From text these are a small grid and the large one, from images the large one alone. Codes alone are drawn, so that
    no image ends early; end-of-image follows the last grid.
    """

    model_type = "glm_image"
    arguments = frozenset({"image_grid_thw", "images_per_sample", "mm_encoder_outputs", "pixel_values"})

    def wanted(self, model: Any, arguments: dict[str, Any]) -> bool:
        return True

    def visual(self, model: Any, call: Call) -> GlmImage:
        if call.guided:
            raise ZipARError(
                "guidance_scale cannot be honoured: GLM-Image has no unconditional branch, so leave it out"
            )
        return GlmImage(model)

    def read(self, visual: GlmImage, call: Call) -> tuple[Prefix, list[TokenGrid]]:
        sizes = self._sizes(call)
        held = [int(count) for count in ((call.input_ids == visual.end) & call.valid).sum(1)]
        wanted = {tuple(theirs[count:][::-1]) for theirs, count in zip(sizes, held, strict=True)}
        if len(wanted) != 1 or not (grids := [TokenGrid(*size) for size in wanted.pop()]):
            raise ZipARError(
                "image_grid_thw should tell of the same grids to decode for all prompts, and of one at least, behind "
                "those of the images that a prompt holds: make it with the processor, of one size for all"
            )
        sources = [theirs[:count] for theirs, count in zip(sizes, held, strict=True)]
        return visual.prompt(self._ids(visual, call, sources), call.valid, sources), grids

    def write(self, visual: GlmImage, call: Call, tokens: Tensor) -> Tensor:
        return _continued(call, F.pad(tokens, (0, 1), value=visual.end))

    def _sizes(self, call: Call) -> list[list[tuple[int, int]]]:
        """The rows and columns of each prompt's grids.

        Raises:
            ZipARError: they do not fit the prompts.
        """
        prompts, repeats = len(call.input_ids), call.config.num_return_sequences or 1
        grids, counts = call.inputs.get("image_grid_thw"), call.inputs.get("images_per_sample")
        if not isinstance(grids, Tensor) or grids.ndim != 2 or grids.shape[1] != 3:
            raise ZipARError(
                f"image_grid_thw of type {type(grids).__name__} does not tell the sizes of the grids to decode: give "
                "the int64 tensor (grids, 3) that the processor makes"
            )
        held: list[list[int]] = grids.tolist()
        each = [len(held) // repeats] * repeats if counts is None else counts.tolist()
        fits = sum(each) == len(held) and all(frames == 1 for frames, _, _ in held)
        if not fits or (counts is not None and len(each) != prompts):
            raise ZipARError(
                f"image_grid_thw of shape {tuple(grids.shape)} does not fit {prompts} prompts: give a row (1, rows, "
                "columns) for each grid of each prompt, and in images_per_sample how many each has"
            )
        sizes = [(rows, columns) for _, rows, columns in held]
        # for several images a prompt, transformers repeats each grid by itself or, in older versions, those of a prompt
        if all(size == sizes[i - i % repeats] for i, size in enumerate(sizes)):
            sizes, each = sizes[::repeats], each[::repeats]
            groups = _split(sizes, each)
        else:
            groups = _split(sizes, each)[::repeats]
        if counts is None:
            return groups * prompts
        return [group for group in groups for _ in range(repeats)]

    def _ids(self, visual: GlmImage, call: Call, sources: list[list[tuple[int, int]]]) -> Tensor:
        """The prompts with the codes of their images in place, int64 (images, length)."""
        ids, model = call.input_ids, visual.model
        encoded = (call.inputs.get("mm_encoder_outputs") or {}).get("image")
        if encoded is not None:
            if not encoded.pooler_output:
                raise ZipARError(
                    f"num_return_sequences ({call.config.num_return_sequences}) cannot be honoured with images in the "
                    "prompts, which transformers loses over it: give each prompt as often as you want images of it"
                )
            codes = model.get_image_tokens(encoded.pooler_output)
        elif (pixels := call.inputs.get("pixel_values")) is not None:  # older versions read them later
            sizes = torch.tensor([[1, *size] for theirs in sources for size in theirs], device=pixels.device)
            codes = model.get_image_tokens(torch.cat(model.get_image_features(pixels, sizes).pooler_output), sizes)
        else:
            return ids
        blank = ids == model.config.image_token_id
        if int(blank.sum()) != codes.numel():
            raise ZipARError(
                f"pixel_values of {codes.numel()} tokens do not fit prompts with room for {int(blank.sum())}: give "
                "both as the processor made them"
            )
        return ids.masked_scatter(blank, codes.flatten().to(ids))


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (JanusFamily(), Emu3Family(), Emu35Family(), ChameleonFamily(), GlmImageFamily())
}


def family_of(model: PreTrainedModel) -> Family:
    """The family that a model of transformers belongs to.

    Raises:
        ZipARError: none that is supported.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in FAMILIES or not isinstance(model, GenerationMixin) or not FAMILIES[kind].knows(model):
        raise ZipARError(
            f"{type(model).__name__} is no model of transformers whose images zipar can decode; "
            f"give one that generates, of type {', '.join(FAMILIES)}, and of a wrapper the model inside"
        )
    return FAMILIES[kind]


def _prompts(model: Any, arguments: dict[str, Any]) -> Tensor:
    """The token ids in arguments of ``generate``, int64 (rows, length): no rows where there are none.

    Padding on the right, which images are refused with, is moved to the left: what is asked for shows before it.
    """
    ids = arguments.get("inputs") if arguments.get("input_ids") is None else arguments["input_ids"]
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return torch.empty(0, 0, dtype=torch.int64)
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        pad = model.generation_config.pad_token_id
        mask = ids != (-1 if pad is None else pad)
    behind = mask.bool().flip(1).long().cumsum(1).eq(0).sum(1, keepdim=True)
    places = torch.arange(ids.shape[1], device=ids.device) - behind.to(ids.device)
    return ids.gather(1, places.remainder(max(ids.shape[1], 1)))


def _prefix(visual: Emu3 | MixedModal, call: Call, unconditional: Tensor) -> Prefix:
    """The prompts, and if guided the negative ones, or else ``unconditional``, int64 (images, length).

    Raises:
        ZipARError: the negative prompts do not fit the prompts, or each other.
    """
    if not call.guided:
        return visual.prompt(call.input_ids, call.valid)
    images, negative = len(call.input_ids), unconditional
    if call.negative_ids is not None:
        repeats = call.config.num_return_sequences or 1
        if len(call.negative_ids) * repeats != images:
            raise ZipARError(
                f"negative_prompt_ids of shape {tuple(call.negative_ids.shape)} do not fit {images // repeats} "
                "prompts: give one row a prompt"
            )
        negative = call.negative_ids.repeat_interleave(repeats, 0)
    valid = torch.ones_like(negative, dtype=torch.bool)
    if call.negative_mask is not None:
        if call.negative_ids is None or call.negative_mask.shape != call.negative_ids.shape:
            raise ZipARError(
                f"negative_prompt_attention_mask of shape {tuple(call.negative_mask.shape)} does not fit "
                "negative_prompt_ids: give both, of one shape"
            )
        valid = call.negative_mask.bool().repeat_interleave(repeats, 0)
        # transformers counts the positions of padding here, which shows unless it comes first
        if not bool((valid.long().diff(dim=1) >= 0).all() and valid[:, -1].all()):
            raise ZipARError("negative_prompt_attention_mask has padding after tokens: pad on the left")
    length = max(negative.shape[1], call.input_ids.shape[1])
    rows = [
        torch.cat([F.pad(part.to(call.input_ids.device), (length - part.shape[1], 0)) for part in pair])
        for pair in ((call.input_ids, negative), (call.valid, valid))
    ]
    return visual.prompt(*rows)


def _check_constraint(
    visual: Emu3, constraint: PrefixConstrainedLogitsProcessor, input_ids: Tensor, grid: TokenGrid
) -> None:
    """Raise unless ``prefix_allowed_tokens_fn`` allows what the grid does.

    It is asked along the first row, which tells the width, and at the last slots, which tell the height.
    """
    sequence = visual.vocabulary_ids(grid.blank().to(visual.device)).to(input_ids)
    written = torch.cat([input_ids, sequence.expand(len(input_ids), -1)], dim=1)
    anything = torch.zeros(len(input_ids), visual.model.config.text_config.vocab_size, device=input_ids.device)
    visible = visual.ids[: visual.codebook_size].to(input_ids)
    free = set(grid.free().flatten().tolist())
    last = grid.slots - len(grid.frame_end) - 2
    for slot in sorted({*range(grid.row_stride + 1), *range(last, grid.slots)} & {*range(grid.slots)}):
        asked: Any = written[:, : input_ids.shape[1] + slot]
        allowed = constraint(asked, anything) == 0
        expected = torch.zeros_like(allowed)
        expected[:, visible if slot in free else sequence[slot]] = True
        if not allowed.equal(expected):
            raise ZipARError(
                f"prefix_allowed_tokens_fn does not allow what an image of {grid.rows} x {grid.columns} tokens (rows x "
                f"columns) has at token {slot}, or allows more: leave it out, or make it as transformers documents it "
                "for Emu3, with the size that the prompts name"
            )


def _split(items: list[_T], counts: list[int]) -> list[list[_T]]:
    """``items`` in groups, as many in each as ``counts`` tell."""
    ends = list(accumulate(counts))
    return [items[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _continued(call: Call, ids: Tensor) -> Tensor:
    """The prompts with the ids of images after them, as many as were asked for, int64 (images, length)."""
    return torch.cat([call.input_ids, ids[:, : call.config.max_new_tokens].to(call.input_ids)], dim=1)
