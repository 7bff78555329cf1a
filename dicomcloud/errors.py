"""What can go wrong, each with its HTTP status; failure and warning reasons with their clause.

DicomWebError
├── BadRequest 400            ├── Gone 410
├── Unauthorized 401          ├── PayloadTooLarge 413
├── Forbidden 403             ├── UnsupportedMediaType 415
├── NotFound 404              ├── RangeNotSatisfiable 416
├── NotAcceptable 406         ├── TooManyRequests 429
└── Conflict 409              └── Unavailable 503
InvalidInstance               one instance that cannot be stored, with its failure reason
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class DicomWebError(Exception):
    """A request that is answered with `status`; the message is shown to the client."""

    status = 500

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.headers = dict(headers or {})


class BadRequest(DicomWebError):
    status = 400


class Unauthorized(DicomWebError):
    status = 401


class Forbidden(DicomWebError):
    status = 403


class NotFound(DicomWebError):
    status = 404


class NotAcceptable(DicomWebError):
    status = 406


class Conflict(DicomWebError):
    status = 409


class Gone(DicomWebError):
    status = 410


class PayloadTooLarge(DicomWebError):
    status = 413


class UnsupportedMediaType(DicomWebError):
    status = 415


class RangeNotSatisfiable(DicomWebError):
    status = 416


class TooManyRequests(DicomWebError):
    status = 429

    def __init__(self, message: str, *, retry_after: int = 30) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class Unavailable(DicomWebError):
    status = 503
    outcome_unknown = False  # whether what was asked for may have been done all the same
    detail = ""  # what the part that is away had to say, for the operator and not for clients

    def __init__(self, message: str, *, retry_after: int = 30) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class FailureReason(IntEnum):
    """Failure Reason (0008,1197) of an instance that was not stored, PS3.18 Annex I.2.2, PS3.4 Annex B.2.3."""

    PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.14
    DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 C.5.6: other bytes are stored under this SOP Instance UID
    NOT_AUTHORIZED = 0x0124  # PS3.7 C.5.x: the sender may not store into this study
    OUT_OF_RESOURCES = 0xA700  # PS3.4 Table B.2-1
    DATA_SET_DOES_NOT_MATCH = 0xA900  # PS3.4 Table B.2-1: e.g. another study than the one in the URL
    CANNOT_UNDERSTAND = 0xC000  # PS3.4 Table B.2-1: not DICOM, truncated, an identifying UID is missing


class WarningReason(IntEnum):
    """Warning Reason (0008,1196) of an instance that was stored, PS3.18 Annex I.2.1."""

    COERCED = 0xB000
    ELEMENTS_DISCARDED = 0xB006
    DATA_SET_DOES_NOT_MATCH = 0xB007


class InvalidInstance(Exception):
    """Bytes that cannot be stored as an instance; the UIDs are given as far as they are known."""

    def __init__(
        self,
        reason: FailureReason,
        message: str,
        *,
        sop_class_uid: str | None = None,
        sop_instance_uid: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
