"""Native DICOM Model XML of metadata, search and store: held against a grammar of PS3.19 Annex A.1."""

from __future__ import annotations

import email

import pytest
from flask.testing import FlaskClient
from lxml import etree
from pydicom.dataset import Dataset
from werkzeug.test import TestResponse

from tests.data import make_dataset, make_file, sample_files

XML = 'multipart/related; type="application/dicom+xml"'
MODEL = {"m": "http://dicom.nema.org/PS3.19/models/NativeDICOM"}
VRS = "AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV"

# PS3.19 Tables A.1.5-2 to A.1.5-4 as RELAX NG: order and number of elements, attributes, and what they may hold.
GRAMMAR = f"""
<grammar xmlns="http://relaxng.org/ns/structure/1.0" ns="{MODEL["m"]}"
         datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">
  <start><element name="NativeDicomModel">
    <optional><attribute name="xml:space"><value>preserve</value></attribute></optional>
    <ref name="dataSet"/></element></start>
  <define name="dataSet"><zeroOrMore><element name="DicomAttribute">
    <attribute name="tag"><data type="string"><param name="pattern">[0-9A-F]{{8}}</param></data></attribute>
    <attribute name="vr"><choice>{"".join(f"<value>{vr}</value>" for vr in VRS.split())}</choice></attribute>
    <optional><attribute name="keyword"><data type="string"><param name="pattern">[A-Za-z0-9]+</param></data>
      </attribute></optional>
    <optional><attribute name="privateCreator"><text/></attribute></optional>
    <choice>
      <zeroOrMore><element name="Value"><ref name="number"/><text/></element></zeroOrMore>
      <zeroOrMore><element name="Item"><ref name="number"/><ref name="dataSet"/></element></zeroOrMore>
      <zeroOrMore><element name="PersonName"><ref name="number"/>
        <optional><element name="Alphabetic"><ref name="name"/></element></optional>
        <optional><element name="Ideographic"><ref name="name"/></element></optional>
        <optional><element name="Phonetic"><ref name="name"/></element></optional></element></zeroOrMore>
      <element name="InlineBinary"><data type="base64Binary"/></element>
      <element name="BulkData"><choice>
        <attribute name="uri"><data type="anyURI"/></attribute>
        <attribute name="uuid"><text/></attribute></choice><empty/></element>
    </choice></element></zeroOrMore></define>
  <define name="number"><attribute name="number"><data type="positiveInteger"/></attribute></define>
  <define name="name">
    {
    "".join(
        f"<optional><element name='{part}'><text/></element></optional>"
        for part in ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
    )
}
  </define>
</grammar>"""
SCHEMA = etree.RelaxNG(etree.fromstring(GRAMMAR))


def valid(document: bytes) -> etree._Element:
    model = etree.fromstring(document)
    SCHEMA.assertValid(model)
    for numbered in {element.getparent() for element in model.iter("{*}Value", "{*}Item", "{*}PersonName")}:
        assert [child.get("number") for child in numbered] == [str(n + 1) for n in range(len(numbered))]
    return model


def models(answer: TestResponse) -> list[etree._Element]:
    """The valid models of a multipart answer."""
    assert answer.status_code in (200, 202, 409), answer.text
    assert answer.headers["Content-Type"].startswith(XML)
    message = email.message_from_bytes(f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode() + answer.data)
    found = []
    for part in message.get_payload():
        assert part.get_content_type() == "application/dicom+xml"
        found.append(valid(part.get_payload(decode=True)))
    return found


def value(model: etree._Element, keyword: str) -> str:
    return str(model.xpath(f"string(m:DicomAttribute[@keyword='{keyword}']/m:Value)", namespaces=MODEL))


def store(client: FlaskClient, *files: bytes) -> str:
    """Store the files; return the URL of the last."""
    for file in files:
        answer = client.post("/dicomweb/studies", data=file, content_type="application/dicom")
        assert answer.status_code == 200, answer.text
    url: str = answer.json["00081199"]["Value"][0]["00081190"]["Value"][0]
    return url.removeprefix("http://localhost")


def rich_dataset() -> Dataset:
    dataset = make_dataset(PatientName="山田^太郎=ﾔﾏﾀﾞ^ﾀﾛｳ", ImageType=["ORIGINAL", "", "AXIAL"], ICCProfile=b"icc!")
    dataset.RedPaletteColorLookupTableData = bytes(2048)
    dataset.private_block(0x0029, "ACME <&>", create=True).add_new(0x01, "FD", [1.5, 2.0])
    dataset.ProcedureCodeSequence = [Dataset(), Dataset()]
    dataset.ProcedureCodeSequence[1].CodeMeaning = "a < b & c"
    dataset.PatientComments = "bell \x07 and tab\t"
    return dataset


def test_metadata_are_a_model_for_each_instance(client: FlaskClient) -> None:
    study = make_dataset().StudyInstanceUID
    url = store(client, *(make_file(StudyInstanceUID=study, SeriesNumber=n) for n in (3, 1, 2)))
    answer = client.get(url.partition("/series/")[0] + "/metadata", headers={"Accept": XML})
    assert [value(model, "SeriesNumber") for model in models(answer)] == ["1", "2", "3"]


