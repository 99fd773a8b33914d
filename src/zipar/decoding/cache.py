"""A key-value cache addressed by slot."""

import torch
from torch import Tensor


class SlotCache:
    """Keys and values by slot: ``prefix`` entries of the prompt, then one for each slot.

    Slot n lives at entry ``prefix + n`` whatever the order of decoding, so a token that is fed again
    overwrites itself. Models hand each layer's new keys and values to ``layers[i].update`` and attend
    to what it returns. A layer allocates all its entries when it is first written to, which is the prefill.
    """

    def __init__(self, layers: int, prefix: int, slots: int, device: torch.device) -> None:
        """``device``: where ``place`` is told slots; each layer's entries are where its keys come from."""
        self.prefix = prefix
        self.layers = [SlotCacheLayer(prefix + slots) for _ in range(layers)]
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
    """Keys and values of one layer, (rows, kv_heads, prefix + slots, head_dim) each once they are there.

    The first keys say how many rows and heads there are and where: a process of a tensor-parallel group
    holds a part of the heads, and the layers of one model may lie on different devices.
    """

    index: Tensor
    stop: int

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the pass's (rows, kv_heads, queries, head_dim); return what it may attend to."""
        if self.keys is None or self.values is None:
            self.keys, self.values = self._allocate(key), self._allocate(value)
        index = self.index.to(key.device)
        if len(index) == 1:
            self.keys.index_copy_(2, index[0], key)
            self.values.index_copy_(2, index[0], value)
        else:
            rows = torch.arange(len(index), device=key.device)[:, None]
            self.keys[rows, :, index] = key.transpose(1, 2)
            self.values[rows, :, index] = value.transpose(1, 2)
        return self.keys[:, :, : self.stop], self.values[:, :, : self.stop]

    def _allocate(self, states: Tensor) -> Tensor:
        rows, heads, _, dim = states.shape
        return states.new_zeros(rows, heads, self.entries, dim)
