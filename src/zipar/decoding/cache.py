"""A key-value cache addressed by row and slot."""

import torch
from torch import Tensor


class SlotCache:
    """Keys and values of the images of a lane: ``prefix`` entries of a prompt, which ends there, then one a slot.

    Slot n lives at entry ``prefix + n`` whatever the order of decoding, so a token that is fed again
    overwrites itself. Models hand each layer's new keys and values to ``layers[i].update`` and attend
    to what it returns. A layer allocates all its entries when it is first written to, which is a prefill.
    """

    def __init__(self, layers: int, rows: int, prefix: int, slots: int) -> None:
        self.prefix = prefix
        self.placement = Placement(rows, prefix + slots)
        self.layers = [SlotCacheLayer(self.placement) for _ in range(layers)]

    @property
    def memory(self) -> int:
        """Bytes of all keys and values, once a prefill has allocated them."""
        return sum(held.nbytes for layer in self.layers for held in (layer.keys, layer.values) if held is not None)

    def place(self, rows: slice, index: Tensor, keys: slice) -> None:
        """Say where the coming pass writes and reads.

        Args:
            rows: those that take part.
            index: int64 (rows, queries), the entries of the queries.
            keys: the entries that are read.
        """
        self.placement.place(rows, index, keys)

    def move(self, source: slice, target: slice) -> None:
        """Copy rows over others."""
        for layer in self.layers:
            for held in (layer.keys, layer.values):
                assert held is not None
                held[target] = held[source]


class Placement:
    """Where a pass writes and reads, which its layers share."""

    part: slice
    read: slice

    def __init__(self, rows: int, entries: int) -> None:
        self.rows, self.entries = rows, entries
        self._bases: dict[tuple[int, torch.device], Tensor] = {}

    def place(self, rows: slice, index: Tensor, keys: slice) -> None:
        """See ``SlotCache.place``."""
        self.part, self.read, self._index = rows, keys, index
        self._flat: dict[tuple[int, torch.device], Tensor] = {}

    def flat(self, heads: int, device: torch.device) -> Tensor:
        """Where it writes in (rows * heads * entries, dim): int64 (rows, queries, heads), made once a pass."""
        key = heads, device
        if key not in self._bases:
            first = torch.arange(self.rows * heads, device=device) * self.entries
            self._bases[key] = first.view(self.rows, 1, heads)
        if key not in self._flat:
            self._flat[key] = self._bases[key][self.part] + self._index.to(device)[..., None]
        return self._flat[key]


class SlotCacheLayer:
    """Keys and values of one layer, (rows, kv_heads, prefix + slots, head_dim) each once they are there.

    The first keys say how many heads there are and where: a process of a tensor-parallel group
    holds a part of the heads, and the layers of one model may lie on different devices.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the pass's (rows, kv_heads, queries, head_dim); return what it may attend to."""
        if self.keys is None or self.values is None:
            self.keys, self.values = self._allocate(key), self._allocate(value)
        rows, read = self.placement.part, self.placement.read
        where = (self.placement.flat(key.shape[1], key.device),)
        for held, new in ((self.keys, key), (self.values, value)):
            held.view(-1, new.shape[-1]).index_put_(where, new.transpose(1, 2))
        return self.keys[rows, :, read], self.values[rows, :, read]

    def _allocate(self, states: Tensor) -> Tensor:
        _, heads, _, dim = states.shape
        return states.new_zeros(self.placement.rows, heads, self.placement.entries, dim)
