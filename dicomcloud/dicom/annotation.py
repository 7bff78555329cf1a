"""Text drawn on images: fonts for every character set of DICOM, outlined so that it shows on black and on white.

Fonts come as packages: FiraGO for Latin, Greek, Cyrillic, Arabic, Hebrew and Thai (pymupdf-fonts), Noto Sans CJK for
Chinese, Japanese and Korean (noto-cjk-sans-otc), both under the SIL Open Font License; for what neither has, fonts of
the system in their usual folders. A character that no font has is shown as the box that a font keeps for this.
Arabic is joined and right-to-left text is ordered by Raqm, which Pillow brings, or else by `visual_order`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from PIL import Image, ImageDraw, ImageFont, features

from . import values
from .lut import Rgb
from .rendering_parameters import Window
from .stored_image import StoredImage
from .values import Attributes
from .visual_order import in_visual_order

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Face = tuple[str, int]  # a font's name or path, and the number of the face in its file

#: In pixels; below, nobody can read them.
SMALLEST_LETTERS: Final = 9
_LARGEST: Final = 72
_MAX_CHARACTERS: Final = 1024  # of a line, which is all that Unformatted Text Value can have
_WESTERN: Final = "FiraGO"
_EAST_ASIAN: Final = "NotoSansCJK"
_JAPANESE, _KOREAN, _CHINESE = 0, 1, 2  # faces of Noto Sans CJK: the same characters are written differently
_SYSTEM_FONTS: Final = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansThai-Regular.ttf",
    "wqy-zenhei.ttc",
    "arial.ttf",
    "msgothic.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "tahoma.ttf",
    "seguisym.ttf",
)
_MISSING: Final = "\U0010fffd"  # a private character, for which every font shows its box


# ---------------------------------------------------------------------------------------------------------------------
# Fonts


@functools.cache
def _font_file(name: str) -> bytes | str | None:
    """The content or the path of a packaged font."""
    if name == _WESTERN:
        try:
            return bytes(importlib.import_module("pymupdf_fonts.FiraGO_Regular").fontbuffer)
        except ImportError:
            return None
    if name == _EAST_ASIAN:
        package = importlib.util.find_spec("noto_cjk_sans_otc")
        if package is None or package.origin is None:
            return None
        return str(Path(package.origin).with_name("NotoSansCJK-Regular.ttc"))
    return name


@functools.cache
def _system_fonts() -> tuple[Face, ...]:
    """Fonts of the system that may have what the packaged ones lack."""
    folders = [Path("C:/Windows/Fonts")] if sys.platform == "win32" else [Path("/usr/share/fonts")]
    found: dict[str, str] = {}
    for folder in folders:
        for path in folder.rglob("*.tt[fc]") if folder.is_dir() else ():
            found.setdefault(path.name, str(path))
    return tuple((found[name], 0) for name in _SYSTEM_FONTS if name in found)


@functools.cache
def _has_raqm() -> bool:
    return bool(features.check("raqm"))


@functools.lru_cache(maxsize=48)
def _font(face: Face, size: int) -> Font | None:
    """A face in a size, in pixels; None if it cannot be had."""
    file = _font_file(face[0])
    if file is None:
        return None
    layout = ImageFont.Layout.RAQM if _has_raqm() else ImageFont.Layout.BASIC
    try:
        return ImageFont.truetype(io.BytesIO(file) if isinstance(file, bytes) else file, size, face[1], "", layout)
    except OSError:
        return None


@functools.cache
def _box_of(face: Face) -> bytes | None:
    font = _font(face, 24)
    return bytes(font.getmask(_MISSING)) if font else None


@functools.lru_cache(maxsize=1 << 14)
def _has(face: Face, character: str) -> bool:
    font = _font(face, 24)
    return font is not None and (character.isspace() or bytes(font.getmask(character)) != _box_of(face))


def _east_asian_face(text: str, character_set: str) -> Face:
    """The face in which a text's Chinese characters look as its readers know them."""
    if any("\u3040" <= character <= "\u30ff" for character in text):
        return _EAST_ASIAN, _JAPANESE
    if any("\uac00" <= character <= "\ud7a3" or "\u1100" <= character <= "\u11ff" for character in text):
        return _EAST_ASIAN, _KOREAN
    if any(name in character_set for name in ("IR 87", "IR 159", "IR 13")):
        return _EAST_ASIAN, _JAPANESE
    return (_EAST_ASIAN, _KOREAN) if "IR 149" in character_set else (_EAST_ASIAN, _CHINESE)


def _runs(text: str, size: int, character_set: str) -> list[tuple[str, Font]]:
    """The text in pieces that one font has."""
    faces = [(_WESTERN, 0), _east_asian_face(text, character_set)]
    fallback: Font = _font(faces[0], size) or _font(faces[1], size) or ImageFont.load_default(size)
    if text.isascii() and isinstance(fallback, ImageFont.FreeTypeFont):
        return [(text, fallback)]
    if not _has_raqm():
        text = in_visual_order(text)
    runs: list[tuple[str, Font]] = []
    for character in text:
        current = runs[-1][1] if runs else None
        if current is not None and (character.isspace() or _is_joining(character)):
            font: Font = current
        else:
            face = next((face for face in (*faces, *_system_fonts()) if _has(face, character)), None)
            font = (_font(face, size) if face else None) or fallback
        if font is current:
            runs[-1] = runs[-1][0] + character, font
        else:
            runs.append((character, font))
    return runs


