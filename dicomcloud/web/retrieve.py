"""What all retrieve resources share: negotiation over what can be had, validators, single parts, multiparts, HEAD.

Every answer carries an ETag and `Cache-Control: private, no-cache`: browsers may keep it and ask each time whether it
is still right. A stored file never changes, but what lies under a URL may (the setting `duplicates`, a delete), and
only the person who was let in may see it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from io import SEEK_END, BufferedReader
from typing import BinaryIO, TypeVar, cast

import orjson
from flask import Response, has_request_context, request

from ..archive import InstanceRow
from ..errors import RangeNotSatisfiable
from ..server import TAKES_FILE_SPANS
from .multipart import Chunk, FileSpan, MultipartBody, OutgoingPart, read_in_pieces
from .negotiation import Choice, Offer
from .openapi import Blueprint
from .responses import Finished, negotiated
from .service import current_service, service_url

blueprint = Blueprint("WADO-RS", __name__, description="Retrieve (PS3.18 10.4)")

DICOM = "application/dicom"
OCTET_STREAM = "application/octet-stream"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
AS_STORED = "*"
CACHE_CONTROL = "private, no-cache"
_SMALL = 1 << 16  # bytes

Answer = TypeVar("Answer")


class Source:
    """The chunks of a part of which ranges can be had: `pieces(first, end)` gives the bytes from `first` to `end`."""

    def __init__(
        self,
        pieces: Callable[[int, int], Iterator[Chunk]],
        size: int,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self.pieces = pieces
        self.close = close
        self.size = size

    def __iter__(self) -> Iterator[Chunk]:
        return self.pieces(0, self.size)

    def cut(self, first: int, end: int) -> Source:
        """The bytes from `first` to `end`."""
        return Source(lambda start, stop: self.pieces(first + start, first + stop), end - first, self.close)

    @classmethod
    def of_file(cls, open_file: Callable[[], BinaryIO], size: int) -> Source:
        """The next `size` bytes of a file that is opened when its turn comes.

        A server that can takes a file on disk as it is, others its bytes.
        """
        spans = takes_file_spans()

        def pieces(first: int, end: int) -> Iterator[Chunk]:
            file = open_file()
            file.seek(first, 1)
            if spans and isinstance(file, BufferedReader):
                with file:
                    yield FileSpan(file, file.tell(), end - first)
            else:
                yield from read_in_pieces(file, end - first)

        return cls(pieces, size)

    @classmethod
    def of_span(cls, file: BinaryIO, offset: int, size: int) -> Source:
        """`size` bytes of an open file, for a server that takes them from the file."""

        def pieces(first: int, end: int) -> Iterator[Chunk]:
            with file:
                yield FileSpan(file, offset + first, end - first)

        return cls(pieces, size, file.close)

    @classmethod
    def of_open_file(cls, file: BinaryIO, *, spans: bool) -> Source:
        """All of an open file; with `spans` for a server that takes them, in one piece with what is around it if small.

        Closes the file when it has been sent, or is not.
        """
        size = file.seek(0, SEEK_END)
        if spans and size > _SMALL and isinstance(file, BufferedReader):
            return cls.of_span(file, 0, size)

        def pieces(first: int, end: int) -> Iterator[Chunk]:
            file.seek(first)
            yield from read_in_pieces(file, end - first)

        return cls(pieces, size, file.close)


def takes_file_spans() -> bool:
    """Whether the server takes a FileSpan for bytes. False after the request, while later parts are made."""
    return has_request_context() and TAKES_FILE_SPANS in request.environ


class Unattainable(Exception):
    """These transfer syntaxes cannot be had of the resource after all."""

    def __init__(self, transfer_syntaxes: Collection[str]) -> None:
        super().__init__(", ".join(transfer_syntaxes))
        self.transfer_syntaxes = transfer_syntaxes


def attain(offers: Sequence[Offer], answer: Callable[[Choice], Answer]) -> Answer:
    """The answer in the best form that can be had: while it is Unattainable, that media range falls away.

    Raises BadRequest, NotAcceptable with what is left (PS3.18 8.7.5, 8.7.8).
    """
    while True:
        choice = negotiated(offers)
        try:
            return answer(choice)
        except Unattainable as error:
            offers = _without(offers, error.transfer_syntaxes)


def _without(offers: Sequence[Offer], transfer_syntaxes: Collection[str]) -> list[Offer]:
    left = []
    for offer in offers:
        syntaxes = tuple(uid for uid in offer.transfer_syntaxes if uid not in transfer_syntaxes)
        if syntaxes or not offer.transfer_syntaxes:
            left.append(replace(offer, transfer_syntaxes=syntaxes))
    return left


def attributes_of(row: InstanceRow) -> dict[str, object]:
    """The instance's data set in the DICOM JSON Model."""
    _, document = current_service().archive.document(row.study_uid, row.series_uid, row.sop_uid)
    return cast("dict[str, object]", orjson.loads(document))


