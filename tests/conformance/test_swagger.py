"""Swagger UI in a real browser, with every other host out of reach.

With SWAGGER_OPERATIONS=all in the environment every operation is tried, which takes minutes on a busy machine.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import requests

from tests.conformance.conftest import PASSWORD, log_in
from tests.data import make_dataset, make_file


@pytest.fixture
def page(new_page: Any) -> Any:
    return new_page(viewport={"width": 1400, "height": 1000})


def execute(page: Any, operation: str, fill: dict[str, str] | None = None) -> Any:
    """Open an operation, fill in its parameters, press Execute; return the answer that the page got."""
    block = page.locator(f"[id$='-{operation}']")
    if "is-open" not in (block.get_attribute("class") or ""):
        block.locator("button.opblock-summary-control").click()
    for name, value in (fill or {}).items():
        block.locator(f"tr[data-param-name='{name}'] input").fill(value)
    with page.expect_response(lambda answer: "/dicomweb/" in answer.url) as answer:
        block.get_by_role("button", name="Execute").click()
    block.locator(".live-responses-table .response-col_status").first.wait_for()
    return answer.value


@pytest.fixture(scope="module")
def study(server: Any) -> Any:
    dataset = make_dataset(PatientName="Swagger^Sally")
    answer = requests.post(
        f"{server.root}/studies", data=make_file(dataset), headers={"Content-Type": "application/dicom"}, timeout=60
    )
    assert answer.status_code == 200
    return dataset


def test_a_search_is_tried_from_the_page(page: Any, server: Any, study: Any) -> None:
    page.goto(f"{server.url}/swagger")
    page.get_by_text("Search for Studies").wait_for()
    answer = execute(page, "search_for_studies", {"PatientName": "swagger*"})
    assert answer.status == 200
    assert [row["0020000D"]["Value"] for row in answer.json()] == [[study.StudyInstanceUID]]
    assert "PatientName=swagger" in answer.url


def test_metadata_and_a_deletion_are_tried_from_the_page(page: Any, server: Any, study: Any) -> None:
    page.goto(f"{server.url}/swagger")
    page.get_by_text("Retrieve Study Metadata").wait_for()
    answer = execute(page, "retrieve_study_metadata", {"study": study.StudyInstanceUID})
    assert answer.json()[0]["00080018"]["Value"] == [study.SOPInstanceUID]
    assert execute(page, "delete_a_study", {"study": study.StudyInstanceUID}).status == 204
    assert execute(page, "retrieve_study_metadata", {"study": study.StudyInstanceUID}).status == 410


def test_a_file_is_stored_from_the_page(page: Any, server: Any, tmp_path: Any) -> None:
    dataset = make_dataset()
    (tmp_path / "image.dcm").write_bytes(make_file(dataset))
    page.goto(f"{server.url}/swagger")
    block = page.locator("[id$='-store_instances']")
    block.locator("button.opblock-summary-control").click()
    block.locator("select[aria-label='Request content type']").select_option("application/dicom")
    block.locator("input[type=file]").set_input_files(tmp_path / "image.dcm")
    with page.expect_response(lambda answer: answer.request.method == "POST") as answer:
        block.get_by_role("button", name="Execute").click()
    assert answer.value.status == 200
    assert requests.get(f"{server.root}/studies/{dataset.StudyInstanceUID}/metadata", timeout=60).status_code == 200


def store_from_the_page(page: Any, file: Any) -> Any:
    block = page.locator("[id$='-store_instances']")
    block.locator("button.opblock-summary-control").click()
    block.locator("select[aria-label='Request content type']").select_option("application/dicom")
    block.locator("input[type=file]").set_input_files(file)
    with page.expect_response(lambda answer: "/dicomweb/studies" in answer.url) as answer:
        block.get_by_role("button", name="Execute").click()
    return answer.value


def authorize(page: Any, name: str) -> None:
    page.get_by_role("button", name="Authorize").first.click()
    scheme = page.locator(".auth-container", has_text="password")
    scheme.locator("input[type=text]").fill(name)
    scheme.locator("input[type=password]").fill(PASSWORD)
    scheme.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").first.click()


def test_whoever_presses_authorize_may_store(new_page: Any, closed_server: Any, tmp_path: Any) -> None:
    (tmp_path / "image.dcm").write_bytes(make_file())
    page = new_page(server=closed_server)
    page.goto(f"{closed_server.url}/swagger")
    assert store_from_the_page(page, tmp_path / "image.dcm").status == 401
    authorize(page, "ada")
    with page.expect_response(lambda answer: "/dicomweb/studies" in answer.url) as answer:
        page.locator("[id$='-store_instances']").get_by_role("button", name="Execute").click()
    assert answer.value.status == 200


def test_whoever_is_logged_in_may_store(new_page: Any, closed_server: Any, tmp_path: Any) -> None:
    (tmp_path / "image.dcm").write_bytes(make_file())
    page = new_page(server=closed_server)
    log_in(page, closed_server, "ada")
    page.goto(f"{closed_server.url}/swagger")
    assert store_from_the_page(page, tmp_path / "image.dcm").status == 200


REFUSED = {  # from here: what is the login form's own, and what needs an OpenID Connect provider
    "log_in_with_the_form_of_the_login_page": 403,
    "log_out": 403,
    "log_in_at_the_login_server_of_the_house": 404,
    "log_out_at_the_login_server_too": 404,
    "come_back_from_the_login_server": 404,
}
LAST = {"DELETE": 1, "POST /logout": 2}  # after everything else, in this order


def operations(server: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of everything in the description: first what stores, at last what deletes."""
    paths = requests.get(f"{server.url}/openapi.json", timeout=60).json()["paths"]
    found = [
        (method.upper(), path, operation | {"parameters": item.get("parameters", []) + operation.get("parameters", [])})
        for path, item in paths.items()
        for method, operation in item.items()
        if method in ("get", "post", "put", "delete")
    ]
    return sorted(
        found,
        key=lambda each: (
            LAST.get(each[0]) or LAST.get(" ".join(each[:2]), 0),
            each[0] != "POST",
            -len(each[1]) if each[0] == "DELETE" else 0,
        ),
    )


