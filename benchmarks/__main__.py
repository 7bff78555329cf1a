"""Measure this server beside a peer, in one run, alternating, every answer checked.

    python -m benchmarks                  about five minutes; --quick: about one
    python -m benchmarks --only search    operations whose name contains the text
    python -m benchmarks --server NAME=http://127.0.0.1:8080/dicomweb=PID    a server that runs already

What is measured how stands below the table that is printed, and in docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .client import Answer, BadAnswer, Connection, Request, keep_busy
from .data import Data
from .front import find_nginx, start_behind_nginx
from .operations import Check, Operation, instance_alone, operations, store
from .servers import HOW_TO_INSTALL_THE_PEER, Server, find_orthanc, given_server, start_dicomcloud, start_orthanc

CONNECTIONS = 4  # at once, where throughput is measured
TURNS = 20  # that a server has in an operation
TIME_LIMIT = 15 * 60  # seconds; then the run ends, whatever is left


@dataclass
class Figures:
    """What one server did in one operation."""

    operation: str
    server: str
    count: int = 0
    first_ms: float = 0.0
    turn_ms: float = 0.0
    median_ms: float = 0.0
    p95_ms: float = 0.0
    per_second: float = 0.0
    cpu_ms: float | None = None
    connections_opened: int = 0
    failure: str = ""
    ratio: float | None = None  # of medians, this server through the first one
    cpu_ratio: float | None = None
    target: float | None = None
    met: bool | None = None
    samples_ms: list[float] = field(default_factory=list, repr=False)
    turns_ms: list[float] = field(default_factory=list, repr=False)


class OutOfTime(Exception):
    """The time that a run may take is over."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load(servers: Sequence[Server], data: Data) -> None:
    """Store the fixed set of data in every server. Raises BadAnswer, OSError."""
    small = list(data.small_instances())
    slices, extra = data.slices, [data.multi_frame, data.jpeg_2000[0], *data.jpeg_2000_slices, data.radiograph]
    for server in servers:
        began = time.perf_counter()
        with contextlib.closing(Connection(server.root)) as connection:
            for start in range(0, len(small), 100):
                store(connection, small[start : start + 100])
            for start in range(0, len(slices), 50):
                store(connection, slices[start : start + 50])
            for instance in extra:
                store(connection, [instance])
        count = len(small) + len(slices) + len(extra)
        say(f"  {server.name}: {count:,} instances stored in {time.perf_counter() - began:.1f} s")


