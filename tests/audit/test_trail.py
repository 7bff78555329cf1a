"""The audit trail: what is in it, that it cannot be changed unseen, and what it costs to be in it."""

from __future__ import annotations

import json
import logging
import multiprocessing
import re
import sqlite3
from pathlib import Path

import orjson
import peewee
import pytest
from flask import Flask
from flask.testing import FlaskClient

from dicomcloud import logs
from dicomcloud.archive import Archive, AuditEntry
from dicomcloud.audit import Actor, acting
from dicomcloud.index import Database, open_database
from dicomcloud.index.audit import AuditTable, Event
from tests.conftest import AppMaker, Run
from tests.data import make_dataset, make_file
from tests.databases import SERVER
from tests.web.test_access import add_key, add_user, basic, store
from tests.web.test_sessions import log_in


def trail(app: Flask) -> list[AuditEntry]:
    archive: Archive = app.extensions["dicomcloud"].archive
    archive.audit.flush()
    return list(archive.audit.table.entries())


def events(app: Flask, action: str) -> list[Event]:
    return [entry.event for entry in trail(app) if entry.event.action == action]


@pytest.fixture
def secured(make_app: AppMaker) -> Flask:
    first = make_app()
    for role in ("administrator", "reader"):
        add_user(first, role, role)
    return make_app(trusted_proxies="127.0.0.1")


def test_each_kind_of_request_is_recorded_with_who_what_where_and_outcome(secured: Flask) -> None:
    client = secured.test_client()
    uids = store(client)
    path = f"/dicomweb/studies/{uids['study']}"
    who = basic("reader") | {"X-Forwarded-For": "192.0.2.7, 10.0.0.9", "X-Request-ID": "abc-1"}
    client.get("/dicomweb/studies?PatientName=Doe*", headers=who)
    client.get(f"{path}/series/{uids['series']}/instances/{uids['instance']}", headers=who)
    client.delete(path, headers=who)
    client.get(path)
    client.get(path, headers=basic("reader", "wrong"))
    client.delete(path, headers=basic("administrator"))
    client.delete(path, headers=basic("administrator"))
    (stored,) = events(secured, "store")
    assert (stored.caller, stored.study_uid, stored.sop_uid) == ("administrator", uids["study"], uids["instance"])
    (search,) = events(secured, "search")
    assert (search.caller, search.method, search.address) == ("reader", "password", "10.0.0.9")
    assert (search.outcome, search.detail, search.request_id) == (200, "search_for_studies?PatientName=Doe*", "abc-1")
    (retrieved,) = events(secured, "retrieve")
    assert (retrieved.study_uid, retrieved.series_uid, retrieved.sop_uid) == tuple(uids.values())
    refusals = events(secured, "refuse")
    assert [(each.caller, each.outcome) for each in refusals] == [("reader", 403), ("anonymous", 401)]
    assert refusals[0].study_uid == uids["study"]
    assert [each.outcome for each in events(secured, "delete")] == [200, 410]
    assert {(each.caller, each.outcome) for each in events(secured, "login")} == {
        ("administrator", 200),
        ("reader", 200),
        ("reader", 401),
    }
    assert list(secured.extensions["dicomcloud"].archive.audit.table.verify()) == []


def test_changes_are_recorded_with_who_made_them_long_after_the_login_too(make_app: AppMaker) -> None:
    first = make_app()
    add_user(first, "administrator", "administrator")
    app = make_app(trusted_proxies="127.0.0.1", proxy_user_header="X-Remote-User", proxy_roles_header="X-Roles")
    key = add_key(app.extensions["dicomcloud"].archive, "administrator")
    ways = {
        "administrator": basic("administrator"),
        "key:k": {"Authorization": f"Bearer {key}"},
        "anna": {"X-Remote-User": "anna", "X-Roles": "administrator"},
    }
    client = app.test_client()
    for who in list(ways.values()) * 2:
        dataset = make_dataset()
        file = make_file(dataset)
        client.post("/dicomweb/studies", data=file, content_type="application/dicom", headers=who)
        assert client.delete(f"/dicomweb/studies/{dataset.StudyInstanceUID}", headers=who).status_code == 204
    for action in ("store", "delete"):
        assert [each.caller for each in events(app, action)] == list(ways) * 2


