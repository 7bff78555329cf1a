"""`doctor`: looks at the installation and says what is wrong with it, and what to do.

A check is a function from the program to diagnoses; a new one is added to CHECKS. It changes nothing. What it cannot
find out is a fault of its own: an exception ends that check, not the others.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Final

import click

from ..diagnosis import Diagnosis, State, fault
from ..errors import DicomWebError
from ..settings import SettingsError
from . import checks
from .program import Program, commands

Check = Callable[[Program], Iterator[Diagnosis]]


def check_index(program: Program) -> Iterator[Diagnosis]:
    """The database: reachable, up to date, set up as it should be."""
    with program.archive(migrated=False) as archive:
        yield from archive.diagnose()


CHECKS: Final[Sequence[Check]] = (
    check_index,
    checks.check_settings,
    checks.check_storage,
    checks.check_object_store,
    checks.check_disk_space,
    checks.check_clock,
    checks.check_proxies,
    checks.check_codecs,
)

_SIGNS: Final = {State.OK: "ok     ", State.WARNING: "WARNING", State.FAULT: "FAULT  "}


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.pass_obj
def doctor(program: Program, as_json: bool) -> None:
    """Check the installation and say what to do about what is wrong.

    Changes nothing. Exit code 0 when nothing is wrong or there are only warnings, 1 when there is a fault.
    """
    found = []
    for each in _diagnoses(program):
        found.append(each)
        if not as_json:
            click.echo(f"{_SIGNS[each.state]}  {each.what}: {each.message}")
            if each.advice:
                click.echo(f"         {each.advice}")
    states = Counter(each.state for each in found)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=2))
    else:
        faults, warnings = states[State.FAULT], states[State.WARNING]
        click.echo(f"{faults} fault{'' if faults == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}.")
    sys.exit(1 if states[State.FAULT] else 0)


def _diagnoses(program: Program) -> Iterator[Diagnosis]:
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            yield from check(program)
        except DicomWebError as error:
            yield fault(name, error.message)
        except SettingsError as error:
            yield fault(name, str(error))
        except Exception as error:
            yield fault(name, f"could not be checked: {type(error).__name__}: {error}")
