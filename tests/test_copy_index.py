"""`copy-index`: from SQLite to the database of the tests, killed half way and run again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomcloud.dicom.attributes import Level
from dicomcloud.dicom.query import parse_query
from dicomcloud.index import Database, Index, migrate, open_database
from dicomcloud.index.models import TABLES
from tests.conftest import Run
from tests.databases import MIGRATIONS, SERVER, url_of_new_server_database
from tests.index.conftest import new_study

STUDIES = 5000


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{(tmp_path / 'source.sqlite3').as_posix()}")
    migrate(database, MIGRATIONS)
    new = [new_study(f"1.{n}", PatientName=f"Doe^{n}=山田^{n}", PatientID=f"P{n}") for n in range(STUDIES)]
    Index(database).add(new, "reject")
    Index(database).remove("1.7")
    yield database
    database.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[tuple[str, Database]]:
    url = url_of_new_server_database() if SERVER else f"sqlite:///{(tmp_path / 'target.sqlite3').as_posix()}"
    database = open_database(url)
    migrate(database, MIGRATIONS)
    yield url, database
    database.close()


def rows(database: Database) -> dict[str, int]:
    tables = [model._meta.table_name for model in TABLES]
    return {table: database.run(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_a_copy_that_is_killed_half_way_goes_on_where_it_was(
    source: Database, target: tuple[str, Database], environment: dict[str, str], run: Run
) -> None:
    url, database = target
    command = ["copy-index", "--from", f"sqlite:///{Path(source.database).as_posix()}", "--to", url]
    with subprocess.Popen(
        [sys.executable, "-m", "dicomcloud", *command], env=dict(os.environ), stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not database.run("SELECT count(*) FROM study").fetchone()[0] and process.poll() is None:
            assert time.monotonic() < deadline
        process.kill()  # at once: to wait for its lock would let it come to its end
        process.wait()
    begun = rows(database)
    assert begun["study"] > 0
    assert begun != rows(source)
    finished = run(*command)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == "Copied; both have the same numbers of rows in every table.\n"
    assert rows(database) == rows(source)
    query = parse_query(Level.STUDY, [("PatientName", "*=山田^1*")], max_results=5000)
    uids = sorted(study for study, _, _ in Index(database).search(query).uids)
    assert uids == sorted(study for study, _, _ in Index(source).search(query).uids)
    assert len(uids) > 400
    assert run(*command).returncode == 0  # once more: there is nothing left to do
    assert rows(database) == rows(source)


def test_a_copy_says_what_is_wrong(source: Database, target: tuple[str, Database], run: Run, tmp_path: Path) -> None:
    url, database = target
    Index(database).add([new_study("9.9")], "reject")
    finished = run("copy-index", "--from", f"sqlite:///{Path(source.database).as_posix()}", "--to", url)
    assert (finished.returncode, finished.stderr) == (1, "The target holds another index. Give an empty database.\n")
    finished = run("copy-index", "--from", f"sqlite:///{tmp_path}/nothing.sqlite3", "--to", url)
    assert finished.returncode == 1
    assert finished.stderr
