"""Logging in with a browser, pages of other sites, and links that share a study."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.conftest import AppMaker
from tests.data import make_file
from tests.web.test_access import PASSWORD, add_user, basic, store

SAME_SITE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def secured(make_app: AppMaker) -> Flask:
    first = make_app()
    for name, roles in (("administrator", "administrator"), ("anna", "reader sharer deleter"), ("bert", "reader")):
        add_user(first, name, *roles.split())
    return make_app()


@pytest.fixture
def browser(secured: Flask) -> FlaskClient:
    return secured.test_client()


def log_in(browser: FlaskClient, name: str = "anna", password: str = PASSWORD, target: str = "/") -> int:
    page = browser.get("/login", query_string={"next": target})
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page.text))
    answer = browser.post("/login", data=fields | {"username": name, "password": password}, headers=SAME_SITE)
    if answer.status_code == 303:
        browser.landed = urlsplit(answer.headers["Location"])  # type: ignore[attr-defined]
    return answer.status_code


def test_a_browser_logs_in_goes_where_it_wanted_and_logs_out(browser: FlaskClient) -> None:
    wanted = browser.get("/dicomweb/studies?limit=1", headers={"Sec-Fetch-Mode": "navigate", "Accept": "text/html"})
    assert wanted.status_code == 303
    login = urlsplit(wanted.headers["Location"])
    assert login.path == "/login"
    assert log_in(browser, target="/dicomweb/studies?limit=1") == 303
    assert (browser.landed.path, browser.landed.query) == ("/dicomweb/studies", "limit=1")  # type: ignore[attr-defined]
    assert browser.get("/dicomweb/studies").json == []
    session = browser.get("/session").json
    assert (session["name"], session["method"], session["login_needed"]) == ("anna", "session", False)
    assert set(session["permissions"]) == {"read", "deidentified", "share", "delete"}
    assert browser.post("/logout", headers={"X-CSRF-Token": session["csrf_token"]}).status_code == 303
    assert browser.get("/dicomweb/studies").status_code == 401
    assert browser.get("/session").json["login_needed"] is True


def test_the_cookie_is_out_of_reach_of_scripts_and_is_worth_nothing_after_a_logout(browser: FlaskClient) -> None:
    log_in(browser)
    cookie = browser.get_cookie("dicomcloud_session")
    assert cookie is not None
    assert (cookie.http_only, cookie.same_site) == (True, "Lax")
    token = browser.get("/session").json["csrf_token"]
    browser.post("/logout", headers={"X-CSRF-Token": token})
    browser.set_cookie("dicomcloud_session", cookie.value)
    assert browser.get("/dicomweb/studies").status_code == 401


def test_a_wrong_password_is_told_on_the_page_without_a_window_of_the_browser(browser: FlaskClient) -> None:
    assert log_in(browser, password="wrong") == 401
    assert log_in(browser, "nobody") == 401
    answer = browser.get("/dicomweb/studies", headers={"X-Requested-With": "XMLHttpRequest"})
    assert answer.headers.getlist("WWW-Authenticate") == ['Bearer realm="DICOMcloud"']


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:x", "x"])
def test_a_login_leads_to_no_other_site(browser: FlaskClient, target: str) -> None:
    assert log_in(browser, target=target) == 303
    assert (browser.landed.netloc, browser.landed.path) == ("localhost", "/")  # type: ignore[attr-defined]


def test_what_changes_something_with_a_cookie_needs_the_token_of_a_page(browser: FlaskClient) -> None:
    uids = store(browser)
    log_in(browser)
    token, path = browser.get("/session").json["csrf_token"], f"/dicomweb/studies/{uids['study']}"
    for headers in ({}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": token, "Sec-Fetch-Site": "cross-site"}):
        assert browser.delete(path, headers=headers).status_code == 403
    assert browser.post("/logout").status_code == 403
    assert browser.delete(path, headers={"X-CSRF-Token": token} | SAME_SITE).status_code == 204


def test_a_login_that_another_site_sends_is_refused(browser: FlaskClient) -> None:
    data = {"username": "anna", "password": PASSWORD}
    assert browser.post("/login", data=data).status_code == 403
    assert browser.post("/login", data=data | {"csrf_token": "x"}).status_code == 403
    assert browser.post("/login", data="x" * 100_000, content_type="application/x-www-form-urlencoded").status_code in (
        403,
        413,
    )


def test_pages_of_other_sites_cannot_use_what_a_browser_remembers(browser: FlaskClient) -> None:
    elsewhere = basic("administrator") | {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    body = make_file()
    answer = browser.post("/dicomweb/studies", data=body, content_type="application/dicom", headers=elsewhere)
    assert answer.status_code == 403
    allowed = basic("administrator") | {"Sec-Fetch-Site": "none"}
    answer = browser.post("/dicomweb/studies", data=body, content_type="application/dicom", headers=allowed)
    assert answer.status_code == 200


def test_an_open_server_takes_nothing_from_pages_of_other_sites_and_no_borrowed_names(make_app: AppMaker) -> None:
    client = make_app(cors_origins="https://viewer.example").test_client()
    file = {"data": make_file(), "content_type": "application/dicom"}
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert client.post("/dicomweb/studies", headers=foreign, **file).status_code == 403
    foreign["Origin"] = "https://viewer.example"
    assert client.post("/dicomweb/studies", headers=foreign, **file).status_code == 200
    # DNS rebinding: a page whose name has come to mean this computer
    assert client.get("/dicomweb/studies", headers={"Host": "evil.example:8000"}).status_code == 403
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert client.get("/dicomweb/studies", headers={"Host": host}).status_code == 200


def test_a_session_ends_when_it_is_not_used_and_with_its_user(secured: Flask, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("dicomcloud.access.authentication._REMEMBERED", 0.0)
    browser, accounts = secured.test_client(), secured.extensions["dicomcloud"].archive.accounts
    log_in(browser)
    assert browser.get("/dicomweb/studies").status_code == 200
    monkeypatch.setattr(secured.extensions["dicomcloud"].authentication, "_idle", -1)
    assert browser.get("/dicomweb/studies").status_code == 401
    monkeypatch.setattr(secured.extensions["dicomcloud"].authentication, "_idle", 10**9)
    assert browser.get("/dicomweb/studies").status_code == 200
    accounts.change_user("anna", disabled=True)
    assert browser.get("/dicomweb/studies").status_code == 401


# Share links


def share(client: FlaskClient, study: str, who: str = "anna", **more: object) -> tuple[int, dict[str, str]]:
    answer = client.post("/shares", json={"study": study, **more}, headers=basic(who))
    return answer.status_code, answer.json


def test_a_link_opens_one_study_and_nothing_else_until_it_is_revoked(secured: Flask, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("dicomcloud.access.authentication._REMEMBERED", 0.0)
    client = secured.test_client()
    mine, other = store(client), store(client)
    status, link = share(client, mine["study"], hours=1)
    assert status == 201
    guest = secured.test_client()
    opened = guest.get(urlsplit(link["url"]).path)
    assert opened.status_code == 303
    assert mine["study"] in opened.headers["Location"]
    bearer = {"Authorization": f"Bearer {link['token']}"}
    for who in ({}, bearer):
        assert [each["0020000D"]["Value"][0] for each in guest.get("/dicomweb/studies", headers=who).json] == [
            mine["study"]
        ]
        assert guest.get(f"/dicomweb/studies/{mine['study']}/metadata", headers=who).status_code == 200
        assert guest.get(f"/dicomweb/studies/{other['study']}/metadata", headers=who).status_code == 403
        assert guest.delete(f"/dicomweb/studies/{mine['study']}", headers=who).status_code == 403
        assert guest.get("/shares", headers=who).status_code == 403
    assert client.delete(f"/shares/{link['id']}", headers=basic("anna")).status_code == 204
    assert guest.get("/dicomweb/studies").status_code == 401
    assert secured.test_client().get("/dicomweb/studies", headers=bearer).status_code == 401
    assert secured.test_client().get(urlsplit(link["url"]).path).status_code == 401


def test_a_link_that_was_tampered_with_or_has_ended_opens_nothing(secured: Flask) -> None:
    client = secured.test_client()
    uids = store(client)
    _, link = share(client, uids["study"], hours=1e-7)
    assert client.get(urlsplit(link["url"]).path).status_code == 401
    _, link = share(client, uids["study"])
    identifier, _, signature = link["token"].partition(".")
    other = "B" if signature.startswith("A") else "A"
    for token in (f"{identifier}.{other}{signature[1:]}", f"x{identifier}.{signature}", identifier, "x" * 5000):
        assert client.get(f"/share/{token}").status_code == 401


def test_only_sharers_share_and_only_what_they_see(secured: Flask) -> None:
    client = secured.test_client()
    uids = store(client)
    assert share(client, uids["study"], "bert")[0] == 403
    assert share(client, "1.2.3")[0] == 404
    for wrong in ({"hours": 0}, {"hours": 10**6}, {"hours": "1"}, {"deidentified": 1}):
        assert share(client, uids["study"], **wrong)[0] == 400
    assert client.post("/shares", data="[]", headers=basic("anna")).status_code == 400
    assert share(client, uids["study"], deidentified=True)[1]["deidentified"] is True
    assert [each["study"] for each in client.get("/shares", headers=basic("anna")).json] == [uids["study"]]
    assert len(client.get("/shares", headers=basic("administrator")).json) == 1
    assert client.delete("/shares/unknown", headers=basic("anna")).status_code == 404
