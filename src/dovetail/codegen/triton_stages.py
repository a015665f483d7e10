"""Cuts loop kernels into stages where few results are reduced from much: one multiprocessor would compute each alone.

    stages, temps = split(kernel, multiprocessors)

A stage computes partial results of such reductions into a temporary buffer, shared out over many programs; what follows reads them
in place of the reduction and combines them in a fixed order. Reductions that read other ones (a variance) take a stage each.
"""

from __future__ import annotations

from collections.abc import Iterable

from dovetail.codegen.index import Ranges, power_of_two
from dovetail.codegen.loop_ir import (
    Buffer,
    Expr,
    Load,
    LoopKernel,
    Nest,
    Reduce,
    Rewriter,
    Row,
    Scope,
    Store,
    load,
    reduce,
    walk,
)
from dovetail.codegen.lower.context import NotLowerable
from dovetail.codegen.schedule import expressions
from dovetail.codegen.triton_schedule import (
    CHEAP,
    at_least,
    lane_reductions,
    number,
    plan_nest,
    prepared,
    total_of,
)
from dovetail.core.dims import Dim, ceil_div, floor_div, product, remainder, substitute

LEAST = 2048
"""Elements that a program of a stage reduces at least."""
_STEP = 64
WORTH = 48 * 1024
"""Elements that one program alone must have to reduce before another launch is worth it."""
MOST_PARTS = 128
"""Parts of one reduction at most: whatever reads it combines them anew."""


def split(kernel: LoopKernel, multiprocessors: int, least: int | None = WORTH) -> tuple[list[LoopKernel], list[Dim]]:
    """(kernels to run one after the other, bytes of the temporary buffers between them).

    The last kernel has the results of the given one. `least` elements of one program are worth a stage; None: it stays whole.
    """
    scope = kernel.scope
    if least is None or not any(isinstance(e, Reduce) for nest in kernel.nests for e in expressions(nest, scope)):
        return [kernel], []
    nests = [prepared(nest, scope) for nest in kernel.nests]
    stages: list[LoopKernel] = []
    temps: list[Buffer] = []
    while True:
        partial: list[Nest] = []
        for position, nest in enumerate(nests):
            parts = _parts(nest, scope, multiprocessors, least)
            if parts is None:
                continue
            found, count = parts
            replaced: dict[Expr, Expr] = {}
            for e in found:
                stage, replaced[e] = _staged(e, count, nest, scope, len(temps))
                temps.append(stage.stores[0].buffer)
                partial.append(stage)
            rewriter = _Replacing(scope, replaced)
            stores = tuple(Store(s.buffer, rewriter.dim(s.offset), rewriter(s.value)) for s in nest.stores)
            nests[position] = Nest(nest.axes, stores)
        if not partial:
            break
        stages.append(LoopKernel(_buffers(kernel, partial, scope), tuple(partial), scope))
    if not stages:
        return [kernel], []
    stages.append(LoopKernel(_buffers(kernel, nests, scope), tuple(nests), scope))
    return stages, [product(t.shape) * t.dtype.itemsize for t in temps]


