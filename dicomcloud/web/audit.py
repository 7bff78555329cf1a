"""Every request in the audit trail: who, what, when, from where, and how it ended; and its number in the log.

What a route does is told by the permission that it needs. Stores and deletes that succeed write themselves, in the
transaction that makes them true (`archive`).
"""

from __future__ import annotations

import logging
import random
import re
from time import perf_counter
from typing import Any, Final

from flask import Flask, Request, Response, g, request

from ..access import Permission
from ..audit import Actor, AuditTrail
from ..audit.actor import set_actor
from .service import Service, client_address, comes_from_proxy, current_request

REQUEST_ID: Final = "X-Request-ID"

log = logging.getLogger("dicomcloud.requests")

_ACTIONS: Final = {
    Permission.READ: "retrieve",
    Permission.DEIDENTIFIED: "retrieve",
    Permission.STORE: "store",
    Permission.DELETE: "delete",
    Permission.SHARE: "share",
    Permission.ADMINISTER: "administer",
}
_REFUSALS: Final = (401, 403, 429)
_LONGEST_QUERY: Final = 2000  # characters


def record(app: Flask, service: Service) -> None:
    """Note every request, and log it. To be called before anything else that looks at requests."""
    trail, log_requests, behind_proxies = service.archive.audit, service.log_requests, bool(service.trusted_proxies)

    # `request` and `g` look for their object at each use, which is dear: here they are taken once.
    @app.before_request
    def begin() -> None:
        own, asked = g._get_current_object(), current_request()
        address = client_address() if behind_proxies else asked.remote_addr or ""
        own.actor = actor = Actor("anonymous", "", address, _request_id(asked))
        set_actor(actor)
        if log_requests:
            own.began = perf_counter()

    @app.after_request
    def finish(response: Response) -> Response:
        own = vars(g._get_current_object())
        actor: Actor | None = own.get("actor")
        if actor is None:  # it failed before it began
            return response
        response.headers.add(REQUEST_ID, actor.request_id)
        _note(trail, own, actor, response.status_code)
        if log_requests:
            _log(actor, response.status_code, perf_counter() - own["began"])
        return response


def _note(trail: AuditTrail, own: dict[str, Any], actor: Actor, status: int) -> None:
    need, caller = own.get("need"), own.get("caller")
    asked = current_request()
    if need is None or asked.method == "OPTIONS":
        return
    view = (asked.endpoint or "").rpartition(".")[2]
    study, series, instance = _uids(asked)
    if own.get("refused") or status == 401 or (status in _REFUSALS and caller is None):
        if not actor.recorded:
            trail.note("refuse", status, study=study, detail=f"{asked.method} {view}")
        return
    action = need.action or _ACTIONS.get(need.permission)
    if action is None or (actor.recorded and status in (200, 204)):
        return
    detail = view
    if action == "search" and (query := asked.environ.get("QUERY_STRING", "")):
        detail = f"{view}?{query[:_LONGEST_QUERY]}"
    trail.note(action, status, study=study, series=series, instance=instance, detail=detail)


def _uids(asked: Any) -> tuple[str, str, str]:
    """The study, series and instance that the path names, or the parameters of WADO-URI."""
    path, endpoint = asked.view_args, asked.endpoint or ""
    if path:
        return str(path.get("study", ""))[:64], str(path.get("series", ""))[:64], str(path.get("instance", ""))[:64]
    if endpoint.startswith("WADO-URI"):
        study, series, instance = (asked.args.get(name, "")[:64] for name in ("studyUID", "seriesUID", "objectUID"))
        return study, series, instance
    return "", "", ""


def _log(actor: Actor, status: int, seconds: float) -> None:
    rule = request.url_rule.rule if request.url_rule else "-"  # without UIDs and queries
    fields = {
        "method": request.method,
        "route": rule,
        "status": status,
        "ms": round(seconds * 1000, 1),
        "caller": actor.caller,
        "address": actor.address,
    }
    text = "%(method)s %(route)s %(status)s %(ms)s ms %(caller)s %(address)s"
    log.info(text, fields, extra={"fields": fields})


def _request_id(asked: Request) -> str:
    given: str = asked.environ.get("HTTP_X_REQUEST_ID", "")
    if given and comes_from_proxy() and re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given):
        return given
    return f"{random.getrandbits(64):016x}"  # a number to look for, no secret
