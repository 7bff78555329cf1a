"""Installing the OHIF viewer from a folder, a ZIP file and a package file, and serving it."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from dicomcloud import viewer
from dicomcloud.web.ohif_viewer import ACCEPT
from tests.conftest import AppMaker, Run

BUILD = {
    "index.html": '<script>window.PUBLIC_URL="/"</script><script defer src="/app.bundle.0123456789abcdef.js"></script>'
    '<link href="/app.bundle.css"><meta content="/assets/x.xml"><a href="https://ohif.org/">',
    "app-config.js": "window.config = {}",
    "app.bundle.0123456789abcdef.js": '__webpack_require__.p = "/";' + "x();" * 2000,
    "app.bundle.0123456789abcdef.js.map": "{}",
    "app.bundle.css": "a{src:url(/a34f9d1faa5f3315.woff2)} b{background:url('/assets/b.png')}",
    "5130ccb17e3f3f5b.wasm": "\0asm",
    "init-service-worker.js": "importScripts('https://elsewhere.example/')",
    "assets/manifest.json": "{}",
}


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The layout of a build of OHIF, in a few lines; `test_ohif.py` has the real one."""
    folder = tmp_path / "package" / "dist"
    for name, text in BUILD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    about = {"name": "@ohif/app", "version": "3.99.1"}
    (folder.parent / "package.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def packed(built: Path, kind: str) -> Path:
    package = built.parent
    if kind == "folder":
        return package
    if kind == "zip":
        return Path(shutil.make_archive(str(package.parent / "viewer"), "zip", package))
    target = package.parent / "ohif-app-3.99.1.tgz"
    with tarfile.open(target, "w:gz") as archive:
        archive.add(package, "package")
    return target


@pytest.mark.parametrize("kind", ["folder", "zip", "tgz"])
def test_the_viewer_is_installed_from_what_was_fetched_elsewhere(built: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "data" / "viewer"
    found = viewer.install(target, packed(built, kind))
    assert (found.version, found.verified) == ("3.99.1", False)
    assert viewer.installed(target) == found
    assert not (target / "app.bundle.0123456789abcdef.js.map").exists()
    bundle = (target / "app.bundle.0123456789abcdef.js").read_bytes()
    assert b'.p = "/"' not in bundle
    assert gzip.decompress((target / "app.bundle.0123456789abcdef.js.gz").read_bytes()) == bundle
    assert sorted(path.name for path in target.parent.iterdir()) == ["viewer"]


def test_another_version_takes_the_place_of_the_first(built: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "viewer"
    viewer.install(target, built)
    (target / "left-over.js").touch()
    viewer.install(target, built)
    assert not (target / "left-over.js").exists()


KINDS = ["nothing", "empty folder", "text", "zip of something else", "broken zip", "traversing tar"]
KINDS += ["damaged zip", "cut package", "damaged package"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_viewer_is_refused_and_the_installed_one_stays(built: Path, tmp_path: Path, kind: str) -> None:
    target, source = tmp_path / "data" / "viewer", tmp_path / "source"
    viewer.install(target, built)
    if kind == "empty folder":
        source.mkdir()
    elif kind == "text":
        source.write_text("hello", encoding="utf-8")
    elif kind == "damaged zip":
        content = bytearray(packed(built, "zip").read_bytes())
        content[len(content) // 2] ^= 0xFF
        source.write_bytes(content)
    elif kind in ("cut package", "damaged package"):
        content = bytearray(packed(built, "tgz").read_bytes())
        content[-6] ^= 0xFF  # in the check sum
        source.write_bytes(content[: len(content) // 2] if kind == "cut package" else content)
    elif kind == "traversing tar":
        with tarfile.open(source, "w") as archive:
            archive.addfile(tarfile.TarInfo("../../outside"), io.BytesIO())
    elif kind != "nothing":
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("readme.txt", "x" * 1000)
        if kind == "broken zip":
            source.write_bytes(b"PK\x03\x04" + source.read_bytes()[30:])
    with pytest.raises(viewer.CannotInstall):
        viewer.install(target, source)
    assert viewer.installed(target) is not None
    assert not (tmp_path / "outside").exists()


def test_the_registry_is_the_one_that_npm_is_configured_for(tmp_path: Path) -> None:
    npmrc = tmp_path / ".npmrc"
    npmrc.write_text("# a comment\nregistry = https://first.example/npm/\n", encoding="utf-8")
    find = viewer._configured_registry
    assert find({}, npmrc) == "https://first.example/npm"
    assert find({"npm_config_registry": "https://second.example"}, npmrc) == "https://second.example"
    npmrc.write_text('@ohif:registry="https://third.example/"\n', encoding="utf-8")
    assert find({"NPM_CONFIG_REGISTRY": "https://second.example"}, npmrc) == "https://third.example"
    assert find({}, tmp_path / "missing") == ""


def test_the_commands_say_what_is_installed(run: Run, built: Path) -> None:
    assert run("viewer", "status").returncode == 1
    done = run("viewer", "install", built)
    assert (done.returncode, done.stderr) == (0, "")
    assert "OHIF 3.99.1 is installed" in done.stdout
    assert "not checked" in done.stdout
    assert run("viewer", "status").stdout == "OHIF 3.99.1, not checked.\n"
    assert run("viewer", "install", built.parent / "package.json").returncode == 1


# Serving


@pytest.fixture
def client(make_app: AppMaker, built: Path, tmp_path: Path) -> FlaskClient:
    app = make_app(public_url="https://pacs.example/archive", root="/dicom-web")
    viewer.install(tmp_path / "data" / "viewer", built)
    return app.test_client()


@pytest.mark.parametrize("path", ["/viewer", "/viewer/", "/viewer/viewer?StudyInstanceUIDs=1.2", "/viewer/index.html"])
def test_the_page_is_served_under_every_address_of_the_viewer(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.mimetype) == (200, "text/html")
    assert 'src="/archive/viewer/app.bundle.0123456789abcdef.js"' in answer.text
    assert 'window.PUBLIC_URL="/archive/viewer/"' in answer.text
    assert 'href="https://ohif.org/"' in answer.text
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("name", "media_type", "kept"),
    [
        ("app.bundle.0123456789abcdef.js", "text/javascript", True),
        ("5130ccb17e3f3f5b.wasm", "application/wasm", True),
        ("app.bundle.css", "text/css", False),
        ("assets/manifest.json", "application/json", False),
    ],
)
def test_a_file_has_its_type_and_is_kept_where_its_name_has_its_checksum(
    client: FlaskClient, name: str, media_type: str, kept: bool
) -> None:
    answer = client.get(f"/viewer/{name}")
    assert (answer.status_code, answer.mimetype) == (200, media_type)
    assert ("max-age=31536000" in answer.headers["Cache-Control"]) == kept
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_bundle_is_sent_compressed_to_whom_takes_it(client: FlaskClient) -> None:
    path = "/viewer/app.bundle.0123456789abcdef.js"
    plain, packed_ = client.get(path), client.get(path, headers={"Accept-Encoding": "br, gzip"})
    assert packed_.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed_.data) == plain.data
    assert client.get(f"{path}.gz").status_code == 404


def test_the_configuration_names_this_server(client: FlaskClient) -> None:
    answer = client.get("/viewer/app-config.js")
    assert answer.mimetype == "text/javascript"
    assert '"root":"/archive/dicom-web"' in answer.text
    assert "window.config" in answer.text
    assert f'"accept":["{ACCEPT}"]' in answer.text
    assert "http" not in answer.text.replace("httpErrorHandler", "")
    assert client.get("/viewer/init-service-worker.js").data == b""


def test_the_study_browser_offers_the_viewer_only_where_there_is_one(make_app: AppMaker, built: Path) -> None:
    client = make_app().test_client()
    assert client.get("/viewer/").status_code == 404
    assert "/viewer/viewer?" not in client.get("/study/1.2").text
    assert "python -m dicomcloud viewer install" in client.get("/").text
    viewer.install(client.application.extensions["dicomcloud"].viewer_folder, built)
    assert 'href="/viewer/viewer?StudyInstanceUIDs=1.2"' in client.get("/study/1.2").text
    assert "viewer install" not in client.get("/").text
