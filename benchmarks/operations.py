"""What is measured: the requests, the same for every server, and how each answer is checked."""

from __future__ import annotations

import base64
import gzip
import io
from calendar import monthrange
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from PIL import Image

from .client import Answer, BadAnswer, Connection, Request
from .data import MULTI_FRAMES, RADIOGRAPH_COLUMNS, RADIOGRAPH_ROWS, Data, Instance, Study, ct_pixels

JSON = (("Accept", "application/dicom+json"),)
DICOM = (("Accept", 'multipart/related; type="application/dicom"; transfer-syntax=*'),)
ALONE = (("Accept", "application/dicom; transfer-syntax=*"),)
FRAMES = (("Accept", 'multipart/related; type="application/octet-stream"; transfer-syntax=*'),)
J2K_FRAMES = (("Accept", 'multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90'),)
DECODED_FRAMES = (("Accept", 'multipart/related; type="application/octet-stream"'),)
GZIP_JSON = (*JSON, ("Accept-Encoding", "gzip"))
JPEG = (("Accept", "image/jpeg"),)
_BOUNDARY = "benchmark-boundary-4f0c7f3a9d"
LIMIT = 25

Check = Callable[[Answer], None]


@dataclass(frozen=True)
class Operation:
    name: str
    make: Callable[[int], tuple[Request, Check]]  # of a round; every server is sent the same
    target: float | None  # the peer's median through ours has to be at least this
    rounds: int
    quick_rounds: int
    parallel: bool = True  # measured with several connections too
    afterwards: Callable[[Connection], None] | None = None  # checks, not measured, that the server did as it said


def expect(condition: object, message: str) -> None:
    if not condition:
        raise BadAnswer(message)


def _status(answer: Answer) -> None:
    expect(answer.status == 200, f"status {answer.status}: {bytes(answer.body[:300])!r}")


def parse(answer: Answer) -> Any:
    """The JSON of an answer with status 200. Raises BadAnswer."""
    _status(answer)
    kind = answer.headers.get("content-type", "")
    expect(kind.partition(";")[0].strip() in ("application/dicom+json", "application/json"), f"Content-Type {kind!r}")
    try:
        return orjson.loads(answer.body)
    except ValueError as error:
        raise BadAnswer(f"no JSON: {error}") from None


def value(dataset: Mapping[str, Any], tag: str) -> Any:
    found = dataset.get(tag, {}).get("Value") or [None]
    return found[0].get("Alphabetic") if isinstance(found[0], dict) else found[0]


# Search


def check_studies(answer: Answer, matching: Sequence[Study], possible: Sequence[Study], limit: int) -> None:
    """As many studies as there should be, each once, each one that matches, with its own values. Those that are
    `possible` may be there, when a peer keeps what an earlier run sent."""
    found = parse(answer)
    wanted = {study.uid: study for study in (*matching, *possible)}
    least, most = min(limit, len(matching)), min(limit, len(wanted))
    expect(least <= len(found) <= most, f"{len(found)} studies, not {least}")
    uids = {value(dataset, "0020000D") for dataset in found}
    expect(len(uids) == len(found), "a study is there twice")
    for dataset in found:
        study = wanted.get(value(dataset, "0020000D"))
        expect(study, f"study {value(dataset, '0020000D')} does not match")
        assert study is not None
        got = [value(dataset, tag) for tag in ("00100020", "00100010", "00080020", "00080050")]
        expect(
            got == [study.patient_id, study.patient_name, study.date, study.accession_number],
            f"study {study.uid} comes with {got}",
        )


def _search(data: Data, parameters: Mapping[str, str], matches: Callable[[Study], bool]) -> tuple[Request, Check]:
    # "*" goes as it is, as browsers send it; Orthanc 1.10 does not find anything for %2A
    path = "/studies?" + urlencode({**parameters, "limit": str(LIMIT)}, quote_via=quote, safe="*")
    matching = [study for study in data.all_studies if matches(study)]
    possible = [study for study in (data.sent_study,) if matches(study)]
    expect(matching, f"the data has nothing to find for {path}")
    return Request("GET", path, JSON), lambda answer: check_studies(answer, matching, possible, LIMIT)


# Retrieve


