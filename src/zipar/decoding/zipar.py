"""ZipAR (He et al., "ZipAR: Parallel Auto-regressive Image Generation through Spatial Locality", ICML 2025)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zipar.arguments import choice, keep, whole
from zipar.decoding.strategy import Evaluated, Schedule, StaticStrategy, Step, Strategy
from zipar.decoding.wave import Wave
from zipar.grid import TokenGrid


@dataclass(frozen=True)
class ZipAR(StaticStrategy):
    """A row starts once the row above it holds ``window`` tokens; all started rows gain one token a pass.

    Token (i, j) is thus sampled when (i, j - 1) and the tokens (i - 1, k), k < min(j + window, columns),
    exist (section 3.2). A frame takes columns + (rows - 1) * window passes instead of rows * columns.

    Without row-end tokens, a row that starts early needs a stand-in for the missing last token of the
    row above. Row 1 is the hard case, for no row above it is complete: with ``first_row="alone"`` row 0
    is decoded to its end before row 1 starts (the authors' way, 2 * columns + (rows - 2) * window
    passes), with ``"wave"`` it is not. Grids with row-end tokens need no stand-in and always use the wave.

    Raises:
        ZipARError: a number or name that is not possible.
    """

    window: int = 4
    lookahead: int = 1
    first_row: Literal["alone", "wave"] = "alone"

    def __post_init__(self) -> None:
        keep(self, window=whole("window", self.window, 1), lookahead=whole("lookahead", self.lookahead, 1))
        choice("first_row", self.first_row, ("alone", "wave"))

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        if self.lookahead == 1:
            return super().schedule(grid, rows, device)
        return Drafted(self, grid, rows, device)

    def fewest_passes(self, grid: TokenGrid) -> int:
        return super().fewest_passes(grid) if self.lookahead == 1 else Strategy.fewest_passes(self, grid)

    def timetable(self, grid: TokenGrid) -> Tensor:
        window = min(self.window, grid.columns)
        starts = torch.arange(grid.rows) * window
        if grid.row_end is None and self.first_row == "alone":
            starts[1:] += grid.columns - window
        frame = starts[:, None] + torch.arange(grid.columns)
        return frame + torch.arange(grid.frames)[:, None, None] * (frame.max() + 1)

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        """The nearest decoded token in the last column above the missing one, else the newest of row - 1."""
        now = times[frame, row, 0]
        complete = (times[frame, : row - 1, -1] < now).nonzero()
        if len(complete):
            return frame, int(complete[-1]), times.shape[2] - 1
        return frame, row - 1, int((times[frame, row - 1] < now).sum()) - 1


class Drafted(Wave):
    """Rows that draft ``lookahead`` tokens ahead, evaluate them in one pass, and keep those that come true."""

    drafted: Tensor
    """Slots that hold a token, if only a draft, bool (images, slots + 1)."""

    def __init__(self, strategy: ZipAR, grid: TokenGrid, rows: int, device: torch.device) -> None:
        alone = grid.row_end is None and strategy.first_row == "alone"
        super().__init__(grid, rows, device, strategy.window, strategy.lookahead, alone)
        self.lookahead = strategy.lookahead
        self._keep(rows, drafted=~self.places.free | (self.places.slot == 0))

    def plan(self, tokens: Tensor) -> Step:
        self.evaluates = self.wanted(self.lookahead)
        tokens.copy_(tokens.where(self.drafted, tokens[:, self.places.above]))
        self.drafted[:, self.slots] |= self.evaluates
        self.guesses = tokens[:, self.slots]
        return self.step(self.evaluates)

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        wrong = self.evaluates & (tokens[:, self.slots] != self.guesses)
        # the first draft of a row is settled, and the next ones as long as those before it were guessed right
        right = self.evaluates & (wrong.cumsum(-1) - wrong.long() == 0)
        self.advance(self.settled + right.sum(-1))
