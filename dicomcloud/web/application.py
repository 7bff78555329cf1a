"""The Flask application, without what this server has no use for and would do at every request.

That is: views that are coroutines, sessions in a signed cookie (`sessions.py` has its own), routes by host name,
signals, and functions that only one blueprint asks for (they would be silently left out, hence the refusal).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from flask import Flask, Request, Response
from flask.sansio.blueprints import Blueprint
from flask.sessions import NullSession, SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
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

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Raises ValueError for a blueprint with functions of its own before, after or at the end of a request."""
        super().register_blueprint(blueprint, **options)
        functions = self.before_request_funcs, self.after_request_funcs, self.teardown_request_funcs
        others = self.url_value_preprocessors, self.url_default_functions
        if any(each.keys() - {None} for each in (*functions, *others)):
            raise ValueError(f"{blueprint.name} has functions of its own around a request: put them on the application")

    # What Flask does around a view, in Flask's order

    def full_dispatch_request(self) -> Response:
        try:
            answer = self.preprocess_request()
            if answer is None:
                answer = self.dispatch_request()
        except Exception as error:
            answer = self.handle_user_exception(error)
        return self.finalize_request(answer)

    def preprocess_request(self) -> ResponseReturnValue | None:
        for before in self.before_request_funcs[None]:
            answer = before()
            if answer is not None:
                return answer  # type: ignore[return-value]
        return None

    def process_response(self, response: Response) -> Response:
        for after in reversed(self.after_request_funcs[None]):
            response = after(response)
        return response

    def do_teardown_request(self, exc: BaseException | None = None) -> None:
        for end in self.teardown_request_funcs[None]:
            end(exc)

    def do_teardown_appcontext(self, exc: BaseException | None = None) -> None:
        for end in self.teardown_appcontext_funcs:
            end(exc)


@lru_cache(maxsize=256)
def _host(scheme: str, header: str | None, server: tuple[str, int | None] | None) -> tuple[str, str]:
    """The host of a request, and as routes would be looked up by it."""
    host = get_host(scheme, header, server)
    name, colon, port = host.lower().partition(":")
    try:
        return host, f"{name.encode('idna').decode('ascii')}{colon}{port}"
    except UnicodeError as error:
        raise BadHost() from error
