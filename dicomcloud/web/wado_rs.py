"""WADO-RS: retrieve studies, series, instances, metadata, frames and bulk data (PS3.18 10.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import BinaryIO, cast

from flask import Response, request
from flask_smorest import Blueprint

from ..archive import Archive, InstanceRow
from ..dicom.header import Frames
from ..dicom.pixel_data import TRANSFER_SYNTAXES, CannotDecode, leaves_as_stored
from ..errors import BadRequest, NotFound, RangeNotSatisfiable
from .multipart import MultipartBody, OutgoingPart, read_in_pieces
from .negotiation import Choice, Offer, negotiate
from .openapi import DATA_SETS, content, faults, header
from .responses import DICOM_JSON, not_modified
from .service import check_uids, current_service, service_url

blueprint = Blueprint("WADO-RS", __name__, description="Retrieve (PS3.18 10.4)")

DICOM = "application/dicom"
OCTET_STREAM = "application/octet-stream"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
AS_STORED = "*"

_PIXEL_DATA = "/7FE00010"
_MAX_FRAMES = 100_000
_JSON_PIECE = 128 << 10  # bytes of metadata sent at a time


# ------------------------------------------------------------------------------------------------ instances

_INSTANCES = {
    "200": {
        "description": "The instances, each a part; one instance also alone",
        "content": content(
            'multipart/related; type="application/dicom"',
            'multipart/related; type="application/dicom"; transfer-syntax=*',
        ),
    },
    **faults(400, 404, 406, 410),
}
_INSTANCE = {
    **_INSTANCES,
    "200": {
        "description": "The instance",
        "content": {
            **content("application/dicom", "application/dicom; transfer-syntax=*"),
            **_INSTANCES["200"]["content"],
        },
    },
}
_ABOUT_SYNTAX = (
    "In Explicit VR Little Endian, or with `transfer-syntax=*` in the Accept header as stored "
    "(Implicit VR and Big Endian never leave: PS3.18 8.7.3.4)."
)


@blueprint.route("/studies/<study>")
@blueprint.doc(summary="Retrieve Study", description=_ABOUT_SYNTAX, responses=_INSTANCES)
def retrieve_study(study: str) -> Response:
    return _retrieve_instances(study)


@blueprint.route("/studies/<study>/series/<series>")
@blueprint.doc(summary="Retrieve Series", description=_ABOUT_SYNTAX, responses=_INSTANCES)
def retrieve_series(study: str, series: str) -> Response:
    return _retrieve_instances(study, series)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>")
@blueprint.doc(summary="Retrieve Instance", description=_ABOUT_SYNTAX, responses=_INSTANCE)
def retrieve_instance(study: str, series: str, instance: str) -> Response:
    return _retrieve_instances(study, series, instance)


def _retrieve_instances(study: str, series: str | None = None, instance: str | None = None) -> Response:
    check_uids(study=study, series=series, instance=instance)
    rows = current_service().archive.instances(study, series, instance)
    choice = negotiated(_instance_offers(rows, alone=instance is not None))
    etag = entity_tag(*(row.file_key for row in rows), choice)
    if answer := not_modified(etag):
        return answer
    syntax = choice.transfer_syntax or EXPLICIT_LITTLE_ENDIAN
    if not choice.offer.multipart:
        return single_instance(rows[0], syntax, etag)
    return _multipart(MultipartBody(DICOM, _instance_parts(rows, syntax)), etag)


def _instance_offers(rows: Sequence[InstanceRow], *, alone: bool) -> list[Offer]:
    """Explicit VR Little Endian, and the stored transfer syntax where all instances have the same."""
    syntaxes = [EXPLICIT_LITTLE_ENDIAN]
    stored = {row.transfer_syntax for row in rows}
    if len(stored) == 1 and (syntax := stored.pop()) != EXPLICIT_LITTLE_ENDIAN and leaves_as_stored(syntax):
        syntaxes.append(syntax)
    offers = [Offer(DICOM, multipart=True, transfer_syntaxes=tuple(syntaxes))]
    if alone:
        offers.append(Offer(DICOM, multipart=False, transfer_syntaxes=tuple(syntaxes)))
    return offers


def single_instance(row: InstanceRow, transfer_syntax: str, etag: str) -> Response:
    """The instance alone, as application/dicom, in this transfer syntax (`*`: as stored)."""
    return _single_part(_instance_part(current_service().archive, service_url(), row, transfer_syntax), etag)


def _instance_parts(rows: Sequence[InstanceRow], transfer_syntax: str) -> Iterable[OutgoingPart]:
    """A part for each instance: all sizes are known when all leave as stored, else each is converted in its turn."""
    archive, base = current_service().archive, service_url()
    parts = (_instance_part(archive, base, row, transfer_syntax) for row in rows)
    return list(parts) if all(_leaves_unchanged(row, transfer_syntax) for row in rows) else parts


def _instance_part(archive: Archive, base: str, row: InstanceRow, transfer_syntax: str) -> OutgoingPart:
    url = f"{base}/studies/{row.study_uid}/series/{row.series_uid}/instances/{row.sop_uid}"
    if not _leaves_unchanged(row, transfer_syntax):
        # What cannot be had uncompressed goes out as stored, and its part says so (PS3.18 8.7.3.4).
        with suppress(CannotDecode):
            converted = archive.open_decoded(row)
            size = converted.seek(0, 2)
            converted.seek(0)
            return OutgoingPart(_instance_headers(EXPLICIT_LITTLE_ENDIAN, url), size, read_in_pieces(converted))
    return OutgoingPart(_instance_headers(row.transfer_syntax, url), row.size, _file_pieces(archive, row))


def _leaves_unchanged(row: InstanceRow, transfer_syntax: str) -> bool:
    if transfer_syntax == AS_STORED:
        return leaves_as_stored(row.transfer_syntax)
    return transfer_syntax == row.transfer_syntax


def _instance_headers(transfer_syntax: str, url: str) -> dict[str, str]:
    return {"Content-Type": f"{DICOM}; transfer-syntax={transfer_syntax}", "Content-Location": url}


def _file_pieces(archive: Archive, row: InstanceRow) -> Iterator[bytes]:
    yield from read_in_pieces(archive.open_file(row), row.size)


# ------------------------------------------------------------------------------------------------- metadata

_METADATA = {
    "200": {
        "description": "The attributes of each instance; bulk data as URIs",
        "content": content(DICOM_JSON, schema=DATA_SETS),
    },
    **faults(400, 404, 406, 410),
}


@blueprint.route("/studies/<study>/metadata")
@blueprint.doc(summary="Retrieve Study Metadata", responses=_METADATA)
def retrieve_study_metadata(study: str) -> Response:
    return _retrieve_metadata(study)


@blueprint.route("/studies/<study>/series/<series>/metadata")
@blueprint.doc(summary="Retrieve Series Metadata", responses=_METADATA)
def retrieve_series_metadata(study: str, series: str) -> Response:
    return _retrieve_metadata(study, series)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/metadata")
@blueprint.doc(summary="Retrieve Instance Metadata", responses=_METADATA)
def retrieve_instance_metadata(study: str, series: str, instance: str) -> Response:
    return _retrieve_metadata(study, series, instance)


def _retrieve_metadata(study: str, series: str | None = None, instance: str | None = None) -> Response:
    check_uids(study=study, series=series, instance=instance)
    negotiated([Offer(DICOM_JSON)])
    archive, base = current_service().archive, service_url()
    etag = entity_tag(archive.version(study, series, instance), base)
    if answer := not_modified(etag):
        return answer
    # Stored texts name their bulk data from the service root; no other text in them has this form unescaped.
    here = b'"BulkDataURI":"' + base.encode() + b"/"
    texts = (text.replace(b'"BulkDataURI":"/', here) for text in archive.documents(study, series, instance))
    body = _json_array(texts)
    response = Response(next(body) if instance else body, mimetype=DICOM_JSON)
    response.set_etag(etag)
    return response


def _json_array(texts: Iterator[bytes]) -> Iterator[bytes]:
    """A JSON array of these JSON texts, in pieces of some size."""
    pieces, size, opening = [], 0, b"["
    for text in texts:
        pieces += [opening, text]
        opening = b","
        size += len(text)
        if size > _JSON_PIECE:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join(pieces) + (b"]" if opening == b"," else b"[]")


# --------------------------------------------------------------------------------------------------- frames

_FRAMES = {
    "200": {
        "description": "The frames in the order asked for, each a part; one frame also alone",
        "content": content(
            'multipart/related; type="application/octet-stream"',
            'multipart/related; type="application/octet-stream"; transfer-syntax=*',
            OCTET_STREAM,
        ),
    },
    **faults(400, 404, 406, 410),
}


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/frames/<frame_list>")
@blueprint.doc(
    summary="Retrieve Frames",
    description="Frame numbers from 1, separated by commas. Uncompressed little endian pixels, or with "
    "`transfer-syntax=*` the stored bit stream; each part's Content-Type names its transfer syntax.",
    responses=_FRAMES,
)
def retrieve_frames(study: str, series: str, instance: str, frame_list: str) -> Response:
    check_uids(study=study, series=series, instance=instance)
    numbers = _frame_numbers(frame_list)
    archive = current_service().archive
    row, frames = archive.frames(study, series, instance)
    if frames is None:
        raise NotFound("The instance has no pixel data, thus no frames")
    if max(numbers) > frames.count:
        raise NotFound(f"The instance has {frames.count} frames; there is no frame {max(numbers)}")
    url = f"{service_url()}/studies/{study}/series/{series}/instances/{instance}/frames"
    return _send_frames(row, frames, {number: f"{url}/{number}" for number in numbers}, numbers)


def _send_frames(row: InstanceRow, frames: Frames, locations: Mapping[int, str], numbers: Sequence[int]) -> Response:
    archive = current_service().archive
    syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
    stored_type = syntax.media_type if syntax and frames.encapsulated else OCTET_STREAM
    choice = negotiated(_frame_offers(row, stored_type, frames.encapsulated, alone=len(numbers) == 1))
    etag = entity_tag(row.file_key, *map(str, numbers), choice)
    if answer := not_modified(etag):
        return answer
    if not frames.separable:
        raise BadRequest("The frames of this instance cannot be told apart; retrieve the instance or its bulk data")
    as_stored = choice.transfer_syntax in (AS_STORED, row.transfer_syntax) or choice.offer.media_type != OCTET_STREAM
    decode = frames.encapsulated and not as_stored
    parts = _frame_parts(archive, row, frames, numbers, stored_type, locations, decode=decode)
    if not choice.offer.multipart:
        return _single_part(next(iter(parts)), etag)
    return _multipart(MultipartBody(OCTET_STREAM if decode else stored_type, parts), etag)


def _frame_numbers(text: str) -> list[int]:
    numbers = [int(item) if item.isascii() and item.isdigit() and len(item) < 10 else 0 for item in text.split(",")]
    if len(numbers) > _MAX_FRAMES:
        raise BadRequest(f"More than {_MAX_FRAMES} frames are asked for at once")
    if min(numbers) < 1:
        raise BadRequest(f"The frame list must be numbers from 1, separated by commas, not {text[:80]!r}")
    return numbers


def _frame_offers(row: InstanceRow, stored_type: str, encapsulated: bool, *, alone: bool) -> list[Offer]:
    """Uncompressed pixels first, the default; then the stored bit stream in a media type of its own."""
    syntaxes = (EXPLICIT_LITTLE_ENDIAN, row.transfer_syntax) if encapsulated else (EXPLICIT_LITTLE_ENDIAN,)
    offers = []
    for multipart in (True, False) if alone else (True,):
        offers.append(Offer(OCTET_STREAM, multipart=multipart, transfer_syntaxes=syntaxes))
        if stored_type != OCTET_STREAM:
            offers.append(Offer(stored_type, multipart=multipart, transfer_syntaxes=(row.transfer_syntax,)))
    return offers


def _frame_parts(
    archive: Archive,
    row: InstanceRow,
    frames: Frames,
    numbers: Sequence[int],
    stored_type: str,
    locations: Mapping[int, str],
    *,
    decode: bool,
) -> Iterable[OutgoingPart]:
    native = f"{OCTET_STREAM}; transfer-syntax={EXPLICIT_LITTLE_ENDIAN}"
    stored = f"{stored_type}; transfer-syntax={row.transfer_syntax}" if frames.encapsulated else native

    def part(number: int) -> OutgoingPart:
        headers = {"Content-Location": locations[number]}
        if decode:
            # What cannot be had uncompressed goes out as stored, and its part says so (PS3.18 8.7.3.4).
            with suppress(CannotDecode):
                data = archive.decode_frame(row, number)
                return OutgoingPart({"Content-Type": native, **headers}, len(data), [data])
        data = archive.read_frame(row, frames, number)
        return OutgoingPart({"Content-Type": stored, **headers}, len(data), [data])

    return [part(numbers[0])] if len(numbers) == 1 else map(part, numbers)


# ------------------------------------------------------------------------------------------------ bulk data

_BULK_DATA = {
    "200": {
        "description": "The value, little endian",
        "content": content('multipart/related; type="application/octet-stream"', OCTET_STREAM),
    },
    "206": {"description": "The range asked for", "content": content(OCTET_STREAM)},
    **faults(400, 404, 406, 410, 416),
}


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/bulkdata/<path:attribute>")
@blueprint.doc(
    summary="Retrieve Bulk Data",
    description="The value that a BulkDataURI of the metadata names: a tag, or tag/item/tag… inside sequences.",
    parameters=[header("Range", "bytes=first-last, of a single part")],
    responses=_BULK_DATA,
)
def retrieve_bulk_data(study: str, series: str, instance: str, attribute: str) -> Response:
    check_uids(study=study, series=series, instance=instance)
    archive = current_service().archive
    row, value = archive.bulk_value(study, series, instance, attribute.upper())
    url = f"{service_url()}/studies/{study}/series/{series}/instances/{instance}"
    if value.path == _PIXEL_DATA and value.encapsulated:
        _, frames = archive.frames(study, series, instance)
        if frames is not None and frames.encapsulated:
            return _send_encapsulated(row, frames, f"{url}/bulkdata/{attribute}")
    choice = negotiated([Offer(OCTET_STREAM, multipart=True), Offer(OCTET_STREAM, multipart=False)])
    etag = entity_tag(row.file_key, attribute, choice)
    if answer := not_modified(etag):
        return answer
    file, size = archive.open_bulk_value(row, value)
    headers = {"Content-Type": OCTET_STREAM, "Content-Location": f"{url}/bulkdata/{attribute}"}
    if choice.offer.multipart:
        return _multipart(MultipartBody(OCTET_STREAM, [OutgoingPart(headers, size, read_in_pieces(file, size))]), etag)
    return _byte_range(file, size, headers, etag)


def _send_encapsulated(row: InstanceRow, frames: Frames, url: str) -> Response:
    """Compressed pixel data: each frame a part (PS3.18 8.7.3.3.2), or the stream where frames cannot be told apart."""
    if frames.separable:
        numbers = range(1, frames.count + 1)
        return _send_frames(row, frames, dict.fromkeys(numbers, url), numbers)
    syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
    media_type = syntax.media_type if syntax else OCTET_STREAM
    stored = (row.transfer_syntax, EXPLICIT_LITTLE_ENDIAN)  # there is no uncompressed form: PS3.18 8.7.3.4
    offers = [
        Offer(kind, multipart=parts, transfer_syntaxes=stored)
        for parts in (True, False)
        for kind in (media_type, OCTET_STREAM)
    ]
    choice = negotiated(offers)
    etag = entity_tag(row.file_key, url, choice)
    if answer := not_modified(etag):
        return answer
    size = sum(length for _, length in frames.stream())
    headers = {"Content-Type": f"{media_type}; transfer-syntax={row.transfer_syntax}", "Content-Location": url}
    part = OutgoingPart(headers, size, current_service().archive.read_stream(row, frames))
    return _multipart(MultipartBody(media_type, [part]), etag) if choice.offer.multipart else _single_part(part, etag)


def _byte_range(file: BinaryIO, size: int, headers: dict[str, str], etag: str) -> Response:
    """The range of the value that the Range header asks for, or all of it (RFC 9110 14)."""
    headers["Accept-Ranges"] = "bytes"
    asked = request.range
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return _single_part(OutgoingPart(headers, size, read_in_pieces(file, size)), etag)
    limits = asked.range_for_length(size)
    if limits is None:
        file.close()
        raise RangeNotSatisfiable(
            f"The value has {size} bytes; the range lies outside", headers={"Content-Range": f"bytes */{size}"}
        )
    first, end = limits
    file.seek(first, 1)
    headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    response = _single_part(OutgoingPart(headers, end - first, read_in_pieces(file, end - first)), etag)
    response.status_code = 206
    return response


# ------------------------------------------------------------------------------------------- what all share


def negotiated(offers: Sequence[Offer]) -> Choice:
    """The offer that the request accepts (PS3.18 8.7.5). Raises BadRequest, NotAcceptable."""
    return negotiate(request.headers.get("Accept"), request.args.get("accept"), offers)


def entity_tag(*marks: object) -> str:
    """An ETag for a representation: equal when all marks are."""
    return blake2b("|".join(map(str, marks)).encode(), digest_size=16).hexdigest()


def _single_part(part: OutgoingPart, etag: str) -> Response:
    response = Response(cast(Iterable[bytes], part.chunks), direct_passthrough=True)
    response.headers.update(part.headers)
    if part.size is not None:
        response.content_length = part.size
    response.set_etag(etag)
    response.vary.add("Accept")
    return response


def _multipart(body: MultipartBody, etag: str) -> Response:
    response = Response(body, content_type=body.content_type, direct_passthrough=True)
    if body.content_length is not None:
        response.content_length = body.content_length
    response.set_etag(etag)
    response.vary.add("Accept")
    return response
