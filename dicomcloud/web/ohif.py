"""The OHIF viewer service of the original: a study as the JSON that OHIF reads through `?url=`."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import orjson
from flask import Response

from ..dicom import metadata
from ..errors import Gone, NotFound
from .openapi import Blueprint, faults
from .service import check_uids, current_service, server_url

blueprint = Blueprint("OHIF", __name__, description="Study description for the OHIF viewer (outside the standard)")

_RESPONSES = {
    "200": {
        "description": "Studies, series and instances; no study when nothing was found",
        "content": {"application/json": {"schema": {"type": "object"}}},
    },
    **faults(400),
}


@blueprint.route("/study/<study>/series")
@blueprint.doc(summary="Describe a study for OHIF", responses=_RESPONSES)
def describe_study(study: str) -> Response:
    return _describe(study)


@blueprint.route("/study/<study>/series/<series>/instances")
@blueprint.doc(summary="Describe a series for OHIF", responses=_RESPONSES)
def describe_series(study: str, series: str) -> Response:
    return _describe(study, series)


@blueprint.route("/study/<study>/series/<series>/instances/<instance>/frames")
@blueprint.doc(summary="Describe an instance for OHIF", responses=_RESPONSES)
def describe_instance(study: str, series: str, instance: str) -> Response:
    return _describe(study, series, instance)


def _describe(study: str, series: str | None = None, instance: str | None = None) -> Response:
    check_uids(study=study, series=series, instance=instance)
    studies: dict[str, dict[str, Any]] = {}
    with suppress(NotFound, Gone):  # the original answers with an empty list
        for document in current_service().archive.documents(study, series, instance):
            _add(studies, orjson.loads(document))
    for entry in studies.values():
        entry["seriesList"] = list(entry["seriesList"].values())
    body = {"transactionId": str(uuid.uuid4()), "studies": list(studies.values())}
    return Response(orjson.dumps(body), mimetype="application/json")


def _add(studies: dict[str, dict[str, Any]], attributes: dict[str, Any]) -> None:
    study, series, instance = (
        metadata.text(attributes, keyword) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    entry = studies.setdefault(
        study,
        {"studyInstanceUid": study, "patientName": metadata.text(attributes, "PatientName"), "seriesList": {}},
    )
    series_entry = entry["seriesList"].setdefault(
        series,
        {
            "seriesInstanceUid": series,
            "seriesDescription": metadata.text(attributes, "SeriesDescription"),
            "instances": [],
        },
    )
    frames = _number(attributes, "NumberOfFrames")
    series_entry["instances"].append(
        {
            "sopInstanceUid": instance,
            "rows": _number(attributes, "Rows"),
            "numberOfFrames": frames if frames and frames > 1 else None,
            "url": _wado_uri(study, series, instance),
        }
    )


def _wado_uri(study: str, series: str, instance: str) -> str:
    """The instance's WADO-URI address, its scheme replaced by `dicomweb:`, which OHIF's image loader takes."""
    query = {
        "requestType": "WADO",
        "studyUID": study,
        "seriesUID": series,
        "objectUID": instance,
        "contentType": "application/dicom",
    }
    return "dicomweb:" + f"{server_url()}/wadouri?{urlencode(query)}".partition(":")[2]


def _number(attributes: dict[str, Any], keyword: str) -> int | None:
    text = metadata.text(attributes, keyword)
    return int(text) if text.isdigit() else None
