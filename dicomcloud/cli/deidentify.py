"""`deidentify`: de-identified copies of files and folders, PS3.15 Annex E."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import click
from tqdm import tqdm

from .. import deidentify
from ..media import reason_to_skip
from .files import FileOutcome, files_below, head_of, list_reasons
from .program import Program, commands, count, fail, make_folder


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
    make_folder(program.settings.data_path)  # the key may have to be made there
    chosen = options.replace(",", " ").split() if options is not None else None
    deidentifier = deidentify.open_deidentifier(program.settings, chosen)
    found: dict[str, list[FileOutcome]] = defaultdict(list)
    copies: list[deidentify.Copied] = []
    silent = True if quiet or as_json else None
    interrupted = False
    try:
        for path, fault in tqdm(list(files_below([source], out)), unit="file", disable=silent):
            try:
                head = b"" if fault else head_of(path)
            except OSError as error:
                fault = error.strerror or str(error)
            reason = fault or ("not a file" if head is None else reason_to_skip(head))
            if reason:
                found["failed" if fault else "skipped"].append(FileOutcome(path, "failed", reason))
                continue
            if os.path.isdir(source) or out.is_dir():
                relative = os.path.relpath(path, source) if os.path.isdir(source) else ""
                copy = deidentify.copy_into(deidentifier, path, relative, out)
            else:
                copy = deidentify.copy_file(deidentifier, path, out)
            copies.append(copy)
            found[copy.outcome].append(FileOutcome(path, "failed", copy.message))
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        click.echo(json.dumps(_copies_report(copies, found, monotonic() - started), indent=2))
    elif not quiet:
        click.echo(f"De-identified {count(found['written'], 'instance')} in {monotonic() - started:.1f} s.")
        if found["already there"]:
            click.echo(f"{count(found['already there'], 'file')} already there.")
        list_reasons("Skipped", found["skipped"], err=False)
    list_reasons("NOT COPIED:", found["failed"], err=True)
    if interrupted:
        fail("Stopped. Run the same command again to go on where it stopped.", 130)
    sys.exit(1 if found["failed"] else 0)


def _copies_report(
    copies: Sequence[deidentify.Copied], found: dict[str, list[FileOutcome]], seconds: float
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
