"""multipart/related, read and written as a stream (RFC 2046 5.1, RFC 2387; PS3.18 8.6.1.2).

Reading follows the RFC where clients do and gives way where they do not: lines that end in LF only, no part headers,
blanks in or after the boundary, a preamble, an epilogue, no line end after the close delimiter. It never gives way
where that could cost a byte of an instance.
"""

from __future__ import annotations

import re
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import BinaryIO, Protocol, cast

from ..errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

Buffer = bytes | bytearray | memoryview
PIECE = 1 << 20  # bytes read from the client at a time; 8 KiB would cost gunicorn six times the CPU
_GZIP_PIECE = 64 << 10  # small, because what follows a gzip member is copied once for every member
OUT_PIECE = 256 << 10  # the most that is handed to the server at a time; smaller ones cost more system calls
MAX_PART_HEADER = 16 << 10
MAX_PREAMBLE = 1 << 20
MAX_PARTS = 100_000
LONGEST_BOUNDARY = 200  # characters; RFC 2046 allows 70 characters

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_REST_OF_LINE = re.compile(rb"(--)?[ \t]{0,256}(\r\n|\n|\Z)")  # of a delimiter line; blanks are transport padding
_REST_CUT_OFF = re.compile(rb"-?-?[ \t]{0,256}\r?\Z")
_BLANK_LINE = re.compile(rb"\n(\r?\n)")
_PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")


class Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


# --------------------------------------------------------------------------------------------- header values


@dataclass(frozen=True, slots=True)
class MediaType:
    """`multipart/related; type="application/dicom"`: the name in lower case, parameter names in lower case."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def parameter(self, name: str) -> str | None:
        return self.parameters.get(name)


def split_outside_quotes(text: str, separator: str) -> list[str]:
    """Split at `separator` where it is not inside a quoted string (RFC 9110 5.6.4); blanks around are dropped."""
    if '"' not in text:
        return [piece.strip() for piece in text.split(separator)]
    pieces, start, at, quoted = [], 0, 0, False
    while at < len(text):
        character = text[at]
        if quoted and character == "\\":
            at += 1
        elif character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            pieces.append(text[start:at].strip())
            start = at + 1
        at += 1
    pieces.append(text[start:].strip())
    return pieces


@lru_cache(maxsize=512)
def parse_media_type(value: str) -> MediaType:
    """The media type or media range of a Content-Type or Accept header.

    Parameters come in any order and case, quoted or not. An unquoted value runs to the next semicolon, so that
    `type=application/dicom`, `boundary=----=_Part_1` and `boundary=DICOM FILE` are read as they are meant. Of a
    parameter given twice the first counts.

    Raises ValueError when the value does not begin with type/subtype.
    """
    pieces = split_outside_quotes(value, ";")
    name = pieces[0].lower()
    kind, slash, subtype = name.partition("/")
    if not slash or not _TOKEN.match(kind) or not _TOKEN.match(subtype):
        raise ValueError(f"{value[:100]!r} is not a media type")
    parameters: dict[str, str] = {}
    for piece in pieces[1:]:
        key, equals, content = piece.partition("=")
        if equals:
            parameters.setdefault(key.strip().lower(), _unquoted(content.strip()))
    return MediaType(name, MappingProxyType(parameters))


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    content = re.match(r'"((?:[^"\\]|\\.)*)', value, re.DOTALL)
    return re.sub(r"\\(.)", r"\1", content[1], flags=re.DOTALL) if content else ""


def boundary_of(content_type: MediaType) -> str:
    """The boundary parameter of a multipart media type. Raises BadRequest when it is missing or cannot be one."""
    boundary = content_type.parameter("boundary")
    if not boundary:
        raise BadRequest("The Content-Type header has no boundary parameter.")
    if len(boundary) > LONGEST_BOUNDARY or not boundary.isprintable() or not _is_latin_1(boundary):
        raise BadRequest(f"The boundary {boundary[:70]!r} of the Content-Type header is not a possible boundary.")
    return boundary


def _is_latin_1(text: str) -> bool:
    return all(ord(character) < 256 for character in text)


@lru_cache(maxsize=512)
def _parse_part_headers(block: bytes) -> Mapping[str, str]:
    """The header lines of a part; names in lower case. Raises BadRequest when a line is none."""
    lines: list[str] = []
    for line in block.decode("latin-1").replace("\r\n", "\n").split("\n"):
        if line[:1] in (" ", "\t") and lines:
            lines[-1] += " " + line.strip()
        elif line:
            lines.append(line)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.match(name.strip()):
            raise BadRequest("A part of the multipart body begins with something that is not a header line.")
        headers.setdefault(name.strip().lower(), value.strip())
    return MappingProxyType(headers)


# --------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a request: its headers (names in lower case) and its content, to be read before the next part."""

    headers: Mapping[str, str]
    chunks: Iterator[memoryview]


