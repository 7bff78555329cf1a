"""WADO-RS: bulk data and pixel data, one value or all of an instance, a series or a study (PS3.18 10.4.1.1.5, .7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import chain
from typing import BinaryIO, Final

from flask import Response, request

from ..archive import Archive, InstanceRow
from ..dicom import metadata
from ..dicom.frames import BulkValue, Frames
from ..dicom.pixel_data import TRANSFER_SYNTAXES
from ..errors import NotFound
from .multipart import OutgoingPart, parse_media_type, read_in_pieces
from .negotiation import Choice, Offer
from .openapi import content, faults, header
from .responses import not_modified
from .retrieve import (
    EXPLICIT_LITTLE_ENDIAN,
    OCTET_STREAM,
    Source,
    Unattainable,
    attain,
    attributes_of,
    blueprint,
    entity_tag,
    instance_url,
    multipart,
    single_part,
)
from .service import check_uids, current_service, service_url
from .wado_frames import ENCODED_AS, frame_offers, frame_parts, send_frames, target_syntax

PIXEL_DATA: Final = "/7FE00010"
_PIXEL_DATA_PROVIDERS: Final = {PIXEL_DATA, "/7FE00008", "/7FE00009"}  # and Float, Double Float Pixel Data
_ENCAPSULATED_DOCUMENT: Final = "/00420011"

_PARTS = content('multipart/related; type="application/octet-stream"')
_IMAGES = content(*(kind for media in ENCODED_AS for kind in (f'multipart/related; type="{media}"', media)))
_RANGE = [header("Range", "bytes=first-last, of a single part")]
_VALUE = {
    "200": {"description": "The value, little endian", "content": _PARTS | content(OCTET_STREAM)},
    "206": {"description": "The range asked for", "content": content(OCTET_STREAM)},
    **faults(400, 404, 406, 410, 416),
}
_PIXELS = {**_VALUE, "200": {**_VALUE["200"], "content": _PARTS | content(OCTET_STREAM) | _IMAGES}}
_VALUES = {
    "200": {"description": "All values, each a part (compressed pixel data: each frame)", "content": _PARTS},
    **faults(400, 404, 406, 410),
}
_ALL_PIXELS = {
    **_VALUES,
    "200": {
        "description": "The pixel data of all instances, each a part (compressed or encoded: each frame)",
        "content": _PARTS | content(*(f'multipart/related; type="{media}"' for media in ENCODED_AS)),
    },
}
_ABOUT_VALUES = "Content-Location of a part is the BulkDataURI of the metadata."


# ------------------------------------------------------------------------------------------- one value


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/bulkdata/<path:attribute>")
@blueprint.doc(
    summary="Retrieve Bulk Data",
    description="The value that a BulkDataURI of the metadata names: a tag, or tag/item/tag… inside sequences. An "
    "encapsulated document comes in its own media type where that is acceptable.",
    parameters=_RANGE,
    responses=_VALUE,
)
def retrieve_bulk_data(study: str, series: str, instance: str, attribute: str) -> Response:
    check_uids(study=study, series=series, instance=instance)
    row, value = current_service().archive.bulk_value(study, series, instance, attribute.upper())
    return _send_value(row, value, f"{instance_url(row)}/bulkdata/{attribute}")


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/pixeldata")
@blueprint.doc(
    summary="Retrieve Instance Pixel Data",
    description="Pixel Data, Float or Double Float Pixel Data of the top level. " + _ABOUT_VALUES,
    parameters=_RANGE,
    responses=_PIXELS,
)
def retrieve_instance_pixel_data(study: str, series: str, instance: str) -> Response:
    check_uids(study=study, series=series, instance=instance)
    archive = current_service().archive
    (row,) = archive.instances(study, series, instance)
    for value in archive.bulk_values(row):
        if value.path in _PIXEL_DATA_PROVIDERS:
            return _send_value(row, value, f"{instance_url(row)}/bulkdata{value.path}")
    raise NotFound("The instance has no pixel data")


def _send_value(row: InstanceRow, value: BulkValue, location: str) -> Response:
    if value.path == PIXEL_DATA:
        _, frames = current_service().archive.frames(row.study_uid, row.series_uid, row.sop_uid)
        if frames is not None and not frames.separable:
            return _send_stream(row, frames, location)
        if frames is not None and (frames.encapsulated or value.offset >= 0):
            numbers = range(1, frames.count + 1)
            offers: Sequence[Offer] = frame_offers(row.transfer_syntax, frames.encapsulated, alone=frames.count == 1)
            if not frames.encapsulated:  # all frames together in uncompressed form
                octets = [Offer(OCTET_STREAM, multipart=parts, transfer_syntaxes=_NATIVE) for parts in (True, False)]
                offers = [*octets, *(offer for offer in offers if offer.media_type != OCTET_STREAM)]

            def answer(choice: Choice) -> Response:
                if choice.offer.media_type == OCTET_STREAM and not frames.encapsulated:
                    return _send_octets(row, value, location, choice)
                return send_frames(row, frames, dict.fromkeys(numbers, location), numbers, choice, location)

            return attain(offers, answer)
    own = [Offer(kind, multipart=parts) for kind in _media_types(row, value) for parts in (False, True)]
    octets = [Offer(OCTET_STREAM, multipart=parts) for parts in (True, False)]
    return attain([*own, *octets], lambda choice: _send_octets(row, value, location, choice))


_NATIVE = (EXPLICIT_LITTLE_ENDIAN,)


def _media_types(row: InstanceRow, value: BulkValue) -> list[str]:
    """The media type that an encapsulated document has of its own (PS3.18 8.7.3.2)."""
    if value.path != _ENCAPSULATED_DOCUMENT:
        return []
    kind = metadata.text(attributes_of(row), "MIMETypeOfEncapsulatedDocument")
    try:
        name = parse_media_type(kind).name
    except ValueError:
        return []
    return [name] if "*" not in name and not name.startswith("multipart/") else []


def _send_octets(row: InstanceRow, value: BulkValue, location: str, choice: Choice) -> Response:
    """The bytes of the value, or the range of them that was asked for."""
    etag = entity_tag(choice, row.file_key, value.path)
    if answer := not_modified(etag):
        return answer
    kind, size = choice.offer.media_type, value.length
    file: BinaryIO = BytesIO()
    if request.method != "HEAD":
        file, size = current_service().archive.open_bulk_value(row, value)
    headers = {"Content-Type": kind, "Content-Location": location}
    if kind != OCTET_STREAM:
        length = metadata.text(attributes_of(row), "EncapsulatedDocumentLength")
        if length == str(size - 1):  # the last byte only makes the length even
            size -= 1
        if kind != "application/pdf":  # a stored web page is not to act as one of this server's
            headers["Content-Security-Policy"] = "sandbox"
    part = OutgoingPart(headers, size, Source.of_file(lambda: file, size))
    return multipart(kind, [part], etag, location) if choice.offer.multipart else single_part(part, etag)


def _send_stream(row: InstanceRow, frames: Frames, location: str) -> Response:
    """Compressed pixel data whose frames cannot be told apart, e.g. a video, as they are."""
    syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
    media_type = syntax.media_type if syntax else OCTET_STREAM
    stored = (row.transfer_syntax, EXPLICIT_LITTLE_ENDIAN)  # there is no uncompressed form: PS3.18 8.7.3.4
    offers = [
        Offer(kind, multipart=parts, transfer_syntaxes=stored)
        for parts in (True, False)
        for kind in dict.fromkeys((media_type, OCTET_STREAM))
    ]

    def answer(choice: Choice) -> Response:
        etag = entity_tag(choice, row.file_key, PIXEL_DATA)
        part = _stream_part(current_service().archive, row, frames, location)
        return not_modified(etag) or (
            multipart(media_type, [part], etag, location) if choice.offer.multipart else single_part(part, etag)
        )

    return attain(offers, answer)


def _stream_part(archive: Archive, row: InstanceRow, frames: Frames, location: str) -> OutgoingPart:
    syntax = TRANSFER_SYNTAXES.get(row.transfer_syntax)
    kind = f"{syntax.media_type if syntax else OCTET_STREAM}; transfer-syntax={row.transfer_syntax}"
    size = sum(length for _, length in frames.stream())
    headers = {"Content-Type": kind, "Content-Location": location}
    return OutgoingPart(headers, size, Source(lambda first, end: archive.read_stream(row, frames, first, end), size))


# ------------------------------------------------------------------------------------------- all values


def _retrieve_all(kind: str, study: str, series: str | None = None, instance: str | None = None) -> Response:
    check_uids(study=study, series=series, instance=instance)
    rows = current_service().archive.instances(study, series, instance)
    offers = [Offer(OCTET_STREAM, multipart=True, transfer_syntaxes=_NATIVE)]
    if kind == "pixeldata":
        offers += [Offer(media, multipart=True, transfer_syntaxes=syntaxes) for media, syntaxes in ENCODED_AS.items()]
    url = f"{service_url()}/studies/{study}"
    for segment, uid in (("series", series), ("instances", instance)):
        if uid is not None:
            url += f"/{segment}/{uid}"
    return attain(offers, lambda choice: send_all_values(rows, choice, f"{url}/{kind}", pixels=kind == "pixeldata"))


@blueprint.route("/studies/<study>/bulkdata")
@blueprint.doc(summary="Retrieve Study Bulk Data", description=_ABOUT_VALUES, responses=_VALUES)
def retrieve_study_bulk_data(study: str) -> Response:
    return _retrieve_all("bulkdata", study)


@blueprint.route("/studies/<study>/series/<series>/bulkdata")
@blueprint.doc(summary="Retrieve Series Bulk Data", description=_ABOUT_VALUES, responses=_VALUES)
def retrieve_series_bulk_data(study: str, series: str) -> Response:
    return _retrieve_all("bulkdata", study, series)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/bulkdata")
@blueprint.doc(summary="Retrieve Instance Bulk Data", description=_ABOUT_VALUES, responses=_VALUES)
def retrieve_instance_bulk_data(study: str, series: str, instance: str) -> Response:
    return _retrieve_all("bulkdata", study, series, instance)


@blueprint.route("/studies/<study>/pixeldata")
@blueprint.doc(summary="Retrieve Study Pixel Data", description=_ABOUT_VALUES, responses=_ALL_PIXELS)
def retrieve_study_pixel_data(study: str) -> Response:
    return _retrieve_all("pixeldata", study)


@blueprint.route("/studies/<study>/series/<series>/pixeldata")
@blueprint.doc(summary="Retrieve Series Pixel Data", description=_ABOUT_VALUES, responses=_ALL_PIXELS)
def retrieve_series_pixel_data(study: str, series: str) -> Response:
    return _retrieve_all("pixeldata", study, series)


def send_all_values(rows: Sequence[InstanceRow], choice: Choice, location: str, *, pixels: bool) -> Response:
    """Every bulk value of the instances, or their pixel data alone, each a part. Raises NotFound, Unattainable."""
    etag = entity_tag(choice, location, *(row.file_key for row in rows))
    if answer := not_modified(etag):
        return answer
    values = _values(rows, pixels=pixels)
    first_value = next(values, None)
    if first_value is None:
        raise NotFound("There are no pixel data" if pixels else "There are no bulk data")
    parts: Iterator[OutgoingPart] = iter(())
    if request.method != "HEAD":
        parts = _all_parts(chain([first_value], values), choice)
        parts = chain([next(parts)], parts)  # the first one now: its failure is still an answer of its own
    return multipart(choice.offer.media_type, parts, etag, location)


def _values(rows: Sequence[InstanceRow], *, pixels: bool) -> Iterator[tuple[InstanceRow, BulkValue, str]]:
    """Each value with its instance and URL."""
    archive = current_service().archive
    urls = [f"{instance_url(row)}/bulkdata" for row in rows]  # while the request is still there

    def values() -> Iterator[tuple[InstanceRow, BulkValue, str]]:
        for row, url in zip(rows, urls, strict=True):
            for value in archive.bulk_values(row):
                if not pixels or value.path in _PIXEL_DATA_PROVIDERS:
                    yield row, value, url + value.path

    return values()


def _all_parts(values: Iterable[tuple[InstanceRow, BulkValue, str]], choice: Choice) -> Iterator[OutgoingPart]:
    archive = current_service().archive
    media_type = choice.offer.media_type
    for row, value, location in values:
        frames = None
        if value.path == PIXEL_DATA and (value.encapsulated or media_type != OCTET_STREAM):
            _, frames = archive.frames(row.study_uid, row.series_uid, row.sop_uid)
        if frames is not None and frames.separable:
            target = target_syntax(row, frames, choice)
            numbers = range(1, frames.count + 1)
            locations = dict.fromkeys(numbers, location)
            try:
                yield from frame_parts(archive, row, frames, locations, numbers, target)
            except Unattainable:  # as stored; the parts say so
                yield from frame_parts(archive, row, frames, locations, numbers, None)
        elif frames is not None and frames.encapsulated:
            yield _stream_part(archive, row, frames, location)
        else:
            headers = {"Content-Type": OCTET_STREAM, "Content-Location": location}
            file, size = archive.open_bulk_value(row, value)
            yield OutgoingPart(headers, size, read_in_pieces(file, size))
