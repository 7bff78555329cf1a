"""WADO-RS: whole instances of a study, a series, or one (PS3.18 10.4.1.1.1); also as a ZIP archive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import BinaryIO, Final

import orjson
from flask import Response, request

from ..archive import Archive, InstanceRow
from ..dicom.pixel_data import TRANSFER_SYNTAXES, CannotTranscode, leaves_as_stored
from .auth import sees_copies_only
from .multipart import OutgoingPart
from .negotiation import Choice, Offer
from .openapi import content, faults, query
from .responses import not_modified, warning
from .retrieve import (
    AS_STORED,
    DICOM,
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
from .wado_bulk import send_all_values
from .wado_deidentified import send_copies
from .wado_zip import ZIP, send_zip

ENCODABLE: Final = tuple(
    uid for uid, syntax in TRANSFER_SYNTAXES.items() if syntax.encodable and uid != EXPLICIT_LITTLE_ENDIAN
)

_IN_PARTS = content(
    'multipart/related; type="application/dicom"',
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    ZIP,
    'multipart/related; type="application/octet-stream"',
)
_PARTIAL = {"206": {"description": "Some of the instances; a Warning tells how many are missing", "content": _IN_PARTS}}
#: As the setting `presigned_redirects` has it, of one whole instance as it is stored.
REDIRECT: Final = {"302": {"description": "Location is where the stored instance can be fetched for a short time"}}
_INSTANCES = {
    "200": {"description": "The instances, each a part, or in a ZIP archive", "content": _IN_PARTS},
    **_PARTIAL,
    **faults(400, 404, 406, 410),
}
_INSTANCE = {
    "200": {
        "description": "The instance",
        "content": content("application/dicom", "application/dicom; transfer-syntax=*") | _IN_PARTS,
    },
    **REDIRECT,
    **faults(400, 404, 406, 410),
}
_REDIRECT_VARY = "Accept, Origin, Sec-Fetch-Mode"
_ABOUT_SYNTAX = (
    "In Explicit VR Little Endian; with `transfer-syntax=*` in the Accept header as stored (Implicit VR and Big Endian "
    "never leave: PS3.18 8.7.3.4); or in another transfer syntax that this server writes. "
    '`type="application/octet-stream"` gives the bulk data.'
)
_PARAMETERS = [
    query(
        "dicomdir",
        "With `application/zip`: `yes` adds a DICOMDIR (an extension)",
        {"type": "string", "enum": ["yes", "no"]},
    )
]


@blueprint.route("/studies/<study>")
@blueprint.doc(summary="Retrieve Study", description=_ABOUT_SYNTAX, parameters=_PARAMETERS, responses=_INSTANCES)
def retrieve_study(study: str) -> Response:
    return _retrieve_instances(study)


@blueprint.route("/studies/<study>/series/<series>")
@blueprint.doc(summary="Retrieve Series", description=_ABOUT_SYNTAX, parameters=_PARAMETERS, responses=_INSTANCES)
def retrieve_series(study: str, series: str) -> Response:
    return _retrieve_instances(study, series)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>")
@blueprint.doc(summary="Retrieve Instance", description=_ABOUT_SYNTAX, parameters=_PARAMETERS, responses=_INSTANCE)
def retrieve_instance(study: str, series: str, instance: str) -> Response:
    return _retrieve_instances(study, series, instance)


def _retrieve_instances(study: str, series: str | None = None, instance: str | None = None) -> Response:
    if sees_copies_only():
        return send_copies(study, series, instance)
    check_uids(study=study, series=series, instance=instance)
    rows = current_service().archive.instances(study, series, instance)
    url = f"{service_url()}/studies/{study}"
    for segment, uid in (("series", series), ("instances", instance)):
        if uid is not None:
            url += f"/{segment}/{uid}"
    offers = _offers(frozenset(row.transfer_syntax for row in rows), alone=instance is not None)
    return attain(offers, lambda choice: _send_instances(rows, choice, url))


@lru_cache(maxsize=256)
def _offers(stored: frozenset[str], *, alone: bool) -> tuple[Offer, ...]:
    """Explicit VR Little Endian, the default; the transfer syntaxes that are stored; those that can be made."""
    as_stored = sorted(uid for uid in stored if leaves_as_stored(uid))
    syntaxes = tuple(dict.fromkeys((EXPLICIT_LITTLE_ENDIAN, *as_stored, *ENCODABLE)))
    offers = [Offer(DICOM, multipart=True, transfer_syntaxes=syntaxes)]
    if alone:
        offers.append(Offer(DICOM, transfer_syntaxes=syntaxes))
    offers.append(Offer(ZIP, transfer_syntaxes=syntaxes))
    offers.append(Offer(OCTET_STREAM, multipart=True, transfer_syntaxes=(EXPLICIT_LITTLE_ENDIAN,)))
    return tuple(offers)


def _send_instances(rows: Sequence[InstanceRow], choice: Choice, url: str) -> Response:
    if choice.offer.media_type == OCTET_STREAM:
        return send_all_values(rows, choice, url, pixels=False)
    syntax = choice.transfer_syntax or EXPLICIT_LITTLE_ENDIAN
    etag = entity_tag(choice, request.args.get("dicomdir", ""), *(row.file_key for row in rows))
    if answer := not_modified(etag):
        return answer
    sent = _convertible(rows, syntax)
    status = 200 if len(sent) == len(rows) else 206
    changed = max(row.stored_at for row in sent)
    if choice.offer.media_type == ZIP:
        response = send_zip(sent, lambda: instance_files(sent, syntax), etag, url, status=status)
    elif not choice.offer.multipart:
        return single_instance(sent[0], syntax, etag)
    else:
        parts = _instance_parts(sent, syntax)
        response = multipart(DICOM, parts, etag, url, last_modified=changed, status=status)
    if status == 206:
        name = TRANSFER_SYNTAXES[syntax].name if syntax in TRANSFER_SYNTAXES else syntax
        left_out = len(rows) - len(sent)
        text = f"{left_out} of {len(rows)} instances cannot be converted to {name} and are left out"
        response.headers.add("Warning", warning(text))
    return response


def _convertible(rows: Sequence[InstanceRow], syntax: str) -> Sequence[InstanceRow]:
    """The instances that can be sent in this syntax, told from their attributes. Raises Unattainable if there are none.

    Where the uncompressed form cannot be had, the stored one takes its place (PS3.18 8.7.3.4): then that is all.
    """
    if syntax in (AS_STORED, EXPLICIT_LITTLE_ENDIAN) or all(row.transfer_syntax == syntax for row in rows):
        return rows
    archive, first = current_service().archive, rows[0]
    if len(rows) == 1:
        attributes = attributes_of(first)
        if not archive.may_become(first, attributes, syntax):
            raise Unattainable([uid for uid in ENCODABLE if not archive.may_become(first, attributes, uid)] or [syntax])
        return rows
    in_one_series = all(row.series_uid == first.series_uid for row in rows)
    described = {}
    for text in archive.documents(first.study_uid, first.series_uid if in_one_series else None):
        attributes = orjson.loads(text)
        described[attributes["00080018"]["Value"][0]] = attributes
    able = [row for row in rows if row.sop_uid in described and archive.may_become(row, described[row.sop_uid], syntax)]
    if not able:
        raise Unattainable([syntax])
    return able


def single_instance(row: InstanceRow, transfer_syntax: str, etag: str) -> Response:
    """The instance alone, as application/dicom, in this transfer syntax (`*`: as stored). Raises Unattainable."""
    service = current_service()
    if _leaves_unchanged(row, transfer_syntax) and (location := _presigned_url(row)):
        return Response(status=302, headers={"Location": location, "Cache-Control": "no-store", "Vary": _REDIRECT_VARY})
    if service.accel_redirect and _leaves_unchanged(row, transfer_syntax):
        # nginx adds the body, its length and ranges of it (ngx_http_core_module, `internal`).
        headers = {
            **_headers(row.transfer_syntax, instance_url(row)),
            "X-Accel-Redirect": f"{service.accel_redirect}/{row.file_key}",
        }
        return single_part(OutgoingPart(headers, None, ()), etag, last_modified=row.stored_at)
    (part,) = _instance_parts([row], transfer_syntax)
    return single_part(part, etag, last_modified=row.stored_at)


def _presigned_url(row: InstanceRow) -> str | None:
    """Where the client is to fetch the stored file from, if that is set up and it can follow there."""
    service = current_service()
    if service.presigned_redirects == "off" or request.method != "GET":  # the URL is good for GET only
        return None
    if service.presigned_redirects == "programs":
        # A script of a web page may only follow to another host that lets its origin in (Fetch Standard, CORS).
        mode = request.headers.get("Sec-Fetch-Mode", "cors" if "Origin" in request.headers else "navigate")
        if mode in ("cors", "same-origin"):
            return None
    return service.archive.presigned_url(row, service.presigned_seconds)


def _instance_parts(rows: Sequence[InstanceRow], transfer_syntax: str) -> Iterable[OutgoingPart]:
    """A part for each instance. All lengths are known when all leave as stored, else each is converted in its turn."""
    archive = current_service().archive
    urls = [instance_url(row) for row in rows]
    if all(_leaves_unchanged(row, transfer_syntax) for row in rows):
        sources = [_stored(archive, row) for row in rows]
        if request.method != "HEAD":
            sources[0] = _opened(archive.open_file(rows[0]), rows[0].size)  # now: its failure is an answer of its own
        return [
            OutgoingPart(_headers(row.transfer_syntax, url), row.size, source)
            for row, url, source in zip(rows, urls, sources, strict=True)
        ]
    if request.method == "HEAD" and len(rows) > 1:
        wanted = EXPLICIT_LITTLE_ENDIAN if transfer_syntax == AS_STORED else transfer_syntax
        return [OutgoingPart(_headers(wanted, urls[0]), None, ())]
    parts = (
        OutgoingPart(_headers(syntax, url), size, _opened(file, size))
        for url, (syntax, file, size) in zip(urls, instance_files(rows, transfer_syntax), strict=True)
    )
    first = next(parts)  # now: its failure is still an answer of its own
    return [first] if len(rows) == 1 else chain([first], parts)


def instance_files(rows: Sequence[InstanceRow], transfer_syntax: str) -> Iterator[tuple[str, BinaryIO, int]]:
    """The transfer syntax, the file and its size for each instance; those to be converted are worked on ahead.

    What turns out not to suit the transfer syntax, or cannot be decoded, comes as stored, or if that never leaves,
    uncompressed. Raises Unattainable for a single one that was to be encoded.
    """
    archive = current_service().archive
    wanted = EXPLICIT_LITTLE_ENDIAN if transfer_syntax == AS_STORED else transfer_syntax
    changed = [row for row in rows if not _leaves_unchanged(row, transfer_syntax)]
    return _files(archive, rows, {row.id for row in changed}, archive.open_each_as(changed, wanted), wanted)


def _files(
    archive: Archive,
    rows: Sequence[InstanceRow],
    changed: set[int],
    converted: Iterator[BinaryIO | CannotTranscode],
    wanted: str,
) -> Iterator[tuple[str, BinaryIO, int]]:
    for row in rows:
        syntax, file = row.transfer_syntax, None
        if row.id in changed:
            result = next(converted)
            if not isinstance(result, CannotTranscode):
                syntax, file = wanted, result
            elif len(rows) == 1 and wanted != EXPLICIT_LITTLE_ENDIAN:
                raise Unattainable([wanted])
            elif not leaves_as_stored(row.transfer_syntax):
                syntax, file = EXPLICIT_LITTLE_ENDIAN, archive.open_as(row, EXPLICIT_LITTLE_ENDIAN)
        file = file or archive.open_file(row)
        size = file.seek(0, 2)
        file.seek(0)
        yield syntax, file, size


def _leaves_unchanged(row: InstanceRow, transfer_syntax: str) -> bool:
    if transfer_syntax == AS_STORED:
        return leaves_as_stored(row.transfer_syntax)
    return transfer_syntax == row.transfer_syntax


def _headers(transfer_syntax: str, url: str) -> dict[str, str]:
    return {"Content-Type": f"{DICOM}; transfer-syntax={transfer_syntax}", "Content-Location": url}


def _stored(archive: Archive, row: InstanceRow) -> Source:
    return Source.of_file(lambda: archive.open_file(row), row.size)


def _opened(file: BinaryIO, size: int) -> Source:
    return Source.of_file(lambda: file, size)
