"""What every request passes on its way in and out: an id, a key, a line in the log."""

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

    def __init__(self, app: ASGIApp, api_key: str | None = None) -> None:
        """
        Args:
            api_key: what requests for ``GUARDED`` paths must bring; None lets all in.
        """
        self.app, self._key = app, None if api_key is None else os.fsencode(api_key.strip())

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
            if self._welcome(scope, headers):
                return await self.app(scope, receive, answer)
            lacking = "the API key is wrong or missing: send it as Authorization: Bearer KEY"
            error = APIError(401, lacking, code="invalid_api_key")
            return await JSONResponse(error.body(), 401, {"WWW-Authenticate": "Bearer"})(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - started
            fields = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
            log.info(
                *("%s %s %d %.3f s %s", scope["method"], shown(scope["path"]), status, seconds, request_id),
                extra={"fields": {**fields, "seconds": round(seconds, 4), **told}},
            )

    def _welcome(self, scope: Scope, headers: Headers) -> bool:
        if self._key is None or scope["method"] == "OPTIONS" or not scope["path"].startswith(GUARDED):
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(key.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"


class JSONLines(logging.Formatter):
    """A record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        line |= getattr(record, "fields", None) or {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
