"""gunicorn's worker with threads, made for clients that send request after request on one connection.

Viewers do: hundreds of frames, each asked for when the one before has come. gunicorn's own `gthread` gives a connection
back to its main thread after every answer and takes it from there again, which costs more time than a search. Here

- a thread stays with its connection for a moment, in case the client's next request follows at once, unless another
  connection is waiting for a thread;
- the head of an answer and the beginning of its body leave together;
- the header fields that a client sends with every request are read once, and what the server itself sends with every
  answer is made once (`_Request`);
- parts of files (`FileSpan` of web/multipart.py) go from the file to the socket inside the kernel;
- a client that is silent in the middle of a request's head is given up, as one in the middle of a body is; so is one
  that sends a byte now and then;
- a process that has run out of file handles waits instead of ending.

Everything else, such as parsing, limits, kept-alive connections and the stop with grace, is gunicorn's.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from threading import Lock
from time import monotonic, sleep, time
from typing import Any, Protocol

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.body import Body, LengthReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.workers import gthread

from .server import TAKES_FILE_SPANS

_PATIENCE = 0.02  # seconds for which a thread waits for the next request of its connection
_FIRST_BYTES = 5.0  # the same for a new connection, as gthread has it
_PIECE = 1 << 16
_HEAD_TIME = 30.0  # seconds in which the head of a request has to come in
_LEAST_RATE = 1024  # bytes of a body a second, on average over this many seconds:
_RATE_TIME = 60.0
_NO_HANDLES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_MORE = getattr(socket, "MSG_MORE", 0)
_FIELDS = re.compile(rf"(?:{wsgi.TOKEN_RE.pattern}: {wsgi.HEADER_VALUE_RE.pattern}\r\n)*")  # what gunicorn lets out


class FileSpan(Protocol):
    """`len()` bytes of an open file from `offset` on."""

    offset: int

    def __len__(self) -> int: ...
    def fileno(self) -> int: ...


class Worker(gthread.ThreadWorker):  # type: ignore[misc, unused-ignore]
    """See the module. `silence`: seconds that a client may be silent in the middle of a request, None: any time."""

    silence: float | None = None
    cfg: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cfg = cfg = _Settled(self.cfg)
        self._logs_accesses = cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json or cfg.syslog
        self._lock = Lock()
        self._waiting = 0  # connections that have work for a thread, and none yet
        self._working = 0  # threads that have a connection

    def accept(self, listener: Any) -> None:
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in _NO_HANDLES:
                raise
            self.log.error("no connection can be accepted: %s", error.strerror)
            sleep(0.1)  # the client waits in the queue of the system; others end meanwhile

    def enqueue_req(self, conn: Any) -> None:
        with self._lock:
            self._waiting += 1
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Answer the request that is there and those that follow at once; what gthread is to do with the connection."""
        with self._lock:
            self._waiting -= 1
            self._working += 1
        try:
            if not conn.initialized and not conn.wait_for_data(_FIRST_BYTES):
                return gthread._DEFER
            while True:
                outcome = super().handle(conn) if self._head_is_here(conn) else False
                if outcome is not True or not self._next_follows(conn):
                    return outcome
        finally:
            with self._lock:
                self._working -= 1

    def _head_is_here(self, conn: Any) -> bool:
        """Wait for the rest of a request's head. False when the client has gone or is silent."""
        try:
            if not isinstance(conn.parser, _Parser):
                conn.sock.settimeout(self.silence)
                conn.init()
                conn.parser = _Parser(self.cfg, conn.sock, conn.client)
            unreader = conn.parser.unreader
            head = unreader.take_buffered()
            until = monotonic() + _HEAD_TIME
            while b"\r\n\r\n" not in head and len(head) < _PIECE:  # a longer one is the parser's to judge
                left = max(until - monotonic(), 0.001)
                unreader.sock.settimeout(left if self.silence is None else min(self.silence, left))
                piece = unreader.sock.recv(_PIECE)
                head += piece
                if not piece:
                    break
        except OSError:  # TimeoutError is one
            return False
        unreader.unread(head)
        return bool(head)

    def _next_follows(self, conn: Any) -> bool:
        """Whether the next request has begun to come in. It is waited for only where that keeps nobody waiting."""
        if not self.alive or self._waiting:
            return False
        unreader = conn.parser.unreader
        if unreader.buf.getvalue():
            return True
        unreader.sock.settimeout(_PATIENCE if self._working < self.cfg.threads else 0)
        try:
            piece = unreader.sock.recv(_PIECE)
        except OSError:  # nothing yet: gthread's main thread waits for it
            return False
        unreader.unread(piece)
        return True

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Answer one request. True when the connection may be kept."""
        conn.sock.settimeout(self.silence)
        began = datetime.now() if self._logs_accesses else None
        response, environ = self._begin(req, conn)
        if not self.alive or not self.cfg.keepalive or len(self.keepalived_conns) >= self.max_keepalived:
            response.force_close()
        try:
            body = self.wsgi(environ, response.start_response)
            try:
                for piece in body:
                    response.write(piece)
                response.close()
            finally:
                if began is not None:
                    self.log.access(response, req, environ, datetime.now() - began)
                if hasattr(body, "close"):
                    body.close()
        except OSError:
            raise  # the client has gone
        except (Exception, SystemExit):
            if not response.headers_sent:
                raise
            self.log.exception("Error handling request")  # half an answer is out: only the end of it can tell
            util.close_graceful(conn.sock)
            raise StopIteration from None
        return not response.should_close()

    def _begin(self, req: Any, conn: Any) -> tuple[Any, dict[str, Any]]:
        """The response to write to, and the WSGI environment."""
        known: _Known | None = req.known
        if known is not None and known.environ:
            own = {
                "REQUEST_METHOD": req.method,
                "RAW_URI": req.uri,
                "PATH_INFO": util.unquote_to_wsgi_str(req.path) if "%" in req.path else req.path,
                "QUERY_STRING": req.query,
                "wsgi.input": req.body,
            }
            return _Response(req, conn.sock, self.cfg), known.environ | own
        response, environ = wsgi.create(req, conn.sock, conn.client, conn.server, self.cfg, response_class=_Response)
        environ["wsgi.multithread"] = True
        environ[TAKES_FILE_SPANS] = True
        del environ["wsgi.early_hints"]
        if known is not None and not environ["SCRIPT_NAME"]:
            known.environ = {name: value for name, value in environ.items() if name != "wsgi.input"}
        return response, environ


class _Settled:
    """gunicorn's configuration, of which each setting is looked up once: it does so many times in a request."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._configuration, name)
        setattr(self, name, value)
        return value


