"""STOW-RS: store instances (PS3.18 10.5, Annex I)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from flask import Response, request
from flask_smorest import Blueprint

from ..archive import StoreBatch, StoreItem
from ..errors import (
    BadRequest,
    DicomWebError,
    FailureReason,
    NotAcceptable,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from .multipart import (
    PIECE,
    InflatedStream,
    MediaType,
    Readable,
    boundary_of,
    parse_media_type,
    read_parts,
)
from .negotiation import Offer, negotiate
from .openapi import BINARY, content, faults
from .responses import DICOM_JSON, DICOM_XML, dicom_json, dicom_xml, warning
from .service import check_uids, current_service, service_url

blueprint = Blueprint("STOW-RS", __name__, description="Store (PS3.18 10.5)")

DICOM = "application/dicom"
SUPPORTED = 'multipart/related; type="application/dicom" and application/dicom'
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
        "Instances of any kind, in one request or many. The same bytes again are a success. The answer is the Store "
        "Instances Response Module: ReferencedSOPSequence (stored), FailedSOPSequence and OtherFailuresSequence (not "
        "stored, each with its Failure Reason). What was stored is on disk when the answer leaves."
    ),
    "requestBody": {
        "required": True,
        "content": {
            DICOM: {"schema": BINARY},
            'multipart/related; type="application/dicom"': {"schema": BINARY},
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
@blueprint.doc(summary="Store Instances of one study; those of another study fail", **_DOC)
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
        with service.archive.begin_store(study) as batch:
            received = _receive(batch, stream, content_type, service.max_parts)
            items = (*batch.commit().items, *received)
    except DicomWebError:
        body.drain()
        raise
    return _answer(items)


# ------------------------------------------------------------------------------------------------ the request


class _RequestBody:
    """The body as it arrives, counted. `read` raises PayloadTooLarge beyond the limit, BadRequest when it breaks off.

    It is taken from the server directly: the framework's own stream reads in pieces that are too small.
    """

    def __init__(self, environ: Mapping[str, Any], limit: int) -> None:
        self._stream: Readable = environ["wsgi.input"]
        self._limit = limit
        self._read = 0
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
        left = size if self._length is None else min(size, self._length - self._read)
        if left <= 0:
            return b""
        try:
            data = self._stream.read(left)
        except Exception as error:  # every server has its own for a lost connection or a malformed chunk
            raise BadRequest("The body broke off.") from error
        self._read += len(data)
        if not data and self._length is not None:
            raise BadRequest(f"The body broke off after {self._read} of {self._length} bytes.")
        if self._read > self._limit:
            raise self._too_large()
        return data

    def drain(self) -> None:
        """Read and drop what still comes, up to a bound: most clients read an answer only after they have sent all."""
        self._limit = self._read + _DRAINED
        with suppress(DicomWebError):
            while self.read():
                pass

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"The body is larger than the {self._limit} bytes that this server accepts.")


def _content_type() -> MediaType:
    """The media type of the body. Raises UnsupportedMediaType for all but those of `SUPPORTED`.

    This is where application/dicom+json and application/dicom+xml with bulk data come in.
    """
    header = request.headers.get("Content-Type", "")
    try:
        content_type = parse_media_type(header)
    except ValueError:
        raise UnsupportedMediaType(f"The Content-Type {header[:100]!r} is no media type; {_use()}") from None
    root = content_type.name
    if root == "multipart/related":
        root = (content_type.parameter("type") or DICOM).partition(";")[0].strip().lower()
    if root != DICOM:
        raise UnsupportedMediaType(f"The Content-Type {header[:100]!r} is not supported; {_use()}")
    return content_type


def _use() -> str:
    return f"this server stores {SUPPORTED}."


def _inflated(body: _RequestBody, limit: int) -> Readable:
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding in ("gzip", "x-gzip"):
        return InflatedStream(body, limit)
    raise UnsupportedMediaType(f"The Content-Encoding {encoding[:40]!r} is not supported; this server inflates gzip.")


def _receive(batch: StoreBatch, stream: Readable, content_type: MediaType, max_parts: int) -> list[StoreItem]:
    """Put the instances of the body into the batch; return the items of parts that are no instances."""
    if content_type.name == DICOM:
        first = stream.read(PIECE)
        if not first:
            raise BadRequest("The body is empty.")
        batch.add(_pieces(first, stream))
        return []
    others: list[StoreItem] = []
    number = 0
    for number, part in enumerate(read_parts(stream, boundary_of(content_type), max_parts=max_parts), 1):
        if _is_dicom(part.headers.get("content-type", DICOM)):
            batch.add(part.chunks)
        else:
            others.append(
                StoreItem(
                    failure=FailureReason.CANNOT_UNDERSTAND,
                    message=f"Part {number} is not {DICOM}; other media types are not supported",
                )
            )
    if not number:
        raise BadRequest("The body has no parts.")
    return others


def _pieces(first: bytes, stream: Readable) -> Iterator[bytes]:
    data = first
    while data:
        yield data
        data = stream.read(PIECE)


def _is_dicom(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in (DICOM, "")


# ------------------------------------------------------------------------------------------------ the answer


def _answer(items: Sequence[StoreItem]) -> Response:
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
    for text in _warnings(items):
        response.headers.add("Warning", warning(text))
    return response


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
            path = f"/studies/{item.study_uid}/series/{item.series_uid}/instances/{item.sop_instance_uid}"
            url = {"00081190": _value("UR", base + quote(path))}
            reason = {} if item.warning is None else {"00081196": _value("US", int(item.warning))}
            referenced.append({**identity, **url, **reason})
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


def _warnings(items: Sequence[StoreItem]) -> list[str]:
    """What to say beside the reason codes: each message once, the first few, fit for a header."""
    texts = []
    ignored = sorted({key for key in request.args if key != "accept"})
    if ignored:
        texts.append("These query parameters are ignored: " + ", ".join(key[:40] for key in ignored[:10]))
    texts += dict.fromkeys(item.message for item in items if item.message)
    if len(texts) > _MAX_WARNINGS:
        texts[_MAX_WARNINGS - 1 :] = [f"{len(texts) - _MAX_WARNINGS + 1} more messages are left out"]
    return ["".join(char if " " <= char <= "~" else "?" for char in text[:_MAX_WARNING]) for text in texts]
