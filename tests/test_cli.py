"""The command line on a real data directory; the server as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.conftest import Run, report_of
from tests.data import make_dataset, make_file
from tests.databases import on_sqlite

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two instances of a study, one of them two folders down, and files that are no instances."""
    folder = tmp_path / "medium"
    (folder / "a" / "b").mkdir(parents=True)
    study = make_dataset().StudyInstanceUID
    (folder / "a" / "1.dcm").write_bytes(make_file(StudyInstanceUID=study))
    (folder / "a" / "b" / "IM000002").write_bytes(make_file(StudyInstanceUID=study))
    (folder / "README.TXT").write_text("An export", encoding="utf-8")
    (folder / "empty").touch()
    return folder


# import


def test_import_stores_a_folder_and_says_what_it_skipped_and_why(run: Run, folder: Path) -> None:
    finished = run("import", folder)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "Stored 2 instances" in finished.stdout
    assert re.search(
        r"Skipped 2 files:\n  empty file\n    .*empty\n  not a DICOM file\n    .*README\.TXT\n", finished.stdout
    )


def test_import_can_be_run_again_and_counts_what_is_already_there(run: Run, folder: Path) -> None:
    run("import", folder / "a" / "b")
    report = report_of(run("import", "--json", folder))
    assert (report["stored"], report["already_there"], report["failed"]) == (1, 1, [])
    assert {Path(each["path"]).name: each["reason"] for each in report["skipped"]} == {
        "README.TXT": "not a DICOM file",
        "empty": "empty file",
    }


def test_import_takes_single_files_and_several_folders(run: Run, folder: Path) -> None:
    report = report_of(run("import", "--json", folder / "a" / "1.dcm", folder / "a" / "b"))
    assert report["stored"] == 2


def test_import_fails_by_name_when_a_dicom_file_cannot_be_stored(run: Run, folder: Path) -> None:
    broken = make_file()[:400]
    (folder / "broken.dcm").write_bytes(broken)
    finished = run("import", "--quiet", folder)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith("NOT STORED: 1 file:")
    assert "broken.dcm" in finished.stderr
    assert report_of(run("import", "--json", folder))["already_there"] == 2


@pytest.mark.parametrize(
    ("policy", "code", "counted"), [("reject", 1, "failed"), ("keep", 0, "kept"), ("replace", 0, "replaced")]
)
def test_import_follows_the_setting_for_duplicates(
    run: Run, tmp_path: Path, policy: str, code: int, counted: str
) -> None:
    dataset = make_dataset()
    (tmp_path / "old.dcm").write_bytes(make_file(dataset))
    dataset.PatientID = "other"
    (tmp_path / "new.dcm").write_bytes(make_file(dataset))
    run("import", tmp_path / "old.dcm")
    finished = run("import", "--json", tmp_path / "new.dcm", duplicates=policy)
    result = report_of(finished)[counted]
    assert (finished.returncode, len(result) if isinstance(result, list) else result) == (code, 1)


def test_import_skips_the_dicomdir_of_a_medium(run: Run) -> None:
    import pydicom

    medium = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    finished = run("import", "--json", medium)
    report = report_of(finished)
    reasons = [each["reason"] for each in report["skipped"]]
    assert (finished.returncode, report["stored"], report["failed"]) == (0, 81, [])
    assert sorted(set(reasons)) == ["DICOMDIR: the table of contents of a medium", "not a DICOM file"]
    assert reasons.count("not a DICOM file") == 2


def test_import_stores_files_without_preamble(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bare").write_bytes(make_file()[132:])
    assert report_of(run("import", "--json", tmp_path / "bare"))["stored"] == 1


def test_import_leaves_the_archives_own_folder_out(run: Run, tmp_path: Path, folder: Path) -> None:
    run("import", folder)
    report = report_of(run("import", "--json", tmp_path))
    assert (report["already_there"], report["failed"]) == (2, [])


def test_import_of_a_folder_that_is_not_there_is_wrong_usage(run: Run, tmp_path: Path) -> None:
    finished = run("import", tmp_path / "nowhere")
    assert finished.returncode == 2
    assert "nowhere" in finished.stderr


# verify, reindex, migrate, settings


def stored_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "data" / "storage").rglob("*.dcm"))


def test_verify_finds_index_and_files_in_agreement(run: Run, folder: Path) -> None:
    run("import", folder)
    finished = run("verify", "--checksums")
    assert (finished.returncode, finished.stdout) == (0, "Index and files agree: 1 studies, 2 instances.\n")


