"""Swagger UI in a real browser, with every other host out of reach."""

from __future__ import annotations

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


def test_whoever_presses_authorize_may_store(new_page: Any, closed_server: Any, tmp_path: Any) -> None:
    (tmp_path / "image.dcm").write_bytes(make_file())
    page = new_page(server=closed_server)
    page.goto(f"{closed_server.url}/swagger")
    assert store_from_the_page(page, tmp_path / "image.dcm").status == 401
    page.get_by_role("button", name="Authorize").first.click()
    scheme = page.locator(".auth-container", has_text="password")
    scheme.locator("input[type=text]").fill("ada")
    scheme.locator("input[type=password]").fill(PASSWORD)
    scheme.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").first.click()
    with page.expect_response(lambda answer: "/dicomweb/studies" in answer.url) as answer:
        page.locator("[id$='-store_instances']").get_by_role("button", name="Execute").click()
    assert answer.value.status == 200


def test_whoever_is_logged_in_may_store(new_page: Any, closed_server: Any, tmp_path: Any) -> None:
    (tmp_path / "image.dcm").write_bytes(make_file())
    page = new_page(server=closed_server)
    log_in(page, closed_server, "ada")
    page.goto(f"{closed_server.url}/swagger")
    assert store_from_the_page(page, tmp_path / "image.dcm").status == 200
