"""Peewee for migrations: its nodes as T-SQL, its schema operations."""

from __future__ import annotations

import re
from typing import Any, Final

import peewee
from playhouse.migrate import SchemaMigrator, operation

from dicomcloud.index.sql_server.statements import literal

COLLATION: Final = "Latin1_General_BIN2"


class Context(peewee.Context):
    """Peewee's nodes as T-SQL."""

    def sql(self, obj: Any) -> Any:
        if isinstance(obj, peewee.SQL) and re.match(r"NVARCHAR|NCHAR", obj.sql):
            return self.literal(f"{obj.sql} COLLATE {COLLATION}")
        if isinstance(obj, (peewee.Select, peewee.CompoundSelectQuery)):
            query: Any = obj
            if query._limit is not None or query._offset is not None:
                return self._page(query)
        return super().sql(obj)

    def _page(self, query: Any) -> Any:
        limit, offset = query._limit, query._offset or 0
        whole = query.clone()
        whole._limit = whole._offset = None
        if not whole._order_by:
            order = "1" if isinstance(whole, peewee.CompoundSelectQuery) or whole._distinct else "(SELECT NULL)"
            whole._order_by = (peewee.SQL(order),)
        nested = self.scope != peewee.SCOPE_NORMAL or self.parentheses
        if nested:
            self.literal("(")
        with self(parentheses=False, subquery=False):
            super().sql(whole)
            self.literal(f" OFFSET {int(offset)} ROWS")
            if limit is not None:
                self.literal(f" FETCH NEXT {max(int(limit), 1)} ROWS ONLY")
        if nested:
            self.literal(")")
        return self


class Migrator(SchemaMigrator):
    """Peewee's schema operations as T-SQL: those that the migrations may use on both databases."""

    def _literal(self, text: str) -> Any:
        return self.make_context().literal(text)

    @operation
    def alter_add_column(self, table: str, column_name: str, field: Any, allow_not_null: bool = False) -> Any:
        null, field.null = field.null, field.null or not allow_not_null
        field.name = field.column_name = column_name
        context = self._alter_table(self.make_context(), table).literal(" ADD ").sql(field.ddl(self.make_context()))
        field.null = null
        if isinstance(field, peewee.ForeignKeyField):
            self.add_inline_fk_sql(context, field)
        return context

    def _column_type(self, table: str, column: str) -> str:
        row = self.database.run(
            "SELECT DATA_TYPE, CHARACTER_MAXIMUM_LENGTH FROM INFORMATION_SCHEMA.COLUMNS"
            " WHERE TABLE_NAME = ? AND COLUMN_NAME = ? AND TABLE_SCHEMA = SCHEMA_NAME()",
            (table, column),
        ).fetchone()
        if row is None:
            raise ValueError(f"{table} has no column {column}")
        kind = row[0].upper()
        if kind in ("NVARCHAR", "NCHAR", "VARBINARY"):
            kind += f"({'MAX' if row[1] in (-1, None) else row[1]})"
            kind += "" if kind.startswith("VARBINARY") else f" COLLATE {COLLATION}"
        return str(kind)

    @operation
    def add_not_null(self, table: str, column: str) -> Any:
        kind = self._column_type(table, column)
        return self._alter_column(self.make_context(), table, column).literal(f" {kind} NOT NULL")

    @operation
    def drop_not_null(self, table: str, column: str) -> Any:
        kind = self._column_type(table, column)
        return self._alter_column(self.make_context(), table, column).literal(f" {kind} NULL")

    @operation
    def drop_column(self, table: str, column_name: str, cascade: bool = True) -> Any:
        keys = self.database.get_foreign_keys(table)
        steps = [self.drop_constraint(table, key.name) for key in keys if key.column == column_name]
        context = self._alter_table(self.make_context(), table).literal(" DROP COLUMN ")
        return [*steps, context.sql(peewee.Entity(column_name))]

    @operation
    def rename_column(self, table: str, old_name: str, new_name: str) -> Any:
        return self._literal(
            f"EXEC sp_rename {literal(f'{table}.{old_name}')}, {literal(new_name)}, {literal('COLUMN')}"
        )

    @operation
    def rename_table(self, old_name: str, new_name: str) -> Any:
        return self._literal(f"EXEC sp_rename {literal(old_name)}, {literal(new_name)}")

    @operation
    def drop_index(self, table: str, index_name: str) -> Any:
        return self._literal(f"DROP INDEX [{index_name}] ON [{table}]")

    @operation
    def alter_column_type(self, table: str, column: str, field: Any, cast: Any = None) -> Any:
        context = self._alter_column(self.make_context(), table, column).literal(" ")
        context.sql(field.ddl_datatype(context))
        return context.literal(" NULL" if field.null else " NOT NULL")
