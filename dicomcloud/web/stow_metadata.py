"""STOW-RS with metadata and bulk data (PS3.18 10.5.1.1, 8.6.1.2): the parts are spooled, matched and assembled.

A part of metadata is application/dicom+json (an array of data sets, or one) or application/dicom+xml (one data set);
any other is bulk data, found by its Content-Location. A BulkDataURI is never more than the name of a part of the same
request: nothing is ever fetched.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urljoin

import orjson

from ..archive import StoreBatch
from ..dicom.assembly import BulkPart, assemble
from ..dicom.image_parts import OCTET_STREAM
from ..dicom.metadata import from_native_model_xml
from ..errors import BadRequest, FailureReason, InvalidInstance, PayloadTooLarge, WarningReason
from .multipart import parse_media_type

DICOM_JSON: Final = "application/dicom+json"
DICOM_XML: Final = "application/dicom+xml"
#: What clients call these two, and what they mean.
METADATA_TYPES: Final[Mapping[str, str]] = {
    DICOM_JSON: DICOM_JSON,
    "application/json": DICOM_JSON,
    DICOM_XML: DICOM_XML,
}

_PARSED_WHOLE: Final = 8 << 20  # bytes of JSON; a longer array is parsed one data set at a time
_PIECE: Final = 1 << 20
_SHOWN: Final = 5
_BOUNDARY: Final = "dicomcloud-quarantine"
# Strings are passed over in one step; possessive, so that a long one needs no room for backtracking.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]]', re.DOTALL)
_OPENING: Final = re.compile(rb"[ \t\r\n]*\[")
_BETWEEN: Final = b" \t\r\n,"


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a part lies in the spool, and its headers."""

    start: int
    end: int
    media_type: str
    transfer_syntax: str
    location: str


