"""`retention`: what the archive may forget, by rules. Told first, done only when it has been told."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import click

from ..archive.retention import Plan, plan, read_rules
from .program import Program, commands, count, fail

_SHOWN = 50  # studies listed; --json has all


@commands.command()
@click.argument("rules", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--delete", "delete_them", is_flag=True, help="Delete what was told; asks that it was told once before.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def retention(program: Program, rules: Path, delete_them: bool, as_json: bool) -> None:
    """Tell, and with --delete remove, what the rules in the file RULES say (docs/operations.md).

    Nothing is ever deleted without such a file. --delete refuses rules that have not been looked at before: run the
    command without it first, and again after every change of the file. The server may run meanwhile.
    """
    try:
        text = rules.read_text(encoding="utf-8")
        parsed = read_rules(text)
    except (ValueError, OSError) as error:
        fail(f"{rules}: {error}", 2)
    seen = program.settings.data_path / "retention.json"
    mark = hashlib.sha256(text.encode()).hexdigest()
    if delete_them and _seen(seen) != mark:
        fail(f"{rules} is new or has changed. Run the command without --delete first, and look what would go.", 1)
    gone = 0
    with program.archive() as archive:
        found = plan(archive.index, parsed)
        if delete_them:
            gone = sum(1 for _ in archive.forget(found))
    if not delete_them:
        seen.write_text(json.dumps({"rules": mark}), encoding="utf-8")
    _tell(found, delete_them, gone, as_json)


def _seen(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["rules"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tell(found: Plan, deleted: bool, gone: int, as_json: bool) -> None:
    if as_json:
        studies = [
            {
                "study": each.study.uid,
                "rule": each.rule,
                "studied": each.study.studied_at.date().isoformat() if each.study.studied_at else None,
                "stored": each.study.stored_at.isoformat(),
                "modalities": list(each.study.modalities),
                "instances": each.study.instances,
                "bytes": each.study.bytes,
            }
            for each in found.studies
        ]
        report = {"deleted": deleted, "studies": studies, "bytes": found.bytes, "superseded": len(found.superseded)}
        click.echo(json.dumps(report, indent=2))
        return
    for each in found.studies[:_SHOWN]:
        study = each.study
        day = study.studied_at.date().isoformat() if study.studied_at else "no date   "
        kinds = ",".join(study.modalities)
        click.echo(f"{day}  {kinds:8}  {study.bytes / 1e6:>10.1f} MB  {study.uid}  ({each.rule})")
    if len(found.studies) > _SHOWN:
        click.echo(f"… and {len(found.studies) - _SHOWN} more; --json lists all")
    number = count(found.studies, "study").replace("studys", "studies")
    versions = f", {len(found.superseded)} replaced versions" if found.superseded else ""
    if deleted:
        click.echo(f"Deleted {gone} of {number}, {found.bytes / 1e6:.1f} MB{versions}.")
    else:
        click.echo(f"Would delete {number}, {found.bytes / 1e6:.1f} MB{versions}. --delete does it.")
    sys.stdout.flush()