def measure(operation: Operation, servers: Sequence[Server], rounds: int, busy_seconds: float) -> list[Figures]:
    """First one request at a time, the servers in turn, then each with several connections, in turn too.

    A turn is a few requests, as a viewer sends them; where there are few rounds, it is one.
    """
    figures = [Figures(operation.name, server.name) for server in servers]
    connections = [[Connection(server.root) for _ in range(CONNECTIONS)] for server in servers]
    before = [server.cpu_seconds() for server in servers]
    number = 0
    try:
        for turn in range(-1, math.ceil(rounds / (length := max(1, rounds // TURNS)))):
            made = [operation.make(number + index) for index in range(length if turn >= 0 else 1)]
            number += len(made)
            for which in _turn(len(servers), turn):
                for index, (request, check) in enumerate(made):
                    if not figures[which].failure:
                        _once(figures[which], connections[which][0], request, check, first=turn < 0, begins=index == 0)
        if operation.parallel:
            _several(operation, figures, connections, number, busy_seconds)
    finally:
        for some in connections:
            for connection in some:
                connection.close()
    for which, (one, server) in enumerate(zip(figures, servers, strict=True)):
        after, earlier = server.cpu_seconds(), before[which]
        if after is not None and earlier is not None and one.count:
            one.cpu_ms = (after - earlier) * 1000 / one.count
        one.connections_opened = sum(connection.connections for connection in connections[which])
        _summarise(one, operation)
        if operation.afterwards and not one.failure:
            with contextlib.closing(Connection(server.root)) as connection:
                try:
                    operation.afterwards(connection)
                except (BadAnswer, OSError) as error:
                    one.failure = f"afterwards: {error}"
    return figures


def _turn(count: int, number: int) -> list[int]:
    order = list(range(count))
    return order if number % 2 == 0 else order[::-1]


def _once(
    figures: Figures, connection: Connection, request: Request, check: Check, *, first: bool, begins: bool
) -> None:
    try:
        answer: Answer = connection.exchange(request)
        check(answer)
    except (BadAnswer, OSError) as error:
        figures.failure = str(error) or type(error).__name__
        return
    figures.count += 1
    if first:
        figures.first_ms = answer.seconds * 1000
    else:
        figures.samples_ms.append(answer.seconds * 1000)
        if begins:
            figures.turns_ms.append(answer.seconds * 1000)


def _several(
    operation: Operation, figures: Sequence[Figures], connections: list[list[Connection]], number: int, seconds: float
) -> None:
    totals = [(0, 0.0) for _ in figures]
    for _ in range(2):
        for which, one in enumerate(figures):
            if one.failure:
                continue
            requests = (operation.make(following) for following in range(number, number + 1_000_000))
            try:
                count, taken = keep_busy(connections[which], requests, seconds / 2)
            except (BadAnswer, OSError) as error:
                one.failure = f"with {CONNECTIONS} connections: {error or type(error).__name__}"
                continue
            one.count += count
            totals[which] = (totals[which][0] + count, totals[which][1] + taken)
    for one, (count, taken) in zip(figures, totals, strict=True):
        one.per_second = count / taken if taken else 0.0


def _summarise(figures: Figures, operation: Operation) -> None:
    samples = sorted(figures.samples_ms)
    if not samples:
        return
    figures.median_ms = statistics.median(samples)
    figures.turn_ms = statistics.median(figures.turns_ms)
    figures.p95_ms = samples[min(len(samples) - 1, round(0.95 * (len(samples) - 1)))]
    if not operation.parallel:
        figures.per_second = len(samples) * 1000 / sum(samples)


def compare(figures: Sequence[Figures], target: float | None) -> None:
    """Fill in the ratios of the others to the first; the target is for the first of the others."""
    ours = figures[0]
    for peer in figures[1:]:
        if ours.failure or peer.failure or not ours.median_ms:
            continue
        peer.ratio = peer.median_ms / ours.median_ms
        if peer.cpu_ms is not None and ours.cpu_ms:
            peer.cpu_ratio = peer.cpu_ms / ours.cpu_ms
    if len(figures) > 1 and target is not None:
        figures[1].target = target
        figures[1].met = None if figures[1].ratio is None else figures[1].ratio >= target


# The report

HEADINGS = (
    "operation", "server", "n", "first ms", "turn ms", "median ms", "p95 ms", "op/s", "CPU ms", "ratio", "CPU ratio",
    "target",
)  # fmt: skip

EXPLANATION = f"""\
One client and the servers on one machine, loopback, no TLS. Every answer is checked: status, count, bytes equal
to those stored, JSON parsed and compared; n is the number of answers. Median and p95: one request at a time on
a connection kept alive as a browser keeps it (where the server closes it, opening the next is part of the
time). The servers take turns, {TURNS} each, of as many requests as there are (where these are few, a turn is one);
"turn" is the median of the first requests of the turns, when the server has been idle and the processor's caches
are the other's; they are in median and p95. "first" is the first request of the operation and is not. op/s:
{CONNECTIONS} connections, one request under way on each, servers in turn; for the series and STOW of 50 one
connection. CPU ms: user and system time of the server's whole process tree through the number of its answers,
at one and at {CONNECTIONS} connections together (the kernel counts in steps of 10 ms). Ratio: the peer's median
(its CPU time) through ours; above 1 the peer is slower. Nothing is compressed on the way and no answer comes
from a cache of the client."""


def rows(results: Sequence[Sequence[Figures]]) -> Iterator[tuple[str, ...]]:
    for figures in results:
        for number, one in enumerate(figures):
            name = one.operation if number == 0 else ""
            if one.failure:
                yield (name, one.server, str(one.count), *[""] * 8, f"FAILED: {one.failure}"[:110])
                continue
            cpu = "-" if one.cpu_ms is None else _number(one.cpu_ms)
            target = "" if one.target is None else f">= {one.target:g}"
            if one.met is not None:
                target += " met" if one.met else " NOT met"
            yield (
                name, one.server, str(one.count), _number(one.first_ms), _number(one.turn_ms), _number(one.median_ms),
                _number(one.p95_ms), _number(one.per_second), cpu, _times(one.ratio), _times(one.cpu_ratio), target,
            )  # fmt: skip


def _number(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{_number(ratio)}x"


def table(results: Sequence[Sequence[Figures]], *, markdown: bool) -> str:
    cells = [HEADINGS, *rows(results)]
    if markdown:
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        return "\n".join([lines[0], "|---|---|" + "---:|" * 9 + "---|", *lines[1:]])
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS) - 1)]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(row[2:-1], widths[2:], strict=True)]
        lines.append("  ".join([*padded, row[-1]]).rstrip())
    return "\n".join(lines)


def machine(folder: Path) -> dict[str, str]:
    """What the figures were measured on."""
    model = memory = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
        memory = f"{kilobytes / 1024 / 1024:.0f} GiB"
    packages = []
    for name in ("gunicorn", "flask", "werkzeug", "peewee", "orjson"):
        with contextlib.suppress(PackageNotFoundError):
            packages.append(f"{name} {version(name)}")
    return {
        "processor": f"{os.cpu_count()} × {model or platform.processor()}",
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}, data on {_file_system(folder)}",
        "load before": _load(),
        "Python": f"{platform.python_version()}, {', '.join(packages)}",
    }


