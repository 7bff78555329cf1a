"""Statements as text. Values are written into it here and not by the driver.

Its own way takes `%s` anywhere for a placeholder and bytes for text where they look like it, and it cuts a statement at
a NUL.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Final


def literal(value: Any) -> str:
    """A value as T-SQL. NUL and lone surrogates, which cannot be sent, become U+FFFD."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return "N'" + _sendable(value).replace("'", "''") + "'"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "0x" + bytes(value).hex()
    if isinstance(value, datetime):
        return f"'{value:%Y-%m-%dT%H:%M:%S.%f}'"
    if isinstance(value, date):
        return f"'{value:%Y-%m-%d}'"
    raise TypeError(f"no T-SQL literal for {type(value).__name__}")


_UNSENDABLE: Final = re.compile("[\0\ud800-\udfff]")


def _sendable(text: str) -> str:
    return _UNSENDABLE.sub("\ufffd", text)


_MOST_PARAMETERS: Final = 2000  # the server takes 2,100


def _type(value: Any) -> str:
    if isinstance(value, int):
        return "BIGINT"
    if isinstance(value, str):
        return "NVARCHAR(4000)" if len(value) <= 2000 else "NVARCHAR(MAX)"  # a character may take two units
    return "VARBINARY(MAX)"


_SPLIT: Final = re.compile(r"('(?:[^']|'')*')|\?")


@lru_cache(maxsize=1024)
def _pieces(sql: str) -> tuple[str, ...]:
    """The text between the `?`; string constants get their N."""
    pieces, current, last = [], "", 0
    for found in _SPLIT.finditer(sql):
        current += sql[last : found.start()]
        last = found.end()
        if found[1] is None:
            pieces.append(current)
            current = ""
        else:
            current += ("" if current.endswith("N") else "N") + found[1]
    return (*pieces, current + sql[last:])


def render(sql: str, parameters: Sequence[Any] = ()) -> str:
    """One statement with `?` for values as the text that is sent. Raises ValueError for another number of values."""
    pieces = _pieces(sql)
    if len(pieces) != len(parameters) + 1:
        raise ValueError(f"{len(pieces) - 1} values expected, {len(parameters)} given")
    if not parameters:
        return pieces[0]
    if len(parameters) > _MOST_PARAMETERS:
        return inline(sql, parameters)
    text, declared, given = pieces[0], [], []
    for number, (value, piece) in enumerate(zip(parameters, pieces[1:], strict=True), 1):
        if value is None:  # has no type of its own
            text += "NULL" + piece
            continue
        text += f"@p{number}{piece}"
        declared.append(f"@p{number} {_type(value)}")
        given.append(f"@p{number}={literal(value)}")
    if not declared:
        return text
    return f"EXEC sp_executesql {literal(text)}, {literal(', '.join(declared))}, {', '.join(given)}"


def inline(sql: str, parameters: Sequence[Any] | None) -> str:
    """One statement with `?` for values as a text with constants: what defines tables takes no parameters."""
    pieces = _pieces(sql)
    if len(pieces) != len(parameters or ()) + 1:
        raise ValueError(f"{len(pieces) - 1} values expected, {len(parameters or ())} given")
    values = [literal(value) for value in parameters or ()]
    return pieces[0] + "".join(value + piece for value, piece in zip(values, pieces[1:], strict=True))


_CREATE_IF_ABSENT: Final = re.compile(r"\ACREATE TABLE IF NOT EXISTS (\[\w+\])")


def guarded(text: str) -> str:
    """Peewee's CREATE TABLE IF NOT EXISTS as T-SQL has it."""
    return _CREATE_IF_ABSENT.sub(r"IF OBJECT_ID(N'\1', N'U') IS NULL CREATE TABLE \1", text)
