"""The attributes of an instance of any class as rows and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..attributes import Level, level_of
from .document import Document
from .page import MAX_DEPTH, Value
from .reading import (
    Attributes,
    attribute_name,
    binary_of,
    coded,
    is_code,
    is_filled,
    listing,
    moment,
    number_text,
    uid_value,
)

_MAX_TABLE_COLUMNS: Final = 8
# Character set, SOP class, own UIDs: what the table of attributes need not repeat.
_IN_THE_FOOT: Final = frozenset({"00080005", "00080016", "00080018", "0020000D", "0020000E"})


class AttributeTable:
    """Writes attributes by their names."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._page = document.page

    def write(self) -> None:
        titles = {Level.INSTANCE: "Content", Level.SERIES: "Series and equipment", Level.STUDY: "Patient and study"}
        self._page.begin_content(None)
        for level, title in titles.items():
            part = {
                key: value
                for key, value in self._document.attributes.items()
                if level_of(int(key, 16)) is level and key not in _IN_THE_FOOT and is_filled(value)
            }
            if part:
                self._page.begin_section(title, "", "")
                self.dataset(part, 0)
                self._page.end_section()
        self._page.end_content()

    def dataset(self, attributes: Attributes, depth: int) -> None:
        if depth >= MAX_DEPTH:
            self._page.paragraph([Value("What lies deeper than this is not shown.", "muted")])
            return
        self._page.begin_rows()
        for key, element in attributes.items():
            tag = int(key, 16)
            if not isinstance(element, Mapping) or tag & 0xFFFF == 0:
                continue
            self._document.count()
            label = attribute_name(tag)
            if element.get("vr") != "SQ":
                if values := self._attribute_values(element):
                    self._page.begin_row("", label, values, "", False)
                    self._page.end_row()
                continue
            items = [item if isinstance(item, Mapping) else {} for item in element.get("Value", ())]
            if not items:
                continue
            single_code = len(items) == 1 and is_code(items[0])
            label = f"{label} ({len(items)} items)" if len(items) > 1 else label
            self._page.begin_row("", label, coded(items[0]) if single_code else [], "", False)
            if not single_code:
                self._sequence(items, depth + 1)
            self._page.end_row()
        self._page.end_rows()

    def _sequence(self, items: Sequence[Attributes], depth: int) -> None:
        if reference := [item for item in items if "00081155" in item and len(item) <= 3]:
            self._page.begin_rows()
            for item in reference:
                self._page.begin_row("", "Refers to", [self._document.reference(item)], "", False)
                self._page.end_row()
            self._page.end_rows()
            items = [item for item in items if item not in reference]
        columns = sorted({key for item in items for key in item})
        flat = all(element.get("vr") != "SQ" for item in items for element in item.values())
        if len(items) > 1 and flat and len(columns) <= _MAX_TABLE_COLUMNS:
            self._page.table(
                [attribute_name(int(key, 16)) for key in columns],
                ([self._attribute_values(item.get(key, {})) for key in columns] for item in items),
            )
            return
        for number, item in enumerate(items, 1):
            if is_code(item):
                self._page.paragraph(coded(item))
                continue
            if len(items) > 1:
                self._page.begin_section(f"Item {number}", "", "")
            self.dataset(item, depth)
            if len(items) > 1:
                self._page.end_section()

    def _attribute_values(self, element: Mapping[str, Any]) -> list[Value]:
        vr = element.get("vr", "UN")
        if "BulkDataURI" in element:
            return [Value("bulk data", "muted")]
        if "InlineBinary" in element:
            return [Value(f"{len(binary_of(element) or b''):,} bytes", "muted")]
        raw = [value for value in element.get("Value", ()) if value is not None]
        if vr == "PN":
            return [shown for name in raw if (shown := self._document.name(name)) is not None]
        if vr in ("DA", "TM", "DT"):
            return [Value(moment(str(value)), "time") for value in raw]
        if vr == "UI":
            return [uid_value(str(value)) for value in raw]
        texts = [number_text(value) for value in raw]
        if vr in ("LT", "ST", "UT"):
            return [Value(value, "block") for value in texts]
        if vr in ("DS", "FD", "FL", "IS", "SL", "SS", "UL", "US", "SV", "UV") and len(texts) > 1:
            return [Value(listing(texts))]
        return [Value(value) for value in texts]
