"""How `dovetail inspect` shows weights: a table with small histograms, what is suspicious, and one tensor in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.cli import output
from dovetail.core.text import size_text
from dovetail.model.layers import amount

_SHOWN = 12
_NAMED = 4
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 40

HEAD = ("weight", "dtype", "shape", "size", "min", "max", "mean", "std", "zeros", "nan/inf", "histogram")


def weights_text(weights: Sequence[Mapping[str, Any]], everything: bool) -> list[str]:
    """A table of the largest weights, or of all; and a line that sums them up."""
    shown = list(weights) if everything else sorted(weights, key=lambda w: -w["bytes"])[:_SHOWN]
    left = len(weights) - len(shown)
    more = f"; {left} more with --weights" if left else ""
    lines = ["", output.table(HEAD, [_row(w) for w in shown])] if shown else []
    return [*lines, f"{len(weights)} weights, {size_text(sum(w['bytes'] for w in weights))}{more}"]


def suspicions_text(found: Sequence[Mapping[str, Any]], weights: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is suspicious in weights, one line a kind; serious things are marked."""
    unseen = sum(bool(w["stripped"]) for w in weights)
    note = f" ({unseen} without values)" if unseen else ""
    if not found:
        return [f"  weights: nothing suspicious{note}"]
    lines = [f"  suspicious weights{note}:"]
    for kind in found:
        named = ", ".join(f"{w['name']} ({w['count']})" for w in kind["weights"][:_NAMED])
        more = f" and {len(kind['weights']) - _NAMED} more" if len(kind["weights"]) > _NAMED else ""
        mark = "BAD " if kind["serious"] else "look"
        lines.append(f"    {mark}  {kind['count']} x {kind['meaning']}")
        lines.append(f"          in {named}{more}")
    return lines


def _row(weight: Mapping[str, Any]) -> list[str]:
    values = [number(weight[k]) for k in ("min", "max", "mean", "std")]
    bad = "" if weight["nan"] is None else f"{weight['nan']}/{weight['inf']}"
    zeros = "" if weight["zeros"] is None else str(weight["zeros"])
    size = "stripped" if weight["stripped"] else size_text(weight["bytes"]) + (" ext" if weight["external"] else "")
    bars = "" if weight["histogram"] is None or weight["constant"] or _count(weight) < 2 else spark(weight["histogram"])
    return [weight["name"], weight["dtype"], output.shape_text(weight["shape"]), size, *values, zeros, bad, bars]


def number(value: float | None) -> str:
    """A statistic for people; nothing for None."""
    return "" if value is None else f"{value:.4g}"


def _count(weight: Mapping[str, Any]) -> int:
    return int(np.prod(weight["shape"], dtype=np.int64))


def spark(counts: Sequence[int]) -> str:
    """A histogram as one character a bin; the least bar is for any count above zero."""
    largest = max(counts) or 1
    return "".join(_BARS[0] if not c else _BARS[1 + round((len(_BARS) - 2) * c / largest)] for c in counts)


def tensor_text(weight: Mapping[str, Any], array: np.ndarray[Any, Any] | None = None) -> list[str]:
    """All that is known of one weight: statistics, a histogram with a bar a bin, and some of its values."""
    if weight["stripped"]:
        return ["  its values were stripped; dovetail edit restore puts them back"]
    if weight["histogram"] is None:
        return [f"  {_count(weight)} strings", *([_values(array)] if array is not None else [])]
    pairs = [(k, number(weight[k])) for k in ("min", "max", "mean", "std", "rms", "abs_min_nonzero") if weight[k] is not None]
    count = _count(weight)
    lines = [
        f"  {amount(count)} elements, {size_text(weight['bytes'])}{', stored in another file' if weight['external'] else ''}",
        "  " + ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in pairs),
    ]
    odd = {
        "zeros": "zeros", "nan": "NaN", "inf": "infinities", "denormal": "denormal", "beyond_fp16": "beyond fp16",
        "below_fp16": "below fp16 (zero there)", "zero_channels": f"of {weight['channels']} channels all zero",
    }  # fmt: skip
    counted = [f"{weight[k]} {what}" for k, what in odd.items() if weight[k]]
    lines.append("  " + (", ".join(counted) if counted else "no zeros, no NaN, no infinities, nothing beyond fp16"))
    if weight["constant"]:
        lines.append("  all elements are equal")
    elif weight["min"] is not None and count > 1:
        lines += ["", *bars(weight["histogram"], weight["min"], weight["max"])]
    if array is not None:
        lines += ["", _values(array)]
    return lines


def bars(counts: Sequence[int], low: float, high: float) -> list[str]:
    """A histogram with one line a bin."""
    largest = max(counts) or 1
    step = high / len(counts) - low / len(counts)
    ends = [f"{low + i * step:.4g}" for i in range(len(counts))]
    width, digits = max(map(len, ends)), len(str(largest))
    return [
        f"  {end:>{width}} {c:>{digits}} {'█' * round(_WIDTH * c / largest) or ('▏' if c else '')}".rstrip()
        for end, c in zip(ends, counts, strict=True)
    ]


def _values(array: np.ndarray[Any, Any]) -> str:
    """The ends of an array; of more than two axes the first slice along the others."""
    first = (0,) * max(0, array.ndim - 2) if array.size else ()
    part = np.asarray(array[first])
    wide = part if part.dtype.kind in "biufO" else part.astype(np.float32)
    with np.printoptions(threshold=64, edgeitems=3, linewidth=120, precision=5):
        text = "\n".join(f"  {line}" for line in str(wide).splitlines())
    return f"  [{', '.join('0' for _ in first)}, :, :]\n{text}" if first else text