def test_verify_names_a_missing_file_and_repairs_the_index(run: Run, folder: Path, tmp_path: Path) -> None:
    run("import", folder)
    lost = stored_files(tmp_path)[0]
    lost.unlink()
    finished = run("verify")
    assert finished.returncode == 1
    assert re.match(rf"missing file .*{lost.stem}\.dcm: ", finished.stdout)
    assert run("verify", "--repair").returncode == 0
    report = report_of(run("verify", "--json"))
    assert (report["findings"], report["counts"]["instances"]) == ([], 1)


def test_verify_files_an_instance_that_has_no_row(run: Run, folder: Path, tmp_path: Path) -> None:
    run("import", folder)
    stray = stored_files(tmp_path)[0].with_name("0" * 26 + ".dcm")
    stray.write_bytes(make_file())
    report = report_of(run("verify", "--json"))
    assert ([each["kind"] for each in report["findings"]], report["unrepaired"]) == (["unknown file"], 1)
    assert run("verify", "--repair").returncode == 0
    assert report_of(run("verify", "--json"))["counts"]["instances"] == 3


def test_reindex_builds_a_lost_index_anew(run: Run, folder: Path, tmp_path: Path) -> None:
    run("import", folder)
    for path in (tmp_path / "data").glob("index.sqlite3*"):
        path.unlink()
    finished = run("reindex")
    assert (finished.returncode, finished.stdout) == (0, "Indexed 2 instances of 1 studies; 0 could not be.\n")
    assert run("verify").returncode == 0


def test_reindex_names_a_file_that_cannot_be_indexed(run: Run, folder: Path, tmp_path: Path) -> None:
    run("import", folder)
    broken = stored_files(tmp_path)[0]
    broken.write_bytes(b"no longer DICOM")
    finished = run("reindex")
    assert finished.returncode == 1
    assert broken.name in finished.stderr
    assert "Indexed 1 instances of 1 studies; 1 could not be." in finished.stdout


@on_sqlite
def test_migrate_tells_what_is_pending_and_applies_it_once(run: Run) -> None:
    check = run("migrate", "--check")
    assert (check.returncode, check.stdout.split(maxsplit=1)[0]) == (1, "pending:")
    assert run("migrate").stdout == check.stdout.replace("pending:", "applied:")
    assert run("migrate").stdout == "The database is up to date.\n"
    assert run("migrate", "--check").returncode == 0


def test_settings_shows_value_and_source_without_passwords(run: Run, tmp_path: Path) -> None:
    (tmp_path / "dicomcloud.toml").write_text('public_url = "https://me:secret@pacs.example"', encoding="utf-8")
    lines = run("settings", threads=3).stdout.splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert rows["threads"] == ["3", "environment variable DICOMCLOUD_THREADS"]
    assert rows["public_url"] == ["https://me:***@pacs.example", "dicomcloud.toml"]
    assert rows["root"] == ["/dicomweb", "default"]


@pytest.mark.parametrize("command", ["serve", "migrate", "verify", "settings"])
def test_a_wrong_setting_stops_every_command_with_one_line(run: Run, command: str) -> None:
    finished = run(command, workers="many")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("Setting workers (environment variable DICOMCLOUD_WORKERS): 'many' is not ")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("url", ["ftp://files.example/dicom", "s3://key:a-secret@bucket?colour=red"])
def test_a_storage_that_is_not_known_stops_the_start_without_telling_secrets(run: Run, url: str) -> None:
    finished = run("serve", storage_url=url)
    assert finished.returncode == 2
    assert finished.stderr.startswith(("Setting storage_url: it ", "Setting storage_url: no "))
    assert "secret" not in finished.stderr
    shown = run("settings", storage_url=f"{url}&sas=sig%3Dabc").stdout
    assert "a-secret" not in shown
    assert "abc" not in shown


def test_a_data_directory_that_cannot_be_made_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finished = run("migrate", data_dir=tmp_path / "file" / "data")
    assert finished.returncode == 2
    assert finished.stderr.startswith("Setting data_dir: ")


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_the_data_directory_is_for_its_owner_only(run: Run, tmp_path: Path) -> None:
    run("migrate")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


# serve


