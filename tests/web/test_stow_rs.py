"""STOW-RS against the real application: what is stored, what is refused, and what the answer says (PS3.18 10.5)."""

from __future__ import annotations

import gzip
import http.client
import io
import threading
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from lxml import etree
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from dicomcloud.archive import Archive, StoreItem
from dicomcloud.errors import FailureReason, WarningReason
from dicomcloud.web import stow_rs
from tests.conftest import AppMaker
from tests.data import make_dataset, make_file, pydicom_files, sample_files

RELATED = 'multipart/related; type="application/dicom"; boundary="b"'
HEAD = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
STUDIES = "/dicomweb/studies"


def multipart(*files: bytes) -> bytes:
    return b"".join(HEAD + file + b"\r\n" for file in files) + b"--b--\r\n"


def store(client: FlaskClient, *files: bytes, url: str = STUDIES, **more: Any) -> TestResponse:
    return client.post(url, data=multipart(*files), content_type=RELATED, **more)


def stored_count(archive: Archive) -> int:
    return archive.index.counts()["instances"]


def reasons(answer: TestResponse, sequence: str) -> list[int]:
    """The failure or warning reasons of a sequence of the answer."""
    items = answer.json.get(sequence, {"Value": []})["Value"]
    return [item[tag]["Value"][0] for item in items for tag in ("00081196", "00081197") if tag in item]


# ------------------------------------------------------------------------------------------------ success


def test_the_answer_names_what_was_stored_and_where_it_can_be_retrieved(client):
    dataset = make_dataset()
    answer = store(client, make_file(dataset))
    study = f"http://localhost/dicomweb/studies/{dataset.StudyInstanceUID}"
    instance = f"{study}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    assert (answer.status_code, answer.content_type) == (200, "application/dicom+json")
    assert answer.json == {
        "00081190": {"vr": "UR", "Value": [study]},
        "00081199": {
            "vr": "SQ",
            "Value": [
                {
                    "00081150": {"vr": "UI", "Value": [dataset.SOPClassUID]},
                    "00081155": {"vr": "UI", "Value": [dataset.SOPInstanceUID]},
                    "00081190": {"vr": "UR", "Value": [instance]},
                }
            ],
        },
    }
    assert "Warning" not in answer.headers
    assert client.get(instance, headers={"Accept": "application/dicom; transfer-syntax=*"}).status_code == 200


def test_the_retrieve_url_is_empty_when_several_studies_were_stored(client):
    answer = store(client, make_file(), make_file())
    assert answer.status_code == 200
    assert answer.json["00081190"] == {"vr": "UR"}
    assert len(answer.json["00081199"]["Value"]) == 2


BODIES = {
    "quoted": (RELATED, HEAD, b"\r\n--b--\r\n"),
    "unquoted": ("multipart/related; type=application/dicom; boundary=b", HEAD, b"\r\n--b--\r\n"),
    "odd case and order": ('Multipart/Related;BOUNDARY=b;TYPE="Application/DICOM"', HEAD, b"\r\n--b--"),
    "more parameters": (RELATED + '; start="<x>"; transfer-syntax=1.2.840.10008.1.2.1', HEAD, b"\r\n--b--"),
    "without type": ("multipart/related; boundary=b", HEAD, b"\r\n--b--"),
    "a part without headers": (RELATED, b"--b\r\n\r\n", b"\r\n--b--"),
    "a part with parameters": (RELATED, HEAD[:-4] + b"; transfer-syntax=1.2.3\r\n\r\n", b"\r\n--b--"),
    "part header in lower case": (RELATED, HEAD.lower(), b"\r\n--b--"),
    "LF only": (RELATED, HEAD.replace(b"\r", b""), b"\n--b--\n"),
    "single part": ("application/dicom", b"", b""),
    "single part with parameter": ("Application/DICOM; transfer-syntax=1.2.840.10008.1.2.1", b"", b""),
    "demo client of the original": (
        'multipart/related; type="application/dicom"; boundary="DICOM FILE"',
        b"\r\n--DICOM FILE\r\nContent-Type:application/dicom\r\n\r\n",
        b"\r\n--DICOM FILE--",
    ),
    "JavaMail": (
        "multipart/related; type=application/dicom; boundary=----=_Part_1",
        b"------=_Part_1\r\nContent-Type: application/dicom\r\nContent-Transfer-Encoding: binary\r\n\r\n",
        b"\r\n------=_Part_1--\r\n",
    ),
}


