"""Write the tables of PS3.15 Annex E that the package carries, from the DocBook source of the Standard.

    python tools/confidentiality_profile.py part15.xml

`part15.xml` is what NEMA publishes for each edition under the "source" of the DICOM Standard (PS3.15, DocBook). Written
into dicomcloud/dicom/ are

    confidentiality_profile.tsv   Table E.1-1: tag, basic profile, one column per option
    structured_content.tsv        Table E.3.4-1: what Clean Structured Content does with content items
    safe_private.tsv              Table E.3.10-1: private attributes thought to be safe

Each names its source and edition in its first lines. Only tags, codes and actions are taken over, no text of the
Standard. A table whose columns are not the expected ones is refused.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

DOCBOOK = "{http://docbook.org/ns/docbook}"
TARGET = Path(__file__).resolve().parent.parent / "dicomcloud" / "dicom"
OPTIONS = {  # heading in the Standard → name of the option here
    "Rtn. Safe Priv. Opt.": "RetainSafePrivate",
    "Rtn. UIDs Opt.": "RetainUIDs",
    "Rtn. Dev. Id. Opt.": "RetainDeviceIdent",
    "Rtn. Inst. Id. Opt.": "RetainInstitutionIdent",
    "Rtn. Pat. Chars. Opt.": "RetainPatientChars",
    "Rtn. Long. Full Dates Opt.": "RetainLongFullDates",
    "Rtn. Long. Modif. Dates Opt.": "RetainLongModifDates",
    "Clean Desc. Opt.": "CleanDesc",
    "Clean Struct. Cont. Opt.": "CleanStructdCont",
    "Clean Graph. Opt.": "CleanGraph",
}
ACTIONS = {"", "X", "Z", "D", "U", "K", "C", "X/Z", "X/D", "Z/D", "X/Z/D", "X/Z/U*"}


def text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).replace("\u200b", "").split())


class Standard:
    def __init__(self, path: Path) -> None:
        source = path.read_bytes()
        self.root = ElementTree.fromstring(source)
        subtitle = text(self.root.find(f"{DOCBOOK}subtitle"))
        self.edition = re.match(r"DICOM PS3\.15 (\d{4}[a-z])", subtitle)[1]
        self.checksum = hashlib.sha256(source).hexdigest()

    def rows(self, label: str, headings: list[str]) -> Iterator[dict[str, str]]:
        """The body of a table, one dict per row; the headings must be these, each a prefix of what is printed."""
        table = next(table for table in self.root.iter(f"{DOCBOOK}table") if table.get("label") == label)
        printed = [text(cell) for cell in table.iter(f"{DOCBOOK}th")]
        if len(printed) != len(headings) or not all(map(str.startswith, printed, headings)):
            sys.exit(f"Table {label} has other columns than expected: {printed}")
        for row in table.find(f"{DOCBOOK}tbody").iter(f"{DOCBOOK}tr"):
            yield dict(zip(headings, map(text, row), strict=True))

    def write(self, name: str, label: str, columns: list[str], rows: list[list[str]]) -> None:
        lines = [
            f"# DICOM PS3.15 {self.edition}, Table {label}: {len(rows)} rows, in the order of their keys.",
            f"# Written by tools/confidentiality_profile.py from part15.xml, SHA-256 {self.checksum}.",
            "\t".join(columns),
            *sorted("\t".join(cell or "-" for cell in row) for row in rows),
        ]
        (TARGET / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        print(f"{name}: {len(rows)} rows of edition {self.edition}")


def main(path: Path) -> None:
    standard = Standard(path)
    profile, content, private = [], [], []
    for row in standard.rows("E.1-1", ["Attribute Name", "Tag", "Retd.", "In Std. Comp. IOD", "Basic Prof.", *OPTIONS]):
        tag = re.fullmatch(r"\(([0-9A-F]{2}[0-9A-Fx]{2}),([0-9A-Fx]{4})\)", row["Tag"].upper().replace("X", "x"))
        if tag is None and "is odd" not in row["Tag"]:
            sys.exit(f"Not a tag: {row['Tag']}")
        actions = [row["Basic Prof."], *(row[heading] for heading in OPTIONS)]
        if not set(actions) <= ACTIONS:
            sys.exit(f"Not an action: {row}")
        profile.append(["".join(tag.groups()) if tag else "private", *actions])
    without = ("Rtn. Safe Priv. Opt.", "Clean Struct. Cont. Opt.", "Clean Graph. Opt.")
    options = [heading for heading in OPTIONS if heading not in without]
    headings = ["Code Meaning", "Code Value", "Coding Scheme Designator", "Value Type", "Retd.", "In Std. Tpl."]
    for row in standard.rows("E.3.4-1", [*headings, "Basic Prof.", *options]):
        scheme = row["Coding Scheme Designator"].split(" ")[0]
        actions = [row["Basic Prof."], *(row[heading] for heading in options)]
        if not set(actions) <= ACTIONS:
            sys.exit(f"Not an action: {row}")
        content.append([scheme, row["Code Value"], row["Value Type"], *actions])
    for row in standard.rows("E.3.10-1", ["Data Element", "Private Creator", "VR", "VM", "Meaning"]):
        tag = re.fullmatch(r"\(([0-9A-F]{4}),xx([0-9A-F]{2})\)", row["Data Element"].upper().replace("X", "x"))
        if tag is None:
            sys.exit(f"Not a private tag: {row}")
        private.append([row["Private Creator"], *tag.groups(), row["VR"]])
    standard.write("confidentiality_profile.tsv", "E.1-1", ["tag", "BasicProfile", *OPTIONS.values()], profile)
    columns = ["scheme", "code", "value_type", "BasicProfile", *(OPTIONS[heading] for heading in options)]
    standard.write("structured_content.tsv", "E.3.4-1", columns, content)
    standard.write("safe_private.tsv", "E.3.10-1", ["creator", "group", "element", "vr"], private)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
