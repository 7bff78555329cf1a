"""What a client asks of a rendering: the query parameters of rendered resources (PS3.18 8.3.5.1) and of WADO-URI
(PS3.18 9.5.1.2). Bad values raise BadRequest, which names them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Final, Literal, NamedTuple, cast

from ..errors import BadRequest
from .attributes import is_uid

IccProfile = Literal["no", "yes", "srgb", "adobergb", "rommrgb"]
WindowFunction = Literal["linear", "linear-exact", "sigmoid"]

#: The longest side that can be asked for; JPEG and GIF have no larger ones.
MAX_SIDE: Final = 65_500

_UNSIGNED: Final = re.compile(r"[0-9]{1,9}")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(?:[eE][+-]?[0-9]{1,2})?")
_KEYWORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_ANNOTATIONS: Final = ("patient", "technique")
_FUNCTIONS: Final = ("linear", "linear-exact", "sigmoid")
_PROFILES: Final = ("no", "yes", "srgb", "adobergb", "rommrgb")


@dataclass(frozen=True, slots=True)
class Viewport:
    """The box that the image is to fill, in pixels, and the part of the image to be shown (PS3.18 8.3.5.1.3).

    `width` or `height` None: no limit on that side; both None: the image's own size. `x`, `y` and the source size are
    in pixels of the image, of its left upper corner and in size; a source size of None reaches to the edge, a negative
    one mirrors.
    """

    width: int | None = None
    height: int | None = None
    x: float = 0.0
    y: float = 0.0
    source_width: float | None = None
    source_height: float | None = None

    @property
    def shows_everything(self) -> bool:
        return not (self.x or self.y or self.source_width is not None or self.source_height is not None)


@dataclass(frozen=True, slots=True)
class Window:
    """Window center and width in the units of the modality LUT's output, and the function (PS3.3 C.11.2.1.2)."""

    center: float
    width: float
    function: WindowFunction = "linear"

    @property
    def is_valid(self) -> bool:
        """LINEAR needs a width of 1 or more, the others one above 0."""
        return 1 <= self.width < inf or (self.function != "linear" and 0 < self.width < inf)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What is asked for; by default the image as it is, in its own size.

    `region` is the part to be shown as fractions of the image (of a presentation state: of its displayed area): left,
    top, right, bottom. `quality` is 1 to 100 (see `rendering.encode`). `annotation`: what is burned in, "patient" and
    "technique". `icc_profile` None is for the server to choose.
    """

    viewport: Viewport | None = None
    window: Window | None = None
    quality: int | None = None
    annotation: frozenset[str] = field(default_factory=frozenset)
    icc_profile: IccProfile | None = None
    region: tuple[float, float, float, float] | None = None


class UriRendering(NamedTuple):
    """What a WADO-URI request asks of a rendering."""

    rendering: Rendering
    frame: int | None  # from 1
    presentation_state: tuple[str, str] | None  # Series and SOP Instance UID


def parse_rendering(pairs: Iterable[tuple[str, str]]) -> tuple[Rendering, list[str]]:
    """The query parameters of a rendered or thumbnail resource, and warning texts. Other parameters are left alone.

    Raises BadRequest naming the value.
    """
    given = _single(pairs, ("annotation", "quality", "viewport", "window", "iccprofile"))
    warnings: list[str] = []
    rendering = Rendering(
        viewport=_viewport(given["viewport"]) if "viewport" in given else None,
        window=_window(given["window"]) if "window" in given else None,
        quality=_quality("quality", given["quality"]) if "quality" in given else None,
        annotation=_annotation("annotation", given["annotation"], warnings) if "annotation" in given else frozenset(),
        icc_profile=_icc_profile(given["iccprofile"]) if "iccprofile" in given else None,
    )
    return rendering, warnings


def parse_uri_rendering(pairs: Iterable[tuple[str, str]]) -> tuple[UriRendering, list[str]]:
    """The rendering parameters of a WADO-URI request (PS3.18 9.5.1.2), and warning texts.

    Raises BadRequest naming the value, and for parameters that exclude each other: a presentation state goes with
    annotation, imageQuality, region, rows and columns only.
    """
    given = _single(
        pairs,
        ("annotation", "imageAnnotation", "imageQuality", "rows", "columns", "region", "windowCenter", "windowWidth")
        + ("frameNumber", "presentationUID", "presentationSeriesUID"),
    )
    warnings: list[str] = []
    annotation: frozenset[str] = frozenset()
    for name in ("annotation", "imageAnnotation"):  # PS3.18 calls it both
        if name in given:
            annotation |= _annotation(name, given[name], warnings)
    rows, columns = (_side(name, given[name]) if name in given else None for name in ("rows", "columns"))
    window = None
    if "windowCenter" in given or "windowWidth" in given:
        if "windowCenter" not in given or "windowWidth" not in given:
            raise BadRequest("windowCenter and windowWidth must be given together")
        center = _decimal("windowCenter", given["windowCenter"])
        window = _checked(Window(center, _decimal("windowWidth", given["windowWidth"])), given["windowWidth"])
    rendering = Rendering(
        viewport=Viewport(columns, rows) if rows or columns else None,
        window=window,
        quality=_quality("imageQuality", given["imageQuality"]) if "imageQuality" in given else None,
        annotation=annotation,
        region=_region(given["region"]) if "region" in given else None,
    )
    frame = _positive("frameNumber", given["frameNumber"]) if "frameNumber" in given else None
    return UriRendering(rendering, frame, _presentation_state(given)), warnings


def _presentation_state(given: dict[str, str]) -> tuple[str, str] | None:
    names = ("presentationSeriesUID", "presentationUID")
    if not any(name in given for name in names):
        return None
    for name in names:
        if name not in given:
            raise BadRequest("presentationUID and presentationSeriesUID must be given together")
        if not is_uid(given[name]):
            raise BadRequest(f"{name} is not a UID: {given[name][:80]!r}")
    for name in ("frameNumber", "windowCenter"):
        if name in given:
            raise BadRequest(f"{name} cannot be given together with a presentation state")
    return given[names[0]], given[names[1]]


# ---------------------------------------------------------------------------------------------------------------------
# Values


def _single(pairs: Iterable[tuple[str, str]], names: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in pairs:
        if name in names:
            if name in given:
                raise BadRequest(f"The parameter {name} is given more than once")
            given[name] = value
    return given


def _annotation(name: str, value: str, warnings: list[str]) -> frozenset[str]:
    keywords = [keyword.strip() for keyword in value.split(",")]
    for keyword in keywords:
        if not _KEYWORD.fullmatch(keyword):
            raise BadRequest(f"{name} must be patient, technique or both with a comma, not {value[:80]!r}")
    unsupported = [keyword for keyword in keywords if keyword not in _ANNOTATIONS]
    if unsupported:
        # The text of PS3.18 8.3.5.1.1
        warnings.append(f"The following annotation values are not supported: {', '.join(unsupported)[:200]}")
    return frozenset(keywords) - frozenset(unsupported)


def _quality(name: str, value: str) -> int:
    if not _UNSIGNED.fullmatch(value) or not 1 <= int(value) <= 100:
        raise BadRequest(f"{name} must be a whole number from 1 to 100, not {value[:40]!r}")
    return int(value)


def _positive(name: str, value: str) -> int:
    if not _UNSIGNED.fullmatch(value) or int(value) == 0:
        raise BadRequest(f"{name} must be a whole number above 0, not {value[:40]!r}")
    return int(value)


def _side(name: str, value: str) -> int:
    if _UNSIGNED.fullmatch(value) is None and value.isascii() and value.isdigit() and value.strip("0"):
        raise BadRequest(f"{name} is larger than {MAX_SIDE}: {value[:40]}")
    side = _positive(name, value)
    if side > MAX_SIDE:
        raise BadRequest(f"{name} is larger than {MAX_SIDE}: {side}")
    return side


def _decimal(name: str, value: str) -> float:
    if not _DECIMAL.fullmatch(value):
        raise BadRequest(f"{name} must be a decimal number, not {value[:40]!r}")
    return float(value)


def _viewport(value: str) -> Viewport:
    parts = value.split(",")
    if not 2 <= len(parts) <= 6 or not parts[-1]:
        raise BadRequest(f"viewport must be vw,vh or vw,vh,sx,sy,sw,sh, not {value[:80]!r}")
    width, height = (_side("viewport", part) for part in parts[:2])
    numbers = [_decimal("viewport", part) if part else None for part in parts[2:]] + [None] * 4
    x, y, source_width, source_height = numbers[:4]
    if (x or 0) < 0 or (y or 0) < 0 or source_width == 0 or source_height == 0:
        raise BadRequest(f"viewport shows nothing of the image: {value[:80]!r}")
    return Viewport(width, height, x or 0.0, y or 0.0, source_width, source_height)


def _window(value: str) -> Window:
    parts = value.split(",")
    if len(parts) != 3:
        raise BadRequest(f"window must be center,width,function, not {value[:80]!r}")
    center, width = (_decimal("window", part) for part in parts[:2])
    if parts[2] not in _FUNCTIONS:
        raise BadRequest(f"The function of window must be one of {', '.join(_FUNCTIONS)}, not {parts[2][:40]!r}")
    return _checked(Window(center, width, cast(WindowFunction, parts[2])), value)


def _checked(window: Window, value: str) -> Window:
    if not window.is_valid:
        least = "at least 1" if window.function == "linear" else "above 0"  # PS3.3 C.11.2.1.2, C.11.2.1.3
        raise BadRequest(f"The window's width must be {least}: {value[:80]!r}")
    return window


def _icc_profile(value: str) -> IccProfile:
    profile = value.partition(",")[0].strip()  # PS3.18 calls it a list; all of them are available
    if profile not in _PROFILES:
        raise BadRequest(f"iccprofile must be one of {', '.join(_PROFILES)}, not {value[:40]!r}")
    return cast(IccProfile, profile)


def _region(value: str) -> tuple[float, float, float, float]:
    parts = value.split(",")
    if len(parts) != 4:
        raise BadRequest(f"region must be xmin,ymin,xmax,ymax, not {value[:80]!r}")
    left, top, right, bottom = (_decimal("region", part) for part in parts)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise BadRequest(f"region must lie within 0.0 and 1.0, its minimum below its maximum: {value[:80]!r}")
    return left, top, right, bottom
