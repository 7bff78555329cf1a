"""WADO-URI: one instance by query parameters (PS3.18 9). So far as application/dicom."""

from __future__ import annotations

from flask import Response, request
from flask_smorest import Blueprint

from ..dicom.attributes import is_uid
from ..dicom.pixel_data import leaves_as_stored
from ..errors import BadRequest, NotAcceptable
from .openapi import content, faults, query
from .responses import not_modified
from .retrieve import AS_STORED, DICOM, EXPLICIT_LITTLE_ENDIAN, Unattainable, entity_tag
from .service import current_service
from .wado_rs import ENCODABLE, single_instance

blueprint = Blueprint("WADO-URI", __name__, description="Retrieve by query parameters (PS3.18 9)")

_UIDS = {"studyUID": "Study Instance UID", "seriesUID": "Series Instance UID", "objectUID": "SOP Instance UID"}
_PARAMETERS = [
    query("requestType", "Always `WADO`", {"type": "string", "enum": ["WADO"]}, required=True),
    *(query(name, description, required=True) for name, description in _UIDS.items()),
    query("contentType", "`application/dicom`; the image types are not available yet"),
    query("transferSyntax", "The UID of a transfer syntax, or `*` for the stored one"),
]


@blueprint.route("")
@blueprint.doc(
    summary="Retrieve Instance by WADO-URI",
    parameters=_PARAMETERS,
    responses={"200": {"description": "The instance", "content": content(DICOM)}, **faults(400, 404, 406, 410)},
)
def retrieve_by_uri() -> Response:
    if (request_type := _parameter("requestType")) != "WADO":
        raise BadRequest(f"requestType must be WADO, not {request_type[:40]!r}")
    uids = [_uid(name) for name in _UIDS]
    types = [item.partition(";")[0].strip().lower() for item in _parameter("contentType").split(",") if item.strip()]
    if types and DICOM not in types and "*/*" not in types:
        raise NotAcceptable(f"contentType {', '.join(types)[:80]!r} is not available; available: {DICOM}")
    row = current_service().archive.instances(*uids)[0]
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
