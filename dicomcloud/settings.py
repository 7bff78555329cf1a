"""Every option once: name, type, default, help. Read from a TOML file and from DICOMCLOUD_* variables.

An option is one line of `Settings`. From it come the environment variable, the check of its value, the output of
`python -m dicomcloud settings` and the table of docs/settings.md.
"""

from __future__ import annotations

import os
import secrets
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from .setting_kinds import (
    ADDRESS,
    DATABASE_URL,
    FILE,
    FLAG,
    FOLDER,
    HEADER,
    INTERNAL_PATH,
    KINDS,
    NAMES,
    NETWORKS,
    OPTIONAL_ADDRESS,
    ORIGINS,
    PASSWORD,
    PROFILE_OPTIONS,
    PUBLIC_URL,
    QUEUE_URL,
    ROLE_NAMES,
    ROOT,
    SECRET,
    SHORTEST_KEY,
    SIZE,
    STORAGE_URL,
    TEXT,
    WEBHOOKS,
    WORDS,
    Kind,
    choice,
    integer,
    without_password,
)

PREFIX = "DICOMCLOUD_"
CONFIG_VARIABLE = "DICOMCLOUD_CONFIG"  # names the TOML file; the only variable that is no option
CONFIG_FILE = "dicomcloud.toml"  # read when it lies in the current directory


class SettingsError(Exception):
    """A setting that is unknown or malformed; the message names it, its source and what is expected."""


@dataclass(frozen=True, slots=True)
class Option:
    name: str
    kind: Kind
    default: Any
    help: str

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    def show(self, value: Any) -> str:
        """The value as a person writes it, without passwords."""
        return without_password(self.kind.show(value))


def _option(default: Any, kind: Kind, help: str) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help})


