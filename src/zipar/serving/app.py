"""The HTTP application. It knows the scheduler by what it is told, and nothing of models."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

import zipar
from zipar.serving import page, protocol
from zipar.serving.door import Door, Lock
from zipar.serving.events import Event, Failed, Made, Partial
from zipar.serving.protocol import APIError

if TYPE_CHECKING:
    from zipar.serving.scheduler import Job, Scheduler

T = TypeVar("T")
IMAGES = ("/v1/images/generations", "/proxy/openai/images/generations")
"""The second is where ComfyUI's nodes for OpenAI post to."""
PING = 15.0
"""Seconds without an event after which a stream says that it is alive: proxies end silent connections."""
PATIENCE = 60.0
"""Seconds in which a body has to come."""


def application(scheduler: "Scheduler", *, api_key: str | None = None, allowed_origins: Sequence[str] = ()) -> Door:
    """The API of OpenAI for images, and what operators need.

    Args:
        api_key: guards what asks for images or models; None lets everybody in.
        allowed_origins: of web pages that may ask from browsers; "*" for all.
    """
    # no page of the API: FastAPI's would load its scripts from elsewhere
    app = FastAPI(title="ZipAR", version=zipar.__version__, docs_url=None, redoc_url=None)
    if api_key is not None:
        app.add_middleware(Lock, key=api_key)
    if allowed_origins:  # outside the lock, so that browsers may read what it says
        app.add_middleware(
            CORSMiddleware,
            allow_origins=allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_exception_handler(APIError, _answer)
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(Exception, _answer)
    app.add_exception_handler(ClientDisconnect, _answer)
    started = int(time.time())

    async def generate(request: Request) -> Response:
        arrived = time.perf_counter()
        asked = protocol.parse(await _body(request))
        events, loop = asyncio.Queue[Event](), asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended, and so have all who listened
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = scheduler.submit(asked, tell)
        request.state.told.update(model=job.model, images=asked.n, seed=job.order.seeds[0])

        def succeeded() -> None:
            scheduler.metrics.success.labels(job.model).inc()
            scheduler.metrics.latency.labels(job.model).observe(time.perf_counter() - arrived)

        if asked.stream:
            try:
                first = await _unless_gone(request, asyncio.wait_for(events.get(), PING))
                if isinstance(first, Failed):
                    raise first.error
            except asyncio.TimeoutError:
                pass  # it waits in the queue, and the stream says that it is alive
            except BaseException:
                job.cancel()
                raise
            return _Stream(job, _told(job, events, succeeded))
        try:
            made = await _unless_gone(request, _all(job, events))
        finally:
            job.cancel()
        succeeded()
        return JSONResponse(protocol.answer(asked, job.size, job.tokens, made))

    body = {"content": {"application/json": {"schema": protocol.ImageRequest.model_json_schema()}}, "required": True}
    for path in IMAGES:
        app.post(path, openapi_extra={"requestBody": body}, name="images")(generate)

    about = {name: served.about() for name, served in scheduler.models.items()}

    def described(name: str) -> dict[str, Any]:
        fields = {"id": name, "object": "model", "created": started, "owned_by": "zipar"}
        return fields | {"root": scheduler.names[name]} | about.get(name, {})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in scheduler.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name not in scheduler.names:
            raise protocol.not_served(name, scheduler.names)
        return described(name)

    for path in page.FILES:
        app.get(path, include_in_schema=False)(page.answer)

    @app.get("/health")
    async def health() -> Response:
        return PlainTextResponse("alive", 200) if scheduler.alive else PlainTextResponse("the engine is dead", 503)

    @app.get("/ready")
    async def ready() -> Response:
        return PlainTextResponse("ready", 200) if scheduler.ready else PlainTextResponse("going down", 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(scheduler.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Door(app)


class _Stream(StreamingResponse):
    """Server-sent events of a job, which is cancelled however they end."""

    def __init__(self, job: "Job", events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _told(job: "Job", events: "asyncio.Queue[Event]", succeeded: Any) -> AsyncIterator[str]:
    """What happens to a job, as server-sent events."""
    left = job.asked.n
    while left:
        try:
            event = await asyncio.wait_for(events.get(), PING)
        except asyncio.TimeoutError:
            yield ": ping\n\n"
            continue
        match event:
            case Partial():
                yield protocol.partial_image(job.asked, job.size, event)
                job.read(event)
            case Made():
                left -= 1
                if not left:
                    succeeded()
                yield protocol.completed(job.asked, job.size, job.tokens, event)
            case Failed():
                yield protocol.failed(event.error)
                return


async def _all(job: "Job", events: "asyncio.Queue[Event]") -> list[Made]:
    """The images of a job.

    Raises:
        APIError: one of them failed.
    """
    made: list[Made] = []
    while len(made) < job.asked.n:
        match await events.get():
            case Made() as event:
                made.append(event)
            case Failed(error):
                raise error
    return made


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What comes of ``work``, for as long as the client waits for it.

    Raises:
        ClientDisconnect: it does no more.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _body(request: Request) -> bytes:
    """The body, if it is not too large.

    Raises:
        APIError: it is, or does not come.
    """

    async def read() -> tuple[list[bytes], int]:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size <= protocol.LARGEST_BODY:
                parts.append(part)
            elif size > 16 * protocol.LARGEST_BODY:  # what is less is read to its end, so that the client will listen
                break
        return parts, size

    try:
        parts, size = await asyncio.wait_for(read(), PATIENCE)
    except asyncio.TimeoutError:
        raise APIError(408, f"the body did not come within {PATIENCE:g} seconds: send it faster") from None
    if size > protocol.LARGEST_BODY:
        raise APIError(413, f"the body is too large: {protocol.LARGEST_BODY} bytes are the most")
    return b"".join(parts)


async def _answer(request: Request, error: Exception) -> Response:
    """Errors, as OpenAI's clients read them."""
    match error:
        case APIError():
            told = error
        case ClientDisconnect():
            told = APIError(499, "the client has gone")
        case HTTPException(status_code=status):
            allowed = f"use POST {IMAGES[0]}, GET /v1/models, /health, /ready, /metrics or /openapi.json"
            told = APIError(status, f"{request.method} {request.url.path[:100]} is not possible: {allowed}")
            told.headers = error.headers
        case _:
            told = APIError(500, "the server failed, and has written down why: try again")
    return JSONResponse(told.body(), told.status, dict(told.headers or {}))
