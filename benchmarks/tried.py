"""What was tried on drafts and left out of the library, beside what is in it: writes docs/tried.md.

    python benchmarks/tried.py emoji fashion DIRECTORY... --images 64

Each variant changes one thing of the default or of lossless decoding. Nothing is timed: passes, queries and divergence
decide. Finished variants stay in ``--output``, so that a run that was killed goes on where it was.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ablations import kept
from decoding import machine
from rules import Rejecting
from studies import ALONE, SEED, Watched, prompts
from zipar import DEFAULT, CoupledJacobi, TokenGrid, ZipAR, pretrained
from zipar.decoding import names
from zipar.decoding.engine import Decoded, decode
from zipar.decoding.jacobi import Ahead
from zipar.decoding.sampling import gumbel
from zipar.decoding.strategy import Evaluated, Schedule, Step, Strategy
from zipar.decoding.zipar import SURE, Drafted
from zipar.evaluation.fidelity import likelihood
from zipar.evaluation.report import mean
from zipar.models import auto

LOSSLESS = CoupledJacobi(32, budget=ALONE)


@dataclass(frozen=True)
class Variant(Strategy):
    """A strategy whose schedule is of another kind; ``settings`` are that kind's own."""

    base: Any
    kind: Any
    settings: tuple[Any, ...] = ()

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        made: Schedule = self.kind(self.base, grid, rows, device)
        made.begin(*self.settings)  # type: ignore[attr-defined]
        return made

    def passes(self, grid: TokenGrid) -> int:
        return grid.tokens


class Adaptive(Drafted):
    """A row drafts ``more`` tokens than came true in the pass before, ``lookahead`` at most."""

    reach: Tensor
    """int64 (images, grid rows)."""

    def begin(self, more: int) -> None:
        self.more = more
        self._keep(len(self.settled), reach=torch.full((self.settled.shape[1],), self.lookahead))

    def wanted(self, reach: int) -> Tensor:
        return super().wanted(reach) & (self.column < (self.settled + self.reach)[..., None])

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        before = self.settled.clone()
        super().settle(tokens, evaluated)
        came_true = (self.settled - before - 1).clamp(min=0)  # the first is no draft
        reach = (came_true + self.more).clamp(max=self.lookahead)
        self.reach.copy_(reach.where(self.evaluates.any(-1), self.reach))


class Visible(Drafted):
    """Which drafts other rows see is decided by one thing alone."""

    def begin(self, rule: str) -> None:
        self.rule = rule

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        before = self.settled.clone()
        super().settle(tokens, evaluated)
        right = 2 * (self.settled - before) >= self.evaluates.sum(-1)
        seen = {
            "all": self.evaluates,
            "none": torch.zeros_like(self.evaluates),
            "kept": self.evaluates & (tokens[:, self.slots] == self.guesses),
            "likely": self.evaluates & (self.surprise <= -math.log(SURE)),
            "row": self.evaluates & right[..., None],
        }[self.rule]
        self.shown[:, self.slots[:, :-1]] = (seen | (self.column < self.settled[..., None]))[..., :-1]


class Proposing(Schedule):
    """First drafts are proposed, not copied."""

    proposed: Tensor
    """int64 (images, slots + 1), -1 where a slot is copied."""

    def plan(self, tokens: Tensor) -> Step:
        schedule: Any = self
        use = ~schedule.drafted & (self.proposed >= 0)
        step: Step = super().plan(tokens)  # type: ignore[safe-super]
        tokens.copy_(self.proposed.where(use, tokens))
        schedule.guesses = (
            tokens[:, schedule.slots] if isinstance(self, Drafted) else tokens.gather(1, schedule.targets)
        )
        return step


