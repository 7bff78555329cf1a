"""What takes bytes from strangers, each as a function of bytes that raises when the bytes do what they must not.

A target returns for good input and for input that is refused in the way that is meant for it (DicomWebError with a
4xx, InvalidInstance, ValueError where that is said). Anything else that it raises is a fault of the program. `SEEDS`
are good inputs to begin with; `WORDS` are what the formats are made of.
"""

from __future__ import annotations

import atexit
import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl, quote

import orjson

from app import create_app
from dicomcloud.dicom import header
from dicomcloud.dicom.assembly import assemble
from dicomcloud.dicom.attributes import Level
from dicomcloud.dicom.metadata import from_native_model_xml, native_model_xml
from dicomcloud.dicom.query import parse_query
from dicomcloud.errors import DicomWebError, InvalidInstance
from dicomcloud.media import ZipMedium
from dicomcloud.settings import load
from dicomcloud.web.multipart import LONGEST_BOUNDARY, InflatedStream, boundary_of, parse_media_type, read_parts
from dicomcloud.web.negotiation import Offer, negotiate
from tests.data import make_dataset, make_file, pydicom_files

Target = Callable[[bytes], None]
_LARGEST = 64 << 20  # bytes that any input may become

TARGETS: dict[str, Target] = {}
SEEDS: dict[str, list[bytes]] = {}
WORDS: dict[str, list[bytes]] = {}


def target(seeds: Iterable[bytes], words: Iterable[bytes]) -> Callable[[Target], Target]:
    def add(function: Target) -> Target:
        TARGETS[function.__name__] = function
        SEEDS[function.__name__] = list(seeds)
        WORDS[function.__name__] = list(words)
        return function

    return add


def refused(error: DicomWebError) -> None:
    """Raises what is no refusal of the input: the server's own fault."""
    if not 400 <= error.status < 500:
        raise AssertionError(f"{error.status} {error.message}") from error


_PART = b"--b\r\nContent-Type: application/dicom\r\n\r\n"


@target(
    [_PART + make_file() + b"\r\n--b--\r\n", b"preamble\r\n" + _PART + b"x\r\n" + _PART + b"\r\n--b--epilogue"],
    [
        b"\r\n--b",
        b"--b--",
        b"--b\r\n",
        b"\r\n\r\n",
        b"\r\n",
        b"\n",
        b"Content-Type: ",
        b"Content-Transfer-Encoding: base64",
    ],
)
def multipart(data: bytes) -> None:
    """The splitter: what comes out is never more than what went in, however it is read."""
    for piece in (1 << 20, 7):
        total = 0
        try:
            for part in read_parts(io.BytesIO(data), "b", max_parts=1000, piece=piece):
                assert all(name == name.lower() for name in part.headers)
                for chunk in part.chunks:
                    total += len(chunk)
        except DicomWebError as error:
            refused(error)
        assert total <= len(data)


@target(
    [path.read_bytes() for path in pydicom_files() if path.stat().st_size < 20_000],
    [
        b"\xff\xff\xff\xff",
        b"SQ\0\0",
        b"UN\0\0",
        b"\xfe\xff\0\xe0\xff\xff\xff\xff",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
        b"OB\0\0",
        b"1.2.840.10008.1.2.1.99",
    ],
)
def dicom_file(data: bytes) -> None:
    """The header scanner: metadata that are JSON, and offsets that lie inside the file."""
    try:
        found = header.scan(data, max_inflated=_LARGEST)
    except InvalidInstance:
        return
    orjson.dumps(found.attributes)
    if found.deflated:
        return
    for value in found.bulk_data:
        assert value.offset == -1 or 0 <= value.offset <= value.offset + value.length <= len(data)


_OFFERS = (
    Offer("application/dicom+json"),
    Offer("application/dicom", multipart=True, transfer_syntaxes=("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50")),
    Offer("image/jpeg"),
)


@target(
    [b'multipart/related; type="application/dicom"; transfer-syntax=*', b"application/dicom+json;q=0.5, */*;q=0.1"],
    [
        b"multipart/related",
        b"; type=",
        b'"',
        b"\\",
        b"transfer-syntax=",
        b"*",
        b"*/*",
        b";q=0.",
        b",",
        b"=",
        b"application/dicom",
    ],
)
def accept(data: bytes) -> None:
    """The Accept header and the accept parameter."""
    text = data.decode("latin-1")
    for pair in ((text, None), (None, text), ("*/*", text)):
        try:
            assert negotiate(*pair, _OFFERS).offer in _OFFERS
        except DicomWebError as error:
            refused(error)


