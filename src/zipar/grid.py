"""The token grid: how the tokens of an image (or of video frames) lie in the sequence a model writes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zipar.arguments import LARGEST, keep, listed, refusal, whole
from zipar.errors import ZipARError


@dataclass(frozen=True)
class TokenGrid:
    """``frames`` grids of ``rows`` x ``columns`` tokens, one after the other in raster order.

    A model may put known tokens between them: ``row_end`` after each row, ``frame_end`` after each
    frame. A *slot* is an index into that sequence; slots of known tokens are given, the others free.
    """

    rows: int
    columns: int
    frames: int = 1
    row_end: int | None = None
    frame_end: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        keep(self, **{name: whole(name, getattr(self, name), 1) for name in ("rows", "columns", "frames")})
        if self.row_end is not None:
            keep(self, row_end=whole("row_end", self.row_end))
        ends = listed(self.frame_end)
        if ends is None:
            raise refusal("frame_end", self.frame_end, "the tokens after a frame, in a tuple")
        keep(self, frame_end=tuple(whole("frame_end", token) for token in ends))
        if self.slots > LARGEST:
            raise ZipARError(f"a token grid of {self.slots} slots is too large: make it of {LARGEST} at most")

    @property
    def row_stride(self) -> int:
        """Slots from one row to the next."""
        return self.columns + (self.row_end is not None)

    @property
    def frame_stride(self) -> int:
        """Slots from one frame to the next."""
        return self.rows * self.row_stride + len(self.frame_end)

    @property
    def slots(self) -> int:
        """Slots in all, free and given."""
        return self.frames * self.frame_stride

    @property
    def tokens(self) -> int:
        """Free slots: the tokens to decode."""
        return self.frames * self.rows * self.columns

    def free(self) -> Tensor:
        """Slots of the free tokens, int64 (frames, rows, columns)."""
        frame = torch.arange(self.frames)[:, None, None] * self.frame_stride
        row = torch.arange(self.rows)[:, None] * self.row_stride
        return frame + row + torch.arange(self.columns)

    def pick(self, sequences: Tensor) -> Tensor:
        """The free slots of (images, slots) sequences: (images, rows, columns), or (images, frames, rows, columns)."""
        picked = sequences[:, self.free().to(sequences.device)]
        return picked[:, 0] if self.frames == 1 else picked

    def blank(self) -> Tensor:
        """The sequence with its given tokens in place and 0 elsewhere, int64 (slots,)."""
        sequence = torch.zeros(self.frames, self.frame_stride, dtype=torch.int64)
        body = sequence[:, : self.rows * self.row_stride].unflatten(1, (self.rows, self.row_stride))
        if self.row_end is not None:
            body[:, :, -1] = self.row_end
        if self.frame_end:
            sequence[:, -len(self.frame_end) :] = torch.tensor(self.frame_end)
        return sequence.flatten()
