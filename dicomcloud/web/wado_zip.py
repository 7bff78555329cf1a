"""A study, a series or an instance as a ZIP archive (PS3.18 8.7.3.6, application/zip), written while it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import BinaryIO

import orjson
from flask import Response, request
from zipstream import ZipStream

from ..archive import Archive, InstanceRow
from ..dicom.dicomdir import FileReference, dicomdir
from ..errors import BadRequest
from .multipart import read_in_pieces
from .retrieve import validated
from .service import current_service

ZIP = "application/zip"
Files = Iterator[tuple[str, BinaryIO, int]]


def send_zip(
    rows: Sequence[InstanceRow], files: Callable[[], Files], etag: str, location: str, *, status: int
) -> Response:
    """`files` gives the transfer syntax, the opened file and its size of each instance, in the order of `rows`.

    The names are those of PS3.10 8.2 and 8.5, eight characters of upper case, and tell nothing about the patient.
    """
    wanted = request.args.get("dicomdir", "no")
    if wanted not in ("yes", "no"):
        raise BadRequest(f"The parameter dicomdir is yes or no, not {wanted[:40]!r}")
    body = iter(()) if request.method == "HEAD" else _zipped(rows, files(), with_directory=wanted == "yes")
    response = Response(body, status, content_type=ZIP, direct_passthrough=True)
    response.headers["Content-Location"] = location
    response.headers["Content-Disposition"] = 'attachment; filename="dicom.zip"'
    return validated(response, etag)


def send_copies_as_zip(files: Iterator[tuple[InstanceRow, BinaryIO, int]], etag: str) -> Response:
    """Of each instance a de-identified copy and its size, series by series, under names like those of `send_zip`."""
    response = Response(_zipped_copies(files), content_type=ZIP, direct_passthrough=True)
    response.headers["Content-Disposition"] = 'attachment; filename="deidentified.zip"'
    return validated(response, etag)


def _zipped_copies(files: Iterator[tuple[InstanceRow, BinaryIO, int]]) -> Iterator[bytes]:
    target = ZipStream()
    for number, (_, copies) in enumerate(groupby(files, key=lambda each: each[0].series_uid), 1):
        for place, (_, file, size) in enumerate(copies, 1):
            target.add(read_in_pieces(file), f"DICOM/S{number:06}/I{place:06}", size=size)
            yield from target.all_files()
    yield from target.finalize()


def _zipped(rows: Sequence[InstanceRow], files: Files, *, with_directory: bool) -> Iterator[bytes]:
    archive, first = current_service().archive, next(files)  # now: its failure is still an answer of its own
    return _stream(archive, rows, first, files, with_directory=with_directory)


def _stream(
    archive: Archive,
    rows: Sequence[InstanceRow],
    first: tuple[str, BinaryIO, int],
    files: Files,
    *,
    with_directory: bool,
) -> Iterator[bytes]:
    target = ZipStream()  # stored, not deflated: pixel data hardly shrink, and the network is faster than zlib
    references = []
    following = first
    for row, name in zip(rows, _names(rows), strict=True):
        syntax, file, size = following
        sop_uid = row.sop_uid
        if with_directory and syntax != row.transfer_syntax:
            sop_uid = _sop_instance_uid(file)
        references.append(FileReference(name, syntax, sop_uid))
        target.add(read_in_pieces(file), "/".join(name), size=size)
        yield from target.all_files()
        if row is not rows[-1]:
            following = next(files)
    if with_directory:
        described = _described(archive, rows)
        listed = zip(rows, references, strict=True)
        pairs = [(described[row.sop_uid], file) for row, file in listed if row.sop_uid in described]
        target.add(dicomdir(pairs), "DICOMDIR")
    yield from target.finalize()


def _names(rows: Sequence[InstanceRow]) -> Iterator[tuple[str, str, str]]:
    """DICOM/S000001/I000001 …, a folder for each series."""
    for number, (_, instances) in enumerate(groupby(rows, key=lambda row: row.series_uid), 1):
        for place, _ in enumerate(instances, 1):
            yield "DICOM", f"S{number:06}", f"I{place:06}"


def _described(archive: Archive, rows: Sequence[InstanceRow]) -> dict[str, dict[str, object]]:
    """The attributes of each instance by its UID."""
    first = rows[0]
    one_series = all(row.series_uid == first.series_uid for row in rows)
    series = first.series_uid if one_series else None
    instance = first.sop_uid if len(rows) == 1 else None
    texts = archive.documents(first.study_uid, series, instance)
    return {data_set["00080018"]["Value"][0]: data_set for data_set in map(orjson.loads, texts)}


def _sop_instance_uid(file: BinaryIO) -> str:
    """The SOP Instance UID of a file that was converted: a lossy one is another instance."""
    import pydicom

    uid = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
    file.seek(0)
    return str(uid)
