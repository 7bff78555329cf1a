"""The page that shows everything rendered."""

from __future__ import annotations

from pathlib import Path

import pydicom.data

from tools.gallery import main

FILES = Path(pydicom.data.__file__).parent / "test_files"


def test_the_gallery_shows_pictures_films_reports_and_reasons(tmp_path: Path) -> None:
    names = ("CT_small.dcm", "examples_ybr_color.dcm", "test-SR.dcm", "waveform_ecg.dcm", "MR_truncated.dcm")
    assert main([str(tmp_path), *(str(FILES / name) for name in names)]) == 0
    page = (tmp_path / "index.html").read_text()
    assert "4 rendered, 1 refused" in page
    assert {path.suffix for path in (tmp_path / "files").iterdir()} == {".png", ".gif", ".html"}
    assert all(name in page for name in names)
    assert "truncated" in page.partition("Refused")[2]


def test_without_a_folder_the_gallery_says_what_it_wants() -> None:
    assert main([]) == 2
