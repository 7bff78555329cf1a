"""The change feed (outside the standard): what was stored, replaced and deleted, in the order in which it happened."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import orjson
from flask import Response, request

from ..errors import BadRequest, NotFound
from .openapi import Blueprint, faults, query
from .service import current_service, service_url

blueprint = Blueprint("changes", __name__, description="Change feed (outside the standard)")

_LIMIT = 1000
_MOST = 10_000

_CHANGE = {
    "type": "object",
    "properties": {
        "sequence": {"type": "integer", "description": "Ascending, without gaps, never used twice"},
        "time": {"type": "string", "format": "date-time"},
        "action": {"type": "string", "enum": ["stored", "replaced", "deleted"]},
        "study": {"type": "string"},
        "series": {"type": "string"},
        "instance": {"type": "string"},
        "sop_class": {"type": "string"},
    },
}
_PAGE = {
    "type": "object",
    "properties": {
        "changes": {"type": "array", "items": _CHANGE},
        "since": {"type": "integer", "description": "What to ask for next"},
        "last": {"type": "integer", "description": "Sequence of the newest change"},
        "next": {"type": "string", "description": "URL of the next page; missing when this is the last one"},
    },
}


@blueprint.route("/changes")
@blueprint.doc(
    summary="List changes of the archive",
    description=(
        "Instances that were stored, replaced or deleted, oldest first. Ask with `since` 0, and from then on with the "
        "`since` of the last answer: each change is seen once, and none is missed, however many clients store at the "
        "same time. 410 when the changes in between are no longer kept or the index was made anew: begin with 0."
    ),
    parameters=[
        query("since", "Changes behind this sequence", {"type": "integer", "minimum": 0, "default": 0}),
        query("limit", "Most changes of one answer", {"type": "integer", "minimum": 0, "maximum": _MOST}),
    ],
    responses={
        "200": {"description": "A page of the feed", "content": {"application/json": {"schema": _PAGE}}},
        **faults(400, 404, 410),
    },
)
def list_changes() -> Response:
    events = current_service().archive.events
    if not events.has_feed:
        raise NotFound("This server keeps no change feed (setting change_feed)")
    since, limit = _number("since", 0, 2**63 - 1), _number("limit", _LIMIT, _MOST)
    entries, last = events.page(since, limit)
    reached = entries[-1].sequence if entries else since
    body: dict[str, Any] = {
        "changes": [
            {
                "sequence": entry.sequence,
                "time": entry.changed_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
                "action": entry.action,
                "study": entry.study_uid,
                "series": entry.series_uid,
                "instance": entry.sop_uid,
                "sop_class": entry.sop_class_uid,
            }
            for entry in entries
        ],
        "since": reached,
        "last": last,
    }
    if reached < last:
        body["next"] = f"{service_url()}/changes?{urlencode({'since': reached, 'limit': limit or _LIMIT})}"
    return Response(orjson.dumps(body), mimetype="application/json", headers={"Cache-Control": "no-store"})


def _number(name: str, default: int, most: int) -> int:
    text = request.args.get(name, str(default)).strip()
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > most:
        raise BadRequest(f"The query parameter {name}: {text[:40]!r} is no whole number from 0 to {most}")
    return int(text)
