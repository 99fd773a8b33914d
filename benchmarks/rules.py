"""Published rules of parallel decoding beside ours, on the same models, prompts and seeds: docs/compare-methods.md.

    python benchmarks/rules.py fashion DIRECTORY... --images 64

What a rule is made of: what a pass evaluates, what of it is seen by what, and what of it is accepted. Ours are in the
library; those of others are here, written from their papers, so that passes and quality can be compared. They run on
our engine, and no authors' code is timed.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from decoding import machine
from studies import SEED, prompts
from zipar import DEFAULT, CoupledJacobi, Raster, TokenGrid, ZipAR
from zipar.decoding.engine import decode
from zipar.decoding.jacobi import Ahead
from zipar.decoding.sampling import gumbel, log_probabilities_of, probabilities, revise
from zipar.decoding.strategy import Evaluated, Schedule, Strategy
from zipar.decoding.zipar import SURE, Drafted
from zipar.evaluation.fidelity import likelihood
from zipar.evaluation.report import mean
from zipar.models import auto
from zipar.models.base import VisualModel

AHEAD = 32
STREAM = 0x5851F42D4C957  # between the seeds of passes


class Rejecting(Schedule):
    """What draws keep of the drafts before them, by rejection sampling (Leviathan et al., 2023)."""

    before: Tensor
    """What each draft was drawn from, float32 (images, slots + 1, vocabulary); all on one token for a copied one."""

    def prepare(self, vocabulary: int) -> None:
        rows, slots = self.drafted.shape  # type: ignore[attr-defined]
        self._keep(rows, before=torch.zeros(slots, vocabulary))

    def revised(
        self, guesses: Tensor, targets: Tensor, evaluated: Evaluated, favour: Tensor | float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Guesses (images, n) or what takes their place, and what the pass would draw afresh.

        Args:
            favour: (images, n, 1), above 1 where guesses are kept so many times as often as they may.
        """
        now = probabilities(evaluated.logits, evaluated.draw)
        before = self.before.take_along_dim(targets[..., None], 1)
        certain = torch.zeros_like(now).scatter_(-1, guesses[..., None], 1.0)
        before = before.where(before.sum(-1, keepdim=True) > 0, certain)
        seeds = evaluated.draw.seeds + evaluated.passes * STREAM
        revised = revise(guesses, before / favour, now, seeds, targets)
        fresh = (now.log() + gumbel(seeds + 1, targets, now.shape[-1])).argmax(-1)
        self.before.scatter_(1, targets[..., None].expand_as(now), now)
        return revised, fresh


@dataclass(frozen=True)
class Speculative(Strategy):
    """Along the raster, drafts are accepted up to the first rejection, which is drawn from the residual.

    Those behind it are drawn afresh ("SJD", Teng et al., arXiv 2410.01699), or coupled with what they were: by the
    Gumbel noise of their slot, or maximally ("SCD", arXiv 2510.24211). All give raster's distribution.
    """

    lookahead: int
    behind: str

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        return SpeculativeAhead(self, grid, rows, device)

    def passes(self, grid: TokenGrid) -> int:
        return grid.tokens


class SpeculativeAhead(Rejecting, Ahead):
    def __init__(self, strategy: Speculative, grid: TokenGrid, rows: int, device: torch.device) -> None:
        super().__init__(CoupledJacobi(strategy.lookahead, budget=10**6), grid, rows, device)  # type: ignore[arg-type]
        self.behind = strategy.behind

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        width = evaluated.logits.shape[1]
        targets, guesses = self.targets[:, :width], self.guesses[:, :width]
        drawn = tokens.gather(1, targets)
        revised, fresh = self.revised(guesses, targets, evaluated)
        adjoining = targets == self.settled + self.places.slot[1 : width + 1]
        accepted = ((revised == guesses) & adjoining).long().cumprod(1).sum(1, keepdim=True)
        tail = {"fresh": fresh, "gumbel": drawn, "maximal": revised}[self.behind]
        tokens.scatter_(1, targets, revised.where(self.places.slot[:width] <= accepted, tail))
        self.settled.add_((accepted + 1).minimum(adjoining.sum(1, keepdim=True))).clamp_(max=self.places.last)


@dataclass(frozen=True)
class ParallelRows(Strategy):
    """The wave, speculative Jacobi within each row, other rows' drafts hidden ("PJD", arXiv 2606.05703).

    With ``ours`` as trusted drafts are there, and coupled maximally: what our rule would be with rejection sampling.
    """

    window: int
    lookahead: int
    ours: bool = False

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        return ParallelDrafts(self, grid, rows, device)

    def passes(self, grid: TokenGrid) -> int:
        return grid.tokens


