"""QIDO-RS: search for studies, series and instances (PS3.18 10.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import orjson
from flask import Response, request

from ..dicom.attributes import INDEXED_ATTRIBUTES, Level, json_key
from ..dicom.query import Query, parse_query
from .auth import current_caller
from .negotiation import Offer
from .openapi import DATA_SETS, Blueprint, content, faults, query
from .responses import DICOM_JSON, DICOM_XML, dicom_json, dicom_xml, negotiated, warning, with_bulk_data_urls
from .service import check_uids, current_request, current_service, server_url, service_url

blueprint = Blueprint("QIDO-RS", __name__, description="Search (PS3.18 10.6)")

_OFFERS = (Offer(DICOM_JSON), Offer(DICOM_XML, multipart=True))

_INSTANCE_HEADER = "_instance-header"  # of the original: name an instance of each result in X-Dicom-Instance
_MOST_HEADERS = 50  # browsers and proxies refuse answers with too large a head

_FLAG = {"type": "string", "enum": ["true", "false"]}
_COUNT = {"type": "integer", "minimum": 0}
_PARAMETERS = [
    query("limit", "The most results to return", _COUNT),
    query("offset", "How many results to skip", _COUNT),
    query("orderby", "Studies only, no part of the Standard: keyword to sort by, with `-` in front descending"),
    query("includefield", "Attributes to return as well: keywords or tags, separated by commas, or `all`"),
    query("fuzzymatching", "Match person names by their parts and by their sound", _FLAG),
    query("emptyvaluematching", 'Let the value `""` match attributes that are empty', _FLAG),
    query("multiplevaluematching", "Match attributes with several values value by value", _FLAG),
    query(
        "attributes",
        "Any other attribute: keyword or tag, in sequences dotted (`00400275.00400009`)",
        {"type": "object", "additionalProperties": {"type": "string"}, "example": {}},
        style="form",
        explode=True,
    ),
]
_RESPONSES = {
    "200": {
        "description": "The matching data sets, `[]` when there are none",
        "content": content(DICOM_JSON, schema=DATA_SETS) | content(f'multipart/related; type="{DICOM_XML}"'),
        "headers": {
            "X-Total-Count": {
                "description": "Number of all matches, of very many only how many there are at least",
                "schema": {"type": "integer"},
            },
            "Link": {"description": "URLs of the first, prev, next and last page", "schema": {"type": "string"}},
            "Warning": {"description": "What of the request was not done", "schema": {"type": "string"}},
        },
    },
    **faults(400, 406, 503),
}


def _documentation(summary: str, *levels: Level) -> dict[str, Any]:
    keys = [
        query(attribute.keyword, f"{json_key(attribute.tag)} {attribute.vr}")
        for attribute in INDEXED_ATTRIBUTES
        if attribute.level in levels and attribute.matching
    ]
    return {"summary": summary, "parameters": [*keys, *_PARAMETERS], "responses": _RESPONSES}


@blueprint.route("/studies")
@blueprint.doc(**_documentation("Search for Studies", Level.STUDY))
def search_for_studies() -> Response:
    return _search(Level.STUDY)


@blueprint.route("/studies/<study>/series")
@blueprint.doc(**_documentation("Search for Series of a Study", Level.SERIES))
def search_for_study_series(study: str) -> Response:
    return _search(Level.SERIES, study)


@blueprint.route("/studies/<study>/instances")
@blueprint.doc(**_documentation("Search for Instances of a Study", Level.SERIES, Level.INSTANCE))
def search_for_study_instances(study: str) -> Response:
    return _search(Level.INSTANCE, study)


@blueprint.route("/studies/<study>/series/<series>/instances")
@blueprint.doc(**_documentation("Search for Instances of a Series", Level.INSTANCE))
def search_for_series_instances(study: str, series: str) -> Response:
    return _search(Level.INSTANCE, study, series)


@blueprint.route("/series")
@blueprint.doc(**_documentation("Search for Series", Level.STUDY, Level.SERIES))
def search_for_series() -> Response:
    return _search(Level.SERIES)


@blueprint.route("/instances")
@blueprint.doc(**_documentation("Search for Instances", Level.STUDY, Level.SERIES, Level.INSTANCE))
def search_for_instances() -> Response:
    return _search(Level.INSTANCE)


def _search(level: Level, study: str | None = None, series: str | None = None) -> Response:
    check_uids(study=study, series=series)
    service = current_service()
    choice = negotiated(_OFFERS)
    parameters = current_request().args
    pairs = [(key, value) for key, value in parameters.items(multi=True) if key != "accept"]
    asked = parse_query(level, pairs, study_uid=study, series_uid=series, max_results=service.max_results)
    if (studies := current_caller().studies) is not None:
        asked = replace(asked, visible=studies.rules)
    result = service.archive.index.search(asked)
    base = service_url()
    headers = {"Cache-Control": "private, no-cache", "X-Total-Count": str(result.total)}
    if not result.uids and service.empty_search_status != 200:
        response = Response(status=204, headers=headers)
    else:
        found = result.document(base)
        if level is Level.INSTANCE:
            found = with_bulk_data_urls(found, base)
        if choice.offer.media_type == DICOM_JSON:
            response = dicom_json(found, headers=headers)
        else:
            response = dicom_xml(orjson.loads(found), choice, headers=headers)
    if links := _links(asked, result.total, pairs, exact=result.exact):
        response.headers.add("Link", links)
    warnings = list(asked.warnings)
    if result.remaining:
        number = result.remaining if result.exact else f"more than {result.remaining - 1}"
        warnings.append(f"There are {number} additional results that can be requested")
    for text in warnings:
        response.headers.add("Warning", warning(text))
    if _INSTANCE_HEADER in parameters:
        for uids in result.uids[:_MOST_HEADERS]:
            response.headers.add("X-Dicom-Instance", ":".join(_first_instance(*uids)))
    return response


def _first_instance(study: str, series: str, instance: str) -> tuple[str, str, str]:
    """The first instance of a result, for a preview of it."""
    if instance:
        return study, series, instance
    first = Query(Level.INSTANCE, study, series or None, limit=1)
    found = current_service().archive.index.search(first).uids
    return found[0] if found else (study, series, "")


def _links(asked: Query, total: int, pairs: Sequence[tuple[str, str]], *, exact: bool) -> str:
    """The Link header: first, prev, next and last page, each where there is one other than this."""
    limit, offset = asked.limit, asked.offset
    if limit == 0 or total == 0 or (offset == 0 and total <= limit):
        return ""
    last = offset + max(0, total - 1 - offset) // limit * limit
    pages = {}
    if offset > 0:
        pages["first"] = 0
        pages["prev"] = max(0, min(offset, total) - limit)
    if offset + limit < total:
        pages["next"] = offset + limit
    if last > offset and exact:
        pages["last"] = last
    kept = [(key, value) for key, value in pairs if key not in ("limit", "offset")]
    here = server_url() + request.path
    return ", ".join(
        f'<{here}?{urlencode([*kept, ("offset", start), ("limit", limit)])}>; rel="{relation}"'
        for relation, start in pages.items()
    )
