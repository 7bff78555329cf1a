"""The log: lines of text or JSON on standard error, with the number of the request, and without patient data.

What a client or a file said may be in the message of an exception, or in a warning of pydicom; so these are left out: a
traceback names places and types only. The log level `debug` shows them.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

import orjson

from .audit.actor import current_actor

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def set_up(level: str, form: Literal["text", "json"]) -> None:
    """Log to standard error. Handlers that the program around us has made stay."""
    reveal = level == "debug"
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Json(reveal) if form == "json" else _Text(reveal))
        root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    if not reveal:
        warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
        for name in ("pydicom", "py.warnings", "pylibjpeg"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


class _Text(logging.Formatter):
    def __init__(self, reveal: bool) -> None:
        super().__init__(_TEXT)
        self._reveal = reveal

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        request = current_actor().request_id
        return f"{line} [{request}]" if request and "\n" not in line else line

    def formatException(self, ei: Any) -> str:
        return super().formatException(ei) if self._reveal else places(ei)


class _Json(logging.Formatter):
    """One object a line: time, level, logger, message, request, exception."""

    def __init__(self, reveal: bool) -> None:
        super().__init__()
        self._reveal = reveal

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := current_actor().request_id:
            entry["request"] = request
        if record.exc_info:
            entry["exception"] = super().formatException(record.exc_info) if self._reveal else places(record.exc_info)
        return orjson.dumps(entry | getattr(record, "fields", {}), default=str).decode()


def places(exception: _ExcInfo) -> str:
    """A traceback without the messages of its exceptions, which may quote what a patient's file says."""
    kind, error, trace = exception
    if kind is None or error is None:
        return ""
    lines = []
    if cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        lines += [places((type(cause), cause, cause.__traceback__)), "which led to"]
    lines += [
        f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}' for frame in traceback.extract_tb(trace)
    ]
    return "\n".join([*lines, f"{kind.__module__}.{kind.__qualname__}"])
