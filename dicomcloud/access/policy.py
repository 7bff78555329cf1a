"""Whether callers are asked who they are, and how: told from the settings, once, before the server listens."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable, Iterator

from ..index.accounts import Accounts
from ..plugins import PluginError, load
from ..setting_kinds import split_address
from ..settings import Settings, SettingsError
from .authentication import Authentication, Authenticator, External
from .caller import ROLES
from .failures import Failures
from .login_server import LoginServer
from .tokens import Tokens

log = logging.getLogger(__name__)

_HOW = (
    "Make a user with `python -m dicomcloud users add NAME --role administrator`, or set oidc_issuer, or "
    'proxy_user_header. If a proxy in front asks for passwords itself, set authentication = "none" and let nobody '
    "but that proxy reach this server."
)


def is_loopback(address: str) -> bool:
    """Whether only this computer reaches what listens on `HOST:PORT`."""
    try:
        host, _ = split_address(address)
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a unix socket, behind which there is a proxy; a name


def _plugins(names: Iterable[str]) -> Iterator[Authenticator]:
    for name in names:
        try:
            yield load("authenticators", name)
        except PluginError as error:
            raise SettingsError(f"Setting authenticators: {error}") from error


def open_authentication(
    settings: Settings,
    accounts: Accounts,
    authenticators: Iterable[Authenticator] = (),
    noticed: Callable[[str, str, int], None] = lambda name, method, outcome: None,
) -> Authentication | None:
    """What tells callers, None where nobody is asked. `authenticators` are further ways, beside those of the settings.

    `noticed` is told the name, the way and the HTTP status of each login.

    Raises SettingsError for settings that contradict each other, or leave the archive open to the network.
    """
    authenticators = (*authenticators, *_plugins(settings.authenticators))
    for role in settings.default_roles:
        _check_role("default_roles", role)
    role_names = dict(_role_name(text) for text in settings.role_names)
    for role in role_names.values():
        _check_role("role_names", role)
    if settings.cors_credentials and "*" in settings.cors_origins:
        raise SettingsError("Setting cors_credentials: cors_origins must name the sites, not `*`")
    here_only = is_loopback(settings.bind) or settings.bind.startswith("unix:")
    if not here_only and not settings.tls_certificate and not settings.trusted_proxies:
        log.warning("%s speaks HTTP without TLS: passwords and images can be read on the way", settings.bind)
    if settings.oidc_issuer and not settings.oidc_audience and not settings.oidc_client_id:
        raise SettingsError("Setting oidc_audience is needed with oidc_issuer: tokens for others must not let in")
    if settings.oidc_client_id and not settings.oidc_issuer:
        raise SettingsError("Setting oidc_client_id: oidc_issuer must say where it is known")
    if settings.proxy_user_header and not settings.trusted_proxies:
        raise SettingsError("Setting proxy_user_header: trusted_proxies must say which proxy is believed")
    ways = settings.oidc_issuer or settings.proxy_user_header or authenticators
    if not asks_callers(settings, anybody_known=bool(ways) or accounts.anybody()):
        return None
    tokens = None
    if settings.oidc_issuer and settings.oidc_audience:
        tokens = Tokens(settings.oidc_issuer, settings.oidc_audience, jwks_url=settings.oidc_jwks_url)
    login_server = None
    if settings.oidc_client_id:
        login_server = LoginServer(
            settings.oidc_issuer,
            settings.oidc_client_id,
            secret=settings.oidc_client_secret,
            scopes=settings.oidc_scopes,
            jwks_url=settings.oidc_jwks_url,
        )
    return Authentication(
        accounts,
        tokens=tokens,
        login_server=login_server,
        external=External(
            proxy_user_header=settings.proxy_user_header,
            proxy_roles_header=settings.proxy_roles_header,
            name_claim=settings.oidc_name_claim,
            roles_claim=settings.oidc_roles_claim,
            role_names=role_names,
            default_roles=settings.default_roles,
        ),
        authenticators=authenticators,
        noticed=noticed,
        failures=Failures(settings.login_failures, settings.login_failures_path),
        session_idle_minutes=settings.session_idle_minutes,
        session_hours=settings.session_hours,
    )


def _role_name(text: str) -> tuple[str, str]:
    theirs, _, ours = text.rpartition("=")
    return theirs.strip(), ours.strip()


def _check_role(setting: str, role: str) -> None:
    if role not in ROLES:
        raise SettingsError(f"Setting {setting}: {role!r} is no role; there are {', '.join(ROLES)}")


def asks_callers(settings: Settings, *, anybody_known: bool) -> bool:
    """Whether a caller has to say who they are; `anybody_known`: there are users or keys, or another way to tell.

    Raises SettingsError where the network reaches the server and nobody would be asked, or nobody could answer.
    """
    if settings.authentication == "none":
        if not is_loopback(settings.bind):
            log.warning("%s is open to the network, and nobody is asked (authentication = none)", settings.bind)
        return False
    if anybody_known:
        return True
    if settings.authentication == "required":
        raise SettingsError(f"Setting authentication is `required`, but nobody could log in. {_HOW}")
    if not is_loopback(settings.bind):
        raise SettingsError(
            f"Setting bind: {settings.bind} is open to the network, but no authentication is set up, so that everybody "
            f"could read, change and delete the studies. {_HOW}"
        )
    if settings.trusted_proxies:
        raise SettingsError(
            "Setting trusted_proxies: a proxy lets the network reach this server, but no authentication is set up, so "
            f"that everybody could read, change and delete the studies. {_HOW}"
        )
    return False
