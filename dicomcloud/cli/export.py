"""`export`: studies out of the archive into a folder or a ZIP file, as they are or de-identified."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import zipfile
from base64 import b32encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, Protocol

import click
import orjson
from tqdm import tqdm

from .. import deidentify
from ..archive import Archive, InstanceRow
from ..dicom import header as dicom_header
from ..dicom.attributes import Level
from ..dicom.deidentification import CannotDeidentify, Deidentifier
from ..dicom.dicomdir import FileReference, dicomdir
from ..dicom.query import parse_query
from ..errors import DicomWebError
from .files import FileOutcome, list_reasons
from .program import Program, commands, count, fail

_PAGE = 500  # studies of one search
_PIECE = 1 << 20
Name = tuple[str, str, str, str]


@dataclass
class _Report:
    """What became of the instances. `references` are the files that the DICOMDIR lists."""

    written: int = 0
    already_there: int = 0
    bytes: int = 0
    failed: list[FileOutcome] = field(default_factory=list)
    references: list[tuple[dict[str, Any], FileReference]] = field(default_factory=list)


@commands.command("export")
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--study", "studies", multiple=True, metavar="UID", help="Export this study; may be repeated.")
@click.option("--series", multiple=True, metavar="UID", help="Export this series; may be repeated.")
@click.option("--patient", "patients", multiple=True, metavar="ID", help="Export all studies of this patient.")
@click.option("--query", "keys", multiple=True, metavar="KEY=VALUE", help="Export studies that match all of these.")
@click.option("--all", "everything", is_flag=True, help="Export the whole archive.")
@click.option("--deidentify", "deidentified", is_flag=True, help="De-identify the copies (PS3.15 Annex E).")
@click.option("--options", metavar="NAMES", help="Of --deidentify, instead of the setting anonymizer_options.")
@click.option("--no-dicomdir", is_flag=True, help="Write no DICOMDIR.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.option("--quiet", is_flag=True, help="Say nothing but what failed.")
@click.pass_obj
def export_files(
    program: Program,
    target: str,
    studies: Sequence[str],
    series: Sequence[str],
    patients: Sequence[str],
    keys: Sequence[str],
    everything: bool,
    deidentified: bool,
    options: str | None,
    no_dicomdir: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write studies to the folder OUT, or to a ZIP file where OUT ends in .zip, with a DICOMDIR.

    Folders and files have names that say nothing of the patient. Into a folder the command may be repeated: what is
    there already, complete, is left alone. A ZIP file is written anew, and is there when it is complete. Exit code 0
    when everything was exported, 1 when something could not be.
    """
    if not (studies or series or patients or keys or everything):
        raise click.UsageError("Say what to export: --study, --series, --patient, --query or --all.")
    started = monotonic()
    report = _Report()
    deidentifier = None
    if deidentified:
        chosen = options.replace(",", " ").split() if options is not None else None
        deidentifier = deidentify.open_deidentifier(program.settings, chosen)
    interrupted = False
    with program.archive() as archive:
        rows = list(_chosen(archive, studies, series, patients, keys, everything))
        if not rows:
            fail("Nothing in the archive matches.", 1)
        out = Path(target).absolute()
        silent = True if quiet or as_json else None
        try:
            with _ZipFile(out) if out.suffix.lower() == ".zip" else _Folder(out) as medium:
                for row in tqdm(rows, unit="file", disable=silent):
                    _export(archive, row, medium, deidentifier, report)
                if not no_dicomdir and report.references:
                    medium.replace("DICOMDIR", dicomdir(report.references))
        except KeyboardInterrupt:
            interrupted = True
        except OSError as error:
            fail(f"{target} cannot be written: {error.strerror or error}", 1)
    _tell(report, target, monotonic() - started, as_json=as_json, quiet=quiet)
    if interrupted:
        fail("Stopped. Run the same command again to go on where it stopped.", 130)
    sys.exit(1 if report.failed else 0)


