"""What people read of instances that are no images: Structured Reports, key objects, plans, presentation states.

    report_html, report_text     a document for the browser, for a terminal or a mail
    referenced_instances         study and series of what a document refers to, so that links need no search
    encapsulated_document        the PDF, CDA, STL, OBJ or MTL that an instance carries
    media_types_of               the rendered media types of an instance (PS3.18 Table 8.7.4-1)

Everything is made from a data set in the DICOM JSON Model, the one that the index keeps; no file is read. A document
holds texts of strangers: control characters become U+FFFD, every text is escaped and isolated from the direction of
its surroundings, there is no script, no inline style, nothing is loaded from anywhere, and the page says so to the
browser (`CONTENT_SECURITY_POLICY`, also in its head).

A Structured Report is its content tree (PS3.3 C.17.3): containers are sections, the rest are rows of a name and a
value with what they were inferred or selected from below them. Of an encapsulated CDA document it is the narrative.
Instances of other classes are a table of their attributes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from lxml import etree

from .attributes import _DICTIONARY, Level, is_uid, json_key, keyword_of, level_of, tag_of
from .header import text_of
from .metadata import text
from .pixel_data import TRANSFER_SYNTAXES

Attributes = Mapping[str, Any]
#: (SOP Class UID, SOP Instance UID) → the address of that instance; "" where it has none.
Link = Callable[[str, str], str]
#: The path of a bulk value ("/0040A730/3/0040A160") → its bytes.
Bulk = Callable[[str], bytes]

#: The longest document in bytes; a longer one ends early and says so at its top.
MAX_REPORT_LENGTH: Final = 8 << 20
_MAX_DEPTH: Final = 64  # of content items and of sequences
_MAX_ITEMS: Final = 200_000  # content items, or attributes of other objects
_MAX_LISTED: Final = 24  # numbers of one attribute that are written out
_MAX_TABLE_COLUMNS: Final = 8

_ROOT: Final = "1.2.840.10008.5.1.4.1.1"
_KEY_OBJECT_SELECTION: Final = _ROOT + ".88.59"


# ---------------------------------------------------------------------------------------------------------------------
# Media types

_STILL: Final = ("image/jpeg", "image/png", "image/gif", "image/jp2", "image/webp")
_MOVING: Final = ("image/gif", "image/jpeg", "image/png", "image/jp2", "image/webp")
_TEXT: Final = ("text/html", "text/plain")
_WAVEFORM: Final = ("image/svg+xml", "image/png")
# Presentation states that are drawn with the image they are for (PS3.4 Annex N): grayscale, colour.
_DRAWN_PRESENTATION_STATES: Final = frozenset({_ROOT + ".11.1", _ROOT + ".11.2"})
_VIDEO_CLASSES: Final = frozenset({_ROOT + ".77.1.1.1", _ROOT + ".77.1.2.1", _ROOT + ".77.1.4.1"})
_PIXELS: Final = ("7FE00010", "7FE00008", "7FE00009")
# Encapsulated documents: PS3.3 A.45, A.85, A.104.
_ENCAPSULATED: Final[Mapping[str, str]] = {
    _ROOT + ".104.1": "application/pdf",
    _ROOT + ".104.2": "text/xml",
    _ROOT + ".104.3": "model/stl",
    _ROOT + ".104.4": "model/obj",
    _ROOT + ".104.5": "model/mtl",
}


def media_types_of(attributes: Attributes, transfer_syntax: str = "") -> tuple[str, ...]:
    """The rendered media types of an instance, the default one first (PS3.18 8.7.4, Table 8.7.4-1). Never empty.

    The transfer syntax tells video from multi-frame images; without it the SOP class does. Beyond the table: WebP;
    waveforms as pictures; every instance that is neither image, waveform nor document as text.
    """
    sop_class = text(attributes, "SOPClassUID")
    if document := encapsulated_document(attributes):
        return (*_TEXT, "text/xml") if document.media_type == "text/xml" else (document.media_type,)
    if "54000100" in attributes:
        return _WAVEFORM
    if any(key in attributes for key in _PIXELS):
        syntax = TRANSFER_SYNTAXES.get(transfer_syntax)
        if syntax is not None and syntax.video:
            return (syntax.media_type,)
        if sop_class in _VIDEO_CLASSES and not transfer_syntax:
            return ("video/mp4",)
        return _MOVING if _whole(text(attributes, "NumberOfFrames")) > 1 else _STILL
    if sop_class in _DRAWN_PRESENTATION_STATES:
        return _STILL + _TEXT
    return _TEXT


class EncapsulatedDocument(NamedTuple):
    """A document inside an instance. `content` is there when it is short enough to be part of the metadata."""

    media_type: str
    path: str  # of its bulk value
    length: int | None  # without the padding byte, where the instance says so
    content: bytes | None


def encapsulated_document(attributes: Attributes) -> EncapsulatedDocument | None:
    """The Encapsulated Document (0042,0011) of an instance (PS3.3 C.24.2); None if it has none.

    The media type is that of the SOP class. What the instance says itself (0042,0012) counts only for other classes
    and only if it is one of those: else a stored file could have a browser run what it likes.
    """
    element = attributes.get("00420011")
    if not isinstance(element, Mapping) or not ("BulkDataURI" in element or "InlineBinary" in element):
        return None
    declared = text(attributes, "MIMETypeOfEncapsulatedDocument").strip().lower().split(";")[0]
    known = {*_ENCAPSULATED.values(), "image/jpeg", "image/png"}
    media_type = _ENCAPSULATED.get(text(attributes, "SOPClassUID")) or (
        declared if declared in known else "application/octet-stream"
    )
    content = _binary(element)
    length = _whole(text(attributes, "EncapsulatedDocumentLength")) or None
    if content is not None and length is not None:
        content = content[:length]
    return EncapsulatedDocument(media_type, "/00420011", length, content)


def referenced_instances(attributes: Attributes) -> dict[str, tuple[str, str]]:
    """SOP Instance UID → (Study, Series Instance UID) of all that a document says where to find (PS3.3 C.17.2.1).

    From the evidence, predecessor and identical documents sequences, and the referenced series of presentation states
    and plans, which are of the document's own study.
    """
    found: dict[str, tuple[str, str]] = {}
    own_study = text(attributes, "StudyInstanceUID")
    for keyword in (
        "CurrentRequestedProcedureEvidenceSequence",
        "PertinentOtherEvidenceSequence",
        "PredecessorDocumentsSequence",
        "IdenticalDocumentsSequence",
    ):
        for study in _items(attributes, keyword):
            _add_series(found, study, text(study, "StudyInstanceUID"))
    _add_series(found, attributes, own_study)
    for study in _items(attributes, "StudiesContainingOtherReferencedInstancesSequence"):
        _add_series(found, study, text(study, "StudyInstanceUID"))
    return found


def _add_series(found: dict[str, tuple[str, str]], study: Attributes, study_uid: str) -> None:
    for series in _items(study, "ReferencedSeriesSequence"):
        series_uid = text(series, "SeriesInstanceUID")
        for keyword in ("ReferencedSOPSequence", "ReferencedImageSequence", "ReferencedInstanceSequence"):
            for item in _items(series, keyword):
                uid = text(item, "ReferencedSOPInstanceUID")
                if uid and study_uid and series_uid:
                    found.setdefault(uid, (study_uid, series_uid))


# ---------------------------------------------------------------------------------------------------------------------
# The two documents


def report_html(attributes: Attributes, *, link: Link | None = None, bulk: Bulk | None = None) -> bytes:
    """An instance as an HTML document in UTF-8, at most `MAX_REPORT_LENGTH` bytes long.

    `link` gives the addresses of referenced instances; other schemes than http and https are not linked. `bulk` reads
    texts that are too long for the metadata, and CDA documents; without it their place says that they are there.
    """
    page = _HtmlPage()
    _write(page, attributes, link, bulk)
    return page.document()


def report_text(attributes: Attributes, *, bulk: Bulk | None = None) -> bytes:
    """The same document as plain text in UTF-8, lines ending in LF, at most `MAX_REPORT_LENGTH` bytes long."""
    page = _TextPage()
    _write(page, attributes, None, bulk)
    return page.document()


def _write(page: _Page, attributes: Attributes, link: Link | None, bulk: Bulk | None) -> None:
    report = _Report(page, attributes, link, bulk)
    try:
        report.write()
    except _Full:
        page.cut()


class _Full(Exception):
    """The document has reached its longest length."""


class _Value(NamedTuple):
    """One value as it is shown."""

    text: str
    kind: str = "plain"  # plain, block (line ends kept), number, time, uid, muted
    detail: str = ""  # unit of a number; else what is added in small print
    title: str = ""  # what the browser shows when one points at it
    href: str = ""
    language: str = ""
    anchor: str = ""


class _Page(Protocol):
    """Where a report is written. Sections nest; rows are between begin_rows and end_rows, and may hold more rows."""

    def begin_document(self, kind: str, title: str, badges: Sequence[tuple[str, str]]) -> None: ...
    def facts(self, label: str, rows: Sequence[tuple[str, Sequence[_Value]]]) -> None: ...
    def begin_content(self, language: str | None) -> None: ...
    def end_content(self) -> None: ...
    def begin_section(self, title: str, anchor: str, language: str) -> None: ...
    def end_section(self) -> None: ...
    def begin_rows(self) -> None: ...
    def end_rows(self) -> None: ...
    def begin_row(self, relation: str, label: str, values: Sequence[_Value], anchor: str, muted: bool) -> None: ...
    def end_row(self) -> None: ...
    def paragraph(self, values: Sequence[_Value]) -> None: ...
    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Sequence[_Value]]]) -> None: ...
    def end_document(self, rows: Sequence[tuple[str, Sequence[_Value]]]) -> None: ...
    def cut(self) -> None: ...
    def document(self) -> bytes: ...


# ---------------------------------------------------------------------------------------------------------------------
# From attributes to rows

# What precedes the name of an item that is not simply contained (PS3.3 Table C.17.3-8).
_RELATIONS: Final[Mapping[str, str]] = {
    "INFERRED FROM": "inferred from",
    "SELECTED FROM": "selected from",
    "HAS PROPERTIES": "",
    "HAS CONCEPT MOD": "",
    "HAS OBS CONTEXT": "",
    "HAS ACQ CONTEXT": "",
    "CONTAINS": "",
}
_CONTEXT: Final = frozenset({"HAS CONCEPT MOD", "HAS OBS CONTEXT", "HAS ACQ CONTEXT"})
_VALUE_TYPES: Final[Mapping[str, str]] = {
    "TEXT": "Text",
    "CODE": "Code",
    "NUM": "Measurement",
    "PNAME": "Person",
    "DATE": "Date",
    "TIME": "Time",
    "DATETIME": "Date and time",
    "UIDREF": "UID",
    "IMAGE": "Image",
    "COMPOSITE": "Object",
    "WAVEFORM": "Waveform",
    "SCOORD": "Region",
    "SCOORD3D": "Region in space",
    "TCOORD": "Points in time",
    "TABLE": "Table",
    "CONTAINER": "Section",
}
_STRUCTURE: Final = frozenset(
    json_key(tag_of(keyword) or 0)
    for keyword in ("ValueType", "RelationshipType", "ConceptNameCodeSequence", "ContentSequence")
)
# Character set, SOP class, own UIDs: what the table of attributes need not repeat.
_IN_THE_FOOT: Final = frozenset({"00080005", "00080016", "00080018", "0020000D", "0020000E"})
_BADGES: Final[Mapping[str, tuple[str, str]]] = {
    "COMPLETE": ("Complete", "good"),
    "PARTIAL": ("Partial", "warn"),
    "VERIFIED": ("Verified", "good"),
    "UNVERIFIED": ("Not verified", "warn"),
    "PRELIMINARY": ("Preliminary", "warn"),
    "FINAL": ("Final", "good"),
    "RESEARCH": ("Research, not for clinical use", "warn"),
    "SERVICE": ("Service, not for clinical use", "warn"),
}


class _Report:
    """Writes one instance to a page."""

    def __init__(self, page: _Page, attributes: Attributes, link: Link | None, bulk: Bulk | None) -> None:
        self.page = page
        self.attributes = attributes
        self.link = link
        self.bulk = bulk
        self.script = _script_of(attributes)
        self.targets: set[tuple[int, ...]] = set()
        self.items = 0

    def write(self) -> None:
        attributes = self.attributes
        sop_class = text(attributes, "SOPClassUID")
        kind = _uid_name(sop_class) or text(attributes, "Modality") or "DICOM object"
        is_report = text(attributes, "ValueType") == "CONTAINER" or "0040A730" in attributes
        title = code_meaning(_first(attributes, "ConceptNameCodeSequence")) if is_report else ""
        title = title or self._name_of_object() or kind
        flags = ("CompletionFlag", "VerificationFlag", "PreliminaryFlag", "ContentQualification")
        badges = [_BADGES[flag] for flag in (text(attributes, name) for name in flags) if flag in _BADGES]
        self.page.begin_document("" if kind == title else kind, title, badges)
        self._patient_and_study()
        self._document_facts()
        document = encapsulated_document(attributes)
        if document is not None and document.media_type == "text/xml":
            self.page.begin_content(None)
            self._clinical_document(document)
            self.page.end_content()
        elif is_report:
            self.page.begin_content(_language(attributes))
            self._content(attributes, (1,), 0)
            self.page.end_content()
        else:
            self._all_attributes()
        uids = (("SOP Instance UID", "SOPInstanceUID"), ("Series", "SeriesInstanceUID"), ("Study", "StudyInstanceUID"))
        own = [(label, [_Value(uid, "uid")]) for label, name in uids if (uid := text(attributes, name))]
        self.page.end_document([*self._other_documents(), *own])

    def _name_of_object(self) -> str:
        names = ("DocumentTitle", "ContentDescription", "RTPlanLabel", "StructureSetLabel", "ContentLabel")
        return next((found for name in names if (found := text(self.attributes, name).strip())), "")

    # The head -------------------------------------------------------------------------------------------------------

    def _patient_and_study(self) -> None:
        attributes = self.attributes
        sex = text(attributes, "PatientSex")
        issuer = text(attributes, "IssuerOfPatientID")
        identifier = text(attributes, "PatientID")
        self.page.facts(
            "Patient",
            _filled(
                ("Name", self._names(attributes, "PatientName")),
                ("ID", [_Value(identifier, detail=issuer)] if identifier else []),
                ("Born", self._times(attributes, "PatientBirthDate")),
                ("Sex", _plain({"F": "Female", "M": "Male", "O": "Other"}.get(sex, sex))),
                ("Age", _plain(age(text(attributes, "PatientAge")))),
            ),
        )
        self.page.facts(
            "Study",
            _filled(
                ("Study", _plain(text(attributes, "StudyDescription"))),
                ("Date", _date_and_time(attributes, "StudyDate", "StudyTime")),
                ("Accession", _plain(text(attributes, "AccessionNumber"))),
                ("Study ID", _plain(text(attributes, "StudyID"))),
                ("Referring physician", self._names(attributes, "ReferringPhysicianName")),
                ("Institution", _plain(text(attributes, "InstitutionName"))),
                ("Series", _plain(text(attributes, "SeriesDescription"))),
            ),
        )

    def _document_facts(self) -> None:
        attributes = self.attributes
        rows: list[tuple[str, Sequence[_Value]]] = [
            ("Date", _date_and_time(attributes, "ContentDate", "ContentTime")),
            ("Note", _plain(text(attributes, "CompletionFlagDescription"))),
        ]
        for observer in _items(attributes, "VerifyingObserverSequence"):
            who = self._names(observer, "VerifyingObserverName")
            organisation = text(observer, "VerifyingOrganization")
            when = self._times(observer, "VerificationDateTime")
            rows.append(("Verified by", [*who, *_plain(organisation), *when]))
        for keyword, label in (("AuthorObserverSequence", "Author"), ("ParticipantSequence", "Participant")):
            for person in _items(attributes, keyword):
                who = self._names(person, "PersonName") or _plain(text(person, "StationName"))
                role = code_meaning(_first(person, "ParticipationType")) or text(person, "ParticipationType").lower()
                rows.append((label, [*who, *_plain(text(person, "InstitutionName")), *_plain(role)]))
        for request in _items(attributes, "ReferencedRequestSequence"):
            accession = text(request, "AccessionNumber")
            what = text(request, "RequestedProcedureDescription")
            what = what or code_meaning(_first(request, "RequestedProcedureCodeSequence"))
            rows.append(("Request", [*_plain(what), *_plain(accession)]))
        self.page.facts("Document", _filled(*rows))

    def _other_documents(self) -> list[tuple[str, Sequence[_Value]]]:
        sequences = (("PredecessorDocumentsSequence", "Replaces"), ("IdenticalDocumentsSequence", "Identical to"))
        return [
            (label, [self._reference(item)])
            for keyword, label in sequences
            for study in _items(self.attributes, keyword)
            for series in _items(study, "ReferencedSeriesSequence")
            for item in _items(series, "ReferencedSOPSequence")
        ]

    # Structured Reports ---------------------------------------------------------------------------------------------

    def _content(self, container: Attributes, number: tuple[int, ...], depth: int) -> None:
        """The items of a container: sections, and between them runs of rows."""
        if not depth:
            self.targets = _referenced_items(container)
        if depth >= _MAX_DEPTH:
            self.page.paragraph([_Value("What lies deeper than this is not shown.", "muted")])
            return
        continuous = text(container, "ContinuityOfContent") == "CONTINUOUS"
        items = self._numbered(container, number)
        for kind, run in groupby(items, lambda numbered: _manner(numbered[1], continuous)):
            if kind == "prose":
                self._prose(list(run), depth)
            elif kind == "rows":
                self.page.begin_rows()
                for here, item in run:
                    self._row(item, here, depth)
                self.page.end_rows()
            else:
                for here, item in run:
                    name = code_meaning(_first(item, "ConceptNameCodeSequence"))
                    self.page.begin_section(name, self._anchor(here), _language(item) or "")
                    self._content(item, here, depth + 1)
                    self.page.end_section()

    def _numbered(self, container: Attributes, number: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Attributes]]:
        for place, item in enumerate(_item_values(container, "ContentSequence"), 1):
            self._count()
            yield (*number, place), item if isinstance(item, Mapping) else {}

    def _count(self) -> None:
        """Items that make no text cost time too."""
        self.items += 1
        if self.items > _MAX_ITEMS:
            raise _Full

    def _row(self, item: Attributes, number: tuple[int, ...], depth: int) -> None:
        relation = text(item, "RelationshipType")
        shown = _RELATIONS.get(relation, relation.lower())
        if target := _identifier(item):
            self.page.begin_row(shown or "see", "", [self._jump(target)], "", False)
            self.page.end_row()
            return
        value_type = text(item, "ValueType")
        label = code_meaning(_first(item, "ConceptNameCodeSequence")) or _VALUE_TYPES.get(
            value_type, value_type or "Item"
        )
        values = self._values(item, value_type, number)
        self.page.begin_row(shown, label, values, self._anchor(number), relation in _CONTEXT)
        if value_type not in _VALUE_TYPES or value_type == "TABLE":
            self._dataset({key: value for key, value in item.items() if key not in _STRUCTURE}, depth + 1)
        if _items(item, "ContentSequence"):
            self._content(item, number, depth + 1)
        self.page.end_row()

    def _prose(self, items: Sequence[tuple[tuple[int, ...], Attributes]], depth: int) -> None:
        """Items that are read as running text (PS3.3 C.18.8); codes that qualify a piece follow it in brackets."""
        pieces: list[_Value] = []
        below: list[tuple[tuple[int, ...], Attributes]] = []
        for here, item in items:
            name = code_meaning(_first(item, "ConceptNameCodeSequence"))
            values = [
                value._replace(title=value.title or name) for value in self._values(item, text(item, "ValueType"), here)
            ]
            if anchor := self._anchor(here):
                values = [value._replace(anchor=anchor) for value in values[:1]] + values[1:]
            nested = _items(item, "ContentSequence")
            if all(text(child, "ValueType") == "CODE" and "0040A730" not in child for child in nested):
                for place, child in enumerate(nested, 1):
                    meaning = code_meaning(_first(child, "ConceptCodeSequence"))
                    values.append(_Value(f"({meaning})", "muted", anchor=self._anchor((*here, place))))
            else:
                below.append((here, item))
            pieces += values
        self.page.paragraph([piece._replace(kind="plain") if piece.kind == "block" else piece for piece in pieces])
        if below:
            self.page.begin_rows()
            for here, item in below:
                self._row(item, here, depth)
            self.page.end_rows()

    def _values(self, item: Attributes, value_type: str, number: tuple[int, ...]) -> list[_Value]:
        match value_type:
            case "TEXT":
                return self._text(item, "TextValue", number)
            case "CODE":
                return _coded(_first(item, "ConceptCodeSequence"))
            case "NUM":
                return _measurement(item)
            case "PNAME":
                return self._names(item, "PersonName")
            case "DATE" | "TIME" | "DATETIME":
                return self._times(item, {"DATE": "Date", "TIME": "Time", "DATETIME": "DateTime"}[value_type])
            case "UIDREF":
                return [_uid_value(uid) for uid in _texts(item, "UID")]
            case "IMAGE" | "COMPOSITE" | "WAVEFORM":
                return [self._reference(reference) for reference in _items(item, "ReferencedSOPSequence")]
            case "SCOORD" | "SCOORD3D":
                return [_region(item, 3 if value_type == "SCOORD3D" else 2)]
            case "TCOORD":
                return [_moments(item)]
        return []

    def _text(self, item: Attributes, keyword: str, number: tuple[int, ...]) -> list[_Value]:
        key = json_key(tag_of(keyword) or 0)
        element = item.get(key, {})
        if "BulkDataURI" not in element:
            return [_Value(text(item, keyword).rstrip(), "block")]
        if self.bulk is None:
            return [_Value("This text is too long for the metadata; it is a bulk value of the instance.", "muted")]
        path = "".join(f"/0040A730/{place}" for place in number[1:]) + f"/{key}"
        decode = text_of(self.attributes.get("00080005", {}))
        return [_Value(decode(bytes(self.bulk(path)[:MAX_REPORT_LENGTH])).rstrip(" \0\r\n"), "block")]

    def _anchor(self, number: tuple[int, ...]) -> str:
        return "item-" + "-".join(map(str, number)) if number in self.targets else ""

    def _jump(self, target: tuple[int, ...]) -> _Value:
        """A by-reference relationship (PS3.3 C.17.3.2.5): where the other item is, and what it is called."""
        found: Any = self.attributes
        for place in target[1:]:
            children = _item_values(found, "ContentSequence")
            found = children[place - 1] if 0 < place <= len(children) else None
            if not isinstance(found, Mapping):
                return _Value(f"item {'.'.join(map(str, target))}, which is not in this document", "muted")
        value_type = text(found, "ValueType")
        name = code_meaning(_first(found, "ConceptNameCodeSequence")) or _VALUE_TYPES.get(value_type, "")
        shown = {
            "CODE": lambda: code_meaning(_first(found, "ConceptCodeSequence")),
            "NUM": lambda: " ".join(_shown(value) for value in _measurement(found)),
            "TEXT": lambda: text(found, "TextValue"),
        }.get(value_type, str)()
        shown = shown if len(shown) <= 60 else shown[:59] + "…"
        where = f"item {'.'.join(map(str, target))}"
        href = "#item-" + "-".join(map(str, target))
        return _Value(": ".join(filter(None, (name, shown))) or where, href=href, detail=where)

    # Values that need the document ----------------------------------------------------------------------------------

    def _names(self, attributes: Attributes, keyword: str) -> list[_Value]:
        return [shown for name in _raw(attributes, keyword) if (shown := self._name(name)) is not None]

    def _name(self, name: Any) -> _Value | None:
        """Alphabetic first, the other groups behind it with their language (PS3.5 6.2.1)."""
        if not isinstance(name, Mapping):
            return _Value(str(name)) if name else None
        groups = [
            (group, person_name(str(name.get(group) or ""))) for group in ("Alphabetic", "Ideographic", "Phonetic")
        ]
        shown = [(group, value) for group, value in groups if value]
        if not shown:
            return None
        (group, first), rest = shown[0], [value for _, value in shown[1:]]
        language = _language_of("".join([first, *rest]), self.script) if rest or group != "Alphabetic" else ""
        return _Value(first, detail=" · ".join(rest), language=language, kind="name")

    def _times(self, attributes: Attributes, keyword: str) -> list[_Value]:
        return [_Value(moment(value), "time") for value in _texts(attributes, keyword) if value]

    def _reference(self, reference: Attributes) -> _Value:
        sop_class = text(reference, "ReferencedSOPClassUID")
        uid = text(reference, "ReferencedSOPInstanceUID")
        parts = [uid]
        for keyword, label in (
            ("ReferencedFrameNumber", "frame"),
            ("ReferencedSegmentNumber", "segment"),
        ):
            if numbers := _texts(reference, keyword):
                parts.append(f"{label}{'s' if len(numbers) > 1 else ''} {_listed(numbers)}")
        if channels := _texts(reference, "ReferencedWaveformChannels"):
            pairs = [f"{group}/{channel}" for group, channel in zip(channels[::2], channels[1::2], strict=False)]
            parts.append(f"channels {_listed(pairs)}")
        parts += [
            f"shown with {_uid_name(text(state, 'ReferencedSOPClassUID')) or 'presentation state'}"
            for state in _items(reference, "ReferencedSOPSequence")
        ]
        return _Value(
            _uid_name(sop_class) or "Instance",
            "reference",
            ", ".join(filter(None, parts)),
            href=self._href(sop_class, uid),
        )

    def _href(self, sop_class: str, uid: str) -> str:
        if self.link is None or not is_uid(uid):
            return ""
        address = self.link(sop_class, uid) or ""
        return address if re.match(r"https?://|/(?!/)", address) else ""

    # Clinical documents ---------------------------------------------------------------------------------------------

    def _clinical_document(self, document: EncapsulatedDocument) -> None:
        """The narrative of an HL7 CDA document: titles and texts of its sections, which is what a person signed."""
        content = document.content
        if content is None and self.bulk is not None:
            content = bytes(self.bulk(document.path)[: document.length or MAX_REPORT_LENGTH])
        if content is None:
            self.page.paragraph([_Value("The document is a bulk value of the instance.", "muted")])
            return
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
        try:
            root = etree.fromstring(content[:MAX_REPORT_LENGTH].strip(b"\0 "), parser)
        except etree.XMLSyntaxError:
            self.page.paragraph([_Value("The document is no well-formed XML and cannot be shown.", "muted")])
            return
        etree.strip_elements(root, etree.Entity, etree.ProcessingInstruction, with_tail=False)
        title = _spaced(root.findtext(f"{_CDA}title"))
        self.page.begin_section(title, "", _xml_language(root))
        rows = [("Patient", f"{_CDA}recordTarget//{_CDA}patient/{_CDA}name"), ("Author", f"{_CDA}author//{_CDA}name")]
        self.page.begin_rows()
        for label, path in rows:
            for name in root.iterfind(path):
                self.page.begin_row("", label, _plain(_xml_text(name, " ")), "", True)
                self.page.end_row()
        self.page.end_rows()
        for section in root.iterfind(f"{_CDA}component/{_CDA}structuredBody/{_CDA}component/{_CDA}section"):
            self._cda_section(section, 1)
        for body in root.iterfind(f"{_CDA}component/{_CDA}nonXMLBody/{_CDA}text"):
            words = body.text or "" if body.get("representation") != "B64" else ""
            note = _Value("The text is in another format and cannot be shown.", "muted")
            self.page.paragraph([_Value(words, "block") if words.strip() else note])
        self.page.end_section()

    def _cda_section(self, section: Any, depth: int) -> None:
        self._count()
        self.page.begin_section(_spaced(section.findtext(f"{_CDA}title")), "", _xml_language(section))
        for narrative in section.iterfind(f"{_CDA}text"):
            self._narrative(narrative)
        if depth < _MAX_DEPTH:
            for below in section.iterfind(f"{_CDA}component/{_CDA}section"):
                self._cda_section(below, depth + 1)
        self.page.end_section()

    def _narrative(self, element: Any) -> None:
        """A narrative block (CDA 4.3.5): paragraphs, lists, tables; all else is text between them."""
        words = [element.text or ""]

        def flush() -> None:
            if "".join(words).strip():
                self.page.paragraph([_Value(_spaced("".join(words)))])
            words.clear()

        for child in element:
            self._count()
            name = etree.QName(child).localname if isinstance(child.tag, str) else ""
            if name in ("paragraph", "list", "table", "item"):
                flush()
                if name == "table":
                    rows = [
                        [[_Value(_xml_text(cell))] for cell in row.iterchildren(f"{_CDA}th", f"{_CDA}td")]
                        for row in child.iter(f"{_CDA}tr")
                    ]
                    self.page.table([cell[0].text for cell in rows[0]] if rows else [], rows[1:])
                elif name == "list":
                    self._list(child)
                else:
                    self.page.paragraph([_Value(_xml_text(child))])
            else:
                words.append("\n" if name == "br" else "".join(map(str, child.itertext())))
            words.append(child.tail or "")
        flush()

    def _list(self, element: Any) -> None:
        ordered = element.get("listType") == "ordered"
        for number, entry in enumerate(element.iterfind(f"{_CDA}item"), 1):
            self._count()
            mark = f"{number}." if ordered else "•"
            self.page.paragraph([_Value(mark, "muted"), _Value(_xml_text(entry, " "))])

    # Other objects --------------------------------------------------------------------------------------------------

    def _all_attributes(self) -> None:
        titles = {Level.INSTANCE: "Content", Level.SERIES: "Series and equipment", Level.STUDY: "Patient and study"}
        self.page.begin_content(None)
        for level, title in titles.items():
            part = {
                key: value
                for key, value in self.attributes.items()
                if level_of(int(key, 16)) is level and key not in _IN_THE_FOOT and _is_filled(value)
            }
            if part:
                self.page.begin_section(title, "", "")
                self._dataset(part, 0)
                self.page.end_section()
        self.page.end_content()

    def _dataset(self, attributes: Attributes, depth: int) -> None:
        if depth >= _MAX_DEPTH:
            self.page.paragraph([_Value("What lies deeper than this is not shown.", "muted")])
            return
        self.page.begin_rows()
        for key, element in attributes.items():
            tag = int(key, 16)
            if not isinstance(element, Mapping) or tag & 0xFFFF == 0:
                continue
            self._count()
            label = _attribute_name(tag)
            if element.get("vr") != "SQ":
                if values := self._attribute_values(element):
                    self.page.begin_row("", label, values, "", False)
                    self.page.end_row()
                continue
            items = [item if isinstance(item, Mapping) else {} for item in element.get("Value", ())]
            if not items:
                continue
            single_code = len(items) == 1 and _is_code(items[0])
            label = f"{label} ({len(items)} items)" if len(items) > 1 else label
            self.page.begin_row("", label, _coded(items[0]) if single_code else [], "", False)
            if not single_code:
                self._sequence(items, depth + 1)
            self.page.end_row()
        self.page.end_rows()

    def _sequence(self, items: Sequence[Attributes], depth: int) -> None:
        if reference := [item for item in items if "00081155" in item and len(item) <= 3]:
            self.page.begin_rows()
            for item in reference:
                self.page.begin_row("", "Refers to", [self._reference(item)], "", False)
                self.page.end_row()
            self.page.end_rows()
            items = [item for item in items if item not in reference]
        columns = sorted({key for item in items for key in item})
        flat = all(element.get("vr") != "SQ" for item in items for element in item.values())
        if len(items) > 1 and flat and len(columns) <= _MAX_TABLE_COLUMNS:
            self.page.table(
                [_attribute_name(int(key, 16)) for key in columns],
                ([self._attribute_values(item.get(key, {})) for key in columns] for item in items),
            )
            return
        for number, item in enumerate(items, 1):
            if _is_code(item):
                self.page.paragraph(_coded(item))
                continue
            if len(items) > 1:
                self.page.begin_section(f"Item {number}", "", "")
            self._dataset(item, depth)
            if len(items) > 1:
                self.page.end_section()

    def _attribute_values(self, element: Mapping[str, Any]) -> list[_Value]:
        vr = element.get("vr", "UN")
        if "BulkDataURI" in element:
            return [_Value("bulk data", "muted")]
        if "InlineBinary" in element:
            return [_Value(f"{len(_binary(element) or b''):,} bytes", "muted")]
        raw = [value for value in element.get("Value", ()) if value is not None]
        if vr == "PN":
            return [shown for name in raw if (shown := self._name(name)) is not None]
        if vr in ("DA", "TM", "DT"):
            return [_Value(moment(str(value)), "time") for value in raw]
        if vr == "UI":
            return [_uid_value(str(value)) for value in raw]
        texts = [_number_text(value) for value in raw]
        if vr in ("LT", "ST", "UT"):
            return [_Value(value, "block") for value in texts]
        if vr in ("DS", "FD", "FL", "IS", "SL", "SS", "UL", "US", "SV", "UV") and len(texts) > 1:
            return [_Value(_listed(texts))]
        return [_Value(value) for value in texts]


# ---------------------------------------------------------------------------------------------------------------------
# Single values

_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,4}")  # BCP 47, as far as it is used
_CDA: Final = "{urn:hl7-org:v3}"


def _spaced(value: str | None) -> str:
    return " ".join((value or "").split())


def _xml_text(element: Any, between: str = "") -> str:
    return _spaced(between.join(map(str, element.itertext())))


def _xml_language(element: Any) -> str:
    code = element.find(f"{_CDA}languageCode")
    value = str(code.get("code", "")) if code is not None else ""
    return value if _LANGUAGE.fullmatch(value) else ""


def _raw(attributes: Attributes, keyword: str) -> Sequence[Any]:
    element = attributes.get(json_key(tag_of(keyword) or 0))
    values = element.get("Value", ()) if isinstance(element, Mapping) else ()
    return values if isinstance(values, list | tuple) else ()


def _texts(attributes: Attributes, keyword: str) -> list[str]:
    return [_number_text(value) for value in _raw(attributes, keyword) if value is not None]


def _item_values(attributes: Attributes, keyword: str) -> Sequence[Any]:
    """The items as they are; a file may give the attribute another VR, and then it has none."""
    element = attributes.get(json_key(tag_of(keyword) or 0), {})
    return _raw(attributes, keyword) if element.get("vr") == "SQ" else ()


def _items(attributes: Attributes, keyword: str) -> list[Attributes]:
    """The items of a sequence, each at its place: an empty one is an empty data set."""
    return [item if isinstance(item, Mapping) else {} for item in _item_values(attributes, keyword)]


def _first(attributes: Attributes, keyword: str) -> Attributes:
    return next(iter(_items(attributes, keyword)), {})


def _is_filled(element: Any) -> bool:
    return isinstance(element, Mapping) and bool(
        element.get("Value") or "BulkDataURI" in element or "InlineBinary" in element
    )


def _binary(element: Mapping[str, Any]) -> bytes | None:
    try:
        return base64.b64decode(element["InlineBinary"]) if "InlineBinary" in element else None
    except ValueError:
        return None


def _whole(value: str) -> int:
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else 0


def _number_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _plain(value: str) -> list[_Value]:
    return [_Value(value)] if value.strip() else []


def _filled(*rows: tuple[str, Sequence[_Value]]) -> list[tuple[str, Sequence[_Value]]]:
    return [row for row in rows if row[1]]


def _listed(values: Sequence[str]) -> str:
    if len(values) <= _MAX_LISTED:
        return ", ".join(values)
    return f"{', '.join(values[: _MAX_LISTED // 2])} … ({len(values):,} values)"


def code_meaning(code: Attributes) -> str:
    """The meaning of a coded concept (PS3.3 8.2), its value where it has no meaning."""
    return text(code, "CodeMeaning").strip() or _code_value(code)


def _code_value(code: Attributes) -> str:
    return text(code, "CodeValue") or text(code, "LongCodeValue") or text(code, "URNCodeValue")


def _is_code(item: Attributes) -> bool:
    return "00080104" in item and ("00080100" in item or "00080119" in item or "00080120" in item)


def _coded(code: Attributes) -> list[_Value]:
    meaning = code_meaning(code)
    where = ", ".join(filter(None, (_code_value(code), text(code, "CodingSchemeDesignator"))))
    return [_Value(meaning, title=where)] if meaning else []


# Units that read better than their code in UCUM.
_UNITS: Final[Mapping[str, str]] = {
    "1": "",
    "Cel": "°C",
    "deg": "°",
    "um": "µm",
    "ug": "µg",
    "uV": "µV",
    "cm2": "cm²",
    "cm3": "cm³",
    "mm2": "mm²",
    "mm3": "mm³",
    "m2": "m²",
    "um2": "µm²",
    "mm[Hg]": "mmHg",
    "[hnsf'U]": "HU",
    "{H.B.}/min": "/min",
    "{ratio}": "",
}


def unit_symbol(code: Attributes) -> str:
    """What is written behind a number: the unit's symbol; its meaning where the code is no symbol."""
    value, meaning = _code_value(code), text(code, "CodeMeaning")
    if text(code, "CodingSchemeDesignator") == "UCUM" and value in _UNITS:
        return _UNITS[value]
    return value if re.fullmatch(r"[A-Za-zµ°%][A-Za-z0-9µ°%/.*^-]{0,11}", value) else meaning or value


