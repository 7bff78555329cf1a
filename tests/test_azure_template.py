"""The templates for Azure: what they refer to exists, their settings are settings, and the two say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dicomcloud.index.database import open_database
from dicomcloud.settings import OPTIONS, load
from dicomcloud.storage import LocalSpace, open_storage

FOLDER = Path(__file__).resolve().parent.parent / "config" / "azure"
BICEP = (FOLDER / "main.bicep").read_text(encoding="utf-8")
TEXT = (FOLDER / "azuredeploy.json").read_text(encoding="utf-8")
ARM: dict[str, Any] = json.loads(TEXT)
SITE = next(each for each in ARM["resources"] if each["type"] == "Microsoft.Web/sites")
SETTINGS = {each["name"]: each["value"] for each in SITE["properties"]["siteConfig"]["appSettings"]}
DEPENDS = re.compile(r"(?:extensionR|r)esourceId\((?:.*?, )?'(Microsoft\.[\w./]+)'")


def expressions(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [found for each in value.values() for found in expressions(each)]
    if isinstance(value, list):
        return [found for each in value for found in expressions(each)]
    return [value] if isinstance(value, str) and value.startswith("[") else []


def test_every_parameter_and_variable_is_declared_and_used() -> None:
    for kind in ("parameters", "variables"):
        used = set(re.findall(rf"{kind}\('(\w+)'\)", TEXT))
        assert used == set(ARM[kind]), kind
        assert all(ARM["parameters"][name]["metadata"]["description"] for name in ARM["parameters"])


def test_expressions_are_closed() -> None:
    for text in expressions(ARM):
        outside = re.sub(r"'[^']*'", "", text)
        assert text.endswith("]")
        assert outside.count("(") == outside.count(")")
        assert outside.count("'") == 0


def test_a_resource_depends_only_on_what_is_made() -> None:
    made = {each["type"] for each in ARM["resources"]}
    for resource in ARM["resources"]:
        for text in resource.get("dependsOn", ()):
            assert set(DEPENDS.findall(text)) <= made, text
        assert resource["type"].count("/") == 1 or resource["dependsOn"]


def test_secrets_are_secret() -> None:
    for name, parameter in ARM["parameters"].items():
        secret = bool(re.search("(?i)password|key$", name))
        assert (parameter["type"] == "securestring") == secret, name
    assert set(re.findall(r"@secure\(\)\n(?:@.*\n)*param (\w+)", BICEP)) == {
        "sqlAdministratorPassword",
        "anonymizerKey",
    }


def test_both_templates_make_the_same() -> None:
    assert re.findall(r"^param (\w+)", BICEP, re.MULTILINE) == list(ARM["parameters"])
    assert re.findall(r"^var (\w+)", BICEP, re.MULTILINE) == list(ARM["variables"])
    assert re.findall(r"^output (\w+)", BICEP, re.MULTILINE) == list(ARM["outputs"])
    made = sorted(f"{each['type']}@{each['apiVersion']}" for each in ARM["resources"])
    assert sorted(re.findall(r"^resource \w+ '(.+)' = ", BICEP, re.MULTILINE)) == made
    assert re.findall(r"name: '([A-Z_]+)'", BICEP) == list(SETTINGS)
    for text in ("PYTHON|3.11", "python -m dicomcloud serve", "/readyz", ARM["variables"]["blobDataContributor"]):
        assert text in BICEP
        assert text in TEXT


def test_the_settings_of_the_site_are_settings_and_are_taken(tmp_path: Path) -> None:
    known = {option.variable for option in OPTIONS}
    values = {
        "parameters": {name: each.get("defaultValue", "") for name, each in ARM["parameters"].items()},
        "variables": ARM["variables"],
    }

    def evaluated(text: str) -> str:
        found = re.fullmatch(r"\[(parameters|variables)\('(\w+)'\)\]", text)
        return str(values[found[1]][found[2]]) if found else text

    environment = {}
    for name, value in SETTINGS.items():
        if name.startswith("DICOMCLOUD_"):
            assert name in known
            environment[name] = evaluated(value)
    password = quote("Pass/word@1", safe="")
    address = f"mssql://{quote('dicomcloud@server', safe='')}:{password}@server.database.windows.net:1433/dicomcloud"
    form = SETTINGS["DICOMCLOUD_DATABASE_URL"].partition("'")[2].partition("'")[0]
    assert form.startswith("mssql://{0}:{1}@{2}:1433/{3}?")
    environment["DICOMCLOUD_DATABASE_URL"] = f"{address}?{form.partition('?')[2]}"
    environment["DICOMCLOUD_STORAGE_URL"] = "azure://dicom?account=dicomx"
    environment["DICOMCLOUD_PUBLIC_URL"] = "https://dicomcloud-x.azurewebsites.net"
    environment["DICOMCLOUD_ANONYMIZER_ENABLED"] = "False"
    environment["DICOMCLOUD_ANONYMIZER_KEY"] = "0f8fad5b-d9cb-469f-a165-70867728950e"
    settings = load(None, environment)
    assert settings.authentication == "required"
    open_database(settings.resolved_database_url)
    open_storage(settings.resolved_storage_url, LocalSpace(tmp_path, tmp_path, 0))


@pytest.mark.parametrize("line", (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines())
def test_the_requirements_of_the_site_are_there(line: str) -> None:
    assert line.startswith("#") or (FOLDER / line.removeprefix("-r ")).is_file()


def test_the_button_of_the_readme_leads_to_the_template() -> None:
    readme = (FOLDER.parent.parent / "README.md").read_text(encoding="utf-8")
    found = re.search(r"https://portal\.azure\.com/#create/Microsoft\.Template/uri/(\S+?)\)", readme)
    assert found
    assert found[1].endswith(quote("/config/azure/azuredeploy.json", safe=""))
