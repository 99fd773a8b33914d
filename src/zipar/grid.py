"""The token grid: how the tokens of an image (or of video frames) lie in the sequence a model writes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zipar.arguments import LARGEST, keep, listed, refusal, whole
from zipar.errors import ZipARError


@dataclass(frozen=True)
class TokenGrid:
    """``frames`` grids of ``rows`` x ``columns`` tokens, one after the other in raster order.

    A model may put known tokens between them: ``row_end`` after each row, ``frame_end`` after each
    frame, or a tuple of such tuples, one a frame, of one length. The first ``given`` frames are not
    decoded: their tokens come with the prompt. A *slot* is an index into that sequence; those of
    frames to decode are free but for the known tokens.
    """

    rows: int
    columns: int
    frames: int = 1
    row_end: int | None = None
    frame_end: tuple[int, ...] | tuple[tuple[int, ...], ...] = ()
    given: int = 0

    def __post_init__(self) -> None:
        keep(self, **{name: whole(name, getattr(self, name), 1) for name in ("rows", "columns", "frames")})
        if self.row_end is not None:
            keep(self, row_end=whole("row_end", self.row_end))
        keep(self, frame_end=self._ends(self.frame_end), given=whole("given", self.given, 0, self.frames - 1))
        if self.slots > LARGEST:
            raise ZipARError(f"a token grid of {self.slots} slots is too large: make it of {LARGEST} at most")

    def _ends(self, frame_end: Any) -> tuple[Any, ...]:
        """``frame_end``, checked.

        Raises:
            ZipARError: it is not possible.
        """
        ends = listed(frame_end)
        if ends is None:
            raise refusal("frame_end", frame_end, "the tokens after a frame, in a tuple")
        if not any(listed(end) is not None for end in ends):
            return tuple(whole("frame_end", token) for token in ends)
        each = [listed(end) or () for end in ends]
        if len(each) != self.frames or len(set(map(len, each))) != 1:
            raise refusal("frame_end", frame_end, f"a tuple for each of {self.frames} frames, all of one length")
        return tuple(tuple(whole("frame_end", token) for token in end) for end in each)

    @property
    def frame_ends(self) -> tuple[tuple[int, ...], ...]:
        """The known tokens after each frame."""
        one = tuple(end for end in self.frame_end if isinstance(end, int))
        return tuple(end for end in self.frame_end if isinstance(end, tuple)) or (one,) * self.frames

    @property
    def row_stride(self) -> int:
        """Slots from one row to the next."""
        return self.columns + (self.row_end is not None)

    @property
    def frame_stride(self) -> int:
        """Slots from one frame to the next."""
        return self.rows * self.row_stride + len(self.frame_ends[0])

    @property
    def slots(self) -> int:
        """Slots in all."""
        return self.frames * self.frame_stride

    @property
    def first(self) -> int:
        """The first slot to decode."""
        return self.given * self.frame_stride

    @property
    def tokens(self) -> int:
        """Free slots: the tokens to decode."""
        return (self.frames - self.given) * self.rows * self.columns

    def free(self) -> Tensor:
        """Slots of the free tokens, int64 (frames to decode, rows, columns)."""
        return self.places()[self.given :]

    def places(self) -> Tensor:
        """Slots of the tokens of all frames, int64 (frames, rows, columns)."""
        frame = torch.arange(self.frames)[:, None, None] * self.frame_stride
        row = torch.arange(self.rows)[:, None] * self.row_stride
        return frame + row + torch.arange(self.columns)

    def pick(self, sequences: Tensor) -> Tensor:
        """The frames in (images, slots) sequences: (images, rows, columns), or (images, frames, rows, columns)."""
        picked = sequences[:, self.places().to(sequences.device)]
        return picked[:, 0] if self.frames == 1 else picked

    def blank(self) -> Tensor:
        """The sequence with its given tokens in place and 0 elsewhere, int64 (slots,)."""
        sequence = torch.zeros(self.frames, self.frame_stride, dtype=torch.int64)
        body = sequence[:, : self.rows * self.row_stride].unflatten(1, (self.rows, self.row_stride))
        if self.row_end is not None:
            body[:, :, -1] = self.row_end
        ends = torch.tensor(self.frame_ends, dtype=torch.int64)
        sequence[:, self.frame_stride - ends.shape[1] :] = ends
        return sequence.flatten()

    def opening(self, tokens: Tensor) -> Tensor:
        """The sequence of the given frames, whose ``tokens`` are int64 (images, given, rows, columns): (images, first).

        Raises:
            ZipARError: they are of another shape.
        """
        if tokens.dtype != torch.int64 or tokens.shape[1:] != (self.given, self.rows, self.columns):
            raise refusal("given", tokens, f"int64 tokens (images, {self.given}, {self.rows}, {self.columns})")
        sequence = self.blank()[: self.first].to(tokens.device).repeat(len(tokens), 1)
        sequence[:, self.places()[: self.given].flatten().to(tokens.device)] = tokens.flatten(1)
        return sequence
