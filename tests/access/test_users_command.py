"""`users` and `keys` on a real database."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from dicomcloud.access.credentials import password_fits
from dicomcloud.archive import Archive
from tests.conftest import AppMaker, Run


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def type_in(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return type_in


def listed(run: Run, what: str = "users") -> list[dict[str, object]]:
    return json.loads(run(what, "list", "--json").stdout)


def test_a_user_is_added_changed_disabled_and_listed(run: Run, typed) -> None:  # type: ignore[no-untyped-def]
    typed("a long password\n")
    added = run("users", "add", "Anna", "--role", "reader", "--role", "sender", "--password-stdin")
    assert (added.returncode, "restart it" in added.stdout) == (0, True)
    typed("another password\n")
    assert run("users", "add", "anna", "--password-stdin").returncode == 1
    typed("another password\n")
    assert run("users", "password", "ANNA", "--password-stdin").returncode == 0
    assert run("users", "change", "anna", "--only", "PatientID=A*", "--only", "PatientID=B*").returncode == 0
    assert run("users", "disable", "anna").returncode == 0
    (user,) = listed(run)
    assert (user["name"], user["roles"], user["disabled"]) == ("anna", ["reader", "sender"], True)
    assert user["only"] == ["PatientID=A*", "PatientID=B*"]
    assert run("users", "change", "anna", "--all-studies").returncode == 0
    assert run("users", "enable", "anna").returncode == 0
    assert "password" not in run("users", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "typed_in", "named"),
    [
        (("add", "bert", "--password-stdin"), "short\n", "10 characters"),
        (("add", "bert", "--role", "king"), "", "king"),
        (("add", "bert", "--only", "StudyDate=2020"), "", "StudyDate"),
        (("add", "bert", "--only", "PatientID="), "", "PatientID"),
        (("add", "a:b"), "", "colon"),
        (("change", "bert"), "", "--role"),
    ],
)
def test_what_makes_no_user_is_refused_by_name(run: Run, typed, arguments, typed_in: str, named: str) -> None:  # type: ignore[no-untyped-def]
    typed(typed_in)
    finished = run("users", *arguments)
    assert finished.returncode == 2
    assert named in finished.stderr
    assert listed(run) == []


@pytest.mark.parametrize("command", ["password", "disable", "enable"])
def test_a_user_who_is_not_there_is_told(run: Run, command: str) -> None:
    assert run("users", command, "nobody").returncode == 1


def test_a_key_is_shown_once_and_can_be_revoked(run: Run) -> None:
    made = run("keys", "add", "ct-1", "--role", "sender", "--days", "30")
    key = made.stdout.strip()
    assert key.startswith("dck_")
    (listed_key,) = listed(run, "keys")
    assert (listed_key["name"], listed_key["roles"], listed_key["revoked"]) == ("ct-1", ["sender"], None)
    assert key.split("_", 2)[2] not in run("keys", "list").stdout + run("keys", "list", "--json").stdout
    assert run("keys", "revoke", listed_key["id"]).returncode == 0
    assert run("keys", "revoke", listed_key["id"]).returncode == 1
    assert listed(run, "keys")[0]["revoked"]


def test_the_server_refuses_to_listen_on_a_network_until_there_is_a_user(run: Run) -> None:
    refused = run("serve", bind="0.0.0.0:0")
    assert refused.returncode == 2
    assert "users add NAME" in refused.stderr


def in_a_code_page(
    environment: dict[str, str], *arguments: str, typed: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """What a program of its own does whose standard streams are in a code page, as files and pipes are on Windows."""
    return subprocess.run(
        [sys.executable, "-m", "dicomcloud", *arguments],
        env={**environment, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        input=typed,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_a_code_page_spoils_neither_passwords_nor_lists(
    environment: dict[str, str], make_app: AppMaker, server_url: str
) -> None:
    password = "größer als ein Wörterbuch"
    for name, typed in (("jörg", password.encode()), ("иванова", b"\xef\xbb\xbf" + password.encode() + b"\r\n")):
        added = in_a_code_page(environment, "users", "add", name, "--password-stdin", typed=typed)
        assert added.returncode == 0, added.stderr
        assert added.stdout.startswith(b"Added " + name.encode("cp1252", "backslashreplace"))
    archive: Archive = make_app().extensions["dicomcloud"].archive
    for name in ("jörg", "иванова"):
        user = archive.accounts.user(name)
        assert user is not None
        assert password_fits(password, user.password)
    table = in_a_code_page(environment, "users", "list")
    assert (table.returncode, table.stderr) == (0, b"")
    assert b"j\xf6rg " in table.stdout
    refused = in_a_code_page(environment, "users", "add", "x", "--password-stdin", typed=password.encode("cp1252"))
    assert (refused.returncode, b"UTF-8" in refused.stderr) == (2, True)


def test_where_no_password_can_be_typed_the_command_ends(environment: dict[str, str], run: Run) -> None:
    alone = {"creationflags": subprocess.DETACHED_PROCESS} if sys.platform == "win32" else {"start_new_session": True}
    ended = subprocess.run(
        [sys.executable, "-m", "dicomcloud", "users", "add", "anna"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
        **alone,
    )
    assert ended.returncode != 0
    assert listed(run) == []
