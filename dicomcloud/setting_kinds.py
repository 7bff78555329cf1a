"""The types of settings: how a text or a value of TOML is read, checked and shown, and in words what is expected."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of value: what is expected, in words, and how text or a TOML value becomes it."""

    name: str
    expected: str
    parse: Callable[[Any], Any]  # raises ValueError or TypeError
    show: Callable[[Any], str] = str
    secret: bool = False  # a malformed value is not repeated in the message


def without_password(text: str) -> str:
    """The text with *** for passwords and other secrets in URLs."""
    text = re.sub(r"(://[^/@:]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&](?:connection_string|sas)=)[^&]*", r"\1***", text)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value.strip()


def integer(least: int, most: int | None = None) -> Kind:
    """A whole number from `least` to `most`."""

    def parse(value: Any) -> int:
        if isinstance(value, str):
            value = int(value)
        if type(value) is not int or value < least or (most is not None and value > most):
            raise ValueError
        return value

    span = f"{least} or more" if most is None else f"from {least} to {most}"
    return Kind("whole number", f"a whole number, {span}", parse)


def choice(*choices: str | int) -> Kind:
    """One of these."""
    by_text = {str(each): each for each in choices}

    def parse(value: Any) -> str | int:
        if type(value) not in (str, int):
            raise TypeError
        return by_text[str(value).strip().lower()]

    return Kind(" or ".join(f"`{each}`" for each in choices), f"one of {', '.join(by_text)}", parse)


def _parse_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}[
        _text(value).lower()
    ]


def _show_flag(value: bool) -> str:
    return "true" if value else "false"


