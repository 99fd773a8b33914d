"""A key-value cache addressed by row and slot."""

from torch import Tensor


class SlotCache:
    """Keys and values of the images of a lane: ``prefix`` entries of a prompt, which ends there, then one a slot.

    Slot n lives at entry ``prefix + n`` whatever the order of decoding, so a token that is fed again
    overwrites itself. Models hand each layer's new keys and values to ``layers[i].update`` and attend
    to what it returns. A layer allocates all its entries when it is first written to, which is a prefill.
    """

    def __init__(self, layers: int, rows: int, prefix: int, slots: int) -> None:
        self.prefix = prefix
        self.layers = [SlotCacheLayer(rows, prefix + slots) for _ in range(layers)]

    def place(self, rows: slice, index: Tensor, keys: slice) -> None:
        """Say where the coming pass writes and reads.

        Args:
            rows: those that take part.
            index: int64 (rows, queries), the entries of the queries.
            keys: the entries that are read.
        """
        for layer in self.layers:
            layer.rows, layer.index, layer.read = rows, index, keys

    def move(self, source: slice, target: slice) -> None:
        """Copy rows over others."""
        for layer in self.layers:
            for held in (layer.keys, layer.values):
                assert held is not None
                held[target] = held[source]


class SlotCacheLayer:
    """Keys and values of one layer, (rows, kv_heads, prefix + slots, head_dim) each once they are there.

    The first keys say how many heads there are and where: a process of a tensor-parallel group
    holds a part of the heads, and the layers of one model may lie on different devices.
    """

    rows: slice
    index: Tensor
    read: slice

    def __init__(self, rows: int, entries: int) -> None:
        self.shape = (rows, entries)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the pass's (rows, kv_heads, queries, head_dim); return what it may attend to."""
        if self.keys is None or self.values is None:
            self.keys, self.values = self._allocate(key), self._allocate(value)
        index = self.index.to(key.device)[:, None, :, None]
        keys, values = self.keys[self.rows], self.values[self.rows]
        keys.scatter_(2, index.expand_as(key), key)
        values.scatter_(2, index.expand_as(value), value)
        return keys[:, :, self.read], values[:, :, self.read]

    def _allocate(self, states: Tensor) -> Tensor:
        rows, entries = self.shape
        _, heads, _, dim = states.shape
        return states.new_zeros(rows, heads, entries, dim)
