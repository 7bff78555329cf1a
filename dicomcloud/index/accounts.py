"""The SQL of users, API keys, share links and sessions. What is secret comes here as a hash."""

from __future__ import annotations

from time import time_ns
from typing import Final, NamedTuple

from .database import Database, unit_of_work

NEVER: Final = 0


class User(NamedTuple):
    """`password`: an Argon2 hash, '' for who comes in another way. `studies`: rules, one a line."""

    name: str
    password: str
    roles: str
    studies: str
    disabled: bool
    created_at: int
    changed_at: int


class Key(NamedTuple):
    """Moments are microseconds since 1970 UTC; 0 is never."""

    key_id: str
    name: str
    checksum: str
    roles: str
    studies: str
    created_at: int
    expires_at: int
    revoked_at: int


class Share(NamedTuple):
    share_id: str
    study_uid: str
    roles: str
    created_by: str
    created_at: int
    expires_at: int
    revoked_at: int


class Session(NamedTuple):
    user_name: str
    share_id: str
    created_at: int
    used_at: int
    expires_at: int


_USER: Final = "name, password, roles, studies, disabled, created_at, changed_at"
_KEY: Final = "key_id, name, checksum, roles, studies, created_at, expires_at, revoked_at"
_SHARE: Final = "share_id, study_uid, roles, created_by, created_at, expires_at, revoked_at"


def now() -> int:
    """Microseconds since 1970 UTC."""
    return time_ns() // 1000


class Accounts:
    """Who is known. Safe to use from several threads and processes; names of users come case-folded."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._run = database.run

    def generation(self) -> int:
        """Another number after every change of users, keys and links."""
        return int(self._run("SELECT generation FROM account_state WHERE id = 1").fetchone()[0])

    def secret(self) -> str:
        """The key that signs share links, the same for all processes and machines of an archive."""
        return str(self._run("SELECT secret FROM account_state WHERE id = 1").fetchone()[0])

    def anybody(self) -> bool:
        """Whether there is a user or a key that is good."""
        users = "SELECT 1 FROM user_account WHERE disabled = 0"
        keys = "SELECT 1 FROM api_key WHERE revoked_at = 0 AND (expires_at = 0 OR expires_at > ?)"
        return any(self._run(*each).fetchone() for each in ((users,), (keys, (now(),))))

    # Users

    def user(self, name: str) -> User | None:
        row = self._run(f"SELECT {_USER} FROM user_account WHERE name = ?", (name,)).fetchone()
        return None if row is None else User._make(row)

    def users(self) -> list[User]:
        return [User._make(row) for row in self._run(f"SELECT {_USER} FROM user_account ORDER BY name").fetchall()]

    @unit_of_work
    def add_user(self, name: str, password: str, roles: str, studies: str) -> bool:
        """False, and nothing done, when there is a user of this name."""
        with self._database.write():
            if self.user(name) is not None:
                return False
            moment = now()
            self._run(
                f"INSERT INTO user_account ({_USER}) VALUES (?, ?, ?, ?, 0, ?, ?)",
                (name, password, roles, studies, moment, moment),
            )
            self._changed()
        return True

    @unit_of_work
    def change_user(
        self,
        name: str,
        *,
        password: str | None = None,
        roles: str | None = None,
        studies: str | None = None,
        disabled: bool | None = None,
    ) -> bool:
        """What is None stays. A new password, and being disabled, end the sessions. False: no such user."""
        given = {"password": password, "roles": roles, "studies": studies, "disabled": disabled}
        changes = {column: value for column, value in given.items() if value is not None} | {"changed_at": now()}
        assignments = ", ".join(f"{column} = ?" for column in changes)
        with self._database.write():
            if self.user(name) is None:
                return False
            values = [int(value) if isinstance(value, bool) else value for value in changes.values()]
            self._run(f"UPDATE user_account SET {assignments} WHERE name = ?", (*values, name))
            if password is not None or disabled:
                self._run("DELETE FROM login_session WHERE user_name = ?", (name,))
            self._changed()
        return True

    # API keys

    def key(self, key_id: str) -> Key | None:
        row = self._run(f"SELECT {_KEY} FROM api_key WHERE key_id = ?", (key_id,)).fetchone()
        return None if row is None else Key._make(row)

    def keys(self) -> list[Key]:
        return [Key._make(row) for row in self._run(f"SELECT {_KEY} FROM api_key ORDER BY id").fetchall()]

    @unit_of_work
    def add_key(self, key: Key) -> None:
        with self._database.write():
            self._run(f"INSERT INTO api_key ({_KEY}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", key)
            self._changed()

    def revoke_key(self, key_id: str) -> bool:
        """False when there is no such key that is good."""
        return self._revoke("api_key", "key_id", key_id)

    # Share links

    def share(self, share_id: str) -> Share | None:
        row = self._run(f"SELECT {_SHARE} FROM share_link WHERE share_id = ?", (share_id,)).fetchone()
        return None if row is None else Share._make(row)

    def shares(self) -> list[Share]:
        """Those that have not ended."""
        rows = self._run(
            f"SELECT {_SHARE} FROM share_link WHERE revoked_at = 0 AND expires_at > ? ORDER BY id", (now(),)
        ).fetchall()
        return [Share._make(row) for row in rows]

    @unit_of_work
    def add_share(self, share: Share) -> None:
        with self._database.write():
            self._run(f"INSERT INTO share_link ({_SHARE}) VALUES (?, ?, ?, ?, ?, ?, ?)", share)
            self._changed()

    def revoke_share(self, share_id: str) -> bool:
        """False when there is no such link that is good. The browsers that opened it are out."""
        revoked = self._revoke("share_link", "share_id", share_id)
        if revoked:
            with self._database.write():
                self._run("DELETE FROM login_session WHERE share_id = ?", (share_id,))
        return revoked

    @unit_of_work
    def _revoke(self, table: str, column: str, identifier: str) -> bool:
        with self._database.write():
            good = f"{column} = ? AND revoked_at = 0"
            if self._run(f"SELECT 1 FROM {table} WHERE {good}", (identifier,)).fetchone() is None:
                return False
            self._run(f"UPDATE {table} SET revoked_at = ? WHERE {good}", (now(), identifier))
            self._changed()
        return True

    def _changed(self) -> None:
        self._run("UPDATE account_state SET generation = generation + 1 WHERE id = 1")

    # Sessions

    def session(self, checksum: str) -> Session | None:
        row = self._run(
            "SELECT user_name, share_id, created_at, used_at, expires_at FROM login_session WHERE checksum = ?",
            (checksum,),
        ).fetchone()
        return None if row is None else Session._make(row)

    @unit_of_work
    def add_session(self, checksum: str, session: Session) -> None:
        """Also forgets those that have expired."""
        with self._database.write():
            self._run("DELETE FROM login_session WHERE expires_at <= ?", (now(),))
            self._run(
                "INSERT INTO login_session (checksum, user_name, share_id, created_at, used_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (checksum, *session),
            )

    @unit_of_work
    def touch_session(self, checksum: str, used_at: int) -> None:
        with self._database.write():
            self._run("UPDATE login_session SET used_at = ? WHERE checksum = ?", (used_at, checksum))

    @unit_of_work
    def end_session(self, checksum: str) -> None:
        with self._database.write():
            self._run("DELETE FROM login_session WHERE checksum = ?", (checksum,))
