"""CORS, headers of pages, limits of requests, TLS."""

from __future__ import annotations

import os
import re
import ssl
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from flask.testing import FlaskClient

from dicomcloud.errors import NotFound
from dicomcloud.web.service import client_address, server_url
from tests.audit.test_syslog import make_certificate
from tests.conftest import AppMaker, Run
from tests.test_cli import serving
from tests.web.test_access import add_user, basic

VIEWER = "https://viewer.example"
PREFLIGHT = {
    "Origin": VIEWER,
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "authorization, cache-control",
}


@pytest.fixture
def viewed(make_app: AppMaker) -> FlaskClient:
    """A server that asks for passwords and lets the pages of one site call."""
    add_user(make_app(), "reader", "reader")
    return make_app(cors_origins=VIEWER).test_client()


def allowed(answer: object, name: str) -> str | None:
    return answer.headers.get(f"Access-Control-{name}")  # type: ignore[attr-defined]


def test_a_preflight_needs_no_password_and_allows_the_header_that_carries_one(viewed: FlaskClient) -> None:
    for path in ("/dicomweb/studies", "/dicomweb/studies/1.2.3/metadata", "/wado", "/shares"):
        answer = viewed.options(path, headers=PREFLIGHT)
        assert (answer.status_code, allowed(answer, "Allow-Origin")) == (204, VIEWER)
        assert allowed(answer, "Allow-Headers") == "authorization, cache-control"
        assert "DELETE" in (allowed(answer, "Allow-Methods") or "")
    assert viewed.options("/dicomweb/studies", headers={"Origin": VIEWER}).status_code == 401


def test_a_page_of_the_site_reads_answers_refusals_and_the_headers_of_paging(viewed: FlaskClient) -> None:
    for headers, status in (({}, 401), (basic("reader"), 200)):
        answer = viewed.get("/dicomweb/studies", headers={"Origin": VIEWER} | headers)
        assert (answer.status_code, allowed(answer, "Allow-Origin")) == (status, VIEWER)
        exposed = {name.strip() for name in (allowed(answer, "Expose-Headers") or "").split(",")}
        assert {"Link", "X-Total-Count", "Warning", "ETag", "X-Request-ID"} <= exposed
        assert "Origin" in answer.headers["Vary"]
        assert allowed(answer, "Allow-Credentials") is None


def test_another_site_is_told_nothing(viewed: FlaskClient) -> None:
    for origin in ("https://evil.example", "http://viewer.example", f"{VIEWER}.evil.example", "null"):
        answer = viewed.options("/dicomweb/studies", headers=PREFLIGHT | {"Origin": origin})
        assert [name for name in answer.headers.keys() if name.startswith("Access-Control")] == []  # noqa: SIM118


def test_headers_methods_and_cookies_of_other_sites_are_settings(make_app: AppMaker, run: Run) -> None:
    client = make_app(
        cors_origins=VIEWER, cors_headers="Accept", cors_methods="GET", cors_credentials="on"
    ).test_client()
    answer = client.options("/dicomweb/studies", headers=PREFLIGHT)
    assert (allowed(answer, "Allow-Headers"), allowed(answer, "Allow-Methods")) == ("Accept", "GET")
    assert allowed(answer, "Allow-Credentials") == "true"
    refused = run("serve", cors_origins="*", cors_credentials="on")
    assert (refused.returncode, "cors_origins must name" in refused.stderr) == (2, True)
    every = make_app(cors_origins="*").test_client().get("/dicomweb/studies", headers={"Origin": "https://any.example"})
    assert allowed(every, "Allow-Origin") == "*"


def test_pages_run_no_script_but_their_own_and_are_in_no_frame_of_others(make_app: AppMaker) -> None:
    client = make_app(frame_ancestors="https://emr.example").test_client()
    for path in ("/", "/swagger", "/login"):
        answer = client.get(path)
        if answer.mimetype != "text/html":
            continue
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy or "default-src 'self'" in policy
        assert "frame-ancestors 'self' https://emr.example" in policy
        assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
        assert answer.headers["Permissions-Policy"]
    data = client.get("/dicomweb/studies")
    assert (data.headers["X-Content-Type-Options"], data.headers["Referrer-Policy"]) == ("nosniff", "same-origin")
    assert data.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_script_of_the_swagger_page_is_the_one_that_its_policy_names(make_app: AppMaker) -> None:
    from dicomcloud.web.headers import page_policy

    answer = make_app().test_client().get("/swagger")
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert page_policy(script) == answer.headers["Content-Security-Policy"]


def test_swagger_can_authorize_with_passwords_keys_and_tokens(make_app: AppMaker) -> None:
    document = make_app().test_client().get("/openapi.json").json
    schemes = document["components"]["securitySchemes"]
    assert {(each["type"], each.get("scheme") or each.get("name")) for each in schemes.values()} == {
        ("http", "basic"),
        ("http", "bearer"),
        ("apiKey", "X-API-Key"),
    }
    assert {name for each in document["security"] for name in each} == set(schemes)


def test_a_url_that_is_too_long_is_a_414(make_app: AppMaker) -> None:
    client = make_app(max_url_bytes=500).test_client()
    assert client.get("/dicomweb/studies?PatientID=" + "1" * 400).status_code == 200
    assert client.get("/dicomweb/studies?PatientID=" + "1" * 500).status_code == 414
    assert client.get("/dicomweb/studies/" + "1" * 500).status_code == 414


