"""Values as they are compared: text without case and accents, person names, dates and times as digits, numbers.

The same forms are put into the index's columns, so that a search in SQL and a match in Python agree.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, cast

import jellyfish

from dicomcloud.dicom.attributes import (
    keyword_of,
    tag_of,
    vr_of,
)

FOLDED_VRS: Final = frozenset(("LO", "SH", "ST", "LT", "UC", "UT"))


_NO_DECOMPOSITION = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ð": "d"}
)


def fold(text: str) -> str:
    """Text without case, accents and width: NFKD without marks, casefolded. 'Müller' and 'MULLER' become one."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c)).translate(_NO_DECOMPOSITION)


def fold_name(group: str) -> str:
    """One component group of a name, folded, without blanks around components and empty components at the end."""
    return "^".join(component.strip() for component in fold(group).split("^")).rstrip("^")


def name_groups(value: Any) -> tuple[str, str, str]:
    """Alphabetic, ideographic and phonetic group of a PN of the DICOM JSON Model, folded; '' where there is none."""
    if isinstance(value, Mapping):
        return (
            fold_name(str(value.get("Alphabetic") or "")),
            fold_name(str(value.get("Ideographic") or "")),
            fold_name(str(value.get("Phonetic") or "")),
        )
    groups = [fold_name(group) for group in str(value or "").split("=")[:3]]
    return cast("tuple[str, str, str]", tuple(groups + [""] * (3 - len(groups))))


_TOKEN_BREAK = re.compile(r"[\s^=,.;/_'’()-]+")


def name_tokens(text: str) -> list[str]:
    """The words of a folded name, each once."""
    return list(dict.fromkeys(token for token in _TOKEN_BREAK.split(text) if token))


@lru_cache(maxsize=8192)
def phonetic_code(token: str) -> str:
    """Metaphone code of a folded token; '' when it has letters that Metaphone does not know."""
    return jellyfish.metaphone(token) if len(token) <= 64 and token.isascii() and token.isalpha() else ""


_IDENTIFIER = re.compile(r"(?:ID|IDs|Number|Numbers|CodeValue|Designator)\Z|\AIssuerOf")


@lru_cache(maxsize=4096)
def is_folded(tag: int, vr: str) -> bool:
    """Whether text of this attribute matches without regard to case and accents."""
    return vr in FOLDED_VRS and not _IDENTIFIER.search(keyword_of(tag))


def normalise(tag: int, vr: str, text: str) -> str:
    """A value in the form in which it is compared: no blanks around it, folded if `is_folded`."""
    text = text.strip()
    return fold(text) if is_folded(tag, vr) else text


# ---------------------------------------------------------------------------------------------------------------------
# Dates and times as digits

EARLIEST: Final = "0"
LATEST: Final = "9" * 20
DAY_END: Final = "235959999999"
DAY_START: Final = "000000000000"
TIME_FORM = re.compile(r"([01]\d|2[0-3])(?:([0-5]\d)(?:([0-5]\d|60)(?:\.(\d{1,6}))?)?)?", re.ASCII)
DATETIME_FORM = re.compile(r"(\d{4,14})(?:\.(\d{1,6}))?([+-]\d{4})?", re.ASCII)
_OFFSET = re.compile(r"([+-])(\d\d)([0-5]\d)", re.ASCII)


def date_digits(text: str) -> str:
    """A stored DA as YYYYMMDD (also from YYYY.MM.DD of ACR-NEMA); '' if it is no date."""
    digits = text.strip()
    if len(digits) == 10:
        digits = digits.replace(".", "")
    if len(digits) != 8 or not (digits.isascii() and digits.isdigit()):
        return ""
    return digits if "01" <= digits[4:6] <= "12" and "01" <= digits[6:8] <= "31" else ""


def time_digits(text: str) -> str:
    """A stored TM as HHMMSSFFFFFF, missing parts 0 (also from HH:MM:SS of ACR-NEMA); '' if it is no time."""
    found = TIME_FORM.fullmatch(text.strip().replace(":", ""))
    if found is None:
        return ""
    hour, minute, second, fraction = found.groups()
    return f"{hour}{minute or '00'}{second or '00'}{(fraction or '').ljust(6, '0')}"


def offset_minutes(text: str) -> int | None:
    """±HHMM of Timezone Offset From UTC as minutes; None if it is none (PS3.3 C.12.1.1.8: -1200 to +1400)."""
    found = _OFFSET.fullmatch(text.strip())
    if found is None:
        return None
    minutes = int(found[2]) * 60 + int(found[3])
    minutes = -minutes if found[1] == "-" else minutes
    return minutes if -720 <= minutes <= 840 else None


def shift(stamp: str, minutes: int) -> str:
    """YYYYMMDDHHMMSSFFFFFF moved by minutes; open bounds and what is no date stay as they are."""
    if not minutes or len(stamp) != 20 or stamp == LATEST:
        return stamp
    try:
        moment = datetime(
            int(stamp[:4]),
            int(stamp[4:6]),
            int(stamp[6:8]),
            int(stamp[8:10]),
            int(stamp[10:12]),
            min(int(stamp[12:14]), 59),
            int(stamp[14:]),
        ) + timedelta(minutes=minutes)
    except (ValueError, OverflowError):
        return stamp
    return f"{moment.year:04d}{moment:%m%d%H%M%S}{moment.microsecond:06d}"


def shift_time(digits: str, minutes: int) -> str:
    total = (int(digits[:2]) * 60 + int(digits[2:4]) + minutes) % 1440
    return f"{total // 60:02d}{total % 60:02d}{digits[4:]}"


def fill_digits(digits: str, fraction: str, *, last: bool) -> str:
    """YYYY… of any precision filled up to 20 digits: with the first or the last moment it stands for."""
    if len(digits) == 14:
        return digits + fraction.ljust(6, "9" if last else "0")
    if not last:
        return (digits + "00000101000000"[len(digits) :] if len(digits) < 8 else digits.ljust(14, "0")) + "000000"
    if len(digits) == 4:
        digits += "12"
    if len(digits) == 6:
        year, month = int(digits[:4]), int(digits[4:])
        following = date(year + month // 12, month % 12 + 1, 1) if (year, month) < (9999, 12) else None
        digits += f"{(following - timedelta(days=1)).day:02d}" if following else "31"
    return digits + "235959"[len(digits) - 8 :] + "999999"


def datetime_digits(text: str) -> tuple[str, int | None]:
    """A stored DT as 20 digits (missing parts at their start) and its own offset in minutes; ('', None) if no DT."""
    found = DATETIME_FORM.fullmatch(text.strip())
    if found is None or len(found[1]) % 2:
        return "", None
    return fill_digits(found[1], found[2] or "", last=False), offset_minutes(found[3] or "")


@lru_cache(maxsize=256)
def time_of_date(tag: int) -> int:
    """The tag of the time that belongs to a date: StudyDate → StudyTime. 0 if there is none."""
    keyword = keyword_of(tag)
    time = tag_of(keyword[:-4] + "Time") if keyword.endswith("Date") else None
    return time if time is not None and vr_of(time) == "TM" else 0


def number_of(value: Any) -> int | float | None:
    """The number that a value of the DICOM JSON Model is, whole ones as int; None if it is none."""
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        value = value.strip()
        if not value.isascii() or "_" in value or len(value) > 64:
            return None
    try:
        number = float(value)
        if isinstance(value, str) and abs(number) >= 2**53 and value.lstrip("+-").isdigit():
            return int(value)
    except (TypeError, ValueError):
        return None
    if number != number or number in (float("inf"), float("-inf")):
        return None
    return int(number) if number.is_integer() else number
