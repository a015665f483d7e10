"""Prints loop-IR expressions as C: each where its indices are bound, reductions and rows with loops of their own.

Every expression is placed on demand in the outermost open block that binds its indices, which hoists
invariants and shares common subexpressions. Each operation is a statement of its own, so no product and
sum are contracted and results round as NumPy's do.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.codegen import c_scalar
from dovetail.codegen.c_blocks import Block, Body, accumulate, indent, neutral, wrap
from dovetail.codegen.c_scalar import dim_symbols, dim_text, literal, local_type, memory_type
from dovetail.codegen.index import Ranges, coefficient
from dovetail.codegen.loop_ir import (
    Axis,
    Buffer,
    Call,
    Const,
    Expr,
    IndexValue,
    Leaf,
    Load,
    Reduce,
    Rewriter,
    Row,
    RowRef,
    Scope,
    children,
    walk,
)
from dovetail.codegen.schedule import Schedule
from dovetail.core.dims import Dim, ceil_div, product, substitute, symbols

# Tiles of transposes: points of the vector axis, and of the axis that is contiguous in the source.
TILE = 32
TILE_ROWS = 128
# Largest local array on the stack, in bytes; larger ones live in the workspace.
_STACK = 16384


@dataclass
class _RowStorage:
    name: str
    lanes: bool

class ExpressionPrinter:
    """Prints expressions of one kernel into open blocks; the counters make names unique in the function."""

    def __init__(self, scope: Scope, buffers: tuple[Buffer, ...]) -> None:
        self.scope = scope
        self.buffers = {b: f"{b.role}{b.index}" for b in buffers}
        self.symbols: dict[str, str] = {}
        self.workspace: Dim = 0
        self._count = 0
        self._axes: dict[str, str] = {}
        self._rows: dict[Row, _RowStorage] = {}
        self._ranges = Ranges({})
        self._plan: Schedule
        self._strip: Block | None = None
        self._staged: dict[Load, str] = {}
        self._width: int = 1

    # ------------------------------------------------------------------ names
    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def _axis(self, axis: Axis) -> str:
        return self._axes.setdefault(axis.name, f"i{len(self._axes)}")

    def _dim(self, d: Dim, block: Block | None) -> str:
        names: dict[str, str] = {}
        for name in dim_symbols(d):
            if name[0] == "@":
                names[name] = self._axes.setdefault(name, f"i{len(self._axes)}")
            elif name[0] == "#":
                assert block is not None
                names[name] = self._emit(self.scope.values[name], block)
            else:
                names[name] = self.symbols.setdefault(name, f"n{len(self.symbols)}")
        return dim_text(d, names, self._plain)

    def _plain(self, d: Dim) -> bool:
        return self._ranges.non_negative(d)

    # ------------------------------------------------------------------ loops
    def _loops(self, axes: tuple[Axis, ...], parent: Block, body: Body) -> list[str]:
        """Serial loops around what `body(innermost block)` returns."""
        if not axes:
            return body(parent)
        axis = axes[0]
        name, extent = self._axis(axis), self._dim(axis.extent, None)
        block = Block(parent, (axis,))
        block.lines += self._loops(axes[1:], block, body)
        return [f"for (int64_t {name} = 0; {name} < {extent}; {name}++) {{", *indent(block.lines), "}"]

    def _vector_loop(
        self, parent: Block, body: Body, bounds: tuple[str, str] = ("0", "vn")
    ) -> list[str]:
        """A loop over (some) lanes of the current block of the vector axis."""
        vector = self._plan.vector
        assert vector is not None
        lane = self._fresh("v")
        block = Block(parent, (vector,), lane=lane)
        block.lines.append(f"const int64_t {self._axis(vector)} = v0 + {lane};")
        block.lines += body(block)
        first, last = bounds
        head = f"for (int64_t {lane} = {first}; {lane} < {last}; {lane}++) {{"
        if bounds == ("0", "vn"):
            return [head, *indent(block.lines), "}"]
        # Bounds are computed once, ahead of the loop.
        head = f"for (int64_t {lane} = lo{lane}; {lane} < hi{lane}; {lane}++) {{"
        ahead = f"const int64_t lo{lane} = {first}, hi{lane} = {last};"
        return ["{", "  " + ahead, "  " + head, *indent(indent(block.lines)), "  }", "}"]

    # ------------------------------------------------------------------ expressions
    def _target(self, free: frozenset[str], block: Block, floor: Block | None = None) -> Block:
        """The outermost open block (not above `floor`) that binds all of `free`."""
        chain = block.chain()
        start = chain.index(floor) if floor is not None and floor in chain else 0
        for candidate in chain[start:]:
            if free <= candidate.bound:
                return candidate
        raise AssertionError(f"indices {sorted(free)} are not bound in {sorted(block.bound)}")

    def _is_laned(self, e: Expr) -> bool:
        return self._plan.vector is not None and self._plan.lanes and self._plan.vector.name in e.free

    def _emit(self, e: Expr, block: Block) -> str:
        """The C text of e as seen from `block`: a variable, or a literal."""
        if isinstance(e, Const):
            return literal(e.value, e.dtype)
        if isinstance(e, Leaf):
            return e.name
        found = block.lookup(e)
        if found is not None:
            return f"{found}[{block.lane}]" if isinstance(e, Reduce) and self._is_laned(e) else found
        if isinstance(e, Reduce):
            if self._is_laned(e):
                vector = self._plan.vector
                assert vector is not None
                target = self._target(e.free - {vector.name}, block, self._strip)
                name = self._laned_reduce(e, target)
                target.memo[e] = name
                return f"{name}[{block.lane}]"
            target = self._target(e.free, block)
            name = self._reduce(e, target)
            target.memo[e] = name
            return name
        target = self._target(e.free, block)
        text = self._text(e, target)
        if target.texts.get(text):
            name = target.texts[text]
        else:
            name = self._fresh("t")
            target.lines.append(f"const {local_type(e.dtype)} {name} = {text};")
            target.texts[text] = name
        target.memo[e] = name
        return name

    def _text(self, e: Expr, block: Block) -> str:
        if isinstance(e, IndexValue):
            return self._dim(e.index, block)
        if isinstance(e, Load) and e in self._staged:
            assert self._plan.tile is not None
            column = f"({self._axis(self._plan.tile)} - t0)"
            return f"{self._staged[e]}[{block.lane} * {TILE_ROWS + 1} + {column}]"
        if isinstance(e, Load):
            text = f"{self.buffers[e.buffer]}[{self._dim(e.offset, block)}]"
            text = c_scalar.widen(text, e.buffer.dtype)
            guards = [g for g in e.guards if g not in block.known]
            if guards:
                return f"{self._conditions(guards, block)} ? {text} : {literal(0, e.dtype)}"
            return text
        if isinstance(e, Call):
            args = [self._emit(a, block) for a in e.args]
            return c_scalar.function(e.fn, args, e.args[-1].dtype, e.dtype)
        assert isinstance(e, RowRef)
        return self._row_element(e, block)

    def _conditions(self, guards: list[Dim], block: Block) -> str:
        return "(" + " & ".join(f"({self._dim(g, block)} >= 0)" for g in guards) + ")"

    # ------------------------------------------------------------------ reductions
    def _reduce(self, e: Reduce, target: Block) -> str:
        """A scalar reduction inside `target`."""
        acc = self._fresh("a")
        fused = self._fusible_rows(e, target)
        storage = {row: self._allocate(row, target, lanes=False) for row in fused}

        def body(block: Block) -> list[str]:
            for row, name in storage.items():
                block.fused[row] = (name, e.axes)
            inner, condition = self._guarded(e, block)
            value = self._emit(e.value, inner)
            update = f"{acc} = {accumulate(e.kind, e.dtype, acc, value)};"
            return [*wrap(condition, [*inner.lines, update])] if inner is not block else [update]

        lines = self._loops(e.axes, target, body)
        for row, name in storage.items():
            self._rows[row] = _RowStorage(name, False)
        target.lines.append(f"{local_type(e.dtype)} {acc} = {neutral(e.kind, e.dtype)};")
        target.lines += lines
        return acc

    def _guarded(self, e: Reduce, block: Block) -> tuple[Block, str]:
        """A block in which the conditions of e hold, and their C text ("" if there are none)."""
        if not e.where:
            return block, ""
        condition = self._conditions(list(e.where), block)
        inner = Block(block, ())
        inner.known = block.known | frozenset(e.where)
        return inner, condition

    def _fusible_rows(self, e: Reduce, target: Block) -> list[Row]:
        """Rows that the reduction reads exactly once per point, in order: filled in the same loop."""
        index = tuple(a.index for a in e.axes)
        rows: dict[Row, bool] = {}
        for x in walk([e.value], self.scope):
            if isinstance(x, RowRef) and x.row not in self._rows and not x.row.scan:
                same = x.index == index and len(x.row.axes) == len(e.axes)
                same = same and all(
                    a.extent == b.extent for a, b in zip(x.row.axes, e.axes, strict=True)
                )
                same = same and x.row.free <= target.bound and not self._is_laned(x.row)
                same = same and self._target(x.row.free, target) is target
                rows[x.row] = rows.get(x.row, True) and same
        # A row that another reduction or row reads on the way must be complete before this loop.
        for x in walk([e.value], self.scope):
            if isinstance(x, (Reduce, Row)) and x is not e:
                for child in children(x, self.scope):
                    for y in walk([child], self.scope):
                        if isinstance(y, RowRef):
                            rows[y.row] = False
        return [row for row, ok in rows.items() if ok and not e.where]

    def _laned_reduce(self, e: Reduce, target: Block) -> str:
        """A reduction for every lane of the vector block: an array of accumulators inside `target`."""
        vector = self._plan.vector
        assert vector is not None
        acc = self._fresh("a")

        def body(block: Block) -> list[str]:
            uniform, bounded, other = self._split_guards(e.where)
            inner = Block(block, ())
            inner.known = block.known | frozenset(uniform) | frozenset(bounded)
            condition = self._conditions(uniform, block) if uniform else ""

            def update(lane: Block) -> list[str]:
                where = self._conditions(other, lane) if other else ""
                value = self._emit(e.value, lane)
                here = f"{acc}[{lane.lane}]"
                step = accumulate(e.kind, e.dtype, here, value, lanes=True)
                return [f"{here} = {where} ? {step} : {here};" if where else f"{here} = {step};"]

            lines = self._vector_loop(inner, update, self._lane_bounds(bounded, block))
            lines = [*inner.lines, *lines]
            return wrap(condition, lines) if condition else ["{", *indent(lines), "}"]

        lines = self._loops(e.axes, target, body)
        kind = local_type(e.dtype)
        target.lines.append(f"{kind} {acc}[{self._width}];")
        target.lines.append(f"for (int64_t v = 0; v < vn; v++) {acc}[v] = {neutral(e.kind, e.dtype)};")
        target.lines += lines
        return acc

    def _split_guards(self, guards: tuple[Dim, ...]) -> tuple[list[Dim], list[Dim], list[Dim]]:
        """Guards that all lanes share, those that bound the lanes, and the rest."""
        vector = self._plan.vector
        assert vector is not None
        uniform: list[Dim] = []
        bounded: list[Dim] = []
        other: list[Dim] = []
        for g in guards:
            factor = coefficient(g, vector.name)
            through_data = any(n[0] == "#" for n in symbols(g))
            if vector.name not in self.scope.free(g):
                uniform.append(g)
            elif isinstance(factor, int) and factor and not through_data:
                bounded.append(g)
            else:
                other.append(g)
        return uniform, bounded, other

    def _lane_bounds(self, guards: list[Dim], block: Block) -> tuple[str, str]:
        """The lanes [first, last) on which guards linear in the vector axis hold."""
        vector = self._plan.vector
        assert vector is not None
        first, last = "0", "vn"
        for g in guards:
            factor = coefficient(g, vector.name)
            assert isinstance(factor, int)
            rest = self._dim(substitute(g, {vector.name: 0}), block)
            if factor > 0:  # lane >= ceil(-rest / factor) - v0
                first = f"dt_maxi({first}, -dt_floordiv({rest}, {factor}) - v0)"
            else:  # lane <= floor(rest / -factor) - v0
                last = f"dt_mini({last}, dt_floordiv({rest}, {-factor}) + 1 - v0)"
        return first, last

    # ------------------------------------------------------------------ rows
    def _allocate(self, row: Row, target: Block, *, lanes: bool) -> str:
        name = self._fresh("r")
        kind = memory_type(row.dtype)
        size = product(a.extent for a in row.axes) * (self._width if lanes else 1)
        if isinstance(size, int) and size * row.dtype.itemsize <= _STACK:
            target.lines.append(f"{kind} {name}[{max(1, size)}];")
            return name
        start = dim_text(self.workspace, self.symbols, lambda d: True)
        for n in sorted(symbols(size)):
            self.symbols.setdefault(n, f"n{len(self.symbols)}")
        target.lines.append(f"{kind} *restrict {name} = ({kind} *)(ws + {start});")
        self.workspace = self.workspace + ceil_div(size * row.dtype.itemsize, 64) * 64
        return name

    def _row_element(self, e: RowRef, block: Block) -> str:
        for candidate in block.chain():
            if e.row in candidate.fused and e.index == tuple(a.index for a in candidate.fused[e.row][1]):
                return self._fused_element(e.row, *candidate.fused[e.row], candidate)
        storage = self._rows.get(e.row) or self._fill(e.row, block)
        linear: Dim = 0
        for axis, index in zip(e.row.axes, e.index, strict=True):
            linear = linear * axis.extent + index
        if storage.lanes:
            return f"{storage.name}[{self._dim(linear, block)} * {self._width} + {block.lane}]"
        return f"{storage.name}[{self._dim(linear, block)}]"

    def _fused_element(self, row: Row, name: str, axes: tuple[Axis, ...], block: Block) -> str:
        renamed = {a.name: b.index for a, b in zip(row.axes, axes, strict=True)}
        value = self._emit(Rewriter(self.scope, lambda d: substitute(d, renamed))(row.value), block)
        linear: Dim = 0
        for axis in axes:
            linear = linear * axis.extent + axis.index
        block.lines.append(f"{name}[{self._dim(linear, block)}] = {value};")
        return value

    def _fill(self, row: Row, block: Block) -> _RowStorage:
        """Compute a row where its free indices are bound."""
        vector = self._plan.vector
        if self._is_laned(row):
            assert vector is not None
            target = self._target(row.free - {vector.name}, block, self._strip)
        else:
            target = self._target(row.free, block)
        lanes = self._is_laned(row)
        linear: Dim = 0
        for axis in row.axes:
            linear = linear * axis.extent + axis.index
        name = self._allocate(row, target, lanes=lanes)
        acc = self._fresh("a")

        def element(inner: Block) -> list[str]:
            value = self._emit(row.value, inner)
            where = self._dim(linear, inner)
            if lanes:
                return [f"{name}[{where} * {self._width} + {inner.lane}] = {value};"] if not row.scan else [
                    f"{acc}[{inner.lane}] += {value};",
                    f"{name}[{where} * {self._width} + {inner.lane}] = {acc}[{inner.lane}];",
                ]
            return [f"{name}[{where}] = {value};"] if not row.scan else [
                f"{acc} = {acc} + {value};", f"{name}[{where}] = {acc};"
            ]

        def body(inner: Block) -> list[str]:
            return self._vector_loop(inner, element) if lanes else element(inner)

        lines = self._loops(row.axes, target, body)
        if row.scan:
            size = f"[{self._width}]" if lanes else ""
            target.lines.append(f"{local_type(row.dtype)} {acc}{size}{'' if lanes else ' = 0'};")
            if lanes:
                target.lines.append(f"for (int64_t v = 0; v < vn; v++) {acc}[v] = 0;")
        target.lines += lines
        storage = self._rows[row] = _RowStorage(name, lanes)
        return storage
