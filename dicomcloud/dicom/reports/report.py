"""One instance written to a page: who it is about, what it is, and its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ..metadata import text
from .attribute_table import AttributeTable
from .clinical_document import ClinicalDocument
from .content_tree import ContentTree
from .document import Bulk, Document, Link
from .media_types import encapsulated_document
from .page import Full, Page, Value
from .reading import (
    Attributes,
    age,
    code_meaning,
    date_and_time,
    filled,
    first_item,
    items_of,
    language_of_item,
    plain,
    uid_name,
)

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


def write_report(page: Page, attributes: Attributes, link: Link | None, bulk: Bulk | None) -> None:
    """An instance, as far as there is room."""
    try:
        _Report(Document(page, attributes, link, bulk)).write()
    except Full:
        page.cut()


class _Report:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._page = document.page

    def write(self) -> None:
        attributes = self._document.attributes
        sop_class = text(attributes, "SOPClassUID")
        kind = uid_name(sop_class) or text(attributes, "Modality") or "DICOM object"
        is_report = text(attributes, "ValueType") == "CONTAINER" or "0040A730" in attributes
        title = code_meaning(first_item(attributes, "ConceptNameCodeSequence")) if is_report else ""
        title = title or self._name_of_object() or kind
        flags = ("CompletionFlag", "VerificationFlag", "PreliminaryFlag", "ContentQualification")
        badges = [_BADGES[flag] for flag in (text(attributes, name) for name in flags) if flag in _BADGES]
        self._page.begin_document("" if kind == title else kind, title, badges)
        self._patient_and_study()
        self._document_facts()
        document = encapsulated_document(attributes)
        if document is not None and document.media_type == "text/xml":
            self._page.begin_content(None)
            ClinicalDocument(self._document).write(document)
            self._page.end_content()
        elif is_report:
            self._page.begin_content(language_of_item(attributes))
            ContentTree(self._document).write()
            self._page.end_content()
        else:
            AttributeTable(self._document).write()
        uids = (("SOP Instance UID", "SOPInstanceUID"), ("Series", "SeriesInstanceUID"), ("Study", "StudyInstanceUID"))
        own = [(label, [Value(uid, "uid")]) for label, name in uids if (uid := text(attributes, name))]
        self._page.end_document([*self._other_documents(), *own])

    def _name_of_object(self) -> str:
        names = ("DocumentTitle", "ContentDescription", "RTPlanLabel", "StructureSetLabel", "ContentLabel")
        return next((found for name in names if (found := text(self._document.attributes, name).strip())), "")

    # The head -------------------------------------------------------------------------------------------------------

    def _patient_and_study(self) -> None:
        attributes = self._document.attributes
        sex = text(attributes, "PatientSex")
        issuer = text(attributes, "IssuerOfPatientID")
        identifier = text(attributes, "PatientID")
        self._page.facts(
            "Patient",
            filled(
                ("Name", self._document.names(attributes, "PatientName")),
                ("ID", [Value(identifier, detail=issuer)] if identifier else []),
                ("Born", self._document.times(attributes, "PatientBirthDate")),
                ("Sex", plain({"F": "Female", "M": "Male", "O": "Other"}.get(sex, sex))),
                ("Age", plain(age(text(attributes, "PatientAge")))),
            ),
        )
        self._page.facts(
            "Study",
            filled(
                ("Study", plain(text(attributes, "StudyDescription"))),
                ("Date", date_and_time(attributes, "StudyDate", "StudyTime")),
                ("Accession", plain(text(attributes, "AccessionNumber"))),
                ("Study ID", plain(text(attributes, "StudyID"))),
                ("Referring physician", self._document.names(attributes, "ReferringPhysicianName")),
                ("Institution", plain(text(attributes, "InstitutionName"))),
                ("Series", plain(text(attributes, "SeriesDescription"))),
            ),
        )

    def _document_facts(self) -> None:
        attributes = self._document.attributes
        rows: list[tuple[str, Sequence[Value]]] = [
            ("Date", date_and_time(attributes, "ContentDate", "ContentTime")),
            ("Note", plain(text(attributes, "CompletionFlagDescription"))),
        ]
        for observer in items_of(attributes, "VerifyingObserverSequence"):
            who = self._document.names(observer, "VerifyingObserverName")
            organisation = text(observer, "VerifyingOrganization")
            when = self._document.times(observer, "VerificationDateTime")
            rows.append(("Verified by", [*who, *plain(organisation), *when]))
        for keyword, label in (("AuthorObserverSequence", "Author"), ("ParticipantSequence", "Participant")):
            for person in items_of(attributes, keyword):
                who = self._document.names(person, "PersonName") or plain(text(person, "StationName"))
                role = (
                    code_meaning(first_item(person, "ParticipationType")) or text(person, "ParticipationType").lower()
                )
                rows.append((label, [*who, *plain(text(person, "InstitutionName")), *plain(role)]))
        for request in items_of(attributes, "ReferencedRequestSequence"):
            accession = text(request, "AccessionNumber")
            what = text(request, "RequestedProcedureDescription")
            what = what or code_meaning(first_item(request, "RequestedProcedureCodeSequence"))
            rows.append(("Request", [*plain(what), *plain(accession)]))
        self._page.facts("Document", filled(*rows))

    def _other_documents(self) -> list[tuple[str, Sequence[Value]]]:
        sequences = (("PredecessorDocumentsSequence", "Replaces"), ("IdenticalDocumentsSequence", "Identical to"))
        return [
            (label, [self._document.reference(item)])
            for keyword, label in sequences
            for study in items_of(self._document.attributes, keyword)
            for series in items_of(study, "ReferencedSeriesSequence")
            for item in items_of(series, "ReferencedSOPSequence")
        ]
