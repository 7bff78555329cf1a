"""Text of every character set that DICOM has, alone and inside data sets."""

from __future__ import annotations

import pytest

from dicomcloud.dicom.character_sets import decoder_of
from dicomcloud.dicom.header import scan
from tests.dicom.made import attribute, element, instance, item


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        ("", "Äneas".encode("latin-1"), "Äneas"),
        ("", "Äneas".encode(), "Äneas"),
        ("ISO_IR 100", "Äneas".encode("latin-1"), "Äneas"),
        ("ISO_IR 144", "Люк".encode("iso8859-5"), "Люк"),
        ("ISO_IR 192", "Äneas王".encode(), "Äneas王"),
        ("GB18030", "王\\小".encode("gb18030"), "王\\小"),
        ("GBK", b"\x81\x5c", "乗"),
        ("ISO_IR 192", b"\xff", "\ufffd"),
        ("\\ISO 2022 IR 149", b"\x1b$)C" + "홍".encode("euc_kr") + b"^\x1b$)C" + "길동".encode("euc_kr"), "홍^길동"),
        ("\\ISO 2022 IR 58", "王".encode("gb2312"), "王"),
        ("ISO 2022 IR 100\\ISO 2022 IR 144", b"\xc4\x1b-L" + "Л".encode("iso8859-5") + b"\\\xc4", "ÄЛ\\Ä"),
    ],
)
def test_text_is_decoded_by_its_character_set(charset: str, raw: bytes, text: str) -> None:
    found = attribute(0x00104000, "LO", raw, element(0x00080005, "CS", charset.encode()))
    assert found["Value"] == text.split("\\") if charset != "GBK" else [text]


def test_delimiter_bytes_inside_japanese_characters_do_not_split() -> None:
    inside = "予"  # second byte 0x3D, the code of =
    raw = b"Yo=" + inside.encode("iso2022_jp") + b"^" + "表".encode("iso2022_jp")
    charset = element(0x00080005, "CS", b"\\ISO 2022 IR 87")
    name = attribute(0x00100010, "PN", raw, charset)["Value"]
    assert b"=" in inside.encode("iso2022_jp")
    assert name == [{"Alphabetic": "Yo", "Ideographic": inside + "^表"}]


def test_an_item_may_have_a_character_set_of_its_own() -> None:
    inner = item(element(0x00080005, "CS", b"ISO_IR 144") + element(0x00080104, "LO", "Люк".encode("iso8859-5")))
    outer = item(element(0x00080104, "LO", b"\xc4"))
    attributes = scan(
        instance(
            element(0x00080005, "CS", b"ISO_IR 100"),
            element(0x00081032, "SQ", inner + outer),
            element(0x00104000, "LT", b"\xc4"),
        )
    ).attributes
    values = [each["00080104"]["Value"] for each in attributes["00081032"]["Value"]]
    assert values == [["Люк"], ["Ä"]]
    assert attributes["00104000"]["Value"] == ["Ä"]


@pytest.mark.parametrize("terms", [(), (None,), ("",), ("ISO_IR 6",), ("NONSENSE",)])
def test_without_a_known_character_set_utf_8_and_latin_1_are_told_apart(terms: tuple[str | None, ...]) -> None:
    decode = decoder_of(terms)
    assert decode("Äneas".encode()) == decode("Äneas".encode("latin-1")) == "Äneas"


def test_the_second_name_of_a_character_set_is_understood_as_the_first() -> None:
    raw = "Люк".encode("iso8859-5")
    assert {decoder_of((term,))(raw) for term in ("ISO_IR 144", "iso-ir 144", "ISO 2022 IR 144")} == {"Люк"}


def test_an_unknown_escape_sequence_is_kept_and_does_not_raise() -> None:
    assert decoder_of(("", "ISO 2022 IR 87"))(b"a\x1b$)Zb") == "a\x1b$)Zb"
