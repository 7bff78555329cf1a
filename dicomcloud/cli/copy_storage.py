"""`copy-storage`: taking the files to another storage."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from time import monotonic

import click
from tqdm import tqdm

from ..archive.moving import Moved, copy_storage
from .program import Program, commands, count, fail

_SHOWN = 20  # files listed; --json has all


@commands.command("copy-storage")
@click.option("--from", "source", metavar="URL", help="Where the files are (default: the setting storage_url).")
@click.option("--to", "target", metavar="URL", required=True, help="Where they are to be, as in storage_url.")
@click.option("--remove-extra", is_flag=True, help="Remove what the source does not have (any more) from the target.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def copy_storage_command(program: Program, source: str | None, target: str, remove_extra: bool, as_json: bool) -> None:
    """Copy all files to another storage, and hold each copy against its check sum.

    May be stopped and run again, also while the server runs. To move: run it, stop the server, run it again with
    --remove-extra, set storage_url to the target, start the server, run `verify`.
    """
    started = monotonic()
    found: dict[str, list[Moved]] = defaultdict(list)
    interrupted = False
    with program.archive() as archive:
        steps = copy_storage(
            source or program.settings.resolved_storage_url,
            target,
            archive.index,
            program.settings.spool_path,
            remove_extra=remove_extra,
        )
        total = archive.index.counts()["instances"]
        try:
            with tqdm(total=total, unit="file", disable=True if as_json else None) as progress:
                for step in steps:
                    found[step.outcome].append(step)
                    progress.update()
        except ValueError as error:
            fail(f"--from or --to: {error}", 2)
        except KeyboardInterrupt:
            interrupted = True
    if as_json:
        click.echo(json.dumps(_report(found, monotonic() - started), indent=2))
    else:
        _tell(found, monotonic() - started)
    if interrupted:
        fail("Stopped. Run the same command again to go on where it stopped.", 130)
    sys.exit(1 if found["failed"] else 0)


def _report(found: dict[str, list[Moved]], seconds: float) -> dict[str, object]:
    return {
        "copied": len(found["copied"]),
        "bytes": _bytes(found),
        "there": len(found["there"]),
        "extra": [each.key for each in found["extra"]],
        "removed": [each.key for each in found["removed"]],
        "failed": [{"key": each.key, "reason": each.message} for each in found["failed"]],
        "seconds": round(seconds, 3),
    }


def _tell(found: dict[str, list[Moved]], seconds: float) -> None:
    click.echo(f"Copied {count(found['copied'], 'file')} ({_bytes(found) / 1e6:.1f} MB) in {seconds:.1f} s.")
    if found["there"]:
        click.echo(f"{count(found['there'], 'file')} there already.")
    if found["removed"]:
        click.echo(f"{count(found['removed'], 'file')} removed from the target, which the source does not have.")
    if found["extra"]:
        click.echo(f"{count(found['extra'], 'file')} in the target only; --remove-extra removes them.")
    if found["failed"]:
        click.echo(f"NOT COPIED: {count(found['failed'], 'file')}:", err=True)
        for each in found["failed"][:_SHOWN]:
            click.echo(f"  {each.key}: {each.message}", err=True)
        if len(found["failed"]) > _SHOWN:
            click.echo(f"  … and {len(found['failed']) - _SHOWN} more; --json lists all", err=True)


def _bytes(found: dict[str, list[Moved]]) -> int:
    return sum(each.size for each in found["copied"])
