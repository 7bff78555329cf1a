"""What browsers are told: which sites' pages may call this server (CORS), and what its own pages may do."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any, Final

from flask import Flask, Response, request

from .service import Service, came_over_tls, current_service

_EXPOSED: Final = (
    "Link, X-Total-Count, Warning, Location, Content-Location, ETag, Content-Range, Retry-After, X-Request-ID, "
    "X-Dicom-Instance"
)
_MAX_AGE: Final = "600"  # seconds for which a browser need not ask again
_OWN_ANCESTORS: Final = "frame-ancestors 'self'"
#: Of a page that says nothing else: no scripts, nothing from elsewhere.
_PLAIN_PAGE: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'self'"
)


def page_policy(*inline_scripts: str) -> str:
    """The Content-Security-Policy of a page of ours with these scripts in it, which calls this server only."""
    hashes = "".join(
        f" 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in inline_scripts
    )
    return (
        f"default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    )


def add_headers(app: Flask, service: Service) -> None:
    """Answer preflights, and give every answer its headers. To be called before callers are asked who they are."""
    hsts = f"max-age={service.hsts_days * 86400}" if service.hsts_days else ""
    ancestors = " ".join(("frame-ancestors 'self'", *service.frame_ancestors))

    @app.before_request
    def preflight() -> Response | None:
        if service.cors_origins and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return Response(status=204)  # it carries no Authorization, so that nobody can be asked for it
        return None

    everywhere = [
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "cross-origin" if service.cors_origins else "same-origin"),
    ]
    on_pages = [("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()")]
    application = app.wsgi_app

    def with_headers(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            given = dict(headers)
            if given.get("Content-Type", "").startswith("text/html"):
                policy = given.pop("Content-Security-Policy", _PLAIN_PAGE).replace(_OWN_ANCESTORS, ancestors)
                headers = [each for each in headers if each[0] != "Content-Security-Policy"]
                headers += [("Content-Security-Policy", policy), *(each for each in on_pages if each[0] not in given)]
            missing = [each for each in everywhere if each[0] not in given]
            return start_response(status, headers + missing, *more)

        return application(environ, start)

    app.wsgi_app = with_headers  # type: ignore[method-assign]  # many times cheaper than `response.headers`

    @app.after_request
    def tell(response: Response) -> Response:
        if hsts and came_over_tls():
            response.headers["Strict-Transport-Security"] = hsts
        if service.cors_origins:
            _allow(response)
        return response


def _allow(response: Response) -> None:
    """The headers of CORS (Fetch Standard 3.3): for the sites that may call, and for no others."""
    service, headers = current_service(), response.headers
    origins, origin = service.cors_origins, request.headers.get("Origin")
    headers.add("Vary", "Origin")
    if origin is None or not ("*" in origins or origin in origins):
        return
    headers["Access-Control-Allow-Origin"] = "*" if "*" in origins and not service.cors_credentials else origin
    if service.cors_credentials:
        headers["Access-Control-Allow-Credentials"] = "true"
    headers["Access-Control-Expose-Headers"] = _EXPOSED
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        asked = request.headers.get("Access-Control-Request-Headers", "")
        allowed = ", ".join(service.cors_headers) or asked or "Authorization, Content-Type, Accept"
        headers["Access-Control-Allow-Methods"] = ", ".join(service.cors_methods)
        headers["Access-Control-Allow-Headers"] = allowed
        headers["Access-Control-Max-Age"] = _MAX_AGE
        if request.headers.get("Access-Control-Request-Private-Network") == "true":  # a page of the Internet asks
            headers["Access-Control-Allow-Private-Network"] = "true"
