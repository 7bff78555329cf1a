"""docs/conformance-statement.md against the code it is made from."""

from __future__ import annotations

import re

import pytest

from dicomcloud.dicom import character_sets
from dicomcloud.dicom.attributes import INDEXED_ATTRIBUTES, Level
from dicomcloud.dicom.character_sets import codec_of
from dicomcloud.dicom.transfer_syntaxes import TRANSFER_SYNTAXES
from docs import conformance_statement as generator
from docs.conformance_statement import CHARACTER_SETS, COMMAND, PAGE, matching_types, statement


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made() -> str:
    return statement()


def test_the_page_is_the_one_that_the_code_gives(page: str, made: str) -> None:
    assert page == made, f"the code has changed: run `{COMMAND}` and read what that changes in {PAGE.name}"


def test_the_page_says_how_it_is_made(page: str) -> None:
    assert f"`{COMMAND}`" in page


def test_every_link_inside_the_page_leads_to_a_section(page: str) -> None:
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert len(links) > 20
    assert set(links) <= anchors


def test_every_transfer_syntax_and_indexed_attribute_has_a_row(made: str) -> None:
    rows = [line for line in made.splitlines() if line.startswith("| ")]
    for syntax in TRANSFER_SYNTAXES.values():
        (row,) = [row for row in rows if f"| `{syntax.uid}` |" in row]
        assert row.startswith(f"| {syntax.name} |")
    for attribute in INDEXED_ATTRIBUTES:
        assert any(row.startswith(f"| {attribute.keyword} |") for row in rows)


@pytest.mark.parametrize(
    ("level", "tag", "letters", "option"),
    [
        (Level.STUDY, 0x00080020, "S U R", "combined with StudyTime"),
        (Level.STUDY, 0x00100010, "S U *", "fuzzy"),
        (Level.STUDY, 0x00080061, "S U *", "list of codes"),
        (Level.STUDY, 0x0020000D, "S L U", "empty value"),
        (Level.STUDY, 0x00201206, "NONE", None),
        (Level.STUDY, 0x00080060, "NONE", None),  # below the level
        (Level.SERIES, 0x00080060, "S U *", "list of codes"),
        (Level.SERIES, 0x00200011, "S U", "empty value"),
        (Level.SERIES, 0x00400275, "SEQUENCE U", None),
        (Level.INSTANCE, 0x0008002A, "S U R", "empty value"),
        (Level.INSTANCE, 0x7FE00010, "NONE", None),
    ],
)
def test_the_types_of_matching_are_those_of_the_parser(
    level: Level, tag: int, letters: str, option: str | None
) -> None:
    found, options = matching_types(level, tag)
    assert " ".join(found) == letters
    assert option in options if option else options == []


def test_every_character_set_that_is_decoded_is_named_and_no_other() -> None:
    named = {codec_of(term) for term in CHARACTER_SETS} - {None}
    assert named == set(character_sets._CODECS.values()) | set(character_sets._WHOLE_CODECS.values())
    decoded_by_escapes = {"ISO 2022 IR 87", "ISO 2022 IR 159"}
    assert {term for term in CHARACTER_SETS if codec_of(term) is None} == {"ISO_IR 6"} | decoded_by_escapes


def test_a_service_that_has_no_section_stops_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(generator.SERVICES, "OHIF")
    with pytest.raises(KeyError, match="OHIF"):
        statement()


def test_a_change_of_the_code_changes_the_page(monkeypatch: pytest.MonkeyPatch, made: str) -> None:
    fewer = dict(list(TRANSFER_SYNTAXES.items())[1:])
    monkeypatch.setattr(generator, "TRANSFER_SYNTAXES", fewer)
    monkeypatch.setattr(generator, "INDEXED_ATTRIBUTES", INDEXED_ATTRIBUTES[1:])
    changed = statement()
    assert changed != made
    assert "Implicit VR Little Endian | `1.2.840.10008.1.2` |" in made
    assert "Implicit VR Little Endian | `1.2.840.10008.1.2` |" not in changed