def check_parts(answer: Answer, expected: Mapping[str, bytes] | bytes) -> None:
    """multipart/related with exactly the expected bodies, bit for bit: one, or many named by the SOP Instance UID
    in their File Meta Information, in any order."""
    _status(answer)
    kind = answer.headers.get("content-type", "")
    expect(kind.startswith("multipart/related"), f"Content-Type {kind!r}")
    boundary = kind.partition("boundary=")[2].partition(";")[0].strip().strip('"').encode()
    expect(boundary, f"no boundary in {kind!r}")
    body, at, seen = answer.body, 0, set()
    while True:
        start = bytes(body[at : at + 1024])
        delimiter = start.find(b"--" + boundary)
        expect(delimiter >= 0 and not start[:delimiter].strip(), f"no delimiter at byte {at}")
        if start[delimiter + 2 + len(boundary) :].startswith(b"--"):
            break
        head = start.find(b"\r\n\r\n")
        expect(head >= 0, "no end of the part's header")
        at += head + 4
        if isinstance(expected, bytes):
            name, wanted = "the part", expected
        else:
            name = next((uid for uid in _uids(bytes(body[at : at + 600])) if uid in expected), "")
            expect(name, f"an instance at byte {at} that was not asked for")
            wanted = expected[name]
        expect(name not in seen, f"{name} is there twice")
        seen.add(name)
        expect(bytes(body[at : at + len(wanted)]) == wanted, f"{name} is not as it was stored")
        at += len(wanted)
    count = 1 if isinstance(expected, bytes) else len(expected)
    expect(len(seen) == count, f"{len(seen)} parts, not {count}")


def _uids(start: bytes) -> Iterable[str]:
    at = start.find(b"2.25.")
    while at >= 0:
        yield start[at : at + 42].decode("latin-1")
        at = start.find(b"2.25.", at + 1)


def check_picture(answer: Answer, columns: int = 512, rows: int = 512) -> None:
    """A JPEG of this size whose pixels are not all the same."""
    _status(answer)
    with Image.open(io.BytesIO(answer.body)) as picture:
        expect((picture.format, picture.size) == ("JPEG", (columns, rows)), f"{picture.format} of {picture.size}")
        low, high = picture.convert("L").getextrema()
        expect(low != high, "an empty picture")


