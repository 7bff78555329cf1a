"""Right-to-left text for a renderer that sets letters from left to right as they come.

Raqm does this where it is there; Pillow's packages for Windows lack a library that it needs.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import groupby

_MIRRORED = str.maketrans("()[]{}<>«»‹›", ")(][}{><»«›‹")
_BRACKETS = {")": "(", "]": "[", "}": "{"}
_LAM = "\u0644"
_TATWEEL = "\u0640"


def in_visual_order(text: str) -> str:
    """A line as its letters stand from left to right, those of Arabic in their joined forms.

    The order is that of Unicode Standard Annex 9 for text without explicit directions: the first letter that has a
    direction tells that of the line.
    """
    if all(unicodedata.bidirectional(character) not in ("R", "AL", "AN") for character in text):
        return text
    letters = _joined(text)
    base, kinds = _resolved(letters)
    levels = [_level(kind, base) for kind in kinds]
    for at in reversed(range(len(levels))):  # L1: the end of the line
        if not letters[at].isspace():
            break
        levels[at] = base
    order = list(range(len(letters)))
    for level in range(max(levels), 0, -1):  # L2
        at = 0
        while at < len(order):
            end = at
            while end < len(order) and levels[order[end]] >= level:
                end += 1
            order[at:end] = reversed(order[at:end])
            at = max(end, at + 1)
    return "".join(letters[at].translate(_MIRRORED) if levels[at] % 2 else letters[at] for at in order)


def _resolved(letters: list[str]) -> tuple[int, list[str]]:
    """The level of the line, and for each of its letters L, R, EN or AN (rules P2 to N2)."""
    kinds = [unicodedata.bidirectional(letter[0]) or "L" for letter in letters]
    base = next((int(kind != "L") for kind in kinds if kind in ("L", "R", "AL")), 0)
    outer = "R" if base else "L"
    before = strong = outer
    for at, kind in enumerate(kinds):  # W1, W2, W3
        if kind == "NSM":
            kind = before
        elif kind == "EN" and strong == "AL":
            kind = "AN"
        elif kind in ("L", "R", "AL"):
            strong = kind
        kinds[at] = before = kind
    kinds = ["R" if kind == "AL" else kind for kind in kinds]
    for at in range(1, len(kinds) - 1):  # W4
        left, right = kinds[at - 1], kinds[at + 1]
        if left == right and (left, kinds[at]) in (("EN", "ES"), ("EN", "CS"), ("AN", "CS")):
            kinds[at] = left
    runs = [(kind, len(list(group))) for kind, group in groupby(kinds)]
    for at, (kind, length) in enumerate(runs):  # W5
        if kind == "ET" and "EN" in (runs[at - 1][0] if at else "", runs[at + 1][0] if at + 1 < len(runs) else ""):
            runs[at] = "EN", length
    strong = outer
    resolved = []
    for kind, length in runs:  # W6, W7
        if kind in ("L", "R"):
            strong = kind
        if kind == "EN" and strong == "L":
            kind = "L"
        resolved += [kind if kind in ("L", "R", "EN", "AN") else "ON"] * length
    _resolve_brackets(letters, resolved, outer)
    runs = [(kind, len(list(group))) for kind, group in groupby(resolved)]
    resolved = []
    for at, (kind, length) in enumerate(runs):  # N1, N2
        if kind == "ON":
            around = {_side(runs[at - 1][0]) if at else outer, _side(runs[at + 1][0]) if at + 1 < len(runs) else outer}
            kind = around.pop() if len(around) == 1 else outer
        resolved += [kind] * length
    return base, resolved


def _resolve_brackets(letters: list[str], kinds: list[str], outer: str) -> None:
    """Brackets have the direction of what they enclose (rule N0)."""
    opened: list[int] = []
    pairs = []
    for at, letter in enumerate(letters):
        if letter in _BRACKETS.values():
            opened.append(at)
        elif letter in _BRACKETS:
            while opened:
                start = opened.pop()
                if letters[start] == _BRACKETS[letter]:
                    pairs.append((start, at))
                    break
    for start, end in sorted(pairs):
        inside = {_side(kind) for kind in kinds[start:end] if kind != "ON"}
        if inside:
            before = next((_side(kind) for kind in reversed(kinds[:start]) if kind != "ON"), outer)
            kinds[start] = kinds[end] = outer if outer in inside else before


def _side(kind: str) -> str:
    return "L" if kind == "L" else "R"


def _level(kind: str, base: int) -> int:
    if base:  # I2
        return 1 if kind == "R" else 2
    return {"L": 0, "R": 1}.get(kind, 2)  # I1


def _joined(text: str) -> list[str]:
    """Letters in the forms that their neighbours give them (Unicode 9.2), lam and alef in one."""
    forms = _forms()
    letters: list[str] = []
    for letter in text:
        if letters and letters[-1] == _LAM and _LAM + letter in forms:
            letters[-1] += letter
        else:
            letters.append(letter)
    joining = [at for at, letter in enumerate(letters) if not unicodedata.combining(letter[-1])]
    shown = letters.copy()
    for place, at in enumerate(joining):
        before = letters[joining[place - 1]] if place else ""
        behind = letters[joining[place + 1]] if place + 1 < len(joining) else ""
        left, right = _joins(before, behind=True), _joins(behind, behind=False)
        letter = letters[at]
        joined = (left and _joins(letter, behind=False), right and _joins(letter, behind=True))
        form = {(True, True): "<medial>", (True, False): "<final>", (False, True): "<initial>"}.get(
            joined, "<isolated>"
        )
        if form != "<isolated>" or len(letter) > 1:  # the letter itself is shown isolated
            shown[at] = forms.get(letter, {}).get(form, letter)
    return shown


def _joins(letter: str, *, behind: bool) -> bool:
    """Whether a letter joins the one behind it, or before it."""
    forms = _forms().get(letter, {})
    return letter == _TATWEEL or "<medial>" in forms or ("<initial>" if behind else "<final>") in forms


@cache
def _forms() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for code in (*range(0xFB50, 0xFC00), *range(0xFE80, 0xFEFD)):  # Arabic Presentation Forms A and B
        form, *letters = unicodedata.decomposition(chr(code)).split() or [""]
        if form and len(letters) <= 2:
            found.setdefault("".join(chr(int(each, 16)) for each in letters), {})[form] = chr(code)
    return found
