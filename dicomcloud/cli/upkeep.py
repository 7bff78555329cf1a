"""`migrate`, `verify`, `reindex`, `quarantine`: keeping the archive in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from time import monotonic, sleep

import click
from tqdm import tqdm

from ..archive import Archive, DamagedDatabase, ReindexStep, explain
from ..quarantine import Quarantine
from ..setting_kinds import SIZE
from .program import Program, commands, count


@commands.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when migrations are pending.")
@click.option(
    "--sql", "as_sql", is_flag=True, help="Change nothing; print the SQL of the pending migrations for a DBA."
)
@click.option("--all", "every", is_flag=True, help="With --sql: of all migrations; the database need not be there.")
@click.pass_obj
def migrate(program: Program, check: bool, as_sql: bool, every: bool) -> None:
    """Bring the database to this version's schema."""
    with program.archive(migrated=False) as archive:
        if as_sql:
            click.echo(archive.migration_script(every=every), nl=False)
            return
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


_KEEP_EVERY = 10.0  # seconds after which the place is written down


@dataclass
class _Place:
    """Up to where a run has come, kept in a file for the next one."""

    path: Path | None

    @cached_property
    def key(self) -> str:
        """Of the last file that was looked at; empty at the beginning."""
        if self.path is None:
            return ""
        try:
            return str(json.loads(self.path.read_text(encoding="utf-8"))["after"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def keep(self, key: str) -> None:
        if self.path is not None:
            draft = self.path.with_suffix(".part")
            draft.write_text(json.dumps({"after": key}), encoding="utf-8")
            draft.replace(self.path)


class _Pace:
    """Reads no faster than `rate` bytes a second, and ends after `minutes`."""

    def __init__(self, place: _Place, rate: int | None, minutes: float | None) -> None:
        self.files = self.bytes = 0
        self.stopped = False
        self._place, self._rate = place, rate
        self._started = self._kept = monotonic()
        self._end = self._started + minutes * 60 if minutes is not None else inf
        self._last = ""

    def __enter__(self) -> None:
        self._last = self._place.key

    def __exit__(self, *failed: object) -> None:
        self._place.keep(self._last if self.stopped or any(failed) else "")

    def go_on(self, key: str, size: int) -> bool:
        self.files += 1
        self.bytes += size
        self._last = key
        if self._rate:
            sleep(max(0.0, self._started + self.bytes / self._rate - monotonic()))
        if monotonic() - self._kept > _KEEP_EVERY:
            self._place.keep(key)
            self._kept = monotonic()
        self.stopped = monotonic() >= self._end
        return not self.stopped


def _size(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else int(SIZE.parse(text))
    except (ValueError, TypeError):
        raise click.BadParameter(f"{text!r} is not {SIZE.expected}") from None


@commands.command()
@click.option("--repair", is_flag=True, help="Take rows without a file out of the index; file instances without a row.")
@click.option("--checksums", is_flag=True, help="Read every file and compare its check sum too.")
@click.option("--rate", metavar="SIZE", callback=_size, help="Read at most so much a second, such as 50MB.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after so long.")
@click.option("--resume", is_flag=True, help="Go on where the last run with --resume stopped.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def verify(
    program: Program,
    repair: bool,
    checksums: bool,
    rate: int | None,
    minutes: float | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Hold the index against the files, both ways.

    Exit code 0 when they agree or all was repaired, else 1. The server may run meanwhile.
    """
    findings = []
    place = _Place(program.settings.data_path / "verify.json" if resume else None)
    pace = _Pace(place, rate, minutes)
    with program.archive() as archive, pace:
        for finding in archive.upkeep.verify(repair=repair, checksums=checksums, after=place.key, go_on=pace.go_on):
            findings.append(finding)
            if not as_json:
                click.echo(f"{'repaired: ' if finding.repaired else ''}{finding.kind} {finding.key}: {finding.message}")
        counts = archive.index.counts()
    left = sum(not finding.repaired for finding in findings)
    if as_json:
        rows = [{"kind": f.kind, "key": f.key, "message": f.message, "repaired": f.repaired} for f in findings]
        report = {
            "counts": counts,
            "findings": rows,
            "unrepaired": left,
            "files": pace.files,
            "complete": not pace.stopped,
        }
        click.echo(json.dumps(report, indent=2))
    elif pace.stopped:
        click.echo(f"Stopped after {pace.files} files, {pace.bytes / 1e6:.1f} MB; {count(findings, 'difference')}.")
    elif not findings:
        click.echo(f"Index and files agree: {counts['studies']} studies, {counts['instances']} instances.")
    else:
        click.echo(f"{count(findings, 'difference')}, {len(findings) - left} repaired.")
    sys.exit(1 if left else 0)


@commands.command()
@click.pass_obj
def reindex(program: Program) -> None:
    """Build the index anew from the stored files. Stop the server before.

    A damaged index is put aside. Exit code 1 when a file could not be indexed; it stays in the storage.
    """
    faults = 0
    with program.archive(migrated=False) as archive:
        for step in tqdm(_reindex(archive), unit="file", disable=None):
            if step.message is not None:
                faults += 1
                tqdm.write(f"{step.key}: {step.message}", file=sys.stderr)
        counts = archive.index.counts()
    click.echo(f"Indexed {counts['instances']} instances of {counts['studies']} studies; {faults} could not be.")
    sys.exit(1 if faults else 0)


def _reindex(archive: Archive) -> Iterator[ReindexStep]:
    """Of a database that is damaged too much, the second attempt is with a new one."""
    try:
        archive.migrate()
        yield from archive.upkeep.reindex()
    except Exception as error:  # every database has its own
        if not isinstance(error if isinstance(error, DamagedDatabase) else explain(error), DamagedDatabase):
            raise
        tqdm.write(f"The index is damaged; it is put aside as {archive.put_index_aside()}", file=sys.stderr)
        archive.migrate()
        yield from archive.upkeep.reindex()


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
    click.echo(f"{count(entries, 'file')}, {total / 1e6:.1f} MB, in {kept.folder}")