def _measurement(item: Attributes) -> list[_Value]:
    """A NUM item (PS3.3 C.18.1): number and unit, or why there is no number."""
    values = []
    for measured in _items(item, "MeasuredValueSequence"):
        unit = _first(measured, "MeasurementUnitsCodeSequence")
        values += [
            _Value(number, "number", unit_symbol(unit), title=text(unit, "CodeMeaning"))
            for number in _texts(measured, "NumericValue")
        ]
    return values + _coded(_first(item, "NumericValueQualifierCodeSequence"))


def _region(item: Attributes, dimensions: int) -> _Value:
    """Spatial coordinates (PS3.3 C.18.6, C.18.9): the kind of graphic, and its points while they are few."""
    numbers = [value for value in _raw(item, "GraphicData") if isinstance(value, int | float)]
    count = len(numbers) // dimensions
    kind = text(item, "GraphicType").lower() or "graphic"
    if "BulkDataURI" in item.get("00700022", {}):
        return _Value(f"{kind} with many points".capitalize())
    points = [numbers[start : start + dimensions] for start in range(0, min(count, 4) * dimensions, dimensions)]
    shown = " ".join(f"({', '.join(_number_text(round(float(number), 2)) for number in point)})" for point in points)
    if kind == "point" and count == 1:
        return _Value("Point", detail=shown)
    return _Value(f"{kind.capitalize()}, {count} points", detail=shown if count <= 4 else "")


