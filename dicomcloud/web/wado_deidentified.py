"""WADO-RS for callers who may see de-identified copies only: instances and metadata, under replaced UIDs.

What was asked for is named by its own UIDs, which such a caller has from elsewhere; nothing in the answer has them. An
instance that cannot be de-identified is left out, and a Warning says how many.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, Final

from flask import Response, request

from ..archive import InstanceRow
from ..dicom.deidentification import CannotDeidentify
from ..dicom.pixel_data import CannotTranscode
from ..errors import NotAcceptable
from .multipart import OutgoingPart
from .negotiation import Offer
from .responses import DICOM_JSON, negotiated, not_modified, warning
from .retrieve import DICOM, EXPLICIT_LITTLE_ENDIAN, Source, entity_tag, multipart, single_part, validated
from .service import check_uids, current_service, service_url
from .wado_zip import ZIP, send_copies_as_zip

_SYNTAXES: Final = (EXPLICIT_LITTLE_ENDIAN,)
_INSTANCES: Final = (
    Offer(DICOM, multipart=True, transfer_syntaxes=_SYNTAXES),
    Offer(ZIP, transfer_syntaxes=_SYNTAXES),
)
_INSTANCE: Final = (_INSTANCES[0], Offer(DICOM, transfer_syntaxes=_SYNTAXES), _INSTANCES[1])
_METADATA: Final = (Offer(DICOM_JSON),)


def send_copies(study: str, series: str | None = None, instance: str | None = None) -> Response:
    """The de-identified copies of the instances. Raises NotAcceptable where there can be none."""
    rows = _rows(study, series, instance)
    choice = negotiated(_INSTANCES if instance is None else _INSTANCE)
    etag = entity_tag(choice, "de-identified", *(row.file_key for row in rows))
    if answer := not_modified(etag):
        return answer
    copies = _copies(rows)
    first = next(copies, None)  # now: its failure is still an answer of its own
    if first is None:
        raise NotAcceptable("None of this can be de-identified here")
    copies = iter(()) if request.method == "HEAD" else chain([first], copies)
    if choice.offer.media_type == ZIP:
        return send_copies_as_zip(copies, etag)
    if choice.offer.multipart:
        return multipart(DICOM, map(_part, copies), etag, service_url())
    return single_part(_part(first), etag)


def send_metadata_of_copies(study: str, series: str | None = None, instance: str | None = None) -> Response:
    """Their metadata, without bulk data. Raises NotAcceptable where there can be none."""
    rows = _rows(study, series, instance)
    choice = negotiated(_METADATA)
    etag = entity_tag(choice, "de-identified metadata", *(row.file_key for row in rows))
    if answer := not_modified(etag):
        return answer
    archive, texts = current_service().archive, []
    for row in rows:
        try:
            texts.append(archive.deidentified_document(row))
        except (CannotDeidentify, CannotTranscode):
            continue
    if not texts:
        raise NotAcceptable("None of this can be de-identified here")
    response = validated(Response(b"[" + b",".join(texts) + b"]", mimetype=DICOM_JSON), etag)
    if left_out := len(rows) - len(texts):
        text = f"{left_out} of {len(rows)} instances cannot be de-identified and are left out"
        response.headers["Warning"] = warning(text)
    return response


def _rows(study: str, series: str | None, instance: str | None) -> list[InstanceRow]:
    check_uids(study=study, series=series, instance=instance)
    return current_service().archive.instances(study, series, instance)


def _copies(rows: list[InstanceRow]) -> Iterator[tuple[InstanceRow, BinaryIO, int]]:
    archive = current_service().archive
    for row in rows:
        try:
            copy = archive.open_deidentified(row, EXPLICIT_LITTLE_ENDIAN)
        except (CannotDeidentify, CannotTranscode):
            continue
        size = copy.seek(0, 2)
        copy.seek(0)
        yield row, copy, size


def _part(copy: tuple[InstanceRow, BinaryIO, int]) -> OutgoingPart:
    _, file, size = copy
    headers = {"Content-Type": f"{DICOM}; transfer-syntax={EXPLICIT_LITTLE_ENDIAN}"}
    return OutgoingPart(headers, size, Source.of_file(lambda: file, size))
