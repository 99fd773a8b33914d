"""Next-token prediction, one token a pass: the baseline."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zipar.decoding.strategy import StaticStrategy
from zipar.grid import TokenGrid


@dataclass(frozen=True)
class Raster(StaticStrategy):
    """Every token after all those before it, as the models were trained: ``grid.tokens`` passes."""

    def timetable(self, grid: TokenGrid) -> Tensor:
        return torch.arange(grid.tokens).view(-1, grid.rows, grid.columns)
