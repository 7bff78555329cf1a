"""`python -m dicomcloud`: the command line."""

from __future__ import annotations

import sys
from pathlib import Path

# app.py lies beside this package; a server started from another folder finds it too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if sys.version_info < (3, 11):  # noqa: UP036 (whoever starts it with an old Python is told so)
    sys.exit("DICOMcloud needs Python 3.11 or newer; this is " + sys.version.split()[0])
try:
    from app import main
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] in ("app", "dicomcloud"):
        raise
    sys.exit(f"{error.name} is not installed for {sys.executable}; `make run` sets up .venv/bin/python, which has it")

if __name__ == "__main__":
    main()
