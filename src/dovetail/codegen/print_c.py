"""Prints a `LoopKernel` as a C function with the kernel ABI (see `codegen.kernel`).

Every expression is placed on demand in the outermost open block that binds its indices, which hoists
invariants and shares common subexpressions. Each operation is a statement of its own, so no product and
sum are contracted and results round as NumPy's do.

Outer axes are flattened and shared out in contiguous chunks. A reduction is computed whole by one thread, hence
results are bitwise equal for every number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dovetail.codegen import c_scalar
from dovetail.codegen.c_scalar import dim_symbols, dim_text, literal, local_type, memory_type
from dovetail.codegen.index import Ranges, coefficient
from dovetail.codegen.kernel import ENTRY, MAX_THREADS, Kernel, Param, make_kernel
from dovetail.codegen.loop_ir import (
    Axis,
    Buffer,
    Call,
    Const,
    Expr,
    IndexValue,
    Leaf,
    Load,
    LoopKernel,
    Nest,
    Reduce,
    Rewriter,
    Row,
    RowRef,
    Scope,
    children,
    walk,
)
from dovetail.codegen.schedule import Schedule, all_axes, expressions, normalise, schedule
from dovetail.core.dims import Dim, ceil_div, product, substitute, sym, symbols
from dovetail.core.dtypes import DType

# Points of the vector axis that one block computes: with array accumulators, and without.
_LANES = 256
_CHUNK = 2048
# Bytes that rows over a block of the vector axis should stay below.
_ROW_CACHE = 262144
# Tiles of transposes: points of the vector axis, and of the axis that is contiguous in the source.
_TILE = 32
_TILE_ROWS = 128
# Largest local array on the stack, in bytes; larger ones live in the workspace.
_STACK = 16384


def print_kernel(kernel: LoopKernel, *, tactic: str = "loop") -> Kernel:
    """The C text of a kernel with its parameters, run-time dims and cost estimates."""
    nests = [normalise(nest, kernel.scope) for nest in kernel.nests]
    printer = _Printer(kernel.scope, kernel.buffers)
    bodies = [printer.nest(nest) for nest in nests]
    names = sorted(printer.symbols, key=lambda n: printer.symbols[n])
    lines = [f"void {ENTRY}(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {{"]
    lines += [f"  const int64_t {printer.symbols[n]} = d[{i}];" for i, n in enumerate(names)]
    for position, buffer in enumerate(kernel.buffers):
        quality = "const " if buffer.role == "in" else ""
        lines.append(
            f"  {quality}{memory_type(buffer.dtype)} *restrict {printer.buffers[buffer]} = p[{position}];"
        )
    params = [Param(b.role, b.index) for b in kernel.buffers]
    workspace: Dim = 0
    if printer.workspace != 0:
        workspace = printer.workspace * MAX_THREADS
        size = dim_text(printer.workspace, printer.symbols, lambda d: True)
        lines.append(f"  char *restrict ws = (char *)p[{len(params)}] + tid * {size};")
        params.append(Param("workspace", 0))
    for body in bodies:
        lines += ["  " + line for line in body]
    lines.append("}")
    flops, traffic = _cost(kernel)
    return make_kernel(
        "\n".join(lines) + "\n",
        params=params,
        dims=tuple(sym(n) for n in names),
        workspace_bytes=workspace,
        flops=flops,
        bytes=traffic,
        tactic=tactic,
    )


def _cost(kernel: LoopKernel) -> tuple[Dim, Dim]:
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


class _Block:
    """An open C block: the axes bound here and outside, its lines, and what it has computed."""

    def __init__(self, parent: _Block | None, axes: tuple[Axis, ...], *, lane: str | None = None) -> None:
        self.parent = parent
        self.bound: frozenset[str] = (parent.bound if parent else frozenset()) | {a.name for a in axes}
        self.own = axes
        self.lines: list[str] = []
        self.memo: dict[Expr, str] = {}
        self.texts: dict[str, str] = {}
        self.known: frozenset[Dim] = parent.known if parent else frozenset()
        self.fused: dict[Row, tuple[str, tuple[Axis, ...]]] = {}
        # In a loop over the vector axis: the lane variable.
        inherited: str | None = parent.lane if parent else None
        self.lane: str | None = lane if lane is not None else inherited

    def chain(self) -> list[_Block]:
        """This block and its ancestors, outermost first."""
        blocks: list[_Block] = []
        block: _Block | None = self
        while block is not None:
            blocks.append(block)
            block = block.parent
        return blocks[::-1]

    def lookup(self, e: Expr) -> str | None:
        """The variable that holds e, if an open block has computed it."""
        block: _Block | None = self
        while block is not None:
            if e in block.memo:
                return block.memo[e]
            block = block.parent
        return None


Body = Callable[[_Block], list[str]]


@dataclass
class _RowStorage:
    name: str
    lanes: bool


class _Printer:
    """Prints the nests of one kernel; the counters make names unique in the function."""

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
        self._strip: _Block | None = None
        self._staged: dict[Load, str] = {}
        self._width: int = 1

    # ------------------------------------------------------------------ names
    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def _axis(self, axis: Axis) -> str:
        return self._axes.setdefault(axis.name, f"i{len(self._axes)}")

    def _dim(self, d: Dim, block: _Block | None) -> str:
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
    def nest(self, nest: Nest) -> list[str]:
        """The C block of one normalised nest."""
        self._ranges = Ranges({a.name: a.extent for a in all_axes(nest, self.scope)})
        self._rows = {}
        plan = self._plan = schedule(nest, self.scope)
        top = _Block(None, ())
        shared = plan.outer[: plan.parallel]
        extents = [self._dim(a.extent, None) for a in shared]
        blocks: list[tuple[str, str]] = []  # (variable, count) of shared blocks
        chunk = self._lanes(nest) if plan.lanes else _TILE if plan.tile else _CHUNK
        self._width = chunk
        if plan.split_vector:
            assert plan.vector is not None
            if plan.tile:
                blocks.append(("bt", self._dim(ceil_div(plan.tile.extent, _TILE_ROWS), None)))
                where = shared.index(plan.tile)
                shared = shared[:where] + shared[where + 1 :]
                extents.pop(where)
            blocks.append(("bv", self._dim(ceil_div(plan.vector.extent, chunk), None)))
        inner = _Block(top, shared)
        inner.lines += self._inner(nest, plan, inner, chunk)
        counters = [(self._axis(a), n) for a, n in zip(shared, extents, strict=True)] + blocks
        total = " * ".join(f"{n}" for _, n in counters) or "1l"
        lines = [
            "{",
            f"  const int64_t total = {total};",
            "  const int64_t lo = total * tid / nt, hi = total * (tid + 1) / nt;",
            "  if (lo < hi) {",
        ]
        lines += ["    " + line for line in top.lines]
        rest = "lo"
        for position in range(len(counters) - 1, -1, -1):
            name, count = counters[position]
            if position == 0:
                lines.append(f"    int64_t {name} = {rest};")
            else:
                lines.append(f"    int64_t {name} = {rest} % {count};")
                rest = f"({rest} / {count})"
        lines.append("    for (int64_t it = lo; it < hi; it++) {")
        lines += ["      " + line for line in inner.lines]
        step = ""
        for position, (name, count) in enumerate(counters):
            step = f"{name}++;" if position == 0 else f"if (++{name} == {count}) {{ {name} = 0; {step} }}"
        if step:
            lines.append("      " + step)
        return [*lines, "    }", "  }", "}"]

    def _lanes(self, nest: Nest) -> int:
        """Points of the vector axis per block: fewer where each needs a long row, to stay in cache."""
        longest = 1
        for e in expressions(nest, self.scope):
            if isinstance(e, Row) and self._is_laned(e):
                size = product(a.extent for a in e.axes)
                longest = max(longest, size if isinstance(size, int) else 1024)
        lanes = _LANES
        while lanes > 16 and lanes * longest * 4 > _ROW_CACHE:
            lanes //= 2
        return lanes

    def _inner(self, nest: Nest, plan: Schedule, block: _Block, chunk: int) -> list[str]:
        """Lines of the body of the shared loop, appended after what gets hoisted into `block`."""
        serial = plan.outer[plan.parallel : plan.depth]
        within = plan.outer[plan.depth :]
        vector = plan.vector
        if vector is None:
            assert not within
            return self._loops(serial, block, lambda b: self._stores(nest, b))
        if plan.tile is not None:
            lines = [
                f"const int64_t t0 = bt * {_TILE_ROWS}, "
                f"t1 = dt_mini(t0 + {_TILE_ROWS}, {self._dim(plan.tile.extent, None)});",
                *self._block_bounds(vector, chunk, "bv"),
            ]
            staging = self._stage(nest, plan.tile, vector, block)
            loop = _Block(block, (plan.tile,))
            body = self._vector_loop(loop, lambda b: self._stores(nest, b))
            loop.lines += body
            self._staged = {}
            return [*lines, *staging, self._tile_loop(plan.tile), *_indent(loop.lines), "}"]

        def stripped(parent: _Block) -> list[str]:
            strip = _Block(parent, ())
            self._strip = strip
            rest = self._loops(within, strip, lambda b: self._vector_loop(b, lambda v: self._stores(nest, v)))
            self._strip = None
            return [*strip.lines, *rest]

        if plan.split_vector:
            return [*self._block_bounds(vector, chunk, "bv"), *stripped(block)]

        def serial_blocks(parent: _Block) -> list[str]:
            extent = self._dim(vector.extent, None)
            if not plan.lanes:
                return ["const int64_t v0 = 0, vn = " + extent + ";", *stripped(parent)]
            lines = [f"for (int64_t v0 = 0; v0 < {extent}; v0 += {chunk}) {{"]
            lines.append(f"  const int64_t vn = dt_mini({chunk}, {extent} - v0);")
            return [*lines, *_indent(stripped(parent)), "}"]

        return self._loops(serial, block, serial_blocks)

    def _tile_loop(self, tile: Axis) -> str:
        name = self._axis(tile)
        return f"for (int64_t {name} = t0; {name} < t1; {name}++) {{"

    def _stage(self, nest: Nest, tile: Axis, vector: Axis, block: _Block) -> list[str]:
        """Copies of what is contiguous along the tile axis, read in that order into local tiles.

        Read in the order of the stores, lines of power-of-two strides would evict each other.
        """
        lines: list[str] = []
        staged: dict[Load, str] = {}
        for e in expressions(nest, self.scope):
            along = coefficient(e.offset, tile.name) if isinstance(e, Load) else None
            if isinstance(e, Load) and along == 1 and coefficient(e.offset, vector.name) not in (0, 1):
                staged[e] = self._fresh("s")
        for e, name in staged.items():

            def copy(lane: _Block, e: Load = e, name: str = name) -> list[str]:
                inner = _Block(lane, (tile,))
                value = self._emit(e, inner)
                place = f"{name}[{lane.lane} * {_TILE_ROWS + 1} + ({self._axis(tile)} - t0)]"
                inner.lines.append(f"{place} = {value};")
                return [self._tile_loop(tile), *_indent(inner.lines), "}"]

            lines.append(f"{local_type(e.dtype)} {name}[{_TILE * (_TILE_ROWS + 1)}];")
            lines += self._vector_loop(block, copy)
        self._staged = staged
        return lines

    def _block_bounds(self, vector: Axis, chunk: int, block: str) -> list[str]:
        extent = vector.extent
        if isinstance(extent, int) and extent <= chunk:
            return [f"const int64_t v0 = 0, vn = {extent};"]
        return [
            f"const int64_t v0 = {block} * {chunk};",
            f"const int64_t vn = dt_mini({chunk}, {self._dim(extent, None)} - v0);",
        ]

    def _loops(self, axes: tuple[Axis, ...], parent: _Block, body: Body) -> list[str]:
        """Serial loops around what `body(innermost block)` returns."""
        if not axes:
            return body(parent)
        axis = axes[0]
        name, extent = self._axis(axis), self._dim(axis.extent, None)
        block = _Block(parent, (axis,))
        block.lines += self._loops(axes[1:], block, body)
        return [f"for (int64_t {name} = 0; {name} < {extent}; {name}++) {{", *_indent(block.lines), "}"]

    def _vector_loop(
        self, parent: _Block, body: Body, bounds: tuple[str, str] = ("0", "vn")
    ) -> list[str]:
        """A loop over (some) lanes of the current block of the vector axis."""
        vector = self._plan.vector
        assert vector is not None
        lane = self._fresh("v")
        block = _Block(parent, (vector,), lane=lane)
        block.lines.append(f"const int64_t {self._axis(vector)} = v0 + {lane};")
        block.lines += body(block)
        first, last = bounds
        head = f"for (int64_t {lane} = {first}; {lane} < {last}; {lane}++) {{"
        if bounds == ("0", "vn"):
            return [head, *_indent(block.lines), "}"]
        # Bounds are computed once, ahead of the loop.
        head = f"for (int64_t {lane} = lo{lane}; {lane} < hi{lane}; {lane}++) {{"
        ahead = f"const int64_t lo{lane} = {first}, hi{lane} = {last};"
        return ["{", "  " + ahead, "  " + head, *_indent(_indent(block.lines)), "  }", "}"]

    def _stores(self, nest: Nest, block: _Block) -> list[str]:
        lines = []
        for store in nest.stores:
            value = self._emit(store.value, block)
            offset = self._dim(store.offset, block)
            value = c_scalar.narrow(value, store.buffer.dtype)
            lines.append(f"{self.buffers[store.buffer]}[{offset}] = {value};")
        return lines

    # ------------------------------------------------------------------ expressions
    def _target(self, free: frozenset[str], block: _Block, floor: _Block | None = None) -> _Block:
        """The outermost open block (not above `floor`) that binds all of `free`."""
        chain = block.chain()
        start = chain.index(floor) if floor is not None and floor in chain else 0
        for candidate in chain[start:]:
            if free <= candidate.bound:
                return candidate
        raise AssertionError(f"indices {sorted(free)} are not bound in {sorted(block.bound)}")

    def _is_laned(self, e: Expr) -> bool:
        return self._plan.vector is not None and self._plan.lanes and self._plan.vector.name in e.free

    def _emit(self, e: Expr, block: _Block) -> str:
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

    def _text(self, e: Expr, block: _Block) -> str:
        if isinstance(e, IndexValue):
            return self._dim(e.index, block)
        if isinstance(e, Load) and e in self._staged:
            assert self._plan.tile is not None
            column = f"({self._axis(self._plan.tile)} - t0)"
            return f"{self._staged[e]}[{block.lane} * {_TILE_ROWS + 1} + {column}]"
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

    def _conditions(self, guards: list[Dim], block: _Block) -> str:
        return "(" + " & ".join(f"({self._dim(g, block)} >= 0)" for g in guards) + ")"

    # ------------------------------------------------------------------ reductions
    def _reduce(self, e: Reduce, target: _Block) -> str:
        """A scalar reduction inside `target`."""
        acc = self._fresh("a")
        fused = self._fusible_rows(e, target)
        storage = {row: self._allocate(row, target, lanes=False) for row in fused}

        def body(block: _Block) -> list[str]:
            for row, name in storage.items():
                block.fused[row] = (name, e.axes)
            inner, condition = self._guarded(e, block)
            value = self._emit(e.value, inner)
            update = f"{acc} = {_step(e.kind, e.dtype, acc, value)};"
            return [*_wrap(condition, [*inner.lines, update])] if inner is not block else [update]

        lines = self._loops(e.axes, target, body)
        for row, name in storage.items():
            self._rows[row] = _RowStorage(name, False)
        target.lines.append(f"{local_type(e.dtype)} {acc} = {_neutral(e.kind, e.dtype)};")
        target.lines += lines
        return acc

    def _guarded(self, e: Reduce, block: _Block) -> tuple[_Block, str]:
        """A block in which the conditions of e hold, and their C text ("" if there are none)."""
        if not e.where:
            return block, ""
        condition = self._conditions(list(e.where), block)
        inner = _Block(block, ())
        inner.known = block.known | frozenset(e.where)
        return inner, condition

    def _fusible_rows(self, e: Reduce, target: _Block) -> list[Row]:
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

    def _laned_reduce(self, e: Reduce, target: _Block) -> str:
        """A reduction for every lane of the vector block: an array of accumulators inside `target`."""
        vector = self._plan.vector
        assert vector is not None
        acc = self._fresh("a")

        def body(block: _Block) -> list[str]:
            uniform, bounded, other = self._split_guards(e.where)
            inner = _Block(block, ())
            inner.known = block.known | frozenset(uniform) | frozenset(bounded)
            condition = self._conditions(uniform, block) if uniform else ""

            def update(lane: _Block) -> list[str]:
                where = self._conditions(other, lane) if other else ""
                value = self._emit(e.value, lane)
                here = f"{acc}[{lane.lane}]"
                step = _step(e.kind, e.dtype, here, value, lanes=True)
                return [f"{here} = {where} ? {step} : {here};" if where else f"{here} = {step};"]

            lines = self._vector_loop(inner, update, self._lane_bounds(bounded, block))
            lines = [*inner.lines, *lines]
            return _wrap(condition, lines) if condition else ["{", *_indent(lines), "}"]

        lines = self._loops(e.axes, target, body)
        kind = local_type(e.dtype)
        target.lines.append(f"{kind} {acc}[{self._width}];")
        target.lines.append(f"for (int64_t v = 0; v < vn; v++) {acc}[v] = {_neutral(e.kind, e.dtype)};")
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

    def _lane_bounds(self, guards: list[Dim], block: _Block) -> tuple[str, str]:
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
    def _allocate(self, row: Row, target: _Block, *, lanes: bool) -> str:
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

    def _row_element(self, e: RowRef, block: _Block) -> str:
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

    def _fused_element(self, row: Row, name: str, axes: tuple[Axis, ...], block: _Block) -> str:
        renamed = {a.name: b.index for a, b in zip(row.axes, axes, strict=True)}
        value = self._emit(Rewriter(self.scope, lambda d: substitute(d, renamed))(row.value), block)
        linear: Dim = 0
        for axis in axes:
            linear = linear * axis.extent + axis.index
        block.lines.append(f"{name}[{self._dim(linear, block)}] = {value};")
        return value

    def _fill(self, row: Row, block: _Block) -> _RowStorage:
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

        def element(inner: _Block) -> list[str]:
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

        def body(inner: _Block) -> list[str]:
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


def _indent(lines: list[str]) -> list[str]:
    return ["  " + line for line in lines]


def _wrap(condition: str, lines: list[str]) -> list[str]:
    return [f"if {condition} {{", *_indent(lines), "}"]


def _neutral(kind: str, dtype: DType) -> str:
    if kind in ("sum", "prod"):
        return literal(0 if kind == "sum" else 1, dtype)
    low = kind == "max"
    if dtype.is_float:
        return literal(float("-inf") if low else float("inf"), dtype)
    if dtype.kind == "bool":
        return literal(not low, dtype)
    signed = dtype.kind == "int"
    least = -(2 ** (dtype.bits - 1)) if signed else 0
    most = 2 ** (dtype.bits - signed) - 1
    return literal(least if low else most, dtype)


def _step(kind: str, dtype: DType, acc: str, value: str, *, lanes: bool = False) -> str:
    """One accumulation; over lanes no reordering is wanted, hence plain operations."""
    operator = {"sum": "+", "prod": "*"}.get(kind)
    if dtype.is_float:
        suffix = "d" if dtype.name == "f64" else "f"
        if lanes and operator:
            return f"{acc} {operator} {value}"
        return f"dt_{kind}{'' if lanes else '_step'}{suffix}({acc}, {value})"
    if operator:
        return f"({local_type(dtype)})({acc} {operator} {value})"
    return f"{acc} {'>' if kind == 'max' else '<'} {value} ? {acc} : {value}"
