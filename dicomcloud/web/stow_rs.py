"""STOW-RS: store instances (PS3.18 10.5, Annex I)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from flask import Response, request

from ..archive import StoreBatch, StoreItem, explain
from ..dicom.attributes import tag_of
from ..dicom.coercion import read_change
from ..dicom.image_parts import OCTET_STREAM
from ..errors import (
    BadRequest,
    DicomWebError,
    FailureReason,
    Forbidden,
    InvalidInstance,
    NotAcceptable,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from ..media import ZipMedium, view_file
from .auth import current_caller
from .metrics import RECEIVED, current_metrics
from .multipart import (
    MAX_PARTS,
    PIECE,
    InflatedStream,
    MediaType,
    Part,
    Readable,
    boundary_of,
    parse_media_type,
    read_parts,
)
from .negotiation import Offer, negotiate
from .openapi import BINARY, DATA_SETS, Blueprint, content, faults
from .responses import DICOM_JSON, DICOM_XML, dicom_json, dicom_xml, warning
from .service import Service, check_uids, current_service, service_url
from .stow_metadata import METADATA_TYPES, MetadataRequest

log = logging.getLogger(__name__)
blueprint = Blueprint("STOW-RS", __name__, description="Store (PS3.18 10.5)")

DICOM = "application/dicom"
ZIP = "application/zip"
SUPPORTED = (
    'multipart/related; type="application/dicom" and application/dicom; with metadata and bulk data '
    'multipart/related; type="application/dicom+json" or "application/dicom+xml", and both without bulk data as single '
    "parts; application/zip"
)
RETRY_AFTER = 30  # seconds

_OFFERS = (Offer(DICOM_JSON), Offer(DICOM_XML), Offer(DICOM_XML, multipart=True))
_DRAINED = 32 << 20  # bytes read from a client that is refused, so that it comes to read the answer
_MAX_WARNINGS = 10
_MAX_WARNING = 250  # characters

_RESPONSE_TYPES = content(DICOM_JSON, schema={"type": "object", "additionalProperties": True}) | content(
    DICOM_XML, 'multipart/related; type="application/dicom+xml"'
)
_DOC: dict[str, Any] = {
    "description": (
        "Instances of any kind, in one request or many: as DICOM files, as metadata (JSON or XML) with their bulk data "
        "in further parts whose Content-Location is the BulkDataURI, or as the members of a ZIP file. JPEG, PNG, GIF, "
        "PDF, STL, MPEG-2 and MPEG-4 with metadata become DICOM objects. The same bytes again are a success. The "
        "answer is the Store Instances Response Module: ReferencedSOPSequence (stored), FailedSOPSequence and "
        "OtherFailuresSequence (not stored, each with its Failure Reason). What was stored is on disk when the answer "
        "leaves."
    ),
    "requestBody": {
        "required": True,
        "content": {
            DICOM: {"schema": BINARY},
            'multipart/related; type="application/dicom"': {"schema": BINARY},
            'multipart/related; type="application/dicom+json"': {"schema": BINARY},
            'multipart/related; type="application/dicom+xml"': {"schema": BINARY},
            DICOM_JSON: {"schema": DATA_SETS},
            DICOM_XML: {"schema": {"type": "string"}},
            ZIP: {"schema": BINARY},
        },
    },
    "responses": {
        "200": {"description": "All instances are stored", "content": _RESPONSE_TYPES},
        "202": {"description": "Some instances are stored, or stored with a warning", "content": _RESPONSE_TYPES},
        **faults(400, 413, 415),
        "409": {"description": "No instance is stored; each has its reason", "content": _RESPONSE_TYPES},
        "503": {"description": "No instance is stored for want of resources; try again", "content": _RESPONSE_TYPES},
    },
}


@blueprint.route("/studies", methods=["POST"])
@blueprint.doc(summary="Store Instances", **_DOC)
def store_instances() -> Response:
    return _store(None)


@blueprint.route("/studies/<study>", methods=["POST"])
@blueprint.doc(summary="Store Instances of a Study", **_DOC)
def store_instances_of_study(study: str) -> Response:
    return _store(study)


def _store(study: str | None) -> Response:
    check_uids(study=study)
    service = current_service()
    body = _RequestBody(request.environ, service.max_request_bytes)
    try:
        body.check_length()
        content_type = _content_type()
        stream = _inflated(body, service.max_request_bytes)
        changes, notes = _changes(service)
        studies = current_caller().studies
        if studies is not None and any(int(key, 16) in studies.tags for key in changes):
            raise Forbidden("Who sees some studies only cannot set what tells which these are")
        visible = studies.rules if studies is not None else None
        with service.archive.begin_store(study, changes=changes, visible=visible) as batch:
            notes += _receive(batch, stream, content_type, study, service)
            items = batch.commit().items
    except Exception as error:
        body.drain()
        reason = error if isinstance(error, DicomWebError) else explain(error)
        if not isinstance(reason, Unavailable):
            raise
        log.error("nothing was stored: %s", error)
        items, notes = (StoreItem(failure=FailureReason.OUT_OF_RESOURCES, message=reason.message),), []
    finally:
        request.environ[RECEIVED] = body.received
    current_metrics().count_stored(items)
    if not items:
        raise BadRequest("The body holds no instance.")
    return _answer(items, notes)


def _changes(service: Service) -> tuple[dict[str, Any], list[str]]:
    """The attributes that query keys set, where the setting allows it, and a note of the keys that are ignored."""
    changes: dict[str, Any] = {}
    ignored = []
    for key, text in request.args.items():
        tag = tag_of(key) if service.stow_query_attributes else None
        if tag is not None:
            try:
                changes[f"{tag:08X}"] = read_change(tag, text)
            except ValueError as error:
                raise BadRequest(f"The query parameter {key[:40]!r}: {error}.") from None
        elif key != "accept":
            ignored.append(key[:40])
    names = ", ".join(sorted(ignored)[:10])
    return changes, [f"These query parameters are ignored: {names}"] if ignored else []


# ------------------------------------------------------------------------------------------------ the request


class _RequestBody:
    """The body as it arrives, counted. `read` raises PayloadTooLarge beyond the limit, BadRequest when it breaks off.

    It is taken from the server directly: the framework's own stream reads in pieces that are too small.
    """

    def __init__(self, environ: Mapping[str, Any], limit: int) -> None:
        self._stream: Readable = environ["wsgi.input"]
        self._limit = limit
        self.received = 0
        self._length: int | None = None  # None: until the stream ends
        length = environ.get("CONTENT_LENGTH") or ""
        if length:
            if not (length.isascii() and length.isdigit()):
                raise BadRequest(f"The Content-Length {length[:40]!r} is not a number.")
            self._length = int(length)
        elif not environ.get("wsgi.input_terminated"):
            self._length = 0

    def check_length(self) -> None:
        """Refuse what is announced as too large before any of it is read."""
        if self._length is not None and self._length > self._limit:
            raise self._too_large()

    def read(self, size: int = PIECE, /) -> bytes:
        left = size if self._length is None else min(size, self._length - self.received)
        if left <= 0:
            return b""
        try:
            data = self._stream.read(left)
        except Exception as error:  # every server has its own for a lost connection or a malformed chunk
            raise BadRequest("The body broke off.") from error
        self.received += len(data)
        if not data and self._length is not None:
            raise BadRequest(f"The body broke off after {self.received} of {self._length} bytes.")
        if self.received > self._limit:
            raise self._too_large()
        return data

    def drain(self) -> None:
        """Read and drop what still comes, up to a bound: most clients read an answer only after they have sent all."""
        self._limit = self.received + _DRAINED
        with suppress(DicomWebError):
            while self.read():
                pass

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"The body is larger than the {self._limit} bytes that this server accepts.")


def _content_type() -> MediaType:
    """The media type of the body; of a multipart body, `type` says what its parts are.

    Raises UnsupportedMediaType for all but those of `SUPPORTED`.
    """
    header = request.headers.get("Content-Type", "")
    try:
        content_type = parse_media_type(header)
    except ValueError:
        raise UnsupportedMediaType(f"The Content-Type {header[:100]!r} is no media type; {_use()}") from None
    root = _root_type(content_type)
    if root != DICOM and root not in METADATA_TYPES and content_type.name != ZIP:
        raise UnsupportedMediaType(f"The Content-Type {header[:100]!r} is not supported; {_use()}")
    return content_type


def _root_type(content_type: MediaType) -> str:
    if content_type.name != "multipart/related":
        return content_type.name
    return (content_type.parameter("type") or DICOM).partition(";")[0].strip().lower()


def _use() -> str:
    return f"this server stores {SUPPORTED}."


def _inflated(body: _RequestBody, limit: int) -> Readable:
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        return InflatedStream(body, limit)
    raise UnsupportedMediaType(f"The Content-Encoding {encoding[:40]!r} is not supported; this server inflates gzip.")


def _receive(
    batch: StoreBatch, stream: Readable, content_type: MediaType, study: str | None, service: Service
) -> list[str]:
    """Put the instances of the body into the batch; return what is to be said of the request as a whole."""
    if content_type.name == "multipart/related":
        parts = read_parts(
            stream,
            boundary_of(content_type),
            max_parts=service.max_parts if _root_type(content_type) == DICOM else MAX_PARTS,
        )
        if _root_type(content_type) == DICOM:
            return _receive_files(batch, parts)
        together = ((part.headers, part.chunks) for part in parts)
        return _receive_metadata(batch, together, _root_type(content_type), study, service)
    first = stream.read(PIECE)
    if not first:
        raise BadRequest("The body is empty.")
    pieces = _pieces(first, stream)
    if content_type.name == DICOM:
        batch.add(pieces)
        return []
    if content_type.name == ZIP:
        return _receive_zip(batch, pieces, service)
    return _receive_metadata(batch, [({}, pieces)], content_type.name, study, service)


def _receive_files(batch: StoreBatch, parts: Iterable[Part]) -> list[str]:
    number = 0
    for number, part in enumerate(parts, 1):
        if _is_dicom(part.headers.get("content-type", DICOM)):
            batch.add(part.chunks)
        else:
            fault = f"Part {number} is not {DICOM}; bulk data come with metadata only"
            batch.reject(InvalidInstance(FailureReason.CANNOT_UNDERSTAND, fault), part.chunks, ".part")
    if not number:
        raise BadRequest("The body has no parts.")
    return []


def _receive_metadata(
    batch: StoreBatch,
    parts: Iterable[tuple[Mapping[str, str], Iterable[bytes | memoryview]]],
    root: str,
    study: str | None,
    service: Service,
) -> list[str]:
    metadata = MetadataRequest(
        batch, request.base_url, max_metadata=service.max_metadata_bytes, max_instances=service.max_parts
    )
    number = 0
    for number, (headers, chunks) in enumerate(parts, 1):
        if headers.get("content-type", "").partition(";")[0].strip().lower() == DICOM:
            batch.add(chunks)
        else:
            # Only the first part can do without a Content-Type: those behind it are bulk data of who knows what kind.
            metadata.take(headers, root if number == 1 else OCTET_STREAM, chunks)
    if not number:
        raise BadRequest("The body has no parts.")
    return metadata.store(study, service.archive.max_inflated_bytes)


def _receive_zip(batch: StoreBatch, pieces: Iterable[bytes], service: Service) -> list[str]:
    """Each DICOM file in the ZIP is an instance; what is none (a viewer, a DICOMDIR) is left aside and counted."""
    spool = batch.spool()
    for piece in pieces:
        spool.write(piece)
    skipped, number = 0, 0
    with spool.buffer() as view:
        try:
            medium = ZipMedium(view_file(view), max_members=MAX_PARTS, max_bytes=service.max_request_bytes)
        except ValueError as error:
            raise BadRequest(f"The body is no ZIP file that can be read: {error}.") from None
        for member in medium.members():
            if member.reason_to_skip:
                skipped += 1
                continue
            number += 1
            if number > service.max_parts:
                raise PayloadTooLarge(f"The ZIP file has more than {service.max_parts} instances.")
            batch.add(member.chunks())
    return [f"{skipped} members of the ZIP file are no DICOM instances and were left aside"] if skipped else []


def _pieces(first: bytes, stream: Readable) -> Iterator[bytes]:
    data = first
    while data:
        yield data
        data = stream.read(PIECE)


def _is_dicom(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in (DICOM, "")


# ------------------------------------------------------------------------------------------------ the answer


def _answer(items: Sequence[StoreItem], notes: Sequence[str] = ()) -> Response:
    stored = [item for item in items if item.failure is None]
    status, headers = 200, {}
    if not stored and all(_out_of_resources(item) for item in items):
        status, headers = 503, {"Retry-After": str(RETRY_AFTER)}
    elif not stored:
        status = 409
    elif any(item.failure is not None or item.warning is not None for item in items):
        status = 202
    response = _in_accepted_form(_response_module(items), status)
    response.headers.update(headers)
    for text in _warnings(items, notes):
        response.headers.add("Warning", warning(text))
    if location := _location(stored):
        response.headers["Location"] = location
        response.autocorrect_location_header = False
    return response


def _location(stored: Sequence[StoreItem]) -> str | None:
    """The URL of the instance that was stored; that of their study where several of one study were (PS3.18 8.5)."""
    studies = {item.study_uid for item in stored}
    if len(studies) != 1:
        return None
    return service_url() + quote(_path(stored[0]) if len(stored) == 1 else f"/studies/{stored[0].study_uid}")


def _path(item: StoreItem) -> str:
    return f"/studies/{item.study_uid}/series/{item.series_uid}/instances/{item.sop_instance_uid}"


def _in_accepted_form(module: Mapping[str, Any], status: int) -> Response:
    """By Accept; JSON where nothing acceptable is left, for what is stored is stored."""
    try:
        choice = negotiate(request.headers.get("Accept"), request.args.get("accept"), _OFFERS)
    except (NotAcceptable, BadRequest):
        return dicom_json(module, status)
    return dicom_json(module, status) if choice.offer.media_type == DICOM_JSON else dicom_xml([module], choice, status)


def _response_module(items: Sequence[StoreItem]) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 Table I.1-1) in the DICOM JSON Model."""
    base = service_url()
    referenced, failed, others = [], [], []
    studies = set()
    for item in items:
        identity = {"00081150": _value("UI", item.sop_class_uid), "00081155": _value("UI", item.sop_instance_uid)}
        if item.failure is None:
            studies.add(item.study_uid)
            url = {"00081190": _value("UR", base + quote(_path(item)))}
            reason = {} if item.warning is None else {"00081196": _value("US", int(item.warning))}
            original = item.original_attributes
            changed = {} if original is None else {"04000561": {"vr": "SQ", "Value": [original]}}
            referenced.append({**identity, **url, **reason, **changed})
        elif item.sop_class_uid and item.sop_instance_uid:
            failed.append({**identity, "00081197": _value("US", int(item.failure))})
        else:
            others.append({"00081197": _value("US", int(item.failure))})
    study_url = base + quote(f"/studies/{studies.pop()}") if len(studies) == 1 else None
    module: dict[str, Any] = {"00081190": _value("UR", study_url)}
    for tag, sequence in (("00081198", failed), ("00081199", referenced), ("0008119A", others)):
        if sequence:
            module[tag] = {"vr": "SQ", "Value": sequence}
    return module


def _value(vr: str, value: str | int | None) -> dict[str, Any]:
    return {"vr": vr} if value in (None, "") else {"vr": vr, "Value": [value]}


def _out_of_resources(item: StoreItem) -> bool:
    return item.failure is not None and item.failure & 0xFF00 == FailureReason.OUT_OF_RESOURCES


def _warnings(items: Sequence[StoreItem], notes: Sequence[str]) -> list[str]:
    """What to say beside the reason codes: each message once, the first few, fit for a header."""
    texts = [*notes, *dict.fromkeys(_message(item) for item in items if item.message)]
    if len(texts) > _MAX_WARNINGS:
        texts[_MAX_WARNINGS - 1 :] = [f"{len(texts) - _MAX_WARNINGS + 1} more messages are left out"]
    return ["".join(char if " " <= char <= "~" else "?" for char in text[:_MAX_WARNING]) for text in texts]


def _message(item: StoreItem) -> str:
    return item.message if item.warning is None else f"{item.warning:04X} {item.message}"
