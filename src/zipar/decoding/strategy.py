"""What a decoding strategy is: an order in which the slots of a token grid are evaluated.

The logits of slot n come from feeding the token of slot n - 1 at slot n - 1. A forward pass does that
for a set of slots at once. Pass 0 is the prefill of the prompt, whose last position gives slot 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from zipar.decoding.sampling import Sampling
from zipar.grid import TokenGrid


class Step(NamedTuple):
    """One forward pass. The three tensors are int64 (images, queries), or (1, queries) for all images alike.

    Query ``i`` feeds the token of slot ``sources[i]`` at slot ``queries[i]``; what is sampled from its
    logits goes to slot ``targets[i]``, or nowhere where that is ``grid.slots``. ``sources`` differ from
    ``queries`` where a token that does not exist yet is stood in for.
    """

    queries: Tensor
    sources: Tensor
    targets: Tensor
    extent: int
    """No query is at or beyond this slot, so no cache entry from there on is needed."""


class Evaluated(NamedTuple):
    """What came of a step, besides the tokens sampled."""

    logits: Tensor
    """Float32 (images, queries, vocabulary), guidance applied."""
    sampling: Sampling
    seeds: Tensor
    """int64 (images,)."""


Steps = Generator[Step, Evaluated, Tensor | None]
"""Yields the passes after the prefill, and is sent what came of each; it may return rejections, int64 (images,)."""


class Strategy(ABC):
    """Decides which slots each forward pass evaluates."""

    @abstractmethod
    def steps(self, grid: TokenGrid, tokens: Tensor) -> Steps:
        """The passes after the prefill.

        Args:
            grid: the grid to decode.
            tokens: the live token buffer, int64 (images, slots + 1): when a step has been yielded and
                the next is asked for, it holds what that step sampled, and may be changed. Steps are made
                on its device.
        """

    @abstractmethod
    def passes(self, grid: TokenGrid) -> int:
        """Forward passes for one grid, prefill counted: exact, or an upper bound where it depends on the image."""

    def fewest_passes(self, grid: TokenGrid) -> int:
        """A lower bound of ``passes``: those it takes when every guess comes true."""
        untouched = torch.zeros(1, grid.slots + 1, dtype=torch.int64)
        return 1 + sum(1 for _ in self.steps(grid, untouched))


class StaticStrategy(Strategy):
    """A strategy whose passes are all known beforehand: it need only say when each token is decoded."""

    @abstractmethod
    def timetable(self, grid: TokenGrid) -> Tensor:
        """The pass that decodes each token, int64 (frames, rows, columns); the first one's is 0."""

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        """The token fed in place of the last one of ``row - 1`` when ``row`` starts before that is decoded.

        Returns its (frame, row, column). Only asked for where the grid has no row-end tokens.
        """
        raise ValueError(f"{type(self).__name__} starts no row before the one above it is complete")

    def plan(self, grid: TokenGrid) -> list[list[tuple[int, int, int]]]:
        """The (query, source, target) slots of each pass; pass 0, the prefill, has none.

        A token is fed when its successor is to be sampled, and when it is final: at that pass at the
        latest its own keys and values take the place of those of a stand-in, or of those computed
        with less context. Nothing is fed that no later pass would see.
        """
        times = self.timetable(grid)
        free, nowhere = grid.free(), grid.slots
        decoded: dict[int, int] = dict(zip(free.flatten().tolist(), times.flatten().tolist(), strict=True))
        last_pass = max(decoded.values())
        plan: list[list[tuple[int, int, int]]] = [[] for _ in range(last_pass + 1)]
        final = 0
        for slot in range(grid.slots - 1):
            final = decoded[slot] + 1 if slot in decoded else final
            sampled = decoded.get(slot + 1)
            if sampled is not None:
                source = slot
                if decoded.get(slot, -1) >= sampled:
                    frame, place = divmod(slot + 1, grid.frame_stride)
                    source = int(free[self.stand_in(times, frame, place // grid.row_stride)])
                plan[sampled].append((slot, source, slot + 1))
            if sampled != final and final <= last_pass:
                plan[final].append((slot, slot, nowhere))
        return plan

    def steps(self, grid: TokenGrid, tokens: Tensor) -> Steps:
        plan = self.plan(grid)[1:]
        if not plan:
            return None
        widths = [len(entries) for entries in plan]
        extents = [max(query for query, _, _ in entries) + 1 for entries in plan]
        flat = torch.tensor([entry for entries in plan for entry in entries], device=tokens.device)
        for entries, extent in zip(flat.split(widths), extents, strict=True):
            queries, sources, targets = entries.T[:, None].contiguous()
            yield Step(queries, sources, targets, extent)
        return None

    def passes(self, grid: TokenGrid) -> int:
        return int(self.timetable(grid).max()) + 1
