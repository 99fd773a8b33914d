"""Images or clips of many prompts, made batch by batch, which are kept: a run that was killed goes on from there."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from zipar.arguments import keep, text, whole
from zipar.checkpoints.files import check_readable
from zipar.checkpoints.tuned import FILE
from zipar.decoding import names
from zipar.decoding.engine import Progress
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.errors import ZipARError, reason
from zipar.evaluation.fidelity import likelihood
from zipar.grid import TokenGrid
from zipar.models.base import VideoModel, VisualModel, in_own_precision
from zipar.models.decodings import decodings
from zipar.writing import write


@dataclass(frozen=True)
class Batch:
    """What one strategy made of some prompts: an entry of each array is an image."""

    images: np.ndarray
    """uint8 (n, height, width, 3); (n, frames, height, width, 3) of clips."""
    tokens: np.ndarray
    """int32 (n, rows, columns) codebook indices; (n, frames, rows, columns) of clips."""
    nats: np.ndarray
    """float64: negative log-likelihood of a token under full raster context (``fidelity.likelihood``)."""
    outside: np.ndarray
    """float64: share of tokens that raster decoding could not have drawn."""
    excess: np.ndarray
    """float64: surprise excess of a token, 0 in expectation for raster's own."""
    entropy: np.ndarray
    """float64: entropy of what raster decoding draws a token from."""
    divergence: np.ndarray
    """float64: of the distribution of tokens from raster's, each token's share; 0 for raster's own."""
    forward_passes: np.ndarray
    """int64: until the image was done; others of its batch may have taken more."""
    slots_evaluated: np.ndarray
    """int64: in its batch, where narrower images are padded to the widest."""
    rejections: np.ndarray
    """float64: the batch's, a fair share each."""
    seconds: np.ndarray
    """float64: from prompts to pixels, the batch's, a fair share each."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Study:
    """Prompts, and how their images are made; image i has seed ``seed + i`` whatever the strategy."""

    model: VisualModel
    stamp: str
    """Tells the model's weights from others: see ``stamp``."""
    prompts: list[str]
    sampling: Sampling
    grid: TokenGrid
    seed: int
    batch_size: int
    folder: Path
    """Where finished batches are kept."""
    cuda_graphs: bool = True
    """Replay passes as CUDA graphs, where the model bears it."""
    given: Tensor | None = None
    """What clips of a grid with given frames go on from, one after the other and then again: uint8
    (starts, frames, height, width, 3)."""

    def __post_init__(self) -> None:
        keep(self, seed=whole("seed", self.seed), batch_size=whole("batch_size", self.batch_size, 1))
        keep(self, prompts=[text("prompts", prompt) for prompt in self.prompts])

    def batches(self, strategy: Strategy, callback: Callable[[Progress], None] | None = None) -> Iterator[Batch]:
        """The images of all prompts, in order.

        Raises:
            ZipARError: a prompt that the model cannot take, or a batch that can be neither kept nor read.
        """
        for first in range(0, len(self.prompts), self.batch_size):
            prompts = self.prompts[first : first + self.batch_size]
            path = self.folder / f"{self._key(strategy, prompts, self.seed + first)}.npz"
            if not path.exists():
                _save(self._make(strategy, prompts, self.seed + first, callback), path)
            yield _load(path)

    def warm_up(self, strategy: Strategy) -> None:
        """Make the first image and forget it: what comes first takes longer."""
        self._make(strategy, self.prompts[:1], self.seed, None)

    @torch.inference_mode()
    @in_own_precision
    def _make(
        self, strategy: Strategy, prompts: list[str], seed: int, callback: Callable[[Progress], None] | None
    ) -> Batch:
        model, grid, count = self.model, self.grid, len(prompts)
        sampling, seeds = model.drawn(self.sampling), range(seed, seed + count)
        started = time.perf_counter()
        prefix = model.prefix(prompts, None, sampling.guided, grid, **self._opening(seed, count))
        graphs = self.cuda_graphs and model.capturable()
        done = decodings(model, prefix, model.grids(grid), strategy, sampling, seeds, callback, cuda_graphs=graphs)
        codes = model.codes(model.pick(done[-1].decoded.tokens, grid))
        images = model.painted(codes, prompts, seeds, self.sampling.guidance_scale).cpu().numpy()
        seconds = time.perf_counter() - started
        figures = []
        for each in done:
            found = likelihood(each.model, each.prefix, each.grid, each.decoded.tokens, sampling)
            divergence = found.divergence(each.decoded.log_probabilities, each.grid)
            figures.append({**found._asdict(), "divergence": divergence})
        weights = [each.grid.tokens for each in done]
        return Batch(
            images=images,
            tokens=codes.cpu().numpy().astype(np.int32),
            **{name: np.average([found[name].cpu() for found in figures], 0, weights) for name in figures[0]},
            forward_passes=np.sum([each.decoded.born.max(1).values.cpu().numpy() + 1 for each in done], 0),
            slots_evaluated=np.full(count, sum(each.decoded.slots_evaluated for each in done)),
            rejections=np.full(count, sum(each.decoded.rejections for each in done) / count),
            seconds=np.full(count, seconds / count),
        )

    def _starts(self, seed: int, count: int) -> Tensor | None:
        """The given frames of so many clips, the first of which has this seed."""
        if self.given is None:
            return None
        return self.given[(torch.arange(count) + seed - self.seed) % len(self.given)]

    def _opening(self, seed: int, count: int) -> dict[str, Tensor]:
        """Their codes, as ``prefix`` of a model of clips takes them."""
        starts = self._starts(seed, count)
        if starts is None or not isinstance(self.model, VideoModel):
            return {}
        return {"given": self.model.read(starts)[:, : self.grid.given]}

    def _key(self, strategy: Strategy, prompts: list[str], seed: int) -> str:
        """Names a batch by all that its images depend on, and by what is kept of them."""
        starts = self._starts(seed, len(prompts))
        return digest(
            arrays=[field.name for field in dataclasses.fields(Batch)],
            model=self.stamp,
            quantized=self.model.quantized,
            device=self.model.device.type,
            dtype=str(self.model.dtype),
            sampling=dataclasses.asdict(self.sampling),
            grid=dataclasses.asdict(self.grid),
            given=None if starts is None else hashlib.sha256(starts.numpy().tobytes()).hexdigest(),
            strategy=names.name(strategy),
            prompts=prompts,
            seed=seed,
        )


def stamp(directory: Path) -> str:
    """Names the weights of a checkpoint directory, without reading them: by the sizes and times of its files."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != FILE]
    return digest(files=[(str(p.relative_to(directory)), p.stat().st_size, p.stat().st_mtime_ns) for p in files])


def digest(**values: Any) -> str:
    """A short name for values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def _save(batch: Batch, path: Path) -> None:
    write({path: lambda scratch: np.savez_compressed(scratch, **dataclasses.asdict(batch))})


def _load(path: Path) -> Batch:
    check_readable(path, f"{path} has vanished")
    try:
        with np.load(path) as arrays:
            return Batch(**arrays)
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise ZipARError(f"{path} is damaged ({reason(error)}): remove it, and it is made again") from error
