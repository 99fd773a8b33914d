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
        self,
        grid: TokenGrid,
        rows: int,
        device: torch.device,
        window: int,
        reach: int,
        first_row_alone: bool,
        timetable: Tensor,
    ) -> None:
        """
        Args:
            window: the least that a row ever follows the one above it.
            reach: the most tokens of a row that a pass evaluates.
            first_row_alone: whether row 1 of a frame waits until row 0 is complete.
            timetable: of a static strategy, which says how frames follow each other.
        """
        self.grid, self.window = grid, min(window, grid.columns)
        self.follows, self.distance = (part.to(device) for part in _followed(timetable, grid.given))
        # a started row that is not complete holds ``window`` tokens fewer than the one above it, or more; and one row
        # at most of a frame was completed by the pass before, whose end is fed with the known tokens behind it
        started = min((grid.columns - 1) // self.window + 1, grid.rows)
        behind = grid.frame_stride - grid.rows * grid.row_stride + grid.row_stride - grid.columns
        self.overlapping = _overlapping(self.follows, self.distance, grid)
        together = started * min(reach, grid.columns) + 1 + behind
        # what is before a frame that starts early is fed with its first token; else it is when the row before it ends
        self.leads = self.overlapping > 1 and behind > 1
        if self.leads:
            together += behind
        super().__init__(min(together * self.overlapping, grid.slots), rows, device)
        self.number = number = torch.arange(grid.frames * grid.rows, device=device)
        self.column = torch.arange(grid.columns, device=device)
        self.places = Places.of(grid, device)
        self.slots = grid.places().flatten(0, 1).to(device)
        """Slots (grid rows, columns)."""
        self.opens_frame = number % grid.rows == 0
        self.frame_start = number - number % grid.rows
        self.alone = (number % grid.rows == 1) & first_row_alone
        """Grid rows that start once the row above is complete, (grid rows,)."""
        self.ends_row = torch.full((grid.slots + 1,), len(number), device=device)
        """The grid row that a slot is the last token of, or known after; else the number of rows."""
        self.ends_row[self.slots[:, -1]] = number
        known = self.places.known & (self.places.slot < self.places.last)
        self.ends_row[known] = self.places.row[known] - 1
        decoded = grid.given * grid.rows
        settled = (number == decoded).long().where(number >= decoded, grid.columns)
        self._keep(rows, settled=settled, closing=(settled == grid.columns) & (number >= decoded))

    @property
    def done(self) -> Tensor:
        return self.settled[:, -1] == self.grid.columns

    def wanted(self, reach: int) -> Tensor:
        """The next ``reach`` tokens of every grid row that has started, bool (images, grid rows, columns)."""
        started = (~self.alone | (self._above() == self.grid.columns)) & (self._bound() > 0)
        settled = self.settled[..., None]
        return started[..., None] & (settled <= self.column) & (self.column < settled + reach)

    def step(self, wanted: Tensor) -> Step:
        """The pass that evaluates ``wanted`` tokens; where a row is complete, its end is fed once more."""
        nowhere = self.grid.slots
        is_target = torch.zeros(len(wanted), nowhere + 1, dtype=torch.bool, device=wanted.device)
        is_target[:, self.slots.flatten()] = wanted.flatten(1)
        fed = is_target.roll(-1, 1)
        if self.leads:
            fed |= self.places.known & is_target[:, self.places.next_free]
        fed |= F.pad(self.closing, (0, 1))[:, self.ends_row]
        fed[:, self.places.last :] = False
        idle = nowhere - 1
        queries = self.places.slot.where(fed, idle).topk(self.width, largest=False).values
        targets = (queries + 1).where(is_target.gather(1, queries + 1), nowhere)
        return Step(queries, self._sources(queries, targets), targets)

    def advance(self, counts: Tensor) -> None:
        """Take over how many tokens rows hold, int64 (images, grid rows), as far as the rows above let them."""
        counts = counts.minimum(self._bound().maximum(self.settled))
        self.closing.copy_((counts == self.grid.columns) & (self.settled < counts))
        self.settled.copy_(counts)

    def allowed(self) -> Tensor:
        """How many tokens each row may hold while the one above is not complete, int64 (images, grid rows).

        The window rule: token (i, j) may be settled when the tokens (i - 1, k), k < min(j + window, columns), were.
        """
        return self._above() - self.window + 1

    def complete_above(self) -> Tensor:
        """Whether the row above, of the same frame, is complete, bool (images, grid rows)."""
        return (self._above() == self.grid.columns) | self.opens_frame

    def _bound(self) -> Tensor:
        """How many tokens each row may hold, int64 (images, grid rows)."""
        columns = self.grid.columns
        within = self.allowed().where(~self.complete_above(), columns)
        followed = self.settled[:, self.follows]
        return within.minimum((followed - self.distance + 1).where(followed < columns, columns))

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
        early = (targets < self.grid.slots) & (self.places.column[targets] == 0) & ~self.places.known[queries]
        row = row.where(early, 0)
        early &= self._above().gather(1, row) < self.grid.columns
        above = (row - 1).clamp(min=0)
        start = self.frame_start[above]
        complete = self.number.where(self.settled == self.grid.columns, -1).cummax(1).values.gather(1, above)
        held = self.number.where(self.settled > 0, -1).cummax(1).values.gather(1, above)
        nearest = complete.where(complete >= start, held)
        stand_in = self.slots[nearest, self.settled.gather(1, nearest) - 1]
        return stand_in.where(early, queries)


def _followed(timetable: Tensor, given: int) -> tuple[Tensor, Tensor]:
    """The row of the frame before that each row follows, and by how many tokens, int64 (grid rows,) each.

    It is the newest one that has started when the row does. Given frames, and the first one after them, wait for none:
    they follow themselves, by less than nothing.
    """
    starts = timetable[..., 0]
    frames, rows = starts.shape
    number = torch.arange((given + frames) * rows).view(-1, rows)
    distance = torch.full_like(number, 1 - timetable.shape[2])
    newest = (starts[:-1, None] < starts[1:, :, None]).sum(-1) - 1
    distance[given + 1 :] = starts[1:] - starts[:-1].gather(1, newest)
    number[given + 1 :] = number[given:-1].gather(1, newest)
    return number.flatten(), distance.flatten()


def _overlapping(follows: Tensor, distance: Tensor, grid: TokenGrid) -> int:
    """How many frames may be under way at once: so many after the first, the first is sure to be complete."""
    row, held = (grid.frames - 1) * grid.rows, 1
    for frames in range(1, grid.frames - grid.given):
        row, held = int(follows[row]), min(held - 1 + int(distance[row]), grid.columns)
        if held == grid.columns and row % grid.rows == grid.rows - 1:
            return frames
    return grid.frames - grid.given
