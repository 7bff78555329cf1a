"""Connections, durability settings, migrations."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import peewee
import pytest

from dicomcloud.errors import Unavailable
from dicomcloud.index import Index, NewerDatabase, migrate, open_database, pending, revert
from dicomcloud.index.models import TABLES
from tests.databases import SERVER, new_server_database, on_sqlite

from .conftest import MIGRATIONS, new_instance


@pytest.fixture
def other_url(tmp_path: Path) -> Iterator[str]:
    """The URL of another empty database."""
    if SERVER:
        with new_server_database() as url:
            yield url
    else:
        yield f"sqlite:///{(tmp_path / 'other.db').as_posix()}"


@pytest.mark.parametrize(
    "url",
    [
        "mssql://server",
        "mssql://server/",
        "mssql:///db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "index.db",
        "postgres:///x",
        "",
    ],
)
def test_unknown_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a database|expected mssql://"):
        open_database(url)


@on_sqlite
def test_a_relative_path_is_one_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = open_database("sqlite:///index.db")
    assert pending(database, MIGRATIONS)[0] == "0001_initial"
    database.close()
    assert (tmp_path / "index.db").exists()


@on_sqlite
def test_commits_are_synced_and_rows_refer_to_rows(index: Index) -> None:
    database = index._database
    assert database.pragma("journal_mode") == "wal"
    assert database.pragma("synchronous") == 2
    assert database.pragma("foreign_keys") == 1
    assert database.pragma("busy_timeout") == 30_000
    with pytest.raises(sqlite3.IntegrityError), database.write() as connection:
        connection.execute("INSERT INTO study_modality VALUES (77, 'CT', '')")


def test_a_failed_block_leaves_nothing(index: Index) -> None:
    def fail() -> None:
        with index._database.write():
            index._database.run("UPDATE archive_state SET revision = 77")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert index._database.run("SELECT revision FROM archive_state").fetchone() == (0,)


@pytest.mark.parametrize("then", ["SELECT revision FROM archive_state", ""])
def test_a_statement_that_is_done_later_and_fails_leaves_nothing(index: Index, then: str) -> None:
    database = index._database

    def fail() -> None:
        with database.write():
            database.later("UPDATE archive_state SET revision = ?", (77,))
            database.later("INSERT INTO archive_state VALUES (1, 0, 0, 0, 0, 0)")  # is there
            database.later("UPDATE archive_state SET studies = ?", (77,))
            if then:
                database.run(then)

    with pytest.raises((sqlite3.IntegrityError, peewee.IntegrityError)):
        fail()
    assert database.run("SELECT revision, studies FROM archive_state").fetchone() == (0, 0)
    index.add([new_instance()], "reject")
    assert index.counts()["instances"] == 1


@on_sqlite
def test_a_writer_that_waits_too_long_is_told_so(index: Index, database_url: str) -> None:
    other = open_database(database_url)
    other.timeout = 0.05
    waiting = Index(other)
    with index._database.write(), pytest.raises(Unavailable, match="busy"):
        waiting.add([new_instance()], "reject")
    other.close()


@on_sqlite
def test_a_writer_lets_the_one_pass_who_has_waited_long(index: Index, database_url: str) -> None:
    queue = sqlite3.connect(f"{index._database.database}-queue", timeout=0, isolation_level=None)
    with index._database.write():
        waiting = threading.Thread(target=index.add, args=([new_instance()], "reject"))
        waiting.start()
        while not _is_taken(queue):  # until it is the next one
            time.sleep(0.01)
        other = open_database(database_url)
        other.timeout = 0.05
        with pytest.raises(Unavailable, match="busy"):
            Index(other).add([new_instance()], "reject")
    waiting.join()
    assert not _is_taken(queue)
    assert index.counts()["instances"] == 1
    queue.execute("BEGIN IMMEDIATE")  # somebody else is the next one, and nobody writes
    with pytest.raises(Unavailable, match="busy"):
        Index(other).add([new_instance()], "reject")
    queue.close()
    Index(other).add([new_instance()], "reject")
    other.close()


def _is_taken(queue: sqlite3.Connection) -> bool:
    try:
        queue.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    queue.execute("ROLLBACK")
    return False


@on_sqlite
def test_where_writers_cannot_take_turns_they_write_all_the_same(
    index: Index, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Path(f"{index._database.database}-queue")
    index._database.close()
    queue.unlink(missing_ok=True)
    queue.mkdir()
    with caplog.at_level(logging.WARNING):
        index.add([new_instance()], "reject")
    assert index.counts()["instances"] == 1
    assert "do not take turns" in caplog.text


@on_sqlite
def test_each_thread_has_a_connection_that_stays_open(index: Index) -> None:
    database = index._database
    seen = {id(database.connection())}
    held = [database.connection()]

    def look() -> None:
        held.append(database.connection())
        seen.add(id(database.connection()))
        assert database.connection() is held[-1]

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert len(seen) == 2


@on_sqlite
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_opens_a_connection_of_its_own(index: Index) -> None:
    parent = index._database.connection()

    def child() -> None:
        if index._database.connection() is parent or index.counts()["instances"] != 0:
            os._exit(1)
        index.add([new_instance()], "reject")
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert index._database.connection() is parent
    assert index.counts()["instances"] == 1


# Migrations


def schema(url: str) -> set[tuple[str, ...]]:
    """Tables, columns and indexes, in a form that can be compared."""
    database = open_database(url)
    if url.startswith("sqlite"):
        statement = (
            "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'schema%' AND name NOT LIKE 'sqlite%'"
        )
        found = set(database.run(statement).fetchall())
    else:
        tables = [table for table in database.get_tables() if table != "schema_migration"]
        found = {(table, *map(str, column)) for table in tables for column in database.get_columns(table)}
        found |= {
            (table, *index.columns, str(index.unique)) for table in tables for index in database.get_indexes(table)
        }
    database.close()
    return found


def test_migrations_go_up_down_and_up_again(database_url: str) -> None:
    database = open_database(database_url)
    names = sorted(path.stem for path in MIGRATIONS.glob("[0-9]*.py"))
    assert pending(database, MIGRATIONS) == names
    assert migrate(database, MIGRATIONS) == names
    assert migrate(database, MIGRATIONS) == pending(database, MIGRATIONS) == []
    first = schema(database_url)
    assert revert(database, MIGRATIONS, names[0]) == names[::-1]
    assert schema(database_url) == set()
    assert migrate(database, MIGRATIONS) == names
    assert schema(database_url) == first
    Index(database).add([new_instance()], "reject")
    database.close()


def test_the_models_are_what_the_migrations_make(database_url: str, other_url: str) -> None:
    database, models = open_database(database_url), open_database(other_url)
    migrate(database, MIGRATIONS)
    pending(models, MIGRATIONS)  # makes the file
    with models.bind_ctx(TABLES):
        models.create_tables(TABLES)
    for each in (database, models):
        each.close()
    assert schema(other_url) == {entry for entry in schema(database_url) if entry[0] != "trigger"}


def test_a_newer_database_is_refused(database_url: str) -> None:
    database = open_database(database_url)
    migrate(database, MIGRATIONS)
    database.run("INSERT INTO schema_migration (name, applied) VALUES ('9999_future', '2030-01-01')")
    with pytest.raises(NewerDatabase, match="9999_future"):
        migrate(database, MIGRATIONS)
    with pytest.raises(NewerDatabase):
        pending(database, MIGRATIONS)
    database.close()


def test_a_failing_migration_leaves_the_database_as_it_was(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "9998_bad.py").write_text("def up(migrator, database):\n    raise RuntimeError('bad')\n")
    database = open_database(database_url)
    with pytest.raises(RuntimeError, match="bad"):
        migrate(database, folder)
    database.close()
    assert schema(database_url) == set()
    assert migrate(database, MIGRATIONS)[0] == "0001_initial"
    database.close()


def start(url: str) -> None:
    database = open_database(url)
    migrate(database, MIGRATIONS)
    Index(database).counts()


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    processes = [multiprocessing.get_context("spawn").Process(target=start, args=(database_url,)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    database = open_database(database_url)
    names = list(MIGRATIONS.glob("[0-9]*.py"))
    assert database.run("SELECT count(*) FROM schema_migration").fetchone() == (len(names),)
    database.close()