@pytest.mark.parametrize(("content_type", "head", "tail"), BODIES.values(), ids=BODIES)
def test_every_form_of_request_that_clients_send_is_stored(client, archive, content_type, head, tail):
    answer = client.post(STUDIES, data=head + make_file() + tail, content_type=content_type)
    assert (answer.status_code, stored_count(archive)) == (200, 1)


def test_a_gzip_body_is_stored(client, archive):
    body = gzip.compress(multipart(make_file(), make_file()))
    answer = client.post(STUDIES, data=body, content_type=RELATED, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, stored_count(archive)) == (200, 2)


def test_the_same_bytes_again_are_a_success_and_other_bytes_are_refused(client, archive):
    dataset = make_dataset()
    file = make_file(dataset)
    assert [store(client, file).status_code, store(client, file, file).status_code] == [200, 200]
    dataset.PatientID = "P2"
    answer = store(client, make_file(dataset))
    assert (answer.status_code, reasons(answer, "00081198")) == (409, [0x0111])
    assert "299 http://localhost/dicomweb: " in answer.headers["Warning"]
    assert stored_count(archive) == 1


def test_an_instance_of_another_study_than_that_of_the_url_fails_alone(client, archive):
    mine, other = make_dataset(), make_dataset()
    url = f"{STUDIES}/{mine.StudyInstanceUID}"
    answer = store(client, make_file(mine), make_file(other), url=url)
    assert (answer.status_code, reasons(answer, "00081198"), stored_count(archive)) == (202, [0xA900], 1)
    failed = answer.json["00081198"]["Value"][0]
    assert failed["00081155"]["Value"] == [other.SOPInstanceUID]
    assert list(answer.json) == ["00081190", "00081198", "00081199"]
    assert store(client, make_file(other), url=url).status_code == 409


# ------------------------------------------------------------------------------------------------ failures


def test_a_part_that_is_not_dicom_is_another_failure_and_the_rest_is_stored(client, archive):
    answer = store(client, make_file(), b"not DICOM")
    assert (answer.status_code, reasons(answer, "0008119A"), stored_count(archive)) == (202, [0xC000], 1)
    assert list(answer.json) == ["00081190", "00081199", "0008119A"]


def test_a_part_of_another_media_type_is_another_failure_and_the_rest_is_stored(client, archive):
    body = HEAD + make_file() + b"\r\n--b\r\nContent-Type: application/pdf\r\n\r\n%PDF\r\n--b--"
    answer = client.post(STUDIES, data=body, content_type=RELATED)
    assert (answer.status_code, reasons(answer, "0008119A"), stored_count(archive)) == (202, [0xC000], 1)
    assert "Part 2 is not application/dicom" in answer.headers["Warning"]


def test_nothing_stored_of_a_well_formed_request_is_a_conflict_with_a_body(client, archive):
    answer = store(client, b"not DICOM", b"", make_file(StudyInstanceUID=None))
    assert (answer.status_code, answer.content_type) == (409, "application/dicom+json")
    assert answer.json["00081190"] == {"vr": "UR"}
    assert reasons(answer, "0008119A") == [0xC000, 0xC000]
    assert reasons(answer, "00081198") == [0xC000]
    assert stored_count(archive) == 0


GOOD = multipart(make_file())

MALFORMED = {
    "no parts": (RELATED, b"--b--\r\n", "no parts"),
    "empty": (RELATED, b"", "empty"),
    "empty single part": ("application/dicom", b"", "empty"),
    "no boundary parameter": ('multipart/related; type="application/dicom"', GOOD, "no boundary"),
    "another boundary": (RELATED.replace('"b"', '"c"'), GOOD, "boundary 'c'"),
    "no close delimiter": (RELATED, GOOD[:-6], "cut off"),
    "cut off in the second part": (RELATED, multipart(make_file(), make_file())[:-600], "cut off"),
    "no header lines": (RELATED, GOOD.replace(b"Content-Type: ", b"\x00"), "not a header line"),
}


