"""What memory a process has for itself, on Linux."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """MB. `own`: what nobody else has and the system cannot take back, SQLite's page cache in it. `mapped`: pages of
    files, the index among them, that the system takes back when it needs room. Zeros where it does not tell."""

    own: float
    mapped: float


def memory() -> Memory:
    """Of this process, now."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return Memory(0, 0)
    kilobytes = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}
    return Memory(kilobytes["Anonymous"] / 1024, (kilobytes["Rss"] - kilobytes["Anonymous"]) / 1024)
