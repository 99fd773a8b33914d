"""What a decoding strategy is: an order in which the slots of a token grid are evaluated.

The logits of slot n come from feeding the token of slot n - 1 at slot n - 1. A forward pass does that
for a set of slots at once. Pass 0 is the prefill of the prompt, whose last position gives slot 0.
"""

import copy
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zipar.decoding.sampling import Draw, Sampling
from zipar.grid import TokenGrid


class Step(NamedTuple):
    """One forward pass, three int64 tensors (rows, queries).

    Query ``i`` feeds the token of slot ``sources[i]`` at slot ``queries[i]``; what is sampled from its
    logits goes to slot ``targets[i]``, or nowhere where that is ``grid.slots``. ``sources`` differ from
    ``queries`` where a token that does not exist yet is stood in for.

    Queries are in order of their slots. A row with fewer than others ends with idle ones, which feed the last slot:
    nothing comes after it, so nobody sees what that writes.
    """

    queries: Tensor
    sources: Tensor
    targets: Tensor


class Evaluated(NamedTuple):
    """What came of a step, besides the tokens sampled."""

    step: Step
    logits: Tensor
    """Float32 (rows, queries, vocabulary), after guidance, temperature and filters."""
    draw: Draw
    """How tokens were drawn from them."""
    passes: Tensor
    """int64 (rows,): the pass, counted from the prefill of the row's image, which is 0."""


class Schedule(ABC):
    """What each row of a lane does next. A row holds one image after another.

    ``plan`` and ``settle`` are called in turn, and change tensors in place; no shape depends on what these hold,
    and nothing is read back from the device, so that a pass can be compiled whole or captured as a graph.
    """

    width: int
    """The most slots that a pass evaluates for an image."""
    rejections: Tensor
    """int64 (rows,): tokens taken back so far, which adaptive strategies alone do."""
    shown: Tensor | None = None
    """Slots that queries for other grid rows than theirs may see, bool (rows, slots + 1); None for all."""

    def __init__(self, width: int, rows: int, device: torch.device) -> None:
        self.width = width
        self._fresh: dict[str, Tensor] = {}
        self._keep(rows, rejections=torch.tensor(0, device=device))

    def _keep(self, rows: int, **fresh: Tensor) -> None:
        """Hold attributes of these names, with a row axis; ``fresh`` is what a row has that begins an image."""
        self._fresh |= fresh
        for name, value in fresh.items():
            setattr(self, name, value.repeat(rows, *[1] * value.ndim))

    def prepare(self, vocabulary: int) -> None:  # noqa: B027
        """Told once, before the first pass, how many tokens logits are of."""

    @abstractmethod
    def plan(self, tokens: Tensor) -> Step:
        """The coming pass, ``width`` queries a row.

        Args:
            tokens: the live token buffer, int64 (rows, slots + 1), whose last entry takes what has no target; drafts
                may be put into it.
        """

    @abstractmethod
    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        """Take over what the pass sampled, which ``tokens`` hold now; they may be changed."""

    @property
    @abstractmethod
    def done(self) -> Tensor:
        """Whether a row's image is finished, bool (rows,). From then on its queries are idle."""

    def bounds(self, number: int) -> tuple[int, int] | None:
        """Queries of a row's pass ``number``, and the slot that they all lie below; None if the image decides."""
        return None

    def reset(self, rows: slice) -> None:
        """These rows begin a new image."""
        for name, value in self._fresh.items():
            getattr(self, name)[rows] = value

    def move(self, source: int, target: int) -> None:
        """The image of one row goes on in another."""
        for name in self._fresh:
            held = getattr(self, name)
            held[target] = held[source]

    def first(self, rows: int) -> "Schedule":
        """The schedule of the first rows alone; what is kept is shared."""
        part = copy.copy(self)
        for name in self._fresh:
            setattr(part, name, getattr(self, name)[:rows])
        return part


class Strategy(ABC):
    """Decides which slots each forward pass evaluates."""

    @abstractmethod
    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        """The passes after the prefill, for ``rows`` images at a time."""

    @abstractmethod
    def passes(self, grid: TokenGrid) -> int:
        """Forward passes for one grid, prefill counted: exact, or an upper bound where it depends on the image."""

    def fewest_passes(self, grid: TokenGrid) -> int:
        """A lower bound of ``passes``: those it takes when every guess comes true."""
        schedule = self.schedule(grid, 1, torch.device("cpu"))
        # of a vocabulary of one token
        tokens, draw, passes = torch.zeros(1, grid.slots + 1, dtype=torch.int64), Draw.of(Sampling(), [0]), 1
        while not schedule.done.all():
            step = schedule.plan(tokens)
            logits = torch.zeros(*step.targets.shape, 1)
            schedule.settle(tokens, Evaluated(step, logits, draw, torch.tensor([passes])))
            passes += 1
        return passes


