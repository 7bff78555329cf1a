"""URL → database, connections, migrations. What differs between databases is in the classes of this file and of
`sql_server.py`.

The rest of the index writes plain SQL with `?` for values, such as both databases understand, and asks the database
object for what differs: see `Database`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sqlite3
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

import orjson
import peewee
from playhouse import migrations
from playhouse.migrate import SchemaMigrator, SqliteMigrator

from dicomcloud.diagnosis import Diagnosis, fault, good
from dicomcloud.dicom.attributes import json_key
from dicomcloud.dicom.matching import Kind, Match, decode_match, matches, name_test
from dicomcloud.errors import Unavailable
from dicomcloud.index import turns

logger = logging.getLogger(__name__)

_LOCAL_DISK: Final = "The data directory must lie on a local disk, not on a network share."
BUSY_TIMEOUT: Final = 30  # seconds that a writer waits for another one


class NewerDatabase(Unavailable):
    """The database was written by a newer version of this program."""


class MissingDatabase(Unavailable):
    """The file of the database is not there (any more)."""


class ServerAway(Unavailable):
    """The database server cannot be reached, or has dropped the connection."""

    waiting_helps = True  # False: it is there, and refuses the login

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after=5)


class DamagedDatabase(Unavailable):
    """The file is no database, or no whole one any more."""


_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_AWAY: Final = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_PROTOCOL}
)


def explain(error: BaseException | None) -> Unavailable | None:
    """What an exception of the database means, where it is the database's state and no fault of this program."""
    while isinstance(error, peewee.PeeweeException):
        error = getattr(error, "orig", None) or error.__context__  # what it wraps
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _BUSY:
        return Unavailable("The index is busy; try again later.")
    if code == sqlite3.SQLITE_FULL:
        return Unavailable("There is no room left for the index.", retry_after=600)
    if code == sqlite3.SQLITE_READONLY:
        return Unavailable("The index cannot be written; is its disk read-only?", retry_after=600)
    if code in _AWAY:
        return Unavailable("The index cannot be read or written; is its disk there, and may this user use it?")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DamagedDatabase("The index is damaged. Stop the server, then restore a backup or run `reindex`.")
    return None


def _dicom_matches(attributes: str | bytes, match: str) -> bool:
    """SQL function: whether stored DICOM JSON (compressed if it is a blob) fulfils an encoded Match."""
    text = zlib.decompress(attributes) if isinstance(attributes, bytes) else attributes
    return matches(decode_match(match), orjson.loads(text))


@lru_cache(maxsize=64)
def _name_test(match: str) -> Callable[[tuple[str, str, str]], bool]:
    return name_test(decode_match(match))


def _name_matches(alphabetic: str, other: str, match: str) -> bool:
    """SQL function: whether a name, as it lies in its two columns, fulfils an encoded Match."""
    return _name_test(match)(groups_of_columns(alphabetic, other))


def groups_of_columns(alphabetic: str, other: str) -> tuple[str, str, str]:
    """The alphabetic, ideographic and phonetic group of a name, as it lies in its two columns."""
    ideographic, _, phonetic = other.partition("=")
    return alphabetic, ideographic, phonetic


