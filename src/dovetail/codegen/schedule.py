"""Loop transformations on a nest before it is printed, and the choice of its vector axis.

`normalise` drops axes of extent 1, folds index arithmetic, splits axes so that divisions by constants
disappear, and merges neighbouring axes that every access walks contiguously: a pointwise nest over
four dense axes becomes one loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dovetail.codegen.index import Ranges, coefficient
from dovetail.codegen.loop_ir import (
    Axis,
    Call,
    Expr,
    Load,
    LoopKernel,
    Nest,
    Reduce,
    Rewriter,
    Row,
    Scope,
    Store,
    dims_of,
    load,
    reduce,
    walk,
)
from dovetail.core.dims import Dim, Symbol, product, substitute, symbols
from dovetail.core.dims import Expr as DimExpr


def normalise(nest: Nest, scope: Scope) -> Nest:
    """The same computation over simpler loops."""
    nest = _drop_unit_axes(nest, scope)
    nest = _simplify(nest, scope)
    for _ in range(8):
        split = _split_once(nest, scope)
        if split is None:
            break
        nest = _simplify(_drop_unit_axes(split, scope), scope)
    nest = _order_reductions(nest, scope)
    while (merged := _merge_once(nest, scope)) is not None:
        nest = merged
    return nest


def roots(nest: Nest) -> tuple[Expr, ...]:
    """The stored values."""
    return tuple(s.value for s in nest.stores)


def expressions(nest: Nest, scope: Scope) -> Iterator[Expr]:
    """Every expression that the nest computes, also through integers read from memory in store offsets."""
    extra = [scope.values[n] for s in nest.stores for n in sorted(_data_names(s.offset))]
    return walk([*roots(nest), *extra], scope)


def _data_names(d: Dim) -> set[str]:
    return {n for n in symbols(d) if n[0] == "#"}


def all_axes(nest: Nest, scope: Scope) -> list[Axis]:
    """The axes of the nest and of everything inside it."""
    axes = dict.fromkeys(nest.axes)
    for e in expressions(nest, scope):
        if isinstance(e, (Reduce, Row)):
            axes.update(dict.fromkeys(e.axes))
    return list(axes)


def cost(kernel: LoopKernel) -> tuple[Dim, Dim]:
    """(arithmetic operations, bytes of memory traffic) of one call, as estimates."""
    flops: Dim = 0
    for nest in kernel.nests:
        extents = {a.name: a.extent for a in all_axes(nest, kernel.scope)}
        for e in expressions(nest, kernel.scope):
            if isinstance(e, (Call, Reduce)):
                inner = e.axes if isinstance(e, Reduce) else ()
                points = product(extents[n] for n in sorted(e.free) if n in extents)
                flops = flops + points * product(a.extent for a in inner)
    traffic: Dim = 0
    for b in kernel.buffers:
        # A broadcast operand (stride 0) is read once.
        sizes = [n for n, s in zip(b.shape, b.strides, strict=True) if s != 0]
        traffic = traffic + product(sizes) * b.dtype.itemsize
    return flops, traffic


def _all_dims(nest: Nest, scope: Scope) -> list[Dim]:
    found: dict[Dim, None] = {}
    for store in nest.stores:
        found[store.offset] = None
    for e in expressions(nest, scope):
        found.update(dict.fromkeys(dims_of(e)))
    return list(found)


def _rewrite(nest: Nest, rewriter: Rewriter, axes: tuple[Axis, ...]) -> Nest:
    stores = tuple(Store(s.buffer, rewriter.dim(s.offset), rewriter(s.value)) for s in nest.stores)
    return Nest(axes, stores)


def _drop_unit_axes(nest: Nest, scope: Scope) -> Nest:
    rows = {a for e in expressions(nest, scope) if isinstance(e, Row) for a in e.axes}
    unit: dict[str, Dim] = {
        a.name: 0 for a in all_axes(nest, scope) if a.extent == 1 and a not in rows
    }
    if not unit:
        return nest

    def keep(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(a for a in axes if a.name not in unit)

    rewriter = Rewriter(scope, lambda d: substitute(d, unit), keep)
    return _rewrite(nest, rewriter, keep(nest.axes))


def _simplify(nest: Nest, scope: Scope) -> Nest:
    ranges = Ranges({a.name: a.extent for a in all_axes(nest, scope)})
    rewriter = _Simplifier(scope, ranges)
    return _rewrite(nest, rewriter, nest.axes)


class _Simplifier(Rewriter):
    """Simplifies indices and drops guards that always hold."""

    def __init__(self, scope: Scope, ranges: Ranges) -> None:
        super().__init__(scope, ranges.simplify)
        self.ranges = ranges

    def _rebuild(self, e: Expr) -> Expr:
        if isinstance(e, Load) and e.guards:
            return load(self.scope, e.buffer, self.dim(e.offset), self._guards(e.guards))
        if isinstance(e, Reduce) and e.where:
            return reduce(self.scope, e.kind, e.axes, self(e.value), self._guards(e.where))
        return super()._rebuild(e)

    def _guards(self, guards: tuple[Dim, ...]) -> tuple[Dim, ...]:
        simple = [self.dim(g) for g in guards]
        return tuple(g for g in simple if not self.ranges.non_negative(g))


def _split_once(nest: Nest, scope: Scope) -> Nest | None:
    """Split one axis `i` of extent q*D that appears as i // D or i % D into (i / D, i % D)."""
    axes = {a.name: a for a in all_axes(nest, scope)}
    rows = {a.name for e in expressions(nest, scope) if isinstance(e, Row) for a in e.axes}
    for d in _all_dims(nest, scope):
        found = _division(d, axes, rows)
        if found is not None:
            axis, divisor = found
            assert isinstance(axis.extent, int)
            high, low = scope.axis(axis.extent // divisor), scope.axis(divisor)
            index: dict[str, Dim] = {axis.name: high.index * divisor + low.index}

            def replace(
                given: tuple[Axis, ...], axis: Axis = axis, pair: tuple[Axis, ...] = (high, low)
            ) -> tuple[Axis, ...]:
                return tuple(x for a in given for x in (pair if a == axis else (a,)))

            def dim(d: Dim, index: dict[str, Dim] = index) -> Dim:
                return substitute(d, index)

            return _rewrite(nest, Rewriter(scope, dim, replace), replace(nest.axes))
    return None


def _division(d: Dim, axes: dict[str, Axis], rows: set[str]) -> tuple[Axis, int] | None:
    if isinstance(d, int):
        return None
    for monomial, _ in d.terms:
        for atom in monomial:
            if isinstance(atom, Symbol):
                continue
            a, b = atom.args
            if atom.op in ("//", "%") and isinstance(b, int) and b > 1 and isinstance(a, DimExpr):
                name = _lone_symbol(a)
                axis = axes.get(name) if name and name not in rows else None
                if axis and isinstance(axis.extent, int) and axis.extent % b == 0 and axis.extent > b:
                    return axis, b
            inner = _division(a, axes, rows) or _division(b, axes, rows)
            if inner:
                return inner
    return None


def _lone_symbol(d: DimExpr) -> str | None:
    if len(d.terms) == 1 and d.terms[0][1] == 1 and len(d.terms[0][0]) == 1:
        atom = d.terms[0][0][0]
        return atom.name if isinstance(atom, Symbol) else None
    return None


def _magnitude(stride: Dim | None) -> int:
    """A sort key for strides: unknown ones count as large, absent ones as largest."""
    if stride is None or not isinstance(stride, int):
        return 1 << 40
    return abs(stride) or 1 << 50


def _order_reductions(nest: Nest, scope: Scope) -> Nest:
    loads = [e for e in expressions(nest, scope) if isinstance(e, Load)]

    def order(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        def key(axis: Axis) -> int:
            steps = [_magnitude(coefficient(x.offset, axis.name)) for x in loads]
            return -min(steps, default=0)

        return tuple(sorted(axes, key=key))

    changed = any(
        order(e.axes) != e.axes for e in expressions(nest, scope) if isinstance(e, Reduce)
    )
    if not changed:
        return nest
    rows = {e.axes for e in expressions(nest, scope) if isinstance(e, Row)}
    return _rewrite(nest, Rewriter(scope, lambda d: d, lambda a: a if a in rows else order(a)), nest.axes)


def _merge_once(nest: Nest, scope: Scope) -> Nest | None:
    groups = [nest.axes]
    groups += [e.axes for e in expressions(nest, scope) if isinstance(e, Reduce)]
    dims = _all_dims(nest, scope)
    for group in groups:
        for outer, inner in itertools.pairwise(group):
            if all(_contiguous(d, outer, inner) for d in dims):
                merged = scope.axis(outer.extent * inner.extent)
                index: dict[str, Dim] = {outer.name: 0, inner.name: merged.index}

                def replace(
                    given: tuple[Axis, ...], pair: tuple[Axis, Axis] = (outer, inner), new: Axis = merged
                ) -> tuple[Axis, ...]:
                    if pair[0] not in given:
                        return given
                    return tuple(new if a == pair[0] else a for a in given if a != pair[1])

                def dim(d: Dim, index: dict[str, Dim] = index) -> Dim:
                    return substitute(d, index)

                return _rewrite(nest, Rewriter(scope, dim, replace), replace(nest.axes))
    return None


def _contiguous(d: Dim, outer: Axis, inner: Axis) -> bool:
    a, b = coefficient(d, outer.name), coefficient(d, inner.name)
    return a is not None and b is not None and a == b * inner.extent


@dataclass(frozen=True)
class Schedule:
    """How a nest is executed.

    Attributes:
        outer: the axes around the vector axis, in loop order.
        vector: the innermost axis whose points are computed side by side; None if rows of a
            reduction are walked one by one.
        tile: an outer axis to walk in blocks together with the vector axis, because some access is
            contiguous along it (transposes).
        lanes: whether reductions or rows depend on the vector axis: they become arrays over a
            block of it.
        depth: how many outer axes are outside the block of the vector axis; the rest are inside.
        parallel: how many of the outer axes are shared out among threads.
        split_vector: whether blocks of the vector axis are shared out too.
    """

    outer: tuple[Axis, ...]
    vector: Axis | None
    tile: Axis | None
    lanes: bool
    depth: int
    parallel: int
    split_vector: bool


def schedule(nest: Nest, scope: Scope) -> Schedule:
    """Choose the execution of a normalised nest.

    A reduction or row must not stand inside a loop that it does not depend on, and is never shared
    between threads: the loops that some reduction needs go outside, and only those are parallel.
    """
    heavy = [e for e in expressions(nest, scope) if isinstance(e, (Reduce, Row))]
    vector = _vector_axis(nest, heavy, scope)
    outer = [a for a in nest.axes if a != vector]
    outer.sort(key=lambda a: -sum(a.name in e.free for e in heavy))
    position = {a.name: i + 1 for i, a in enumerate(outer)}

    def level(e: Expr) -> int:
        return max((position.get(n, 0) for n in e.free), default=0)

    laned = [e for e in heavy if vector is not None and vector.name in e.free]
    hoisted = [e for e in heavy if e not in laned and not is_table(e, scope)]
    depth = min((level(e) for e in laned), default=len(outer))
    parallel = min([depth, *(level(e) for e in hoisted)])
    split_vector = vector is not None and parallel == depth and not hoisted
    tile = _tile_axis(nest, vector, scope) if split_vector and not laned and vector else None
    return Schedule(tuple(outer), vector, tile, bool(laned), depth, parallel, split_vector)


def is_table(e: Expr, scope: Scope) -> bool:
    """Whether e is a row of numbers that depend on nothing but the shapes: every thread makes its own."""
    if not isinstance(e, Row) or e.free:
        return False
    return not any(isinstance(x, (Load, Reduce)) for x in walk([e], scope))


def _loads(exprs: Iterable[Expr], scope: Scope) -> list[Load]:
    return [e for e in walk(exprs, scope) if isinstance(e, Load)]


def _vector_axis(nest: Nest, heavy: Sequence[Reduce | Row], scope: Scope) -> Axis | None:
    if not nest.axes:
        return None
    axis = nest.axes[-1]
    dependent = [e for e in heavy if axis.name in e.free]
    if not dependent:
        return axis
    along_axis = along_rows = 0
    for e in dependent:
        if isinstance(e, Row) and e.scan:
            along_rows += 1
        for x in _loads([e.value], scope):
            step = coefficient(x.offset, axis.name)
            inner = [coefficient(x.offset, a.name) for a in e.axes]
            if step == 1 or (isinstance(step, int) and 1 < step <= 8 and _is_window(e)):
                along_axis += 2
            elif 1 in inner and step != 0:
                along_rows += 2
    return axis if along_axis >= along_rows and along_axis else None


def _is_window(e: Reduce | Row) -> bool:
    """Whether a reduction is so short that its neighbours are better computed side by side."""
    size = product(a.extent for a in e.axes)
    return isinstance(e, Reduce) and isinstance(size, int) and size <= 128


def _tile_axis(nest: Nest, vector: Axis, scope: Scope) -> Axis | None:
    for x in _loads(roots(nest), scope):
        if coefficient(x.offset, vector.name) not in (0, 1):
            for axis in nest.axes[:-1]:
                if coefficient(x.offset, axis.name) == 1:
                    return axis
    return None