class MetadataRequest:
    """The parts of one request, in the order in which they come; `store` puts their instances into the batch."""

    def __init__(self, batch: StoreBatch, base_url: str, *, max_metadata: int, max_instances: int) -> None:
        self._batch = batch
        self._spool = batch.spool()
        self._base_url = base_url
        self._max_metadata = max_metadata
        self._max_instances = max_instances
        self._metadata_size = 0
        self._metadata: list[_Span] = []
        self._bulk: list[_Span] = []
        self._by_location: dict[str, list[_Span]] = defaultdict(list)
        self._resolved: dict[str, list[_Span]] | None = None
        self._used: set[int] = set()

    def take(self, headers: Mapping[str, str], default_type: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Spool one part. Raises PayloadTooLarge for too much metadata, Unavailable for want of space."""
        media_type, syntax = _media_type(headers.get("content-type") or default_type)
        metadata = METADATA_TYPES.get(media_type)
        start = self._spool.size
        for chunk in chunks:
            if metadata:
                self._metadata_size += len(chunk)
                if self._metadata_size > self._max_metadata:
                    raise PayloadTooLarge(f"The metadata have more than {self._max_metadata} bytes.")
            self._spool.write(chunk)
        span = _Span(start, self._spool.size, metadata or media_type, syntax, _location(headers))
        if metadata:
            self._metadata.append(span)
        else:
            self._bulk.append(span)
            self._by_location[span.location].append(span)

    def store(self, study: str | None, max_decoded: int) -> list[str]:
        """Assemble every instance and put it into the batch; return what is to be said of the request as a whole.

        Raises BadRequest when the metadata are no JSON or there are none.
        """
        if not self._metadata:
            raise BadRequest(f"The body has no part of {DICOM_JSON} or {DICOM_XML}.")
        count = 0
        with self._spool.buffer() as view:
            for span in self._metadata:
                for document in _documents(view[span.start : span.end], span.media_type):
                    count += 1
                    if count > self._max_instances:
                        raise PayloadTooLarge(f"The request has more than {self._max_instances} instances.")
                    self._add(view, document, span, study, max_decoded)
        return self._unreferenced()

    def _add(self, view: memoryview, document: _Document, span: _Span, study: str | None, max_decoded: int) -> None:
        referenced: list[_Span] = []

        def find(uri: str) -> Sequence[BulkPart]:
            spans = self._find(uri)
            referenced.extend(spans)
            return [BulkPart(each.media_type, view[each.start : each.end], each.transfer_syntax) for each in spans]

        try:
            assembled = assemble(document.parse(), find, study_uid=study, max_decoded=max_decoded)
        except InvalidInstance as error:
            self._batch.reject(error, _as_request(view, document, span, referenced), ".multipart")
            return
        warnings = []
        if assembled.discarded:
            warnings = [(WarningReason.ELEMENTS_DISCARDED, f"Discarded: {', '.join(assembled.discarded[:_SHOWN])}")]
        self._batch.add(assembled.chunks(), warnings)

    def _find(self, uri: str) -> list[_Span]:
        """The parts with this Content-Location: the same text, else the same URL when both are resolved."""
        spans = self._by_location.get(uri)
        if spans is None:
            if self._resolved is None:
                self._resolved = defaultdict(list)
                for location, found in self._by_location.items():
                    if location:
                        self._resolved[self._absolute(location)] += found
            spans = self._resolved.get(self._absolute(uri), [])
        self._used.update(each.start for each in spans)
        return spans

    def _absolute(self, uri: str) -> str:
        try:
            return urljoin(self._base_url, uri)
        except ValueError:
            return uri

    def _unreferenced(self) -> list[str]:
        left = [span for span in self._bulk if span.start not in self._used]
        if not left:
            return []
        names = ", ".join(span.location[:80] or "(no Content-Location)" for span in left[:_SHOWN])
        return [f"{len(left)} parts are the BulkDataURI of no attribute and were left aside: {names}"]


def _location(headers: Mapping[str, str]) -> str:
    location = headers.get("content-location", "").strip()
    if location.isascii():
        return location
    try:  # headers are read as Latin-1; the BulkDataURI came as UTF-8
        return location.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return location


def _media_type(content_type: str) -> tuple[str, str]:
    try:
        parsed = parse_media_type(content_type)
    except ValueError:
        return OCTET_STREAM, ""
    return parsed.name, parsed.parameter("transfer-syntax") or ""


# ------------------------------------------------------------------------------------------------ the metadata


@dataclass(frozen=True, slots=True)
class _Document:
    """The metadata of one instance: its text, and how to read it. `parse` raises InvalidInstance."""

    text: Callable[[], bytes]
    parse: Callable[[], Any]


def _documents(view: memoryview, media_type: str) -> Iterator[_Document]:
    if media_type == DICOM_XML:
        yield _Document(lambda: bytes(view), lambda: _xml(view))
        return
    if len(view) <= _PARSED_WHOLE:
        try:
            parsed = orjson.loads(view)
        except orjson.JSONDecodeError:
            pass  # one of the data sets may be at fault: part them
        else:
            for data_set in parsed if isinstance(parsed, list) else [parsed]:
                yield _parsed(data_set)
            return
    for piece in _split(view):
        yield _Document(lambda piece=piece: bytes(piece), lambda piece=piece: _json(piece))  # type: ignore[misc]


def _parsed(data_set: Any) -> _Document:
    return _Document(lambda: orjson.dumps(data_set), lambda: data_set)


def _json(text: memoryview) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInstance(FailureReason.CANNOT_UNDERSTAND, f"The metadata are not JSON: {error}") from None


def _xml(text: memoryview) -> Any:
    try:
        return from_native_model_xml(text)
    except ValueError as error:
        raise InvalidInstance(
            FailureReason.CANNOT_UNDERSTAND, f"The metadata are no Native DICOM Model: {error}"
        ) from None


def _split(view: memoryview) -> Iterator[memoryview]:
    """The text of each data set of a JSON array, and of what stands between them though it should not.

    Raises BadRequest for what is no array, or whose brackets do not pair: nobody can tell where an instance ends.
    """
    fault = BadRequest("The metadata are no JSON array of data sets.")
    opening = _OPENING.match(view)
    if opening is None:
        if len(view) <= _PARSED_WHOLE:  # which has been tried
            raise fault
        yield view
        return
    depth, start = 0, opening.end()
    for token in _TOKEN.finditer(view, start):
        kind = view[token.start()]
        if kind in b"{[":
            if depth == 0:
                yield from _remains(view[start : token.start()])
                start = token.start()
            depth += 1
        elif kind in b"}]" and depth:
            depth -= 1
            if depth == 0:
                yield view[start : token.end()]
                start = token.end()
        elif kind in b"}]":
            yield from _remains(view[start : token.start()])
            if kind in b"}" or bytes(view[token.end() : token.end() + 1024]).strip():
                raise fault
            return
    raise fault


def _remains(text: memoryview) -> Iterator[memoryview]:
    if bytes(text[:4096]).strip(_BETWEEN):
        yield text


def _as_request(
    view: memoryview, document: _Document, span: _Span, referenced: Sequence[_Span]
) -> Iterator[bytes | memoryview]:
    """An instance that failed as the body of a request that holds it alone, with the bulk data it got so far."""
    head = f'Content-Type: multipart/related; type="{span.media_type}"; boundary="{_BOUNDARY}"\r\n'
    yield f"{head}\r\n--{_BOUNDARY}\r\nContent-Type: {span.media_type}\r\n\r\n".encode()
    yield document.text()
    for each in {each.start: each for each in referenced}.values():
        syntax = f"; transfer-syntax={each.transfer_syntax}" if each.transfer_syntax else ""
        lines = f"Content-Type: {each.media_type}{syntax}\r\nContent-Location: {each.location}"
        yield f"\r\n--{_BOUNDARY}\r\n{lines}\r\n\r\n".encode("utf-8", "replace")
        for start in range(each.start, each.end, _PIECE):
            yield view[start : min(start + _PIECE, each.end)]
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()
