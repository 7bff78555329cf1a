"""Settings: a TOML file, overridden by variables; faults that name the setting, its source and what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicomcloud.settings import OPTIONS, Settings, SettingsError, load, markdown_table


@pytest.fixture(autouse=True)
def _empty_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_without_file_and_variables_the_defaults_hold() -> None:
    assert load(None, {}) == Settings()
    assert load(None, {"PATH": "/bin", "DICOM": "x"}).sources == {}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_default_survives_being_written_down_and_read_again(option) -> None:
    settings = load(None, {option.variable: option.show(option.default)})
    assert getattr(settings, option.name) == option.default
    assert option.help.endswith(".")


def test_a_variable_overrides_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "any.toml", 'bind = "0.0.0.0:80"\nthreads = 3\n')
    settings = load(file, {"DICOMCLOUD_THREADS": "5"})
    assert (settings.bind, settings.threads) == ("0.0.0.0:80", 5)
    assert settings.sources == {"bind": str(file), "threads": "environment variable DICOMCLOUD_THREADS"}


def test_the_file_is_the_given_one_else_that_of_the_variable_else_the_one_in_the_current_directory(
    tmp_path: Path,
) -> None:
    given, named = write(tmp_path / "given.toml", "threads = 1"), write(tmp_path / "named.toml", "threads = 2")
    assert load(None, {}).threads == 8
    write(tmp_path / "dicomcloud.toml", "threads = 3")
    environ = {"DICOMCLOUD_CONFIG": str(named)}
    assert [load(given, environ).threads, load(None, environ).threads, load(None, {}).threads] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1000 B", 1000),
        ("500MB", 500_000_000),
        ("2 kB", 2000),
        ("16 GiB", 16 << 30),
        ("1.5 GiB", 3 << 29),
        ("1 tib", 1 << 40),
    ],
)
def test_sizes_are_numbers_or_numbers_with_a_unit(text: str, expected: int) -> None:
    assert load(None, {"DICOMCLOUD_MAX_REQUEST_BYTES": text}).max_request_bytes == expected


def test_lists_are_toml_arrays_or_text_with_commas_or_spaces(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", 'trusted_proxies = ["10.0.0.1", "192.168.0.7/24"]')
    assert load(file, {}).trusted_proxies == ("10.0.0.1", "192.168.0.0/24")
    assert load(None, {"DICOMCLOUD_TRUSTED_PROXIES": "::1, 10.0.0.1"}).trusted_proxies == ("::1", "10.0.0.1")
    origins = load(None, {"DICOMCLOUD_CORS_ORIGINS": "https://a.example http://b:3000"}).cors_origins
    assert origins == ("https://a.example", "http://b:3000")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bind", "8000", "an address and a port"),
        ("bind", "127.0.0.1:99999", "an address and a port"),
        ("bind", "::1:8000", "an address and a port"),
        ("bind", "http://127.0.0.1:80", "an address and a port"),
        ("data_dir", "", "a folder"),
        ("database_url", "mysql://host/db", "sqlite:///PATH"),
        ("storage_url", "file://", "file://FOLDER"),
        ("public_url", "pacs.example", "an http or https URL"),
        ("public_url", "https://pacs.example/?a=b", "an http or https URL"),
        ("root", "dicomweb", "a path such as /dicomweb"),
        ("root", "/", "a path such as /dicomweb"),
        ("root", "/swagger", "a path such as /dicomweb"),
        ("root", "/a/../b", "a path such as /dicomweb"),
        ("trusted_proxies", "10.0.0", "IP addresses or networks"),
        ("server", "apache", "one of auto, gunicorn, waitress"),
        ("workers", "two", "a whole number, from 0 to 256"),
        ("workers", "-1", "a whole number, from 0 to 256"),
        ("threads", "0", "a whole number, from 1 to 256"),
        ("duplicates", "overwrite", "one of reject, keep, replace"),
        ("empty_search_status", "404", "one of 200, 204"),
        ("max_request_bytes", "16 G", "a size such as 500 MB"),
        ("max_request_bytes", "lots", "a size such as 500 MB"),
        ("max_request_bytes", "-1", "a size such as 500 MB"),
        ("cors_origins", "https://viewer.example/path", "origins such as"),
        ("log_level", "loud", "one of debug, info, warning, error"),
    ],
)
def test_a_malformed_value_is_refused_by_name_source_and_expectation(name: str, value: str, expected: str) -> None:
    variable = f"DICOMCLOUD_{name.upper()}"
    with pytest.raises(SettingsError) as caught:
        load(None, {variable: value})
    message = str(caught.value)
    assert f"Setting {name} (environment variable {variable}): {value!r}" in message
    assert expected in message


@pytest.mark.parametrize("toml", ["threads = true", "threads = 1.5", "[threads]\na = 1", "threads = []", "bind = 8000"])
def test_a_toml_value_of_another_type_is_refused(tmp_path: Path, toml: str) -> None:
    file = write(tmp_path / "a.toml", toml)
    with pytest.raises(SettingsError, match=r"^Setting (threads|bind) \(.*a\.toml\): .* is not "):
        load(file, {})


def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", "max_result = 5")
    with pytest.raises(SettingsError, match=r"Unknown setting 'max_result' in .*a\.toml\. Did you mean max_results\?"):
        load(file, {})
    with pytest.raises(SettingsError, match=r"variable DICOMCLOUD_DATADIR\. Did you mean DICOMCLOUD_DATA_DIR\?"):
        load(None, {"DICOMCLOUD_DATADIR": "x"})
    with pytest.raises(SettingsError, match=r"variable DICOMCLOUD_bind\. Did you mean DICOMCLOUD_BIND\?"):
        load(None, {"DICOMCLOUD_bind": "x"})
    with pytest.raises(SettingsError, match=r"DICOMCLOUD_XYZZY\. See docs/settings\.md"):
        load(None, {"DICOMCLOUD_XYZZY": "x"})


def test_a_file_that_is_missing_or_broken_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file"):
        load(tmp_path / "missing.toml", {})
    with pytest.raises(SettingsError, match=r"broken\.toml is not valid TOML: Invalid value"):
        load(write(tmp_path / "broken.toml", "bind ="), {})
    (tmp_path / "latin.toml").write_bytes(b'bind = "\xe4"')
    with pytest.raises(SettingsError, match=r"latin\.toml is not valid TOML"):
        load(tmp_path / "latin.toml", {})


def test_index_and_files_lie_in_the_data_directory_unless_set_otherwise(tmp_path: Path) -> None:
    settings = load(None, {"DICOMCLOUD_DATA_DIR": "there"})
    assert settings.resolved_database_url == f"sqlite:///{tmp_path / 'there' / 'index.sqlite3'}"
    assert settings.resolved_storage_url == f"file://{tmp_path / 'there' / 'storage'}"
    elsewhere = load(None, {"DICOMCLOUD_DATABASE_URL": "sqlite:////i.db", "DICOMCLOUD_STORAGE_URL": "file:///files"})
    assert (elsewhere.resolved_database_url, elsewhere.resolved_storage_url) == ("sqlite:////i.db", "file:///files")


def test_a_password_in_a_url_is_not_shown() -> None:
    option = next(option for option in OPTIONS if option.name == "public_url")
    assert option.show("https://user:secret@pacs.example") == "https://user:***@pacs.example"
    with pytest.raises(SettingsError) as caught:
        load(None, {"DICOMCLOUD_DATABASE_URL": "mysql://sa:secret/@host/db"})
    assert "secret" not in str(caught.value)


def test_urls_lose_the_slash_at_their_end() -> None:
    settings = load(None, {"DICOMCLOUD_PUBLIC_URL": "https://pacs.example/x/", "DICOMCLOUD_ROOT": "/dicom/web/"})
    assert (settings.public_url, settings.root) == ("https://pacs.example/x", "/dicom/web")


def test_the_table_for_the_documentation_has_one_row_per_option() -> None:
    rows = markdown_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [option.name for option in OPTIONS]
    assert all(row.count("|") == 6 for row in rows)
