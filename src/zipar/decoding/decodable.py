"""What the engine asks of a model (see ``zipar.models.base.VisualModel``), and what it is given of a prompt."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.decoding.attention import additive
from zipar.decoding.cache import SlotCache


class Prefix(NamedTuple):
    """What comes before images: a row for each or, with guidance, conditional rows, then the others."""

    embeddings: Tensor
    """(rows, length, dim), padded on the left."""
    valid: Tensor
    """bool (rows, length), False where padded."""
    given: Tensor | None = None
    """int64 (rows, grid.first): the tokens of given frames, whose embeddings are the last ones; None for none."""
    positions: Tensor | None = None
    """int64 (rows, length, axes): where tokens are, padding at 0; None where they are counted."""

    @property
    def opening(self) -> int:
        """Slots of given frames."""
        return 0 if self.given is None else self.given.shape[1]

    @property
    def prompt(self) -> int:
        """Tokens before the first slot, padding included."""
        return self.valid.shape[1] - self.opening

    @property
    def lengths(self) -> Tensor:
        """The position of slot 0, int64 (rows,): the tokens of each prompt or, given positions, the first after all."""
        return self.valid.sum(1) - self.opening if self.positions is None else self.positions.amax((1, 2)) + 1

    def each(self, change: Callable[[Tensor], Tensor]) -> "Prefix":
        """What becomes of all parts."""
        return Prefix(*(part if part is None else change(part) for part in self))  # type: ignore[arg-type]

    def paired(self) -> "Prefix":
        """With guidance: each image's conditional and unconditional row side by side, as the engine has them."""
        return self.each(lambda part: part.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1))

    def of(self, image: int, images: int) -> "Prefix":
        """That of one of ``images``, cut to its own length."""
        mine = self.each(lambda part: part[image::images])
        length = int(mine.valid.sum(1).max())
        positions = None if mine.positions is None else mine.positions[:, -length:]
        return Prefix(mine.embeddings[:, -length:], mine.valid[:, -length:], mine.given, positions)

    @classmethod
    def joined(cls, alone: Sequence["Prefix"]) -> "Prefix":
        """The inverse of ``of``: from those of single images."""
        length = max(part.valid.shape[1] for part in alone)
        padded = [(part, length - part.valid.shape[1]) for part in alone]
        embeddings = [F.pad(part.embeddings, (0, 0, more, 0)) for part, more in padded]
        valid = [F.pad(part.valid, (more, 0)) for part, more in padded]
        given = [part.given for part, _ in padded if part.given is not None]
        positions = [F.pad(part.positions, (0, 0, more, 0)) for part, more in padded if part.positions is not None]

        def together(parts: list[Tensor]) -> Tensor:
            return torch.stack(parts).transpose(0, 1).flatten(0, 1)

        optional = (together(parts) if parts else None for parts in (given, positions))
        return cls(together(embeddings), together(valid), *optional)

    def mask(self) -> Tensor:
        """The additive mask (rows, 1, length, length) of a prefill: causal, without the padding."""
        length, device = self.valid.shape[1], self.valid.device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=device)  # padding sees itself, for it must see something
        return additive(causal & self.valid[:, None] | itself, self.embeddings.dtype)


@runtime_checkable
class Decodable(Protocol):
    """A model that turns tokens into logits."""

    layers: int

    def prefill(self, prefix: Prefix, cache: SlotCache, mask: Tensor) -> Tensor: ...
    def step(self, tokens: Tensor, slots: Tensor, lengths: Tensor, cache: SlotCache, mask: Tensor) -> Tensor: ...
