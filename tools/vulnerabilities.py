"""Asks for the known vulnerabilities of the pinned dependencies, with pip-audit, and never takes silence for a yes.

    python -m tools.vulnerabilities build/audit/bin/pip-audit [pip-audit's own options]

Exit code 0: every dependency was looked up, and nothing is known of any; 1: something is known of one; 2: there is no
answer, or none about some of them. pip-audit alone says "no known vulnerabilities" also where it found nobody to ask.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def judge(report: dict[str, Any]) -> tuple[int, list[str]]:
    """The exit code, and what to say, of a report in pip-audit's JSON form."""
    found, unknown = [], []
    for each in report["dependencies"]:
        if "skip_reason" in each:
            unknown.append(each["name"])
        for vulnerability in each.get("vulns", ()):
            mended = ", ".join(vulnerability["fix_versions"]) or "none yet"
            found.append(f"{each['name']} {each['version']}: {vulnerability['id']}, mended in {mended}")
    asked = len(report["dependencies"]) - len(unknown)
    if found:
        found += [f"{len(unknown)} of the dependencies could not be looked up."] * bool(unknown)
        return 1, found
    if not asked:
        return 2, [
            "There is no vulnerability data: not one of the dependencies could be looked up. NOTHING was audited."
        ]
    if unknown:
        return 2, [f"Nothing is known of {asked} dependencies, but these could not be looked up: {', '.join(unknown)}"]
    return 0, [f"{asked} dependencies were looked up: nothing is known of any of them."]


def main() -> None:
    files = [word for path in sorted(PROJECT.glob("requirements*.txt")) for word in ("-r", str(path))]
    command = [*sys.argv[1:], "--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        code, lines = judge(json.loads(done.stdout))
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        code, lines = 2, [f"There is no vulnerability data. NOTHING was audited. pip-audit: {said[0][:300]}"]
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    sys.exit(code)


if __name__ == "__main__":
    main()
