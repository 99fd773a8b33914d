"""From prompts to images."""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zipar.arguments import flag, function, instance, listed, refusal, shown, text, whole
from zipar.checkpoints.tuned import tuned
from zipar.decoding.decodable import Prefix
from zipar.decoding.engine import Progress
from zipar.decoding.names import strategy_of
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models import auto
from zipar.models.base import VideoModel, VisualModel, in_own_precision
from zipar.models.decodings import decodings
from zipar.videos import Video, given_frames

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
    """Empty for models of clips."""
    tokens: np.ndarray
    """int32 (images, rows, columns) codebook indices; (clips, frames, rows, columns) for clips."""
    born: np.ndarray
    """int32, shaped like ``tokens``: the forward pass that decoded each token."""
    stats: DecodingStats
    videos: list[Video] = field(default_factory=list)
    """Of models of clips."""


@dataclass
class _Call:
    """What a call asks for, checked, and what it has cost so far."""

    prompts: list[str]
    """One an image."""
    different: int
    """Prompts that the caller gave."""
    negatives: list[str] | None
    seeds: list[int]
    sampling: Sampling
    strategy: Strategy
    deterministic: bool
    callback: Callable[[Progress], None] | None
    costs: list[DecodingStats] = field(default_factory=list)
    """Of each decoding: a clip that goes on past its model's context takes several."""

    @property
    def passes(self) -> int:
        return sum(cost.forward_passes for cost in self.costs)

    def told(self, progress: Progress) -> None:
        """Tell the callback of a pass, those of earlier decodings counted."""
        if self.callback is not None:
            self.callback(Progress(progress.done + self.passes, progress.passes + self.passes, progress.queries))


