"""`python -m dicomcloud`: the command line."""

from __future__ import annotations

import sys
from pathlib import Path

# app.py lies beside this package; a server started from another folder finds it too.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import main

if __name__ == "__main__":
    main()
