"""`migrate-from-dicomcloud`: an archive of the original DICOMcloud (C#) into this one."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ..archive import Archive
from ..archive.original import OriginalDatabase, OriginalFolder, Place, place_of
from .files import FileOutcome, list_reasons
from .import_files import Found, Importer, pieces
from .program import Program, commands, fail

_TAKEN = ("stored", "already there", "replaced")


@dataclass
class _Course:
    """What has been found and done so far."""

    instances: int = 0
    bytes: int = 0
    copies: int = 0  # other copies of an instance that is taken
    others: int = 0  # files in other forms
    outcomes: Counter[str] = field(default_factory=Counter)
    studies: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    not_taken: list[FileOutcome] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)  # of places whose instance was not taken


@commands.command("migrate-from-dicomcloud")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--database", metavar="URL", help="mssql://USER:PASSWORD@HOST/DATABASE of the original, to check against it."
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be taken.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON, with every path and UID that was not taken.")
@click.option("--quiet", is_flag=True, help="Say nothing but what was not taken.")
@click.pass_obj
def migrate_from_dicomcloud(
    program: Program, folder: str, database: str | None, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    """Take over the archive of an original DICOMcloud (C#), whose media store is FOLDER.

    Nothing in it is changed. Of an instance the file that was received is stored, as `import` does. May be stopped and
    run again. At the end it counts what is on both sides, and names what was not taken and why. With the database of
    the original, every instance that it lists is looked for; without it, every file. Exit code 0 when nothing is
    missing, 1 otherwise.
    """
    if program.settings.anonymizer_enabled:
        fail("Setting anonymizer_enabled: switch it off for the migration; what comes is to be kept as it is.", 2)
    silent = True if quiet or as_json else None  # None: silent unless standard error is a terminal
    try:
        original = OriginalDatabase(database) if database else None
    except ValueError as error:
        fail(str(error), 2)
    try:
        with program.archive() as archive:
            course = _take(archive, OriginalFolder(Path(folder)), dry_run, silent)
            sides, missing = ({}, []) if dry_run else _compare(archive, course)
            if original is not None:
                by_rows, missing_rows = _compare_rows(archive, original, course, dry_run, OriginalFolder(Path(folder)))
                sides, missing = by_rows, missing + missing_rows
    except KeyboardInterrupt:
        fail("Stopped. Run the same command again to go on where it stopped.", 130)
    finally:
        if original is not None:
            original.close()
    if as_json:
        click.echo(json.dumps(_report(course, sides, missing), indent=2))
    else:
        _tell(course, sides, missing, dry_run, quiet)
    sys.exit(1 if course.not_taken or missing else 0)


def _take(archive: Archive, folder: OriginalFolder, dry_run: bool, silent: bool | None) -> _Course:
    course = _Course()
    total = None if silent else sum(1 for _ in folder.places())
    with closing(Importer(archive)) as importer:
        places: dict[str, str] = {}  # path → place, of the files under way
        for name in tqdm(folder.places(), total=total, unit="instance", disable=silent):
            place = folder.look(name)
            _count(course, place)
            for copies in place.instances:
                best = copies[0]
                if dry_run:
                    course.outcomes["to be stored"] += 1
                    continue
                places[best.path] = name
                for outcome in importer.add(Found(best.path, best.size, partial(pieces, best.path))):
                    _note(course, outcome, places.pop(outcome.path))
        for outcome in importer.finish():
            _note(course, outcome, places.pop(outcome.path))
    return course


def _count(course: _Course, place: Place) -> None:
    course.instances += len(place.instances)
    course.bytes += sum(copies[0].size for copies in place.instances)
    course.copies += sum(len(copies) - 1 for copies in place.instances)
    course.others += place.others
    for path, fault in place.faults:
        course.not_taken.append(FileOutcome(path, "failed", fault))
        course.reasons[place.name] = fault
    if not place.instances and not place.faults:
        reason = "no DICOM file among its copies"
        course.not_taken.append(FileOutcome(place.name, "failed", reason))
        course.reasons[place.name] = reason


def _note(course: _Course, outcome: FileOutcome, place: str) -> None:
    course.outcomes[outcome.outcome] += 1
    if outcome.outcome in _TAKEN and outcome.uids is not None:
        study, series, _ = outcome.uids
        course.studies[study][series] += 1
    else:
        reason = outcome.message or "another instance with this UID is stored, and kept"
        course.not_taken.append(FileOutcome(outcome.path, outcome.outcome, reason))
        course.reasons[place] = reason


Sides = dict[str, dict[str, int]]


def _sides(original: tuple[int, int, int], here: tuple[int, int, int]) -> Sides:
    names = ("studies", "series", "instances")
    return {name: {"original": there, "here": own} for name, there, own in zip(names, original, here, strict=True)}


def _compare(archive: Archive, course: _Course) -> tuple[Sides, list[str]]:
    """Whether the archive has, of every study, as many series and instances as were taken."""
    missing = []
    here = [0, 0, 0]
    for study, series in course.studies.items():
        counted: Counter[str] = Counter(row.series_uid for row in archive.index.instances(study))
        here[0] += bool(counted)
        for uid, expected in series.items():
            here[1] += counted[uid] > 0
            here[2] += min(counted[uid], expected)
            if counted[uid] < expected:
                missing.append(
                    f"study {study}, series {uid}: {counted[uid]} of {expected} instances are in the archive"
                )
    original = (len(course.studies), sum(map(len, course.studies.values())), course.instances)
    return _sides(original, (here[0], here[1], here[2])), missing


def _compare_rows(
    archive: Archive, original: OriginalDatabase, course: _Course, dry_run: bool, folder: OriginalFolder
) -> tuple[Sides, list[str]]:
    """Whether the archive has every instance that the database lists; in a dry run, whether there is a file for it."""
    missing = []
    here = [0, 0, 0]
    for study, rows in groupby(original.instances(), key=lambda uids: uids[0]):
        own = set() if dry_run else {(row.series_uid, row.sop_uid) for row in archive.index.instances(study)}
        found: set[str] = set()
        for _, series, sop in rows:
            names = place_of(study, series, sop)
            reason = next((course.reasons[name] for name in names if name in course.reasons), "")
            if (series, sop) in own or dry_run and not reason and any(folder.look(name).instances for name in names):
                found.add(series)
                here[2] += 1
                continue
            missing.append(f"instance {sop} of study {study}: {reason or 'the store has no file of it'}")
        here[0] += bool(found)
        here[1] += len(found)
    return _sides(original.counts(), (here[0], here[1], here[2])), missing


def _report(course: _Course, sides: Sides, missing: list[str]) -> dict[str, Any]:
    return {
        "instances": course.instances,
        "bytes": course.bytes,
        **{name.replace(" ", "_"): number for name, number in sorted(course.outcomes.items())},
        "copies_left_out": course.copies,
        "other_forms_left_out": course.others,
        "compared": sides,
        "missing": missing,
        "not_taken": [{"path": each.path, "reason": each.message} for each in course.not_taken],
    }


def _lines(course: _Course, sides: Sides) -> Iterator[str]:
    yield f"{course.instances} instances ({course.bytes / 1e6:.1f} MB) in the store of the original."
    for outcome, number in sorted(course.outcomes.items()):
        yield f"  {number} {outcome}"
    yield f"Left out: {course.copies} further copies of them, {course.others} files in other forms (JSON, JPEG, …)."
    for name, numbers in sides.items():
        yield f"{name:10} original {numbers['original']:>10}   here {numbers['here']:>10}"


def _tell(course: _Course, sides: Sides, missing: list[str], dry_run: bool, quiet: bool) -> None:
    if not quiet:
        for line in _lines(course, sides):
            click.echo(line)
        if dry_run:
            click.echo("Nothing was stored: a dry run.")
    list_reasons("NOT TAKEN:", course.not_taken, err=True)
    for number, line in enumerate(missing):
        if number == 20:
            click.echo(f"  … and {len(missing) - number} more; --json lists all", err=True)
            break
        click.echo(f"  MISSING: {line}", err=True)
