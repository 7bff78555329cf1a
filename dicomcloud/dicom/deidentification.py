"""De-identification after PS3.15 Annex E: the Basic Profile and its options, driven by the Standard's own tables.

    Deidentifier(options, key).deidentify(source, target)   a whole PS3.10 file
    Deidentifier(options, key).apply(dataset)               the attributes of a pydicom data set, in place

The effective action of every attribute under the chosen options is one look-up in a table that is made once. Values are
replaced as raw bytes, so what stays is written as it was read, and pixel data are copied through unseen.
`protection.py` walks the data set, `pixel_cleaning.py` blacks out regions, `dicom_file.py` reads and writes.

Replacement UIDs, patient pseudonyms and date shifts are HMACs under a key: nothing is remembered, and the same input
gives the same output in every process. docs/deidentification.md is the part of the conformance statement that
PS3.15 E.1.3 asks for.
"""

from __future__ import annotations

import base64
import functools
import hmac
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from dicomcloud import __version__
from dicomcloud.dicom import pixel_cleaning
from dicomcloud.dicom.confidentiality_profile import (
    Option,
    edition,
    parse_options,
    profile,
    resolved,
    structured_content,
)
from dicomcloud.dicom.dicom_file import DamagedFile, DicomFile, file_meta
from dicomcloud.dicom.pixel_cleaning import CannotClean, PixelRule
from dicomcloud.dicom.pixel_data import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, CannotDecode
from dicomcloud.dicom.protection import Protection, Report
from dicomcloud.dicom.raw_elements import CannotDeidentify, get, integer, vr_of_element
from dicomcloud.dicom.text_cleaning import TooManyValues
from dicomcloud.errors import InvalidInstance

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["CannotDeidentify", "Deidentifier", "Option", "PixelRule", "Report", "edition", "parse_options"]

_SHORTEST_KEY: Final = 16


@functools.cache
def _registered_uids() -> frozenset[str]:
    """The UIDs of PS3.6 Annex A: classes, syntaxes, well-known frames of reference, coding schemes …"""
    from pydicom._uid_dict import UID_dictionary

    return frozenset(UID_dictionary)


