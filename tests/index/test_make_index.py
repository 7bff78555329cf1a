"""The index that the benchmarks fill: what is in it, also where it was stopped on the way."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tqdm import tqdm

from benchmarks import make_index
from dicomcloud.index import Database, Index, migrate, open_database
from dicomcloud.index.models import TABLES, Instance, InstanceMetadata
from tests.databases import SERVER, on_sqlite

from .conftest import MIGRATIONS, new_study

STUDIES = 60


def contents(database: Database) -> dict[str, list[str]]:
    """Every row, but for what depends on the time and on the transactions."""
    tables = {}
    for model in TABLES:
        fields = [each.column_name for each in model._meta.sorted_fields if not re.search("_at$|revision", each.name)]
        if model in (Instance, InstanceMetadata):
            fields = fields[1:]  # keys, in the order in which a server made the copies
        if model._meta.table_name not in ("archive_state", "account_state"):
            rows = database.run(f"SELECT {', '.join(fields)} FROM {model._meta.table_name}").fetchall()
            tables[model._meta.table_name] = sorted(map(repr, map(tuple, rows)))
    return tables


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is in an index on SQLite that was filled in one go."""
    url = f"sqlite:///{(tmp_path_factory.mktemp('filled') / 'index.db').as_posix()}"
    make_index.fill(url, STUDIES, quiet=True)
    database = open_database(url)
    found = contents(database)
    database.close()
    return found


def by_way_of_sqlite(url: str) -> dict[str, int]:
    """What `fill` does for a server, of whatever database."""
    database = open_database(url)
    migrate(database, MIGRATIONS)
    copies = make_index._store_by_way_of_sqlite(database, STUDIES, 1, quiet=True)
    make_index._multiply(database, copies, lean=False, quiet=True)
    counts = Index(database).counts()
    database.close()
    return counts


def directly(url: str) -> dict[str, int]:
    return make_index.fill(url, STUDIES, quiet=True)


WAYS = [
    pytest.param(directly, id="as asked for"),
    pytest.param(by_way_of_sqlite, id="by way of SQLite", marks=on_sqlite),
]


@pytest.mark.parametrize("fill", WAYS)
def test_what_is_counted_is_there(fill: Any, index: Index, database_url: str, expected: dict[str, list[str]]) -> None:
    counts = fill(database_url)
    database = index._database
    assert counts["studies"] == STUDIES
    assert counts["instances"] == len(expected["instance"]) > 10 * STUDIES
    assert contents(database) == expected
    assert database.run("SELECT count(*) FROM instance_metadata").fetchone()[0] == counts["instances"]
    for held, counted in (
        ("SELECT id, number_of_instances FROM series", "SELECT series_key, count(*) FROM instance GROUP BY series_key"),
        ("SELECT id, number_of_instances FROM study",
         "SELECT r.study_key, count(*) FROM instance i JOIN series r ON r.id = i.series_key GROUP BY r.study_key"),
        ("SELECT id, number_of_series FROM study", "SELECT study_key, count(*) FROM series GROUP BY study_key"),
    ):  # fmt: skip
        assert dict(map(tuple, database.run(held).fetchall())) == dict(map(tuple, database.run(counted).fetchall()))
    assert any(re.search("[\u0370-\U0001ffff]", row) for row in expected["study"])  # text that is not Latin


@pytest.mark.parametrize("fill", WAYS)
@pytest.mark.parametrize(
    "stopped", [[("study", 1)], [("study", 4), ("row", 5), ("row", 2)], [("study", 3), ("copy", 2), ("copy", 4)]]
)
def test_it_goes_on_where_it_was_stopped(
    fill: Any,
    stopped: list[tuple[str, int]],
    index: Index,
    database_url: str,
    expected: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(make_index, "_BATCH", 20)
    for unit, steps in stopped:
        if unit == "row" and fill is directly and not SERVER:
            continue  # none are sent

        class Stopped(tqdm):  # type: ignore[type-arg]
            """Who looks at the progress breaks off."""

            where, left = unit, steps

            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                self.is_there = options["unit"] == self.where

            def update(self, n: float | None = 1) -> bool | None:
                if self.is_there:
                    Stopped.left -= 1
                    if Stopped.left < 0:
                        raise KeyboardInterrupt
                return super().update(n)

        monkeypatch.setattr(make_index, "tqdm", Stopped)
        with pytest.raises(KeyboardInterrupt):
            fill(database_url)
    monkeypatch.setattr(make_index, "tqdm", tqdm)
    fill(database_url)
    assert contents(index._database) == expected
    fill(database_url)  # once more: there is nothing left to do
    assert contents(index._database) == expected


@pytest.mark.parametrize("fill", WAYS)
def test_another_index_is_left_alone(fill: Any, index: Index, database_url: str) -> None:
    index.add([new_study("9.9")], "reject")
    before = contents(index._database)
    with pytest.raises(ValueError, match="other studies"):
        fill(database_url)
    assert contents(index._database) == before
