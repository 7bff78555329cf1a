"""Waveforms as pictures: the electrocardiogram as it is printed, every other recording as traces below each other.

    waveform_svg    a drawing that can be enlarged, in millimetres of paper
    waveform_png    the same drawing in pixels; waveform_picture before it is encoded

A 12-lead ECG is drawn as cardiologists read it: four columns of 2.5 s in three rows, a rhythm strip below, 25 mm/s and
10 mm/mV on millimetre paper, a calibration pulse at the left. Other waveforms (PS3.3 A.34, C.10.9) get a row for each
channel of each multiplex group, with the range of their values and an axis in seconds. Both pictures come from one
list of strokes and texts in millimetres.

Samples are reduced to what a line of that length can show, by the least and the greatest value of each step: no peak is
lost, and a recording of a day makes no larger picture than one of a minute.

Numbers of the data set are believed only as far as the samples reach. Who the patient is stands in a picture only if
the caller asks for it.
"""

from __future__ import annotations

import base64
import io
import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from .metadata import text
from .reports import age, clean, code_meaning, moment, person_name, unit_symbol
from .values import integer, item, items, number, numbers, values

if TYPE_CHECKING:
    import numpy
    from PIL import Image

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

Attributes = Mapping[str, Any]
#: The path of a bulk value ("/54000100/1/54001010") → its bytes, little endian.
Samples = Callable[[str], bytes | bytearray | memoryview | mmap.mmap]

_ECG_CLASSES: Final = frozenset(
    f"1.2.840.10008.5.1.4.1.1.9.{number}" for number in ("1.1", "1.2", "1.3", "1.4")
)  # 12-lead, general, ambulatory, general 32-bit
_LEADS: Final = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_COLUMNS: Final = (("I", "II", "III"), ("aVR", "aVL", "aVF"), ("V1", "V2", "V3"), ("V4", "V5", "V6"))
# CID 3001: SCP-ECG and MDC codes end in the number of the lead, "5.6.3-9-61", "2:61".
_LEAD_NUMBERS: Final = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {
    3 + index: f"V{index + 1}" for index in range(6)
}
_MILLIVOLTS: Final = {"uv": 0.001, "µv": 0.001, "mv": 1.0, "v": 1000.0, "nv": 1e-6}

_MAX_GROUPS: Final = 16
_MAX_CHANNELS: Final = 96  # drawn, of all groups
_MAX_FREQUENCY: Final = 20_000  # Hz, of a 12-lead ECG in its own layout
_STEP: Final = 0.1  # millimetres of paper for which one least and one greatest value are kept
_MAX_PIXELS: Final = 16_000_000

_INK, _SOFT, _GRID, _FINE = "#111827", "#5b6472", "#f0a9a9", "#f9dcdc"


class CannotDraw(Exception):
    """The waveforms of an instance cannot be drawn; the message is for people."""


def waveform_svg(attributes: Attributes, samples: Samples, *, annotate: frozenset[str] = frozenset()) -> bytes:
    """The waveforms of an instance as SVG in UTF-8, in millimetres of paper; it refers to nothing outside itself.

    `samples` reads the Waveform Data; values that are part of the metadata are not asked for. `annotate` holds the
    keywords of PS3.18 8.3.5.1.1: "patient" puts name, ID, birth date, sex and age above the drawing, "technique"
    when and with what it was recorded; with either the statements of the interpretation are there too.
    Raises CannotDraw.
    """
    return _svg(_drawing(attributes, samples, annotate))


def waveform_png(
    attributes: Attributes,
    samples: Samples,
    *,
    annotate: frozenset[str] = frozenset(),
    width: int | None = None,
) -> bytes:
    """The same drawing as PNG, `width` pixels wide (6 for a millimetre by default), at most 16 million pixels."""
    target = io.BytesIO()
    waveform_picture(attributes, samples, annotate=annotate, width=width).save(target, "PNG")
    return target.getvalue()


def waveform_picture(
    attributes: Attributes,
    samples: Samples,
    *,
    annotate: frozenset[str] = frozenset(),
    width: int | None = None,
) -> Image.Image:
    """The same drawing as an RGB picture of Pillow, for other encodings."""
    drawing = _drawing(attributes, samples, annotate)
    scale = max(16, width or round(drawing.width * 6)) / drawing.width
    return _raster(drawing, min(scale, (_MAX_PIXELS / (drawing.width * drawing.height)) ** 0.5))


