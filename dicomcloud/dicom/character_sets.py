"""Specific Character Set: the bytes of a text value → text (PS3.3 C.12.1.1.2, PS3.5 6.1).

Text whose character set is not declared is UTF-8 if it is valid UTF-8, else Latin-1. Bytes that do not fit the declared
character set become U+FFFD; nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

Text = Callable[[bytes], str]

_CODECS: Final[Mapping[str, str]] = {
    "100": "latin-1",
    "101": "iso8859-2",
    "109": "iso8859-3",
    "110": "iso8859-4",
    "144": "iso8859-5",
    "127": "iso8859-6",
    "126": "iso8859-7",
    "138": "iso8859-8",
    "148": "iso8859-9",
    "203": "iso8859-15",
    "13": "shift_jis",
    "166": "tis-620",
    "192": "utf-8",
    "149": "euc_kr",
    "58": "gb2312",
}
_WHOLE_CODECS: Final = {"GB18030": "gb18030", "GBK": "gbk", "GB2312": "gbk", "UTF-8": "utf-8", "UTF8": "utf-8"}
_TERM: Final = re.compile(r"ISO[ _-]*(2022)?[ _-]*IR[ _-]*([0-9]+)", re.IGNORECASE)
# Escape sequences: of G1 the codec of that set together with ASCII, of G0 the head that Python's codec wants.
_G1_ESCAPES: Final[Mapping[bytes, str]] = {
    b"-A": "latin-1",
    b"-B": "iso8859-2",
    b"-C": "iso8859-3",
    b"-D": "iso8859-4",
    b"-L": "iso8859-5",
    b"-G": "iso8859-6",
    b"-F": "iso8859-7",
    b"-H": "iso8859-8",
    b"-M": "iso8859-9",
    b"-T": "tis-620",
    b"-b": "iso8859-15",
    b")I": "shift_jis",
    b"$)C": "euc_kr",
    b"$)A": "gb2312",
}
_G0_ESCAPES: Final[Mapping[bytes, str | None]] = {
    b"(B": None,
    b"(J": None,
    b"$B": "iso2022_jp",
    b"$@": "iso2022_jp",
    b"$(D": "iso2022_jp_2",
}
_ESCAPE: Final = re.compile(rb"\x1b(\$\([A-Z]|\$\)[A-Z]|\$[@-B]|[()\-.][A-Za-z])")
# Where the state of an ISO 2022 string goes back to the first character set (PS3.5 6.1.2.5.3).
_RESET: Final = re.compile(rb"([\\^=\t\n\f\r])")


def plain_text(raw: bytes) -> str:
    """Text whose character set is not declared."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def codec_of(term: str) -> str | None:
    """Python's codec for a Defined Term of Specific Character Set; None for what has none (ISO_IR 6) or is unknown.

    Of ISO_IR 13 and the terms with code extensions it is the one of their G1 set together with ASCII.
    """
    name = term.strip().upper()
    match = _TERM.fullmatch(name)
    return _WHOLE_CODECS.get(name) or (_CODECS.get(match[2]) if match else None)


@lru_cache(maxsize=256)
def decoder_of(terms: tuple[str | None, ...]) -> Text:
    """The decoder for the values of Specific Character Set (None: an empty one).

    It leaves backslash, ^ and = in its result only where they delimit.
    """
    codecs: list[str | None] = []
    extended = False
    for term in terms:
        match = _TERM.fullmatch((term or "").strip())
        codec = codec_of(term or "")
        if codec in {"utf-8", "gb18030", "gbk"}:
            codecs, extended = [codec], False
            break
        codecs.append(codec)
        extended = extended or (match is not None and match[1] is not None) or len(terms) > 1
    first = codecs[0] if codecs else None
    if not extended:
        return plain_text if first is None else lambda raw: raw.decode(first, "replace")
    # A first set without a G1 leaves the high bytes to the first extension that has one: some writers leave the
    # escape sequence out.
    initial = first or next((codec for codec in codecs if codec), None)

    def text(raw: bytes) -> str:
        if b"\x1b" not in raw:
            return plain_text(raw) if initial is None else raw.decode(initial, "replace")
        return _iso_2022(raw, initial)

    return text


def _iso_2022(raw: bytes, initial: str | None) -> str:
    """Text with code extensions (PS3.5 6.1.2.5): each run decoded with the sets that are then in G0 and G1."""
    pieces = _ESCAPE.split(raw)  # run, escape, run, escape, run …
    out: list[str] = []
    g0: str | None = None
    g1 = initial
    for index, piece in enumerate(pieces):
        if index % 2:
            if piece in _G0_ESCAPES:
                g0 = _G0_ESCAPES[piece]
            elif piece in _G1_ESCAPES:
                g1 = _G1_ESCAPES[piece]
            else:
                out.append("\x1b" + piece.decode("latin-1"))
        elif g0 is not None:
            escape = b"\x1b$(D" if g0 == "iso2022_jp_2" else b"\x1b$B"
            out.append((escape + piece).decode(g0, "replace"))
        else:
            head, *rest = _RESET.split(piece, maxsplit=1)
            out.append(head.decode(g1 or "latin-1", "replace"))
            if rest:
                g1 = initial
                out.append(b"".join(rest).decode(g1 or "latin-1", "replace"))
    return "".join(out)
