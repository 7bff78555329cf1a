"""Copying an index from one database to another, table by table; begun again where it was broken off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import peewee

from dicomcloud.errors import Conflict
from dicomcloud.index.database import Database
from dicomcloud.index.models import TABLES

_BATCH: Final = 2000  # rows of one transaction
_MOST_BYTES: Final = 4 << 20  # of their text and bytes


@dataclass(frozen=True, slots=True)
class CopyStep:
    """So many rows of a table have been copied, of so many."""

    table: str
    copied: int
    rows: int


def copy_index(source: Database, target: Database) -> Iterator[CopyStep]:
    """Copy every row of `source` to `target`, both migrated to the same schema. Yields what has been done.

    `source` must not change meanwhile. May be broken off and called again. At the end the numbers of rows are compared.
    Raises Conflict when `target` holds something else, or when the numbers differ.
    """
    _check_target(source, target)
    for model in TABLES:
        table = _Table(model)
        rows = table.count(source)
        for copied in table.copy(source, target):
            yield CopyStep(table.name, copied, rows)
    differ = [table.name for table in map(_Table, TABLES) if table.count(source) != table.count(target)]
    if differ:
        raise Conflict(f"Not everything was copied; the numbers of rows differ in: {', '.join(differ)}")


def _check_target(source: Database, target: Database) -> None:
    """A target that is not empty must be the beginning of a copy of this source."""
    found = target.run("SELECT min(id), max(id) FROM study").fetchone()
    for key in found:
        if key is not None:
            statement = "SELECT uid FROM study WHERE id = ?"
            there, here = (database.run(statement, (key,)).fetchone() for database in (target, source))
            if here != there:
                raise Conflict("The target holds another index. Give an empty database.")


class _Table:
    """A table in the order of its key, by which copying goes on where it was."""

    def __init__(self, model: Any) -> None:
        meta = model._meta
        self.name: str = meta.table_name
        self._columns = [each.column_name for each in meta.sorted_fields]
        self._has_identity = isinstance(meta.primary_key, peewee.AutoField)
        key = meta.primary_key
        if key is False:  # told apart by the columns of its unique index
            names = next(fields for fields, unique in meta.indexes if unique)
            self._keys = [meta.fields[name].column_name for name in names]
        else:
            self._keys = [key.column_name]
        self._is_state = key is not False and key.column_name == "id" and not self._has_identity  # of one row

    def count(self, database: Database) -> int:
        return int(database.run(f"SELECT count(*) FROM {self.name}").fetchone()[0])

    def copy(self, source: Database, target: Database) -> Iterator[int]:
        """Yields how many rows there are after each batch. Single rows of state are written anew every time."""
        if self._is_state:
            with target.write():
                target.run(f"DELETE FROM {self.name}")
                rows = source.run(f"SELECT {', '.join(self._columns)} FROM {self.name}").fetchall()
                target.insert_rows(self.name, self._columns, rows)
            yield len(rows)
            return
        done = self.count(target)
        after = self._last(target) if done else None
        while rows := self._next(source, after):
            with target.write():
                target.insert_rows(self.name, self._columns, rows, keys=self._has_identity)
            done += len(rows)
            after = [rows[-1][self._columns.index(key)] for key in self._keys]
            yield done

    def _last(self, database: Database) -> list[Any]:
        page, values = database.page(1, 0)
        order = ", ".join(f"{key} DESC" for key in self._keys)
        row = database.run(f"SELECT {', '.join(self._keys)} FROM {self.name} ORDER BY {order} {page}", values)
        return list(row.fetchone())

    def _next(self, database: Database, after: Sequence[Any] | None) -> list[Sequence[Any]]:
        condition, values = "", []
        if after is not None:
            ways = []
            for number, key in enumerate(self._keys):
                equal = "".join(f"{earlier} = ? AND " for earlier in self._keys[:number])
                ways.append(f"({equal}{key} > ?)")
                values += [*after[:number], after[number]]
            condition = f" WHERE {' OR '.join(ways)}"
        page, limits = database.page(_BATCH, 0)
        statement = (
            f"SELECT {', '.join(self._columns)} FROM {self.name}{condition} ORDER BY {', '.join(self._keys)} {page}"
        )
        found = database.run(statement, [*values, *limits]).fetchall()
        size, kept = 0, 0
        for kept, row in enumerate(found, 1):  # noqa: B007
            size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if size > _MOST_BYTES:
                break
        return list(found[:kept])
