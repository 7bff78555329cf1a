"""Who is calling, what they may do, and which studies they see. Plain values, no HTTP; `web/auth.py` applies them."""

from .caller import ANYBODY, ROLES, Caller, Permission, permissions_of
from .studies import Studies, parse_studies

__all__ = ["ANYBODY", "ROLES", "Caller", "Permission", "Studies", "parse_studies", "permissions_of"]
