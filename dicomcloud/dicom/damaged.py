"""Values of data sets that contradict themselves, as pydicom reads them."""

from __future__ import annotations

from typing import Any, BinaryIO, Final

from .recode import swapped

_WIDTHS: Final = {
    **dict.fromkeys(("AT", "OW", "SS", "US"), 2),
    **dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}


def read_damaged_value(source: BinaryIO, path: str) -> bytes:
    """The value at `path` (as in BulkValue) of a PS3.10 file, little endian. Raises LookupError if there is none."""
    import pydicom

    steps = path.strip("/").split("/")
    dataset: Any = pydicom.dcmread(source, force=True)
    for tag, number in zip(steps[:-1:2], steps[1::2], strict=True):
        dataset = dataset[int(tag, 16)].value[int(number) - 1]
    raw = dataset.get_item(int(steps[-1], 16))
    if raw is None:
        raise LookupError(f"there is no value at {path}")
    value = raw.value or b""
    if not isinstance(value, bytes):
        raise LookupError(f"the value at {path} is not bytes")
    little = getattr(raw, "is_little_endian", True)
    return value if little else swapped(value, _WIDTHS.get(raw.VR, 1))