@target(
    [b'multipart/related; type="application/dicom"; boundary=abc', b"image/jp2;a=b"],
    [b"; boundary=", b'"', b"\\", b"=", b";", b"/", b"multipart/related"],
)
def content_type(data: bytes) -> None:
    """Content-Type, and the boundary in it."""
    try:
        assert 1 <= len(boundary_of(parse_media_type(data.decode("latin-1")))) <= LONGEST_BOUNDARY
    except ValueError:
        pass
    except DicomWebError as error:
        refused(error)


@target(
    [
        b"PatientName=Doe*&StudyDate=20200101-20210101&limit=5",
        b"00081030=a%5Cb&includefield=all&fuzzymatching=true",
        b"OriginalAttributesSequence.ModifyingSystem=x",
    ],
    [
        b"PatientName=",
        b"&",
        b"StudyDate=",
        b"-",
        b"*",
        b"?",
        b"%5C",
        b"%00",
        b"\\",
        b".",
        b"includefield=",
        b"limit=",
        b"offset=-1",
        b"00100010=",
        b'"',
        b"'",
        b"orderby=",
    ],
)
def query(data: bytes) -> None:
    """The parameters of a search."""
    pairs = parse_qsl(data.decode("latin-1"), keep_blank_values=True, encoding="utf-8", errors="replace")
    for level in Level:
        try:
            parse_query(level, pairs, max_results=1000)
        except DicomWebError as error:
            refused(error)


_METADATA = orjson.dumps(
    {
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.7"]},
        "00080018": {"vr": "UI", "Value": ["1.2.3.4"]},
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.3.3"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^J", "Ideographic": "山田"}]},
        "00081140": {"vr": "SQ", "Value": [{"00081150": {"vr": "UI", "Value": ["1.2"]}}, {}]},
        "00280010": {"vr": "US", "Value": [1]},
        "00281050": {"vr": "DS", "Value": ["1.5", 2.5, None]},
        "00420011": {"vr": "OB", "InlineBinary": "AAEC"},
    }
)


def _no_parts(uri: str) -> tuple[()]:
    return ()


def _assembled(attributes: Any) -> None:
    try:
        pieces = assemble(attributes, _no_parts, study_uid=None)
        size = sum(len(chunk) for chunk in pieces.chunks())
    except InvalidInstance:
        return
    assert size < _LARGEST


@target(
    [_METADATA, b"{}", b"[]"],
    [
        b'"Value":[',
        b'"vr":"SQ"',
        b'"vr":"OB"',
        b'"InlineBinary":"',
        b'"BulkDataURI":"',
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"1e999",
        b"-1",
        b"\\u0000",
        b'"7FE00010"',
        b"99999999999999999999",
    ],
)
def json_metadata(data: bytes) -> None:
    """DICOM JSON that comes with a store, made into a file."""
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    _assembled(parsed)


@target(
    [native_model_xml(orjson.loads(_METADATA))],
    [
        b"<DicomAttribute ",
        b' tag="00100010"',
        b' vr="PN"',
        b'<Value number="1">',
        b"</Value>",
        b'<!DOCTYPE a [<!ENTITY b "c">]>',
        b"&b;",
        b'<Item number="2">',
        b"<PersonName",
        b"<![CDATA[",
        b"<?pi?>",
        b"&#0;",
        b'<BulkData uri="file:///etc/passwd"/>',
    ],
)
def xml_metadata(data: bytes) -> None:
    """The Native DICOM Model that comes with a store, made into a file."""
    try:
        attributes = from_native_model_xml(data)
    except ValueError:
        return
    orjson.dumps(attributes)
    _assembled(attributes)


def _zipped(compression: int) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        archive.writestr("a/1.dcm", make_file())
        archive.writestr("../../etc/passwd", b"x")
    return target.getvalue()


@target(
    [_zipped(zipfile.ZIP_STORED), _zipped(zipfile.ZIP_DEFLATED)],
    [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"\xff\xff\xff\xff", b"../"],
)
def zip_file(data: bytes) -> None:
    """A ZIP file: bounded however much it says that it holds."""
    total = 0
    try:
        for member in ZipMedium(io.BytesIO(data), max_members=1000, max_bytes=_LARGEST).members():
            try:
                for chunk in member.chunks():
                    total += len(chunk)
            except InvalidInstance:
                continue
    except ValueError:
        pass
    assert total <= _LARGEST + (1 << 20)


@target([b"\x1f\x8b\x08\0\0\0\0\0\0\xff\xcb\xc8\x04\0G\xdd\xdcy\x02\0\0\0"], [b"\x1f\x8b\x08", b"\xff\xff"])
def gzip_body(data: bytes) -> None:
    """A body with Content-Encoding: gzip, up to its limit."""
    stream = InflatedStream(io.BytesIO(data), 1 << 20)
    total = 0
    try:
        while piece := stream.read(1 << 16):
            total += len(piece)
    except DicomWebError as error:
        refused(error)
    assert total <= 1 << 20