def _moments(item: Attributes) -> _Value:
    """Temporal coordinates (PS3.3 C.18.7)."""
    kind = text(item, "TemporalRangeType").lower() or "range"
    if samples := _texts(item, "ReferencedSamplePositions"):
        return _Value(kind.capitalize(), detail=f"at sample {_listed(samples)}")
    if offsets := _texts(item, "ReferencedTimeOffsets"):
        return _Value(kind.capitalize(), detail=f"at {_listed(offsets)} s")
    moments = [moment(value) for value in _texts(item, "ReferencedDateTime")]
    return _Value(kind.capitalize(), detail=_listed(moments))


def _manner(item: Attributes, continuous: bool) -> str:
    """How an item is written: as a section, as a row, or as a piece of running text."""
    if text(item, "ValueType") == "CONTAINER":
        return "section"
    prose = continuous and text(item, "ValueType") in ("TEXT", "CODE", "NUM", "PNAME", "DATE", "TIME", "DATETIME")
    return "prose" if prose and text(item, "RelationshipType") == "CONTAINS" else "rows"


def _identifier(item: Attributes) -> tuple[int, ...]:
    numbers = _raw(item, "ReferencedContentItemIdentifier")
    return tuple(number for number in numbers if isinstance(number, int) and number > 0)


def _referenced_items(root: Attributes) -> set[tuple[int, ...]]:
    """The places of the items that others refer to, as far as the document goes."""
    targets: set[tuple[int, ...]] = set()
    waiting = [iter((root,))]
    for _ in range(_MAX_ITEMS):
        while waiting and (item := next(waiting[-1], None)) is None:
            waiting.pop()
        if not waiting:
            break
        if not isinstance(item, Mapping):
            continue
        if target := _identifier(item):
            targets.add(target)
        waiting.append(value or {} for value in _item_values(item, "ContentSequence"))
    return targets