class Cursor(Protocol):
    """What `run` returns."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...


Work = TypeVar("Work")


class Database(peewee.Database):
    """What every database does for the index."""

    kind = ""
    batch = ("", ";")  # how a script of this database begins, and what ends a statement in it

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Execute one statement; read the cursor to its end before the next one. Raises Unavailable."""
        raise NotImplementedError

    def later(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Execute one statement of the transaction under way, of which nobody needs an answer.

        It is done before the next `run` and before the commit; a server gets it together with what comes then, so that
        it costs no round trip of its own.
        """
        self.run(sql, parameters)

    def stream(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Sequence[Any]]:
        """The rows of a SELECT one by one; other statements may run meanwhile."""
        raise NotImplementedError

    def write(self) -> AbstractContextManager[Any]:
        """A transaction of the only writer, committed at the end of the block. Raises Unavailable."""
        raise NotImplementedError

    def repeated(self, work: Callable[[], Work]) -> Work:
        """`work()`, and again from its start where the server has undone it (deadlock, lost connection)."""
        return work()

    def check(self) -> None:
        """See whether the database answers, in a few seconds. Raises Unavailable."""
        self.run("SELECT revision FROM archive_state").fetchone()

    def insert(self, sql: str, parameters: Sequence[Any]) -> int:
        """Execute an `INSERT INTO … VALUES …` of one row with a key `id`; the key the database has given it."""
        raise NotImplementedError

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, keys: bool = False
    ) -> None:
        """Insert many rows; with `keys`, keys that the database otherwise gives itself are among the columns.

        As `later`: an error may come with a statement that follows.
        """
        raise NotImplementedError

    def page(self, limit: int, offset: int) -> tuple[str, list[Any]]:
        """The end of a SELECT with ORDER BY that returns `limit` rows (1 or more) from `offset` on."""
        raise NotImplementedError

    def first(self, count: int, columns: str, rest: str) -> str:
        """A SELECT of no more than `count` rows, whichever; `rest` begins with FROM."""
        raise NotImplementedError

    def without_index(self, column: str) -> str:
        """The column in a condition that is not to be looked up in an index."""
        return column

    def like(self, column: str) -> str:
        """A condition with one value, made by `like_pattern`, that compares as binary."""
        raise NotImplementedError

    def like_pattern(self, pattern: str) -> str:
        """A DICOM wildcard pattern (`*`, `?`) as a LIKE pattern."""
        raise NotImplementedError

    def stored_matches(self, column: str, match: Match, *, compressed: bool = False) -> tuple[str, list[Any]] | None:
        """A condition that the DICOM JSON in `column` fulfils `match`; None where the database cannot tell."""
        raise NotImplementedError

    def name_matches(self, column: str, match: str) -> tuple[str, list[Any]] | None:
        """The same, of a name in `column` and its other groups in `column`_other, for an encoded match."""
        raise NotImplementedError

    def mentions(self, column: str, text: str) -> tuple[str, list[Any]]:
        """A condition that the column has the text somewhere."""
        raise NotImplementedError

    def append_only(self, table: str) -> None:
        """From now on rows of this table can be added, but neither changed nor deleted."""
        raise NotImplementedError

    def not_append_only(self, table: str) -> None:
        """Undo `append_only`; in a transaction that does it again at its end."""
        raise NotImplementedError

    def migrator(self) -> SchemaMigrator:
        """Peewee's schema operations for this database."""
        raise NotImplementedError

    def migrating(self) -> AbstractContextManager[Any]:
        """A transaction for migrations, of which one process at a time is in."""
        raise NotImplementedError

    def snapshot(self, path: Path) -> None:
        """Copy the database as it is at one moment into a new SQLite file; writers are not kept waiting."""
        raise NotImplementedError

    def put_aside(self) -> Path | None:
        """Rename the files of the database, so that the next connection makes a new one; where the old one is now."""
        raise NotImplementedError

    def create(self) -> None:
        """Make the database where that is a file that is not there yet. No other method does."""

    def script_of(self, work: Callable[[Database], object]) -> list[str]:
        """The statements with which `work(database)` would change a database, that is not touched."""
        raise NotImplementedError

    def release(self) -> None:
        """Let others have the connection that Peewee has opened for this thread, where connections are shared."""

    def diagnose(self) -> Iterator[Diagnosis]:
        """What there is to say of the state of the database, for `doctor`."""
        raise NotImplementedError


class _HasDatabase(Protocol):
    _database: Database


Owner = TypeVar("Owner", bound=_HasDatabase)
Given = ParamSpec("Given")


def unit_of_work(method: Callable[Concatenate[Owner, Given], Work]) -> Callable[Concatenate[Owner, Given], Work]:
    """A method that reads and then writes in one transaction: done again from its start where the server undid it."""

    @wraps(method)
    def repeated(self: Owner, /, *args: Given.args, **kwargs: Given.kwargs) -> Work:
        return self._database.repeated(lambda: method(self, *args, **kwargs))

    return repeated


class CoveringIndex(peewee.ModelIndex):
    """An index with columns that are there to be read and not to be searched by.

    On SQL Server, whose keys are bounded (1,700 bytes), they are INCLUDEd; on SQLite they follow the others.
    """

    def __init__(self, model: Any, fields: Sequence[Any], include: Sequence[Any], **options: Any) -> None:
        super().__init__(model, [*fields, *include], **options)
        self._keys, self._include = list(fields), list(include)

    def __sql__(self, ctx: Any) -> Any:
        if not ctx.state.include_clause:
            return super().__sql__(ctx)
        bare: Any = self.clone()
        bare._expressions, bare._where, bare._include = self._keys, None, []
        peewee.ModelIndex.__sql__(bare, ctx)
        with ctx.scope_values(subquery=True):
            if self._include:
                ctx.literal(" INCLUDE ").sql(peewee.EnclosedNodeList(self._include))
            where: Any = vars(self).get("_where")
            if where is not None:
                ctx.literal(" WHERE ").sql(where)
        return ctx


class SQLite(peewee.SqliteDatabase, Database):
    """SQLite: one open connection per thread, none shared with a forked process.

    A commit is on the disk when it returns (WAL, synchronous=FULL). Several processes may use one file. With `frozen`,
    the file is one that nobody writes to, such as a `snapshot`.
    """

    kind = "SQLite"

    def __init__(self, path: str, *, frozen: bool = False) -> None:
        super().__init__(
            f"{Path(path).absolute().as_uri()}?immutable=1" if frozen else path,
            uri=frozen,
            timeout=BUSY_TIMEOUT,
            cached_statements=256,
            factory=turns.Connection,
            pragmas=(("case_sensitive_like", 1),)
            if frozen
            else (
                ("journal_mode", "wal"),
                ("synchronous", "full"),
                ("foreign_keys", 1),
                ("case_sensitive_like", 1),  # LIKE compares as binary: columns hold normalised text
                ("cache_size", -16_000),
                ("mmap_size", 1 << 28),
                ("wal_autocheckpoint", 4000),
                ("journal_size_limit", 1 << 26),
                ("temp_store", "memory"),
            ),
        )
        self._frozen = frozen
        self._connections: weakref.WeakSet[turns.Connection] = weakref.WeakSet()
        self._scratch: tuple[SQLite, TemporaryDirectory[str]] | None = None
        self.register_function(_dicom_matches, "dicom_matches", 2, deterministic=True)
        self.register_function(_name_matches, "name_matches", 3, deterministic=True)
        if hasattr(os, "register_at_fork"):
            _open_databases.add(self)

    def create(self) -> None:
        # No connection makes the file: an index that is away must not become a new one.
        path = Path(self.database)
        if not self._frozen and not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch()

    def _connect(self) -> Any:
        if not self._frozen and not os.path.exists(self.database):
            raise MissingDatabase("The index is not there; is its disk mounted?")
        return super()._connect()  # type: ignore[misc]  # not in Peewee's stubs

    def _add_conn_hooks(self, conn: turns.Connection) -> None:
        super()._add_conn_hooks(conn)  # type: ignore[misc]  # not in Peewee's stubs
        self._connections.add(conn)

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute one statement on this thread's connection; read the cursor to its end before the next one."""
        return self._thread_connection().execute(sql, parameters)

    def _thread_connection(self) -> turns.Connection:
        return cast("turns.Connection", self.connection())

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its start, committed at the end of the block.

        Raises Unavailable when the lock is not to be had in 30 s, or when the database cannot be written.
        """
        try:
            connection = self._thread_connection()
            try:
                turns.begin(connection, self.database, self.timeout)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, peewee.PeeweeException) as error:
            if explained := explain(error):
                raise explained from error
            raise

    def snapshot(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as target:
            self._thread_connection().backup(target)
            target.execute("PRAGMA journal_mode = delete")  # one file, readable where nothing can be written

    def put_aside(self) -> Path | None:
        self.close()
        path = Path(self.database)
        target = path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S}.damaged")
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.replace(f"{path}{suffix}", f"{target}{suffix}")
        try:
            os.replace(path, target)
        except FileNotFoundError:
            return None
        return target

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, keys: bool = False
    ) -> None:
        if not rows:
            return
        values = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"
        self._thread_connection().executemany(statement, rows)

    def script_of(self, work: Callable[[Database], object]) -> list[str]:
        seen: list[str] = []
        if self._scratch is None:
            folder = TemporaryDirectory(prefix="dicomcloud-schema-", ignore_cleanup_errors=True)
            path = Path(folder.name, "index.sqlite3")
            path.touch()
            self._scratch = SQLite(str(path)), folder
        scratch = self._scratch[0]
        scratch._thread_connection().set_trace_callback(seen.append)
        work(scratch)
        scratch._thread_connection().set_trace_callback(None)
        return [statement for statement in seen if not statement.startswith(("SELECT", "PRAGMA"))]

    def stream(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Sequence[Any]]:
        return iter(self.run(sql, parameters))

    def migrating(self) -> AbstractContextManager[Any]:
        return self.atomic("IMMEDIATE")

    def migrator(self) -> SchemaMigrator:
        return SqliteMigrator(self)

    def insert(self, sql: str, parameters: Sequence[Any]) -> int:
        return self.run(sql, parameters).lastrowid or 0

    def append_only(self, table: str) -> None:
        for action in ("UPDATE", "DELETE"):
            self.run(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )

    def not_append_only(self, table: str) -> None:
        for action in ("update", "delete"):
            self.run(f"DROP TRIGGER {table}_no_{action}")

    def page(self, limit: int, offset: int) -> tuple[str, list[Any]]:
        return "LIMIT ? OFFSET ?", [limit, offset]

    def first(self, count: int, columns: str, rest: str) -> str:
        return f"SELECT {columns} {rest} LIMIT {count}"

    def without_index(self, column: str) -> str:
        return f"+{column}"

    def like(self, column: str) -> str:
        return f"{column} LIKE ? ESCAPE '\\'"

    def like_pattern(self, pattern: str) -> str:
        for special in "\\%_":
            pattern = pattern.replace(special, "\\" + special)
        return pattern.replace("*", "%").replace("?", "_")

    def stored_matches(self, column: str, match: Match, *, compressed: bool = False) -> tuple[str, list[Any]]:
        condition, values = f"dicom_matches({column}, ?)", [match.encode()]
        if compressed or match.kind is Kind.EMPTY:
            return condition, values
        mentions, text = self.mentions(column, f'"{json_key(match.tag)}"')
        return f"({mentions} AND {condition})", [*text, *values]

    def name_matches(self, column: str, match: str) -> tuple[str, list[Any]] | None:
        return f"name_matches({column}, {column}_other, ?)", [match]

    def mentions(self, column: str, text: str) -> tuple[str, list[Any]]:
        return f"instr({column}, ?) > 0", [text]

    def diagnose(self) -> Iterator[Diagnosis]:
        yield good("database", f"SQLite {sqlite3.sqlite_version}, {self.database}")
        synchronous = self.pragma("synchronous")
        if self.pragma("journal_mode") != "wal":
            yield fault("journal", "no write-ahead log: readers and writers wait for each other", _LOCAL_DISK)
        elif synchronous != 2:
            yield fault("journal", f"synchronous is {synchronous}: what was confirmed may be lost in a power failure")
        else:
            yield good("journal", "write-ahead log, every commit synced")
        faults = [row[0] for row in self.run("PRAGMA quick_check(5)").fetchall() if row[0] != "ok"]
        if faults:
            yield fault("contents", "; ".join(faults), "Restore a backup, or build the index anew with `reindex`.")
        else:
            yield good("contents", "quick_check found nothing wrong")


def open_database(url: str) -> Database:
    """The database of a URL. Opens no connection. ValueError for any other URL.

    `sqlite:///relative/path`, `sqlite:////absolute/path` (`sqlite:///C:/path` on Windows), or
    `mssql://user:password@host:1433/database` (`sql_server.parse_url`).
    """
    if url.startswith("mssql://"):
        from dicomcloud.index.sql_server import SqlServer  # its driver is loaded where it is used only

        return SqlServer(url)
    scheme, separator, path = url.partition(":///")
    if scheme != "sqlite" or not separator or not path or path.startswith(":"):
        raise ValueError(
            f"{url!r} is not the URL of a database this version knows: sqlite:///path or mssql://user:password@host/name"
        )
    return SQLite(path)


def open_snapshot(path: Path) -> Database:
    """The database in a file that nobody writes to; the folder may be read-only."""
    return SQLite(str(path), frozen=True)


# ---------------------------------------------------------------------------------------------------------------------
# Forked processes. A SQLite connection must be neither used nor closed in a child: closing it may write to or remove
# the write-ahead log the parent is using. Connections of the parent's other threads, too, die with their threads in the
# child, so all are held over the fork and then left alone for good.

_open_databases: weakref.WeakSet[SQLite] = weakref.WeakSet()
_held: list[turns.Connection] = []


def _before_fork() -> None:
    _held.extend(connection for database in _open_databases for connection in database._connections)


def _after_fork_in_parent() -> None:
    _held.clear()


def _after_fork_in_child() -> None:
    for connection in _held:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    _held.clear()
    for database in _open_databases:
        database._connections.clear()
        database.dispose()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


# ---------------------------------------------------------------------------------------------------------------------
# Migrations: numbered files with up(migrator, database) and down(migrator, database)


def pending(database: Database, folder: Path) -> list[str]:
    """The names of the migrations in `folder` that the database has not seen, in order. Raises NewerDatabase."""
    try:
        return _pending(_runner(database, folder))
    finally:
        database.release()


def migrate(database: Database, folder: Path) -> list[str]:
    """Apply the pending migrations, all or none; their names. Of several processes one does it, the others wait.

    Raises NewerDatabase when the database knows a migration that `folder` has not.
    """
    runner = _runner(database, folder)
    try:
        if not _pending(runner):
            return []
        with database.migrating():
            names: list[str] = runner.up() if _pending(runner) else []
    finally:
        database.release()
    for name in names:
        logger.info("applied migration %s", name)
    return names


def revert(database: Database, folder: Path, target: str | None = None) -> list[str]:
    """Undo the last migration, or all back to and with `target`; their names. Data of dropped columns are lost."""
    runner = _runner(database, folder)
    try:
        with database.migrating():
            names: list[str] = runner.down(target)
    finally:
        database.release()
    return names


def migration_script(database: Database, folder: Path, *, every: bool = False) -> str:
    """The pending migrations, or all, as SQL for somebody else to run; the database is asked which, and not changed."""
    runner = _runner(database, folder)
    names = [migration.name for migration in runner.migrations()] if every else pending(database, folder)
    lines = [f"-- DICOMcloud: schema of the index, for {database.kind}"]
    begin, end = database.batch
    if begin:
        lines.append(begin)
    if names:
        lines += [f"{statement}{end}" for statement in database.script_of(lambda script: _history(script, folder))]
    for migration in runner.migrations():
        module = migration.load()

        def step(script: Database, module: Any = module, name: str = migration.name) -> None:
            module.up(script.migrator(), script)
            _runner(script, folder).History.create(name=name)

        statements = database.script_of(step)  # of those that are not wanted too: the next ones build on them
        if migration.name in names:
            lines += ["", f"-- {migration.name}", *(f"{statement}{end}" for statement in statements)]
    return "\n".join(lines) + "\n"


def _history(script: Database, folder: Path) -> None:
    _runner(script, folder).History.create_table()


class _Runner(migrations.Runner):
    """Peewee's runner, which knows no migrator but those for its own databases."""

    def __init__(self, database: Database, directory: str) -> None:
        self.database, self.directory = database, directory
        self.table_name, self.schema = "schema_migration", None
        self.migrator = database.migrator()

        class History(database.Model):  # type: ignore[name-defined]
            name = peewee.CharField(unique=True)
            applied = peewee.DateTimeField(default=datetime.now)

            class Meta:
                legacy_table_names = False
                table_name = "schema_migration"

        self.History = History


def _runner(database: Database, folder: Path) -> Any:
    database.create()
    return _Runner(database, str(folder))


def _pending(runner: Any) -> list[str]:
    status = runner.status()
    unknown = [migration.name for migration in status if migration.path is None]
    if unknown:
        raise NewerDatabase(
            f"The database has been migrated by a newer version of DICOMcloud ({', '.join(unknown)}). "
            "Start that version, or restore a backup from before the upgrade."
        )
    return [migration.name for migration in status if not migration.applied]
