"""The OHIF viewer as it lies in the data directory: taken from its npm package, checked and made ready to be served.

The package `@ohif/app` holds a build for the root of a web site. Installing it makes it one for any path: the chunks
are looked for beside the script that asks for them, and what is served compressed is compressed once.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote
from urllib.request import urlopen

PACKAGE: Final = "@ohif/app"
VERSION: Final = "3.13.2"
#: Subresource Integrity of the package's file in this version, as its registry and its lock files state it.
INTEGRITY: Final = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="

RECORD: Final = "installed.json"
_LARGEST: Final = 2 << 30  # bytes unpacked
_MOST: Final = 20_000  # files
_TIMEOUT: Final = 900  # seconds

_ROOT_OF_CHUNKS: Final = '__webpack_require__.p = "/";'
_BESIDE: Final = (
    "__webpack_require__.p = new URL('./', (typeof document !== 'undefined' && document.currentScript"
    " ? document.currentScript.src : self.location.href)).href;"
)
_IMPORT_OF_ROOT: Final = "browserImportFunction('/"
_IMPORT_OF_BASE: Final = "browserImportFunction((window.PUBLIC_URL || '/') + '"
_COMPRESSED: Final = {".js", ".css", ".svg", ".json", ".wasm"}

Tell = Callable[[str], object]


class CannotInstall(Exception):
    """The viewer cannot be got, is not what it should be, or cannot be written; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Installed:
    version: str
    verified: bool  # by the known checksum of the package
    files: int