def read_parts(stream: Readable, boundary: str, *, max_parts: int = MAX_PARTS, piece: int = PIECE) -> Iterator[Part]:
    """Split a multipart body into its parts while it arrives.

    Memory stays at a few pieces whatever the size of the parts. What a part's chunks are views of does not change
    afterwards; chunks that nobody reads are skipped. The epilogue is read to its end, so that the stream is used up.

    Raises, here and out of the chunks: BadRequest when the boundary never comes, a part's headers are malformed or
    longer than 16 KiB, or the body ends before the close delimiter; UnsupportedMediaType for a part in base64 or
    quoted-printable; PayloadTooLarge for more than `max_parts` parts.
    """
    return _Splitter(stream, boundary, piece).parts(max_parts)


class _Splitter:
    """`_data[_at:]` is what has been read and is still needed.

    The line break in front of a delimiter belongs to the delimiter (RFC 2046 5.1.1). So `_at` stands on the line break
    that ended the line before wherever a delimiter could follow at once: an empty part, a part without headers.
    """

    def __init__(self, stream: Readable, boundary: str, piece: int) -> None:
        self._stream = stream
        self._boundary = boundary
        self._piece = piece
        self._data = b"\n"  # a delimiter at the very beginning follows a line break, too
        self._at = 0
        self._begin = 0  # where the content of the current part goes on; may lie behind `_at`
        self._ended = False  # nothing more to read
        self._part = 0  # the number of the part whose content is being read, else 0
        self._closed = False  # the close delimiter has been met
        self._crlf = False  # the first delimiter line ended in CRLF; a mere LF does not end one any more
        self._delimiter = b"\n--" + boundary.encode("latin-1")

    def parts(self, max_parts: int) -> Iterator[Part]:
        self._skip_preamble()
        number = 0
        while not self._closed:
            number += 1
            if number > max_parts:
                raise PayloadTooLarge(f"The request has more than {max_parts} parts.")
            headers = self._read_headers(number)
            encoding = headers.get("content-transfer-encoding", "").lower()
            if encoding not in _PLAIN_ENCODINGS:
                raise UnsupportedMediaType(
                    f"Part {number} has Content-Transfer-Encoding {encoding[:40]!r}; only binary is supported."
                )
            self._part = number
            yield Part(headers, self._content(number))
            for _ in self._content(number):  # what the caller left
                pass
        while not self._ended:  # the epilogue
            self._at = len(self._data)
            self._more()

    def _more(self) -> None:
        """Read a piece; everything before `_at` is dropped, `_at` becomes 0."""
        arrived = self._stream.read(self._piece)
        self._ended = not arrived
        self._data = self._data[self._at :] + arrived
        self._begin -= self._at
        self._at = 0

    def _scan(self, start: int, stop: int | None = None) -> tuple[int, re.Match[bytes] | None]:
        """The next delimiter line: where it begins, and the rest of the line.

        Without one: how far there is certainly none, and None.
        """
        while True:
            found = self._data.find(self._delimiter, start, stop)
            if found < 0:
                return max(start, len(self._data) - len(self._delimiter) + 1), None
            rest = found + len(self._delimiter)
            if not self._ended and _REST_CUT_OFF.match(self._data, rest):
                return found, None
            line = _REST_OF_LINE.match(self._data, rest)
            if line and (line[1] or line[2] == b"\r\n" or (line[2] and not self._crlf)):
                return found, line
            start = found + 1  # it only looks like one

    def _pass(self, line: re.Match[bytes]) -> None:
        self._closed = line[1] is not None
        self._at = line.start(2)

    def _skip_preamble(self) -> None:
        self._more()
        opening = self._data[1:200]
        skipped = 0
        while True:
            end, line = self._scan(self._at)
            if line:
                self._pass(line)
                if line[2] == b"\r\n":
                    self._crlf = True
                    self._delimiter = b"\r" + self._delimiter
                return
            skipped += end - self._at
            self._at = end
            if skipped > MAX_PREAMBLE or self._ended:
                break
            self._more()
        message = f"The body does not hold the boundary {self._boundary!r} that the Content-Type header names"
        if opening.startswith(b"--"):
            message += "; it begins with " + repr(opening[:80].split(b"\n")[0].strip())[1:]
        raise BadRequest(message + ("." if opening else "; it is empty."))

    def _read_headers(self, number: int) -> Mapping[str, str]:
        while True:
            limit = self._at + MAX_PART_HEADER
            blank = _BLANK_LINE.search(self._data, self._at, limit)
            end, line = self._scan(self._at, blank.start(1) if blank else limit)
            if line:  # a part that is headers and nothing else
                block, self._begin = self._data[self._at : end], end
                self._at = end
            elif blank:
                block, self._begin = self._data[self._at : blank.start(1)], blank.end()
                self._at = blank.start(1)
            elif len(self._data) > limit:
                raise BadRequest(f"The headers of part {number} are longer than {MAX_PART_HEADER} bytes.")
            elif self._ended:
                raise self._cut_off()
            else:
                self._more()
                continue
            return _parse_part_headers(block)

    def _content(self, number: int) -> Iterator[memoryview]:
        """What is left of this part; nothing once its end has been passed."""
        while self._part == number:
            end, line = self._scan(self._at)
            if end > self._begin:
                chunk = memoryview(self._data)[self._begin : end]
                self._begin = end
                yield chunk
                if self._part != number:
                    return
            if line:
                self._pass(line)
                self._part = 0
                return
            if self._ended:
                raise self._cut_off()
            self._at = end
            self._more()

    def _cut_off(self) -> BadRequest:
        return BadRequest(f"The body ends before its close delimiter {'--' + self._boundary + '--'!r}: it was cut off.")