def _uid_value(uid: str) -> _Value:
    name = _uid_name(uid)
    return _Value(name, detail=uid) if name else _Value(uid, "uid")


@cache
def _uid_names() -> Mapping[str, Sequence[str]]:
    """The UIDs of PS3.6 Annex A: pydicom's table loaded as a file of its own, since the package costs 0.3 s."""
    package = importlib.util.find_spec("pydicom")
    if package is None or package.origin is None:
        return {}
    spec = importlib.util.spec_from_file_location(
        "dicomcloud.dicom._uid_names", Path(package.origin).with_name("_uid_dict.py")
    )
    if spec is None or spec.loader is None:
        return {}
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names: Mapping[str, Sequence[str]] = module.UID_dictionary
    return names


def _uid_name(uid: str) -> str:
    """The name of a UID of the Standard, of a SOP class without the word Storage; "" for others."""
    entry = _uid_names().get(uid)
    return re.sub(r" Storage\b| \(Retired\)", "", entry[0]) if entry else ""


@lru_cache(maxsize=4096)
def _attribute_name(tag: int) -> str:
    """The name of an attribute in PS3.6, of a sequence without that word; of private and unknown ones the tag."""
    entry = _DICTIONARY.DicomDictionary.get(tag)
    name = str(entry[2]) if entry and entry[2] else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", keyword_of(tag))
    return name.removesuffix(" Sequence") or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def person_name(name: str) -> str:
    """Family^Given^Middle^Prefix^Suffix as it is read: family name first, a comma unless it is in Han, Kana, Hangul."""
    family, given, middle, prefix, suffix = (*name.split("^", 4), "", "", "", "", "")[:5]
    names = " ".join(part for part in (given.strip(), middle.strip()) if part)
    comma = " " if re.search("[\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff66-\uff9f]", family) else ", "
    head = comma.join(part for part in (family.strip(), names) if part)
    return ", ".join(part.replace("^", " ") for part in (head, prefix.strip(), suffix.strip()) if part)


