"""The page at ``/``: files that lie beside this one, and name nothing that lies elsewhere."""

from importlib.resources import files

from fastapi import Request
from fastapi.responses import Response

FILES = {
    path: ((files("zipar.serving") / "static" / name).read_bytes(), kind)
    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
        ("/picture.js", "picture.js", "text/javascript"),
        ("/png.js", "png.js", "text/javascript"),
        ("/history.js", "history.js", "text/javascript"),
    )
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def answer(request: Request) -> Response:
    content, kind = FILES[request.url.path]
    return Response(content, headers=HEADERS, media_type=kind)
