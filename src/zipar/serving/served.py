"""A model that is served: what requests may ask of it, and what its images need."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from zipar.arguments import shown
from zipar.decoding import names
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.models.base import VideoModel, VisualModel
from zipar.pipeline import Pipeline
from zipar.serving.protocol import APIError, ImageRequest
from zipar.serving.threads import aside

TRIED = ("raster", "zipar:4", "zipar:8", "jacobi:16")
"""Strategies that are named to those who ask what there is, after the one that is as by default."""


@dataclass(frozen=True, eq=False)
class Served:
    """A pipeline under a name."""

    name: str
    pipe: Pipeline
    sizes: dict[str, TokenGrid]
    """What images it makes, as in "512x384" (width x height); the first is what they are unless told otherwise."""
    longest_prompt: int
    """In tokens."""
    negative_prompts: bool
    """Whether it takes them."""

    @classmethod
    def of(cls, name: str, pipe: Pipeline, longest_prompt: int, sizes: Sequence[tuple[int, int]] = ()) -> "Served":
        """
        Args:
            sizes: (height, width) in pixels, besides the model's own.

        Raises:
            ZipARError: it goes on from given frames alone, writes an image in several grids, or a clip in several
                decodings, or makes no images of a size.
        """
        model = pipe.model
        if model.wordless:
            raise ZipARError(f"{name} goes on from given frames, and requests have none: use `zipar generate`")
        if isinstance(model, VideoModel) and model.frames > model.context:
            raise ZipARError(
                f"{name} writes clips of {model.frames} frames in several decodings, for it sees {model.context} at a "
                "time, and lanes hold one: use `zipar generate`"
            )
        grids = {f"{width}x{height}": model.grid(height, width) for height, width in (model.image_size, *sizes)}
        if any(len(model.grids(grid)) > 1 for grid in grids.values()):
            raise ZipARError(
                f"{name} writes several grids of tokens for an image, and lanes hold one: use `zipar generate`"
            )
        negative = aside(lambda: _takes_negative_prompts(model, next(iter(grids.values()))))
        return cls(name, pipe, grids, longest_prompt, negative)

    @property
    def model(self) -> VisualModel:
        return self.pipe.model

    @property
    def fps(self) -> float | None:
        """Frames a second of its clips; None where it makes images."""
        return self.model.fps if isinstance(self.model, VideoModel) else None

    def about(self) -> dict[str, Any]:
        """What those may know who write requests: sizes, frames of clips, defaults, strategies to try, prompts."""
        return aside(self._about)

    def _about(self) -> dict[str, Any]:
        model, grid = self.model, next(iter(self.sizes.values()))
        vocabulary = model.vocabulary
        clip = {"frames": model.frames, "fps": model.fps} if isinstance(model, VideoModel) else {}
        strategies = dict.fromkeys((self.pipe.strategy, *map(names.parse, TRIED)))
        return {
            "sizes": list(self.sizes),
            **clip,
            "defaults": asdict(model.defaults),
            "negative_prompt": self.negative_prompts,
            "strategies": [
                {
                    "name": names.name(strategy),
                    "title": names.title(strategy),
                    "passes": most if (most := strategy.passes(grid)) == strategy.fewest_passes(grid) else None,
                }
                for strategy in strategies
            ],
            "examples": model.examples(4),
            "words": {} if vocabulary is None else {k: list(v.values()) for k, v in vocabulary.attributes.items()},
        }

    def order(self, asked: ImageRequest) -> "Order":
        """What a request comes to.

        Raises:
            ZipARError, APIError: the model cannot honour it.
        """
        size = next(iter(self.sizes)) if asked.size == "auto" else asked.size
        if size not in self.sizes:
            raise ZipARError(f"size {shown(asked.size)} is not possible: use {', '.join(self.sizes)} or auto")
        if self.fps is not None and asked.output_format == "jpeg":
            raise ZipARError("output_format 'jpeg' holds no clip, and this model makes clips: use 'png' or 'webp'")
        fields = ("guidance_scale", "temperature", "top_k", "top_p", "min_p")
        given: dict[str, Any] = {name: value for name in fields if (value := getattr(asked, name)) is not None}
        sampling = replace(self.model.defaults, **given)
        negative = asked.negative_prompt if (asked.negative_prompt or "").strip() else None
        if negative is not None and not sampling.guided:
            raise ZipARError("negative_prompt does nothing at guidance scale 1: raise guidance_scale or leave it out")
        with _over("strategy"):
            strategy = self.pipe.strategy if asked.strategy is None else names.strategy_of(asked.strategy)
        with _over("prompt"):
            if self.model.vocabulary is not None:
                self.model.vocabulary.check(asked.prompt)
        shared = replace(sampling, guidance_scale=2.0 if sampling.guided else 1.0, temperature=1.0)
        seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        return Order(
            style=Style(self, self.sizes[size], strategy, shared),
            prompt=asked.prompt,
            negative=negative,
            sampling=sampling,
            seeds=[seed + i for i in range(asked.n)],
            size=size,
        )


def _takes_negative_prompts(model: VisualModel, grid: TokenGrid) -> bool:
    prompts = model.examples(1)
    try:
        model.prefix(prompts, prompts, True, grid)
    except ZipARError:
        return False
    return True


@contextmanager
def _over(field: str) -> Iterator[None]:
    """Errors are about a field, whatever their words begin with."""
    try:
        yield
    except ZipARError as error:
        raise APIError(400, str(error), param=field) from error


@dataclass(frozen=True)
class Style:
    """What images have in common that can share a lane."""

    served: Served
    grid: TokenGrid
    strategy: Strategy
    sampling: Sampling
    """Guided or not, and the filters; scale and temperature are each image's own, and say nothing here."""


@dataclass(frozen=True)
class Order:
    """Images of one prompt, all that was left open decided."""

    style: Style
    prompt: str
    negative: str | None
    sampling: Sampling
    seeds: list[int]
    size: str

    def settings(self, image: int) -> dict[str, Any]:
        """The fields of a request for one of its images alone."""
        fields = {
            "model": self.style.served.name,
            "prompt": self.prompt,
            "negative_prompt": self.negative,
            "size": self.size,
            "strategy": names.name(self.style.strategy),
            "seed": self.seeds[image],
        }
        return {name: value for name, value in fields.items() if value is not None} | asdict(self.sampling)
