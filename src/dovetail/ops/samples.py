"""Seeded inputs for checks and measurements: shapes from symbols, values that the operators accept."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.core import dims
from dovetail.core.dims import Dim, Expr
from dovetail.core.dtypes import DType
from dovetail.core.errors import ShapeError
from dovetail.ir.graph import Graph, Node, Value
from dovetail.ir.types import TensorType

Array = np.ndarray[Any, Any]
Bounds = Mapping[str, Sequence[int | None]]

# Sizes to try for free symbols: distinct odd ones first, then what strides and windows divide.
_UNIFORM = (4, 8, 16, 32, 64, 128, 224, 1, 2, 256)
_DISTINCT = (2, 3, 5, 7, 6, 9, 10, 11, 12, 13)
# Operators that take positions: (position of the indices, attribute with the axis of the table).
_INDEXED = {"Gather": 1, "GatherElements": 1, "ScatterElements": 1}
# Sequence lengths count steps of the first input, time-major.
_INDEXED |= {"LSTM": 4, "GRU": 4, "RNN": 4}
# Operators that hand integers on unchanged.
_CARRIERS = frozenset({"Cast", "Reshape", "Transpose", "Copy", "Slice", "Expand", "Concat"})
_MAX_INTEGER = 100
# Prime, so that no axis of an operand has a period in common with it.
_POOL = 1_048_573


def free_symbols(types: Iterable[object]) -> list[str]:
    """Symbols of the shapes, sorted."""
    found: set[str] = set()
    for type_ in types:
        if isinstance(type_, TensorType):
            for d in type_.shape:
                found |= dims.symbols(d)
    return sorted(found)


def sizes_to_try(symbols: Sequence[str], bounds: Bounds) -> Iterator[dict[str, int]]:
    """Assignments of sizes to symbols, best first: the declared optimum, distinct sizes, equal sizes."""
    if not symbols:
        yield {}
        return
    seen: set[tuple[int, ...]] = set()
    optimum = {s: int(b[2]) for s in symbols if len(b := bounds.get(s, ())) > 2 and b[2]}
    distinct = dict(zip(symbols, itertools.cycle(_DISTINCT)))
    uniform = [dict.fromkeys(symbols, size) for size in _UNIFORM]
    for base in (distinct, *uniform):
        for wanted in ({**base, **optimum}, base):
            sizes = {s: _clip(v, bounds.get(s, ())) for s, v in wanted.items()}
            key = tuple(sizes.values())
            if key not in seen:
                seen.add(key)
                yield sizes


def _clip(size: int, bound: Sequence[int | None]) -> int:
    low = bound[0] if len(bound) > 0 else None
    high = bound[1] if len(bound) > 1 else None
    size = size if low is None else max(low, size)
    return size if high is None else min(high, size)


def shape_of(shape: Iterable[Dim], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape with sizes put in."""
    return tuple(dims.evaluate(d, sizes) if isinstance(d, Expr) else d for d in shape)


def sample(
    dtype: DType, shape: Sequence[int], rng: np.random.Generator, *, limit: int = 2, kind: str = "normal"
) -> Array:
    """Values of a dtype: floats by `kind`, integers in [0, limit), mixed booleans, short strings.

    Args:
        kind: "normal", "positive" (uniform in 0.5 to 1.5) or "heavy" (Student's t, four degrees).
    """
    if dtype.is_float:
        values = _floats(tuple(shape), rng, kind)
        return values.astype(dtype.numpy, copy=False)
    if dtype.kind == "bool":
        return np.asarray(rng.integers(0, 2, shape)).astype(np.bool_)
    if dtype.kind == "string":
        return np.asarray(rng.integers(0, 10, shape)).astype(str).astype(object)
    top = min(limit, 2 ** (dtype.bits - 1) - 1 or 1)
    return np.asarray(rng.integers(0, max(1, top), shape)).astype(dtype.numpy)


@functools.lru_cache(maxsize=4)
def _pool(kind: str) -> Array:
    rng = np.random.default_rng(0)
    if kind == "positive":
        return rng.random(_POOL, np.float32) + np.float32(0.5)
    if kind == "heavy":
        return rng.standard_t(4, _POOL).astype(np.float32)
    return rng.standard_normal(_POOL, np.float32)


def _floats(shape: tuple[int, ...], rng: np.random.Generator, kind: str) -> Array:
    """Numbers out of a fixed pool from a random start; drawing each afresh would take longer than the check."""
    count = math.prod(shape)
    start = int(rng.integers(_POOL))
    return np.resize(_pool(kind), start + count)[start:].reshape(shape)


def integer_limit(value: Value, sizes: Mapping[str, int]) -> int:
    """The first integer that the readers of a value cannot take: the size of the smallest table it indexes.

    2 where nothing tells: small enough for most purposes.
    """
    found = _limits(value, sizes, set())
    return min(min(found), _MAX_INTEGER) if found else 2


def _positions(node: Node, position: int) -> Dim | None:
    """How many positions or lengths an input of an operator may name; None where it names none."""
    first_input = node.inputs[0] if node.inputs else None  # a Loop may have none
    shape = first_input.type.shape if first_input is not None and isinstance(first_input.type, TensorType) else ()
    if _INDEXED.get(node.op) == position:
        return shape[int(node.attrs.get("axis", 0))]
    if node.op in ("GatherND", "ScatterND") and position == 1:
        first, width = int(node.attrs.get("batch_dims", 0)), node.input(1).tensor.shape[-1]
        named = shape[first : first + width] if isinstance(width, int) else ()
        return functools.reduce(dims.minimum, named) if named else None
    if node.op == "Attention" and position == 4:
        keys = node.input(1).tensor
        return keys.shape[-2] + 1
    if node.op == "SuppressionTable" and position == 2:
        return node.input(1).tensor.shape[2]
    return None


def _limits(value: Value, sizes: Mapping[str, int], seen: set[Value]) -> list[int]:
    if value in seen:
        return []
    seen.add(value)
    found: list[int] = []
    for node, position in value.uses:
        size = _positions(node, position)
        if size is not None:
            try:
                found.append(max(1, dims.evaluate(size, sizes)))
            except ShapeError:
                found.append(1)
        elif node.op == "Fusion":
            found += _limits(node.regions[0].inputs[position], sizes, seen)
        elif node.op in _CARRIERS and node.outputs:
            found += _limits(node.outputs[0], sizes, seen)
    return found


def graph_inputs(graph: Graph, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Array]:
    """One seeded array per tensor input of a graph, by name."""
    feeds: dict[str, Array] = {}
    for value in graph.inputs:
        if isinstance(value.type, TensorType):
            limit = integer_limit(value, sizes)
            feeds[value.name] = sample(value.type.dtype, shape_of(value.type.shape, sizes), rng, limit=limit)
    return feeds
