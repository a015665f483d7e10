"""How a nest of the loop IR is executed on a GPU: which axes become the dimensions of a block, and how large it is.

Three ways, all over a grid of programs along one axis:

- *flat*: all axes flattened into one block dimension of consecutive points; short reductions are loops of each point.
- *tile*: two axes as two block dimensions, because some operand is contiguous along another axis than the result.
- *rows*: reductions across a block dimension. What the reductions have in common (`Plan.outer`) is flattened into rows, the first
  block dimension. The second one, the *lanes*, walks along what is reduced, and along the axes of the results that no reduction
  depends on. Spaces of equal size share one lane index, so that softmax and normalisations load their row once.

Local arrays of the loop IR are computed anew where they are read (`inline_rows`): equal expressions meet again in the lanes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dovetail.codegen.index import Ranges, coefficient, power_of_two
from dovetail.codegen.loop_ir import (
    Axis,
    Expr,
    Load,
    Nest,
    Reduce,
    Rewriter,
    Row,
    RowRef,
    Scope,
    Store,
    children,
    reduce,
    row,
    row_ref,
    walk,
)
from dovetail.codegen.lower.context import NotLowerable
from dovetail.codegen.schedule import all_axes, expressions, normalise, roots
from dovetail.core.dims import Dim, evaluate, product, substitute, symbols

SHORT = 8
"""Reductions of at most so many elements are loops of each point."""
WINDOW = 128
"""Reductions of at most so many elements are, too, where neighbouring points share elements."""
RESIDENT = 16384
"""Lanes that a block holds in registers at most; longer rows are walked in chunks."""
CHEAP = 512
"""Reductions of at most so many elements may be repeated by every program."""
TYPICAL = 128
"""What heuristics take a run-time dim for where it is the length of something."""
FEW = 4
"""And where it says how many programs there can be: a batch may be small."""


@dataclass(frozen=True)
class Space:
    """A lane index: its axis, the block's extent along it, and whether one block holds all of it."""

    axis: Axis
    block: int
    resident: bool


@dataclass(frozen=True)
class Plan:
    """How one nest is executed.

    Attributes:
        kind: "flat", "tile" or "rows".
        nest: the nest in terms of the axes below.
        outer: axes flattened into the first block dimension; of a tile, those that are fixed within a program.
        tile: of a tile, the axes of its two block dimensions.
        block: extents of the block: (points,), (first, second) or (rows,).
        spaces: of rows, the lane spaces by the name of their axis.
        inner: of rows, the axis of the lanes of the results; None where a row has one result.
        spread: of rows, whether programs share out the results' lanes too, each repeating the reductions.
        levels: of rows, the reductions across lanes, each after those that it reads.
        warps: warps of a program.
    """

    kind: str
    nest: Nest
    outer: tuple[Axis, ...]
    block: tuple[int, ...]
    warps: int
    tile: tuple[Axis, Axis] | None = None
    spaces: Mapping[str, Space] = field(default_factory=dict)
    inner: Axis | None = None
    spread: bool = False
    levels: tuple[tuple[Reduce, ...], ...] = ()


Options = Mapping[str, int]


def plan_nest(given: Nest, scope: Scope, multiprocessors: int, options: Options | None = None) -> Plan:
    """The execution of a nest.

    Args:
        given: a nest as lowered or as prepared by `prepared`.
        scope: of the kernel.
        multiprocessors: of the target; enough programs to fill them are preferred to large blocks.
        options: "block" (points), "rows", "lanes", "warps": sizes in place of the heuristic's.

    Raises:
        NotLowerable: a reduction or scan that this schedule cannot place.
    """
    nest = prepared(given, scope)
    options = options or {}
    lanes = lane_reductions(nest, scope)
    scans = [e for e in expressions(nest, scope) if isinstance(e, Row)]
    if lanes or scans:
        return _rows(nest, scope, lanes, scans, multiprocessors, options)
    tile = _tile_axes(nest, scope)
    if tile is not None:
        return _tile(nest, tile, multiprocessors, options)
    plane = _plane(nest, scope, multiprocessors, options)
    return plane or _flat(nest, scope, multiprocessors, options)


def prepared(nest: Nest, scope: Scope) -> Nest:
    """The nest without local arrays, over simple loops."""
    return normalise(inline_rows(nest, scope), scope)


