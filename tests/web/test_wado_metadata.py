"""Metadata: the cached document, what is sent of it, XML, and the validators."""

from __future__ import annotations

import gzip
import re
from io import BytesIO
from pathlib import Path

import orjson
import pytest
from flask.testing import FlaskClient
from lxml import etree
from pydicom.dataset import Dataset

from tests.data import make_dataset, make_file, pydicom_files, sample_files
from tests.web.test_wado_rs import store

GZIP = {"Accept-Encoding": "gzip, deflate"}
XML = {"Accept": 'multipart/related; type="application/dicom+xml"'}
NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"

# The Native DICOM Model in the compact syntax of PS3.19 A.1.6, as XML Schema: elements, their attributes, their order.
SCHEMA = """<?xml version="1.0"?>
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM"
    targetNamespace="http://dicom.nema.org/PS3.19/models/NativeDICOM" elementFormDefault="qualified">
  <xs:import namespace="http://www.w3.org/XML/1998/namespace"/>
  <xs:element name="NativeDicomModel"><xs:complexType><xs:sequence>
    <xs:element ref="DicomAttribute" minOccurs="0" maxOccurs="unbounded"/></xs:sequence>
    <xs:anyAttribute namespace="http://www.w3.org/XML/1998/namespace" processContents="skip"/>
  </xs:complexType></xs:element>
  <xs:simpleType name="Number"><xs:restriction base="xs:positiveInteger"/></xs:simpleType>
  <xs:element name="DicomAttribute"><xs:complexType>
    <xs:choice minOccurs="0">
      <xs:element name="BulkData"><xs:complexType>
        <xs:attribute name="uri" type="xs:anyURI"/><xs:attribute name="uuid" type="xs:string"/></xs:complexType>
      </xs:element>
      <xs:element name="Value" maxOccurs="unbounded"><xs:complexType><xs:simpleContent><xs:extension base="xs:string">
        <xs:attribute name="number" type="Number" use="required"/></xs:extension></xs:simpleContent></xs:complexType>
      </xs:element>
      <xs:element name="Item" maxOccurs="unbounded"><xs:complexType><xs:sequence>
        <xs:element ref="DicomAttribute" minOccurs="0" maxOccurs="unbounded"/></xs:sequence>
        <xs:attribute name="number" type="Number" use="required"/></xs:complexType></xs:element>
      <xs:element name="PersonName" maxOccurs="unbounded"><xs:complexType><xs:sequence>
        <xs:element name="Alphabetic" type="Name" minOccurs="0"/>
        <xs:element name="Ideographic" type="Name" minOccurs="0"/>
        <xs:element name="Phonetic" type="Name" minOccurs="0"/></xs:sequence>
        <xs:attribute name="number" type="Number" use="required"/></xs:complexType></xs:element>
      <xs:element name="InlineBinary" type="xs:base64Binary"/>
    </xs:choice>
    <xs:attribute name="tag" use="required"><xs:simpleType><xs:restriction base="xs:string">
      <xs:pattern value="[0-9A-F]{8}"/></xs:restriction></xs:simpleType></xs:attribute>
    <xs:attribute name="vr" use="required"><xs:simpleType><xs:restriction base="xs:string">
      <xs:pattern value="[A-Z]{2}"/></xs:restriction></xs:simpleType></xs:attribute>
    <xs:attribute name="keyword" type="xs:NCName"/>
    <xs:attribute name="privateCreator" type="xs:string"/>
  </xs:complexType></xs:element>
  <xs:complexType name="Name"><xs:sequence>
    <xs:element name="FamilyName" type="xs:string" minOccurs="0"/>
    <xs:element name="GivenName" type="xs:string" minOccurs="0"/>
    <xs:element name="MiddleName" type="xs:string" minOccurs="0"/>
    <xs:element name="NamePrefix" type="xs:string" minOccurs="0"/>
    <xs:element name="NameSuffix" type="xs:string" minOccurs="0"/></xs:sequence></xs:complexType>
</xs:schema>"""
NATIVE_MODEL = etree.XMLSchema(etree.fromstring(SCHEMA.encode()))


def documents(body: bytes) -> list[bytes]:
    return re.findall(rb"<\?xml.*?</NativeDicomModel>|<\?xml[^<]*<NativeDicomModel[^>]*/>", body, re.DOTALL)


@pytest.fixture
def study(client: FlaskClient) -> str:
    """Two series of three and one instances."""
    uid, series = make_dataset().StudyInstanceUID, make_dataset().SeriesInstanceUID
    files = [make_file(StudyInstanceUID=uid, SeriesInstanceUID=series, InstanceNumber=n) for n in (1, 2, 3)]
    other = make_file(StudyInstanceUID=uid, SeriesNumber=2, InstanceNumber=4)
    return store(client, *files, other)[0].partition("/series/")[0]


