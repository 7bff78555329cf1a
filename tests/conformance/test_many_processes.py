"""Eight writers and eight readers, each a process of its own, on one index."""

from __future__ import annotations

import os
from pathlib import Path

from dicomcloud.index import migrate, open_database
from tests.conformance import many_processes
from tests.databases import MIGRATIONS, SERVER, url_of_new_server_database

SECONDS = float(os.environ.get("TEST_PROCESSES", "3"))  # a minute: python -m tests.conformance.many_processes


def test_eight_writers_and_eight_readers_are_all_served_and_leave_the_counts_right(tmp_path: Path) -> None:
    url = url_of_new_server_database() if SERVER else f"sqlite:///{(tmp_path / 'index.sqlite3').as_posix()}"
    database = open_database(url)
    migrate(database, MIGRATIONS)
    database.close()
    faults, told = many_processes.run(url, SECONDS)
    assert faults == []
    assert told.done["stored"] > 0
    assert told.done["searched"] > 0
