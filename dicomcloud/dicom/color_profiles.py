"""ICC profiles of rendered images (PS3.18 8.3.5.1.5)."""

from __future__ import annotations

import functools
import io
import struct
from typing import Any, Final

from PIL import Image, ImageCms

from . import values
from .rendering_parameters import IccProfile
from .stored_image import StoredObject

_MAX_PROFILE: Final = 4 << 20
# Colorants in the profile connection space (D50), gamma in 1/256: Adobe RGB (1998), ROMM RGB (ISO 22028-2)
_SPACES: Final = {
    "adobergb": (
        "Adobe RGB (1998) compatible",
        ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)),
        0x0233,
    ),
    "rommrgb": (
        "ROMM RGB compatible",
        ((0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03135, 0.00009, 0.82521)),
        0x01CD,
    ),
}


def with_profile(picture: Image.Image, source: StoredObject, wanted: IccProfile | None) -> Image.Image:
    """The picture converted as wanted, its profile in `info["icc_profile"]`, from where `encode` takes it.

    None and "yes" keep the colours as they are: with the image's own profile, for "yes" else with sRGB, as which
    colours without a profile are seen. Grayscale images get none unless one is wanted; then they become RGB.
    """
    if wanted == "no" or (wanted is None and picture.mode != "RGB"):
        return picture
    own = _own_profile(source) if picture.mode == "RGB" else b""
    if wanted is None:
        profile = own
    elif wanted == "yes":
        profile = own or _profile("srgb")
    else:
        profile = _profile(wanted)
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        if (own or _profile("srgb")) != profile:
            converted = ImageCms.applyTransform(picture, _transform(own or _profile("srgb"), profile))
            picture = converted if converted is not None else picture
    if profile:
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        picture.info["icc_profile"] = profile
    return picture


def _own_profile(source: StoredObject) -> bytes:
    """The ICC Profile of the image, or of its first optical path; b"" if there is none that works."""
    attribute = source.attributes.get(values.key_of("ICCProfile"))
    if not attribute:
        attribute = values.item(source.attributes, "OpticalPathSequence").get(values.key_of("ICCProfile"))
    profile = source.octets(attribute)
    if not 128 < len(profile) <= _MAX_PROFILE:
        return b""
    profile = profile[: max(int.from_bytes(profile[:4], "big"), 128)]
    return profile if _is_usable(profile) else b""


@functools.lru_cache(maxsize=16)
def _is_usable(profile: bytes) -> bool:
    try:
        _transform(profile, _profile("srgb"))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=16)
def _transform(source: bytes, target: bytes) -> Any:
    return ImageCms.buildTransform(io.BytesIO(source), io.BytesIO(target), "RGB", "RGB")


@functools.cache
def _profile(name: str) -> bytes:
    if name == "srgb":
        return bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    return _matrix_profile(*_SPACES[name])


def _matrix_profile(name: str, colorants: tuple[tuple[float, float, float], ...], gamma: int) -> bytes:
    """A display profile of three colorants and one gamma (ICC.1:2001-04, 6.3.1.2)."""
    text = name.encode("ascii") + b"\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {
        b"desc": description,
        b"cprt": b"text" + bytes(4) + b"No copyright\0",
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
        **{key: _xyz(*colorant) for key, colorant in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(4) + struct.pack(">IH", 1, gamma)),
    }
    offset = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for key, data in tags.items():
        table += struct.pack(">4sII", key, offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += struct.pack(">6H4s", 2025, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + table + body


def _xyz(*components: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(component * 65536) for component in components))
