"""The codec processes: results and failures, crashes, the time limit, order, and the end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dicomcloud.dicom.codecs import get_codecs_ready
from dicomcloud.dicom.transfer_syntaxes import CannotDecode, CannotEncode
from dicomcloud.dicom.workers import CodecPool


@pytest.fixture
def pool() -> Iterator[CodecPool]:
    made = CodecPool(2, time_limit=30)
    yield made
    made.close()


def test_a_call_runs_in_another_process_and_the_next_one_in_the_same(pool: CodecPool) -> None:
    processes = {pool.submit(os.getpid).result() for _ in range(6)}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 2


def test_nothing_is_started_before_it_is_needed(pool: CodecPool) -> None:
    assert pool._processes == set()
    pool.submit(os.getpid).result()
    assert len(pool._processes) == 1


def test_what_a_call_raises_is_raised_here(pool: CodecPool) -> None:
    with pytest.raises(FileNotFoundError):
        pool.submit(os.stat, "/no/such/file").result()
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()


def test_what_is_said_of_a_patients_file_is_not_printed(pool: CodecPool, capfd: pytest.CaptureFixture[str]) -> None:
    pool.submit(warnings.warn, "Invalid value for VR PN: 'Doe^John'").result()
    pool.submit(logging.error, "Doe^Jane has no pixels").result()
    pool.close()
    assert capfd.readouterr() == ("", "")


def test_a_failure_of_a_codec_keeps_its_kind(pool: CodecPool, tmp_path: Path) -> None:
    from dicomcloud.dicom.pixel_data import transcode_file

    source = tmp_path / "source"
    source.write_bytes(b"no DICOM at all")
    with pytest.raises((CannotDecode, CannotEncode)) as raised:
        pool.submit(
            transcode_file, partial(open, source, "rb"), str(tmp_path / "target"), "1.2.840.10008.1.2.4.90"
        ).result()
    assert str(raised.value)
    assert not (tmp_path / "target").exists()


def test_a_process_that_crashes_costs_one_call(pool: CodecPool) -> None:
    crash = pool.submit(os._exit, 11)
    other = pool.submit(divmod, 7, 2)
    with pytest.raises(CannotDecode, match="crashed"):
        crash.result()
    assert other.result() == (3, 1)
    assert [pool.submit(divmod, number, 2).result() for number in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_process_that_is_killed_while_it_is_idle_is_replaced(pool: CodecPool) -> None:
    processes = {pool.submit(os.getpid).result() for _ in range(6)}
    for process in processes:
        os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    time.sleep(0.2)
    assert pool.submit(divmod, 7, 2).result() == (3, 1)
    assert pool.submit(os.getpid).result() not in processes


def test_a_call_that_takes_too_long_is_ended() -> None:
    pool = CodecPool(1, time_limit=0.5)
    try:
        began = time.monotonic()
        with pytest.raises(CannotDecode, match=r"longer than 0\.5 s"):
            pool.submit(time.sleep, 60).result()
        assert time.monotonic() - began < 20
    finally:
        pool.close()


def test_calls_run_beside_each_other(pool: CodecPool) -> None:
    for _ in range(6):
        pool.submit(os.getpid).result()
    pool.submit(time.sleep, 0.1).result()
    slow = pool.submit(time.sleep, 10)
    assert pool.submit(divmod, 7, 2).result(timeout=8) == (3, 1)
    assert not slow.done()


def test_a_closed_pool_leaves_no_process_and_starts_anew(pool: CodecPool) -> None:
    first = pool.submit(os.getpid).result()
    pool.close()
    assert not any(process.pid == first for process in multiprocessing.active_children())
    assert pool.submit(os.getpid).result() != first


def test_the_codecs_are_loaded_before_they_are_needed_when_that_is_asked(pool: CodecPool) -> None:
    pool.submit(get_codecs_ready).result()
    loaded = pool.submit(loaded_modules).result()
    assert {"numpy", "imagecodecs", "openjpeg", "rle"} <= loaded


def loaded_modules() -> set[str]:
    return set(sys.modules)
