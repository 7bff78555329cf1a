"""What other packages add, found through entry points (docs/extending.md).

    dicomcloud.storage          name: URL scheme;  an object like `storage.open_storage`
    dicomcloud.subscribers      a function of an event
    dicomcloud.processors       a function of a pydicom Dataset that is being stored
    dicomcloud.authenticators   a function that tells who calls

An installed storage adapter is used when a URL has its scheme, the others when a setting names them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Literal

Group = Literal["storage", "subscribers", "processors", "authenticators"]


class PluginError(ValueError):
    """No installed package offers it, or it cannot be loaded; the message names what there is."""


def load(group: Group, name: str) -> Any:
    """The object that an installed package offers under this name. Raises PluginError."""
    offered = entry_points(group=f"dicomcloud.{group}")
    found = [each for each in offered if each.name == name]
    if not found:
        names = ", ".join(sorted({each.name for each in offered})) or "none"
        raise PluginError(f"no installed package offers {name!r} in the group dicomcloud.{group} (there are: {names})")
    if len({each.value for each in found}) > 1:
        packages = ", ".join(sorted(each.dist.name if each.dist else "?" for each in found))
        raise PluginError(f"several packages offer {name!r} in the group dicomcloud.{group}: {packages}")
    try:
        return found[0].load()
    except Exception as error:  # whatever the package does when it is imported
        raise PluginError(f"{name!r} of the group dicomcloud.{group} cannot be loaded: {error}") from error
