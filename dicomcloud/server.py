"""The HTTP servers: gunicorn (threads in several processes) and, on Windows, waitress."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from .settings import Settings, split_address

WsgiApp = Callable[..., Any]
_LONGEST_REQUEST_LINE = 8190  # bytes; the most that gunicorn's parser takes with a limit at all
_HUNG = 900  # seconds without a sign of life after which a server process is replaced; transfers do not count


class CannotListen(Exception):
    """The address cannot be listened on; the message says why and what to do."""


def listen(address: str) -> socket.socket:
    """A listening socket on `HOST:PORT`; port 0 is any free one. Raises CannotListen."""
    host, port = split_address(address)
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(target[:2], family=family, backlog=1024)
    except OSError as error:
        raise CannotListen(_why_not(address, error)) from None


def url_of(listener: socket.socket) -> str:
    """The URL under which this machine reaches the listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def run(listener: socket.socket, settings: Settings, create_app: Callable[[Settings], WsgiApp]) -> None:
    """Serve on the socket until the process is told to stop. The application is made in each server process."""
    if settings.resolved_server == "gunicorn":
        _run_gunicorn(listener, settings, create_app)
    else:
        _run_waitress(listener, settings, create_app)


def gunicorn_options(settings: Settings) -> dict[str, Any]:
    """gunicorn's own settings, for `run` and for config/gunicorn.conf.py."""

    def limit_silence(_worker: Any, request: Any) -> None:
        # gunicorn's threads wait for the bytes of a body, and for a client that takes none, without any limit.
        request.unreader.sock.settimeout(settings.request_timeout or None)

    return {
        "bind": settings.bind,
        "worker_class": "gthread",
        "workers": settings.resolved_workers,
        "threads": settings.threads,
        "timeout": _HUNG,
        "graceful_timeout": settings.shutdown_grace,
        "keepalive": 75,
        "limit_request_line": _LONGEST_REQUEST_LINE,
        "limit_request_field_size": 2 * _LONGEST_REQUEST_LINE,  # bearer tokens
        "forwarded_allow_ips": "",  # the web layer judges X-Forwarded-* by `trusted_proxies`
        "control_socket_disable": True,
        "loglevel": settings.log_level if settings.log_level != "info" else "warning",
        "pre_request": limit_silence,
        "post_worker_init": lambda _worker: _settle(),
    }


def _run_gunicorn(listener: socket.socket, settings: Settings, create_app: Callable[[Settings], WsgiApp]) -> None:
    if os.name == "nt":
        raise CannotListen("gunicorn does not run on Windows; set `server` to auto or waitress")
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc, unused-ignore]
        def load_config(self) -> None:
            for name, value in gunicorn_options(settings).items():
                self.cfg.set(name, value)
            self.cfg.set("bind", f"fd://{descriptor}")

        def load(self) -> WsgiApp:
            return create_app(settings)

    descriptor = listener.detach()  # gunicorn closes it
    Server().run()


def _run_waitress(listener: socket.socket, settings: Settings, create_app: Callable[[Settings], WsgiApp]) -> None:
    import waitress

    signal.signal(signal.SIGTERM, _stop)
    app = create_app(settings)
    _settle()
    waitress.serve(
        app,
        sockets=[listener],
        threads=settings.threads,
        channel_timeout=settings.request_timeout or 365 * 24 * 3600,
        max_request_body_size=settings.max_request_bytes,
        recv_bytes=1 << 16,
        connection_limit=400,  # select() on Windows takes 512
        clear_untrusted_proxy_headers=False,  # the web layer judges X-Forwarded-* by `trusted_proxies`
        ident=None,
        _quiet=True,
    )


def _settle() -> None:
    """The application is made: what it consists of stays, and garbage is looked for more rarely.

    A list of results is many small objects; with Python's own thresholds their collection costs more than the search.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def _stop(*_: object) -> None:
    raise SystemExit(0)


def _why_not(address: str, error: OSError) -> str:
    if error.errno in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", errno.EADDRINUSE)):
        return (
            f"{address} is in use: another program, perhaps another DICOMcloud, listens there. Stop it, or choose "
            "another port, e.g. DICOMCLOUD_BIND=127.0.0.1:8001"
        )
    if isinstance(error, PermissionError):
        return f"{address} may not be listened on: ports below 1024 need administrator's rights"
    return f"{address} cannot be listened on: {error.strerror or error}"
