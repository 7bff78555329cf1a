"""`migrate`, `verify`, `reindex`, `quarantine`: keeping the archive in order."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from tqdm import tqdm

from ..quarantine import Quarantine
from .program import Program, commands, count


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
        for finding in archive.upkeep.verify(repair=repair, checksums=checksums):
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
        click.echo(f"{count(findings, 'difference')}, {len(findings) - left} repaired.")
    sys.exit(1 if left else 0)


@commands.command()
@click.pass_obj
def reindex(program: Program) -> None:
    """Build the index anew from the stored files. Stop the server before.

    Exit code 1 when a file could not be indexed; it stays in the storage.
    """
    faults = 0
    with program.archive() as archive:
        for step in tqdm(archive.upkeep.reindex(), unit="file", disable=None):
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
    click.echo(f"{count(entries, 'file')}, {total / 1e6:.1f} MB, in {kept.folder}")
