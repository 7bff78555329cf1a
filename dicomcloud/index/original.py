"""The database of the original DICOMcloud (C#), versions 0.7 and 0.8, which is only read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import peewee

from dicomcloud.errors import Conflict
from dicomcloud.index.database import Database, explain, open_database

KNOWN_VERSIONS: Final = ("0.7", "0.8")
_FROM: Final = (
    " FROM ObjectInstance o JOIN Series r ON r.SeriesKey = o.ObjectInstance_SeriesKey"
    " JOIN Study s ON s.StudyKey = r.Series_StudyKey"
)


class OriginalDatabase:
    """Its rows. It has no unique keys, so that one instance may have several rows: each is told once."""

    def __init__(self, url: str | Database) -> None:
        """`mssql://user:password@host:1433/database`. Raises ValueError for other URLs, Conflict for other schemas."""
        self._database = open_database(url) if isinstance(url, str) else url
        versions = "SELECT Major, Minor FROM DICOMcloudDbVersion ORDER BY Major DESC, Minor DESC"
        try:
            newest = self._database.run(versions).fetchone()
        except Exception as error:
            self._database.close()
            if explained := explain(error):
                raise explained from error
            if isinstance(error, peewee.DatabaseError) or "sqlite3" in type(error).__module__:
                raise Conflict("This is no database of the original DICOMcloud: it tells no version") from error
            raise
        self.version = f"{newest[0]}.{newest[1]}" if newest else "unknown"
        if self.version not in KNOWN_VERSIONS:
            self._database.close()
            raise Conflict(f"The original's schema is version {self.version}; known are {', '.join(KNOWN_VERSIONS)}")

    def counts(self) -> tuple[int, int, int]:
        """How many studies, series and instances, by their UIDs."""
        studies, series, instances = (
            int(self._database.run(f"SELECT count(*) FROM (SELECT DISTINCT {columns}{_FROM}) d").fetchone()[0])
            for columns in (
                "s.StudyInstanceUid",
                "s.StudyInstanceUid, r.SeriesInstanceUid",
                "s.StudyInstanceUid, r.SeriesInstanceUid, o.SopInstanceUid",
            )
        )
        return studies, series, instances

    def instances(self) -> Iterator[tuple[str, str, str]]:
        """Study, Series and SOP Instance UID of every instance; those of a study follow one another."""
        statement = (
            f"SELECT DISTINCT s.StudyInstanceUid, r.SeriesInstanceUid, o.SopInstanceUid{_FROM}"
            " ORDER BY s.StudyInstanceUid, r.SeriesInstanceUid, o.SopInstanceUid"
        )
        for study, series, sop in self._database.stream(statement):
            yield study.strip("\0 "), series.strip("\0 "), sop.strip("\0 ")

    def close(self) -> None:
        self._database.close()