def _load() -> str:
    if not hasattr(os, "getloadavg"):
        return "unknown"
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"the load of this machine is {load:.1f} already: figures will be off, wall times most")
    return f"{load:.1f} (average of the last minute; the benchmark wants a machine of its own)"


def _file_system(folder: Path) -> str:
    found, kind = "", "an unknown file system"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            place, name = line.split()[1:3]
            if (str(folder) + "/").startswith(place.rstrip("/") + "/") and len(place) > len(found):
                found, kind = place, name
    return kind


def report(
    results: Sequence[Sequence[Figures]], about: dict[str, str], data: Data, seconds: float, *, markdown: bool
) -> str:
    dash = "- " if markdown else ""
    lines = [f"{dash}{name}: {text}" for name, text in about.items()]
    lines.append(f"{dash}time: {seconds:.0f} s in all")
    lines.append(
        f"{dash}data: {data.number_of_studies:,} studies of one 64 × 64 image with a CT header; a study of "
        f"{data.number_of_slices} CT slices of {len(data.slices[0].file) / 1e6:.2f} MB and "
        f"{data.slice_elements} elements; an Enhanced CT of {len(data.multi_frame.file) / 1e6:.0f} MB; "
        "CT slices in JPEG 2000; a radiograph of 7.5 megapixels"
    )
    return "\n".join([*lines, "", table(results, markdown=markdown), "", EXPLANATION])