def numbers(data_sets: list[dict[str, dict[str, list[int]]]]) -> list[int]:
    return [data_set["00200013"]["Value"][0] for data_set in data_sets]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_every_way_of_sending_gives_the_same_json(make_app, cache_bytes: int) -> None:  # type: ignore[no-untyped-def]
    client = make_app(cache_bytes=cache_bytes).test_client()
    first = make_dataset(SeriesNumber=1, InstanceNumber=1)
    uids = {name: first[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    second = make_file(**uids, SeriesNumber=1, InstanceNumber=2)
    other = make_file(StudyInstanceUID=first.StudyInstanceUID, SeriesNumber=2)
    urls = store(client, make_file(first), second, other)
    single = [client.get(f"{url}/metadata").json[0] for url in urls]
    url = urls[0].partition("/series/")[0] + "/metadata"
    for _ in range(2):  # made, then from the cache
        plain, zipped = client.get(url), client.get(url, headers=GZIP)
        assert plain.json == single
        assert "Content-Encoding" not in plain.headers
        assert zipped.headers["Content-Encoding"] == "gzip"
        assert orjson.loads(gzip.decompress(zipped.data)) == single
        assert plain.headers["Vary"] == zipped.headers["Vary"] == "Accept, Accept-Encoding"
        assert plain.headers["ETag"] != zipped.headers["ETag"]


@pytest.mark.parametrize("encoding", ["identity", "gzip;q=0", "br", ""])
def test_who_does_not_accept_gzip_does_not_get_it(client: FlaskClient, study: str, encoding: str) -> None:
    answer = client.get(f"{study}/metadata", headers={"Accept-Encoding": encoding})
    assert "Content-Encoding" not in answer.headers
    assert numbers(answer.json) == [1, 2, 3, 4]


def test_a_change_below_the_series_is_seen_at_once(client: FlaskClient, study: str) -> None:
    before = client.get(f"{study}/metadata", headers=GZIP)
    uids = {"StudyInstanceUID": study.rpartition("/")[2], "SeriesInstanceUID": before_series(before.data)}
    (added,) = store(client, make_file(**uids, InstanceNumber=9))
    assert numbers(client.get(f"{study}/metadata").json) == [1, 2, 3, 9, 4]
    client.delete(added)
    after = client.get(f"{study}/metadata", headers={**GZIP, "If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    assert numbers(orjson.loads(gzip.decompress(after.data))) == [1, 2, 3, 4]


def before_series(body: bytes) -> str:
    uid: str = orjson.loads(gzip.decompress(body))[0]["0020000E"]["Value"][0]
    return uid


def test_the_cached_text_is_that_of_the_url_under_which_the_client_asks(client: FlaskClient, study: str) -> None:
    for host in ("pacs", "other", "pacs"):
        data_sets = client.get(f"{study}/metadata", base_url=f"https://{host}").json
        assert all(ds["7FE00010"]["BulkDataURI"].startswith(f"https://{host}{study}/series/") for ds in data_sets)


def test_the_cache_may_be_deleted_while_the_server_runs(client: FlaskClient, study: str, tmp_path: Path) -> None:
    import shutil

    assert len(client.get(f"{study}/metadata").json) == 4
    shutil.rmtree(tmp_path / "data" / "cache")
    assert len(client.get(f"{study}/metadata").json) == 4


@pytest.mark.parametrize("tail", ["", "/series/{}", "/series/{}/instances/{}"])
def test_validators_of_metadata(client: FlaskClient, study: str, tail: str) -> None:
    first = client.get(f"{study}/metadata").json[0]
    url = study + tail.format(first["0020000E"]["Value"][0], first["00080018"]["Value"][0]) + "/metadata"
    answer = client.get(url)
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.headers["Content-Location"] == f"http://localhost{url}"
    since = {"If-Modified-Since": answer.headers["Last-Modified"]}
    assert client.get(url, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304
    assert client.get(url, headers={"If-None-Match": '"other"', **since}).status_code == 200  # RFC 9110 13.1.3
    assert client.get(url, headers={"If-Modified-Since": "Mon, 01 Jan 2024 00:00:00 GMT"}).status_code == 200
    head = client.head(url)
    assert (head.status_code, head.data, head.headers["ETag"]) == (200, b"", answer.headers["ETag"])


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ("PatientName", {"00100010"}),
        ("00100010,Rows", {"00100010", "00280010"}),
        ("7fe00010", {"7FE00010"}),
        ("StudyDate&includefield=Modality", {"00080020", "00080060"}),
        ("DoseGridScaling", set()),
        ("00091002", {"00090010", "00091002"}),
    ],
)
def test_metadata_can_be_reduced_to_some_attributes(client: FlaskClient, fields: str, more: set[str]) -> None:
    dataset = make_dataset()
    dataset.private_block(0x0009, "DICOMCLOUD TEST", create=True).add_new(2, "LO", "private")
    (url,) = store(client, make_file(dataset))
    identity = {"00080016", "00080018", "0020000D", "0020000E"}
    for resource in (url, url.partition("/instances/")[0]):
        (found,) = client.get(f"{resource}/metadata?includefield={fields}").json
        assert set(found) == identity | more
    assert len(client.get(f"{url}/metadata?includefield=all").json[0]) > 20


def test_a_field_that_is_unknown_is_named(client: FlaskClient, study: str) -> None:
    answer = client.get(f"{study}/metadata?includefield=PatientName,PatientNmae")
    assert (answer.status_code, "PatientNmae" in answer.json["message"]) == (400, True)


# XML


def test_metadata_as_xml_is_a_part_for_each_instance_in_order(client: FlaskClient, study: str) -> None:
    answer = client.get(f"{study}/metadata", headers=XML)
    found = [etree.fromstring(document) for document in documents(answer.data)]
    path = f"{NATIVE}DicomAttribute[@tag='00200013']/{NATIVE}Value"
    assert [model.find(path).text for model in found] == ["1", "2", "3", "4"]
    tags = [attribute.get("tag") for attribute in found[0].findall(f"{NATIVE}DicomAttribute")]
    assert tags == sorted(tags)
    bulk = found[0].find(f"{NATIVE}DicomAttribute[@tag='7FE00010']/{NATIVE}BulkData").get("uri")
    assert client.get(bulk).status_code == 200
    assert answer.headers["Content-Type"].startswith('multipart/related; type="application/dicom+xml"; boundary=')


def test_search_results_and_store_responses_as_xml_follow_the_schema(client: FlaskClient, study: str) -> None:
    for level in ("studies", "series", "instances"):
        answer = client.get(f"/dicomweb/{level}", headers=XML)
        found = [etree.fromstring(document) for document in documents(answer.data)]
        assert len(found) == {"studies": 1, "series": 2, "instances": 4}[level]
        for model in found:
            NATIVE_MODEL.assertValid(model)
    assert client.get("/dicomweb/studies?PatientID=nobody", headers=XML).status_code == 200
    for kind in (XML["Accept"], "application/dicom+xml"):
        stored = client.post(
            "/dicomweb/studies", data=make_file(), content_type="application/dicom", headers={"Accept": kind}
        )
        (module,) = documents(stored.data)
        NATIVE_MODEL.assertValid(etree.fromstring(module))


def test_names_sequences_private_and_binary_values_follow_the_schema(client: FlaskClient) -> None:
    dataset, item = make_dataset(), Dataset()
    dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    item.CodeValue = "<&>\x07"
    dataset.ProcedureCodeSequence = [item, Dataset()]
    dataset.ICCProfile = b"profile "
    dataset.private_block(0x0009, "DICOMCLOUD TEST", create=True).add_new(2, "LO", ["a", "", "c"])
    (url,) = store(client, make_file(dataset))
    model = etree.parse(BytesIO(client.get(f"{url}/metadata", headers={"Accept": "application/dicom+xml"}).data))
    NATIVE_MODEL.assertValid(model)
    private = model.find(f"{NATIVE}DicomAttribute[@tag='00091002']")
    assert private.get("privateCreator") == "DICOMCLOUD TEST"
    assert [value.get("number") for value in private] == ["1", "2", "3"]


@pytest.mark.parametrize("files", [pydicom_files, sample_files])
def test_xml_of_real_files_follows_the_schema(client: FlaskClient, files) -> None:  # type: ignore[no-untyped-def]
    checked = 0
    for path in files()[:300]:
        answer = client.post("/dicomweb/studies", data=path.read_bytes(), content_type="application/dicom")
        if answer.status_code != 200:
            continue
        url = answer.json["00081199"]["Value"][0]["00081190"]["Value"][0]
        answer = client.get(f"{url}/metadata", headers={"Accept": "application/dicom+xml"})
        model = etree.fromstring(answer.data)
        assert NATIVE_MODEL.validate(model), f"{path.name}: {NATIVE_MODEL.error_log}"
        assert len(model) == len(client.get(f"{url}/metadata").json[0])
        checked += 1
    assert checked >= 10 or not files()
