"""A subscriber: writes a line about each event into the file that the variable EXAMPLE_JOURNAL names.

What it raises makes the server try again later. It may be given an event twice; `event.id` tells.
"""

import os
from typing import Any


def journal(event: Any) -> None:
    with open(os.environ["EXAMPLE_JOURNAL"], "a", encoding="utf-8") as file:
        file.write(f"{event.id} {event.kind} {event.study_uid}\n")


journal.kinds = {"stored", "deleted"}  # type: ignore[attr-defined]  # else those of the setting event_kinds
