"""From prompts to images."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zipar.arguments import flag, function, instance, listed, refusal, text, whole
from zipar.checkpoints.tuned import tuned
from zipar.decoding.decodable import Prefix
from zipar.decoding.engine import Progress, decode
from zipar.decoding.names import strategy_of
from zipar.decoding.strategy import Strategy
from zipar.errors import ZipARError
from zipar.models import auto
from zipar.models.base import VisualModel, in_own_precision

MOST_IMAGES = 65_536
"""Of a call, which decodes them together."""
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
"""What weights may be in, by name."""


@dataclass(frozen=True)
class DecodingStats:
    """What a pipeline call cost; the same for all images of the call, which are decoded together."""

    forward_passes: int
    """Passes through the decoder, prefill counted."""
    slots: int
    """Tokens that an image's sequence holds, given ones included."""
    slots_evaluated: int
    """Queries an image that the passes after the prefill evaluated."""
    rejections: int
    """Tokens that an adaptive strategy took back, in all images of the call together."""
    prefill_seconds: float
    decode_seconds: float
    vision_seconds: float
    """Tokens to pixels."""
    peak_memory_bytes: int | None
    """Of the GPU during the call; elsewhere of the process so far; None where the system does not tell."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PipelineOutput:
    """What a pipeline call returns."""

    images: list[Image.Image]
    tokens: np.ndarray
    """int32 (images, rows, columns) codebook indices; (images, frames, rows, columns) for videos."""
    born: np.ndarray
    """int32, shaped like ``tokens``: the forward pass that decoded each token."""
    stats: DecodingStats


class Pipeline:
    """A model, ready to turn prompts into images."""

    def __init__(self, model: VisualModel, strategy: Strategy | str | None = None, cuda_graphs: bool = True) -> None:
        """
        Args:
            strategy: that of calls that name none, or its name, such as "zipar:8"; None for ``zipar.DEFAULT``.
            cuda_graphs: replay passes as CUDA graphs, where the model bears it.

        Raises:
            ZipARError: an argument is of a wrong type.
        """
        self.model = instance("model", model, VisualModel, "zipar.pipeline(...), which loads one")
        self.strategy = strategy_of(strategy)
        self.cuda_graphs = flag("cuda_graphs", cuda_graphs)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | str | None = None) -> "Pipeline":
        """Move the model to a device, and its decoder to another number format; returns the pipeline itself.

        Raises:
            ZipARError: the device or number format cannot be used, or the model was quantised for the device it is on.
        """
        self.model.to(None if device is None else auto.usable(device), _weights(dtype))
        return self

    @torch.inference_mode()
    @in_own_precision
    def __call__(
        self,
        prompt: str | int | Iterable[str | int],
        *,
        strategy: Strategy | str | None = None,
        seed: int | Iterable[int] = 0,
        guidance_scale: float | None = None,
        negative_prompt: str | int | Iterable[str | int] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        deterministic: bool = False,
        callback: Callable[[Progress], None] | None = None,
    ) -> PipelineOutput:
        """Make images.

        Args:
            prompt: one prompt or several; all images are decoded in one batch, prompt by prompt. Models of classes take
                their numbers too.
            strategy: the order of decoding, or its name, such as "zipar:8"; None for the pipeline's own.
            seed: one an image, or one number, from which images count up.
            guidance_scale, temperature, top_k, top_p: see ``Sampling``; None for the model's defaults.
            negative_prompt: what to steer away from, one for all or one a prompt.
            num_images_per_prompt: images of each prompt.
            height, width: in pixels; None for the model's own.
            deterministic: compute with shapes that do not depend on the batch, which takes longer: then the image of a
                seed is the same in any batch in half precision too, on the same machine and with the same libraries.
            callback: told of each forward pass.

        Raises:
            ZipARError: an argument that the model cannot honour.
        """
        prompts = self._prompts("prompt", prompt)
        each = whole("num_images_per_prompt", num_images_per_prompt, 1, MOST_IMAGES)
        if not 1 <= (images := len(prompts) * each) <= MOST_IMAGES:
            raise ZipARError(f"{len(prompts)} prompts make {images} images: give prompts for 1 to {MOST_IMAGES}")
        if self.model.vocabulary is not None:
            for text in prompts:
                self.model.vocabulary.check(text)
                if unknown := self.model.vocabulary.unknown(text):
                    warnings.warn(
                        f"words that the model does not know are passed over: {', '.join(unknown)}", stacklevel=4
                    )
        negatives = None
        if negative_prompt is not None:
            negatives = self._prompts("negative_prompt", negative_prompt)
            negatives *= len(prompts) if listed(negative_prompt) is None else 1
            if len(negatives) != len(prompts):
                raise ZipARError(
                    f"{len(negatives)} negative prompts do not fit {len(prompts)} prompts: give one, or one each"
                )
        several = listed(seed)
        if several is None:
            first = whole("seed", seed, None)
            several = [first + i for i in range(images)]
        seeds = [whole("seed", number, None) for number in several]
        if len(seeds) != images:
            raise ZipARError(f"{len(seeds)} seeds do not fit {images} images: give one, or one an image")
        given: dict[str, Any] = {
            "guidance_scale": guidance_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        sampling = replace(self.model.defaults, **{name: value for name, value in given.items() if value is not None})
        sides = zip(("height", "width"), (height, width), self.model.image_size, strict=True)
        grid = self.model.grid(*(own if side is None else whole(name, side, 1) for name, side, own in sides))
        order = self.strategy if strategy is None else strategy_of(strategy)
        deterministic = flag("deterministic", deterministic)
        if callback is not None:
            function("callback", callback)

        on_gpu = self.model.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.model.device)
        started = time.perf_counter()
        prompts = _repeat(prompts, each)
        negatives = None if negatives is None else _repeat(negatives, each)
        if deterministic:
            alone = [
                self.model.prefix(prompts[i : i + 1], negatives and negatives[i : i + 1], sampling.guided, grid)
                for i in range(images)
            ]
            prefix = Prefix.joined(alone)
        else:
            prefix = self.model.prefix(prompts, negatives, sampling.guided, grid)
        encoding = time.perf_counter() - started
        decoded = decode(
            *(self.model, prefix, grid, order, sampling, seeds, callback),
            deterministic=deterministic,
            cuda_graphs=self.cuda_graphs and self.model.capturable(),
        )
        codes = self.model.codes(grid.pick(decoded.tokens))
        started = time.perf_counter()
        parts = codes.split(1) if deterministic else [codes]
        pixels = np.concatenate([self.model.pixels(part).cpu().numpy() for part in parts])
        seconds = time.perf_counter() - started
        memory = torch.cuda.max_memory_allocated(self.model.device) if on_gpu else _peak_memory()
        stats = DecodingStats(
            forward_passes=decoded.forward_passes,
            slots=grid.slots,
            slots_evaluated=decoded.slots_evaluated,
            rejections=decoded.rejections,
            prefill_seconds=encoding + decoded.prefill_seconds,
            decode_seconds=decoded.decode_seconds,
            vision_seconds=seconds,
            peak_memory_bytes=memory,
        )
        return PipelineOutput(
            [Image.fromarray(image) for image in pixels],
            codes.cpu().numpy().astype(np.int32),
            grid.pick(decoded.born).cpu().numpy().astype(np.int32),
            stats,
        )

    def _prompts(self, name: str, given: Any) -> list[str]:
        """One prompt or several, numbers of classes as text."""
        prompts = listed(given)
        prompts = [given] if prompts is None else prompts
        if self.model.classes is None:
            return [text(name, prompt) for prompt in prompts]
        most = self.model.classes - 1
        return [
            text(name, prompt) if isinstance(prompt, str) else str(whole(name, prompt, 0, most)) for prompt in prompts
        ]


def pipeline(
    model: str | Path | VisualModel = "emoji",
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    cuda_graphs: bool = True,
    quantize: str | None = None,
) -> Pipeline:
    """A pipeline of an embedded model ("emoji"), a checkpoint directory, a hub id or a loaded model.

    An embedded name wins over a directory of that name: that is "./emoji", or a ``Path``.

    Its strategy is what ``zipar tune`` chose for the checkpoint, else ``zipar.DEFAULT``. On a GPU passes are replayed
    as CUDA graphs, unless hooks, a device map or tensor parallelism stand in the way, or ``cuda_graphs`` is False.
    ``dtype`` is bfloat16 on a GPU and float32 elsewhere unless given, as ``torch.float16`` or "float16".
    ``quantize="int8"`` has the linear layers of the decoder in int8.

    Raises:
        ZipARError: no such checkpoint, a damaged one, one of an unsupported family, or one that cannot be quantised; or
            an argument of a wrong type.
    """
    if isinstance(model, VisualModel):
        if quantize is not None:
            raise ZipARError("a loaded model cannot be quantised: give its checkpoint directory or hub id instead")
        return Pipeline(model, cuda_graphs=cuda_graphs)
    if not isinstance(model, str | os.PathLike):
        loaded = "one of zipar's, such as zipar.models.janus.Janus(model, processor)"
        raise refusal("model", model, f"a directory, a hub id or {loaded}")
    cuda_graphs = flag("cuda_graphs", cuda_graphs)
    directory = auto.find(model)
    return Pipeline(auto.load(directory, _weights(dtype), device, quantize), tuned(directory), cuda_graphs)


def _weights(dtype: Any) -> torch.dtype | None:
    """A number format of weights, also by its name."""
    named = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(named, torch.dtype) and named in DTYPES.values()):
        raise refusal("dtype", dtype, " or ".join(DTYPES))
    return named


def _peak_memory() -> int | None:
    """Of this process, in bytes."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # elsewhere in KiB


def _repeat(items: Sequence[str], times: int) -> list[str]:
    return [item for item in items for _ in range(times)]
