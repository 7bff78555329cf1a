"""Plug-ins of another package, really installed, in a real server process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from flask.testing import FlaskClient

from dicomcloud.settings import SettingsError
from tests.conformance.conftest import Server
from tests.conftest import AppMaker
from tests.data import make_dataset, make_file

EXAMPLE = Path(__file__).parent / "example_plugin"
DICOM = {"Content-Type": "application/dicom"}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the example package."""
    folder = tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source") / "example"
    copy = f"import shutil; shutil.copytree({str(EXAMPLE)!r}, {str(source)!r})"
    subprocess.run([sys.executable, "-c", copy], check=True)  # pip builds beside the source
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", folder, source], check=True)
    return folder


@pytest.fixture(scope="module")
def server(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    made = Server(
        folder,
        PYTHONPATH=str(installed),
        EXAMPLE_JOURNAL=str(folder / "journal.txt"),
        DICOMCLOUD_STORAGE_URL=f"mirror://{folder / 'files'}",
        DICOMCLOUD_SUBSCRIBERS="journal",
        DICOMCLOUD_PROCESSORS="station",
    )
    made.start()
    yield made
    made.stop()


def test_an_authenticator_tells_who_calls_and_what_they_may(installed: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, PYTHONPATH=str(installed), DICOMCLOUD_AUTHENTICATORS="badge")
    server.start()
    studies = f"{server.root}/studies"
    badge = {"X-Badge": "0815"}
    assert requests.get(studies, timeout=60).status_code == 401
    assert requests.get(studies, headers={"X-Badge": "4711"}, timeout=60).status_code == 401
    assert requests.get(studies, headers=badge, timeout=60).status_code == 200
    assert requests.post(studies, data=make_file(), headers=DICOM | badge, timeout=60).status_code == 403
    server.stop()


def store(server: Server, **attributes: Any) -> tuple[Any, requests.Response]:
    dataset = make_dataset(**attributes)
    answer = requests.post(f"{server.root}/studies", data=make_file(dataset), headers=DICOM, timeout=60)
    return dataset, answer


def fetch(server: Server, dataset: Any) -> Any:
    path = f"/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    accept = {"Accept": "application/dicom; transfer-syntax=*"}
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(requests.get(server.root + path, headers=accept).content))


def test_a_storage_adapter_is_found_by_the_scheme_of_its_url(server: Server) -> None:
    _, answer = store(server)
    assert answer.status_code == 202
    first = {path.name: path.read_bytes() for path in (server.data.parent / "files/first").rglob("*.dcm")}
    second = {path.name: path.read_bytes() for path in (server.data.parent / "files/second").glob("*.dcm")}
    assert first == second
    assert first


def test_a_processor_changes_what_is_stored_and_the_object_says_so(server: Server) -> None:
    dataset, answer = store(server, PatientComments="tall")
    (item,) = answer.json()["00081199"]["Value"]
    assert item["00081196"]["Value"] == [0xB000]
    stored = fetch(server, dataset)
    assert stored.StationName == "WARD7"
    assert "PatientComments" not in stored
    (original,) = stored.OriginalAttributesSequence
    assert original.ModifiedAttributesSequence[0].PatientComments == "tall"
    assert stored.PixelData == dataset.PixelData
    assert stored.PatientName == dataset.PatientName


def test_what_a_processor_has_nothing_to_change_in_keeps_its_bytes(server: Server) -> None:
    dataset, answer = store(server, Modality="MR")
    assert answer.status_code == 200
    assert "OriginalAttributesSequence" not in fetch(server, dataset)


def test_a_processor_refuses_an_instance_with_its_reason(server: Server) -> None:
    _, answer = store(server, PatientID="PHANTOM")
    assert answer.status_code == 409
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0x0110]
    assert "phantoms are not archived" in answer.headers["Warning"]


