"""Names as users give them: looked up, with the nearest ones in the error where there is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

import onnx

from dovetail.core.errors import UsageError


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the names that look like it, or the first few."""
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, 3, 0.5)
    if not close:
        close = [k for k in names if name.lower() in k.lower() or k.lower() in name.lower()][:3]
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(map(repr, names[:8])) or "none"
    return f"there are {shown}{', …' if len(names) > 8 else ''}"


def expect(names: Iterable[str], known: Iterable[str], where: str, what: str) -> list[str]:
    """The names, each of them once and known.

    Raises:
        UsageError: no names, one given twice, or unknown ones.
    """
    wanted, there = list(names), list(known)
    if not wanted:
        raise UsageError(f"{where}: got no names, expected at least one {what}")
    if twice := sorted({n for n in wanted if wanted.count(n) > 1}):
        raise UsageError(f"{where}: got {twice[0]!r} twice, expected each {what} once")
    known_set = set(there)
    unknown = [f"{n!r} ({nearest(n, there)})" for n in wanted if n not in known_set]
    if unknown:
        raise UsageError(f"{where}: got {', '.join(unknown)}, expected names of {'an' if what[0] in 'aeiou' else 'a'} {what} of the model")
    return wanted


def describe(node: onnx.NodeProto) -> str:
    """A node in messages: its operator and its name, or what it makes where it has none."""
    op = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return f"{op} {node.name!r}" if node.name else f"{op} that makes {next(iter(node.output), '')!r}"


def matching(nodes: Iterable[onnx.NodeProto], patterns: Iterable[str], where: str) -> list[onnx.NodeProto]:
    """Nodes whose name, or an output of theirs, is given or fits a pattern such as `/head/*`.

    Raises:
        UsageError: a pattern that fits no node.
    """
    everything = list(nodes)
    found: dict[int, onnx.NodeProto] = {}
    for pattern in patterns:
        fits = [n for n in everything if pattern in (n.name, *n.output)] or [
            n for n in everything if any(fnmatchcase(name, pattern) for name in (n.name, *n.output) if name)
        ]
        if not fits:
            known = [name for n in everything for name in ((n.name,) if n.name else n.output)]
            raise UsageError(f"{where}: no node is called {pattern!r}; {nearest(pattern, known)}")
        found |= {id(n): n for n in fits}
    # In the order of the graph.
    return [n for n in everything if id(n) in found]
