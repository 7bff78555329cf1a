"""The command line: serve, import, migrate, verify, reindex, settings.

Exit codes: 0 done; 1 something could not be done, and is named; 2 wrong usage or settings.
"""

from __future__ import annotations

import ipaddress
import json
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import click
from tqdm import tqdm

from . import __version__, server
from .archive import Archive, StoreItem
from .errors import DicomWebError
from .settings import OPTIONS, Settings, SettingsError, load, markdown_table, split_address

_PROGRAM = "python -m dicomcloud"
_BATCH_FILES, _BATCH_BYTES = 50, 64 << 20  # of import: what one transaction holds
_PIECE = 1 << 20  # bytes read at a time
_SHOWN = 20  # paths listed per reason; --json has all
_MEDIA_STORAGE_DIRECTORY = b"1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR, PS3.10 8


@dataclass
class Program:
    """What the commands act on, as the application hands it over."""

    open_archive: Callable[[Settings], Archive]
    create_app: Callable[[Settings], server.WsgiApp]
    config: str | None = None

    @cached_property
    def settings(self) -> Settings:
        return load(self.config)

    @contextmanager
    def archive(self, *, migrated: bool = True) -> Iterator[Archive]:
        """The archive over an existing data directory, brought up to date unless told otherwise."""
        _make_folder(self.settings.data_path)
        archive = self.open_archive(self.settings)
        try:
            if migrated:
                archive.migrate()
            yield archive
        finally:
            archive.close()


