"""The change feed: ordered, complete, paged, and honest about what it no longer knows."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from dicomcloud.archive import Archive
from dicomcloud.index import Index, migrate, open_database, revert
from tests.conftest import AppMaker
from tests.data import make_dataset, make_file

DICOM = {"Content-Type": "application/dicom"}
FEED = "/dicomweb/changes"


def store(client: FlaskClient, **attributes: Any) -> Any:
    dataset = make_dataset(**attributes)
    assert client.post("/dicomweb/studies", data=make_file(dataset), headers=DICOM).status_code == 200
    return dataset


def changes(client: FlaskClient, since: int = 0, limit: int = 1000) -> Any:
    answer = client.get(f"{FEED}?since={since}&limit={limit}")
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def test_what_was_stored_replaced_and_deleted_is_listed_in_order(make_app: AppMaker) -> None:
    client = make_app(duplicates="replace").test_client()
    dataset = store(client)
    dataset.StudyDescription = "other"
    client.post("/dicomweb/studies", data=make_file(dataset), headers=DICOM)
    client.post("/dicomweb/studies", data=make_file(dataset), headers=DICOM)  # the same again changes nothing
    client.delete(f"/dicomweb/studies/{dataset.StudyInstanceUID}")
    page = changes(client)
    assert [(entry["sequence"], entry["action"]) for entry in page["changes"]] == [
        (1, "stored"),
        (2, "replaced"),
        (3, "deleted"),
    ]
    assert (page["since"], page["last"], "next" in page) == (3, 3, False)
    last = page["changes"][-1]
    assert last["time"].endswith("Z")
    assert (last["study"], last["series"], last["instance"], last["sop_class"]) == (
        dataset.StudyInstanceUID,
        dataset.SeriesInstanceUID,
        dataset.SOPInstanceUID,
        dataset.SOPClassUID,
    )


def test_pages_follow_one_another_and_say_where_the_next_one_is(client: FlaskClient) -> None:
    stored = [store(client).SOPInstanceUID for _ in range(5)]
    seen, url = [], f"{FEED}?since=0&limit=2"
    while url:
        page = client.get(url).get_json()
        seen += [entry["instance"] for entry in page["changes"]]
        url = page.get("next", "").removeprefix("http://localhost")
    assert seen == stored
    assert changes(client, since=page["since"])["changes"] == []
    assert changes(client, since=3, limit=0) | {"next": ""} == {"changes": [], "since": 3, "last": 5, "next": ""}


def test_readers_miss_nothing_while_many_write(client: FlaskClient, archive: Archive) -> None:
    stored: list[str] = []
    done = threading.Event()

    def write() -> None:
        for _ in range(15):
            dataset = make_dataset()
            with archive.begin_store() as batch:
                batch.add([make_file(dataset)])
                batch.commit()
            stored.append(dataset.SOPInstanceUID)

    writers = [threading.Thread(target=write) for _ in range(4)]
    seen: list[Any] = []

    def read() -> None:
        since = 0
        while True:
            finished = done.is_set()
            entries, _ = archive.events.page(since, 7)
            seen.extend(entries)
            since = entries[-1].sequence if entries else since
            if finished and not entries:
                return

    reader = threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert [entry.sequence for entry in seen] == list(range(1, 61))
    assert sorted(entry.sop_uid for entry in seen) == sorted(stored)


def test_a_store_that_fails_leaves_no_change(client: FlaskClient) -> None:
    store(client)
    assert client.post("/dicomweb/studies", data=b"no DICOM", headers=DICOM).status_code == 409
    assert changes(client)["last"] == 1


@pytest.mark.parametrize(
    "query", ["since=-1", "since=x", "since=1&limit=20000", "since=99999999999999999999", "since="]
)
def test_a_malformed_query_is_named(client: FlaskClient, query: str) -> None:
    answer = client.get(f"{FEED}?{query}")
    assert answer.status_code == 400
    assert "since" in answer.get_json()["message"] or "limit" in answer.get_json()["message"]


def test_a_sequence_of_another_database_is_gone(client: FlaskClient) -> None:
    store(client)
    assert client.get(f"{FEED}?since=77").status_code == 410


def test_old_changes_are_taken_out_and_who_needs_them_is_told(make_app: AppMaker) -> None:
    app = make_app(change_feed_days=7)
    archive: Archive = app.extensions["dicomcloud"].archive
    client = app.test_client()
    for _ in range(3):
        store(client)
    database = archive._database
    database.run("UPDATE archive_change SET changed_at = changed_at - ? WHERE sequence <= 2", (8 * 86_400_000_000,))
    database.run("UPDATE archive_change SET sequence = sequence + 996")
    database.run("UPDATE last_change SET sequence = 999")
    store(client)
    assert [entry["sequence"] for entry in changes(client)["changes"]] == [999, 1000]
    assert client.get(f"{FEED}?since=500").status_code == 410
    assert len(changes(client, since=998)["changes"]) == 2


def test_the_feed_that_was_off_for_a_while_does_not_hide_it(make_app: AppMaker) -> None:
    client = make_app().test_client()
    store(client)
    reached = changes(client)["last"]
    off = make_app(change_feed="off").test_client()
    store(off)
    assert off.get(FEED).status_code == 404
    client = make_app().test_client()
    store(client)
    assert client.get(f"{FEED}?since={reached}").status_code == 410
    assert len(changes(client)["changes"]) == 1


def test_a_reindex_lists_everything_again_but_sends_nothing(make_app: AppMaker) -> None:
    app = make_app(webhooks="http://127.0.0.1:9/", webhook_secret="sixteen characters")
    archive: Archive = app.extensions["dicomcloud"].archive
    for stop in archive.before_close:
        stop()
    dataset = store(app.test_client())
    waiting = archive.outbox.counts()
    assert [step.message for step in archive.upkeep.reindex()] == [None]
    assert archive.outbox.counts() == waiting
    entries = changes(app.test_client())["changes"]
    assert [(entry["action"], entry["instance"]) for entry in entries] == [("stored", dataset.SOPInstanceUID)] * 2


def test_the_feed_is_described_and_offered(app: Flask, client: FlaskClient) -> None:
    described = client.get("/openapi.json").get_json()["paths"]["/dicomweb/changes"]["get"]
    assert {parameter["name"] for parameter in described["parameters"]} == {"since", "limit"}
    wadl = client.options("/dicomweb", headers={"Accept": "application/vnd.sun.wadl+xml"}).text
    assert 'path="changes"' in wadl
    assert client.get("/api/changes").status_code == 200


def test_an_archive_of_the_schema_before_gets_its_instances_into_the_feed(tmp_path: Path) -> None:
    from tests.index.conftest import MIGRATIONS, new_instance

    url = f"sqlite:///{(tmp_path / 'index.sqlite3').as_posix()}"
    database = open_database(url)
    migrate(database, MIGRATIONS)
    revert(database, MIGRATIONS, "0002_changes_and_outbox")
    with sqlite3.connect(tmp_path / "index.sqlite3") as old:
        assert "archive_change" not in {name for (name,) in old.execute("SELECT name FROM sqlite_master")}
    new = [new_instance() for _ in range(3)]
    Index(database).add(new, "reject")
    assert "0002_changes_and_outbox" in migrate(database, MIGRATIONS)
    entries, last = Index(database).events.page(0, 10)
    assert ([entry.sequence for entry in entries], last) == ([1, 2, 3], 3)
    assert [entry.sop_uid for entry in entries] == [each.attributes["00080018"]["Value"][0] for each in new]
    database.close()
