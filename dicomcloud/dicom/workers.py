"""Pixel work in processes of its own: codecs hold the interpreter lock, crash and run away; requests must not.

Each thread of the pool has one process, started when it is first needed and spawned, not forked, since the server has
threads. A process that crashes or exceeds the time limit costs the one call that it was busy with, and is replaced.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar, cast

from .transfer_syntaxes import CannotDecode

log = logging.getLogger(__name__)

TIME_LIMIT = 600.0  # seconds for one call
_CALLS = 1000  # after which a process makes room for a fresh one: some codecs leak

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class CodecPool:
    """`size` processes for functions of modules, with arguments and results that can be pickled (paths, bytes)."""

    def __init__(self, size: int, *, time_limit: float = TIME_LIMIT) -> None:
        self.size = size
        self._time_limit = time_limit
        self._threads: ThreadPoolExecutor | None = None
        self._mine = threading.local()
        self._starting = threading.Lock()
        self._processes: set[_Process] = set()
        self._queued = 0
        self._counting = threading.Lock()
        self.on_change: Callable[[int], object] = lambda queued: None  # told how many calls wait or are under way

    def submit(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Begin `function(*args)` in a process, at once or when one is free; calls begin in the order of `submit`.

        The future raises what the function raises, and CannotDecode when its process crashed or took too long.
        """
        with self._starting:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="codec")
        future = self._threads.submit(self._call, function, args, kwargs)
        self._count(1)
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def close(self) -> None:
        """End the processes; calls under way fail. The pool starts anew when it is used again."""
        with self._starting:
            threads, self._threads, self._mine = self._threads, None, threading.local()
            processes, self._processes = self._processes, set()
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()

    def _count(self, change: int) -> None:
        with self._counting:
            self._queued += change
            self.on_change(self._queued)

    def _call(self, function: Callable[..., Result], args: object, kwargs: object) -> Result:
        process: _Process | None = getattr(self._mine, "process", None)
        if process is None or not process.is_usable():
            with self._starting:
                if process is not None:
                    self._processes.discard(process)
                process = self._mine.process = _Process()
                self._processes.add(process)
        succeeded, result = process.call((function, args, kwargs), self._time_limit)
        if succeeded:
            return cast(Result, result)
        raise cast(BaseException, result)


class _Process:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="codec", daemon=True)
        self._process.start()
        theirs.close()
        self._calls = 0

    def is_usable(self) -> bool:
        if self._calls < _CALLS and not self._connection.closed and self._process.is_alive():
            return True
        self.kill()
        return False

    def call(self, task: object, time_limit: float) -> tuple[bool, object]:
        self._calls += 1
        reason = "crashed"
        try:
            self._connection.send(task)
            if self._connection.poll(time_limit):
                return cast("tuple[bool, object]", self._connection.recv())
            reason = f"took longer than {time_limit:g} s"
        except (EOFError, OSError):
            pass
        self.kill()
        log.error("a codec %s; its process was replaced", reason)
        return False, CannotDecode(f"The codec {reason}.")

    def kill(self) -> None:
        self._process.kill()
        self._process.join(5)
        with suppress(OSError):
            self._connection.close()


def _serve(connection: Connection) -> None:
    """The life of a process: calls until the other end is closed, as it is when the server dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes the connection
    warnings.simplefilter("ignore")  # and no log: pydicom quotes what a patient's file says; faults go with the answer
    logging.disable()
    while True:
        try:
            function, args, kwargs = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (True, function(*args, **kwargs))
        except BaseException as error:
            answer = (False, error)
        try:
            connection.send(answer)
        except (EOFError, OSError):
            return
        except Exception as error:  # a result or an error that cannot be pickled
            connection.send((False, CannotDecode(f"The codec failed: {type(error).__name__}.")))