def test_browsers_that_log_in_and_out_and_links_are_recorded(make_app: AppMaker) -> None:
    add_user(make_app(), "anna", "reader", "sharer")
    add_user(make_app(), "administrator", "administrator")
    app = make_app()
    client = app.test_client()
    uids = store(client)
    log_in(client)
    token = client.get("/session").json["csrf_token"]
    link = client.post("/shares", json={"study": uids["study"]}, headers={"X-CSRF-Token": token}).json
    app.test_client().get(f"/share/{link['token']}")
    client.post("/logout", headers={"X-CSRF-Token": token})
    assert ("anna", "session") in {(each.caller, each.method) for each in events(app, "login")}
    assert f"share:{link['id']}" in {each.caller for each in events(app, "login")}
    assert [(each.caller, each.outcome) for each in events(app, "share")] == [("anna", 201)]
    assert [each.outcome for each in events(app, "logout")] == [303]


def test_many_requests_of_a_second_become_one_event_that_counts_them(secured: Flask) -> None:
    client = secured.test_client()
    uids = store(client)
    path = f"/dicomweb/studies/{uids['study']}/series/{uids['series']}/instances/{uids['instance']}/frames/1"
    for _ in range(20):
        assert client.get(path, headers=basic("reader")).status_code == 200
    found = events(secured, "retrieve")
    assert sum(each.times for each in found) == 20
    assert len(found) <= 3


