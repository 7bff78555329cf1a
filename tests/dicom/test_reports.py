"""Reports for people: HTML and plain text of structured reports and other objects; media types of instances."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lxml import html as lxml_html
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from dicomcloud.dicom.header import scan
from dicomcloud.dicom.reports import (
    CONTENT_SECURITY_POLICY,
    MAX_REPORT_LENGTH,
    encapsulated_document,
    media_types_of,
    referenced_instances,
    report_html,
    report_text,
)
from dicomcloud.errors import InvalidInstance

SAMPLES = Path(__file__).parents[2].parent / "shared" / "samples"
BUNDLED = Path(str(get_testdata_file("CT_small.dcm"))).parent
FILES = sorted(
    path
    for path in {*BUNDLED.glob("*.dcm"), *(SAMPLES.rglob("*.dcm") if SAMPLES.is_dir() else ())}
    if path.stat().st_size < 1_000_000
)
VOID = {"meta", "br"}
TEXT_SR, KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.88.59"
CT = "1.2.840.10008.5.1.4.1.1.2"


class Checker(HTMLParser):
    """Elements are closed in order, ids are unique, nothing could run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.jumps: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "iframe", "object", "img", "link", "form", "base"}
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in {"style", "src"}
            if name == "id":
                assert value not in self.ids
                self.ids.add(str(value))
            if name == "href":
                assert re.match(r"https?://|/|#", str(value))
                self.jumps += [str(value)[1:]] if str(value).startswith("#") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(document: bytes) -> str:
    checker = Checker()
    checker.feed(document.decode("utf-8"))
    checker.close()
    assert not checker.open
    assert set(checker.jumps) <= checker.ids
    return document.decode("utf-8")


def words(document: bytes) -> str:
    """What a reader sees, spaces made one."""
    return " ".join(lxml_html.document_fromstring(document.decode("utf-8")).xpath("string(//body)").split())


