"""`/metrics` for Prometheus: requests, latencies, bytes, what is stored, codec queue, disk.

Operations are named after the view, never after what was asked for: no UID, no name of a patient and no address gets
into a metric. Several server processes share their figures through a folder, which the server makes before it starts
them (`server.share_metrics`); the client library looks for it when it is imported, hence the imports inside functions.
What has been answered is handed to that library a second later, together: a small request does not wait for it.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from threading import Event, Lock, Thread
from time import perf_counter, sleep
from typing import Any, Final

from flask import Flask, Response, current_app

from ..archive import Archive, StoreItem
from ..errors import DicomWebError
from ..server import METRICS_FOLDER
from .service import current_request

RECEIVED = "dicomcloud.received"  # in the environment of a request: the bytes of a body that had no Content-Length
_OPERATION = "dicomcloud.operation"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
_INTERVAL: Final = 1.0  # seconds
_AT_ONCE: Final = 50  # answers
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """The figures of one application; those of all server processes together where they share a folder."""

    def __init__(self, archive: Archive) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._archive = archive
        self._registry = CollectorRegistry()
        names = ["operation", "method", "status"]
        self._requests = Counter(
            "dicomcloud_requests", "Answers by operation, method and status.", names, registry=self._registry
        )
        self._seconds = Histogram(
            "dicomcloud_request_duration_seconds",
            "From the first look at a request to the last byte of its answer.",
            ["operation"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._received = Counter(
            "dicomcloud_received_bytes", "Bytes of request bodies.", ["operation"], registry=self._registry
        )
        self._sent = Counter(
            "dicomcloud_sent_bytes",
            "Bytes of answers, those that nginx sends itself (X-Accel-Redirect) not among them.",
            ["operation"],
            registry=self._registry,
        )
        self._stored = Counter(
            "dicomcloud_store_instances",
            "Instances in store requests: stored, present (the same was there already) or failed.",
            ["outcome"],
            registry=self._registry,
        )
        self._under_way = Gauge(
            "dicomcloud_requests_in_progress",
            "Requests being answered.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self._codec_queue = Gauge(
            "dicomcloud_codec_queue",
            "Pieces of pixel work that are waiting for a codec process or are in one.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        archive.watch_codecs(self._codec_queue.set)
        archive.before_close.append(self.close)
        self._children: dict[tuple[str, str, int], tuple[Any, Any, Any, Any]] = {}
        self._answered: deque[tuple[str, str, int, float, int, int]] = deque()  # which the library has not seen yet
        self._begun = self._ended = 0  # requests
        self._lock = Lock()
        self._settling = Lock()
        self._process = 0
        self._stop = Event()

    def count_stored(self, items: Iterable[StoreItem]) -> None:
        """Count what became of the instances of a store request."""
        outcomes = Counter(
            "failed"
            if item.failure is not None
            else "stored"
            if item.outcome is not None and item.outcome.name in ("ADDED", "REPLACED")
            else "present"
            for item in items
        )
        for outcome, number in outcomes.items():
            self._stored.labels(outcome).inc(number)

    def begin(self) -> None:
        with self._lock:
            self._begun += 1
        if self._process != os.getpid():
            self._start()

    def finish(self, operation: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        self._answered.append((operation, method, status, seconds, received, sent))

    def settle(self) -> None:
        """Hand on what has been answered."""
        while True:
            with self._settling:
                self._settle(_AT_ONCE)
            if not self._answered:
                return
            sleep(0)  # a request may go between

    def _settle(self, most: int) -> None:
        for _ in range(min(most, len(self._answered))):
            operation, method, status, seconds, received, sent = self._answered.popleft()
            self._ended += 1
            key = (operation, method if method in _METHODS else "other", status)
            children = self._children.get(key)
            if children is None:
                children = self._children[key] = (
                    self._requests.labels(operation, key[1], str(status)),
                    self._seconds.labels(operation),
                    self._received.labels(operation),
                    self._sent.labels(operation),
                )
            children[0].inc()
            children[1].observe(seconds)
            if received:
                children[2].inc(received)
            if sent:
                children[3].inc(sent)
        self._under_way.set(self._begun - self._ended)

    def _start(self) -> None:
        with self._settling:
            if self._process == os.getpid():
                return
            self._process = os.getpid()  # after a fork: the parent's thread is not here
            self._stop = stop = Event()
        Thread(target=self._settle_on, args=(stop,), name="metrics", daemon=True).start()

    def _settle_on(self, stop: Event) -> None:
        while not stop.wait(_INTERVAL):
            self.settle()

    def close(self) -> None:
        """Hand on what has been answered, and end the thread."""
        self._stop.set()
        self.settle()
        self._process = 0

    def exposition(self) -> tuple[bytes, str]:
        """The text for Prometheus and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        with self._settling:
            self._settle(len(self._answered))
        shared = os.environ.get(METRICS_FOLDER)
        registry = self._registry
        if shared and os.path.isdir(shared):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        figures = CollectorRegistry()
        figures.register(_ArchiveFigures(self._archive))
        return generate_latest(registry) + generate_latest(figures), CONTENT_TYPE_LATEST


