"""What every resource answers to every kind of Accept header, with the clause of PS3.18 that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from flask.testing import FlaskClient
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.data import make_dataset, make_file
from tests.web.test_wado_rs import encoded, make_large, store

ELE, DEFLATED, J2K, RLE = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
)
BASELINE, JPEG_LOSSLESS, JLS, NEAR, HTJ2K = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.201",
)
DICOM, OCTETS, XML = ("application/dicom", "application/octet-stream", "application/dicom+xml")


def multi(media_type: str, syntax: str = "") -> str:
    return f'multipart/related; type="{media_type}"' + (f"; transfer-syntax={syntax}" if syntax else "")


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

# resource, Accept, status, what comes (of parts: in parentheses), clause
MATRIX = [
    # one instance, stored in Explicit VR Little Endian, 16 bits
    ("native", "*/*", 200, f"({DICOM}; transfer-syntax={ELE})", "8.7.5: */* is the default, 10.4.4"),
    (
        "native",
        BROWSER,
        200,
        f"({DICOM}; transfer-syntax={ELE})",
        "8.7.5: */* mixes no types",
    ),
    ("native", "multipart/related", 200, f"({DICOM}; transfer-syntax={ELE})", "8.7.5"),
    ("native", "multipart/related; type=application/dicom", 200, f"({DICOM}; transfer-syntax={ELE})", "8.6.1.2.1"),
    ("native", DICOM, 200, f"{DICOM}; transfer-syntax={ELE}", "10.4.4: single part of a single item"),
    ("native", "application/*", 200, f"{DICOM}; transfer-syntax={ELE}", "8.4.1, RFC 9110 12.5.1"),
    ("native", multi(DICOM, J2K), 200, f"({DICOM}; transfer-syntax={J2K})", "8.7.8.2: converted"),
    ("native", multi(DICOM, f'"{J2K}"'), 200, f"({DICOM}; transfer-syntax={J2K})", "RFC 9110 5.6.6: quoted"),
    ("native", f"{DICOM}; transfer-syntax={RLE}", 200, f"{DICOM}; transfer-syntax={RLE}", "8.7.8.2"),
    ("native", f"{DICOM}; transfer-syntax={HTJ2K}", 200, f"{DICOM}; transfer-syntax={HTJ2K}", "8.7.8.2"),
    ("native", f"{DICOM}; transfer-syntax={DEFLATED}", 200, f"{DICOM}; transfer-syntax={DEFLATED}", "8.7.8.2"),
    ("native", multi(DICOM, "*"), 200, f"({DICOM}; transfer-syntax={ELE})", "8.7.3.4: * is as stored"),
    ("native", multi(DICOM, BASELINE), 406, "", "8.7.8.2: 16 bits are no JPEG Baseline, the range falls away"),
    (
        "native",
        f"{multi(DICOM, BASELINE)}, {multi(DICOM, JLS)};q=0.5",
        200,
        f"({DICOM}; transfer-syntax={JLS})",
        "8.7.8.2: the next range",
    ),
    ("native", multi(DICOM, "1.2.840.10008.1.2"), 406, "", "8.7.3.4: Implicit VR never leaves"),
    ("native", multi(DICOM, "1.2.840.10008.1.2.2"), 406, "", "8.7.3.4: Big Endian never leaves"),
    ("native", multi(DICOM, "1.2.840.10008.1.2.4.102"), 406, "", "8.7.8.2: no video is made"),
    ("native", "application/zip", 200, "application/zip", "10.4.4"),
    ("native", multi(OCTETS), 200, f"({OCTETS})", "10.4.4: the bulk data, for older user agents"),
    ("native", "image/png", 406, "", "8.7.5"),
    ("native", "nonsense", 406, "", "8.4.1: invalid ranges are ignored"),
    ("native", f"{DICOM};q=0", 406, "", "RFC 9110 12.4.2: q=0 is not acceptable"),
    ("native", f"{DICOM}, image/jpeg", 400, "", "8.7.5: DICOM and rendered media types"),
    ("native", f"{multi(DICOM)};q=0.2, {DICOM};q=0.9", 200, f"{DICOM}; transfer-syntax={ELE}", "RFC 9110 12.4.2"),
    # the same, stored in JPEG 2000
    ("j2k", multi(DICOM), 200, f"({DICOM}; transfer-syntax={ELE})", "8.7.3.4: Explicit VR Little Endian by default"),
    ("j2k", multi(DICOM, "*"), 200, f"({DICOM}; transfer-syntax={J2K})", "8.7.3.4"),
    ("j2k", multi(DICOM, JPEG_LOSSLESS), 200, f"({DICOM}; transfer-syntax={JPEG_LOSSLESS})", "8.7.8.2"),
    # a study of several instances
    ("study", "*/*", 200, f"({DICOM}; transfer-syntax={ELE})", "10.4.4"),
    ("study", DICOM, 406, "", "10.4.4 note 3: a single part of several items is ignored"),
    ("study", f"{DICOM}, {multi(DICOM)};q=0.1", 200, f"({DICOM}; transfer-syntax={ELE})", "10.4.4 note 3"),
    (
        "study",
        multi(DICOM, RLE),
        200,
        f"({DICOM}; transfer-syntax={RLE})",
        "8.7.8.2: what is not RLE is made so",
    ),
    ("study", "application/zip", 200, "application/zip", "10.4.4"),
    # metadata
    ("native/metadata", "*/*", 200, "application/dicom+json", "10.4.4"),
    ("native/metadata", "application/json", 200, "application/dicom+json", "10.4.4: an alias clients use"),
    ("native/metadata", multi(XML), 200, f"({XML})", "10.4.4"),
    ("native/metadata", XML, 200, XML, "10.4.4: one item alone"),
    ("native/metadata", f"{XML};q=0.3, application/dicom+json;q=0.2", 200, XML, "RFC 9110 12.4.2"),
    ("study/metadata", multi(XML), 200, f"({XML})", "10.4.4"),
    ("study/metadata", XML, 406, "", "10.4.4 note 3"),
    ("study/metadata", "image/png", 406, "", "8.7.5"),
    # frames of the native instance
    ("native/frames/1", "*/*", 200, f"({OCTETS}; transfer-syntax={ELE})", "10.4.4"),
    ("native/frames/1", multi("*/*"), 200, f"({OCTETS}; transfer-syntax={ELE})", "8.7.5"),
    ("native/frames/1", OCTETS, 200, f"{OCTETS}; transfer-syntax={ELE}", "10.4.4: one frame alone"),
    ("native/frames/1", multi(OCTETS, '"*"'), 200, f"({OCTETS}; transfer-syntax={ELE})", "8.7.3.4"),
    ("native/frames/1", "image/jp2", 200, f"image/jp2; transfer-syntax={J2K}", "Table 8.7.3-5: the type's default"),
    ("native/frames/1", "image/jls", 200, f"image/jls; transfer-syntax={JLS}", "Table 8.7.3-5"),
    ("native/frames/1", multi("image/jls", NEAR), 200, f"(image/jls; transfer-syntax={NEAR})", "8.7.8.2"),
    ("native/frames/1", "image/jphc", 200, f"image/jphc; transfer-syntax={HTJ2K}", "Table 8.7.3-5"),
    ("native/frames/1", multi("image/dicom-rle"), 200, f"(image/dicom-rle; transfer-syntax={RLE})", "Table 8.7.3-5"),
    ("native/frames/1", multi("image/jpeg"), 200, f"(image/jpeg; transfer-syntax={JPEG_LOSSLESS})", "Table 8.7.3-5"),
    ("native/frames/1", multi("image/jpeg", BASELINE), 406, "", "8.7.8.2: 16 bits are no JPEG Baseline"),
    ("native/frames/1", multi("image/jpeg", J2K), 406, "", "8.7.8.2: not a transfer syntax of this type"),
    (
        "native/frames/1",
        "image/*;q=0.5, application/octet-stream;q=0.1",
        200,
        f"image/jpeg; transfer-syntax={JPEG_LOSSLESS}",
        "8.7.5",
    ),
    ("native/frames/1", "image/png", 406, "", "8.7.5"),
    # frames of the JPEG 2000 instance
    ("j2k/frames/1", multi(OCTETS), 200, f"({OCTETS}; transfer-syntax={ELE})", "8.7.3.4: uncompressed"),
    (
        "j2k/frames/1",
        multi(OCTETS, "*"),
        200,
        f"(image/jp2; transfer-syntax={J2K})",
        "8.7.3.4: the part tells",
    ),
    ("j2k/frames/1", "image/*", 200, f"image/jp2; transfer-syntax={J2K}", "8.7.5: what is stored goes first"),
    ("j2k/frames/1", "image/jls", 200, f"image/jls; transfer-syntax={JLS}", "8.7.8.2: decoded and encoded"),
    ("several/frames/1,2", OCTETS, 406, "", "10.4.4 note 3"),
    ("several/frames/1,2", multi(OCTETS), 200, f"({OCTETS}; transfer-syntax={ELE})", "10.4.4"),
    # bulk data and pixel data
    ("native/bulkdata/7FE00010", "*/*", 200, f"({OCTETS})", "10.4.4"),
    ("native/bulkdata/7FE00010", OCTETS, 200, OCTETS, "10.4.4"),
    ("native/pixeldata", multi(OCTETS), 200, f"({OCTETS})", "10.4.4"),
    ("native/pixeldata", multi("image/jp2"), 200, f"(image/jp2; transfer-syntax={J2K})", "10.4.4"),
    ("j2k/pixeldata", multi(OCTETS, "*"), 200, f"(image/jp2; transfer-syntax={J2K})", "8.7.3.4"),
    ("study/bulkdata", "*/*", 200, f"({OCTETS})", "10.4.4"),
    ("study/bulkdata", OCTETS, 406, "", "10.4.4 note 3"),
    ("study/pixeldata", multi("image/jls"), 200, f"(image/jls; transfer-syntax={JLS})", "10.4.4"),
    # search
    ("/dicomweb/studies", "*/*", 200, "application/dicom+json", "10.6.4"),
    ("/dicomweb/studies", multi(XML), 200, f"({XML})", "10.6.4"),
    ("/dicomweb/studies", XML, 406, "", "10.6.4: several results are no single part"),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FlaskClient, dict[str, str]]]:
    from app import create_app
    from tests.conftest import load_settings

    folder = str(tmp_path_factory.mktemp("data"))
    app = create_app(load_settings({"DICOMCLOUD_DATA_DIR": folder, "DICOMCLOUD_MIN_FREE_BYTES": "0"}))
    client = app.test_client()
    native, j2k = make_large(), make_large()
    frames = make_dataset(NumberOfFrames=2, PixelData=np.arange(512, dtype="<u2").tobytes())
    uids = {name: native[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    urls = store(
        client,
        make_file(native),
        encoded(j2k, JPEG2000Lossless),
        make_file(frames),
        encoded(make_large(**uids, InstanceNumber=2), RLELossless),
    )
    named = dict(zip(("native", "j2k", "several"), urls, strict=False))
    named["study"] = named["native"].partition("/series/")[0]
    yield client, named
    app.extensions["dicomcloud"].archive.close()


@pytest.mark.parametrize(("resource", "accept", "status", "media_type", "clause"), MATRIX)
def test_the_answer_to_an_accept_header(
    served: tuple[FlaskClient, dict[str, str]], resource: str, accept: str, status: int, media_type: str, clause: str
) -> None:
    client, urls = served
    name, _, rest = resource.partition("/")
    url = resource if not name else urls[name] + (f"/{rest}" if rest else "")
    answer = client.get(url, headers={"Accept": accept})
    assert answer.status_code == status, f"{clause}: {answer.text[:300]}"
    if status == 406:
        assert "Available: " in answer.json["message"]
    elif status == 200:
        got = answer.headers["Content-Type"]
        if media_type.startswith("("):
            outer = re.fullmatch(r'multipart/related; type="([^"]+)"; boundary="\w+"', got)
            assert outer, got
            assert outer[1] == media_type[1:-1].partition(";")[0]
            kinds = set(re.findall(rb"\r?\nContent-Type: ([^\r]+)\r\n", answer.data[:400] if rest else answer.data))
            assert kinds == {media_type[1:-1].encode()}, clause
        else:
            assert got == media_type, clause
    head = client.head(url, headers={"Accept": accept})
    assert (head.status_code, head.data) == (status, b"")
    if status == 200:
        assert head.headers["ETag"] == answer.headers["ETag"] if "ETag" in answer.headers else True


@pytest.mark.parametrize(
    ("query", "accept", "status"),
    [
        ("accept=application/dicom", "*/*", 200),
        ("accept=application%2Fdicom%2Bjson", "application/dicom", 200),  # nothing of it here: the header counts
        ("accept=*/*", DICOM, 400),
        ("accept=application/zip", DICOM, 200),
        ("accept=image/png", "image/gif", 406),
    ],
)
def test_the_accept_parameter_goes_before_the_header(
    served: tuple[FlaskClient, dict[str, str]], query: str, accept: str, status: int
) -> None:
    client, urls = served  # PS3.18 8.3.3.1, 8.7.8.1
    answer = client.get(f"{urls['native']}?{query}", headers={"Accept": accept})
    assert answer.status_code == status
    if query == "accept=application/zip":
        assert answer.headers["Content-Type"] == "application/zip"


@pytest.mark.parametrize(
    ("charset", "status"),
    [
        ("utf-8", 200),
        ("UTF-8", 200),
        ("iso-8859-1,utf-8;q=0.1", 200),
        ("*", 200),
        ("", 200),
        ("iso-8859-1", 400),
        ("utf-8;q=0", 400),
        ("nonsense", 400),
    ],
)
@pytest.mark.parametrize("rest", ["", "/metadata", "/frames/1", "/bulkdata", "/pixeldata", "/rendered", "/thumbnail"])
def test_a_character_set_that_is_not_here_is_refused_and_named(
    served: tuple[FlaskClient, dict[str, str]], rest: str, charset: str, status: int
) -> None:
    client, urls = served  # PS3.18 8.3.3.2; of the header Accept-Charset what is not here is ignored (8.8.1)
    answer = client.get(urls["native"] + rest, query_string={"charset": charset})
    assert answer.status_code == status
    if status == 400:
        assert "available: UTF-8" in answer.json["message"]
        assert charset in answer.json["message"]
    ignored = client.get(urls["native"] + "/metadata", headers={"Accept-Charset": charset})
    assert ignored.status_code == 200
    assert client.get("/dicomweb/studies", query_string={"charset": charset}).status_code == status


@pytest.mark.parametrize(("former", "name"), [("image/x-jls", "image/jls"), ("image/x-dicom-rle", "image/dicom-rle")])
def test_types_are_known_by_their_former_names(
    served: tuple[FlaskClient, dict[str, str]], former: str, name: str
) -> None:
    client, urls = served
    answer = client.get(f"{urls['native']}/frames/1", headers={"Accept": former})
    assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (200, name)


def test_without_an_accept_header_everything_is_acceptable_unless_the_setting_is_strict(make_app) -> None:  # type: ignore[no-untyped-def]
    (url,) = store(make_app().test_client(), make_file())
    strict = make_app(strict_accept="true").test_client()
    for resource in (url, f"{url}/metadata", f"{url}/frames/1", f"{url}/bulkdata/7FE00010", "/dicomweb/studies"):
        assert make_app().test_client().get(resource).status_code == 200
        answer = strict.get(resource)
        assert (answer.status_code, "8.4.1" in answer.json["message"]) == (406, True)
        assert strict.get(resource, headers={"Accept": "*/*"}).status_code == 200


def test_what_cannot_be_converted_is_left_out_of_a_study_and_counted(client: FlaskClient) -> None:
    image = make_large()
    uids = {name: image[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    report = make_dataset(**uids, InstanceNumber=2, PixelData=None, Rows=None, Columns=None)
    url = store(client, make_file(image), make_file(report))[0].partition("/series/")[0]
    answer = client.get(url, headers={"Accept": multi(DICOM, J2K)})
    assert answer.status_code == 206  # PS3.18 Table 10.4.3-1
    assert answer.headers["Warning"].startswith("299 http://localhost/dicomweb: 1 of 2 instances cannot be converted")
    assert answer.data.count(b"Content-Location") == 1
    assert client.get(url, headers={"Accept": multi(DICOM)}).status_code == 200


def test_a_study_of_which_nothing_can_be_converted_is_not_acceptable(client: FlaskClient) -> None:
    report = make_dataset(PixelData=None, Rows=None, Columns=None)
    url = store(client, make_file(report))[0].partition("/series/")[0]
    answer = client.get(url, headers={"Accept": multi(DICOM, J2K)})
    assert answer.status_code == 406
    assert J2K not in answer.json["message"].partition("Available: ")[2]


def test_what_is_not_what_it_says_leaves_as_stored_in_a_study_and_is_not_acceptable_alone(client: FlaskClient) -> None:
    good, lying = make_large(), make_large(InstanceNumber=2)
    lying.StudyInstanceUID, lying.SeriesInstanceUID = good.StudyInstanceUID, good.SeriesInstanceUID
    file = encoded(lying, JPEG2000Lossless)
    damaged = file.replace(b"\xff\x4f\xff\x51", b"\0\0\0\0")  # the codestream begins with nonsense
    url, broken = store(client, make_file(good), damaged)
    answer = client.get(url.partition("/series/")[0], headers={"Accept": multi(DICOM, JLS)})
    kinds = re.findall(rb"Content-Type: application/dicom; transfer-syntax=(\S+)\r", answer.data)
    assert (answer.status_code, kinds) == (200, [JLS.encode(), J2K.encode()])
    assert damaged in answer.data
    assert client.get(broken, headers={"Accept": multi(DICOM, JLS)}).status_code == 406
    assert client.get(broken, headers={"Accept": f"{DICOM}; transfer-syntax={JLS}, {DICOM};q=0.1"}).data == damaged