def installed(folder: Path) -> Installed | None:
    """The viewer that lies in the folder; None if there is none."""
    try:
        return Installed(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def install(folder: Path, source: Path | None = None, tell: Tell = lambda _: None) -> Installed:
    """Put the viewer into `folder`, in place of one that is there: from the npm registry, or from `source`.

    `source` is the package's file (`npm pack @ohif/app`), a ZIP file or a folder with the ready-built viewer. Raises
    CannotInstall; what was there before is then as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix="viewer-") as scratch:
        place = Path(scratch)
        package = source or _download(place, tell)
        verified = package.is_file() and _integrity(package) == INTEGRITY
        if source is None and not verified:
            raise CannotInstall(f"What the registry gave is not {PACKAGE} {VERSION}: its checksum is another one.")
        tell("Unpacking")
        built = _unpacked(package, place / "unpacked")
        version = _version(built)
        tell("Making it ready")
        ready = place / "ready"
        files = _make_ready(built, ready)
        record = Installed(version, verified, files)
        (ready / RECORD).write_text(json.dumps(asdict(record)), encoding="utf-8")
        _swap(ready, folder, place / "old")
    return record


# Getting it


def _download(place: Path, tell: Tell) -> Path:
    npm = shutil.which("npm")
    tell(f"Fetching {PACKAGE} {VERSION} (50 MB)")
    if npm:
        return _npm_pack(npm, place)
    registry = _configured_registry(os.environ, Path.home() / ".npmrc")
    if registry:
        return _fetch(registry, place)
    raise CannotInstall(
        "npm is not installed, and no registry is configured for it. Install Node.js, or fetch the package on another "
        f"computer with `npm pack {PACKAGE}@{VERSION}` and give the file to this command."
    )


def _npm_pack(npm: str, place: Path) -> Path:
    """npm knows its registry, proxies and logins, and checks what it gets."""
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--json", "--ignore-scripts", "--pack-destination", str(place)]
    try:
        done = subprocess.run(
            command,
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(f"npm could not fetch the package: {error}") from None
    found = sorted(place.glob("*.tgz"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise CannotInstall("npm could not fetch the package:\n" + "\n".join(f"  {line}" for line in lines[:8]))
    return found[0]


def _configured_registry(environment: dict[str, str] | os._Environ[str], npmrc: Path) -> str:
    """The registry of npm's own configuration, the one for the scope first; '' if there is none."""
    settings = {}
    try:
        lines = npmrc.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        name, separator, value = line.partition("=")
        if separator and not line.lstrip().startswith(("#", ";")):
            settings[name.strip().lower()] = value.strip().strip("\"'")
    settings |= {
        name.lower().removeprefix("npm_config_"): value
        for name, value in environment.items()
        if name.lower().startswith("npm_config_")
    }
    found = settings.get("@ohif:registry") or settings.get("registry") or ""
    return found.rstrip("/") if found.startswith(("https://", "http://")) else ""


def _fetch(registry: str, place: Path) -> Path:
    """Without npm: the version's document names the file of the package (the registry's protocol)."""
    target = place / "package.tgz"
    try:
        with urlopen(f"{registry}/{quote(PACKAGE, safe='@')}/{VERSION}", timeout=60) as answer:
            address = json.load(answer)["dist"]["tarball"]
        if not str(address).startswith(("https://", "http://")):
            raise CannotInstall(f"The registry names a strange file: {address!r}")
        with urlopen(address, timeout=60) as answer, target.open("wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotInstall(f"The package could not be fetched from the configured npm registry: {error}") from None
    return target


def _integrity(file: Path) -> str:
    with file.open("rb") as opened:
        return "sha512-" + base64.b64encode(hashlib.file_digest(opened, "sha512").digest()).decode()


# Unpacking it


def _unpacked(package: Path, target: Path) -> Path:
    """The folder with the viewer's index.html."""
    try:
        if package.is_dir():
            root = package
        elif zipfile.is_zipfile(package):
            root = target
            with zipfile.ZipFile(package) as archive:
                _check_size([(entry.filename, entry.file_size) for entry in archive.infolist()])
                archive.extractall(target)  # takes .. and absolute paths out of names
        elif tarfile.is_tarfile(package):
            root = target
            _check_stream(package)
            with tarfile.open(package) as archive:
                members = archive.getmembers()
                _check_size([(member.name, member.size) for member in members])
                archive.extractall(target, members=members, filter="data")
        else:
            raise CannotInstall(f"{package} is neither a folder, a ZIP file nor a package file (.tgz)")
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise CannotInstall(f"{package} cannot be unpacked: {error}") from None
    for place in ("", "dist", "package/dist", "package"):
        if _is_viewer(root / place):
            return root / place
    raise CannotInstall(f"{package} holds no ready-built OHIF viewer: index.html, app-config.js and app.bundle.*.js")


def _check_stream(package: Path) -> None:
    """Read a compressed package to its end, where its check sum is: tarfile takes damage for the end of the archive."""
    with package.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return
    unpacked = 0
    with gzip.open(package) as stream:
        while piece := stream.read(1 << 20):
            unpacked += len(piece)
            if unpacked > _LARGEST:
                raise CannotInstall("The package is far larger than a viewer")


def _check_size(entries: list[tuple[str, int]]) -> None:
    if len(entries) > _MOST or sum(size for _, size in entries) > _LARGEST:
        raise CannotInstall("The package is far larger than a viewer")


def _is_viewer(folder: Path) -> bool:
    return all(any(folder.glob(name)) for name in ("index.html", "app-config.js", "app.bundle.*.js"))


def _version(built: Path) -> str:
    try:
        about = json.loads((built.parent / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "unknown"
    return str(about.get("version", "unknown")) if about.get("name") == PACKAGE else "unknown"


# Making it ready


def _make_ready(built: Path, target: Path) -> int:
    """Copy the files, without source maps, fit for any path and with a compressed twin where that helps."""
    number = 0
    for source in _files(built):
        name = source.relative_to(built)
        if source.suffix == ".map":
            continue
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        if source.suffix == ".js":
            for root, anywhere in ((_ROOT_OF_CHUNKS, _BESIDE), (_IMPORT_OF_ROOT, _IMPORT_OF_BASE)):
                content = content.replace(root.encode(), anywhere.encode())
        elif source.suffix == ".css":
            content = re.sub(rb"url\((['\"]?)/(?!/)", rb"url(\1", content)
        copy.write_bytes(content)
        number += 1
        if copy.suffix in _COMPRESSED and len(content) > 4096 and name.parts[0] != "ort":
            Path(f"{copy}.gz").write_bytes(gzip.compress(content, 6, mtime=0))
    return number


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def _swap(ready: Path, folder: Path, old: Path) -> None:
    try:
        if folder.exists():
            folder.rename(old)
        ready.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise CannotInstall(f"{folder} cannot be replaced: {error.strerror}. Is a server using it? Stop it.") from None
