"""Retrieve Capabilities: WADL and JSON from the registered routes (PS3.18 8.9, Annexes G and H)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from lxml import etree

from tests.conftest import AppMaker
from tests.data import make_dataset, make_file

WADL, JSON = "application/vnd.sun.wadl+xml", "application/json"
NAMESPACE = {"w": "http://wadl.dev.java.net/2009/02"}
INSTANCE = "studies/{study}/series/{series}/instances/{instance}"

# The structure of WADL (W3C member submission of 2009-08-31, section 2), and of Annex H: one `resources` with a `base`.
SCHEMA = etree.RelaxNG(
    etree.fromstring(
        """
<grammar xmlns="http://relaxng.org/ns/structure/1.0" ns="http://wadl.dev.java.net/2009/02"
         datatypeLibrary="http://www.w3.org/2001/XMLSchema-datatypes">
  <start><element name="application">
    <ref name="docs"/>
    <element name="resources">
      <attribute name="base"><data type="anyURI"/></attribute>
      <ref name="docs"/>
      <oneOrMore><ref name="resource"/></oneOrMore>
    </element>
  </element></start>
  <define name="docs"><zeroOrMore><element name="doc">
    <optional><attribute name="title"/></optional>
    <optional><attribute name="xml:lang"><data type="language"/></attribute></optional>
    <text/>
  </element></zeroOrMore></define>
  <define name="resource"><element name="resource">
    <attribute name="path"/>
    <ref name="docs"/>
    <ref name="params"/>
    <zeroOrMore><choice><ref name="method"/><ref name="resource"/></choice></zeroOrMore>
  </element></define>
  <define name="method"><element name="method">
    <attribute name="name"><choice><value>GET</value><value>POST</value><value>PUT</value><value>DELETE</value></choice>
    </attribute>
    <attribute name="id"><data type="NCName"/></attribute>
    <ref name="docs"/>
    <optional><element name="request">
      <ref name="docs"/><ref name="params"/><ref name="representations"/>
    </element></optional>
    <zeroOrMore><element name="response">
      <attribute name="status"><list><oneOrMore><data type="unsignedInt"/></oneOrMore></list></attribute>
      <ref name="docs"/><ref name="params"/><ref name="representations"/>
    </element></zeroOrMore>
  </element></define>
  <define name="representations"><zeroOrMore><element name="representation">
    <attribute name="mediaType"/>
    <ref name="docs"/>
  </element></zeroOrMore></define>
  <define name="params"><zeroOrMore><element name="param">
    <attribute name="name"><data type="NMTOKEN"/></attribute>
    <attribute name="style">
      <choice><value>plain</value><value>query</value><value>matrix</value><value>header</value>
      <value>template</value></choice>
    </attribute>
    <optional><attribute name="type"><data type="QName"/></attribute></optional>
    <optional><attribute name="default"/></optional>
    <optional><attribute name="required"><data type="boolean"/></attribute></optional>
    <optional><attribute name="repeating"><data type="boolean"/></attribute></optional>
    <ref name="docs"/>
    <zeroOrMore><element name="option"><attribute name="value"/><ref name="docs"/></element></zeroOrMore>
  </element></zeroOrMore></define>