class InflatedStream:
    """A gzip request body, read inflated (Content-Encoding: gzip; RFC 1952, several members allowed).

    `read` raises PayloadTooLarge beyond `limit` inflated bytes, BadRequest for what is not gzip or is cut off.
    """

    def __init__(self, stream: Readable, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._inflated = 0
        self._compressed = b""
        self._inflater = zlib.decompressobj(wbits=31)
        self._in_member = False

    def read(self, size: int = PIECE, /) -> bytes:
        """At most `size` bytes; b"" at the end only."""
        while True:
            if self._inflater.eof:
                self._compressed = self._inflater.unused_data
                self._inflater = zlib.decompressobj(wbits=31)
                self._in_member = False
            self._compressed = self._compressed or self._stream.read(_GZIP_PIECE)
            ended = not self._compressed
            if ended and not self._in_member:
                return b""
            self._in_member = True
            try:
                inflated = self._inflater.decompress(self._compressed, size if size > 0 else PIECE)
            except zlib.error as error:
                raise BadRequest("The body is not gzip, although its Content-Encoding says so.") from error
            self._compressed = self._inflater.unconsumed_tail
            self._inflated += len(inflated)
            if self._inflated > self._limit:
                raise PayloadTooLarge(f"The inflated body is larger than {self._limit} bytes.")
            if inflated:
                return inflated
            if ended and not self._inflater.eof:
                raise BadRequest("The gzip body ends too early: it was cut off.")


# --------------------------------------------------------------------------------------------- writing


class FileSpan:
    """`size` bytes of an open file from `offset` on, for a server that sends them from the file itself."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self.file, self.offset, self._size = file, offset, size

    def __len__(self) -> int:
        return self._size

    def fileno(self) -> int:
        return self.file.fileno()


Chunk = Buffer | FileSpan


@dataclass(frozen=True, slots=True)
class OutgoingPart:
    """A part to send. `chunks` may be a generator that opens its file when the part's turn comes.

    `size` is the number of bytes in `chunks`, None when nobody knows beforehand. Content-Length is added from it.
    """

    headers: Mapping[str, str]
    size: int | None
    chunks: Iterable[Chunk]


class MultipartBody:
    """The body of a multipart/related response: iterate it once, close it in any case (WSGI servers do).

    `content_type` has the media type of the parts and the boundary, quoted both (PS3.18 8.6.1.2). `content_length` is
    exact, or None when `parts` is not a sequence or a size is not known. Given an iterator, parts are taken from it
    as they are sent. Every source is closed after its part; `close` closes all that are left.

    Iterating raises RuntimeError when a source gives other than `size` bytes: the connection must break then, since
    what follows could not be told apart.

    >>> body = MultipartBody("application/dicom", [OutgoingPart({"Content-Type": "application/dicom"}, 2, [b"ab"])])
    >>> Response(body, content_type=body.content_type, headers={"Content-Length": body.content_length})
    """

    def __init__(self, media_type: str, parts: Iterable[OutgoingPart], *, boundary: str | None = None) -> None:
        self._boundary = boundary or uuid.uuid4().hex
        self._parts = parts
        self._pieces: Iterator[bytes] | None = None
        self.content_type = f'multipart/related; type="{media_type}"; boundary="{self._boundary}"'
        self.content_length = self._length(parts) if isinstance(parts, Sequence) else None

    def __iter__(self) -> Iterator[bytes]:
        if self._pieces is None:
            self._pieces = _gather(self._chunks())
        return self._pieces

    def close(self) -> None:
        if self._pieces is not None:
            _close(self._pieces)
        if isinstance(self._parts, Sequence):
            for part in self._parts:
                _close(part.chunks)
        else:
            _close(self._parts)

    def _head(self, part: OutgoingPart, first: bool) -> bytes:
        lines = [("" if first else "\r\n") + "--" + self._boundary]
        lines += [f"{name}: {value}" for name, value in part.headers.items()]
        if part.size is not None:
            lines.append(f"Content-Length: {part.size}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _end(self, empty: bool) -> bytes:
        return (("" if empty else "\r\n") + f"--{self._boundary}--\r\n").encode("latin-1")

    def _length(self, parts: Sequence[OutgoingPart]) -> int | None:
        length = len(self._end(not parts))
        for number, part in enumerate(parts):
            if part.size is None:
                return None
            length += len(self._head(part, number == 0)) + part.size
        return length

    def _chunks(self) -> Iterator[Chunk]:
        first = True
        for part in self._parts:
            yield self._head(part, first)
            first = False
            sent = 0
            try:
                for chunk in part.chunks:
                    sent += len(chunk)
                    yield chunk
            finally:
                _close(part.chunks)
            if part.size is not None and sent != part.size:
                raise RuntimeError(f"a part of {part.size} bytes came out as {sent} bytes")
        yield self._end(first)


def _gather(chunks: Iterator[Chunk]) -> Iterator[bytes]:
    """Pieces of at most OUT_PIECE: small ones are joined, for each becomes a system call; big ones pass uncopied.

    A FileSpan passes as it is: it is there only where the server takes it for bytes.
    """
    small: list[Buffer] = []
    gathered = 0
    try:
        for chunk in chunks:
            size = len(chunk)
            if gathered and gathered + size > OUT_PIECE:
                yield b"".join(small)
                small, gathered = [], 0
            if isinstance(chunk, FileSpan):
                if small:
                    yield b"".join(small)
                    small, gathered = [], 0
                yield cast(bytes, chunk)
            elif gathered or size < OUT_PIECE // 2:
                small.append(bytes(chunk) if isinstance(chunk, bytearray) else chunk)
                gathered += size
                if gathered >= OUT_PIECE // 2:
                    yield b"".join(small)
                    small, gathered = [], 0
            elif size <= OUT_PIECE:
                yield bytes(chunk)
            else:
                view = memoryview(chunk)
                for start in range(0, size, OUT_PIECE):
                    yield bytes(view[start : start + OUT_PIECE])
        if small:
            yield b"".join(small)
    finally:
        _close(chunks)


def _close(source: object) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()


def read_in_pieces(file: BinaryIO, size: int | None = None, piece: int = OUT_PIECE) -> Iterator[bytes]:
    """The next `size` bytes of a file (all that is left when None) in pieces; the file is closed afterwards."""
    with file:
        while size is None or size > 0:
            data = file.read(piece if size is None else min(piece, size))
            if not data:
                return
            if size is not None:
                size -= len(data)
            yield data
