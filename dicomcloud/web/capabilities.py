"""Retrieve Capabilities: what this server can do, for machines (PS3.18 8.9, Annexes G and H).

OPTIONS on the root of the services, or on any resource below it, gives a WADL document: the tree of Table H-1 with the
methods, parameters, media types and status codes of each resource. It is made from the registered routes and their
OpenAPI description, so that a new route is in it without a word here. A CORS preflight is no Retrieve Capabilities.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from typing import Any

import orjson
from flask import Flask, Response, request
from flask_smorest import Api
from lxml import etree

from .negotiation import Offer, negotiate
from .openapi import UID_PARAMETERS
from .responses import DICOM_JSON, not_modified
from .service import current_service, server_url

WADL = "application/vnd.sun.wadl+xml"
WADL_NAMESPACE = "http://wadl.dev.java.net/2009/02"
JSON = "application/json"

# The negotiation takes application/json for the DICOM JSON Model, which a capabilities description is not.
_OFFERS = (Offer(WADL), Offer(JSON), Offer(DICOM_JSON))

_SCHEMA_NAMESPACE = "http://www.w3.org/2001/XMLSchema"
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_TYPES = {"integer": "xs:integer", "number": "xs:decimal", "boolean": "xs:boolean"}
# Elements that WADL, or for `resources` Annex H, allows once in their parent; all others are arrays in JSON (G.2).
_UNIQUE = {"application", "resources", "request"}


@dataclass(slots=True)
class _Resource:
    """One segment of a path, what can be done with it, and what lies below it."""

    segment: str
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    children: dict[str, _Resource] = field(default_factory=dict)


def add_capabilities(app: Flask, api: Api, roots: Iterable[str]) -> None:
    """Answer OPTIONS on the services' `roots`, on the resources below them and on the other documented ones."""
    roots = tuple(dict.fromkeys(roots))
    default_answer = app.make_default_options_response

    @cache
    def tree(root: str) -> _Resource:
        return _tree(app, api, root)

    def capabilities() -> Response:
        rule = request.url_rule
        if rule is None or "Access-Control-Request-Method" in request.headers:
            return default_answer()
        path = current_service().root if rule.rule == "/" else rule.rule
        root = max((root for root in roots if f"{path}/".startswith(f"{root}/")), key=len, default="")
        segments = _segments(path.removeprefix(root))
        target: _Resource | None = tree(root)
        for segment in segments:
            target = target.children.get(segment) if target else None
        if target is None:  # a page, which is no resource of a service
            return default_answer()
        response = _answer(server_url() + root, segments, target)
        response.allow.update(sorted(default_answer().allow))
        return response

    app.make_default_options_response = capabilities  # type: ignore[method-assign]
    taken = {rule.rule for rule in app.url_map.iter_rules()}
    for root in roots:
        if root not in taken:
            app.add_url_rule(root, "capabilities" + root.replace("/", "_"), capabilities, methods=["OPTIONS"])


def _tree(app: Flask, api: Api, root: str) -> _Resource:
    """The resources below `root`: routes whose view has an OpenAPI description, wherever that was registered."""
    documented: dict[tuple[Any, str], dict[str, Any]] = {}
    paths = api.spec.to_dict()["paths"]
    rules = [(rule, app.view_functions[rule.endpoint]) for rule in app.url_map.iter_rules()]
    for rule, view in rules:
        for method, operation in paths.get("/" + "/".join(_segments(rule.rule)), {}).items():
            if method.upper() in (rule.methods or ()):
                documented[view, method.upper()] = operation
    top = _Resource("")
    for rule, view in rules:
        operations = {method: documented[view, method] for method in rule.methods or () if (view, method) in documented}
        if operations and f"{rule.rule}/".startswith(f"{root}/"):
            here = top
            for segment in _segments(rule.rule.removeprefix(root)):
                here = here.children.setdefault(segment, _Resource(segment))
            here.operations |= operations
    return top


def _segments(rule: str) -> list[str]:
    """`/studies/<study>/bulkdata/<path:attribute>` → studies, {study}, bulkdata, {attribute}."""
    return [re.sub(r"<(?:[^>]*:)?(\w+)>", r"{\1}", segment) for segment in rule.split("/") if segment]


def _answer(base: str, segments: Sequence[str], target: _Resource) -> Response:
    choice = negotiate(request.headers.get("Accept"), request.args.get("accept"), _OFFERS)
    description = _description(base, segments, target)
    if choice.offer.media_type == WADL:
        body = etree.tostring(description, encoding="UTF-8", xml_declaration=True, pretty_print=True)
        response = Response(body, content_type=WADL)
    else:
        body = orjson.dumps({"application": _json(description)})
        response = Response(body, content_type=JSON)
    etag = blake2b(body, digest_size=16).hexdigest()
    response = not_modified(etag) or response
    response.set_etag(etag)
    response.vary.add("Accept")
    return response


# ------------------------------------------------------------------------------------------------- WADL


def _description(base: str, segments: Sequence[str], target: _Resource) -> etree._Element:
    """The `application` that describes `target`, `segments` below `base`, and all below it (Annex H)."""
    names: Any = {None: WADL_NAMESPACE, "xs": _SCHEMA_NAMESPACE}
    application = etree.Element(f"{{{WADL_NAMESPACE}}}application", nsmap=names)
    resources = _add(application, "resources", base=base)
    taken: set[str] = set()
    if segments or target.operations:
        _add_resource(resources, "/".join(segments), target, taken)
    else:
        for child in _in_order(target):
            _add_resource(resources, child.segment, child, taken)
    return application