# ---------------------------------------------------------------------------------------------------------------------
# Reading a Waveform Sequence


@dataclass(frozen=True, slots=True)
class _Channel:
    label: str
    lead: str  # "" if it is none of the twelve
    unit: str
    data: Array  # samples as recorded, one dimension
    decode: Array | None  # what a code means, where samples are codes
    padding: int | None
    scale: float  # value in units of one step of the samples
    baseline: float
    delay: float  # seconds after the start of the group

    def read(self, start: int, stop: int) -> Array:
        """Values in units, NaN where there is none."""
        import numpy

        raw = self.data[start:stop]
        with numpy.errstate(all="ignore"):
            found = (raw if self.decode is None else self.decode[raw]).astype("f8") * self.scale + self.baseline
            found[~(numpy.abs(found) < 1e30)] = numpy.nan
        if self.padding is not None:
            found[raw == self.padding] = numpy.nan
        return found


@dataclass(frozen=True, slots=True)
class _Group:
    label: str
    frequency: float  # Hz
    count: int  # samples of a channel
    start: float  # seconds
    channels: tuple[_Channel, ...]
    filters: str = ""

    @property
    def duration(self) -> float:
        return self.count / self.frequency


def _groups(attributes: Attributes, samples: Samples) -> list[_Group]:
    found: list[_Group] = []
    fault = "it has no waveforms"
    for place, group in enumerate(values(attributes, "WaveformSequence")[:_MAX_GROUPS], 1):
        if not isinstance(group, Mapping):
            continue
        try:
            found.append(_group(group, f"/54000100/{place}/54001010", samples))
        except CannotDraw as refused:
            fault = str(refused)
    if not found:
        raise CannotDraw(f"The waveforms cannot be drawn: {fault}.")
    return found


def _group(group: Attributes, path: str, samples: Samples) -> _Group:
    """One multiplex group (PS3.3 C.10.9.1)."""
    import numpy

    definitions = items(group, "ChannelDefinitionSequence")
    width = integer(group, "NumberOfWaveformChannels") or len(definitions)
    frequency = number(group, "SamplingFrequency") or 0.0
    if width < 1 or width > 65535:
        raise CannotDraw("a multiplex group has no channels")
    if not 1e-6 < frequency < 1e12:
        raise CannotDraw("a multiplex group has no sampling frequency")
    element = group.get("54001010", {})
    if "InlineBinary" in element:
        raw: Any = _inline(element)
    elif "BulkDataURI" in element:
        raw = samples(path)
    else:
        raise CannotDraw("a multiplex group has no samples")
    kind = text(group, "WaveformSampleInterpretation")
    dtype = _sample_type(kind, integer(group, "WaveformBitsAllocated", 16))
    count = len(raw) // (dtype.itemsize * width)
    declared = integer(group, "NumberOfWaveformSamples")
    count = min(count, declared) if declared > 0 else count
    if count < 1:
        raise CannotDraw("a multiplex group has fewer samples than channels")
    table = numpy.frombuffer(raw, dtype, count * width).reshape(count, width)
    padding = _padding(group, dtype)
    decode = _companded(kind) if kind in ("MB", "AB") else None
    channels = tuple(
        _channel(
            definitions[index] if index < len(definitions) else {}, index, table[:, index], decode, padding, frequency
        )
        for index in range(min(width, _MAX_CHANNELS))
    )
    start = (number(group, "MultiplexGroupTimeOffset") or 0.0) / 1000
    label = text(group, "MultiplexGroupLabel")
    return _Group(label, frequency, count, start, channels, _filters(definitions))


