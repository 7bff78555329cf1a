"""Whether callers are asked who they are: told from the settings, once, before the server listens."""

from __future__ import annotations

import ipaddress
import logging

from ..settings import Settings, SettingsError, split_address

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
