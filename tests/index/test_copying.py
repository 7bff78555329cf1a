"""Copying an index to another database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomcloud.dicom.attributes import Level
from dicomcloud.dicom.query import parse_query
from dicomcloud.errors import Conflict
from dicomcloud.index import Database, Index, migrate, open_database
from dicomcloud.index.copying import copy_index
from dicomcloud.index.models import TABLES

from .conftest import MIGRATIONS, new_instance, new_study


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Database]:
    """SQLite with 30 studies, one of them replaced, one deleted."""
    database = open_database(f"sqlite:///{(tmp_path / 'source.db').as_posix()}")
    migrate(database, MIGRATIONS)
    index = Index(database)
    index.add([new_study(f"1.{n}", PatientName=f"Doe^{n}=山田^{n}", PatientID=f"P{n}") for n in range(30)], "reject")
    index.add([new_study("1.3", PatientName="Doe^New", PatientID="P3")], "replace")
    index.add([new_instance(frames=None)], "reject")
    index.remove("1.7")
    yield database
    database.close()


def contents(database: Database) -> dict[str, list[object]]:
    tables = {}
    for model in TABLES:
        columns = ", ".join(each.column_name for each in model._meta.sorted_fields)
        rows = database.run(f"SELECT {columns} FROM {model._meta.table_name}").fetchall()
        tables[model._meta.table_name] = sorted(map(repr, map(tuple, rows)))
    return tables


def test_a_copy_has_every_row_and_can_be_used(source: Database, index: Index) -> None:
    steps = list(copy_index(source, index._database))
    assert contents(index._database) == contents(source)
    assert {step.table for step in steps if step.copied} >= {"study", "instance", "instance_metadata", "superseded"}
    found = index.search(parse_query(Level.STUDY, [("PatientName", "山田*")], max_results=100))
    assert found.total == 28
    assert index.add([new_study("1.99")], "reject")  # keys go on behind those that were copied
    assert index.counts()["studies"] == 30


def test_a_copy_that_was_broken_off_goes_on(source: Database, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomcloud.index.copying._BATCH", 7)
    steps = copy_index(source, index._database)
    for step in steps:
        if step.table == "instance" and step.copied == 14:
            break
    steps.close()
    before = contents(index._database)
    assert before != contents(source)
    list(copy_index(source, index._database))
    assert contents(index._database) == contents(source)
    list(copy_index(source, index._database))
    assert contents(index._database) == contents(source)


def test_another_index_is_not_overwritten(source: Database, index: Index) -> None:
    index.add([new_study("9.9")], "reject")
    before = contents(index._database)
    with pytest.raises(Conflict, match="another index"):
        list(copy_index(source, index._database))
    assert contents(index._database) == before
