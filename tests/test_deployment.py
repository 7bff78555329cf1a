"""The files under config/ and the container files: of the right form, in keeping with the settings and each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import yaml

from dicomcloud.cli import commands
from dicomcloud.settings import OPTIONS, load
from tools.vulnerabilities import judge

PROJECT = Path(__file__).resolve().parent.parent
CONFIG = PROJECT / "config"
UNITS = sorted((CONFIG / "systemd").glob("*"))
VARIABLES = {option.variable for option in OPTIONS} | {"DICOMCLOUD_CONFIG"}
WRITTEN = [*UNITS, CONFIG / "iis" / "web.config", CONFIG / "windows-service.xml", CONFIG / "install-debian.sh"]
WRITTEN += [PROJECT / "Containerfile", PROJECT / "compose.yaml", *sorted(PROJECT.glob("docs/deployment/*.md"))]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_variables_commands_and_options_that_are_written_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"DICOMCLOUD_[A-Z_]*[A-Z]", text)) <= VARIABLES
    for line in re.findall(r"-m dicomcloud ([^`\n\"|]+)", text):
        words = line.split()
        if not re.fullmatch(r"[a-z]+", words[0]):
            continue
        command = commands.commands[words[0]]
        subcommands = getattr(command, "commands", {})
        known = {
            option
            for each in [command, *subcommands.values()]
            for parameter in each.params
            for option in parameter.opts
        }
        assert {word for word in words if word.startswith("--")} <= known


def test_the_service_the_settings_and_nginx_meet_at_one_socket() -> None:
    settings = load(CONFIG / "production.toml", {})
    nginx = (CONFIG / "nginx.conf").read_text(encoding="utf-8")
    unit = (CONFIG / "systemd" / "dicomcloud.service").read_text(encoding="utf-8")
    assert f"server {settings.bind};" in nginx
    assert settings.trusted_proxies == ("unix",)
    assert (
        Path(settings.bind.removeprefix("unix:")).parent == Path("/run") / re.search(r"RuntimeDirectory=(\S+)", unit)[1]
    )
    assert f"location {settings.accel_redirect}/ {{" in nginx
    assert f"alias {settings.data_dir}/storage/;" in nginx
    assert Path(settings.data_dir) == Path("/var/lib") / re.search(r"StateDirectory=(\S+)", unit)[1]
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > settings.shutdown_grace
    assert settings.authentication == "required"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_units_are_understood_by_systemd(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/dicomcloud/.venv/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text.replace("dicomcloud.toml", "x.toml"), encoding="utf-8")
    names = [unit.name for unit in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("dicomcloud")] == []


@pytest.mark.skipif(shutil.which("nginx") is None or shutil.which("openssl") is None, reason="needs nginx and openssl")
@pytest.mark.parametrize("file", ["nginx.conf", "containers/nginx.conf"])
def test_the_configuration_of_nginx_is_understood_by_it(tmp_path: Path, file: str) -> None:
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "1"]
    subprocess.run([*make, "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True)
    text = (CONFIG / file).read_text(encoding="utf-8")
    for pattern, replacement in (
        (r"(ssl_certificate) \S+;", rf"\1 {tmp_path}/cert.pem;"),
        (r"(ssl_certificate_key) \S+;", rf"\1 {tmp_path}/key.pem;"),
        (r"listen (\[::\]:)?(\d+)", r"listen \g<1>4\2"),
        (r"server dicomcloud:8000", "server 127.0.0.1:8000"),  # a name that only the containers know
    ):
        text = re.sub(pattern, replacement, text)
    (tmp_path / "site.conf").write_text(text, encoding="utf-8")
    main = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; include {tmp_path}/site.conf; }}"
    (tmp_path / "nginx.conf").write_text(main, encoding="utf-8")
    done = subprocess.run(
        ["nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_iis_starts_is_the_server_with_its_settings() -> None:
    root = ElementTree.parse(CONFIG / "iis" / "web.config").getroot()
    platform = root.find("./system.webServer/httpPlatform")
    assert platform is not None
    assert platform.get("arguments") == "-m dicomcloud serve"
    variables = {each.get("name", ""): each.get("value", "") for each in platform.iter("environmentVariable")}
    assert variables.pop("DICOMCLOUD_CONFIG").endswith("dicomcloud.toml")
    own = {name: value for name, value in variables.items() if name.startswith("DICOMCLOUD_")}
    settings = load(None, {name: value.replace("%HTTP_PLATFORM_PORT%", "5000") for name, value in own.items()})
    assert (settings.bind, settings.resolved_server) == ("127.0.0.1:5000", "waitress")
    limits = root.find("./system.webServer/security/requestFiltering/requestLimits")
    assert limits is not None
    assert int(limits.get("maxAllowedContentLength", 0)) == 2**32 - 1  # the most that IIS knows
    verbs = {each.get("verb") for each in root.iter("add") if each.get("verb") and each.get("allowed") == "true"}
    assert {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"} == verbs


def test_the_windows_service_starts_the_server() -> None:
    root = ElementTree.parse(CONFIG / "windows-service.xml").getroot()
    assert root.findtext("arguments") == "-m dicomcloud serve"
    assert int((root.findtext("stoptimeout") or "0").split()[0]) > 60


def test_compose_gives_settings_that_the_server_takes() -> None:
    services = yaml.safe_load((PROJECT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    environment = dict(services["dicomcloud"]["environment"])
    environment.pop("DICOMCLOUD_DATABASE_URL")  # has a password in it that only .env knows
    settings = load(None, {name: str(value) for name, value in environment.items()})
    grace = int(services["dicomcloud"]["stop_grace_period"].removesuffix("s"))
    assert grace > settings.shutdown_grace
    assert (settings.authentication, bool(settings.trusted_proxies)) == ("required", True)
    assert "ports" not in services["dicomcloud"]
    assert "ports" not in services["database"]


def test_compose_makes_the_database_and_the_login_that_the_server_asks_for() -> None:
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", r"${\1}", (PROJECT / "compose.yaml").read_text(encoding="utf-8"))
    services = yaml.safe_load(text)["services"]
    setup = services["database-setup"]
    script = (CONFIG / "containers" / "database.sql").read_text(encoding="utf-8")
    url = urlsplit(services["dicomcloud"]["environment"]["DICOMCLOUD_DATABASE_URL"])
    assert (url.username, url.hostname, url.path) == ("dicomcloud", "database", "/dicomcloud")
    assert "CREATE DATABASE dicomcloud" in script
    assert "CREATE LOGIN dicomcloud WITH PASSWORD = '$(MSSQL_LOGIN_PASSWORD)'" in script
    assert re.findall(r"\$\((\w+)\)", script) == ["MSSQL_LOGIN_PASSWORD"]
    assert setup["command"] == ["-v", f"MSSQL_LOGIN_PASSWORD={url.password}"]
    assert services["dicomcloud"]["depends_on"] == {"database-setup": {"condition": "service_completed_successfully"}}
    assert setup["volumes"] == ["./config/containers/database.sql:/database.sql:ro"]
    assert setup["entrypoint"][-1] == "/database.sql"


def test_the_image_gets_every_file_that_the_program_needs() -> None:
    copied = set(
        re.findall(r"^COPY (?!--)(.+) \S+$", (PROJECT / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    names = {name for line in copied for name in line.split()}
    assert {"app.py", "wsgi.py", "requirements.txt", "dicomcloud", "migrations"} <= names
    ignored = (PROJECT / ".containerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in names} <= set(ignored)
    assert (PROJECT / ".dockerignore").read_text(encoding="utf-8").split() == ignored


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_the_installation_script_has_no_fault_of_form_and_explains_itself() -> None:
    script = str(CONFIG / "install-debian.sh")
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    shown = subprocess.run(["sh", script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--host" in shown
    assert "#" not in shown
    assert subprocess.run(["sh", script, "--nonsense"], capture_output=True, check=False).returncode == 2


def test_an_audit_passes_only_when_everything_was_looked_up_and_nothing_found() -> None:
    fine = {"name": "flask", "version": "3.1.3", "vulns": []}
    bad = fine | {"vulns": [{"id": "GHSA-x", "fix_versions": ["3.1.4"], "aliases": [], "description": "…"}]}
    unknown = {"name": "peewee", "skip_reason": "not found"}
    codes = [judge({"dependencies": each})[0] for each in ([fine], [fine, unknown], [unknown], [], [unknown, bad])]
    assert codes == [0, 2, 2, 2, 1]
    assert judge({"dependencies": [bad]})[1] == ["flask 3.1.3: GHSA-x, mended in 3.1.4"]
    silent = [sys.executable, "-m", "tools.vulnerabilities", sys.executable, "-c", "raise SystemExit('nobody answers')"]
    done = subprocess.run(silent, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, "NOTHING was audited. pip-audit: nobody answers" in done.stderr) == (2, True)