class Pipeline:
    """A model, ready to turn prompts into images or clips."""

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
        min_p: float | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        given: Any = None,
        deterministic: bool = False,
        callback: Callable[[Progress], None] | None = None,
    ) -> PipelineOutput:
        """Make images, or clips.

        Args:
            prompt: one prompt or several; all images are decoded in one batch, prompt by prompt. Models of classes take
                their numbers too.
            strategy: the order of decoding, or its name, such as "zipar:8"; None for the pipeline's own.
            seed: one an image, or one number, from which images count up.
            guidance_scale, temperature, top_k, top_p, min_p: see ``Sampling``; None for the model's defaults.
            negative_prompt: what to steer away from, one for all or one a prompt.
            num_images_per_prompt: images of each prompt.
            height, width: in pixels; None for the model's own.
            frames: of each clip, given ones included; None for the model's own.
            given: frames that clips go on from: images, or uint8 (frames, height, width, 3); the same for all prompts,
                or a list of such, one a prompt.
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
        asked: dict[str, Any] = {
            "guidance_scale": guidance_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
        }
        sampling = replace(self.model.defaults, **{name: value for name, value in asked.items() if value is not None})
        sides = zip(("height", "width"), (height, width), self.model.image_size, strict=True)
        size = tuple(own if side is None else whole(name, side, 1) for name, side, own in sides)
        call = _Call(
            prompts=_repeat(prompts, each),
            different=len(prompts),
            negatives=None if negatives is None else _repeat(negatives, each),
            seeds=seeds,
            sampling=sampling,
            strategy=self.strategy if strategy is None else strategy_of(strategy),
            deterministic=flag("deterministic", deterministic),
            callback=None if callback is None else function("callback", callback),
        )
        if isinstance(self.model, VideoModel):
            return self._clips(self.model, call, size, frames, given)
        for name, value in (("frames", frames), ("given", given)):
            if value is not None:
                raise ZipARError(f"{name} {shown(value)} is not possible: this model makes images, so leave it out")
        codes, born, pixels = self._decoded(call, self.model.grid(*size))
        pictures = [Image.fromarray(image) for image in pixels.numpy()]
        return PipelineOutput(pictures, _numbers(codes), _numbers(born), _total(call.costs))

    def _clips(self, model: VideoModel, call: _Call, size: Sequence[int], frames: Any, given: Any) -> PipelineOutput:
        """Clips, in as many decodings as the model's context makes of them."""
        height, width = size
        count = model.frames if frames is None else whole("frames", frames, 1)
        start = None if given is None else given_frames(given, call.different, height, width)
        grids = model.decodings(height, width, count, 0 if start is None else start.shape[1])
        known = None
        if start is not None:
            known = model.read(start)[:, : grids[0].given].repeat_interleave(len(call.seeds) // len(start), 0)
        codes, born, pixels = self._decoded(call, grids[0], known)
        made = [(codes, born, pixels)]
        for number, grid in enumerate(grids[1:], 1):
            codes, born, pixels = self._decoded(call, grid, model.carried(codes, pixels), number)
            made.append((codes[:, grid.given :], born[:, grid.given :], pixels[:, model.carry :]))
        codes, born, pixels = (torch.cat(parts, 1) for parts in zip(*made, strict=True))
        videos = [Video([Image.fromarray(frame) for frame in clip], model.fps) for clip in pixels.numpy()]
        return PipelineOutput([], _numbers(codes), _numbers(born), _total(call.costs), videos)

    def _decoded(
        self, call: _Call, grid: TokenGrid, given: Tensor | None = None, number: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of one decoding, the passes that decoded them, and pixels; its costs are added to those of the call.

        Args:
            given: codes of the grid's given frames.
            number: of the decoding: each has noise of its own.
        """
        on_gpu = self.model.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.model.device)
        started = time.perf_counter()
        model, negatives, sampling = self.model, call.negatives, self.model.drawn(call.sampling)
        images = [slice(i, i + 1) for i in range(len(call.seeds))] if call.deterministic else [slice(None)]

        def prefix(part: slice) -> Prefix:
            opening = {} if given is None else {"given": given[part]}
            return model.prefix(call.prompts[part], negatives and negatives[part], sampling.guided, grid, **opening)

        prefixes = Prefix.joined([prefix(part) for part in images])
        encoding = time.perf_counter() - started
        done = decodings(
            *(model, prefixes, model.grids(grid), call.strategy, sampling, call.seeds, call.told),
            first=number,
            deterministic=call.deterministic,
            cuda_graphs=self.cuda_graphs and model.capturable(),
        )

        def total(name: str) -> Any:
            return sum(getattr(each.decoded, name) for each in done)

        last = done[-1].decoded
        born = model.pick(last.born, grid) + call.passes + total("forward_passes") - last.forward_passes
        codes = model.codes(model.pick(last.tokens, grid))
        started = time.perf_counter()
        scale = call.sampling.guidance_scale
        painted = [model.painted(codes[part], call.prompts[part], call.seeds[part], scale).cpu() for part in images]
        pixels = torch.cat(painted)
        call.costs.append(
            DecodingStats(
                forward_passes=total("forward_passes"),
                slots=sum(each.grid.slots for each in done),
                slots_evaluated=total("slots_evaluated"),
                rejections=total("rejections"),
                prefill_seconds=encoding + total("prefill_seconds"),
                decode_seconds=total("decode_seconds"),
                vision_seconds=time.perf_counter() - started,
                peak_memory_bytes=torch.cuda.max_memory_allocated(self.model.device) if on_gpu else _peak_memory(),
            )
        )
        return codes, born, pixels

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
    tensor_parallel: bool = False,
) -> Pipeline:
    """A pipeline of an embedded model ("emoji"), a checkpoint directory, a hub id or a loaded model.

    An embedded name wins over a directory of that name: that is "./emoji", or a ``Path``.

    Its strategy is what ``zipar tune`` chose for the checkpoint, else ``zipar.DEFAULT``. On a GPU passes are replayed
    as CUDA graphs, unless hooks, a device map or tensor parallelism stand in the way, or ``cuda_graphs`` is False.
    ``dtype`` is bfloat16 on a GPU and float32 elsewhere unless given, as ``torch.float16`` or "float16".
    ``quantize="int8"`` has the linear layers of the decoder in int8. With ``tensor_parallel`` the processes that
    ``torchrun`` started hold the model together; all have to make the same calls then, in the same order.

    Raises:
        ZipARError: no such checkpoint, a damaged one, one of an unsupported family, or one that cannot be quantised or
            sharded; or an argument of a wrong type.
    """
    cuda_graphs, tensor_parallel = flag("cuda_graphs", cuda_graphs), flag("tensor_parallel", tensor_parallel)
    if isinstance(model, VisualModel):
        if tensor_parallel:
            raise ZipARError("a loaded model cannot be sharded: give its checkpoint directory or hub id instead")
        if quantize is not None:
            raise ZipARError("a loaded model cannot be quantised: give its checkpoint directory or hub id instead")
        return Pipeline(model, cuda_graphs=cuda_graphs)
    if not isinstance(model, str | os.PathLike):
        known = "one of zipar's, such as zipar.models.janus.Janus(model, processor)"
        raise refusal("model", model, f"a directory, a hub id or {known}")
    directory = auto.find(model)
    loaded = auto.load(directory, _weights(dtype), device, quantize, tensor_parallel)
    return Pipeline(loaded, tuned(directory), cuda_graphs)


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


def _numbers(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.int32)


def _total(costs: Sequence[DecodingStats]) -> DecodingStats:
    """The sum of the costs; of memory, the most."""
    each = [cost.to_dict() for cost in costs]
    memory = [cost.pop("peak_memory_bytes") for cost in each]
    sums = {name: sum(cost[name] for cost in each) for name in each[0]}
    return DecodingStats(**sums, peak_memory_bytes=None if None in memory else max(memory))


def _repeat(items: Sequence[str], times: int) -> list[str]:
    return [item for item in items for _ in range(times)]
