"""De-identification after PS3.15 Annex E: the Basic Profile and its options, driven by the Standard's own tables.

    Deidentifier(options, key).deidentify(source, target)   a whole PS3.10 file
    Deidentifier(options, key).apply(dataset)               the attributes of a pydicom data set, in place

The effective action of every attribute under the chosen options is one look-up in a table that is made once. Values are
replaced as raw bytes, so what stays is written as it was read, and pixel data are copied through unseen.

Replacement UIDs, patient pseudonyms and date shifts are HMACs under a key: nothing is remembered, and the same input
gives the same output in every process. docs/deidentification.md is the part of the conformance statement that
PS3.15 E.1.3 asks for.
"""

from __future__ import annotations

import base64
import functools
import hmac
import re
import tempfile
from collections.abc import Callable, Iterable, MutableSequence, Sequence, Sized
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from dicomcloud import __version__
from dicomcloud.dicom import pixel_cleaning
from dicomcloud.dicom.attributes import VR_BY_TAG, keyword_of, vr_of
from dicomcloud.dicom.confidentiality_profile import (
    Action,
    Option,
    edition,
    parse_options,
    profile,
    resolved,
    safe_private,
    structured_content,
)
from dicomcloud.dicom.dicom_file import DamagedFile, DicomFile, file_meta
from dicomcloud.dicom.pixel_cleaning import CannotClean, PixelRule
from dicomcloud.dicom.pixel_data import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, CannotDecode
from dicomcloud.dicom.text_cleaning import IdentifyingValues, TooManyValues
from dicomcloud.errors import InvalidInstance

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.dataset import Dataset

    Element = DataElement | RawDataElement

_MAX_DEPTH: Final = 64  # of nested sequences
_MOST_ITEMS: Final = 500_000
_UNDEFINED: Final = 0xFFFFFFFF
_SHORTEST_KEY: Final = 16


class CannotDeidentify(Exception):
    """The instance cannot be de-identified; the message says why and holds no value of the instance."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one instance. `original_sop_instance_uid` leads back to the patient: keep it apart."""

    original_sop_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    pixel_data_cleaned: bool = False


# UI attributes that name a class, a syntax or a scheme, not an instance: PS3.15 E.3.9 note.
_CLASS_UID = re.compile("SOPClass|TransferSyntax|CodingSchemeUID|^ContextUID|CreatorUID|CreatorVersionUID|MappingRes")
_DATES: Final = frozenset({"DA", "DT", "TM"})
_TEXTS: Final = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_BYTES: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_NUMBERS: Final = {"AT": 4, "FD": 8, "FL": 4, "SL": 4, "SS": 2, "SV": 8, "UL": 4, "US": 2, "UV": 8}
_DUMMIES: Final = {
    "AE": "REMOVED",
    "AS": "000Y",
    "CS": "REMOVED",
    "DA": "19000101",
    "DS": "0",
    "DT": "19000101000000",
    "IS": "0",
    "PN": "Removed",
    "TM": "000000",
    "UR": "http://removed.invalid",
}
_DUMMY_TEXT: Final = "REMOVED"
_CHARACTER_SET, _SOP_CLASS, _SOP_INSTANCE = 0x00080005, 0x00080016, 0x00080018
_PATIENT_NAME, _PATIENT_ID, _ISSUER, _BIRTH_DATE = 0x00100010, 0x00100020, 0x00100021, 0x00100030
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_REFERENCED_STUDIES: Final = 0x00081110  # Type 3 in the General Study Module, where an empty one is no sequence
_IDENTITY_REMOVED, _METHOD, _METHOD_CODES, _DATES_MODIFIED = 0x00120062, 0x00120063, 0x00120064, 0x00280303
_CODE_VALUE, _SCHEME, _CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_LONG_CODE, _URN_CODE = 0x00080119, 0x00080120
_CODE_TRIPLET: Final = frozenset({_CODE_VALUE, _SCHEME, 0x00080103, _CODE_MEANING, _LONG_CODE, _URN_CODE})
_VALUE_TYPE, _CONCEPT_NAME, _CONTENT, _BY_REFERENCE = 0x0040A040, 0x0040A043, 0x0040A730, 0x0040DB73
_ENCAPSULATED_DOCUMENT, _DOCUMENT_LENGTH, _DOCUMENT_TYPE = 0x00420011, 0x00420015, 0x00420012
_ANNOTATION_TEXT, _GRAPHIC_OBJECTS, _COMPOUND_GRAPHICS = 0x00700006, 0x00700009, 0x00700209
_BURNED_IN: Final = 0x00280301
# The values of an item are in these; a content item has the one of its value type (PS3.3 C.18).
_CONTENT_TEXT: Final = 0x0040A160
# Sequences whose codes are structure, not finding, when their surroundings are replaced by dummies: names of content
# items, units, qualifiers, purposes, templates, codes of findings (checked by E.3.4-1 where they are patient data).
_STRUCTURAL_CODES: Final = frozenset(
    {0x0040A043, 0x004008EA, 0x0040A168, 0x0040A195, 0x0040A301, 0x0040A170, 0x0040A504}
)
# Texts of the Standard's own vocabulary, and those written here.
_NOT_SWEPT: Final = frozenset({_PATIENT_NAME, _PATIENT_ID, _SCHEME, _CODE_VALUE, _DOCUMENT_TYPE, _METHOD})
# Identifiers of the patient and of visits: looked for in every text that stays.
_PATIENT_IDENTIFIERS: Final = frozenset(
    {_PATIENT_ID, 0x00101000, 0x00080050, 0x00380010, 0x00101090, 0x00102154, 0x00101040, 0x00380060, _BIRTH_DATE}
)