class StaticStrategy(Strategy):
    """A strategy whose passes are all known beforehand: it need only say when each token is decoded."""

    @abstractmethod
    def timetable(self, grid: TokenGrid) -> Tensor:
        """The pass that decodes each token, int64 (frames to decode, rows, columns); the first one's is 0."""

    def stand_in(self, times: Tensor, frame: int, row: int) -> tuple[int, int, int]:
        """The token fed in place of the one before ``row`` when that starts before it is decoded.

        Args:
            times: the timetable, -1 for given frames: int64 (frames, rows, columns).

        Returns its (frame, row, column). Only asked for where no known token is before the row.
        """
        raise ValueError(f"{type(self).__name__} starts no row before the one above it is complete")

    def plan(self, grid: TokenGrid) -> list[list[tuple[int, int, int]]]:
        """The (query, source, target) slots of each pass; pass 0, the prefill, has none.

        A token is fed when its successor is to be sampled, and when it is final: at that pass at the
        latest its own keys and values take the place of those of a stand-in, or of those computed
        with less context. Known tokens before a row are fed with it. Nothing is fed that no later pass would see.
        """
        times = F.pad(self.timetable(grid), (0, 0, 0, 0, grid.given, 0), value=-1)
        places, nowhere = grid.places(), grid.slots
        decoded: dict[int, int] = dict(zip(places.flatten().tolist(), times.flatten().tolist(), strict=True))
        last_pass = max(decoded.values())
        plan: list[list[tuple[int, int, int]]] = [[] for _ in range(last_pass + 1)]
        final, used = [0] * (grid.slots + 1), [last_pass + 1] * (grid.slots + 1)
        for slot in range(grid.first, grid.slots):
            final[slot] = decoded[slot] + 1 if slot in decoded else final[slot - 1]
        for slot in reversed(range(grid.first, grid.slots - 1)):
            known = slot not in decoded
            used[slot] = decoded.get(slot + 1, used[slot + 1] if known else last_pass + 1)
        for slot in range(grid.first, grid.slots - 1):
            target = slot + 1 if slot + 1 in decoded else nowhere
            source = slot
            if target < nowhere and decoded.get(slot, -1) >= used[slot]:
                frame, place = divmod(target, grid.frame_stride)
                source = int(places[self.stand_in(times, frame, place // grid.row_stride)])
            feeds = {final[slot]: (slot, slot, nowhere)}
            if used[slot] < final[slot] or target < nowhere:
                feeds[used[slot]] = (slot, source, target)
            for number in feeds.keys() & {*range(last_pass + 1)}:
                plan[number].append(feeds[number])
        return plan

    def schedule(self, grid: TokenGrid, rows: int, device: torch.device) -> Schedule:
        return Timetable(self.plan(grid), grid, rows, device)

    def passes(self, grid: TokenGrid) -> int:
        return int(self.timetable(grid).max()) + 1

    def fewest_passes(self, grid: TokenGrid) -> int:
        return self.passes(grid)


class Timetable(Schedule):
    """The passes of a static strategy as a table, which each row reads at its own pass."""

    number: Tensor
    """int64 (rows,): the pass that comes next."""

    def __init__(
        self, plan: list[list[tuple[int, int, int]]], grid: TokenGrid, rows: int, device: torch.device
    ) -> None:
        super().__init__(max(1, *map(len, plan)), rows, device)
        self._bounds = [(len(entries), max((query + 1 for query, *_ in entries), default=0)) for entries in plan]
        idle = (grid.slots - 1, grid.slots - 1, grid.slots)
        padded = [entries + [idle] * (self.width - len(entries)) for entries in [*plan, []]]
        self._table = torch.tensor(padded, dtype=torch.int64, device=device).transpose(1, 2).contiguous()
        self._keep(rows, number=torch.tensor(1, device=device))

    def plan(self, tokens: Tensor) -> Step:
        return Step(*self._table[self.number].unbind(1))

    def settle(self, tokens: Tensor, evaluated: Evaluated) -> None:
        self.number.add_(1).clamp_(max=len(self._bounds))

    @property
    def done(self) -> Tensor:
        return self.number == len(self._bounds)

    def bounds(self, number: int) -> tuple[int, int]:
        return self._bounds[number] if number < len(self._bounds) else (0, 0)
