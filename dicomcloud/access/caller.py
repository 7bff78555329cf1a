"""The caller of a request, and the roles that give permissions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from .studies import Studies


class Permission(StrEnum):
    """What a route can ask for. PUBLIC is asked of nobody."""

    PUBLIC = "public"
    READ = "read"  # search and retrieve
    DEIDENTIFIED = "deidentified"  # retrieve de-identified copies; READ includes it
    STORE = "store"
    DELETE = "delete"
    SHARE = "share"  # make links to a study that open it without a password
    MONITOR = "monitor"  # metrics
    ADMINISTER = "administer"


_EVERYTHING: Final = frozenset(Permission)

#: What a role lets do. A caller may have several.
ROLES: Final[Mapping[str, frozenset[Permission]]] = MappingProxyType(
    {
        "reader": frozenset((Permission.READ, Permission.DEIDENTIFIED)),
        "deidentified-reader": frozenset((Permission.DEIDENTIFIED,)),
        "sender": frozenset((Permission.STORE,)),
        "deleter": frozenset((Permission.DELETE,)),
        "sharer": frozenset((Permission.SHARE,)),
        "monitor": frozenset((Permission.MONITOR,)),
        "administrator": _EVERYTHING,
    }
)


def permissions_of(roles: Iterable[str]) -> frozenset[Permission]:
    """All that the roles let do. Names that are no role give nothing."""
    return _permissions_of(tuple(roles))


@lru_cache(maxsize=1024)
def _permissions_of(roles: tuple[str, ...]) -> frozenset[Permission]:
    return frozenset((Permission.PUBLIC,)).union(*(ROLES.get(role, frozenset()) for role in roles))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    `method` tells how that was found out: `password`, `api key`, `token`, `proxy`, `session`, `share link`, a plug-in's
    own word, or `open` where nobody is asked. `studies` are those that the caller sees; None: all.
    """

    name: str
    roles: tuple[str, ...]
    method: str
    studies: Studies | None = None
    permissions: frozenset[Permission] = frozenset()  # made from the roles

    def __post_init__(self) -> None:
        if not self.permissions:
            object.__setattr__(self, "permissions", permissions_of(self.roles))

    def may(self, permission: Permission) -> bool:
        return permission in self.permissions


#: The caller where nobody is asked: on this computer, and where the setting `authentication` is `none`.
ANYBODY: Final = Caller("", ("administrator",), "open")