class Deidentifier:
    """De-identifies instances under fixed options and one key. Holds no state between instances; threads may share it.

    `options` add to the Basic Profile, which is always applied. `key`: at least 16 secret bytes; whoever has it can
    test a guess at an identity, and with another key the same patient gets another pseudonym. `pixel_rules` say what
    CleanPixelData blacks out. Deflated data sets are inflated to at most `max_inflated` bytes.
    Raises ValueError for a short key, or for both options on dates.
    """

    def __init__(
        self,
        options: Iterable[Option],
        key: bytes,
        *,
        pixel_rules: Sequence[PixelRule] = (),
        max_inflated: int = 1 << 30,
    ) -> None:
        self.options = frozenset(options) | {Option.BasicProfile}
        if {Option.RetainLongFullDates, Option.RetainLongModifDates} <= self.options:
            raise ValueError("RetainLongFullDates and RetainLongModifDates exclude each other (PS3.15 E.3.6)")
        if len(key) < _SHORTEST_KEY:
            raise ValueError(f"The key has less than {_SHORTEST_KEY} bytes")
        self._key = key
        self._pixel_rules = tuple(pixel_rules)
        self._max_inflated = max_inflated
        #: Another one when copies of the same original would differ: by version, options, rules or key.
        self.fingerprint = self._digest(
            "fingerprint", __version__, edition(), repr(sorted(map(str, self.options))), repr(self._pixel_rules)
        )[:12].hex()
        self.actions = {tag: resolved(row, self.options) for tag, row in profile().items()}
        self.content_actions = {
            code: resolved(row, self.options - {Option.CleanStructdCont}) for code, row in structured_content().items()
        }

    def uid(self, original: str) -> str:
        """The replacement of a UID: 2.25 and a version 8 UUID (PS3.5 B.2); registered UIDs stay as they are."""
        if not original or original in _registered_uids() or Option.RetainUIDs in self.options:
            return original
        digest = bytearray(self._digest("uid", original)[:16])
        digest[6] = digest[6] & 0x0F | 0x80
        digest[8] = digest[8] & 0x3F | 0x80
        return f"2.25.{int.from_bytes(digest, 'big')}"

    def pseudonym(self, *identity: str) -> str:
        """Patient ID and name of the de-identified patient: one per identity, 80 bits of it."""
        return "ANON-" + base64.b32encode(self._digest("patient", *identity)[:10]).decode()

    def days(self, *identity: str) -> int:
        """By how many days the dates of this patient are moved: between 1 and 3652 days into the past."""
        return 1 + int.from_bytes(self._digest("dates", *identity)[:8], "big") % 3652

    def opaque(self, kind: str, text: str) -> str:
        """A short name that says nothing about `text` (Application Entity Titles, folders); 50 bits."""
        return base64.b32encode(self._digest(kind, text)[:7]).decode()[:10]

    def _digest(self, *parts: str) -> bytes:
        return hmac.digest(self._key, "\0".join(parts).encode("utf-8", "surrogatepass"), "sha256")

    def apply(self, dataset: Dataset) -> Report:
        """De-identify the attributes of `dataset` in place; Pixel Data are left as they are.

        Raises CannotDeidentify, after which `dataset` is in no state to be used, and ValueError when the options ask
        for clean pixel data, which `deidentify` alone does.
        """
        if Option.CleanPixelData in self.options:
            raise ValueError("Clean Pixel Data needs the whole file: use deidentify()")
        with _faults_told():
            run = Protection(self, dataset)
            if run.embedded_overlay_bits:
                raise CannotDeidentify("Overlays lie in unused bits of the Pixel Data: use deidentify()")
            return run.finish(pixels_cleaned=False)

    def deidentify(self, source: BinaryIO, target: BinaryIO) -> Report:
        """Write the de-identified copy of a DICOM file.

        `source` is seekable; `target` is only written to, and only after the whole data set before the pixel data was
        de-identified. The transfer syntax stays, but deflated data sets, and pixels that had to be decoded in order
        to be cleaned, become Explicit VR Little Endian. What follows the Pixel Data (signatures, padding, private
        groups) is dropped. Raises CannotDeidentify.
        """
        with tempfile.SpooledTemporaryFile(64 << 20) as inflated:
            with _faults_told():
                file = DicomFile.open(source)
                if file.transfer_syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
                    file = file.converted(inflated, self._max_inflated)
                dataset = file.read_dataset()
                rule = self._pixel_rule(dataset) if file.has_pixels else None
                run = Protection(self, dataset)
                work = file.has_pixels and (bool(rule and rule.regions) or run.embedded_overlay_bits != 0)
                if work and file.encapsulated:
                    file = file.converted(inflated, self._max_inflated)
                    dataset = file.read_dataset()
                    run = Protection(self, dataset)
                image = pixel_cleaning.Image.of(_numbers_of(dataset), file.little_endian) if work else None
                report = run.finish(pixels_cleaned=rule is not None)
                head = file_meta(report.sop_class_uid or file.sop_class, report.sop_instance_uid, file.transfer_syntax)
                body = file.encode(dataset)
                file.check_pixels(image)
            target.write(head)
            target.write(body)
            try:
                file.copy_pixels(target, image, rule.regions if rule else (), run.embedded_overlay_bits)
            except (CannotClean, DamagedFile) as error:
                raise CannotDeidentify(str(error)) from None
        return report

    def _pixel_rule(self, dataset: Dataset) -> PixelRule | None:
        """The rule for this image, if pixels are to be cleaned. Raises CannotDeidentify for a risk without a rule."""
        if Option.CleanPixelData not in self.options:
            return None
        known = _texts_of(dataset)
        rule = pixel_cleaning.matching_rule(self._pixel_rules, known)
        if rule is None and pixel_cleaning.is_at_risk(known):
            raise CannotDeidentify(
                "Text may be burned into the pixels (ultrasound, secondary capture or BurnedInAnnotation YES), and no "
                "rule says where: add a rule for this device to the pixel rules"
            )
        return rule


class _faults_told:
    """Whatever hostile data make pydicom or this module raise becomes CannotDeidentify, without the values in it."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, CannotDeidentify | MemoryError):
            return
        if isinstance(error, CannotDecode | CannotClean | DamagedFile | InvalidInstance):
            raise CannotDeidentify(str(error)) from None
        if isinstance(error, TooManyValues):
            raise CannotDeidentify("The data set names too many different persons") from None
        if isinstance(error, RecursionError):
            raise CannotDeidentify("Sequences are nested too deeply") from None
        raise CannotDeidentify(f"The data set cannot be understood ({type(error).__name__})") from None


def _texts_of(dataset: Dataset) -> dict[str, str]:
    """What pixel rules ask for, as text."""
    found = {}
    for keyword, tag in pixel_cleaning.RULE_ATTRIBUTES.items():
        element = get(dataset, tag)
        if element is None or element.value is None:
            found[keyword] = ""
        elif isinstance(element.value, bytes) and vr_of_element(element) == "US":
            found[keyword] = str(integer(element))
        elif isinstance(element.value, bytes):
            found[keyword] = element.value.decode("latin-1").strip(" \0")
        else:
            found[keyword] = str(element.value)
    return found


def _numbers_of(dataset: Dataset) -> Callable[[int], str]:
    """A look-up of Image Pixel attributes by tag, as text; empty for those that are missing."""

    def look_up(tag: int) -> str:
        element = get(dataset, tag)
        if element is None or element.value is None:
            return ""
        if isinstance(element.value, bytes):
            if vr_of_element(element) in ("US", "SS"):
                return str(integer(element)) if element.value else ""
            return element.value.decode("latin-1").strip(" \0")
        return str(element.value)

    return look_up
