"""What a report is written to: values as they are shown, and the methods of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

#: The longest document in bytes; a longer one ends early and says so at its top.
MAX_REPORT_LENGTH: Final = 8 << 20
MAX_DEPTH: Final = 64  # of content items and of sequences
MAX_ITEMS: Final = 200_000  # content items, or attributes of other objects
CUT: Final = "This document is longer than can be shown here. What follows its last line is missing."
# What is no text in HTML: control characters (line feed and tab apart), surrogates, U+FFFE, U+FFFF.
_NO_TEXT: Final = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Full(Exception):
    """The document has reached its longest length."""


class Value(NamedTuple):
    """One value as it is shown."""

    text: str
    kind: str = "plain"  # plain, block (line ends kept), number, time, uid, muted
    detail: str = ""  # unit of a number; else what is added in small print
    title: str = ""  # what the browser shows when one points at it
    href: str = ""
    language: str = ""
    anchor: str = ""


class Page(Protocol):
    """Where a report is written. Sections nest; rows are between begin_rows and end_rows, and may hold more rows."""

    def begin_document(self, kind: str, title: str, badges: Sequence[tuple[str, str]]) -> None: ...
    def facts(self, label: str, rows: Sequence[tuple[str, Sequence[Value]]]) -> None: ...
    def begin_content(self, language: str | None) -> None: ...
    def end_content(self) -> None: ...
    def begin_section(self, title: str, anchor: str, language: str) -> None: ...
    def end_section(self) -> None: ...
    def begin_rows(self) -> None: ...
    def end_rows(self) -> None: ...
    def begin_row(self, relation: str, label: str, values: Sequence[Value], anchor: str, muted: bool) -> None: ...
    def end_row(self) -> None: ...
    def paragraph(self, values: Sequence[Value]) -> None: ...
    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Sequence[Value]]]) -> None: ...
    def end_document(self, rows: Sequence[tuple[str, Sequence[Value]]]) -> None: ...
    def cut(self) -> None: ...
    def document(self) -> bytes: ...


def clean(value: str) -> str:
    return _NO_TEXT.sub("\ufffd", value.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(value: str) -> str:
    return " ".join(clean(value).split())


def as_text(value: Value) -> str:
    if value.kind == "number":
        return clean(" ".join(filter(None, (value.text, value.detail))))
    return clean(f"{value.text} ({value.detail})" if value.detail else value.text)