@functools.cache
def _registered_uids() -> frozenset[str]:
    """The UIDs of PS3.6 Annex A: classes, syntaxes, well-known frames of reference, coding schemes …"""
    from pydicom._uid_dict import UID_dictionary

    return frozenset(UID_dictionary)


# ---------------------------------------------------------------------------------------------------------------------
# The de-identifier


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
            run = _Run(self, dataset)
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
                run = _Run(self, dataset)
                work = file.has_pixels and (bool(rule and rule.regions) or run.embedded_overlay_bits != 0)
                if work and file.encapsulated:
                    file = file.converted(inflated, self._max_inflated)
                    dataset = file.read_dataset()
                    run = _Run(self, dataset)
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


# ---------------------------------------------------------------------------------------------------------------------
# One instance


@dataclass(frozen=True, slots=True)
class _Context:
    """Where in the data set the walk is."""

    depth: int = 0
    encodings: tuple[str, ...] = ("iso8859",)
    dummy: bool = False  # inside a sequence that is replaced: every leaf becomes a dummy
    codes_stay: bool = False  # … but for codes of public schemes
    clean: bool = False  # inside a sequence that is cleaned: texts are cleaned


class _Run:
    """De-identifies one data set: protects attributes, then cleans texts of the values that were found on the way."""

    def __init__(self, deidentifier: Deidentifier, dataset: Dataset) -> None:
        self._by = deidentifier
        self._options = deidentifier.options
        self._dataset = dataset
        self._texts: list[tuple[Dataset, int, _Context]] = []  # to be cleaned when all values are known
        self._found = IdentifyingValues(
            deidentifier.uid,
            keep_dates=Option.RetainLongFullDates in self._options,
            keep_ages=Option.RetainPatientChars in self._options,
        )
        self.embedded_overlay_bits = 0
        self._has_references = False
        self._seen: dict[int, Dataset] = {}
        self._original = {
            tag: self._first(dataset, tag)
            for tag in (_SOP_CLASS, _SOP_INSTANCE, _SERIES, _STUDY, _PATIENT_NAME, _PATIENT_ID, _ISSUER, _BIRTH_DATE)
        }
        if not self._original[_SOP_INSTANCE]:
            raise CannotDeidentify("The instance has no SOP Instance UID")
        self._identity = self._identify()
        self._days = deidentifier.days(*self._identity)
        self._protect(dataset, _Context())
        self._clean_texts()
        self._sweep(dataset, _Context())

    def _first(self, dataset: Dataset, tag: int) -> str:
        element = _get(dataset, tag)
        values = self._values(element, _Context(encodings=_encodings(dataset, ("iso8859",)))) if element else []
        return values[0] if values else ""

    def _identify(self) -> tuple[str, ...]:
        """What tells this patient from others: issuer and ID, else name and birth date, else the study."""
        known = self._original
        if known[_PATIENT_ID]:
            return ("id", known[_ISSUER], known[_PATIENT_ID])
        if known[_PATIENT_NAME]:
            return ("name", known[_PATIENT_NAME], known[_BIRTH_DATE])
        return ("study", known[_STUDY])

    # The walk

    def _protect(self, dataset: Dataset, context: _Context) -> None:
        if context.depth > _MAX_DEPTH:
            raise CannotDeidentify(f"Sequences are nested more than {_MAX_DEPTH} deep")
        if id(dataset) in self._seen:
            return  # an item that is in several sequences of a data set made in memory
        self._seen[id(dataset)] = dataset
        context = replace(context, encodings=_encodings(dataset, context.encodings))
        actions = self._by.actions
        overlays = set()
        for element in list(dataset.elements()):
            tag = int(element.tag)
            group = tag >> 16
            if group & 1:
                continue  # private: below, when the creators are known
            if element.is_raw and element.length not in (_UNDEFINED, len(element.value or b"")):  # type: ignore[union-attr]
                raise CannotDeidentify("The data set ends in the middle of a value")
            action = actions.get(tag)
            vr = _vr(element)
            if context.clean and tag == _ANNOTATION_TEXT:
                action = Action.CLEAN_TEXT
            if action is None:
                if 0x6000 <= group <= 0x60FF:
                    overlays.add(group)
                    continue
                if not tag & 0xFFFF or group < 8 or 0x5000 <= group <= 0x50FF or tag not in VR_BY_TAG:
                    del dataset[element.tag]  # group lengths, stray groups, curves, attributes that nobody knows
                    continue
                action = self._unlisted(tag, vr)
            if vr == "SQ":
                self._sequence(dataset, element, action, context)
            elif action is None:
                if context.dummy or context.clean:
                    self._within(dataset, element, vr, context)
            else:
                self._leaf(dataset, element, vr, action, context)
        for group in sorted(overlays):
            self._overlay(dataset, group, context)
        self._private(dataset, context)

    def _unlisted(self, tag: int, vr: str) -> Action | None:
        """Attributes that Table E.1-1 does not list, by their VR (PS3.15 E.1.1); None: they stay."""
        if vr == "UI":
            return None if _CLASS_UID.search(keyword_of(tag)) else Action.UID
        if vr == "PN":
            return Action.DUMMY
        if vr in _DATES:
            if Option.RetainLongFullDates in self._options:
                return Action.KEEP
            return Action.SHIFT_DATE if Option.RetainLongModifDates in self._options else Action.DUMMY
        return None

    def _sequence(self, dataset: Dataset, element: Element, action: Action | None, context: _Context) -> None:
        tag = int(element.tag)
        items = self._items(dataset, element)
        if action in (Action.REMOVE, Action.EMPTY):
            for item in items:
                self._remember_all(item, context)
            if action is Action.REMOVE or (tag == _REFERENCED_STUDIES and context.depth == 0):
                del dataset[element.tag]
            else:
                _put(dataset, tag, "SQ", [])
            return
        inside = replace(context, depth=context.depth + 1)
        if action is Action.DUMMY:
            inside = replace(inside, dummy=True, codes_stay=False)
        elif action in (Action.CLEAN_TEXT, Action.CLEAN_GRAPHIC):
            inside = replace(inside, clean=True)
        if action is Action.CLEAN_CONTENT or tag == _CONTENT:
            self._content_items(dataset, tag, items, inside)
            return
        if inside.dummy and action is None:
            if tag == _COMPOUND_GRAPHICS:
                del dataset[element.tag]
                return
            if tag == _GRAPHIC_OBJECTS:
                for item in items:
                    _make_point(item)
                return
            inside = replace(inside, codes_stay=tag in _STRUCTURAL_CODES)
        for item in items:
            self._protect(item, inside)

    def _items(self, dataset: Dataset, element: Element) -> list[Dataset]:
        """The items; those of a raw value are parsed, and any Unknown that is a sequence too."""
        if element.is_raw:
            _check_items(element.value or b"")
            element = dataset[element.tag]
        if element.VR != "SQ":
            raise CannotDeidentify("A sequence is not encoded as one")
        return list(element.value or [])

    def _within(self, dataset: Dataset, element: Element, vr: str, context: _Context) -> None:
        """A leaf that no table names, inside a sequence that is replaced or cleaned."""
        tag = int(element.tag)
        if not context.dummy:
            is_code = tag in _CODE_TRIPLET and (
                tag != _CODE_MEANING or _is_public_scheme(self._first(dataset, _SCHEME))
            )
            if vr in _TEXTS and not is_code:
                self._texts.append((dataset, tag, context))
            return
        if tag in _CODE_TRIPLET:
            if context.codes_stay and _is_public_scheme(self._first(dataset, _SCHEME)):
                return
            self._remember(tag, vr, self._values(element, context))
            if tag == _SCHEME and element.value:
                self._set(dataset, element, vr, "99REMOVED", context)
                return
        if vr in _TEXTS or vr in _BYTES or vr == "DS":
            self._leaf(dataset, element, vr, Action.DUMMY, context)

    def _leaf(self, dataset: Dataset, element: Element, vr: str, action: Action, context: _Context) -> None:
        tag = int(element.tag)
        if action is Action.KEEP or _is_empty(element):
            if action is Action.REMOVE:
                del dataset[element.tag]
            return
        if action is Action.UID:
            self._replace_uids(dataset, element, vr, context)
            return
        if action is Action.CLEAN_TEXT:
            if vr in _TEXTS:
                self._texts.append((dataset, tag, context))
                return
            action = profile()[tag].basic  # nothing to be cleaned in Maker Note and the like
        if action is Action.SHIFT_DATE:
            if vr == "TM" or tag == 0x00080201:  # whole days are shifted: times and time zone stay
                return
            if vr in ("DA", "DT"):
                self._shift(dataset, element, vr, context)
                return
            action = profile()[tag].basic if tag in profile() else Action.DUMMY
        if vr == "SQ":
            raise CannotDeidentify("A sequence is not encoded as one")
        if vr in _TEXTS or vr in _DATES:
            self._remember(tag, vr, self._values(element, context))
        if action is Action.CLEAN_DEVICE:
            values = [f"AE{self._by.opaque('device', value)}" for value in self._values(element, context)]
            self._set(dataset, element, vr, "\\".join(values), context)
        elif action is Action.REMOVE:
            del dataset[element.tag]
        elif tag in (_PATIENT_NAME, _PATIENT_ID):
            self._set(dataset, element, vr, self._by.pseudonym(*self._identity), context)
        elif action is Action.EMPTY:
            self._set(dataset, element, vr, "", context)
        else:
            self._dummy(dataset, element, vr, context)

    def _dummy(self, dataset: Dataset, element: Element, vr: str, context: _Context) -> None:
        """A value that is valid for the VR and says nothing."""
        tag = int(element.tag)
        if vr == "UI":
            self._replace_uids(dataset, element, vr, context)
        elif tag == _ENCAPSULATED_DOCUMENT:
            document = _dummy_document(self._first(dataset, _DOCUMENT_TYPE))
            _put_bytes(dataset, element, document + b"\0" * (len(document) % 2))
            if _get(dataset, _DOCUMENT_LENGTH) is not None:
                _put(dataset, _DOCUMENT_LENGTH, "UL", len(document))
        elif vr in _BYTES:
            _put_bytes(dataset, element, b"\0" * max(2, _NUMBERS.get({"OF": "FL", "OD": "FD"}.get(vr, ""), 4)))
        elif vr in _NUMBERS:
            _put(dataset, tag, vr, 0)
        else:
            count = len(self._values(element, context)) if vr == "DS" else 1
            self._set(dataset, element, vr, "\\".join([_DUMMIES.get(vr, _DUMMY_TEXT)] * count), context)

    def _replace_uids(self, dataset: Dataset, element: Element, vr: str, context: _Context) -> None:
        values = self._values(element, context)
        if vr != "UI":
            self._dummy(dataset, element, "LO" if vr not in _TEXTS else vr, context)
            return
        new = [self._by.uid(value) for value in values]
        for value, other in zip(values, new, strict=True):
            if value != other:
                self._found.add_uid(value)
        self._set(dataset, element, "UI", "\\".join(new), context)

    def _shift(self, dataset: Dataset, element: Element, vr: str, context: _Context) -> None:
        values = self._values(element, context)
        self._remember(int(element.tag), vr, values)
        self._set(dataset, element, vr, "\\".join(_shifted(value, vr, self._days) for value in values), context)

    # Structured content, overlays, private attributes

    def _content_items(self, dataset: Dataset, tag: int, items: list[Dataset], context: _Context) -> None:
        """Content items (PS3.3 C.17.3), each treated as Table E.3.4-1 says of its concept.

        An item to be removed gets dummy values instead where items point to one another by position.
        """
        kept = []
        for item in items:
            context_of_item = context
            action = self._content_action(item)
            if context.dummy and action is not Action.KEEP:
                if action is Action.REMOVE:
                    context_of_item = replace(context, codes_stay=False)
            elif action is Action.REMOVE and not self._positions_matter():
                self._remember_all(item, context)
                continue
            elif action in (Action.REMOVE, Action.DUMMY, Action.EMPTY):
                context_of_item = replace(context, dummy=True)
            elif action is None or action is Action.CLEAN_TEXT:
                context_of_item = replace(context, clean=True)
            self._content_item(item, action, context_of_item)
            kept.append(item)
        if len(kept) < len(items):
            if kept or tag != _CONTENT:
                _put(dataset, tag, "SQ", kept)
            else:
                del dataset[tag]

    def _content_item(self, item: Dataset, action: Action | None, context: _Context) -> None:
        """The item's own values; items below it are judged on their own."""
        sensitive_code = action in (Action.REMOVE, Action.DUMMY) and _get(item, 0x0040A168) is not None
        below = _get(item, _CONTENT)
        children = self._items(item, below) if below is not None else []
        if below is not None:
            del item[_CONTENT]
        if action in (Action.KEEP, Action.SHIFT_DATE):
            with_dates = {value for value in (0x0040A120, 0x0040A121, 0x0040A122) if _get(item, value) is not None}
            stay = {value: _get(item, value) for value in (*with_dates, _CONTENT_TEXT, 0x0040A123, 0x0040A124)}
            self._protect(item, context)
            for value, element in stay.items():
                if element is None:
                    continue
                item[element.tag] = element
                if action is Action.SHIFT_DATE:
                    self._leaf(item, element, _vr(element), Action.SHIFT_DATE, context)
                elif value == 0x0040A124 and Option.RetainUIDs not in self._options:
                    self._leaf(item, element, "UI", Action.UID, context)
        else:
            self._protect(item, context)
        if sensitive_code:
            for code in self._items(item, item.get_item(0x0040A168)):
                for element in list(code.elements()):
                    self._within(code, element, _vr(element), replace(context, dummy=True, codes_stay=False))
        if children:
            _put(item, _CONTENT, "SQ", children)
            below_context = replace(context, depth=context.depth + 1, clean=False)
            if Option.CleanStructdCont in self._options:
                below_context = replace(below_context, dummy=False)
            if below_context.depth > _MAX_DEPTH:
                raise CannotDeidentify(f"Sequences are nested more than {_MAX_DEPTH} deep")
            self._content_items(item, _CONTENT, children, below_context)

    def _content_action(self, item: Dataset) -> Action | None:
        names = _get(item, _CONCEPT_NAME)
        for name in self._items(item, names) if names is not None else []:
            scheme = self._first(name, _SCHEME)
            code = self._first(name, _CODE_VALUE) or self._first(name, _LONG_CODE) or self._first(name, _URN_CODE)
            actions = self._by.content_actions
            known = _current_code(scheme, code)
            return actions.get((*known, self._first(item, _VALUE_TYPE)), actions.get((*known, "")))
        return None

    def _positions_matter(self) -> bool:
        if not self._has_references:
            self._has_references = _holds(self._dataset, _BY_REFERENCE, 0)
        return self._has_references

    def _overlay(self, dataset: Dataset, group: int, context: _Context) -> None:
        """Remove the overlay; with CleanGraph keep a region of interest, and clean the texts that go with it.

        The bits of an overlay cannot be read, so one of type G (graphics) goes under every option.
        """
        tags = [element.tag for element in dataset.elements() if element.tag.group == group]
        kind = self._first(dataset, group << 16 | 0x40)
        if Option.CleanGraph in self._options and kind == "R":
            self._texts.extend((dataset, tag, context) for tag in tags if vr_of(tag) in _TEXTS)
            return
        position = _get(dataset, group << 16 | 0x102)
        if context.depth == 0 and _get(dataset, group << 16 | 0x3000) is None and position is not None:
            bit = _integer(position)
            if 0 < bit < 64:
                self.embedded_overlay_bits |= 1 << bit
        for tag in tags:
            del dataset[tag]

    def _private(self, dataset: Dataset, context: _Context) -> None:
        """Remove private attributes; with RetainSafePrivate keep those of Table E.3.10-1, and their creators."""
        private = [element for element in dataset.elements() if element.tag.group & 1]
        creators: dict[int, str] = {}
        used = set()
        if Option.RetainSafePrivate in self._options:
            for element in private:
                if 0x10 <= element.tag.element <= 0xFF:
                    creators[int(element.tag)] = "".join(self._values(element, context, "LO"))
        for element in private:
            tag = int(element.tag)
            creator = tag & 0xFFFF0000 | tag >> 8 & 0xFF
            if tag in creators:
                continue
            vr = safe_private().get((creators.get(creator, ""), tag >> 16, tag & 0xFF))
            if vr is None:
                del dataset[element.tag]
                continue
            used.add(creator)
            written = str(element.VR or vr)
            if "SQ" in (written, vr):
                for item in self._items(dataset, element):
                    self._protect(item, replace(context, depth=context.depth + 1))
            elif written == "UI" or vr == "UI":
                self._replace_uids(dataset, element, "UI", context)
            elif vr in _TEXTS and element.is_raw and element.VR in (None, "UN"):
                dataset[element.tag] = element._replace(VR=vr)  # type: ignore[union-attr]  # now it is swept
        for tag in creators.keys() - used:
            del dataset[tag]

    # Values that were removed, and the texts that may repeat them

    def _remember(self, tag: int, vr: str, values: Iterable[str]) -> None:
        for value in values:
            if vr == "PN":
                self._found.add_person(value, is_patient=tag == _PATIENT_NAME)
            elif vr in ("DA", "DT"):
                self._found.add_date(value)
            elif tag in _PATIENT_IDENTIFIERS:
                self._found.add_identifier(value)
            elif vr != "TM":
                self._found.add_text(value)

    def _remember_all(self, dataset: Dataset, context: _Context) -> None:
        """The values of a sequence that goes as a whole."""
        if context.depth > _MAX_DEPTH:
            raise CannotDeidentify(f"Sequences are nested more than {_MAX_DEPTH} deep")
        context = replace(context, depth=context.depth + 1, encodings=_encodings(dataset, context.encodings))
        for element in list(dataset.elements()):
            vr = _vr(element)
            action = self._by.actions.get(int(element.tag))
            if element.tag.group & 1:
                continue
            if vr == "SQ":
                for item in self._items(dataset, element):
                    self._remember_all(item, context)
            elif vr == "PN" or (vr in _TEXTS | _DATES and action not in (None, Action.KEEP, Action.CLEAN_TEXT)):
                self._remember(int(element.tag), vr, self._values(element, context))
            elif vr == "UI" and action is Action.UID and Option.RetainUIDs not in self._options:
                for value in self._values(element, context):
                    if self._by.uid(value) != value:
                        self._found.add_uid(value)

    def _clean_texts(self) -> None:
        for dataset, tag, context in self._texts:
            element = _get(dataset, tag)
            if element is not None and not _is_empty(element):
                values = self._values(element, context)
                self._put_cleaned(dataset, element, values, [self._found.clean(value) for value in values], context)

    def _put_cleaned(
        self, dataset: Dataset, element: Element, values: list[str], cleaned: list[str], context: _Context
    ) -> None:
        """What is left, or what the profile does without the option when nothing is left."""
        if cleaned == values:
            return
        vr = _vr(element)
        text = "\\".join(cleaned)
        row = profile().get(int(element.tag))
        if text.strip("\\ "):
            self._set(dataset, element, vr, text, context)
        elif row is not None and row.basic is Action.REMOVE:
            del dataset[element.tag]
        elif row is not None and row.basic is Action.EMPTY:
            self._set(dataset, element, vr, "", context)
        else:
            self._dummy(dataset, element, vr, context)

    def _sweep(self, dataset: Dataset, context: _Context) -> None:
        """Take names, identifiers, dates and UIDs that were removed elsewhere out of every text that stays."""
        context = replace(context, encodings=_encodings(dataset, context.encodings))
        for element in list(dataset.elements()):
            vr = element.VR
            if vr is None or vr == "UN":
                vr = _vr(element)
            if vr == "SQ":
                for item in [] if element.is_raw else self._items(dataset, element):
                    self._sweep(item, context)
            elif vr in _TEXTS and int(element.tag) not in _NOT_SWEPT and element.value:
                values = self._values(element, context)
                self._put_cleaned(dataset, element, values, [self._found.sweep(value) for value in values], context)

    # What is added

    def finish(self, *, pixels_cleaned: bool) -> Report:
        """Write the attributes that say what was done (PS3.15 E.1.1, E.2, E.3.1, E.3.6)."""
        dataset = self._dataset
        done = self._options if pixels_cleaned else self._options - {Option.CleanPixelData}
        if pixels_cleaned:
            _put(dataset, _BURNED_IN, "CS", "NO")
        codes = {option.value[0]: option.value[1] for option in done}
        for item in self._items(dataset, dataset.get_item(_METHOD_CODES)) if _METHOD_CODES in dataset else []:
            earlier = self._first(item, _CODE_VALUE)
            codes |= {option.value[0]: option.value[1] for option in Option if option.value[0] == earlier}
        if Option.RetainLongFullDates in self._options:
            dates = "UNMODIFIED"
        else:
            dates = "MODIFIED" if Option.RetainLongModifDates in self._options else "REMOVED"
        _put(dataset, _IDENTITY_REMOVED, "CS", "YES")
        _put(dataset, _METHOD, "LO", [f"DICOMcloud {__version__}", f"PS3.15 {edition()} Annex E Basic Profile"])
        _put(dataset, _METHOD_CODES, "SQ", [_code(*entry) for entry in sorted(codes.items())])
        _put(dataset, _DATES_MODIFIED, "CS", dates)
        known = self._original
        return Report(
            original_sop_instance_uid=known[_SOP_INSTANCE],
            sop_class_uid=known[_SOP_CLASS],
            sop_instance_uid=self._by.uid(known[_SOP_INSTANCE]),
            series_instance_uid=self._by.uid(known[_SERIES]),
            study_instance_uid=self._by.uid(known[_STUDY]),
            pixel_data_cleaned=pixels_cleaned,
        )

    # Values as text

    def _values(self, element: Element, context: _Context, vr: str = "") -> list[str]:
        """The values of a text, without padding. Several where the VR allows several."""
        vr = vr or _vr(element)
        value = element.value
        if value is None:
            return []
        if isinstance(value, bytes):
            text = _decoded(value, context.encodings, vr)
        elif isinstance(value, list | MutableSequence):
            text = "\\".join(map(str, value))
        else:
            text = str(value)
        values = [text] if vr in ("LT", "ST", "UR", "UT") else text.split("\\")
        return [value.strip(" \0") for value in values if value.strip(" \0")]

    def _set(self, dataset: Dataset, element: Element, vr: str, text: str, context: _Context) -> None:
        """Replace the value; a text that the character set cannot express becomes a dummy."""
        if not element.is_raw:
            _put(dataset, int(element.tag), str(element.VR), text)
            return
        try:
            raw = _encoded(text, context.encodings)
        except (UnicodeError, LookupError, ValueError):
            raw = _DUMMIES.get(vr, _DUMMY_TEXT).encode()
        _put_bytes(dataset, element, raw + (b"\0" if vr == "UI" else b" ") * (len(raw) % 2))


