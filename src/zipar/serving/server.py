"""The process: an address, signals, and how it goes down."""

import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from zipar.errors import ZipARError, reason
from zipar.serving.door import JSONLines

if TYPE_CHECKING:
    from zipar.serving.scheduler import Scheduler

IDLE = 75
"""Seconds that a connection may rest: longer than clients and proxies keep theirs, lest it ends as one asks again."""
GRACE = 30
"""Seconds that clients have, once the last image is done, to take what they were sent."""


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, at which nothing is answered yet; port 0 is any that is free.

    Raises:
        ZipARError: it cannot be had.
    """
    try:
        flags = 0 if host == "localhost" else socket.AI_NUMERICHOST
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except (OSError, UnicodeError) as error:
        raise ZipARError(
            f"{host}:{port} cannot be listened at ({reason(error)}): give another --host or --port"
        ) from error
    return taken


def run(
    app: Any, scheduler: "Scheduler", taken: socket.socket, ready: Callable[[], None], log_json: bool = False
) -> None:
    """Serve until a signal comes, and then until all that was accepted is answered; a second signal ends it at once.

    Args:
        taken: what ``bind`` gave.
        ready: called once requests are answered.

    Raises:
        KeyboardInterrupt: the signal was that of Ctrl-C.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines() if log_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_keep_alive=IDLE, timeout_graceful_shutdown=GRACE
    )
    server = Server(config, scheduler, ready)
    server.run([taken])
    if server.caught == signal.SIGINT:
        raise KeyboardInterrupt


class Server(uvicorn.Server):
    """Goes on answering while the scheduler drains: new requests are sent elsewhere, not left at a closed door."""

    caught: int | None = None
    """The last signal."""

    def __init__(self, config: uvicorn.Config, scheduler: "Scheduler", ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._scheduler, self._ready = scheduler, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            self.force_exit = True
            self._end()
        self.caught = sig
        self._scheduler.drain(then=self._end)

    def _end(self) -> None:
        self.should_exit = True