def dataset(**attributes: Any) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def code(meaning: str, value: str = "1", scheme: str = "99T") -> list[Dataset]:
    return [dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


def item(value_type: str, name: str = "", relation: str = "CONTAINS", **attributes: Any) -> Dataset:
    made = dataset(ValueType=value_type, RelationshipType=relation, **attributes)
    if name:
        made.ConceptNameCodeSequence = code(name)
    return made


def report(*items: Dataset, **attributes: Any) -> dict[str, Any]:
    """A text report in the DICOM JSON Model."""
    root = item("CONTAINER", "Chest report", SOPClassUID=TEXT_SR, SOPInstanceUID="1.2.3", PatientName="Doe^Jane")
    root.ContinuityOfContent = "SEPARATE"
    root.ContentSequence = list(items)
    for keyword, value in attributes.items():
        setattr(root, keyword, value)
    return dict(root.to_json_dict())


def all_texts(attributes: dict[str, Any]) -> list[str]:
    found = list(attributes.get("0040A160", {}).get("Value", ()))
    for child in attributes.get("0040A730", {}).get("Value", ()):
        found += all_texts(child or {})
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_instance_gives_whole_documents_that_hold_every_text_value(path: Path) -> None:
    try:
        attributes = scan(path.read_bytes()).attributes
    except InvalidInstance:
        pytest.skip("not an instance")
    document, plain = report_html(attributes, link=lambda _, uid: f"/instances/{uid}"), report_text(attributes).decode()
    checked(document)
    seen, flat = words(document), " ".join(plain.split())
    for value in all_texts(attributes):
        assert " ".join(value.split()) in seen
        assert " ".join(value.split()) in flat
    assert attributes["00080018"]["Value"][0] in seen
    assert media_types_of(attributes)


def test_a_report_shows_title_patient_flags_and_who_verified_it() -> None:
    observer = dataset(
        VerifyingObserverName="Müller^Eva", VerifyingOrganization="Clinic", VerificationDateTime="20240229101500+0100"
    )
    attributes = report(
        CompletionFlag="PARTIAL",
        VerificationFlag="VERIFIED",
        VerifyingObserverSequence=[observer],
        PatientID="P7",
        IssuerOfPatientID="Ward 3",
        PatientAge="042Y",
        PatientBirthDate="19820102",
        SpecificCharacterSet="ISO_IR 192",
    )
    seen = words(report_html(attributes))
    for expected in ("Chest report", "Doe, Jane", "P7 Ward 3", "42 years", "1982-01-02", "Partial", "Verified",
                     "Müller, Eva · Clinic · 2024-02-29 10:15:00 +01:00"):  # fmt: skip
        assert expected in seen
    assert report_text(attributes).decode().startswith("Chest report\n============\nBasic Text SR, Partial, Verified\n")


def test_containers_are_sections_with_headings_of_their_level() -> None:
    inner = item("CONTAINER", "Lungs", ContentSequence=[item("TEXT", "Finding", TextValue="Clear.")])
    outer = item("CONTAINER", "Findings", ContentSequence=[inner])
    page = lxml_html.document_fromstring(report_html(report(outer)).decode())
    assert page.xpath("//main/section/h2//text()") == ["Findings"]
    assert page.xpath("//main/section/section/h3//text()") == ["Lungs"]
    assert page.xpath("//dt//text()")[-1] == "Finding"
    assert "FINDINGS\n  Lungs\n    Finding: Clear." in re.sub(r"\n\n", "\n", report_text(report(outer)).decode())


def test_numbers_have_their_unit_and_a_missing_one_its_reason() -> None:
    def measured(number: str, unit: str, meaning: str) -> list[Dataset]:
        return [dataset(NumericValue=number, MeasurementUnitsCodeSequence=code(meaning, unit, "UCUM"))]

    rows = [
        item("NUM", "Area", MeasuredValueSequence=measured("12.50", "mm2", "square millimeter")),
        item("NUM", "Density", MeasuredValueSequence=measured("-40", "[hnsf'U]", "Hounsfield unit")),
        item("NUM", "Score", MeasuredValueSequence=measured("3", "1", "no units")),
        item("NUM", "Odd", MeasuredValueSequence=measured("4", "{foo}", "foos")),
        item("NUM", "Length", NumericValueQualifierCodeSequence=code("Measurement failure", "114007", "DCM")),
    ]
    plain = report_text(report(*rows)).decode()
    for line in ("Area: 12.5 mm²", "Density: -40 HU", "Score: 3\n", "Odd: 4 foos", "Length: Measurement failure"):
        assert line in plain


def test_names_show_all_their_groups_with_their_language() -> None:
    attributes = report(
        item("PNAME", "Observer", PersonName="Hong^Gildong=洪^吉洞=홍^길동"),
        SpecificCharacterSet=["", "ISO 2022 IR 149"],
    )
    attributes["00100010"] = {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou^^Dr", "Phonetic": "やまだ^たろう"}]}
    page = lxml_html.document_fromstring(report_html(attributes).decode())
    assert page.xpath("//bdi[@lang='ko']//text()") == ["Hong, Gildong", "洪 吉洞 · 홍 길동"]
    assert page.xpath("//bdi[@lang='ja']//text()") == ["Yamada, Tarou, Dr", "やまだ たろう"]
    assert "Observer: Hong, Gildong (洪 吉洞 · 홍 길동)" in report_text(attributes).decode()


def test_the_language_of_a_report_is_that_of_its_content() -> None:
    language = item("CODE", relation="HAS CONCEPT MOD", ConceptCodeSequence=code("French", "fr-CH", "RFC5646"))
    language.ConceptNameCodeSequence = code("Language of Content Item and Descendants", "121049", "DCM")
    document = report_html(report(language)).decode()
    assert '<main lang="fr-CH">' in document
    hostile = item("CODE", relation="HAS CONCEPT MOD", ConceptCodeSequence=code("x", 'x" onload="y', "RFC5646"))
    hostile.ConceptNameCodeSequence = language.ConceptNameCodeSequence
    assert "<main>" in checked(report_html(report(hostile)))


def test_hostile_text_stays_text() -> None:
    attack = "</style><script>alert(1)</script>\"'&amp;<img src=x onerror=y>\x00\x07\x1b[31m\u202e\ud800\x85"
    attributes = report(
        item("TEXT", "A", TextValue="x"),
        item("CONTAINER", "B", ContentSequence=[item("CODE", "C", ConceptCodeSequence=code("x"))]),
    )
    replaced = put_everywhere(attributes, attack)
    document = checked(report_html(replaced, link=lambda *_: f'javascript:"{attack}'))
    assert "<script" not in document
    assert "javascript:" not in document
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", document)
    assert document.count("&lt;script&gt;alert(1)") >= 4
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", report_text(replaced).decode())


def put_everywhere(value: Any, text: str) -> Any:
    """The data set with a text in place of every other text but the value types and UIDs of its structure."""
    if isinstance(value, list):
        return [put_everywhere(part, text) for part in value]
    if not isinstance(value, dict):
        return text
    if value.get("vr") in ("CS", "UI"):
        return value
    return {key: part if key == "vr" else put_everywhere(part, text) for key, part in value.items()}


def test_the_page_allows_its_own_style_and_nothing_else() -> None:
    page = lxml_html.document_fromstring(report_html(report()).decode())
    assert page.xpath("//meta[@http-equiv='Content-Security-Policy']/@content") == [CONTENT_SECURITY_POLICY]
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; style-src 'sha256-")
    assert not page.xpath("//@style | //script | //@src")


def test_references_are_linked_where_the_caller_knows_an_address() -> None:
    def image(uid: str, **more: Any) -> Dataset:
        reference = dataset(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=uid, **more)
        return item("IMAGE", "Key image", ReferencedSOPSequence=[reference])

    attributes = report(image("1.2.4", ReferencedFrameNumber=[3, 5]), image("1.2.5"))
    document = report_html(attributes, link=lambda sop_class, uid: f"/x/{sop_class}/{uid}" if uid == "1.2.4" else "")
    page = lxml_html.document_fromstring(checked(document))
    assert page.xpath("//a/@href") == [f"/x/{CT}/1.2.4"]
    assert "CT Image 1.2.4, frames 3, 5" in words(document)
    assert "Key image: CT Image (1.2.5)" in report_text(attributes).decode()


def test_a_by_reference_relationship_jumps_to_the_item_it_names() -> None:
    finding = item("CODE", "Finding", ConceptCodeSequence=code("Nodule"))
    jump = dataset(RelationshipType="INFERRED FROM", ReferencedContentItemIdentifier=[1, 1])
    lost = dataset(RelationshipType="INFERRED FROM", ReferencedContentItemIdentifier=[1, 9, 9])
    conclusion = item("TEXT", "Conclusion", TextValue="Follow up.", ContentSequence=[jump, lost])
    page = lxml_html.document_fromstring(checked(report_html(report(finding, conclusion))))
    assert page.xpath("//a[@href='#item-1-1']//text()") == ["Finding: Nodule"]
    assert page.xpath("//*[@id='item-1-1']//dd//text()") == ["Nodule"]
    assert "item 1.9.9, which is not in this document" in words(report_html(report(finding, conclusion)))


def test_a_continuous_container_reads_as_running_text() -> None:
    size = [dataset(NumericValue="3", MeasurementUnitsCodeSequence=code("centimeter", "cm", "UCUM"))]
    modifier = item("CODE", "Site", "HAS CONCEPT MOD", ConceptCodeSequence=code("left"))
    prose = item(
        "CONTAINER",
        "Findings",
        ContinuityOfContent="CONTINUOUS",
        ContentSequence=[
            item("TEXT", "T", TextValue="A mass of", ContentSequence=[modifier]),
            item("NUM", "N", MeasuredValueSequence=size),
            item("TEXT", "T", TextValue="was seen."),
        ],
    )
    assert "A mass of (left) 3 cm was seen." in words(report_html(report(prose)))
    assert "A mass of (left) 3 cm was seen." in report_text(report(prose)).decode()


def test_coordinates_are_summarised() -> None:
    line = item("SCOORD", "Path", GraphicType="POLYLINE", GraphicData=[float(number) for number in range(24)])
    point = item("SCOORD3D", "Spot", GraphicType="POINT", GraphicData=[1.25, 2.0, -3.5])
    times = item("TCOORD", "Beats", TemporalRangeType="MULTIPOINT", ReferencedSamplePositions=[10, 20])
    plain = report_text(report(line, point, times)).decode()
    for expected in (
        "Path: Polyline, 12 points\n",
        "Spot: Point ((1.25, 2, -3.5))",
        "Beats: Multipoint (at sample 10, 20)",
    ):
        assert expected in plain


def test_an_unknown_value_type_is_shown_with_all_it_has() -> None:
    odd = item("HOLOGRAM", "Future", TextValue="still here", PatientComments="and this")
    seen = words(report_html(report(odd)))
    assert "still here" in seen
    assert "and this" in seen


def test_a_text_too_long_for_the_metadata_is_read_as_bulk_data_in_the_character_set_of_the_file() -> None:
    section = item("CONTAINER", "S", ContentSequence=[item("TEXT", "Long", TextValue="x")])
    attributes = report(item("TEXT", "A", TextValue="a"), section, SpecificCharacterSet="ISO_IR 100")
    attributes["0040A730"]["Value"][1]["0040A730"]["Value"][0]["0040A160"] = {"vr": "UT", "BulkDataURI": "/somewhere"}
    asked: list[str] = []

    def bulk(path: str) -> bytes:
        asked.append(path)
        return "Größe ".encode("latin-1") * 20000

    assert words(report_html(attributes, bulk=bulk)).count("Größe") == 20000
    assert asked == ["/0040A730/2/0040A730/1/0040A160"]
    assert "too long for the metadata" in report_text(attributes).decode()


@pytest.mark.parametrize("make", [report_html, report_text])
def test_a_document_that_grows_too_long_ends_early_and_says_so(make: Any) -> None:
    row = item("TEXT", "Row", TextValue="ü" * 50_000).to_json_dict()
    attributes = report(item("CONTAINER", "Part", ContentSequence=[]))
    attributes["0040A730"]["Value"][0]["0040A730"] = {"vr": "SQ", "Value": [row] * 200}
    document = make(attributes)
    assert len(document) <= MAX_REPORT_LENGTH
    assert document.count(b"This document is longer than can be shown here.") == 2
    if make is report_html:
        checked(document)


def test_depth_is_bounded() -> None:
    attributes = report(item("TEXT", "T", TextValue="x"))
    for _ in range(300):
        attributes = {
            **attributes,
            "0040A730": {"vr": "SQ", "Value": [{**attributes, "0040A040": {"vr": "CS", "Value": ["CONTAINER"]}}]},
        }
    assert "deeper than this is not shown" in checked(report_html(attributes))
    assert b"deeper than this is not shown" in report_text(attributes)


def test_items_that_refer_to_items_in_a_huge_report_do_not_cost_its_square() -> None:
    jumps = [{"00404010": {"vr": "DT"}, "0040DB73": {"vr": "UL", "Value": [1, 30_000]}}] * 30_000
    attributes = report()
    attributes["0040A730"] = {"vr": "SQ", "Value": jumps}
    assert len(report_text(attributes)) > 30_000 * 10


def test_other_objects_are_a_table_of_their_attributes() -> None:
    rois = [dataset(ROINumber=number, ROIName=name, ROIGenerationAlgorithm="MANUAL")
            for number, name in ((1, "Lung"), (2, "<b>Heart"))]  # fmt: skip
    plan = dataset(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3",
        SOPInstanceUID="1.2.3",
        StructureSetLabel="Thorax plan",
        StructureSetROISequence=rois,
        ContentCreatorName="",
        PatientID="P1",
    )
    document = report_html(dict(plan.to_json_dict()))
    page = lxml_html.document_fromstring(checked(document))
    assert page.xpath("//h1//text()") == ["Thorax plan"]
    assert page.xpath("//thead//text()") == ["ROI Number", "ROI Name", "ROI Generation Algorithm"]
    assert page.xpath("//tbody/tr[2]/td//text()") == ["2", "<b>Heart", "MANUAL"]
    assert "Content Creator's Name" not in words(document)


def test_what_a_document_refers_to_is_found_with_its_study_and_series() -> None:
    reference = dataset(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID="1.5")
    series = dataset(SeriesInstanceUID="1.4", ReferencedSOPSequence=[reference])
    evidence = [dataset(StudyInstanceUID="1.3", ReferencedSeriesSequence=[series])]
    attributes = report(CurrentRequestedProcedureEvidenceSequence=evidence)
    assert referenced_instances(attributes) == {"1.5": ("1.3", "1.4")}
    own = dataset(SeriesInstanceUID="2.4", ReferencedImageSequence=[reference])
    state = dict(dataset(StudyInstanceUID="2.3", ReferencedSeriesSequence=[own]).to_json_dict())
    assert referenced_instances(state) == {"1.5": ("2.3", "2.4")}


@pytest.mark.parametrize(
    ("sop_class", "declared", "media_type"),
    [
        ("1.2.840.10008.5.1.4.1.1.104.1", "text/html", "application/pdf"),
        ("1.2.840.10008.5.1.4.1.1.104.2", "", "text/xml"),
        ("1.2.840.10008.5.1.4.1.1.104.3", "model/stl", "model/stl"),
        ("1.2.3.4", "application/pdf; x=y", "application/pdf"),
        ("1.2.3.4", "text/html", "application/octet-stream"),
    ],
)
def test_an_encapsulated_document_has_the_media_type_of_its_class(
    sop_class: str, declared: str, media_type: str
) -> None:
    made = dataset(SOPClassUID=sop_class, MIMETypeOfEncapsulatedDocument=declared, EncapsulatedDocumentLength=5)
    attributes = dict(made.to_json_dict()) | {"00420011": {"vr": "OB", "InlineBinary": "JVBERi0A"}}
    assert encapsulated_document(attributes) == (media_type, "/00420011", 5, b"%PDF-")
    expected = ("text/html", "text/plain", "text/xml") if media_type == "text/xml" else (media_type,)
    assert media_types_of(attributes) == expected
    attributes["00420011"] = {"vr": "OB", "BulkDataURI": "/studies/1/bulkdata/00420011"}
    assert encapsulated_document(attributes) == (media_type, "/00420011", 5, None)
    assert encapsulated_document({}) is None


@pytest.mark.parametrize(
    ("attributes", "transfer_syntax", "default", "other"),
    [
        ({"7FE00010": {"vr": "OW"}}, "", "image/jpeg", "image/png"),
        ({"7FE00010": {"vr": "OW"}, "00280008": {"vr": "IS", "Value": [3]}}, "", "image/gif", "image/jpeg"),
        ({"7FE00010": {"vr": "OB"}}, "1.2.840.10008.1.2.4.102", "video/mp4", None),
        ({"54000100": {"vr": "SQ"}}, "", "image/svg+xml", "image/png"),
        ({"00080016": {"vr": "UI", "Value": [TEXT_SR]}}, "", "text/html", "text/plain"),
        ({"00080016": {"vr": "UI", "Value": [KEY_OBJECTS]}}, "", "text/html", "text/plain"),
        ({"00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.11.1"]}}, "", "image/jpeg", "text/html"),
        ({}, "", "text/html", "text/plain"),
    ],
)
def test_an_instance_has_the_media_types_of_its_category(
    attributes: dict[str, Any], transfer_syntax: str, default: str, other: str | None
) -> None:
    types = media_types_of(attributes, transfer_syntax)
    assert types[0] == default
    assert other is None or other in types


