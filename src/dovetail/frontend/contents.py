"""Symbolic evaluation of small integer tensors: how shape arithmetic turns into dims at import.

Exporters compute shapes with tensors (Shape, Gather, Mul, Concat, …). The importer evaluates every node on the known
contents of its inputs, element by element, over dims; a result it cannot express is simply not known. Elements are ints
and `Dim`s for integer types, bools for bool, and floats or `Scaled` dims for float types (scaled sizes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from dovetail.core import dims
from dovetail.core.dims import Dim, Expr
from dovetail.core.dtypes import DType
from dovetail.core.errors import Error
from dovetail.ir.graph import Node
from dovetail.ir.types import TensorType
from dovetail.ops.registry import HOST, OpKind, find
from dovetail.reference.registry import call

Contents = np.ndarray[Any, Any]

MAX_ELEMENTS = 256
# Float vectors are shape arithmetic only when they are as short as a shape.
_MAX_FLOATS = 16
_INT64_LIMIT = 2**63


class _Unknown(Exception):
    """The result has no exact symbolic form."""


@dataclass(frozen=True)
class Scaled:
    """The float value numerator / denominator, exact for the sizes that occur."""

    numerator: Dim
    denominator: int


Element = Any  # int | Expr | bool | float | Scaled


def contents_of(node: Node, inputs: Sequence[Contents | None]) -> Contents | None:
    """The contents of the only output of `node`, or None where they are not known.

    Args:
        node: a node whose output type is inferred already.
        inputs: contents per input (None: not known, or absent).
    """
    type_ = node.output.type
    if not isinstance(type_, TensorType) or not isinstance(type_.size, int):
        return None
    limit = _MAX_FLOATS if type_.dtype.is_float else MAX_ELEMENTS
    if type_.size > limit or type_.dtype.kind not in ("int", "uint", "bool", "float"):
        return None
    if any(v is not None and c is None for v, c in zip(node.inputs, inputs, strict=True)):
        return None
    shape = tuple(int(d) for d in type_.shape if isinstance(d, int))
    if len(shape) != type_.rank:
        return None
    try:
        return _evaluate(node, inputs, type_.dtype).reshape(shape)
    except _Unknown:
        return None


def _evaluate(node: Node, inputs: Sequence[Contents | None], kind: DType) -> Contents:
    attrs = {k: v for k, v in node.attrs.items() if k not in ("symbols", "impure")}
    if node.op == "DimTensor":
        return _array(attrs["values"])
    if any(map(_is_symbolic, attrs.values())):
        raise _Unknown
    if not any(c is not None and any(isinstance(e, (Expr, Scaled)) for e in c.flat) for c in inputs):
        return _numeric(node, inputs, attrs)
    present = [c for c in inputs if c is not None]
    if node.op in _MOVED:
        return _move(node, inputs, attrs)
    if node.op == "Cast":
        return _map(lambda e: _cast(e, kind), present)
    if node.op in _POINTWISE:
        return _map(_POINTWISE[node.op], present)
    if node.op == "Mod":
        return _map(_mod, present)
    if node.op in _REDUCED:
        return _reduce(_REDUCED[node.op], present[0], attrs)
    if node.op == "CumSum" and not attrs.get("reverse") and not attrs.get("exclusive"):
        return _array(np.cumsum(present[0], axis=attrs["axis"]))
    raise _Unknown


def _is_symbolic(attribute: Any) -> bool:
    if isinstance(attribute, tuple):
        return any(map(_is_symbolic, attribute))
    return isinstance(attribute, Expr)


def _array(elements: Any) -> Contents:
    result = np.empty(np.shape(elements), object)
    result[...] = elements
    return result


def _numeric(node: Node, inputs: Sequence[Contents | None], attrs: Mapping[str, Any]) -> Contents:
    """All inputs are numbers: run the op's own reference on them."""
    spec = find(node.op)
    if spec is None or spec.impure or spec.kind in (HOST, OpKind.CONTROL) or "symbols" in spec.attributes:
        raise _Unknown
    arrays = [
        None if value is None or contents is None else contents.astype(value.tensor.dtype.numpy)
        for value, contents in zip(node.inputs, inputs, strict=True)
    ]
    try:
        with np.errstate(all="ignore"):
            (result,) = call(node.op, arrays, spec.complete(attrs))
    except Error:
        # Out-of-range indices and the like: the run reports them, in the words of that op.
        raise _Unknown from None
    return np.asarray(result).astype(object)


