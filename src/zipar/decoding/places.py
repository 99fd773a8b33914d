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
    known: Tensor
    """Whether it holds a token that stands between rows or frames."""
    rank: Tensor
    """Free slots up to this one."""
    row: Tensor
    """Rows are counted through all frames; known slots belong to the row that follows them."""
    column: Tensor
    """0 for known slots."""
    above: Tensor
    """The slot a draft is copied from: the same place one frame earlier; in the first frame, above or to the left."""
    next_free: Tensor
    """The first free slot after this one, else ``last``."""
    last: int
    """The last free slot."""

    @classmethod
    def of(cls, grid: TokenGrid, device: torch.device) -> "Places":
        rows = grid.frames * grid.rows
        free, places = grid.free(), grid.places()
        slot = torch.arange(grid.slots + 1)
        is_free = torch.zeros(grid.slots + 1, dtype=torch.bool)
        is_free[free.flatten()] = True
        is_place = torch.zeros(grid.slots + 1, dtype=torch.bool)
        is_place[places.flatten()] = True
        known = ~is_place & (slot < grid.slots)
        rank = is_free.cumsum(0)
        order = rank.clamp(max=grid.tokens - 1)  # of the free slot that comes next
        place = is_place.cumsum(0)
        row = torch.where(is_place, place - 1, place) // grid.columns
        above = slot.clone()
        above[places[0, 0, 1:]] = places[0, 0, :-1]
        above[places[0, 1:]] = places[0, :-1]
        above[places[1:]] = places[:-1]
        column = torch.where(is_place, (place - 1) % grid.columns, 0)
        last = int(free.max())
        next_free = free.flatten()[order]
        slot, is_free, known, rank, row, column, above, next_free = (
            table.to(device) for table in (slot, is_free, known, rank, row.clamp(max=rows), column, above, next_free)
        )
        return cls(slot, is_free, known, rank, row, column, above, next_free, last)