def _script_of(attributes: Attributes) -> str:
    """The language that a character set stands for (PS3.3 C.12.1.1.2), to choose among forms of Han characters."""
    terms = " ".join(_texts(attributes, "SpecificCharacterSet")).upper()
    for pattern, language in (
        (r"IR (13|87|159)\b|IR_13\b", "ja"),
        (r"IR[ _]149\b", "ko"),
        (r"IR[ _]58\b|GB18030|GBK|GB2312", "zh"),
    ):
        if re.search(pattern, terms):
            return language
    return ""


def _language_of(name: str, declared: str) -> str:
    if re.search("[\u3040-\u30ff\uff66-\uff9f]", name):
        return "ja"
    if re.search("[\u1100-\u11ff\uac00-\ud7af]", name):
        return "ko"
    return declared if re.search("[\u3400-\u9fff]", name) else ""


def _language(item: Attributes) -> str | None:
    """The language of a content item and what is below it (PS3.16 TID 1204), as BCP 47; None if it is not said."""
    for child in _items(item, "ContentSequence")[:32]:
        if _code_value(_first(child, "ConceptNameCodeSequence")) == "121049":
            value = _code_value(_first(child, "ConceptCodeSequence"))
            if _LANGUAGE.fullmatch(value):
                return value
    return None


