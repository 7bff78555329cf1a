"""Limits on requests that no service has of its own: the length of the URL, and how many heavy ones run at a time."""

from __future__ import annotations

from functools import lru_cache
from threading import BoundedSemaphore
from typing import Final

from flask import Flask, g
from werkzeug.exceptions import RequestURITooLarge

from ..errors import Unavailable
from .service import Service, current_request

_PATIENCE: Final = 15.0  # seconds that a heavy request waits for its turn
_RETRY_AFTER: Final = 5


def add_limits(app: Flask, service: Service) -> None:
    """To be called when it is settled who calls: who may not is not to wait."""
    slots = BoundedSemaphore(service.heavy_requests) if service.heavy_requests else None

    @app.before_request
    def enter() -> None:
        asked = current_request()
        environ = asked.environ
        if len(environ.get("PATH_INFO", "")) + len(environ.get("QUERY_STRING", "")) > service.max_url_bytes:
            raise RequestURITooLarge(f"The URL is longer than the {service.max_url_bytes} bytes that are accepted")
        if slots is not None and asked.url_rule is not None and _is_heavy(asked.method, asked.url_rule.rule):
            if not slots.acquire(timeout=_PATIENCE):
                raise Unavailable(
                    "Too much is being drawn, converted or stored at the moment", retry_after=_RETRY_AFTER
                )
            g.heavy = True

    @app.teardown_request  # before a stream is sent: what it takes is the codec processes' or the disk's to bear
    def leave(_error: BaseException | None) -> None:
        if slots is not None and g.pop("heavy", False):
            slots.release()


@lru_cache(maxsize=1024)
def _is_heavy(method: str, rule: str) -> bool:
    """Whether a request draws, stores, or may convert much: pictures, stores, whole studies and series, WADO-URI."""
    if method not in ("GET", "POST"):
        return False
    last = rule.rpartition("/")[2]
    if method == "POST":
        return last in ("studies", "<study>", "stowrs")
    return last in ("rendered", "thumbnail", "<study>", "<series>", "wado", "wadouri")
