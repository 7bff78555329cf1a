"""Statements held against T-SQL without a server: what a parser (sqlglot) finds, and what parsers let pass and
the server refuses, by the number of its error. Statements are gathered from whatever the tests run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlglot
from sqlglot import exp

from dicomcloud.index.database import SQLite
from dicomcloud.index.sql_server.statements import inline

KNOWN_FUNCTIONS = {
    "count", "min", "max", "sum", "coalesce", "charindex", "concat", "object_id", "scope_identity", "len", "abs",
    "datediff_big", "has_perms_by_name", "object_name", "sysutcdatetime", "db_id",
    "schema_id", "schema_name", "db_name", "case", "cast", "exists", "isnull", "substring",
}  # fmt: skip
RESERVED = frozenset(
    re.findall(
        r"\w+",
        """
        add all alter and any as asc authorization backup begin between break browse bulk by cascade
        case check close coalesce collate column commit constraint contains create cross current
        cursor database declare default delete deny desc distinct double drop else end escape except
        exec execute exists exit external fetch file for foreign from full function goto grant group
        having identity if in index inner insert intersect into is join key kill left like merge
        national not null of off offsets on open option or order outer over percent pivot plan
        primary print proc procedure public read references return revert revoke right rollback
        rowcount rule save schema select session_user set some statistics table then to top tran
        transaction trigger truncate try union unique update use user values view when where while
        with
        """,
    )
)


def faults(statement: str) -> list[str]:
    """What SQL Server would refuse of a statement."""
    try:
        trees = sqlglot.parse(statement, read="tsql", error_level=sqlglot.ErrorLevel.RAISE)
    except sqlglot.ParseError as error:
        return [f"does not parse: {error}"]
    found = []
    if re.search(
        r"\bLIMIT\b|\|\||\bON CONFLICT\b|\bRETURNING\b|\binstr\(|INSERT OR |\bREPLACE INTO|\bPRAGMA\b", statement
    ):
        found.append("is SQLite's")
    for tree in trees:
        if tree is None:
            continue
        found += _faults_of(tree)
    return found


def _faults_of_columns(select: exp.Select) -> Iterator[str]:
    """Of GROUP BY, aggregates, DISTINCT with ORDER BY."""
    group = select.args.get("group")
    grouped = {each.sql() for each in group.expressions} if group else set()
    bare = [column.this if isinstance(column, exp.Alias) else column for column in select.expressions]
    if group or any(isinstance(column, exp.AggFunc) for column in bare):
        for column in bare:
            alone = [each for each in column.find_all(exp.Column) if not each.find_ancestor(exp.AggFunc, exp.Subquery)]
            if any(each.sql() not in grouped for each in alone) and column.sql() not in grouped:
                yield f"8120: {column.sql()} is neither grouped nor an aggregate"
    order = select.args.get("order")
    if order and select.args.get("distinct"):
        shown = {column.alias_or_name for column in select.expressions} | {column.sql() for column in bare}
        if any(each.this.sql() not in shown and not each.this.is_int for each in order.expressions):
            yield "145: DISTINCT ordered by what is not shown"


def _faults_of(tree: exp.Expression) -> Iterator[str]:
    for select in tree.find_all(exp.Select):
        nested = select.find_ancestor(exp.Subquery, exp.CTE, exp.In, exp.Exists) is not None or select is not tree
        limited = select.args.get("limit") or select.args.get("offset")
        if nested and select.args.get("order") and not limited and not isinstance(tree, exp.Insert):
            yield "1033: ORDER BY in a subquery"
        if isinstance(select.parent, exp.Subquery) and select.parent.alias:
            named = (exp.Alias, exp.Column)
            names = [column.alias_or_name if isinstance(column, named) else "" for column in select.expressions]
            if not all(names) and not any(column.is_star for column in select.expressions):
                yield "8155: a column of a derived table without a name"
            if len(set(names)) < len(names):
                yield "8156: two columns of a derived table with one name"
        for column in select.expressions:
            bare = column.this if isinstance(column, exp.Alias) else column
            if isinstance(bare, (exp.Exists, exp.EQ, exp.GT, exp.LT, exp.Like, exp.And, exp.Or)):
                yield "102: a condition as a column"
        yield from _faults_of_columns(select)
    for condition in tree.find_all(exp.Where, exp.Having, exp.And, exp.Or, exp.Not):
        parts = [condition.this, condition.args.get("expression")]
        if any(isinstance(part, (exp.Column, exp.Placeholder, exp.Literal)) for part in parts):
            yield "4145: a value in place of a condition"
    if isinstance(tree, exp.DML) and tree.args.get("returning") and "audit_event" in tree.this.sql():
        yield "334: OUTPUT from a table with a trigger"
    for values in tree.find_all(exp.Values):
        if len(values.expressions) > 1000:
            yield "10738: more than 1000 rows"
    for fetch in tree.find_all(exp.Fetch):
        if fetch.args.get("count") is not None and fetch.args["count"].sql() == "0":
            yield "10744: FETCH NEXT 0 ROWS"
    for identifier in tree.find_all(exp.Identifier):
        if not identifier.quoted and identifier.name.lower() in RESERVED:
            yield f"156: {identifier.name} is a reserved word"
    for function in tree.find_all(exp.Anonymous):
        if function.name.lower() not in KNOWN_FUNCTIONS:
            yield f"195: {function.name} is not a function of T-SQL"
    if isinstance(tree, exp.Create) and str(tree.args.get("kind")).upper() == "TABLE":
        cascades = tree.sql().upper().count("ON DELETE CASCADE")
        if cascades > 1:
            yield "1785: more than one cascade path"


# ---------------------------------------------------------------------------------------------------------------------
# Gathering. The index writes the same SQL for both databases, but for what `Database` gives it: that is put into the
# words of SqlServer here.

_OF_THE_DATABASE = "dicomcloud.index.database"
_WORDS = (
    (re.compile(r"LIMIT \? OFFSET \?"), "OFFSET ? ROWS FETCH NEXT ? ROWS ONLY"),
    (re.compile(r" LIMIT (\d+)(?=\)|\Z)"), r" ORDER BY (SELECT NULL) OFFSET 0 ROWS FETCH NEXT \1 ROWS ONLY"),  # as TOP
    (re.compile(r"instr\(([\w.]+), \?\)"), r"CHARINDEX(?, \1)"),
    (re.compile(r"(dicom|name)_matches\([^)]*\?\)"), "1 = ?"),  # not asked of SQL Server: the index matches itself
    (re.compile(r"(?<=[ (])\+(?=[a-z])"), ""),
    (re.compile(r" ESCAPE '.'"), ""),
)


def as_tsql(sql: str) -> str:
    """A statement of the index, written for SQLite, as SQL Server gets it; with ones for its values."""
    for pattern, words in _WORDS:
        sql = pattern.sub(words, sql)
    return inline(sql, [1] * sql.count("?"))


def _is_ours() -> bool:
    """Whether a module of the program sends the statement, and neither a test nor the database for itself."""
    frame = sys._getframe(2)
    if frame.f_globals.get("__name__") == _OF_THE_DATABASE and frame.f_code.co_name in ("stream", "insert", "later"):
        frame = frame.f_back or frame
    name = str(frame.f_globals.get("__name__"))
    return name.startswith("dicomcloud.") and name != _OF_THE_DATABASE


@contextmanager
def gathered() -> Iterator[set[str]]:
    """Whatever the program sends to SQLite meanwhile, each statement once."""
    sent: set[str] = set()
    run = SQLite.run

    def noted(self: SQLite, sql: str, parameters: Sequence[Any] = ()) -> Any:
        if sql not in sent and _is_ours():
            sent.add(sql)
        return run(self, sql, parameters)

    SQLite.run = noted  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        SQLite.run = run  # type: ignore[method-assign]
