"""The command line: serve, import, deidentify, migrate, verify, reindex, quarantine, settings.

Exit codes: 0 done; 1 something could not be done, and is named; 2 wrong usage or settings.
"""

from __future__ import annotations

import ipaddress
import json
import os
import stat
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import click
from tqdm import tqdm

from . import __version__, deidentify, server
from .archive import Archive, StoreBatch, StoreItem
from .errors import DicomWebError
from .media import HEAD, ZipMedium, is_zip, reason_to_skip
from .quarantine import Quarantine
from .settings import OPTIONS, Settings, SettingsError, load, markdown_table, split_address

_PROGRAM = "python -m dicomcloud"
_BATCH_FILES, _BATCH_BYTES = 50, 64 << 20  # of import: what one transaction holds
_PIECE = 1 << 20  # bytes read at a time
_SHOWN = 20  # paths listed per reason; --json has all
_MAX_MEMBERS = 1_000_000  # of one ZIP file


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
    """Store all DICOM files below FOLDERS, also those in ZIP files and on CDs with a DICOMDIR.

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


@dataclass(frozen=True, slots=True)
class _Found:
    """A file that looks like an instance, and how to read it."""

    path: str
    size: int
    chunks: Callable[[], Iterator[bytes]]


def _import(archive: Archive, folders: Sequence[str], own: Path) -> Iterator[_Imported]:
    with closing(_Importer(archive)) as importer:
        yield from _import_files(importer, folders, own)


def _import_files(importer: _Importer, folders: Sequence[str], own: Path) -> Iterator[_Imported]:
    for path, fault in _files_below(folders, own):
        if fault:
            yield _Imported(path, "failed", fault)
            continue
        try:
            head, size = _head(path), os.path.getsize(path)
        except OSError as error:
            yield _Imported(path, "failed", error.strerror or str(error))
            continue
        if head is not None and is_zip(head):
            yield from _import_zip(importer, path)
            continue
        reason = "not a file" if head is None else reason_to_skip(head)
        if reason:
            yield _Imported(path, "skipped", reason)
        else:
            yield from importer.add(_Found(path, size, partial(_pieces, path)))
    yield from importer.finish()


def _import_zip(importer: _Importer, path: str) -> Iterator[_Imported]:
    """The members of a ZIP file, named `file.zip/folder/member`. They are unpacked one after the other."""
    with open(path, "rb") as file:
        try:
            medium = ZipMedium(file, max_members=_MAX_MEMBERS, max_bytes=sys.maxsize)
        except ValueError as error:
            yield _Imported(path, "failed", f"a ZIP file that cannot be read: {error}")
            return
        for member in medium.members():
            name = f"{path}/{member.name}"
            if member.reason_to_skip:
                yield _Imported(name, "skipped", member.reason_to_skip)
            else:
                yield from importer.add(_Found(name, member.size, member.chunks))
        yield from importer.finish()


class _Importer:
    """Stores files in batches: each is a transaction."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._store: StoreBatch | None = None
        self._spooled: list[_Found] = []

    def add(self, found: _Found) -> Iterator[_Imported]:
        if self._store is None:
            self._store = self._archive.begin_store(quarantine=False)  # the files stay where they are
        try:
            self._store.add(found.chunks())
        except OSError as error:
            yield _Imported(found.path, "failed", error.strerror or str(error))
        else:
            self._spooled.append(found)
        if len(self._spooled) == _BATCH_FILES or sum(each.size for each in self._spooled) >= _BATCH_BYTES:
            yield from self.finish()

    def finish(self) -> Iterator[_Imported]:
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


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(partial(file.read, _PIECE), b"")


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


