"""The engine: images wait in a queue, come into lanes between passes, and leave them for the painter.

One thread decodes. It goes round and round: images that are done, or not wanted any more, leave their lanes; those that
wait come in, in order of arrival; each lane that holds any makes one pass.
"""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Any

import torch
from torch import Tensor

from zipar.arguments import text
from zipar.decoding.engine import no_numbers
from zipar.decoding.lane import Finished
from zipar.errors import ZipARError
from zipar.serving.events import Begun, Event, Failed, Made, Partial
from zipar.serving.lanes import StyleLane
from zipar.serving.metrics import Metrics
from zipar.serving.painter import Painter, encode, frames, rows
from zipar.serving.protocol import APIError, ImageRequest, not_served
from zipar.serving.served import Order, Served, Style

log = logging.getLogger("zipar.serving")
LONGEST_WAIT = 60
"""Seconds that a client is told to wait at most before it comes back."""
DEAD: Any = getattr(torch, "AcceleratorError", ())
"""What is raised by a device that computes nothing any more in this process."""
SPARING = 3
"""The decoder works for so many seconds before it lets the painter work for one on what traces show."""


class Job:
    """A request on its way; whoever made it may cancel it at any time."""

    def __init__(self, asked: ImageRequest, order: Order, tell: Callable[[Event], None]) -> None:
        self.asked, self.order, self.tell, self.cancelled = asked, order, tell, False
        self.unread: set[int] = set()
        """Images of which a partial one is on its way: a trace shows them once more when ``read`` is told of it."""

    @property
    def model(self) -> str:
        return self.order.style.served.name

    @property
    def size(self) -> str:
        return self.order.size

    @property
    def tokens(self) -> int:
        """Of each image."""
        return self.order.style.grid.tokens

    def read(self, partial: Partial) -> None:
        """The client has taken it."""
        self.unread.discard(partial.image)

    def cancel(self) -> None:
        """Its images leave at the next pass."""
        self.cancelled = True


@dataclass(eq=False)
class _Image:
    job: Job
    index: int
    arrived: float = field(default_factory=time.perf_counter)
    came: float = 0.0
    begun: float = 0.0
    done: float = 0.0
    """When it came to a lane, when its prompt was read, and when it left."""
    running: bool = False
    """Whether it is in one."""
    passes: int = 1
    partials: int = 0
    """Partial images of it so far."""
    next_partial: float = 0.0
    """When a trace may show it once more, by the engine's own time."""
    prompt: Tensor | None = None
    """Where its prefix holds tokens, bool (length,): counted by the painter, for whom nobody waits."""


class _Pool:
    """A lane, and the images in it."""

    def __init__(self, style: Style, lane: StyleLane) -> None:
        self.style, self.lane, self.opened = style, lane, time.perf_counter()
        self.images: dict[int, _Image] = {}
        """By ticket."""
        self.expected = style.strategy.passes(style.grid)
        """Passes of an image; where they depend on it, those of the last one."""


