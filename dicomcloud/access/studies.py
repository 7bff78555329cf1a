"""Which studies a caller sees: rules over patient ID, issuer, institution and study.

A rule is written as the query of a search: `IssuerOfPatientID=NORTH&InstitutionName=North*`. All of its keys have to
match, with wildcards; several values of a key are separated by backslashes. Of several rules one has to hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from ..dicom.attributes import Level, tag_of, vr_of
from ..dicom.comparison import normalise
from ..dicom.matching import Kind, Match

#: The keys of a rule.
KEYS: Final = ("PatientID", "IssuerOfPatientID", "InstitutionName", "StudyInstanceUID")


@dataclass(frozen=True, slots=True)
class Studies:
    """Studies that fulfil one of `rules`; of a rule all matches. `texts` are the rules as they were written."""

    texts: tuple[str, ...]
    rules: tuple[tuple[Match, ...], ...]

    @property
    def tags(self) -> frozenset[int]:
        """What the rules are about."""
        return frozenset(match.tag for rule in self.rules for match in rule)

    @classmethod
    def only(cls, study_uid: str) -> Studies:
        """One study."""
        return parse_studies([f"StudyInstanceUID={study_uid}"])


def parse_studies(texts: Iterable[str]) -> Studies:
    """The studies of these rules. Raises ValueError for one that is malformed or has an unknown key."""
    texts = tuple(texts)
    return Studies(texts, tuple(_rule(text) for text in texts))


def _rule(text: str) -> tuple[Match, ...]:
    # `+` and `%` mean themselves: a rule is written by hand, and blanks occur in names
    pairs = parse_qsl(text.replace("%", "%25").replace("+", "%2B"), keep_blank_values=True, separator="&")
    matches = []
    for key, value in pairs:
        if key.strip() not in KEYS:
            raise ValueError(f"{key.strip()!r} in {text!r} is none of {', '.join(KEYS)}")
        tag = tag_of(key.strip())
        assert tag is not None
        vr = vr_of(tag)
        values = tuple(normalise(tag, vr, part) for part in value.split("\\") if part.strip())
        if not values:
            raise ValueError(f"{key.strip()} in {text!r} has no value")
        wild = vr != "UI" and any("*" in part or "?" in part for part in values)
        matches.append(Match(tag, vr, Level.STUDY, Kind.WILDCARD if wild else Kind.EQUAL, values))
    if not matches:
        raise ValueError(f"{text!r} is no rule such as PatientID=A*")
    return tuple(matches)