class Distributed(Proposing):
    """First drafts are drawn, with their own noise, from what the slot above or to the left was drawn from."""

    stored: Tensor
    """Logits, float32 (images, slots + 1, vocabulary)."""
    held: Tensor
    """Where there are some, bool (images, slots + 1)."""

    def begin(self, left: bool) -> None:
        places = self.places  # type: ignore[attr-defined]
        beside = (places.slot - 1).clamp(min=0)
        self.source = beside.where(left & places.free & (places.column > 0), places.above)

    def prepare(self, vocabulary: int) -> None:
        rows, slots = self.drafted.shape  # type: ignore[attr-defined]
        none = torch.full((slots,), -1)
        self._keep(rows, proposed=none, held=none > 0, stored=torch.zeros(slots, vocabulary))

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        super().settle(tokens, evaluated)  # type: ignore[safe-super]
        targets, draw = evaluated.step.targets, evaluated.draw
        self.stored.scatter_(1, targets[..., None].expand_as(evaluated.logits), evaluated.logits)
        self.held.scatter_(1, targets, True)
        self.held[:, -1] = False
        slots = torch.arange(self.held.shape[1])
        noise = gumbel(draw.seeds, slots[None], self.stored.shape[-1])
        drawn = torch.addcmul(self.stored[:, self.source], draw.noise, noise).argmax(-1)
        self.proposed.copy_(drawn.where(self.held[:, self.source], -1))


class RowsFromDistributions(Distributed, Drafted):
    """The default, so drafted."""


class LosslessFromDistributions(Distributed, Ahead):
    """Lossless decoding, so drafted."""


class FromImage(Proposing, Ahead):
    """Lossless decoding whose drafts are an image: a second wave over what the first one made."""

    def begin(self, image: Tensor) -> None:
        self.image = F.pad(image, (0, 1), value=-1)
        self._keep(len(image), proposed=self.image[0])

    def reset(self, rows: slice) -> None:
        super().reset(rows)
        self.proposed[rows] = self.image[rows]


class Relaxed(Rejecting, Drafted):
    """Rejection sampling that keeps drafts near the settled tokens more often than it may: min(1, w p / q).

    w falls from ``strength`` to 1, by half each token ("annealed relaxation", after COOL-SD).
    """

    def begin(self, strength: float) -> None:
        self.strength = strength

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        targets = evaluated.step.targets
        guesses, behind = torch.zeros_like(tokens), torch.zeros_like(tokens)
        guesses[:, self.slots] = self.guesses
        behind[:, self.slots] = (self.column - self.settled[..., None]).clamp(min=0)
        favour = (self.strength * 0.5 ** behind.gather(1, targets)).clamp(min=1)[..., None]
        revised, _ = self.revised(guesses.gather(1, targets), targets, evaluated, favour)
        tokens.scatter_(1, targets, revised)
        super().settle(tokens, evaluated)  # a draft that was kept has come true


VARIANTS: dict[str, tuple[str, Strategy]] = {
    "default": ("rows see drafts that were drawn twice in a row or have a probability of one half", DEFAULT),
    "rows see all drafts": ("at once", Variant(DEFAULT, Visible, ("all",))),
    "rows see no drafts": ("settled tokens alone", Variant(DEFAULT, Visible, ("none",))),
    "rows see drafts drawn twice": ("whatever their probability", Variant(DEFAULT, Visible, ("kept",))),
    "rows see likely drafts": ("of a probability of one half", Variant(DEFAULT, Visible, ("likely",))),
    "rows see drafts of right rows": ("of which half came true in this pass", Variant(DEFAULT, Visible, ("row",))),
    "3 nats": ("a window ends sooner", replace(DEFAULT, nats=3.0)),
    "6 nats": ("a window ends later", replace(DEFAULT, nats=6.0)),
    "adaptive lookahead": ("a row drafts 2 tokens more than came true", Variant(DEFAULT, Adaptive, (2,))),
    "adaptive lookahead, wider": ("4 tokens more", Variant(DEFAULT, Adaptive, (4,))),
    "first drafts drawn, above": (
        "from what the slot above was drawn from, not copied",
        Variant(DEFAULT, RowsFromDistributions, (False,)),
    ),
    "rejection sampling": ("coupled maximally, not equality", Variant(DEFAULT, Relaxed, (1.0,))),
    "relaxed, annealed": ("the same, w from 2 on", Variant(DEFAULT, Relaxed, (2.0,))),
    "lossless": ("", LOSSLESS),
    "lossless, first drafts drawn, above": (
        "as above",
        Variant(LOSSLESS, LosslessFromDistributions, (False,)),
    ),
    "lossless, first drafts drawn, left": (
        "from that of the slot before",
        Variant(LOSSLESS, LosslessFromDistributions, (True,)),
    ),
}
WAVES = {"second wave": DEFAULT, "second wave, plain": ZipAR(4)}
"""Lossless decoding whose drafts are these strategies' images, whose passes count."""