@dataclass(frozen=True)
class Settings:
    """The settings of a server, checked. `sources` tells where each one came from."""

    bind: str = _option(
        "127.0.0.1:8000",
        ADDRESS,
        "Address and port on which the server listens. `0.0.0.0:8000` listens on every network card; the server starts "
        "so only when it asks its callers who they are (docs/access.md). `unix:/run/dicomcloud/http.sock` is a socket "
        "for a proxy on the same machine (not on Windows).",
    )
    authentication: Literal["auto", "required", "none"] = _option(
        "auto",
        choice("auto", "required", "none"),
        "Whether callers have to say who they are. `auto`: as soon as there is a user, an API key, `oidc_issuer` or "
        "`proxy_user_header`; without one the server is open and starts only where nobody but this computer reaches "
        "it. `required`: always. `none`: never, e.g. because a proxy in front asks.",
    )
    login_failures: int = _option(
        10,
        integer(0),
        "Failed logins a minute from one address after which it is answered with 429; five times as many for one name. "
        "Counted for all server processes of this machine together. 0: no limit.",
    )
    session_idle_minutes: int = _option(
        30, integer(1), "Minutes without a request after which a browser has to log in again."
    )
    session_hours: int = _option(12, integer(1), "Hours after which a browser has to log in again in any case.")
    share_max_hours: int = _option(
        720, integer(1, 24 * 365), "Longest time for which a link that shares a study is good, in hours."
    )
    proxy_user_header: str = _option(
        "",
        HEADER,
        "Header in which a proxy of `trusted_proxies` names the user that it has let in, e.g. `X-Remote-User` (IIS "
        "with Windows authentication, nginx auth_request). The proxy must set or remove it in every request. "
        "Empty: off.",
    )
    proxy_roles_header: str = _option(
        "",
        HEADER,
        "Header in which such a proxy gives the user's roles or groups, separated by commas. Empty: those of "
        "`users add NAME --external`, or `default_roles`.",
    )
    oidc_issuer: str = _option(
        "",
        PUBLIC_URL,
        "OpenID Connect issuer whose bearer tokens (JWT) are accepted, and where people can log in "
        "(`oidc_client_id`), e.g. `https://login.example/realms/clinic`. Empty: none.",
    )
    oidc_audience: tuple[str, ...] = _option(
        (), WORDS, "What a bearer token must be meant for (`aud`): one of these. Needed to take any."
    )
    oidc_jwks_url: str = _option(
        "",
        PUBLIC_URL,
        "Where the issuer publishes its keys. Empty: what `/.well-known/openid-configuration` of the issuer says.",
    )
    oidc_client_id: str = _option(
        "",
        TEXT,
        "Name under which this server is registered at `oidc_issuer`, so that people log in there with their browser "
        "(authorization code with PKCE); register `https://HOST/login/callback` as its redirect URI. Empty: the login "
        "page asks for local names and passwords only.",
    )
    oidc_client_secret: str = _option(
        "", PASSWORD, "Secret that the issuer gave this server, where it is registered as a confidential client."
    )
    oidc_scopes: tuple[str, ...] = _option(
        ("openid", "profile"), WORDS, "What such a login asks for, e.g. with `groups` or `roles` in addition."
    )
    oidc_name_claim: str = _option(
        "preferred_username", TEXT, "Claim of a token that names the user; `sub` where it is missing."
    )
    oidc_roles_claim: str = _option(
        "roles", TEXT, "Claim of a token that has the user's roles or groups, dotted, e.g. `realm_access.roles`."
    )
    role_names: tuple[str, ...] = _option(
        (),
        ROLE_NAMES,
        "What roles or groups of a token or a proxy mean here, as `THEIRS=role`, e.g. `Radiology=reader`. In the file "
        "a name may have blanks. Their names that are roles here need no entry.",
    )
    authenticators: tuple[str, ...] = _option(
        (),
        NAMES,
        "Programs of other packages that tell who calls, before all other ways (docs/extending.md).",
    )
    default_roles: tuple[str, ...] = _option(
        (), WORDS, "Roles of those whom a token or a proxy names and of whom nothing else says what they may do."
    )
    forbidden_status: Literal[403, 404] = _option(
        403,
        choice(403, 404),
        "Status of a request that its caller may not make. 404 does not tell that there is something to find; a study "
        "that the caller may not see is answered like one that does not exist either way.",
    )
    data_dir: str = _option(
        "data",
        FOLDER,
        "Folder with the index and the files: what a backup has to hold. A relative path starts at the folder in "
        "which the server is started. Use a local disk, no network share.",
    )
    database_url: str = _option(
        "",
        DATABASE_URL,
        "Where the index is: `sqlite:///PATH`, or MS SQL Server as `mssql://USER:PASSWORD@HOST:1433/DATABASE` (see "
        "docs/sql-server.md). Empty: `index.sqlite3` in the data directory.",
    )
    storage_url: str = _option(
        "",
        STORAGE_URL,
        "Where the files are: `file://FOLDER`, `s3://BUCKET/PREFIX?endpoint=URL` or `azure://CONTAINER?account=NAME` "
        "(docs/object-storage.md). Empty: `storage` in the data directory.",
    )
    storage_cache_bytes: int = _option(
        8 << 30,
        SIZE,
        "Disk space for files of an object store that were stored or read lately, in `cache` in the data directory; "
        "so much of them is served without a way over the network. 0: nothing is kept.",
    )
    presigned_redirects: Literal["off", "programs", "all"] = _option(
        "off",
        choice("off", "programs", "all"),
        "Whether a client that fetches one whole stored instance from an object store is redirected (302) to a URL at "
        "which it can fetch it from there: `programs` but not scripts of web pages, which need a CORS rule at the "
        "store; or `all`.",
    )
    presigned_seconds: int = _option(
        300, integer(1, 7 * 24 * 3600), "For how long a URL to which a client is redirected is good."
    )
    public_url: str = _option(
        "",
        PUBLIC_URL,
        "The URL under which clients reach this server, e.g. `https://pacs.example`; it stands in front of every URL "
        "in answers (Retrieve URL, BulkDataURI, Link). Empty: taken from each request.",
    )
    root: str = _option(
        "/dicomweb",
        ROOT,
        "Path of the DICOMweb services. The roots of the original (`/api`, `/qidors`, `/wadors`, `/stowrs`, "
        "`/delowrs`) answer as well.",
    )
    trusted_proxies: tuple[str, ...] = _option(
        (),
        NETWORKS,
        "Reverse proxies whose word on the client is believed (`proxy_headers`); `unix` is whoever comes by the unix "
        "socket of `bind`. Empty: nobody's.",
    )
    proxy_headers: Literal["x-forwarded", "forwarded"] = _option(
        "x-forwarded",
        choice("x-forwarded", "forwarded"),
        "Headers in which `trusted_proxies` tell of the client: `x-forwarded` is X-Forwarded-For, -Proto, -Host and "
        "-Prefix; `forwarded` is the header Forwarded (RFC 7239). The others are never looked at: a proxy may let "
        "those of its clients pass.",
    )
    server: Literal["auto", "gunicorn", "waitress"] = _option(
        "auto",
        choice("auto", "gunicorn", "waitress"),
        "The HTTP server. `auto` is gunicorn, and waitress on Windows, where gunicorn does not run.",
    )
    workers: int = _option(
        0,
        integer(0, 256),
        "Server processes (gunicorn only; waitress is one process). 0: one per processor core, at least 2, at most 4.",
    )
    threads: int = _option(
        8, integer(1, 256), "Threads of each server process: how many requests a process works on at a time."
    )
    duplicates: Literal["reject", "keep", "replace"] = _option(
        "reject",
        choice("reject", "keep", "replace"),
        "What to do with an instance that is stored already, but with other bytes: `reject` it as a failure, `keep` "
        "the stored one and report success, or `replace` the stored one, whose file is kept aside. The same "
        "bytes again are always a success.",
    )
    max_results: int = _option(
        1000, integer(1, 1_000_000), "Most results of one search; a client fetches further ones with `offset`."
    )
    empty_search_status: Literal[200, 204] = _option(
        200, choice(200, 204), "Status of a search that finds nothing: 200 with `[]`, or 204 for clients that need it."
    )
    max_request_bytes: int = _option(16 << 30, SIZE, "Largest request body; a larger one is answered with 413.")
    max_parts: int = _option(10_000, integer(1), "Most instances in one store request.")
    max_inflated_bytes: int = _option(
        1 << 30,
        SIZE,
        "Largest data set that a deflated instance may unpack to, and largest image that PNG, GIF and a compressed "
        "frame may (a frame 512 MiB at most); protects against bombs.",
    )
    max_image_pixels: int = _option(
        100_000_000,
        integer(1),
        "Largest picture in pixels, of a frame and of what is drawn of it; a larger one is refused (406, 400). A "
        "colour picture of this size takes about 1 GB of memory while it is drawn.",
    )
    max_metadata_bytes: int = _option(
        256 << 20, SIZE, "Largest JSON or XML metadata of one store request, all parts together; more is a 413."
    )
    stow_query_attributes: bool = _option(
        False,
        FLAG,
        "Whether query parameters of a store request set attributes of its instances (`?00100010=Doe^J`), as clients "
        "of the original do. The old values are kept in the Original Attributes Sequence. `false`: they are ignored.",
    )
    quarantine: bool = _option(
        False,
        FLAG,
        "Keep what could not be stored in the folder `quarantine` of the data directory, with the reason. It holds "
        "patient data like the storage; `python -m dicomcloud quarantine` lists it.",
    )
    quarantine_bytes: int = _option(
        10 << 30, SIZE, "Size of the quarantine; when it is full, nothing more is kept (the log says so)."
    )
    strict_accept: bool = _option(
        False,
        FLAG,
        "Answer a search or retrieve without an Accept header with 406, as PS3.18 8.4.1 demands. Several clients send "
        "none; it counts as `*/*` otherwise.",
    )
    codec_warm_up: bool = _option(
        True,
        FLAG,
        "Start one codec process soon after the server and not with the first image that needs it, which then comes "
        "0.4 s earlier; takes about 60 MB of memory for each server process.",
    )
    codec_workers: int = _option(
        0,
        integer(0, 64),
        "Processes of each server process that decode and encode pixel data; they start when they are needed first. 0: "
        "one per processor core, at most 2.",
    )
    cache_bytes: int = _option(
        2 << 30,
        SIZE,
        "Disk space for results that are dear to make (decoded and encoded pixel data, metadata of series), in `cache` "
        "in the data directory, which may be deleted at any time. 0: nothing is kept.",
    )
    accel_redirect: str = _option(
        "",
        INTERNAL_PATH,
        "Path of the internal nginx location that serves the `storage` folder, e.g. `/stored`: nginx then sends whole "
        "stored files itself (X-Accel-Redirect, config/nginx.conf). Only where every request comes through that nginx. "
        "Empty: off.",
    )
    min_free_bytes: int = _option(
        100 << 20, SIZE, "Free disk space below which nothing is stored any more (503); 0: no such limit."
    )
    cors_origins: tuple[str, ...] = _option(
        (),
        ORIGINS,
        "Web sites whose pages may call this server from a browser, such as a viewer on another host; `*` is every "
        "site. Empty: none.",
    )
    cors_headers: tuple[str, ...] = _option(
        (),
        WORDS,
        "Request headers that these pages may send. Empty: all that they ask for, `Authorization` among them.",
    )
    cors_methods: tuple[str, ...] = _option(
        ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"), WORDS, "Methods that these pages may use."
    )
    cors_credentials: bool = _option(
        False,
        FLAG,
        "Let these pages send cookies, for a proxy in front that keeps its logins in one; `cors_origins` must name "
        "the sites then.",
    )
    frame_ancestors: tuple[str, ...] = _option(
        (),
        ORIGINS,
        "Web sites that may show the pages of this server inside their own, such as an EMR. Empty: none.",
    )
    max_url_bytes: int = _option(
        8000, integer(256, 8000), "Longest path and query of a request; a longer one is answered with 414."
    )
    max_headers: int = _option(100, integer(10, 1000), "Most headers of a request.")
    max_header_bytes: int = _option(
        16 << 10, SIZE, "Longest header of a request; with waitress, of all headers together ten times as much."
    )
    heavy_requests: int = _option(
        0,
        integer(0, 256),
        "How many requests that draw, convert or store a server process works on at a time; further ones wait 15 s and "
        "are then answered with 503. 0: one less than `threads`, so that searches and health checks get through.",
    )
    codec_timeout: int = _option(
        600, integer(1), "Seconds after which the decoding or encoding of an image is given up."
    )
    tls_certificate: str = _option(
        "",
        FILE,
        "Certificate (PEM, with its chain) with which the server itself speaks HTTPS (gunicorn only). Empty: HTTP; a "
        "proxy in front does TLS.",
    )
    tls_key: str = _option("", FILE, "The key of that certificate (PEM), where it is not in the same file.")
    hsts_days: int = _option(
        0,
        integer(0, 3650),
        "Days for which browsers are told to ask this host over HTTPS only (Strict-Transport-Security, RFC 6797); sent "
        "in answers that leave over TLS, from here or from a trusted proxy. 0: not sent; a proxy may do so itself.",
    )
    request_timeout: int = _option(
        300,
        integer(0),
        "Seconds for which a client may be silent in the middle of a transfer before it is given up. A transfer that "
        "moves may take as long as it likes. 0: no limit.",
    )
    audit: Literal["all", "changes", "none"] = _option(
        "all",
        choice("all", "changes", "none"),
        "What the audit trail records: `all` searches, retrieves, stores, deletes, logins and refusals; `changes`: "
        "searches and retrieves left out; `none`. `python -m dicomcloud audit list` shows it.",
    )
    audit_syslog: str = _option(
        "",
        OPTIONAL_ADDRESS,
        "Syslog server that gets the audit trail as PS3.15 A.5 messages over TLS (RFC 5425), as `HOST:PORT`, usually "
        "port 6514. Empty: none.",
    )
    audit_syslog_authority: str = _option(
        "", FILE, "Certificates (PEM) that the syslog server's is checked with. Empty: those of the system."
    )
    audit_syslog_certificate: str = _option(
        "", FILE, "Certificate (PEM) with which this server shows the syslog server who it is. Empty: none."
    )
    audit_syslog_key: str = _option("", FILE, "The key of that certificate, where it is not in the same file.")
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "info", choice("debug", "info", "warning", "error"), "How much is written to the log (standard error)."
    )
    log_format: Literal["text", "json"] = _option(
        "text",
        choice("text", "json"),
        "Form of the log: lines of `text`, or `json`, one object a line with the number of the request, which the "
        "answer has as X-Request-ID. Neither has patient data in it, but at the log level `debug`.",
    )
    log_requests: bool = _option(
        False, FLAG, "Log each request: method, route (without UIDs), status, milliseconds, caller, address."
    )
    shutdown_grace: int = _option(
        30,
        integer(0),
        "Seconds that requests under way get to finish when the server is told to stop; new ones are not let in then.",
    )
    anonymizer_enabled: bool = _option(
        False,
        FLAG,
        "De-identify every instance when it is stored; the original is not kept. Off, as opposed to the original.",
    )
    anonymizer_options: tuple[str, ...] = _option(
        ("BasicProfile",),
        PROFILE_OPTIONS,
        "What de-identification retains or cleans beyond the Basic Profile of PS3.15, under the original's names: "
        "`RetainUIDs`, `RetainLongFullDates`, `RetainLongModifDates`, `RetainPatientChars`, `RetainDeviceIdent`, "
        "`RetainInstitutionIdent`, `RetainSafePrivate`, `CleanDesc`, `CleanStructdCont`, `CleanGraph`, "
        "`CleanPixelData`.",
    )
    anonymizer_key: str = _option(
        "",
        SECRET,
        "Key of replacement UIDs, pseudonyms and date shifts: the same key gives the same ones again. Empty: "
        "`deidentification.key` in the data directory, made when it is first needed.",
    )
    anonymizer_pixel_rules: str = _option(
        "",
        FILE,
        "TOML file that says for `CleanPixelData` which regions of which devices' images are blacked out.",
    )
    processors: tuple[str, ...] = _option(
        (),
        NAMES,
        "Programs of other packages that see every data set when it is stored, in this order (docs/extending.md).",
    )
    change_feed: bool = _option(
        True,
        FLAG,
        "Keep a list of everything that was stored, replaced and deleted, for `GET {root}/changes`. Switching it off "
        "empties it.",
    )
    change_feed_days: int = _option(
        0, integer(0), "Days after which changes are taken out of the feed. 0: they stay for ever."
    )
    event_kinds: tuple[str, ...] = _option(
        ("stored", "replaced", "deleted", "failed"),
        KINDS,
        "What webhooks, the queue and subscribers are told: `stored`, `replaced`, `deleted`, `retrieved`, `failed` "
        "(an instance that could not be stored).",
    )
    webhooks: tuple[str, ...] = _option(
        (),
        WEBHOOKS,
        "URLs to which events are posted as JSON, signed (docs/extending.md); each is tried until it answers 2xx.",
    )
    webhook_secret: str = _option(
        "", SECRET, "With what webhooks are signed (HMAC-SHA256); also in the form `whsec_` and base64."
    )
    event_queue_url: str = _option(
        "",
        QUEUE_URL,
        "Azure Storage queue that is sent the events, e.g. `https://ACCOUNT.queue.core.windows.net/QUEUE`, with a SAS "
        "if there is one. Needs requirements-objectstore.txt.",
    )
    event_queue_key: str = _option("", PASSWORD, "Key of the storage account, where the queue's URL has no SAS.")
    subscribers: tuple[str, ...] = _option(
        (), NAMES, "Programs of other packages that are given the events (docs/extending.md)."
    )
    event_attempts: int = _option(
        60,
        integer(1, 1000),
        "How often an event is tried before it is given up; 60 take about two days. `python -m dicomcloud events list` "
        "lists what was given up.",
    )
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().absolute()

    @property
    def login_failures_path(self) -> Path:
        """Where the server processes of this machine count failed logins."""
        return self.data_path / "login-failures.sqlite3"

    @property
    def quarantine_path(self) -> Path:
        return self.data_path / "quarantine"

    def deidentification_key(self) -> bytes:
        """The key for de-identification; the key file is made once, for its owner only. Raises SettingsError."""
        if self.anonymizer_key:
            return self.anonymizer_key.encode()
        path = self.data_path / "deidentification.key"
        try:
            if not path.exists():
                _make_key_file(path)
            key = path.read_bytes().strip()
        except OSError as error:
            raise SettingsError(f"The key file {path} cannot be read or made: {error.strerror}") from None
        if len(key) < SHORTEST_KEY:
            raise SettingsError(f"The key file {path} is damaged; with another key pseudonyms change")
        return key

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_path / 'index.sqlite3'}"

    @property
    def resolved_storage_url(self) -> str:
        return self.storage_url or f"file://{self.data_path / 'storage'}"

    @property
    def cache_path(self) -> Path:
        return self.data_path / "cache"

    @property
    def viewer_path(self) -> Path:
        """Where `viewer install` puts the OHIF viewer."""
        return self.data_path / "viewer"

    @property
    def storage_cache_path(self) -> Path:
        return self.cache_path / "stored"

    @property
    def spool_path(self) -> Path:
        """Of files on their way into an object store."""
        return self.data_path / "incoming"

    @property
    def resolved_codec_workers(self) -> int:
        return self.codec_workers or min(os.cpu_count() or 1, 2)

    @property
    def resolved_server(self) -> Literal["gunicorn", "waitress"]:
        if self.server == "auto":
            return "waitress" if os.name == "nt" else "gunicorn"
        return self.server

    @property
    def resolved_heavy_requests(self) -> int:
        return self.heavy_requests or max(self.threads - 1, 1)

    @property
    def resolved_workers(self) -> int:
        return self.workers or min(max(os.cpu_count() or 2, 2), 4)


