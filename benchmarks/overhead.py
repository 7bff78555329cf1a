"""What asking who calls, the audit trail and metrics cost together: `python -m benchmarks.overhead`.

Two servers over equal data, both of this checkout: one as it is, asked by a user with a password, and one from which
the three are taken out. Small requests, in turn to one and the other, on a connection each; the medians are compared.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .client import BadAnswer, Connection, Request
from .data import Data
from .operations import store
from .servers import PROJECT, Server, free_port, start

_LIMIT = 0.15  # of a small request
_PASSWORD = "a password of the benchmark"


def bare() -> None:
    """The command line of a server without the three."""
    import app
    import dicomcloud.web as web
    from dicomcloud.web import audit, metrics

    def nothing(*_: Any, **__: Any) -> None:
        pass

    vars(metrics)["register"] = vars(audit)["record"] = vars(web)["guard"] = nothing
    app.main()


def _server(folder: Path, name: str, environment: dict[str, str], code: list[str]) -> Server:
    port = free_port()
    variables = os.environ | {
        "DICOMCLOUD_BIND": f"127.0.0.1:{port}",
        "DICOMCLOUD_DATA_DIR": str(folder / name),
        "DICOMCLOUD_WORKERS": "1",
        **environment,
    }
    root, command = f"http://127.0.0.1:{port}", [sys.executable, *code, "serve"]
    server = start(name, root, command, folder, variables, PROJECT, path="/healthz")
    server.root += "/dicomweb"
    return server


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """The median of each request on each server, in ms. Raises BadAnswer."""
    folder = Path(tempfile.mkdtemp(prefix="dicomcloud-overhead-"))
    servers: list[Server] = []
    try:
        whole = ["-m", "dicomcloud"]
        servers.append(_server(folder, "whole", {"DICOMCLOUD_AUTHENTICATION": "none"}, whole))
        small = list(Data("overhead", studies=50).small_instances())
        with contextlib.closing(Connection(servers[0].root)) as connection:
            store(connection, small)
        servers.pop().stop()
        shutil.copytree(folder / "whole", folder / "bare")
        environment = os.environ | {"DICOMCLOUD_DATA_DIR": str(folder / "whole")}
        add = [sys.executable, *whole, "users", "add", "reader", "--password-stdin"]
        subprocess.run(add, input=_PASSWORD, text=True, check=True, cwd=PROJECT, env=environment, capture_output=True)
        bare_code = ["-c", "from benchmarks.overhead import bare; bare()"]
        servers.append(_server(folder, "bare", {"DICOMCLOUD_AUTHENTICATION": "none"}, bare_code))
        servers.append(_server(folder, "whole", {"DICOMCLOUD_AUTHENTICATION": "required"}, whole))
        who = base64.b64encode(f"reader:{_PASSWORD}".encode()).decode()
        headers = (("Accept", "application/dicom+json"), ("Authorization", f"Basic {who}"))
        first = small[0]
        instance = f"/studies/{first.study_uid}/series/{first.series_uid}/instances/{first.sop_uid}"
        requests = {
            "search of one study": f"/studies?StudyInstanceUID={first.study_uid}",
            "search of 25 studies": "/studies?limit=25",
            "metadata of an instance": f"{instance}/metadata",
        }
        return {name: _medians(servers, Request("GET", path, headers), rounds) for name, path in requests.items()}
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _medians(servers: list[Server], request: Request, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {server.name: [] for server in servers}
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(contextlib.closing(Connection(server.root))) for server in servers]
        for number in range(rounds + 50):
            for server, connection in list(zip(servers, connections, strict=True))[:: 1 if number % 2 else -1]:
                answer = connection.exchange(request)
                if answer.status != 200:
                    raise BadAnswer(f"{server.name}: status {answer.status} for {request.path}")
                if number >= 50:
                    times[server.name].append(answer.seconds * 1000)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="requests of each kind to each server")
    figures = measure(parser.parse_args().rounds)
    worst = 0.0
    print("| Request | without, ms | with, ms | more |\n|---|---|---|---|")
    for name, medians in figures.items():
        more = medians["whole"] / medians["bare"] - 1
        worst = max(worst, more)
        print(f"| {name} | {medians['bare']:.3f} | {medians['whole']:.3f} | {more:+.0%} |")
    print(f"At most {worst:.0%} more; the limit is {_LIMIT:.0%}.")
    return 0 if worst < _LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
