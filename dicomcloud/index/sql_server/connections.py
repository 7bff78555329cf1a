"""The URL, the errors, the connections and their pool."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import peewee

from dicomcloud.errors import Unavailable
from dicomcloud.index.database import BUSY_TIMEOUT, ServerAway
from dicomcloud.index.sql_server.certificate import refusal

_IDLE_CHECK: Final = 30.0  # seconds after which a pooled connection is tried before it is used
_IDLE_CLOSE: Final = 600.0
_KEPT: Final = 16  # idle connections of a process
_BREATH: Final = 2.0  # seconds without a further attempt after the server could not be reached
_ROWS_AT_A_TIME: Final = 500  # of a result that is not kept in memory


class Again(Unavailable):
    """The server has undone the transaction (deadlock, snapshot conflict, moved database): do it once more."""


# ---------------------------------------------------------------------------------------------------------------------
# The URL


@dataclass(frozen=True, slots=True)
class Address:
    """Where the database is: mssql://user:password@host:port/database?option=value."""

    host: str
    port: int | None
    instance: str
    user: str
    password: str = field(repr=False)
    database: str
    encryption: str = "request"
    ca: str = ""
    timeout: int = 60  # seconds for a statement
    login_timeout: int = 5

    @property
    def server(self) -> str:
        return f"{self.host}\\{self.instance}" if self.instance else self.host


def parse_url(url: str) -> Address:
    """The parts of a URL. Raises ValueError, with a message without the password.

    `mssql://user:password@host:1433/database`; `host%5CINSTANCE` (or `host\\INSTANCE`) names an instance; a user
    `DOMAIN%5Cname` logs in to Windows, none with Kerberos. Options: encryption=off|request|require, ca=FILE or
    `system`, timeout, login_timeout (seconds).
    """
    shape = "mssql://user:password@host:1433/database"
    parts = urlsplit(url.replace("\\", "%5C"))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"the port of {shape} must be a number") from None
    host, _, instance = unquote(parts.hostname or "").partition("\\")
    database = unquote(parts.path[1:])
    if parts.scheme != "mssql" or not host or not database or "/" in database or parts.fragment:
        raise ValueError(f"expected {shape}")
    unknown = set(options) - {"encryption", "ca", "timeout", "login_timeout"}
    if unknown:
        raise ValueError(
            f"unknown option {', '.join(sorted(unknown))}; there are encryption, ca, timeout, login_timeout"
        )
    encryption = options.get("encryption", "require" if options.get("ca") else "request")
    if encryption not in ("off", "request", "require"):
        raise ValueError("encryption must be off, request or require")
    if options.get("ca") and encryption != "require":
        raise ValueError("ca needs encryption=require")
    try:
        timeouts = {name: int(options[name]) for name in ("timeout", "login_timeout") if name in options}
    except ValueError:
        raise ValueError("timeout and login_timeout are whole seconds") from None
    if any(not 1 <= seconds <= 3600 for seconds in timeouts.values()):
        raise ValueError("timeout and login_timeout must be between 1 and 3600 seconds")
    return Address(
        host=host,
        port=port,
        instance=instance,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=database,
        encryption=encryption,
        ca=options.get("ca", ""),
        **timeouts,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Errors, told apart by their numbers

_CONSTRAINTS: Final = (515, 547, 2601, 2627)
_UNDONE: Final = (1205, 3960, 3961, 41302, 41305, 41325, 41839)
_TRANSIENT: Final = (
    4060, 4221, 10053, 10054, 10060, 10928, 10929, 18401, 40143, 40197, 40501, 40540, 40613, 42108, 42109, 49918, 49919,
    49920,
)  # fmt: skip
_FULL: Final = (1101, 1105, 9002, 40544)
_LOCK_TIMEOUT: Final = 1222
_GONE: Final = (20002, 20003, 20004, 20005, 20006, 20009, 20017, 20019, 20047)  # DB-Library's
_DB_LIBRARY: Final = re.compile(r"\s*(?:Adaptive Server connection failed.*)?DB-Lib error message \d+.*", re.DOTALL)


def _number_and_text(error: Exception) -> tuple[int, str]:
    arguments: Any = error.args
    while arguments and isinstance(arguments[0], tuple):
        arguments = arguments[0]
    number = arguments[0] if arguments and isinstance(arguments[0], int) else 0
    text = arguments[1] if len(arguments) > 1 else str(error)
    return number, text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _raise_as_ours(error: Exception, *, connected: bool) -> NoReturn:
    number, text = _number_and_text(error)
    text = _DB_LIBRARY.sub("", text).strip() or text.strip()
    if not connected or number in _GONE:
        raise ServerAway("The database server has dropped the connection.") from error
    if number in _UNDONE or number in _TRANSIENT:
        raise Again("The index is busy; try again later.", retry_after=5) from error
    if number == _LOCK_TIMEOUT:
        raise Unavailable("The index is busy; try again later.") from error
    if number in _FULL:
        raise Unavailable("There is no room left for the index.") from error
    if number in _CONSTRAINTS:
        raise peewee.IntegrityError(number, text) from error
    raise peewee.DatabaseError(number, text) from error


# ---------------------------------------------------------------------------------------------------------------------
# Connections


class Rows:
    """A result that has been read, as a cursor: what Peewee and the index use of one."""

    def __init__(self, rows: list[tuple[Any, ...]], rowcount: int, description: Any = None, lastrowid: Any = None):
        self._rows = rows
        self._at = 0
        self.rowcount = rowcount
        self.description = description
        self.lastrowid = lastrowid

    def fetchone(self) -> tuple[Any, ...] | None:
        if self._at >= len(self._rows):
            return None
        self._at += 1
        return self._rows[self._at - 1]

    def fetchall(self) -> list[tuple[Any, ...]]:
        rest, self._at = self._rows[self._at :], len(self._rows)
        return rest

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())

    def close(self) -> None:
        self._rows = []


