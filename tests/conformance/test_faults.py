"""What a clinic's computers do to a server: full, read-only and missing disks, slow clients, many clients, a clock that
jumps. Whatever was acknowledged stays; what cannot be done is refused with its reason; when the fault is gone, all is
well again without anybody's doing.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import AppMaker
from tests.data import make_dataset, make_file
from tests.databases import on_sqlite

pytestmark = pytest.mark.skipif(os.name == "nt", reason="mounts and limits of POSIX")

OCTETS = {"Accept": "application/dicom; transfer-syntax=*"}
DICOM = {"Content-Type": "application/dicom"}
slow = pytest.mark.skipif(os.environ.get("TEST_FAULTS") != "all", reason="takes long; TEST_FAULTS=all runs it")


def post(server: Any, file: bytes) -> requests.Response:
    return requests.post(f"{server.root}/studies", file, headers=DICOM, timeout=120)


def url_of(server: Any, dataset: Any) -> str:
    series = f"{server.root}/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}"
    return f"{series}/instances/{dataset.SOPInstanceUID}"


def get(server: Any, dataset: Any) -> requests.Response:
    return requests.get(url_of(server, dataset), headers=OCTETS, timeout=120)


def out_of_resources(answer: requests.Response) -> bool:
    """503 with the reason A700 for each instance (PS3.18 Table I.2-2)."""
    module = answer.json()
    items = [*module.get("0008119A", {}).get("Value", ()), *module.get("00081198", {}).get("Value", ())]
    reasons = {item["00081197"]["Value"][0] for item in items}
    return answer.status_code == 503 and reasons == {0xA700} and "Retry-After" in answer.headers


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only the administrator may mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("reserve", ["12 MB", pytest.param("0", marks=slow)])
def test_a_full_disk_refuses_stores_with_a_reason_and_lets_reads_and_deletes_go_on(
    new_server: Callable[..., Any], small_disk: Path, reserve: str
) -> None:
    server = new_server(DICOMCLOUD_STORAGE_URL=f"file://{small_disk}/storage", DICOMCLOUD_MIN_FREE_BYTES=reserve)
    stored = []
    for _ in range(40):
        dataset = make_dataset(NumberOfFrames=6000, PixelData=os.urandom(512 * 6000))  # 3 MB
        answer = post(server, make_file(dataset))
        if answer.status_code != 200:
            break
        stored.append(dataset)
    assert out_of_resources(answer), answer.text
    assert 5 < len(stored) < 20
    free = shutil.disk_usage(small_disk).free
    assert free >= (8_000_000 if reserve != "0" else 0)
    assert get(server, stored[0]).content == make_file(stored[0])
    assert len(requests.get(f"{server.root}/studies", timeout=60).json()) == len(stored)
    assert requests.get(f"{server.url}/readyz?for=reading", timeout=60).status_code == 200
    assert requests.get(f"{server.url}/readyz", timeout=60).status_code == (503 if reserve != "0" else 200)
    for dataset in stored[:3]:
        assert requests.delete(f"{server.root}/studies/{dataset.StudyInstanceUID}", timeout=60).status_code == 204
    assert post(server, make_file()).status_code == 200
    assert not list((small_disk / "storage" / "incoming").iterdir())
    assert server.run("verify", "--checksums").returncode == 0


def test_an_instance_that_does_not_fit_is_refused_in_its_middle(
    new_server: Callable[..., Any], small_disk: Path
) -> None:
    server = new_server(DICOMCLOUD_STORAGE_URL=f"file://{small_disk}/storage", DICOMCLOUD_MIN_FREE_BYTES="10 MB")
    dataset = make_dataset(NumberOfFrames=100_000, PixelData=bytes(512 * 100_000))  # 51 MB
    assert out_of_resources(post(server, make_file(dataset)))
    assert get(server, dataset).status_code == 404
    assert post(server, make_file()).status_code == 200


def test_a_disk_that_became_read_only_refuses_stores_and_lets_reads_go_on(
    new_server: Callable[..., Any], small_disk: Path
) -> None:
    server = new_server(DICOMCLOUD_STORAGE_URL=f"file://{small_disk}/storage")
    dataset = make_dataset()
    assert post(server, make_file(dataset)).status_code == 200
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert out_of_resources(post(server, make_file()))
    assert get(server, dataset).content == make_file(dataset)
    ready = requests.get(f"{server.url}/readyz", timeout=60)
    assert (ready.status_code, ready.json()["checks"]["storage"]) == (503, "The storage cannot be used")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert post(server, make_file()).status_code == 200
    assert requests.get(f"{server.url}/readyz", timeout=60).status_code == 200
    assert server.run("verify").returncode == 0


def test_a_data_directory_on_a_read_only_disk_is_told_at_the_start(
    new_server: Callable[..., Any], small_disk: Path
) -> None:
    server = new_server(DICOMCLOUD_DATA_DIR=str(small_disk / "data"))
    assert post(server, make_file()).status_code == 200
    server.stop()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    finished = server.run("serve")
    assert (finished.returncode, finished.stderr.count("\n")) == (1, 1)
    assert (
        "is its disk mounted, and writable for this user?" in finished.stderr
        or "The index cannot be" in finished.stderr
    )
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_storage_that_goes_away_and_comes_back_needs_no_restart(
    new_server: Callable[..., Any], tmp_path: Path
) -> None:
    storage, elsewhere = tmp_path / "storage", tmp_path / "elsewhere"
    server = new_server(DICOMCLOUD_STORAGE_URL=f"file://{storage}")
    dataset = make_dataset()
    assert post(server, make_file(dataset)).status_code == 200
    storage.rename(elsewhere)
    answer = get(server, dataset)
    assert (answer.status_code, "file of this instance" in answer.text) == (503, True)
    assert out_of_resources(post(server, make_file()))
    assert requests.get(f"{server.root}/studies", timeout=60).status_code == 200
    assert requests.get(f"{server.root}/studies/{dataset.StudyInstanceUID}/metadata", timeout=60).status_code == 200
    assert requests.get(f"{server.url}/readyz", timeout=60).status_code == 503
    elsewhere.rename(storage)
    assert get(server, dataset).content == make_file(dataset)
    assert post(server, make_file()).status_code == 200


def test_a_server_does_not_start_with_an_empty_folder_in_place_of_its_files(
    new_server: Callable[..., Any], tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    server = new_server(DICOMCLOUD_STORAGE_URL=f"file://{storage}")
    assert post(server, make_file()).status_code == 200
    server.stop()
    storage.rename(tmp_path / "elsewhere")
    for _ in range(2):  # the first attempt must not make the second one succeed
        finished = server.run("serve")
        assert (finished.returncode, "Is its disk mounted?" in finished.stderr) == (1, True)
    shutil.rmtree(storage, ignore_errors=True)
    (tmp_path / "elsewhere").rename(storage)
    server.start()
    assert len(requests.get(f"{server.root}/studies", timeout=60).json()) == 1


@on_sqlite
def test_an_index_that_another_program_locks_stops_no_reader(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dicomcloud.index.database.BUSY_TIMEOUT", 0.5)  # it is 30 seconds
    client = make_app().test_client()
    dataset = make_dataset()
    path = f"/dicomweb/studies/{dataset.StudyInstanceUID}"
    assert client.post("/dicomweb/studies", data=make_file(dataset), headers=DICOM).status_code == 200
    with closing(sqlite3.connect(tmp_path / "data" / "index.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        answer = client.post("/dicomweb/studies", data=make_file(), headers=DICOM)
        assert (answer.status_code, answer.json["0008119A"]["Value"][0]["00081197"]["Value"]) == (503, [0xA700])
        assert "busy" in answer.headers["Warning"]
        deleted = client.delete(path)
        assert (deleted.status_code, "busy" in deleted.text) == (503, True)
        assert client.get(f"{path}/metadata").status_code == 200
        assert len(client.get("/dicomweb/studies").json) == 1
        other.execute("ROLLBACK")
    assert client.post("/dicomweb/studies", data=make_file(), headers=DICOM).status_code == 200
    assert client.delete(path).status_code == 204


@on_sqlite
def test_a_damaged_index_is_told_and_made_anew_from_the_files(new_server: Callable[..., Any], tmp_path: Path) -> None:
    server = new_server(DICOMCLOUD_DATA_DIR=str(tmp_path / "data"))
    datasets = [make_dataset() for _ in range(5)]
    assert {post(server, make_file(each)).status_code for each in datasets} == {200}
    index = tmp_path / "data" / "index.sqlite3"
    with open(index, "r+b") as file:  # while the server runs
        file.seek(4096)
        file.write(os.urandom(max(index.stat().st_size - 4096, 1 << 16)))
    answers = [requests.get(f"{server.root}/studies?PatientName=Doe*&offset={n}", timeout=60) for n in range(20)]
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all("index is damaged" in answer.text for answer in answers if answer.status_code == 503)
    server.kill()
    with suppress(FileNotFoundError):
        os.unlink(f"{index}-wal")
    finished = server.run("serve")
    assert (finished.returncode, "The index is damaged" in finished.stderr) == (1, True)
    assert server.run("reindex").returncode == 0
    server.start()
    for dataset in datasets:
        assert get(server, dataset).content == make_file(dataset)
    assert server.run("verify", "--checksums").returncode == 0


@on_sqlite
def test_an_index_that_went_away_is_not_taken_for_a_new_one(new_server: Callable[..., Any], tmp_path: Path) -> None:
    server = new_server(DICOMCLOUD_DATA_DIR=str(tmp_path / "data"), DICOMCLOUD_WORKERS="1")
    assert post(server, make_file()).status_code == 200
    index = tmp_path / "data" / "index.sqlite3"
    index.rename(tmp_path / "index")
    with ThreadPoolExecutor(16) as pool:  # more than the threads that have a connection to it yet
        answers = list(pool.map(lambda _: requests.get(f"{server.root}/studies", timeout=60), range(32)))
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all("index is not there" in answer.text for answer in answers if answer.status_code == 503)
    assert not index.exists()
    (tmp_path / "index").rename(index)
    assert [len(requests.get(f"{server.root}/studies", timeout=60).json()) for _ in range(8)] == [1] * 8


def begin(server: Any, text: str) -> socket.socket:
    host, port = server.bind.split(":")
    connection = socket.create_connection((host, int(port)), timeout=120)
    connection.sendall(text.encode())
    return connection


@slow
def test_clients_that_drip_or_stop_reading_hold_nobody_up_and_are_given_up(new_server: Callable[..., Any]) -> None:
    server = new_server(
        DICOMCLOUD_SERVER="gunicorn",
        DICOMCLOUD_REQUEST_TIMEOUT="3",
        DICOMCLOUD_WORKERS="2",
        DICOMCLOUD_THREADS="4",
    )
    dataset = make_dataset(NumberOfFrames=40_000, PixelData=bytes(512 * 40_000))  # 20 MB: more than a socket holds
    assert post(server, make_file(dataset)).status_code == 200
    path = url_of(server, dataset).removeprefix(server.url)
    stuck = [begin(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {OCTETS['Accept']}\r\n\r\n") for _ in range(2)]
    stuck += [begin(server, "GET /dicomweb/studies HTTP/1.1\r\nHost: x\r\nX-Drip: ") for _ in range(2)]
    stuck += [
        begin(
            server,
            "POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/dicom\r\n"
            "Content-Length: 5000\r\n\r\nD",
        )
        for _ in range(2)
    ]
    done = threading.Event()

    def drip() -> None:
        while not done.wait(0.5):
            for connection in stuck[2:]:
                with suppress(OSError):
                    connection.sendall(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        for _ in range(20):
            assert requests.get(f"{server.root}/studies", timeout=30).status_code == 200
        until = time.monotonic() + 60
        while requests_in_progress(server) > 3 and time.monotonic() < until:  # the two that drip a body, and this one
            time.sleep(0.5)
        assert requests_in_progress(server) <= 3
        assert [ended_early(each) for each in stuck[:2]] == [True, True]  # the rest of the 20 MB never comes
    finally:
        done.set()
        dripping.join()
        for connection in stuck:
            connection.close()
    assert server.run("verify").returncode == 0


def requests_in_progress(server: Any) -> float:
    """As the metrics say, which are a request themselves."""
    text = requests.get(f"{server.url}/metrics", timeout=30).text
    return float(
        next(line for line in text.splitlines() if "requests_in_progress " in line and line[0] != "#").split()[1]
    )


def ended_early(connection: socket.socket) -> bool:
    """Whether the server has closed the connection before all was sent; what is in flight is read."""
    connection.settimeout(0.2)
    try:
        while piece := connection.recv(1 << 20):
            del piece
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_a_hundred_clients_at_once_are_all_served(new_server: Callable[..., Any]) -> None:
    server = new_server()

    def visit(number: int) -> list[int]:
        with requests.Session() as session:
            dataset = make_dataset(PatientID=f"P{number}")
            file = make_file(dataset)
            sent = session.post(f"{server.root}/studies", file, headers=DICOM, timeout=120)
            found = session.get(f"{server.root}/studies", params={"PatientID": f"P{number}"}, timeout=120)
            back = session.get(url_of(server, dataset), headers=OCTETS, timeout=120)
            return [sent.status_code, len(found.json()), back.content == file]

    with ThreadPoolExecutor(100) as pool:
        assert list(pool.map(visit, range(100))) == [[200, 1, True]] * 100
    assert server.run("verify", "--checksums").returncode == 0


@slow
def test_a_server_that_runs_out_of_file_handles_recovers(new_server: Callable[..., Any]) -> None:
    server = new_server(limit_files=60, DICOMCLOUD_WORKERS="1", DICOMCLOUD_SERVER="gunicorn")
    dataset = make_dataset()
    assert post(server, make_file(dataset)).status_code == 200
    idle = []
    with suppress(OSError):
        idle = [begin(server, "") for _ in range(100)]
    time.sleep(1)
    answers = []
    with suppress(requests.RequestException):
        answers = [requests.get(f"{server.root}/studies", timeout=3).status_code for _ in range(3)]
    assert set(answers) <= {200, 503}
    for connection in idle:
        connection.close()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with suppress(requests.RequestException):
            if post(server, make_file()).status_code == 200:
                break
        time.sleep(0.5)
    assert get(server, dataset).content == make_file(dataset)
    assert server.run("verify", "--checksums").returncode == 0


def test_a_clock_that_jumps_loses_and_confuses_nothing(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    now, hours = time.time, [0.0]
    monkeypatch.setattr("time.time", lambda: now() + hours[0] * 3600)
    for place in ("time.time_ns", "dicomcloud.index.writing.time_ns"):
        monkeypatch.setattr(place, lambda: int((now() + hours[0] * 3600) * 1e9))
    client = make_app().test_client()
    study = make_dataset().StudyInstanceUID
    stored, etags = [], set()
    for hours[0] in (0, -1, 24 * 40, -24 * 400, 0):
        for _ in range(2):
            stored.append(make_dataset(StudyInstanceUID=study, InstanceNumber=len(stored)))
            assert client.post("/dicomweb/studies", data=make_file(stored[-1]), headers=DICOM).status_code == 200
        answer = client.get(f"/dicomweb/studies/{study}/metadata")
        assert len(answer.json) == len(stored)
        etags.add(answer.headers["ETag"])
    assert len(etags) == 5
    upkeep = make_app().extensions["dicomcloud"].archive.upkeep
    assert list(upkeep.verify(checksums=True)) == []
    assert [step.message for step in upkeep.reindex()] == [None] * len(stored)
    numbers = [row["00200013"]["Value"][0] for row in client.get(f"/dicomweb/studies/{study}/instances").json]
    assert sorted(numbers) == list(range(10))
