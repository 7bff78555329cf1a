"""Bodies and headers of answers: DICOM JSON, warnings, validators, faults."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, cast

import orjson
from flask import Response, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

from ..archive import explain
from ..dicom.metadata import native_model_xml
from ..errors import DicomWebError, NotAcceptable
from .multipart import MultipartBody, OutgoingPart
from .negotiation import Choice, Offer, check_charset, negotiate
from .service import current_request, current_service, service_url

log = logging.getLogger(__name__)

DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"


def negotiated(offers: Sequence[Offer]) -> Choice:
    """The offer that the request accepts (PS3.18 8.7.5). Raises BadRequest, NotAcceptable."""
    asked = current_request()
    header, parameter = asked.environ.get("HTTP_ACCEPT"), None
    parameters = asked.args
    if "charset" in parameters:  # to get what is not there is dear
        check_charset(parameters["charset"])
    if "accept" in parameters:
        parameter = parameters["accept"]
    if not header and not parameter and current_service().strict_accept:
        available = " | ".join(map(str, offers))
        raise NotAcceptable(f"The request has no Accept header (PS3.18 8.4.1). Available: {available}")
    return negotiate(header, parameter, offers)


def dicom_json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A data set or a list of data sets in the DICOM JSON Model (PS3.18 F.2), UTF-8, keys ascending; or the text."""
    given = {**(headers or {}), "Content-Type": DICOM_JSON}
    text = body if isinstance(body, bytes) else orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    return _Ready(text, status, given)


class Finished(Response):
    """An answer whose headers are as they are sent: they are not copied and looked through."""

    def get_wsgi_headers(self, environ: Any) -> Headers:
        return self.headers


class _Ready(Finished):
    """One whose body is there as well: nothing has to be closed."""

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response(self.status, self.headers.to_wsgi_list())
        return () if environ["REQUEST_METHOD"] == "HEAD" else cast("list[bytes]", self.response)


def with_bulk_data_urls(document: bytes, base: str) -> bytes:
    """A DICOM JSON text of the archive, which names bulk data from the service root, with full URLs.

    No text inside a JSON string has this form: its quotes would be escaped.
    """
    return document.replace(b'"BulkDataURI":"/', b'"BulkDataURI":"' + base.encode() + b"/")


def dicom_xml(
    data_sets: Sequence[Mapping[str, Any]],
    choice: Choice,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Data sets in the Native DICOM Model (PS3.19 A.1), each a part, or the only one alone."""
    documents = [native_model_xml(data_set) for data_set in data_sets]
    if not choice.offer.multipart:
        return Response(documents[0], status, headers, content_type=DICOM_XML)
    parts = [OutgoingPart({"Content-Type": DICOM_XML}, len(document), [document]) for document in documents]
    body = MultipartBody(DICOM_XML, parts)
    return Response(b"".join(body), status, headers, content_type=body.content_type)


def warning(text: str) -> str:
    """The value of a Warning header: `299 <service>: <text>` (PS3.18 8.3.4)."""
    line = " ".join(text.split()).encode("ascii", "replace").decode("ascii")
    return f"299 {service_url()}: {line}"


def not_modified(etag: str, last_modified: datetime | None = None) -> Response | None:
    """304 when the client has this version already (If-None-Match, else If-Modified-Since), else None."""
    if "If-None-Match" in request.headers:
        if etag not in request.if_none_match:
            return None
    elif last_modified is None or (since := request.if_modified_since) is None or last_modified > since:
        return None
    response = Response(status=HTTPStatus.NOT_MODIFIED)
    response.set_etag(etag)
    response.headers["Cache-Control"] = "private, no-cache"
    response.headers["Vary"] = "Accept"
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
    elif explained := explain(error):
        log.error("%s: %s", explained.message, error)
        status, message, headers = explained.status, explained.message, explained.headers
    else:
        rule = request.url_rule.rule if request.url_rule else "a request"  # no UIDs in the log
        log.exception("%s %s failed", request.method, rule)
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