def _head(path: str) -> bytes | None:
    """How the file begins; None for what is no file (a device, a pipe). Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    with open(path, "rb") as file:
        return file.read(HEAD)


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


# deidentify


@commands.command("deidentify")
@click.argument("source", metavar="IN", type=click.Path(exists=True))
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--options", metavar="NAMES", help="Instead of the setting anonymizer_options; with commas.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON; it names the copies, not the originals.")
@click.option("--quiet", is_flag=True, help="Say nothing but what failed.")
@click.pass_obj
def deidentify_files(
    program: Program, source: str, target: str, options: str | None, as_json: bool, quiet: bool
) -> None:
    """Write de-identified copies of the DICOM file or folder IN to OUT.

    A folder becomes the same tree with names that say nothing. Nothing is overwritten, and copies that are there
    already are left alone. Exit code 0 when every DICOM file was copied, 1 when some could not be.
    """
    started = monotonic()
    out = Path(target).absolute()
    if os.path.isdir(source) and (out == Path(source).absolute() or (out.exists() and not out.is_dir())):
        raise click.UsageError("OUT must be another folder than IN.")
    _make_folder(program.settings.data_path)  # the key may have to be made there
    chosen = options.replace(",", " ").split() if options is not None else None
    deidentifier = deidentify.open_deidentifier(program.settings, chosen)
    found: dict[str, list[_Imported]] = defaultdict(list)
    copies: list[deidentify.Copied] = []
    silent = True if quiet or as_json else None
    interrupted = False
    try:
        for path, fault in tqdm(list(_files_below([source], out)), unit="file", disable=silent):
            try:
                head = b"" if fault else _head(path)
            except OSError as error:
                fault = error.strerror or str(error)
            reason = fault or ("not a file" if head is None else reason_to_skip(head))
            if reason:
                found["failed" if fault else "skipped"].append(_Imported(path, "failed", reason))
                continue
            if os.path.isdir(source) or out.is_dir():
                relative = os.path.relpath(path, source) if os.path.isdir(source) else ""
                copy = deidentify.copy_into(deidentifier, path, relative, out)
            else:
                copy = deidentify.copy_file(deidentifier, path, out)
            copies.append(copy)
            found[copy.outcome].append(_Imported(path, "failed", copy.message))
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        click.echo(json.dumps(_copies_report(copies, found, monotonic() - started), indent=2))
    elif not quiet:
        click.echo(f"De-identified {_count(found['written'], 'instance')} in {monotonic() - started:.1f} s.")
        if found["already there"]:
            click.echo(f"{_count(found['already there'], 'file')} already there.")
        _list_reasons("Skipped", found["skipped"], err=False)
    _list_reasons("NOT COPIED:", found["failed"], err=True)
    if interrupted:
        _fail("Stopped. Run the same command again to go on where it stopped.", 130)
    sys.exit(1 if found["failed"] else 0)


def _copies_report(
    copies: Sequence[deidentify.Copied], found: dict[str, list[_Imported]], seconds: float
) -> dict[str, Any]:
    """Without the paths and UIDs of the originals: the report may go with the copies."""
    return {
        "written": len(found["written"]),
        "already_there": len(found["already there"]),
        "seconds": round(seconds, 3),
        "files": [
            {
                "file": copy.target,
                "sop_class_uid": copy.report.sop_class_uid,
                "sop_instance_uid": copy.report.sop_instance_uid,
                "series_instance_uid": copy.report.series_instance_uid,
                "study_instance_uid": copy.report.study_instance_uid,
                "pixel_data_cleaned": copy.report.pixel_data_cleaned,
            }
            for copy in copies
            if copy.report is not None
        ],
        "skipped": Counter(each.message for each in found["skipped"]),
        "failed": Counter(each.message for each in found["failed"]),
    }


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


@commands.command("quarantine")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def list_quarantine(program: Program, as_json: bool) -> None:
    """List what could not be stored and was kept aside (setting `quarantine`), with the reasons.

    What has been dealt with may be deleted from the folder, the file and the .json beside it.
    """
    settings = program.settings
    kept = Quarantine(settings.quarantine_path, settings.quarantine_bytes)
    entries = list(kept.entries())
    if as_json:
        click.echo(json.dumps({"folder": str(kept.folder), "files": [asdict(entry) for entry in entries]}, indent=2))
        return
    for entry in entries:
        click.echo(f"{entry.when}  {entry.failure_reason}  {entry.size:>12}  {entry.file}  {entry.message}")
    total = sum(entry.size for entry in entries)
    click.echo(f"{_count(entries, 'file')}, {total / 1e6:.1f} MB, in {kept.folder}")


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
