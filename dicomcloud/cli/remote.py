"""`search`, `fetch` and `store`: a client for any DICOMweb server, this one or another."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

import click
from tqdm import tqdm

from .. import __version__
from ..dicom.attributes import keyword_of, tag_of
from ..errors import DicomWebError
from ..media import reason_to_skip
from ..web.multipart import boundary_of, parse_media_type, read_in_pieces, read_parts
from .files import FileOutcome, files_below, head_of, list_reasons
from .program import ask_password, commands, count, fail

if TYPE_CHECKING:
    import requests  # loaded when it is needed: server processes import this module, too

Command = TypeVar("Command", bound=Callable[..., Any])
Json = dict[str, Any]

_TIMEOUT: Final = (15, 300)  # seconds: to connect, of silence
_BATCH_FILES, _BATCH_BYTES = 20, 64 << 20  # of one store request
_JSON: Final = {"Accept": "application/dicom+json"}
_COLUMNS: Final = {
    "studies": "PatientName PatientID StudyDate ModalitiesInStudy StudyDescription NumberOfStudyRelatedInstances "
    "StudyInstanceUID",
    "series": "SeriesNumber Modality SeriesDescription NumberOfSeriesRelatedInstances SeriesInstanceUID",
    "instances": "InstanceNumber SOPClassUID NumberOfFrames Rows Columns SOPInstanceUID",
}
_TITLES: Final = {
    "PatientName": "Patient",
    "PatientID": "ID",
    "StudyDate": "Date",
    "ModalitiesInStudy": "Modality",
    "StudyDescription": "Description",
    "SeriesDescription": "Description",
    "SeriesNumber": "No.",
    "InstanceNumber": "No.",
    "NumberOfStudyRelatedInstances": "Images",
    "NumberOfSeriesRelatedInstances": "Images",
    "NumberOfFrames": "Frames",
    "StudyInstanceUID": "Study Instance UID",
    "SeriesInstanceUID": "Series Instance UID",
    "SOPInstanceUID": "SOP Instance UID",
    "SOPClassUID": "SOP class",
}


class CannotAsk(Exception):
    """The server could not be asked, or refused; the message says why."""


# The server


class DicomWeb:
    """The services below one URL, such as http://127.0.0.1:8000/dicomweb."""

    def __init__(self, url: str, user: str | None, ca_file: str | None) -> None:
        if not re.match(r"https?://[^/]", url):
            raise click.UsageError(f"{url} is no http or https URL of a DICOMweb server.")
        import requests

        self._url = url.rstrip("/")
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"DICOMcloud/{__version__}"
        if ca_file:
            self._session.verify = ca_file
        if token := os.environ.get("DICOMWEB_TOKEN"):
            self._session.headers["Authorization"] = f"Bearer {token}"
        elif user:
            password = os.environ.get("DICOMWEB_PASSWORD")
            if password is None:
                password = ask_password(f"Password of {user}", "set DICOMWEB_PASSWORD")
            self._session.auth = (user, password)

    @contextmanager
    def request(self, method: str, path: str, **options: Any) -> Iterator[requests.Response]:
        """Raises CannotAsk. A 409 of a store comes back like a success: its body tells of each instance."""
        import requests

        try:
            with self._session.request(
                method, f"{self._url}/{path}", timeout=_TIMEOUT, stream=True, **options
            ) as answer:
                if answer.status_code >= 400 and not (method == "POST" and answer.status_code == 409):
                    raise CannotAsk(_refusal(answer))
                yield answer
        except requests.RequestException as error:
            raise CannotAsk(f"{self._url} cannot be reached: {_reason(error)}") from None

    def search(self, path: str, query: Sequence[tuple[str, str]]) -> list[Json]:
        with self.request("GET", path, params=list(query), headers=_JSON) as answer:
            for text in filter(None, [answer.headers.get("Warning")]):
                click.echo(f"The server says: {text}", err=True)
            if answer.status_code == 204:
                return []
            try:
                found = answer.json()
            except ValueError:
                raise CannotAsk("The server's answer is no DICOM JSON; is this the URL of its DICOMweb root?") from None
        if not isinstance(found, list):
            raise CannotAsk("The server's answer is no list of data sets.")
        return found

    def search_all(self, path: str, query: Sequence[tuple[str, str]], limit: int | None) -> list[Json]:
        """All results, page after page, up to `limit`."""
        found: list[Json] = []
        while limit is None or len(found) < limit:
            rest = [("limit", str(limit - len(found)))] if limit is not None else []
            page = self.search(path, [*query, *rest, *([("offset", str(len(found)))] if found else [])])
            known = {json.dumps(row, sort_keys=True) for row in found[-len(page) :]} if page else set()
            new = [row for row in page if json.dumps(row, sort_keys=True) not in known]  # a server without paging
            if not new:
                break
            found += new
        return found


