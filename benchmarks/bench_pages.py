"""How long the study browser takes over a large index, in headless Chromium.

    mkdir /tmp/pages
    python -m benchmarks.make_index sqlite:////tmp/pages/index.sqlite3 --studies 100000
    python -m benchmarks.bench_pages /tmp/pages

Starts a server over the folder. Each figure is the median of several visits with an empty browser cache: from the start
of the navigation, or of the change, to the moment when the results are on the page.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

SHOWN = "performance.getEntriesByName('studies-shown')"
VISITS: list[tuple[str, dict[str, str]]] = [
    ("the first page", {}),
    ("page 2,000", {"offset": "50000"}),
    ("name, first letters", {"PatientName": "mü"}),
    ("name in Chinese", {"PatientName": "王"}),
    ("description, part of", {"StudyDescription": "thorax"}),
    ("modality", {"ModalitiesInStudy": "MR"}),
    ("a month", {"from": "2020-03-01", "to": "2020-03-31"}),
    ("sorted by name", {"orderby": "PatientName"}),
    ("sorted by ID, backwards", {"orderby": "-PatientID"}),
    ("sorted by description", {"orderby": "StudyDescription"}),
]


def visit(browser: Any, url: str) -> float:
    """Milliseconds until the results of this address are shown."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    try:
        page = context.new_page()
        page.goto(url, wait_until="commit")
        page.locator("#results[aria-busy=false]").wait_for(timeout=60_000)
        return float(page.evaluate(f"{SHOWN}[0].startTime"))
    finally:
        context.close()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of a server over an index without files. It looks for the first and the last: they are made, empty."""
    with closing(sqlite3.connect(folder / "index.sqlite3")) as index:
        for order in ("ASC", "DESC"):
            for (key,) in index.execute(f"SELECT file_key FROM instance ORDER BY id {order} LIMIT 2"):
                file = folder / "storage" / key
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"DICOMCLOUD_DATA_DIR": str(folder), "DICOMCLOUD_BIND": address}
    server = subprocess.Popen([sys.executable, "-m", "dicomcloud", "serve"], env=environment)
    try:
        for _ in range(300):
            try:
                urlopen(f"http://{address}/healthz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the index that make_index made")
    parser.add_argument("--visits", type=int, default=7)
    arguments = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with serving(arguments.folder) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        visit(browser, server)  # the server's caches and the browser's code
        for name, query in VISITS:
            times = [visit(browser, f"{server}/?{urlencode(query)}") for _ in range(arguments.visits)]
            print(f"{name:26} {median(times):7.0f} ms (worst {max(times):.0f})")
        browser.close()


if __name__ == "__main__":
    main()