class _ArchiveFigures:
    """What the archive holds and what room it has, looked up when it is asked for."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        health = self._archive.health()
        for part in ("index", "storage", "disk space"):
            name = f"dicomcloud_{part.replace(' ', '_')}_ready"
            yield GaugeMetricFamily(name, f"1 while /readyz has no complaint about {part}.", float(part not in health))
        with suppress(DicomWebError, OSError):
            free, total = self._archive.disk_space()
            yield GaugeMetricFamily("dicomcloud_disk_free_bytes", "Free space where the files are stored.", free)
            yield GaugeMetricFamily("dicomcloud_disk_total_bytes", "All space there.", total)
        if "index" not in health:
            counts = self._archive.index.counts()
            for what in ("patients", "studies", "series", "instances"):
                yield GaugeMetricFamily(
                    f"dicomcloud_stored_{what}", f"{what.capitalize()} in the archive.", counts[what]
                )
            yield GaugeMetricFamily("dicomcloud_stored_bytes", "Bytes of their files.", counts["bytes"])


def register(app: Flask, archive: Archive) -> None:
    """Put `/metrics` on the application, and have every answer counted. To be called before anything else is."""
    metrics = app.extensions["dicomcloud.metrics"] = Metrics(archive)
    app.add_url_rule("/metrics", "metrics", show_metrics)

    @app.before_request
    def note_operation() -> None:
        asked = current_request()
        if asked.endpoint is not None:
            asked.environ[_OPERATION] = app.view_functions[asked.endpoint].__name__

    app.wsgi_app = _Counting(app.wsgi_app, metrics)  # type: ignore[method-assign]


def current_metrics() -> Metrics:
    metrics: Metrics = current_app.extensions["dicomcloud.metrics"]
    return metrics


def show_metrics() -> Response:
    """Figures in the text format of Prometheus."""
    text, media_type = current_metrics().exposition()
    return Response(text, content_type=media_type, headers={"Cache-Control": "no-store"})


class _Counting:
    """Counts every answer when it is finished, whatever comes of it."""

    def __init__(self, application: Callable[..., Iterable[bytes]], metrics: Metrics) -> None:
        self._application = application
        self._metrics = metrics

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = _Answer(self._metrics, environ)

        def start(status: str, headers: Any, *more: Any) -> Any:
            answer.status = int(status[:3])
            return start_response(status, headers, *more)

        try:
            answer.body = self._application(environ, start)
        except BaseException:
            answer.close()
            raise
        return answer


class _Answer:
    """The body of an answer on its way out. Its server closes it, also when the client has gone."""

    def __init__(self, metrics: Metrics, environ: Mapping[str, Any]) -> None:
        self.status = 500
        self.body: Iterable[bytes] = ()
        self._metrics = metrics
        self._environ = environ
        self._started = perf_counter()
        self._sent = 0
        self._closed = False
        metrics.begin()

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self.body:
            self._sent += len(chunk)
            yield chunk

    def close(self) -> None:
        try:
            if hasattr(self.body, "close"):
                self.body.close()
        finally:
            if not self._closed:
                self._closed = True
                environ = self._environ
                length = environ.get("CONTENT_LENGTH") or ""
                self._metrics.finish(
                    environ.get(_OPERATION, "none"),
                    environ["REQUEST_METHOD"],
                    self.status,
                    perf_counter() - self._started,
                    environ.get(RECEIVED) or (int(length) if length.isdecimal() else 0),
                    self._sent,
                )
