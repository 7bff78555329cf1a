"""The OHIF viewer, installed from its npm package, in a real browser: lists, pixels, films, documents, drawings.

With OHIF_SAMPLES=all in the environment every study of ../shared/samples is opened, which takes ten minutes; with
OHIF_SAMPLES=1/4 the first quarter of them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
import requests
from PIL import Image
from playwright.sync_api import expect
from pydicom.uid import EncapsulatedPDFStorage, RTStructureSetStorage, generate_uid

from dicomcloud import viewer
from tests.conformance.conftest import BUILD, NO_REGISTRY
from tests.data import make_dataset, make_file, pydicom_files, sample_files
from tests.dicom.test_pixel_data import image_file

NewPage = Callable[..., Any]
PATIENCE = 60.0  # seconds: the viewer is 17 MB of JavaScript, and WebGL here is done by the processor
#: The tour and the notice that greet at the first visit; what lies over the page or comes late takes clicks for itself.
SEEN_BEFORE = """
localStorage.setItem("shownTours", JSON.stringify(["basicViewerTour"]));
localStorage.setItem("investigationalUseDialog", JSON.stringify({expiryDate: "2999-01-01"}));
"""
#: A second of film, orange, as MP4 in base64: what browsers record, they play.
FILM = """async () => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64});
  const pen = canvas.getContext("2d");
  const recorder = new MediaRecorder(canvas.captureStream(15), {mimeType: "video/mp4;codecs=avc1.42E01E"});
  const pieces = [];
  recorder.ondataavailable = piece => pieces.push(piece.data);
  const stopped = new Promise(resolve => { recorder.onstop = resolve; });
  recorder.start();
  for (let place = 0; place < 15; place++) {
    pen.fillStyle = "rgb(255 140 0)";
    pen.fillRect(0, 0, 64, 64);
    pen.fillStyle = "rgb(0 80 255)";
    pen.fillRect(place * 4, 20, 8, 24);
    await new Promise(resolve => setTimeout(resolve, 66));
  }
  recorder.stop();
  await stopped;
  const bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
  return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""));
}"""
#: What this version of the viewer itself cannot show, by modality or transfer syntax.
NOT_SHOWN = {"SR", "M3D", "DOC", "PR", "KO", "ANN", "AU", "HD", "RTPLAN", "RTDOSE", "RTSTRUCT", "REG", "SEG", "SM"}
#: Transfer syntaxes that neither it nor the server decodes: MPEG-2.
NOT_DECODED = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(100|101)$")


@pytest.fixture(scope="module")
def package() -> Path:
    """The package's file, fetched once and kept under build/."""
    kept = BUILD / f"ohif-{viewer.VERSION}.tgz"
    if not kept.exists():
        BUILD.mkdir(exist_ok=True)
        try:
            viewer._download(BUILD, print).rename(kept)
        except viewer.CannotInstall as error:
            if NO_REGISTRY.search(str(error)) or "npm is not installed" in str(error):
                pytest.skip(str(error).splitlines()[0])
            raise
    return kept


@pytest.fixture(scope="module")
def ohif(server: Any, package: Path) -> Any:
    """A server with the viewer, which was put in while the server ran."""
    done = server.run("viewer", "install", str(package))
    assert done.returncode == 0, done.stderr
    assert "not checked" not in done.stdout, "the package is not the published one"
    return server


def store(server: Any, file: bytes) -> pydicom.Dataset:
    headers = {"Content-Type": "application/dicom"}
    answer = requests.post(f"{server.root}/studies", data=file, headers=headers, timeout=60)
    assert answer.status_code in (200, 202), answer.text
    return pydicom.dcmread(BytesIO(file), stop_before_pixels=True)


def open_viewer(new_page: NewPage, server: Any, study: str = "") -> Any:
    page = new_page(viewport={"width": 1000, "height": 640})  # the processor draws every pixel
    page.set_default_timeout(PATIENCE * 1000)
    page.add_init_script(SEEN_BEFORE)
    page.goto(f"{server.url}/viewer/" + (f"viewer?StudyInstanceUIDs={study}" if study else ""))
    return page


