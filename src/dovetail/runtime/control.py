"""If, Loop and Scan over region programs; their meaning is the reference's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail import reference
from dovetail.core.dtypes import DType, dtype
from dovetail.core.errors import Error, ExecutionError
from dovetail.engine.plan import ControlSegment, Port

Invoke = Callable[[int, Sequence[Any]], list[Any]]
"""Runs region `i` on arguments and returns its outputs, which share no memory with anything."""


class Control:
    """A control segment with what does not change between runs."""

    def __init__(self, segment: ControlSegment) -> None:
        self.segment = segment
        self._function = reference.lookup(segment.kind)
        self._attrs: dict[str, Any] = {}
        ports = segment.regions[0].outputs
        if segment.kind == "Loop":
            self._attrs = {"carried": segment.carried, "elements": _elements(ports[1 + segment.carried :])}
        elif segment.kind == "Scan":
            self._attrs = {
                "states": segment.carried,
                "scans": segment.scan_inputs,
                "input_axes": segment.scan_input_axes,
                "input_reverse": segment.scan_input_directions,
                "output_axes": segment.scan_output_axes,
                "output_reverse": segment.scan_output_directions,
                "elements": _elements(ports[segment.carried :]),
            }

    def run(self, inputs: Sequence[Any], invoke: Invoke) -> tuple[Any, ...]:
        """The outputs; see `ControlSegment` for the wiring. None of them shares memory with the inputs.

        Raises:
            ExecutionError: values that do not fit each other.
        """

        def region(number: int) -> Callable[..., list[Any]]:
            return lambda *arguments: invoke(number, arguments)

        regions = [region(i) for i in range(len(self.segment.regions))]
        try:
            results = self._function(*inputs, regions=regions, **self._attrs)
        except Error:
            raise
        except Exception as error:
            raise ExecutionError(
                f"{', '.join(self.segment.origin) or self.segment.kind}: {self.segment.kind} failed "
                f"({type(error).__name__}: {error})"
            ) from error
        # Regions give new values; a state that no iteration has replaced is the input itself.
        return tuple(_own(r) if any(r is i for i in inputs) else r for r in results)


def _own(value: Any) -> Any:
    """A copy of an input that became a result."""
    if isinstance(value, np.ndarray):
        return np.array(value, order="C")
    return type(value)(_own(v) for v in value) if isinstance(value, list | tuple) else value


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
