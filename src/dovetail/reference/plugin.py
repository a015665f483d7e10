"""Plugin: the reference of a user's operator is the function that the user registered."""

from __future__ import annotations

from typing import Any

from dovetail.plugins import require
from dovetail.plugins.attributes import decode
from dovetail.plugins.definition import Promise
from dovetail.reference.registry import reference


@reference("Plugin")
def plugin(
    *inputs: Any, name: str, results: Promise, version: str = "1", namespace: str = "", attributes: str = "{}", digest: str = ""
) -> tuple[Any, ...]:
    """Call the plugin and hold its results against `results`.

    Raises:
        PluginError: no such plugin is registered.
        ExecutionError: it failed, or its results have other types than promised.
    """
    found = require(name, version, namespace)
    given = found.run(inputs, decode(attributes))
    found.check_promise(given, results)
    return given
