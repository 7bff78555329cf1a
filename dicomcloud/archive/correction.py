"""Correcting patients and studies: new versions of the stored instances, with what they said before.

A stored file never changes. A correction stores a new version of each instance; its Original Attributes Sequence
(0400,0561) tells the old values, when they were changed and by what (PS3.3 C.12.1.1.9), with the reason CORRECT. The
version from before is kept aside, as by the setting `duplicates = replace`. All instances of a study change together or
none does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson

from ..dicom import metadata
from ..dicom.attributes import Level, keyword_of, level_of, tag_of, vr_of
from ..dicom.coercion import read_change
from ..errors import Conflict, NotFound
from ..index.repository import Index
from ..storage import Storage
from ..storage.cache import DiskCache
from .store import StoreBatch

_PIECE: Final = 1 << 20
_ROUNDS: Final = 5  # in each, what was stored during the one before
_STUDY_UID: Final = "0020000D"
#: What makes a patient; Issuer of Patient ID (0010,0021) goes with the ID even where there is none.
_PATIENT: Final = ("00100010", "00100020", "00100021", "00100030", "00100040")
#: What a study says of itself, to whoever joins it.
_STUDY: Final = ("00080020", "00080030", "00080050", "00080090", "00081030", "00200010")


@dataclass(frozen=True, slots=True)
class Corrected:
    """What a correction did, or would do, to one study."""

    study_uid: str
    instances: int  # that changed
    changes: Mapping[str, tuple[str, str]]  # by keyword: the old value of the study, the new one
    into: str | None = None  # the study that its series joined


class Correction:
    """Corrections of one archive. `begin` gives the batch in which instances get the attributes that it is given."""

    def __init__(
        self, index: Index, storage: Storage, cache: DiskCache, begin: Callable[[Mapping[str, Any]], StoreBatch]
    ) -> None:
        self._index = index
        self._storage = storage
        self._cache = cache
        self._begin = begin

    def correct(self, study: str, values: Mapping[str, str], *, dry_run: bool = False) -> Corrected:
        """Give every instance of a study these values, by keyword or tag; several values are parted by backslashes.

        Raises NotFound, ValueError for what is no attribute of a patient or study or no value of it, Conflict where an
        instance cannot be changed; then none is.
        """
        changes = {}
        for name, text in values.items():
            tag = tag_of(name)
            if tag is None or level_of(tag) is not Level.STUDY:
                raise ValueError(f"{name} is no attribute of a patient or study")
            changes[f"{tag:08X}"] = read_change(tag, text)
            _check(name, vr_of(tag), text)
        return self._apply(study, changes, dry_run=dry_run)

    def merge_patients(
        self, patient: tuple[str, str], into: tuple[str, str], *, dry_run: bool = False
    ) -> Iterator[Corrected]:
        """Give all studies of a patient to another; a patient is (Patient ID, issuer). Raises NotFound, Conflict."""
        studies, others = self._index.studies_of_patient(*patient), self._index.studies_of_patient(*into)
        for found, (identifier, issuer) in ((studies, patient), (others, into)):
            if not found:
                raise NotFound(f"There is no study of a patient {identifier!r}" + (f" of {issuer!r}" if issuer else ""))
        model = self._attributes(others[-1])
        changes = {key: model[key] for key in _PATIENT if model.get(key, {}).get("Value")}
        changes.setdefault("00100021", {"vr": "LO"})
        for study in studies:
            yield self._apply(study, changes, dry_run=dry_run)

    def merge_studies(self, study: str, into: str, *, dry_run: bool = False) -> Corrected:
        """Let all series of a study join another one, and say of patient and study what that one says.

        Raises NotFound, Conflict.
        """
        if study == into:
            raise Conflict("A study cannot be merged into itself")
        self._rows(study)
        model = self._attributes(into)
        changes = {key: model.get(key) or {"vr": vr_of(int(key, 16))} for key in (*_PATIENT, *_STUDY)}
        changes[_STUDY_UID] = model[_STUDY_UID]
        return self._apply(study, changes, dry_run=dry_run, into=into)

    def _attributes(self, study: str) -> dict[str, Any]:
        """The attributes of the study's first instance. Raises NotFound."""
        document = next(self._index.documents(study), None)
        if document is None:
            raise NotFound(f"There is no study {study}")
        attributes: dict[str, Any] = orjson.loads(document)
        return attributes

    def _rows(self, study: str) -> list[Any]:
        rows = self._index.instances(study)
        if not rows:
            raise NotFound(f"There is no study {study}")
        return rows

    def _apply(self, study: str, changes: Mapping[str, Any], *, dry_run: bool, into: str | None = None) -> Corrected:
        before = self._attributes(study)
        told = {
            keyword_of(int(key, 16)): (metadata.text(before, int(key, 16)), metadata.text(changes, int(key, 16)))
            for key in changes
            if before.get(key, {}).get("Value") != changes[key].get("Value")
        }
        rows = self._rows(study)
        done: set[str] = set()
        count = 0
        for _ in range(1 if dry_run else _ROUNDS):
            waiting = [row for row in rows if row.file_key not in done]
            if not waiting:
                break
            with self._begin(changes) as batch:
                for row in waiting:
                    batch.add(self._pieces(row.file_key))
                if batch.failures:
                    raise Conflict(
                        f"{len(batch.failures)} of {len(waiting)} instances cannot be changed, so none was: "
                        f"{batch.failures[0].message}"
                    )
                if dry_run:
                    return Corrected(study, batch.changed, told, into)
                items = batch.commit().items
            if failed := [item for item in items if item.failure is not None]:
                raise Conflict(f"{len(failed)} of {len(items)} instances could not be stored: {failed[0].message}")
            count += sum(item.original_attributes is not None for item in items)
            rows = self._index.instances(study)
            done = {row.file_key for row in rows if self._is_so(row, changes)}
        self._cache.forget(study)
        return Corrected(study, count, told, into)

    def _is_so(self, row: Any, changes: Mapping[str, Any]) -> bool:
        found = self._index.document(row.study_uid, row.series_uid, row.sop_uid)
        attributes = orjson.loads(found[1]) if found else {}
        return all(attributes.get(key, {}).get("Value") == change.get("Value") for key, change in changes.items())

    def _pieces(self, key: str) -> Iterator[bytes]:
        with self._storage.open(key) as file:
            yield from iter(partial(file.read, _PIECE), b"")


def _check(name: str, vr: str, text: str) -> None:
    """Raises ValueError for what is no value of this VR (PS3.5 6.2)."""
    from pydicom.config import RAISE
    from pydicom.valuerep import validate_value

    for part in text.split("\\"):
        try:
            validate_value(vr, part, RAISE)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def as_text(corrected: Sequence[Corrected]) -> Iterator[str]:
    """What was done, in lines for a person."""
    for each in corrected:
        joined = f" joined {each.into}" if each.into else ""
        yield f"study {each.study_uid}{joined}: {each.instances} instances"
        for keyword, (old, new) in each.changes.items():
            yield f"  {keyword}: {old!r} -> {new!r}"
