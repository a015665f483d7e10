"""What a fusion means: its body run through the references, with fp32 (or fp64) between the operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from dovetail.core import dims
from dovetail.core.dims import Expr
from dovetail.core.dtypes import dtype
from dovetail.ir.graph import Graph, Node, Value
from dovetail.ops.registry import find
from dovetail.reference.registry import call

Array = np.ndarray[Any, Any]


def run_body(
    body: Graph,
    arrays: Sequence[Array],
    sizes: Mapping[str, int],
    wide: np.dtype[Any],
    override: Mapping[Node, Mapping[str, Any]] = MappingProxyType({}),
) -> tuple[Array, ...]:
    """The outputs of a fusion's body.

    Floats narrower than `wide` are widened on entry and after each operator, so that only the
    user's own casts and the stores round, as in a fused kernel. float64 for `wide` gives the exact
    result that a transformed algorithm is judged by.

    Args:
        arrays: one per body input.
        sizes: values of the symbols.
        override: attributes to use in place of a node's own.

    Raises:
        dovetail.Error, ValueError, IndexError …: a reference refused the values.
    """
    values: dict[Value, Array] = {
        value: _widened(np.asarray(array), wide) for value, array in zip(body.inputs, arrays, strict=True)
    }
    for node in body.nodes:
        inputs = [None if v is None else values[v] for v in node.inputs]
        if node.op == "Plugin":  # a user's function knows its own element types only
            inputs = [None if v is None else values[v].astype(v.tensor.dtype.numpy, copy=False) for v in node.inputs]
        results = call(node.op, inputs, {**attributes(node, sizes), **override.get(node, {})})
        for value, result in zip(node.outputs, results, strict=True):
            values[value] = _widened(np.asarray(result), wide)
    return tuple(values[v].astype(v.tensor.dtype.numpy, copy=False) if wide != np.float64 else values[v] for v in body.outputs)


def attributes(node: Node, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A node's attributes with defaults filled in and dims evaluated."""
    spec = find(node.op)
    given = {k: v for k, v in node.attrs.items() if k != "impure"}
    if spec is not None:
        given = spec.complete(given)
    return {k: _evaluated(v, sizes) for k, v in given.items()}


def _evaluated(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, Expr):
        return dims.evaluate(value, sizes)
    return tuple(_evaluated(v, sizes) for v in value) if isinstance(value, tuple) else value


def _widened(array: Array, wide: np.dtype[Any]) -> Array:
    kind = dtype(array.dtype)
    return array.astype(wide) if kind.is_float and kind.bits < 8 * wide.itemsize else array


def short(value: float) -> float:
    """Two significant digits: what changes from machine to machine stays out of what is recorded."""
    return float(f"{value:.2g}")


def relative_l2(got: Array, want: Array, scale: float | None = None) -> float:
    """||got - want|| / ||want||, or over `scale`; equal NaNs and infinities count as equal; inf if shapes differ.

    A difference from an all-zero tensor is measured against one unit per element.
    """
    if got.shape != want.shape:
        return float("inf")
    if got.size == 0:
        return 0.0
    if got.dtype == object or want.dtype == object:
        return float(np.mean(got != want))
    if np.array_equal(got, want):
        return 0.0
    # fp32 in, fp32 differences: they are exact enough for a magnitude, and twice as fast.
    kind = np.float32 if got.dtype == np.float32 == want.dtype else np.float64
    a: Array = np.asarray(got, kind)
    b: Array = np.asarray(want, kind)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return float("inf")
        a, b = a[finite], b[finite]
    difference = float(np.linalg.norm(np.subtract(a, b)))
    if difference == 0.0:
        return 0.0
    norm = float(np.linalg.norm(b)) if scale is None else scale
    return difference / norm if norm else difference / max(1.0, float(np.sqrt(a.size)))
