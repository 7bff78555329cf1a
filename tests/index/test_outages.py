"""The database server drops connections, says nothing, undoes transactions: nothing is done twice, nothing is lost.

On the server of DICOMCLOUD_TEST_DATABASE_URL, to which a Wire leads that can be cut. `tests/conformance` has the same
of a whole DICOMcloud.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import peewee
import pytest

from dicomcloud.errors import Unavailable
from dicomcloud.index import Index, Outcome, open_database
from dicomcloud.index.database import ServerAway
from tests.databases import on_sql_server, through
from tests.emulators import Wire

from .conftest import new_instance

pytestmark = on_sql_server

COMMIT = "COMMIT TRANSACTION".encode("utf-16-le")


@pytest.fixture
def wire(index: Index, database_url: str) -> Iterator[Wire]:
    wire = through(database_url)[1]
    yield wire
    wire.close()


@pytest.fixture
def wired_index(wire: Wire, database_url: str) -> Iterator[Index]:
    database = open_database(through(database_url, wire)[0])
    yield Index(database)
    database.close()


def fill_pool(index: Index) -> None:
    with ThreadPoolExecutor(6) as threads:
        barrier = threading.Barrier(6)

        def work(_: int) -> None:
            connection = index._database._pool.take()  # type: ignore[attr-defined]
            barrier.wait(30)
            index._database._pool.give_back(connection)  # type: ignore[attr-defined]

        list(threads.map(work, range(6)))


def test_connections_that_the_server_has_dropped_are_replaced_unseen(wired_index: Index, wire: Wire) -> None:
    fill_pool(wired_index)
    wire.cut()
    wire.mend()
    with ThreadPoolExecutor(6) as threads:
        assert [each["instances"] for each in threads.map(lambda _: wired_index.counts(), range(24))] == [0] * 24
    fill_pool(wired_index)
    wire.cut()
    wire.mend()
    assert wired_index.add([new_instance()], "reject") == [Outcome.ADDED]
    assert len(list(wired_index.files())) == 1


def test_a_server_that_is_away_is_told_and_found_again(wired_index: Index, wire: Wire) -> None:
    wired_index.add([new_instance()], "reject")
    wire.cut()
    for work in (wired_index.counts, lambda: wired_index.add([new_instance()], "reject"), wired_index._database.check):
        with pytest.raises(ServerAway) as caught:
            work()
        assert caught.value.headers["Retry-After"] == "5"
        assert not caught.value.outcome_unknown
    wire.mend()
    deadline = time.monotonic() + 30
    while True:
        try:
            assert wired_index.counts()["instances"] == 1
            break
        except ServerAway:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_server_that_says_nothing_is_given_up_and_then_refused_at_once(wired_index: Index, wire: Wire) -> None:
    fill_pool(wired_index)
    wire.pause()
    with pytest.raises(ServerAway):
        wired_index._database.check()  # after `login_timeout`; the connections that are there would wait for `timeout`
    with pytest.raises(ServerAway):
        wired_index.counts()
    assert wired_index._database._pool._idle == []  # type: ignore[attr-defined]
    wire.resume()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            assert wired_index.counts()["instances"] == 0
            return
        except ServerAway:
            time.sleep(0.2)
    pytest.fail("the server was not found again")


def test_a_commit_whose_answer_was_lost_is_looked_for_and_not_done_twice(wired_index: Index, wire: Wire) -> None:
    new = new_instance()
    wire.cut_behind = COMMIT
    assert wired_index.add([new], "reject") in ([Outcome.SAME], [Outcome.ADDED])  # SAME: it had been carried out
    assert wired_index.counts()["instances"] == 1
    assert [key for key, _, _ in wired_index.files()] == [new.file_key]


def test_a_commit_of_which_nobody_knows_is_told_as_such(wired_index: Index, wire: Wire) -> None:
    wire.cut_behind, wire.stays_cut = COMMIT, True
    with pytest.raises(Unavailable) as caught:
        wired_index.add([new_instance()], "reject")
    assert caught.value.outcome_unknown


def test_a_victim_of_a_deadlock_is_done_again_from_its_start(index: Index, database_url: str) -> None:
    other, ours_wait, attempts = open_database(database_url), threading.Event(), []

    def stand_in_the_way() -> None:
        """Lock the one row, wait until the others hold the other one and want this, and want that."""
        connection = other._pool.take()  # type: ignore[attr-defined]
        connection.execute("BEGIN TRANSACTION; UPDATE last_change SET sequence = sequence WHERE id = 1")
        locked.set()
        ours_wait.wait(30)
        time.sleep(0.3)  # so that the victim is who has waited longer, or is cheaper to undo
        connection.execute("UPDATE archive_state SET revision = revision WHERE id = 1")
        connection.execute("ROLLBACK TRANSACTION")
        connection.close()

    def take_the_other_row(_: object) -> None:
        attempts.append(1)
        ours_wait.set()
        index._database.run("UPDATE last_change SET sequence = sequence WHERE id = 1")

    locked = threading.Event()
    in_the_way = threading.Thread(target=stand_in_the_way)
    in_the_way.start()
    locked.wait(30)
    try:
        assert index.add([new_instance()], "reject", alongside=take_the_other_row) == [Outcome.ADDED]
    finally:
        in_the_way.join()
    assert len(attempts) == 2
    assert index.counts()["instances"] == 1


def test_a_statement_that_fails_is_no_reason_to_try_again(index: Index) -> None:
    attempts = []

    def fail(_: object) -> None:
        attempts.append(1)
        index._database.run("INSERT INTO study_modality (study_key, modality, study_datetime) VALUES (77, 'CT', '')")

    with pytest.raises(peewee.IntegrityError):
        index.add([new_instance()], "reject", alongside=fail)
    assert (len(attempts), index.counts()["instances"]) == (1, 0)
