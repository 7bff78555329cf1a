"""The index: the database that knows what is stored and where."""

from dicomcloud.index.database import Database, NewerDatabase, migrate, open_database, pending, revert
from dicomcloud.index.repository import Index, InstanceRow
from dicomcloud.index.search import SearchResult
from dicomcloud.index.writing import NewInstance, Outcome

__all__ = [
    "Database",
    "Index",
    "InstanceRow",
    "NewInstance",
    "NewerDatabase",
    "Outcome",
    "SearchResult",
    "migrate",
    "open_database",
    "pending",
    "revert",
]
