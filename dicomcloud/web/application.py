"""The Flask application, without what this server has no use for and would do at every request.

That is: views that are coroutines, sessions in a signed cookie (`sessions.py` has its own), and routes by host name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from flask import Flask, Request
from flask.sessions import NullSession, SecureCookieSessionInterface
from werkzeug.exceptions import BadHost
from werkzeug.routing import MapAdapter
from werkzeug.sansio.utils import get_host


class _NoSessions(SecureCookieSessionInterface):
    _NONE: Final = NullSession()

    def open_session(self, *_: Any) -> NullSession:
        return self._NONE


class Application(Flask):
    """See the module."""

    session_interface = _NoSessions()

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Raises SecurityError for a Host header that is none, BadHost for a name that cannot be one."""
        if request is None:
            return None
        request.host, name = _host(request.scheme, request.environ.get("HTTP_HOST"), request.server)
        query = request.environ.get("QUERY_STRING", "")
        path = request.environ.get("PATH_INFO") and request.path
        return MapAdapter(self.url_map, name, request.root_path, "", request.scheme, path or "/", request.method, query)


@lru_cache(maxsize=256)
def _host(scheme: str, header: str | None, server: tuple[str, int | None] | None) -> tuple[str, str]:
    """The host of a request, and as routes would be looked up by it."""
    host = get_host(scheme, header, server)
    name, colon, port = host.lower().partition(":")
    try:
        return host, f"{name.encode('idna').decode('ascii')}{colon}{port}"
    except UnicodeError as error:
        raise BadHost() from error