def _move(node: Node, inputs: Sequence[Contents | None], attrs: Mapping[str, Any]) -> Contents:
    """Ops that only copy elements run their reference on arrays of dims."""
    if attrs.get("reduction", "none") != "none" or attrs.get("mode", "constant") not in ("constant", "edge"):
        raise _Unknown
    spec = find(node.op)
    assert spec is not None
    arrays: list[Any] = []
    for position, contents in enumerate(inputs):
        if contents is not None and position in _INDEX_INPUTS.get(node.op, ()):
            if any(isinstance(e, (Expr, Scaled)) for e in contents.flat):
                raise _Unknown
            contents = contents.astype(np.int64)
        arrays.append(contents)
    try:
        (result,) = call(node.op, arrays, spec.complete(attrs))
    except Error:
        raise _Unknown from None
    return np.asarray(result, object)


# Ops that copy elements, and which of their inputs are positions instead of data.
_MOVED = frozenset({
    "Reshape", "Transpose", "Expand", "Concat", "Slice", "Tile", "Gather", "GatherElements", "GatherND",
    "ScatterElements", "ScatterND",
})  # fmt: skip
_INDEX_INPUTS = {
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "ScatterElements": (1,),
    "ScatterND": (1,),
}


def _map(function: Callable[..., Element], arrays: Sequence[Contents]) -> Contents:
    together = np.broadcast_arrays(*arrays)
    result = np.empty(together[0].shape, object)
    flat = result.reshape(-1)
    for i, elements in enumerate(zip(*(a.flat for a in together), strict=True)):
        flat[i] = function(*elements)
    return result


# ---------------------------------------------------------------------- elements
def _fraction(e: Element) -> tuple[Dim, int]:
    """A float-typed or integer element as numerator over denominator."""
    if isinstance(e, Scaled):
        return e.numerator, e.denominator
    if isinstance(e, float):
        if not math.isfinite(e):
            raise _Unknown
        exact = Fraction(e)
        if exact.denominator > 2**16 or abs(exact.numerator) >= 2**31:
            raise _Unknown
        return exact.numerator, exact.denominator
    return e, 1