</grammar>"""
    )
)


def wadl(client: FlaskClient, path: str) -> etree._Element:
    answer = client.options(path, headers={"Accept": WADL})
    assert (answer.status_code, answer.content_type) == (200, WADL)
    document = etree.fromstring(answer.data)
    SCHEMA.assertValid(document)
    return document


def methods(document: etree._Element) -> dict[tuple[str, str], etree._Element]:
    """(HTTP method, path below the base) → the element."""
    found = {}
    for method in document.iterfind(".//w:method", NAMESPACE):
        segments = [each.get("path", "") for each in method.iterancestors("{*}resource")]
        found[method.get("name", ""), "/".join(reversed(segments)).strip("/")] = method
    return found


def routes(app: Flask, root: str) -> set[tuple[str, str]]:
    return {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule.removeprefix(root)).strip("/"))
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.rule.startswith(f"{root}/") or (rule.rule == root and "POST" in (rule.methods or ()))
    }


TABLE_H_1 = {
    ("GET", "studies"): "SearchForStudies",
    ("POST", "studies"): "StoreInstances",
    ("GET", "studies/{study}"): "RetrieveStudy",
    ("POST", "studies/{study}"): "StoreInstancesOfAStudy",
    ("GET", "studies/{study}/metadata"): "RetrieveStudyMetadata",
    ("GET", "studies/{study}/series"): "SearchForSeriesOfAStudy",
    ("GET", "studies/{study}/series/{series}"): "RetrieveSeries",
    ("GET", "studies/{study}/series/{series}/metadata"): "RetrieveSeriesMetadata",
    ("GET", "studies/{study}/series/{series}/instances"): "SearchForInstancesOfASeries",
    ("GET", INSTANCE): "RetrieveInstance",
    ("GET", f"{INSTANCE}/metadata"): "RetrieveInstanceMetadata",
    ("GET", f"{INSTANCE}/frames/{{frame_list}}"): "RetrieveFrames",
    ("GET", "studies/{study}/instances"): "SearchForInstancesOfAStudy",
    ("GET", "series"): "SearchForSeries",
    ("GET", "instances"): "SearchForInstances",
}


@pytest.mark.parametrize("root", ["/dicomweb", "/api"])
def test_the_root_describes_every_resource_of_table_h_1(client: FlaskClient, root: str) -> None:
    document = wadl(client, root)
    assert document.find("w:resources", NAMESPACE).get("base") == f"http://localhost{root}"  # type: ignore[union-attr]
    found = {key: method.get("id") for key, method in methods(document).items()}
    assert {key: found[key] for key in TABLE_H_1} == TABLE_H_1
    identifiers = document.xpath("//@id")
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("root", ["/dicomweb", "/api", "/qidors", "/wadors", "/stowrs", "/delowrs"])
def test_a_root_describes_its_routes_and_no_others(app: Flask, client: FlaskClient, root: str) -> None:
    expected = routes(app, root)
    assert expected
    assert set(methods(wadl(client, root))) == expected
    assert client.options(f"{root}/").data == client.options(root).data


def test_the_root_of_the_server_leads_to_the_services(client: FlaskClient, make_app: AppMaker) -> None:
    assert client.options("/").data == client.options("/dicomweb").data
    moved = make_app(root="/pacs/rs", public_url="https://pacs.example/x").test_client()
    document = wadl(moved, "/pacs/rs")
    assert document[0].get("base") == "https://pacs.example/x/pacs/rs"
    assert set(methods(document)) == set(methods(wadl(client, "/dicomweb")))


def test_all_that_openapi_says_of_an_operation_is_there(client: FlaskClient) -> None:
    described = client.get("/openapi.json").json["paths"]
    found = methods(wadl(client, "/dicomweb"))
    for (name, path), method in found.items():
        operation: dict[str, Any] = described[f"/dicomweb/{path}"][name.lower()]
        answers = {status: answer for status, answer in operation["responses"].items() if status.isdigit()}
        responses = {status: set(answer.get("content", ())) for status, answer in answers.items()}
        assert {
            answer.get("status"): set(answer.xpath("w:representation/@mediaType", namespaces=NAMESPACE))
            for answer in method.iterfind("w:response", NAMESPACE)
        } == responses
        named = {each["name"] for each in operation.get("parameters", []) if each["schema"]["type"] != "object"}
        parameters = set(method.xpath("w:request/w:param/@name", namespaces=NAMESPACE))
        assert parameters - {"Accept", "Content-Type"} == named - {"Accept", "Content-Type"}
        acceptable = set(method.xpath("w:request/w:param[@name='Accept']/w:option/@value", namespaces=NAMESPACE))
        assert acceptable == set().union(*(kinds for status, kinds in responses.items() if status < "300"))
        sent = set(method.xpath("w:request/w:representation/@mediaType", namespaces=NAMESPACE))
        assert sent == set(operation.get("requestBody", {}).get("content", ()))


def test_a_search_names_its_keys_its_limits_and_what_its_answer_says(client: FlaskClient) -> None:
    search = methods(wadl(client, "/dicomweb"))["GET", "studies"]
    parameters = {each.get("name"): each for each in search.iterfind("w:request/w:param", NAMESPACE)}
    assert {"PatientName", "StudyDate", "includefield", "offset"} <= set(parameters)
    assert (parameters["limit"].get("style"), parameters["limit"].get("type")) == ("query", "xs:integer")
    assert parameters["fuzzymatching"].xpath("w:option/@value", namespaces=NAMESPACE) == ["true", "false"]
    assert parameters["Accept"].get("default") == "application/dicom+json"
    assert "Warning" in search.xpath("w:response[@status='200']/w:param[@style='header']/@name", namespaces=NAMESPACE)
    assert "Any other attribute" in (search.findtext("w:request/w:doc", namespaces=NAMESPACE) or "")


def test_the_default_media_type_is_the_one_that_is_sent(client: FlaskClient) -> None:
    dataset = make_dataset()
    client.post("/dicomweb/studies", data=make_file(dataset), content_type="application/dicom")
    known = {"study": dataset.StudyInstanceUID, "series": dataset.SeriesInstanceUID}
    known |= {"instance": dataset.SOPInstanceUID, "frame_list": "1", "attribute": "7FE00010"}
    compared = 0
    for (name, path), method in methods(wadl(client, "/dicomweb")).items():
        (default,) = method.xpath("w:request/w:param[@name='Accept']/@default", namespaces=NAMESPACE) or [None]
        answer = client.get(f"/dicomweb/{path.format_map(known)}", headers={"Accept": "*/*"}) if name == "GET" else None
        if answer and default and answer.status_code == 200:
            assert answer.mimetype_params.get("type", answer.mimetype) in default
            assert answer.mimetype.startswith("multipart") == default.startswith("multipart")
            compared += 1
    assert compared >= 14


@pytest.mark.parametrize(
    ("path", "template", "below"),
    [
        ("studies", "studies", 17),
        ("studies/1.2.3", "studies/{study}", 15),
        ("studies/1.2.3/series/1.2.4/instances/1.2.5", INSTANCE, 5),
        ("studies/1.2.3/series/1.2.4/instances/1.2.5/frames/1,2", f"{INSTANCE}/frames/{{frame_list}}", 1),
        ("studies/1.2.3/series/1.2.4/instances/1.2.5/bulkdata/a/1/b", f"{INSTANCE}/bulkdata/{{attribute}}", 1),
        ("series", "series", 1),
    ],
)
def test_a_resource_describes_itself_and_what_is_below(
    client: FlaskClient, path: str, template: str, below: int
) -> None:
    document = wadl(client, f"/dicomweb/{path}")
    assert document[0].get("base") == "http://localhost/dicomweb"
    (resource,) = document[0]
    assert resource.get("path") == template
    whole = methods(wadl(client, "/dicomweb"))
    expected = {key for key in whole if key[1] == template or key[1].startswith(f"{template}/")}
    assert set(methods(document)) == expected
    assert len(expected) >= below
    names = re.findall(r"{(\w+)}", template)
    assert resource.xpath("w:param[@style='template'][@required='true']/@name", namespaces=NAMESPACE) == names


@pytest.mark.parametrize(
    "path", ["/wado", "/wadouri", "/api/wadouri", "/ohif/study/1.2/series/1.3/instances/1.4/frames"]
)
def test_services_beside_the_studies_service_describe_themselves(client: FlaskClient, path: str) -> None:
    ((name, _),) = methods(wadl(client, path))
    assert name == "GET"


# ----------------------------------------------------------------------------------------------- JSON


def xml_of(name: str, value: dict[str, Any]) -> etree._Element:
    """The element that Annex G represents so: the way back."""
    element = etree.Element(f"{{{NAMESPACE['w']}}}{name}")
    for key, member in value.items():
        if key == "@xml:lang":
            element.set("{http://www.w3.org/XML/1998/namespace}lang", member)
        elif key.startswith("@"):
            element.set(key[1:], member)
        elif key == "value":
            element.text = member
        else:
            element.extend(xml_of(key, each) for each in (member if isinstance(member, list) else [member]))
    return element


def plain(element: etree._Element) -> tuple[Any, ...]:
    return element.tag, dict(element.attrib), (element.text or "").strip(), [plain(child) for child in element]


@pytest.mark.parametrize("path", ["/dicomweb", "/api/studies/1.2.3", "/stowrs", "/wado"])
def test_the_json_form_is_the_same_document_without_loss(client: FlaskClient, path: str) -> None:
    answer = client.options(path, headers={"Accept": JSON})
    assert (answer.status_code, answer.content_type, list(answer.json)) == (200, JSON, ["application"])
    assert plain(xml_of("application", answer.json["application"])) == plain(wadl(client, path))


def test_repeatable_elements_are_arrays_and_unique_ones_objects(client: FlaskClient) -> None:
    resources = client.options("/dicomweb/series", headers={"Accept": JSON}).json["application"]["resources"]
    assert resources["@base"] == "http://localhost/dicomweb"
    (resource,) = resources["resource"]
    (method,) = resource["method"]
    assert isinstance(method["request"], dict)
    for repeatable in (method["response"], method["doc"], method["request"]["param"]):
        assert isinstance(repeatable, list)
    assert all(isinstance(each["@status"], str) for each in method["response"])


# --------------------------------------------------------------------------------------- negotiation, HTTP


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, WADL),
        ("*/*", WADL),
        ("application/*", WADL),
        (JSON, JSON),
        (f"{JSON}, {WADL};q=0.5", JSON),
        (f"{JSON};q=0.5, {WADL}", WADL),
        ("application/dicom+json, application/json", JSON),
        ("text/html,application/xhtml+xml,*/*;q=0.8", WADL),
    ],
)
def test_accept_chooses_the_form(client: FlaskClient, accept: str | None, kind: str) -> None:
    answer = client.options("/dicomweb", headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.content_type, answer.headers["Vary"]) == (200, kind, "Accept")


def test_the_accept_parameter_goes_before_the_header(client: FlaskClient) -> None:
    answer = client.options("/dicomweb?accept=application/json", headers={"Accept": WADL})
    assert answer.content_type == JSON


@pytest.mark.parametrize("path", ["/dicomweb", "/dicomweb/studies/1.2.3"])
def test_another_form_is_not_acceptable(client: FlaskClient, path: str) -> None:
    answer = client.options(path, headers={"Accept": "text/html"})
    assert answer.status_code == 406
    assert WADL in answer.text


@pytest.mark.parametrize("accept", [WADL, JSON])
def test_what_the_client_has_already_is_not_sent_again(client: FlaskClient, accept: str) -> None:
    first = client.options("/dicomweb", headers={"Accept": accept})
    again = client.options("/dicomweb", headers={"Accept": accept, "If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    for other in ("/api", "/dicomweb/studies"):
        answer = client.options(other, headers={"Accept": accept, "If-None-Match": first.headers["ETag"]})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/dicomweb", {"OPTIONS"}),
        ("/dicomweb/studies", {"GET", "HEAD", "OPTIONS", "POST"}),
        ("/dicomweb/studies/1.2.3", {"DELETE", "GET", "HEAD", "OPTIONS", "POST"}),
        ("/stowrs", {"OPTIONS", "POST"}),
    ],
)
def test_allow_names_the_methods_of_the_resource(client: FlaskClient, path: str, allowed: set[str]) -> None:
    assert set(client.options(path).headers["Allow"].split(", ")) == allowed
    assert set(client.put(path).headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("origins", ["", "https://viewer.example"])
@pytest.mark.parametrize("path", ["/dicomweb", "/dicomweb/studies", "/api/studies/1.2.3"])
def test_a_preflight_is_answered_as_one(make_app: AppMaker, origins: str, path: str) -> None:
    client = make_app(cors_origins=origins).test_client()
    headers = {"Origin": "https://viewer.example", "Access-Control-Request-Method": "GET"}
    answer = client.options(path, headers=headers)
    assert (answer.status_code, answer.data) in ((204, b""), (200, b""))
    assert answer.headers.get("Access-Control-Allow-Origin", "") == origins
    described = client.options(path, headers={"Origin": "https://viewer.example"})
    assert described.content_type == WADL
    assert described.headers.get("Access-Control-Allow-Origin", "") == origins


def test_a_page_has_no_capabilities_and_an_unknown_path_is_unknown(client: FlaskClient) -> None:
    assert client.options("/swagger").data == client.options("/healthz").data == b""
    assert client.options("/dicomweb/nothing").status_code == 404