def _in_order(resource: _Resource) -> list[_Resource]:
    """The resources below, names before templates."""
    return sorted(resource.children.values(), key=lambda child: (child.segment.startswith("{"), child.segment))


def _add_resource(parent: etree._Element, path: str, resource: _Resource, taken: set[str]) -> None:
    element = _add(parent, "resource", path=path)
    documented = {parameter["name"]: parameter for parameter in UID_PARAMETERS}
    for name in re.findall(r"{(\w+)}", path):
        _add_parameter(element, documented.get(name, {"name": name}), "template", required=True)
    for method in sorted(resource.operations, key=lambda name: (name != "GET", name)):
        _add_method(element, method, resource.operations[method], taken)
    for child in _in_order(resource):
        _add_resource(element, child.segment, child, taken)


def _add_method(parent: etree._Element, name: str, operation: dict[str, Any], taken: set[str]) -> None:
    method = _add(parent, "method", name=name, id=_identifier(operation["summary"], taken))
    _add_text(method, operation.get("description", ""), title=operation["summary"])
    request_element = _add(method, "request")
    parameters = operation.get("parameters", [])
    # Parameters without a name of their own ("any attribute") have no form in WADL: they are told in words.
    for parameter in parameters:
        if _is_free(parameter):
            _add_text(request_element, parameter["description"], title=f"Other parameters: {parameter['name']}")
    acceptable = [kind for status, answer in _answers(operation) if status < 300 for kind in answer.get("content", ())]
    if acceptable:
        accept = _add(request_element, "param", name="Accept", style="header", default=default_media_type(acceptable))
        for kind in dict.fromkeys(acceptable):
            _add(accept, "option", value=kind)
    bodies = operation.get("requestBody", {}).get("content", ())
    if bodies:
        content_type = _add(request_element, "param", name="Content-Type", style="header", required="true")
        for kind in bodies:
            _add(content_type, "option", value=kind)
    for parameter in parameters:
        told = parameter["in"] == "path" or parameter["name"] in ("Accept", "Content-Type")
        if not told and not _is_free(parameter):
            _add_parameter(request_element, parameter, parameter["in"], required=parameter.get("required", False))
    for kind in bodies:
        _add(request_element, "representation", mediaType=kind)
    for status, answer in _answers(operation):
        response = _add(method, "response", status=str(status))
        _add_text(response, answer["description"])
        for header, described in answer.get("headers", {}).items():
            _add_parameter(response, {"name": header, **described}, "header")
        for kind in answer.get("content", ()):
            _add(response, "representation", mediaType=kind)


def default_media_type(documented: Sequence[str]) -> str:
    """What is sent when every media type is acceptable: the first documented one, or its form in parts (10.4.4).

    OpenAPI names the single part first where there is one, so that Swagger UI offers it.
    """
    first = documented[0]
    in_parts = f'multipart/related; type="{first}"'
    return in_parts if in_parts in documented else first


def _is_free(parameter: dict[str, Any]) -> bool:
    return bool(parameter.get("schema", {}).get("type") == "object")


def _answers(operation: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The described responses by status; OpenAPI's `default` and ranges such as `4XX` have no form in WADL."""
    responses = operation["responses"].items()
    return sorted(((int(status), answer) for status, answer in responses if str(status).isdigit()), key=lambda r: r[0])


def _add_parameter(parent: etree._Element, described: dict[str, Any], style: str, *, required: bool = False) -> None:
    schema = described.get("schema", {})
    repeating = schema.get("type") == "array"
    kind = schema.get("items", {}).get("type") if repeating else schema.get("type")
    attributes = {"name": described["name"], "style": style, "type": _TYPES.get(kind, "xs:string")}
    if required:
        attributes["required"] = "true"
    if repeating:
        attributes["repeating"] = "true"
    if "default" in schema:
        attributes["default"] = str(schema["default"])
    element = _add(parent, "param", **attributes)
    _add_text(element, described.get("description", ""))
    for value in schema.get("enum", ()):
        _add(element, "option", value=str(value))


def _identifier(summary: str, taken: set[str]) -> str:
    """`Retrieve Study` → RetrieveStudy, unique in the document."""
    words = re.findall(r"[A-Za-z0-9]+", summary)
    name = "".join(word[:1].upper() + word[1:] for word in words)
    number = 1
    while (unique := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    taken.add(unique)
    return unique


def _add(parent: etree._Element, element: str, /, **attributes: str) -> etree._Element:
    return etree.SubElement(parent, f"{{{WADL_NAMESPACE}}}{element}", attributes)


def _add_text(parent: etree._Element, text: str, title: str = "") -> None:
    if text or title:
        doc = _add(parent, "doc", **({"title": title} if title else {}))
        doc.set(_XML_LANG, "en")
        doc.text = text or None


# ------------------------------------------------------------------------------------- the same as JSON


def _json(element: etree._Element) -> dict[str, Any]:
    """An element as Annex G has it: `@attribute` strings, objects for unique children, arrays for the others."""
    members: dict[str, Any] = {_json_name(str(name)): value for name, value in element.attrib.items()}
    if element.text and element.text.strip():
        members["value"] = element.text
    for child in element:
        name = etree.QName(child).localname
        if name in _UNIQUE:
            members[name] = _json(child)
        else:
            members.setdefault(name, []).append(_json(child))
    return members


def _json_name(attribute: str) -> str:
    return "@xml:lang" if attribute == _XML_LANG else f"@{attribute}"
