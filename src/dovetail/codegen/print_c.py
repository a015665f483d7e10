"""Prints a `LoopKernel` as a C function with the kernel ABI (see `codegen.kernel`): its nests as loops.

Outer axes are flattened and shared out in contiguous chunks. A reduction is computed whole by one thread, hence
results are bitwise equal for every number of threads. Expressions are printed by `c_expressions`.
"""

from __future__ import annotations

from dovetail.codegen import c_scalar
from dovetail.codegen.c_blocks import Block, indent
from dovetail.codegen.c_expressions import TILE, TILE_ROWS, ExpressionPrinter
from dovetail.codegen.c_scalar import dim_text, local_type, memory_type
from dovetail.codegen.index import Ranges, coefficient
from dovetail.codegen.kernel import ENTRY, MAX_THREADS, Kernel, Param, make_kernel
from dovetail.codegen.loop_ir import Axis, Load, LoopKernel, Nest, Row
from dovetail.codegen.schedule import Schedule, all_axes, cost, expressions, normalise, schedule
from dovetail.core.dims import Dim, ceil_div, product, sym

# Points of the vector axis that one block computes: with array accumulators, and without.
_LANES = 256
_CHUNK = 2048
# Bytes that rows over a block of the vector axis should stay below.
_ROW_CACHE = 262144


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
    flops, traffic = cost(kernel)
    return make_kernel(
        "\n".join(lines) + "\n",
        params=params,
        dims=tuple(sym(n) for n in names),
        workspace_bytes=workspace,
        flops=flops,
        bytes=traffic,
        tactic=tactic,
    )


class _Printer(ExpressionPrinter):
    """Prints the nests of one kernel."""

    def nest(self, nest: Nest) -> list[str]:
        """The C block of one normalised nest."""
        self._ranges = Ranges({a.name: a.extent for a in all_axes(nest, self.scope)})
        self._rows = {}
        plan = self._plan = schedule(nest, self.scope)
        top = Block(None, ())
        shared = plan.outer[: plan.parallel]
        extents = [self._dim(a.extent, None) for a in shared]
        blocks: list[tuple[str, str]] = []  # (variable, count) of shared blocks
        chunk = self._lanes(nest) if plan.lanes else TILE if plan.tile else _CHUNK
        self._width = chunk
        if plan.split_vector:
            assert plan.vector is not None
            if plan.tile:
                blocks.append(("bt", self._dim(ceil_div(plan.tile.extent, TILE_ROWS), None)))
                where = shared.index(plan.tile)
                shared = shared[:where] + shared[where + 1 :]
                extents.pop(where)
            blocks.append(("bv", self._dim(ceil_div(plan.vector.extent, chunk), None)))
        inner = Block(top, shared)
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

    def _inner(self, nest: Nest, plan: Schedule, block: Block, chunk: int) -> list[str]:
        """Lines of the body of the shared loop, appended after what gets hoisted into `block`."""
        serial = plan.outer[plan.parallel : plan.depth]
        within = plan.outer[plan.depth :]
        vector = plan.vector
        if vector is None:
            assert not within
            return self._loops(serial, block, lambda b: self._stores(nest, b))
        if plan.tile is not None:
            lines = [
                f"const int64_t t0 = bt * {TILE_ROWS}, "
                f"t1 = dt_mini(t0 + {TILE_ROWS}, {self._dim(plan.tile.extent, None)});",
                *self._block_bounds(vector, chunk, "bv"),
            ]
            staging = self._stage(nest, plan.tile, vector, block)
            loop = Block(block, (plan.tile,))
            body = self._vector_loop(loop, lambda b: self._stores(nest, b))
            loop.lines += body
            self._staged = {}
            return [*lines, *staging, self._tile_loop(plan.tile), *indent(loop.lines), "}"]

        def stripped(parent: Block) -> list[str]:
            strip = Block(parent, ())
            self._strip = strip
            rest = self._loops(within, strip, lambda b: self._vector_loop(b, lambda v: self._stores(nest, v)))
            self._strip = None
            return [*strip.lines, *rest]

        if plan.split_vector:
            return [*self._block_bounds(vector, chunk, "bv"), *stripped(block)]

        def serial_blocks(parent: Block) -> list[str]:
            extent = self._dim(vector.extent, None)
            if not plan.lanes:
                return ["const int64_t v0 = 0, vn = " + extent + ";", *stripped(parent)]
            lines = [f"for (int64_t v0 = 0; v0 < {extent}; v0 += {chunk}) {{"]
            lines.append(f"  const int64_t vn = dt_mini({chunk}, {extent} - v0);")
            return [*lines, *indent(stripped(parent)), "}"]

        return self._loops(serial, block, serial_blocks)

    def _tile_loop(self, tile: Axis) -> str:
        name = self._axis(tile)
        return f"for (int64_t {name} = t0; {name} < t1; {name}++) {{"

    def _stage(self, nest: Nest, tile: Axis, vector: Axis, block: Block) -> list[str]:
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

            def copy(lane: Block, e: Load = e, name: str = name) -> list[str]:
                inner = Block(lane, (tile,))
                value = self._emit(e, inner)
                place = f"{name}[{lane.lane} * {TILE_ROWS + 1} + ({self._axis(tile)} - t0)]"
                inner.lines.append(f"{place} = {value};")
                return [self._tile_loop(tile), *indent(inner.lines), "}"]

            lines.append(f"{local_type(e.dtype)} {name}[{TILE * (TILE_ROWS + 1)}];")
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

    def _stores(self, nest: Nest, block: Block) -> list[str]:
        lines = []
        for store in nest.stores:
            value = self._emit(store.value, block)
            offset = self._dim(store.offset, block)
            value = c_scalar.narrow(value, store.buffer.dtype)
            lines.append(f"{self.buffers[store.buffer]}[{offset}] = {value};")
        return lines
