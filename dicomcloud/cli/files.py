"""The files that a command is to read, and the list of those that it could not use."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ..media import HEAD
from .program import count

_SHOWN = 20  # paths listed per reason; --json has all


@dataclass(frozen=True, slots=True)
class FileOutcome:
    """What became of one file."""

    path: str
    outcome: str
    message: str = ""
    size: int = 0
    uids: tuple[str, str, str] | None = None  # study, series, instance, where it was stored


def files_below(folders: Sequence[str], own: Path) -> Iterator[tuple[str, str]]:
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


def head_of(path: str) -> bytes | None:
    """How the file begins; None for what is no file (a device, a pipe). Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    with open(path, "rb") as file:
        return file.read(HEAD)


def list_reasons(title: str, results: Sequence[FileOutcome], *, err: bool) -> None:
    if not results:
        return
    by_reason: dict[str, list[str]] = defaultdict(list)
    for each in results:
        by_reason[each.message].append(click.format_filename(each.path))
    click.echo(f"{title} {count(results, 'file')}:", err=err)
    for reason, paths in sorted(by_reason.items()):
        click.echo(f"  {reason}", err=err)
        for path in paths[:_SHOWN]:
            click.echo(f"    {path}", err=err)
        if len(paths) > _SHOWN:
            click.echo(f"    … and {len(paths) - _SHOWN} more; --json lists all", err=err)
