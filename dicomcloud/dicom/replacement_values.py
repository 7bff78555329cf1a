"""What takes the place of a value that is removed: dummies valid for their VR, moved dates, empty documents."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Final

DUMMIES: Final = {
    "AE": "REMOVED",
    "AS": "000Y",
    "CS": "REMOVED",
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "IS": "0",
    "PN": "Removed",
    "TM": "000000",
    "UR": "http://removed.invalid",
}
DUMMY_TEXT: Final = "REMOVED"
#: Bytes of a number of each VR.
NUMBERS: Final = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}


def shifted(value: str, vr: str, days: int) -> str:
    """A DA or DT `days` earlier, with the precision it had; a dummy when it is no date."""
    match = re.fullmatch(r"(\d{4})[.-]?(\d{2})?[.-]?(\d{2})?(.*)", value, re.DOTALL)
    if match is None or (vr == "DA" and match[4].strip()):
        return DUMMIES[vr]
    year, month, day, rest = match.groups()
    if not re.fullmatch(r"(\d{2}){0,3}(\.\d{1,6})?([+-]\d{4})?", rest.strip()):
        rest = ""
    try:
        moved = date(int(year), int(month or 1), int(day or 1)) - timedelta(days=days)
    except (ValueError, OverflowError):
        return DUMMIES[vr]
    text = f"{moved.year:04}{moved.month:02}{moved.day:02}"
    precision = 8 if day else 6 if month else 4
    return text[:precision] + (rest.strip() if day else "")


def dummy_document(media_type: str) -> bytes:
    """An empty document: a PDF of one blank page, XML, or text."""
    kind = media_type.lower()
    if kind == "application/pdf":
        objects = (
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>",
        )
        body, offsets = b"%PDF-1.4\n", []
        for number, each in enumerate(objects, 1):
            offsets.append(len(body))
            body += b"%d 0 obj%sendobj\n" % (number, each)
        table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
        trailer = b"trailer<</Size 4/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % len(body)
        return body + b"xref\n0 4\n0000000000 65535 f \n" + table + trailer
    return b"<removed/>" if "xml" in kind else b"REMOVED\n"
