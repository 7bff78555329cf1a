"""Looks for inputs that crash, stall or blow up what reads bytes from strangers.

    python -m tests.fuzz --seconds 60                 every target, each so long
    python -m tests.fuzz dicom_file --seconds 3600    one target

With atheris (`pip install atheris`; Linux) coverage leads the search, without it chance does. An input that fails is
written to the folder `build/fuzz` and named; exit code 1. One that takes long is written there, too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from tests.fuzz.mutation import mutate
from tests.fuzz.targets import SEEDS, TARGETS, WORDS, files_of

FOLDER = Path(__file__).resolve().parent.parent.parent / "build" / "fuzz"
_HANGS = 20  # seconds that an input may take
_SLOW = 2.0  # seconds after which an input is kept, to be looked at


def by_chance(name: str, seconds: float, seed: int) -> bool:
    """Try damaged seeds for so long. False when one failed."""
    chance = random.Random(seed)
    pool = list(SEEDS[name])
    until, count, slowest = time.monotonic() + seconds, 0, 0.0

    def hang(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"an input took longer than {_HANGS} s")

    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, hang)
    while time.monotonic() < until:
        data = mutate(chance.choice(pool), WORDS[name], chance)
        began = time.monotonic()
        try:
            if hasattr(signal, "alarm"):
                signal.alarm(_HANGS)
            TARGETS[name](data)
        except BaseException as error:
            print(f"{name}: {type(error).__name__}: {error}\n  the input is {_keep(name, data)}", flush=True)
            return False
        finally:
            if hasattr(signal, "alarm"):
                signal.alarm(0)
        count += 1
        took = time.monotonic() - began
        if took > max(slowest, _SLOW):
            print(f"{name}: {took:.1f} s for the input {_keep(name, data)}", flush=True)
        slowest = max(slowest, took)
        if len(pool) < 500 and len(data) < 50_000 and chance.random() < 0.01:
            pool.append(data)
    print(f"{name}: {count} inputs, the slowest took {slowest * 1000:.0f} ms, no fault", flush=True)
    return True


def _keep(name: str, data: bytes) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return path


def by_coverage(name: str, seconds: float) -> bool:
    """The same in a process of its own under atheris."""
    script = (
        "import sys, atheris\n"
        "with atheris.instrument_imports(include=['dicomcloud']):\n"
        "    from tests.fuzz.targets import TARGETS\n"
        f"atheris.Setup(sys.argv, TARGETS[{name!r}])\n"
        "atheris.Fuzz()\n"
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    corpus = files_of(name, FOLDER / "corpus")
    limits = [f"-max_total_time={int(seconds)}", f"-timeout={_HANGS}", "-rss_limit_mb=2048", "-max_len=65536"]
    command = [sys.executable, "-c", script, *limits, f"-artifact_prefix={FOLDER}/{name}-", str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    summary = next((line for line in reversed(lines) if "DONE" in line or "exec/s" in line), "")
    if done.returncode:
        print("\n".join(lines[-40:]))
    print(f"{name}: {'a fault' if done.returncode else 'no fault'} {summary}", flush=True)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-coverage", action="store_true", help="not with atheris, though it is installed")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    guided = importlib.util.find_spec("atheris") is not None and not arguments.no_coverage
    print(f"seed {arguments.seed}, {'atheris' if guided else 'by chance'}", flush=True)
    fine = [
        by_coverage(name, arguments.seconds) if guided else by_chance(name, arguments.seconds, arguments.seed)
        for name in arguments.targets or TARGETS
    ]
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()
