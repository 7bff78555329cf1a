"""What is sent to MS SQL Server, without a server: T-SQL that parses, and nothing that the server would refuse."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

import peewee
import pytest

from benchmarks import make_index
from dicomcloud.dicom.attributes import Level
from dicomcloud.dicom.query import parse_query
from dicomcloud.errors import BadRequest, Unavailable
from dicomcloud.index import Index, open_database
from dicomcloud.index.database import CoveringIndex, migration_script
from dicomcloud.index.models import TABLES
from dicomcloud.index.original import OriginalDatabase
from dicomcloud.index.sql_server import Rows, SqlServer
from dicomcloud.index.sql_server.connections import parse_url
from dicomcloud.index.sql_server.statements import inline, literal, render
from tests.tsql import as_tsql, faults

from .conftest import MIGRATIONS, new_instance, new_study
from .test_search import STUDY_SEARCHES

URL = "mssql://user:p%40ss@host:1433/dicomcloud"

# The URL


def test_the_parts_of_a_url() -> None:
    address = parse_url("mssql://CLINIC%5Cann:p%40s%2Fs@db.example%5CSQLEXPRESS/index?ca=system&timeout=20")
    assert (address.user, address.password, address.server) == ("CLINIC\\ann", "p@s/s", "db.example\\SQLEXPRESS")
    assert (address.database, address.encryption, address.timeout, address.port) == ("index", "require", 20, None)
    assert "p@s" not in repr(address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?encryption=maybe", "encryption must be"),
        ("?ca=x&encryption=off", "ca needs encryption"),
        ("?timeout=soon", "whole seconds"),
        ("?timeout=0", "between 1 and 3600"),
        ("?pool=3", "unknown option pool"),
    ],
)
def test_wrong_options_are_named_and_the_password_is_not(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        open_database(URL + options)
    assert "p@ss" not in str(caught.value)


# Statements


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("O'Brien", "N'O''Brien'"),
        ("%s %d ?", "N'%s %d ?'"),
        ("a\0b\ud800", "N'a\ufffdb\ufffd'"),
        (b"'", "0x27"),
        (b"", "0x"),
        (-5, "-5"),
        (True, "1"),
        (None, "NULL"),
    ],
)
def test_values_become_constants(value: Any, text: str) -> None:
    assert literal(value) == text


def test_a_statement_is_sent_with_typed_parameters() -> None:
    text = render("SELECT 'it''s ?' FROM t WHERE a = ? AND b = ? AND c = ?", ("x'y", None, b"\1"))
    assert text == (
        "EXEC sp_executesql N'SELECT N''it''''s ?'' FROM t WHERE a = @p1 AND b = NULL AND c = @p3',"
        " N'@p1 NVARCHAR(4000), @p3 VARBINARY(MAX)', @p1=N'x''y', @p3=0x01"
    )
    with pytest.raises(ValueError, match="1 values expected"):
        render("SELECT ?", ())


def test_more_parameters_than_the_server_takes_are_written_out() -> None:
    statement = f"SELECT 1 WHERE 1 IN ({', '.join('?' * 3000)})"
    assert "sp_executesql" not in render(statement, [1] * 3000)


# Everything that the index sends. The class below is the one that speaks to a server, but for the server.


class _Written(SqlServer):
    """Keeps what is sent; answers nothing was found, or a row of ones."""

    def __init__(self, *, rows: Sequence[tuple[Any, ...]] = ()) -> None:
        super().__init__(URL)
        self.sent: list[str] = []
        self._rows = list(rows)

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        render(sql, parameters)
        self.sent.append(inline(sql, parameters))
        if sql.startswith("SELECT a.revision") and not self._rows:
            return Rows([(1, 0, None, None)], 1)
        if re.match(r"SELECT count\(\*\) FROM|SELECT \w+ FROM archive_state|INSERT .* OUTPUT", sql) and not self._rows:
            return Rows([(1,)], 1)
        return Rows(list(self._rows), len(self._rows))

    def stream(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        return iter(self.run(sql, parameters).fetchall())

    def later(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self.run(sql, parameters)

    def _keep(self, text: str) -> None:
        self.sent.append(text)

    @contextmanager
    def write(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT a FROM t LIMIT 3",
        "SELECT count(*) FROM (SELECT count(*) FROM t) x",
        "SELECT a FROM (SELECT a FROM t ORDER BY a) x",
        "SELECT a FROM (SELECT t.a, u.a FROM t JOIN u ON t.a = u.a) x",
        "SELECT EXISTS (SELECT 1 FROM t)",
        "SELECT user FROM t",
        "SELECT group_concat_all(a) FROM t",
        "SELECT a || b FROM t",
        "SELECT a FROM t ORDER BY a OFFSET 0 ROWS FETCH NEXT 0 ROWS ONLY",
        "INSERT INTO t (a) VALUES " + ", ".join(["(1)"] * 1001),
        "CREATE TABLE t (a INT REFERENCES u (a) ON DELETE CASCADE, b INT REFERENCES v (a) ON DELETE CASCADE)",
        "SELECT FROM WHERE",
        "SELECT a, count(*) FROM t",
        "SELECT a, b, count(*) FROM t GROUP BY a",
        "SELECT DISTINCT a FROM t ORDER BY b",
        "SELECT a FROM t WHERE b",
        "SELECT a FROM t WHERE a = 1 AND NOT b",
        "INSERT INTO audit_event (a) OUTPUT INSERTED.id VALUES (1)",
    ],
)
def test_the_check_finds_what_the_server_refuses(statement: str) -> None:
    assert faults(statement)


def _statements_of_searches() -> list[str]:
    database = _Written()
    texts = [text for text, _ in STUDY_SEARCHES]
    texts += ["limit=1&offset=7", "PatientName=*a*^b*", "fuzzymatching=true&PatientName=*a*", "PatientName=a=b"]
    series = ["Modality=CT", "RequestAttributesSequence.00400009=x", "SeriesDescription=x", "includefield=all"]
    instance = ["Rows=5", "ContentLabel=x", "includefield=all&SOPClassUID=1.2", "PatientID=1"]
    queries = [(Level.STUDY, text) for text in texts] + [(Level.SERIES, text) for text in series]
    for level, text in [*queries, *((Level.INSTANCE, text) for text in instance)]:
        try:
            query = parse_query(level, parse_qsl(text, keep_blank_values=True), max_results=100)
        except BadRequest:
            continue
        Index(database).search(query)
    return database.sent


def _statements_of_the_rest() -> list[str]:
    database = _Written()
    index = Index(database)
    index.add([new_study("1.1", PatientName="A^B", StudyDescription="x", StudyDate="20200101")], "reject")
    list(index.files())
    list(index.documents("1.1"))
    for uids in (("1",), ("1", "2"), ("1", "2", "3")):
        index.instances(*uids)
        index.remove(*uids)
        index.was_deleted(*uids)
    index.frames("1", "2", "3")
    index.bulk_data("1", "2", "3")
    index.document("1", "2", "3")
    index.revision("1")
    index.revision("1", "2")
    index.series_revisions("1", "2")
    index.files_to_remove()
    index.files_removed(["a", "b"])
    index.has_file("a")
    index.drop_instance_of_file("a")
    index.clear()
    found = (1, 1, 1, "k", 1, b"", "ts", 1, "1", "1")
    replaced = _Written(rows=[found])
    with pytest.raises((TypeError, ValueError, IndexError, peewee.PeeweeException, Exception)):
        Index(replaced).add([new_instance()], "replace")
    return database.sent + replaced.sent


def test_every_statement_of_a_search_is_accepted() -> None:
    sent = set(_statements_of_searches())
    assert len(sent) > 100
    assert {statement: found for statement in sent if (found := faults(statement))} == {}


def test_every_other_statement_of_the_index_is_accepted() -> None:
    sent = set(_statements_of_the_rest())
    assert len(sent) > 30
    assert {statement: found for statement in sent if (found := faults(statement))} == {}


def test_every_statement_that_fills_an_index_for_the_benchmarks_is_accepted() -> None:
    class Empty(_Written):
        def run(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
            super().run(sql, parameters)
            if "INFORMATION_SCHEMA.COLUMNS" in sql:
                return Rows([(name, "nvarchar", "NO", None) for name in ("id", "uid", "size")], 3)
            return Rows([] if "number = 2" in sql else [(1, 1)], 1)

    database = Empty()
    make_index._multiply_some(database, 1, [3, 0, *range(900)], lean=False)
    assert sum(statement.startswith("WITH") for statement in database.sent) == 2
    assert {statement: found for statement in database.sent if (found := faults(statement))} == {}


def test_every_statement_to_a_database_of_the_original_is_accepted() -> None:
    database = _Written(rows=[("0", "7", "8")])
    original = OriginalDatabase(database)
    original.counts()
    assert list(original.instances()) == [("0", "7", "8")]
    assert len(database.sent) == 5
    assert {statement: found for statement in database.sent if (found := faults(statement))} == {}


@pytest.mark.parametrize(
    ("sql", "sent"),
    [
        (
            "SELECT a FROM t ORDER BY b LIMIT ? OFFSET ?",
            "SELECT a FROM t ORDER BY b OFFSET 1 ROWS FETCH NEXT 1 ROWS ONLY",
        ),
        (
            "SELECT count(*) FROM (SELECT a FROM t LIMIT 50) u",
            "SELECT count(*) FROM (SELECT a FROM t ORDER BY (SELECT NULL) OFFSET 0 ROWS FETCH NEXT 50 ROWS ONLY) u",
        ),
        ("SELECT a FROM t WHERE +b = 'x'", "SELECT a FROM t WHERE b = N'x'"),
        ("SELECT a FROM t WHERE instr(s.c, ?) > 0", "SELECT a FROM t WHERE CHARINDEX(1, s.c) > 0"),
        ("SELECT a FROM t WHERE b LIKE ? ESCAPE '\\'", "SELECT a FROM t WHERE b LIKE 1"),
        ("SELECT a FROM t WHERE name_matches(a, a_other, ?)", "SELECT a FROM t WHERE 1 = 1"),
    ],
)
def test_what_is_gathered_is_put_into_the_words_of_the_server(sql: str, sent: str) -> None:
    assert as_tsql(sql) == sent
    assert faults(sent) == []


class _Answering(_Written):
    """Says that all is well, or that everything is wrong."""

    def __init__(self, *, well: bool) -> None:
        super().__init__()
        self._well = well

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        super().run(sql, parameters)
        answers: dict[str, Any] = {
            "@@VERSION": "Microsoft SQL Server 2022",
            "DATEDIFF_BIG": int(time.time() * 1000) if self._well else 0,
            "HAS_PERMS": self._well,
        }
        for text, answer in answers.items():
            if text in sql:
                return Rows([(answer,)], 1)
        if "sys.databases" in sql:
            row = (150, True, "Latin1", False, False) if self._well else (120, False, "Latin1", True, True)
            return Rows([row], 1)
        if "collation_name" in sql:
            return Rows([("study", "uid", "Latin1_General_BIN2" if self._well else "Latin1_General_CI_AS")], 1)
        return Rows([("study", "an_index")] if "is_disabled" in sql and not self._well else [], 0)


def test_doctor_asks_what_the_server_understands_and_names_what_is_wrong() -> None:
    well, ill = _Answering(well=True), _Answering(well=False)
    found = {each.what: each.state.value for each in well.diagnose()}
    assert {what for what, state in found.items() if state == "fault"} == {"indexes"}  # it was shown none
    named = {each.what: each for each in ill.diagnose()}
    wrong = {
        "compatibility level",
        "READ_COMMITTED_SNAPSHOT",
        "column collations",
        "permissions",
        "clock",
        "AUTO_CLOSE",
    }
    assert all(named[what].state.value != "ok" for what in wrong)
    assert "SET READ_COMMITTED_SNAPSHOT ON" in named["READ_COMMITTED_SNAPSHOT"].advice
    for database in (well, ill):
        database.get_columns("study")
        database.get_foreign_keys("study")
        database.table_exists("study")
        database.get_tables()
    sent = {*well.sent, *ill.sent}
    assert len(sent) > 10
    assert {statement: found for statement in sent if (found := faults(statement))} == {}


#: Valid T-SQL that sqlglot does not know.
UNKNOWN_TO_THE_PARSER = re.compile(r"\A(SAVE TRANSACTION|CREATE TRIGGER|EXEC sp_rename)")


def test_the_script_of_all_migrations_is_accepted_and_tells_how_it_compares() -> None:
    script = migration_script(open_database(URL), MIGRATIONS, every=True)
    statements = [part.strip() for part in re.split(r"^GO$", script, flags=re.MULTILINE) if part.strip()]
    statements = [re.sub(r"^--.*$", "", statement, flags=re.MULTILINE).strip() for statement in statements]
    kept = [statement for statement in statements if not UNKNOWN_TO_THE_PARSER.match(statement)]
    assert {statement: found for statement in kept if (found := faults(statement))} == {}
    columns = re.findall(r"\[\w+\] NVARCHAR\([^)]*\)[^,)]*", script)
    assert len(columns) > 50
    assert all("COLLATE Latin1_General_BIN2" in column for column in columns)
    assert not re.search(r"\bVARCHAR\(|\bTEXT\b|\bBLOB\b", script)


def test_keys_of_indexes_fit_into_what_the_server_allows() -> None:
    sizes = {"BIGINT": 8, "INT": 4, "BIGAUTO": 8, "AUTO": 4}
    for model in TABLES:
        for index in model._meta.fields_to_index():
            keys = index._keys if isinstance(index, CoveringIndex) else index._expressions
            fields = [key if isinstance(key, peewee.Field) else key.unwrap() for key in keys]
            kinds = [field.rel_field if isinstance(field, peewee.ForeignKeyField) else field for field in fields]
            size = sum(
                kind.max_length * 2 if isinstance(kind, peewee.CharField) else sizes[kind.field_type] for kind in kinds
            )
            assert size <= 1700, (model, index._name, size)


# A server that is not there


def test_a_server_that_cannot_be_reached_is_told_at_once_and_without_a_password() -> None:
    index = Index(open_database("mssql://user:secret@127.0.0.1:9/db?login_timeout=2"))
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be reached") as caught:
            index.counts()
        assert caught.value.headers["Retry-After"] == "5"
        assert "secret" not in str(caught.value)
