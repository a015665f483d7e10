"""If, Loop and Scan over region programs; their meaning is the reference's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dovetail import reference
from dovetail.core.dtypes import DType, dtype
from dovetail.core.errors import Error, ExecutionError
from dovetail.engine.plan import ControlSegment, Port

Invoke = Callable[[int, Sequence[Any]], list[Any]]
"""Runs region `i` on arguments and returns its outputs, which share no memory with anything."""


def run(segment: ControlSegment, inputs: Sequence[Any], invoke: Invoke) -> tuple[Any, ...]:
    """The outputs of a control segment; see `ControlSegment` for the wiring.

    Raises:
        ExecutionError: values that do not fit each other.
    """

    def region(number: int) -> Callable[..., tuple[Any, ...]]:
        return lambda *arguments: tuple(invoke(number, arguments))

    attrs: dict[str, Any] = {"regions": [region(i) for i in range(len(segment.regions))]}
    ports = segment.regions[0].outputs
    if segment.kind == "Loop":
        attrs |= {"carried": segment.carried, "elements": _elements(ports[1 + segment.carried :])}
    elif segment.kind == "Scan":
        attrs |= {
            "states": segment.carried,
            "scans": segment.scan_inputs,
            "input_axes": segment.scan_input_axes,
            "input_reverse": segment.scan_input_directions,
            "output_axes": segment.scan_output_axes,
            "output_reverse": segment.scan_output_directions,
            "elements": _elements(ports[segment.carried :]),
        }
    try:
        return tuple(reference.lookup(segment.kind)(*inputs, **attrs))
    except Error:
        raise
    except Exception as error:
        raise ExecutionError(
            f"{', '.join(segment.origin) or segment.kind}: {segment.kind} failed "
            f"({type(error).__name__}: {error})"
        ) from error


def _elements(ports: Sequence[Port]) -> list[tuple[DType, tuple[int, ...]]]:
    """Type of one element of each scanned output: used when no iteration runs.

    No iteration tells symbolic extents; ONNX leaves them open, and 0 is the neutral choice.
    """
    return [
        (
            dtype(p.tensor.dtype),
            tuple(
                d[0] if isinstance(d[0], int) and len(d) == 1 else 0 for d in p.tensor.shape or ()
            ),
        )
        for p in ports
    ]