@pytest.mark.parametrize(("content_type", "body", "fault"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_a_bad_request_and_nothing_is_stored(client, archive, content_type, body, fault):
    answer = client.post(STUDIES, data=body, content_type=content_type)
    assert (answer.status_code, stored_count(archive)) == (400, 0)
    assert fault in answer.json["message"]


@pytest.mark.parametrize("content_type", [RELATED, "application/dicom"])
def test_a_body_shorter_than_its_content_length_is_a_bad_request_and_nothing_is_stored(client, archive, content_type):
    body = GOOD if content_type == RELATED else make_file()
    environ = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body) + 1)}
    answer = client.post(STUDIES, content_type=content_type, environ_overrides=environ)
    assert (answer.status_code, stored_count(archive)) == (400, 0)
    assert f"after {len(body)} of {len(body) + 1} bytes" in answer.json["message"]


class _Broken(io.BytesIO):
    """A connection that is lost after the first piece, in the manner of some server."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            raise EOFError("lost")
        return data


def test_a_connection_that_is_lost_is_a_bad_request_and_nothing_is_stored(client, archive):
    environ = {"wsgi.input": _Broken(GOOD), "wsgi.input_terminated": True}
    answer = client.post(STUDIES, content_type=RELATED, environ_overrides=environ)
    assert (answer.status_code, answer.json["message"], stored_count(archive)) == (400, "The body broke off.", 0)


def test_a_content_length_that_is_no_number_is_a_bad_request(client):
    answer = client.post(STUDIES, data=GOOD, content_type=RELATED, environ_overrides={"CONTENT_LENGTH": "-5"})
    assert answer.status_code == 400


@pytest.mark.parametrize("uid", ["abc", "1.2.x", "1" * 65, "1..2", "%2e%2e"])
def test_a_url_without_a_uid_is_a_bad_request(client, archive, uid):
    answer = store(client, make_file(), url=f"{STUDIES}/{uid}")
    assert (answer.status_code, stored_count(archive)) == (400, 0)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "dicom",
        "application/octet-stream",
        "application/pdf",
        'multipart/related; type="image/jpeg"; boundary=b',
        "multipart/form-data; boundary=b",
    ],
)
def test_another_content_type_is_refused_with_the_supported_ones(client, archive, content_type):
    answer = client.post(STUDIES, data=GOOD, content_type=content_type)
    assert (answer.status_code, stored_count(archive)) == (415, 0)
    assert 'multipart/related; type="application/dicom" and application/dicom' in answer.json["message"]


def test_parts_in_base64_and_unknown_content_encodings_are_refused(client, archive):
    base64 = HEAD[:-2] + b"Content-Transfer-Encoding: base64\r\n\r\nRElDTQ==\r\n--b--"
    assert client.post(STUDIES, data=base64, content_type=RELATED).status_code == 415
    answer = client.post(STUDIES, data=GOOD, content_type=RELATED, headers={"Content-Encoding": "br"})
    assert (answer.status_code, stored_count(archive)) == (415, 0)


class _Counted(io.RawIOBase):
    """An endless body that counts what is read of it."""

    def __init__(self, start: bytes = b"") -> None:
        self.start, self.count = start, 0

    def read(self, size: int = -1, /) -> bytes:
        data, self.start = self.start[:size], self.start[size:]
        data = data or bytes(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize(
    ("length", "drained"), [(1001, 1001), (1 << 40, 32 << 20)], ids=["a little too long", "much too long"]
)
def test_a_body_announced_as_too_large_is_drained_in_part_and_refused(make_app: AppMaker, length, drained):
    body = _Counted()
    client = make_app(max_request_bytes=1000).test_client()
    environ = {"wsgi.input": body, "CONTENT_LENGTH": str(length)}
    answer = client.post(STUDIES, content_type=RELATED, environ_overrides=environ)
    assert answer.status_code == 413
    assert "1000 bytes" in answer.json["message"]
    assert drained <= body.count <= drained + (1 << 20)


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_body_without_length_is_counted_while_it_is_read(make_app: AppMaker, encoding):
    app = make_app(max_request_bytes=1 << 21)
    body = _Counted(HEAD) if not encoding else io.BytesIO(gzip.compress(HEAD + bytes(1 << 22)))
    answer = app.test_client().post(
        STUDIES,
        content_type=RELATED,
        headers={"Content-Encoding": encoding},
        environ_overrides={"wsgi.input": body, "wsgi.input_terminated": True},
    )
    assert answer.status_code == 413
    assert stored_count(app.extensions["dicomcloud"].archive) == 0


def test_a_request_of_too_many_parts_is_refused(make_app: AppMaker):
    app = make_app(max_parts=2)
    files = [make_file() for _ in range(3)]
    assert store(app.test_client(), *files).status_code == 413
    assert stored_count(app.extensions["dicomcloud"].archive) == 0
    assert store(app.test_client(), *files[:2]).status_code == 200


def test_a_full_disk_is_answered_with_503_and_when_to_come_back(make_app: AppMaker):
    answer = store(make_app(min_free_bytes=1 << 60).test_client(), make_file())
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


# ------------------------------------------------------------------------------------------------ the answer

STORED = StoreItem("1.2", "1.2.3", "1.2.840", "1.2.3.4")
FAILED = StoreItem("1.2", "1.2.3", "1.2.840", "1.2.3.5", FailureReason.PROCESSING_FAILURE, message="it failed")
NO_SPACE = StoreItem(failure=FailureReason.OUT_OF_RESOURCES, message="no space")
COERCED = StoreItem("1.2", "1.2.3", "1.2.840", "1.2.3.6", warning=WarningReason.COERCED, message="changed")


@pytest.mark.parametrize(
    ("items", "status"),
    [
        ([STORED, STORED], 200),
        ([STORED, COERCED], 202),
        ([COERCED], 202),
        ([STORED, FAILED], 202),
        ([STORED, NO_SPACE], 202),
        ([FAILED], 409),
        ([FAILED, NO_SPACE], 409),
        ([NO_SPACE, NO_SPACE], 503),
    ],
)
def test_the_status_sums_up_what_became_of_the_instances_10_5_3_1(app: Flask, items, status):
    with app.test_request_context(STUDIES, method="POST"):
        answer = stow_rs._answer(items)
    assert answer.status_code == status
    assert ("Retry-After" in answer.headers) == (status == 503)


@pytest.mark.parametrize(("sop_class", "instance"), [("1.2.840", None), (None, "1.2.3.4"), (None, None)])
def test_a_failure_without_both_uids_is_another_failure_i_1_1(app: Flask, sop_class, instance):
    item = StoreItem("1.2", "1.2.3", sop_class, instance, FailureReason.CANNOT_UNDERSTAND)
    with app.test_request_context(STUDIES, method="POST"):
        answer = stow_rs._answer([item])
    assert answer.json == {
        "00081190": {"vr": "UR"},
        "0008119A": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xC000]}}]},
    }


def test_a_warning_reason_stands_with_its_instance(app: Flask):
    with app.test_request_context(STUDIES, method="POST"):
        answer = stow_rs._answer([COERCED])
    assert answer.json["00081199"]["Value"][0]["00081196"] == {"vr": "US", "Value": [0xB000]}


def test_warnings_are_few_distinct_and_fit_for_a_header(app: Flask):
    messages = ["caf\u00e9\r\nSet-Cookie: x\x01\x7f", *map(str, range(20)), "0", "long " * 100]
    items = [StoreItem(failure=FailureReason.PROCESSING_FAILURE, message=message) for message in messages]
    with app.test_request_context(STUDIES, method="POST"):
        answer = stow_rs._answer(items)
    warnings = answer.headers.getlist("Warning")
    assert len(warnings) == 10
    assert warnings[0] == "299 http://localhost/dicomweb: caf???Set-Cookie: x??"
    assert warnings[-1] == "299 http://localhost/dicomweb: 13 more messages are left out"
    assert all(warning.isascii() and warning.isprintable() for warning in warnings)


def test_query_keys_are_ignored_with_a_warning_that_repeats_no_values(client):
    answer = store(client, make_file(), url=f"{STUDIES}?00100020=Secret&00100010=Doe^Jane&")
    assert answer.status_code == 200
    assert answer.headers["Warning"].endswith("These query parameters are ignored: 00100010, 00100020")


def uids_in_xml(document: bytes) -> list[str]:
    root = etree.fromstring(document)
    return root.xpath("//*[@tag='00081199']/*/*[@tag='00081155']/*/text()")


def test_the_answer_is_xml_by_accept(client):
    dataset = make_dataset()
    answer = store(client, make_file(dataset), headers={"Accept": "application/dicom+xml"})
    assert (answer.status_code, answer.content_type) == (200, "application/dicom+xml")
    assert uids_in_xml(answer.data) == [dataset.SOPInstanceUID]


def test_the_answer_is_xml_in_a_part_by_accept(client):
    dataset = make_dataset()
    accept = 'multipart/related; type="application/dicom+xml"'
    answer = store(client, make_file(dataset), headers={"Accept": accept})
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + answer.content_type.encode() + b"\r\n\r\n" + answer.data
    )
    (part,) = message.iter_parts()
    assert part.get_content_type() == "application/dicom+xml"
    assert uids_in_xml(part.get_payload(decode=True)) == [dataset.SOPInstanceUID]


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        "application/json, application/dicom+xml; q=0.9, */*; q = 0.1",
        "text/html",
        "application/dicom+json, image/png",
        "*/*;q=0",
    ],
)
def test_the_answer_is_json_for_all_others_and_never_lost(client, accept):
    answer = store(client, make_file(), headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.content_type) == (200, "application/dicom+json")


# ------------------------------------------------------------------------------------------------ over a socket


@pytest.fixture
def address(app: Flask) -> Iterator[tuple[str, int]]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield "127.0.0.1", server.port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_chunked_body_is_stored(address, archive):
    connection = http.client.HTTPConnection(*address, timeout=30)
    body = multipart(make_file(), make_file())
    pieces = (body[start : start + 700] for start in range(0, len(body), 700))
    connection.request("POST", STUDIES, pieces, {"Content-Type": RELATED}, encode_chunked=True)
    assert connection.getresponse().status == 200
    assert stored_count(archive) == 2
    connection.close()


@pytest.mark.parametrize("header", [("Content-Length", "1000000"), ("Transfer-Encoding", "chunked")])
def test_a_client_that_goes_away_in_the_middle_leaves_nothing_behind(address, archive, tmp_path, header):
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.putrequest("POST", STUDIES)
    connection.putheader("Content-Type", RELATED)
    connection.putheader(*header)
    connection.endheaders()
    body = HEAD + make_file() + b"\r\n" + HEAD + make_file()[:-100]
    connection.send(b"%x\r\n%b\r\n" % (len(body), body) if header[1] == "chunked" else body)
    connection.sock.shutdown(1)  # SHUT_WR: the server sees the end and can still answer
    assert connection.getresponse().status == 400
    connection.close()
    assert stored_count(archive) == 0
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".note", ".dcm")]


# ------------------------------------------------------------------------------------------------ real files


@pytest.mark.parametrize("files", [pydicom_files, sample_files], ids=["pydicom", "samples"])
def test_every_real_file_gets_its_own_answer_and_never_a_server_error(client, archive, files):
    paths = files()
    if not paths:
        pytest.skip("no such files here")
    stored = set()
    for path in paths:
        answer = client.post(STUDIES, data=path.read_bytes(), content_type="application/dicom")
        module = answer.json
        outcome = [len(module[tag]["Value"]) for tag in ("00081199", "00081198", "0008119A") if tag in module]
        assert (answer.status_code in (200, 202, 409), outcome) == (True, [1]), path
        assert (answer.status_code == 409) == ("00081199" not in module), path
        if answer.status_code == 409:
            assert {*reasons(answer, "00081198"), *reasons(answer, "0008119A")} < {0x0111, 0xC000}, path
        else:
            stored.add(module["00081199"]["Value"][0]["00081155"]["Value"][0])
    assert stored_count(archive) == len(stored) > 0
