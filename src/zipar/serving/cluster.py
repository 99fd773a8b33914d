"""Batch jobs on the machines of a Ray cluster.

Plain actors, not Ray Data: lines stream through, for it would hold them all; an actor has a second chunk while it works
at the first, so that lanes do not run empty between them; and what a dead actor was given, another gets at once.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from socket import gethostname
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from zipar.errors import ZipARError, reason
from zipar.serving.batch import Recipe, Results
from zipar.serving.folder import Folder
from zipar.serving.lines import Line
from zipar.serving.machines import connected, needs

CHUNKS = 2
"""That an actor has at a time."""
MOST_DEATHS = 10
"""Of actors, one after the other, that never made anything."""


class Worker:
    """An actor: a pipeline and its lanes."""

    def start(self, recipe: Recipe) -> None:
        """Load the model.

        Raises:
            ZipARError: it cannot, or the machine has no such directory.
        """
        if not Folder(recipe.out).hidden.is_dir():
            raise ZipARError(f"{recipe.out} is not there on {gethostname()}: use a directory that all machines share")
        self._held = ExitStack()  # until the process ends
        self._batch = self._held.enter_context(recipe.started())

    def make(self, lines: list[Line], alone: bool) -> list[Any]:
        """What a ``Batch`` makes of them."""
        return list(self._batch(lines, alone))


class Workers:
    """Works like a ``Batch``; its actors start as machines for them are there, and come back elsewhere."""

    def __init__(self, recipe: Recipe, count: int | None = None) -> None:
        """
        Args:
            count: of actors; None for one a GPU or, where there is none, one a CPU.
        """
        self._recipe, self._folder, self._deaths = recipe, Folder(recipe.out), 0
        kind: Any = ray.remote(Worker)
        self._kind = kind.options(**(each := needs(recipe.device)), max_concurrency=CHUNKS)
        self._starting: dict[Any, Any] = {}
        """Actors by what they promise."""
        self._loads: dict[Any, int] = {}
        """Chunks of actors that have started."""
        there = ray.cluster_resources().get("GPU" if each["num_gpus"] else "CPU", 1)
        for _ in range(count or max(1, int(there))):
            self._start()

    def __call__(self, lines: Iterable[Line], alone: bool = False) -> Results:
        """See ``Batch``; what is given to an actor that dies counts as tried, for what had begun.

        Raises:
            ZipARError: actors cannot start, or nothing goes right any more.
            OSError: a file cannot be written.
        """
        coming, again = iter(lines), deque[list[Line]]()
        size, each = (1, 1) if alone else (2 * self._recipe.rows, CHUNKS)
        running: dict[Any, tuple[Any, list[Line]]] = {}

        def take() -> list[Line]:
            return again.popleft() if again else list(islice(coming, size))

        chunk = take()
        try:
            while chunk or running:
                free = min(self._loads, key=lambda actor: self._loads[actor], default=None)
                if chunk and free is not None and self._loads[free] < each:
                    running[free.make.remote(chunk, alone)] = free, chunk
                    self._loads[free] += 1
                    chunk = take()
                    continue
                for told in ray.wait([*self._starting, *running])[0]:
                    starting = told in self._starting
                    actor, given = (self._starting.pop(told), []) if starting else running.pop(told)
                    try:
                        results = _answer(told)
                    except RayError as error:  # it is dead, and so may its machine be
                        if given:
                            again.append(given)
                        if starting or self._loads.pop(actor, None) is not None:
                            self._replace(actor, error)
                        continue
                    if starting:
                        self._loads[actor] = 0
                    else:
                        self._loads[actor] -= 1
                        self._deaths = 0
                        yield from results
                chunk = chunk or take()
        finally:
            for actor, given in running.values():  # an orderly end is nobody's fault
                ray.kill(actor)
                for line in given:
                    self._folder.withdraw(line.id)

    def _start(self) -> None:
        actor = self._kind.remote()
        self._starting[actor.start.remote(self._recipe)] = actor

    def _replace(self, actor: Any, error: RayError) -> None:
        """Start another in the place of one that is dead.

        Raises:
            ZipARError: too many were, of which none had made anything.
        """
        self._deaths += 1
        if self._deaths >= max(MOST_DEATHS, 3 * (len(self._loads) + len(self._starting))):
            raise ZipARError(
                f"{self._deaths} workers ended one after the other ({reason(error)}): see Ray's logs, and run this "
                "again, which goes on from here"
            ) from error
        with suppress(RayError):
            ray.kill(actor)  # which may be out of reach alone
        self._start()


def _answer(told: Any) -> Any:
    """What an actor answers.

    Raises:
        RayError: it is dead.
        ZipARError: it cannot go on.
        OSError: neither, for it cannot write.
    """
    try:
        return ray.get(told)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ZipARError | OSError):
            raise cause from None
        raise ZipARError(f"a worker failed over {type(cause).__name__}: {reason(cause)}") from error


@contextmanager
def workers(recipe: Recipe, address: str | None, count: int | None) -> Iterator[Workers]:
    """Actors on the cluster at an address, see ``connected``; they end with the block."""
    with connected(address):
        yield Workers(recipe, count)
