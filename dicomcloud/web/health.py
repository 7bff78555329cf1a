"""Is the server alive, and can it work? For load balancers and monitors."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request

from .service import current_service

blueprint = Blueprint("health", __name__)


@blueprint.route("/healthz")
def alive() -> dict[str, Any]:
    return {"status": "ok"}


@blueprint.route("/readyz")
def ready() -> tuple[dict[str, Any], int]:
    """503 while index, storage or disk space is not as it has to be.

    A full disk stops storing only: a load balancer that shall go on sending searches and retrieves asks
    `/readyz?for=reading`.
    """
    faults = current_service().archive.health()
    checks = {part.replace(" ", "_"): faults.get(part, "ok") for part in ("index", "storage", "disk space")}
    hindrances = faults.keys() - {"disk space"} if request.args.get("for") == "reading" else faults.keys()
    if hindrances:
        return {"status": "not ready", "message": "; ".join(faults.values()), "checks": checks}, 503
    return {"status": "ready", "checks": checks}, 200
