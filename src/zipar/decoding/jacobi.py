"""Coupled Jacobi decoding: exactly the raster image of a seed, in fewer passes.

The noise of a slot belongs to its seed, so raster decoding is a deterministic map from drafts to tokens whose fixed
point is the raster sample (Wiggers & Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models", ICML
2020). Speculative Jacobi decoding (arXiv 2410.01699) does the same with fresh noise and rejection sampling.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from zipar.decoding.places import Places
from zipar.decoding.strategy import Step, Steps, Strategy
from zipar.errors import ZipARError
from zipar.grid import TokenGrid


@dataclass(frozen=True)
class CoupledJacobi(Strategy):
    """Tokens are drafted ahead and evaluated together; those whose context was right when they were are settled.

    Drafts reach ``lookahead`` tokens beyond the settled ones: along the raster or, with a ``window``, in the wave of
    ZipAR, each row drafted ``window`` tokens less far than the row above it. A pass settles at least one token, so
    no image takes more passes than raster decoding, and most take a fraction.
    """

    lookahead: int = 16
    window: int | None = None

    def __post_init__(self) -> None:
        if self.lookahead < 1:
            raise ZipARError(f"lookahead {self.lookahead} is not possible: a pass evaluates at least 1 token")
        if self.window is not None and self.window < 1:
            raise ZipARError(f"window {self.window} is not possible: use at least 1, or None to draft along the raster")

    def steps(self, grid: TokenGrid, tokens: Tensor) -> Steps:
        places = Places.of(grid, tokens.device)
        settled = tokens.new_zeros(len(tokens), 1)
        drafted = ~places.free | (places.slot == 0)
        while True:
            tokens.copy_(tokens.where(drafted, tokens[:, places.above]))
            ahead = (places.slot > settled) & (places.slot <= places.last) & self._near(places, settled)
            drafted = drafted | ahead
            width = int(ahead.sum(1).max())
            if width == 0:
                return None
            targets = places.slot.where(ahead, grid.slots).topk(width, largest=False).values
            queries = (targets - 1).where(targets < grid.slots, settled)
            guesses = tokens.gather(1, targets)
            yield Step(queries, queries, targets.where(places.free[targets], grid.slots), grid.slots)
            # a target is settled when all before it are, and their guesses, which it was evaluated with, were right
            right = F.pad((tokens.gather(1, targets) == guesses)[:, :-1], (1, 0), value=True)
            adjoining = targets == settled + places.slot[1 : width + 1]
            settled = (settled + (right & adjoining).cumprod(1).sum(1, keepdim=True)).clamp(max=places.last)

    def _near(self, places: Places, settled: Tensor) -> Tensor:
        """Which slots drafts reach, bool (images, slots + 1)."""
        if self.window is None:
            return places.rank <= places.rank[settled] + self.lookahead
        first = places.next_free[settled]
        return places.column < (places.column[first] + self.lookahead - (places.row - places.row[first]) * self.window)

    def passes(self, grid: TokenGrid) -> int:
        return grid.tokens
