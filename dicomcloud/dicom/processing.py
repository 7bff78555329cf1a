"""What programs of others do to a data set when it is stored: they see its attributes, and change or refuse it.

A processor is a function of a pydicom Dataset that holds the attributes without bulk data (no Pixel Data). It may set,
change and remove attributes, and raises ValueError to have the instance refused with that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import FailureReason, InvalidInstance
from .encoding import label

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_FIXED: Final = frozenset({0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00080005, 0x04000561})
#: The attribute goes; stands in the place of a value.
REMOVED: Final = "removed"


class Processor(NamedTuple):
    name: str
    process: Callable[[Dataset], None]


def processed(processors: Sequence[Processor], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What the processors, one after the other, change of these attributes (DICOM JSON): the new ones by key.

    A removed attribute has `{"vr": …, "removed": True}`. Raises InvalidInstance when one of them refuses the instance,
    fails, or changes what an archive may not change: the UIDs, the SOP class, the character set, bulk data.
    """
    from pydicom.dataset import Dataset

    plain = {key: element for key, element in attributes.items() if not _is_bulk(element)}
    dataset = Dataset.from_json(plain)
    before = _json(dataset)
    for processor in processors:
        try:
            processor.process(dataset)
        except ValueError as error:
            raise _refused(attributes, f"{error}") from None
        except Exception as error:
            raise _refused(attributes, f"the processor {processor.name} failed ({type(error).__name__})") from error
    after = _json(dataset)
    changes = {key: element for key, element in after.items() if before.get(key) != element}
    changes |= {key: {"vr": before[key]["vr"], REMOVED: True} for key in before.keys() - after.keys()}
    for key, element in changes.items():
        tag = int(key, 16)
        if tag in _FIXED or tag >> 16 < 8 or tag >> 16 >= 0x7FE0 or key in attributes.keys() - plain.keys():
            raise _refused(attributes, f"a processor may not change {label(tag)}")
        if _is_bulk(element) or "InlineBinary" in element:
            raise _refused(attributes, f"a processor may not set binary values such as {label(tag)}")
    return changes


def _json(dataset: Dataset) -> dict[str, Any]:
    made: dict[str, Any] = dataset.to_json_dict(bulk_data_threshold=1 << 30)
    return made


def _is_bulk(element: Mapping[str, Any]) -> bool:
    """Whether a value, or one in a sequence, is only a reference or bytes."""
    if "BulkDataURI" in element or "InlineBinary" in element:
        return True
    if element.get("vr") != "SQ":
        return False
    return any(_is_bulk(inner) for item in element.get("Value", ()) for inner in (item or {}).values())


def _refused(attributes: Mapping[str, Any], message: str) -> InvalidInstance:
    def uid(key: str) -> str | None:
        values = attributes.get(key, {}).get("Value")
        return str(values[0]) if values else None

    return InvalidInstance(
        FailureReason.PROCESSING_FAILURE,
        f"Not stored: {message}",
        sop_class_uid=uid("00080016"),
        sop_instance_uid=uid("00080018"),
    )
