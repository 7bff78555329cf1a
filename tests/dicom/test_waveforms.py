"""Drawings of waveforms: the 12-lead electrocardiogram, other recordings, their sample types, their limits."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lxml import etree
from PIL import Image
from pydicom.data import get_testdata_file

from dicomcloud.dicom.header import scan
from dicomcloud.dicom.waveforms import CannotDraw, waveform_png, waveform_svg

ECG = Path(str(get_testdata_file("waveform_ecg.dcm")))
TWELVE_LEAD, HEMODYNAMIC = "1.2.840.10008.5.1.4.1.1.9.1.1", "1.2.840.10008.5.1.4.1.1.9.2.1"
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
BOTH = frozenset({"patient", "technique"})


def file_of(path: Path) -> tuple[dict[str, Any], Callable[[str], bytes]]:
    content = path.read_bytes()
    header = scan(content)
    return header.attributes, {
        value.path: content[value.offset : value.offset + value.length] for value in header.bulk_data
    }.__getitem__


def attribute(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)}


def channel(label: str, unit: str = "mV", sensitivity: float = 0.001, **more: float) -> dict[str, Any]:
    made = {
        "003A0203": attribute("SH", label),
        "003A0210": attribute("DS", sensitivity),
        "003A0211": attribute("SQ", {"00080100": attribute("SH", unit), "00080102": attribute("SH", "UCUM")}),
    }
    return made | {key: attribute("DS", value) for key, value in more.items()}


def recording(
    samples: np.ndarray[Any, Any],
    channels: list[dict[str, Any]],
    *,
    frequency: float = 500,
    kind: str = "SS",
    sop_class: str = HEMODYNAMIC,
    **group: Any,
) -> dict[str, Any]:
    """One multiplex group; samples: one row for each moment, one column for each channel."""
    data = {"vr": "OW", "InlineBinary": base64.b64encode(samples.tobytes()).decode()}
    return {
        "00080016": attribute("UI", sop_class),
        "54000100": attribute(
            "SQ",
            {
                "003A0005": attribute("US", len(channels)),
                "003A0010": attribute("UL", len(samples)),
                "003A001A": attribute("DS", frequency),
                "003A0200": attribute("SQ", *channels),
                "54001004": attribute("US", samples.dtype.itemsize * 8),
                "54001006": attribute("CS", kind),
                "54001010": data,
                **group,
            },
        ),
    }


def never(path: str) -> bytes:
    raise AssertionError(f"{path} was asked for")


def texts(svg: bytes) -> list[str]:
    return [str(found) for found in etree.fromstring(svg).xpath("//*[local-name()='text']/text()")]


def traces(svg: bytes) -> list[np.ndarray[Any, Any]]:
    """The points of every run of the last stroke, which holds the traces, in millimetres."""
    path = etree.fromstring(svg).xpath("//*[local-name()='path']/@d")[-1]
    runs = []
    for run in re.findall(r"M([^M]+)", path):
        start, _, steps = re.sub("h1$", "l0 0", run).partition("l")
        relative = np.array([*start.split(), *steps.split()], dtype=float).reshape(-1, 2)
        runs.append(relative.cumsum(axis=0) / 100)
    return runs


def test_a_twelve_lead_ecg_is_drawn_in_four_columns_and_a_rhythm_strip() -> None:
    attributes, samples = file_of(ECG)
    svg = waveform_svg(attributes, samples)
    found = texts(svg)
    assert sorted(text for text in found if text in LEADS) == sorted([*LEADS, "II"])
    assert any(text.startswith("25 mm/s  ·  10 mm/mV  ·  filter 0.05–300 Hz") for text in found)
    runs = traces(svg)
    assert [np.ptp(run[:, 0]) for run in runs] == pytest.approx([62.5] * 12 + [250], abs=0.15)
    assert len(svg) < 200_000


def test_a_lead_has_its_height_in_millivolts() -> None:
    attributes, samples = file_of(ECG)
    rhythm = traces(waveform_svg(attributes, samples))[-1]
    recorded = np.frombuffer(samples("/54000100/1/54001010"), "<i2").reshape(-1, 12)[:10000, 1] * 1.25 / 1000
    assert np.ptp(rhythm[:, 1]) == pytest.approx(np.ptp(recorded) * 10, abs=0.02)


def test_who_the_patient_is_stands_in_the_picture_only_if_asked_for() -> None:
    attributes, samples = file_of(ECG)
    plain = " ".join(texts(waveform_svg(attributes, samples)))
    for secret in ("Anonymous", "642341", "1971", "2013-01-25", "RITMO", "Galliera"):
        assert secret not in plain
        assert secret in " ".join(texts(waveform_svg(attributes, samples, annotate=BOTH)))
    patient = texts(waveform_svg(attributes, samples, annotate=frozenset({"patient"})))
    assert "ID 642341" in patient
    assert "2013-01-25 10:59:19" not in patient
    assert "QRS Duration 75 ms" in plain


def test_the_png_is_the_same_drawing() -> None:
    attributes, samples = file_of(ECG)
    picture = Image.open(io.BytesIO(waveform_png(attributes, samples, annotate=BOTH)))
    assert (picture.format, picture.mode, picture.width) == ("PNG", "RGB", 1686)
    small = Image.open(io.BytesIO(waveform_png(attributes, samples, width=400)))
    assert small.width == 400
    grey = np.asarray(picture.convert("L"))
    assert (grey < 60).sum() > 10_000
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_leads_that_follow_from_two_others_are_computed() -> None:
    time = np.arange(5000) / 500
    beat = np.sin(time * 7) * 500
    recorded = np.stack([beat, 2 * beat] + [beat] * 6, axis=1).astype("<i2")
    names = ["Lead I", "Lead II", *(f"Lead V{number}" for number in range(1, 7))]
    svg = waveform_svg(recording(recorded, [channel(name) for name in names], sop_class=TWELVE_LEAD), never)
    assert "III, aVR, aVL, aVF computed from I and II" in texts(svg)
    runs = dict(zip([lead for row in range(3) for lead in LEADS[row::3]], traces(svg), strict=False))
    assert np.ptp(runs["III"][:, 1]) == pytest.approx(10, abs=0.2)
    assert np.ptp(runs["aVL"][:, 1]) == pytest.approx(0, abs=0.02)
    assert np.ptp(runs["aVR"][:, 1]) == pytest.approx(15, abs=0.3)


def test_an_ecg_that_would_leave_its_row_is_drawn_smaller_and_says_so() -> None:
    recorded = np.zeros((5000, 8), "<i2")
    recorded[::500] = 5000
    names = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
    svg = waveform_svg(recording(recorded, [channel(name) for name in names], sop_class=TWELVE_LEAD), never)
    assert any("5 mm/mV" in text for text in texts(svg))


@pytest.mark.parametrize("kind", ["SS", "US", "SB", "UB", "SL", "UL"])
def test_samples_of_every_type_are_read(kind: str) -> None:
    dtype = {"SS": "<i2", "US": "<u2", "SB": "i1", "UB": "u1", "SL": "<i4", "UL": "<u4"}[kind]
    limits = np.iinfo(dtype)
    recorded = np.array([[limits.min], [0], [limits.max]], dtype)
    found = texts(
        waveform_svg(recording(recorded, [channel("P", "mm[Hg]", 0.5, **{"003A0213": 10})], kind=kind), never)
    )
    assert f"{limits.max / 2 + 10:.4g} mmHg" in found
    assert f"{limits.min / 2 + 10:.4g}" in found


@pytest.mark.parametrize(
    ("kind", "codes", "values"),
    [("MB", [0x00, 0x80, 0xFF, 0x7F], [-32124, 32124, 0, 0]), ("AB", [0x2A, 0xAA, 0xD5, 0x55], [-32256, 32256, 8, -8])],
)
def test_companded_samples_mean_what_g711_says(kind: str, codes: list[int], values: list[int]) -> None:
    recorded = np.array(codes, "u1")[:, None]
    svg = waveform_svg(recording(recorded, [channel("Voice", "mV", 1.0)], kind=kind), never)
    assert f"{max(values):.4g} mV" in texts(svg)
    (run,) = traces(svg)
    expected = np.interp(values, [min(values), max(values)], [run[:, 1].max(), run[:, 1].min()])
    assert run[:, 1] == pytest.approx(expected, abs=0.02)


def test_padding_is_a_gap() -> None:
    recorded = np.array([[1], [2], [-99], [3], [4]], "<i2")
    padding = {"vr": "OW", "InlineBinary": base64.b64encode(np.int16(-99).tobytes()).decode()}
    svg = waveform_svg(recording(recorded, [channel("P")], **{"5400100A": padding}), never)
    assert [len(run) for run in traces(svg)] == [2, 2]
    assert "0.001" in texts(svg)


def test_a_single_peak_in_a_long_recording_stays() -> None:
    recorded = np.zeros((3_000_000, 2), "<i2")
    recorded[1_234_567, 1] = 1000
    svg = waveform_svg(recording(recorded, [channel("A"), channel("B")]), never)
    assert len(svg) < 300_000
    runs = traces(svg)
    peak = runs[1][runs[1][:, 1].argmin()]
    assert peak[0] == pytest.approx(58 + 215 * 1_234_567 / 3_000_000, abs=0.1)
    assert np.ptp(runs[1][:, 1]) > 10


def test_every_group_has_its_channels_its_rate_and_its_axis() -> None:
    first = recording(np.zeros((500, 1), "<i2"), [channel("Pressure", "mm[Hg]")])
    second = recording(np.ones((100, 2), "<i2"), [channel("SpO2", "%"), channel("Flow", "l/min")], frequency=25)
    first["54000100"]["Value"] += second["54000100"]["Value"]
    found = texts(waveform_svg(first, never))
    for expected in ("Pressure", "SpO2", "Flow", "1 s", "4 s", "Group 2  ·  2 channels  ·  25 Hz  ·  4 s"):
        assert expected in found


def test_bulk_samples_are_asked_for_by_the_path_of_their_group() -> None:
    attributes = recording(np.zeros((10, 1), "<i2"), [channel("P")])
    attributes["54000100"]["Value"] = [{}, attributes["54000100"]["Value"][0]]
    attributes["54000100"]["Value"][1]["54001010"] = {"vr": "OW", "BulkDataURI": "/elsewhere"}
    asked: list[str] = []

    def samples(path: str) -> memoryview:
        asked.append(path)
        return memoryview(np.arange(10, dtype="<i2").tobytes())

    assert waveform_svg(attributes, samples).startswith(b"<?xml")
    assert asked == ["/54000100/2/54001010"]


def test_hostile_names_stay_text_and_nothing_is_referred_to() -> None:
    attack = "</text><script>alert(1)</script>&\"'\x00\x1b\ud800"
    attributes = recording(np.zeros((10, 1), "<i2"), [channel(attack, attack)])
    attributes |= {"00100010": attribute("PN", {"Alphabetic": attack}), "00100020": attribute("LO", attack)}
    svg = waveform_svg(attributes, never, annotate=BOTH)
    root = etree.fromstring(svg)
    assert {etree.QName(element).localname for element in root.iter()} == {"svg", "title", "rect", "path", "g", "text"}
    assert b"href" not in svg
    assert b"url(" not in svg
    assert b"<script" not in svg
    waveform_png(attributes, never, annotate=BOTH)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"003A001A": {"vr": "DS"}}, "sampling frequency"),
        ({"003A001A": {"vr": "DS", "Value": [-1.0]}}, "sampling frequency"),
        ({"54001004": {"vr": "US", "Value": [12]}}, "12 bits"),
        ({"54001010": {"vr": "OW"}}, "no samples"),
        ({"003A0005": {"vr": "US", "Value": [60000]}}, "fewer samples"),
        ({"003A0005": {"vr": "US"}, "003A0200": {"vr": "SQ"}}, "no channels"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(CannotDraw, match=reason):
        waveform_svg(recording(np.zeros((10, 1), "<i2"), [channel("P")], **change), never)


def test_an_instance_without_waveforms_is_refused() -> None:
    with pytest.raises(CannotDraw, match="no waveforms"):
        waveform_svg({}, never)


def test_a_sequence_of_many_groups_and_channels_makes_a_bounded_picture() -> None:
    attributes = recording(np.zeros((4, 300), "<i2"), [channel(f"C{number}") for number in range(300)])
    attributes["54000100"]["Value"] *= 50
    picture = Image.open(io.BytesIO(waveform_png(attributes, never, width=100_000)))
    assert picture.width * picture.height <= 16_100_000
    assert len(waveform_svg(attributes, never)) < 1_000_000


@pytest.mark.parametrize("extreme", [1e308, -1e308, 1e-308])
def test_absurd_sensitivities_do_no_harm(extreme: float) -> None:
    recorded = (np.arange(5000 * 8).reshape(-1, 8) % 999).astype("<i2")
    names = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
    channels = [channel(name, "V", extreme, **{"003A0213": extreme, "003A0214": extreme}) for name in names]
    for sop_class in (TWELVE_LEAD, HEMODYNAMIC):
        attributes = recording(recorded, channels, sop_class=sop_class)
        etree.fromstring(waveform_svg(attributes, never))
        waveform_png(attributes, never, width=300)


def test_a_recording_without_any_value_is_drawn_empty() -> None:
    padding = {"vr": "OW", "InlineBinary": base64.b64encode(np.int16(0).tobytes()).decode()}
    names = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
    for sop_class in (TWELVE_LEAD, HEMODYNAMIC):
        recorded = recording(
            np.zeros((5000, 8), "<i2"), [channel(name) for name in names], sop_class=sop_class, **{"5400100A": padding}
        )
        assert "V6" in texts(waveform_svg(recorded, never))
