"""Is the server alive, and can it work? For load balancers and monitors."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from ..errors import DicomWebError
from .service import current_service

blueprint = Blueprint("health", __name__)


@blueprint.route("/healthz")
def alive() -> dict[str, Any]:
    return {"status": "ok"}


@blueprint.route("/readyz")
def ready() -> tuple[dict[str, Any], int]:
    try:
        current_service().archive.check()
    except (DicomWebError, OSError) as error:
        return {"status": "not ready", "message": str(error)}, 503
    return {"status": "ready"}, 200