# ---------------------------------------------------------------------------------------------------------------------
# Elements


def _get(dataset: Dataset, tag: int) -> Element | None:
    return dataset.get_item(tag) if tag in dataset else None


def _vr(element: Element) -> str:
    """The VR, from the dictionary where the data set gives none or hides a text or a sequence in bytes."""
    vr = element.VR
    if vr is None or vr in _BYTES or len(vr) != 2:
        known = vr_of(int(element.tag))
        if known == "SQ" and vr not in (None, "UN"):
            raise CannotDeidentify("A sequence is not encoded as one")
        return known if vr in (None, "UN") or known not in _BYTES else str(vr)
    return str(vr)


def _is_empty(element: Element) -> bool:
    value = element.value
    return value is None or (isinstance(value, Sized) and not len(value))


def _integer(element: Element) -> int:
    value = element.value
    if isinstance(value, bytes):
        order = "little" if element.is_little_endian else "big"  # type: ignore[union-attr]
        return int.from_bytes(value[:2], order)  # type: ignore[arg-type]
    return int(value or 0)


def _put(dataset: Dataset, tag: int, vr: str, value: Any) -> None:
    from pydicom import config
    from pydicom.dataelem import DataElement

    dataset[tag] = DataElement(tag, vr, value, validation_mode=config.IGNORE)


