"""Coupled Jacobi decoding: exactly the raster image of a seed, in fewer passes.

The noise of a slot belongs to its seed, so raster decoding is a deterministic map from drafts to tokens whose fixed
point is the raster sample (Wiggers & Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models", ICML
2020). Speculative Jacobi decoding (arXiv 2410.01699) does the same with fresh noise and rejection sampling.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.arguments import keep, whole
from zipar.decoding.places import Places
from zipar.decoding.strategy import Evaluated, Schedule, Step, Strategy
from zipar.grid import TokenGrid

BUDGETS = (64, 4096)
"""Tokens that all images together draft in a pass, on a CPU and on a GPU: docs/performance.md says why."""


@dataclass(frozen=True)
class CoupledJacobi(Strategy):
    """Tokens are drafted ahead and evaluated together; those whose context was right when they were are settled.

    Drafts reach ``lookahead`` tokens beyond the settled ones: along the raster or, with a ``window``, in the wave of
    ZipAR, each row drafted ``window`` tokens less far than the row above it. A pass settles at least one token, so
    no image takes more passes than raster decoding, and most take a fraction.

    Many images together draft less far, for what they evaluate in a pass is then what it costs: drafts of all images
    stay within a ``budget`` of tokens, two an image at least; None for what suits the device. No image changes by it.

    Raises:
        ZipARError: a number that is not possible.
    """

    lookahead: int = 16
    window: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        keep(self, lookahead=whole("lookahead", self.lookahead, 1))
        if self.window is not None:
            keep(self, window=whole("window", self.window, 1))
        if self.budget is not None:
            keep(self, budget=whole("budget", self.budget, 1))

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        return Ahead(self, grid, rows, device)

    def passes(self, grid: TokenGrid) -> int:
        return grid.tokens


class Ahead(Schedule):
    """Drafts from the first slot on that is not settled."""

    settled: Tensor
    """All slots up to this one hold raster's tokens, int64 (images, 1)."""
    drafted: Tensor
    """Slots that hold a token, if only a draft, bool (images, slots + 1)."""

    def __init__(self, strategy: CoupledJacobi, grid: TokenGrid, rows: int, device: torch.device) -> None:
        self.lookahead, self.window, self.places = strategy.lookahead, strategy.window, Places.of(grid, device)
        self.budget = strategy.budget or BUDGETS[device.type == "cuda"]
        self.first_slot = grid.first
        self._widths: dict[int, int] = {}
        super().__init__(self._width(), rows, device)
        self._keep(
            rows,
            settled=torch.full((1,), grid.first, device=device),
            drafted=~self.places.free | (self.places.slot == grid.first),
        )

    def first(self, rows: int) -> "Ahead":
        part = super().first(rows)
        assert isinstance(part, Ahead)
        part.lookahead = min(self.lookahead, max(2, self.budget // rows))  # one would be raster order, with more work
        part.width = part._width()
        return part

    def _width(self) -> int:
        """The most slots that drafts reach, wherever the settled ones end."""
        if self.lookahead not in self._widths:
            ends = self.places.slot[self.first_slot : self.places.last + 1, None].split(512)
            self._widths[self.lookahead] = max(1, *(int(self._ahead(part).sum(1).max()) for part in ends))
        return self._widths[self.lookahead]

    def plan(self, tokens: Tensor) -> Step:
        places, nowhere = self.places, len(self.places.slot) - 1
        tokens.copy_(tokens.where(self.drafted, tokens[:, places.above]))
        ahead = self._ahead(self.settled)
        self.drafted |= ahead
        self.targets = places.slot.where(ahead, nowhere).topk(self.width, largest=False).values
        self.guesses = tokens.gather(1, self.targets)
        queries = self.targets - 1
        return Step(queries, queries, self.targets.where(places.free[self.targets], nowhere))

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        # a target is settled when all before it are, and their guesses, which it was evaluated with, were right
        right = F.pad((tokens.gather(1, self.targets) == self.guesses)[:, :-1], (1, 0), value=True)
        adjoining = self.targets == self.settled + self.places.slot[1 : self.width + 1]
        self.settled.add_((right & adjoining).cumprod(1).sum(1, keepdim=True)).clamp_(max=self.places.last)

    @property
    def done(self) -> Tensor:
        return self.settled[:, 0] == self.places.last

    def _ahead(self, settled: Tensor) -> Tensor:
        """The slots that drafts reach when all up to ``settled`` (n, 1) are, bool (n, slots + 1)."""
        places, lookahead, window = self.places, self.lookahead, self.window
        unsettled = (places.slot > settled) & (places.slot <= places.last)
        if window is None:
            return unsettled & (places.rank <= places.rank[settled] + lookahead)
        first = places.next_free[settled]
        reach = places.column[first] + lookahead - (places.row - places.row[first]) * window
        return unsettled & (places.column < reach)
