"""MS SQL Server (2016 and newer, Azure SQL) as the index, through pymssql: connections, statements, schema.

Text columns are NVARCHAR in the collation Latin1_General_BIN2, which compares as SQLite does; what is to be matched
without case is folded before it is stored. Every value is part of a `sp_executesql` call with types that suit the
columns, so that plans are kept and indexes are used. One writer works at a time, as on SQLite: an application lock
that ends with the transaction keeps the others waiting, so that writers never deadlock with each other.

Statements of a transaction that nobody needs an answer of (`later`) are kept and sent with the next one that has one: a
store is some ten round trips rather than forty. The commit is never sent along: it must not follow a failure.

A result is read to its end at once, since a connection of pymssql has room for one: its connection goes back to the
pool before the next statement. Peewee's query builder is there for migrations; the index writes SQL.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, cast

import peewee
from playhouse.migrate import SchemaMigrator

from dicomcloud.diagnosis import Diagnosis
from dicomcloud.dicom.matching import Match
from dicomcloud.errors import Unavailable
from dicomcloud.index.database import BUSY_TIMEOUT, Database, ServerAway, Work
from dicomcloud.index.sql_server.connections import Address, Again, Connection, Pool, Rows, parse_url
from dicomcloud.index.sql_server.schema import Context, Migrator
from dicomcloud.index.sql_server.statements import guarded, inline, literal, render

_LOCK: Final = "dicomcloud: writer of "  # with the database: Babelfish has one space of names for all of them
_TIMED_OUT: Final = -1  # what sp_getapplock says after BUSY_TIMEOUT
# Rows of one INSERT; the server takes 1,000, and plans many constants slowly. Other ways are worse: FreeTDS's bulk copy
# makes NULL of an empty text, and OPENJSON on Babelfish leaves the backslashes of JSON in a text.
_ROWS: Final = 250
_FEW: Final = 10  # rows that are inserted by a statement whose plan is kept
_WAITING: Final = 200_000  # characters of statements that are sent together
_ATTEMPTS: Final = 5  # of a transaction that was chosen as the victim of a deadlock, or lost its connection


class SqlServer(Database):
    """MS SQL Server. Reads take a connection from the pool and give it back; a transaction keeps one."""

    kind = "MS SQL Server"
    batch = ("SET XACT_ABORT ON\nGO", "\nGO")
    context_class = Context
    quote = "[]"
    param = "?"
    use_concat_function = True
    for_update = False
    safe_create_index = False
    safe_drop_index = True
    truncate_table = False
    index_value_literals = True
    limit_max = None
    field_types = {
        "AUTO": "INT IDENTITY(1,1)",
        "BIGAUTO": "BIGINT IDENTITY(1,1)",
        "BIGINT": "BIGINT",
        "BLOB": "VARBINARY(MAX)",
        "BOOL": "BIT",
        "CHAR": "NCHAR",
        "DATETIME": "DATETIME2(6)",
        "DOUBLE": "FLOAT(53)",
        "FLOAT": "FLOAT(53)",
        "JSON": "NVARCHAR(MAX)",
        "TEXT": "NVARCHAR(MAX)",
        "TIME": "TIME(6)",
        "UUID": "NVARCHAR(40)",
        "VARCHAR": "NVARCHAR",
    }
    # NVARCHAR(MAX) columns are not compared; a search in their JSON is done here, by `residual` matching.

    def __init__(self, url: str | Address) -> None:
        self.address = parse_url(url) if isinstance(url, str) else url
        super().__init__(self.address.database)
        self._pool = Pool(self.address)
        self._pinned = threading.local()

    # Statements

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Execute one statement, in this thread's transaction if there is one; alone, it is tried again."""
        text = render(sql, parameters)
        pinned = self._own_connection()
        if pinned is not None:
            return pinned.execute("; ".join([*self._taken(), text]))
        return self.repeated(lambda: self._run_once(text))

    def later(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Have a statement executed with the next one of this thread's transaction."""
        self._keep(render(sql, parameters))

    def _keep(self, text: str) -> None:
        connection = self._own_connection()
        if connection is None:
            raise RuntimeError("only a transaction has something that is done later")
        self._waiting.append(text)
        if sum(map(len, self._waiting)) > _WAITING:
            self._send_waiting(connection)

    @property
    def _waiting(self) -> list[str]:
        """The statements of this thread that are still to be sent."""
        if not hasattr(self._pinned, "waiting"):
            self._pinned.waiting = []
        return cast("list[str]", self._pinned.waiting)

    def _taken(self) -> list[str]:
        waiting, self._pinned.waiting = self._waiting, []
        return waiting

    def _send_waiting(self, connection: Connection) -> None:
        if self._waiting:
            connection.execute("; ".join(self._taken()))

    def _run_once(self, text: str) -> Rows:
        connection = self._pool.take()
        try:
            return connection.execute(text)
        finally:
            self._pool.give_back(connection)

    def stream(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a SELECT as they come, on a connection of its own; up to the first one it is tried again."""
        text = render(sql, parameters)
        connection, rows = self.repeated(lambda: self._begin_stream(text))
        finished = False
        try:
            yield from rows
            finished = True
        finally:
            if finished:
                self._pool.give_back(connection)
            else:  # rows are still on their way
                connection.close()

    def _begin_stream(self, text: str) -> tuple[Connection, Iterator[tuple[Any, ...]]]:
        connection = self._pool.take()
        rows = connection.stream(text)
        try:
            return connection, chain(list(islice(rows, 1)), rows)
        except BaseException:
            connection.close()
            raise

    def _own_connection(self) -> Connection | None:
        pinned: Connection | None = getattr(self._pinned, "connection", None)
        if pinned is None and not self.is_closed():
            return self.connection()  # type: ignore[no-any-return]
        return pinned

    def insert(self, sql: str, parameters: Sequence[Any]) -> int:
        """Execute an INSERT of one row; the key the database has given it."""
        head, values, tail = sql.partition(" VALUES ")
        row = self.run(f"{head} OUTPUT INSERTED.id{values}{tail}", parameters).fetchone()
        return int(row[0]) if row else 0

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, keys: bool = False
    ) -> None:
        """Insert many rows; with `keys`, keys that the database otherwise gives itself are among the columns."""
        head = f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            if len(some) <= _FEW:
                places = f"({', '.join('?' * len(columns))})"
                text = render(head + ", ".join([places] * len(some)), list(chain.from_iterable(some)))
            else:
                text = head + ", ".join(f"({', '.join(map(literal, row))})" for row in some)
            if keys:
                text = f"SET IDENTITY_INSERT {table} ON; {text}; SET IDENTITY_INSERT {table} OFF"
            self._keep(text)

    # Transactions

    @contextmanager
    def write(self) -> Iterator[None]:
        """A transaction of the only writer, committed at the end of the block."""
        if self._own_connection() is not None:
            raise RuntimeError("a transaction within a transaction")
        connection = self._pool.take()
        self._pinned.connection = connection
        try:
            self._begin(connection)
            yield
            self._send_waiting(connection)
            self._commit(connection)
        except BaseException:
            self._roll_back(connection)
            raise
        finally:
            self._pinned.connection = None
            self._pinned.waiting = []
            self._pool.give_back(connection)

    @staticmethod
    def _commit(connection: Connection) -> None:
        try:
            connection.execute("COMMIT TRANSACTION")
        except ServerAway as error:  # it may have been carried out, and only its answer was lost
            error.outcome_unknown = True
            raise

    def repeated(self, work: Callable[[], Work]) -> Work:
        outcome_unknown = False
        away = 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return work()
            except Exception as error:
                if outcome_unknown:  # of an earlier attempt
                    cast(Any, error).outcome_unknown = True
                outcome_unknown = getattr(error, "outcome_unknown", False)
                if isinstance(error, ServerAway):
                    self._pool.drop_all()
                    away += 1
                elif not isinstance(error, Again):
                    raise
                if attempt == _ATTEMPTS or away > 1 or self._own_connection() is not None:
                    raise
                time.sleep(random.uniform(0, 0.05 * 2**attempt) if isinstance(error, Again) else 0)
        raise AssertionError

    def check(self) -> None:
        self._pool.check()
        super().check()

    def _begin(self, connection: Connection) -> None:
        """Begin a transaction once no other writer is in one."""
        resource = literal(_LOCK + self.address.database)
        row = connection.execute(
            f"BEGIN TRANSACTION; DECLARE @got INT; EXEC @got = sp_getapplock @Resource = {resource},"
            f" @LockMode = N'Exclusive', @LockOwner = N'Transaction', @LockTimeout = {BUSY_TIMEOUT * 1000}; SELECT @got"
        ).fetchone()
        got = row[0] if row else -999
        if got == _TIMED_OUT:
            raise Unavailable("The index is busy; try again later.")
        if got < 0:  # the victim of a deadlock, or a request that failed before its time
            raise Again("The index is busy; try again later.", retry_after=5)

    @staticmethod
    def _roll_back(connection: Connection) -> None:
        try:
            if connection.alive:
                connection.execute("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION")
        except (Unavailable, peewee.PeeweeException):
            connection.close()

    # What differs in SQL

    def page(self, limit: int, offset: int) -> tuple[str, list[Any]]:
        """The end of a SELECT with ORDER BY that returns `limit` rows from `offset` on; `limit` is 1 or more."""
        return "OFFSET ? ROWS FETCH NEXT ? ROWS ONLY", [offset, limit]

    def first(self, count: int, columns: str, rest: str) -> str:
        """A SELECT of no more than `count` rows, whichever; `rest` begins with FROM."""
        return f"SELECT TOP ({count}) {columns} {rest}"

    def like(self, column: str) -> str:
        """A condition with one value, made by `like_pattern`."""
        return f"{column} LIKE ?"

    def like_pattern(self, pattern: str) -> str:
        """A DICOM wildcard pattern (`*`, `?`) as a LIKE pattern."""
        for special in "[%_":  # in brackets: Babelfish misreads ESCAPE behind a %
            pattern = pattern.replace(special, f"[{special}]")
        return pattern.replace("*", "%").replace("?", "_")

    def stored_matches(self, column: str, match: Match, *, compressed: bool = False) -> None:
        """None: the server cannot match in stored DICOM JSON, the index does it on the rows it sends."""
        return None

    def name_matches(self, column: str, match: str) -> None:
        return None

    def mentions(self, column: str, text: str) -> tuple[str, list[Any]]:
        """A condition that the column has the text somewhere."""
        return f"CHARINDEX(?, {column}) > 0", [text]

    def script_of(self, work: Callable[[Database], object]) -> list[str]:
        script = _Script(self.address)
        work(script)
        return script.statements

    def snapshot(self, path: Path) -> None:
        raise Unavailable("The index is on MS SQL Server: back it up with the server's own means (docs/sql-server.md).")

    def put_aside(self) -> Path | None:
        raise Unavailable("The index is on MS SQL Server: give `database_url` another, empty database, then `reindex`.")

    # Peewee, for migrations

    def get_context_options(self) -> dict[str, Any]:
        options: dict[str, Any] = super().get_context_options()
        return options | {"include_clause": True}

    def migrating(self) -> AbstractContextManager[Any]:
        return self.atomic()

    def _connect(self) -> Connection:
        return self._pool.take()

    def _close(self, conn: Connection) -> None:
        self._roll_back(conn)
        self._pool.give_back(conn)

    def release(self) -> None:
        if not self.is_closed():
            super().close()

    def close(self) -> bool:
        """Close this thread's connection and those that nobody is using."""
        self.release()
        self._pool.close()
        return True

    def get_binary_type(self) -> type:
        return bytes

    def _initialize_connection(self, conn: Any) -> None:
        return

    def execute_sql(self, sql: str, params: Sequence[Any] | None = None, commit: Any = None) -> Rows:
        """What Peewee sends. An INSERT returns the key that the database has given."""
        text = guarded(inline(sql, params))
        connection: Connection = self._own_connection() or self.connection()
        self._send_waiting(connection)
        if not sql.startswith("INSERT "):
            return connection.execute(text)
        result = connection.execute(f"{text}; SELECT CAST(SCOPE_IDENTITY() AS BIGINT)")
        row = result.fetchone()
        return Rows([], 1, None, row[0] if row else None)

    def last_insert_id(self, cursor: Any, query_type: Any = None) -> Any:
        return cursor.lastrowid

    def rows_affected(self, cursor: Any) -> int:
        return int(cursor.rowcount)

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """A transaction of the only writer, as `write` begins one."""
        self._begin(self.connection())

    def commit(self) -> None:
        self._send_waiting(self.connection())
        self.connection().execute("COMMIT TRANSACTION")

    def rollback(self) -> None:
        self._taken()
        self.connection().execute("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION")

    def savepoint(self, *_: Any) -> Any:
        return _Savepoint(self)

    def get_tables(self, schema: str | None = None) -> list[str]:
        statement = "SELECT name FROM sys.tables WHERE schema_id = SCHEMA_ID() ORDER BY name"
        return [row[0] for row in self.run(statement).fetchall()]

    def table_exists(self, table_name: Any, schema: str | None = None) -> bool:
        name = table_name if isinstance(table_name, str) else table_name.__name__
        return self.run("SELECT 1 WHERE OBJECT_ID(?, 'U') IS NOT NULL", (f"[{name}]",)).fetchone() is not None

    def get_indexes(self, table: str, schema: str | None = None) -> list[peewee.IndexMetadata]:
        rows = self.run(
            "SELECT i.name, c.name, i.is_unique FROM sys.indexes i"
            " JOIN sys.index_columns k ON k.object_id = i.object_id AND k.index_id = i.index_id"
            " JOIN sys.columns c ON c.object_id = i.object_id AND c.column_id = k.column_id"
            " WHERE i.object_id = OBJECT_ID(?) AND k.is_included_column = 0 ORDER BY i.index_id, k.key_ordinal",
            (f"[{table}]",),
        ).fetchall()
        columns: dict[str, list[str]] = {}
        unique: dict[str, bool] = {}
        for name, column, is_unique in rows:
            columns.setdefault(name, []).append(column)
            unique[name] = bool(is_unique)
        return [peewee.IndexMetadata(name, "", columns[name], unique[name], table) for name in columns]

    def get_columns(self, table: str, schema: str | None = None) -> list[peewee.ColumnMetadata]:
        rows = self.run(
            "SELECT COLUMN_NAME, DATA_TYPE, IS_NULLABLE, COLUMN_DEFAULT FROM INFORMATION_SCHEMA.COLUMNS"
            " WHERE TABLE_NAME = ? AND TABLE_SCHEMA = SCHEMA_NAME() ORDER BY ORDINAL_POSITION",
            (table,),
        ).fetchall()
        keys = set(self.get_primary_keys(table))
        return [
            peewee.ColumnMetadata(name, kind, nullable == "YES", name in keys, table, default)
            for name, kind, nullable, default in rows
        ]

    def get_primary_keys(self, table: str, schema: str | None = None) -> list[str]:
        rows = self.run(
            "SELECT k.COLUMN_NAME FROM INFORMATION_SCHEMA.TABLE_CONSTRAINTS t"
            " JOIN INFORMATION_SCHEMA.KEY_COLUMN_USAGE k ON k.CONSTRAINT_NAME = t.CONSTRAINT_NAME"
            " WHERE t.CONSTRAINT_TYPE = 'PRIMARY KEY' AND t.TABLE_NAME = ? ORDER BY k.ORDINAL_POSITION",
            (table,),
        ).fetchall()
        return [row[0] for row in rows]

    def get_foreign_keys(self, table: str, schema: str | None = None) -> list[peewee.ForeignKeyMetadata]:
        rows = self.run(
            "SELECT a.name, OBJECT_NAME(f.referenced_object_id), b.name, o.name FROM sys.foreign_key_columns f"
            " JOIN sys.columns a ON a.object_id = f.parent_object_id AND a.column_id = f.parent_column_id"
            " JOIN sys.columns b ON b.object_id = f.referenced_object_id AND b.column_id = f.referenced_column_id"
            " JOIN sys.foreign_keys o ON o.object_id = f.constraint_object_id"
            " WHERE f.parent_object_id = OBJECT_ID(?)",
            (f"[{table}]",),
        ).fetchall()
        return [peewee.ForeignKeyMetadata(column, target, key, table, name) for column, target, key, name in rows]

    def migrator(self) -> SchemaMigrator:
        return Migrator(self)

    # doctor

    def diagnose(self) -> Iterator[Diagnosis]:
        from dicomcloud.index.sql_server.doctor import diagnose

        yield from diagnose(self)

    def append_only(self, table: str) -> None:
        """From now on rows of this table can be added, but neither changed nor deleted."""
        self.run(
            f"CREATE TRIGGER {table}_append_only ON {table} INSTEAD OF UPDATE, DELETE AS"
            f" THROW 50001, '{table} is append-only', 1"
        )

    def not_append_only(self, table: str) -> None:
        self.run(f"DROP TRIGGER {table}_append_only")


class _Savepoint:
    """A point in a transaction to go back to. Its name may have 32 characters, Peewee's own has 33."""

    def __init__(self, database: SqlServer) -> None:
        self._database = database
        self._name = f"s{random.getrandbits(64):016x}"

    def __enter__(self) -> _Savepoint:
        self._database.run(f"SAVE TRANSACTION [{self._name}]")
        return self

    def rollback(self) -> None:
        self._database._taken()
        self._database.connection().execute(f"IF XACT_STATE() = 1 ROLLBACK TRANSACTION [{self._name}]")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self.rollback()


class _Script(SqlServer):
    """Writes down what migrations send. There is nothing to read: a migration that works on rows finds none."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.statements: list[str] = []

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return self.execute_sql(sql, parameters)

    def later(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self.run(sql, parameters)

    def execute_sql(self, sql: str, params: Sequence[Any] | None = None, commit: Any = None) -> Rows:
        if not sql.startswith("SELECT"):
            self.statements.append(guarded(inline(sql, params)))
        return Rows([], 0)

    def last_insert_id(self, cursor: Any, query_type: Any = None) -> None:
        return None