def _put_bytes(dataset: Dataset, element: Element, value: bytes) -> None:
    if element.is_raw:
        dataset[element.tag] = element._replace(value=value, length=len(value))  # type: ignore[union-attr]
    else:
        _put(dataset, int(element.tag), str(element.VR), value)


def _encodings(dataset: Dataset, inherited: tuple[str, ...]) -> tuple[str, ...]:
    """Python's names of the character sets of this data set (PS3.3 C.12.1.1.2)."""
    element = _get(dataset, _CHARACTER_SET)
    if element is None:
        return inherited
    value = element.value
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    terms = value.split("\\") if isinstance(value, str) else [str(term) for term in value or []]
    return _python_encodings(tuple(term.strip(" \0") for term in terms))


@functools.lru_cache(256)
def _python_encodings(terms: tuple[str, ...]) -> tuple[str, ...]:
    from pydicom.charset import python_encoding

    return tuple(python_encoding.get(term, "iso8859") for term in terms) or ("iso8859",)


def _decoded(value: bytes, encodings: tuple[str, ...], vr: str) -> str:
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    from pydicom.charset import decode_bytes
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

    try:
        return decode_bytes(value, list(encodings), PN_DELIMS if vr == "PN" else TEXT_VR_DELIMS)
    except (UnicodeError, LookupError, ValueError):
        return value.decode("latin-1")


