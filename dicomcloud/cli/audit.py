"""`audit`: the audit trail, asked and verified."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from time import time_ns
from typing import Any

import click
from tqdm import tqdm

from ..archive import AuditEntry
from .program import Program, commands, fail

_DAY = 86_400_000_000  # microseconds


@commands.group()
def audit() -> None:
    """Who did what, when, from where, and how it ended."""


@audit.command("list")
@click.option("--since", metavar="WHEN", help="From this time on: 2026-11-28, 2026-11-28T14:30, UTC.")
@click.option("--until", metavar="WHEN", help="Up to this time, or to the end of this day.")
@click.option("--user", metavar="NAME", help="What this caller did: a user, key:NAME, share:ID, operator:NAME.")
@click.option("--action", help="search, retrieve, store, delete, login, logout, refuse, share, administer …")
@click.option("--study", metavar="UID", help="What was done to this study.")
@click.option("--limit", type=click.IntRange(1), help="At most so many, the oldest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
def list_events(
    program: Program,
    since: str | None,
    until: str | None,
    user: str | None,
    action: str | None,
    study: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the events, oldest first."""
    with program.archive() as archive:
        entries = archive.audit.table.entries(
            since=_moment(since)[0] if since else 0,
            until=_moment(until)[1] if until else 2**62,
            caller=user,
            action=action,
            study_uid=study,
            limit=limit,
        )
        for line in _lines(entries, as_json):
            click.echo(line)


@audit.command("verify")
@click.pass_obj
def verify_trail(program: Program) -> None:
    """Check that no event was changed, removed or put in.

    Prints the number and the hash of the last event: noted elsewhere from time to time, they also show that the end of
    the trail was not cut off. Exit code 1 when the trail is not what was written.
    """
    with program.archive() as archive:
        faults = list(archive.audit.table.verify())
        number, last = archive.audit.table.head()
        pruned = archive.audit.table.pruned()
    for fault in faults[:20]:
        click.echo(f"{fault.sequence}: {fault.message}", err=True)
    if faults:
        fail(f"The audit trail of {number} events is NOT what was written.", 1)
    click.echo(f"The audit trail is whole: {number} events, the last with hash {last}")
    if pruned is not None:
        click.echo(f"Those up to {pruned.sequence} were removed by {pruned.caller} at {_time(pruned.moment)}.")


@audit.command("prune")
@click.option("--before", metavar="WHEN", help="What ended before this time: 2020-01-01, or 2020-01-01T14:30, UTC.")
@click.option("--keep-days", type=click.IntRange(1), help="What is older than so many days.")
@click.option("--delete", "delete_them", is_flag=True, help="Remove it. Without this, it is only told.")
@click.pass_obj
def prune_trail(program: Program, before: str | None, keep_days: int | None, delete_them: bool) -> None:
    """Remove old events, which nothing else ever does. What is left can be verified as before.

    Events are removed from the beginning, up to the first that is to be kept, for ever: the law may ask for many
    years, and `audit list --until WHEN --json` puts them into a file first. An event of the trail says who removed
    what, with the hash of the last one removed. The server may run meanwhile.
    """
    if (before is None) == (keep_days is None):
        fail("Say what is old: either --before or --keep-days.", 2)
    if before is not None:
        moment = _moment(before)[0]
    else:
        assert keep_days is not None
        moment = time_ns() // 1000 - keep_days * _DAY
    with program.archive() as archive:
        table = archive.audit.table
        first, through = table.first(), table.older(moment)
        if program.settings.audit_syslog and through > (sent := table.forwarded()):
            click.echo(f"Only what the syslog server has been sent can go: up to {sent}.", err=True)
            through = sent
        number = max(through - first + 1, 0)
        if not number:
            click.echo("No event is that old.")
        elif not delete_them:
            click.echo(f"{number} events, {first} to {through}, would be removed; --delete does it.")
        else:
            with tqdm(total=number, unit="event", disable=None) as progress:
                for gone in archive.audit.prune(through):
                    progress.update(gone)
            click.echo(f"{number} events, {first} to {through}, were removed.")


def _lines(entries: Iterator[AuditEntry], as_json: bool) -> Iterator[str]:
    for entry in entries:
        event = entry.event
        if as_json:
            yield json.dumps(_described(entry), ensure_ascii=False)
            continue
        what = "/".join(uid for uid in (event.study_uid, event.series_uid, event.sop_uid) if uid)
        times = f" ×{event.times}" if event.times > 1 else ""
        yield (
            f"{_time(event.began_at)}  {event.action:10} {event.outcome}{times}  {event.caller or '-'}"
            f"  {event.address or '-'}  {what}  {event.detail}"
        ).rstrip()


def _described(entry: AuditEntry) -> dict[str, Any]:
    event = entry.event._asdict()
    event |= {"began_at": _time(entry.event.began_at), "ended_at": _time(entry.event.ended_at)}
    return {"sequence": entry.sequence, **event, "hash": entry.hash}


def _moment(text: str) -> tuple[int, int]:
    """The first microsecond that is meant, and the first one after it."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        print(f"{text!r} is not a time such as 2026-11-28 or 2026-11-28T14:30.", file=sys.stderr)
        sys.exit(2)
    first = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)
    return first, first + (_DAY if len(text) == 10 else 1)


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")
