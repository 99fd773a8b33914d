"""ZipAR's adaptive window (He et al., ICML 2025, section on adaptive window size assignment)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zipar.decoding.sampling import probabilities, revise
from zipar.decoding.strategy import Steps, Strategy
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
    """

    min_window: int = 2
    first_row: Literal["alone", "wave"] = "alone"

    def __post_init__(self) -> None:
        ZipAR(self.min_window, first_row=self.first_row)  # raises what is not possible

    def steps(self, grid: TokenGrid, tokens: Tensor) -> Steps:
        wave = Wave(grid, tokens, self.min_window, grid.row_end is None and self.first_row == "alone")
        tentative = torch.zeros_like(wave.settled, dtype=torch.bool)
        rejections = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        before: Tensor | None = None
        passes = 0
        while True:
            wanted = wave.wanted(1)
            if not wanted.any():
                return rejections
            wanted[..., 0] |= tentative
            open_above = ~wave.complete_above()
            old = tokens.clone()
            step = wave.step(wanted)
            logits, sampling, seeds = yield step
            passes += 1

            starting = (step.targets < grid.slots) & (wave.places.column[step.targets] == 0)
            image, query = starting.nonzero(as_tuple=True)
            slot = step.targets[image, query]
            row = wave.places.row[slot]
            now = probabilities(logits[image, query], sampling)
            if before is None:
                before = now.new_zeros(*tentative.shape, now.shape[1])
            tested = tentative[image, row]
            fresh_noise = seeds[image] + passes * 0x5851F42D4C957
            revised = revise(old[image, slot], before[image, row], now, fresh_noise, slot)
            tokens[image, slot] = revised.where(tested, tokens[image, slot])
            before[image, row] = now

            rejected = torch.zeros_like(tentative)
            rejected[image, row] = tested & (revised != old[image, slot])
            rejections += rejected.sum(1)
            # a row that started below a token now rejected has not started
            stays = rejected | (rejected.roll(1, 1) & (wave.settled == 0))
            fresh = (wave.settled == 0) & ~stays
            advanced = wave.settled + (wanted.any(-1) & ~stays).long()
            tentative = (rejected | (fresh & wanted[..., 0])) & open_above
            wave.settle(advanced)

    def passes(self, grid: TokenGrid) -> int:
        return grid.tokens

    def fewest_passes(self, grid: TokenGrid) -> int:
        return ZipAR(self.min_window, first_row=self.first_row).passes(grid)
