"""If, Loop and Scan: ops with isolated regions, whose result types come from those regions.

A region may mention the symbols of the graph around it; symbols it defines itself do not leave it, so an extent that
depends on them becomes a fresh symbol of the control node (attribute `symbols`), read off the result.
"""

from __future__ import annotations

from typing import NoReturn

from dovetail.core.dims import Dim
from dovetail.core.dtypes import DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import Type
from dovetail.ops.registry import CONTROL, op

ElementTypes = tuple[tuple[DType, tuple[Dim, ...]], ...]


def _from_regions(name: str) -> NoReturn:
    raise TypeInferenceError(
        f"{name}: result types, got input types only, expected them to come from the regions; "
        "give `types` to Graph.add"
    )


@op("If", CONTROL)
def if_(condition: Type, *captures: Type | None, symbols: tuple[str, ...] = ()) -> tuple[Type, ...]:
    """Results of the first region if the bool scalar `condition` holds, else of the second. ONNX If-25.

    Both regions take exactly the captures.
    """
    _from_regions("If")


@op("Loop", CONTROL)
def loop(
    trip_count: Type | None,
    condition: Type | None,
    *values: Type | None,
    carried: int,
    elements: ElementTypes = (),
    symbols: tuple[str, ...] = (),
) -> tuple[Type, ...]:
    """Run the region while its first result holds, at most `trip_count` times. ONNX Loop-25.

    `values` are the `carried` initial values, then captures. Region: (i64 iteration, bool, *carried, *captures) ->
    (bool, *carried, *scan elements). Results: last carried values, then the elements stacked on a new first axis.
    `elements` gives dtype and extents of each scan element, for a loop that never runs.
    """
    _from_regions("Loop")


@op("Scan", CONTROL)
def scan(
    *values: Type | None,
    states: int,
    scans: int,
    input_axes: tuple[int, ...],
    input_reverse: tuple[bool, ...],
    output_axes: tuple[int, ...],
    output_reverse: tuple[bool, ...],
    elements: ElementTypes = (),
    symbols: tuple[str, ...] = (),
) -> tuple[Type, ...]:
    """Run the region for each slice of the scanned inputs, threading the states through. ONNX Scan-25.

    `values` are `states` initial values, `scans` scanned inputs (axis and direction each), then captures. Region:
    (*states, *slices, *captures) -> (*states, *scan elements). Results: last states, then the elements stacked along
    `output_axes`, reversed where `output_reverse`.
    """
    _from_regions("Scan")
