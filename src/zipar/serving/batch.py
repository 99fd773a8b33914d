"""Batch jobs: lines of prompts to files, in lanes that are kept full.

What fails is tried again, and as long as it has company nobody knows whose fault it was; so the third try, the last, is
made alone, when all else is done.
"""

import json
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias

from zipar.errors import ZipARError, reason
from zipar.pipeline import pipeline
from zipar.serving import protocol
from zipar.serving.events import Event, Failed, Made
from zipar.serving.folder import Folder, Record
from zipar.serving.lines import Line
from zipar.serving.protocol import APIError, ImageRequest
from zipar.serving.scheduler import Job, Scheduler
from zipar.serving.served import Served
from zipar.serving.shards import Leader
from zipar.serving.threads import aside

TRIES = 3
"""Of a line, over all processes that ever worked at it."""
AHEAD = 1024
"""Lines among which those of one lane are put together."""
LANES = 4
"""As many images as this many lanes hold are under way: in one, before it, and on their way to a file."""

Results: TypeAlias = Iterator[tuple[Line, Record | None]]
"""Lines and what became of them; None where a line is to be made alone."""


class _Flight(NamedTuple):
    line: Line
    job: Job


class Batch:
    """Makes images of lines."""

    def __init__(
        self, scheduler: Scheduler, folder: Folder, defaults: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        """
        Args:
            scheduler: of one model, with a queue for twice ``LANES`` lanes.
            defaults: fields of lines that have none.
            seed: of line 1, if it has none; others count up from there.

        Raises:
            ZipARError: the model has no such defaults.
        """
        (self._served,) = scheduler.models.values()
        self._scheduler, self._folder, self._defaults, self._seed = scheduler, folder, defaults or {}, seed
        self._failures = 0
        """Since an image was made."""
        try:
            self._served.order(self._asked({"prompt": self._served.model.examples(1)[0]}))
        except APIError as error:
            raise ZipARError(error.message) from error

    def __call__(self, lines: Iterable[Line], alone: bool = False) -> Results:
        """Make them, in the order in which they are done.

        Args:
            alone: one after the other, those that were tried twice as well; a line is tried once more then.

        Raises:
            ZipARError: nothing goes right any more.
            OSError: a file cannot be written.
        """
        coming, again, flights = iter(lines), deque[Line](), dict[str, _Flight]()
        most = 1 if alone else LANES * self._scheduler.rows
        told: SimpleQueue[tuple[str, Event]] = SimpleQueue()
        why: dict[str, str] = {}
        try:
            while True:
                while len(flights) < most and (line := again.popleft() if again else next(coming, None)):
                    if (record := self._known(line)) is None:
                        tries = self._folder.tries(line.id)
                        if tries >= TRIES and alone:
                            last = why.get(line.id, "the process ended while it was made")
                            record = _failure(line, f"tried {tries} times: {last}")
                        elif tries >= TRIES - 1 and not alone:
                            yield line, None
                            continue
                    if record is None:
                        try:
                            flights[line.id] = self._begin(line, told)
                            continue
                        except APIError as refused:
                            record = _failure(line, refused.message)
                    yield line, record
                if not flights:
                    return
                name, event = told.get()
                match event:
                    case Made():
                        line, job = flights.pop(name)
                        self._failures = 0
                        record = _success(line, self._folder.name(name), job, event)
                        self._folder.save(record, event.content)
                        yield line, record | {"seconds": round(event.seconds, 4)}
                    case Failed(error):
                        line, _ = flights.pop(name)
                        if error.status < 500:  # so it would be every time
                            yield line, _failure(line, error.message)
                        else:
                            why[name] = _cause(error)
                            again.append(line)
                            self._failures += 1
                            # of so many, one after the other, the lines are not the cause
                            if not self._scheduler.alive or (self._failures >= 3 * most and not alone):
                                raise ZipARError(
                                    f"{self._failures} images failed one after the other, the last one over "
                                    f"{why[name]}: mend that, and run this again, which goes on from here"
                                )
        finally:
            for name, (_, job) in flights.items():
                job.cancel()
                self._folder.withdraw(name)

    def _known(self, line: Line) -> Record | None:
        """What became of a line already."""
        return self._folder.record(line.id) if line.error is None else _failure(line, line.error)

    def _begin(self, line: Line, told: "SimpleQueue[tuple[str, Event]]") -> _Flight:
        """Have a line made.

        Raises:
            APIError: it asks for what there is not.
        """
        asked = self._asked({"seed": self._seed + line.number - 1} | line.fields)
        self._folder.begin(line.id)
        try:
            job = self._scheduler.submit(asked, lambda event: told.put((line.id, event)))
        except APIError as error:
            self._folder.withdraw(line.id)
            if error.status >= 500:
                raise ZipARError(f"the engine takes no more: {error.message}") from error
            raise
        return _Flight(line, job)

    def _asked(self, fields: dict[str, Any]) -> ImageRequest:
        """A request with these fields and the defaults; any size will do that the model makes.

        Raises:
            APIError: a value is not possible.
        """
        asked = protocol.parse(json.dumps({**self._defaults, **fields}).encode())
        if size := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", asked.size):
            try:
                self._served.sizes[asked.size] = self._served.model.grid(int(size[2]), int(size[1]))
            except ZipARError as error:
                raise APIError.of(error) from error
        return asked


@dataclass(frozen=True)
class Recipe:
    """What a ``Batch`` is made of, here or on another machine."""

    name: str
    """Of the model, as records have it."""
    model: str | Path
    """As ``zipar.pipeline`` takes it; a directory is at the same place on all machines."""
    out: Path
    dtype: str | None = None
    quantize: str | None = None
    device: str | None = None
    cuda_graphs: bool = True
    tensor_parallel: bool = False
    rows: int = 8
    longest_prompt: int = 256
    defaults: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def served(self) -> Served:
        """Load the model.

        Raises:
            ZipARError: it cannot be loaded.
        """
        options = {"dtype": self.dtype, "device": self.device, "quantize": self.quantize}
        graphs, shards = self.cuda_graphs, self.tensor_parallel
        pipe = aside(partial(pipeline, self.model, cuda_graphs=graphs, tensor_parallel=shards, **options))
        return Served.of(self.name, pipe, self.longest_prompt)

    @contextmanager
    def started(self, leader: Leader | None = None) -> Iterator[Batch]:
        """Load the model, and start the engine.

        Args:
            leader: of the processes that hold the model together; None where this one holds it alone.

        Raises:
            ZipARError: the model cannot be loaded, or does not make such images.
        """
        leader = leader or Leader()
        leader.call_up()
        # images count until a moment after they are told of
        queue = 2 * LANES * self.rows
        with Scheduler([self.served()], rows=self.rows, queue=queue, lane=leader.lane) as scheduler:
            batch = Batch(scheduler, Folder(self.out), self.defaults, self.seed)
            scheduler.warm_up()
            yield batch


def finished(make: Callable[[Iterable[Line], bool], Results], lines: Iterable[Line]) -> Generator[Record, None, None]:
    """What becomes of lines.

    Args:
        make: a ``Batch``, or what works like one.
    """
    alone: list[Line] = []
    for line, record in make(gathered(lines), False):
        if record is None:
            alone.append(line)
        else:
            yield record
    for _, record in make(alone, True):
        assert record is not None
        yield record


def gathered(lines: Iterable[Line]) -> Iterator[Line]:
    """Lines, of each ``AHEAD`` those together that share lanes: so these change seldom."""
    lines = iter(lines)
    while ahead := list(islice(lines, AHEAD)):
        yield from sorted(ahead, key=_lane)


def _lane(line: Line) -> str:
    own = {name: line.fields.get(name) for name in ("strategy", "size", "top_k", "top_p", "min_p")}
    return json.dumps([own, line.fields.get("guidance_scale") == 1])


def _success(line: Line, file: str, job: Job, made: Made) -> Record:
    return {"id": line.id, "file": file, **job.order.settings(0), "passes": made.passes}


def _failure(line: Line, error: str) -> Record:
    return {"id": line.id, "error": error}


def _cause(error: APIError) -> str:
    cause = error.__cause__
    return error.message if cause is None else f"{type(cause).__name__}: {reason(cause)}"
