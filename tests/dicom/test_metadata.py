"""Native DICOM Model XML (PS3.19 Annex A) and single texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from pydicom.data import get_testdata_file

from dicomcloud.dicom.header import scan
from dicomcloud.dicom.metadata import NATIVE_MODEL_NAMESPACE, native_model_xml, text
from dicomcloud.errors import InvalidInstance

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples"
BUNDLED = Path(str(get_testdata_file("CT_small.dcm"))).parent
FILES = sorted(
    path
    for path in {*BUNDLED.glob("*.dcm"), *(SAMPLES.rglob("*.dcm") if SAMPLES.is_dir() else ())}
    if path.is_file() and path.stat().st_size < 1_000_000
)


def model(attributes: dict[str, Any]) -> Any:
    return etree.fromstring(native_model_xml(attributes))


def find(root: Any, path: str) -> Any:
    return root.xpath("/".join(f"n:{step}" for step in path.split("/")), namespaces={"n": NATIVE_MODEL_NAMESPACE})


def test_the_root_names_the_model_and_preserves_space() -> None:
    document = native_model_xml({})
    assert document.startswith(b"<?xml version='1.0' encoding='UTF-8'?>")
    root = etree.fromstring(document)
    assert root.tag == "{http://dicom.nema.org/PS3.19/models/NativeDICOM}NativeDicomModel"
    assert root.nsmap == {None: "http://dicom.nema.org/PS3.19/models/NativeDICOM"}
    assert root.get("{http://www.w3.org/XML/1998/namespace}space") == "preserve"


def test_an_attribute_has_its_tag_vr_keyword_and_numbered_values() -> None:
    root = model({"00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]}, "00280010": {"vr": "US"}})
    kind, rows = find(root, "DicomAttribute")
    assert dict(kind.attrib) == {"tag": "00080008", "vr": "CS", "keyword": "ImageType"}
    assert [(value.get("number"), value.text) for value in kind] == [("1", "ORIGINAL"), ("2", None), ("3", "AXIAL")]
    assert len(rows) == 0


def test_a_person_name_is_split_into_its_components() -> None:
    name = {"Alphabetic": "Yamada^Tarou^^Dr", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    root = model({"00100010": {"vr": "PN", "Value": [None, name]}})
    first, second = find(root, "DicomAttribute/PersonName")
    assert (first.get("number"), len(first)) == ("1", 0)
    parts = {
        etree.QName(group).localname: {etree.QName(part).localname: part.text for part in group} for group in second
    }
    assert parts["Alphabetic"] == {"FamilyName": "Yamada", "GivenName": "Tarou", "NamePrefix": "Dr"}
    assert parts["Ideographic"] == {"FamilyName": "山田", "GivenName": "太郎"}
    assert list(parts) == ["Alphabetic", "Ideographic", "Phonetic"]


def test_items_bulk_data_and_inline_binary_have_elements_of_their_own() -> None:
    root = model(
        {
            "00081140": {"vr": "SQ", "Value": [{}, {"00081155": {"vr": "UI", "Value": ["1.2"]}}]},
            "00282000": {"vr": "OB", "InlineBinary": "AQI="},
            "7FE00010": {"vr": "OW", "BulkDataURI": "http://a/b?c&d"},
        }
    )
    assert [item.get("number") for item in find(root, "DicomAttribute/Item")] == ["1", "2"]
    assert find(root, "DicomAttribute/Item/DicomAttribute/Value")[0].text == "1.2"
    assert find(root, "DicomAttribute/InlineBinary")[0].text == "AQI="
    assert find(root, "DicomAttribute/BulkData")[0].get("uri") == "http://a/b?c&d"


def test_a_private_attribute_names_its_creator_and_the_creator_none() -> None:
    root = model({"00090010": {"vr": "LO", "Value": ["ACME"]}, "00091001": {"vr": "LO", "Value": ["x"]}})
    creator, private = find(root, "DicomAttribute")
    assert creator.get("privateCreator") is None
    assert private.get("privateCreator") == "ACME"
    assert private.get("keyword") is None


def test_characters_that_xml_forbids_are_replaced() -> None:
    root = model({"00104000": {"vr": "LT", "Value": ["a\x00b\x1b\ud800\ufffe\r\n\t<&>王\U0001f600"]}})
    assert find(root, "DicomAttribute/Value")[0].text == "a\ufffdb\ufffd\ufffd\ufffd\r\n\t<&>王\U0001f600"


def test_numbers_are_written_as_they_are_in_dicom() -> None:
    values = [1.0, 0.5, -7, 1e-7, "1,5"]
    root = model({"00281053": {"vr": "DS", "Value": values}})
    assert [value.text for value in find(root, "DicomAttribute/Value")] == ["1", "0.5", "-7", "1e-07", "1,5"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_real_file_has_a_model_with_all_its_attributes(path: Path) -> None:
    try:
        attributes = scan(path.read_bytes()).attributes
    except InvalidInstance:
        pytest.skip("no instance")
    root = model(attributes)
    assert [element.get("tag") for element in find(root, "DicomAttribute")] == list(attributes)


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("PatientName", "Doe^J"),
        ("00100010", "Doe^J"),
        (0x00100010, "Doe^J"),
        ("PatientMotherBirthName", "王"),
        ("ImageType", "ORIGINAL"),
        ("InstanceNumber", "7"),
        ("SliceThickness", "2.5"),
        ("PatientID", "-"),
        ("StudyDate", "-"),
        ("SourceImageSequence", "-"),
        ("NoSuchKeyword", "-"),
    ],
)
def test_text_is_the_first_value_or_the_default(identifier: str | int, expected: str) -> None:
    attributes = {
        "00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY"]},
        "00082112": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^J"}]},
        "00100020": {"vr": "LO"},
        "00101060": {"vr": "PN", "Value": [{"Ideographic": "王"}]},
        "00180050": {"vr": "DS", "Value": [2.5]},
        "00200013": {"vr": "IS", "Value": [7]},
    }
    assert text(attributes, identifier, "-") == expected