def test_a_store_is_in_the_trail_when_its_answer_is_out_and_stands_or_falls_with_it(
    secured: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, archive = secured.test_client(), secured.extensions["dicomcloud"].archive
    uids = store(client)
    written = [entry.event for entry in archive.audit.table.entries(action="store")]
    assert [each.study_uid for each in written] == [uids["study"]]

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("the trail cannot be written")

    monkeypatch.setattr(archive.audit, "write_within", fail)
    answer = client.post(
        "/dicomweb/studies", data=make_file(), content_type="application/dicom", headers=basic("administrator")
    )
    assert answer.status_code >= 500
    assert client.delete(f"/dicomweb/studies/{uids['study']}", headers=basic("administrator")).status_code >= 500
    assert len(client.get("/dicomweb/studies", headers=basic("administrator")).json) == 1


def test_instances_of_several_studies_are_an_event_of_each(app: Flask) -> None:
    study = make_dataset().StudyInstanceUID
    files = [make_file(StudyInstanceUID=study), make_file(StudyInstanceUID=study), make_file()]
    with app.extensions["dicomcloud"].archive.begin_store() as batch:
        for file in files:
            batch.add([file])
        batch.commit()
    assert sorted(each.times for each in events(app, "store")) == [1, 2]


@pytest.mark.parametrize(("audit", "expected"), [("changes", {"store"}), ("none", set())])
def test_the_setting_says_what_is_recorded(make_app: AppMaker, audit: str, expected: set[str]) -> None:
    app = make_app(audit=audit)
    client = app.test_client()
    client.post("/dicomweb/studies", data=make_file(), content_type="application/dicom")
    client.get("/dicomweb/studies")
    assert {entry.event.action for entry in trail(app)} == expected


# The chain


def fill(app: Flask, number: int = 6) -> Database:
    archive: Archive = app.extensions["dicomcloud"].archive
    with acting(Actor("anna", "password", "192.0.2.1")):
        for count in range(number):
            archive.audit.write("delete", study=f"1.2.{count}")
    return archive.audit.table._database


@pytest.mark.parametrize("statement", ["UPDATE audit_event SET caller = 'x'", "DELETE FROM audit_event"])
def test_rows_cannot_be_changed(app: Flask, statement: str) -> None:
    database = fill(app)
    with pytest.raises((sqlite3.IntegrityError, peewee.DatabaseError), match="append-only"):
        database.run(statement)


@pytest.mark.parametrize(
    ("statements", "named"),
    [
        (["UPDATE audit_event SET caller = 'bert' WHERE sequence = 3"], "3: this row"),
        (["UPDATE audit_event SET outcome = 500 WHERE sequence = 1"], "1: this row"),
        (["DELETE FROM audit_event WHERE sequence = 4"], "4: the rows 4 to 4 are missing"),
        (["DELETE FROM audit_event WHERE sequence >= 5"], "5: the rows 5 to 6 are missing at the end"),
        (
            ["UPDATE audit_event SET sequence = 9 WHERE sequence = 2", "DELETE FROM audit_event WHERE sequence = 9"],
            "2:",
        ),
        (["UPDATE audit_chain SET hash = 'x'"], "6: the last row"),
    ],
)
def test_what_was_changed_behind_its_back_is_found(app: Flask, run: Run, statements: list[str], named: str) -> None:
    database = fill(app)
    whole = run("audit", "verify")
    assert (whole.returncode, "6 events" in whole.stdout) == (0, True)
    database.not_append_only("audit_event")
    for statement in statements:
        database.run(statement)
    if SERVER:
        database.append_only("audit_event")  # of a database that the next test has, too
    broken = run("audit", "verify")
    assert broken.returncode == 1
    assert named in broken.stderr


def test_old_events_are_removed_when_asked_and_the_rest_still_verifies(app: Flask, run: Run) -> None:
    fill(app)
    table = app.extensions["dicomcloud"].archive.audit.table
    assert run("audit", "prune", "--keep-days", "30", "--delete").stdout == "No event is that old.\n"
    assert "6 events, 1 to 6, would be removed" in run("audit", "prune", "--before", "2100-01-01").stdout
    assert len(list(table.entries())) == 6
    table.append([Event(2**60, 2**60, "store", 200, 1, "late", "", "", "1.2", "", "", "", "")])
    done = run("audit", "prune", "--before", "2100-01-01", "--delete")
    assert (done.returncode, "6 events, 1 to 6, were removed" in done.stdout) == (0, True)
    assert [(entry.sequence, entry.event.action) for entry in table.entries()] == [(7, "store"), (8, "prune")]
    verified = run("audit", "verify")
    assert (verified.returncode, "up to 6 were removed by operator:" in verified.stdout) == (0, True)
    with pytest.raises((sqlite3.IntegrityError, peewee.DatabaseError), match="append-only"):
        table._run("DELETE FROM audit_event")
    assert [
        run("audit", "prune", *days).returncode for days in ([], ["--before", "2020-01-01", "--keep-days", "3"])
    ] == [2, 2]


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DELETE FROM audit_event WHERE sequence = 4", "1: the rows 1 to 4 are missing"),
        ("UPDATE audit_event SET caller = 'bert' WHERE sequence = 4", "4: this row"),
        ('UPDATE audit_event SET detail = \'{"through":4,"hash":"x"}\' WHERE sequence = 7', "7: this row"),
        ("DELETE FROM audit_event WHERE action = 'prune'", "1: the rows 1 to 3 are missing"),
    ],
)
def test_what_was_changed_beside_a_removal_is_found(app: Flask, run: Run, statement: str, named: str) -> None:
    database = fill(app)
    trail = app.extensions["dicomcloud"].archive.audit
    assert sum(trail.prune(3)) == 3
    assert run("audit", "verify").returncode == 0
    database.not_append_only("audit_event")
    database.run(statement)
    database.append_only("audit_event")
    broken = run("audit", "verify")
    assert (broken.returncode, named in broken.stderr) == (1, True), broken.stderr


def test_a_removal_that_broke_off_leaves_a_trail_that_verifies_and_is_finished_later(app: Flask, run: Run) -> None:
    fill(app)
    trail = app.extensions["dicomcloud"].archive.audit
    trail.prune(4).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dicomcloud.index.audit._REMOVED_AT_ONCE", 2)
        breaks_off = trail.prune(5)
        assert next(breaks_off) == 2
        breaks_off.close()
        assert run("audit", "verify").returncode == 0
        assert list(trail.prune(5)) == [2, 1]
    assert run("audit", "verify").returncode == 0
    assert trail.table.first() == 6


