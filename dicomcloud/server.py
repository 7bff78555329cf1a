"""The HTTP servers: gunicorn (threads in several processes) and, on Windows, waitress."""

from __future__ import annotations

import errno
import gc
import os
import select
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from .setting_kinds import split_address, unix_socket
from .settings import Settings

WsgiApp = Callable[..., Any]
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # environment variable: the folder by which processes share their metrics
WHEN_SERVING = "dicomcloud.when_serving"  # among the application's extensions: to be called in its server process
TAKES_FILE_SPANS = "dicomcloud.takes_file_spans"  # in the WSGI environment: the body may have parts of files in it
_METRICS = "dicomcloud-metrics-"
_LONGEST_REQUEST_LINE = 8190  # bytes; the most that gunicorn's parser takes with a limit at all
_HUNG = 900  # seconds without a sign of life after which a server process is replaced; transfers do not count


class CannotListen(Exception):
    """The address cannot be listened on; the message says why and what to do."""


def listen(address: str) -> socket.socket:
    """A listening socket on `HOST:PORT`; port 0 is any free one. Raises CannotListen."""
    if path := unix_socket(address):
        return _listen_on_unix(path)
    host, port = split_address(address)
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(target[:2], family=family, backlog=1024)
    except OSError as error:
        raise CannotListen(_why_not(address, error)) from None


