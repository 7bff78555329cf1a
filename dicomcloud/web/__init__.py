"""HTTP: one file per DICOMweb service, registered here under every prefix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response, request
from flask_smorest import Api
from werkzeug.exceptions import HTTPException

from .. import __version__
from ..access import Permission
from ..dicom.stored_image import CannotRender
from ..dicom.waveforms import CannotDraw
from ..errors import NotAcceptable
from . import (
    audit,
    changes,
    delete_rs,
    health,
    metrics,
    ohif,
    ohif_viewer,
    qido_rs,
    retrieve,
    sessions,
    site,
    stow_rs,
    wado_metadata,
    wado_rendered,
    wado_rs,
    wado_uri,
)
from .auth import Need, guard
from .capabilities import add_capabilities
from .headers import add_headers
from .limits import add_limits
from .openapi import add_pages
from .responses import fault
from .service import Service

_RESOURCES = (
    wado_rs,
    wado_metadata,
    wado_rendered,
)  # imported for their routes, which are on the blueprint of `retrieve`


def register(app: Flask, service: Service) -> None:
    """Put all services on `app`, under the canonical root and under the roots of the original."""
    app.extensions["dicomcloud"] = service
    app.config.update(
        API_TITLE="DICOMcloud",
        API_VERSION=__version__,
        OPENAPI_VERSION="3.0.3",
        API_SPEC_OPTIONS={"info": {"description": _ABOUT}},
        MAX_CONTENT_LENGTH=None,  # the views that read a body have limits of their own
    )
    metrics.register(app, service.archive)
    audit.record(app, service)
    api = Api(app)
    root = service.root
    declared = {name: Need(Permission.PUBLIC) for name in ("health", "pages", "openapi_document", "site")}
    declared["metrics"] = Need(Permission.MONITOR, narrows=True)
    for blueprint, documented, others, need in (
        (qido_rs.blueprint, root, ["/api", "/qidors"], Need(Permission.READ, narrows=True, action="search")),
        (retrieve.blueprint, root, ["/api", "/wadors"], Need(Permission.READ)),
        (stow_rs.blueprint, root, ["/api", "/stowrs"], Need(Permission.STORE, narrows=True)),
        (delete_rs.blueprint, root, ["/api", "/delowrs"], Need(Permission.DELETE)),
        (wado_uri.blueprint, "/wado", ["/wadouri", "/api/wadouri"], Need(Permission.READ, narrows=True)),
        (ohif.blueprint, "/ohif", [], Need(Permission.READ)),
        (changes.blueprint, root, ["/api"], Need(Permission.READ)),
    ):
        api.register_blueprint(blueprint, url_prefix=documented)
        declared[blueprint.name] = need
        for prefix in others:
            if prefix != documented:
                name = blueprint.name + prefix.replace("/", "_")
                app.register_blueprint(blueprint, url_prefix=prefix, name=name)
                declared[name] = need
    app.add_url_rule("/stowrs", "store_at_stowrs", stow_rs.store_instances, methods=["POST"])  # the original's own
    declared["store_at_stowrs"] = declared[stow_rs.blueprint.name]
    api.register_blueprint(sessions.blueprint)
    app.register_blueprint(health.blueprint)
    add_pages(app, api)
    add_capabilities(app, api, [root, "/api", "/qidors", "/wadors", "/stowrs", "/delowrs"])
    app.register_blueprint(site.blueprint)
    app.register_blueprint(ohif_viewer.blueprint)
    for error in (Exception, HTTPException):  # the second in place of the one of flask-smorest
        app.register_error_handler(error, lambda reason: site.fault_page(fault(reason)))
    for error in (CannotRender, CannotDraw):
        app.register_error_handler(error, lambda reason: site.fault_page(fault(NotAcceptable(str(reason)))))
    add_headers(app, service)
    if service.retrieved is not None:
        _tell_retrievals(app, service.retrieved)
    guard(app, service, declared)
    add_limits(app, service)
    app.wsgi_app = _TidyPaths(app.wsgi_app)  # type: ignore[method-assign]


_ABOUT = (
    "DICOMweb (PS3.18) search, retrieve and store, and delete. The same services answer under `/api` and under the "
    "roots `/qidors`, `/wadors`, `/stowrs`, `/delowrs` and `/wadouri`."
)


class _TidyPaths:
    """Accept doubled slashes and a slash at the end, which clients of the original send."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path.endswith("/") or "//" in path:
            environ["PATH_INFO"] = re.sub("/+", "/", path).rstrip("/") or "/"
        return self._application(environ, start_response)


def _tell_retrievals(app: Flask, retrieved: Callable[[str, dict[str, Any]], None]) -> None:
    """An event of every answer that held data of a study; its body may still be on the way."""
    services = (retrieve.blueprint.name, wado_uri.blueprint.name)
    parameters = {"seriesUID": "series", "objectUID": "instance", "series": "series", "instance": "instance"}

    @app.after_request
    def tell(response: Response) -> Response:
        endpoint = request.endpoint or ""
        if response.status_code in (200, 206) and request.method == "GET" and endpoint.startswith(services):
            uids = {**request.args, **(request.view_args or {})}
            study = uids.get("study") or uids.get("studyUID") or ""
            known = {name: uids[parameter] for parameter, name in parameters.items() if parameter in uids}
            retrieved(study, {"resource": endpoint.rpartition(".")[2], "status": response.status_code, **known})
        return response
