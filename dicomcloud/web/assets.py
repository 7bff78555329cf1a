"""Static files of the pages that people look at, with media types that do not depend on the machine's own table."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flask import Response, abort, request, send_file

#: By suffix. Windows takes `.js` from its registry, where it may be anything; with `nosniff` it would not run.
MEDIA_TYPES: Final = {
    ".css": "text/css",
    ".gif": "image/gif",
    ".html": "text/html",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".jsonc": "application/json",
    ".map": "application/json",
    ".mjs": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}


def send_asset(folder: Path, name: str, *, max_age: int | None = None, compressed: bool = False) -> Response:
    """The file `name` below `folder`; `max_age` in seconds, None: the browser asks each time whether it is the same.

    `compressed`: its twin `name.gz` is sent, if there is one and the client takes it.
    404 for what is not there, lies outside of the folder or is no file of a web page.
    """
    path = (folder / name).resolve()
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
        abort(404)
    twin = Path(f"{path}.gz")
    if not (compressed and request.accept_encodings.quality("gzip") and twin.is_file()):
        return send_file(path, mimetype=media_type, max_age=max_age)
    response = send_file(twin, mimetype=media_type, max_age=max_age)
    response.headers["Content-Encoding"] = "gzip"
    response.headers["Vary"] = "Accept-Encoding"
    return response