def alternatives(plan: Plan, multiprocessors: int) -> list[dict[str, int]]:
    """Sizes worth timing besides the plan's own."""
    found: list[dict[str, int]] = []
    if plan.kind == "flat":
        (block,) = plan.block
        found += [{"block": block * 2, "warps": plan.warps}, {"block": block, "warps": max(1, plan.warps // 2)}]
        found += [{"block": block // 2, "warps": max(1, plan.warps // 2)}] if block >= 256 else []
    elif plan.kind == "tile":
        y, x = plan.block
        found += [{"block": y * x // 2, "warps": plan.warps}, {"block": y * x * 2, "warps": plan.warps * 2}] if y * x >= 512 else []
    else:
        rows, warps = plan.block[0], plan.warps
        found += [{"rows": rows, "warps": w} for w in (warps // 2, warps * 2) if 1 <= w <= 16]
        found += [{"rows": rows * 2, "warps": warps}, {"rows": rows * 4, "warps": warps}]
        found += [{"rows": rows // 2, "warps": warps}] if rows > 1 else []
    return found


# ---------------------------------------------------------------- local arrays
def inline_rows(nest: Nest, scope: Scope) -> Nest:
    """Local arrays are replaced by their elements' expressions; running sums stay."""
    if not any(isinstance(e, Row) for e in expressions(nest, scope)):
        return nest
    rewriter = _Inliner(scope, lambda d: d)
    return Nest(nest.axes, tuple(Store(s.buffer, rewriter.dim(s.offset), rewriter(s.value)) for s in nest.stores))


class _Inliner(Rewriter):
    def _rebuild(self, e: Expr) -> Expr:
        if isinstance(e, RowRef):
            source = self(e.row)
            assert isinstance(source, Row)
            index = tuple(self.dim(i) for i in e.index)
            if source.scan:
                return row_ref(self.scope, source, index)
            given = {a.name: i for a, i in zip(source.axes, index, strict=True)}
            simplify = Ranges(self.scope.extents).simplify
            return Rewriter(self.scope, lambda d: simplify(substitute(d, given)))(source.value)
        return super()._rebuild(e)


# ---------------------------------------------------------------- questions
def number(d: Dim) -> int:
    """A dim as a number for heuristics."""
    return evaluate(d, dict.fromkeys(symbols(d), TYPICAL))


def at_least(d: Dim) -> int:
    """A dim as a number for questions of parallelism."""
    return evaluate(d, dict.fromkeys(symbols(d), FEW))


def total_of(axes: Iterable[Axis]) -> Dim:
    """Number of points of some axes."""
    return product(a.extent for a in axes)


def lane_reductions(nest: Nest, scope: Scope) -> list[Reduce]:
    """The reductions of a prepared nest that go across lanes: long ones that depend on axes of the nest alone."""
    own = {a.name for a in nest.axes}
    found = [e for e in expressions(nest, scope) if isinstance(e, Reduce)]
    serial = {e.axes for e in found if _is_serial(e, nest, scope) or not e.free <= own}
    return [e for e in found if e.axes and e.axes not in serial]


def _is_serial(e: Reduce, nest: Nest, scope: Scope) -> bool:
    size = total_of(e.axes)
    if not isinstance(size, int) or size > WINDOW:
        return False
    return size <= SHORT or any(_overlaps(x, e.axes, nest.axes) for x in walk([e.value], scope) if isinstance(x, Load))


def _overlaps(load: Load, inner: tuple[Axis, ...], outer: tuple[Axis, ...]) -> bool:
    """Whether different points of `outer` read the same element: a window."""
    for k in inner:
        step = coefficient(load.offset, k.name)
        for axis in outer:
            stride = coefficient(load.offset, axis.name)
            if isinstance(step, int) and isinstance(stride, int) and step and stride:
                common = math.gcd(step, stride)
                if abs(step) // common < number(axis.extent) and abs(stride) // common < number(k.extent):
                    return True
    return False


def _level(e: Expr, lanes: set[Reduce], scope: Scope, memo: dict[Expr, int]) -> int:
    """How many reductions across lanes follow one another up to and including e."""
    pending = [e]
    while pending:
        current = pending[-1]
        below = list(children(current, scope))
        missing = [c for c in below if c not in memo]
        if missing:
            pending += missing
            continue
        pending.pop()
        memo[current] = max((memo[c] for c in below), default=0) + (current in lanes)
    return memo[e]


# ---------------------------------------------------------------- flat
def _flat(nest: Nest, scope: Scope, multiprocessors: int, options: Options) -> Plan:
    total = total_of(nest.axes)
    loads = [e for e in expressions(nest, scope) if isinstance(e, Load)]
    narrowest = min([x.buffer.dtype.itemsize for x in loads] + [s.buffer.dtype.itemsize for s in nest.stores])
    # 16 bytes of the narrowest operand per thread, at most eight elements; fewer while multiprocessors would idle. Where that is
    # known at run time only, accesses stay wide.
    each, warps = max(2, min(8, 16 // max(1, narrowest))), 4
    least = 2 if isinstance(total, int) else each
    while (each > least or warps > 1) and at_least(total) < each * warps * 32 * multiprocessors:
        each, warps = (each // 2, warps) if each > least else (each, warps // 2)
    points = number(total)
    block = options.get("block", max(1, min(each * warps * 32, power_of_two(points))))
    return Plan("flat", nest, nest.axes, (block,), options.get("warps", warps))


# ---------------------------------------------------------------- tiles
def _tile_axes(nest: Nest, scope: Scope) -> tuple[Axis, Axis] | None:
    """(axis along which an operand is contiguous, axis along which the result is), where they differ."""
    if len(nest.axes) < 2:
        return None
    inner = nest.axes[-1]
    for load in (e for e in walk(roots(nest), scope) if isinstance(e, Load)):
        if coefficient(load.offset, inner.name) in (0, 1):
            continue
        for axis in nest.axes[:-1]:
            if coefficient(load.offset, axis.name) == 1 and number(axis.extent) >= 4 and number(inner.extent) > 1:
                return axis, inner
    return None


def _tile(nest: Nest, tile: tuple[Axis, Axis], multiprocessors: int, options: Options) -> Plan:
    points = 4096
    while points > 1024 and at_least(total_of(nest.axes)) < points * multiprocessors:
        points //= 2
    points = options.get("block", points)
    y, x = (power_of_two(number(a.extent)) for a in tile)
    side = 1 << (points.bit_length() // 2)
    across = min(x, side)
    along = min(y, max(1, points // across))
    across = min(x, max(1, points // along))
    warps = max(1, min(8, along * across // 512))
    outer = tuple(a for a in nest.axes if a not in tile)
    return Plan("tile", nest, outer, (along, across), options.get("warps", warps), tile)


# ---------------------------------------------------------------- planes
def _plane(nest: Nest, scope: Scope, multiprocessors: int, options: Options) -> Plan | None:
    """Rows along the innermost axis where places are read from memory or computed: once per row or column, not per point."""
    if len(nest.axes) < 2 or number(nest.axes[-1].extent) < 8:
        return None
    inner, outer = nest.axes[-1], nest.axes[:-1]
    loads = (e for e in expressions(nest, scope) if isinstance(e, Load))
    indirect = [x for x in loads if any(n[0] == "#" for n in symbols(x.offset))]
    if not indirect:
        return None
    extent = number(inner.extent)
    lanes = min(128, power_of_two(extent))
    if isinstance(inner.extent, int) and any(coefficient(x.offset, inner.name) == 1 for x in indirect):
        even = extent & -extent
        lanes = min(1024, even if even >= 64 else power_of_two(extent))
    rows = total_of(outer)
    size = max(1, 1024 // lanes)
    while size > 1 and at_least(rows) * max(1, extent // lanes) < size * multiprocessors:
        size //= 2
    size = max(1, min(options.get("rows", size), power_of_two(number(rows))))
    warps = options.get("warps", max(1, min(8, size * lanes // 256)))
    return Plan("rows", nest, outer, (size,), warps, None, {inner.name: Space(inner, lanes, True)}, inner, True)


# ---------------------------------------------------------------- rows
def _rows(
    nest: Nest, scope: Scope, lanes: list[Reduce], scans: list[Row], multiprocessors: int, options: Options
) -> Plan:  # fmt: skip
    shared = frozenset[str]().union(*(e.free for e in (*lanes, *scans)))
    if not shared <= {a.name for a in nest.axes}:
        raise NotLowerable("a running sum inside a reduction is not generated")
    if scans:  # lanes walk along the sum alone: over an axis of stride 0, each row has the same sums
        read = (e for e in expressions(nest, scope) if isinstance(e, RowRef) and e.row.scan)
        along = frozenset[str]().union(*(symbols(i) for e in read for i in e.index))
        shared |= {a.name for a in nest.axes if a.name not in along}
    outer = tuple(a for a in nest.axes if a.name in shared)
    within = tuple(a for a in nest.axes if a.name not in shared)
    rewriter = _ToLanes(scope)
    inner = rewriter.unify(within) if within else None
    for group in (*(e.axes for e in lanes), *(e.axes for e in scans)):
        rewriter.unify(group)
    stores = tuple(Store(s.buffer, rewriter.dim(s.offset), rewriter(s.value)) for s in nest.stores)
    axes = (*outer, *([inner] if inner else []))
    nest = Nest(axes, stores)
    memo: dict[Expr, int] = {}
    found = (e for e in expressions(nest, scope) if isinstance(e, Reduce))
    across: list[Reduce] = [e for e in found if e.axes and e.axes[0] in rewriter.spaces.values()]
    for e in roots(nest):
        _level(e, set(across), scope, memo)
    across.sort(key=lambda e: memo[e])
    levels = tuple(tuple(e for e in across if memo[e] == level) for level in sorted({memo[e] for e in across}))
    longest = max((number(a.extent) for e in across for a in e.axes), default=RESIDENT)
    spread = inner is not None and not scans and longest <= CHEAP and number(inner.extent) >= 8 * longest
    rows = total_of(outer)
    column = _is_column(nest, outer, list(rewriter.spaces.values()), scope)
    size, blocks = _row_blocks(list(rewriter.spaces.values()), rows, column, multiprocessors, options)
    if spread:
        assert inner is not None
        chunk = min(power_of_two(number(inner.extent)), max(1024 // size, 1))
        blocks[inner.name] = Space(inner, chunk, True)
    widest = size * max(s.block for s in blocks.values())
    each = 8 if widest <= 4096 else 16
    warps = options.get("warps", max(1, min(16, widest // (32 * each))))
    return Plan("rows", nest, outer, (size,), warps, None, blocks, inner, spread, levels)


def _row_blocks(
    spaces: Sequence[Axis], rows: Dim, column: bool, multiprocessors: int, options: Options
) -> tuple[int, dict[str, Space]]:  # fmt: skip
    """(rows of a block, the lane spaces)."""
    widest = max(power_of_two(number(a.extent)) for a in spaces)
    if column:
        size, least, wanted, most = 64, 16, multiprocessors, 8192
    else:
        size, least, wanted, most = max(1, 1024 // widest), 1, 2 * multiprocessors, RESIDENT
    while size > least and at_least(rows) < size * wanted:
        size //= 2
    size = max(1, min(options.get("rows", size), power_of_two(number(rows))))
    most = max(16, most // size)
    found = {}
    for axis in spaces:
        extent = axis.extent
        whole = isinstance(extent, int) and power_of_two(extent) <= most
        if whole:
            assert isinstance(extent, int)
            found[axis.name] = Space(axis, power_of_two(extent), True)
        else:
            chunk = max(1, (2048 if isinstance(extent, int) else 1024) // size)
            found[axis.name] = Space(axis, options.get("lanes", min(chunk, power_of_two(number(extent)))), False)
    return size, found


def _is_column(nest: Nest, outer: tuple[Axis, ...], spaces: Sequence[Axis], scope: Scope) -> bool:
    """Whether most operands are contiguous from row to row, not along the lanes."""
    if not outer or number(outer[-1].extent) < 4:
        return False
    along = across = 0
    for d in (x.offset for x in expressions(nest, scope) if isinstance(x, Load)):
        across += coefficient(d, outer[-1].name) == 1
        along += any(coefficient(d, a.name) == 1 for a in spaces)
    return across > along


class _ToLanes(Rewriter):
    """Rewrites groups of axes as decompositions of one lane axis per total extent."""

    def __init__(self, scope: Scope) -> None:
        self.spaces: dict[Dim, Axis] = {}
        self._groups: dict[tuple[Axis, ...], Axis] = {}
        self._index: dict[str, Dim] = {}
        self._simplify = Ranges(scope.extents).simplify
        super().__init__(scope, self._dims)

    def unify(self, axes: tuple[Axis, ...]) -> Axis:
        """The lane axis that walks along these axes, the last one fastest."""
        total = total_of(axes)
        lane = self.spaces.get(total)
        if lane is None:
            lane = self.spaces[total] = self.scope.axis(total)
            self._simplify = Ranges(self.scope.extents).simplify
        if axes not in self._groups:
            self._groups[axes] = lane
            rest: Dim = lane.index
            for position in range(len(axes) - 1, -1, -1):
                axis = axes[position]
                self._index[axis.name] = self._simplify(rest if position == 0 else rest % axis.extent)
                rest = self._simplify(rest // axis.extent) if position else 0
        return lane

    def _dims(self, d: Dim) -> Dim:
        return self._simplify(substitute(d, self._index))

    def _rebuild(self, e: Expr) -> Expr:
        if isinstance(e, Reduce) and e.axes in self._groups:
            lane = self._groups[e.axes]
            return reduce(self.scope, e.kind, (lane,), self(e.value), tuple(self.dim(g) for g in e.where))
        if isinstance(e, Row) and e.axes in self._groups:
            return row((self._groups[e.axes],), self(e.value), e.scan)
        return super()._rebuild(e)


def extents_of(nest: Nest, scope: Scope) -> dict[str, Dim]:
    """The extents of all axes of a nest, for ranges of its indices."""
    return {a.name: a.extent for a in all_axes(nest, scope)}


def is_small(total: Dim, most: int) -> bool:
    """Whether a loop of so many steps is known to be short."""
    return isinstance(total, int) and total <= most