@contextmanager
def serving(
    tmp_path: Path, environment: dict[str, str], **settings: object
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server process; gives its base URL."""
    variables = {f"DICOMCLOUD_{name.upper()}": str(value) for name, value in settings.items()}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dicomcloud", "serve"],
            cwd=tmp_path,
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # or Ctrl+Break reached the tests too
        )
    assert process.stdout is not None
    try:
        banner = ""
        while "Stop it with" not in banner:
            line = process.stdout.readline()
            assert line, (tmp_path / "log").read_text()
            banner += line
        found = re.search(r"Swagger UI +(https?://\S+)/swagger\n", banner)
        assert found, banner
        assert str(tmp_path / "data") in banner
        yield found[1], process
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def get(url: str, **headers: str) -> tuple[int, bytes]:
    with urlopen(
        Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()}), timeout=30
    ) as answer:
        return answer.status, answer.read()


SERVERS = [pytest.param("gunicorn", marks=pytest.mark.skipif(os.name == "nt", reason="not on Windows")), "waitress"]


@pytest.mark.parametrize("server", SERVERS)
def test_serve_answers_until_it_is_told_to_stop(tmp_path: Path, environment: dict[str, str], server: str) -> None:
    with serving(tmp_path, environment, server=server) as (url, process):
        assert json.loads(get(f"{url}/readyz")[1])["status"] == "ready"
        file = make_file()
        stored = Request(f"{url}/dicomweb/studies", file, {"Content-Type": "application/dicom"})
        with urlopen(stored, timeout=30) as answer:
            assert answer.status == 200
        [study] = json.loads(get(f"{url}/dicomweb/studies")[1])
        assert get(study["00081190"]["Value"][0] + "/metadata")[0] == 200
        try:
            process.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM)
        except OSError as error:  # Windows, without a console
            pytest.skip(f"the server cannot be told to stop here: {error}")
        assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(("trusted", "host"), [("127.0.0.1", "pacs.example"), ("10.0.0.1", "127.0.0.1")])
def test_forwarded_headers_count_when_they_come_from_a_trusted_proxy(
    tmp_path: Path, environment: dict[str, str], server: str, trusted: str, host: str
) -> None:
    with serving(tmp_path, environment, server=server, trusted_proxies=trusted, authentication="none") as (url, _):
        document = json.loads(get(f"{url}/openapi.json", X_Forwarded_Host="pacs.example", X_Forwarded_Proto="https")[1])
    assert re.match(rf"https?://{host}(:|$)", document["servers"][0]["url"])
    assert document["servers"][0]["url"].startswith("https:") == (host == "pacs.example")


@pytest.mark.skipif(os.name == "nt", reason="gunicorn")
def test_a_client_that_falls_silent_in_the_middle_of_a_body_is_given_up(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with serving(tmp_path, environment, request_timeout=1, threads=1) as (url, _):
        address = url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=20) as silent:
            headers = ["Host: x", "Content-Type: application/dicom", "Content-Length: 999"]
            request = "\r\n".join(["POST /dicomweb/studies HTTP/1.1", *headers, "", "begun"])
            silent.sendall(request.encode())
            assert get(f"{url}/healthz")[0] == 200  # the only thread is free again
            assert not silent.recv(1 << 16).startswith(b"HTTP/1.1 2")


def test_serve_refuses_a_port_in_use(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        finished = run("serve", bind=address)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"{address} is in use")


@on_sqlite
def test_the_command_runs_from_any_folder(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "dicomcloud"), "migrate"]
    del environment["PYTHONPATH"]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    assert (finished.returncode, (tmp_path / "data" / "index.sqlite3").exists()) == (0, True), finished.stderr


def test_without_the_libraries_it_says_how_to_get_them(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "dicomcloud", "serve"]  # -S: without site-packages
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert finished.returncode == 1
    assert "is not installed for" in finished.stderr
    assert "make run" in finished.stderr


# doctor


def test_doctor_finds_a_new_archive_in_order(run: Run, folder: Path) -> None:
    run("import", folder)
    finished = run("doctor")
    assert (finished.returncode, "0 faults" in finished.stdout) == (0, True), finished.stdout
    rows = json.loads(run("doctor", "--json").stdout)
    assert {row["what"]: row["state"] for row in rows}.items() >= {"schema": "ok", "database": "ok"}.items()


@on_sqlite
def test_doctor_names_pending_migrations_and_what_to_do(run: Run) -> None:
    finished = run("doctor")
    assert finished.returncode == 1
    assert "FAULT    schema: not up to date, missing: 0001_initial" in finished.stdout
    assert "Run `migrate`." in finished.stdout


@on_sqlite
def test_doctor_goes_on_where_a_check_fails(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "index.sqlite3").write_bytes(b"this is no database" * 100)
    finished = run("doctor")
    assert (finished.returncode, finished.stderr) == (1, "")
    assert "FAULT    index: could not be checked: DatabaseError" in finished.stdout
