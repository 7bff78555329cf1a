"""The database that the tests run on.

SQLite in a temporary folder, or the MS SQL Server of DICOMCLOUD_TEST_DATABASE_URL, whose login may create databases:
mssql://user:password@host:1433/master. Every process of the test run makes one there, and empties it for each test.
"""

from __future__ import annotations

import atexit
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import peewee
import pytest

from dicomcloud.index import Database, migrate, open_database
from dicomcloud.index.models import TABLES
from tests.emulators import Wire

SERVER = os.environ.get("DICOMCLOUD_TEST_DATABASE_URL", "")
MIGRATIONS = Path(__file__).parents[1] / "migrations"

on_sqlite = pytest.mark.skipif(bool(SERVER), reason="about SQLite itself")
on_sql_server = pytest.mark.skipif(not SERVER, reason="no SQL Server (DICOMCLOUD_TEST_DATABASE_URL)")


def _named(name: str) -> str:
    """The URL of another database of the server."""
    base, separator, options = SERVER.partition("?")
    return f"{base.rpartition('/')[0]}/{name}{separator}{options}"


@contextmanager
def new_server_database() -> Iterator[str]:
    """The URL of an empty database, which is dropped at the end."""
    name = f"dicomcloud_test_{secrets.token_hex(5)}"
    server = open_database(SERVER)
    for attempt in range(20):
        try:
            server.run(f"CREATE DATABASE {name}")
            break
        except peewee.DatabaseError:  # Babelfish makes one at a time
            if attempt == 19:
                raise
            time.sleep(0.5)
    with suppress(peewee.DatabaseError):  # Babelfish knows no such option: its readers never wait
        server.run(f"ALTER DATABASE {name} SET READ_COMMITTED_SNAPSHOT ON")
    try:
        yield _named(name)
    finally:
        _drop(server, name)
        server.close()


def url_of_new_server_database() -> str:
    """The URL of an empty database, which is dropped when the test process ends."""
    database = new_server_database()
    atexit.register(database.__exit__, None, None, None)
    return database.__enter__()


def through(url: str, wire: Wire | None = None) -> tuple[str, Wire]:
    """The URL by which the database of another URL is reached through a Wire, with short limits; and the Wire."""
    parts = urlsplit(url)
    wire = wire or Wire(parts.port or 1433, parts.hostname or "")
    login = f"{parts.username}:{parts.password}"
    # Without encryption, so that the Wire sees what is sent.
    return f"mssql://{login}@127.0.0.1:{wire.port}{parts.path}?encryption=off&timeout=8&login_timeout=2", wire


def _drop(server: Database, name: str) -> None:
    for _ in range(50):  # connections that were closed a moment ago are still known to the server
        try:
            server.run(f"DROP DATABASE {name}")
            return
        except peewee.DatabaseError:
            time.sleep(0.1)


class WorkDatabase:
    """The migrated database of a test process. `reset` brings it back to what the migrations left."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._database: Database = open_database(url)
        migrate(self._database, MIGRATIONS)
        self._tables = [model._meta.table_name for model in TABLES]  # those that are referred to come first
        self._rows = {table: self._contents(table) for table in self._tables}

    def _contents(self, table: str) -> list[Any]:
        return self._database.run(f"SELECT * FROM {table}").fetchall()

    def reset(self) -> str:
        with self._database.write():
            for table in reversed(self._tables):
                delete = "TRUNCATE TABLE" if table == "audit_event" else "DELETE FROM"  # append-only
                self._database.run(f"{delete} {table}")
            for table, rows in self._rows.items():
                for row in rows:
                    self._database.run(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        return self.url

    def close(self) -> None:
        self._database.close()


@contextmanager
def work_database() -> Iterator[WorkDatabase | None]:
    if not SERVER:
        yield None
        return
    with new_server_database() as url:
        work = WorkDatabase(url)
        yield work
        work.close()
