"""Amounts and names in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def size_text(count: float) -> str:
    """Bytes for people, in four digits: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def counted(count: int, what: str) -> str:
    """A number of things: "1 node", "2 nodes"; `what` takes an s."""
    return f"{count} {what}{'s' * (count != 1)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name, such as "; did you mean 'x'?"; nothing where no known one is like it."""
    close = difflib.get_close_matches(given, list(known), 3, 0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