class ParallelDrafts(Rejecting, Drafted):
    def __init__(self, strategy: ParallelRows, grid: TokenGrid, rows: int, device: torch.device) -> None:
        super().__init__(ZipAR(strategy.window, strategy.lookahead), grid, rows, device)  # type: ignore[arg-type]
        self.ours = strategy.ours

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        targets = evaluated.step.targets
        guesses = torch.zeros_like(tokens)
        guesses[:, self.slots] = self.guesses
        revised, fresh = self.revised(guesses.gather(1, targets), targets, evaluated)

        def placed(values: Tensor) -> Tensor:
            return torch.zeros_like(tokens, dtype=values.dtype).scatter_(1, targets, values)[:, self.slots]

        wrong = self.evaluates & (placed(revised) != self.guesses)
        right = self.evaluates & (wrong.cumsum(-1) - wrong.long() == 0)
        tail = placed(revised if self.ours else fresh).where(self.evaluates, tokens[:, self.slots])
        tokens[:, self.slots] = torch.where(right, placed(revised), tail)
        self.advance(self.settled + right.sum(-1))
        seen = self.column < self.settled[..., None]
        if self.ours:
            logs = log_probabilities_of(tokens.gather(1, targets), evaluated.logits, evaluated.draw)
            seen |= self.evaluates & (~wrong | (placed(logs) >= math.log(SURE)))
        self.shown[:, self.slots[:, :-1]] = seen[..., :-1]


RULES: dict[str, tuple[str, Strategy]] = {
    "raster order": ("one token", Raster()),
    f"SJD, {AHEAD} ahead": (
        "rejection; drafts behind it drawn afresh; raster's distribution",
        Speculative(AHEAD, "fresh"),
    ),
    f"SCD, Gumbel, {AHEAD} ahead": (
        "rejection; coupled by Gumbel noise; raster's distribution",
        Speculative(AHEAD, "gumbel"),
    ),
    f"SCD, maximal, {AHEAD} ahead": (
        "rejection; coupled maximally; raster's distribution",
        Speculative(AHEAD, "maximal"),
    ),
    f"`jacobi:{AHEAD}`, ours": ("equality of Gumbel draws; raster's very image", CoupledJacobi(AHEAD, budget=10**6)),
    "ZipAR, window 2": ("no drafts", ZipAR(2)),
    "PJD, window 2, 8 ahead": ("rejection in each row; other rows' drafts hidden", ParallelRows(2, 8)),
    "the same, coupled, drafts seen once trusted": (
        "rejection in each row; coupled maximally",
        ParallelRows(2, 8, True),
    ),
    "`zipar:2:8`, ours": ("equality in each row; other rows' drafts seen once trusted", ZipAR(2, 8)),
    "default, ours": ("the same; the window measured in nats", DEFAULT),
}


@torch.inference_mode()
def measured(place: str, model: VisualModel, strategy: Strategy, args: argparse.Namespace) -> list[str]:
    """Passes, surprise excess and entropy, as cells."""
    grid = model.grid(*model.image_size)
    texts = prompts(args.images, SEED) if place == "emoji" else model.examples(args.images)
    passes, excess, entropy = [], [], []
    for first in range(0, args.images, args.batch):
        part = texts[first : first + args.batch]
        prefix = model.prefix(part, None, model.defaults.guided, grid)
        seeds = [SEED + first + i for i in range(len(part))]
        made = decode(model, prefix, grid, strategy, model.defaults, seeds)
        found = likelihood(model, prefix, grid, made.tokens, model.defaults)
        passes.append(made.born.max(1).values + 1.0)
        excess.append(found.excess)
        entropy.append(found.entropy)
    surplus = mean(torch.cat(excess).numpy())
    return [
        f"{torch.cat(passes).mean():.1f}",
        f"{surplus.value:+.3f} ± {surplus.reach:.3f}",
        f"{torch.cat(entropy).mean():.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="embedded names or checkpoint directories")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args()
    sections = []
    for place in args.models:
        directory = auto.find(place)
        model = auto.load(directory, device="cpu")
        lines = ["| rule | accepts | passes | surprise excess | entropy |", "| --- | --- | ---: | ---: | ---: |"]
        for name, (accepts, strategy) in RULES.items():
            cells = measured(place, model, strategy, args)
            lines.append(f"| {' | '.join([name, accepts, *cells])} |")
            print(lines[-1], flush=True)
        asked = model.defaults
        title = f"### {directory.name}, temperature {asked.temperature:g}, guidance {asked.guidance_scale:g}"
        sections.append("\n".join([title, "", *lines, ""]))
    text = (Path(__file__).parent / "rules.md").read_text(encoding="utf-8")
    filled = text.format(images=args.images, machine=machine(), sections="\n".join(sections))
    (args.docs / "compare-methods.md").write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
