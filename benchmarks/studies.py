"""What the studies of the embedded model share: prompts, batches, a look into a strategy at work, reports."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipar.decoding.decodable import Prefix
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.strategy import Evaluated, Schedule, Step, Strategy
from zipar.grid import TokenGrid
from zipar.models.base import VisualModel

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
from emoji.prompts import prompts  # type: ignore[import-not-found]

ALONE = 10**6
"""Budget of lossless drafts with which the images of a batch draft as far as each would alone."""
SEED = 7
"""Of the prompts and, counting up, of the images."""


class Batch(NamedTuple):
    """Images that are decoded together; prompts and seeds are those of ``quality.py``."""

    prefix: Prefix
    seeds: list[int]


def batches(model: VisualModel, images: int, size: int) -> Iterator[Batch]:
    """The first ``images`` images, ``size`` at a time."""
    texts, grid = prompts(images, SEED), model.grid(*model.image_size)
    for first in range(0, images, size):
        part = texts[first : first + size]
        yield Batch(model.prefix(part, None, model.defaults.guided, grid), [SEED + first + i for i in range(len(part))])


@dataclass(frozen=True)
class Watched(Strategy):
    """A strategy whose passes are shown to ``see`` and which, with ``script``, decodes known images.

    With a script, int64 (images, slots), each pass is evaluated after the script's tokens, not after those sampled.
    Rows are images, in their order, as long as none is finished before the others: so it is with static strategies.
    """

    strategy: Strategy
    see: Callable[[Step, Evaluated], None]
    script: Tensor | None = None

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        return Watching(self, self.strategy.schedule(grid, rows, device))

    def passes(self, grid: TokenGrid) -> int:
        return self.strategy.passes(grid)


class Watching(Schedule):
    """The schedule of the strategy that is watched."""

    def __init__(self, strategy: Watched, schedule: Schedule) -> None:
        self.strategy, self.schedule = strategy, schedule
        self.width, self.rejections = schedule.width, schedule.rejections
        self.prepare, self.bounds = schedule.prepare, schedule.bounds  # type: ignore[method-assign]
        self.reset, self.move = schedule.reset, schedule.move  # type: ignore[method-assign]

    def plan(self, tokens: Tensor) -> Step:
        step = self.schedule.plan(tokens)
        if self.strategy.script is not None:
            tokens[:, :-1] = self.strategy.script
        return step

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        self.strategy.see(evaluated.step, evaluated)
        self.schedule.settle(tokens, evaluated)

    @property
    def shown(self) -> Tensor | None:  # type: ignore[override]
        return self.schedule.shown

    @property
    def done(self) -> Tensor:
        return self.schedule.done

    def first(self, rows: int) -> Schedule:
        return Watching(self.strategy, self.schedule.first(rows))


def alone(strategy: Strategy) -> Strategy:
    """``strategy`` with passes that do not depend on the batch."""
    return replace(strategy, budget=ALONE) if isinstance(strategy, CoupledJacobi) else strategy


def mean(values: Tensor) -> dict[str, float]:
    """Mean of (n,) values and its standard error."""
    values = values.double()
    return {"mean": values.mean().item(), "standard_error": values.std().item() / math.sqrt(len(values))}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all studies have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--batch", type=int, default=64)
    return options


def write(folder: Path, name: str, report: dict[str, Any], text: str) -> None:
    """``name``.json and ``name``.md in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(text)
