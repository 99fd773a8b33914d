"""ZipAR (He et al., "ZipAR: Parallel Auto-regressive Image Generation through Spatial Locality", ICML 2025)."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.arguments import choice, keep, real, whole
from zipar.decoding.sampling import log_probabilities_of
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

    With a ``frame_delay``, a frame starts so many passes after the one before, and the frames of a clip advance
    together too: a delay of a row's columns starts it when row 0 of the one before is complete, one of
    rows * window is diagonal decoding (Ye et al., arXiv 2503.14070). With None it starts when that is complete.
    What strategies that depend on the image wait for is the token that this timetable has decoded just before.

    With a ``lookahead``, started rows draft so many tokens ahead, and keep those that come true.

    With ``nats``, the window is measured in information: it ends, ``NARROWEST`` tokens or more beyond (i, j), where its
    tokens have that much surprise, -log p, and with ``window`` tokens at the latest. What a row needs of the one above
    is to know what it shows: a few unlikely tokens say as much as many that were to be expected.

    Raises:
        ZipARError: a number or name that is not possible.
    """

    window: int = 4
    lookahead: int = 1
    first_row: Literal["alone", "wave"] = "alone"
    nats: float | None = None
    frame_delay: int | None = None

    def __post_init__(self) -> None:
        keep(self, window=whole("window", self.window, 1), lookahead=whole("lookahead", self.lookahead, 1))
        choice("first_row", self.first_row, ("alone", "wave"))
        if self.frame_delay is not None:
            keep(self, frame_delay=whole("frame_delay", self.frame_delay, 1))
        if self.nats is not None:
            keep(
                self,
                nats=real("nats", self.nats, lambda x: x >= 0, "a number of nats, 0 or more, None for no such end"),
            )

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        if self.lookahead == 1 and self.nats is None:
            return super().schedule(grid, rows, device)
        return Drafted(self, grid, rows, device)

    def fewest_passes(self, grid: TokenGrid) -> int:
        if self.nats is None and self.lookahead == 1:
            return super().fewest_passes(grid)
        return Strategy.fewest_passes(self if self.nats is None else replace(self, nats=0.0), grid)

    def timetable(self, grid: TokenGrid) -> Tensor:
        window = min(self.window, grid.columns)
        starts = torch.arange(grid.rows) * window
        if grid.row_end is None and self.first_row == "alone":
            starts[1:] += grid.columns - window
        frame = starts[:, None] + torch.arange(grid.columns)
        whole_frame = int(frame.max()) + 1
        delay = whole_frame if self.frame_delay is None else min(self.frame_delay, whole_frame)
        return frame + torch.arange(grid.frames - grid.given)[:, None, None] * delay

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        """The nearest decoded token in the last column above the missing one, else the newest of its frame."""
        now = times[frame, row, 0]
        frame, row = divmod(frame * times.shape[1] + row - 1, times.shape[1])
        held = (times[frame, : row + 1] < now).sum(-1)
        complete = (held == times.shape[2]).nonzero()
        above = int((complete if len(complete) else held.nonzero())[-1])
        return frame, above, int(held[above]) - 1


NARROWEST = 2
"""Tokens of a window, whatever their surprise."""
SURE = 0.5
"""The probability from which on a draft is trusted: it is then more likely right than wrong."""


class Drafted(Wave):
    """Rows that draft ``lookahead`` tokens ahead, evaluate them in one pass, and keep those that come true.

    Other rows see a draft once it is trusted: it was drawn twice in a row, or its own distribution gave it ``SURE`` or
    more. A wrong token that others see costs more than a gap, and where the model is unsure, most drafts are wrong.
    """

    drafted: Tensor
    """Slots that hold a token, if only a draft, bool (images, slots + 1)."""
    shown: Tensor
    surprise: Tensor
    """-log p of each token when it was drawn, float32 (images, grid rows, columns)."""

    def __init__(self, strategy: ZipAR, grid: TokenGrid, rows: int, device: torch.device) -> None:
        alone = grid.row_end is None and strategy.first_row == "alone"
        least = strategy.window if strategy.nats is None else min(strategy.window, NARROWEST)
        super().__init__(grid, rows, device, least, strategy.lookahead, alone, strategy.timetable(grid))
        self.widest, self.nats, self.lookahead = min(strategy.window, grid.columns), strategy.nats, strategy.lookahead
        known = ~self.places.free | (self.places.slot == grid.first)
        shown = known.clone()
        shown[self.slots[:, -1]] = True  # fed as stand-ins, or once they are settled
        surprise = torch.zeros(self.slots.shape, device=device)
        self._keep(rows, drafted=known, shown=shown, surprise=surprise)

    def plan(self, tokens: Tensor) -> Step:
        self.evaluates = self.wanted(self.lookahead)
        tokens.copy_(tokens.where(self.drafted, tokens[:, self.places.above]))
        self.drafted[:, self.slots] |= self.evaluates
        self.guesses = tokens[:, self.slots]
        return self.step(self.evaluates)

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        now, targets = tokens[:, self.slots], evaluated.step.targets
        wrong = self.evaluates & (now != self.guesses)
        # the first draft of a row is settled, and the next ones as long as those before it were guessed right
        right = self.evaluates & (wrong.cumsum(-1) - wrong.long() == 0)
        logs = log_probabilities_of(tokens.gather(1, targets), evaluated.logits, evaluated.draw)
        surprise = torch.zeros(self.shown.shape, device=logs.device).scatter_(1, targets, -logs)[:, self.slots]
        self.surprise.copy_(surprise.where(self.evaluates, self.surprise))
        self.advance(self.settled + right.sum(-1))
        trusted = self.evaluates & ((surprise <= -math.log(SURE)) | ~wrong)
        self.shown[:, self.slots[:, :-1]] = (trusted | (self.column < self.settled[..., None]))[..., :-1]

    def allowed(self) -> Tensor:
        least = super().allowed()
        if self.nats is None:
            return least
        above, end = self._above(), self.column + 1
        # of the row above, and of its first tokens: 0, 1, 2, ... of them
        sums = F.pad(self.surprise.roll(1, 1).cumsum(-1), (1, 0))
        told = sums.gather(-1, above[..., None]) - sums[..., :-1] >= self.nats
        return ((told & (end <= least[..., None])) | (end <= (above - self.widest + 1)[..., None])).sum(-1)