def _is_joining(character: str) -> bool:
    return "\u0300" <= character <= "\u036f" or character in "\u200c\u200d\ufe0e\ufe0f"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text[:_MAX_CHARACTERS])


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def _width(text: str, size: int, character_set: str) -> float:
    return sum(font.getlength(run) for run, font in _runs(text, size, character_set))


def _line_height(size: int) -> int:
    return size + max(size // 4, 2)


def _wrapped(texts: Iterable[str], width: float, size: int, character_set: str, most: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces, in words only where a word is too long; if there would be
    more than `most` of them, some more."""
    lines: list[str] = []
    for text in texts:
        if len(lines) > most:
            break
        lines += _wrapped_text(text, width, size, character_set, most + 1)
    return lines


def _wrapped_text(text: str, width: float, size: int, character_set: str, most: int) -> list[str]:
    lines: list[str] = []
    while text and len(lines) <= most:
        most = int(width / (size * 0.15)) + 1  # no letter is narrower
        if len(text) <= most and _width(text, size, character_set) <= width:
            return [*lines, text]
        fits, fits_not = 1, min(len(text), most) + 1
        while fits_not - fits > 1:
            middle = (fits + fits_not) // 2
            if _width(text[:middle], size, character_set) <= width:
                fits = middle
            else:
                fits_not = middle
        space = text.rfind(" ", 0, fits + 1)
        end = space if space > 0 else fits
        lines.append(text[:end].rstrip(" "))
        text = text[end:].lstrip(" ")
    return lines


def draw_text(
    picture: Image.Image,
    lines: Sequence[str],
    box: tuple[float, float, float, float],
    *,
    size: int | None = None,
    colour: Rgb = (255, 255, 255),
    align: Literal["left", "center", "right"] = "left",
    at_bottom: bool = False,
    character_set: str = "",
) -> float:
    """Draw lines of text into a box of the picture (left, top, right, bottom), in place.

    The text becomes smaller, down to 9 pixels, and is wrapped until it fits; what does not fit then ends in "…".
    Returns the height that it takes. `size`: of the letters, in pixels; by default in proportion to the picture. The
    colour is a grey for L pictures.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    lines = [_printable(line) for line in lines[: int(height / SMALLEST_LETTERS) + 1]]
    size = size or letter_size(picture.size)
    while True:
        fitting = max(int(height // _line_height(size)), 1)
        wrapped = _wrapped(lines, width, size, character_set, fitting)
        if len(wrapped) <= fitting or size <= SMALLEST_LETTERS:
            break
        size = max(size - max(size // 8, 1), SMALLEST_LETTERS)
    if len(wrapped) > fitting:
        wrapped = [*wrapped[: fitting - 1], wrapped[fitting - 1][:-1] + "…"]
    y = bottom - len(wrapped) * _line_height(size) if at_bottom else top
    for line in wrapped:
        runs = _runs(line, size, character_set)
        length = sum(font.getlength(run) for run, font in runs)
        x = left + {"left": 0.0, "center": (width - length) / 2, "right": width - length}[align]
        _draw_runs(picture, runs, x, y + size, size, colour)
        y += _line_height(size)
    return float(len(wrapped) * _line_height(size))


def _draw_runs(
    picture: Image.Image, runs: Iterable[tuple[str, Font]], x: float, baseline: float, size: int, colour: Rgb
) -> None:
    draw = ImageDraw.Draw(picture)
    is_dark = sum(colour) < 3 * 96
    fill: int | Rgb = colour if picture.mode == "RGB" else colour[0]
    outline = (255, 255, 255) if is_dark else (0, 0, 0)
    edge: int | Rgb = outline if picture.mode == "RGB" else outline[0]
    for run, font in runs:
        if isinstance(font, ImageFont.FreeTypeFont):
            draw.text(
                (x, baseline), run, fill, font, anchor="ls", stroke_width=max(round(size / 14), 1), stroke_fill=edge
            )
        else:
            draw.text((x, baseline - size), run, fill, font)
        x += font.getlength(run)


def text_size(lines: Sequence[str], size: int, character_set: str = "") -> tuple[float, float]:
    """Width and height of lines in letters of a size, outline included."""
    widest = max((_width(_printable(line), size, character_set) for line in lines), default=0.0)
    return widest + 2, float(len(lines) * _line_height(size))


def letter_size(picture_size: tuple[int, int]) -> int:
    """Letters that can be read when the picture is seen as a whole."""
    return min(max(round(min(picture_size) * 0.028), 12), _LARGEST)


# ---------------------------------------------------------------------------------------------------------------------
# Annotation of rendered images (PS3.18 8.3.5.1.1)


def annotate(
    picture: Image.Image, image: StoredImage, number: int, kinds: frozenset[str], window: Window | None
) -> None:
    """Burn in who the patient is (upper left) and how the image was made (lower left), in place."""
    margin = max(min(picture.size) // 64, 2)
    box = (margin, margin, picture.width - margin, picture.height - margin)
    character_set = "\\".join(str(term) for term in values.values(image.attributes, "SpecificCharacterSet"))
    patient = patient_lines(image.attributes) if "patient" in kinds else []
    technique = technique_lines(image, number, window) if "technique" in kinds else []
    used = draw_text(picture, patient, box, character_set=character_set) if patient else 0
    left = box[3] - box[1] - used
    if technique and left >= _line_height(SMALLEST_LETTERS):  # on a small picture, who it is comes first
        draw_text(picture, technique, (box[0], box[1] + used, *box[2:]), at_bottom=True, character_set=character_set)


def patient_lines(attributes: Attributes) -> list[str]:
    """Name (in every script it is given), ID, birth date and sex; what is empty is left out."""
    name = next((name for name in values.values(attributes, "PatientName") if isinstance(name, dict)), {})
    groups = (_name(name.get(group, "")) for group in ("Alphabetic", "Ideographic", "Phonetic"))
    lines = list(dict.fromkeys(group for group in groups if group))
    patient_id = values.string(attributes, "PatientID")
    born = _date(values.string(attributes, "PatientBirthDate"))
    details = [f"ID {patient_id}" if patient_id else "", f"*{born}" if born else ""]
    details.append(values.string(attributes, "PatientSex"))
    lines += ["  ".join(detail for detail in details if detail)] if any(details) else []
    return lines or ["Patient not named"]


def _name(group: str) -> str:
    """A component group as it is written: family name, given names; prefix and suffix last."""
    family, *others = (part.strip() for part in group.split("^"))
    given = " ".join(other for other in others if other)
    return ", ".join(part for part in (family, given) if part)


def _date(text: str) -> str:
    digits = text.replace(".", "")
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}" if len(digits) == 8 and digits.isdigit() else text


def technique_lines(image: StoredImage, number: int, window: Window | None) -> list[str]:
    """Modality and when; what was imaged; exposure or sequence; where the image belongs; window."""
    attributes = image.attributes
    date, time = values.string(attributes, "AcquisitionDate"), values.string(attributes, "AcquisitionTime")
    if not date:
        date, time = values.string(attributes, "ContentDate"), values.string(attributes, "ContentTime")
    if not date:
        date, time = values.string(attributes, "StudyDate"), values.string(attributes, "StudyTime")
    clock = f"{time[:2]}:{time[2:4]}" if len(time) >= 4 and time[:4].isdigit() else ""
    what = [values.string(image.find(number, name), name) for name in ("BodyPartExamined", "ViewPosition")]
    side = values.string(attributes, "ImageLaterality") or values.string(attributes, "Laterality")
    lines = [
        [values.string(attributes, "Modality"), _date(date), clock],
        [values.string(attributes, "SeriesDescription"), *what, side],
        [_quantity(image, number, *row) for row in _EXPOSURE],
        [_quantity(image, number, *row) for row in _GEOMETRY],
        [_counted(attributes, number, image.image.frames), f"C {window.center:g} W {window.width:g}" if window else ""],
    ]
    return [line for line in ("  ".join(part for part in parts if part) for parts in lines) if line]


# Keyword, text before, text after
_EXPOSURE: Final = (
    ("KVP", "", " kV"),
    ("XRayTubeCurrent", "", " mA"),
    ("ExposureTime", "", " ms"),
    ("Exposure", "", " mAs"),
    ("RepetitionTime", "TR ", ""),
    ("EchoTime", "TE ", ""),
    ("InversionTime", "TI ", ""),
    ("FlipAngle", "FA ", "°"),
    ("MagneticFieldStrength", "", " T"),
    ("MechanicalIndex", "MI ", ""),
    ("RadionuclideTotalDose", "", " Bq"),
)
_GEOMETRY: Final = (
    ("SliceThickness", "ST ", " mm"),
    ("SliceLocation", "SL ", " mm"),
)


def _quantity(image: StoredImage, number: int, keyword: str, before: str, after: str) -> str:
    value = values.number(image.find(number, keyword), keyword)
    if value is not None and keyword == "MagneticFieldStrength" and value > 50:
        value /= 10_000  # older scanners give gauss
    return f"{before}{value:.6g}{after}" if value is not None else ""


def _counted(attributes: Attributes, number: int, frames: int) -> str:
    series, instance = (values.number(attributes, name) for name in ("SeriesNumber", "InstanceNumber"))
    parts = [f"Se {series:g}" if series is not None else "", f"Im {instance:g}" if instance is not None else ""]
    parts.append(f"Fr {number}/{frames}" if frames > 1 else "")
    return " ".join(part for part in parts if part)
