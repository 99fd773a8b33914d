"""Where slots lie, as tensors to index with: what strategies that depend on the image compute with."""

from typing import NamedTuple

import torch
from torch import Tensor

from zipar.grid import TokenGrid


class Places(NamedTuple):
    """Each int64 or bool (slots + 1,); the last entry stands for "no slot"."""

    slot: Tensor
    free: Tensor
    """Whether the slot is to be decoded."""
    rank: Tensor
    """Free slots up to this one."""
    row: Tensor
    """Rows are counted through all frames; known slots belong to the row that follows them."""
    column: Tensor
    """0 for known slots."""
    above: Tensor
    """The slot a draft is copied from: above or, in the first row, of the frame before or to the left."""
    next_free: Tensor
    """The first free slot after this one, else ``last``."""
    last: int
    """The last free slot."""

    @classmethod
    def of(cls, grid: TokenGrid, device: torch.device) -> "Places":
        rows = grid.frames * grid.rows
        free = grid.free()
        slot = torch.arange(grid.slots + 1)
        is_free = torch.zeros(grid.slots + 1, dtype=torch.bool)
        is_free[free.flatten()] = True
        rank = is_free.cumsum(0)
        order = rank.clamp(max=grid.tokens - 1)  # of the free slot that comes next
        row = torch.where(is_free, rank - 1, rank) // grid.columns
        above = slot.clone()
        above[free[0, 0, 1:]] = free[0, 0, :-1]
        above[free[1:, 0]] = free[:-1, 0]
        above[free[:, 1:]] = free[:, :-1]
        column = torch.where(is_free, (rank - 1) % grid.columns, 0)
        last = int(free.max())
        next_free = free.flatten()[order]
        slot, is_free, rank, row, column, above, next_free = (
            table.to(device) for table in (slot, is_free, rank, row.clamp(max=rows), column, above, next_free)
        )
        return cls(slot, is_free, rank, row, column, above, next_free, last)
