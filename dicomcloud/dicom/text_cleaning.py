"""Texts without the identifying values of the data set that they are in (PS3.15 E.3.5).

values = IdentifyingValues(...)         filled while attributes are removed or replaced
values.sweep(text)                      what every text that stays undergoes
values.clean(text)                      what a descriptor that is to be cleaned undergoes
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Final

#: A text longer than this is not searched but given up.
LONGEST_TEXT: Final = 1 << 16
_MOST_NAMES: Final = 4096

_TITLED = re.compile(
    r"(?<!\w)(?:dr|prof|mrs?|ms|herr|frau|mme|dra?|sra?)\b\.?[ \t]{0,3}(?:\w\.[ \t]{0,3})?[^\W\d_]{0,64}", re.IGNORECASE
)
_CONTACT = re.compile(r"[\w.+-]{1,64}@[\w.-]+|https?://\S+|\+?\d[\d ()/-]{7,40}\d|\d{6,}")
_WRITTEN_DATE = re.compile(
    r"(?<!\d)(?:\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
    r"|(?:\d{1,2}[ .-]{0,3})?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
    r"[a-z]{0,6}[ .,-]{0,3}(?:\d{1,2}[ .,-]{1,3})?(?:19|20)\d\d)(?!\d)",
    re.IGNORECASE,
)
_WRITTEN_AGE = re.compile(r"(?<!\w)\d{1,3}[ -]?(?:y/?o|yrs?|years?(?:[ -]?old)?|[MF]|[DWMY][MF])(?!\w)", re.IGNORECASE)
_DATE = re.compile(r"(?:19|20)\d\d([/-]?)(?:0[1-9]|1[0-2])\1[0-3]\d|[0-3]?\d/[01]?\d/\d{4}")
_DAY = re.compile(r"(?=(\d{8}))")
_UID = re.compile(r"(?<![\d.])\d+(?:\.\d+){3,}")


class TooManyValues(Exception):
    """More names than can be looked for."""


class IdentifyingValues:
    """The names, identifiers, dates and UIDs that were found in one data set, to be kept out of its texts.

    `uid` gives the replacement of a UID. With `keep_dates` and `keep_ages`, dates and ages that are written in
    descriptors stay.
    """

    def __init__(self, uid: Callable[[str], str], *, keep_dates: bool, keep_ages: bool) -> None:
        self._uid = uid
        self._keep_dates = keep_dates
        self._keep_ages = keep_ages
        self._names: set[str] = set()
        self._texts: set[str] = set()
        self._days: set[str] = set()
        self._uids: set[str] = set()

    def add_person(self, name: str, *, is_patient: bool) -> None:
        """A person's name as a whole and in its parts; parts of two or three letters count in descriptors only."""
        self._add_name(name)
        for part in re.split(r"[\^=\s]+", name):
            if len(part) > (2 if is_patient else 3) or (part and not part.isascii()):
                self._add_name(part)
            elif len(part) > 1:
                self.add_text(part)

    def add_identifier(self, value: str) -> None:
        """An identifier of a patient or a visit; one of up to three characters says too little to be looked for."""
        if len(value) > 3:
            self._add_name(value)

    def add_date(self, value: str) -> None:
        """A DA or DT that was replaced."""
        day = re.match(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", value)
        if day and not self._keep_dates:
            self._days.add("".join(day.groups()))

    def add_uid(self, value: str) -> None:
        self._uids.add(value)

    def add_text(self, value: str) -> None:
        """Any other text that was removed: looked for in descriptors."""
        if 1 < len(value) <= 64 and len(self._texts) < _MOST_NAMES:
            self._texts.add(value)

    def _add_name(self, value: str) -> None:
        self._names.add(value)
        if len(self._names) > _MOST_NAMES:
            raise TooManyValues

    @functools.cached_property
    def _name_pattern(self) -> re.Pattern[str] | None:
        return _pattern(self._names)

    @functools.cached_property
    def _text_pattern(self) -> re.Pattern[str] | None:
        return _pattern(self._names | self._texts)

    def sweep(self, text: str) -> str:
        """`text` without names, identifiers and dates that were removed elsewhere, and with the new UIDs.

        Unchanged when it holds none of them; empty when it is too long to be searched.
        """
        if len(text) > LONGEST_TEXT:
            return ""
        swept = self._name_pattern.sub(" ", text) if self._name_pattern else text
        if self._uids:
            swept = _UID.sub(lambda match: self._uid(match[0]) if match[0] in self._uids else match[0], swept)
        for day in {match[1] for match in _DAY.finditer(swept)} & self._days:
            swept = swept.replace(day, " ")
        return text if swept == text else swept.strip()

    def clean(self, text: str) -> str:
        """`text` without all known values, and without what looks like a title and name, a number, a date, an age."""
        if len(text) > LONGEST_TEXT:
            return ""
        cleaned = _CONTACT.sub(self._unless_date, text)
        cleaned = _TITLED.sub(" ", cleaned)
        if not self._keep_dates:
            cleaned = _WRITTEN_DATE.sub(" ", cleaned)
        if not self._keep_ages:
            cleaned = _WRITTEN_AGE.sub(" ", cleaned)
        cleaned = self.sweep(cleaned)
        if self._text_pattern:
            cleaned = self._text_pattern.sub(" ", cleaned)
        return text if cleaned == text else re.sub(r"[ \t]{2,}", " ", cleaned).strip(" \t,;:-_/^")

    def _unless_date(self, match: re.Match[str]) -> str:
        """Long numbers go, but not a date where dates stay."""
        is_date = _DATE.fullmatch(match[0].strip())
        return match[0] if is_date and self._keep_dates else " "


def _pattern(values: Iterable[str]) -> re.Pattern[str] | None:
    """Finds any of the values, the longest first, whatever the case. Short ones only as words of their own."""
    longest_first = sorted({value for value in values if value.strip()}, key=lambda value: (-len(value), value))
    parts = [
        re.escape(value) if len(value) > 4 or not value.isascii() else rf"(?<![^\W_]){re.escape(value)}(?![^\W_])"
        for value in longest_first
    ]
    return re.compile("|".join(parts), re.IGNORECASE) if parts else None