class Made(NamedTuple):
    """Images of a model by one strategy."""

    decoded: Decoded
    queries: float
    """An image, over all passes after the prefill."""


class Bench:
    """A model, prompts and seeds, in one batch."""

    def __init__(self, place: str, images: int) -> None:
        directory = auto.find(place)
        self.name, self.model = directory.name, auto.load(directory, device="cpu")
        self.grid = self.model.grid(*self.model.image_size)
        texts = prompts(images, SEED) if self.name == "emoji" else self.model.examples(images)
        self.prefix = self.model.prefix(texts, None, self.model.defaults.guided, self.grid)
        self.seeds = [SEED + i for i in range(images)]

    def made(self, strategy: Strategy) -> Made:
        queries = torch.zeros((), dtype=torch.int64)

        def see(step: Step, evaluated: Evaluated) -> None:
            queries.add_((step.queries < self.grid.slots - 1).sum())

        asked = self.model.defaults
        decoded = decode(self.model, self.prefix, self.grid, Watched(strategy, see), asked, self.seeds)
        return Made(decoded, queries.item() / len(self.seeds))

    def row(self, strategy: Strategy, first: Strategy | None = None) -> dict[str, Any]:
        """Figures of a strategy, or of a second wave after a ``first`` one."""
        before = None if first is None else self.made(first)
        if before is not None:
            strategy = Variant(LOSSLESS, FromImage, (before.decoded.tokens,))
        waves = [self.made(strategy), *([] if before is None else [before])]
        last = waves[0].decoded
        found = likelihood(self.model, self.prefix, self.grid, last.tokens, self.model.defaults)
        divergence, excess = (
            mean(each.numpy()) for each in (found.divergence(last.log_probabilities, self.grid), found.excess)
        )
        return {
            "passes": sum(float(wave.decoded.born.max(1).values.double().mean()) + 1 for wave in waves),
            "queries": sum(wave.queries for wave in waves),
            "divergence": [divergence.value, divergence.reach],
            "excess": [excess.value, excess.reach],
        }


def rows(bench: Bench, output: Path) -> Iterator[str]:
    """A line for each variant."""
    each = [(name, what, strategy, None) for name, (what, strategy) in VARIANTS.items()]
    each += [(name, f"over the image of `{names.name(first)}`", LOSSLESS, first) for name, first in WAVES.items()]
    for name, what, strategy, first in each:
        path = output / bench.name / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        found = kept(path, lambda strategy=strategy, first=first: bench.row(strategy, first))  # type: ignore[misc]
        (value, reach), (excess, about) = found["divergence"], found["excess"]
        cells = [f"{found['passes']:.1f}", f"{found['queries']:,.0f}"]
        cells += [f"{round(value, 4) + 0.0:.4f} ± {reach:.4f}", f"{excess:+.3f} ± {about:.3f}"]
        yield f"| {' | '.join([name, what, *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="embedded names or checkpoint directories")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tried"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    sections, done = [], []
    for place in args.models:
        bench = Bench(place, args.images)
        done.append(bench.name)
        lines = ["| variant | what | passes | queries | divergence | surprise excess |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
        for line in rows(bench, args.output):
            lines.append(line)
            print(line, flush=True)
        sections.append("\n".join([f"## {bench.name}", "", *lines, ""]))
    text = (Path(__file__).parent / "tried.md").read_text(encoding="utf-8")
    models = " ".join(name if name in pretrained.names() else f"{name.upper()}_DIRECTORY" for name in done)
    filled = text.format(images=args.images, models=models, machine=machine(), sections="\n".join(sections))
    (args.docs / "tried.md").write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