def _server(text: str) -> Server:
    try:
        return given_server(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer studies and rounds")
    parser.add_argument("--only", action="append", metavar="NAME", help="operations whose name contains this")
    parser.add_argument(
        "--server", action="append", default=[], metavar="NAME=URL[=PID]", type=_server,
        help="DICOMweb root of a server on this machine that runs already; data is stored in it and stays there",
    )  # fmt: skip
    parser.add_argument("--no-peer", action="store_true", help="do not start Orthanc")
    parser.add_argument("--no-own", action="store_true", help="do not start this server: the peers alone")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    parser.add_argument("--markdown", action="store_true", help="print the report as docs/performance.md shows it")
    return parser.parse_args(given)


def start(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> list[Server]:
    """The servers to compare, this one first. Raises BadAnswer."""
    servers = []
    if not options.no_own:
        servers.append(start_dicomcloud(folder))
        stack.callback(servers[-1].stop)
    orthanc = None if options.no_peer else find_orthanc()
    if orthanc:
        servers.append(start_orthanc(folder, *orthanc))
        stack.callback(servers[-1].stop)
    elif not options.no_peer:
        say("Orthanc with its DICOMweb plug-in is not installed: measured without the peer.")
        say(f"To have it: {HOW_TO_INSTALL_THE_PEER}; nothing needs to be configured.")
    return [*servers, *options.server]


def _measured(
    operation: Operation, servers: Sequence[Server], rounds: int, options: argparse.Namespace
) -> list[Figures]:
    figures = measure(operation, servers, rounds, 0.8 if options.quick else 3.0)
    compare(figures, operation.target)
    texts = (f"{one.server} {one.failure or _number(one.median_ms) + ' ms'}" for one in figures)
    say("  " + operation.name + ": " + "; ".join(texts))
    return figures


def _through_nginx(
    options: argparse.Namespace, folder: Path, data: Data, stack: contextlib.ExitStack, about: dict[str, str]
) -> list[list[Figures]]:
    """Whole instances by X-Accel-Redirect, beside nginx with the same files and beside this server alone."""
    operation = instance_alone(data)
    wanted = not options.only or any(part.lower() in operation.name.lower() for part in options.only)
    program = find_nginx()
    if options.no_own or not wanted:
        return []
    if program is None:
        say("nginx is not installed: X-Accel-Redirect is not measured (apt-get install nginx)")
        return []
    servers = start_behind_nginx(folder, program, data, stack)
    about["nginx"] = servers[0].version
    return [_measured(operation, servers, operation.quick_rounds if options.quick else operation.rounds, options)]


def _out_of_time(*_: Any) -> None:
    raise OutOfTime(f"the run was ended: it took longer than {TIME_LIMIT // 60} minutes")


def _terminated(*_: Any) -> None:
    raise SystemExit(143)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    signal.signal(signal.SIGTERM, _terminated)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _out_of_time)
        signal.alarm(TIME_LIMIT)
    began = time.perf_counter()
    run = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
    data = Data(run, studies=400 if options.quick else 2_000)
    folder = Path(tempfile.mkdtemp(prefix="dicomcloud-benchmark-"))
    results: list[list[Figures]] = []
    try:
        with contextlib.ExitStack() as stack:
            servers = start(options, folder, stack)
            if not servers:
                say("no server to measure")
                return 2
            about = machine(folder) | {server.name: server.version or server.root for server in servers}
            about["command"] = (
                f"python -m benchmarks {shlex.join(given if given is not None else sys.argv[1:])}".rstrip()
            )
            about["measured"] = datetime.now(UTC).strftime("%Y-%m-%d")
            say("making and storing the data")
            load(servers, data)
            for operation in operations(data):
                if options.only and not any(part.lower() in operation.name.lower() for part in options.only):
                    continue
                rounds = operation.quick_rounds if options.quick else operation.rounds
                results.append(_measured(operation, servers, rounds, options))
            results += _through_nginx(options, folder, data, stack, about)
    except (BadAnswer, OutOfTime) as error:
        say(f"benchmark: {error}")
        if not results:
            return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.perf_counter() - began
    print(report(results, about, data, seconds, markdown=options.markdown))
    if options.json:
        document = {"about": about, "seconds": seconds, "results": [asdict(one) for few in results for one in few]}
        options.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