def append_many(url: str, name: str) -> None:
    table = AuditTable(open_database(url))
    for number in range(40):
        table.append([Event(number, number, "store", 200, 1, name, "", "", "1.2", "", "", "", "")] * 2)


def test_processes_that_write_together_make_one_chain(app: Flask, server_url: str) -> None:
    archive: Archive = app.extensions["dicomcloud"].archive
    url = server_url or f"sqlite:///{archive.audit.table._database.database}"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_many, args=(url, f"p{number}")) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert archive.audit.table.head()[0] == 3 * 80
    assert list(archive.audit.table.verify()) == []


# The command


def test_the_trail_can_be_asked_by_time_user_action_and_study(app: Flask, run: Run) -> None:
    fill(app, 3)
    client = app.test_client()
    client.get("/dicomweb/studies?PatientID=4711")
    app.extensions["dicomcloud"].archive.audit.flush()
    by_anna = [json.loads(line) for line in run("audit", "list", "--user", "anna", "--json").stdout.splitlines()]
    assert [each["study_uid"] for each in by_anna] == ["1.2.0", "1.2.1", "1.2.2"]
    assert run("audit", "list", "--study", "1.2.1").stdout.count("\n") == 1
    assert "PatientID=4711" in run("audit", "list", "--action", "search").stdout
    assert run("audit", "list", "--until", "2020-01-01").stdout == ""
    assert run("audit", "list", "--since", "2020-01-01T10:00", "--limit", "2").stdout.count("\n") == 2
    assert run("audit", "list", "--since", "yesterday").returncode == 2


def test_what_the_operator_does_is_recorded(app: Flask, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(make_file())
    assert run("import", tmp_path / "a.dcm").returncode == 0
    assert run("keys", "add", "ct").returncode == 0
    callers = {(each.action, each.caller.partition(":")[0]) for each in (entry.event for entry in trail(app))}
    assert {("store", "operator"), ("administer", "operator")} <= callers


# The log


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Take pytest's handlers away, so that the log is set up as in a server."""
    root = logging.getLogger()
    level = root.level
    yield lambda: monkeypatch.setattr(root, "handlers", [])
    root.setLevel(level)


def test_the_log_has_the_number_of_the_request_and_no_patient(
    make_app: AppMaker, logged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    logged()
    client: FlaskClient = make_app(log_format="json", log_requests="true").test_client()
    uids = {"study": "1.2.840.99.1"}
    dataset = make_dataset(StudyInstanceUID=uids["study"], PatientName="Secret^Name", PatientID="SECRET-1")
    client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    client.get("/dicomweb/studies?PatientName=Secret^Name")

    def fail(*_: object) -> None:
        raise ValueError("Secret^Name is not a number")

    monkeypatch.setattr("dicomcloud.archive.Archive.instances", fail)
    answer = client.get(f"/dicomweb/studies/{uids['study']}")
    assert answer.status_code == 500
    entries = [orjson.loads(line) for line in lines_of(capsys)]
    (failed,) = [entry for entry in entries if "exception" in entry]
    assert failed["request"] == answer.headers["X-Request-ID"]
    assert failed["exception"].endswith("builtins.ValueError")
    assert "in _retrieve_instances" in failed["exception"]
    requests = [entry for entry in entries if entry["logger"] == "dicomcloud.requests"]
    assert [entry["status"] for entry in requests] == [200, 200, 500]
    assert requests[1]["route"] == "/dicomweb/studies"
    for secret in ("Secret", "SECRET", uids["study"]):
        assert secret not in json.dumps(entries)


def test_debug_shows_what_the_other_levels_keep_to_themselves(logged, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    logged()
    logs.set_up("debug", "text")
    try:
        raise ValueError("Secret^Name")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    assert "Secret^Name" in "\n".join(lines_of(capsys))


def test_a_cause_is_told_by_its_place_too() -> None:
    try:
        try:
            raise KeyError("Secret")
        except KeyError as error:
            raise RuntimeError("Secret") from error
    except RuntimeError as error:
        text = logs.places((type(error), error, error.__traceback__))
    assert "Secret" not in text
    assert re.search(r"builtins\.KeyError\nwhich led to\n(.*\n)+builtins\.RuntimeError$", text)
