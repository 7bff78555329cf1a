"""Rendered resources and thumbnails of studies, series, instances and frames (PS3.18 10.4.1.1.3, 10.4.1.1.4, 8.3.5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Final

from flask import Response, request

from ..archive import Archive, ImageFile, InstanceRow
from ..dicom import reports, waveforms
from ..dicom.metadata import text
from ..dicom.presentation_state import PRESENTATION_STATES, referenced_images
from ..dicom.rendered_files import animation, frame_image, thumbnail_image
from ..dicom.rendering import IMAGE_TYPES
from ..dicom.rendering_parameters import Rendering, parse_rendering
from ..dicom.stored_image import CannotRender
from ..dicom.values import Attributes
from ..errors import BadRequest, Gone, NotAcceptable, NotFound
from .multipart import OutgoingPart
from .negotiation import Choice, Offer
from .openapi import content, faults, query
from .responses import negotiated, not_modified, warning
from .retrieve import Source, blueprint, entity_tag, instance_url, multipart, single_part
from .service import check_uids, current_service, service_url
from .wado_frames import frame_numbers

JPEG: Final = "image/jpeg"
_PRESENTATION_STATES: Final = "1.2.840.10008.5.1.4.1.1.11."
_PAGES: Final = ("text/html", "text/plain")
_ANIMATED: Final = ("image/gif", "image/webp")
_TRIED: Final = 5  # instances of a series that are looked at for a thumbnail

_TYPES = content(*IMAGE_TYPES, "video/mp4", "application/pdf", "text/html", "text/plain", "image/svg+xml")
_PARAMETERS = [
    query("annotation", "What is burned in: `patient`, `technique`, separated by commas"),
    query("quality", "1 to 100, of lossy media types"),
    query("viewport", "`vw,vh` or `vw,vh,sx,sy,sw,sh`: the box to fill, and the part to show; a negative size mirrors"),
    query("window", "`center,width,function`: linear, linear-exact or sigmoid"),
    query("iccprofile", "no, yes, srgb, adobergb, rommrgb"),
    query("accept", "The media type, in place of the Accept header"),
]
_RENDERED: dict[str, Any] = {
    "parameters": _PARAMETERS,
    "responses": {
        "200": {"description": "The picture, film, report or document; several in parts", "content": _TYPES},
        **faults(400, 404, 406, 410),
    },
}
_RENDERED_PARTS = _RENDERED | {
    "responses": {
        "200": {
            "description": "A part for each picture or page",
            "content": content(*(f'multipart/related; type="{kind}"' for kind in (*IMAGE_TYPES, *_PAGES))),
        },
        **faults(400, 404, 406, 410),
    },
}
_THUMBNAIL: dict[str, Any] = {
    "parameters": [query("viewport", "`vw,vh`: the box; 128,128 if none is given"), _PARAMETERS[-1]],
    "responses": {
        "200": {"description": "A small picture", "content": content(*IMAGE_TYPES)},
        **faults(400, 404, 406, 410),
    },
}


# -------------------------------------------------------------------------------------------------- rendered


@blueprint.route("/studies/<study>/rendered")
@blueprint.doc(summary="Retrieve Rendered Study", **_RENDERED_PARTS)
def retrieve_rendered_study(study: str) -> Response:
    return _rendered_instances(study)


@blueprint.route("/studies/<study>/series/<series>/rendered")
@blueprint.doc(summary="Retrieve Rendered Series", **_RENDERED_PARTS)
def retrieve_rendered_series(study: str, series: str) -> Response:
    return _rendered_instances(study, series)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/rendered")
@blueprint.doc(summary="Retrieve Rendered Instance", **_RENDERED)
def retrieve_rendered_instance(study: str, series: str, instance: str) -> Response:
    check_uids(study=study, series=series, instance=instance)
    row, file = current_service().archive.described(study, series, instance)
    rendering, warnings = parse_rendering(_pairs())
    types = rendered_types(row, file)
    try:
        choice = negotiated(_offers(types))
    except NotAcceptable as error:
        raise NotAcceptable(f"{why_no_picture(row, types)}{error.message}") from None
    location = f"{instance_url(row)}/rendered"
    return send_rendered(row, file, choice, rendering, location, warnings)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/frames/<frame_list>/rendered")
@blueprint.doc(summary="Retrieve Rendered Frames", **_RENDERED)
def retrieve_rendered_frames(study: str, series: str, instance: str, frame_list: str) -> Response:
    check_uids(study=study, series=series, instance=instance)
    row, file, numbers = _frames(study, series, instance, frame_list)
    rendering, warnings = parse_rendering(_pairs())
    kinds = [
        Offer(kind, multipart=parts)
        for parts in ((False, True) if len(numbers) == 1 else (True,))
        for kind in IMAGE_TYPES
    ]
    choice = negotiated(kinds)
    location = f"{instance_url(row)}/frames"
    etag = entity_tag(choice, row.file_key, numbers, rendering)
    if answer := not_modified(etag):
        return answer
    archive = current_service().archive
    kind = choice.offer.media_type
    if len(numbers) == 1:
        picture = archive.rendered(row, file, frame_image, numbers[0], rendering, kind)
        return _one(picture, choice, etag, f"{location}/{numbers[0]}/rendered", warnings)
    pictures = (archive.rendered(row, file, frame_image, number, rendering, kind) for number in numbers)
    parts = (
        _part(picture, kind, f"{location}/{number}/rendered") for number, picture in zip(numbers, pictures, strict=True)
    )
    return _warned(multipart(kind, _first_now(parts), etag, f"{location}/{frame_list}/rendered"), warnings)


def _rendered_instances(study: str, series: str | None = None) -> Response:
    """Every instance that can be had in the media type, a part for each picture; the others are left out."""
    check_uids(study=study, series=series)
    archive = current_service().archive
    rows = archive.instances(study, series)
    rendering, warnings = parse_rendering(_pairs())
    choice = negotiated([Offer(kind, multipart=True) for kind in (*IMAGE_TYPES, *_PAGES)])
    etag = entity_tag(choice, *(row.file_key for row in rows), rendering)
    if answer := not_modified(etag):
        return answer
    kind = choice.offer.media_type
    base = service_url()
    parts = _first_now(_parts_of_all(archive, rows, kind, rendering, base))
    location = f"{base}/studies/{study}" + (f"/series/{series}" if series else "") + "/rendered"
    return _warned(multipart(kind, parts, etag, location), warnings)


def _parts_of_all(
    archive: Archive, rows: Sequence[InstanceRow], kind: str, rendering: Rendering, base: str
) -> Iterator[OutgoingPart]:
    found = False
    for row in rows:
        try:
            _, file = archive.described(row.study_uid, row.series_uid, row.sop_uid)
        except (NotFound, Gone):  # deleted meanwhile
            continue
        if kind not in reports.media_types_of(file.attributes, row.transfer_syntax):
            continue
        location = f"{base}/studies/{row.study_uid}/series/{row.series_uid}/instances/{row.sop_uid}/rendered"
        try:
            for piece in _pieces(archive, row, file, kind, rendering, base=base, alone=kind in _ANIMATED):
                found = True
                yield _part(piece, kind, location)
        except (CannotRender, waveforms.CannotDraw, BadRequest):
            continue
    if not found:
        raise NotAcceptable(f"Nothing here can be rendered as {kind}")


def send_rendered(
    row: InstanceRow,
    file: ImageFile,
    choice: Choice,
    rendering: Rendering,
    location: str,
    warnings: Sequence[str] = (),
    *,
    frame: int | None = None,
) -> Response:
    """One instance in the rendered media type of the choice; `frame`: that frame only."""
    archive = current_service().archive
    kind = choice.offer.media_type
    etag = entity_tag(choice, row.file_key, rendering, frame)
    if answer := not_modified(etag):
        return answer
    if kind.startswith("video/"):
        return _warned(single_part(_stream(archive, row, kind, location), etag), warnings)
    if (
        kind not in IMAGE_TYPES
        and (document := reports.encapsulated_document(file.attributes))
        and document.media_type == kind
    ):
        return _warned(_send_document(archive, row, document, choice, etag, location), warnings)
    alone = not choice.offer.multipart
    pieces = _pieces(archive, row, file, kind, rendering, base=service_url(), alone=alone, frame=frame)
    if alone:
        return _one(next(pieces), choice, etag, location, warnings)
    parts = _first_now(_part(piece, kind, location) for piece in pieces)
    return _warned(multipart(kind, parts, etag, location), warnings)


def _pieces(
    archive: Archive,
    row: InstanceRow,
    file: ImageFile,
    kind: str,
    rendering: Rendering,
    *,
    base: str,
    alone: bool,
    frame: int | None = None,
) -> Iterator[bytes]:
    """The renderings of an instance; with `alone`, the one that stands for all."""
    attributes = file.attributes
    if kind in _PAGES:
        bulk = partial(_octets, archive, row)
        yield (
            reports.report_html(attributes, bulk=bulk, link=_links(attributes, base))
            if kind == "text/html"
            else reports.report_text(attributes, bulk=bulk)
        )
    elif "54000100" in attributes:
        samples = partial(_octets, archive, row)
        draw = waveforms.waveform_svg if kind == "image/svg+xml" else waveforms.waveform_png
        yield draw(attributes, samples, annotate=rendering.annotation)
    elif row.sop_class_uid in PRESENTATION_STATES:
        yield from islice(_presented(archive, row, file, kind, rendering), 1 if alone else None)
    elif kind in _ANIMATED and alone and frame is None and row.number_of_frames > 1:
        yield archive.rendered(row, file, animation, rendering, kind)
    elif alone or frame is not None:
        number = frame or representative_frame(row, attributes)
        yield archive.rendered(row, file, frame_image, number, rendering, kind)
    else:
        for number in range(1, row.number_of_frames + 1):
            yield archive.rendered(row, file, frame_image, number, rendering, kind)


def _links(attributes: Attributes, base: str) -> reports.Link:
    """Where the instances that a document refers to can be seen; `base` is the root of the services."""
    places = reports.referenced_instances(attributes)

    def link(sop_class: str, uid: str) -> str:
        if uid not in places:
            return ""
        study, series = places[uid]
        return f"{base}/studies/{study}/series/{series}/instances/{uid}/rendered"

    return link


def _presented(
    archive: Archive, state_row: InstanceRow, state: ImageFile, kind: str, rendering: Rendering
) -> Iterator[bytes]:
    """The images that a presentation state refers to, in its order, as it wants them to be seen."""
    images = _referenced_images(archive, state_row, state)
    for uid, numbers in referenced_images(state.attributes):
        if uid in images:
            row, file = archive.described(state_row.study_uid, images[uid].series_uid, uid)
            for number in numbers or range(1, row.number_of_frames + 1):
                yield archive.rendered(row, file, frame_image, number, rendering, kind, state)


def rendered_types(row: InstanceRow, file: ImageFile) -> tuple[str, ...]:
    """The media types in which an instance can be had now, the default one first; never empty.

    A presentation state none of whose images is here can be read only.
    """
    types = reports.media_types_of(file.attributes, row.transfer_syntax)
    if row.sop_class_uid in PRESENTATION_STATES and not _referenced_images(current_service().archive, row, file):
        return tuple(kind for kind in types if kind not in IMAGE_TYPES)
    return types


def why_no_picture(row: InstanceRow, types: Sequence[str]) -> str:
    """What the message of a 406 begins with where one might expect a picture."""
    if not row.sop_class_uid.startswith(_PRESENTATION_STATES) or types[0] in IMAGE_TYPES:
        return ""
    if row.sop_class_uid in PRESENTATION_STATES:
        return "None of the images to which the presentation state refers is here. "
    return "Presentation states of this kind (blending, volumetric, structured display) are not drawn. "


def _referenced_images(archive: Archive, row: InstanceRow, state: ImageFile) -> dict[str, InstanceRow]:
    """Those of the images that a presentation state refers to that are stored, by SOP Instance UID."""
    wanted = {uid for uid, _ in referenced_images(state.attributes)}
    return {
        other.sop_uid: other
        for other in archive.instances(row.study_uid)
        if other.sop_uid in wanted and other.number_of_frames
    }


def representative_frame(row: InstanceRow, attributes: Attributes) -> int:
    """Representative Frame Number (0028,6010), else the frame in the middle."""
    declared = text(attributes, "RepresentativeFrameNumber")
    if declared.isdigit() and 1 <= int(declared) <= row.number_of_frames:
        return int(declared)
    return max(1, (row.number_of_frames + 1) // 2)


# ------------------------------------------------------------------------------------------------ thumbnails


@blueprint.route("/studies/<study>/thumbnail")
@blueprint.doc(summary="Retrieve Study Thumbnail", **_THUMBNAIL)
def retrieve_study_thumbnail(study: str) -> Response:
    return _thumbnail(study)


@blueprint.route("/studies/<study>/series/<series>/thumbnail")
@blueprint.doc(summary="Retrieve Series Thumbnail", **_THUMBNAIL)
def retrieve_series_thumbnail(study: str, series: str) -> Response:
    return _thumbnail(study, series)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/thumbnail")
@blueprint.doc(summary="Retrieve Instance Thumbnail", **_THUMBNAIL)
def retrieve_instance_thumbnail(study: str, series: str, instance: str) -> Response:
    return _thumbnail(study, series, instance)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/frames/<frame_list>/thumbnail")
@blueprint.doc(summary="Retrieve Frame Thumbnail", **_THUMBNAIL)
def retrieve_frame_thumbnail(study: str, series: str, instance: str, frame_list: str) -> Response:
    check_uids(study=study, series=series, instance=instance)
    row, file, numbers = _frames(study, series, instance, frame_list)
    return _send_thumbnail(row, file, numbers[0], f"{instance_url(row)}/frames/{frame_list}/thumbnail")


def _thumbnail(study: str, series: str | None = None, instance: str | None = None) -> Response:
    check_uids(study=study, series=series, instance=instance)
    archive = current_service().archive
    location = request.base_url
    if series is not None and instance is not None:
        row, file = archive.described(study, series, instance)
        if not row.number_of_frames:
            raise NotFound("The instance is no image; there is no thumbnail of it")
        return _send_thumbnail(row, file, representative_frame(row, file.attributes), location)
    faults: list[str] = []
    rows = [row for row in archive.instances(study, series) if row.number_of_frames]
    for row in islice(_most_telling(rows), _TRIED):
        row, file = archive.described(row.study_uid, row.series_uid, row.sop_uid)
        if text(file.attributes, "BurnedInAnnotation") == "YES":
            continue
        try:
            return _send_thumbnail(row, file, representative_frame(row, file.attributes), location)
        except CannotRender as error:
            faults.append(str(error))
    raise NotFound(faults[0] if faults else "There is no image to make a thumbnail of")


def _most_telling(rows: Sequence[InstanceRow]) -> Iterator[InstanceRow]:
    """From the middle of the largest series outwards; screen shots and ultrasound, which may show names, come last."""
    series: dict[str, list[InstanceRow]] = {}
    for row in rows:
        series.setdefault(row.series_uid, []).append(row)
    risky = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3")
    ordered = sorted(series.values(), key=lambda group: (group[0].sop_class_uid.startswith(risky), -len(group)))
    for group in ordered:
        middle = (len(group) - 1) / 2
        yield from sorted(group, key=lambda row: abs(group.index(row) - middle))[:3]


def _send_thumbnail(row: InstanceRow, file: ImageFile, number: int, location: str) -> Response:
    rendering, warnings = parse_rendering((key, value) for key, value in _pairs() if key == "viewport")
    choice = negotiated([Offer(kind) for kind in IMAGE_TYPES])
    etag = entity_tag(choice, row.file_key, "thumbnail", number, rendering.viewport)
    if answer := not_modified(etag):
        return answer
    archive = current_service().archive
    picture = archive.rendered(row, file, thumbnail_image, number, rendering.viewport, choice.offer.media_type)
    return _one(picture, choice, etag, location, warnings)


# --------------------------------------------------------------------------------------------- what all share


@lru_cache(maxsize=64)
def _offers(types: tuple[str, ...]) -> tuple[Offer, ...]:
    return tuple(Offer(kind, multipart=parts) for parts in (False, True) for kind in types)


def _pairs() -> list[tuple[str, str]]:
    return list(request.args.items(multi=True))


def _frames(study: str, series: str, instance: str, frame_list: str) -> tuple[InstanceRow, ImageFile, list[int]]:
    numbers = frame_numbers(frame_list)
    row, file = current_service().archive.described(study, series, instance)
    if not row.number_of_frames:
        raise NotFound("The instance has no pixel data, thus no frames")
    if max(numbers) > row.number_of_frames:
        raise NotFound(f"The instance has {row.number_of_frames} frames; there is no frame {max(numbers)}")
    return row, file, numbers


def _one(content_: bytes, choice: Choice, etag: str, location: str, warnings: Sequence[str]) -> Response:
    part = _part(content_, choice.offer.media_type, location)
    if choice.offer.multipart:
        return _warned(multipart(choice.offer.media_type, [part], etag, location), warnings)
    return _warned(single_part(part, etag), warnings)


def _part(content_: bytes, kind: str, location: str) -> OutgoingPart:
    headers = {
        "Content-Type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
        "Content-Location": location,
    }
    if kind == "text/html":
        headers["Content-Security-Policy"] = reports.CONTENT_SECURITY_POLICY
    elif kind == "image/svg+xml":
        headers["Content-Security-Policy"] = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
    return OutgoingPart(headers, len(content_), [content_])


def _first_now(parts: Iterator[OutgoingPart]) -> Iterator[OutgoingPart]:
    """The parts, the first of which is made at once, so that its fault can still be the status of the answer."""
    first = next(parts)

    def all_parts() -> Iterator[OutgoingPart]:
        yield first
        yield from parts

    return all_parts()


def _stream(archive: Archive, row: InstanceRow, kind: str, location: str) -> OutgoingPart:
    """A film as it is stored, of which ranges can be had."""
    _, frames = archive.frames(row.study_uid, row.series_uid, row.sop_uid)
    if frames is None:
        raise NotFound("The instance has no pixel data")
    size = sum(length for _, length in frames.stream())
    source = Source(lambda first, end: archive.read_stream(row, frames, first, end), size)
    return OutgoingPart({"Content-Type": kind, "Content-Location": location}, size, source)


def _send_document(
    archive: Archive, row: InstanceRow, document: reports.EncapsulatedDocument, choice: Choice, etag: str, location: str
) -> Response:
    content_ = document.content
    if content_ is None:
        content_ = _octets(archive, row, document.path)[: document.length]
    headers = {"Content-Type": document.media_type, "Content-Location": location}
    if document.media_type != "application/pdf":  # a stored page is not to act as one of this server's
        headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    part = OutgoingPart(headers, len(content_), [content_])
    if choice.offer.multipart:
        return multipart(document.media_type, [part], etag, location)
    return single_part(part, etag)


def _octets(archive: Archive, row: InstanceRow, path: str) -> bytes:
    _, value = archive.bulk_value(row.study_uid, row.series_uid, row.sop_uid, path.lstrip("/"))
    file, size = archive.open_bulk_value(row, value)
    with file:
        return file.read(size)


def _warned(response: Response, warnings: Sequence[str]) -> Response:
    for line in warnings:
        response.headers.add("Warning", warning(line))
    return response
