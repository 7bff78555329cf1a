"""`events`: what waits to be delivered to webhooks, queues and subscribers, and what was given up."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from ..delivery import Delivery, open_targets
from .program import Program, commands, count


@commands.group()
def events() -> None:
    """List, retry and discard events that could not be delivered yet (webhooks, queue, subscribers)."""


@events.command("list")
@click.option("--dead", is_flag=True, help="Only those that were given up.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1), help="Most rows.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON, with the events themselves.")
@click.pass_obj
def list_events(program: Program, dead: bool, limit: int, as_json: bool) -> None:
    """List the events that wait or were given up, oldest first. Exit code 1 when some were given up."""
    with program.archive() as archive:
        rows = archive.outbox.rows(state="dead" if dead else None, limit=limit)
        counts = archive.outbox.counts()
    given_up = sum(number for (_, state), number in counts.items() if state == "dead")
    if as_json:
        found = [
            {
                "id": row.id,
                "target": row.target,
                "state": row.state,
                "attempts": row.attempts,
                "due_at": row.due_at.isoformat(timespec="seconds"),
                "last_error": row.last_error,
                "event": json.loads(row.event.payload()),
            }
            for row in rows
        ]
        totals = [{"target": target, "state": state, "events": number} for (target, state), number in counts.items()]
        click.echo(json.dumps({"totals": totals, "events": found}, indent=2))
    else:
        for row in rows:
            click.echo(
                f"{row.id:>8}  {row.state:<7}  {row.event.kind:<9}  {row.event.time:%Y-%m-%d %H:%M:%S}"
                f"  {row.attempts} attempts  {row.target}  {row.event.study_uid}  {row.last_error}"
            )
        for (target, state), number in sorted(counts.items()):
            click.echo(f"{number} {state}: {target}")
        if not counts:
            click.echo("No events wait.")
    sys.exit(1 if given_up else 0)


@events.command()
@click.argument("ids", nargs=-1, type=int)
@click.pass_obj
def retry(program: Program, ids: Sequence[int]) -> None:
    """Try these events again now; without IDS all that were given up."""
    with program.archive() as archive:
        click.echo(f"{count(range(archive.outbox.retry(ids or None)), 'event')} will be tried again.")


@events.command()
@click.argument("ids", nargs=-1, type=int)
@click.pass_obj
def discard(program: Program, ids: Sequence[int]) -> None:
    """Forget these events; without IDS all that were given up."""
    with program.archive() as archive:
        click.echo(f"{count(range(archive.outbox.discard(ids or None)), 'event')} discarded.")


@events.command()
@click.pass_obj
def send(program: Program) -> None:
    """Deliver now what is due, in this process. The server does so by itself.

    Exit code 1 when a destination did not take an event.
    """
    targets = open_targets(program.settings)
    with program.archive() as archive:
        delivery = Delivery(archive.outbox, archive.events, targets, attempts=program.settings.event_attempts)
        sent, failed = delivery.send_due()
    click.echo(f"{count(range(sent), 'event')} delivered, {failed} not.")
    sys.exit(1 if failed else 0)