class Scheduler:
    """Models, the queue before them, and the thread that decodes: it lives as long as the context."""

    def __init__(
        self,
        models: Sequence[Served],
        *,
        rows: int = 8,
        lanes: int = 2,
        queue: int = 64,
        aliases: Mapping[str, str] | None = None,
        lane: Callable[[Style, int], StyleLane] = StyleLane,
    ) -> None:
        """
        Args:
            models: requests that name none get the first.
            rows: images that a lane holds at most.
            lanes: that are held at most; images of another strategy, size, filter or model need another.
            queue: images at most that are in no lane: those that wait, and those that are done but not yet painted.
            aliases: other names of models.
            lane: makes one, of a style and a number of rows.

        Raises:
            ZipARError: two models of one name, or an alias of none.
        """
        self.models = {served.name: served for served in models}
        own = {name: name for name in self.models}
        self.names = {**own, **(aliases or {}), **own}
        """What requests may call models, and what these are called here."""
        if len(self.models) < len(models):
            raise ZipARError(f"models of one name, {', '.join(served.name for served in models)}: serve each once")
        for alias, name in self.names.items():
            if name not in self.models or not text("alias", alias).strip():
                raise ZipARError(f"alias {alias!r} is of {name!r}, which is not served: use {', '.join(self.models)}")
        self.rows, self.lanes, self.queue, self.metrics = rows, lanes, queue, Metrics()
        self._lane = lane
        self._changed = Condition()
        self._waiting: list[_Image] = []
        self._images: set[_Image] = set()
        """All that were accepted, until their requests have been told what became of them."""
        self._pools: dict[Style, _Pool] = {}
        """The least recently used first."""
        self._painter = Painter()
        self._thread = Thread(target=self._run, name="zipar-engine", daemon=True)
        self._stopping = False
        self._drained: Callable[[], None] | None = None
        self._pace = 0.0
        """Seconds an image, of late."""
        self._showing = 0.0
        """Seconds that the painter worked on the last partial image."""
        self._entry: dict[str, int] = {}
        """Bytes of a cache entry, by model."""
        self.metrics.watch(
            self.models,
            running=lambda name: self._count(lambda image: image.running and image.job.model == name),
            waiting=lambda name: sum(image.job.model == name for image in tuple(self._waiting)),
        )

    def __enter__(self) -> "Scheduler":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        self._painter.stop()

    @property
    def alive(self) -> bool:
        """Whether the thread is."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.alive and not self._stopping and self._drained is None

    def submit(self, asked: ImageRequest, tell: Callable[[Event], None]) -> Job:
        """Take a request.

        Args:
            tell: called with all that becomes of it, from other threads: ``Begun``, then ``Partial`` and ``Made``; or
                ``Failed``, after which nothing comes.

        Raises:
            APIError: it cannot be honoured, or not now.
        """
        name = next(iter(self.models)) if asked.model is None else self.names.get(asked.model)
        if name is None:
            raise not_served(asked.model or "", self.names)
        try:
            job = Job(asked, self.models[name].order(asked), tell)
        except ZipARError as error:
            raise APIError.of(error) from error
        with self._changed:
            if not self.ready:
                raise _down("the server is going down: ask another")
            if (held := self._count(lambda image: not image.running)) + asked.n > self.queue:
                self.metrics.rejections.labels(name).inc()
                wait = min(LONGEST_WAIT, math.ceil(held * self._pace) + 1)
                message = f"{held} images wait already, of {self.queue} that may: try again in {wait} s"
                raise APIError(503, message, code="overloaded", headers={"Retry-After": str(wait)})
            images = [_Image(job, index) for index in range(asked.n)]
            self._images.update(images)
            self._waiting += images
            self._changed.notify()
        return job

    def drain(self, then: Callable[[], None]) -> None:
        """Take no more requests, and call ``then`` once all are answered that were taken."""
        with self._changed:
            self._drained = then
            if not self._images:
                then()

    def warm_up(self) -> None:
        """Make an image of each model, which also tells what lanes take.

        Raises:
            ZipARError: a model cannot.
        """
        for name, served in self.models.items():
            told: SimpleQueue[Event] = SimpleQueue()
            job = self.submit(ImageRequest(prompt=served.model.examples(1)[0], model=name, seed=0), told.put)
            while not isinstance(event := told.get(), Made):
                if isinstance(event, Failed):
                    raise ZipARError(f"{name} cannot be served: {event.error}")
            lane = self._pools[job.order.style].lane
            self._entry[name] = lane.cache.memory // (lane.rows * lane.branches * lane.cache.placement.entries)

    def memory(self, served: Served) -> int:
        """Bytes that keys and values of the model's largest lane take, once it is warm."""
        entries = served.longest_prompt + max(grid.slots for grid in served.sizes.values())
        return self.rows * 2 * entries * self._entry[served.name]  # with guidance, each image has two

    def _count(self, which: Callable[[_Image], bool]) -> int:
        with self._changed:
            return sum(map(which, self._images))

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._more():
                self._each(self._let_out)
                self._let_in()
                self._each(self._pass)
        except BaseException:
            log.exception("the engine is dead")
        with self._changed:
            self._stopping = True
            left = list(self._images)
        for image in left:
            self._fail(image, _down("the server went down before this image was done: try again"))

    def _more(self) -> bool:
        """Wait for something to do; False once there will be nothing any more."""
        with self._changed:
            busy = any(pool.images for pool in self._pools.values())
            self._changed.wait_for(lambda: self._stopping or self._waiting or busy)
            return not self._stopping

    def _each(self, work: Callable[[_Pool], None]) -> None:
        """Do it to every lane that holds images; whatever happens to one, others go on."""
        for pool in [pool for pool in self._pools.values() if pool.images]:
            try:
                work(pool)
            except Exception as error:
                del self._pools[pool.style]
                for image in pool.images.values():
                    self._fail(image, error)

    def _let_out(self, pool: _Pool) -> None:
        """Images leave that are done, or that nobody waits for any more."""
        company = len(pool.images)
        for finished in pool.lane.retire():
            image = pool.images.pop(finished.ticket)
            image.done, image.running = time.perf_counter(), False
            seconds = image.done - image.begun
            self.metrics.decode_seconds.labels(image.job.model).observe(seconds)
            self._pace += (seconds / company - self._pace) / 8
            pool.expected = finished.forward_passes
            self._paint(self._finish, image, finished.tokens, finished)
        for ticket in [ticket for ticket, image in pool.images.items() if image.job.cancelled]:
            pool.lane.drop(ticket)
            self._settle(pool.images.pop(ticket))

    def _let_in(self) -> None:
        """Images come in, in order of arrival; those whose lane is full or cannot be had yet are overtaken.

        Where one waits for a lane, the emptiest takes nobody who came after it was opened, until it can be replaced.
        On a CPU a row costs what the widest one does; so once a whole lane of images waits, they come in together, when
        it is empty, and stay in step.
        """
        waiting = Counter(image.job.order.style for image in tuple(self._waiting))
        coming: dict[_Pool, list[_Image]] = {}
        closed: set[_Pool] = set()
        for image in tuple(self._waiting):
            if image.job.cancelled:
                self._leave_queue(image)
                self._settle(image)
                continue
            try:
                pool = self._pool(image.job.order.style, coming)
            except Exception as error:
                self._leave_queue(image)
                self._fail(image, error)
                continue
            if pool is None:
                closed.add(min(self._pools.values(), key=lambda pool: len(pool.images)))
                continue
            together = bool(pool.images) and pool.lane.tokens.is_cpu and waiting[pool.style] >= self.rows
            overtaking = pool in closed and image.arrived > pool.opened
            if len(pool.images) + len(coming.get(pool, ())) < self.rows and not together and not overtaking:
                coming.setdefault(pool, []).append(image)
                self._leave_queue(image)
        for pool, images in coming.items():
            self._prefill(pool, images)

    def _pool(self, style: Style, coming: Mapping[_Pool, Any]) -> _Pool | None:
        """The lane for images of a style; None while all are held by others."""
        if style in self._pools:
            self._pools[style] = self._pools.pop(style)  # the most recently used comes last
        else:
            if len(self._pools) == self.lanes:
                idle = [pool for pool in self._pools.values() if not pool.images and pool not in coming]
                if not idle:
                    return None
                del self._pools[idle[0].style]
                del idle  # frees its memory before the next one takes some
            self._pools[style] = _Pool(style, self._lane(style, self.rows))
        return self._pools[style]

    def _prefill(self, pool: _Pool, images: Iterable[_Image]) -> None:
        """Take images into a lane: those that are sampled alike together."""
        alike: dict[Any, list[_Image]] = {}
        for image in images:
            order = image.job.order
            alike.setdefault((order.sampling, order.negative is None), []).append(image)
        for group in alike.values():
            try:
                self._admit(pool, group)
            except Exception:  # over one of them
                for image in group:
                    try:
                        self._admit(pool, [image])
                    except Exception as error:
                        self._fail(image, error)

    def _admit(self, pool: _Pool, images: Sequence[_Image]) -> None:
        started, served, orders = time.perf_counter(), pool.style.served, [image.job.order for image in images]
        negatives = [order.negative for order in orders if order.negative is not None]
        seeds = [image.job.order.seeds[image.index] for image in images]
        taken = pool.lane.take([order.prompt for order in orders], negatives or None, orders[0].sampling, seeds)
        now = time.perf_counter()
        for (ticket, prompt), image in zip(taken, images, strict=True):
            pool.images[ticket], image.running, image.prompt = image, True, prompt
            image.came, image.begun = started, now
            self.metrics.queue_seconds.labels(served.name).observe(started - image.arrived)
            self.metrics.prefill_seconds.labels(served.name).observe(now - started)
            self._tell(image, Begun())

    def _pass(self, pool: _Pool) -> None:
        pool.lane.step()
        self.metrics.passes.labels(pool.style.served.name).inc()
        for ticket, image in pool.images.items():
            image.passes += 1
            if image.job.asked.stream and self._worth_showing(image, pool):
                image.job.unread.add(image.index)
                self._paint(self._show, image, *pool.lane.peek(ticket), image.partials)
                image.partials += 1

    def _worth_showing(self, image: _Image, pool: _Pool) -> bool:
        """Whether it is time for a partial image: at even distances, or for a trace as often as they are read."""
        wanted = image.job.asked.partial_images
        if not image.job.asked.trace:
            return image.partials < wanted and image.passes * (wanted + 1) >= pool.expected * (image.partials + 1)
        now = time.thread_time()  # under load this thread waits as the painter does
        if image.index in image.job.unread or now < image.next_partial:
            return False
        image.next_partial = now + SPARING * self._showing * sum(len(each.images) for each in self._pools.values())
        return True

    def _paint(self, work: Callable[..., None], image: _Image, *arguments: Any) -> None:
        def settle(done: Future[None]) -> None:
            if isinstance(error := done.exception(), Exception):  # of the device, else the work has told of it
                self._fail(image, error)

        try:
            done = self._painter.put(work, image.job.order.style.served.model.device, image, *arguments)
        except Exception as error:
            return self._fail(image, error)
        done.add_done_callback(settle)
        return None

    def _show(self, image: _Image, tokens: Tensor, born: Tensor, number: int) -> None:
        """The painter's: a partial image."""
        if image.job.cancelled:
            return
        started, style = time.thread_time(), image.job.order.style
        try:
            came = born.where(born > 0, -1)
            came[style.grid.first] = 0
            passes = rows(style.served.model, style.grid, came) if image.job.asked.trace else None
            self._tell(image, Partial(image.index, number, self._file(image, tokens, born), passes))
        except Exception:  # the image itself may still come
            log.exception("a partial image failed")
        self._showing = time.thread_time() - started

    def _finish(self, image: _Image, tokens: Tensor, finished: Finished) -> None:
        """The painter's: an image."""
        if image.job.cancelled:
            return self._settle(image)
        style, job = image.job.order.style, image.job
        try:
            if not finished.finite:
                raise no_numbers(style.served.model.dtype)
            assert image.prompt is not None
            made = Made(
                *(image.index, job.order.seeds[image.index], self._file(image, tokens), int(image.prompt.sum())),
                passes=finished.forward_passes,
                seconds=image.done - image.came,
            )
            if job.asked.trace:
                model, grid = style.served.model, style.grid
                made = made._replace(
                    tokens=rows(model, grid, model.codes(tokens)), born=rows(model, grid, finished.born)
                )
        except Exception as error:
            return self._fail(image, error)
        self.metrics.images.labels(job.model).inc()
        self._tell(image, made)
        return self._settle(image)

    def _file(self, image: _Image, tokens: Tensor, born: Tensor | None = None) -> bytes:
        style, asked = image.job.order.style, image.job.asked
        drawn = frames(style.served.model, style.grid, tokens, born)
        settings = json.dumps(image.job.order.settings(image.index)) if born is None else None
        return encode(drawn, asked.output_format, asked.output_compression, settings, style.served.fps)

    def _fail(self, image: _Image, error: Exception) -> None:
        """Tell the request why; its other images are not wanted then."""
        cause = error
        if isinstance(error, ZipARError):
            error = APIError.of(error)
        elif isinstance(error, torch.OutOfMemoryError):
            error = _down("the server has too little memory for this image: try again later")
        elif isinstance(error, DEAD):
            log.error("the engine is dead", exc_info=error)
            with self._changed:
                self._stopping = True
                self._changed.notify()
            error = _down("the server's device failed: try again")
        elif not isinstance(error, APIError):
            log.error("an image failed", exc_info=error)
            error = APIError(500, "the server failed over this image, and has written down why: try again")
        if error is not cause:
            error.__cause__ = cause
        self._tell(image, Failed(error))
        image.job.cancel()
        self._settle(image)

    def _tell(self, image: _Image, event: Event) -> None:
        if not image.job.cancelled:
            image.job.tell(event)

    def _leave_queue(self, image: _Image) -> None:
        with self._changed:
            self._waiting.remove(image)

    def _settle(self, image: _Image) -> None:
        """Nothing more will be told of an image."""
        with self._changed:
            self._images.discard(image)
            if self._drained is not None and not self._images:
                self._drained()


def _down(message: str) -> APIError:
    return APIError(503, message, headers={"Retry-After": "5"})
