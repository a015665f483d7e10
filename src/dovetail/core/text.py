"""Amounts and names in messages."""

from __future__ import annotations


def size_text(count: float) -> str:
    """Bytes for people, in four digits: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
