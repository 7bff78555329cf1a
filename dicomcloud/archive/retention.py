"""What an archive may forget: rules by age and kind, and a quota. Nothing is forgotten unless somebody wrote a rule.

[[delete]]                      studies that fulfil every line of one of these go
name = "screening after ten years"
older_than_days = 3650          since the study; by = "stored": since an instance was stored last
modalities = ["MG"]             every series is one of these
patient_id = "TEST*"            with * and ?; issuer likewise

[[keep]]                        studies that fulfil one of these stay, whatever else is said
patient_id = "RESEARCH*"

[quota]                         when the archive is larger, the studies that were stored longest ago go
bytes = "2 TB"

[superseded]                    versions of instances that were replaced or corrected
older_than_days = 365
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ..index.repository import Index, StudySummary
from ..setting_kinds import SIZE

_KNOWN: Final = frozenset({"delete", "keep", "quota", "superseded"})


@dataclass(frozen=True, slots=True)
class Condition:
    """A study fulfils it when it fulfils every part that is given."""

    name: str
    older_than: timedelta | None = None
    by: str = "study"
    modalities: frozenset[str] = frozenset()
    patient_id: str = ""
    issuer: str = ""

    def holds(self, study: StudySummary, now: datetime) -> bool:
        since = study.stored_at if self.by == "stored" else study.studied_at or study.stored_at
        return (
            (self.older_than is None or now - since > self.older_than)
            and (not self.modalities or bool(study.modalities) and set(study.modalities) <= self.modalities)
            and _matches(self.patient_id, study.patient_id)
            and _matches(self.issuer, study.issuer)
        )


@dataclass(frozen=True, slots=True)
class Rules:
    delete: tuple[Condition, ...] = ()
    keep: tuple[Condition, ...] = ()
    quota: int | None = None  # bytes
    superseded: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Doomed:
    """A study that is to go, and the rule by which."""

    study: StudySummary
    rule: str


@dataclass(frozen=True, slots=True)
class Plan:
    studies: Sequence[Doomed]
    superseded: Sequence[str] = field(default=())  # keys of files

    @property
    def bytes(self) -> int:
        return sum(each.study.bytes for each in self.studies)


def read_rules(text: str) -> Rules:
    """Raises ValueError, naming what is wrong: a rule that is not understood must not delete anything."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML: {error}") from None
    _only(document, _KNOWN, "the file")
    quota = _table(document, "quota")
    superseded = _table(document, "superseded")
    _only(quota, {"bytes"}, "[quota]")
    _only(superseded, {"older_than_days"}, "[superseded]")
    try:
        size = int(SIZE.parse(quota["bytes"])) if quota else None
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"[quota] needs bytes = {SIZE.expected}") from None
    return Rules(
        delete=tuple(_conditions(document, "delete")),
        keep=tuple(_conditions(document, "keep")),
        quota=size,
        superseded=_days(superseded, "[superseded]") if superseded else None,
    )


def _conditions(document: Mapping[str, Any], kind: str) -> Iterator[Condition]:
    tables = document.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"write [[{kind}]], in double brackets")
    for number, table in enumerate(tables, 1):
        name = table.get("name", f"{kind} {number}")
        where = f"[[{kind}]] {name!r}"
        _only(table, {"name", "older_than_days", "by", "modalities", "patient_id", "issuer"}, where)
        if not set(table) - {"name", "by"}:
            raise ValueError(f"{where} says nothing of which studies: it would mean all")
        by, modalities = table.get("by", "study"), table.get("modalities", [])
        if by not in ("study", "stored"):
            raise ValueError(f'{where}: by = "study" or "stored"')
        if not isinstance(modalities, list) or not all(isinstance(each, str) and each for each in modalities):
            raise ValueError(f'{where}: modalities = ["CT", …]')
        for key in ("name", "patient_id", "issuer"):
            if not isinstance(table.get(key, ""), str):
                raise ValueError(f"{where}: {key} is a text")
        yield Condition(
            name=name,
            older_than=_days(table, where) if "older_than_days" in table else None,
            by=by,
            modalities=frozenset(modalities),
            patient_id=table.get("patient_id", ""),
            issuer=table.get("issuer", ""),
        )


def _days(table: Mapping[str, Any], where: str) -> timedelta:
    days = table.get("older_than_days")
    if type(days) is not int or not 0 < days < 100_000:
        raise ValueError(f"{where}: older_than_days is a whole number, 1 or more")
    return timedelta(days=days)


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ValueError(f"[{name}] is a table")
    return table


def _only(table: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
    if unknown := sorted(set(table) - known):
        raise ValueError(f"{where} has {', '.join(unknown)}, which is not known; known are {', '.join(sorted(known))}")


def _matches(pattern: str, text: str) -> bool:
    """Wildcards as in a search; an empty pattern fits everything."""
    if not pattern:
        return True
    expression = "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
    return re.fullmatch(expression, text, re.IGNORECASE | re.DOTALL) is not None


def plan(index: Index, rules: Rules, now: datetime | None = None) -> Plan:
    """What the rules would remove of the archive as it is."""
    now = now or datetime.now(UTC)
    doomed: list[Doomed] = []
    left: list[StudySummary] = []
    total = 0
    for study in index.study_summaries():
        total += study.bytes
        if any(condition.holds(study, now) for condition in rules.keep):
            continue
        rule = next((condition for condition in rules.delete if condition.holds(study, now)), None)
        if rule is not None:
            doomed.append(Doomed(study, rule.name))
        elif rules.quota is not None:
            left.append(study)
    if rules.quota is not None:
        total -= sum(each.study.bytes for each in doomed)
        for study in sorted(left, key=lambda each: each.stored_at):
            if total <= rules.quota:
                break
            doomed.append(Doomed(study, "quota"))
            total -= study.bytes
    superseded = index.superseded_files(now - rules.superseded) if rules.superseded is not None else []
    return Plan(doomed, superseded)
