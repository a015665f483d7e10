"""NumPy meaning of If, Loop and Scan; a region is a function from arrays to a tuple of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail.core.dtypes import DType
from dovetail.reference.registry import reference
from dovetail.reference.widen import Array

Region = Callable[..., tuple[Any, ...]]
ElementTypes = Sequence[tuple[DType, tuple[int, ...]]]
"""Dtype and extents of one element of each scan output (0 where unknown): used when no step runs."""


@reference("If")
def if_(condition: Array, *captures: Array | None, regions: Sequence[Region]) -> tuple[Array, ...]:
    """The results of regions[0] if `condition` holds, else of regions[1]; both get the captures. ONNX If-25."""
    taken = regions[0] if bool(np.asarray(condition).reshape(())) else regions[1]
    return taken(*captures)


def stack(parts: list[Array], empty: tuple[DType, tuple[int, ...]] | None, axis: int = 0) -> Array:
    """The per-step results stacked along `axis`; with no step, extent 0 there and the declared element type."""
    if parts:
        return np.stack(parts, axis=axis)
    kind, extents = empty if empty is not None else (None, ())
    shape = list(extents)
    shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, 0)
    return np.empty(shape, np.float32 if kind is None else kind.numpy)


@reference("Loop")
def loop(
    trip_count: Array | None,
    condition: Array | None,
    *values: Array | None,
    regions: Sequence[Region],
    carried: int,
    elements: ElementTypes = (),
) -> tuple[Array | None, ...]:
    """Run regions[0](iteration, condition, *carried, *captures) while it says so, at most `trip_count` times.

    `values` is the `carried` initial values, then the captures. The region returns (condition, *carried,
    *one element of each scan output); the results are the last carried values and the stacked scan outputs.
    `elements` types the scan outputs of a loop that never runs. ONNX Loop-25.
    """
    limit = None if trip_count is None else int(np.asarray(trip_count).reshape(()))
    going = condition is None or bool(np.asarray(condition).reshape(()))
    state: tuple[Array | None, ...] = values[:carried]
    captures = values[carried:]
    scans: list[list[Array]] = [[] for _ in elements]
    iteration = 0
    while going and (limit is None or iteration < limit):
        flags = (np.asarray(iteration, np.int64), np.asarray(going))
        more, *results = regions[0](*flags, *state, *captures)
        going = bool(np.asarray(more).reshape(()))
        state = tuple(results[:carried])
        for part, value in zip(scans, results[carried:], strict=True):
            part.append(value)
        iteration += 1
    return (*state, *(stack(s, e) for s, e in zip(scans, elements, strict=True)))


@reference("Scan")
def scan(
    *values: Array | None,
    regions: Sequence[Region],
    states: int,
    scans: int,
    input_axes: Sequence[int],
    input_reverse: Sequence[bool],
    output_axes: Sequence[int],
    output_reverse: Sequence[bool],
    elements: ElementTypes = (),
) -> tuple[Array | None, ...]:
    """Run regions[0](*states, *slices, *captures) for each slice of the scanned inputs.

    `values` is `states` initial values, `scans` scanned inputs, then the captures. The region returns
    (*states, *one element of each scan output). ONNX Scan-25.
    """
    state: tuple[Array | None, ...] = values[:states]
    captures = values[states + scans :]
    scanned = [
        np.moveaxis(np.asarray(v), axis, 0)[:: -1 if reverse else 1]
        for v, axis, reverse in zip(values[states : states + scans], input_axes, input_reverse, strict=True)
    ]
    parts: list[list[Array]] = [[] for _ in elements]
    for slices in zip(*scanned, strict=True):
        results = regions[0](*state, *slices, *captures)
        state = tuple(results[:states])
        for part, value in zip(parts, results[states:], strict=True):
            part.append(value)
    stacked = (
        stack(p[::-1] if reverse else p, e, axis)
        for p, e, axis, reverse in zip(parts, elements, output_axes, output_reverse, strict=True)
    )
    return (*state, *stacked)
