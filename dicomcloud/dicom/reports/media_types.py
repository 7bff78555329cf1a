"""What an instance can be had as, the document that it carries, and what it refers to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ..metadata import text
from ..pixel_data import TRANSFER_SYNTAXES
from .reading import Attributes, binary_of, items_of, whole_number

_ROOT: Final = "1.2.840.10008.5.1.4.1.1"


_STILL: Final = ("image/jpeg", "image/png", "image/gif", "image/jp2", "image/webp")
_MOVING: Final = ("image/gif", "image/jpeg", "image/png", "image/jp2", "image/webp")
_TEXT: Final = ("text/html", "text/plain")
_WAVEFORM: Final = ("image/svg+xml", "image/png")
# Presentation states that are drawn with their images (PS3.4 Annex N): grayscale, color, pseudo-color, XA/XRF.
_DRAWN_PRESENTATION_STATES: Final = frozenset({_ROOT + f".11.{kind}" for kind in (1, 2, 3, 5)})
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
        return _MOVING if whole_number(text(attributes, "NumberOfFrames")) > 1 else _STILL
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
    content = binary_of(element)
    length = whole_number(text(attributes, "EncapsulatedDocumentLength")) or None
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
        for study in items_of(attributes, keyword):
            _add_series(found, study, text(study, "StudyInstanceUID"))
    _add_series(found, attributes, own_study)
    for study in items_of(attributes, "StudiesContainingOtherReferencedInstancesSequence"):
        _add_series(found, study, text(study, "StudyInstanceUID"))
    return found


def _add_series(found: dict[str, tuple[str, str]], study: Attributes, study_uid: str) -> None:
    for series in items_of(study, "ReferencedSeriesSequence"):
        series_uid = text(series, "SeriesInstanceUID")
        for keyword in ("ReferencedSOPSequence", "ReferencedImageSequence", "ReferencedInstanceSequence"):
            for item in items_of(series, keyword):
                uid = text(item, "ReferencedSOPInstanceUID")
                if uid and study_uid and series_uid:
                    found.setdefault(uid, (study_uid, series_uid))
