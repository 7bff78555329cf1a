"""`backup` and `restore`: copies of the whole archive, made while it is in use."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click
from tqdm import tqdm

from ..archive.backup import Backup, Step
from ..settings import SettingsError
from .program import Program, commands, fail, make_folder

_SHOWN = 20  # faults listed; --json has all


@commands.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--keep", default=7, show_default=True, type=click.IntRange(1), help="How many backups to keep there.")
@click.option("--verify", is_flag=True, help="Make none; read the last backup and compare every check sum.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def backup(program: Program, folder: Path, keep: int, verify: bool, as_json: bool) -> None:
    """Back the archive up into FOLDER, on another disk, while the server runs.

    Stored files are copied once, so the next backup into the same FOLDER is quick. Exit code 1 when a file could not be
    copied because it is lost or damaged; the others are in the backup.
    """
    settings = program.settings
    index = _index_file(program)
    target = Backup(folder)
    if verify:
        generation = target.generation()
        steps = _watched(target.verify(generation), generation.instances, as_json)
        _tell(as_json, steps, f"The backup {generation.name} is whole", "damaged", name=generation.name)
    for own in (settings.data_path, _storage_folder(program)):
        if own is not None and own.is_relative_to(folder.absolute()):
            fail(f"{folder} holds the archive itself: a backup belongs on another disk", 2)
    with program.archive() as archive:
        without = [
            index,
            settings.cache_path,
            settings.quarantine_path,
            settings.login_failures_path,
            *filter(None, [_storage_folder(program)]),
        ]
        expected = archive.index.counts()["instances"]
        making = archive.back_up(target, settings.data_path, without=without, keep=keep)
        steps = _watched(making, expected, as_json)
    generation = target.generation()
    copied = [step for step in steps if step.size]
    size = sum(step.size for step in copied) / 1e6
    text = f"Backup {generation.name}: {generation.instances} instances; {len(copied)} files ({size:.1f} MB) were new"
    _tell(as_json, steps, text, "not copied", name=generation.name)


@commands.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--at", metavar="NAME", help="Which backup; the last one unless told otherwise.")
@click.option("--list", "list_them", is_flag=True, help="Only list the backups in FOLDER.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def restore(program: Program, folder: Path, at: str | None, list_them: bool, as_json: bool) -> None:
    """Restore the archive from a backup in FOLDER, into a data directory that has no index yet; then verify it.

    Can be stopped and run again. Exit code 1 when a file of the backup is lost or damaged; the others are restored.
    """
    source = Backup(folder)
    if list_them:
        found = source.generations()
        if as_json:
            click.echo(json.dumps([asdict(each) for each in found], indent=2))
        else:
            for each in found:
                click.echo(f"{each.name}  {each.studies:>8} studies  {each.instances:>9} instances  {each.bytes:>15} B")
        return
    generation = source.generation(at)
    settings = program.settings
    index = _index_file(program)
    make_folder(settings.data_path)
    if index.exists():
        fail(f"{index} is there already. Stop the server and move the data directory aside: restore makes a new one", 1)
    archive = program.open_archive(settings)
    try:
        restoring = archive.restore(source, generation, index, settings.data_path)
        steps = _watched(restoring, generation.instances, as_json)
    finally:
        archive.close()
    with program.archive() as archive:
        told = {step.key for step in steps if step.fault}
        steps += [Step(each.key, 0, each.message) for each in archive.upkeep.verify() if each.key not in told]
        counts = archive.index.counts()
    text = f"Restored {generation.name}: {counts['studies']} studies, {counts['instances']} instances"
    _tell(as_json, steps, text, "not restored", name=generation.name)


def _index_file(program: Program) -> Path:
    """The file of the database. Raises SettingsError where it is no file."""
    scheme, _, path = program.settings.resolved_database_url.partition(":///")
    if scheme != "sqlite":
        raise SettingsError(
            "Setting database_url: this database is backed up and restored with its own tools; copy the storage folder "
            "after it (docs/operations.md)"
        )
    return Path(path).absolute()


def _storage_folder(program: Program) -> Path | None:
    scheme, _, path = program.settings.resolved_storage_url.partition("://")
    return Path(path).absolute() if scheme == "file" else None


def _watched(steps: Iterable[Step], total: int, as_json: bool) -> list[Step]:
    return list(tqdm(steps, total=total, unit="file", disable=True if as_json else None))


def _tell(as_json: bool, steps: list[Step], text: str, failed: str, *, name: str) -> None:
    """Report, and exit."""
    faults = [step for step in steps if step.fault]
    if as_json:
        copied = [step for step in steps if step.size and not step.fault]
        report = {
            "backup": name,
            "files": len(steps),
            "copied": len(copied),
            "bytes": sum(step.size for step in copied),
            "faults": [{"key": step.key, "message": step.fault} for step in faults],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(f"{text}." if not faults else f"{text}, but {len(faults)} {failed}:")
        for step in faults[:_SHOWN]:
            click.echo(f"  {step.key}: {step.fault}", err=True)
        if len(faults) > _SHOWN:
            click.echo(f"  … and {len(faults) - _SHOWN} more; --json lists all", err=True)
    sys.exit(1 if faults else 0)