def age(value: str) -> str:
    match = re.fullmatch(r"([0-9]{3})([DWMY])", value)
    if not match:
        return value
    count, unit = int(match[1]), {"D": "day", "W": "week", "M": "month", "Y": "year"}[match[2]]
    return f"{count} {unit}{'' if count == 1 else 's'}"


_DATE: Final = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")
_TIME: Final = re.compile(r"(\d\d):?(\d\d)(?::?(\d\d)(?:\.\d{1,6})?)?")
_DATE_TIME: Final = re.compile(r"(\d{8})(\d{4}(?:\d\d)?)?(?:\.\d{1,6})?([+-]\d{4})?")


def moment(value: str) -> str:
    """A DA, TM or DT as ISO 8601 without fractions; what is none of these as it is."""
    value = value.strip()
    if match := _DATE.fullmatch(value):
        return "-".join(match.groups())
    if match := _TIME.fullmatch(value):
        return ":".join(part for part in match.groups() if part)
    if match := _DATE_TIME.fullmatch(value):
        zone = match[3] or ""
        return " ".join(filter(None, (moment(match[1]), moment(match[2] or ""), zone and f"{zone[:3]}:{zone[3:]}")))
    return value


def _date_and_time(attributes: Attributes, date: str, time: str) -> list[_Value]:
    shown = " ".join(moment(value) for value in (text(attributes, date), text(attributes, time)) if value)
    return [_Value(shown, "time")] if shown else []


# ---------------------------------------------------------------------------------------------------------------------
# Plain text and HTML

_CUT: Final = "This document is longer than can be shown here. What follows its last line is missing."
# What is no text in HTML: control characters (line feed and tab apart), surrogates, U+FFFE, U+FFFF.
_NO_TEXT: Final = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(value: str) -> str:
    return _NO_TEXT.sub("\ufffd", value.replace("\r\n", "\n").replace("\r", "\n"))


