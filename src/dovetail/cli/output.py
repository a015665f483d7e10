"""How verbs print: one JSON object, or text with aligned tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np


def show(args: argparse.Namespace, data: Any, text: str) -> None:
    """Print `data` as JSON with --json, else `text`."""
    print(json.dumps(data, indent=2, default=_plain) if args.json else text)


def _plain(value: Any) -> Any:
    """What json does not know: NumPy scalars and arrays become numbers and lists, all else its text."""
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, aligned: the first column left, numbers right."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max([len(h), *(len(row[i]) for row in cells)]) for i, h in enumerate(head)]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in cells) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True)) + "|"
    return "\n".join([line(head), rule, *map(line, cells)])


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in "+-" or text in ("", "nan", "inf")


def shape_text(shape: Sequence[object] | None) -> str:
    """A shape as [N,3,224,224]."""
    return "?" if shape is None else "[" + ",".join(map(str, shape)) + "]"
