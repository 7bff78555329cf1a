"""What a part of the installation says of its own state, for `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, but should be looked at
    FAULT = "fault"  # does not work, or will lose data


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at. `advice` is what to do about it, '' where there is nothing to do."""

    what: str
    state: State
    message: str
    advice: str = ""


def good(what: str, message: str) -> Diagnosis:
    return Diagnosis(what, State.OK, message)


def warn(what: str, message: str, advice: str = "") -> Diagnosis:
    return Diagnosis(what, State.WARNING, message, advice)


def fault(what: str, message: str, advice: str = "") -> Diagnosis:
    return Diagnosis(what, State.FAULT, message, advice)