def _scaled(numerator: Dim, denominator: int) -> Element:
    if isinstance(numerator, int):
        value = float(Fraction(numerator, denominator))
        if Fraction(value) != Fraction(numerator, denominator):
            raise _Unknown
        return value
    common = math.gcd(denominator, *(factor for _, factor in numerator.terms))
    return Scaled(dims.floor_div(numerator, common), denominator // common)


def _is_float(*elements: Element) -> bool:
    return any(isinstance(e, (float, Scaled)) for e in elements)


def _add(a: Element, b: Element) -> Element:
    if not _is_float(a, b):
        return a + b
    (an, ad), (bn, bd) = _fraction(a), _fraction(b)
    return _scaled(an * bd + bn * ad, ad * bd)


def _sub(a: Element, b: Element) -> Element:
    return _add(a, _neg(b))


def _neg(a: Element) -> Element:
    return Scaled(a.numerator * -1, a.denominator) if isinstance(a, Scaled) else a * -1


def _mul(a: Element, b: Element) -> Element:
    if not _is_float(a, b):
        return a * b
    (an, ad), (bn, bd) = _fraction(a), _fraction(b)
    return _scaled(an * bn, ad * bd)


def _div(a: Element, b: Element) -> Element:
    if not _is_float(a, b):
        if b == 0:
            raise _Unknown
        if isinstance(a, int) and isinstance(b, int):
            return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        # Integer division truncates; it is a floor division where nothing is negative.
        _require_non_negative(a)
        _require_non_negative(b)
        return dims.floor_div(a, b)
    (an, ad), (bn, bd) = _fraction(a), _fraction(b)
    if isinstance(bn, Expr):
        ratio = dims.floor_div(an, bn)
        if ratio * bn != an:  # an exact multiple only: N * 2 / N
            raise _Unknown
        return _scaled(ratio * bd, ad)
    if bn == 0:
        raise _Unknown
    sign = 1 if bn > 0 else -1
    return _scaled(an * (bd * sign), ad * abs(bn))


def _mod(a: Element, b: Element) -> Element:
    if _is_float(a, b) or b == 0:
        raise _Unknown
    if not (isinstance(b, int) and b > 0):
        _require_non_negative(b)
    _require_non_negative(a)
    return dims.remainder(a, b)


def _require_non_negative(d: Dim) -> None:
    low, _ = dims.bounds(d)
    if low is None or low < 0:
        raise _Unknown


def _difference(a: Element, b: Element) -> tuple[int | None, int | None]:
    """Bounds of a - b, scaled by a positive number."""
    (an, ad), (bn, bd) = _fraction(a), _fraction(b)
    return dims.bounds(an * bd - bn * ad)


def _equal(a: Element, b: Element) -> bool:
    if isinstance(a, bool) and isinstance(b, bool):
        return a == b
    low, high = _difference(a, b)
    if low == high == 0:
        return True
    if (low is not None and low > 0) or (high is not None and high < 0):
        return False
    raise _Unknown


def _less(a: Element, b: Element) -> bool:
    low, high = _difference(a, b)
    if high is not None and high < 0:
        return True
    if low is not None and low >= 0:
        return False
    raise _Unknown


def _less_or_equal(a: Element, b: Element) -> bool:
    return not _less(b, a)


def _extreme(function: Callable[[Dim, Dim], Dim]) -> Callable[[Element, Element], Element]:
    def choose(a: Element, b: Element) -> Element:
        if not _is_float(a, b):
            return function(a, b)
        (an, ad), (bn, bd) = _fraction(a), _fraction(b)
        return _scaled(function(an * bd, bn * ad), ad * bd)

    return choose


def _where(condition: Element, a: Element, b: Element) -> Element:
    return a if condition else b


def _abs(a: Element) -> Element:
    numerator, _ = _fraction(a)
    low, high = dims.bounds(numerator)
    if low is not None and low >= 0:
        return a
    if high is not None and high <= 0:
        return _neg(a)
    raise _Unknown


def _sign(a: Element) -> Element:
    low, high = dims.bounds(_fraction(a)[0])
    if low is not None and low > 0:
        return 1
    if high is not None and high < 0:
        return -1
    raise _Unknown


def _floor(a: Element) -> Element:
    numerator, denominator = _fraction(a)
    return _scaled(dims.floor_div(numerator, denominator), 1)


def _ceil(a: Element) -> Element:
    numerator, denominator = _fraction(a)
    return _scaled(dims.ceil_div(numerator, denominator), 1)


def _round(a: Element) -> Element:
    if _fraction(a)[1] != 1:
        raise _Unknown  # ties go to even, which floor division cannot say
    return a


def _pow(a: Element, b: Element) -> Element:
    if not isinstance(b, (int, float)) or b != int(b) or not 0 <= b <= 4:
        raise _Unknown
    result: Element = 1.0 if _is_float(a) else 1
    for _ in range(int(b)):
        result = _mul(result, a)
    return result


def _cast(e: Element, to: DType) -> Element:
    if to.is_float:
        if to.bits < 32:
            raise _Unknown  # sizes above 2048 would round
        return _scaled(*_fraction(e)) if not isinstance(e, bool) else float(e)
    if to.kind == "bool":
        return not _equal(e, 0)
    numerator, denominator = _fraction(e)
    if denominator != 1:
        _require_non_negative(numerator)
        numerator = dims.floor_div(numerator, denominator)
    if isinstance(numerator, int) and not -(2 ** (to.bits - 1)) <= numerator < 2 ** (to.bits - (to.kind == "int")):
        raise _Unknown
    return numerator


_POINTWISE: dict[str, Callable[..., Element]] = {
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "Neg": _neg,
    "Abs": _abs,
    "Sign": _sign,
    "Floor": _floor,
    "Ceil": _ceil,
    "Round": _round,
    "Pow": _pow,
    "Max": _extreme(dims.maximum),
    "Min": _extreme(dims.minimum),
    "Equal": _equal,
    "Less": _less,
    "LessOrEqual": _less_or_equal,
    "Greater": lambda a, b: _less(b, a),
    "GreaterOrEqual": lambda a, b: not _less(a, b),
    "Where": _where,
    "Identity": lambda e: e,
}

_REDUCED: dict[str, Callable[[Element, Element], Element]] = {
    "ReduceSum": _add,
    "ReduceProd": _mul,
    "ReduceMax": _extreme(dims.maximum),
    "ReduceMin": _extreme(dims.minimum),
}


def _reduce(function: Callable[[Element, Element], Element], x: Contents, attrs: Mapping[str, Any]) -> Contents:
    axes = attrs.get("axes")
    axes = tuple(range(x.ndim)) if axes is None else tuple(axes)
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    rows = x.transpose(*kept, *axes).reshape(*(x.shape[axis] for axis in kept), -1)
    if rows.shape[-1] == 0:
        raise _Unknown
    result = rows[..., 0]
    for i in range(1, rows.shape[-1]):
        result = _map(function, [np.asarray(result, object), rows[..., i]])
    return np.asarray(result, object)
