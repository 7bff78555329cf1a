"""From what a request shows to its caller: passwords, API keys, tokens, a proxy's word, sessions, share links.

What the database says of users and keys is remembered for two seconds: that is how long a password that was changed, or
a key that was revoked, may go on working.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from time import monotonic
from typing import Any, Final, Protocol, TypeVar

from itsdangerous import BadSignature, URLSafeSerializer, URLSafeTimedSerializer

from ..errors import Forbidden, NotFound, Unauthorized, Unavailable
from ..index.accounts import NEVER, Accounts, Session, Share, User, now
from . import credentials
from .caller import ROLES, Caller
from .failures import Failures
from .login_server import Attempt, LoginFailed, LoginServer, LoginServerAway
from .studies import Studies, parse_studies
from .tokens import InvalidToken, KeysAway, Tokens, claim

log = logging.getLogger(__name__)
Row = TypeVar("Row")

_REMEMBERED: Final = 2.0  # seconds
_MOST_REMEMBERED: Final = 10_000
LONGEST_LOGIN: Final = 900  # seconds that a login at another server may take
_TOUCHED: Final = 60_000_000  # microseconds between two notes that a session is used


@dataclass(frozen=True, slots=True)
class Shown:
    """What a request shows of its caller. `headers`: names in lower case. `proxied`: it came from a trusted proxy."""

    headers: Mapping[str, str] = field(default_factory=dict)
    cookie: str = ""
    address: str = ""
    proxied: bool = False


class Authenticator(Protocol):
    """A way of telling who calls that another package adds.

    Gives the caller, None where the request shows nothing that is meant for it, or raises Unauthorized.
    """

    def __call__(self, shown: Shown) -> Caller | None: ...


@dataclass(frozen=True, slots=True)
class External:
    """How callers are named and what they may do who are told by a proxy or a token.

    `role_names`: their name of a role or group → ours; `default_roles` for those who have none otherwise.
    """

    proxy_user_header: str = ""
    proxy_roles_header: str = ""
    name_claim: str = "preferred_username"
    roles_claim: str = "roles"
    role_names: Mapping[str, str] = field(default_factory=dict)
    default_roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenedSession:
    cookie: str
    seconds: int  # until it ends for sure
    study_uid: str = ""  # of a share link


class Authentication:
    """Tells callers. One for each server process; safe to use from several threads."""

    def __init__(
        self,
        accounts: Accounts,
        *,
        tokens: Tokens | None = None,
        login_server: LoginServer | None = None,
        external: External | None = None,
        authenticators: Iterable[Authenticator] = (),
        noticed: Callable[[str, str, int], None] = lambda name, method, outcome: None,
        failures: Failures | None = None,
        session_idle_minutes: int = 30,
        session_hours: int = 12,
    ) -> None:
        self._accounts = accounts
        self._tokens = tokens
        self.login_server = login_server
        self._external = external or External()
        self._authenticators = tuple(authenticators)
        self._noticed = noticed  # called with name, method and HTTP status of a login
        self._failures = failures or Failures(10)
        self._verified = credentials.VerifiedPasswords()
        self._idle = session_idle_minutes * 60_000_000
        self._longest = session_hours * 3_600_000_000
        self._remembered: dict[tuple[str, str], tuple[float, Any]] = {}
        self._just_seen: dict[bytes, tuple[float, Caller]] = {}  # by what they showed: until when, and who it was
        self._generation = -1
        self._seen = float("-inf")
        self._lock = Lock()

    @property
    def schemes(self) -> tuple[str, ...]:
        """What a caller can use in the Authorization header (RFC 9110 11.6.1)."""
        return ("Basic", "Bearer")

    def caller(self, shown: Shown) -> Caller | None:
        """The caller; None when the request shows nothing. Raises Unauthorized, TooManyRequests, Unavailable."""
        for authenticator in self._authenticators:
            if (caller := authenticator(shown)) is not None:
                return caller
        header = self._external.proxy_user_header.lower()
        if header and shown.proxied and (name := shown.headers.get(header, "").strip()):
            groups = shown.headers.get(self._external.proxy_roles_header.lower(), "") if name else ""
            return self._external_caller(name, [group.strip() for group in groups.split(",")], "proxy")
        scheme, _, rest = shown.headers.get("authorization", "").strip().partition(" ")
        if scheme:
            match scheme.lower():
                case "basic":
                    return self._basic(rest.strip(), shown.address)
                case "bearer":
                    return self._bearer(rest.strip(), shown.address)
            raise Unauthorized("This way of logging in is not known here; Basic and Bearer are")
        if key := shown.headers.get("x-api-key", "").strip():
            return self._key(key, shown.address)
        return self._session(shown.cookie) if shown.cookie else None

    # Passwords

    def password(self, name: str, password: str, address: str) -> Caller:
        """Raises Unauthorized for a wrong one, TooManyRequests after many of these."""
        name = name.strip().casefold()[:100]
        user = self._user(name)
        hashed = user.password if user is not None and not user.disabled else ""
        if not (hashed and self._verified.knows(name, password, hashed)):
            self._failures.check(address, name)
            if not credentials.password_fits(password, hashed):
                self._failures.count(address, name)
                self._noticed(name, "password", 401)
                log.warning("a login from %s failed", address)
                raise Unauthorized("The name or the password is wrong")
            self._verified.remember(name, password, hashed)
            self._noticed(name, "password", 200)
        assert user is not None
        return _caller_of(user, "password")

    def _basic(self, text: str, address: str) -> Caller:
        moment, mark = self._notice_changes(), self._verified.mark(text)
        just_seen = self._just_seen  # another one as soon as something has changed
        seen = just_seen.get(mark)
        if seen is not None and seen[0] > moment:
            return seen[1]
        caller = self._basic_caller(text, address)
        if len(just_seen) >= _MOST_REMEMBERED:
            just_seen.clear()
        just_seen[mark] = (moment + _REMEMBERED, caller)
        return caller

    def _basic_caller(self, text: str, address: str) -> Caller:
        try:
            name, separator, password = base64.b64decode(text, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            separator = ""
        if not separator:
            raise Unauthorized("The Authorization header is malformed")
        if password.startswith(credentials.KEY_PREFIX):
            return self._key(password, address)
        return self.password(name, password, address)

    # API keys

    def _key(self, text: str, address: str) -> Caller:
        key_id = credentials.key_id_of(text)
        key = self._look_up("key", key_id, self._accounts.key) if key_id else None
        if key is None or not hmac.compare_digest(key.checksum, credentials.checksum(text)):
            self._failures.check(address, "")
            self._failures.count(address, "")
            self._noticed(f"key:{key_id or '?'}", "api key", 401)
            raise Unauthorized("The API key is not one of this server")
        if key.revoked_at or (key.expires_at != NEVER and key.expires_at <= now()):
            raise Unauthorized("The API key has ended")
        return Caller(f"key:{key.name}", tuple(key.roles.split()), "api key", _studies(key.studies))

    # Tokens

    def _bearer(self, text: str, address: str) -> Caller:
        if text.startswith(credentials.KEY_PREFIX):
            return self._key(text, address)
        if text.count(".") == 1:
            return _caller_of_share(self._share(text))
        if self._tokens is None:
            raise Unauthorized("This server takes no such token")
        try:
            claims = self._tokens.claims(text)
        except InvalidToken as error:
            raise Unauthorized(f"The login is not good: {error}") from None
        except KeysAway as error:
            raise Unavailable(f"The login cannot be checked: {error}") from None
        return self._external_caller(*self._told_by(claims), "token")

    def _told_by(self, claims: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The name and the groups of a token's user. Raises Unauthorized."""
        name = claim(claims, self._external.name_claim) or claims.get("sub")
        if not isinstance(name, str) or not name.strip():
            raise Unauthorized("The token does not name its user")
        groups = claim(claims, self._external.roles_claim) or ()
        if isinstance(groups, str):
            groups = groups.split()
        return name.strip(), [str(group) for group in groups] if isinstance(groups, list | tuple) else []

    def _external_caller(self, name: str, groups: Sequence[str], method: str) -> Caller:
        names = self._external.role_names
        return self._known_elsewhere(name, [names.get(group, group) for group in groups if group], method)

    def _known_elsewhere(self, name: str, roles: list[str], method: str) -> Caller:
        """One whose name and roles others tell. The local entry of the name counts when it has no password of its own:
        else somebody could choose the name of an administrator there."""
        user = self._user(name.casefold()[:100])
        studies = None
        if user is not None and not user.password:
            if user.disabled:
                raise Unauthorized("This user is disabled")
            roles += user.roles.split()
            studies = _studies(user.studies)
        caller = Caller(name[:100], tuple(dict.fromkeys(roles)), method, studies)
        if len(caller.permissions) == 1 and self._external.default_roles:  # PUBLIC alone
            return Caller(name[:100], self._external.default_roles, method, studies)
        return caller

    # Sessions

    def open_session(self, user_name: str) -> OpenedSession:
        """A session of a user who has just logged in."""
        moment = now()
        self._noticed(user_name, "session", 200)
        return self._open(Session(user_name, "", moment, moment, moment + self._longest), "")

    # Logins at another server. Nothing of their users is kept here but a session: its cookie carries their roles, after
    # a dot. The row has the checksum of the cookie as a whole, so that roles cannot be changed without losing it.

    def begin_login(self, target: str, redirect_uri: str) -> tuple[str, str]:
        """Where a browser is sent to log in elsewhere, and the cookie that it keeps meanwhile. Raises Unavailable."""
        attempt = Attempt.begin(target)
        try:
            url = self._elsewhere().authorization_url(attempt, redirect_uri)
        except LoginServerAway as error:
            raise Unavailable(f"The login server cannot be reached: {error}") from None
        return url, self._attempts().dumps(list(attempt))

    def finish_login(self, cookie: str, redirect_uri: str, *, state: str, code: str) -> tuple[OpenedSession, str]:
        """The session of one who came back, and where they wanted to go.

        Raises Unauthorized; Forbidden where they are somebody who may do nothing here; Unavailable.
        """
        login_server = self._elsewhere()
        try:
            attempt = Attempt(*self._attempts().loads(cookie, max_age=LONGEST_LOGIN))
        except (BadSignature, TypeError):
            raise Unauthorized("The login took too long, or was begun in another browser; try again") from None
        if not hmac.compare_digest(state.encode(), attempt.state.encode()):
            raise Unauthorized("This is the answer to another login; try again")
        roles_claim = self._external.roles_claim
        try:
            claims = login_server.claims(attempt, redirect_uri, code=code, roles_claim=roles_claim)
        except LoginFailed as error:
            self._noticed("", "login server", 401)
            raise Unauthorized(f"The login failed: {error}") from None
        except LoginServerAway as error:
            raise Unavailable(f"The login server cannot be reached: {error}") from None
        name, groups = self._told_by(claims)
        caller = self._external_caller(name, groups, "session")
        if len(caller.permissions) == 1:  # PUBLIC alone
            self._noticed(caller.name, "login server", 403)
            raise Forbidden(f"{caller.name} may do nothing here. An administrator can give this user a role")
        self._noticed(caller.name, "login server", 200)
        told = [role for group in groups if (role := self._external.role_names.get(group, group)) in ROLES]
        moment = now()
        session = Session(caller.name, "", moment, moment, moment + self._longest)
        return self._open(session, "", suffix="." + ".".join(dict.fromkeys(told))), attempt.target

    def _elsewhere(self) -> LoginServer:
        if self.login_server is None:
            raise NotFound("Nobody logs in elsewhere here (setting oidc_client_id)")
        return self.login_server

    def _attempts(self) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(self._secret(), salt="login")

    def open_share(self, token: str) -> OpenedSession:
        """A session of one who opened a share link. Raises Unauthorized for one that is not good (any more)."""
        share = self._share(token)
        moment = now()
        self._noticed(f"share:{share.share_id}", "share link", 200)
        until = min(share.expires_at, moment + self._longest)
        return self._open(Session("", share.share_id, moment, moment, until), share.study_uid)

    def _open(self, session: Session, study_uid: str, *, suffix: str = "") -> OpenedSession:
        cookie = credentials.new_cookie() + suffix
        self._accounts.add_session(credentials.checksum(cookie), session)
        return OpenedSession(cookie, (session.expires_at - session.created_at) // 1_000_000, study_uid)

    def close_session(self, cookie: str) -> None:
        mark = credentials.checksum(cookie)
        self._accounts.end_session(mark)
        self._remembered.pop(("session", mark), None)

    def _session(self, cookie: str) -> Caller | None:
        """The caller of a cookie; None for one that is not good any more: it is no attempt to get in."""
        mark = credentials.checksum(cookie)
        session = self._look_up("session", mark, self._accounts.session)
        moment = now()
        if session is None or session.expires_at <= moment:
            return None
        if session.share_id:
            share = self._look_up("share", session.share_id, self._accounts.share)
            return None if share is None or _has_ended(share) else _caller_of_share(share)
        if moment - session.used_at > self._idle:
            return None
        if "." in cookie:
            roles = [role for role in cookie.split(".")[1:] if role]
            try:
                caller = self._known_elsewhere(session.user_name, roles, "session")
            except Unauthorized:  # disabled here
                return None
        else:
            user = self._user(session.user_name)
            if user is None or user.disabled:
                return None
            caller = _caller_of(user, "session")
        if moment - session.used_at > min(_TOUCHED, self._idle // 4):
            self._accounts.touch_session(mark, moment)
            self._remembered[("session", mark)] = (monotonic(), session._replace(used_at=moment))
        return caller

    # Share links

    def share(self, study_uid: str, *, hours: float, roles: Sequence[str], created_by: str) -> tuple[Share, str]:
        """A new link to a study, and its token, which is shown once. Raises ValueError for a time that is none."""
        if not 0 < hours <= 24 * 365:
            raise ValueError("a share link lasts from a moment to a year")
        share_id, moment = credentials.new_share_id(), now()
        until = moment + int(hours * 3_600_000_000)
        share = Share(share_id, study_uid, " ".join(roles), created_by[:100], moment, until, NEVER)
        self._accounts.add_share(share)
        return share, self._signer().dumps(share_id)

    def _share(self, token: str) -> Share:
        try:
            share_id = self._signer().loads(token)
        except BadSignature:
            raise Unauthorized("This link is not one of this server") from None
        share = self._look_up("share", str(share_id), self._accounts.share)
        if share is None or _has_ended(share):
            raise Unauthorized("This link has ended")
        return share

    def _signer(self) -> URLSafeSerializer:
        return URLSafeSerializer(self._secret(), salt="share")

    def _secret(self) -> str:
        return self._look_up("secret", "", lambda _: self._accounts.secret()) or ""

    # What the database says

    def _notice_changes(self) -> float:
        """Forget what is remembered when users, keys or links have changed: that is asked every two seconds. Now."""
        moment = monotonic()
        if moment - self._seen > _REMEMBERED:
            with self._lock:
                generation = self._accounts.generation()
                if generation != self._generation:
                    self._remembered, self._just_seen = {}, {}
                self._generation, self._seen = generation, moment
        return moment

    def _user(self, name: str) -> User | None:
        return self._look_up("user", name, self._accounts.user)

    def _look_up(self, kind: str, key: str, ask: Callable[[str], Row]) -> Row:
        """The row, remembered while nothing has changed; sessions are asked anew."""
        moment = self._notice_changes()
        remembered = self._remembered  # another one as soon as something has changed
        found = remembered.get((kind, key))
        if found is not None and (kind != "session" or moment - found[0] < _REMEMBERED):
            row: Row = found[1]
            return row
        row = ask(key)
        if len(remembered) >= _MOST_REMEMBERED:
            remembered.clear()
        remembered[kind, key] = (moment, row)
        return row


@lru_cache(maxsize=1024)
def _caller_of(user: User, method: str) -> Caller:
    return Caller(user.name, tuple(user.roles.split()), method, _studies(user.studies))


def _caller_of_share(share: Share) -> Caller:
    return Caller(f"share:{share.share_id}", tuple(share.roles.split()), "share link", Studies.only(share.study_uid))


def _has_ended(share: Share) -> bool:
    return bool(share.revoked_at) or share.expires_at <= now()


@lru_cache(maxsize=1024)
def _studies(texts: str) -> Studies | None:
    return parse_studies(texts.splitlines()) if texts.strip() else None