_UNITS = {"": 1, "b": 1} | {
    letter + suffix: base**power
    for power, letter in enumerate("kmgt", 1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def _parse_size(value: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?i?b?)", _text(value).lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError
    return int(float(match[1]) * _UNITS[match[2]]) if "." in match[1] else int(match[1]) * _UNITS[match[2]]


def _show_size(value: int) -> str:
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value and value % factor == 0:
            return f"{value // factor} {unit}"
    return str(value)


def _list_of(parse_item: Callable[[str], str]) -> Callable[[Any], tuple[str, ...]]:
    def parse(value: Any) -> tuple[str, ...]:
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(items, list):
            raise TypeError
        return tuple(parse_item(_text(item)) for item in items)

    return parse


def _show_list(value: Collection[str]) -> str:
    return ", ".join(value)


def split_address(address: str) -> tuple[str, int]:
    """The host and the port of `HOST:PORT` or `[IPv6]:PORT`. Raises ValueError."""
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError
    if not host or (":" in host and not bracketed) or re.search(r"[\s/@]", host):
        raise ValueError
    return host[1:-1] if bracketed else host, int(port)


def unix_socket(address: str) -> str | None:
    """The path of `unix:PATH`, None for any other address."""
    scheme, _, path = address.partition(":")
    return path if scheme == "unix" and path.startswith("/") else None


def _parse_address(value: Any) -> str:
    if unix_socket(_text(value)) is None:
        split_address(_text(value))
    return _text(value)


def _parse_network(value: str) -> str:
    if value.lower() == "unix":
        return "unix"
    return str(ipaddress.ip_network(value, strict=False)) if "/" in value else str(ipaddress.ip_address(value))


def _parse_origin(value: str) -> str:
    parts = urlsplit(value)
    if value != "*" and (
        parts.scheme not in ("http", "https") or not parts.netloc or value != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError
    return value


def _parse_webhook(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ValueError
    parts.port  # noqa: B018 (raises ValueError)
    return value


EVENT_KINDS = ("stored", "replaced", "deleted", "retrieved", "failed")


def _parse_event_kind(value: str) -> str:
    if value.lower() not in EVENT_KINDS:
        raise ValueError
    return value.lower()


def _parse_public_url(value: Any) -> str:
    text = _text(value).rstrip("/")
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment):
        raise ValueError
    return text


_TAKEN = {"swagger", "openapi.json", "healthz", "readyz", "metrics", "ohif", "wado", "wadouri"} | {
    *("login", "logout", "session", "shares", "share", "site", "study", "viewer"),
}


def _parse_root(value: Any) -> str:
    text = _text(value).rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text) or text.split("/")[1] in _TAKEN or "/." in text:
        raise ValueError
    return text


def _parse_queue_url(value: Any) -> str:
    text = _text(value)
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.strip("/")):
        raise ValueError
    return text


def _url_with(scheme: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        text = _text(value)
        if text and not (text.startswith(scheme) and len(text) > len(scheme)):
            raise ValueError
        return text

    return parse


def _parse_storage_url(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"[a-z][a-z0-9+.-]*://\S.*", text):
        raise ValueError
    return text


_DATABASE_SCHEMES = ("sqlite:///", "mssql://")


def _parse_database_url(value: Any) -> str:
    text = _text(value)
    if text and not any(text.startswith(scheme) and len(text) > len(scheme) for scheme in _DATABASE_SCHEMES):
        raise ValueError
    return text


def _parse_folder(value: Any) -> str:
    if not _text(value) or "\0" in value:
        raise ValueError
    return _text(value)


def _parse_internal_path(value: Any) -> str:
    text = _text(value)
    if text and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", text):
        raise ValueError
    return text.rstrip("/")


#: The original's names; what they do is in docs/deidentification.md.
ANONYMIZER_OPTIONS = (
    "BasicProfile",
    "CleanPixelData",
    "CleanGraph",
    "CleanStructdCont",
    "CleanDesc",
    "RetainLongFullDates",
    "RetainLongModifDates",
    "RetainPatientChars",
    "RetainDeviceIdent",
    "RetainUIDs",
    "RetainSafePrivate",
    "RetainInstitutionIdent",
)
SHORTEST_KEY = 16  # bytes


def _parse_anonymizer_options(value: Any) -> tuple[str, ...]:
    by_name = {name.lower(): name for name in ANONYMIZER_OPTIONS}
    names = tuple(by_name[name.lower()] for name in _list_of(str)(value))
    if {"RetainLongFullDates", "RetainLongModifDates"} <= set(names):
        raise ValueError
    return names


def _parse_key(value: Any) -> str:
    if _text(value) and len(_text(value).encode()) < SHORTEST_KEY:
        raise ValueError
    return _text(value)


def _parse_header(value: Any) -> str:
    if _text(value) and not re.fullmatch(r"[A-Za-z0-9-]+", _text(value)):
        raise ValueError
    return _text(value)


def _parse_role_name(value: str) -> str:
    theirs, separator, ours = value.rpartition("=")
    if not separator or not theirs.strip() or not ours.strip():
        raise ValueError
    return value


ADDRESS = Kind(
    "address",
    "an address and a port, such as 127.0.0.1:8000 or [::1]:8000, or a socket such as unix:/run/dicomcloud/http.sock",
    _parse_address,
)
FOLDER = Kind("folder", "a folder", _parse_folder)
FLAG = Kind("`true` or `false`", "true or false", _parse_flag, _show_flag)
SIZE = Kind("size", "a size such as 500 MB, 16 GiB or a number of bytes", _parse_size, _show_size)
OPTIONAL_ADDRESS = Kind(
    "address", "an address and a port such as logs.example:6514, or nothing", lambda v: v and _parse_address(v)
)
TEXT = Kind("text", "text", _text)
WORDS = Kind("list", "words, separated by commas", _list_of(str), _show_list)
HEADER = Kind("header", "the name of a header such as X-Remote-User, or nothing", _parse_header)
ROLE_NAMES = Kind("list", "names such as Radiology=reader", _list_of(_parse_role_name), _show_list)
FILE = Kind("file", "a file, or nothing", _text)
SECRET = Kind(
    "secret",
    f"a secret of {SHORTEST_KEY} characters or more, or nothing",
    _parse_key,
    lambda value: "***" if value else "",
    secret=True,
)
PROFILE_OPTIONS = Kind(
    "list of options",
    f"options such as {', '.join(ANONYMIZER_OPTIONS)}; RetainLongFullDates and RetainLongModifDates exclude each other",
    _parse_anonymizer_options,
    _show_list,
)
NETWORKS = Kind(
    "list of addresses",
    "IP addresses or networks, such as 10.0.0.5, 192.168.0.0/24, or unix for whoever comes by a unix socket",
    _list_of(_parse_network),
    _show_list,
)
ORIGINS = Kind(
    "list of origins", "origins such as https://viewer.example (no path), or *", _list_of(_parse_origin), _show_list
)
WEBHOOKS = Kind(
    "list of URLs",
    "http or https URLs such as https://ris.example/dicomcloud",
    _list_of(_parse_webhook),
    lambda value: ", ".join(map(without_password, value)),
    secret=True,
)
KINDS = Kind("list of events", f"some of {', '.join(EVENT_KINDS)}", _list_of(_parse_event_kind), _show_list)
NAMES = Kind("list of names", "names, separated by commas", _list_of(str), _show_list)
PASSWORD = Kind("secret", "a secret, or nothing", _text, lambda value: "***" if value else "", secret=True)
QUEUE_URL = Kind(
    "URL", "the URL of an Azure Storage queue, or nothing", _parse_queue_url, lambda value: value.partition("?")[0]
)
PUBLIC_URL = Kind("URL", "an http or https URL such as https://pacs.example, or nothing", _parse_public_url)
ROOT = Kind("path", "a path such as /dicomweb, not one that the server uses for something else", _parse_root)
INTERNAL_PATH = Kind("path", "a path such as /stored, or nothing", _parse_internal_path)
DATABASE_URL = Kind(
    "URL", "sqlite:///PATH or mssql://USER:PASSWORD@HOST:1433/DATABASE, or nothing", _parse_database_url
)
STORAGE_URL = Kind(
    "URL",
    "file://FOLDER, s3://BUCKET/PREFIX?endpoint=…, azure://CONTAINER?account=…, a plug-in's URL, or nothing",
    _parse_storage_url,
)
