"""ZipAR's wave where it depends on the image: which rows may advance, and what a pass feeds, image by image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.decoding.places import Places
from zipar.decoding.strategy import Schedule, Step
from zipar.grid import TokenGrid


class Wave(Schedule):
    """How many settled tokens each row of each image's grid holds, and what follows from it.

    Grid rows are counted through all frames.
    """

    settled: Tensor
    """Settled tokens of each grid row, int64 (images, grid rows)."""
    closing: Tensor
    """Grid rows that the pass before completed, bool (images, grid rows)."""

    def __init__(
        self, grid: TokenGrid, rows: int, device: torch.device, window: int, reach: int, first_row_alone: bool
    ) -> None:
        """``window``: the least that a row ever follows; ``reach``: the most tokens of one that a pass evaluates."""
        self.grid, self.window = grid, min(window, grid.columns)
        # a started row that is not complete holds ``window`` tokens fewer than the one above it, or more; and one row
        # at most was completed by the pass before, whose end is fed with the known tokens behind it
        started = min((grid.columns - 1) // self.window + 1, grid.frames * grid.rows)
        behind = grid.row_stride - grid.columns + len(grid.frame_end)
        width = min(started * min(reach, grid.columns) + 1 + behind, grid.slots)
        super().__init__(width, rows, device)
        self.number = number = torch.arange(grid.frames * grid.rows, device=device)
        self.column = torch.arange(grid.columns, device=device)
        self.places = Places.of(grid, device)
        self.slots = grid.free().flatten(0, 1).to(device)
        """Slots (grid rows, columns)."""
        self.opens_frame = number % grid.rows == 0
        self.frame_start = number - number % grid.rows
        self.alone = self.opens_frame | (first_row_alone & (number % grid.rows == 1))
        """Grid rows that start once the row above is complete, (grid rows,)."""
        self.ends_row = torch.full((grid.slots + 1,), len(number), device=device)
        """The grid row that a slot is the last token of, or known after; else the number of rows."""
        self.ends_row[self.slots[:, -1]] = number
        known = ~self.places.free & (self.places.slot < self.places.last)
        self.ends_row[known] = self.places.row[known] - 1
        settled = (number == 0).long()
        self._keep(rows, settled=settled, closing=settled == grid.columns)

    @property
    def done(self) -> Tensor:
        return self.settled[:, -1] == self.grid.columns

    def wanted(self, reach: int) -> Tensor:
        """The next ``reach`` tokens of every grid row that has started, bool (images, grid rows, columns)."""
        started = torch.where(self.alone, self._above() == self.grid.columns, self.allowed() > 0)[..., None]
        settled = self.settled[..., None]
        return started & (settled <= self.column) & (self.column < settled + reach)

    def step(self, wanted: Tensor) -> Step:
        """The pass that evaluates ``wanted`` tokens; where a row is complete, its end is fed once more."""
        nowhere = self.grid.slots
        is_target = torch.zeros(len(wanted), nowhere + 1, dtype=torch.bool, device=wanted.device)
        is_target[:, self.slots.flatten()] = wanted.flatten(1)
        fed = is_target.roll(-1, 1)
        fed |= F.pad(self.closing, (0, 1))[:, self.ends_row]
        fed[:, self.places.last :] = False
        idle = nowhere - 1
        queries = self.places.slot.where(fed, idle).topk(self.width, largest=False).values
        targets = (queries + 1).where(is_target.gather(1, queries + 1), nowhere)
        return Step(queries, self._sources(queries, targets), targets)

    def advance(self, counts: Tensor) -> None:
        """Take over how many tokens rows hold, int64 (images, grid rows), as far as the rows above let them."""
        allowed = self.allowed().where(~self.complete_above(), self.grid.columns)
        counts = counts.minimum(allowed.maximum(self.settled))
        self.closing.copy_((counts == self.grid.columns) & (self.settled < counts))
        self.settled.copy_(counts)

    def allowed(self) -> Tensor:
        """How many tokens each row may hold while the one above is not complete, int64 (images, grid rows).

        The window rule: token (i, j) may be settled when the tokens (i - 1, k), k < min(j + window, columns), were.
        """
        return self._above() - self.window + 1

    def complete_above(self) -> Tensor:
        """Whether a row has all the context that raster decoding would give it, bool (images, grid rows)."""
        return (self._above() == self.grid.columns) | self.opens_frame

    def _above(self) -> Tensor:
        """Settled tokens of the row above each, (images, rows); the first row counts as below a complete one."""
        above = self.settled.roll(1, 1)
        above[:, 0] = self.grid.columns
        return above

    def _sources(self, queries: Tensor, targets: Tensor) -> Tensor:
        """What is fed: the tokens of the queried slots or, for rows that start early, the stand-ins of ``ZipAR``."""
        if self.grid.row_end is not None:
            return queries
        row = self.places.row[targets]
        early = (targets < self.grid.slots) & (self.places.column[targets] == 0)
        row = row.where(early, 0)
        early &= self._above().gather(1, row) < self.grid.columns
        complete = self.number.where(self.settled == self.grid.columns, -1).cummax(1).values
        nearest = complete.gather(1, (row - 2).clamp(min=0)).where(row >= 2, -1)
        above = (row - 1).clamp(min=0)
        newest = self.slots[above, (self.settled.gather(1, above) - 1).clamp(min=0)]
        stand_in = self.slots[nearest.clamp(min=0), -1].where(nearest >= self.frame_start[row], newest)
        return stand_in.where(early, queries)
