"""`users` and `keys`: who may use the archive."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from ..access import ROLES, parse_studies
from ..access.credentials import checksum, hash_password, new_key
from ..archive import NEVER, Archive, Key, User
from .program import Program, ask_password, commands, fail, read_password

_LONGEST_NAME = 100
_ROLE = click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(list(ROLES)),
    help="May be given several times.",
)
_ONLY = click.option(
    "--only",
    multiple=True,
    metavar="RULE",
    help="Only studies of this rule, e.g. PatientID=A* or IssuerOfPatientID=NORTH&InstitutionName=North*; of several "
    "rules one has to hold.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Report as JSON.")


@commands.group()
def users() -> None:
    """Who may log in, and what they may do.

    A running server knows of a change within two seconds. A password is asked for, or read from standard input with
    --password-stdin; it is never an argument, which others on the computer could read.
    """


@users.command("add")
@click.argument("name")
@_ROLE
@_ONLY
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--external", is_flag=True, help="No password here: a proxy or a login server lets them in.")
@click.pass_obj
def add_user(
    program: Program,
    name: str,
    roles: Sequence[str],
    only: Sequence[str],
    password_stdin: bool,
    external: bool,
) -> None:
    """Add a user. Without --role they may search and retrieve."""
    name = _name(name)
    rules = _rules(only)
    with program.archive() as archive:
        if archive.accounts.user(name) is not None:
            fail(f"There is a user {name} already; `users change` and `users password` change them.", 1)
        first = not archive.accounts.anybody()
        hashed = "" if external else _new_password(password_stdin)
        if not archive.accounts.add_user(name, hashed, " ".join(dict.fromkeys(roles)) or "reader", rules):
            fail(f"There is a user {name} already.", 1)
        _record(archive, f"added user {name}: {' '.join(roles) or 'reader'}")
    click.echo(f"Added {name}.")
    if first:
        click.echo("The server asks its callers who they are from now on; restart it if it is running.")


@users.command("list")
@_JSON
@click.pass_obj
def list_users(program: Program, as_json: bool) -> None:
    """List the users, with their roles and the studies they see."""
    with program.archive() as archive:
        found = archive.accounts.users()
    if as_json:
        click.echo(json.dumps([_described(user) for user in found], indent=2))
        return
    for user in found:
        notes = ["disabled"] * user.disabled + ["external"] * (not user.password)
        notes += [f"only {rule}" for rule in user.studies.splitlines()]
        click.echo(f"{user.name:20}  {user.roles:30}  {'; '.join(notes)}".rstrip())


@users.command("change")
@click.argument("name")
@_ROLE
@_ONLY
@click.option("--all-studies", is_flag=True, help="Let the user see all studies.")
@click.pass_obj
def change_user(program: Program, name: str, roles: Sequence[str], only: Sequence[str], all_studies: bool) -> None:
    """Give a user other roles, or other studies to see. What is not given stays."""
    if not roles and not only and not all_studies:
        raise click.UsageError("Give --role, --only or --all-studies.")
    studies = "" if all_studies else _rules(only) if only else None
    _change(program, name, roles=" ".join(dict.fromkeys(roles)) or None, studies=studies)
    click.echo(f"Changed {_name(name)}.")


@users.command("password")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.pass_obj
def change_password(program: Program, name: str, password_stdin: bool) -> None:
    """Give a user another password. Their browsers have to log in again."""
    with program.archive() as archive:
        if archive.accounts.user(_name(name)) is None:
            fail(f"There is no user {_name(name)}.", 1)
    _change(program, name, password=_new_password(password_stdin))
    click.echo(f"Changed the password of {_name(name)}.")


@users.command("disable")
@click.argument("name")
@click.pass_obj
def disable_user(program: Program, name: str) -> None:
    """Let a user in no more. What they did stays in the audit trail."""
    _change(program, name, disabled=True)
    click.echo(f"Disabled {_name(name)}.")


@users.command("enable")
@click.argument("name")
@click.pass_obj
def enable_user(program: Program, name: str) -> None:
    """Let a user in again who was disabled."""
    _change(program, name, disabled=False)
    click.echo(f"Enabled {_name(name)}.")


@commands.group()
def keys() -> None:
    """API keys, for modalities and programs."""


@keys.command("add")
@click.argument("name")
@_ROLE
@_ONLY
@click.option("--days", type=click.IntRange(1, 36500), help="Days until the key ends; it never does otherwise.")
@click.pass_obj
def add_key(program: Program, name: str, roles: Sequence[str], only: Sequence[str], days: int | None) -> None:
    """Make an API key and print it, this once. Without --role it may search and retrieve.

    It is sent as `Authorization: Bearer KEY`, as `X-API-Key: KEY`, or as the password of HTTP Basic with any name.
    """
    key_id, key = new_key()
    rules, moment = _rules(only), int(datetime.now(UTC).timestamp() * 1e6)
    ends = moment + days * 86_400_000_000 if days else NEVER
    row = Key(
        key_id, _name(name), checksum(key), " ".join(dict.fromkeys(roles)) or "reader", rules, moment, ends, NEVER
    )
    with program.archive() as archive:
        archive.accounts.add_key(row)
        _record(archive, f"added key {key_id} {row.name}: {row.roles}")
    click.echo(key)
    click.echo("Keep it now: it is not stored here and cannot be shown again.", err=True)


@keys.command("list")
@_JSON
@click.pass_obj
def list_keys(program: Program, as_json: bool) -> None:
    """List the keys: what they may do, not the keys themselves."""
    with program.archive() as archive:
        found = archive.accounts.keys()
    if as_json:
        click.echo(json.dumps([_described_key(key) for key in found], indent=2))
        return
    for key in found:
        notes = ["revoked"] * bool(key.revoked_at)
        notes += [f"until {_time(key.expires_at)}"] * (key.expires_at != NEVER)
        notes += [f"only {rule}" for rule in key.studies.splitlines()]
        click.echo(f"{key.key_id}  {key.name:20}  {key.roles:30}  {'; '.join(notes)}".rstrip())


@keys.command("revoke")
@click.argument("key_id")
@click.pass_obj
def revoke_key(program: Program, key_id: str) -> None:
    """Let a key in no more; KEY_ID is what `keys list` begins with."""
    with program.archive() as archive:
        if not archive.accounts.revoke_key(key_id):
            fail(f"There is no key {key_id} that is good.", 1)
        _record(archive, f"revoked key {key_id}")
    click.echo(f"Revoked {key_id}.")


def _change(program: Program, name: str, **changes: Any) -> None:
    with program.archive() as archive:
        if not archive.accounts.change_user(_name(name), **changes):
            fail(f"There is no user {_name(name)}.", 1)
        what = ", ".join("password" if key == "password" else f"{key} {value}" for key, value in changes.items())
        _record(archive, f"changed user {_name(name)}: {what}")


def _record(archive: Archive, text: str) -> None:
    archive.audit.write("administer", detail=text)


def _name(text: str) -> str:
    name = text.strip().casefold()
    if not name or len(name) > _LONGEST_NAME or ":" in name or not name.isprintable():
        raise click.UsageError(f"A name has 1 to {_LONGEST_NAME} characters, and no colon.")
    return name


def _rules(only: Sequence[str]) -> str:
    try:
        parse_studies(only)
    except ValueError as error:
        raise click.UsageError(f"--only: {error}.") from None
    return "\n".join(only)


def _new_password(from_stdin: bool) -> str:
    """The hash of a password that is asked for twice, or is the first line of standard input."""
    password = read_password() if from_stdin else ask_password("Password", "give --password-stdin", twice=True)
    try:
        return hash_password(password)
    except ValueError as error:
        raise click.UsageError(f"Not taken: {error}.") from None


def _described(user: User) -> dict[str, Any]:
    return {
        "name": user.name,
        "roles": user.roles.split(),
        "only": user.studies.splitlines(),
        "disabled": bool(user.disabled),
        "external": not user.password,
        "created": _time(user.created_at),
        "changed": _time(user.changed_at),
    }


def _described_key(key: Key) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "name": key.name,
        "roles": key.roles.split(),
        "only": key.studies.splitlines(),
        "created": _time(key.created_at),
        "expires": _time(key.expires_at) if key.expires_at != NEVER else None,
        "revoked": _time(key.revoked_at) if key.revoked_at != NEVER else None,
    }


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")
