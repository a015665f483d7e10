"""If, Loop and Scan over region programs, with ONNX's semantics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail.core.dtypes import dtype
from dovetail.core.errors import ExecutionError
from dovetail.engine.plan import ControlSegment, TensorRef

Invoke = Callable[[int, Sequence[Any]], list[Any]]
"""Runs region `i` on arguments and returns its outputs, which share no memory with anything."""


def run(segment: ControlSegment, inputs: Sequence[Any], invoke: Invoke) -> tuple[Any, ...]:
    """The outputs of a control segment; see `ControlSegment` for the wiring."""
    if segment.kind == "If":
        region = 0 if _truth(inputs[0]) else 1
        return tuple(invoke(region, inputs[1:]))
    if segment.kind == "Loop":
        return _loop(segment, inputs, invoke)
    return _scan(segment, inputs, invoke)


def _loop(segment: ControlSegment, inputs: Sequence[Any], invoke: Invoke) -> tuple[Any, ...]:
    limit = None if inputs[0] is None else int(np.asarray(inputs[0]).reshape(-1)[0])
    going = inputs[1] is None or _truth(inputs[1])
    carried = list(inputs[2 : 2 + segment.carried])
    captures = list(inputs[2 + segment.carried :])
    scanned: list[list[Any]] = [[] for _ in segment.outputs[segment.carried :]]
    iteration = 0
    while going and (limit is None or iteration < limit):
        index, condition = np.array(iteration, np.int64), np.array(True)
        results = invoke(0, [index, condition, *carried, *captures])
        going = _truth(results[0])
        carried = results[1 : 1 + segment.carried]
        for column, value in zip(scanned, results[1 + segment.carried :], strict=True):
            column.append(value)
        iteration += 1
    ports = segment.regions[0].outputs[1 + segment.carried :]
    stacked = [
        _stack(column, port.tensor, 0, False, segment)
        for column, port in zip(scanned, ports, strict=True)
    ]
    return (*carried, *stacked)


def _scan(segment: ControlSegment, inputs: Sequence[Any], invoke: Invoke) -> tuple[Any, ...]:
    states = list(inputs[: segment.carried])
    end = segment.carried + segment.scan_inputs
    sources = [
        np.moveaxis(value, axis, 0)
        for value, axis in zip(inputs[segment.carried : end], segment.scan_input_axes, strict=True)
    ]
    captures = list(inputs[end:])
    lengths = {len(s) for s in sources}
    if len(lengths) != 1:
        raise ExecutionError(
            f"{', '.join(segment.origin) or 'Scan'}: got scan inputs of lengths "
            f"{[len(s) for s in sources]}, expected equal lengths"
        )
    (length,) = lengths
    scanned: list[list[Any]] = [[] for _ in segment.outputs[segment.carried :]]
    for i in range(length):
        slices = [
            source[length - 1 - i if reverse else i]
            for source, reverse in zip(sources, segment.scan_input_directions, strict=True)
        ]
        results = invoke(0, [*states, *slices, *captures])
        states = results[: segment.carried]
        for column, value in zip(scanned, results[segment.carried :], strict=True):
            column.append(value)
    stacked = [
        _stack(column, port.tensor, axis, bool(reverse), segment)
        for column, port, axis, reverse in zip(
            scanned,
            segment.regions[0].outputs[segment.carried :],
            segment.scan_output_axes,
            segment.scan_output_directions,
            strict=True,
        )
    ]
    return (*states, *stacked)


def _stack(
    values: list[Any], ref: TensorRef, axis: int, reverse: bool, segment: ControlSegment
) -> Any:
    if not values:
        # No iteration tells symbolic extents; ONNX leaves them open, and 0 is the neutral choice.
        extents = [d[0] if isinstance(d[0], int) else 0 for d in ref.shape or ()]
        extents.insert(axis if axis >= 0 else axis + len(extents) + 1, 0)
        return np.empty(extents, dtype(ref.dtype).numpy)
    try:
        return np.stack(values[::-1] if reverse else values, axis)
    except ValueError as error:
        shapes = sorted({np.shape(v) for v in values})
        raise ExecutionError(
            f"{', '.join(segment.origin) or segment.kind}: got scanned values of shapes {shapes}, "
            "expected one shape for all iterations"
        ) from error


def _truth(value: Any) -> bool:
    return bool(np.asarray(value).reshape(-1)[0])
