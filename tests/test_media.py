"""ZIP files, through the web and the command line, and what lies in folders beside instances."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from dicomcloud.media import ZipMedium
from tests.conftest import AppMaker, Run
from tests.data import SAMPLES, make_dataset, make_file, sample_files
from tests.databases import SERVER, url_of_new_server_database

STUDIES = "/dicomweb/studies"


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return target.getvalue()


def post(client: FlaskClient, body: bytes, url: str = STUDIES) -> Any:
    return client.post(url, data=body, content_type="application/zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_instance_in_a_zip_file_is_stored_and_the_rest_is_counted(client, method):
    body = zipped(("a/b/1", make_file()), ("2.dcm", make_file()), ("viewer.exe", b"MZ"), ("empty", b""), method=method)
    answer = post(client, body)
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (200, 2)
    assert "2 members of the ZIP file are no DICOM instances" in answer.headers["Warning"]


def test_a_zip_file_for_one_study_takes_instances_of_that_study_only(client):
    mine = make_dataset()
    answer = post(client, zipped(("1", make_file(mine)), ("2", make_file())), f"{STUDIES}/{mine.StudyInstanceUID}")
    assert answer.status_code == 202
    assert answer.json["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]


def test_a_damaged_member_fails_alone(client):
    body = bytearray(zipped(("1", make_file()), ("2", make_file()), method=zipfile.ZIP_STORED))
    body[600] ^= 0xFF
    answer = post(client, bytes(body))
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (202, 1)
    assert "cannot be unpacked: Bad CRC-32" in answer.headers["Warning"]


def test_a_member_without_a_name_is_stored_like_others(client):
    answer = post(client, zipped(("NAME", make_file())).replace(b"NAME", b"\0AME"))
    assert (answer.status_code, len(answer.json["00081199"]["Value"])) == (200, 1)


def test_an_encrypted_member_fails_with_that_reason(client):
    body = bytearray(zipped(("1", make_file())))
    body[6] |= 1
    body[body.rindex(b"PK\x01\x02") + 8] |= 1
    answer = post(client, bytes(body))
    assert answer.status_code == 409
    assert "encrypted" in answer.headers["Warning"]


@pytest.mark.parametrize("body", [b"", b"no zip", zipped(("1", make_file()))[:-30], zipped(), zipped(("a.txt", b"x"))])
def test_what_is_no_zip_file_or_holds_no_instance_is_a_bad_request(client, body):
    assert post(client, body).status_code == 400


def test_a_zip_bomb_is_given_up_and_leaves_nothing(make_app: AppMaker, tmp_path: Path):
    client = make_app(max_request_bytes=8 << 20).test_client()
    zeros = make_file(Rows=4096, Columns=1024, PixelData=bytes(4096 * 1024 * 2))
    answer = post(client, zipped(*((str(number), zeros) for number in range(6))))
    assert answer.status_code == 409
    assert "unpacks to more than this server accepts" in " ".join(answer.headers.getlist("Warning"))
    assert not list(tmp_path.rglob("*.part"))


def test_the_bound_of_what_a_zip_file_may_unpack_to_grows_with_it() -> None:
    body = zipped(("1", make_file() + bytes(300 << 20)))
    medium = ZipMedium(io.BytesIO(body), max_members=10, max_bytes=1 << 40)
    (member,) = medium.members()
    with pytest.raises(Exception, match="unpacks to more"):
        for _ in member.chunks():
            pass
    with pytest.raises(ValueError, match="more than 0 members"):
        ZipMedium(io.BytesIO(body), max_members=0, max_bytes=1 << 40)


def test_import_finds_instances_in_zip_files_and_on_a_cd(run: Run, tmp_path: Path):
    cd = tmp_path / "cd"
    (cd / "DICOM" / "PAT1").mkdir(parents=True)
    (cd / "DICOM" / "PAT1" / "IM1").write_bytes(make_file())
    (cd / "export.ZIP").write_bytes(zipped(("x/1", make_file()), ("x/2", make_file()[:600]), ("readme", b"hi")))
    (cd / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    answer = run("import", "--json", str(cd))
    report = json.loads(answer.stdout)
    assert (answer.returncode, report["stored"]) == (1, 2)
    assert {Path(each["path"]).relative_to(cd).as_posix() for each in report["failed"]} == {
        "export.ZIP/x/2",
        "broken.zip",
    }
    assert [each["reason"] for each in report["skipped"]] == ["not a DICOM file"]
    again = json.loads(run("import", "--json", str(cd)).stdout)
    assert (again["stored"], again["already_there"]) == (0, 2)


@pytest.mark.skipif(not sample_files(), reason="no samples here")
def test_all_samples_in_a_zip_file_get_the_outcome_that_they_have_as_files(run: Run, tmp_path: Path):
    body = zipped(*((path.relative_to(SAMPLES).as_posix(), path.read_bytes()) for path in sample_files()))
    (tmp_path / "samples.zip").write_bytes(body)

    def imported(source: Path, name: str) -> dict[str, Any]:
        """What is told of an import into an archive of its own."""
        own = {"database_url": url_of_new_server_database()} if SERVER else {}
        report: dict[str, Any] = json.loads(
            run("import", "--json", str(source), data_dir=tmp_path / name, **own).stdout
        )
        return report

    packed, plain = imported(tmp_path / "samples.zip", "a"), imported(SAMPLES, "b")
    counts = ("stored", "already_there", "bytes")
    assert [packed[name] for name in counts] == [plain[name] for name in counts]
    assert len(packed["failed"]) == len(plain["failed"])


def test_the_quarantine_is_listed(make_app: AppMaker, run: Run, tmp_path: Path):
    client = make_app(quarantine="true").test_client()
    client.post(STUDIES, data=make_file()[:600], content_type="application/dicom")
    told = run("quarantine")
    assert "truncated" in told.stdout
    assert "1 file, 0.0 MB" in told.stdout
    report = json.loads(run("quarantine", "--json").stdout)
    (entry,) = report["files"]
    assert (entry["size"], entry["failure_reason"]) == (600, "C000")
