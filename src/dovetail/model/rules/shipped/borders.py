"""What shipped rules share: permutations, what Pad adds, what Slice takes away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dovetail.model.rules.match import Match, Value

UNARY = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Selu")
"""Operators of one input that treat every element alike."""

_LARGEST = 1 << 30


def activated(op: Any, value: Any, low: Any, high: Any, always: bool = False) -> Any:
    """In a pattern: what an operator of one input makes of a value, named "act"; or, unless `always`, the value itself."""
    acts = [getattr(op, name)(value).named("act") for name in UNARY]
    return op.any_of(*acts, op.Clip(value, low, high).named("act"), *([] if always else [value]))


def transposed(op: Any, value: Any, perm: Sequence[int]) -> Any:
    """In a replacement: a Transpose, unless it changes nothing."""
    return value if list(perm) == sorted(perm) else op.Transpose(value, perm=list(perm))


def after(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The permutation of a Transpose by `first`, then by `second`."""
    return [first[axis] for axis in second]


def padding(match: Match, pad: Value, pads: Value | None, fill: Value | None) -> tuple[list[int], list[int]] | None:
    """What a Pad adds per axis, (before, behind); None unless that is a constant number of zeros."""
    amounts = pad.attribute("pads") if pads is None else match.dims(pads)  # an attribute before opset 11
    if pad.attribute("mode", "constant") != "constant" or amounts is None or len(amounts) % 2:
        return None
    if pad.attribute("value", 0.0) or (fill is not None and (fill.array is None or fill.array.any())):
        return None
    found = [a for a in amounts if isinstance(a, int) and a >= 0]
    half = len(amounts) // 2
    return (found[:half], found[half:]) if len(found) == len(amounts) else None


def cropping(
    match: Match, cut: Value, sizes: Sequence[Any] | None, rank: int, starts: Value | None, ends: Value | None, axes: Value | None,
    steps: Value | None,
) -> tuple[list[int], list[int]] | None:  # fmt: skip
    """What a Slice takes away per axis, (before, behind); None where that is not a known number.

    Args:
        cut: what the Slice computes.
        sizes: of the sliced value, where they are known.
    """
    if starts is None:  # attributes before opset 10
        begin, end, where = (cut.attribute(name) for name in ("starts", "ends", "axes"))
    else:
        begin, end, where = match.dims(starts), match.dims(ends), match.dims(axes)
    if axes is None and where is None:
        where = range(rank)
    if begin is None or end is None or where is None or not len(begin) == len(end) == len(where):
        return None
    if steps is not None and any(s != 1 for s in match.dims(steps) or (0,)):
        return None
    before, behind = [0] * rank, [0] * rank
    for low, high, axis in zip(begin, end, where, strict=True):
        if not isinstance(low, int) or not isinstance(high, int) or not isinstance(axis, int) or low < 0:
            return None
        size = sizes[axis] if sizes is not None else None
        before[axis] = low
        if high < 0:
            behind[axis] = -high
        elif high < _LARGEST:
            if not isinstance(size, int):
                return None
            behind[axis] = max(0, size - high)
    return before, behind
