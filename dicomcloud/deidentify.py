"""De-identified copies of files and folders, and the de-identifier that the settings describe.

Nothing that names a patient is written: not in a file, not in its name, not in the name of a folder. The paths of the
originals, which often do, stay in memory.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .dicom.deidentification import CannotDeidentify, Deidentifier, Report, parse_options
from .dicom.pixel_cleaning import parse_pixel_rules
from .settings import Settings, SettingsError

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one file. `source` may name the patient; `target` is relative to the output folder."""

    source: str
    outcome: Literal["written", "already there", "failed"]
    message: str = ""
    target: str = ""
    report: Report | None = None


def open_deidentifier(settings: Settings, options: Iterable[str] | None = None) -> Deidentifier:
    """The de-identifier of these settings, with other options where some are given. Raises SettingsError."""
    try:
        rules = ""
        if settings.anonymizer_pixel_rules:
            rules = Path(settings.anonymizer_pixel_rules).expanduser().read_text(encoding="utf-8")
        return Deidentifier(
            parse_options(settings.anonymizer_options if options is None else options),
            settings.deidentification_key(),
            pixel_rules=parse_pixel_rules(rules),
            max_inflated=settings.max_inflated_bytes,
        )
    except OSError as error:
        raise SettingsError(f"The pixel rules cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"De-identification: {error}") from None


def copy_file(deidentifier: Deidentifier, source: str, target: Path) -> Copied:
    """The de-identified copy of one file under a name that the caller chose. Never overwrites."""
    return _copy(deidentifier, source, target.parent, Path(), target.name)


def copy_into(deidentifier: Deidentifier, source: str, relative: str, target: Path) -> Copied:
    """The copy of a file of an input folder, where it has the path `relative`, in the same tree below `target`.

    A file is named after its new SOP Instance UID, a folder after a digest of its path: names that say nothing, and
    the same in every run with the same key, so that an interrupted run can be repeated.
    """
    folder = Path()
    parents = Path(relative).parent.parts
    for depth in range(len(parents)):
        folder /= deidentifier.opaque("folder", "/".join(parents[: depth + 1]))
    return _copy(deidentifier, source, target, folder)


def _copy(deidentifier: Deidentifier, source: str, top: Path, below: Path, name: str = "") -> Copied:
    folder = top / below
    draft = folder / f".{secrets.token_hex(8)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(source, "rb") as original, open(draft, "xb") as copy:
            report = deidentifier.deidentify(original, copy)
        relative = below / (name or f"{report.sop_instance_uid}.dcm")
        if _moved(draft, top / relative):
            return Copied(source, "written", "", relative.as_posix(), report)
        if _are_equal(draft, top / relative):
            return Copied(source, "already there", "", relative.as_posix(), report)
        return Copied(source, "failed", "another file of that name is there already; it was left alone")
    except CannotDeidentify as error:
        return Copied(source, "failed", str(error))
    except OSError as error:
        return Copied(source, "failed", error.strerror or type(error).__name__)
    finally:
        draft.unlink(missing_ok=True)


def _moved(draft: Path, target: Path) -> bool:
    """Give the draft its name; False when something of that name is there already."""
    try:
        if os.name == "nt":
            os.rename(draft, target)  # fails where the name is taken
        else:
            os.link(draft, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.lexists(target):
            return False
        os.rename(draft, target)
    return True


def _are_equal(one: Path, other: Path) -> bool:
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        while piece := first.read(_PIECE):
            if piece != second.read(_PIECE):
                return False
    return True
