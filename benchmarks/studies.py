"""What the studies of the embedded model share: prompts, batches, a look into a strategy at work, reports."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from zipar.decoding.decodable import Prefix
from zipar.decoding.strategy import Evaluated, Step, Steps, Strategy
from zipar.grid import TokenGrid
from zipar.models.base import VisualModel

sys.path.append(str(Path(__file__).parents[1] / "recipes" / "emoji"))
from prompts import prompts  # type: ignore[import-not-found]

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
    """

    strategy: Strategy
    see: Callable[[Step, Evaluated], None]
    script: Tensor | None = None

    def steps(self, grid: TokenGrid, tokens: Tensor) -> Steps:
        steps = self.strategy.steps(grid, tokens)
        step = next(steps, None)
        while step is not None:
            if self.script is not None:
                tokens[:, : grid.slots] = self.script
            evaluated = yield step
            self.see(step, evaluated)
            try:
                step = steps.send(evaluated)
            except StopIteration as end:
                return end.value
        return None

    def passes(self, grid: TokenGrid) -> int:
        return self.strategy.passes(grid)


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