def test_a_report_of_countless_empty_items_ends() -> None:
    attributes = report(item("CONTAINER", "Prose", ContinuityOfContent="CONTINUOUS", ContentSequence=[]))
    empty = item("TEXT", ContentSequence=[]).to_json_dict()
    attributes["0040A730"]["Value"][0]["0040A730"] = {"vr": "SQ", "Value": [empty] * 210_000}
    assert b"longer than can be shown" in report_text(attributes)


def test_an_attribute_with_the_wrong_vr_is_no_sequence() -> None:
    name = {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]}
    attributes = report(item("CONTAINER", "S", ContentSequence=[item("TEXT", "T", TextValue="x")]))
    section = attributes["0040A730"]["Value"][0]
    for key in ("0040A730", "0040A043", "0040A160", "0040DB73"):
        section[key] = name
    assert "Chest report" in checked(report_html(attributes))
    assert "Chest report" in checked(report_html(attributes | {"0040A730": name, "0040A504": name}))


CDA = """<?xml version="1.0"?><!DOCTYPE ClinicalDocument [<!ENTITY e SYSTEM "file:///etc/hostname">]>
<ClinicalDocument xmlns="urn:hl7-org:v3"><title>Discharge &lt;note&gt;</title><languageCode code="de-CH"/>
<recordTarget><patientRole><patient><name><given>Jane</given> <family>Doe</family></name></patient></patientRole>
</recordTarget><component><structuredBody><component><section><title>Findings</title><text>
Lungs <content styleCode="Bold">clear</content>.&e;<paragraph>Second.</paragraph>
<list listType="ordered"><item>one</item><item>two</item></list>
<table><thead><tr><th>Test</th><th>Value</th></tr></thead><tbody><tr><td>CRP</td><td>5</td></tr></tbody></table>
<x:script xmlns:x="http://www.w3.org/1999/xhtml">alert(1)</x:script></text>
<component><section><title>Heart</title><text>Normal.</text></section></component>
</section></component></structuredBody></component></ClinicalDocument>"""


