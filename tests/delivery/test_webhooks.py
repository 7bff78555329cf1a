"""Events by webhook: signed, tried again, in order, and given up in the end."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from standardwebhooks import Webhook as Verifier

from dicomcloud import delivery
from dicomcloud.archive import Archive
from dicomcloud.delivery import Delivery, NotDelivered, Target
from dicomcloud.delivery.webhook import Webhook
from dicomcloud.index.events import new_event
from tests.conftest import AppMaker
from tests.data import make_dataset, make_file
from tests.receiver import Receiver

SECRET = "whsec_" + base64.b64encode(b"sixteen secret bytes and more").decode()
DICOM = {"Content-Type": "application/dicom"}
Receivers = Callable[..., Receiver]


@pytest.fixture
def receive() -> Iterator[Receivers]:
    made: list[Receiver] = []

    def make(*arguments: Any) -> Receiver:
        made.append(Receiver(*arguments))
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def store(app: Flask, **attributes: Any) -> Any:
    dataset = make_dataset(**attributes)
    answer = app.test_client().post("/dicomweb/studies", data=make_file(dataset), headers=DICOM)
    assert answer.status_code in (200, 202), answer.text
    return dataset


def archive_of(app: Flask) -> Archive:
    opened: Archive = app.extensions["dicomcloud"].archive
    return opened


def test_a_store_and_a_delete_are_posted_signed_and_in_order(make_app: AppMaker, receive: Receivers) -> None:
    receiver = receive()
    app = make_app(webhooks=receiver.url, webhook_secret=SECRET)
    dataset = store(app)
    app.test_client().delete(f"/dicomweb/studies/{dataset.StudyInstanceUID}")
    stored, deleted = receiver.wait_for(2)
    assert (stored["type"], deleted["type"]) == ("stored", "deleted")
    assert stored["data"]["study"] == deleted["data"]["study"] == dataset.StudyInstanceUID
    assert (
        stored["data"]["instances"]
        == deleted["data"]["instances"]
        == [
            {
                "series": dataset.SeriesInstanceUID,
                "instance": dataset.SOPInstanceUID,
                "sop_class": dataset.SOPClassUID,
            }
        ]
    )
    for headers, body in receiver.requests:
        assert Verifier(SECRET).verify(body, headers)["id"] == headers["webhook-id"]  # an independent implementation
        assert b"Doe" not in body
        assert b"P1" not in body


def test_a_changed_body_or_another_secret_is_told_by_the_signature(make_app: AppMaker, receive: Receivers) -> None:
    receiver = receive()
    plain = "a secret that is plain text"
    store(make_app(webhooks=receiver.url, webhook_secret=plain))
    receiver.wait_for(1)
    headers, body = receiver.requests[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode()
    expected = base64.b64encode(hmac.new(plain.encode(), signed + body, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    with pytest.raises(Exception, match="signature"):
        Verifier(base64.b64encode(plain.encode()).decode()).verify(body.replace(b"stored", b"erased"), headers)


def test_what_fails_is_tried_again_with_the_same_id_and_later_events_of_the_study_wait(
    make_app: AppMaker, receive: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.1)
    receiver = receive(lambda number, event: 500 if number < 3 else 204)
    app = make_app(webhooks=receiver.url, webhook_secret=SECRET)
    study = store(app).StudyInstanceUID
    for number in range(4):
        store(app, StudyInstanceUID=study, InstanceNumber=number)
    app.test_client().delete(f"/dicomweb/studies/{study}")
    accepted = receiver.wait_for(6)
    ids = [headers["webhook-id"] for headers, _ in receiver.requests]
    assert ids[0] == ids[1] == ids[2]
    assert [event["type"] for event in accepted] == ["stored"] * 5 + ["deleted"]
    assert [event["timestamp"] for event in accepted] == sorted(event["timestamp"] for event in accepted)
    deadline = time.monotonic() + 20
    while archive_of(app).outbox.rows() and time.monotonic() < deadline:  # the last answer is on its way back
        time.sleep(0.02)
    assert archive_of(app).outbox.rows() == []


def test_an_event_is_given_up_listed_and_sent_by_hand_afterwards(
    make_app: AppMaker, receive: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.05)
    healthy = threading.Event()
    receiver = receive(lambda number, event: 204 if healthy.is_set() else 422)
    app = make_app(webhooks=receiver.url, webhook_secret=SECRET, event_attempts=3)
    store(app)
    outbox = archive_of(app).outbox
    deadline = time.monotonic() + 20
    while not (dead := outbox.rows(state="dead")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (dead[0].attempts, dead[0].last_error[:8]) == (3, "HTTP 422")
    assert len(receiver.requests) == 3
    healthy.set()
    assert outbox.retry() == 1
    assert len(receiver.wait_for(1)) == 1


def test_a_dead_event_does_not_hold_up_those_behind_it(
    make_app: AppMaker, receive: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.05)
    receiver = receive(lambda number, event: 400 if event["type"] == "stored" else 204)
    app = make_app(webhooks=receiver.url, webhook_secret=SECRET, event_attempts=2)
    study = store(app).StudyInstanceUID
    app.test_client().delete(f"/dicomweb/studies/{study}")
    assert [event["type"] for event in receiver.wait_for(1)] == ["deleted"]
    assert [row.event.kind for row in archive_of(app).outbox.rows(state="dead")] == ["stored"]


def test_a_destination_that_is_away_never_fails_a_store(make_app: AppMaker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        closed = socket.create_server(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        closed.close()
        urls = f"http://127.0.0.1:{port}/, http://127.0.0.1:{silent.getsockname()[1]}/"
        app = make_app(webhooks=urls, webhook_secret=SECRET)
        started = time.monotonic()
        for _ in range(5):
            store(app)
        assert time.monotonic() - started < 10  # far below the time limit of one delivery
        assert sum(archive_of(app).outbox.counts().values()) == 10


def test_failures_and_retrievals_are_told_when_they_are_asked_for(make_app: AppMaker, receive: Receivers) -> None:
    receiver = receive()
    app = make_app(webhooks=receiver.url, webhook_secret=SECRET, event_kinds="failed, retrieved")
    dataset = store(app)
    client = app.test_client()
    assert client.post("/dicomweb/studies", data=b"no DICOM", headers=DICOM).status_code == 409
    changed = make_file(
        make_dataset(
            **{key: dataset[key].value for key in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")},
            StudyDescription="other",
        )
    )
    assert client.post("/dicomweb/studies", data=changed, headers=DICOM).status_code == 409
    assert client.get(f"/dicomweb/studies/{dataset.StudyInstanceUID}/metadata").status_code == 200
    assert client.get("/dicomweb/studies/1.2.3/metadata").status_code == 404
    events = receiver.wait_for(3)
    assert sorted(event["type"] for event in events) == ["failed", "failed", "retrieved"]
    reasons = {event["data"]["reason"]: event["data"] for event in events if event["type"] == "failed"}
    assert set(reasons) == {"C000", "0111"}
    assert reasons["0111"]["instance"] == dataset.SOPInstanceUID
    (retrieved,) = [event["data"] for event in events if event["type"] == "retrieved"]
    assert retrieved == {"study": dataset.StudyInstanceUID, "resource": "retrieve_study_metadata", "status": 200}


def test_a_request_is_one_event_for_each_study_and_a_large_one_is_parted(
    make_app: AppMaker, receive: Receivers
) -> None:
    receiver = receive()
    app = make_app(webhooks=receiver.url, webhook_secret=SECRET)
    one, other = make_dataset().StudyInstanceUID, make_dataset().StudyInstanceUID
    with archive_of(app).begin_store() as batch:
        for study in [one] * 160 + [other]:
            batch.add([make_file(StudyInstanceUID=study)])
        batch.commit()
    events = receiver.wait_for(3)
    assert sorted((event["data"]["study"] == one, len(event["data"]["instances"])) for event in events) == [
        (False, 1),
        (True, 10),
        (True, 150),
    ]
    assert max(len(body) for _, body in receiver.requests) < 48 << 10  # fits into a message of an Azure queue


def test_many_workers_deliver_each_event_once_and_each_study_in_order(make_app: AppMaker) -> None:
    app = make_app()
    archive = archive_of(app)
    archive.events._targets, archive.events._kinds = {"t": frozenset({"stored"})}, frozenset({"stored"})
    archive.events.publish(new_event("stored", f"1.2.{number % 5}", {"number": number}) for number in range(60))
    arrived: list[tuple[str, int]] = []

    def take(event: Any) -> None:
        arrived.append((event.study_uid, event.data["number"]))

    workers = [
        Delivery(archive.outbox, archive.events, [Target("t", frozenset({"stored"}), take)], attempts=3)
        for _ in range(4)
    ]
    threads = [threading.Thread(target=worker.send_due) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while archive.outbox.counts():
        workers[0].send_due()
    assert sorted(number for _, number in arrived) == list(range(60))
    for study in {study for study, _ in arrived}:
        numbers = [number for each, number in arrived if each == study]
        assert numbers == sorted(numbers)


def test_an_event_whose_worker_died_is_free_again_after_its_time(make_app: AppMaker) -> None:
    archive = archive_of(make_app())
    archive.events._targets, archive.events._kinds = {"t": frozenset({"stored"})}, frozenset({"stored"})
    archive.events.publish([new_event("stored", "1.2.3", {})])
    first = archive.outbox.claim("t", 0.2)
    assert first is not None
    assert archive.outbox.claim("t", 0.2) is None
    time.sleep(0.25)
    second = archive.outbox.claim("t", 0.2)
    assert second is not None
    assert (second.event.id, second.attempts) == (first.event.id, 2)
    archive.outbox.delivered(first)  # too late: it belongs to somebody else by now
    assert len(archive.outbox.rows()) == 1
    archive.outbox.delivered(second)
    assert archive.outbox.rows() == []


def test_redirections_are_not_followed_and_retry_after_is_kept_to(receive: Receivers) -> None:
    elsewhere = receive()
    moved = receive(lambda number, event: (307, {"Location": elsewhere.url}))
    busy = receive(lambda number, event: (503, {"Retry-After": "120"}))
    event = new_event("stored", "1.2.3", {"instances": []})
    with pytest.raises(NotDelivered, match="307"):
        Webhook(moved.url, SECRET).deliver(event)
    with pytest.raises(NotDelivered, match="503") as raised:
        Webhook(busy.url, SECRET).deliver(event)
    assert (raised.value.retry_after, raised.value.unreachable) == (120, True)
    assert elsewhere.requests == []


def test_a_login_in_the_url_is_sent_as_basic_and_named_nowhere(receive: Receivers) -> None:
    receiver = receive()
    hook = Webhook(receiver.url.replace("http://", "http://user:pass%40word@"), SECRET)
    hook.deliver(new_event("stored", "1.2.3", {}))
    assert receiver.requests[0][0]["authorization"] == "Basic " + base64.b64encode(b"user:pass@word").decode()
    assert "pass" not in hook.name
    assert json.loads(receiver.requests[0][1])["data"] == {"study": "1.2.3"}


def test_with_everything_off_nothing_is_written_and_no_thread_runs(make_app: AppMaker) -> None:
    before = set(threading.enumerate())
    app = make_app(change_feed="off")
    store(app)
    archive = archive_of(app)
    assert archive.outbox.rows() == []
    assert archive._database.run("SELECT count(*) FROM archive_change").fetchone() == (0,)
    begun = {thread.name for thread in set(threading.enumerate()) - before}
    assert not [name for name in begun if "delivery" in name or "retrieve" in name]
