"""A model that several processes hold together: the first decides, and the others do as it does.

``torchrun`` starts the processes. Computing with the model takes all of them, so what the first one's engine does with
a lane, the others do with one of their own: open it, take images in, step, and let images go, in the same order. They
are told of it over a group of their own, right before it takes them: once a pass.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from zipar.decoding.lane import Finished
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.serving.lanes import StyleLane
from zipar.serving.served import Served, Style
from zipar.serving.torchrun import several

FOREVER = timedelta(days=365)
"""A server may be idle for long."""
LOADING = timedelta(hours=2)
"""Processes may take very different times to load their parts; that long transformers gives them too."""
LAST_WORDS = 10
"""Seconds that the others have to take that it is over; who does not is stuck, and left to torchrun."""


class Call(NamedTuple):
    """Of a method of a lane, "open" of its class."""

    lane: int
    method: str
    arguments: tuple[Any, ...]


class Circle:
    """The processes, and what the first one tells the others: calls, or None once it is over."""

    def __init__(self) -> None:
        """All make it together."""
        self._found = dist.is_initialized()
        if not self._found:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group(timeout=LOADING)
        self._group = dist.new_group(backend="gloo", timeout=FOREVER)

    def tell(self, calls: list[Call] | None) -> None:
        """The first process's.

        Raises:
            RuntimeError: another one is gone.
        """
        dist.broadcast_object_list([calls], src=0, group=self._group)

    def told(self) -> list[Call] | None:
        """The others'; None as well where the first one is gone."""
        box: list[list[Call] | None] = [None]
        with suppress(RuntimeError):
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def leave(self) -> None:
        """All do, once it is over."""
        dist.destroy_process_group(self._group if self._found else None)


class OutOfStep(BaseException):
    """This process failed where others may have gone on: nothing can be computed together any more."""


class Leader:
    """The first process, to the others."""

    def __init__(self, circle: Circle | None = None) -> None:
        self._circle = circle
        self._calls: list[Call] = []
        """That the others have not been told of."""
        self._lanes: WeakValueDictionary[int, StyleLane] = WeakValueDictionary()
        self._opened = 0

    def call_up(self) -> None:
        """Have the others load the models, which takes all."""
        self.tell()

    def lane(self, style: Style, rows: int) -> StyleLane:
        """A lane that all processes have, where there are others."""
        if self._circle is None:
            return StyleLane(style, rows)
        self._opened += 1
        parts = (style.served.name, style.grid, style.strategy, style.sampling)
        self.note(self._opened, "open", [*self._lanes], parts, rows)
        self._lanes[self._opened] = lane = _LedLane(style, rows, self, self._opened)
        return lane

    def note(self, lane: int, method: str, *arguments: Any) -> None:
        """The others are to do this before anything that they are told of later."""
        self._calls.append(Call(lane, method, arguments))

    def tell(self) -> None:
        """Have the others do what was noted."""
        if self._circle is not None:
            calls, self._calls = self._calls, []
            self._circle.tell(calls)

    def end(self) -> None:
        """Let the others go."""
        if self._circle is not None:
            last = Thread(target=self._end, args=(self._circle,), daemon=True)
            last.start()
            last.join(LAST_WORDS)

    def _end(self, circle: Circle) -> None:
        with suppress(RuntimeError):  # the others are gone
            circle.tell(None)
            circle.leave()


class _LedLane(StyleLane):
    """A lane of the first process: the others do with theirs what is done with it."""

    def __init__(self, style: Style, rows: int, leader: Leader, number: int) -> None:
        super().__init__(style, rows)
        self._leader, self._number = leader, number

    def take(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, sampling: Sampling, seeds: Sequence[int]
    ) -> list[tuple[int, Tensor]]:
        self._leader.note(self._number, "take", prompts, negatives, sampling, seeds)
        with self._together():
            return super().take(prompts, negatives, sampling, seeds)

    def step(self) -> int:
        self._leader.note(self._number, "step")
        with self._together():
            return super().step()

    def retire(self) -> list[Finished]:
        self._leader.note(self._number, "retire")
        return super().retire()

    def drop(self, ticket: int) -> None:
        self._leader.note(self._number, "drop", ticket)
        super().drop(ticket)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            self._leader.tell()
            yield
        except ZipARError:  # over a prompt, which is the same to all
            raise
        except Exception as error:
            raise OutOfStep from error


@contextmanager
def leading() -> Iterator[Leader]:
    """The first process, or the only one; the others end with it."""
    leader = Leader(Circle() if several() else None)
    try:
        yield leader
    finally:
        leader.end()


def follow(load: Callable[[], Sequence[Served]]) -> None:
    """Do as the first process does until it ends.

    Args:
        load: gives the models that it has, and raises what it raises there.

    Raises:
        ZipARError: the models can be loaded there, but not here.
    """
    circle = Circle()
    for number in (signal.SIGTERM, signal.SIGINT):  # which all processes get, while the first one finishes its work
        signal.signal(number, signal.SIG_IGN)
    served: dict[str, Served] = {}
    lanes: dict[int, StyleLane] = {}
    failed: ZipARError | None = None
    if circle.told() is not None:
        try:
            served = {each.name: each for each in load()}
        except ZipARError as error:  # the first one says so
            failed = error
    while (calls := circle.told()) is not None:
        if failed is not None:
            raise failed
        for lane, method, arguments in calls:
            with torch.inference_mode(), suppress(ZipARError):  # the first one fails the images
                if method == "open":
                    kept, (name, *parts), rows = arguments
                    lanes = {number: lanes[number] for number in kept}
                    lanes[lane] = StyleLane(Style(served[name], *parts), rows)
                else:
                    getattr(lanes[lane], method)(*arguments)
    circle.leave()