def _line(value: str) -> str:
    return " ".join(clean(value).split())


class _TextPage:
    """A report in plain text: sections underlined or followed by a colon, each level indented by two spaces."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.size = 0
        self.depth = 0

    def _add(self, line: str = "") -> None:
        line = ("  " * min(self.depth, 20) + line).rstrip()
        self.size += len(line.encode("utf-8", "replace")) + 1
        if self.size > MAX_REPORT_LENGTH - 1024:
            raise _Full
        self.lines.append(line)

    def _gap(self) -> None:
        if self.lines and self.lines[-1]:
            self._add()

    def begin_document(self, kind: str, title: str, badges: Sequence[tuple[str, str]]) -> None:
        title = _line(title)
        self._add(title)
        self._add("=" * max(3, min(len(title), 78)))
        if below := ", ".join(filter(None, [kind, *(badge for badge, _ in badges)])):
            self._add(below)

    def facts(self, label: str, rows: Sequence[tuple[str, Sequence[_Value]]]) -> None:
        if rows:
            self._gap()
        for name, values in rows:
            own = {"Name": label, "ID": f"{label} ID", "Date": f"{label} date"}
            self._labelled(own.get(name, name), values)

    def begin_content(self, language: str | None) -> None:
        self._gap()
        self._add("-" * 40)

    def end_content(self) -> None:
        self._gap()

    def begin_section(self, title: str, anchor: str, language: str) -> None:
        self._gap()
        if title:
            self._add(_line(title).upper() if self.depth < 1 else _line(title))
        self.depth += 1

    def end_section(self) -> None:
        self.depth -= 1

    def begin_rows(self) -> None: ...

    def end_rows(self) -> None: ...

    def begin_row(self, relation: str, label: str, values: Sequence[_Value], anchor: str, muted: bool) -> None:
        self._labelled(f"{relation} {label}", values)
        self.depth += 1

    def end_row(self) -> None:
        self.depth -= 1

    def _labelled(self, label: str, values: Sequence[_Value]) -> None:
        label = _line(label)
        if any(value.kind == "block" and ("\n" in value.text or len(value.text) > 60) for value in values):
            self._add(f"{label}:")
            self.depth += 1
            for line in "\n".join(_shown(value) for value in values).split("\n"):
                self._add(line)
            self.depth -= 1
        else:
            self._add(f"{label}: {' · '.join(_line(_shown(value)) for value in values)}".rstrip())

    def paragraph(self, values: Sequence[_Value]) -> None:
        for line in " ".join(_shown(value) for value in values).split("\n"):
            self._add(line)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Sequence[_Value]]]) -> None:
        self._add(" | ".join(columns))
        for row in rows:
            self._add(" | ".join(", ".join(_line(_shown(value)) for value in cell) for cell in row))

    def end_document(self, rows: Sequence[tuple[str, Sequence[_Value]]]) -> None:
        self._gap()
        for label, values in rows:
            self._labelled(label, values)

    def cut(self) -> None:
        self.lines.insert(0, _CUT + "\n")
        self.lines.append("\n" + _CUT)

    def document(self) -> bytes:
        return ("\n".join(self.lines) + "\n").encode("utf-8")


def _shown(value: _Value) -> str:
    if value.kind == "number":
        return clean(" ".join(filter(None, (value.text, value.detail))))
    return clean(f"{value.text} ({value.detail})" if value.detail else value.text)


_STYLE: Final = """
:root{color-scheme:light dark;--page:#f3f5f8;--card:#fff;--ink:#1a2330;--soft:#5a6776;--rule:#dde3ea;--accent:#0b5cad;
--good:#11693f;--goodbg:#e0f4e8;--warn:#8a4b00;--warnbg:#fdf0d9}
@media (prefers-color-scheme:dark){:root{--page:#10151b;--card:#192028;--ink:#e4e9ef;--soft:#9aa7b5;--rule:#2d3742;
--accent:#7db8f5;--good:#7fd8a6;--goodbg:#15352a;--warn:#f3c078;--warnbg:#3a2b12}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;padding:1.5rem 1rem 3rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif}
.sheet{max-width:60rem;margin:0 auto;background:var(--card);border:1px solid var(--rule);border-radius:.75rem;
padding:2rem 2.25rem;overflow-wrap:anywhere}
h1,h2,h3,h4,h5,h6{line-height:1.25;margin:0 0 .6rem;text-wrap:balance}
h1{font-size:1.75rem}h2{font-size:1.25rem}h3{font-size:1.075rem}h4,h5,h6{font-size:1rem}
.kind{margin:0 0 .25rem;color:var(--soft);font-size:.875rem;letter-spacing:.02em}
.badges{display:flex;flex-wrap:wrap;gap:.5rem;margin:.25rem 0 0;padding:0;list-style:none}
.badges li{padding:.1rem .65rem;border-radius:1rem;font-size:.8125rem;font-weight:600}
.good{background:var(--goodbg);color:var(--good)}.warn{background:var(--warnbg);color:var(--warn)}
.head{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(17rem,100%),1fr));gap:1.25rem 2rem;
margin:1.5rem 0 0;padding:1.25rem 0;border-top:1px solid var(--rule);border-bottom:1px solid var(--rule)}
.head h2{font-size:.8125rem;color:var(--soft);margin:0 0 .35rem;font-weight:600}
dl,dd,dt{margin:0}
.facts div{display:grid;grid-template-columns:6rem 1fr;gap:0 .5rem;font-size:.9375rem}
.facts dt{color:var(--soft)}
main{padding-top:.5rem}
section,section+.rows{margin-top:1.5rem}
section section{margin-top:1rem;padding-inline-start:.875rem;border-inline-start:3px solid var(--rule)}
section section section section section{padding-inline-start:.25rem}
main>section>h2{padding-bottom:.3rem;border-bottom:1px solid var(--rule)}
.rows>div{display:grid;grid-template-columns:minmax(8rem,15rem) minmax(0,1fr);gap:0 1rem;padding:.3rem 0}
.rows>div+div{border-top:1px solid var(--rule)}
.rows dt{color:var(--soft)}
.rows dd .rows{margin-top:.15rem;font-size:.9375em}
.rows dd .rows>div{display:block;padding:.1rem 0;border:0}
.rows dd .rows dt{display:inline}.rows dd .rows dt::after{content:": "}
.rows dd .rows dd{display:inline}
.rows dd .rows dd .rows{padding-inline-start:1rem}
.rows>.block{display:block}
.rows>.block>dd{margin-top:.1rem}
.rows .block>dd>.rows{margin-top:.4rem;padding-inline-start:.875rem;border-inline-start:3px solid var(--rule)}
.rows>.context{font-size:.9375rem}
.rows>.context>dd{color:var(--soft)}
.rows>.nested{display:block}
.rows .nested>dd,.rows dd .rows>.nested>dd{display:block;padding-inline-start:.875rem;
border-inline-start:3px solid var(--rule)}
.rows .nested>dd>.rows,.rows dd .nested>dd>.rows{padding:0;margin:0;font-size:1em}
.relation{font-style:italic}
p{margin:0 0 .6rem}
.text{white-space:pre-wrap;max-width:48rem;margin:0}
.text+.text{margin-top:.5rem}
b.number{font-weight:600;font-variant-numeric:tabular-nums}
time{white-space:nowrap}
.muted,.detail{color:var(--soft)}
.detail{font-size:.875em}
.uid{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.8125em;overflow-wrap:anywhere}
a{color:var(--accent)}
:target{outline:2px solid var(--accent);outline-offset:.25rem;border-radius:.25rem}
.wide{overflow-x:auto;margin:.25rem 0}
table{border-collapse:collapse;font-size:.9375rem;overflow-wrap:normal}
th,td{padding:.3rem .75rem .3rem 0;text-align:start;vertical-align:top;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:600}
.cut{padding:.75rem 1rem;border-radius:.5rem;background:var(--warnbg);color:var(--warn);font-weight:600}
footer{margin-top:2rem;padding-top:1rem;border-top:1px solid var(--rule);color:var(--soft);font-size:.8125rem}
footer p{margin:0}
@media (max-width:40rem){body{padding:0;background:var(--card)}.sheet{border:0;border-radius:0;padding:1.25rem 1rem}
h1{font-size:1.4rem}.rows>div{display:block}.rows dt{font-size:.875rem}
section section{padding-inline-start:.625rem}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#bbb;--accent:#000}
body{padding:0;font-size:10pt}.sheet{border:0;padding:0;max-width:none}
h1,h2,h3,h4,h5,h6{break-after:avoid}.rows>div{break-inside:avoid}}
""".strip()
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: What a report may do in a browser: show its own style and nothing else.
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
)


class _HtmlPage:
    """A report in HTML. `stack` holds the elements that are open, so that a document that ends early is whole."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = 0
        self.stack: list[str] = []
        self.level = 1
        self.head_open = False
        self.after_title = 0

    def _add(self, markup: str) -> None:
        self.size += len(markup) if markup.isascii() else len(markup.encode("utf-8", "replace"))
        if self.size > MAX_REPORT_LENGTH - 4096:
            raise _Full
        self.parts.append(markup)

    def _open(self, name: str, attributes: str = "") -> None:
        self._add(f"<{name}{attributes}>")
        self.stack.append(name)

    def _close(self) -> None:
        self._add(f"</{self.stack[-1]}>\n")
        self.stack.pop()

    def begin_document(self, kind: str, title: str, badges: Sequence[tuple[str, str]]) -> None:
        shown = _escape(_line(title))
        self._add(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_escape(CONTENT_SECURITY_POLICY)}">\n'
            '<meta name="referrer" content="no-referrer">\n<meta name="robots" content="noindex">\n'
            f"<title>{shown}</title>\n<style>{_STYLE}</style>\n</head>\n"
        )
        self.stack.append("html")
        self._open("body")
        self._open("div", ' class="sheet"')
        self._add("\n<header>\n")
        if kind:
            self._add(f'<p class="kind">{_escape(kind)}</p>\n')
        self._add(f"<h1><bdi>{shown}</bdi></h1>\n")
        if badges:
            listed = "".join(f'<li class="{kind}">{_escape(badge)}</li>' for badge, kind in badges)
            self._add(f'<ul class="badges" aria-label="Status">{listed}</ul>\n')
        self._add("</header>\n")
        self.after_title = len(self.parts)

    def facts(self, label: str, rows: Sequence[tuple[str, Sequence[_Value]]]) -> None:
        if not rows:
            return
        if not self.head_open:
            self._open("div", ' class="head"')
            self.head_open = True
        shown = "".join(f"<div><dt>{_escape(name)}</dt><dd>{_joined(values)}</dd></div>\n" for name, values in rows)
        self._add(f'<div>\n<h2>{_escape(label)}</h2>\n<dl class="facts">\n{shown}</dl>\n</div>\n')

    def begin_content(self, language: str | None) -> None:
        if self.head_open:
            self._close()
            self.head_open = False
        self._open("main", f' lang="{_escape(language)}"' if language else "")
        self._add("\n")

    def end_content(self) -> None:
        self._close()

    def begin_section(self, title: str, anchor: str, language: str) -> None:
        self.level += 1
        attributes = f' id="{anchor}"' if anchor else ""
        self._open("section", attributes + (f' lang="{_escape(language)}"' if language else ""))
        if title:
            heading = f"h{min(self.level, 6)}"
            self._add(f"\n<{heading}><bdi>{_escape(_line(title))}</bdi></{heading}>\n")

    def end_section(self) -> None:
        self.level -= 1
        self._close()

    def begin_rows(self) -> None:
        self._open("dl", ' class="rows"')
        self._add("\n")

    def end_rows(self) -> None:
        self._close()

    def begin_row(self, relation: str, label: str, values: Sequence[_Value], anchor: str, muted: bool) -> None:
        long = any(value.kind == "block" and ("\n" in value.text or len(value.text) > 160) for value in values)
        style = "block" if long else "nested" if not values else "context" if muted else ""
        attributes = f' id="{anchor}"' if anchor else ""
        self._open("div", attributes + (f' class="{style}"' if style else ""))
        names = [f'<span class="relation">{_escape(relation)}</span>'] if relation else []
        names += [f"<bdi>{_escape(_line(label))}</bdi>"] if label else []
        self._add(f"<dt>{' '.join(names)}</dt>")
        self._open("dd")
        self._add(_joined(values))

    def end_row(self) -> None:
        self._close()
        self._close()

    def paragraph(self, values: Sequence[_Value]) -> None:
        self._add(f'<p dir="auto">{" ".join(_markup(value) for value in values)}</p>\n')

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Sequence[_Value]]]) -> None:
        self._open("div", ' class="wide" tabindex="0"')
        self._open("table")
        head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in columns)
        self._add(f"<thead><tr>{head}</tr></thead>\n")
        self._open("tbody")
        for row in rows:
            self._add(f"<tr>{''.join(f'<td>{_joined(cell)}</td>' for cell in row)}</tr>\n")
        for _ in range(3):
            self._close()

    def end_document(self, rows: Sequence[tuple[str, Sequence[_Value]]]) -> None:
        listed = "".join(f"<p>{_escape(label)} {_joined(values)}</p>\n" for label, values in rows)
        self._add(f"<footer>\n{listed}</footer>\n")

    def cut(self) -> None:
        notice = f'<p class="cut">{_CUT}</p>\n'
        self.parts.insert(self.after_title, notice)
        while "main" in self.stack and self.stack[-1] != "main":
            self.parts.append(f"</{self.stack.pop()}>")
        self.parts.append(notice)

    def document(self) -> bytes:
        closing = "".join(f"</{name}>\n" for name in reversed(self.stack))
        return ("".join(self.parts) + closing).encode("utf-8")


