"""Whether a server may start without asking anybody."""

from __future__ import annotations

import pytest

from dicomcloud.access.policy import asks_callers
from dicomcloud.settings import SettingsError, load


def asks(anybody_known: bool = False, **settings: str) -> bool:
    return asks_callers(
        load(None, {f"DICOMCLOUD_{k.upper()}": v for k, v in settings.items()}), anybody_known=anybody_known
    )


@pytest.mark.parametrize("bind", ["127.0.0.1:8000", "[::1]:8000", "localhost:8000", "127.9.9.9:1"])
def test_a_server_that_only_this_computer_reaches_is_open_until_there_is_somebody_to_ask_for(bind: str) -> None:
    assert asks(bind=bind) is False
    assert asks(True, bind=bind) is True


@pytest.mark.parametrize("bind", ["0.0.0.0:8000", "[::]:8000", "192.168.1.5:80", "pacs.example:443"])
def test_a_server_that_the_network_reaches_does_not_start_without_authentication(bind: str) -> None:
    with pytest.raises(SettingsError, match=r"^Setting bind: .* users add NAME .* oidc_issuer, or proxy_user_header"):
        asks(bind=bind)
    assert asks(True, bind=bind) is True
    assert asks(bind=bind, authentication="none") is False


def test_a_proxy_in_front_lets_the_network_in() -> None:
    with pytest.raises(SettingsError, match="^Setting trusted_proxies: "):
        asks(trusted_proxies="127.0.0.1")
    assert asks(True, trusted_proxies="127.0.0.1") is True


def test_required_is_refused_while_nobody_could_log_in() -> None:
    with pytest.raises(SettingsError, match="nobody could log in"):
        asks(authentication="required")
    assert asks(True, authentication="required") is True
