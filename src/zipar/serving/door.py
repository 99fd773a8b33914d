"""What every request passes on its way in and out: an id, a line in the log, a lock."""

import hmac
import json
import logging
import os
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zipar.arguments import shown
from zipar.serving.protocol import APIError

log = logging.getLogger("zipar.serving.requests")
GUARDED = ("/v1/", "/proxy/")


class Door:
    """ASGI around the application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, headers, status = time.perf_counter(), Headers(scope=scope), 499  # nginx's: the client has gone
        given = headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[!-~]{1,128}", given) else f"req_{uuid.uuid4().hex}"
        told: dict[str, Any] = {}
        """What the application adds to the log."""
        scope.setdefault("state", {})["told"] = told

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            return await self.app(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            fields = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
            log.info(
                *("%s %s %d %.3f s %s", scope["method"], shown(scope["path"]), status, seconds, request_id),
                extra={"fields": {**fields, "seconds": round(seconds, 4), **told}},
            )


class Lock:
    """ASGI around what needs a key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        """
        Args:
            key: what requests for ``GUARDED`` paths must bring.
        """
        self.app, self._key = app, os.fsencode(key.strip())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._opens(scope):
            return await self.app(scope, receive, send)
        lacking = "the API key is wrong or missing: send it as Authorization: Bearer KEY"
        error = APIError(401, lacking, code="invalid_api_key")
        return await JSONResponse(error.body(), 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _opens(self, scope: Scope) -> bool:
        if scope["method"] == "OPTIONS" or not scope["path"].startswith(GUARDED):
            return True
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        return hmac.compare_digest(key.strip(" ").encode("latin-1"), self._key) and scheme.lower() == "bearer"


class JSONLines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        line |= getattr(record, "fields", None) or {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
