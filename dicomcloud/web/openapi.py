"""The OpenAPI description, its parts, and Swagger UI, all served by this server."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import flask
import flask_smorest
import orjson
from flask import Flask, Response, abort, send_file
from flask_smorest import Api

from .headers import page_policy
from .service import server_url

View = TypeVar("View", bound=Callable[..., Any])

pages = flask.Blueprint("pages", __name__)


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc, unused-ignore]
    """flask-smorest's, but what is said of a view does not wrap it, which would cost time at every request."""

    @staticmethod
    def doc(**description: Any) -> Callable[[View], View]:
        describe = flask_smorest.Blueprint.doc(**description)

        def decorate(view: View) -> View:
            vars(view)["_apidoc"] = describe(view)._apidoc
            return view

        return decorate


_FAULTS = {
    400: "The request is wrong; the message names what",
    401: "Nobody, or not somebody who is known, sent this",
    403: "The caller may not do this",
    404: "Nothing is stored under these UIDs",
    406: "None of the acceptable media types is available; the message lists those that are",
    409: "Nothing was stored; the body gives the reason for each instance",
    410: "It was stored and has been deleted",
    413: "The body is larger than the server accepts",
    415: "The Content-Type is not supported",
    416: "The Range lies outside of the value",
    429: "Too many failed logins; try again later",
    503: "The server is short of a resource; try again later",
}

_STATUS_REPORT = {
    "type": "object",
    "properties": {
        "status": {"type": "integer"},
        "error": {"type": "string"},
        "message": {"type": "string", "description": "What is wrong"},
    },
}

UID_PARAMETERS = [
    {"in": "path", "name": name, "required": True, "description": f"{keyword} ({tag})", "schema": {"type": "string"}}
    for name, keyword, tag in (
        ("study", "Study Instance UID", "0020,000D"),
        ("series", "Series Instance UID", "0020,000E"),
        ("instance", "SOP Instance UID", "0008,0018"),
    )
]

DATA_SETS = {"type": "array", "items": {"type": "object", "additionalProperties": True}}
BINARY = {"type": "string", "format": "binary"}


def faults(*statuses: int) -> dict[str, Any]:
    """The OpenAPI responses of these statuses."""
    report = {"content": {"application/json": {"schema": _STATUS_REPORT}}}
    return {str(status): {"description": _FAULTS[status], **report} for status in statuses}


def query(name: str, description: str, schema: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """An optional query parameter."""
    return {"in": "query", "name": name, "description": description, "schema": schema or {"type": "string"}, **more}


def header(name: str, description: str) -> dict[str, Any]:
    return {"in": "header", "name": name, "description": description, "schema": {"type": "string"}}


def content(*media_types: str, schema: dict[str, Any] = BINARY) -> dict[str, Any]:
    return {media_type: {"schema": schema} for media_type in media_types}


def add_pages(app: Flask, api: Api) -> None:
    """Serve /openapi.json and /swagger."""

    @cache
    def description() -> dict[str, Any]:
        spec: dict[str, Any] = api.spec.to_dict()
        for operations in spec["paths"].values():
            names = {parameter["name"]: parameter for parameter in UID_PARAMETERS}
            for parameter in operations.get("parameters", []):
                if parameter["in"] == "path" and parameter["name"] in names:
                    parameter.update(names[parameter["name"]])
            for method, operation in operations.items():
                if method != "parameters":
                    operation["operationId"] = _operation_id(operation["summary"])
                    operation["responses"].pop("default", None)  # of flask-smorest, whose faults are not ours
        spec.setdefault("components", {})["securitySchemes"] = _SECURITY_SCHEMES
        spec["security"] = [{}, *({name: []} for name in _SECURITY_SCHEMES)]
        return spec

    def openapi_document() -> Response:
        body = {**description(), "servers": [{"url": server_url()}]}
        return Response(orjson.dumps(body), mimetype="application/json")

    app.add_url_rule("/openapi.json", "openapi_document", openapi_document)
    app.register_blueprint(pages)


#: What Swagger UI's Authorize button offers.
_SECURITY_SCHEMES = {
    "password": {"type": "http", "scheme": "basic", "description": "Name and password of a user"},
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of the login server (OpenID Connect), an API key, or the token of a share link",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key"},
}


def _operation_id(summary: str) -> str:
    return "_".join("".join(char if char.isalnum() else " " for char in summary.lower()).split())


@pages.route("/swagger")
def swagger_page() -> Response:
    response = Response(_SWAGGER_PAGE, mimetype="text/html")
    response.headers["Content-Security-Policy"] = _SWAGGER_POLICY
    return response


@pages.route("/swagger/assets/<name>")
def swagger_asset(name: str) -> Response:
    media_type = {"js": "text/javascript", "css": "text/css", "png": "image/png"}.get(name.rpartition(".")[2])
    asset = files("flask_swagger_ui") / "dist" / name
    if media_type is None or not asset.is_file():
        abort(404)
    return send_file(str(asset), mimetype=media_type, max_age=86400)


_SWAGGER_SCRIPT = """
// Whoever is logged in with this browser shows with what changes something that it comes from this page.
const session = fetch("session").then(answer => answer.ok ? answer.json() : {}).catch(() => ({}));
window.ui = SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, displayRequestDuration: true,
  docExpansion: "list", defaultModelsExpandDepth: -1, validatorUrl: null, tryItOutEnabled: true,
  requestInterceptor: async request => {
    const token = (await session).csrf_token;
    if (request.loadSpec) return request;
    request.headers["X-Requested-With"] = "XMLHttpRequest"; // else a 401 opens the browser's own window
    if (token) request.headers["X-CSRF-Token"] = token;
    return request;
  }
});
"""
_SWAGGER_POLICY = page_policy(_SWAGGER_SCRIPT)
# All addresses are relative, so that the page works under any prefix of a reverse proxy.
_SWAGGER_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DICOMcloud: try the DICOMweb services</title>
<link rel="stylesheet" href="swagger/assets/swagger-ui.css">
<link rel="icon" type="image/png" href="swagger/assets/favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="swagger/assets/swagger-ui-bundle.js"></script>
<script>{_SWAGGER_SCRIPT}</script>
</body>
</html>
"""
