"""Prints one nest of the loop IR as Triton statements over blocks, as a `Plan` says; `print_triton` puts them into a kernel.

Blocks have one dimension (flat) or two, and every expression has the extent of a dimension only where it depends on it: an index of
rows is [rows, 1], one of lanes [1, lanes]. An expression is printed once, in the outermost loop that binds its indices. Offsets are
int32: the runtime has no buffers of more than 2^31 elements. Sums are fp32 and in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product as combinations

from dovetail.codegen import scalar, triton_scalar
from dovetail.codegen.index import Ranges, is_multiple
from dovetail.codegen.loop_ir import (
    Axis,
    Buffer,
    Call,
    Const,
    Expr,
    IndexValue,
    Load,
    Reduce,
    Rewriter,
    RowRef,
    Scope,
    Store,
    dims_of,
)
from dovetail.codegen.lower.context import NotLowerable
from dovetail.codegen.triton_schedule import (
    Plan,
    Space,
    extents_of,
    is_small,
    total_of,
)
from dovetail.core.dims import Dim, ceil_div, substitute, symbols
from dovetail.core.dims import Expr as DimExpr
from dovetail.core.dtypes import BOOL, DType

Sig = frozenset[str]
_UNROLL = 16


class Names:
    """Names that the nests of a kernel share."""

    def __init__(self, buffers: dict[Buffer, str]) -> None:
        self.buffers = buffers
        self.symbols: dict[str, str] = {}
        self.helpers: dict[str, str] = {}

    def dim(self, d: Dim) -> str:
        """A size as text."""
        for name in sorted(symbols(d)):
            self.symbol(name)
        return triton_scalar.dim_text(d, self.symbols)

    def symbol(self, name: str) -> str:
        """The parameter that holds a run-time dim."""
        return self.symbols.setdefault(name, f"d{len(self.symbols)}")

    def combine(self, kind: str, dtype: DType) -> str:
        """A function of two values that a reduction combines with."""
        text = _combined(kind, "a", "b", dtype)
        name = f"{kind}_{dtype.name}"
        self.helpers[name] = text
        return f"@ENTRY@_{name}"


def _combined(kind: str, a: str, b: str, dtype: DType) -> str:
    if dtype == BOOL:
        return f"{a} {'|' if kind in ('max', 'sum') else '&'} {b}"
    nan = ", propagate_nan=tl.PropagateNan.ALL" if dtype.is_float else ""
    if kind in ("max", "min"):
        return f"tl.{'maximum' if kind == 'max' else 'minimum'}({a}, {b}{nan})"
    return f"{a} {'+' if kind == 'sum' else '*'} {b}"


def _neutral(kind: str, dtype: DType) -> str:
    """What a reduction starts from."""
    return triton_scalar.full(scalar.neutral(kind, dtype), dtype)


@dataclass
class _Block:
    """A loop (or the whole kernel) under construction: the axes that it binds, its statements, what they define."""

    axes: frozenset[str]
    lines: list[str] = field(default_factory=list)
    memo: dict[Expr, str] = field(default_factory=dict)
    ends: list[str] = field(default_factory=list)
    """Statements behind all others."""


class NestPrinter:
    """Prints one nest; `lines` are its statements, for a program number `pid`."""

    def __init__(self, scope: Scope, plan: Plan, names: Names, early: frozenset[Buffer], pdl: bool) -> None:
        self.scope, self.plan, self.names, self._early = scope, plan, names, early
        self._ranges = Ranges(extents_of(plan.nest, scope))
        self._count = 0
        # Index variables by axis, and the block dimension that they run along.
        self._index: dict[str, str] = {}
        self._along: dict[str, str] = {}
        self._masks: dict[str, str] = {}
        self._space: dict[str, tuple[str, str]] = {}
        self._whole: dict[str, str] = {}
        self._setup: list[str] = []
        self._stack = [_Block(frozenset(a.name for a in plan.nest.axes))]
        self._extents: dict[str, int] = {}
        self.programs: Dim = 1
        {"flat": self._flat, "tile": self._tile, "rows": self._rows}[plan.kind]()
        wait = ["gdc_wait()", "gdc_launch_dependents()"] if pdl else []
        self.lines = [*self._setup, *wait, *self._stack[0].lines]

    # ------------------------------------------------------------------ kinds
    def _flat(self) -> None:
        (block,) = self.plan.block
        total = total_of(self.plan.outer)
        self.programs = ceil_div(total, block)
        self._extents = {"x": block}
        self._setup.append(f"x = pid * {block} + tl.arange(0, {block})")
        self._bind("x", self.plan.outer, "x")
        if not is_multiple(total, block):
            self._setup.append(f"mx = x < {self._dim(total)}")
            self._masks["x"] = "mx"
        self._stores()

    def _tile(self) -> None:
        plan = self.plan
        assert plan.tile is not None
        along, across = plan.block
        y, x = plan.tile
        self._extents = {"r": along, "l": across}
        columns, rows = ceil_div(x.extent, across), ceil_div(y.extent, along)
        self.programs = columns * rows * total_of(plan.outer)
        self._setup += [
            f"tx = pid % {self._dim(columns)}", f"rest = pid // {self._dim(columns)}",
            f"ty = rest % {self._dim(rows)}", f"fixed = rest // {self._dim(rows)}",
            f"r = (ty * {along} + tl.arange(0, {along}))[:, None]", f"l = (tx * {across} + tl.arange(0, {across}))[None, :]",
        ]  # fmt: skip
        self._bind("r", (y,), "r")
        self._bind("l", (x,), "l")
        self._bind("fixed", plan.outer, "")
        for name, axis, block in (("r", y, along), ("l", x, across)):
            if not is_multiple(axis.extent, block):
                self._setup.append(f"m{name} = {name} < {self._dim(axis.extent)}")
                self._masks[name] = f"m{name}"
        self._stores()

    def _rows(self) -> None:
        plan = self.plan
        (size,) = plan.block
        total = total_of(plan.outer)
        self._extents = {"r": size}
        rows = ceil_div(total, size)
        self.programs = rows
        number = "pid"
        if plan.spread:
            assert plan.inner is not None
            space = plan.spaces[plan.inner.name]
            chunks = ceil_div(plan.inner.extent, space.block)
            self.programs = rows * chunks
            self._setup += [f"part = pid % {self._dim(chunks)}", f"row = pid // {self._dim(chunks)}"]
            number = "row"
        self._setup.append(f"r = ({number} * {size} + tl.arange(0, {size}))[:, None]")
        self._bind("r", plan.outer, "r")
        if not is_multiple(total, size):
            self._setup.append(f"mr = r < {self._dim(total)}")
            self._masks["r"] = "mr"
        for space in plan.spaces.values():
            self._along[space.axis.name] = "l"
            if space.resident:
                self._resident(space, plan.spread and space.axis == plan.inner)
        for level in plan.levels:
            by_space: dict[str, list[Reduce]] = {}
            for e in level:
                by_space.setdefault(e.axes[0].name, []).append(e)
            for name, group in by_space.items():
                if not plan.spaces[name].resident:
                    self._reduce_in_chunks(plan.spaces[name], group)
        if plan.inner is None or plan.spaces[plan.inner.name].resident:
            self._stores()
        else:
            with self._chunks(plan.spaces[plan.inner.name]):
                self._stores()

    # ------------------------------------------------------------------ indices
    def _let(self, lines: list[str], prefix: str, text: str) -> str:
        self._count += 1
        name = f"{prefix}{self._count}"
        lines.append(f"{name} = {text}")
        return name

    def _bind(self, linear: str, axes: tuple[Axis, ...], along: str, lines: list[str] | None = None) -> None:
        """Define the indices of `axes` as parts of a linear index, the last one fastest."""
        lines = self._setup if lines is None else lines
        rest = linear
        for position in range(len(axes) - 1, -1, -1):
            axis = axes[position]
            self._along[axis.name] = along
            if position == 0:
                self._index[axis.name] = rest
            else:
                extent = self._dim(axis.extent)
                self._index[axis.name] = self._let(lines, "i", f"{rest} % {extent}")
                rest = self._let(lines, "q", f"{rest} // {extent}")

    def _resident(self, space: Space, part: bool) -> None:
        name = f"l{len(self._space)}"
        start = f"part * {space.block} + " if part else ""
        self._setup.append(f"{name} = ({start}tl.arange(0, {space.block}))[None, :]")
        self._index[space.axis.name] = name
        mask = self._edge(space, name, self._setup, part)
        self._space[space.axis.name] = (name, mask)

    def _edge(self, space: Space, name: str, lines: list[str], part: bool = True) -> str:
        """The mask of the lanes that exist; "" where all do."""
        if space.axis.extent == space.block or (part and is_multiple(space.axis.extent, space.block)):
            return ""
        return self._let(lines, "m", f"{name} < {self._dim(space.axis.extent)}")

    @contextmanager
    def _chunks(self, space: Space) -> Iterator[_Block]:
        """A loop over chunks of a lane space, as a block that expressions are printed into."""
        with self._outermost():
            self._count += 1
            start, name = f"s{self._count}", f"l{self._count}c"
            block = _Block(frozenset([space.axis.name]))
            saved = self._index.get(space.axis.name), self._space.get(space.axis.name)
            self._index[space.axis.name] = name
            block.lines.append(f"{name} = {start} + tl.arange(0, {space.block})[None, :]")
            self._space[space.axis.name] = (name, self._edge(space, name, block.lines))
            self._stack.append(block)
            try:
                yield block
            finally:
                self._stack.pop()
                old_index, old_space = saved
                if old_index is not None and old_space is not None:
                    self._index[space.axis.name], self._space[space.axis.name] = old_index, old_space
            top = self._stack[-1].lines
            top.append(f"for {start} in range(0, {self._dim(space.axis.extent)}, {space.block}):")
            top += ["    " + line for line in (*block.lines, *block.ends)]

    @contextmanager
    def _outermost(self, depth: int = 0) -> Iterator[None]:
        """Print into a block further out."""
        inner = self._stack[depth + 1 :]
        del self._stack[depth + 1 :]
        try:
            yield
        finally:
            self._stack += inner

    def _dim(self, d: Dim) -> str:
        """An index polynomial as text."""
        names: dict[str, str] = {}
        for name in sorted(symbols(d)):  # in an order that does not depend on the process
            if name[0] == "@":
                names[name] = self._index[name]
            elif name[0] == "#":
                names[name] = f"{self.emit(self.scope.values[name])}.to(tl.int32)"
            else:
                names[name] = self.names.symbol(name)
        return triton_scalar.dim_text(d, names, self._ranges.non_negative)

    def _guard(self, g: Dim) -> str:
        """`g >= 0` as a comparison of sums without negative terms, which Triton understands best."""
        if isinstance(g, int):
            return "True" if g >= 0 else "False"
        below: Dim = 0
        above: Dim = 0
        for monomial, factor in g.terms:
            term = DimExpr(((monomial, abs(factor)),)) if monomial else abs(factor)
            if factor < 0:
                below = below + term
            else:
                above = above + term
        if below == 0 or isinstance(below, int):
            return f"({self._dim(above)} >= {below})"
        return f"({self._dim(below)} < {self._dim(above + 1)})"

    def _sig(self, free: Collection[str]) -> Sig:
        """The block dimensions that an expression over these axes has."""
        return frozenset(self._along[n] for n in free) - {""}

    def _dims_sig(self, dims: Collection[Dim]) -> Sig:
        return self._sig(frozenset[str]().union(*(self.scope.free(d) for d in dims)))

    def _shape(self, free: Collection[str]) -> str:
        """The shape of an expression over these axes."""
        sig = self._sig(free)
        if not sig:
            return "()"
        if self.plan.kind == "flat":
            return f"({self._extents['x']},)"
        return f"({self._extents['r'] if 'r' in sig else 1}, {self._lanes(free) if 'l' in sig else 1})"

    def _lanes(self, free: Collection[str]) -> int:
        """The extent of the lanes that an expression over these axes has."""
        return next((self.plan.spaces[n].block for n in free if n in self.plan.spaces), self._extents.get("l", 1))

    # ------------------------------------------------------------------ masks
    def _mask(self, sig: Sig, free: Collection[str], guards: Collection[Dim]) -> tuple[str, Sig]:
        """(mask of an access whose address has block dimensions `sig`, the dimensions of the mask)."""
        parts = [self._masks[d] for d in sorted(sig) if d in self._masks]
        own = frozenset(d for d in sig if d in self._masks)
        for name, (_, mask) in self._space.items():
            if mask and name in free:
                parts.append(mask)
                own |= {"l"}
        for g in guards:
            parts.append(self._guard(g))
        return " & ".join(parts), own | self._dims_sig(guards)

    def _address(self, buffer: Buffer, offset: Dim, sig: Sig, need: Sig, free: Collection[str]) -> str:
        """An address with the block dimensions that it needs, be they zeros."""
        text = self._dim(offset)
        shapes = {"x": f"({self._extents.get('x')},)", "r": f"({self._extents.get('r')}, 1)", "l": f"(1, {self._lanes(free)})"}
        for d in sorted(need - sig):
            text += f" + tl.zeros({shapes[d]}, tl.int32)"
        return f"{self.names.buffers[buffer]} + {text}"

    # ------------------------------------------------------------------ stores
    def _stores(self) -> None:
        for store in self.plan.nest.stores:
            self._store(store)

    def _store(self, store: Store) -> None:
        value = self.emit(store.value)
        free = self.scope.free(store.offset)
        sig = self._sig(free)
        need = sig | self._sig(store.value.free)
        if self.plan.kind == "rows":
            need |= {"r"}
            if self.plan.inner is not None and self.plan.inner.name in store.value.free:
                need |= {"l"}
        elif self.plan.kind == "flat":
            need |= {"x"}
        everything = {*free, *store.value.free}
        mask, _ = self._mask(need, everything, ())
        address = self._address(store.buffer, store.offset, sig, need, everything)
        narrowed = triton_scalar.narrow(value, store.buffer.dtype)
        self._stack[-1].lines.append(f"tl.store({address}, {narrowed}{f', mask={mask}' if mask else ''})")

    # ------------------------------------------------------------------ expressions
    def _depth(self, free: Collection[str]) -> int:
        for depth in range(len(self._stack) - 1, 0, -1):
            if not self._stack[depth].axes.isdisjoint(free):
                return depth
        return 0

    def emit(self, e: Expr) -> str:
        """The variable (or literal) that holds e."""
        if isinstance(e, Const):
            return triton_scalar.full(e.value, e.dtype)
        depth = self._depth(e.free)
        block = self._stack[depth]
        found = block.memo.get(e)
        if found is None and isinstance(e, Call):
            self._operands_first(e)
            found = block.memo.get(e)
        if found is None:
            with self._outermost(depth):
                found = self._text(e, block)
            block.memo[e] = found
        return found

    def _operands_first(self, e: Call) -> None:
        """Print long chains of calls without recursion."""
        pending: list[Expr] = [e]
        while pending:
            current = pending[-1]
            missing = [a for a in current.args if self._is_open(a)] if isinstance(current, Call) else []
            if missing:
                pending += missing
                continue
            pending.pop()
            if current is not e:
                block = self._stack[self._depth(current.free)]
                if current not in block.memo:
                    with self._outermost(self._depth(current.free)):
                        text = self._text(current, block)
                    block.memo[current] = text

    def _is_open(self, e: Expr) -> bool:
        return isinstance(e, Call) and e not in self._stack[self._depth(e.free)].memo

    def _text(self, e: Expr, block: _Block) -> str:
        if isinstance(e, Call):
            operand = e.args[-1].dtype
            reason = triton_scalar.unsupported(e.fn, operand)
            if reason is not None:
                raise NotLowerable(reason)
            args = [self.emit(a) for a in e.args]
            return self._let(block.lines, "v", triton_scalar.function(e.fn, args, operand, e.dtype))
        if isinstance(e, IndexValue):
            return self._let(block.lines, "v", f"({self._dim(e.index)}).to(tl.int64)")
        if isinstance(e, Load):
            return self._load(e, block)
        if isinstance(e, Reduce):
            if e in self._lane_reductions:
                return self._reduce_lanes(e, block)
            return self._reduce_serially(e, block)
        if isinstance(e, RowRef):
            return self._scan(e, block)
        raise NotLowerable(f"{type(e).__name__} has no block form")

    @property
    def _lane_reductions(self) -> set[Reduce]:
        return {e for level in self.plan.levels for e in level}

    def _load(self, e: Load, block: _Block) -> str:
        dims = dims_of(e)
        sig = self._sig(self.scope.free(e.offset))
        mask, own = self._mask(sig, self.scope.free(e.offset), e.guards)
        address = self._address(e.buffer, e.offset, sig, own, e.free)
        text = f"tl.load({address}{f', mask={mask}, other=0' if mask else ''})"
        text = triton_scalar.widen(text, e.buffer.dtype)
        # Operands that nothing writes need not wait for the kernel ahead.
        known = e.buffer in self._early and block is self._stack[0] and not any(n[0] == "#" for d in dims for n in symbols(d))
        return self._let(self._setup if known else block.lines, "v", text)

    # ------------------------------------------------------------------ reductions
    def _term(self, e: Reduce, value: str, masks: list[str]) -> str:
        masks = [*masks, *(self._guard(g) for g in e.where)]
        return f"tl.where({' & '.join(masks)}, {value}, {_neutral(e.kind, e.dtype)})" if masks else value

    def _reduce_lanes(self, e: Reduce, block: _Block) -> str:
        """Across the lanes of one block."""
        name = e.axes[0].name
        if not self.plan.spaces[name].resident:
            self._reduce_in_chunks(self.plan.spaces[name], [e])
            return self._stack[0].memo[e]
        index, mask = self._space[name]
        value = self.emit(e.value)
        masks = [mask] if mask else []
        if "l" not in self._sig(e.value.free) and not masks:
            masks = [f"({index} >= 0)"]
        term = self._term(e, value, masks)
        function = self.names.combine(e.kind, e.dtype)
        return self._let(block.lines, "v", f"tl.reduce({term}, 1, {function}, keep_dims=True)")

    def _reduce_in_chunks(self, space: Space, group: list[Reduce]) -> None:
        """Reductions over one lane space in one pass over its chunks."""
        top = self._stack[0]
        missing = [e for e in group if e not in top.memo]
        if not missing:
            return
        shape = f"({self._extents['r']}, {space.block})"
        accumulators = [self._let(top.lines, "acc", _filled(e, shape)) for e in missing]
        with self._chunks(space) as block:
            _, mask = self._space[space.axis.name]
            for e, name in zip(missing, accumulators, strict=True):
                value = self.emit(e.value)
                term = self._term(e, value, [mask] if mask else [])
                block.lines.append(f"{name} = {_combined(e.kind, name, term, e.dtype)}")
        for e, name in zip(missing, accumulators, strict=True):
            function = self.names.combine(e.kind, e.dtype)
            top.memo[e] = self._let(top.lines, "v", f"tl.reduce({name}, 1, {function}, keep_dims=True)")

    def _reduce_serially(self, e: Reduce, block: _Block) -> str:
        """One element after the other, for all points of the block side by side."""
        total = total_of(e.axes)
        if is_small(total, _UNROLL):
            return self._unrolled(e, block)
        accumulator = self._let(block.lines, "acc", _filled(e, self._shape(e.free)))
        self._count += 1
        step, index = f"k{self._count}", f"k{self._count}i"
        inner = _Block(frozenset(a.name for a in e.axes), [f"{index} = {step} + 0"])
        self._bind(index, e.axes, "", inner.lines)
        self._stack.append(inner)
        try:
            value = self.emit(e.value)
            inner.lines.append(f"{accumulator} = {_combined(e.kind, accumulator, self._term(e, value, []), e.dtype)}")
        finally:
            self._stack.pop()
        block.lines.append(f"for {step} in range(0, {self._dim(total)}):")
        block.lines += ["    " + line for line in (*inner.lines, *inner.ends)]
        return accumulator

    def _unrolled(self, e: Reduce, block: _Block) -> str:
        result: str | None = None
        extents = [a.extent for a in e.axes]
        # Nothing to reduce, whatever a run's other extents are.
        for taps in combinations(*(range(int(str(d))) for d in extents)) if 0 not in extents else ():
            given: dict[str, Dim] = {a.name: k for a, k in zip(e.axes, taps, strict=True)}
            here = _substituted(self.scope, given, self._ranges)
            masks = [g for g in (here.dim(w) for w in e.where) if not self._ranges.non_negative(g)]
            if any(self._ranges.negative(g) for g in masks):
                continue
            value = self.emit(here(e.value))
            if masks:
                condition = " & ".join(self._guard(g) for g in masks)
                value = f"tl.where({condition}, {value}, {_neutral(e.kind, e.dtype)})"
            text = value if result is None else _combined(e.kind, result, value, e.dtype)
            result = self._let(block.lines, "v", text)
        return result or _neutral(e.kind, e.dtype)

    # ------------------------------------------------------------------ running sums
    def _scan(self, e: RowRef, block: _Block) -> str:
        (axis,) = e.row.axes
        if axis.name not in self._space:
            raise NotLowerable("a running sum outside its rows is not generated")
        backward = axis.extent - 1 - axis.index
        if e.index == (axis.index,):
            reverse, value = False, e.row.value
        elif e.index == (backward,):
            reverse = True
            value = _substituted(self.scope, {axis.name: backward}, self._ranges)(e.row.value)
        else:
            raise NotLowerable("a running sum read elsewhere than at its own position is not generated")
        _, mask = self._space[axis.name]
        text = self.emit(value)
        # Of all rows and lanes, whatever the value depends on.
        here = f"{mask or f'({self._space[axis.name][0]} >= 0)'} & (r >= 0)"
        term = f"tl.where({here}, {text}, {triton_scalar.full(0, e.dtype)})"
        function = self.names.combine("sum", e.dtype)
        sums = self._let(block.lines, "v", f"tl.associative_scan({term}, 1, {function}{', reverse=True' if reverse else ''})")
        if self.plan.spaces[axis.name].resident:
            return sums
        if reverse:
            raise NotLowerable("a running sum from the end over so many elements is not generated")
        # The sums so far pass from chunk to chunk.
        top = self._stack[0]
        carry = self._let(top.lines, "carry", f"tl.full(({self._extents['r']}, 1), 0, {triton_scalar.tensor_type(e.dtype)})")
        result = self._let(block.lines, "v", f"{sums} + {carry}")
        block.ends.append(f"{carry} = {carry} + tl.reduce({term}, 1, {function}, keep_dims=True)")
        return result


def _filled(e: Reduce, shape: str) -> str:
    """A block of neutral elements."""
    return _neutral(e.kind, e.dtype).replace("tl.full(()", f"tl.full({shape}")


def _substituted(scope: Scope, given: Mapping[str, Dim], ranges: Ranges) -> Rewriter:
    """A rewriter that puts indices in the place of axes."""
    simplify: Callable[[Dim], Dim] = ranges.simplify
    return Rewriter(scope, lambda d: simplify(substitute(d, given)))