def _channel(
    definition: Attributes, index: int, data: Array, decode: Array | None, padding: int | None, frequency: float
) -> _Channel:
    """One channel (PS3.3 C.10.9.1.4): value = sample × sensitivity × correction + baseline."""
    source = item(definition, "ChannelSourceSequence")
    meaning = code_meaning(source)
    label = text(definition, "ChannelLabel").strip() or meaning or f"Channel {index + 1}"
    sensitivity = number(definition, "ChannelSensitivity")
    correction = number(definition, "ChannelSensitivityCorrectionFactor")
    unit = unit_symbol(item(definition, "ChannelSensitivityUnitsSequence")) if sensitivity is not None else ""
    skew = number(definition, "ChannelTimeSkew") or (number(definition, "ChannelSampleSkew") or 0.0) / frequency
    return _Channel(
        label=clean(label),
        lead=_lead(text(source, "CodeValue"), text(source, "CodingSchemeDesignator"), f"{meaning} | {label}"),
        unit=unit,
        data=data,
        decode=decode,
        padding=padding,
        scale=(1.0 if sensitivity is None else sensitivity) * (1.0 if correction is None else correction),
        baseline=number(definition, "ChannelBaseline") or 0.0,
        delay=skew if abs(skew) < 1e6 else 0.0,
    )


def _lead(code: str, scheme: str, names: str) -> str:
    """Which of the twelve leads a channel source is (PS3.16 CID 3001), by its code, else by its name."""
    match = re.fullmatch(r"(?:5\.6\.3-9-|2:)([0-9]{1,3})", code)
    if match and scheme in ("SCPECG", "MDC"):
        return _LEAD_NUMBERS.get(int(match[1]), "")
    match = re.search(r"(?:^|[ |_])(?:lead[ _]?)?(III|II|I|aVR|aVL|aVF|V[1-6])(?=$|[ |,(])", names, re.IGNORECASE)
    return next((lead for lead in _LEADS if match and lead.lower() == match[1].lower()), "")


def _filters(definitions: Sequence[Attributes]) -> str:
    """The band of the first channel, where all channels have the same."""
    bands = {
        (number(definition, "FilterLowFrequency"), number(definition, "FilterHighFrequency"))
        for definition in definitions
    }
    low, high = bands.pop() if len(bands) == 1 else (None, None)
    if low is not None and high is not None:
        return f"filter {low:g}–{high:g} Hz"
    if low is not None:
        return f"filter from {low:g} Hz"
    return f"filter to {high:g} Hz" if high is not None else ""


