"""ZipAR's wave where it depends on the image: which rows may advance, and what a pass feeds, image by image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.decoding.places import Places
from zipar.decoding.strategy import Step
from zipar.grid import TokenGrid


class Wave:
    """How many settled tokens each row of each image holds, and what follows from it.

    Rows are counted through all frames.
    """

    def __init__(self, grid: TokenGrid, tokens: Tensor, window: int, first_row_alone: bool) -> None:
        device, rows = tokens.device, torch.arange(grid.frames * grid.rows, device=tokens.device)
        self.grid, self.window = grid, min(window, grid.columns)
        self.places = Places.of(grid, device)
        self.slots = grid.free().flatten(0, 1).to(device)
        """Slots (rows, columns)."""
        self.settled = torch.zeros(len(tokens), len(rows), dtype=torch.int64, device=device)
        """Settled tokens, int64 (images, rows)."""
        self.settled[:, 0] = 1
        self.closing = self.settled == grid.columns
        """Rows that the pass before completed, bool (images, rows)."""
        self.opens_frame = rows % grid.rows == 0
        self.frame_start = rows - rows % grid.rows
        alone = self.opens_frame | (first_row_alone & (rows % grid.rows == 1))
        self.needed = torch.where(alone, grid.columns, self.window)
        """Tokens of the row above that a row needs to start, (rows,)."""
        self.ends_row = torch.full((grid.slots + 1,), len(rows), device=device)
        """The row that a slot is the last token of, or known after; else the number of rows."""
        self.ends_row[self.slots[:, -1]] = rows
        known = ~self.places.free & (self.places.slot < self.places.last)
        self.ends_row[known] = self.places.row[known] - 1

    def wanted(self, reach: int) -> Tensor:
        """The next ``reach`` tokens of every row that has started, bool (images, rows, columns)."""
        started = (self._above() >= self.needed)[..., None]
        column = torch.arange(self.grid.columns, device=started.device)
        settled = self.settled[..., None]
        return started & (settled <= column) & (column < settled + reach)

    def step(self, wanted: Tensor) -> Step:
        """The pass that evaluates ``wanted`` tokens; where a row is complete, its end is fed once more."""
        nowhere = self.grid.slots
        is_target = torch.zeros(len(wanted), nowhere + 1, dtype=torch.bool, device=wanted.device)
        is_target[:, self.slots.flatten()] = wanted.flatten(1)
        fed = is_target.roll(-1, 1)
        fed |= F.pad(self.closing, (0, 1))[:, self.ends_row]
        fed[:, self.places.last :] = False
        width = int(fed.sum(1).max())
        queries = self.places.slot.where(fed, nowhere).topk(width, largest=False).values
        targets = (queries + 1).clamp(max=nowhere)
        targets = targets.where(is_target.gather(1, targets), nowhere)
        queries = queries.where(queries < nowhere, 0)  # idle ones feed slot 0 as it was
        return Step(queries, self._sources(queries, targets), targets, nowhere)

    def settle(self, counts: Tensor) -> None:
        """Take over how many tokens rows hold, int64 (images, rows), as far as the window rule lets them.

        Token (i, j) may be settled when the tokens (i - 1, k), k < min(j + window, columns), were before the pass.
        """
        allowed = (self._above() - self.window + 1).where(~self.complete_above(), self.grid.columns)
        counts = counts.minimum(allowed.maximum(self.settled))
        self.closing = (counts == self.grid.columns) & (self.settled < counts)
        self.settled = counts

    def complete_above(self) -> Tensor:
        """Whether a row has all the context that raster decoding would give it, bool (images, rows)."""
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
        rows = torch.arange(len(self.slots), device=queries.device)
        complete = rows.where(self.settled == self.grid.columns, -1).cummax(1).values
        nearest = complete.gather(1, (row - 2).clamp(min=0)).where(row >= 2, -1)
        above = (row - 1).clamp(min=0)
        newest = self.slots[above, (self.settled.gather(1, above) - 1).clamp(min=0)]
        stand_in = self.slots[nearest.clamp(min=0), -1].where(nearest >= self.frame_start[row], newest)
        return stand_in.where(early, queries)