def _encoded(text: str, encodings: tuple[str, ...]) -> bytes:
    if text.isascii():
        return text.encode("ascii")
    from pydicom.charset import encode_string

    return bytes(encode_string(text, list(encodings)))


def _check_items(value: bytes) -> None:
    """Refuse a sequence of absurdly many items before pydicom makes an object of each."""
    if value.count(b"\xfe\xff\x00\xe0") + value.count(b"\xff\xfe\xe0\x00") > _MOST_ITEMS:
        raise CannotDeidentify(f"A sequence has more than {_MOST_ITEMS} items")


def _holds(dataset: Dataset, tag: int, depth: int) -> bool:
    if tag in dataset:
        return True
    if depth > _MAX_DEPTH:
        return False
    return any(
        _holds(item, tag, depth + 1)
        for element in list(dataset.elements())
        if _vr(element) == "SQ" and not element.tag.is_private
        for item in dataset[element.tag].value or []
    )


def _code(value: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    _put(item, _CODE_VALUE, "SH", value)
    _put(item, _SCHEME, "SH", "DCM")
    _put(item, _CODE_MEANING, "LO", meaning)
    return item


def _make_point(item: Dataset) -> None:
    """A graphic object that draws one point in the corner (PS3.3 C.10.5)."""
    for element in list(item.elements()):
        if element.tag not in (0x00700005, 0x00700020, 0x00700021, 0x00700022, 0x00700023):
            del item[element.tag]
    for tag, vr, value in (
        (0x00700020, "US", 2),
        (0x00700021, "US", 1),
        (0x00700022, "FL", [1.0, 1.0]),
        (0x00700023, "CS", "POINT"),
    ):
        _put(item, tag, vr, value)


def _is_public_scheme(scheme: str) -> bool:
    """Whether a coding scheme is a public one: local schemes begin with 99 or are L (PS3.3 8.2)."""
    return bool(scheme) and not scheme.startswith("99") and scheme != "L"


def _current_code(scheme: str, code: str) -> tuple[str, str]:
    """A retired SNOMED RT code is the SNOMED CT code that took its place (PS3.16 Annex O)."""
    if scheme in ("SRT", "SNM3", "99SDM"):
        from pydicom.sr._snomed_dict import mapping

        return "SCT", mapping["SRT"].get(code, "")
    return scheme.split(" ")[0], code


def _dummy_document(media_type: str) -> bytes:
    """An empty document: a PDF of one blank page, XML, or text."""
    kind = media_type.lower()
    if kind == "application/pdf":
        objects = (
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>",
        )
        body, offsets = b"%PDF-1.4\n", []
        for number, each in enumerate(objects, 1):
            offsets.append(len(body))
            body += b"%d 0 obj%sendobj\n" % (number, each)
        table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
        trailer = b"trailer<</Size 4/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % len(body)
        return body + b"xref\n0 4\n0000000000 65535 f \n" + table + trailer
    return b"<removed/>" if "xml" in kind else b"REMOVED\n"


def _texts_of(dataset: Dataset) -> dict[str, str]:
    """What pixel rules ask for, as text."""
    found = {}
    for keyword, tag in pixel_cleaning.RULE_ATTRIBUTES.items():
        element = _get(dataset, tag)
        if element is None or element.value is None:
            found[keyword] = ""
        elif isinstance(element.value, bytes) and _vr(element) == "US":
            found[keyword] = str(_integer(element))
        elif isinstance(element.value, bytes):
            found[keyword] = element.value.decode("latin-1").strip(" \0")
        else:
            found[keyword] = str(element.value)
    return found


def _numbers_of(dataset: Dataset) -> Callable[[int], str]:
    """A look-up of Image Pixel attributes by tag, as text; empty for those that are missing."""

    def look_up(tag: int) -> str:
        element = _get(dataset, tag)
        if element is None or element.value is None:
            return ""
        if isinstance(element.value, bytes):
            if _vr(element) in ("US", "SS"):
                return str(_integer(element)) if element.value else ""
            return element.value.decode("latin-1").strip(" \0")
        return str(element.value)

    return look_up


# ---------------------------------------------------------------------------------------------------------------------
# Dates


def _shifted(value: str, vr: str, days: int) -> str:
    """A DA or DT `days` earlier, with the precision it had; a dummy when it is no date."""
    match = re.fullmatch(r"(\d{4})[.-]?(\d{2})?[.-]?(\d{2})?(.*)", value, re.DOTALL)
    if match is None or (vr == "DA" and match[4].strip()):
        return _DUMMIES[vr]
    year, month, day, rest = match.groups()
    if not re.fullmatch(r"(\d{2}){0,3}(\.\d{1,6})?([+-]\d{4})?", rest.strip()):
        rest = ""
    try:
        moved = date(int(year), int(month or 1), int(day or 1)) - timedelta(days=days)
    except (ValueError, OverflowError):
        return _DUMMIES[vr]
    text = f"{moved.year:04}{moved.month:02}{moved.day:02}"
    precision = 8 if day else 6 if month else 4
    return text[:precision] + (rest.strip() if day else "")


__all__ = ["CannotDeidentify", "Deidentifier", "Option", "PixelRule", "Report", "edition", "parse_options"]
