"""The study browser: the pages at `/` and `/study/{study}`.

The server renders the page and its controls; small JavaScript modules fill it over the DICOMweb services, as any other
client would, with the exception of `summary.json` (figures about the archive) and `dictionary.json` (names of tags).
There is nothing to build, and nothing comes from another host.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import orjson
from flask import Blueprint, Response, render_template, request

from ... import __version__
from ...access import Permission
from ...archive import InstanceRow
from ...dicom.attributes import attribute_names
from ...dicom.deidentification import CannotDeidentify
from ...dicom.pixel_data import CannotTranscode
from ...dicom.stored_image import CannotRender
from ...errors import NotAcceptable, NotFound
from ..assets import send_asset
from ..auth import current_caller, current_csrf_token, needs, sees_copies_only
from ..ohif_viewer import is_installed
from ..service import check_uids, current_service, server_url

blueprint = Blueprint("site", __name__, template_folder="templates")

_STATIC: Final = Path(__file__).parent / "static"
_DAYS: Final = 14  # of the activity summary
_PREVIEW: Final = 256  # pixels, the longer side of a de-identified preview
_TRIED: Final = 3  # images of a series, for one that may be shown

#: Nothing but this server's own files and answers; no script or style in the page itself.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "frame-src 'self' blob:",
        "object-src 'self'",  # the browser's own PDF viewer
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'self'",
    )
)


@blueprint.route("/")
@needs(Permission.READ, narrows=True)
def studies_page() -> Response:
    """Search, upload, and what the archive holds."""
    return _page("studies.html", title="Studies")


@blueprint.route("/study/<study>")
@needs(Permission.DEIDENTIFIED)
def study_page(study: str) -> Response:
    """The series and instances of a study, with previews; for who sees de-identified copies only, their download."""
    check_uids(study=study)
    if sees_copies_only():
        images = current_service().archive.instances(study)
        many = {"images": len(images), "series": len({image.series_uid for image in images})}
        return _page("copies.html", title="De-identified study", study=study, only_copies=True, **many)
    return _page("study.html", title="Study", study=study)


@blueprint.route("/study/<study>/preview/<int:number>")
@needs(Permission.DEIDENTIFIED)
def deidentified_preview(study: str, number: int) -> Response:
    """A picture out of the de-identified copies of a series, the first of which is 1.

    The series are counted, not named: their UIDs are not for who sees copies only.
    """
    check_uids(study=study)
    archive = current_service().archive
    series: dict[str, list[InstanceRow]] = {}
    for row in archive.instances(study):
        series.setdefault(row.series_uid, []).append(row)
    if not 1 <= number <= len(series):
        raise NotFound(f"The study has {len(series)} series")
    images = [row for row in list(series.values())[number - 1] if row.number_of_frames]
    middle = len(images) // 2
    for row in [*images[middle:], *images[:middle]][:_TRIED]:
        try:
            picture = archive.deidentified_preview(row, (row.number_of_frames + 1) // 2, _PREVIEW)
        except (CannotDeidentify, CannotTranscode, CannotRender):
            continue
        response = Response(picture, mimetype="image/jpeg")
        response.headers["Cache-Control"] = "private, no-cache"
        return response
    raise NotAcceptable("There is no picture of this series that may be shown")


def _page(template: str, **values: object) -> Response:
    """A page for the caller: what they may not do is not on it."""
    service, caller = current_service(), current_caller()
    guest = caller.method == "share link"
    return page(
        template,
        root=service.root,
        version=__version__,
        account=("Shared with you" if guest else caller.name) if service.authentication else "",
        guest=guest,
        logged_in=caller.method == "session",
        csrf=current_csrf_token() if caller.method in ("session", "share link") else "",
        may_store=caller.may(Permission.STORE),
        may_delete=caller.may(Permission.DELETE),
        may_install=caller.may(Permission.ADMINISTER),
        may_share=service.authentication is not None and caller.may(Permission.SHARE),
        most_hours=service.share_max_hours,
        viewer=is_installed(),
        **values,
    )


def page(template: str, **values: object) -> Response:
    """A page of `templates/`. `base` in it is the path of this server as the client sees it, '' for the root."""
    response = Response(
        render_template(template, base=urlsplit(server_url()).path.rstrip("/"), **values), mimetype="text/html"
    )
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "private, no-cache"
    return response


_TITLES: Final = {
    400: "This address is not right",
    401: "This cannot be opened",
    403: "This is not for you to see",
    404: "There is nothing here",
    406: "It cannot be shown in a browser",
    410: "It has been deleted",
    429: "Too many requests",
    500: "Something went wrong",
    503: "Not just now",
}


def fault_page(report: Response) -> Response:
    """The status report of a request that failed; where a person reads it in a browser, as a page."""
    if request.method != "GET" or report.status_code < 400 or report.mimetype != "text/plain":
        return report
    if "text/html" not in request.headers.get("Accept", ""):
        return report
    phrase = HTTPStatus(report.status_code).phrase
    shown = page(
        "fault.html",
        title=_TITLES.get(report.status_code, phrase),
        message=report.get_data(as_text=True).partition("\n")[2].strip(),
        status=f"{report.status_code} {phrase}",
    )
    shown.status_code = report.status_code
    for name, value in report.headers:
        if name not in ("Content-Type", "Content-Length"):
            shown.headers.add(name, value)
    return shown


@blueprint.route("/site/<path:name>")
def asset(name: str) -> Response:
    """A style sheet, a script, the icons."""
    return send_asset(_STATIC, name)


@blueprint.route("/site/summary.json")
@needs(Permission.READ)
def summary() -> Response:
    """How much is stored, how much room is left, and what came in on each of the last 14 days (UTC)."""
    archive = current_service().archive
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = [today - timedelta(days=back) for back in reversed(range(_DAYS))]
    received = archive.index.received(days)
    body = {
        **archive.index.counts(),
        "free_bytes": archive.disk_space()[0],
        "received": [
            {"day": day.date().isoformat(), "instances": count} for day, count in zip(days, received, strict=True)
        ],
    }
    response = Response(orjson.dumps(body), mimetype="application/json")
    response.headers["Cache-Control"] = "private, no-cache"
    return response


@cache
def _dictionary() -> bytes:
    return orjson.dumps(attribute_names())


@blueprint.route("/site/dictionary.json")
def dictionary() -> Response:
    """Tag → name of every attribute of PS3.6."""
    response = Response(_dictionary(), mimetype="application/json")
    response.headers["Cache-Control"] = "public, max-age=86400"
    return response