OPTIONS: tuple[Option, ...] = tuple(
    Option(each.name, each.metadata["kind"], each.default, each.metadata["help"])
    for each in fields(Settings)
    if "kind" in each.metadata
)
_BY_NAME = {option.name: option for option in OPTIONS}


def load(path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of a TOML file, overridden by the DICOMCLOUD_* variables of `environ` (default: this process's).

    The file is `path`, else the one that DICOMCLOUD_CONFIG names, else `dicomcloud.toml` where it lies in the current
    directory. Raises SettingsError for a file that cannot be read, an unknown setting or a malformed value.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option, value, source in (*_from_file(_find_file(path, environ)), *_from_environment(environ)):
        values[option.name] = _parse(option, value, source)
        sources[option.name] = source
    return Settings(**values, sources=sources)


def _make_key_file(path: Path) -> None:
    """Complete or not at all; of several processes the first one's key stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with open(draft, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(secrets.token_hex(32) + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        if os.name == "nt":
            os.rename(draft, path)  # fails where the file is there already
        else:
            os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)


def markdown_table() -> str:
    """The table of docs/settings.md."""
    rows = ["| Setting | Variable | Type | Default | What it does |", "|---|---|---|---|---|"]
    for option in OPTIONS:
        default = option.show(option.default)
        rows.append(
            f"| `{option.name}` | `{option.variable}` | {option.kind.name} | {f'`{default}`' if default else 'empty'} "
            f"| {option.help} |"
        )
    return "\n".join(rows) + "\n"


def _find_file(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Path | None:
    chosen = path or environ.get(CONFIG_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None


def _from_file(path: Path | None) -> Iterator[tuple[Option, Any, str]]:
    if path is None:
        return
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} is not valid TOML: {error}") from None
    for name, value in document.items():
        if name not in _BY_NAME:
            raise SettingsError(f"Unknown setting {name!r} in {path}.{_did_you_mean(name, _BY_NAME)}")
        yield _BY_NAME[name], value, str(path)


_OF_TESTS = f"{PREFIX}TEST_"  # of those who run the tests


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[Option, Any, str]]:
    by_variable = {option.variable: option for option in OPTIONS}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE or variable.startswith(_OF_TESTS):
            continue
        if variable not in by_variable:
            raise SettingsError(f"Unknown environment variable {variable}.{_did_you_mean(variable, by_variable)}")
        yield by_variable[variable], environ[variable], f"environment variable {variable}"


def _did_you_mean(name: str, known: Collection[str]) -> str:
    plain = {each.removeprefix(PREFIX).lower(): each for each in known}
    close = get_close_matches(name.removeprefix(PREFIX).lower(), plain, n=1, cutoff=0.6)
    return f" Did you mean {plain[close[0]]}?" if close else " See docs/settings.md for those that exist."


def _parse(option: Option, value: Any, source: str) -> Any:
    try:
        return option.kind.parse(value)
    except (ValueError, TypeError, KeyError):
        shown = "what it says" if option.kind.secret else without_password(repr(value)[:200])
        raise SettingsError(f"Setting {option.name} ({source}): {shown} is not {option.kind.expected}") from None
