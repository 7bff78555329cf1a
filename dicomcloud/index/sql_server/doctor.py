"""What `doctor` looks at on SQL Server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import peewee

from dicomcloud.diagnosis import Diagnosis, fault, good, warn
from dicomcloud.index.models import TABLES
from dicomcloud.index.sql_server.schema import COLLATION

if TYPE_CHECKING:
    from dicomcloud.index.sql_server import SqlServer

_LEAST_VERSION: Final = 13  # SQL Server 2016
_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")


def diagnose(database: SqlServer) -> Iterator[Diagnosis]:
    address = database.address
    version = str(database.run("SELECT @@VERSION").fetchall()[0][0]).splitlines()[0]
    yield good("database", f"{address.server}/{address.database}: {version}")
    stand_in = "Babelfish" in version
    if not stand_in:
        yield from _diagnose_options(database)
    started = time.time()
    there = database.run("SELECT DATEDIFF_BIG(MILLISECOND, '19700101', SYSUTCDATETIME())").fetchall()[0][0]
    apart = abs(int(there) / 1000 - (started + time.time()) / 2)
    if apart > 5:
        yield warn("clock", f"the server's clock is {apart:.0f} s off this machine's", "Let both follow a time server.")
    else:
        yield good("clock", f"within {apart:.1f} s of this machine's")
    yield from _diagnose_collations(database)
    yield from _diagnose_rights(database)
    yield from _diagnose_indexes(database)
    if address.encryption != "require":
        yield warn(
            "encryption", "the connection may go unencrypted", "Add encryption=require (and ca=FILE) to database_url."
        )
    elif not address.ca:
        yield warn("encryption", "the server's certificate is not checked", "Add ca=FILE or ca=system to database_url.")
    else:
        yield good("encryption", "required, certificate checked")


def _diagnose_options(database: SqlServer) -> Iterator[Diagnosis]:
    row = database.run(
        "SELECT compatibility_level, is_read_committed_snapshot_on, collation_name, is_auto_close_on, is_auto_shrink_on"
        " FROM sys.databases WHERE database_id = DB_ID()"
    ).fetchone()
    if row is None:
        yield warn("options", "sys.databases does not show this database to the login")
        return
    level, snapshot, collation, auto_close, auto_shrink = row
    name = database.address.database.replace("]", "]]")
    if level < _LEAST_VERSION * 10:
        yield fault(
            "compatibility level",
            f"{level}, at least {_LEAST_VERSION * 10} is needed",
            f"ALTER DATABASE [{name}] SET COMPATIBILITY_LEVEL = 150",
        )
    else:
        yield good("compatibility level", str(level))
    if snapshot:
        yield good("READ_COMMITTED_SNAPSHOT", "on")
    else:
        yield warn(
            "READ_COMMITTED_SNAPSHOT",
            "off: searches wait while something is stored",
            f"ALTER DATABASE [{name}] SET READ_COMMITTED_SNAPSHOT ON WITH ROLLBACK IMMEDIATE",
        )
    yield good("collation", f"{collation} (the columns have their own)")
    for what, on in (("AUTO_CLOSE", auto_close), ("AUTO_SHRINK", auto_shrink)):
        if on:
            yield warn(what, "on: slow", f"ALTER DATABASE [{name}] SET {what} OFF")


def _diagnose_collations(database: SqlServer) -> Iterator[Diagnosis]:
    ours = {model._meta.table_name for model in TABLES}
    rows = database.run(
        "SELECT t.name, c.name, c.collation_name FROM sys.columns c JOIN sys.tables t ON t.object_id = c.object_id"
        " WHERE t.schema_id = SCHEMA_ID() AND c.collation_name IS NOT NULL"
    ).fetchall()
    wrong = [
        f"{table}.{column} is {found}"
        for table, column, found in rows
        if table in ours and not found.lower().endswith("_bin2")
    ]
    if wrong:
        yield fault(
            "column collations",
            "; ".join(wrong[:5]),
            f"Searches will miss studies: every text column must be {COLLATION}, as `migrate` makes it.",
        )
    else:
        yield good("column collations", COLLATION)


def _diagnose_rights(database: SqlServer) -> Iterator[Diagnosis]:
    missing = [
        f"{right} on {table}"
        for table in ("study", "instance", "archive_state")
        for right in _RIGHTS
        if not database.run("SELECT HAS_PERMS_BY_NAME(?, 'OBJECT', ?)", (table, right)).fetchall()[0][0]
    ]
    if missing:
        yield fault("permissions", f"missing: {', '.join(missing)}", "See docs/sql-server.md, least privilege.")
    else:
        yield good("permissions", "the login may read and write")
    owner = database.run("SELECT HAS_PERMS_BY_NAME(DB_NAME(), 'DATABASE', 'CREATE TABLE')").fetchall()[0][0]
    if not owner:
        yield good("schema changes", "not allowed to this login: a DBA applies `migrate --sql` before an update")


def _diagnose_indexes(database: SqlServer) -> Iterator[Diagnosis]:
    """By their key columns: an index of another name does as well."""
    missing = []
    for model in TABLES:
        table = model._meta.table_name
        there = {tuple(index.columns) for index in database.get_indexes(table)}
        for index in model._meta.fields_to_index():
            keys = getattr(index, "_keys", None) or index._expressions
            columns = tuple(_column(key) for key in keys)
            if columns not in there:
                missing.append(f"{table}({', '.join(columns)})")
    disabled = database.run(
        "SELECT t.name, i.name FROM sys.indexes i JOIN sys.tables t ON t.object_id = i.object_id"
        " WHERE t.schema_id = SCHEMA_ID() AND i.is_disabled = 1"
    ).fetchall()
    if missing or disabled:
        faults = [f"missing: {name}" for name in missing] + [f"disabled: {name} on {table}" for table, name in disabled]
        yield fault(
            "indexes", "; ".join(faults), "Searches will be slow. `migrate --sql --all` prints how they are made."
        )
    else:
        yield good("indexes", "all there")


def _column(expression: Any) -> str:
    field = expression if isinstance(expression, peewee.Field) else expression.unwrap()
    return str(field.column_name)