def check_metadata(answer: Answer, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Exactly the expected instances, each complete."""
    found = parse(answer)
    expect(len(found) == len(expected), f"metadata of {len(found)} instances, not {len(expected)}")
    missing = set(expected)
    for dataset in found:
        uid = value(dataset, "00080018")
        expect(uid in missing, f"instance {uid} was not asked for, or is there twice")
        missing.discard(uid)
        expect("BulkDataURI" in dataset.get("7FE00010", {}), "no BulkDataURI for the pixel data")
        _compare(dataset, expected[uid], "")


def _compare(got: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Every expected element is there with its values. VR of private elements and the choice between InlineBinary
    and BulkDataURI are the server's."""
    for tag, element in expected.items():
        path = f"{where}{tag}"
        there = got.get(tag)
        expect(there is not None, f"element {path} is missing")
        assert there is not None
        if "InlineBinary" in element:
            if "InlineBinary" in there:
                same = base64.b64decode(there["InlineBinary"]) == base64.b64decode(element["InlineBinary"])
                expect(same, f"element {path} has other bytes")
            else:
                expect("BulkDataURI" in there, f"element {path} has no value")
            continue
        if int(tag[:4], 16) % 2 == 0:
            expect(there.get("vr") == element["vr"], f"element {path} has VR {there.get('vr')}")
        if element["vr"] == "SQ":
            items = there.get("Value", [])
            expect(len(items) == len(element.get("Value", [])), f"element {path} has {len(items)} items")
            for number, (item, wanted) in enumerate(zip(items, element.get("Value", []), strict=True)):
                _compare(item, wanted, f"{path}[{number}].")
            continue
        if "Value" in element:
            values = [_plain(one) for one in there.get("Value", [])]
            expect(values == [_plain(one) for one in element["Value"]], f"element {path} has {there.get('Value')}")


def _plain(one: Any) -> Any:
    """A value such that 0.5, "0.5" and a float of 32 bits near it are the same."""
    if isinstance(one, dict):
        return one.get("Alphabetic")
    try:
        return f"{float(one):.6g}"
    except (TypeError, ValueError):
        return str(one).rstrip()


# Store


def store_request(instances: Iterable[Instance]) -> Request:
    pieces: list[bytes] = []
    for instance in instances:
        pieces += (f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode(), instance.file, b"\r\n")
    pieces.append(f"--{_BOUNDARY}--\r\n".encode())
    kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
    return Request("POST", "/studies", (*JSON, ("Content-Type", kind)), b"".join(pieces))


def check_stored(answer: Answer, uids: set[str]) -> None:
    """All are in the Referenced SOP Sequence, and nothing failed."""
    report = parse(answer)
    report = report[0] if isinstance(report, list) else report
    expect("00081198" not in report or not report["00081198"].get("Value"), "instances failed")
    stored = {value(item, "00081155") for item in report.get("00081199", {}).get("Value", [])}
    expect(stored == uids, f"{len(stored & uids)} of {len(uids)} instances stored")


def store(connection: Connection, instances: Sequence[Instance]) -> None:
    """Raises BadAnswer, OSError."""
    check_stored(connection.exchange(store_request(instances)), {instance.sop_uid for instance in instances})


def retrieve(connection: Connection, instance: Instance) -> None:
    """The instance comes back as it was stored. Raises BadAnswer, OSError."""
    check_parts(connection.exchange(Request("GET", instance.path(), DICOM)), instance.file)


class _Unchanged:
    """Checks JSON wholly when it is first seen; the same bytes again for the same request need no second reading."""

    def __init__(self) -> None:
        self._passed: dict[str, list[bytes]] = {}

    def of(self, path: str, check: Check) -> Check:
        def checked(answer: Answer) -> None:
            body = bytes(answer.body)
            if answer.status == 200 and body in self._passed.get(path, ()):
                return
            check(answer)
            self._passed[path] = [*self._passed.get(path, [])[-3:], body]

        return checked


def instance_alone(data: Data) -> Operation:
    """A whole instance as a single part."""

    def make(number: int) -> tuple[Request, Check]:
        one = data.slices[number * 17 % len(data.slices)]

        def check(answer: Answer) -> None:
            _status(answer)
            expect(bytes(answer.body) == one.file, "the instance is not as it was stored")

        return Request("GET", one.path(), ALONE), check

    return Operation("instance through nginx", make, None, 300, 60)


def operations(data: Data) -> list[Operation]:
    """In the order in which they are run: what changes the index comes last."""
    studies, slices, unchanged = data.studies, data.slices, _Unchanged()
    months = sorted({study.date[:6] for study in studies})
    families = sorted({study.patient_name.partition("^")[0] for study in studies})
    modalities = sorted({study.modality for study in studies})
    sent: list[Instance] = []

    def search_all(number: int) -> tuple[Request, Check]:
        return _search(data, {}, lambda study: True)

    def search_patient(number: int) -> tuple[Request, Check]:
        wanted = studies[number * 37 % len(studies)].patient_id
        return _search(data, {"PatientID": wanted}, lambda study: study.patient_id == wanted)

    def search_name(number: int) -> tuple[Request, Check]:
        part = families[number * 7 % len(families)][1:]
        return _search(data, {"PatientName": f"*{part}*"}, lambda study: part in study.patient_name)

    def search_dates(number: int) -> tuple[Request, Check]:
        month = months[number * 5 % len(months)]
        last = monthrange(int(month[:4]), int(month[4:]))[1]
        return _search(data, {"StudyDate": f"{month}01-{month}{last}"}, lambda study: study.date.startswith(month))

    def search_modality(number: int) -> tuple[Request, Check]:
        wanted = modalities[number % len(modalities)]
        return _search(data, {"ModalitiesInStudy": wanted}, lambda study: study.modality == wanted)

    def instance(number: int) -> tuple[Request, Check]:
        one = slices[number * 17 % len(slices)]
        return Request("GET", one.path(), DICOM), lambda answer: check_parts(answer, one.file)

    def frame(number: int) -> tuple[Request, Check]:
        one = slices[number * 17 % len(slices)]
        pixels = one.file[-512 * 512 * 2 :]
        return Request("GET", f"{one.path()}/frames/1", FRAMES), lambda answer: check_parts(answer, pixels)

    def frame_of_many(number: int) -> tuple[Request, Check]:
        which = number * 13 % MULTI_FRAMES + 1
        path = f"{data.multi_frame.path()}/frames/{which}"
        return Request("GET", path, FRAMES), lambda answer: check_parts(answer, data.frame_of_multi_frame(which))

    def frame_as_stored(number: int) -> tuple[Request, Check]:
        one, stream = data.jpeg_2000
        padded = stream + bytes(len(stream) % 2)  # PS3.5 A.4: the fragment is padded; some servers leave it out

        def check(answer: Answer) -> None:
            try:
                check_parts(answer, padded)
            except BadAnswer:
                check_parts(answer, stream)

        return Request("GET", f"{one.path()}/frames/1", J2K_FRAMES), check

    pixels_decoded = ct_pixels(1).tobytes()

    def frame_decoded(number: int) -> tuple[Request, Check]:
        one = data.jpeg_2000_slices[number % len(data.jpeg_2000_slices)]
        path = f"{one.path()}/frames/1"
        return Request("GET", path, DECODED_FRAMES), lambda answer: check_parts(answer, pixels_decoded)

    def frame_decoded_again(number: int) -> tuple[Request, Check]:
        path = f"{data.jpeg_2000[0].path()}/frames/1"
        return Request("GET", path, DECODED_FRAMES), lambda answer: check_parts(answer, pixels_decoded)

    def rendered(number: int) -> tuple[Request, Check]:
        one = slices[number * 17 % len(slices)]
        return Request("GET", f"{one.path()}/rendered", JPEG), check_picture

    def thumbnail(number: int) -> tuple[Request, Check]:
        one = slices[number % len(slices)]
        path = f"{one.path()}/rendered?viewport=128,128"
        return Request("GET", path, JPEG), lambda answer: check_picture(answer, 128, 128)

    def radiograph(number: int) -> tuple[Request, Check]:
        # The center of the window moves, so that no answer is one that was given before.
        path = f"{data.radiograph.path()}/rendered?window={2048 + number}.5,4000,linear"
        return Request("GET", path, JPEG), lambda answer: check_picture(answer, RADIOGRAPH_COLUMNS, RADIOGRAPH_ROWS)

    def compressed_rendered(number: int) -> tuple[Request, Check]:
        one = data.jpeg_2000_slices[number % len(data.jpeg_2000_slices)]
        return Request("GET", f"{one.path()}/rendered", JPEG), check_picture

    def compressed_repeated(number: int) -> tuple[Request, Check]:
        return compressed_rendered(number % 80)  # those that have been rendered before, as when a series is seen again

    def metadata_compressed(number: int) -> tuple[Request, Check]:
        path = f"{slices[0].path('study')}/metadata"

        def check(answer: Answer) -> None:
            if answer.headers.get("content-encoding") == "gzip":
                answer = replace(answer, body=memoryview(gzip.decompress(answer.body)))
            check_metadata(answer, data.slice_metadata)

        return Request("GET", path, GZIP_JSON), check

    def metadata(number: int) -> tuple[Request, Check]:
        one = slices[number * 17 % len(slices)]
        path, wanted = f"{one.path()}/metadata", {one.sop_uid: data.slice_metadata[one.sop_uid]}
        return Request("GET", path, JSON), unchanged.of(path, lambda answer: check_metadata(answer, wanted))

    def metadata_of_study(number: int) -> tuple[Request, Check]:
        path = f"{slices[0].path('study')}/metadata"
        return Request("GET", path, JSON), unchanged.of(
            path, lambda answer: check_metadata(answer, data.slice_metadata)
        )

    def series(number: int) -> tuple[Request, Check]:
        files = {one.sop_uid: one.file for one in slices}
        return Request("GET", slices[0].path("series"), DICOM), lambda answer: check_parts(answer, files)

    def storing(count: int) -> Callable[[int], tuple[Request, Check]]:
        def make(number: int) -> tuple[Request, Check]:
            new = data.new_instances(count, same_series=count == 1)
            if number < 3:  # sent to all servers, not to one of them as those of the several connections
                sent.extend((new[0], new[-1]))
            uids = {one.sop_uid for one in new}
            return store_request(new), lambda answer: check_stored(answer, uids)

        return make

    def retrieve_sent(connection: Connection) -> None:
        for one in sent[-6:]:
            retrieve(connection, one)

    return [
        Operation("search 25 studies", search_all, 10, 150, 30),
        Operation("search by PatientID", search_patient, 10, 200, 40),
        Operation("search by PatientName wildcard", search_name, 10, 150, 30),
        Operation("search by date range", search_dates, 10, 150, 30),
        Operation("search by modality", search_modality, 10, 100, 20),
        Operation("instance", instance, 1.5, 300, 60),
        Operation("frame, native", frame, 1.5, 300, 60),
        Operation("frame of a 120-frame object", frame_of_many, 10, 60, 12),
        Operation("frame, JPEG 2000 as stored", frame_as_stored, 2, 300, 60),
        Operation("frame, JPEG 2000 decoded, new", frame_decoded, 1, 80, 20, parallel=False),
        Operation("frame, JPEG 2000 decoded, again", frame_decoded_again, 10, 80, 20, parallel=False),
        Operation("CT slice rendered as JPEG", rendered, 2, 150, 30),
        Operation("thumbnail, 128 × 128", thumbnail, 1, 150, 30),
        Operation("7.5 Mpixel radiograph rendered", radiograph, 3, 30, 8),
        Operation("JPEG 2000 slice rendered, new", compressed_rendered, 1, 80, 20, parallel=False),
        Operation("JPEG 2000 slice rendered, again", compressed_repeated, 20, 80, 20, parallel=False),
        Operation("metadata of an instance", metadata, 1, 300, 60),
        Operation("metadata of 300 instances", metadata_of_study, 20, 20, 6),
        Operation("metadata of 300, gzip", metadata_compressed, 100, 20, 6),
        Operation("series of 300 instances", series, 1, 12, 4, parallel=False),
        Operation("STOW of 50 instances", storing(50), 2, 12, 4, parallel=False, afterwards=retrieve_sent),
        Operation("STOW of 1 instance", storing(1), 1, 200, 30, afterwards=retrieve_sent),
    ]
