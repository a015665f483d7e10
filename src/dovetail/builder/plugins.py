"""Which plugins an engine needs: what its graphs call, with what packages and files a message may name."""

from __future__ import annotations

from collections.abc import Iterator

from dovetail.ir.graph import Graph, Module, Node
from dovetail.plugins import requirement

_PARTS = (("name", ""), ("version", "1"), ("namespace", ""), ("digest", ""))


def required(module: Module) -> list[dict[str, str]]:
    """One record per plugin that a module calls (see `plugins.requirement`), in the order of the first call."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for node in _calls(module.main):
        key = tuple(str(node.attrs.get(part, default)) for part, default in _PARTS)
        if key not in found:
            found[key] = requirement(*key)
    return list(found.values())


def _calls(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        if node.op == "Plugin":
            yield node
        for region in node.regions:
            yield from _calls(region)