def _refusal(answer: requests.Response) -> str:
    """What the server says of a request that it refused, in a line."""
    text = answer.raw.read(4000, decode_content=True).decode("utf-8", "replace")
    try:
        body = json.loads(text)
        said = body.get("message") or body.get("Message") or body.get("Details") or ""
    except (ValueError, AttributeError):
        said = "" if "<" in text else text
    hint = {
        401: "Who is calling? Give --user, or a token in DICOMWEB_TOKEN",
        404: "Nothing is stored there, or the URL is not that of the DICOMweb root",
    }.get(answer.status_code, "")
    line = " ".join(str(said).split())[:300]
    return f"The server answers {answer.status_code} {answer.reason}: {line or hint}".rstrip(": ")


def _reason(error: requests.RequestException) -> str:
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted here (--ca-file names the authority's)"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    inner = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
    return inner[1] if inner else type(error).__name__


def remote_options(command: Command) -> Command:
    """What the three commands share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Report as JSON."),
        click.option("--ca-file", type=click.Path(exists=True), help="Certificates to trust (PEM)."),
        click.option("--user", metavar="NAME", help="Log in; the password is asked for, or in DICOMWEB_PASSWORD."),
    ):
        command = option(command)
    return command


# search


@commands.command()
@click.argument("url")
@click.argument("keys", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--study", metavar="UID", help="The series of this study.")
@click.option("--series", metavar="UID", help="The instances of this series; with --study.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most results; see --all.")
@click.option("--all", "everything", is_flag=True, help="All results, page after page.")
@click.option("--fuzzy", is_flag=True, help="Match names by their parts and sound.")
@remote_options
def search(
    url: str,
    keys: Sequence[str],
    study: str | None,
    series: str | None,
    limit: int,
    everything: bool,
    fuzzy: bool,
    user: str | None,
    ca_file: str | None,
    as_json: bool,
) -> None:
    """List the studies of a DICOMweb server, or the series of a study, or the instances of a series.

    Keys are attributes by keyword or tag, e.g. "PatientName=doe*" ModalitiesInStudy=CT StudyDate=20250101-. URL is the
    root of the server's DICOMweb services, e.g. http://127.0.0.1:8000/dicomweb. With --json the answer is printed as
    the server gave it (DICOM JSON).
    """
    if series and not study:
        raise click.UsageError("--series goes with --study.")
    query = [_key(text) for text in keys]
    level = "instances" if series else "series" if study else "studies"
    path = f"studies/{study}/series/{series}/instances" if series else f"studies/{study}/series" if study else "studies"
    if level == "studies":
        query.append(("includefield", "StudyDescription"))
    if fuzzy:
        query.append(("fuzzymatching", "true"))
    with _told():
        found = DicomWeb(url, user, ca_file).search_all(path, query, None if everything else limit)
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    columns = _COLUMNS[level].split()
    asked = [name for name, _ in query if tag_of(name) and keyword_of(tag_of(name) or 0) not in columns]
    columns[-1:-1] = dict.fromkeys(asked)
    if found:
        click.echo(table([_TITLES.get(name, name) for name in columns], [_cells(row, columns) for row in found]))
    one = {"studies": "study", "series": "series", "instances": "instance"}[level]
    click.echo(f"{len(found)} {one if len(found) == 1 else level}.")


def _key(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.UsageError(f"{text!r} is no KEY=VALUE.")
    return name, value


def _cells(row: Json, columns: Sequence[str]) -> list[str]:
    return [_shown(row.get(f"{tag_of(name.partition('.')[0]) or 0:08X}", {})) for name in columns]


def _shown(element: Json) -> str:
    values = [
        "=".join(filter(None, (each.get("Alphabetic"), each.get("Ideographic"), each.get("Phonetic"))))
        if isinstance(each, dict)
        else "" if each is None else str(each)
        for each in element.get("Value", [])
    ]  # fmt: skip
    text = "\\".join(values)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if element.get("vr") == "DA" and len(text) == 8 else text


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what is in them; the widest of text are cut where the terminal is too narrow for all."""
    cleaned = [["".join(char if char.isprintable() else " " for char in cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(titles, *cleaned, strict=True)]
    room = shutil.get_terminal_size((10_000, 24)).columns if sys.stdout.isatty() else 10_000
    while sum(widths) + 2 * len(widths) > room and max(widths[:-1], default=0) > 12:
        widths[widths.index(max(widths[:-1]))] -= 1
    lines = [titles, ["─" * width for width in widths], *cleaned]
    return "\n".join(
        "  ".join(_fitted(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _width(text: str) -> int:
    """Places on a terminal: Chinese, Japanese and Korean characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _fitted(text: str, width: int) -> str:
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


# fetch


@commands.command()
@click.argument("url")
@click.argument("study")
@click.argument("series", required=False)
@click.argument("instance", required=False)
@click.option("--to", "folder", type=click.Path(path_type=Path), default=Path("."), help="Folder (default: this one).")
@click.option("--transfer-syntax", metavar="UID", default="*", help="Convert to it; the default is as stored.")
@click.option("--quiet", is_flag=True, help="Say nothing but what failed.")
@remote_options
def fetch(
    url: str,
    study: str,
    series: str | None,
    instance: str | None,
    folder: Path,
    transfer_syntax: str,
    quiet: bool,
    user: str | None,
    ca_file: str | None,
    as_json: bool,
) -> None:
    """Fetch a study, a series or an instance from a DICOMweb server, as DICOM files.

    They are called STUDY/SERIES/INSTANCE.dcm after their UIDs; files of that name are replaced. Exit code 1 when not
    all instances came.
    """
    server = DicomWeb(url, user, ca_file)
    path = f"studies/{study}" + (f"/series/{series}" if series else "") + (f"/instances/{instance}" if instance else "")
    with _told():
        found = server.search_all(f"{path}/instances", [], None) if not instance else [{}]
        expected = len(found)
        if not expected:
            raise CannotAsk(f"Nothing is stored under {path}.")
        fetched: list[Json] = []
        silent = True if quiet or as_json else None
        with tqdm(total=expected, unit="file", disable=silent) as bar:
            for saved in _fetched(server, path, folder, transfer_syntax):
                fetched.append(saved)
                bar.update()
    if as_json:
        click.echo(json.dumps({"expected": expected, "files": fetched}, indent=2))
    elif not quiet:
        size = sum(each["size"] for each in fetched)
        click.echo(f"Fetched {count(fetched, 'file')} ({size / 1e6:.1f} MB) into {folder}.")
    if len(fetched) < expected:
        fail(f"{expected - len(fetched)} of {expected} instances did not come.", 1)


def _fetched(server: DicomWeb, path: str, folder: Path, transfer_syntax: str) -> Iterator[Json]:
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={transfer_syntax}'
    folder.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch,
        server.request("GET", path, headers={"Accept": accept}) as answer,
    ):
        for chunks in _instances(answer):
            part = Path(scratch) / "part"
            with part.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            yield _filed(part, folder)


def _instances(answer: requests.Response) -> Iterator[Iterator[bytes | memoryview]]:
    media_type = parse_media_type(answer.headers.get("Content-Type", ""))
    stream = _Body(answer)
    if media_type.name == "application/dicom":
        yield read_in_pieces(cast(BinaryIO, stream))
    elif media_type.name == "multipart/related":
        for part in read_parts(stream, boundary_of(media_type)):
            yield iter(part.chunks)
    else:
        raise CannotAsk(f"The server answered {media_type.name}, not DICOM.")


class _Body(RawIOBase):
    """The decoded body of an answer, as it arrives."""

    def __init__(self, answer: requests.Response) -> None:
        self._raw = answer.raw

    def read(self, size: int = -1, /) -> bytes:
        return cast(bytes, self._raw.read(None if size < 0 else size, decode_content=True))


def _filed(part: Path, folder: Path) -> Json:
    """Move a file to the name that its UIDs give, which are digits and dots: nothing leads out of the folder."""
    import pydicom

    names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    try:
        dataset = pydicom.dcmread(part, stop_before_pixels=True, specific_tags=list(names))
    except pydicom.errors.InvalidDicomError:
        raise CannotAsk("The server sent something that is no DICOM file.") from None
    uids = [str(dataset.get(name, "")) for name in names]
    if not all(re.fullmatch(r"[0-9]+(\.[0-9]+)*", uid) and len(uid) <= 64 for uid in uids):
        raise CannotAsk(f"The server sent an instance without proper UIDs: {uids}")
    target = folder / uids[0] / uids[1] / f"{uids[2]}.dcm"
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    return {"path": str(target), "size": target.stat().st_size}


# store


@commands.command()
@click.argument("url")
@click.argument("files", metavar="FILE|FOLDER...", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--study", metavar="UID", help="Refuse instances of another study.")
@click.option("--quiet", is_flag=True, help="Say nothing but what failed.")
@remote_options
def store(
    url: str,
    files: Sequence[str],
    study: str | None,
    quiet: bool,
    user: str | None,
    ca_file: str | None,
    as_json: bool,
) -> None:
    """Store DICOM files, and all below folders, at a DICOMweb server.

    Exit code 1 when some could not be stored; each is named with the reason. Run it again to go on.
    """
    server = DicomWeb(url, user, ca_file)
    found: dict[str, list[FileOutcome]] = defaultdict(list)
    paths: list[str] = []
    for path, fault in files_below(files, Path("/nonexistent")):
        try:
            head = b"" if fault else head_of(path)
        except OSError as error:
            fault = error.strerror or str(error)
        reason = None if fault else "not a file" if head is None else reason_to_skip(head)
        if fault or reason:
            outcome = "failed" if fault else "skipped"
            found[outcome].append(FileOutcome(path, outcome, fault or reason or ""))
        else:
            paths.append(path)
    silent = True if quiet or as_json else None
    fault = ""
    with tqdm(total=len(paths), unit="file", disable=silent) as bar:
        for batch in _batches(paths):
            try:
                outcomes = _stored(server, batch, study)
            except CannotAsk as error:
                fault = str(error)
                break
            for each in outcomes:
                found[each.outcome].append(each)
            bar.update(len(batch))
    if as_json:
        report = {
            "stored": len(found["stored"]),
            "skipped": [{"path": each.path, "reason": each.message} for each in found["skipped"]],
            "failed": [{"path": each.path, "reason": each.message} for each in found["failed"]],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        if not quiet:
            click.echo(f"Stored {count(found['stored'], 'file')}.")
            list_reasons("Skipped", found["skipped"], err=False)
        list_reasons("NOT STORED:", found["failed"], err=True)
    if fault:
        fail(f"Stopped: {fault}", 1)
    sys.exit(1 if found["failed"] else 0)


def _batches(paths: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for path in paths:
        batch.append(path)
        size += os.path.getsize(path)
        if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _stored(server: DicomWeb, batch: Sequence[str], study: str | None) -> list[FileOutcome]:
    """POST the files in one request. Where some failed, each is sent alone, so that the reason is told of each."""
    body = _Multipart(batch)
    headers = _JSON | {"Content-Type": f'multipart/related; type="application/dicom"; boundary={body.boundary}'}
    path = f"studies/{study}" if study else "studies"
    with server.request("POST", path, data=body, headers=headers) as answer:
        status, warning = answer.status_code, answer.headers.get("Warning", "")
        try:
            module = answer.json() if status != 204 else {}
        except ValueError:
            module = {}  # some servers answer in XML whatever is asked for
    failed = [
        item
        for tag in ("00081198", "0008119A")
        for item in (module if isinstance(module, dict) else {}).get(tag, {}).get("Value", [])
    ]
    if not failed and status != 409:
        return [FileOutcome(each, "stored", size=os.path.getsize(each)) for each in batch]
    if len(batch) > 1:
        return [outcome for each in batch for outcome in _stored(server, [each], study)]
    return [FileOutcome(batch[0], "failed", _why(failed, warning))]


_REASONS: Final[Mapping[int, str]] = {
    0x0110: "processing failure",
    0x0111: "another version is stored already",
    0x0122: "SOP class not supported",
    0xA700: "out of resources",
    0xA900: "the data set does not match",
    0xC000: "cannot be understood",
    0xC122: "transfer syntax not supported",
}


def _why(failed: Sequence[Json], warning: str) -> str:
    codes = [code for item in failed for code in item.get("00081197", {}).get("Value", [])]
    said = re.sub(r"^299 \S+: ", "", warning)
    named = ", ".join(_REASONS.get(code, f"failure reason {code:04X}") for code in codes if isinstance(code, int))
    return ": ".join(filter(None, (named or "refused", said)))


class _Multipart:
    """The body of a store request, read from the files while it is sent; its length is known before."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.boundary = uuid.uuid4().hex
        self._paths = list(paths)
        self._head = f"\r\n--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._end = f"\r\n--{self.boundary}--\r\n".encode()
        self._chunks = self._all()

    def __len__(self) -> int:
        return sum(len(self._head) + os.path.getsize(path) for path in self._paths) + len(self._end)

    def _all(self) -> Iterator[bytes]:
        for path in self._paths:
            yield self._head
            with open(path, "rb") as file:
                yield from iter(lambda: file.read(1 << 16), b"")
        yield self._end

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def read(self, _size: int = -1) -> bytes:
        return next(self._chunks, b"")


@contextmanager
def _told() -> Iterator[None]:
    """Faults of the server as a line on standard error, exit code 1."""
    try:
        yield
    except (CannotAsk, DicomWebError) as error:
        fail(str(error), 1)
