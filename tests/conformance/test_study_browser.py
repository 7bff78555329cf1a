"""The study browser in a real browser: a folder is uploaded, found, looked at, downloaded and deleted."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pydicom
import pytest
import requests
from PIL import Image
from playwright.sync_api import expect

from tests.conformance.conftest import PASSWORD, log_in
from tests.data import make_dataset, make_file, pydicom_files

NewPage = Callable[..., Any]
CD = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"


def store(server: Any, *files: bytes) -> None:
    for file in files:
        headers = {"Content-Type": "application/dicom"}
        answer = requests.post(f"{server.root}/studies", data=file, headers=headers, timeout=60)
        assert answer.status_code in (200, 202), answer.text


def make_series(count: int = 3, **attributes: Any) -> list[pydicom.Dataset]:
    """Images of one series, each darker than the one before, with a window."""
    first = make_dataset(**attributes)
    made = []
    for number in range(1, count + 1):
        made.append(
            make_dataset(
                **({"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID})
                | {"InstanceNumber": number, "WindowCenter": 128, "WindowWidth": 256}
                | {"PixelData": (np.arange(256, dtype="<u2") // number).tobytes()}
                | attributes
            )
        )
    return made


@pytest.fixture
def study(server: Any) -> Any:
    """Three CT images that the server has; the first data set."""
    made = make_series(PatientName="Browser^Bertha", PatientID="B-77", StudyDescription="Schädel nativ")
    store(server, *map(make_file, made))
    yield made[0]
    requests.delete(f"{server.root}/studies/{made[0].StudyInstanceUID}", timeout=60)


def wait_for_picture(page: Any) -> None:
    expect(page.locator("#image")).not_to_have_js_property("naturalWidth", 0)
    expect(page.locator("#image")).to_have_js_property("complete", True)


def open_study(page: Any, server: Any, dataset: Any) -> None:
    page.goto(f"{server.url}/study/{dataset.StudyInstanceUID}")
    wait_for_picture(page)


def shown_pixels(page: Any) -> Any:
    """The picture on the stage, grey, as the page holds it."""
    wait_for_picture(page)
    body = page.request.get(page.locator("#image").evaluate("image => image.src"), headers={"Accept": "image/png"})
    return np.asarray(Image.open(BytesIO(body.body())).convert("L"))


def test_a_cd_is_uploaded_found_looked_at_and_deleted(server: Any, new_page: NewPage) -> None:
    page = new_page()
    page.goto(server.url)
    expect(page.get_by_role("heading", name="No studies yet")).to_be_visible()
    page.set_input_files("#folder-input", CD)
    report = page.locator("#upload-report")
    expect(report).to_contain_text("81 images of 7 studies are safely stored", timeout=60_000)
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#count")).to_have_text("7 studies")
    page.get_by_label("Patient", exact=True).fill("doe arch")
    expect(page.locator("#rows tr")).to_have_count(2)
    page.get_by_role("link", name="Doe, Archibald").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Doe, Archibald")
    wait_for_picture(page)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("menuitem", name="This study").click()
    page.get_by_role("button", name="Delete study").click()
    expect(page.locator("#count")).to_have_text("6 studies")
    assert page.complaints == []
    for row in requests.get(f"{server.root}/studies", timeout=60).json():
        requests.delete(f"{server.root}/studies/{row['0020000D']['Value'][0]}", timeout=60)


def test_the_report_of_an_upload_says_what_was_left_out_and_why(
    server: Any, new_page: NewPage, tmp_path: Path, study: Any
) -> None:
    study.PatientID = "other bytes"
    files = {"note.txt": b"hello" * 40, "DICOMDIR": b"x" * 200, "empty": b"", "changed.dcm": make_file(study)}
    files |= {"new.dcm": make_file(), "cut.dcm": make_file()[:-20]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    page = new_page()
    page.goto(server.url)
    page.set_input_files("#file-input", sorted(tmp_path.iterdir()))
    report = page.locator("#upload-report")
    expect(report).to_contain_text("1 image of 1 study is safely stored")
    for words in (
        "3 files left out",
        "table of contents",
        "2 files could not be stored",
        "Another version",
        "Cut off before its end",
    ):
        expect(report).to_contain_text(words)
    expect(page.locator("#upload-files li")).to_have_count(6)
    expect(page.locator("#upload-files li.failed")).to_have_count(2)
    expect(page.locator("#upload-files li").first).to_have_class("failed")
    expect(report.locator("summary", has_text="changed.dcm")).to_be_visible()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save this report").click()
    saved = Path(waiting.value.path()).read_text(encoding="utf-8")
    assert {line.partition("\t")[0] for line in saved.splitlines()[3:]} == set(files) - {"new.dcm"}


def test_the_report_of_many_faults_fits_and_leaves_nothing_out(
    server: Any, new_page: NewPage, tmp_path: Path, installed: Path
) -> None:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("good.dcm", make_file(PatientName="Report^Rosa"))
        packed.writestr("cut.dcm", make_file()[:400])
    files = {f"{'a very long name ' * 10}.dcm": make_file()[:300], "broken.zip": b"PK\x03\x04" + b"x" * 500}
    files |= {"part.zip": archive.getvalue(), "no-uid.dcm": make_file(StudyInstanceUID=None)}
    files |= {f"{number}.dcm": make_file(SeriesInstanceUID=None) for number in range(9)}
    (tmp_path / "CD").mkdir()
    for name, content in files.items():
        (tmp_path / "CD" / name).write_bytes(content)
    page = new_page(viewport={"width": 320, "height": 640})
    page.goto(server.url)
    page.set_input_files("#folder-input", tmp_path / "CD")
    report = page.locator("#upload-report")
    for words in ("12 files could not be stored", "10 files: Damaged", "broken.zip: A damaged ZIP", "part.zip: 1 file"):
        expect(report).to_contain_text(words)
    expect(report).to_contain_text("Report, Rosa")
    report.get_by_text("10 files").click()
    expect(report.locator("details li", has_text="no-uid.dcm")).to_contain_text(
        "StudyInstanceUID (0020,000D) is missing"
    )
    assert sideways(page, "#upload-dialog") <= 0
    expect(page.get_by_role("button", name="Close")).to_be_in_viewport()
    check(page, installed)


def test_files_are_dropped_on_the_page(server: Any, new_page: NewPage) -> None:
    dataset = make_dataset(PatientName="Dropped^Dora")
    page = new_page()
    page.goto(server.url)
    dropped = page.evaluate_handle(
        """bytes => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped"));
          return transfer;
        }""",
        list(make_file(dataset)),
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": dropped})
    expect(page.get_by_text("Drop to upload")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    expect(page.locator("#upload-report")).to_contain_text("1 image of 1 study is safely stored")
    page.get_by_role("link", name="Open the study").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Dropped, Dora")


def test_results_follow_what_is_typed(server: Any, new_page: NewPage, study: Any) -> None:
    page = new_page()
    page.goto(server.url)
    row = page.get_by_role("link", name="Browser, Bertha")
    for field, typed, other in (
        ("Patient", "bert", "zebra"),
        ("Patient ID", "B-7", "B-8"),
        ("Accession no.", "A1", "A2"),
        ("Description", "schadel", "foot"),
        ("From", "2025-01-01", "2025-01-03"),
        ("To", "2025-01-02", "2025-01-01"),
    ):
        page.get_by_label(field, exact=True).fill(other)
        expect(row).to_have_count(0)
        page.get_by_label(field, exact=True).fill(typed)
        expect(row).to_have_count(1)
    page.reload()  # the search is part of the address
    expect(row).to_have_count(1)
    expect(page.get_by_label("Patient ID", exact=True)).to_have_value("B-7")


def test_the_list_is_narrowed_to_a_modality(server: Any, new_page: NewPage, study: Any) -> None:
    page = new_page()
    page.goto(server.url)
    page.get_by_label("Modality").select_option("MR")
    expect(page.get_by_role("link", name="Browser, Bertha")).to_have_count(0)
    page.get_by_label("Modality").select_option("CT")
    expect(page.get_by_role("link", name="Browser, Bertha")).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_label("Modality")).to_have_value("")


def test_the_list_is_sorted_and_paged(server: Any, new_page: NewPage) -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    store(server, *(make_file(PatientName=f"Paged^{letter}", PatientID=f"PG{letter}") for letter in letters))
    page = new_page()
    page.goto(server.url)
    page.get_by_label("Patient ID", exact=True).fill("PG")
    expect(page.locator("#count")).to_have_text("26 studies found")
    page.get_by_role("button", name="Patient", exact=True).click()
    first = page.locator("#rows .name").first
    expect(first).to_have_text("Paged, A")
    page.get_by_role("button", name="Next page").click()
    expect(first).to_have_text("Paged, Z")
    page.get_by_role("button", name="Patient", exact=True).click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Patient")
    expect(page.locator("#rows tr")).to_have_count(25)
    expect(first).to_have_text("Paged, Z")


def test_names_in_any_script_are_found_and_shown(server: Any, new_page: NewPage) -> None:
    page = new_page()
    for name, typed, shown in (
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田", "Yamada, Tarou山田 太郎 · やまだ たろう"),
        ("Люк^Сергей", "люк", "Люк, Сергей"),
        ("שרון^דבורה", "שרון", "שרון, דבורה"),
        ("Διονυσιος", "διον", "Διονυσιος"),
        ("Äneas^Rüdiger", "aneas", "Äneas, Rüdiger"),
        ("قباني^لنزار", "قباني", "قباني, لنزار"),
    ):
        dataset = make_dataset(PatientName=name)
        store(server, make_file(dataset))
        page.goto(server.url)
        page.get_by_label("Patient", exact=True).fill(typed)
        row = page.locator("#rows tr", has=page.locator(f"a[href$='{dataset.StudyInstanceUID}']"))
        expect(row.locator("td").nth(1)).to_contain_text(shown)
        row.locator(".name").click()
        expect(page.locator("#patient")).to_have_text(shown)


def test_the_picture_follows_window_and_image(server: Any, new_page: NewPage, study: Any) -> None:
    page = new_page()
    open_study(page, server, study)
    as_stored = shown_pixels(page)
    page.get_by_label("Window").select_option(label="1  Soft tissue")
    expect(page.locator("#image")).to_have_attribute("src", re.compile("window=40,400"))
    assert abs(shown_pixels(page).astype(int) - as_stored).mean() > 5
    page.get_by_label("Center").fill("100")
    expect(page.locator("#image")).to_have_attribute("src", re.compile("window=100,400"))
    page.locator("#stage").press("0")
    expect(page.locator("#image")).not_to_have_attribute("src", re.compile("window="))
    assert np.array_equal(shown_pixels(page), as_stored)
    first = page.locator("#image").get_attribute("src") or ""
    page.locator("#stage").press("ArrowDown")
    expect(page.locator("#instance-place")).to_have_text("2 of 3")
    expect(page.locator("#image")).not_to_have_attribute("src", first)  # the next one is shown when it has arrived
    assert abs(shown_pixels(page).astype(int) - as_stored).mean() > 5
    assert page.complaints == []


def test_a_finger_turns_to_the_next_image(server: Any, new_page: NewPage, study: Any) -> None:
    page = new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    open_study(page, server, study)
    swipe = """(stage, [from, to]) => {
      const finger = {pointerId: 7, pointerType: "touch", isPrimary: true, bubbles: true, clientY: 400};
      const at = (clientX) => ({...finger, clientX});
      stage.dispatchEvent(new PointerEvent("pointerdown", at(from)));
      stage.dispatchEvent(new PointerEvent("pointerup", at(to)));
    }"""
    for swiped, shown in (([300, 100], "2 of 3"), ([100, 300], "1 of 3"), ([200, 190], "1 of 3")):
        page.locator("#stage").evaluate(swipe, swiped)
        expect(page.locator("#instance-place")).to_have_text(shown)


def test_frames_are_stepped_through_and_played(server: Any, new_page: NewPage) -> None:
    frames = np.stack([np.full((16, 16), 400 * number, "<u2") for number in range(1, 6)])
    dataset = make_dataset(NumberOfFrames=5, PixelData=frames.tobytes(), FrameTime=20, WindowCenter=1000)
    dataset.WindowWidth = 2000
    store(server, make_file(dataset))
    page = new_page()
    open_study(page, server, dataset)
    first = shown_pixels(page).mean()
    page.locator("#frame").fill("4")
    expect(page.locator("#frame-place")).to_have_text("4 of 5")
    expect(page.locator("#image")).to_have_attribute("src", re.compile("/frames/4/rendered"))
    assert shown_pixels(page).mean() > first + 50
    page.get_by_role("button", name="Play frames").click()
    expect(page.locator("#frame-place")).to_have_text("2 of 5")
    page.get_by_role("button", name="Stop").click()


def test_the_tags_are_listed_with_their_names(server: Any, new_page: NewPage, study: Any) -> None:
    page = new_page()
    open_study(page, server, study)
    page.get_by_role("tab", name="Tags").click()
    rows = page.locator("#tags tr:visible")
    expect(rows.filter(has_text="(0010,0020)")).to_have_text("(0010,0020)LOPatient IDB-77")
    page.get_by_label("Filter tags").fill("window")
    expect(rows).to_have_count(2)


def download(page: Any, item: str) -> bytes:
    page.get_by_role("button", name="Download").click()
    with page.expect_download() as waiting:
        page.get_by_role("menuitem", name=item, exact=True).first.click()
    return Path(waiting.value.path()).read_bytes()


def test_a_study_is_downloaded_in_every_form(server: Any, new_page: NewPage, study: Any) -> None:
    page = new_page()
    open_study(page, server, study)
    for item, extra in (("DICOM files (ZIP)", set()), ("For a CD, with DICOMDIR (ZIP)", {"DICOMDIR"})):
        names = set(zipfile.ZipFile(BytesIO(download(page, item))).namelist())
        assert names == {f"DICOM/S000001/I00000{number}" for number in (1, 2, 3)} | extra
    assert pydicom.dcmread(BytesIO(download(page, "DICOM"))).PatientID == "B-77"
    for item, form in (("JPEG, as shown", "JPEG"), ("PNG, as shown", "PNG")):
        assert Image.open(BytesIO(download(page, item))).format == form
    assert pydicom.dcmread(BytesIO(download(page, "De-identified DICOM"))).PatientID != "B-77"
    archive = zipfile.ZipFile(BytesIO(download(page, "De-identified (ZIP)")))
    assert archive.testzip() is None
    copies = [pydicom.dcmread(BytesIO(archive.read(name))) for name in archive.namelist()]
    assert (len(copies), {copy.PatientIdentityRemoved for copy in copies}) == (3, {"YES"})
    assert "Bertha" not in str(copies[0])


def test_what_cannot_be_deidentified_is_left_out_and_told_of(server: Any, new_page: NewPage, study: Any) -> None:
    same = {"StudyInstanceUID": study.StudyInstanceUID, "Modality": "OT", "SeriesNumber": 9}
    store(server, make_file(**same, BurnedInAnnotation="YES"))
    page = new_page()
    open_study(page, server, study)
    archive = zipfile.ZipFile(BytesIO(download(page, "De-identified (ZIP)")))
    assert archive.namelist() == [f"DICOM/S000001/I00000{number}" for number in (1, 2, 3)]
    told = page.locator("#alerts")
    expect(told).to_contain_text("1 image left out")
    expect(told).to_contain_text("Text may be burned into the pixels")
    expect(page.get_by_text("De-identifying")).to_have_count(0)
    assert page.complaints == []


def test_nothing_is_deleted_without_a_yes(server: Any, new_page: NewPage, study: Any) -> None:
    page = new_page()
    open_study(page, server, study)
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("menuitem", name="This image").click()
    expect(page.get_by_role("dialog")).to_contain_text("no way back")
    page.get_by_role("button", name="Cancel").click()
    path = f"{server.root}/studies/{study.StudyInstanceUID}"
    assert len(requests.get(f"{path}/instances", timeout=60).json()) == 3
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("menuitem", name="This image").click()
    page.get_by_role("button", name="Delete image").click()
    expect(page.locator("#instance-place")).to_have_text("1 of 2")
    assert len(requests.get(f"{path}/instances", timeout=60).json()) == 2


def test_the_keyboard_is_enough(server: Any, new_page: NewPage, study: Any) -> None:
    page = new_page()
    page.goto(server.url)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    page.keyboard.press("/")
    page.keyboard.type("bertha")
    expect(page.locator("#rows tr")).to_have_count(1)
    page.keyboard.press("Tab")
    page.locator("#main").focus()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Browser, Bertha")
    expect(page.locator("#workspace")).to_be_visible()
    page.keyboard.press("t")
    expect(page.get_by_role("tab", name="Tags")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()


def check(page: Any, installed: Path) -> None:
    """axe-core finds nothing serious, and nothing is wider than the page."""
    page.evaluate((installed / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    faults = {
        each["id"]: [node["html"][:200] for node in each["nodes"]]
        for each in found
        if each["impact"] in ("serious", "critical")
    }
    assert faults == {}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


LONG = "Wolfeschlegelsteinhausenbergerdorffwelchevoralternwarengewissenhaft"
MANY = ["CT", "KO", "MR", "PR", "RTDOSE", "RTPLAN", "RTSTRUCT", "SEG", "SM", "SR", "US", "XA"]
WIDE = {
    "PatientID": "0123456789" * 6,
    "AccessionNumber": "A" * 16,
    "StudyDescription": "_".join(["Thorax", *MANY])[:64],
}


ARABIC = "Qabbani^Nizar=قباني^نزار توفيق محمد عبد الرحمن"


@pytest.mark.parametrize("name", [f"{LONG}^Hubert", ARABIC, f"={'王小明陈大文' * 10}"], ids=["long", "rtl", "cjk"])
def test_long_values_stay_inside_the_page(server: Any, new_page: NewPage, name: str) -> None:
    made = make_dataset(PatientName=name, SeriesDescription="S" * 64, **WIDE)
    same = {"StudyInstanceUID": made.StudyInstanceUID, "PatientName": name, **WIDE}
    store(server, make_file(made), *(make_file(Modality=each, SeriesNumber=9, **same) for each in MANY))
    page = new_page(viewport={"width": 320, "height": 640}, has_touch=True)
    page.goto(f"{server.url}/?PatientID={WIDE['PatientID']}")
    row = page.locator("#rows tr", has=page.locator(f"a[href$='{made.StudyInstanceUID}']"))
    expect(row.locator(".badge")).to_have_count(len(MANY))
    for width in (320, 600, 768, 1024, 1100, 1440):
        page.set_viewport_size({"width": width, "height": 640})
        assert sideways(page, "html") <= 0, width
        assert sideways(page, "#results") <= 0, width
    row.locator(".name").click()
    expect(page.locator(".series-card")).to_have_count(len(MANY) + 1)
    for width in (1440, 768, 320):
        page.set_viewport_size({"width": width, "height": 640})
        assert sideways(page, "html") <= 0, width
    page.get_by_role("button", name="Download").click()
    expect(page.get_by_role("menuitem", name="DICOMDIR")).to_be_visible()
    assert sideways(page, "html") <= 0
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("menuitem", name="This study").click()
    assert sideways(page, "#confirm") <= 0
    page.get_by_role("button", name="Delete study").click()
    expect(page.locator("#count")).to_contain_text("stud")


def sideways(page: Any, selector: str) -> int:
    """By how many CSS pixels something is wider than the room that it has."""
    return int(page.locator(selector).evaluate("element => element.scrollWidth - element.clientWidth"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 320])
def test_the_pages_are_accessible_and_fit(
    server: Any, new_page: NewPage, study: Any, installed: Path, scheme: str, width: int
) -> None:
    page = new_page(viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=width < 500)
    page.goto(server.url)
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")
    page.get_by_role("button", name="Archive").click()
    expect(page.locator("[data-figure=bytes]")).not_to_have_text("–")
    expect(page.locator("#received")).to_contain_text("image")
    check(page, installed)
    page.get_by_label("Patient", exact=True).fill("zzzyyyxxx")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    check(page, installed)
    page.get_by_role("button", name="Clear the search").click()
    expect(page.locator("#rows .name").first).to_be_visible()
    page.goto(f"{server.url}/nowhere")
    expect(page.get_by_role("link", name="To the studies")).to_be_visible()
    check(page, installed)
    open_study(page, server, study)
    check(page, installed)
    page.get_by_role("tab", name="Tags").click()
    expect(page.locator("#tags tr").first).to_be_visible()
    check(page, installed)
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_logging_in_and_sharing_are_accessible(
    closed_server: Any, new_page: NewPage, installed: Path, scheme: str
) -> None:
    dataset = make_dataset(PatientName="Shared^Sarah")
    headers, who = {"Content-Type": "application/dicom"}, ("ada", PASSWORD)
    requests.post(f"{closed_server.root}/studies", make_file(dataset), headers=headers, auth=who, timeout=60)
    page = new_page(server=closed_server, viewport={"width": 320, "height": 844}, color_scheme=scheme)
    page.goto(closed_server.url)
    check(page, installed)
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong")
    page.get_by_label("Password").press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    check(page, installed)
    log_in(page, closed_server, "ada")
    check(page, installed)
    page.goto(f"{closed_server.url}/study/{dataset.StudyInstanceUID}")
    wait_for_picture(page)
    page.get_by_role("button", name="Share").click()
    page.get_by_label("Whoever has the link").check()
    page.get_by_label("De-identified copies only").check()
    expect(page.locator("#share-link")).to_have_value(re.compile("/share/"))
    check(page, installed)
    page.goto(page.locator("#share-link").input_value())
    expect(page.get_by_role("heading", name="De-identified study")).to_be_visible()
    expect(page.get_by_role("img", name="Series 1")).to_be_visible()
    check(page, installed)
    assert page.complaints == []


def test_documents_reports_and_curves_are_shown(server: Any, new_page: NewPage) -> None:
    shown = {
        "reportsi.dcm": "iframe",
        "test-SR.dcm": "iframe",
        "waveform_ecg.dcm": "img:not([hidden])",
        "examples_overlay.dcm": "img:not([hidden])",
    }
    files = [path for path in pydicom_files() if path.name in shown]
    assert files
    page = new_page()
    for path in files:
        dataset = pydicom.dcmread(path)
        store(server, path.read_bytes())
        page.goto(f"{server.url}/study/{dataset.StudyInstanceUID}")
        expect(page.locator(f"#stage {shown[path.name]}")).to_be_visible()
        expect(page.locator("#stage-note")).to_be_hidden()
    assert page.complaints == []


def test_a_study_that_is_not_there_is_told_so(server: Any, new_page: NewPage) -> None:
    page = new_page()
    page.goto(f"{server.url}/study/1.2.3")
    expect(page.get_by_role("heading", name="This study cannot be shown")).to_be_visible()


def test_whoever_logs_in_sees_what_they_may_do(browser: Any, closed_server: Any, tmp_path: Path) -> None:
    given = f"Lena {uuid4().hex[:8]}"  # other tests store at this server, too
    (tmp_path / "image.dcm").write_bytes(make_file(PatientName=f"Locked^{given}"))
    pages = [browser.new_context().new_page() for _ in range(3)]
    administrator, reader, stranger = pages
    log_in(administrator, closed_server, "ada")
    administrator.set_input_files("#file-input", tmp_path / "image.dcm")
    expect(administrator.locator("#upload-report")).to_contain_text("safely stored")
    administrator.get_by_role("link", name="Open the study").click()
    expect(administrator.get_by_role("heading", level=1)).to_have_text(f"Locked, {given}")

    log_in(reader, closed_server, "rita")
    expect(reader.get_by_role("button", name="Upload", exact=True)).to_have_count(0)
    reader.get_by_role("link", name=f"Locked, {given}").click()
    wait_for_picture(reader)
    expect(reader.get_by_role("button", name="Delete")).to_have_count(0)
    reader.get_by_role("button", name="Log out").click()
    expect(reader.get_by_role("heading", name="Log in")).to_be_visible()

    administrator.get_by_role("button", name="Share").click()
    administrator.get_by_label("Whoever has the link").check()
    expect(administrator.locator("#share-link")).to_have_value(re.compile("/share/"))
    stranger.goto(administrator.locator("#share-link").input_value())
    wait_for_picture(stranger)
    expect(stranger.get_by_text("Shared with you")).to_be_visible()
    expect(stranger.get_by_role("button", name="Share", exact=True)).to_have_count(0)
    administrator.get_by_label("De-identified copies only").check()
    expect(administrator.locator("#share-link")).to_have_value(re.compile("/share/"))
    researcher = browser.new_context().new_page()
    pages.append(researcher)
    researcher.goto(administrator.locator("#share-link").input_value())
    expect(researcher.get_by_text("1 image in 1 series")).to_be_visible()
    expect(researcher.get_by_text(given)).to_have_count(0)
    with researcher.expect_download() as waiting:
        researcher.get_by_role("link", name="Download as ZIP").click()
    archive = zipfile.ZipFile(waiting.value.path())
    (name,) = archive.namelist()
    assert pydicom.dcmread(BytesIO(archive.read(name))).PatientIdentityRemoved == "YES"
    administrator.get_by_role("button", name="Close").click()
    administrator.get_by_role("button", name="Delete").click()
    administrator.get_by_role("menuitem", name="This study").click()
    administrator.get_by_role("button", name="Delete study").click()
    expect(administrator.locator("#count")).to_contain_text("stud")
    expect(administrator.get_by_role("link", name=f"Locked, {given}")).to_have_count(0)
    for each in pages:
        each.context.close()