@dataclass(slots=True)
class _Known:
    """What a connection's last request had, in case that the next one has the same header fields."""

    fields: bytes  # as they came, with the end of the request line in front and the empty line behind
    state: dict[str, Any]  # of the request
    environ: dict[str, Any] | None = None  # of WSGI


class _Request(Request):  # type: ignore[misc, unused-ignore]
    """gunicorn reads and judges a request; one that differs from the last one in its URL only is not judged anew.

    `known`: what is kept for the next one; None where a body follows, or the connection ends.
    """

    _LINE = re.compile(rb"(GET|HEAD) (/(?!/)[!\x22$-~]*) HTTP/1\.1(?=\r\n)")
    _MORE_THAN_FIELDS = frozenset(("CONTENT-LENGTH", "TRANSFER-ENCODING", "CONNECTION", "UPGRADE", "EXPECT"))

    known: _Known | None = None
    _fields: bytes | None = None

    def __init__(self, cfg: Any, unreader: Any, peer_addr: Any, req_number: int = 1) -> None:
        if not self._is_like(unreader.known, unreader):
            super().__init__(cfg, unreader, peer_addr, req_number)
            self.known = unreader.known = self._to_keep()

    def _is_like(self, known: _Known | None, unreader: Any) -> bool:
        if known is None:
            return False
        head = unreader.take_buffered()
        line = self._LINE.match(head)
        if (
            line is None
            or line.end() > known.state["limit_request_line"] > 0
            or not head.startswith(known.fields, line.end())
        ):
            unreader.unread(head)
            return False
        if len(head) > (end := line.end() + len(known.fields)):
            unreader.unread(head[end:])
        self.__dict__.update(known.state)
        self.known, self.unreader = known, unreader
        self.method, self.uri = line[1].decode("latin-1"), line[2].decode("latin-1")
        pieces: list[str] = self.uri.split("?", 1)
        self.path, self.query = pieces[0], pieces[1] if len(pieces) > 1 else ""
        self.body = Body(LengthReader(unreader, 0))
        return True

    def _to_keep(self) -> _Known | None:
        plain = self.method in ("GET", "HEAD") and self.version == (1, 1) and self.proxy_protocol_info is None
        if not plain or self._fields is None or not self._MORE_THAN_FIELDS.isdisjoint(name for name, _ in self.headers):
            return None
        kept = {name: value for name, value in vars(self).items() if name not in ("unreader", "body")}
        return _Known(b"\r\n" + self._fields + b"\r\n\r\n", kept)  # without what leads back to it

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> Any:
        self._fields = data
        return super().parse_headers(data, from_trailer)

    def should_close(self) -> bool:
        return bool(self.must_close if self.known is not None else super().should_close())


