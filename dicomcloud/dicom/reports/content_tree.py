"""The content tree of a Structured Report (PS3.3 C.17.3): containers are sections, the rest are rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from ..attributes import json_key, tag_of
from ..header import text_of
from ..metadata import text
from .attribute_table import AttributeTable
from .document import Document
from .page import MAX_DEPTH, MAX_ITEMS, MAX_REPORT_LENGTH, Value, as_text
from .reading import (
    Attributes,
    all_texts,
    code_meaning,
    coded,
    first_item,
    item_values,
    items_of,
    language_of_item,
    measurement,
    points_in_time,
    raw_values,
    region,
    uid_value,
)

# What precedes the name of an item that is not simply contained (PS3.3 Table C.17.3-8).
_RELATIONS: Final[Mapping[str, str]] = {
    "INFERRED FROM": "inferred from",
    "SELECTED FROM": "selected from",
    "HAS PROPERTIES": "",
    "HAS CONCEPT MOD": "",
    "HAS OBS CONTEXT": "",
    "HAS ACQ CONTEXT": "",
    "CONTAINS": "",
}
_CONTEXT: Final = frozenset({"HAS CONCEPT MOD", "HAS OBS CONTEXT", "HAS ACQ CONTEXT"})
_VALUE_TYPES: Final[Mapping[str, str]] = {
    "TEXT": "Text",
    "CODE": "Code",
    "NUM": "Measurement",
    "PNAME": "Person",
    "DATE": "Date",
    "TIME": "Time",
    "DATETIME": "Date and time",
    "UIDREF": "UID",
    "IMAGE": "Image",
    "COMPOSITE": "Object",
    "WAVEFORM": "Waveform",
    "SCOORD": "Region",
    "SCOORD3D": "Region in space",
    "TCOORD": "Points in time",
    "TABLE": "Table",
    "CONTAINER": "Section",
}
_STRUCTURE: Final = frozenset(
    json_key(tag_of(keyword) or 0)
    for keyword in ("ValueType", "RelationshipType", "ConceptNameCodeSequence", "ContentSequence")
)


class ContentTree:
    """Writes the items below a root container."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._page = document.page
        self._table = AttributeTable(document)
        self._targets: set[tuple[int, ...]] = set()

    def write(self) -> None:
        """The whole tree."""
        root = self._document.attributes
        self._targets = _referenced_items(root)
        self._content(root, (1,), 0)

    def _content(self, container: Attributes, number: tuple[int, ...], depth: int) -> None:
        """The items of a container: sections, and between them runs of rows."""
        if depth >= MAX_DEPTH:
            self._page.paragraph([Value("What lies deeper than this is not shown.", "muted")])
            return
        continuous = text(container, "ContinuityOfContent") == "CONTINUOUS"
        items = self._numbered(container, number)
        for kind, run in groupby(items, lambda numbered: _manner(numbered[1], continuous)):
            if kind == "prose":
                self._prose(list(run), depth)
            elif kind == "rows":
                self._page.begin_rows()
                for here, item in run:
                    self._row(item, here, depth)
                self._page.end_rows()
            else:
                for here, item in run:
                    name = code_meaning(first_item(item, "ConceptNameCodeSequence"))
                    self._page.begin_section(name, self._anchor(here), language_of_item(item) or "")
                    self._content(item, here, depth + 1)
                    self._page.end_section()

    def _numbered(self, container: Attributes, number: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Attributes]]:
        for place, item in enumerate(item_values(container, "ContentSequence"), 1):
            self._document.count()
            yield (*number, place), item if isinstance(item, Mapping) else {}

    def _row(self, item: Attributes, number: tuple[int, ...], depth: int) -> None:
        relation = text(item, "RelationshipType")
        shown = _RELATIONS.get(relation, relation.lower())
        if target := _identifier(item):
            self._page.begin_row(shown or "see", "", [self._jump(target)], "", False)
            self._page.end_row()
            return
        value_type = text(item, "ValueType")
        label = code_meaning(first_item(item, "ConceptNameCodeSequence")) or _VALUE_TYPES.get(
            value_type, value_type or "Item"
        )
        values = self._values(item, value_type, number)
        self._page.begin_row(shown, label, values, self._anchor(number), relation in _CONTEXT)
        if value_type not in _VALUE_TYPES or value_type == "TABLE":
            self._table.dataset({key: value for key, value in item.items() if key not in _STRUCTURE}, depth + 1)
        if items_of(item, "ContentSequence"):
            self._content(item, number, depth + 1)
        self._page.end_row()

    def _prose(self, items: Sequence[tuple[tuple[int, ...], Attributes]], depth: int) -> None:
        """Items that are read as running text (PS3.3 C.18.8); codes that qualify a piece follow it in brackets."""
        pieces: list[Value] = []
        below: list[tuple[tuple[int, ...], Attributes]] = []
        for here, item in items:
            name = code_meaning(first_item(item, "ConceptNameCodeSequence"))
            values = [
                value._replace(title=value.title or name) for value in self._values(item, text(item, "ValueType"), here)
            ]
            if anchor := self._anchor(here):
                values = [value._replace(anchor=anchor) for value in values[:1]] + values[1:]
            nested = items_of(item, "ContentSequence")
            if all(text(child, "ValueType") == "CODE" and "0040A730" not in child for child in nested):
                for place, child in enumerate(nested, 1):
                    meaning = code_meaning(first_item(child, "ConceptCodeSequence"))
                    values.append(Value(f"({meaning})", "muted", anchor=self._anchor((*here, place))))
            else:
                below.append((here, item))
            pieces += values
        self._page.paragraph([piece._replace(kind="plain") if piece.kind == "block" else piece for piece in pieces])
        if below:
            self._page.begin_rows()
            for here, item in below:
                self._row(item, here, depth)
            self._page.end_rows()

    def _values(self, item: Attributes, value_type: str, number: tuple[int, ...]) -> list[Value]:
        match value_type:
            case "TEXT":
                return self._text(item, "TextValue", number)
            case "CODE":
                return coded(first_item(item, "ConceptCodeSequence"))
            case "NUM":
                return measurement(item)
            case "PNAME":
                return self._document.names(item, "PersonName")
            case "DATE" | "TIME" | "DATETIME":
                return self._document.times(item, {"DATE": "Date", "TIME": "Time", "DATETIME": "DateTime"}[value_type])
            case "UIDREF":
                return [uid_value(uid) for uid in all_texts(item, "UID")]
            case "IMAGE" | "COMPOSITE" | "WAVEFORM":
                return [self._document.reference(reference) for reference in items_of(item, "ReferencedSOPSequence")]
            case "SCOORD" | "SCOORD3D":
                return [region(item, 3 if value_type == "SCOORD3D" else 2)]
            case "TCOORD":
                return [points_in_time(item)]
        return []

    def _text(self, item: Attributes, keyword: str, number: tuple[int, ...]) -> list[Value]:
        key = json_key(tag_of(keyword) or 0)
        element = item.get(key, {})
        if "BulkDataURI" not in element:
            return [Value(text(item, keyword).rstrip(), "block")]
        if self._document.bulk is None:
            return [Value("This text is too long for the metadata; it is a bulk value of the instance.", "muted")]
        path = "".join(f"/0040A730/{place}" for place in number[1:]) + f"/{key}"
        decode = text_of(self._document.attributes.get("00080005", {}))
        return [Value(decode(bytes(self._document.bulk(path)[:MAX_REPORT_LENGTH])).rstrip(" \0\r\n"), "block")]

    def _anchor(self, number: tuple[int, ...]) -> str:
        return "item-" + "-".join(map(str, number)) if number in self._targets else ""

    def _jump(self, target: tuple[int, ...]) -> Value:
        """A by-reference relationship (PS3.3 C.17.3.2.5): where the other item is, and what it is called."""
        found: Any = self._document.attributes
        for place in target[1:]:
            children = item_values(found, "ContentSequence")
            found = children[place - 1] if 0 < place <= len(children) else None
            if not isinstance(found, Mapping):
                return Value(f"item {'.'.join(map(str, target))}, which is not in this document", "muted")
        value_type = text(found, "ValueType")
        name = code_meaning(first_item(found, "ConceptNameCodeSequence")) or _VALUE_TYPES.get(value_type, "")
        shown = {
            "CODE": lambda: code_meaning(first_item(found, "ConceptCodeSequence")),
            "NUM": lambda: " ".join(as_text(value) for value in measurement(found)),
            "TEXT": lambda: text(found, "TextValue"),
        }.get(value_type, str)()
        shown = shown if len(shown) <= 60 else shown[:59] + "…"
        where = f"item {'.'.join(map(str, target))}"
        href = "#item-" + "-".join(map(str, target))
        return Value(": ".join(filter(None, (name, shown))) or where, href=href, detail=where)


def _manner(item: Attributes, continuous: bool) -> str:
    """How an item is written: as a section, as a row, or as a piece of running text."""
    if text(item, "ValueType") == "CONTAINER":
        return "section"
    prose = continuous and text(item, "ValueType") in ("TEXT", "CODE", "NUM", "PNAME", "DATE", "TIME", "DATETIME")
    return "prose" if prose and text(item, "RelationshipType") == "CONTAINS" else "rows"


def _identifier(item: Attributes) -> tuple[int, ...]:
    numbers = raw_values(item, "ReferencedContentItemIdentifier")
    return tuple(number for number in numbers if isinstance(number, int) and number > 0)


def _referenced_items(root: Attributes) -> set[tuple[int, ...]]:
    """The places of the items that others refer to, as far as the document goes."""
    targets: set[tuple[int, ...]] = set()
    waiting = [iter((root,))]
    for _ in range(MAX_ITEMS):
        while waiting and (item := next(waiting[-1], None)) is None:
            waiting.pop()
        if not waiting:
            break
        if not isinstance(item, Mapping):
            continue
        if target := _identifier(item):
            targets.add(target)
        waiting.append(value or {} for value in item_values(item, "ContentSequence"))
    return targets
