"""A key-value cache addressed by slot."""

from typing import NamedTuple

import torch
from torch import Tensor


class CacheShape(NamedTuple):
    """What a model keeps for each token."""

    layers: int
    kv_heads: int
    head_dim: int


class SlotCache:
    """Preallocated keys and values: ``prefix`` entries of the prompt, then one for each slot.

    Slot n lives at entry ``prefix + n`` whatever the order of decoding, so a token that is fed again
    overwrites itself. Models hand each layer's new keys and values to ``layers[i].update`` and attend
    to what it returns.
    """

    def __init__(
        self, shape: CacheShape, rows: int, prefix: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.prefix = prefix
        size = (shape.layers, 2, rows, shape.kv_heads, prefix + slots, shape.head_dim)
        self.entries = torch.zeros(size, dtype=dtype, device=device)
        self.layers = [SlotCacheLayer(keys, values) for keys, values in self.entries]
        self.place(torch.arange(prefix, device=device)[None] - prefix, 0)

    def place(self, slots: Tensor, extent: int) -> None:
        """Say where the coming pass writes, and how far it reads.

        Args:
            slots: int64 (rows or 1, queries) slots of the queries; negative ones lie in the prefix.
            extent: slots from this one on are not read.
        """
        index = slots + self.prefix
        for layer in self.layers:
            layer.index, layer.stop = index, self.prefix + extent


class SlotCacheLayer:
    """Keys and values of one layer, (rows, kv_heads, prefix + slots, head_dim) each."""

    index: Tensor
    stop: int

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the pass's (rows, kv_heads, queries, head_dim); return what it may attend to."""
        if len(self.index) == 1:
            self.keys.index_copy_(2, self.index[0], key)
            self.values.index_copy_(2, self.index[0], value)
        else:
            rows = torch.arange(len(self.index), device=key.device)[:, None]
            self.keys[rows, :, self.index] = key.transpose(1, 2)
            self.values[rows, :, self.index] = value.transpose(1, 2)
        return self.keys[:, :, : self.stop], self.values[:, :, : self.stop]
