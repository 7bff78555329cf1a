"""A lean HTTP/1.1 client on raw sockets, so that the client is not what is measured.

Connections are kept alive as a browser keeps them; where a server closes, the connection that the next request
needs is part of that request's time. The body is received as it comes and made sense of after the clock stopped.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter, sleep
from urllib.parse import urlsplit

TIMEOUT = 120.0  # seconds without a byte
_PIECE = 1 << 20


class BadAnswer(Exception):
    """An answer that is not what it should be; the message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # below the DICOMweb root, with the query
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: memoryview  # of the connection's buffer: gone with its next request
    seconds: float  # from before the connection or the first byte sent until the last byte received


class Connection:
    """One connection; it is opened again when the server has closed it."""

    def __init__(self, root: str) -> None:
        parts = urlsplit(root)
        self.host, self.port, self.base = parts.hostname or "127.0.0.1", parts.port or 80, parts.path.rstrip("/")
        self.connections = 0  # opened so far
        self._socket: socket.socket | None = None
        self._buffer = bytearray(1 << 16)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, request: Request) -> Answer:
        """Send the request and receive the whole answer. Raises OSError, BadAnswer."""
        self.send(request)
        try:
            while not self.receive():
                pass
            return self.answer()
        except BaseException:
            self.close()
            raise

    def send(self, request: Request) -> None:
        lines = [f"{request.method} {self.base}{request.path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in request.headers]
        if request.body or request.method == "POST":
            lines.append(f"Content-Length: {len(request.body)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        self._filled = self._start = self._next = 0
        self._length: int | None = None
        self._chunked = self._to_end = self._complete = False
        self._began = perf_counter()
        if self._closed_by_server():
            self.close()
        self._transmit(head, request.body)

    def _closed_by_server(self) -> bool:
        """Between two requests nothing is to be read but the end of the connection."""
        return self._socket is not None and bool(select.select([self._socket], [], [], 0)[0])

    def _transmit(self, head: bytes, body: bytes) -> None:
        if self._socket is None:
            self._socket = socket.create_connection((self.host, self.port), timeout=TIMEOUT)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
        if len(body) < 1 << 16:
            self._socket.sendall(head + body)
        else:
            self._socket.sendall(head)
            self._socket.sendall(body)

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket is not None else -1

    def receive(self) -> bool:
        """Read once from the socket. True when the answer is complete."""
        assert self._socket is not None
        if len(self._buffer) - self._filled < _PIECE // 16:
            self._grow()
        with memoryview(self._buffer) as view, view[self._filled : self._filled + _PIECE] as free:
            received = self._socket.recv_into(free)
        self._filled += received
        if not received and not self._to_end:
            raise ConnectionResetError("the server closed the connection in the middle of its answer")
        if not self._start:
            self._read_head()
        if not self._start:
            return False
        if self._chunked:
            self._complete = self._follow_chunks()
        elif self._length is not None:
            self._complete = self._filled - self._start >= self._length
        else:
            self._complete = not received
        if self._complete:
            self._seconds = perf_counter() - self._began
        return self._complete

    def _grow(self) -> None:
        more = bytes(max(len(self._buffer), _PIECE))
        try:
            self._buffer.extend(more)
        except BufferError:  # somebody still looks at the last answer
            self._buffer = self._buffer + more

    def _read_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if end < 0:
            return
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        self._status = int(first.split(" ", 2)[1])
        if self._status == 100:
            del self._buffer[: end + 4]
            self._filled -= end + 4
            return self._read_head()
        self._headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._start = self._next = end + 4
        self._chunked = self._headers.get("transfer-encoding", "").lower() == "chunked"
        if "content-length" in self._headers:
            self._length = int(self._headers["content-length"])
        elif self._status in (204, 304):
            self._length = 0
        self._to_end = self._length is None and not self._chunked
        return None

    def _follow_chunks(self) -> bool:
        """Walk over the chunks received so far. True after the last one."""
        while True:
            end = self._buffer.find(b"\r\n", self._next, min(self._filled, self._next + 64))
            if end < 0:
                return False
            size = int(self._buffer[self._next : end].partition(b";")[0], 16)
            following = end + 2 + size + 2
            if following > self._filled:
                return False
            self._next = following
            if not size:
                return True

    def answer(self) -> Answer:
        """The complete answer. The chunks are joined here, after the clock has stopped."""
        if self._to_end or self._headers.get("connection", "").lower() == "close":
            self.close()
        view = memoryview(self._buffer)
        if not self._chunked:
            end = self._filled if self._length is None else self._start + self._length
            return Answer(self._status, self._headers, view[self._start : end], self._seconds)
        pieces, at = [], self._start
        while True:
            end = self._buffer.index(b"\r\n", at)
            size = int(self._buffer[at:end].partition(b";")[0], 16)
            if not size:
                break
            pieces.append(view[end + 2 : end + 2 + size])
            at = end + 2 + size + 2
        body = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        return Answer(self._status, self._headers, body, self._seconds)


def keep_busy(
    connections: list[Connection], requests: Iterator[tuple[Request, Callable[[Answer], None]]], seconds: float
) -> tuple[int, float]:
    """Have one request under way on every connection for `seconds`, each answer checked; return the number of
    answers and the time they took. Raises OSError, BadAnswer."""
    done, waiting = 0, selectors.DefaultSelector()
    checks: dict[int, Callable[[Answer], None]] = {}
    began = perf_counter()

    def start(number: int) -> None:
        request, checks[number] = next(requests)
        connections[number].send(request)
        waiting.register(connections[number], selectors.EVENT_READ, number)

    try:
        for number in range(len(connections)):
            start(number)
        while waiting.get_map():
            ready = waiting.select(TIMEOUT)
            if not ready:
                raise BadAnswer(f"no byte for {TIMEOUT:.0f} s")
            for key, _ in ready:
                connection, number = connections[key.data], key.data
                if not connection.receive():
                    continue
                waiting.unregister(connection)
                checks[number](connection.answer())
                done += 1
                if perf_counter() - began < seconds:
                    start(number)
        return done, perf_counter() - began
    finally:
        waiting.close()


def wait_until_up(root: str, path: str, seconds: float, alive: Callable[[], bool]) -> None:
    """Until the server answers `path` with 200 or 204. Raises BadAnswer."""
    until, last = perf_counter() + seconds, "no answer"
    while perf_counter() < until and alive():
        connection = Connection(root)
        try:
            with contextlib.closing(connection):
                status = connection.exchange(Request("GET", path, (("Accept", "application/dicom+json"),))).status
            if status in (200, 204):
                return
            last = f"status {status}"
        except OSError as error:
            last = str(error)
        sleep(0.1)
    raise BadAnswer(f"{root} does not come up: {last if alive() else 'its process has ended'}")
