"""Holds the licence of every dependency against the list of those that this project takes.

    python -m tools.licences          exit code 1 where one is none of them, or is not told
    python -m tools.licences --list   prints all

The packages are those that the requirements files pin; what is told is what the installed packages say of themselves.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

_PERMISSIVE = (
    *("mit", "bsd", "apache", "isc", "psf", "python software foundation", "hpnd", "zpl", "zope public", "0bsd"),
    *("unlicense", "public domain", "cc0", "mpl", "mozilla public license", "ofl", "open font license", "zlib"),
)
#: Not permissive, taken all the same, and why.
TAKEN = {
    "zipstream-ng": "LGPL-3.0: used as a library, unchanged, and replaceable by the user",
    "pymssql": "LGPL-2.1: used as a library, unchanged, and replaceable by the user",
}
#: Packages that do not say it in their metadata; looked up by hand.
LOOKED_UP = {
    "pymupdf-fonts": "SIL OFL 1.1",
    "noto-cjk-sans-otc": "SIL OFL 1.1",
    "flask-swagger-ui": "MIT",
    "peewee": "MIT",
}
_FORBIDDEN = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)


def pinned() -> list[str]:
    """The names in the requirements files."""
    names = set()
    for path in PROJECT.glob("requirements*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            found = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[^]]*\])?==", line)
            if found:
                names.add(re.sub(r"[-_.]+", "-", found[1]).lower())
    return sorted(names)


def licence_of(name: str) -> str:
    """What the package says of its licence; empty where it says nothing. Raises PackageNotFoundError."""
    if name in LOOKED_UP:
        return LOOKED_UP[name]
    found = metadata.metadata(name)
    expression = found.get("License-Expression")
    classifiers = [
        value.rpartition("::")[2].strip()
        for value in found.get_all("Classifier") or ()
        if value.startswith("License ::")
    ]
    text = (found.get("License") or "").strip()
    return (
        expression or "; ".join(each for each in classifiers if each != "OSI Approved") or text.partition("\n")[0][:100]
    )


def faults() -> list[str]:
    """The packages whose licence is not taken, each with what it says."""
    found = []
    for name in pinned():
        try:
            licence = licence_of(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform, or an extra that is not installed
        if name in TAKEN:
            continue
        words = licence.lower()
        if _FORBIDDEN.search(re.sub(r"\bL(GPL|esser)", "", licence)) or not any(each in words for each in _PERMISSIVE):
            found.append(f"{name}: {licence or 'says nothing of its licence'}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    if parser.parse_args().list:
        for name in pinned():
            try:
                print(f"{name:28} {licence_of(name)}")
            except metadata.PackageNotFoundError:
                print(f"{name:28} (not installed here)")
    bad = faults()
    for line in bad:
        print(f"not among the licences that are taken: {line}", file=sys.stderr)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