class Connection:
    """One connection of the driver, in autocommit mode: transactions are statements."""

    def __init__(self, address: Address) -> None:
        import pymssql

        self._driver = pymssql
        _use_authority(address)
        options: dict[str, Any] = {"port": str(address.port)} if address.port else {}
        if address.user:
            options |= {"user": address.user, "password": address.password}
        self._raw = pymssql.connect(
            server=address.server,
            database=address.database,
            timeout=address.timeout,
            login_timeout=address.login_timeout,
            encryption=address.encryption,
            appname="DICOMcloud",
            charset="UTF-8",
            autocommit=True,
            use_datetime2=True,
            conn_properties=_SESSION,
            **options,
        )
        self.used_at = time.monotonic()
        self.generation = 0

    @property
    def alive(self) -> bool:
        return bool(self._raw._conn.connected)

    def execute(self, text: str) -> Rows:
        """The last result of a batch, read to its end. Errors may come while it is read, too."""
        self.used_at = time.monotonic()
        rows: list[tuple[Any, ...]] = []
        count, description = -1, None
        try:
            cursor = self._raw.cursor()
            cursor.execute(text)
            while True:
                if cursor.description:
                    description, rows = cursor.description, cursor.fetchall()
                else:
                    count = max(count, cursor.rowcount)
                if not cursor.nextset():
                    break
        except self._driver.Error as error:
            _raise_as_ours(error, connected=self.alive)
        return Rows(rows, count, description)

    def stream(self, text: str) -> Iterator[tuple[Any, ...]]:
        """The rows of one SELECT as they come. The connection can do nothing else meanwhile."""
        try:
            cursor = self._raw.cursor()
            cursor.execute(text)
            while rows := cursor.fetchmany(_ROWS_AT_A_TIME):
                self.used_at = time.monotonic()
                yield from rows
        except self._driver.Error as error:
            _raise_as_ours(error, connected=self.alive)

    def close(self) -> None:
        try:
            self._raw.close()
        except Exception:  # it was dead
            return