def test_a_subscriber_is_given_the_events_that_it_wants(server: Server) -> None:
    dataset, _ = store(server)
    requests.delete(f"{server.root}/studies/{dataset.StudyInstanceUID}", timeout=60)
    journal = server.data.parent / "journal.txt"
    deadline = time.monotonic() + 30
    wanted = [f"stored {dataset.StudyInstanceUID}", f"deleted {dataset.StudyInstanceUID}"]
    while time.monotonic() < deadline:
        lines = [line.split(" ", 1)[1] for line in journal.read_text().splitlines()] if journal.exists() else []
        if set(wanted) <= set(lines):
            break
        time.sleep(0.05)
    assert [line for line in lines if dataset.StudyInstanceUID in line] == wanted


def test_a_name_that_nobody_offers_stops_the_start_and_says_what_there_is(make_app: AppMaker) -> None:
    for setting, group in (
        ("subscribers", "subscribers"),
        ("processors", "processors"),
        ("authenticators", "authenticators"),
    ):
        with pytest.raises(SettingsError, match=f"Setting {setting}.*nosuch.*dicomcloud.{group}"):
            make_app(**{setting: "nosuch"})
    with pytest.raises(SettingsError, match="Setting storage_url.*nosuch.*dicomcloud.storage"):
        make_app(storage_url="nosuch://somewhere")


def broken(name: str) -> Callable[[Any], None]:
    def process(dataset: Any) -> None:
        match name:
            case "raises":
                raise KeyError("oops")
            case "uid":
                dataset.StudyInstanceUID = "1.2.3"
            case "binary":
                dataset.PixelData = b"1234"
            case "charset":
                dataset.SpecificCharacterSet = "ISO_IR 100"

    return process


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("raises", "failed (KeyError)"),
        ("uid", "StudyInstanceUID"),
        ("binary", "PixelData"),
        ("charset", "SpecificCharacterSet"),
    ],
)
def test_a_broken_processor_fails_the_instance_and_the_original_is_kept(
    make_app: AppMaker, tmp_path: Path, fault: str, named: str
) -> None:
    from dicomcloud.dicom.processing import Processor

    app = make_app(quarantine="on")
    app.extensions["dicomcloud"].archive._processors = (Processor("bad", broken(fault)),)
    client: FlaskClient = app.test_client()
    file = make_file()
    answer = client.post("/dicomweb/studies", data=file, headers=DICOM)
    assert answer.status_code == 409
    assert named in answer.headers["Warning"]
    assert [path.read_bytes() for path in (tmp_path / "data/quarantine").glob("*.dcm")] == [file]
    assert client.get("/dicomweb/studies").get_json() == []


def test_a_processor_may_change_sequences_in_every_form_of_file(make_app: AppMaker) -> None:
    from dicomcloud.dicom.processing import Processor
    from tests.data import pydicom_files

    def add(dataset: Any) -> None:
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "T-1", "99X", "Ünknown"
        dataset.ProcedureCodeSequence = [item]

    app = make_app()
    archive = app.extensions["dicomcloud"].archive
    archive._processors = (Processor("codes", add),)
    forms = ("MR_small.dcm", "MR_small_bigendian.dcm", "rtplan.dcm", "image_dfl.dcm", "JPEG2000.dcm")
    for path in [path for path in pydicom_files() if path.name in forms]:
        with archive.begin_store() as batch:
            batch.add([path.read_bytes()])
            (item,) = batch.commit().items
        assert item.failure is None, (path.name, item.message)
        row = archive.instances(item.study_uid, item.series_uid, item.sop_instance_uid)[0]
        with archive.open_file(row) as file:
            stored = pydicom.dcmread(file)
        assert stored.ProcedureCodeSequence[0].CodeMeaning == "Ünknown", path.name
        original = pydicom.dcmread(path)
        assert all(stored[element.tag].value == element.value for element in original if element.tag.group != 0x0400)
        archive.delete(item.study_uid)
