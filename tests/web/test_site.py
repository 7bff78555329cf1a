"""The pages of the study browser, as the server gives them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from dicomcloud.web.assets import MEDIA_TYPES
from dicomcloud.web.site import CONTENT_SECURITY_POLICY
from tests.conftest import AppMaker
from tests.data import make_file
from tests.databases import on_sqlite

SITE = Path(__file__).resolve().parents[2] / "dicomcloud" / "web" / "site"


@pytest.mark.parametrize("path", ["/", "/study/1.2.3"])
def test_a_page_has_no_script_or_style_of_its_own_and_asks_no_other_host(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|https?://", answer.text) == []
    for address in re.findall(r'(?:src|href)="(/[^"#]*)', answer.text):
        assert client.get(address).status_code == 200, address


def test_a_page_works_under_the_prefix_of_a_proxy(make_app: AppMaker) -> None:
    client = make_app(public_url="https://pacs.example/archive", root="/dicom-web").test_client()
    page = client.get("/").text
    assert 'data-base="/archive" data-root="/archive/dicom-web"' in page
    assert re.findall(r'(?:src|href)="/(?!archive/)', page) == []


def test_a_study_page_is_only_for_uids(client: FlaskClient) -> None:
    assert client.get("/study/<script>").status_code == 400


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/nowhere", 404, "There is nothing here"),
        ("/study/1.2.<b>", 400, "is not a UID: &#39;1.2.&lt;b&gt;&#39;"),
        ("/dicomweb/studies/1.2.3/rendered", 404, "1.2.3"),
        ("/viewer/", 404, "No viewer is installed"),
    ],
)
def test_a_fault_that_a_person_sees_is_a_page_with_a_way_back(
    client: FlaskClient, path: str, status: int, words: str
) -> None:
    answer = client.get(path, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (answer.status_code, answer.mimetype) == (status, "text/html")
    assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert words in answer.text
    assert "<b>&#39;" not in answer.text
    assert 'href="/">To the studies' in answer.text
    assert client.get(path, headers={"Accept": "*/*"}).mimetype == "application/json"


@pytest.mark.parametrize("file", sorted(SITE.glob("static/*")), ids=lambda file: file.name)
def test_an_asset_has_its_media_type(client: FlaskClient, file: Path) -> None:
    answer = client.get(f"/site/{file.name}")
    assert (answer.status_code, answer.mimetype) == (200, MEDIA_TYPES[file.suffix])
    assert client.get(f"/site/{file.name}", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize("name", ["../__init__.py", "..%2f__init__.py", "nothing.js", "%2e%2e/templates/layout.html"])
def test_nothing_but_assets_is_served(client: FlaskClient, name: str) -> None:
    assert client.get(f"/site/{name}").status_code == 404


def test_a_module_imports_only_what_is_there() -> None:
    for module in SITE.glob("static/*.js"):
        text = module.read_text(encoding="utf-8")
        assert [name for name in re.findall(r'from "\./([^"]+)"', text) if not (module.parent / name).exists()] == []
        icons = (SITE / "static" / "icons.svg").read_text(encoding="utf-8")
        used = re.findall(r'\bicon\("([a-z]+)"', text)
        assert [name for name in used if f'id="{name}"' not in icons] == []


@on_sqlite  # the keys of a server's test database go on from test to test
def test_the_summary_counts_what_is_stored_and_when_it_came(client: FlaskClient) -> None:
    for _ in range(3):
        client.post("/dicomweb/studies", data=make_file(), content_type="application/dicom")
    summary: dict[str, Any] = client.get("/site/summary.json").json
    assert (summary["studies"], summary["series"], summary["instances"], summary["patients"]) == (3, 3, 3, 1)
    assert summary["bytes"] > 3 * 512
    assert summary["free_bytes"] > 0
    days = summary["received"]
    assert (len(days), days[-1]["day"]) == (14, datetime.now(UTC).date().isoformat())
    assert [day["instances"] for day in days] == [0] * 13 + [3]


def test_the_dictionary_names_the_attributes(client: FlaskClient) -> None:
    names = client.get("/site/dictionary.json").json
    assert (names["00100010"], names["7FE00010"], len(names) > 4000) == ("Patient's Name", "Pixel Data", True)
