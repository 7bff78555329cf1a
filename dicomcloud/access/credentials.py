"""Passwords, API keys and session cookies: made, hashed, checked. The one home of argon2.

A password is hashed with Argon2id (RFC 9106), which costs 64 MiB and some 100 ms on purpose. Keys and cookies are
random and long: their SHA-256 is enough, and quick.
"""

from __future__ import annotations

import hashlib
import secrets
from threading import Lock, Semaphore
from time import monotonic
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

SHORTEST_PASSWORD: Final = 10
LONGEST_PASSWORD: Final = 1024
KEY_PREFIX: Final = "dck_"

_REMEMBERED: Final = 300.0  # seconds for which a verified password need not be hashed again
_MOST_REMEMBERED: Final = 10_000
_hasher: Final = PasswordHasher()
_at_a_time = Semaphore(2)  # a hash takes 64 MiB


def hash_password(password: str) -> str:
    """Raises ValueError for one that is too short to be one, or longer than is checked."""
    if len(password) < SHORTEST_PASSWORD:
        raise ValueError(f"a password has {SHORTEST_PASSWORD} characters or more")
    if len(password) > LONGEST_PASSWORD:
        raise ValueError(f"a password has at most {LONGEST_PASSWORD} characters")
    return _hasher.hash(password)


# Of a password that nobody has: a name that is unknown takes as long as a wrong password.
_NOBODYS: Final = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$aW1wb3NzaWJsZWltcG9zc2libGVpbXBvc3NpYmxlMTI"


def password_fits(password: str, hashed: str) -> bool:
    """Whether this is the password; takes its time also when there is none (`hashed` is '')."""
    if len(password) > LONGEST_PASSWORD:
        return False
    with _at_a_time:
        try:
            return _hasher.verify(hashed or _NOBODYS, password) and bool(hashed)
        except (VerificationError, InvalidHashError):
            return False


class VerifiedPasswords:
    """Remembers for some minutes which passwords were right, by a keyed hash with a key that no one else has.

    The stored hash is part of it: with a new password the old one is forgotten.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._until: dict[bytes, float] = {}
        self._lock = Lock()

    def mark(self, *texts: str) -> bytes:
        """By what something secret can be remembered in this process, without the secret itself."""
        text = "\0".join(texts).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._key).digest()

    def knows(self, name: str, password: str, hashed: str) -> bool:
        return self._until.get(self.mark(name, hashed, password), 0.0) > monotonic()

    def remember(self, name: str, password: str, hashed: str) -> None:
        now = monotonic()
        with self._lock:
            if len(self._until) >= _MOST_REMEMBERED:
                self._until = {mark: until for mark, until in self._until.items() if until > now}
            if len(self._until) < _MOST_REMEMBERED:
                self._until[self.mark(name, hashed, password)] = now + _REMEMBERED


def checksum(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_key() -> tuple[str, str]:
    """The identifier of a new API key, and the whole key, which is shown once."""
    key_id = secrets.token_hex(6)
    return key_id, f"{KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"


def key_id_of(key: str) -> str | None:
    """The identifier in an API key; None for what does not look like one."""
    key_id, separator, _ = key.removeprefix(KEY_PREFIX).partition("_")
    return key_id if separator and key.startswith(KEY_PREFIX) and len(key_id) == 12 else None


def new_cookie() -> str:
    return secrets.token_urlsafe(32)


def csrf_token(cookie: str) -> str:
    """What a page sends along to show that it is this server's: only it can know the cookie's hash."""
    return hashlib.blake2b(cookie.encode("utf-8", "surrogatepass"), digest_size=24, person=b"csrf").hexdigest()


def new_share_id() -> str:
    return secrets.token_urlsafe(12)