_CLIENT: list[Any] = []


def _client() -> tuple[Any, Any]:
    """A client of an application with one instance, and that instance."""
    if not _CLIENT:
        folder = TemporaryDirectory(prefix="dicomcloud-fuzz-")
        settings = {
            "DICOMCLOUD_DATA_DIR": folder.name,
            "DICOMCLOUD_MIN_FREE_BYTES": "0",
            "DICOMCLOUD_LOG_LEVEL": "error",
        }
        app = create_app(load(None, settings))
        archive = app.extensions["dicomcloud"].archive
        atexit.register(folder.cleanup)
        atexit.register(archive.close)  # before its folder goes
        archive.get_codecs_ready()
        client = app.test_client()
        dataset = make_dataset()
        assert (
            client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom").status_code
            == 200
        )
        _CLIENT.extend((client, dataset, folder))
    return _CLIENT[0], _CLIENT[1]


_PATHS = [
    "/dicomweb/studies",
    "/dicomweb/studies/{study}/metadata",
    "/dicomweb/studies/{study}/series/{series}/instances/{instance}/frames/1",
    "/dicomweb/studies/{study}/series/{series}/instances/{instance}/rendered",
    "/dicomweb/studies/{study}/series/{series}/instances/{instance}/bulkdata/7FE00010",
    "/wado?requestType=WADO&studyUID={study}&seriesUID={series}&objectUID={instance}",
    "/ohif/study/{study}/series",
    "/",
]


@target(
    [
        b"0\0Accept\0application/dicom+json\0PatientName=Doe*",
        b"3\0Accept\0image/png\0viewport=10,10&window=40,400,linear",
        b"5\0Range\0bytes=0-1\0rows=16&columns=16&windowCenter=1",
        b'2\0If-None-Match\0"x"\0quality=50',
    ],
    [
        b"Accept\0",
        b"Range\0bytes=",
        b"viewport=",
        b"window=",
        b"region=",
        b"quality=",
        b"frameNumber=",
        b"iccprofile=",
        b"annotation=",
        b"-1",
        b"1e9",
        b"%00",
        b"../",
        b"\0",
        b",,,",
        b"transferSyntax=",
        b"charset=",
        b"X-Forwarded-Host\0",
        b"If-Modified-Since\0",
    ],
)
def request(data: bytes) -> None:
    """A whole request: a resource, a header, parameters. Never a 5xx."""
    client, dataset = _client()
    fields = (data.decode("latin-1").split("\0", 3) + [""] * 4)[:4]
    which, name, value, parameters = fields
    path = _PATHS[(ord(which[0]) if which else 0) % len(_PATHS)].format(
        study=dataset.StudyInstanceUID, series=dataset.SeriesInstanceUID, instance=dataset.SOPInstanceUID
    )
    joint = "&" if "?" in path else "?"
    headers = {}
    if name and all(char.isalnum() or char == "-" for char in name) and name.isascii():
        headers[name] = "".join(char for char in value if char >= " " and char != "\x7f")
    if headers.keys() & {"Host", "host", "Content-Length", "content-length", "Transfer-Encoding", "Connection"}:
        return
    answer = client.get(path + joint + quote(parameters, safe="=&%,.*-/\\"), headers=headers, buffered=True)
    assert answer.status_code < 500, (answer.status_code, answer.text[:300])


@target(
    [
        b"/dicomweb/studies/1.2/series",
        b"/dicomweb/studies/1.2/series/1.3/instances/1.4/frames/1,2",
        b"/dicomweb/studies/1.2/bulkdata",
    ],
    [
        b"/dicomweb",
        b"/studies/",
        b"/series/",
        b"/instances/",
        b"/frames/",
        b"/bulkdata/",
        b"/..",
        b"%2e%2e",
        b"%00",
        b"//",
        b"\\",
        b";",
        b"?",
        b"#",
        b"/rendered",
        b"/metadata",
    ],
)
def path(data: bytes) -> None:
    """The path of a request, also of one that deletes. Never a 5xx, never a file of the machine."""
    client, _ = _client()
    text = "/" + data.decode("latin-1").lstrip("/")
    for method in ("GET", "DELETE", "OPTIONS"):
        answer = client.open(quote(text, safe="/%?&=,.;"), method=method, buffered=True)
        assert answer.status_code < 500, (answer.status_code, answer.text[:300])
        assert b"root:" not in answer.data


def files_of(name: str, folder: Path) -> Path:
    """The folder with the seeds of a target, for fuzzers that read them from disk."""
    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    return corpus