def _parts(nest: Nest, scope: Scope, multiprocessors: int, least: int) -> tuple[list[Reduce], int] | None:
    """(the first reductions to be cut, into how many parts); None if the nest has enough programs as it is."""
    lanes = lane_reductions(nest, scope)
    if not lanes or any(isinstance(e, Row) for e in expressions(nest, scope)):
        return None
    try:
        plan = plan_nest(nest, scope, multiprocessors)
    except NotLowerable:
        return None
    (size,) = plan.block
    programs = -(-at_least(total_of(plan.outer)) // size)
    # Short ones are repeated by all programs; of the long ones, those go first that read no other.
    long = {e for e in lanes if number(total_of(e.axes)) > CHEAP}
    first = [e for e in lanes if e in long and long.isdisjoint(walk([e.value], scope))]
    if not first:
        return None
    work = size * max(number(total_of(e.axes)) for e in first)
    if 2 * programs > multiprocessors or work < least:
        return None
    return first, max(2, min(MOST_PARTS, 2 * multiprocessors // programs, work // LEAST))


def _cut(total: Dim, count: int) -> tuple[Dim, int]:
    """(elements of a part, number of parts): what a block holds exactly, where the total is known."""
    if not isinstance(total, int):
        return ceil_div(total, count * _STEP) * _STEP, count
    chunk = power_of_two(-(-total // count) + 1) // 2
    return chunk, -(-total // chunk)


def _staged(e: Reduce, count: int, nest: Nest, scope: Scope, index: int) -> tuple[Nest, Expr]:
    """(the nest of a reduction's partial results, the reduction of those)."""
    outer = tuple(a for a in nest.axes if a.name in e.free)
    total = total_of(e.axes)
    chunk, count = _cut(total, count)
    shape: tuple[Dim, ...] = (count, *(a.extent for a in outer))
    strides = tuple(product(shape[d + 1 :]) for d in range(len(shape)))
    buffer = Buffer("temp", index, e.dtype, shape, strides)
    part, step, again = scope.axis(count), scope.axis(chunk), scope.axis(count)
    linear = part.index * chunk + step.index
    simplify = Ranges(scope.extents).simplify
    given: dict[str, Dim] = {}
    rest = linear
    for position in range(len(e.axes) - 1, -1, -1):
        axis = e.axes[position]
        given[axis.name] = simplify(remainder(rest, axis.extent) if position else rest)
        rest = simplify(floor_div(rest, axis.extent)) if position else rest
    even = isinstance(total, int) and chunk * count == total
    inside = () if even else (total - 1 - linear,)
    rewriter = _Guarding(scope, given, inside)
    where = (*(rewriter.dim(g) for g in e.where), *inside)
    value = reduce(scope, e.kind, (step,), rewriter(e.value), where)
    at = [a.index for a in outer]
    stage = Nest((part, *outer), (Store(buffer, buffer.offset([part.index, *at]), value),))
    return stage, reduce(scope, e.kind, (again,), load(scope, buffer, buffer.offset([again.index, *at])))


class _Guarding(Rewriter):
    """Puts indices in the place of axes; what is loaded at these touches memory only inside."""

    def __init__(self, scope: Scope, given: dict[str, Dim], inside: tuple[Dim, ...]) -> None:
        simplify = Ranges(scope.extents).simplify
        super().__init__(scope, lambda d: simplify(substitute(d, given)))
        self._given, self._inside = given, inside

    def _rebuild(self, e: Expr) -> Expr:
        if isinstance(e, Load) and not e.free.isdisjoint(self._given):
            guards = (*(self.dim(g) for g in e.guards), *self._inside)
            return load(self.scope, e.buffer, self.dim(e.offset), guards)
        return super()._rebuild(e)


class _Replacing(Rewriter):
    """Replaces expressions by others."""

    def __init__(self, scope: Scope, given: dict[Expr, Expr]) -> None:
        super().__init__(scope, lambda d: d)
        self._given = given

    def _rebuild(self, e: Expr) -> Expr:
        return self._given[e] if e in self._given else super()._rebuild(e)


def _buffers(kernel: LoopKernel, nests: Iterable[Nest], scope: Scope) -> tuple[Buffer, ...]:
    """What nests read and write: operands, temporary buffers, results."""
    nests = list(nests)
    stored = {s.buffer for n in nests for s in n.stores}
    read = {e.buffer for n in nests for e in expressions(n, scope) if isinstance(e, Load)}
    used = sorted((b for b in read | stored if b.role == "temp"), key=lambda b: b.index)
    operands = [b for b in kernel.buffers if b in read or b in stored]
    return (*(b for b in operands if b.role == "in"), *used, *(b for b in operands if b.role != "in"))

