"""ZipAR's adaptive window (He et al., ICML 2025, section on adaptive window size assignment)."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.arguments import choice, keep, whole
from zipar.decoding.sampling import probabilities, revise
from zipar.decoding.strategy import Evaluated, Schedule, Step, Strategy
from zipar.decoding.wave import Wave
from zipar.decoding.zipar import ZipAR
from zipar.grid import TokenGrid


@dataclass(frozen=True)
class AdaptiveZipAR(Strategy):
    """A row starts when the row above holds ``min_window`` tokens, and waits for more where more change its start.

    The first token of a row is tentative. A pass later, with one more token above it, it is tested by rejection
    sampling: kept with probability min(1, p' / p), else drawn anew and tested again. It is final once it is kept,
    or once the row above is complete. The row goes on from a tentative token; what followed a rejected one is lost.

    Passes depend on the image: those of ``ZipAR(min_window)`` at least, those of raster decoding at most.

    Raises:
        ZipARError: a number or name that is not possible.
    """

    min_window: int = 2
    first_row: Literal["alone", "wave"] = "alone"
    frame_delay: int | None = None

    def __post_init__(self) -> None:
        keep(self, min_window=whole("min_window", self.min_window, 1))
        choice("first_row", self.first_row, ("alone", "wave"))
        if self.frame_delay is not None:
            keep(self, frame_delay=whole("frame_delay", self.frame_delay, 1))

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        return Tentative(self, grid, rows, device)

    def passes(self, grid: TokenGrid) -> int:
        return grid.tokens

    def fewest_passes(self, grid: TokenGrid) -> int:
        return self.static.passes(grid)

    @property
    def static(self) -> ZipAR:
        """What it comes to when no token is rejected."""
        return ZipAR(self.min_window, first_row=self.first_row, frame_delay=self.frame_delay)


class Tentative(Wave):
    """Rows of which the first token may be taken back."""

    tentative: Tensor
    """Grid rows whose first token is, bool (images, grid rows)."""
    before: Tensor
    """What these were drawn from, float32 (images, grid rows + 1, vocabulary); the last entry takes what is of none."""

    def __init__(self, strategy: AdaptiveZipAR, grid: TokenGrid, rows: int, device: torch.device) -> None:
        alone = grid.row_end is None and strategy.first_row == "alone"
        super().__init__(grid, rows, device, strategy.min_window, 1, alone, strategy.static.timetable(grid))
        # below a tentative row, which holds one token, none starts; with a window of 1, all may
        self.most = (1 if self.window > 1 else grid.rows) * self.overlapping
        self.width = min(max(self.width, self.most) + self.most, grid.slots)
        self._keep(rows, tentative=torch.zeros_like(self.settled[0], dtype=torch.bool))

    def prepare(self, vocabulary: int) -> None:
        rows, grid_rows = self.settled.shape
        self._keep(rows, before=torch.zeros(grid_rows + 1, vocabulary, device=self.settled.device))

    def plan(self, tokens: Tensor) -> Step:
        self.evaluates = self.wanted(1)
        self.evaluates[..., 0] |= self.tentative
        self.old = tokens.clone()
        return self.step(self.evaluates)

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        starts, slot, row = self._starts(evaluated.step.targets)
        logits = evaluated.logits.take_along_dim(starts[..., None], 1)
        now = probabilities(logits, evaluated.draw)
        tested = F.pad(self.tentative, (0, 1)).gather(1, row)
        old = self.old.gather(1, slot)
        noise = evaluated.draw.seeds + evaluated.passes * 0x5851F42D4C957
        revised = revise(old, self.before.take_along_dim(row[..., None], 1), now, noise, slot)
        tokens.scatter_(1, slot, revised.where(tested, tokens.gather(1, slot)))
        self.before.scatter_(1, row[..., None].expand_as(now), now)

        none = torch.zeros_like(F.pad(self.tentative, (0, 1)))
        rejected = none.scatter(1, row, tested & (revised != old))[:, :-1]
        self.rejections += rejected.sum(1)
        # a row that started below a token now rejected has not started
        stays = rejected | (rejected.roll(1, 1) & (self.settled == 0))
        fresh = (self.settled == 0) & ~stays & self.evaluates[..., 0]
        self.tentative.copy_((rejected | fresh) & ~self.complete_above())
        self.advance(self.settled + (self.evaluates.any(-1) & ~stays).long())

    def _starts(self, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which of the ``targets`` are first of their grid row: queries, slots and rows, int64 (images, n) each."""
        width, nowhere = targets.shape[1], self.grid.slots
        first = (targets < nowhere) & (self.places.column[targets] == 0)
        query = self.places.slot[:width].where(first, width)
        query = query.topk(min(self.most, width), largest=False).values
        absent = query == width
        query = query.clamp(max=width - 1)
        slot = targets.gather(1, query).masked_fill(absent, nowhere)
        return query, slot, self.places.row[slot].masked_fill(absent, len(self.slots))