def canvas(page: Any) -> Any:
    """The grey values of the first viewport, once there is something in it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        page.wait_for_timeout(200)
        found = page.evaluate("document.querySelector('canvas.cornerstone-canvas')?.toDataURL('image/png') ?? ''")
        if found:
            pixels = np.asarray(Image.open(BytesIO(base64.b64decode(found.partition(",")[2]))).convert("L"))
            if np.ptp(pixels) > 20:
                page.wait_for_timeout(500)
                return pixels
    raise AssertionError("the canvas stayed blank")


def wait_until(page: Any, is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline, "it did not come true in time"
        page.wait_for_timeout(200)


def colour(page: Any) -> int:
    """How far the most coloured pixel of the first viewport is from grey, 0 to 255."""
    found = page.evaluate("document.querySelector('canvas.cornerstone-canvas')?.toDataURL('image/png') ?? ''")
    if not found:
        return 0
    pixels = np.asarray(Image.open(BytesIO(base64.b64decode(found.partition(",")[2]))).convert("RGB")).astype(int)
    return int((pixels.max(axis=2) - pixels.min(axis=2)).max())


def likeness(pixels: Any, server: Any, dataset: Any) -> float:
    """How much the middle of the canvas is like the picture that the server renders: 1 is the same up to brightness."""
    path = f"studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
    answer = requests.get(f"{server.root}/{path}/rendered", headers={"Accept": "image/png"}, timeout=60)
    rendered = Image.open(BytesIO(answer.content)).convert("L")
    height, width = pixels.shape
    scale = min(width / rendered.width, height / rendered.height)
    shown = (round(rendered.width * scale), round(rendered.height * scale))
    left, top = (width - shown[0]) // 2, (height - shown[1]) // 2
    part = Image.fromarray(pixels).crop((left, top, left + shown[0], top + shown[1])).resize((64, 64))
    expected = rendered.resize((64, 64))
    return float(np.corrcoef(np.asarray(part).ravel(), np.asarray(expected).ravel())[0, 1])


def test_the_study_list_is_filtered_and_opens_a_study(ohif: Any, new_page: NewPage) -> None:
    store(ohif, make_file(PatientName="Ohif^Olga"))
    store(ohif, make_file(PatientName="Somebody^Else", PatientID="P2"))
    page = open_viewer(new_page, ohif)
    expect(page.get_by_text("Somebody, Else")).to_be_visible(timeout=PATIENCE * 1000)
    page.locator("table input, thead input, input").first.fill("Ohif")
    expect(page.get_by_text("Somebody, Else")).to_have_count(0, timeout=PATIENCE * 1000)
    expect(page.get_by_text("Ohif, Olga").first).to_be_visible()
    assert page.evaluate("crossOriginIsolated")
    assert page.complaints == []


def test_the_study_browser_opens_the_viewer_and_it_shows_the_pixels(ohif: Any, new_page: NewPage) -> None:
    ramp = (np.add.outer(np.arange(64), 2 * np.arange(64)) * 8).astype("<u2")
    dataset = make_dataset(Rows=64, Columns=64, PixelData=ramp.tobytes(), WindowCenter=800, WindowWidth=1600)
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient, dataset.RescaleIntercept, dataset.RescaleSlope = [0, 0, 0], 0, 1
    store(ohif, make_file(dataset))
    page = new_page()
    page.add_init_script(SEEN_BEFORE)
    page.goto(f"{ohif.url}/study/{dataset.StudyInstanceUID}")
    page.get_by_role("link", name="Open in viewer").click()
    assert likeness(canvas(page), ohif, dataset) > 0.98
    assert page.complaints == []


def test_an_image_of_a_private_sop_class_is_shown(ohif: Any, new_page: NewPage) -> None:
    (dataset,) = make_slices(PatientID="PRIVATE", SOPClassUID="1.3.46.670589.11.0.0.12.1")
    store(ohif, make_file(dataset))
    page = open_viewer(new_page, ohif, dataset.StudyInstanceUID)
    assert likeness(canvas(page), ohif, dataset) > 0.98
    assert page.complaints == []


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_RLE.dcm"])
def test_compressed_frames_are_decoded_by_the_viewer(ohif: Any, new_page: NewPage, name: str) -> None:
    path = next(path for path in pydicom_files() if path.name == name)
    dataset = store(ohif, path.read_bytes())
    page = open_viewer(new_page, ohif, dataset.StudyInstanceUID)
    assert likeness(canvas(page), ohif, dataset) > 0.9


def test_jpeg_xl_is_decoded_for_the_viewer(ohif: Any, new_page: NewPage) -> None:
    ramp = (np.add.outer(np.arange(64), 2 * np.arange(64)) * 8).astype("u2")
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    attributes = {**uids, "Modality": "OT", "PatientID": "JXL", "WindowCenter": 800, "WindowWidth": 1600}
    frame = imagecodecs.jpegxl_encode(ramp, lossless=True)
    dataset = store(ohif, image_file("1.2.840.10008.1.2.4.110", [frame], Rows=64, Columns=64, **attributes))
    page = open_viewer(new_page, ohif, dataset.StudyInstanceUID)
    assert likeness(canvas(page), ohif, dataset) > 0.98


def test_a_pdf_is_shown(ohif: Any, new_page: NewPage) -> None:
    pdf = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n%%EOF\n"
    document = make_dataset(SOPClassUID=EncapsulatedPDFStorage, Modality="DOC", PixelData=None, Rows=None, Columns=None)
    document.EncapsulatedDocument, document.MIMETypeOfEncapsulatedDocument = pdf, "application/pdf"
    dataset = store(ohif, make_file(document))
    page = open_viewer(new_page, ohif, dataset.StudyInstanceUID)
    frame = page.locator("object[type='application/pdf'], iframe, embed").first
    frame.wait_for(state="attached")
    address = frame.evaluate("frame => frame.data || frame.src")
    shown = page.evaluate("async url => Array.from(new Uint8Array(await (await fetch(url)).arrayBuffer()))", address)
    assert bytes(shown).rstrip(b"\0") == pdf.rstrip(b"\0")


def make_slices(count: int = 1, **attributes: Any) -> list[pydicom.Dataset]:
    """Parallel CT images of one series, 1 mm apart, 64 × 64 pixels of 1 mm."""
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype("<u2") * 16
    first = make_dataset()
    common = {"StudyInstanceUID": first.StudyInstanceUID, "SeriesInstanceUID": first.SeriesInstanceUID}
    common |= {"Rows": 64, "Columns": 64, "PixelData": ramp.tobytes(), "WindowCenter": 1000, "WindowWidth": 2000}
    common |= {"PixelSpacing": [1, 1], "SliceThickness": 1, "RescaleIntercept": 0, "RescaleSlope": 1}
    common |= {"FrameOfReferenceUID": first.SOPInstanceUID, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    places = ({"InstanceNumber": number + 1, "ImagePositionPatient": [0, 0, number]} for number in range(count))
    return [make_dataset(**common, **place, **attributes) for place in places]


def make_structures(images: list[pydicom.Dataset], name: str) -> pydicom.Dataset:
    """An RT structure set with one region of interest: a red circle on every image."""
    first = images[0]
    no_pixels = dict.fromkeys(("PixelData", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"))
    no_pixels |= dict.fromkeys(("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"))
    made = make_dataset(SOPClassUID=RTStructureSetStorage, Modality="RTSTRUCT", SeriesNumber=2, **no_pixels)
    made.StudyInstanceUID, made.PatientID, made.StructureSetLabel = first.StudyInstanceUID, first.PatientID, "Plan"
    references = [
        item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID) for image in images
    ]
    series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=references)
    study = item(ReferencedSOPInstanceUID=first.StudyInstanceUID, RTReferencedSeriesSequence=[series])
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    frame = item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    made.ReferencedFrameOfReferenceSequence = [frame]
    region = item(ROINumber=1, ROIName=name, ROIGenerationAlgorithm="MANUAL")
    region.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
    made.StructureSetROISequence = [region]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([32 + 16 * np.cos(angles), 32 + 16 * np.sin(angles), 0 * angles], axis=1)
    contours = [
        item(
            ContourImageSequence=[reference],
            ContourGeometricType="CLOSED_PLANAR",
            NumberOfContourPoints=len(angles),
            ContourData=(circle + image.ImagePositionPatient).round(2).ravel().tolist(),
        )
        for image, reference in zip(images, references, strict=True)
    ]
    made.ROIContourSequence = [item(ReferencedROINumber=1, ROIDisplayColor=[255, 0, 0], ContourSequence=contours)]
    observation = item(ObservationNumber=1, ReferencedROINumber=1, RTROIInterpretedType="ORGAN", ROIInterpreter="")
    made.RTROIObservationsSequence = [observation]
    return made


def item(**attributes: Any) -> pydicom.Dataset:
    made = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def draw(page: Any) -> None:
    """Draw with the chosen tool, in the middle of the first viewport."""
    box = page.locator("canvas.cornerstone-canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 100, y - 50)
    page.mouse.down()
    page.mouse.move(x, y, steps=6)
    page.mouse.move(x + 100, y + 50, steps=6)
    page.mouse.up()


def save(page: Any) -> None:
    with page.expect_response(lambda answer: answer.request.method == "POST") as answer:
        page.get_by_role("button", name="Save").click()
    assert answer.value.status == 200


def the_one_instance(server: Any, study: str, modality: str) -> Any:
    """The metadata of the only instance of this modality in the study."""
    path = f"{server.root}/studies/{study}"
    (series,) = requests.get(f"{path}/series", params={"Modality": modality}, timeout=60).json()
    (instance,) = requests.get(f"{path}/series/{series['0020000E']['Value'][0]}/metadata", timeout=60).json()
    return instance


def load(new_page: NewPage, server: Any, study: str, modality: str) -> Any:
    """Open the study anew and have the viewer load, over the images, what belongs to them."""
    page = open_viewer(new_page, server, study)
    canvas(page)
    thumbnail = page.locator("[data-cy=study-browser-thumbnail-no-image]", has_text=modality)
    hydrate = page.locator("[data-cy=yes-hydrate-btn]")
    thumbnail.dblclick()
    hydrate.click()
    return page


def test_a_measurement_is_saved_as_a_report_and_loaded_again(ohif: Any, new_page: NewPage) -> None:
    (dataset,) = make_slices(PatientID="SR")
    store(ohif, make_file(dataset))
    page = open_viewer(new_page, ohif, dataset.StudyInstanceUID)
    canvas(page)
    page.locator("[data-cy=MeasurementTools-split-button-primary]").click()
    draw(page)
    page.locator("[data-cy=prompt-begin-tracking-yes-btn]").click()  # a click beside it means no
    page.locator("[data-cy=trackedMeasurements-btn]").click()
    length = page.locator("svg.svg-layer text", has_text=" mm").first.text_content()
    page.get_by_text("Create SR").click()
    save(page)
    assert the_one_instance(ohif, dataset.StudyInstanceUID, "SR")["0040A730"]["Value"]
    again = load(new_page, ohif, dataset.StudyInstanceUID, "SR")
    expect(again.locator("svg.svg-layer text", has_text=length).first).to_be_visible(timeout=PATIENCE * 1000)


def test_a_segmentation_is_saved_and_loaded_again(ohif: Any, new_page: NewPage) -> None:
    images = make_slices(3, PatientID="SEG")
    study = images[0].StudyInstanceUID
    for dataset in images:
        store(ohif, make_file(dataset))
    page = open_viewer(new_page, ohif)
    page.goto(f"{ohif.url}/viewer/segmentation?StudyInstanceUIDs={study}")
    canvas(page)
    page.locator("[data-cy=addSegmentation]").click()
    page.locator("[data-cy=Brush-btn]").click()
    page.locator("[data-cy=brush-radius]").wait_for()
    draw(page)
    page.locator("[data-cy=segmentation-collapsed-more-btn-Labelmap]").click()
    page.get_by_role("menuitem", name="Export").hover()
    page.get_by_role("menuitem", name="DICOM SEG").click()
    page.get_by_placeholder("Report name").fill("By the test")
    save(page)
    sop_class = the_one_instance(ohif, study, "SEG")["00080016"]["Value"][0]
    assert sop_class.startswith("1.2.840.10008.5.1.4.1.1.66.")  # as bits or as a label map
    again = load(new_page, ohif, study, "SEG")
    wait_until(again, lambda: colour(again) > 30)


def test_structures_are_drawn_over_their_images(ohif: Any, new_page: NewPage) -> None:
    images = make_slices(3, PatientID="RTSTRUCT")
    for dataset in [*images, make_structures(images, name="Liver")]:
        store(ohif, make_file(dataset))
    page = load(new_page, ohif, images[0].StudyInstanceUID, "RTSTRUCT")
    expect(page.locator("svg.svg-layer path[stroke='rgba(255, 0, 0, 1)']").first).to_be_visible()
    page.locator("[data-cy=panelSegmentation-btn]").click()
    expect(page.get_by_text("Liver").first).to_be_visible()


def test_a_film_is_shown(ohif: Any, new_page: NewPage) -> None:
    page = new_page(viewport={"width": 1000, "height": 640})
    page.goto(ohif.url)
    film = base64.b64decode(page.evaluate(FILM))
    about = {"0020000D": {"vr": "UI", "Value": [generate_uid()]}, "0020000E": {"vr": "UI", "Value": [generate_uid()]}}
    about |= {"00080060": {"vr": "CS", "Value": ["XC"]}, "00100020": {"vr": "LO", "Value": ["FILM"]}}
    about |= {"7FE00010": {"vr": "OB", "BulkDataURI": "film"}}
    kind = 'multipart/related; type="application/dicom+json"; boundary=b'
    heads = (
        b"--b\r\nContent-Type: application/dicom+json\r\n\r\n",
        b"\r\n--b\r\nContent-Type: video/mp4\r\nContent-Location: film\r\n\r\n",
    )
    body = heads[0] + json.dumps([about]).encode() + heads[1] + film + b"\r\n--b--"
    answer = requests.post(f"{ohif.root}/studies", data=body, headers={"Content-Type": kind}, timeout=60)
    assert answer.status_code in (200, 202), answer.text
    page.add_init_script(SEEN_BEFORE)
    with page.expect_response(lambda answer: answer.url.endswith("/rendered")) as answer:
        page.goto(f"{ohif.url}/viewer/viewer?StudyInstanceUIDs={about['0020000D']['Value'][0]}")
    assert (answer.value.status, answer.value.headers["content-type"]) == (206, "video/mp4")
    wait_until(page, lambda: colour(page) > 30)


PART = os.environ.get("OHIF_SAMPLES", "").replace("all", "1/1")


@pytest.mark.skipif(not PART or not sample_files(), reason="OHIF_SAMPLES=all asks for it")
def test_every_sample_that_the_viewer_can_show_is_shown(ohif: Any, new_page: NewPage) -> None:
    assert ohif.run("import", "--quiet", *map(str, {path.parent for path in sample_files()})).returncode in (0, 1)
    folder = BUILD / "screenshots" / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    page, blank = open_viewer(new_page, ohif), []
    part, parts = map(int, PART.split("/"))
    found = requests.get(f"{ohif.root}/studies", params={"limit": 500}, timeout=60).json()
    for uid, study in sorted((study["0020000D"]["Value"][0], study) for study in found)[part - 1 :: parts]:
        if NOT_SHOWN & set(study.get("00080061", {}).get("Value", [])) or not all_are_pictures(ohif, uid):
            continue
        page.goto(f"{ohif.url}/viewer/viewer?StudyInstanceUIDs={uid}")
        try:
            canvas(page)
        except AssertionError:
            blank.append((uid, study.get("00100010")))
        page.screenshot(path=folder / f"{uid}.png")
    assert blank == []


def all_are_pictures(server: Any, study: str) -> bool:
    """Whether all instances have pixel data that the server can draw, in a form that the viewer knows."""
    path = f"{server.root}/studies/{study}"
    found = requests.get(f"{path}/instances", timeout=60).json()
    for instance in found:
        series, uid = (instance[tag].get("Value", [""])[0] for tag in ("0020000E", "00080018"))
        url = f"{path}/series/{series}/instances/{uid}"
        stored = requests.head(url, headers={"Accept": "application/dicom; transfer-syntax=*"}, timeout=60)
        drawn = requests.head(f"{url}/rendered", headers={"Accept": "image/png, video/mp4"}, timeout=60)
        if NOT_DECODED.search(stored.headers["Content-Type"]) or drawn.status_code != 200:
            return False
    return bool(found)
