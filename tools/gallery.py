"""A page with everything that DICOM files look like when this server renders them, to be looked at by eye.

    python -m tools.gallery FOLDER [FILE OR FOLDER …]

writes FOLDER/index.html and the pictures and documents that it shows. Every file is stored in an archive of its own in
a temporary folder and fetched over HTTP, as clients do: pictures at 256 × 256 pixels, what moves as an animation,
reports as pages, films and documents as they are. What is refused is listed with the reason. Without files, those that
come with pydicom are taken, and those in ../shared/samples if there is such a folder.
"""

from __future__ import annotations

import html
import mimetypes
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom.data
from flask.testing import FlaskClient

from app import create_app
from dicomcloud.settings import load

SIDE = 256
_STYLE = (
    "body{font:14px sans-serif;background:#222;color:#ddd}main{display:flex;flex-wrap:wrap;gap:12px}"
    "figure{margin:0;width:256px;overflow-wrap:anywhere}img{display:block;max-width:256px;background:#000}"
    "iframe{width:256px;height:256px;border:0;background:#fff}a{color:#8cf}td{padding:2px 8px;vertical-align:top}"
)


@dataclass
class Shown:
    """One file: what became of it."""

    name: str
    file: str = ""  # of the gallery
    media_type: str = ""
    reason: str = ""  # why there is nothing to be seen


def default_files() -> list[Path]:
    """pydicom's test files, and the samples beside this project."""
    samples = Path(__file__).resolve().parents[2] / "shared" / "samples"
    folders = [Path(pydicom.data.__file__).parent / "test_files", samples]
    return [folder for folder in folders if folder.is_dir()]


def files_in(places: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Each file that may be DICOM, with a name for people."""
    for place in places:
        inside = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for path in inside:
            if path.suffix not in (".md", ".csv", ".py", ".json", ".txt", ".pyc"):
                yield (str(path.relative_to(place.parent)) if place.is_dir() else path.name), path


def show(client: FlaskClient, name: str, path: Path, target: Path) -> Shown:
    """Store a file and keep what its rendered resource gives."""
    answer = client.post("/dicomweb/studies", data=path.read_bytes(), content_type="application/dicom")
    report = answer.get_json(silent=True) or {}
    if "00081199" not in report:
        reason = "; ".join(answer.headers.getlist("Warning")) or answer.text
        return Shown(name, reason=f"not stored: {answer.status_code} {reason}"[:300])
    url = report["00081199"]["Value"][0]["00081190"]["Value"][0].removeprefix("http://localhost")
    accept = "image/webp;q=0.2, image/png, video/mp4, text/html;q=0.5, application/pdf, */*;q=0.1"
    answer = client.get(f"{url}/rendered?viewport={SIDE},{SIDE}", headers={"Accept": accept})
    if answer.status_code != 200:
        return Shown(name, reason=f"{answer.status_code} {answer.text}"[:300])
    kind = answer.mimetype
    moving = client.get(f"{url}/rendered?viewport={SIDE},{SIDE}", headers={"Accept": "image/gif"})
    if kind == "image/png" and moving.status_code == 200 and moving.data.count(b"\x21\xf9\x04") > 1:
        answer, kind = moving, "image/gif"
    file = f"{len(list(target.iterdir())):04d}{mimetypes.guess_extension(kind) or '.bin'}"
    (target / file).write_bytes(answer.data)
    return Shown(name, file, kind)


def page(shown: Sequence[Shown]) -> str:
    """The gallery as HTML."""
    figures, refused = [], []
    for one in shown:
        name, address = html.escape(one.name), f"files/{one.file}"
        if one.reason:
            refused.append(f"<tr><td>{name}</td><td>{html.escape(one.reason)}</td></tr>")
        elif one.media_type.startswith("image/"):
            figures.append(f'<figure><img src="{address}" alt=""><figcaption>{name}</figcaption></figure>')
        elif one.media_type.startswith("text/"):
            figures.append(
                f'<figure><iframe src="{address}" sandbox></iframe>'
                f'<figcaption><a href="{address}">{name}</a></figcaption></figure>'
            )
        else:
            figures.append(f'<figure><a href="{address}">{one.media_type}</a><figcaption>{name}</figcaption></figure>')
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Rendered</title><style>{_STYLE}</style>'
        f"<h1>{len(figures)} rendered, {len(refused)} refused</h1><main>{''.join(figures)}</main>"
        f"<h2>Refused</h2><table>{''.join(refused)}</table></html>"
    )


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    target = folder / "files"
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    places = [Path(argument) for argument in arguments[1:]] or default_files()
    shown = []
    with tempfile.TemporaryDirectory(prefix="dicomcloud-gallery-") as data:
        app = create_app(load(environ={"DICOMCLOUD_DATA_DIR": data, "DICOMCLOUD_DUPLICATES": "replace"}))
        for name, path in files_in(places):
            shown.append(show(app.test_client(), name, path, target))
        app.extensions["dicomcloud"].archive.close()  # Windows removes no folder with an open file in it
    (folder / "index.html").write_text(page(shown), encoding="utf-8")
    print(f"{folder / 'index.html'}: {sum(not one.reason for one in shown)} rendered, "
          f"{sum(bool(one.reason) for one in shown)} refused")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