def _listen_on_unix(path: str) -> socket.socket:
    """A socket in the file system; who may write to it (owner and group) reaches the server."""
    listener = socket.socket(getattr(socket, "AF_UNIX", -1), socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            with socket.socket(listener.family, socket.SOCK_STREAM) as other, suppress(ConnectionRefusedError):
                other.connect(path)
                raise OSError(errno.EADDRINUSE, "in use")
            os.unlink(path)  # of a server that was killed
        listener.bind(path)
        os.chmod(path, 0o660)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise CannotListen(_why_not(f"unix:{path}", error)) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL under which this machine reaches the listening socket."""
    if listener.family == getattr(socket, "AF_UNIX", -1):
        return f"http+unix://{listener.getsockname()}"
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

    def begin(worker: Any) -> None:
        worker.silence = settings.request_timeout or None
        _settle(worker.wsgi)

    def limit_silence(worker: Any, request: Any) -> None:
        request.unreader.sock.settimeout(worker.silence)

    def tls(_settings: Any, make: Callable[[], Any]) -> Any:
        context = make()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    # Our own worker hands files to the kernel, which knows no TLS.
    with_tls = {
        "worker_class": "gthread",
        "certfile": settings.tls_certificate,
        "keyfile": settings.tls_key or settings.tls_certificate,
        "ssl_context": tls,
        "pre_request": limit_silence,
    }
    share_metrics()
    return {
        "bind": settings.bind,
        "worker_class": "dicomcloud.http_worker.Worker",
        "workers": settings.resolved_workers,
        "threads": settings.threads,
        "timeout": _HUNG,
        "graceful_timeout": settings.shutdown_grace,
        "keepalive": 75,
        "limit_request_line": _LONGEST_REQUEST_LINE,
        "limit_request_fields": settings.max_headers,
        "limit_request_field_size": settings.max_header_bytes,
        "forwarded_allow_ips": "",  # the web layer judges X-Forwarded-* by `trusted_proxies`
        "control_socket_disable": True,
        "loglevel": settings.log_level if settings.log_level != "info" else "warning",
        "post_worker_init": begin,
        "child_exit": lambda _arbiter, worker: _forget_metrics_of(worker.pid),
        "on_exit": lambda _arbiter: _remove_metrics(),
        **(with_tls if settings.tls_certificate else {}),
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
    from waitress.channel import HTTPChannel
    from waitress.task import WSGITask

    if settings.tls_certificate:
        raise CannotListen("waitress speaks no TLS: remove tls_certificate, and let IIS or another proxy do it")
    app = create_app(settings)
    _settle(app)
    channels: dict[int, Any] = {}
    silence = settings.request_timeout or 365 * 24 * 3600
    stopping = False

    class Task(WSGITask):  # type: ignore[misc, unused-ignore]
        def build_response_header(self) -> bytes:
            if stopping:
                self.set_close_on_finish()  # the client is told not to go on here
            header: bytes = super().build_response_header()
            return header

    class Channel(HTTPChannel):  # type: ignore[misc, unused-ignore]
        task_class = Task

    server = waitress.create_server(
        app,
        map=channels,
        sockets=[listener],
        threads=settings.threads,
        channel_timeout=silence,
        cleanup_interval=max(min(silence // 2, 30), 1),  # seconds between two looks for silent clients
        max_request_body_size=settings.max_request_bytes,
        max_request_header_size=10 * settings.max_header_bytes,
        recv_bytes=1 << 16,
        asyncore_use_poll=hasattr(select, "poll"),
        connection_limit=400,  # select() on Windows takes 512
        clear_untrusted_proxy_headers=False,  # the web layer judges X-Forwarded-* by `trusted_proxies`
        ident=None,
    )
    server.channel_class = Channel

    def stop(*_: object) -> None:
        nonlocal stopping
        if stopping:  # told twice: at once
            raise SystemExit(1)
        stopping = True
        server.pull_trigger()

    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)

    def turn(seconds: float) -> None:
        server.asyncore.loop(seconds, use_poll=server.adj.asyncore_use_poll, map=channels, count=1)

    while not stopping:
        turn(1.0)
    server.del_channel()  # nobody is let in any more
    listener.close()
    deadline = monotonic() + settings.shutdown_grace
    while monotonic() < deadline and any(map(_is_busy, server.active_channels.values())):
        turn(0.1)
    server.task_dispatcher.shutdown(timeout=1)


def _is_busy(channel: Any) -> bool:
    """Whether waitress is in the middle of a request, or of its answer, on this connection."""
    return bool(channel.requests or channel.request is not None or channel.total_outbufs_len)


def share_metrics() -> None:
    """Make the folder by which the server processes that are started from here share their metrics.

    It lies in memory where there is such a place: a full disk must not stop a process that counts.
    """
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    for old in parent.glob(f"{_METRICS}*"):  # of servers that were killed
        if not _is_running(old.name.removeprefix(_METRICS)):
            shutil.rmtree(old, ignore_errors=True)
    given = os.environ.get(METRICS_FOLDER)
    mine = parent / f"{_METRICS}{os.getpid()}"
    if given == str(mine) or (given and not Path(given).name.startswith(_METRICS)):
        return  # made before a reload, or by the administrator
    mine.mkdir(mode=0o700)
    os.environ[METRICS_FOLDER] = str(mine)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _forget_metrics_of(pid: int) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    with suppress(OSError):
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _remove_metrics() -> None:
    folder = Path(os.environ.get(METRICS_FOLDER, ""))
    if folder.name == f"{_METRICS}{os.getpid()}":
        shutil.rmtree(folder, ignore_errors=True)


def _settle(app: WsgiApp) -> None:
    """The application is made and about to be served: what it consists of stays, and garbage is looked for more rarely.

    A list of results is many small objects; with Python's own thresholds their collection costs more than the search.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    getattr(app, "extensions", {}).get(WHEN_SERVING, lambda: None)()


def _why_not(address: str, error: OSError) -> str:
    if error.errno in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", errno.EADDRINUSE)):
        return (
            f"{address} is in use: another program, perhaps another DICOMcloud, listens there. Stop it, or choose "
            "another port, e.g. DICOMCLOUD_BIND=127.0.0.1:8001"
        )
    if isinstance(error, PermissionError):
        return f"{address} may not be listened on: ports below 1024 need administrator's rights"
    return f"{address} cannot be listened on: {error.strerror or error}"