# What filtered indexes need; XACT_ABORT off, or the first refused row ends the transaction.
_SESSION: Final = (
    "SET ARITHABORT ON; SET CONCAT_NULL_YIELDS_NULL ON; SET ANSI_NULLS ON; SET ANSI_NULL_DFLT_ON ON;"
    " SET ANSI_PADDING ON; SET ANSI_WARNINGS ON; SET QUOTED_IDENTIFIER ON; SET NUMERIC_ROUNDABORT OFF;"
    f" SET XACT_ABORT OFF; SET TEXTSIZE 2147483647; SET LOCK_TIMEOUT {BUSY_TIMEOUT * 1000};"
    " SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
)


_authority_lock = threading.Lock()
_authorities: dict[str, str] = {}


def _use_authority(address: Address) -> None:
    """Have FreeTDS verify the server's certificate: it takes the file from a configuration file only."""
    with _authority_lock:
        if not address.ca:
            if os.environ.get("FREETDSCONF") in _authorities.values():  # another address's, not the administrator's
                del os.environ["FREETDSCONF"]
            return
        if address.ca not in _authorities:
            ca = address.ca if address.ca == "system" else str(Path(address.ca).resolve())
            if ca != "system" and not Path(ca).is_file():
                raise Unavailable(f"The file {ca} with the certificate authority of the database server is not there.")
            handle, path = tempfile.mkstemp(prefix="dicomcloud-freetds-", suffix=".conf")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(f"[global]\n\tca file = {ca}\n\tcheck certificate hostname = yes\n")
            _authorities[address.ca] = path
        os.environ["FREETDSCONF"] = _authorities[address.ca]


class Pool:
    """The idle connections of a process. A connection belongs to one thread while it is out.

    When one has turned out to be broken, none that was opened before is used again: a server that was started anew
    has dropped them all.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._generation = 0
        self._away_until = 0.0
        self._away_because = ""
        self._waiting_helps = True
        _pools.add(self)

    def take(self) -> Connection:
        """A connection that works. Raises ServerAway."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._open()
            idle = time.monotonic() - connection.used_at
            if idle < _IDLE_CHECK:
                return connection
            if idle < _IDLE_CLOSE:
                try:
                    connection.execute("SELECT 1")
                    return connection
                except (Unavailable, peewee.PeeweeException):
                    self.drop_all()
            connection.close()

    def drop_all(self) -> None:
        """Use none of the present connections again; those that are out are closed when they come back."""
        with self._lock:
            self._generation += 1
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def check(self) -> None:
        """Open a connection, however many there are: one that is there may wait long for a server that is silent.

        Raises ServerAway, after `login_timeout` at the latest.
        """
        try:
            self.give_back(self._open())
        except ServerAway:
            self.drop_all()
            raise

    def _open(self) -> Connection:
        generation = self._generation
        if time.monotonic() < self._away_until:
            raise self._away()
        try:
            connection = Connection(self._address)
        except Unavailable:
            raise
        except Exception as error:
            # The number of a failed connection may be that of an earlier error: the text is right.
            text = _number_and_text(error)[1]
            self._waiting_helps = True
            if "Cannot open database" in text or 'database "' in text:
                message = f"The database {self._address.database!r} cannot be opened."
            elif ("18456" in text or "Login failed" in text) and "Server is in" not in text:  # as when it starts
                message = "The database server refuses the login."
                self._waiting_helps = False
            elif self._address.encryption == "require" and (refused := refusal(self._address)):
                message = refused
                self._waiting_helps = False
            else:
                message = "The database server cannot be reached."
            self._away_because, self._away_until = message, time.monotonic() + _BREATH
            raise self._away() from error
        self._away_until = 0.0
        connection.generation = generation
        return connection

    def _away(self) -> ServerAway:
        error = ServerAway(self._away_because)
        error.waiting_helps = self._waiting_helps
        return error

    def give_back(self, connection: Connection) -> None:
        if connection.alive:
            with self._lock:
                if len(self._idle) < _KEPT and connection.generation == self._generation:
                    self._idle.append(connection)
                    return
        connection.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def leave_to_parent(self) -> None:
        """In a forked child: the connections are the parent's, to be neither used nor closed here."""
        _left_alone.append(self._idle)
        self._idle, self._lock = [], threading.Lock()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_left_alone: list[list[Connection]] = []


def _after_fork_in_child() -> None:
    for pool in _pools:
        pool.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
