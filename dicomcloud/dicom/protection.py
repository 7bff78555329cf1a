"""The attributes of one instance, protected: the walk of PS3.15 Annex E over its data set and every sequence in it.

First each attribute gets the action that the tables and the options say (`_protect`); sequences, structured content,
overlays and private attributes have rules of their own. Then the texts that stay are cleaned of the values that were
found on the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from dicomcloud import __version__
from dicomcloud.dicom.attributes import VR_BY_TAG, keyword_of, vr_of
from dicomcloud.dicom.confidentiality_profile import Action, Option, edition, profile, safe_private
from dicomcloud.dicom.raw_elements import (
    BYTES,
    DATES,
    TEXTS,
    CannotDeidentify,
    check_items,
    encodings_of,
    get,
    integer,
    is_empty,
    put,
    put_bytes,
    set_text,
    values_of,
    vr_of_element,
)
from dicomcloud.dicom.replacement_values import DUMMIES, DUMMY_TEXT, NUMBERS, dummy_document, shifted
from dicomcloud.dicom.text_cleaning import IdentifyingValues

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dicomcloud.dicom.deidentification import Deidentifier
    from dicomcloud.dicom.raw_elements import Element

_MAX_DEPTH: Final = 64  # of nested sequences
_UNDEFINED: Final = 0xFFFFFFFF


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
_SOP_CLASS, _SOP_INSTANCE = 0x00080016, 0x00080018
_PATIENT_NAME, _PATIENT_ID, _ISSUER, _BIRTH_DATE = 0x00100010, 0x00100020, 0x00100021, 0x00100030
_STUDY, _SERIES = 0x0020000D, 0x0020000E
_REFERENCED_STUDIES: Final = 0x00081110  # Type 3 in the General Study Module, where an empty one is no sequence
_IDENTITY_REMOVED, _METHOD, _METHOD_CODES, _DATES_MODIFIED = 0x00120062, 0x00120063, 0x00120064, 0x00280303
CODE_VALUE, SCHEME, CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_LONG_CODE, _URN_CODE = 0x00080119, 0x00080120
_CODE_TRIPLET: Final = frozenset({CODE_VALUE, SCHEME, 0x00080103, CODE_MEANING, _LONG_CODE, _URN_CODE})
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
_NOT_SWEPT: Final = frozenset({_PATIENT_NAME, _PATIENT_ID, SCHEME, CODE_VALUE, _DOCUMENT_TYPE, _METHOD})
# Identifiers of the patient and of visits: looked for in every text that stays.
_PATIENT_IDENTIFIERS: Final = frozenset(
    {_PATIENT_ID, 0x00101000, 0x00080050, 0x00380010, 0x00101090, 0x00102154, 0x00101040, 0x00380060, _BIRTH_DATE}
)


@dataclass(frozen=True, slots=True)
class Context:
    """Where in the data set the walk is."""

    depth: int = 0
    encodings: tuple[str, ...] = ("iso8859",)
    dummy: bool = False  # inside a sequence that is replaced: every leaf becomes a dummy
    codes_stay: bool = False  # … but for codes of public schemes
    clean: bool = False  # inside a sequence that is cleaned: texts are cleaned


class Protection:
    """De-identifies one data set: protects attributes, then cleans texts of the values that were found on the way."""

    def __init__(self, deidentifier: Deidentifier, dataset: Dataset) -> None:
        self._by = deidentifier
        self._options = deidentifier.options
        self._dataset = dataset
        self._texts: list[tuple[Dataset, int, Context]] = []  # to be cleaned when all values are known
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
        self._protect(dataset, Context())
        self._clean_texts()
        self._sweep(dataset, Context())

    def _first(self, dataset: Dataset, tag: int) -> str:
        element = get(dataset, tag)
        values = values_of(element, encodings_of(dataset, ("iso8859",))) if element else []
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

    def _protect(self, dataset: Dataset, context: Context) -> None:
        if context.depth > _MAX_DEPTH:
            raise CannotDeidentify(f"Sequences are nested more than {_MAX_DEPTH} deep")
        if id(dataset) in self._seen:
            return  # an item that is in several sequences of a data set made in memory
        self._seen[id(dataset)] = dataset
        context = replace(context, encodings=encodings_of(dataset, context.encodings))
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
            vr = vr_of_element(element)
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
        if vr in DATES:
            if Option.RetainLongFullDates in self._options:
                return Action.KEEP
            return Action.SHIFT_DATE if Option.RetainLongModifDates in self._options else Action.DUMMY
        return None

    def _sequence(self, dataset: Dataset, element: Element, action: Action | None, context: Context) -> None:
        tag = int(element.tag)
        items = self._items(dataset, element)
        if action in (Action.REMOVE, Action.EMPTY):
            for item in items:
                self._remember_all(item, context)
            if action is Action.REMOVE or (tag == _REFERENCED_STUDIES and context.depth == 0):
                del dataset[element.tag]
            else:
                put(dataset, tag, "SQ", [])
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
                    make_point(item)
                return
            inside = replace(inside, codes_stay=tag in _STRUCTURAL_CODES)
        for item in items:
            self._protect(item, inside)

    def _items(self, dataset: Dataset, element: Element) -> list[Dataset]:
        """The items; those of a raw value are parsed, and any Unknown that is a sequence too."""
        if element.is_raw:
            check_items(element.value or b"")
            element = dataset[element.tag]
        if element.VR != "SQ":
            raise CannotDeidentify("A sequence is not encoded as one")
        return list(element.value or [])

    def _within(self, dataset: Dataset, element: Element, vr: str, context: Context) -> None:
        """A leaf that no table names, inside a sequence that is replaced or cleaned."""
        tag = int(element.tag)
        if not context.dummy:
            is_code = tag in _CODE_TRIPLET and (tag != CODE_MEANING or is_public_scheme(self._first(dataset, SCHEME)))
            if vr in TEXTS and not is_code:
                self._texts.append((dataset, tag, context))
            return
        if tag in _CODE_TRIPLET:
            if context.codes_stay and is_public_scheme(self._first(dataset, SCHEME)):
                return
            self._remember(tag, vr, values_of(element, context.encodings))
            if tag == SCHEME and element.value:
                set_text(dataset, element, vr, "99REMOVED", context.encodings)
                return
        if vr in TEXTS or vr in BYTES or vr == "DS":
            self._leaf(dataset, element, vr, Action.DUMMY, context)

    def _leaf(self, dataset: Dataset, element: Element, vr: str, action: Action, context: Context) -> None:
        tag = int(element.tag)
        if action is Action.KEEP or is_empty(element):
            if action is Action.REMOVE:
                del dataset[element.tag]
            return
        if action is Action.UID:
            self._replace_uids(dataset, element, vr, context)
            return
        if action is Action.CLEAN_TEXT:
            if vr in TEXTS:
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
        if vr in TEXTS or vr in DATES:
            self._remember(tag, vr, values_of(element, context.encodings))
        if action is Action.CLEAN_DEVICE:
            values = [f"AE{self._by.opaque('device', value)}" for value in values_of(element, context.encodings)]
            set_text(dataset, element, vr, "\\".join(values), context.encodings)
        elif action is Action.REMOVE:
            del dataset[element.tag]
        elif tag in (_PATIENT_NAME, _PATIENT_ID):
            set_text(dataset, element, vr, self._by.pseudonym(*self._identity), context.encodings)
        elif action is Action.EMPTY:
            set_text(dataset, element, vr, "", context.encodings)
        else:
            self._dummy(dataset, element, vr, context)

    def _dummy(self, dataset: Dataset, element: Element, vr: str, context: Context) -> None:
        """A value that is valid for the VR and says nothing."""
        tag = int(element.tag)
        if vr == "UI":
            self._replace_uids(dataset, element, vr, context)
        elif tag == _ENCAPSULATED_DOCUMENT:
            document = dummy_document(self._first(dataset, _DOCUMENT_TYPE))
            put_bytes(dataset, element, document + b"\0" * (len(document) % 2))
            if get(dataset, _DOCUMENT_LENGTH) is not None:
                put(dataset, _DOCUMENT_LENGTH, "UL", len(document))
        elif vr in BYTES:
            put_bytes(dataset, element, b"\0" * max(2, NUMBERS.get({"OF": "FL", "OD": "FD"}.get(vr, ""), 4)))
        elif vr in NUMBERS:
            put(dataset, tag, vr, 0)
        else:
            count = len(values_of(element, context.encodings)) if vr == "DS" else 1
            set_text(dataset, element, vr, "\\".join([DUMMIES.get(vr, DUMMY_TEXT)] * count), context.encodings)

    def _replace_uids(self, dataset: Dataset, element: Element, vr: str, context: Context) -> None:
        values = values_of(element, context.encodings)
        if vr != "UI":
            self._dummy(dataset, element, "LO" if vr not in TEXTS else vr, context)
            return
        new = [self._by.uid(value) for value in values]
        for value, other in zip(values, new, strict=True):
            if value != other:
                self._found.add_uid(value)
        set_text(dataset, element, "UI", "\\".join(new), context.encodings)

    def _shift(self, dataset: Dataset, element: Element, vr: str, context: Context) -> None:
        values = values_of(element, context.encodings)
        self._remember(int(element.tag), vr, values)
        set_text(dataset, element, vr, "\\".join(shifted(value, vr, self._days) for value in values), context.encodings)

    # Structured content, overlays, private attributes

    def _content_items(self, dataset: Dataset, tag: int, items: list[Dataset], context: Context) -> None:
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
                put(dataset, tag, "SQ", kept)
            else:
                del dataset[tag]

    def _content_item(self, item: Dataset, action: Action | None, context: Context) -> None:
        """The item's own values; items below it are judged on their own."""
        sensitive_code = action in (Action.REMOVE, Action.DUMMY) and get(item, 0x0040A168) is not None
        below = get(item, _CONTENT)
        children = self._items(item, below) if below is not None else []
        if below is not None:
            del item[_CONTENT]
        if action in (Action.KEEP, Action.SHIFT_DATE):
            with_dates = {value for value in (0x0040A120, 0x0040A121, 0x0040A122) if get(item, value) is not None}
            stay = {value: get(item, value) for value in (*with_dates, _CONTENT_TEXT, 0x0040A123, 0x0040A124)}
            self._protect(item, context)
            for value, element in stay.items():
                if element is None:
                    continue
                item[element.tag] = element
                if action is Action.SHIFT_DATE:
                    self._leaf(item, element, vr_of_element(element), Action.SHIFT_DATE, context)
                elif value == 0x0040A124 and Option.RetainUIDs not in self._options:
                    self._leaf(item, element, "UI", Action.UID, context)
        else:
            self._protect(item, context)
        if sensitive_code:
            for code in self._items(item, item.get_item(0x0040A168)):
                for element in list(code.elements()):
                    self._within(code, element, vr_of_element(element), replace(context, dummy=True, codes_stay=False))
        if children:
            put(item, _CONTENT, "SQ", children)
            below_context = replace(context, depth=context.depth + 1, clean=False)
            if Option.CleanStructdCont in self._options:
                below_context = replace(below_context, dummy=False)
            if below_context.depth > _MAX_DEPTH:
                raise CannotDeidentify(f"Sequences are nested more than {_MAX_DEPTH} deep")
            self._content_items(item, _CONTENT, children, below_context)

    def _content_action(self, item: Dataset) -> Action | None:
        names = get(item, _CONCEPT_NAME)
        for name in self._items(item, names) if names is not None else []:
            scheme = self._first(name, SCHEME)
            code = self._first(name, CODE_VALUE) or self._first(name, _LONG_CODE) or self._first(name, _URN_CODE)
            actions = self._by.content_actions
            known = current_code(scheme, code)
            return actions.get((*known, self._first(item, _VALUE_TYPE)), actions.get((*known, "")))
        return None

    def _positions_matter(self) -> bool:
        if not self._has_references:
            self._has_references = _holds(self._dataset, _BY_REFERENCE, 0)
        return self._has_references

    def _overlay(self, dataset: Dataset, group: int, context: Context) -> None:
        """Remove the overlay; with CleanGraph keep a region of interest, and clean the texts that go with it.

        The bits of an overlay cannot be read, so one of type G (graphics) goes under every option.
        """
        tags = [element.tag for element in dataset.elements() if element.tag.group == group]
        kind = self._first(dataset, group << 16 | 0x40)
        if Option.CleanGraph in self._options and kind == "R":
            self._texts.extend((dataset, tag, context) for tag in tags if vr_of(tag) in TEXTS)
            return
        position = get(dataset, group << 16 | 0x102)
        if context.depth == 0 and get(dataset, group << 16 | 0x3000) is None and position is not None:
            bit = integer(position)
            if 0 < bit < 64:
                self.embedded_overlay_bits |= 1 << bit
        for tag in tags:
            del dataset[tag]

    def _private(self, dataset: Dataset, context: Context) -> None:
        """Remove private attributes; with RetainSafePrivate keep those of Table E.3.10-1, and their creators."""
        private = [element for element in dataset.elements() if element.tag.group & 1]
        creators: dict[int, str] = {}
        used = set()
        if Option.RetainSafePrivate in self._options:
            for element in private:
                if 0x10 <= element.tag.element <= 0xFF:
                    creators[int(element.tag)] = "".join(values_of(element, context.encodings, "LO"))
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
            elif vr in TEXTS and element.is_raw and element.VR in (None, "UN"):
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

    def _remember_all(self, dataset: Dataset, context: Context) -> None:
        """The values of a sequence that goes as a whole."""
        if context.depth > _MAX_DEPTH:
            raise CannotDeidentify(f"Sequences are nested more than {_MAX_DEPTH} deep")
        context = replace(context, depth=context.depth + 1, encodings=encodings_of(dataset, context.encodings))
        for element in list(dataset.elements()):
            vr = vr_of_element(element)
            action = self._by.actions.get(int(element.tag))
            if element.tag.group & 1:
                continue
            if vr == "SQ":
                for item in self._items(dataset, element):
                    self._remember_all(item, context)
            elif vr == "PN" or (vr in TEXTS | DATES and action not in (None, Action.KEEP, Action.CLEAN_TEXT)):
                self._remember(int(element.tag), vr, values_of(element, context.encodings))
            elif vr == "UI" and action is Action.UID and Option.RetainUIDs not in self._options:
                for value in values_of(element, context.encodings):
                    if self._by.uid(value) != value:
                        self._found.add_uid(value)

    def _clean_texts(self) -> None:
        for dataset, tag, context in self._texts:
            element = get(dataset, tag)
            if element is not None and not is_empty(element):
                values = values_of(element, context.encodings)
                self._put_cleaned(dataset, element, values, [self._found.clean(value) for value in values], context)

    def _put_cleaned(
        self, dataset: Dataset, element: Element, values: list[str], cleaned: list[str], context: Context
    ) -> None:
        """What is left, or what the profile does without the option when nothing is left."""
        if cleaned == values:
            return
        vr = vr_of_element(element)
        text = "\\".join(cleaned)
        row = profile().get(int(element.tag))
        if text.strip("\\ "):
            set_text(dataset, element, vr, text, context.encodings)
        elif row is not None and row.basic is Action.REMOVE:
            del dataset[element.tag]
        elif row is not None and row.basic is Action.EMPTY:
            set_text(dataset, element, vr, "", context.encodings)
        else:
            self._dummy(dataset, element, vr, context)

    def _sweep(self, dataset: Dataset, context: Context) -> None:
        """Take names, identifiers, dates and UIDs that were removed elsewhere out of every text that stays."""
        context = replace(context, encodings=encodings_of(dataset, context.encodings))
        for element in list(dataset.elements()):
            vr = element.VR
            if vr is None or vr == "UN":
                vr = vr_of_element(element)
            if vr == "SQ":
                for item in [] if element.is_raw else self._items(dataset, element):
                    self._sweep(item, context)
            elif vr in TEXTS and int(element.tag) not in _NOT_SWEPT and element.value:
                values = values_of(element, context.encodings)
                self._put_cleaned(dataset, element, values, [self._found.sweep(value) for value in values], context)

    # What is added

    def finish(self, *, pixels_cleaned: bool) -> Report:
        """Write the attributes that say what was done (PS3.15 E.1.1, E.2, E.3.1, E.3.6)."""
        dataset = self._dataset
        done = self._options if pixels_cleaned else self._options - {Option.CleanPixelData}
        if pixels_cleaned:
            put(dataset, _BURNED_IN, "CS", "NO")
        codes = {option.value[0]: option.value[1] for option in done}
        for item in self._items(dataset, dataset.get_item(_METHOD_CODES)) if _METHOD_CODES in dataset else []:
            earlier = self._first(item, CODE_VALUE)
            codes |= {option.value[0]: option.value[1] for option in Option if option.value[0] == earlier}
        if Option.RetainLongFullDates in self._options:
            dates = "UNMODIFIED"
        else:
            dates = "MODIFIED" if Option.RetainLongModifDates in self._options else "REMOVED"
        put(dataset, _IDENTITY_REMOVED, "CS", "YES")
        put(dataset, _METHOD, "LO", [f"DICOMcloud {__version__}", f"PS3.15 {edition()} Annex E Basic Profile"])
        put(dataset, _METHOD_CODES, "SQ", [code_item(*entry) for entry in sorted(codes.items())])
        put(dataset, _DATES_MODIFIED, "CS", dates)
        known = self._original
        return Report(
            original_sop_instance_uid=known[_SOP_INSTANCE],
            sop_class_uid=known[_SOP_CLASS],
            sop_instance_uid=self._by.uid(known[_SOP_INSTANCE]),
            series_instance_uid=self._by.uid(known[_SERIES]),
            study_instance_uid=self._by.uid(known[_STUDY]),
            pixel_data_cleaned=pixels_cleaned,
        )


def _holds(dataset: Dataset, tag: int, depth: int) -> bool:
    if tag in dataset:
        return True
    if depth > _MAX_DEPTH:
        return False
    return any(
        _holds(item, tag, depth + 1)
        for element in list(dataset.elements())
        if vr_of_element(element) == "SQ" and not element.tag.is_private
        for item in dataset[element.tag].value or []
    )


def code_item(value: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    put(item, CODE_VALUE, "SH", value)
    put(item, SCHEME, "SH", "DCM")
    put(item, CODE_MEANING, "LO", meaning)
    return item


def make_point(item: Dataset) -> None:
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
        put(item, tag, vr, value)


def is_public_scheme(scheme: str) -> bool:
    """Whether a coding scheme is a public one: local schemes begin with 99 or are L (PS3.3 8.2)."""
    return bool(scheme) and not scheme.startswith("99") and scheme != "L"


def current_code(scheme: str, code: str) -> tuple[str, str]:
    """A retired SNOMED RT code is the SNOMED CT code that took its place (PS3.16 Annex O)."""
    if scheme in ("SRT", "SNM3", "99SDM"):
        from pydicom.sr._snomed_dict import mapping

        return "SCT", mapping["SRT"].get(code, "")
    return scheme.split(" ")[0], code
