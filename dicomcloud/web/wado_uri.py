"""WADO-URI: one instance by query parameters (PS3.18 9), as DICOM, rendered, as pixels or as metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson
from flask import Response, request
from werkzeug.urls import iri_to_uri

from ..archive import ImageFile, InstanceRow
from ..dicom.attributes import is_uid
from ..dicom.deidentification import CannotDeidentify
from ..dicom.metadata import native_model_xml
from ..dicom.pixel_data import CannotTranscode, leaves_as_stored
from ..dicom.rendered_files import frame_image
from ..dicom.rendering import IMAGE_TYPES
from ..dicom.rendering_parameters import Rendering, UriRendering, parse_uri_rendering
from ..errors import BadRequest, NotAcceptable, NotFound
from .auth import check_visible
from .multipart import OutgoingPart
from .negotiation import Choice, Offer, check_charset
from .openapi import Blueprint, content, faults, query
from .responses import DICOM_JSON, DICOM_XML, not_modified, warning, with_bulk_data_urls
from .retrieve import (
    AS_STORED,
    DICOM,
    EXPLICIT_LITTLE_ENDIAN,
    OCTET_STREAM,
    Source,
    Unattainable,
    entity_tag,
    single_part,
)
from .service import current_service, service_url
from .wado_rendered import rendered_types, representative_frame, send_rendered, why_no_picture
from .wado_rs import ENCODABLE, REDIRECT, single_instance

blueprint = Blueprint("WADO-URI", __name__, description="Retrieve by query parameters (PS3.18 9)")

_UIDS = {"studyUID": "Study Instance UID", "seriesUID": "Series Instance UID", "objectUID": "SOP Instance UID"}
_ALIASES = {"image/jpg": "image/jpeg"}  # sent by real clients
_OTHER: Final = (DICOM, OCTET_STREAM, DICOM_JSON, DICOM_XML)
_ONLY_RENDERED: Final = (
    ("annotation", "imageAnnotation", "rows", "columns", "region", "windowCenter", "windowWidth")
    + ("imageQuality", "presentationUID", "presentationSeriesUID")
)  # fmt: skip
_PARAMETERS = [
    query("requestType", "Always `WADO`", {"type": "string", "enum": ["WADO"]}, required=True),
    *(query(name, description, required=True) for name, description in _UIDS.items()),
    query("contentType", "Media types, separated by commas; else those of the Accept header, or the object's own"),
    query("transferSyntax", "Of application/dicom: the UID of a transfer syntax, or `*` for the stored one"),
    query("frameNumber", "A frame of a multi-frame object, from 1", {"type": "integer", "minimum": 1}),
    query("rows", "Most rows of the picture", {"type": "integer", "minimum": 1}),
    query("columns", "Most columns of the picture", {"type": "integer", "minimum": 1}),
    query("region", "`xmin,ymin,xmax,ymax`, each from 0.0 to 1.0: the part to show"),
    query("windowCenter", "Together with windowWidth", {"type": "number"}),
    query("windowWidth", "Together with windowCenter", {"type": "number"}),
    query("imageQuality", "1 to 100, of lossy media types", {"type": "integer"}),
    query("annotation", "What is burned in: `patient`, `technique`, separated by commas"),
    query("presentationUID", "SOP Instance UID of a presentation state to show the image with"),
    query("presentationSeriesUID", "Its Series Instance UID"),
    query("anonymize", "`yes`: a de-identified copy, of application/dicom"),
    query("charset", "Character sets of text; UTF-8 is what there is"),
]


@blueprint.route("")
@blueprint.doc(
    summary="Retrieve Instance by WADO-URI",
    parameters=_PARAMETERS,
    responses={
        "200": {
            "description": "The instance",
            "content": content(
                DICOM, *IMAGE_TYPES, "text/html", "application/pdf", OCTET_STREAM, DICOM_JSON, DICOM_XML
            ),
        },
        **REDIRECT,
        **faults(400, 404, 406, 410),
    },
)
def retrieve_by_uri() -> Response:
    request_type = _parameter("requestType") or _parameter("RequestType")  # the original wrote RequestType=wado
    if request_type.upper() != "WADO":
        raise BadRequest(f"requestType must be WADO, not {request_type[:40]!r}")
    uids = [_uid(name) for name in _UIDS]
    check_visible(uids[0])
    check_charset(_parameter("charset"))
    asked, warnings = parse_uri_rendering(request.args.items(multi=True))
    row, file = current_service().archive.described(*uids)
    anonymize = _anonymize(_parameter("anonymize"))
    if asked.frame is not None and asked.frame > max(row.number_of_frames, 1):
        raise BadRequest(f"frameNumber is {asked.frame}; the object has {row.number_of_frames} frames")
    rendered = rendered_types(row, file)
    kind = _kind(_wanted_types(), rendered)
    if kind not in (*rendered, *_OTHER):
        available = ", ".join((*rendered, *_OTHER))
        why = why_no_picture(row, rendered)
        raise NotAcceptable(f"{why}contentType {kind[:80]!r} is not available; available: {available}")
    if kind in _OTHER:
        if anonymize and kind == DICOM:
            return _send_deidentified(row)
        if anonymize:
            raise BadRequest(f"anonymize goes with contentType=application/dicom only, not with {kind}")
        return _send_data(row, kind, asked)
    if anonymize:
        raise BadRequest(f"anonymize goes with contentType=application/dicom only, not with {kind}")
    if _parameter("transferSyntax"):
        raise BadRequest("transferSyntax goes with contentType=application/dicom only")
    if asked.presentation_state is not None:
        return _send_presented(row, file, kind, asked, warnings)
    location = request.url
    choice = Choice(Offer(kind))
    frame = asked.frame or (
        representative_frame(row, file.attributes) if kind in IMAGE_TYPES and kind != "image/gif" else None
    )
    return send_rendered(row, file, choice, asked.rendering, location, warnings, frame=frame)


def _wanted_types() -> list[str]:
    """The media types that are asked for, best first: `contentType`, else the Accept header (PS3.18 9.5.1.1.1)."""
    given = _parameter("contentType")
    source = given or request.headers.get("Accept", "*/*")
    found: list[tuple[float, int, str]] = []
    for number, item in enumerate(source.split(",")):
        name, *parameters = (piece.strip().lower() for piece in item.split(";"))
        name = name.replace(" ", "+")  # an unescaped + arrives as a blank
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = float(value) if value.replace(".", "", 1).isdigit() else 0.0
            elif given and key.strip() in ("transfer-syntax", "charset"):
                raise BadRequest(f"contentType has no parameter {key.strip()[:40]!r}; it is a parameter of the request")
        if name and weight > 0:
            found.append(
                (-weight, number, _ALIASES.get(name.replace(" ", "+").lower(), name.replace(" ", "+").lower()))
            )
    types = [name for _, _, name in sorted(found)]
    if given and DICOM in types and any(name in IMAGE_TYPES or name.startswith("text/") for name in types):
        raise BadRequest("contentType mixes application/dicom with rendered media types")
    return types


def _kind(types: Sequence[str], rendered: Sequence[str]) -> str:
    """The first of the wanted media types that the object has; the object's own for `*/*` or another service's type."""
    own = "image/jpeg" if "image/jpeg" in rendered else rendered[0]
    for name in types:
        if name in rendered or name in _OTHER:
            return name
        if name == "*/*" or name.startswith("multipart/"):
            return own
        if name.endswith("/*") and (match := next((kind for kind in rendered if kind.startswith(name[:-1])), None)):
            return match
    return types[0] if types else own


def _send_data(row: InstanceRow, kind: str, asked: UriRendering) -> Response:
    for name in _ONLY_RENDERED:
        if name in request.args:
            raise BadRequest(f"{name} goes with rendered media types only, not with {kind}")
    if kind == DICOM:
        response = _send_dicom(row)
        if asked.frame is not None:  # cornerstone's loader sends it, and takes the frame out of the file itself
            response.headers.add("Warning", warning("frameNumber is ignored: application/dicom is the whole object"))
        return response
    etag = entity_tag(None, row.file_key, kind, asked.frame, service_url())
    if answer := not_modified(etag):
        return answer
    if kind == OCTET_STREAM:
        archive = current_service().archive
        _, frames = archive.frames(row.study_uid, row.series_uid, row.sop_uid)
        if frames is None:
            raise NotAcceptable("The object has no pixel data, thus no application/octet-stream")
        with archive.open_frame_as(row, frames, asked.frame or 1, EXPLICIT_LITTLE_ENDIAN) as file:
            data = file.read()
    else:
        _, document = current_service().archive.document(row.study_uid, row.series_uid, row.sop_uid)
        document = with_bulk_data_urls(document, service_url())
        data = document if kind == DICOM_JSON else native_model_xml(orjson.loads(document))
    headers = {"Content-Type": kind, "Content-Location": iri_to_uri(request.url)}
    return single_part(OutgoingPart(headers, len(data), [data]), etag)


def _send_dicom(row: InstanceRow) -> Response:
    syntax = _parameter("transferSyntax") or EXPLICIT_LITTLE_ENDIAN
    if syntax != AS_STORED and not is_uid(syntax):
        raise BadRequest(f"transferSyntax is not a UID: {syntax[:80]!r}")
    available = {AS_STORED, EXPLICIT_LITTLE_ENDIAN, *ENCODABLE}
    if leaves_as_stored(row.transfer_syntax):
        available.add(row.transfer_syntax)
    try:
        if syntax not in available:
            raise Unattainable([syntax])
        etag = entity_tag(None, row.file_key, syntax)
        return not_modified(etag) or single_instance(row, syntax, etag)
    except Unattainable:
        text = ", ".join(sorted(available - {syntax}))
        raise NotAcceptable(f"transferSyntax {syntax} is not available; available: {text}") from None


def _send_presented(
    row: InstanceRow, file: ImageFile, kind: str, asked: UriRendering, warnings: Sequence[str]
) -> Response:
    """The image as a presentation state of the same study wants it to be seen (PS3.18 9.5.1.2.8)."""
    assert asked.presentation_state is not None
    archive = current_service().archive
    series, uid = asked.presentation_state
    try:
        state_row, state = archive.described(row.study_uid, series, uid)
    except NotFound:
        raise BadRequest(f"presentationUID: there is no presentation state {uid} in the series {series}") from None
    etag = entity_tag(None, row.file_key, state_row.file_key, kind, asked)
    if answer := not_modified(etag):
        return answer
    rendering: Rendering = asked.rendering
    data = archive.rendered(row, file, frame_image, representative_frame(row, file.attributes), rendering, kind, state)
    response = single_part(
        OutgoingPart({"Content-Type": kind, "Content-Location": iri_to_uri(request.url)}, len(data), [data]), etag
    )
    for line in warnings:
        response.headers.add("Warning", warning(line))
    return response


def _anonymize(value: str) -> bool:
    if value not in ("", "yes"):
        raise BadRequest(f"anonymize must be yes, not {value[:40]!r}")
    return value == "yes"


def _send_deidentified(row: InstanceRow) -> Response:
    """A copy after the Basic Profile with Clean Pixel Data, under a SOP Instance UID of its own (PS3.18 9.5.1.1.5)."""
    syntax = _parameter("transferSyntax") or EXPLICIT_LITTLE_ENDIAN
    if syntax == AS_STORED:
        syntax = row.transfer_syntax if leaves_as_stored(row.transfer_syntax) else EXPLICIT_LITTLE_ENDIAN
    etag = entity_tag(None, row.file_key, "anonymize", syntax)
    if answer := not_modified(etag):
        return answer
    try:
        copy = current_service().archive.open_deidentified(row, syntax)
    except (CannotDeidentify, CannotTranscode) as error:
        raise NotAcceptable(f"anonymize=yes cannot be done here: {error}") from None
    size = copy.seek(0, 2)
    copy.seek(0)
    headers = {"Content-Type": f"{DICOM}; transfer-syntax={syntax}"}
    return single_part(OutgoingPart(headers, size, Source.of_file(lambda: copy, size)), etag)


def _parameter(name: str) -> str:
    values = request.args.getlist(name)
    if len(values) > 1:
        raise BadRequest(f"The parameter {name} is given {len(values)} times")
    return values[0] if values else ""


def _uid(name: str) -> str:
    value = _parameter(name)
    if not value:
        raise BadRequest(f"The parameter {name} is missing")
    if not is_uid(value):
        raise BadRequest(f"{name} is not a UID: {value[:80]!r}")
    return value
