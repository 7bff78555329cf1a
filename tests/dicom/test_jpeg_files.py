"""JPEG files: made in strips or at once, the pixels are the same."""

from __future__ import annotations

import io
import threading

import numpy
import pytest
from PIL import Image, ImageDraw

from dicomcloud.dicom.halves import in_halves
from dicomcloud.dicom.jpeg_files import grey_picture, jpeg_file


def _picture(rows: int, columns: int) -> Image.Image:
    ramp = numpy.add.outer(numpy.arange(rows), numpy.arange(columns)) // 7 % 256
    noise = numpy.random.default_rng(rows).integers(0, 30, (rows, columns), dtype=numpy.uint8)
    return Image.fromarray(ramp.astype(numpy.uint8) ^ noise)


@pytest.mark.parametrize(
    ("rows", "columns", "strips", "quality"),
    [
        (1024, 1024, 2, 30),
        (1025, 1031, 2, 100),  # neither whole blocks nor equal halves
        (3056, 2464, 2, 90),
        (20000, 61, 2, 90),
        (61, 20000, 2, 90),
        (3500, 5000, 5, 90),  # more blocks than two restart intervals hold
        (9000, 5000, 11, 90),  # the numbers of the markers begin anew after the eighth
        (17, 62_000, 2, 90),  # three rows of blocks
    ],
)
def test_a_large_grey_picture_made_in_strips_has_the_pixels_of_one_made_at_once(
    rows: int, columns: int, strips: int, quality: int
) -> None:
    picture = _picture(rows, columns)
    at_once = io.BytesIO()
    picture.save(at_once, "JPEG", quality=quality)
    made = jpeg_file(picture, quality, None)
    assert sum(made.count(bytes((0xFF, 0xD0 + number))) for number in range(8)) == strips - 1
    with Image.open(io.BytesIO(made)) as found, Image.open(at_once) as expected:
        assert found.size == picture.size
        assert numpy.array_equal(numpy.asarray(found), numpy.asarray(expected))


def test_a_large_grey_picture_keeps_its_profile() -> None:
    with Image.open(io.BytesIO(jpeg_file(_picture(1200, 1200), 90, b"a profile"))) as found:
        assert found.info["icc_profile"] == b"a profile"


@pytest.mark.parametrize(
    ("count", "step", "expected"),
    [(10, 1, [(0, 5), (5, 10)]), (9, 1, [(0, 5), (5, 9)]), (20, 8, [(0, 16), (16, 20)]), (8, 8, [(0, 8)])],
)
def test_halves_follow_each_other_and_the_first_is_the_longer(
    count: int, step: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomcloud.dicom.halves._IS_WORTH_IT", True)
    assert in_halves(lambda first, end: (first, end), count, step) == expected


def test_what_one_half_raises_is_raised_when_both_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomcloud.dicom.halves._IS_WORTH_IT", True)
    for faulty in (0, 5):
        done: list[int] = []

        def work(first: int, end: int, faulty: int = faulty, done: list[int] = done) -> None:
            done.append(first)
            if first == faulty:
                raise ValueError(first)

        with pytest.raises(ValueError, match=str(faulty)):
            in_halves(work, 10)
        assert sorted(done) in ([0, 5], [5])


def test_many_threads_that_halve_their_work_at_once_all_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomcloud.dicom.halves._IS_WORTH_IT", True)
    results: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: results.append(in_halves(lambda first, end: end - first, 1001)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [[501, 500]] * 16


def test_what_is_done_with_a_picture_of_shared_levels_is_in_its_file() -> None:
    levels = numpy.asarray(_picture(1200, 1000)).copy()

    def grey_of(image: Image.Image, place: tuple[int, int]) -> float:
        return float(numpy.asarray(Image.open(io.BytesIO(jpeg_file(image, 95, None))))[place])

    levels[:100] = 10
    levels[-100:] = 240
    assert abs(grey_of(grey_picture(levels), (50, 500)) - 10) < 3
    assert abs(grey_of(grey_picture(levels).transpose(Image.Transpose.ROTATE_180), (50, 500)) - 240) < 3
    drawn, copied, pasted = (grey_picture(levels) for _ in range(3))
    ImageDraw.Draw(drawn).rectangle((0, 0, 999, 99), fill=120)
    copied = copied.copy()
    copied.putpixel((0, 0), 0)
    pasted.paste(120, (0, 0, 1000, 100))
    assert abs(grey_of(drawn, (50, 500)) - 120) < 3
    assert abs(grey_of(copied, (1150, 500)) - 240) < 3
    assert abs(grey_of(pasted, (50, 500)) - 120) < 3
    assert levels[50, 500] == 10
