"""Bodies and headers of answers: DICOM JSON, warnings, validators, faults."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response, request
from werkzeug.exceptions import HTTPException

from ..errors import DicomWebError
from .service import service_url

log = logging.getLogger(__name__)

DICOM_JSON = "application/dicom+json"


def dicom_json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A data set or a list of data sets in the DICOM JSON Model (PS3.18 F.2), UTF-8, keys ascending."""
    response = Response(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), status, mimetype=DICOM_JSON)
    response.headers.update(headers or {})
    return response


def with_bulk_data_urls(document: bytes, base: str) -> bytes:
    """A DICOM JSON text of the archive, which names bulk data from the service root, with full URLs.

    No text inside a JSON string has this form: its quotes would be escaped.
    """
    return document.replace(b'"BulkDataURI":"/', b'"BulkDataURI":"' + base.encode() + b"/")


def warning(text: str) -> str:
    """The value of a Warning header: `299 <service>: <text>` (PS3.18 8.3.4)."""
    line = " ".join(text.split()).encode("ascii", "replace").decode("ascii")
    return f"299 {service_url()}: {line}"


def not_modified(etag: str) -> Response | None:
    """304 when the client has this version already (If-None-Match), else None."""
    if etag not in request.if_none_match:
        return None
    response = Response(status=HTTPStatus.NOT_MODIFIED)
    response.set_etag(etag)
    return response


def fault(error: Exception) -> Response:
    """The answer to a request that failed: a status report as JSON or text, by Accept (PS3.18 8.5)."""
    headers: Mapping[str, str] = {}
    if isinstance(error, DicomWebError):
        status, message, headers = error.status, error.message, error.headers
    elif isinstance(error, HTTPException) and error.code:
        if error.code < 400 and isinstance(answer := error.get_response(), Response):
            return answer
        status, message = error.code, error.description or error.name
        headers = {name: value for name, value in error.get_headers() if name not in ("Content-Type", "Content-Length")}
    else:
        log.exception("%s %s failed", request.method, request.path)
        status, message = 500, "The server could not answer this request; the reason is in its log"
    response = _status_report(status, message)
    response.headers.update(headers)
    return response


def _status_report(status: int, message: str) -> Response:
    accept = request.headers.get("Accept", "")
    if "text/plain" in accept or ("text/html" in accept and "json" not in accept):
        return Response(f"{status} {HTTPStatus(status).phrase}\n{message}\n", status, mimetype="text/plain")
    body = {"status": status, "error": HTTPStatus(status).phrase, "message": message}
    return Response(orjson.dumps(body), status, mimetype="application/json")