def clinical_document(content: bytes | None) -> dict[str, Any]:
    made = dataset(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.2", SOPInstanceUID="1.2.3", DocumentTitle="Note")
    element = {"InlineBinary": base64.b64encode(content).decode()} if content else {"BulkDataURI": "/x"}
    return dict(made.to_json_dict()) | {"00420011": {"vr": "OB", **element}}


def test_the_narrative_of_a_clinical_document_is_read_out() -> None:
    document = report_html(clinical_document(CDA.encode()))
    page = lxml_html.document_fromstring(checked(document))
    assert page.xpath("//main//section/*[self::h2 or self::h3 or self::h4]//text()") == [
        "Discharge <note>", "Findings", "Heart"
    ]  # fmt: skip
    assert page.xpath("//section/@lang") == ["de-CH"]
    assert page.xpath("//th/text() | //td//text()") == ["Test", "Value", "CRP", "5"]
    for expected in ("Jane Doe", "Lungs clear.", "Second.", "1. one", "2. two", "Normal."):
        assert expected in words(document)
        assert expected in report_text(clinical_document(CDA.encode())).decode()


def test_a_clinical_document_reaches_no_file_and_faults_are_said() -> None:
    hostname = Path("/etc/hostname")
    if hostname.is_file():
        assert hostname.read_text().strip() not in words(report_html(clinical_document(CDA.encode())))
    assert "no well-formed XML" in words(report_html(clinical_document(b"<a>")))
    assert "a bulk value" in words(report_html(clinical_document(None)))
    assert "Heart" in words(report_html(clinical_document(None), bulk={"/00420011": CDA.encode()}.__getitem__))