def entity_tag(choice: Choice | None, *marks: object) -> str:
    """An ETag for a representation: equal when the form and all marks are."""
    form = (choice.offer.media_type, choice.offer.multipart, choice.transfer_syntax) if choice else ()
    return blake2b("|".join(map(str, (*form, *marks))).encode(), digest_size=16).hexdigest()


def instance_url(row: InstanceRow) -> str:
    return f"{service_url()}/studies/{row.study_uid}/series/{row.series_uid}/instances/{row.sop_uid}"


def single_part(part: OutgoingPart, etag: str, *, last_modified: datetime | None = None) -> Response:
    """The item alone, or the range of it that was asked for; its part's headers are those of the answer.

    Raises RangeNotSatisfiable.
    """
    chunks, size, status = part.chunks, part.size, 200
    headers = dict(part.headers)
    if request.method == "HEAD":
        if isinstance(chunks, Source):
            chunks.close()
        chunks = iter(())
    elif size is not None:
        headers["Accept-Ranges"] = "bytes"
        if limits := _range(size, etag):
            first, end = limits
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
            chunks = (
                chunks.cut(first, end)
                if isinstance(chunks, Source)
                else _cut(cast(Iterable[bytes], chunks), first, end)
            )
            size, status = end - first, 206
    if size is not None:
        headers["Content-Length"] = str(size)
    response = Finished(cast(Iterable[bytes], _Begun(chunks)), status, headers, direct_passthrough=True)
    return validated(response, etag, last_modified)


class _Begun:
    """A body whose first piece is there already: what fails so far is told by a status, not by a broken connection."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._first = next(self._chunks, b"")

    def __iter__(self) -> Iterator[Chunk]:
        if len(self._first):
            yield self._first
            yield from self._chunks

    def close(self) -> None:
        if hasattr(self._chunks, "close"):
            self._chunks.close()


def _range(size: int, etag: str) -> tuple[int, int] | None:
    """The first byte and the one after the last that a Range header asks for; None for all (RFC 9110 14)."""
    if "Range" not in request.headers:
        return None
    asked = request.range
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return None
    if "If-Range" in request.headers and request.if_range.etag != etag:
        return None
    limits = asked.range_for_length(size)
    if limits is None:
        raise RangeNotSatisfiable(
            f"There are {size} bytes; the range lies outside", headers={"Content-Range": f"bytes */{size}"}
        )
    return limits


def _cut(chunks: Iterable[Chunk], first: int, end: int) -> Iterator[bytes]:
    at = 0
    for chunk in cast(Iterable[bytes], chunks):
        piece = chunk[max(first - at, 0) : end - at]
        at += len(chunk)
        if piece:
            yield piece
        if at >= end:
            return


def multipart(
    media_type: str,
    parts: Iterable[OutgoingPart],
    etag: str,
    location: str,
    *,
    last_modified: datetime | None = None,
    status: int = 200,
) -> Response:
    """The items, each a part; with their total length where `parts` is a sequence and tells it."""
    body = MultipartBody(media_type, parts)
    head = request.method == "HEAD"
    response = Finished(iter(()) if head else body, status, content_type=body.content_type, direct_passthrough=True)
    response.headers["Content-Location"] = location
    if body.content_length is not None:
        response.headers["Content-Length"] = str(body.content_length)
    if head:
        body.close()
    return validated(response, etag, last_modified)


def validated(response: Response, etag: str, last_modified: datetime | None = None) -> Response:
    """The answer with what lets a client keep it."""
    headers = response.headers
    headers["ETag"] = f'"{etag}"'
    headers["Cache-Control"] = CACHE_CONTROL
    headers["Vary"] = "Accept"
    if last_modified is not None:
        response.last_modified = last_modified
    return response