def main(
    open_archive: Callable[[Settings], Archive],
    create_app: Callable[[Settings], server.WsgiApp],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run the command that `arguments` name (default: the process's own), and exit."""
    program = Program(open_archive, create_app)
    try:
        commands.main(arguments, prog_name=_PROGRAM, obj=program)
    except SettingsError as error:
        _fail(str(error), 2)
    except (server.CannotListen, DicomWebError) as error:
        _fail(str(error), 1)
    except Exception as error:
        if os.environ.get("DICOMCLOUD_LOG_LEVEL", "").lower() == "debug":
            raise
        _fail(f"{type(error).__name__}: {error}\nDICOMCLOUD_LOG_LEVEL=debug shows where it happened.", 1)


@click.group()
@click.version_option(__version__, prog_name="DICOMcloud")
@click.option("--config", type=click.Path(), help="TOML file with settings (default: dicomcloud.toml, if it is there).")
@click.pass_obj
def commands(program: Program, config: str | None) -> None:
    """DICOMcloud: a DICOMweb server and archive."""
    program.config = config


# serve


@commands.command()
@click.pass_obj
def serve(program: Program) -> None:
    """Serve the archive until stopped (Ctrl+C)."""
    settings = program.settings
    with program.archive():
        pass  # made and migrated before the server's processes start, so that a fault is told here and once
    listener = server.listen(settings.bind)
    here = server.url_of(listener)
    click.echo(f"DICOMcloud {__version__}")
    click.echo(f"  DICOMweb root   {settings.public_url or here}{settings.root}")
    click.echo(f"  Swagger UI      {settings.public_url or here}/swagger")
    click.echo(f"  Data directory  {settings.data_path}")
    if not _is_loopback(split_address(settings.bind)[0]):
        click.echo(f"  Note: {settings.bind} is open to the network, and this version asks nobody for a password.")
    click.echo("Stop it with Ctrl+C.")
    sys.stdout.flush()
    server.run(listener, settings, program.create_app)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# import


@dataclass(frozen=True, slots=True)
class _Imported:
    """What became of one file."""

    path: str
    outcome: Literal["stored", "already there", "replaced", "kept", "skipped", "failed"]
    message: str = ""
    size: int = 0


@commands.command("import")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--json", "as_json", is_flag=True, help="Report as JSON, with every path.")
@click.option("--quiet", is_flag=True, help="Say nothing but what failed.")
@click.pass_obj
def import_files(program: Program, folders: Sequence[str], as_json: bool, quiet: bool) -> None:
    """Store all DICOM files below FOLDERS.

    May be stopped at any time and run again: what is stored already is counted as already there. Exit code 0 when
    every DICOM file is in the archive, 1 when some could not be stored.
    """
    started = monotonic()
    found: dict[str, list[_Imported]] = defaultdict(list)
    own = program.settings.data_path
    silent = True if quiet or as_json else None  # None: silent unless standard error is a terminal
    interrupted = False
    with program.archive() as archive:
        total = None if silent else sum(1 for _ in _files_below(folders, own))
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
        _fail("Stopped. Run the same command again to go on where it stopped.", 130)
    sys.exit(1 if found["failed"] else 0)


def _import(archive: Archive, folders: Sequence[str], own: Path) -> Iterator[_Imported]:
    batch: list[tuple[str, int]] = []
    for path, fault in _files_below(folders, own):
        if fault:
            yield _Imported(path, "failed", fault)
            continue
        try:
            reason, size = _reason_to_skip(path), os.path.getsize(path)
        except OSError as error:
            yield _Imported(path, "failed", error.strerror or str(error))
            continue
        if reason:
            yield _Imported(path, "skipped", reason)
            continue
        batch.append((path, size))
        if len(batch) == _BATCH_FILES or sum(size for _, size in batch) >= _BATCH_BYTES:
            yield from _store(archive, batch)
            batch = []
    yield from _store(archive, batch)


def _store(archive: Archive, files: Sequence[tuple[str, int]]) -> Iterator[_Imported]:
    if not files:
        return
    spooled = []
    with archive.begin_store() as store:
        for path, size in files:
            try:
                with open(path, "rb") as file:
                    store.add(iter(partial(file.read, _PIECE), b""))
            except OSError as error:
                yield _Imported(path, "failed", error.strerror or str(error))
            else:
                spooled.append((path, size))
        report = store.commit()
    for (path, size), item in zip(spooled, report.items, strict=True):
        yield _imported(path, size, item)


def _imported(path: str, size: int, item: StoreItem) -> _Imported:
    if item.failure is not None or item.outcome is None:
        return _Imported(path, "failed", item.message)
    match item.outcome.name:
        case "SAME":
            return _Imported(path, "already there")
        case "KEPT":
            return _Imported(path, "kept", item.message)
        case "REPLACED":
            return _Imported(path, "replaced", size=size)
        case _:
            return _Imported(path, "stored", size=size)


def _files_below(folders: Sequence[str], own: Path) -> Iterator[tuple[str, str]]:
    """Every file, ordered, with the fault of a folder that cannot be read. The archive's own folder is left out."""
    faults: list[tuple[str, str]] = []
    for start in folders:
        if not os.path.isdir(start):
            yield start, ""
            continue
        for folder, below, names in os.walk(
            start, onerror=lambda error: faults.append((error.filename, error.strerror or ""))
        ):
            below[:] = sorted(name for name in below if Path(folder, name).absolute() != own)
            for name in sorted(names):
                yield os.path.join(folder, name), ""
    yield from faults


def _reason_to_skip(path: str) -> str | None:
    """Why this file is no instance to be stored; None when it looks like one. Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return "not a file"
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        return "empty file"
    if head[128:132] == b"DICM":
        media_storage = head.find(b"\x02\x00\x02\x00UI")  # (0002,0002) Media Storage SOP Class UID
        if media_storage > 0 and head[media_storage + 8 :].startswith(_MEDIA_STORAGE_DIRECTORY):
            return "DICOMDIR: the table of contents of a medium"
        return None
    return None if _is_bare_data_set(head) else "not a DICOM file"


def _is_bare_data_set(head: bytes) -> bool:
    """Without preamble: does it begin with an element of group 0002 or 0008, explicit or implicit VR?"""
    group, length = head[:2], int.from_bytes(head[4:8], "little")
    if len(head) < 8 or group not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    return (head[4:6].isalpha() and head[4:6].isupper()) or (head[1] == 0 and length <= 64)


def _import_report(found: dict[str, list[_Imported]], seconds: float) -> dict[str, Any]:
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


def _tell_import(found: dict[str, list[_Imported]], seconds: float, quiet: bool) -> None:
    if not quiet:
        megabytes = _bytes_stored(found) / 1e6
        click.echo(f"Stored {_count(found['stored'], 'instance')} ({megabytes:.1f} MB) in {seconds:.1f} s.")
        for outcome, meaning in (
            ("already there", "already there"),
            ("replaced", "replaced an instance with other content"),
            ("kept", "left out, because an instance with other content is stored and kept"),
        ):
            if found[outcome]:
                click.echo(f"{_count(found[outcome], 'file')} {meaning}.")
        _list_reasons("Skipped", found["skipped"], err=False)
    _list_reasons("NOT STORED:", found["failed"], err=True)


def _list_reasons(title: str, results: Sequence[_Imported], *, err: bool) -> None:
    if not results:
        return
    by_reason: dict[str, list[str]] = defaultdict(list)
    for each in results:
        by_reason[each.message].append(click.format_filename(each.path))
    click.echo(f"{title} {_count(results, 'file')}:", err=err)
    for reason, paths in sorted(by_reason.items()):
        click.echo(f"  {reason}", err=err)
        for path in paths[:_SHOWN]:
            click.echo(f"    {path}", err=err)
        if len(paths) > _SHOWN:
            click.echo(f"    … and {len(paths) - _SHOWN} more; --json lists all", err=err)


def _bytes_stored(found: dict[str, list[_Imported]]) -> int:
    return sum(each.size for each in (*found["stored"], *found["replaced"]))


# Keeping the archive in order


@commands.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when migrations are pending.")
@click.pass_obj
def migrate(program: Program, check: bool) -> None:
    """Bring the database to this version's schema."""
    with program.archive(migrated=False) as archive:
        if check:
            pending = archive.pending_migrations()
            for name in pending:
                click.echo(f"pending: {name}")
            sys.exit(1 if pending else 0)
        applied = archive.migrate()
    for name in applied:
        click.echo(f"applied: {name}")
    if not applied:
        click.echo("The database is up to date.")


@commands.command()
@click.option("--repair", is_flag=True, help="Take rows without a file out of the index; file instances without a row.")
@click.option("--checksums", is_flag=True, help="Read every file and compare its check sum too.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def verify(program: Program, repair: bool, checksums: bool, as_json: bool) -> None:
    """Hold the index against the files, both ways.

    Exit code 0 when they agree or all was repaired, else 1.
    """
    findings = []
    with program.archive() as archive:
        for finding in archive.verify(repair=repair, checksums=checksums):
            findings.append(finding)
            if not as_json:
                click.echo(f"{'repaired: ' if finding.repaired else ''}{finding.kind} {finding.key}: {finding.message}")
        counts = archive.index.counts()
    left = sum(not finding.repaired for finding in findings)
    if as_json:
        rows = [{"kind": f.kind, "key": f.key, "message": f.message, "repaired": f.repaired} for f in findings]
        click.echo(json.dumps({"counts": counts, "findings": rows, "unrepaired": left}, indent=2))
    elif not findings:
        click.echo(f"Index and files agree: {counts['studies']} studies, {counts['instances']} instances.")
    else:
        click.echo(f"{_count(findings, 'difference')}, {len(findings) - left} repaired.")
    sys.exit(1 if left else 0)


@commands.command()
@click.pass_obj
def reindex(program: Program) -> None:
    """Build the index anew from the stored files. Stop the server before.

    Exit code 1 when a file could not be indexed; it stays in the storage.
    """
    faults = 0
    with program.archive() as archive:
        for step in tqdm(archive.reindex(), unit="file", disable=None):
            if step.message is not None:
                faults += 1
                tqdm.write(f"{step.key}: {step.message}", file=sys.stderr)
        counts = archive.index.counts()
    click.echo(f"Indexed {counts['instances']} instances of {counts['studies']} studies; {faults} could not be.")
    sys.exit(1 if faults else 0)


@commands.command("settings")
@click.option("--markdown", is_flag=True, help="Print the table of docs/settings.md instead.")
@click.pass_obj
def show_settings(program: Program, markdown: bool) -> None:
    """Print every setting, its value and where it came from."""
    if markdown:
        click.echo(markdown_table(), nl=False)
        return
    settings = program.settings
    rows = [
        (option.name, option.show(getattr(settings, option.name)) or '""', settings.sources.get(option.name, "default"))
        for option in OPTIONS
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, value, source in rows:
        click.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # patient data: for its owner only
    except OSError as error:
        raise SettingsError(f"Setting data_dir: {path} cannot be made: {error.strerror}") from None


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _fail(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)
