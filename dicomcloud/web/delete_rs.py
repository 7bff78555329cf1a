"""DELOW-RS: delete a study, a series or an instance. Outside the standard, as the original had it."""

from __future__ import annotations

from flask import Response

from .openapi import Blueprint, faults
from .service import check_uids, current_service

blueprint = Blueprint("DELOW-RS", __name__, description="Delete (outside the standard)")

_RESPONSES = {"204": {"description": "Deleted; parents that became empty went with it"}, **faults(400, 404, 410)}


@blueprint.route("/studies/<study>", methods=["DELETE"])
@blueprint.doc(summary="Delete a study", responses=_RESPONSES)
def delete_study(study: str) -> Response:
    return _delete(study)


@blueprint.route("/studies/<study>/series/<series>", methods=["DELETE"])
@blueprint.doc(summary="Delete a series", responses=_RESPONSES)
def delete_series(study: str, series: str) -> Response:
    return _delete(study, series)


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>", methods=["DELETE"])
@blueprint.doc(summary="Delete an instance", responses=_RESPONSES)
def delete_instance(study: str, series: str, instance: str) -> Response:
    return _delete(study, series, instance)


def _delete(study: str, series: str | None = None, instance: str | None = None) -> Response:
    check_uids(study=study, series=series, instance=instance)
    current_service().archive.delete(study, series, instance)
    return Response(status=204)