def _tell(report: _Report, target: str, seconds: float, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        failed = [{"instance": each.path, "reason": each.message} for each in report.failed]
        body = {"written": report.written, "already_there": report.already_there, "bytes": report.bytes}
        click.echo(json.dumps({**body, "seconds": round(seconds, 3), "failed": failed}, indent=2))
        return
    if not quiet:
        click.echo(
            f"Exported {count(range(report.written), 'instance')} ({report.bytes / 1e6:.1f} MB) to "
            f"{click.format_filename(target)} in {seconds:.1f} s."
        )
        if report.already_there:
            click.echo(f"{count(range(report.already_there), 'file')} already there.")
    list_reasons("NOT EXPORTED:", report.failed, err=True)


# What to export


def _chosen(
    archive: Archive,
    studies: Sequence[str],
    series: Sequence[str],
    patients: Sequence[str],
    keys: Sequence[str],
    everything: bool,
) -> Iterator[InstanceRow]:
    """The instances, each once, study by study."""
    seen: set[str] = set()
    uids = dict.fromkeys(studies)
    for patient in patients:
        uids |= dict.fromkeys(_search(archive, Level.STUDY, [("PatientID", patient)]))
    if keys or everything:
        pairs = [(key, value) for key, _, value in (each.partition("=") for each in keys)]
        uids |= dict.fromkeys(_search(archive, Level.STUDY, pairs))
    scopes: list[tuple[str, str | None]] = [(uid, None) for uid in uids]
    for uid in series:
        scopes += [(study, uid) for study in _search(archive, Level.SERIES, [("SeriesInstanceUID", uid)])]
    for study, one_series in scopes:
        for row in archive.instances(study, one_series):
            if row.sop_uid not in seen:
                seen.add(row.sop_uid)
                yield row


def _search(archive: Archive, level: Level, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The Study Instance UIDs of what matches. Raises BadRequest naming the fault of a key."""
    query = parse_query(level, [*pairs, ("limit", str(_PAGE))], max_results=_PAGE)
    if query.warnings:
        raise click.UsageError("; ".join(query.warnings))
    found: list[str] = []
    while True:  # all pages before the first export: what is stored meanwhile would shift them
        result = archive.index.search(query)
        found += [uids[0] for uids in result.uids]
        if not result.rows or not result.remaining:
            return iter(dict.fromkeys(found))
        query = replace(query, offset=query.offset + len(result.rows))


# Writing


class _Medium(Protocol):
    """Where the files go."""

    def draft(self, name: Name) -> Path: ...

    def existing(self, name: Name) -> Path | None: ...

    def keep(self, draft: Path, name: Name) -> None: ...

    def replace(self, name: str, content: bytes) -> None: ...


def _export(
    archive: Archive, row: InstanceRow, medium: _Medium, deidentifier: Deidentifier | None, report: _Report
) -> None:
    new_uid = deidentifier.uid if deidentifier else lambda uid: uid
    name = _name(*map(new_uid, (row.study_uid, row.series_uid, row.sop_uid)))
    try:
        existing = medium.existing(name)
        if existing is not None and (deidentifier is not None or _checksum(existing) == row.checksum):
            report.already_there += 1
            report.references.append(_reference(archive, row, existing if deidentifier else None, name))
            return
        draft = medium.draft(name)
        try:
            with archive.open_file(row) as source, open(draft, "xb") as copy:
                if deidentifier is not None:
                    deidentifier.deidentify(source, copy)
                else:
                    _copy(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
            report.bytes += draft.stat().st_size
            report.references.append(_reference(archive, row, draft if deidentifier else None, name))
            medium.keep(draft, name)
            report.written += 1
        finally:
            draft.unlink(missing_ok=True)
    except (CannotDeidentify, DicomWebError) as error:
        report.failed.append(FileOutcome(row.sop_uid, "failed", str(error)))
    except FileNotFoundError as error:
        report.failed.append(FileOutcome(row.sop_uid, "failed", f"its file is lost ({error})"))


def _reference(
    archive: Archive, row: InstanceRow, copy: Path | None, name: Name
) -> tuple[dict[str, Any], FileReference]:
    """What the DICOMDIR says of the instance: of the copy, where it is another one than that of the archive."""
    if copy is None:
        _, text = archive.document(row.study_uid, row.series_uid, row.sop_uid)
        return orjson.loads(text), FileReference(name, row.transfer_syntax, row.sop_uid)
    with open(copy, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as buffer:
        header = dicom_header.scan(buffer)
    attributes = dict(header.attributes)
    return attributes, FileReference(name, header.transfer_syntax, attributes["00080018"]["Value"][0])


def _name(study: str, series: str, instance: str) -> Name:
    """DICOM/<study>/<series>/<instance> in eight characters each (PS3.10 8.2): the same in every run."""
    folder, below, file = (
        b32encode(hashlib.sha256(uid.encode()).digest()[:5]).decode() for uid in (study, series, instance)
    )
    return "DICOM", folder, below, file


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while piece := source.read(_PIECE):
        target.write(piece)


def _checksum(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class _Folder:
    """Files in a folder; each is there when it is complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> _Folder:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def existing(self, name: Name) -> Path | None:
        path = self._folder.joinpath(*name)
        return path if path.is_file() else None

    def draft(self, name: Name) -> Path:
        folder = self._folder.joinpath(*name[:-1])
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / f".{secrets.token_hex(8)}.part"

    def keep(self, draft: Path, name: Name) -> None:
        os.replace(draft, self._folder.joinpath(*name))

    def replace(self, name: str, content: bytes) -> None:
        draft = self._folder / f".{secrets.token_hex(8)}.part"
        draft.write_bytes(content)
        os.replace(draft, self._folder / name)


class _ZipFile:
    """Files in a ZIP file, stored and not deflated: pixel data hardly shrink. It gets its name when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")

    def __enter__(self) -> _ZipFile:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._zip = zipfile.ZipFile(self._draft, "x", zipfile.ZIP_STORED)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._zip.close()
            if kind is None:
                os.replace(self._draft, self._path)
        finally:
            with suppress(OSError):
                self._draft.unlink(missing_ok=True)

    def existing(self, name: Name) -> Path | None:
        return None

    def draft(self, name: Name) -> Path:
        return self._draft.with_suffix(".one")

    def keep(self, draft: Path, name: Name) -> None:
        self._zip.write(draft, "/".join(name))

    def replace(self, name: str, content: bytes) -> None:
        self._zip.writestr(name, content)
