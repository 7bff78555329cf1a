"""The instance that a report is written of, and the page to which."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..attributes import is_uid
from ..metadata import text
from .page import MAX_ITEMS, Full, Page, Value
from .reading import (
    Attributes,
    all_texts,
    items_of,
    language_of,
    listing,
    moment,
    person_name,
    raw_values,
    script_of,
    uid_name,
)

#: (SOP Class UID, SOP Instance UID) → the address of that instance; "" where it has none.
Link = Callable[[str, str], str]
#: The path of a bulk value ("/0040A730/3/0040A160") → its bytes.
Bulk = Callable[[str], bytes]


class Document:
    """What all parts of a report share. `link` and `bulk` as of `report_html`."""

    def __init__(self, page: Page, attributes: Attributes, link: Link | None, bulk: Bulk | None) -> None:
        self.page = page
        self.attributes = attributes
        self.link = link
        self.bulk = bulk
        self.items = 0
        self._script = script_of(attributes)

    def count(self) -> None:
        """Items that make no text cost time too."""
        self.items += 1
        if self.items > MAX_ITEMS:
            raise Full

    def names(self, attributes: Attributes, keyword: str) -> list[Value]:
        return [shown for name in raw_values(attributes, keyword) if (shown := self.name(name)) is not None]

    def name(self, name: Any) -> Value | None:
        """Alphabetic first, the other groups behind it with their language (PS3.5 6.2.1)."""
        if not isinstance(name, Mapping):
            return Value(str(name)) if name else None
        groups = [
            (group, person_name(str(name.get(group) or ""))) for group in ("Alphabetic", "Ideographic", "Phonetic")
        ]
        shown = [(group, value) for group, value in groups if value]
        if not shown:
            return None
        (group, first), rest = shown[0], [value for _, value in shown[1:]]
        language = language_of("".join([first, *rest]), self._script) if rest or group != "Alphabetic" else ""
        return Value(first, detail=" · ".join(rest), language=language, kind="name")

    def times(self, attributes: Attributes, keyword: str) -> list[Value]:
        return [Value(moment(value), "time") for value in all_texts(attributes, keyword) if value]

    def reference(self, reference: Attributes) -> Value:
        sop_class = text(reference, "ReferencedSOPClassUID")
        uid = text(reference, "ReferencedSOPInstanceUID")
        parts = [uid]
        for keyword, label in (
            ("ReferencedFrameNumber", "frame"),
            ("ReferencedSegmentNumber", "segment"),
        ):
            if numbers := all_texts(reference, keyword):
                parts.append(f"{label}{'s' if len(numbers) > 1 else ''} {listing(numbers)}")
        if channels := all_texts(reference, "ReferencedWaveformChannels"):
            pairs = [f"{group}/{channel}" for group, channel in zip(channels[::2], channels[1::2], strict=False)]
            parts.append(f"channels {listing(pairs)}")
        parts += [
            f"shown with {uid_name(text(state, 'ReferencedSOPClassUID')) or 'presentation state'}"
            for state in items_of(reference, "ReferencedSOPSequence")
        ]
        return Value(
            uid_name(sop_class) or "Instance",
            "reference",
            ", ".join(filter(None, parts)),
            href=self._href(sop_class, uid),
        )

    def _href(self, sop_class: str, uid: str) -> str:
        if self.link is None or not is_uid(uid):
            return ""
        address = self.link(sop_class, uid) or ""
        return address if re.match(r"https?://|/(?!/)", address) else ""