def test_a_rich_data_set_is_valid_and_complete(client: FlaskClient) -> None:
    dataset = rich_dataset()
    url = store(client, make_file(dataset))
    answer = client.get(f"{url}/metadata", headers={"Accept": "application/dicom+xml"})
    assert answer.headers["Content-Type"] == "application/dicom+xml"
    model = valid(answer.data)
    assert [int(tag, 16) for tag in model.xpath("m:DicomAttribute/@tag", namespaces=MODEL)] == sorted(
        element.tag for element in dataset
    )
    bulk = model.xpath("//m:DicomAttribute[@tag='00281201']/m:BulkData/@uri", namespaces=MODEL)
    assert bulk == [f"http://localhost{url}/bulkdata/00281201"]
    assert client.get(bulk[0], headers={"Accept": "application/octet-stream"}).data == bytes(2048)
    assert model.xpath("string(//m:Item[@number='2']//m:Value)", namespaces=MODEL) == "a < b & c"
    assert model.xpath("//m:Ideographic/m:FamilyName/text() | //m:Alphabetic/m:FamilyName/text()", namespaces=MODEL)
    assert model.xpath("string(//*[@tag='00291001']/@privateCreator)") == "ACME <&>"


def test_representations_have_validators_of_their_own(client: FlaskClient) -> None:
    url = store(client, make_file())
    etags = {
        accept: client.get(f"{url}/metadata", headers={"Accept": accept}).headers["ETag"]
        for accept in (XML, "application/dicom+xml", "application/dicom+json")
    }
    assert len(set(etags.values())) == 3
    for accept, etag in etags.items():
        headers = {"Accept": accept, "If-None-Match": etag}
        assert client.get(f"{url}/metadata", headers=headers).status_code == 304


def test_several_instances_are_not_to_be_had_as_one_document(client: FlaskClient) -> None:
    study = store(client, make_file()).partition("/series/")[0]
    assert client.get(f"{study}/metadata", headers={"Accept": "application/dicom+xml"}).status_code == 406


def test_search_results_are_a_model_each(client: FlaskClient) -> None:
    study = make_dataset().StudyInstanceUID
    url = store(client, *(make_file(StudyInstanceUID=study, InstanceNumber=n) for n in (1, 2)))
    for resource, number in (("studies", 1), ("series", 2), ("instances", 2), (f"studies/{study}/instances", 2)):
        answer = client.get(f"/dicomweb/{resource}", headers={"Accept": XML})
        found = models(answer)
        assert (len(found), answer.headers["X-Total-Count"]) == (number, str(number))
        assert {value(model, "StudyInstanceUID") for model in found} == {study}
    (model,) = models(client.get("/dicomweb/instances?InstanceNumber=2&includefield=all", headers={"Accept": XML}))
    assert value(model, "RetrieveURL") == f"http://localhost{url}"
    assert model.xpath("string(//m:BulkData/@uri)", namespaces=MODEL) == f"http://localhost{url}/bulkdata/7FE00010"


def test_a_search_without_results_has_no_parts(client: FlaskClient) -> None:
    answer = client.get("/dicomweb/studies", headers={"Accept": XML})
    assert (answer.status_code, answer.headers["X-Total-Count"]) == (200, "0")
    assert answer.data.startswith(b"--")
    assert answer.data.rstrip().endswith(b"--")


@pytest.mark.parametrize(("accept", "alone"), [(XML, False), ("application/dicom+xml", True)])
def test_store_answers_are_models(client: FlaskClient, accept: str, alone: bool) -> None:
    for body, status in ((make_file(), 200), (b"nonsense", 409)):
        headers = {"Accept": accept, "Content-Type": "application/dicom"}
        answer = client.post("/dicomweb/studies", data=body, headers=headers)
        assert answer.status_code == status
        model = valid(answer.data) if alone else models(answer)[0]
        sequence = "ReferencedSOPSequence" if status == 200 else "OtherFailuresSequence"
        assert len(model.xpath(f"m:DicomAttribute[@keyword='{sequence}']/m:Item", namespaces=MODEL)) == 1


@pytest.mark.skipif(not sample_files(), reason="the samples are not here")
def test_the_metadata_of_every_sample_is_a_valid_model(client: FlaskClient) -> None:
    for path in sample_files():
        client.post("/dicomweb/studies", data=path.read_bytes(), content_type="application/dicom")
    studies = [item["0020000D"]["Value"][0] for item in client.get("/dicomweb/studies").json]
    number = 0
    for study in studies:
        in_json = client.get(f"/dicomweb/studies/{study}/metadata").json
        in_xml = models(client.get(f"/dicomweb/studies/{study}/metadata", headers={"Accept": XML}))
        for attributes, model in zip(in_json, in_xml, strict=True):
            assert list(attributes) == [child.get("tag") for child in model]
            number += 1
    assert number > 100