class _Parser(RequestParser):  # type: ignore[misc, unused-ignore]
    """Reads the requests of one connection."""

    mesg_class = _Request

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.unreader.chunk = _SteadyReader(self.unreader.chunk)
        self.unreader.known = None

    def finish_body(self, deadline: float | None = None, max_bytes: int | None = None) -> bool:
        body = self.mesg.body if self.mesg else None
        if body is not None and not body.failed and isinstance(body.reader, LengthReader) and not body.reader.length:
            return True
        return bool(super().finish_body(deadline, max_bytes))


class _SteadyReader:
    """Reads a body. Raises TimeoutError where bytes come, but so few that the thread would be held for hours."""

    def __init__(self, read: Callable[[int | None], bytes]) -> None:
        self._read_some = read
        self._waited = 0.0
        self._read = 0

    def __call__(self, size_hint: int | None = None) -> bytes:
        began = monotonic()
        piece = self._read_some(size_hint)
        self._waited += monotonic() - began
        self._read += len(piece)
        if self._waited >= _RATE_TIME:
            if piece and self._read < _LEAST_RATE * self._waited:
                raise TimeoutError("the client sends too slowly")
            self._waited, self._read = 0.0, 0
        return piece


class _Response(wsgi.Response):  # type: ignore[misc, unused-ignore]
    """gunicorn's, but for what it sends when: bytes wait for the next ones, or for the end."""

    _SERVER = f"Server: {wsgi.SERVER}\r\n"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.headers_sent: bool = False
        self._held = b""

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        block = "".join([f"{name}: {value}\r\n" for name, value in headers])
        names = [name.lower() for name, _ in headers]
        plain = util.hop_headers.isdisjoint(names) and block.count("\r\n") == len(names) and _FIELDS.fullmatch(block)
        if not plain:  # gunicorn leaves out what is the server's to say, or tells what is wrong
            super().process_headers(headers)
            return
        self.headers += headers
        if "content-length" in names:
            self.response_length = int(headers[names.index("content-length")][1])

    def default_headers(self) -> list[str]:
        major, minor = self.req.version
        connection = "upgrade" if self.upgrade else "close" if self.should_close() else "keep-alive"
        chunked = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        date = _date_line(int(time()))
        return [f"HTTP/{major}.{minor} {self.status}\r\n", self._SERVER, date, f"Connection: {connection}\r\n", chunked]

    def send_headers(self) -> None:
        if not self.headers_sent:
            lines = [*self.default_headers(), *(f"{name}: {value}\r\n" for name, value in self.headers), "\r\n"]
            self._held = "".join(lines).encode("latin-1")
            self.headers_sent = True

    def write(self, piece: bytes | FileSpan) -> None:
        if isinstance(piece, bytes):
            super().write(piece)
            return
        self.send_headers()
        if self._omits_body or not len(piece):
            return
        if self.response_length is not None and self.sent + len(piece) > self.response_length:
            raise ValueError("the body is longer than its Content-Length")
        self.sent += len(piece)
        head, self._held = self._held, b""
        if self.chunked:
            head, self._held = b"%s%X\r\n" % (head, len(piece)), b"\r\n"
        if head:
            self.sock.sendall(head, _MORE)
        _send_span(self.sock, piece)

    def _emit_body(self, data: bytes) -> None:
        if self.chunked:
            data = b"%X\r\n%s\r\n" % (len(data), data)
        held, self._held = self._held, b""
        if len(data) > _PIECE:
            _send_both(self.sock, held, data)
        else:
            self.sock.sendall(held + data)

    def close(self) -> None:
        self.send_headers()
        if self.chunked:
            self._held += b"0\r\n\r\n"
        if self._held:
            held, self._held = self._held, b""
            self.sock.sendall(held)


@lru_cache(maxsize=4)
def _date_line(second: int) -> str:
    return f"Date: {util.http_date(second)}\r\n"


def _send_both(to: socket.socket, held: bytes, data: bytes) -> None:
    sent = to.sendmsg([held, data]) if held else 0
    if sent < len(held):
        to.sendall(held[sent:])
        sent = len(held)
    if sent < len(held) + len(data):
        to.sendall(memoryview(data)[sent - len(held) :])


def _send_span(to: socket.socket, span: FileSpan) -> None:
    """Raises OSError when the client is gone or silent, EOFError when the file is shorter than it should be."""
    offset, end = span.offset, span.offset + len(span)
    timeout, waiting = to.gettimeout(), select.poll()
    waiting.register(to, select.POLLOUT)
    while offset < end:
        try:
            sent = os.sendfile(to.fileno(), span.fileno(), offset, end - offset)
        except BlockingIOError:
            if not waiting.poll(None if timeout is None else timeout * 1000):
                raise TimeoutError("the client takes nothing") from None
            continue
        if not sent:
            raise EOFError("the file ends too early")
        offset += sent
