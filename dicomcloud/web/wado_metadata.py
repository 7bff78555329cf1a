"""WADO-RS: metadata, as DICOM JSON or Native DICOM Model XML (PS3.18 10.4.1.1.2).

The JSON text of a series is put together once and kept compressed (`gzip_segments`): most clients get it as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

import orjson
from flask import Response, request

from ..archive import Archive
from ..dicom.attributes import json_key, tag_of
from ..dicom.metadata import native_model_xml
from ..errors import BadRequest
from .auth import sees_copies_only
from .gzip_segments import GzipStream, pack_segment, unpack_segment
from .multipart import OutgoingPart
from .negotiation import Choice, Offer
from .openapi import DATA_SETS, content, faults, query
from .responses import DICOM_JSON, DICOM_XML, dicom_json, negotiated, not_modified, with_bulk_data_urls
from .retrieve import blueprint, entity_tag, multipart, single_part, validated
from .service import check_uids, current_service, service_url
from .wado_deidentified import send_metadata_of_copies

_JSON_PIECE = 128 << 10  # bytes of metadata sent at a time
_IDENTIFYING = ("00080016", "00080018", "0020000D", "0020000E")  # left in whatever else is left out

_PARAMETERS = [
    query(
        "includefield",
        "Only these attributes of the top level and those that identify the instance: keywords or tags, separated by "
        "commas, or `all` (an extension)",
    )
]
_METADATA = {
    "200": {
        "description": "The attributes of each instance; bulk data as URIs",
        "content": content(DICOM_JSON, schema=DATA_SETS) | content(f'multipart/related; type="{DICOM_XML}"'),
    },
    **faults(400, 404, 406, 410),
}
_INSTANCE_METADATA = {
    **_METADATA,
    "200": {**_METADATA["200"], "content": _METADATA["200"]["content"] | content(DICOM_XML)},
}


@blueprint.route("/studies/<study>/metadata")
@blueprint.doc(summary="Retrieve Study Metadata", parameters=_PARAMETERS, responses=_METADATA)
def retrieve_study_metadata(study: str) -> Response:
    return _retrieve_metadata(study)


@blueprint.route("/studies/<study>/series/<series>/metadata")
@blueprint.doc(summary="Retrieve Series Metadata", parameters=_PARAMETERS, responses=_METADATA)
def retrieve_series_metadata(study: str, series: str) -> Response:
    return _retrieve_metadata(study, series)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/metadata")
@blueprint.doc(summary="Retrieve Instance Metadata", parameters=_PARAMETERS, responses=_INSTANCE_METADATA)
def retrieve_instance_metadata(study: str, series: str, instance: str) -> Response:
    if sees_copies_only():
        return send_metadata_of_copies(study, series, instance)
    check_uids(study=study, series=series, instance=instance)
    choice, kept = negotiated(_INSTANCE_OFFERS), _fields()
    row, text = current_service().archive.document(study, series, instance)
    base = service_url()
    etag = entity_tag(choice, row.file_key, base, *sorted(kept or ()))
    if answer := not_modified(etag, row.stored_at):
        return answer
    location = f"{base}/studies/{study}/series/{series}/instances/{instance}/metadata"
    texts = _reduced(_located([text], base), kept)
    return _send(texts, choice, etag, location, row.stored_at, alone=True)


_OFFERS = (Offer(DICOM_JSON), Offer(DICOM_XML, multipart=True))
_INSTANCE_OFFERS = (*_OFFERS, Offer(DICOM_XML))


def _retrieve_metadata(study: str, series: str | None = None) -> Response:
    if sees_copies_only():
        return send_metadata_of_copies(study, series)
    check_uids(study=study, series=series)
    choice, kept = negotiated(_OFFERS), _fields()
    archive, base = current_service().archive, service_url()
    version, changed_at = archive.version(study, series)
    whole = choice.offer.media_type == DICOM_JSON and kept is None  # then it is in the cache
    gzip = whole and _accepts_gzip()
    etag = entity_tag(choice, study, series, version, base, gzip, *sorted(kept or ()))
    answer = not_modified(etag, changed_at)
    if answer is None:
        location = f"{base}/studies/{study}{f'/series/{series}' if series else ''}/metadata"
        if whole and request.method != "HEAD":
            answer = _cached_json(archive, base, study, series, gzip=gzip)
            answer.headers["Content-Location"] = location
            validated(answer, etag, changed_at)
        else:
            texts = _reduced(_located(archive.documents(study, series), base), kept)
            answer = _send(texts, choice, etag, location, changed_at)
        if gzip:
            answer.headers["Content-Encoding"] = "gzip"
    if whole:
        answer.headers["Vary"] = "Accept, Accept-Encoding"
    return answer


def _send(
    texts: Iterator[bytes], choice: Choice, etag: str, location: str, changed_at: datetime, *, alone: bool = False
) -> Response:
    if request.method == "HEAD":
        answer = Response(iter(()), mimetype=choice.offer.media_type)
    elif choice.offer.media_type == DICOM_JSON:
        pieces = _json_array(texts)
        answer = dicom_json(next(pieces)) if alone else Response(pieces, mimetype=DICOM_JSON)
    else:
        documents = (native_model_xml(orjson.loads(text)) for text in texts)
        parts = (OutgoingPart({"Content-Type": DICOM_XML}, len(xml), [xml]) for xml in documents)
        if choice.offer.multipart:
            return multipart(DICOM_XML, parts, etag, location, last_modified=changed_at)
        answer = single_part(next(parts), etag)
    answer.headers["Content-Location"] = location
    return validated(answer, etag, changed_at)


def _located(texts: Iterable[bytes], base: str) -> Iterator[bytes]:
    """The texts with their bulk data named by the URL that the client knows."""
    return (with_bulk_data_urls(text, base) for text in texts)


def _json_array(texts: Iterable[bytes]) -> Iterator[bytes]:
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


# ------------------------------------------------------------------------------------- from the cache


def _cached_json(archive: Archive, base: str, study: str, series: str | None, *, gzip: bool) -> Response:
    segments = _segments(archive, base, study, series)
    first = next(segments)  # now: what fails here still has an answer of its own
    body = _zipped(first, segments) if gzip else _plain(first, segments)
    return Response(b"".join(body) if gzip and series is not None else body, mimetype=DICOM_JSON)


def _segments(archive: Archive, base: str, study: str, series: str | None) -> Iterator[bytes]:
    """The texts of each series, separated by commas, as a gzip segment."""
    for uid, version in archive.series_versions(study, series):
        key = f"{study} metadata {uid} {version} {base}"
        segment = archive.cache.read(key)
        if segment is None:
            segment = pack_segment(_separated(_located(archive.documents(study, uid), base)))
            archive.cache.write(key, segment)
        yield segment


def _separated(texts: Iterator[bytes]) -> Iterator[bytes]:
    yield next(texts)
    for text in texts:
        yield b","
        yield text


def _zipped(first: bytes, segments: Iterator[bytes]) -> Iterator[bytes]:
    stream = GzipStream()
    yield stream.start() + stream.text(b"[") + stream.segment(first)
    for segment in segments:
        yield stream.text(b",") + stream.segment(segment)
    yield stream.text(b"]") + stream.end()


def _plain(first: bytes, segments: Iterator[bytes]) -> Iterator[bytes]:
    yield b"["
    yield from unpack_segment(first)
    for segment in segments:
        yield b","
        yield from unpack_segment(segment)
    yield b"]"


def _accepts_gzip() -> bool:
    return request.accept_encodings["gzip"] > 0 if "Accept-Encoding" in request.headers else False


# ------------------------------------------------------------------------------------- reduced, and as XML


def _fields() -> frozenset[str] | None:
    """The attributes to leave in; None for all. Raises BadRequest for one that is unknown."""
    values = request.args.getlist("includefield")
    if not values:
        return None
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    if not names or "all" in names:
        return None
    kept = set(_IDENTIFYING)
    for name in names:
        tag = tag_of(name)
        if tag is None:
            raise BadRequest(f"includefield: {name[:80]!r} is neither a keyword nor a tag of the data dictionary")
        kept.add(json_key(tag))
        if tag >> 16 & 1 and tag >> 8 & 0xFF:  # a private element says nothing without its creator
            kept.add(json_key(tag & 0xFFFF0000 | tag >> 8 & 0xFF))
    return frozenset(kept)


def _reduced(texts: Iterator[bytes], kept: Collection[str] | None) -> Iterator[bytes]:
    if kept is None:
        return texts
    return (
        orjson.dumps({key: element for key, element in orjson.loads(text).items() if key in kept}) for text in texts
    )