def test_heavy_requests_wait_for_their_turn_and_light_ones_do_not(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomcloud.web.limits._PATIENCE", 0.2)
    app = make_app(heavy_requests=1)
    inside, free = threading.Event(), threading.Event()

    def draw(*_: object) -> None:
        inside.set()
        free.wait(20)
        raise NotFound("nothing here")

    monkeypatch.setattr(app.extensions["dicomcloud"].archive, "instances", draw)
    first: list[int] = []
    path = "/dicomweb/studies/1.2.3"
    thread = threading.Thread(target=lambda: first.append(app.test_client().get(path).status_code))
    thread.start()
    assert inside.wait(20)
    answer = app.test_client().get("/dicomweb/studies/1.2.3/rendered")
    assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True)
    assert app.test_client().get("/dicomweb/studies").status_code == 200
    free.set()
    thread.join(20)
    assert first == [404]
    assert app.test_client().get(path).status_code == 404


@pytest.mark.skipif(os.name == "nt", reason="on Windows the server is waitress, which speaks no TLS")
def test_the_server_speaks_tls_itself(tmp_path: Path, environment: dict[str, str]) -> None:
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    (tmp_path / "log").touch()
    with serving(tmp_path, environment, tls_certificate=certificate, tls_key=key) as (url, _):
        assert url.startswith("https://")
        with urlopen(f"{url}/dicomweb/studies", timeout=30, context=context) as answer:
            assert (answer.status, answer.read()) == (200, b"[]")
        with urlopen(f"{url}/openapi.json", timeout=30, context=context) as answer:
            assert f'"url":"{url}"'.encode() in answer.read()


def test_waitress_says_that_it_speaks_no_tls(run: Run, tmp_path: Path) -> None:
    refused = run("serve", server="waitress", tls_certificate=tmp_path / "any.pem")
    assert (refused.returncode, "waitress speaks no TLS" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("forwarded", "host", "address"),
    [
        ("for=192.0.2.60;proto=https;host=pacs.example", "https://pacs.example", "192.0.2.60"),
        (
            'For="[2001:db8::17]:4711" ; Proto=HTTPS;Host="pacs.example:8443"',
            "https://pacs.example:8443",
            "2001:db8::17",
        ),
        ("for=1.2.3.4;host=evil.example, for=192.0.2.60;proto=https", "https://localhost", "192.0.2.60"),
        ("for=192.0.2.60;host=pacs.example, for=10.0.0.9;proto=https", "https://pacs.example", "192.0.2.60"),
        ("for=192.0.2.60;host=pacs.example,, for=unknown", "http://localhost", "10.0.0.1"),
        ('for=_hidden;host="a\\"b"', "http://localhost", "10.0.0.1"),
        ("for=192.0.2.60;proto=ftp", "http://localhost", "192.0.2.60"),
        ("for=192.0.2.60;for=192.0.2.61", "http://localhost", "10.0.0.1"),
        ('for="192.0.2.60', "http://localhost", "10.0.0.1"),
        ("", "http://localhost", "10.0.0.1"),
    ],
)
def test_what_a_trusted_proxy_says_in_forwarded_counts(
    make_app: AppMaker, forwarded: str, host: str, address: str
) -> None:
    app = make_app(trusted_proxies="10.0.0.0/24", proxy_headers="forwarded", authentication="none")
    headers = {"Forwarded": forwarded, "X-Forwarded-Host": "evil.example", "X-Forwarded-For": "6.6.6.6"}
    with app.test_request_context("/", headers=headers, environ_base={"REMOTE_ADDR": "10.0.0.1"}):
        assert (server_url(), client_address()) == (host, address)
    with app.test_request_context("/", headers=headers, environ_base={"REMOTE_ADDR": "10.9.0.1"}):
        assert (server_url(), client_address()) == ("http://localhost", "10.9.0.1")


def test_forwarded_of_a_client_is_not_looked_at_where_the_proxy_sends_the_other_headers(make_app: AppMaker) -> None:
    app = make_app(trusted_proxies="10.0.0.1", authentication="none")
    headers = {"Forwarded": "for=6.6.6.6;host=evil.example", "X-Forwarded-For": "192.0.2.60"}
    with app.test_request_context("/", headers=headers, environ_base={"REMOTE_ADDR": "10.0.0.1"}):
        assert (server_url(), client_address()) == ("http://localhost", "192.0.2.60")


def test_browsers_are_told_to_use_https_only_over_https(make_app: AppMaker) -> None:
    client = make_app(hsts_days=365, trusted_proxies="10.0.0.1", authentication="none").test_client()

    def said(address: str = "127.0.0.1", **request: Any) -> str | None:
        answer = client.get("/healthz", environ_overrides={"REMOTE_ADDR": address}, **request)
        return answer.headers.get("Strict-Transport-Security")

    assert said() is None
    assert said(base_url="https://localhost") == "max-age=31536000"
    assert said("10.0.0.1", headers={"X-Forwarded-Proto": "https"}) == "max-age=31536000"
    assert said("10.0.0.2", headers={"X-Forwarded-Proto": "https"}) is None
    assert "Strict-Transport-Security" not in make_app().test_client().get("/", base_url="https://localhost").headers
