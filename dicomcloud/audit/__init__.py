"""The audit trail: who did what, when, from where, and how it ended.

`trail.py` takes events, `messages.py` writes them as PS3.15 A.5 has it, `syslog.py` sends them on.
"""

from .actor import Actor, acting, current_actor
from .trail import AuditTrail

__all__ = ["Actor", "AuditTrail", "acting", "current_actor"]