def test_operations_can_be_tried_from_the_page(new_page: Any, closed_server: Any, tmp_path: Any) -> None:
    dataset = make_dataset(PatientName="Swagger^Every")
    (tmp_path / "image.dcm").write_bytes(make_file(dataset))
    for kept in ({"SeriesInstanceUID": dataset.SeriesInstanceUID}, {}):  # so that deleting one leaves its parents
        other = make_file(StudyInstanceUID=dataset.StudyInstanceUID, **kept)
        headers = {"Content-Type": "application/dicom"}
        requests.post(f"{closed_server.root}/studies", other, headers=headers, auth=("ada", PASSWORD), timeout=60)
    page = new_page(server=closed_server, viewport={"width": 1200, "height": 700})
    page.goto(f"{closed_server.url}/swagger")
    authorize(page, "ada")
    study, series, instance = dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID
    values = {"study": study, "series": series, "instance": instance, "frame_list": "1", "attribute": "7FE00010"}
    values |= {"studyUID": study, "seriesUID": series, "objectUID": instance}
    answers = {}
    tried = operations(closed_server)
    if os.environ.get("SWAGGER_OPERATIONS") != "all":  # one of each kind; the page is slow to draw them all
        kinds = {(method, *operation["tags"]): path for method, path, operation in reversed(tried)}
        tried = [
            each for each in tried if kinds[each[0], *each[2]["tags"]] == each[1] and "Access" not in each[2]["tags"]
        ]
        assert len(tried) >= 7
    for method, path, operation in tried:
        block = page.locator(f"[id$='-{operation['operationId']}']")
        block.locator("button.opblock-summary-control").click()
        for parameter in operation["parameters"]:
            if parameter.get("required") and parameter["name"] in values and "enum" not in parameter["schema"]:
                row = block.locator(f"tr[data-param-name='{parameter['name']}'] input")
                row.fill(values[parameter["name"]])
        if "STOW-RS" in operation["tags"]:
            block.locator("select[aria-label='Request content type']").select_option("application/dicom")
            block.locator("input[type=file]").set_input_files(tmp_path / "image.dcm")
        elif "requestBody" in operation:
            block.locator("textarea").first.fill(f'{{"study": "{study}"}}')
        with page.expect_response(
            lambda answer, method=method: (
                (answer.request.method, answer.request.resource_type) == (method, "fetch")  # no picture of the page
            )
        ) as waiting:
            block.get_by_role("button", name="Execute").click()
        answer = waiting.value
        answers[operation["operationId"]] = answer.status
        assert str(answer.status) in operation["responses"], f"{method} {path}: {answer.status} is not described"
        if path == "/shares" and method == "POST":
            made = answer.json()
            values |= {"share": made["id"], "token": made["url"].rpartition("/")[2]}
        block.locator("button.opblock-summary-control").click()
    faults = {name: status for name, status in answers.items() if status >= 400}
    assert faults.items() <= REFUSED.items()
    assert page.complaints == []