def _escape(value: str) -> str:
    return html.escape(clean(value), quote=True)


def _joined(values: Iterable[_Value]) -> str:
    return '<span class="muted"> · </span>'.join(_markup(value) for value in values)


def _markup(value: _Value) -> str:
    attributes = f' lang="{_escape(value.language)}"' if value.language else ""
    attributes += f' title="{_escape(value.title)}"' if value.title else ""
    shown = f'<span id="{value.anchor}">{_escape(value.text)}</span>' if value.anchor else _escape(value.text)
    detail = f'<span class="detail"><bdi{attributes}>{_escape(value.detail)}</bdi></span>' if value.detail else ""
    match value.kind:
        case "block" if "\n" in value.text or len(value.text) > 160:
            return f'<p class="text" dir="auto">{shown}</p>'
        case "number":
            return f'<b class="number">{shown}</b>' + (
                f" <span{attributes}>{_escape(value.detail)}</span>" if value.detail else ""
            )
        case "muted":
            return f'<span class="muted"><bdi>{shown}</bdi></span>'
        case "uid":
            return f'<span class="uid">{shown}</span>'
        case "time":
            return (
                f"<time>{shown}</time>"
                if re.fullmatch(r"\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d)?)?", value.text)
                else (f"<bdi>{shown}</bdi>")
            )
        case "reference":
            detail = f' <span class="detail uid">{_escape(value.detail)}</span>' if value.detail else ""
    if value.href:
        shown = f'<a href="{_escape(value.href)}"><bdi>{shown}</bdi></a>'
    else:
        shown = f"<bdi{attributes}>{shown}</bdi>"
    return f"{shown} {detail}" if detail else shown
