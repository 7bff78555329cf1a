"""`import`: folders, ZIP files and CDs into the archive, in batches that can be repeated."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import click
from tqdm import tqdm

from ..archive import Archive, StoreBatch, StoreItem
from ..media import ZipMedium, is_zip, reason_to_skip
from .files import FileOutcome, files_below, head_of, list_reasons
from .program import Program, commands, count, fail

_BATCH_FILES, _BATCH_BYTES = 50, 64 << 20  # what one transaction holds
_PIECE = 1 << 20  # bytes read at a time
_MAX_MEMBERS = 1_000_000  # of one ZIP file


@commands.command("import")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--json", "as_json", is_flag=True, help="Report as JSON, with every path.")
@click.option("--quiet", is_flag=True, help="Say nothing but what failed.")
@click.pass_obj
def import_files(program: Program, folders: Sequence[str], as_json: bool, quiet: bool) -> None:
    """Store all DICOM files below FOLDERS, also those in ZIP files and on CDs with a DICOMDIR.

    May be stopped at any time and run again: what is stored already is counted as already there. Exit code 0 when
    every DICOM file is in the archive, 1 when some could not be stored.
    """
    started = monotonic()
    found: dict[str, list[FileOutcome]] = defaultdict(list)
    own = program.settings.data_path
    silent = True if quiet or as_json else None  # None: silent unless standard error is a terminal
    interrupted = False
    with program.archive() as archive:
        total = None if silent else sum(1 for _ in files_below(folders, own))
        try:
            for result in tqdm(_import(archive, folders, own), total=total, unit="file", disable=silent):
                found[result.outcome].append(result)
        except KeyboardInterrupt:
            interrupted = True
    if as_json:
        click.echo(json.dumps(_import_report(found, monotonic() - started), indent=2))
    else:
        _tell_import(found, monotonic() - started, quiet)
    if interrupted:
        fail("Stopped. Run the same command again to go on where it stopped.", 130)
    sys.exit(1 if found["failed"] else 0)


@dataclass(frozen=True, slots=True)
class Found:
    """A file that looks like an instance, and how to read it."""

    path: str
    size: int
    chunks: Callable[[], Iterator[bytes]]


def _import(archive: Archive, folders: Sequence[str], own: Path) -> Iterator[FileOutcome]:
    with closing(Importer(archive)) as importer:
        yield from _import_files(importer, folders, own)


def _import_files(importer: Importer, folders: Sequence[str], own: Path) -> Iterator[FileOutcome]:
    for path, fault in files_below(folders, own):
        if fault:
            yield FileOutcome(path, "failed", fault)
            continue
        try:
            head, size = head_of(path), os.path.getsize(path)
        except OSError as error:
            yield FileOutcome(path, "failed", error.strerror or str(error))
            continue
        if head is not None and is_zip(head):
            yield from _import_zip(importer, path)
            continue
        reason = "not a file" if head is None else reason_to_skip(head)
        if reason:
            yield FileOutcome(path, "skipped", reason)
        else:
            yield from importer.add(Found(path, size, partial(pieces, path)))
    yield from importer.finish()


def _import_zip(importer: Importer, path: str) -> Iterator[FileOutcome]:
    """The members of a ZIP file, named `file.zip/folder/member`. They are unpacked one after the other."""
    with open(path, "rb") as file:
        try:
            medium = ZipMedium(file, max_members=_MAX_MEMBERS, max_bytes=sys.maxsize)
        except ValueError as error:
            yield FileOutcome(path, "failed", f"a ZIP file that cannot be read: {error}")
            return
        for member in medium.members():
            name = f"{path}/{member.name}"
            if member.reason_to_skip:
                yield FileOutcome(name, "skipped", member.reason_to_skip)
            else:
                yield from importer.add(Found(name, member.size, member.chunks))
        yield from importer.finish()


class Importer:
    """Stores files in batches: each is a transaction."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._store: StoreBatch | None = None
        self._spooled: list[Found] = []

    def add(self, found: Found) -> Iterator[FileOutcome]:
        if self._store is None:
            self._store = self._archive.begin_store(quarantine=False)  # the files stay where they are
        try:
            self._store.add(found.chunks())
        except OSError as error:
            yield FileOutcome(found.path, "failed", error.strerror or str(error))
        else:
            self._spooled.append(found)
        if len(self._spooled) == _BATCH_FILES or sum(each.size for each in self._spooled) >= _BATCH_BYTES:
            yield from self.finish()

    def finish(self) -> Iterator[FileOutcome]:
        if self._store is None:
            return
        with self._store as store:
            report = store.commit()
        for found, item in zip(self._spooled, report.items, strict=True):
            yield _imported(found.path, found.size, item)
        self._store, self._spooled = None, []

    def close(self) -> None:
        """Discard what is not stored yet."""
        if self._store is not None:
            self._store.__exit__(None, None, None)


def pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(partial(file.read, _PIECE), b"")


def _imported(path: str, size: int, item: StoreItem) -> FileOutcome:
    if item.failure is not None or item.outcome is None:
        return FileOutcome(path, "failed", item.message)
    uids = (item.study_uid or "", item.series_uid or "", item.sop_instance_uid or "")
    match item.outcome.name:
        case "SAME":
            return FileOutcome(path, "already there", uids=uids)
        case "KEPT":
            return FileOutcome(path, "kept", item.message, uids=uids)
        case "REPLACED":
            return FileOutcome(path, "replaced", size=size, uids=uids)
        case _:
            return FileOutcome(path, "stored", size=size, uids=uids)


def _import_report(found: dict[str, list[FileOutcome]], seconds: float) -> dict[str, Any]:
    return {
        "stored": len(found["stored"]),
        "already_there": len(found["already there"]),
        "replaced": len(found["replaced"]),
        "kept": len(found["kept"]),
        "bytes": _bytes_stored(found),
        "seconds": round(seconds, 3),
        "skipped": [{"path": each.path, "reason": each.message} for each in found["skipped"]],
        "failed": [{"path": each.path, "reason": each.message} for each in found["failed"]],
    }


def _tell_import(found: dict[str, list[FileOutcome]], seconds: float, quiet: bool) -> None:
    if not quiet:
        megabytes = _bytes_stored(found) / 1e6
        click.echo(f"Stored {count(found['stored'], 'instance')} ({megabytes:.1f} MB) in {seconds:.1f} s.")
        for outcome, meaning in (
            ("already there", "already there"),
            ("replaced", "replaced an instance with other content"),
            ("kept", "left out, because an instance with other content is stored and kept"),
        ):
            if found[outcome]:
                click.echo(f"{count(found[outcome], 'file')} {meaning}.")
        list_reasons("Skipped", found["skipped"], err=False)
    list_reasons("NOT STORED:", found["failed"], err=True)


def _bytes_stored(found: dict[str, list[FileOutcome]]) -> int:
    return sum(each.size for each in (*found["stored"], *found["replaced"]))
