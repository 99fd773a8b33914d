"""ZipAR (He et al., "ZipAR: Parallel Auto-regressive Image Generation through Spatial Locality", ICML 2025)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zipar.decoding.strategy import StaticStrategy, Steps
from zipar.decoding.wave import Wave
from zipar.errors import ZipARError
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
    """

    window: int = 4
    lookahead: int = 1
    first_row: Literal["alone", "wave"] = "alone"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ZipARError(f"window {self.window} is not possible: a row needs at least 1 token above it to start")
        if not isinstance(self.lookahead, int) or self.lookahead < 1:
            raise ZipARError(f"lookahead {self.lookahead!r} is not possible: a row evaluates 1 token a pass or more")
        if self.first_row not in ("alone", "wave"):
            raise ZipARError(f"first_row {self.first_row!r} is unknown: use 'alone' or 'wave'")

    def steps(self, grid: TokenGrid, tokens: Tensor) -> Steps:
        if self.lookahead == 1:
            return super().steps(grid, tokens)
        return self._drafted_steps(grid, tokens)

    def _drafted_steps(self, grid: TokenGrid, tokens: Tensor) -> Steps:
        alone = grid.row_end is None and self.first_row == "alone"
        wave = Wave(grid, tokens, self.window, alone)
        places, slots = wave.places, wave.slots
        drafted = (~places.free | (places.slot == 0)).repeat(len(tokens), 1)
        while True:
            wanted = wave.wanted(self.lookahead)
            if not wanted.any():
                return None
            tokens.copy_(tokens.where(drafted, tokens[:, places.above]))
            drafted[:, slots] |= wanted
            guesses = tokens[:, slots]
            yield wave.step(wanted)
            wrong = wanted & (tokens[:, slots] != guesses)
            # the first draft of a row is settled, and the next ones as long as those before it were guessed right
            settled = wanted & (wrong.cumsum(-1) - wrong.long() == 0)
            wave.settle(wave.settled + settled.sum(-1))

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