def _inline(element: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(element["InlineBinary"])
    except (TypeError, ValueError):
        return b""


def _sample_type(kind: str, bits: int) -> numpy.dtype[Any]:
    """The samples' type (PS3.3 C.10.9.1.5): SB UB MB AB are bytes, SS US words; 32 and 64 bits are SL UL SV UV."""
    import numpy

    if bits not in (8, 16, 32, 64):
        raise CannotDraw(f"samples of {bits} bits are not known")
    if kind in ("MB", "AB"):
        return numpy.dtype("u1")
    return numpy.dtype(f"<{'u' if kind.startswith('U') else 'i'}{bits // 8}")


def _padding(group: Attributes, dtype: numpy.dtype[Any]) -> int | None:
    """Waveform Padding Value (5400,100A): a sample that means that there is none."""
    import numpy

    element = group.get("5400100A", {})
    raw = _inline(element) if "InlineBinary" in element else b""
    if len(raw) >= dtype.itemsize:
        return int(numpy.frombuffer(raw, dtype, 1)[0])
    stated = integer(group, "WaveformPaddingValue", 1 << 70)
    return stated if stated < 1 << 64 else None


@cache
def _companded(kind: str) -> Array:
    """What the 256 codes of µ-law (MB) or A-law (AB) mean, 16 bits (ITU-T G.711)."""
    import numpy

    codes = numpy.arange(256)
    if kind == "MB":
        codes = ~codes & 0xFF
        size = (((codes & 0x0F) << 3) + 0x84 << (codes >> 4 & 7)) - 0x84
        signed = numpy.where(codes & 0x80, -size, size)
    else:
        codes = codes ^ 0x55
        exponent = codes >> 4 & 7
        size = ((codes & 0x0F) << 4) + numpy.where(exponent, 0x108, 8)
        size = size << numpy.maximum(exponent - 1, 0)
        signed = numpy.where(codes & 0x80, size, -size)
    return signed.astype("<i2")


def _envelope(read: Callable[[int, int], Array], first: int, last: int, step: int) -> tuple[Array, Array]:
    """The least and the greatest value of each run of `step` samples, in the order in which they come; all if step < 3.

    Places in samples, and values; `read` is asked for about a million samples at a time.
    """
    import numpy

    if step < 3 or last - first < 3:
        return numpy.arange(first, max(first, last), dtype="f8"), read(first, max(first, last))
    places, found = [], []
    size = max(1, (1 << 20) // step) * step
    for start in range(first, last, size):
        part = read(start, min(start + size, last))
        runs = numpy.pad(part, (0, -len(part) % step), constant_values=numpy.nan).reshape(-1, step)
        empty = numpy.isnan(runs)
        low = numpy.where(empty, numpy.inf, runs).argmin(axis=1)
        high = numpy.where(empty, -numpy.inf, runs).argmax(axis=1)
        both = numpy.sort(numpy.stack([low, high], axis=1), axis=1)
        found.append(numpy.take_along_axis(runs, both, axis=1).ravel())
        places.append((both + start + numpy.arange(len(runs))[:, None] * step).ravel())
    return numpy.concatenate(places).astype("f8"), numpy.concatenate(found)


# ---------------------------------------------------------------------------------------------------------------------
# The drawing: strokes and texts in millimetres


@dataclass(slots=True)
class _Stroke:
    lines: list[Array]  # each n × 2
    color: str
    width: float


@dataclass(slots=True)
class _Text:
    x: float
    y: float
    content: str
    size: float
    color: str = _INK
    bold: bool = False
    anchor: str = "start"


@dataclass(slots=True)
class _Drawing:
    width: float
    height: float
    title: str
    character_set: str = ""
    strokes: list[_Stroke] = field(default_factory=list)
    texts: list[_Text] = field(default_factory=list)

    def stroke(self, lines: Sequence[Any], color: str, width: float) -> None:
        import numpy

        self.strokes.append(_Stroke([numpy.asarray(line, "f8") for line in lines], color, width))

    def write(self, x: float, y: float, content: str, size: float = 3.2, **style: Any) -> None:
        if content:
            self.texts.append(_Text(x, y, clean(content).replace("\n", " ")[:200], size, **style))


def _drawing(attributes: Attributes, samples: Samples, annotate: frozenset[str]) -> _Drawing:
    groups = _groups(attributes, samples)
    if text(attributes, "SOPClassUID") in _ECG_CLASSES:
        for group in groups:
            leads = _twelve_leads(group)
            if leads is not None:
                return _ecg(attributes, group, leads, groups, annotate)
    return _traces(attributes, groups, annotate)


# The page that both layouts begin ------------------------------------------------------------------------------------


def _head(attributes: Attributes, annotate: frozenset[str], title: str) -> list[tuple[str, ...]]:
    """Up to three columns of lines: who, what was measured, when and with what."""
    who: list[str] = []
    technique: list[str] = []
    if "patient" in annotate:
        name = values(attributes, "PatientName")
        groups = name[0] if name and isinstance(name[0], Mapping) else {}
        shown = [person_name(str(groups[group])) for group in ("Alphabetic", "Ideographic") if groups.get(group)]
        sex = {"F": "female", "M": "male"}.get(text(attributes, "PatientSex"), text(attributes, "PatientSex").lower())
        born = text(attributes, "PatientBirthDate")
        who = [
            " · ".join(shown) or "Name unknown",
            f"ID {text(attributes, 'PatientID')}" if text(attributes, "PatientID") else "",
            ", ".join(filter(None, (f"born {moment(born)}" if born else "", sex, age(text(attributes, "PatientAge"))))),
        ]
    if "technique" in annotate:
        device = (text(attributes, "Manufacturer"), text(attributes, "ManufacturerModelName"))
        when = text(attributes, "AcquisitionDateTime")
        technique = [
            moment(when) if when else " ".join(moment(text(attributes, f"Study{part}")) for part in ("Date", "Time")),
            " ".join(filter(None, device)),
            text(attributes, "InstitutionName"),
        ]
    measured, stated = _interpretation(attributes)
    if annotate:
        measured = [*measured[: 10 - min(2, len(stated))], *stated[:2]]
    columns = [who, measured, technique]
    return [tuple(line for line in column if line.strip()) for column in columns]


def _interpretation(attributes: Attributes) -> tuple[list[str], list[str]]:
    """Measurements and statements among the annotations (PS3.3 C.10.10); points in time are left out."""
    measured, stated = [], []
    for annotation in items(attributes, "WaveformAnnotationSequence")[:500]:
        if words := text(annotation, "UnformattedTextValue").strip():
            stated.append(words)
        value = number(annotation, "NumericValue")
        name = code_meaning(item(annotation, "ConceptNameCodeSequence"))
        if value and name and not numbers(annotation, "ReferencedSamplePositions"):
            unit = item(annotation, "MeasurementUnitsCodeSequence")
            symbol = {"ms": "ms", "deg": "°"}.get(text(unit, "CodeValue")) or unit_symbol(unit)
            measured.append(f"{name} {value:g}{'' if symbol == '°' else ' '}{symbol}".rstrip())
    return measured, stated


def _write_head(drawing: _Drawing, head: Sequence[Sequence[str]], left: float, right: float) -> float:
    """Writes the columns and gives the height they take."""
    who, measured, technique = head
    for index, line in enumerate(who):
        letters = sum(2 if ord(letter) > 0x2E80 else 1 for letter in line)  # Han, Kana and Hangul are twice as wide
        size = min(3.4 if index else 4.6, 160 / max(letters, 1))
        drawing.write(left, 8 + index * 5, line, size, bold=not index)
    middle = left + (86 if who else 0)
    for index, line in enumerate(measured[:10]):
        drawing.write(middle + (index // 5) * 44, 7 + (index % 5) * 4.4, _short(line, 30), 3.1)
    for index, line in enumerate(technique):
        drawing.write(right, 8 + index * 4.6, line, 3.1, color=_SOFT, anchor="end")
    rows = max(len(who) * 5, min(len(measured), 5) * 4.4, len(technique) * 4.6)
    return 8 + rows if rows else 4


def _character_set(attributes: Attributes) -> str:
    """It tells which forms of Han characters a reader expects."""
    return "\\".join(str(term) for term in values(attributes, "SpecificCharacterSet") if term)


def _short(line: str, length: int) -> str:
    return line if len(line) <= length else line[: length - 1] + "…"


# 12-lead ECG ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Leads:
    millivolts: dict[str, Array]
    delay: dict[str, float]
    computed: tuple[str, ...]


def _twelve_leads(group: _Group) -> _Leads | None:
    """The twelve leads of a group in millivolts, at most 10 s; four of them computed from I and II if need be."""
    if not 50 <= group.frequency <= _MAX_FREQUENCY or group.duration < 1:
        return None
    stop = int(10 * group.frequency)
    found: dict[str, Array] = {}
    delay: dict[str, float] = {}
    for channel in group.channels:
        factor = _MILLIVOLTS.get(channel.unit.lower())
        if channel.lead and channel.lead not in found and factor:
            found[channel.lead] = channel.read(0, stop) * factor
            delay[channel.lead] = channel.delay
    if not {"I", "II", "V1", "V2", "V3", "V4", "V5", "V6"} <= found.keys():
        return None
    one, two = found["I"], found["II"]
    rules = {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    computed = tuple(lead for lead in rules if lead not in found)
    for lead in computed:
        found[lead], delay[lead] = rules[lead], delay["I"]
    return _Leads(found, delay, computed)


_MARGIN, _PAPER_WIDTH, _ROW, _ROWS, _COLUMN_TIME = 8.0, 265.0, 30.0, 4, 2.5
_FIRST_TRACE: Final = 13.0  # right of the paper's edge; before it stands the calibration pulse


def _ecg(
    attributes: Attributes, group: _Group, leads: _Leads, groups: Sequence[_Group], annotate: frozenset[str]
) -> _Drawing:
    """Three rows of four columns and a rhythm strip; 25 mm/s."""
    drawing = _Drawing(_PAPER_WIDTH + 2 * _MARGIN, 0, "12-lead electrocardiogram", _character_set(attributes))
    left, right = _MARGIN, _MARGIN + _PAPER_WIDTH
    top = _write_head(drawing, _head(attributes, annotate, drawing.title), left, right)
    height = _ROWS * _ROW + 5
    _paper(drawing, left, top, _PAPER_WIDTH, height)
    gain = _gain(leads)
    # Columns follow each other in time, as on a recorder's paper; a short recording begins anew in each.
    whole = group.duration >= 4 * _COLUMN_TIME - 0.05
    pulses, traces = [], []
    for row in range(_ROWS):
        middle = top + row * _ROW + _ROW / 2 + 2.5
        pulse = [(2, 0), (3.5, 0), (3.5, -gain), (8.5, -gain), (8.5, 0), (10, 0)]
        pulses.append([(left + x, middle + y) for x, y in pulse])
        if row == 3:
            shown = [("II", 0.0, 4 * _COLUMN_TIME, 0)]
        else:
            shown = [
                (column[row], place * _COLUMN_TIME if whole else 0.0, _COLUMN_TIME, place)
                for place, column in enumerate(_COLUMNS)
            ]
        for lead, start, length, place in shown:
            x = left + _FIRST_TRACE + place * _COLUMN_TIME * 25
            points = _ecg_trace(leads, lead, group.frequency, start, length, gain)
            points[:, 0] += x
            points[:, 1] = (middle - points[:, 1]).clip(top, top + height)
            traces.append(points)
            drawing.write(x + 1, middle - 9.5, lead, 3.6, bold=True)
            if place:
                pulses += [[(x, middle - 4), (x, middle - 2)], [(x, middle + 2), (x, middle + 4)]]
    drawing.stroke(pulses, _INK, 0.25)
    drawing.stroke(traces, _INK, 0.3)
    bottom = top + height + 5
    shown_until = min(group.duration, 4 * _COLUMN_TIME)
    extent = f"{shown_until:.3g} s of {group.duration:.3g} s"
    facts = ("25 mm/s", f"{gain:g} mm/mV", group.filters, f"sampled at {group.frequency:g} Hz", extent)
    drawing.write(left, bottom, "  ·  ".join(filter(None, facts)), 3.1, color=_SOFT)
    notes = [f"{', '.join(leads.computed)} computed from I and II"] if leads.computed else []
    others = [other.label or "unnamed" for other in groups if other is not group]
    notes += [f"not drawn: {', '.join(others)}"] if others else []
    drawing.write(right, bottom, _short("  ·  ".join(notes), 90), 3.1, color=_SOFT, anchor="end")
    drawing.height = bottom + 4
    return drawing


def _gain(leads: _Leads) -> float:
    """10 mm/mV, less where a lead would cross its neighbours."""
    import numpy

    highest = 0.0
    for part in leads.millivolts.values():
        if not numpy.isnan(part).all():
            highest = max(highest, float(numpy.nanmax(numpy.abs(part - numpy.nanmedian(part)))))
    return next((gain for gain in (10.0, 5.0, 2.5) if highest * gain <= _ROW), 1.0)


def _ecg_trace(leads: _Leads, lead: str, frequency: float, start: float, length: float, gain: float) -> Array:
    """Points of one lead, in millimetres from the start of its column and above its middle."""
    import numpy

    part = leads.millivolts[lead]
    middle = 0.0 if numpy.isnan(part).all() else float(numpy.nanmedian(part))
    skew = leads.delay[lead]
    first = max(0, round((start - skew) * frequency))
    first = min(first, len(part))
    last = min(len(part), max(first, round((start + length - skew) * frequency) + 1))
    places, found = _envelope(lambda begin, end: part[begin:end], first, last, int(_STEP / 25 * frequency))
    x = (places / frequency + skew - start) * 25
    return numpy.stack([x, (found - middle) * gain], axis=1)


def _paper(drawing: _Drawing, x: float, y: float, width: float, height: float) -> None:
    """Millimetre paper: fine lines each millimetre, strong ones each five."""

    def lines(distances: Sequence[int], upright: bool) -> Iterator[list[tuple[float, float]]]:
        for distance in distances:
            if upright:
                yield [(x + distance, y), (x + distance, y + height)]
            else:
                yield [(x, y + distance), (x + width, y + distance)]

    for color, stroke, strong in ((_FINE, 0.1, False), (_GRID, 0.15, True)):
        upright = [place for place in range(int(width) + 1) if (place % 5 == 0) is strong]
        level = [place for place in range(int(height) + 1) if (place % 5 == 0) is strong]
        drawing.stroke([*lines(upright, True), *lines(level, False)], color, stroke)


# Other waveforms -----------------------------------------------------------------------------------------------------

_LABELS: Final = 50.0  # millimetres for the name of a channel and its range
_TRACE_WIDTH: Final = _PAPER_WIDTH - _LABELS


def _traces(attributes: Attributes, groups: Sequence[_Group], annotate: frozenset[str]) -> _Drawing:
    """A row for each channel of each group, as high as the number of channels allows; the axis below is in seconds."""
    modality = text(attributes, "Modality")
    title = f"Waveforms {modality}".strip()
    drawing = _Drawing(_PAPER_WIDTH + 2 * _MARGIN, 0, title, _character_set(attributes))
    left, right = _MARGIN, _MARGIN + _PAPER_WIDTH
    y = _write_head(drawing, _head(attributes, annotate, drawing.title), left, right) + 2
    total = sum(len(group.channels) for group in groups)
    row = min(24.0, max(9.0, 150 / total))
    room = _MAX_CHANNELS
    for place, group in enumerate(groups, 1):
        title = group.label or (f"Group {place}" if len(groups) > 1 else "")
        what = f"{len(group.channels)} channels" if len(group.channels) > 1 else "1 channel"
        start = f"from {group.start:g} s" if group.start else ""
        parts = (title, what, f"{group.frequency:g} Hz", f"{group.duration:.4g} s", group.filters, start)
        y += 3
        drawing.write(left, y, "  ·  ".join(filter(None, parts)), 3.2, color=_SOFT)
        y = _band(drawing, group, group.channels[:room], y + 2, row) + 6
        room -= len(group.channels)
        if room <= 0 and place < len(groups):
            drawing.write(left, y, f"{len(groups) - place} more groups are not drawn.", 3.2, color=_SOFT)
            y += 5
            break
    drawing.height = y + 2
    return drawing


def _band(drawing: _Drawing, group: _Group, channels: Sequence[_Channel], top: float, row: float) -> float:
    import numpy

    x = _MARGIN + _LABELS
    speed = _TRACE_WIDTH / group.duration  # mm/s
    bottom = top + row * len(channels)
    tick = _tick(group.duration)
    moments = numpy.arange(0, group.duration * (1 + 1e-9), tick)
    drawing.stroke([[(x + at * speed, top), (x + at * speed, bottom)] for at in moments], "#e3e7ec", 0.15)
    borders = [top + row * index for index in range(len(channels) + 1)]
    drawing.stroke([[(_MARGIN, at), (_MARGIN + _PAPER_WIDTH, at)] for at in borders], "#cfd6de", 0.15)
    lines = []
    for index, channel in enumerate(channels):
        places, found = _envelope(channel.read, 0, group.count, int(_STEP / speed * group.frequency))
        known = found[~numpy.isnan(found)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        middle, half = low / 2 + high / 2, (high / 2 - low / 2) or 1.0
        at = top + row * index + row / 2
        shown_x = ((places / group.frequency + channel.delay) * speed).clip(0, _TRACE_WIDTH) + x
        lines.append(numpy.stack([shown_x, at - (found - middle) / half * (row / 2 - 1)], axis=1))
        drawing.write(_MARGIN, at + 1, _short(channel.label, 18), 2.8, bold=True)
        if known.size:
            unit = f" {channel.unit}" if channel.unit else ""
            drawing.write(x - 1.5, at - row / 2 + 3, f"{high:.4g}{unit}", 2.3, color=_SOFT, anchor="end")
            drawing.write(x - 1.5, at + row / 2 - 1, f"{low:.4g}", 2.3, color=_SOFT, anchor="end")
    drawing.stroke(lines, "#0b4f8a", 0.2)
    for at in moments:
        last = at + tick > group.duration
        drawing.write(x + at * speed, bottom + 3.2, f"{at:g}{' s' if last else ''}", 2.4, color=_SOFT, anchor="middle")
    return bottom + 4


def _tick(duration: float) -> float:
    """A round number of seconds, about ten of which make the duration."""
    power = 10.0 ** int(f"{duration / 10:e}".split("e")[1])
    return next((factor * power for factor in (1.0, 2.0, 5.0) if factor * power >= duration / 12), 10.0 * power)


# ---------------------------------------------------------------------------------------------------------------------
# SVG and pixels

_FAMILY: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif"


def _svg(drawing: _Drawing) -> bytes:
    """Coordinates are hundredths of a millimetre, so that they are whole numbers."""
    width, height = round(drawing.width * 100), round(drawing.height * 100)
    parts = [
        f'<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'width="{drawing.width:g}mm" height="{height / 100:g}mm" viewBox="0 0 {width} {height}">\n'
        f'<title>{_xml(drawing.title)}</title>\n<rect width="{width}" height="{height}" fill="#fff"/>\n'
    ]
    for stroke in drawing.strokes:
        paths = "".join(_svg_path(line) for line in stroke.lines)
        parts.append(
            f'<path fill="none" stroke="{stroke.color}" stroke-width="{stroke.width * 100:g}" stroke-linejoin="round" '
            f'd="{paths}"/>\n'
        )
    parts.append(f'<g font-family="{_FAMILY}" xml:space="preserve">\n')
    for label in drawing.texts:
        bold = ' font-weight="600"' if label.bold else ""
        anchor = f' text-anchor="{label.anchor}"' if label.anchor != "start" else ""
        parts.append(
            f'<text x="{label.x * 100:.0f}" y="{label.y * 100:.0f}" font-size="{label.size * 100:.0f}" '
            f'fill="{label.color}"{bold}{anchor}>{_xml(label.content)}</text>\n'
        )
    parts.append("</g>\n</svg>\n")
    return "".join(parts).encode("utf-8")


def _svg_path(line: Array) -> str:
    """One path for each run of points without a gap."""
    import numpy

    made = []
    for run in _pieces(line):
        points = numpy.rint(run * 100).astype("i8")
        steps = numpy.diff(points, axis=0)
        steps = steps[steps.any(axis=1)]
        made.append(f"M{points[0, 0]} {points[0, 1]}")
        made.append(f"l{' '.join(map(str, steps.ravel().tolist()))}" if len(steps) else "h1")
    return "".join(made)


def _pieces(line: Array) -> list[Array]:
    import numpy

    known = ~numpy.isnan(line).any(axis=1)
    if known.all():
        return [line] if len(line) else []
    edges = numpy.flatnonzero(numpy.diff(known)) + 1
    return [run for run in numpy.split(line, edges) if len(run) and not numpy.isnan(run[0]).any()]


def _xml(value: str) -> str:
    return clean(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _raster(drawing: _Drawing, scale: float) -> Image.Image:
    """Lines are drawn at twice the size and reduced, which smooths them; texts at their own size."""
    from PIL import Image, ImageDraw

    from .annotation import _runs

    width, height = max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale))
    large = Image.new("RGB", (width * 2, height * 2), "#fff")
    draw = ImageDraw.Draw(large)
    for stroke in drawing.strokes:
        thickness = max(1, round(stroke.width * scale * 2))
        for line in stroke.lines:
            for run in _pieces(line):
                points = [(x, y) for x, y in (run * (scale * 2)).tolist()]
                draw.line(points if len(points) > 1 else points * 2, fill=stroke.color, width=thickness)
    picture = large.reduce(2)
    draw = ImageDraw.Draw(picture)
    for label in drawing.texts:
        size = max(6, round(label.size * scale))
        pieces = [
            (piece, font, font.getlength(piece)) for piece, font in _runs(label.content, size, drawing.character_set)
        ]
        before = {"start": 0.0, "middle": 0.5, "end": 1.0}[label.anchor]
        x = label.x * scale - before * sum(length for _, _, length in pieces)
        for piece, font, length in pieces:
            thicker = size / 40 if label.bold else 0
            draw.text((x, label.y * scale), piece, label.color, font, "ls", stroke_width=thicker)
            x += length
    return picture
