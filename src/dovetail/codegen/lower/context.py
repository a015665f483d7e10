"""The lowering context: what a lowering function asks for, and the table of lowering functions.

A lowering is pulled from an output element: `fn(ctx, node, index)` returns the expression of that element,
asking `ctx.load(value, index)` for elements of its operands. Producers inside the fusion body are
inlined; body inputs become loads. Everything is memoised, so an element is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from dovetail.codegen.index import Ranges
from dovetail.codegen.loop_ir import (
    Axis,
    Buffer,
    Expr,
    Load,
    Row,
    Scope,
    compute_dtype,
    index_value,
    load,
    reduce,
    row,
    row_ref,
)
from dovetail.core.dims import Dim, minimum
from dovetail.core.dtypes import DType
from dovetail.ir.graph import Node, Value

Index = tuple[Dim, ...]
Lowering = Callable[["Context", Node, Index], Expr]
T = TypeVar("T")

_lowerings: dict[str, Lowering] = {}


class NotLowerable(Exception):
    """A node has no loop-IR form; the message is the reason. Never leaves this package."""


def lowering(*names: str) -> Callable[[Lowering], Lowering]:
    """Register the lowering function of the ops `names`."""

    def register(function: Lowering) -> Lowering:
        for name in names:
            if name in _lowerings:
                raise ValueError(f"lowering: op {name!r} is registered twice; remove one of them")
            _lowerings[name] = function
        return function

    return register


def find_lowering(op: str) -> Lowering | None:
    """The lowering function of an op, if there is one."""
    return _lowerings.get(op)


class RowHandle:
    """A local array that lowerings index like an array: `row[k]`."""

    def __init__(self, scope: Scope, source: Row) -> None:
        self._scope, self._source = scope, source

    def __getitem__(self, index: Dim | Index) -> Expr:
        return row_ref(self._scope, self._source, index if isinstance(index, tuple) else (index,))


class Context:
    """Lowers one fusion body into one scope."""

    def __init__(self, scope: Scope, buffers: Mapping[Value, Buffer]) -> None:
        self.scope = scope
        self._buffers = buffers
        self._memo: dict[tuple[object, ...], object] = {}
        self._guards: Index = ()

    # ------------------------------------------------------------------ elements
    def load(self, value: Value, index: Sequence[Dim]) -> Expr:
        """The element of `value` at a logical index, in its compute dtype."""
        at = tuple(self.simplify(i) for i in index)
        assert len(at) == value.tensor.rank, f"{value!r} at {at}"
        return self.once(("load", value, at, self._guards), lambda: self._load(value, at))

    def _load(self, value: Value, index: Index) -> Expr:
        buffer = self._buffers.get(value)
        if buffer is not None:
            return load(self.scope, buffer, buffer.offset(index), self._guards)
        node = value.producer
        if node is None:
            raise NotLowerable(f"{value.name} is not an operand of the kernel")
        function = find_lowering(node.op)
        if function is None:
            raise NotLowerable(f"{node.op} has no loop form")
        return function(self, node, index)

    def operand(self, node: Node, position: int, index: Sequence[Dim]) -> Expr:
        """The element of an operand that broadcasts to the node's output at `index`."""
        value = node.input(position)
        return self.load(value, self.broadcast(value, index, node.outputs[0].tensor.shape))

    def broadcast(self, value: Value, index: Sequence[Dim], shape: Sequence[Dim]) -> Index:
        """The index into `value` for an index into the shape that it broadcasts to."""
        own = value.tensor.shape
        skip = len(index) - len(own)
        return tuple(
            broadcast_index(i, mine, full)
            for i, mine, full in zip(index[skip:], own, shape[skip:], strict=True)
        )

    def value_dtype(self, value: Value) -> DType:
        """The compute dtype of a value."""
        return compute_dtype(value.tensor.dtype)

    # ------------------------------------------------------------------ indices
    def simplify(self, d: Dim) -> Dim:
        """An index with divisions and remainders folded where the axes' extents allow it."""
        return d if isinstance(d, int) else Ranges(self.scope.extents).simplify(d)

    def always(self, d: Dim) -> bool:
        """Whether d >= 0 at every point."""
        return Ranges(self.scope.extents).non_negative(self.simplify(d))

    def never(self, d: Dim) -> bool:
        """Whether d < 0 at every point."""
        return Ranges(self.scope.extents).negative(self.simplify(d))

    def index(self, d: Dim) -> Expr:
        """An index as an int64 value."""
        return index_value(self.scope, self.simplify(d))

    def data(self, value: Expr) -> Dim:
        """An integer value read from memory as an index."""
        return self.scope.data(value)

    # ------------------------------------------------------------------ structure
    def once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """`make()`, the first time that this key is asked for."""
        if key not in self._memo:
            self._memo[key] = make()
        result: T = self._memo[key]  # type: ignore[assignment]
        return result

    def guarded(self, guards: Sequence[Dim], make: Callable[[], T]) -> T:
        """`make()` with loads that touch memory only where all guards are >= 0."""
        saved = self._guards
        new = [g for g in guards if not self.always(g) and g not in saved]
        self._guards = (*saved, *new)
        try:
            return make()
        finally:
            self._guards = saved

    def reduce(
        self,
        kind: str,
        extents: Sequence[Dim],
        value: Callable[..., Expr],
        where: Callable[..., Sequence[Dim]] | None = None,
    ) -> Expr:
        """Reduce `value(*indices)` over `extents`, where all Dims of `where(*indices)` are >= 0."""
        axes = tuple(self.scope.axis(e) for e in extents)
        at = [a.index for a in axes]
        if where is None:
            return reduce(self.scope, kind, axes, value(*at))
        conditions = tuple(g for g in where(*at) if not self.always(g))
        body = self.guarded(conditions, lambda: value(*at))
        return reduce(self.scope, kind, axes, body, conditions)

    def row(
        self, extents: Sequence[Dim], value: Callable[..., Expr], scan: bool = False
    ) -> RowHandle:
        """A local array of `value(*indices)`, computed once; with `scan`, its running sums."""
        axes: tuple[Axis, ...] = tuple(self.scope.axis(e) for e in extents)
        return RowHandle(self.scope, row(axes, value(*(a.index for a in axes)), scan))

    def reusable(
        self, extents: Sequence[Dim], value: Callable[..., Expr]
    ) -> Callable[..., Expr]:
        """`value` itself if it only loads, else a view of a row that holds its elements.

        For operands that several stages read: a fused producer is then computed once per element.
        """
        axes = tuple(self.scope.axis(e) for e in extents)
        element = value(*(a.index for a in axes))
        if isinstance(element, Load):
            return value
        handle = RowHandle(self.scope, row(axes, element))
        return lambda *at: handle[tuple(at)]


def broadcast_index(index: Dim, own: Dim, full: Dim) -> Dim:
    """The index on an axis of extent `own` that broadcasts to extent `full`."""
    if own == full:
        return index
    if own == 1:
        return 0
    if isinstance(own, int):
        return index
    # Either equal to the full extent or 1; which one is known at run time only.
    return minimum(index, own - 1)
