"""The loop nest around the register tile, shared by GEMM and convolution.

Outputs are a matrix of *rows* (pixels, or rows of a matrix) by *columns* (channels). Rows are the
product of some outer axes and one tiled axis; columns are groups of packed panels. Work is a grid
of (row tiles) x (panels); threads take rectangles of that grid, so every output is computed by exactly one
thread in the same order of additions, whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dovetail.core.dims import Dim, product
from dovetail.kernels.cpu import microkernel
from dovetail.kernels.cpu.epilogue import Access, Epilogue
from dovetail.kernels.cpu.microkernel import COUNTED, Run, Tile
from dovetail.kernels.cpu.text import DimTable, Isa, counted_functions, partial_functions

WHOLE_BYTES = 3 << 20
"""Left operands up to this size are read once per panel: measured best, or equal, up to 3 MB."""
CHUNK_BYTES = 512 << 10
"""Bytes of larger ones that are reused over all panels before the next rows: a share of the L2 cache."""

STREAM_BYTES = 48 << 10
"""Panels of `b` larger than this are fetched ahead by the tiles before: smaller ones are there soon enough."""

DEPTH_BYTES = 288 << 10
"""Panels of `b` larger than this are cut along k: the part in use and the part that comes next both fit the L2 cache."""
RAW_BYTES = 32 << 10
"""Most that the raw sums of a panel's row tiles may take on the stack."""


@dataclass(frozen=True)
class Axis:
    """An axis of rows or groups: extent and element strides in `a`, `b`, and each output and operand."""

    extent: Dim
    a: Dim
    outputs: tuple[Dim, ...]
    operands: tuple[Dim, ...] = ()
    b: Dim = 0

    @property
    def strides(self) -> tuple[Dim, ...]:
        """Strides in the order a, b, outputs, operands."""
        return (self.a, self.b, *self.outputs, *self.operands)


@dataclass(frozen=True)
class Panels:
    """How the columns of one group are cut: panels of `vectors` registers, the last as narrow as it may be."""

    columns: Dim
    vectors: int
    lanes: int

    @property
    def width(self) -> int:
        """Columns of a full panel."""
        return self.vectors * self.lanes

    @property
    def full(self) -> int:
        """Number of full panels of a known number of columns."""
        assert isinstance(self.columns, int)
        return self.columns // self.width

    @property
    def rest(self) -> int:
        """Columns of the last, narrower panel; 0 if there is none."""
        assert isinstance(self.columns, int)
        return self.columns % self.width

    @property
    def count(self) -> Dim:
        """Number of panels."""
        return (self.columns + (self.width - 1)) // self.width

    @property
    def packed_columns(self) -> Dim:
        """Columns of packed `b` per k, zero padding included."""
        if isinstance(self.columns, int):
            return self.full * self.width + math.ceil(self.rest / self.lanes) * self.lanes
        return self.count * self.width


@dataclass(frozen=True)
class Contraction:
    """A whole contraction.

    Attributes:
        isa: vector shape.
        groups: axes that select another block of `b` (conv groups, batches of the right operand).
        rows: row axes, outermost first; the last is the tiled one unless tiles span the last two.
        runs: loops over kernel positions as (count, stride in a).
        depth: innermost run length.
        panels: the cut of the columns.
        b_panel_stride: whether a full panel of b is `depth * product(runs) * width` floats (always, packed).
        operand_columns: column stride (0 or 1) of each epilogue operand.
        max_rows: tallest tile.
        chunk_row_bytes: bytes of `a` that one more row brings into the cache.
        epilogue: what happens before the store.
    """

    isa: Isa
    groups: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    runs: tuple[tuple[Dim, Dim], ...]
    depth: Dim
    panels: Panels
    operand_columns: tuple[int, ...]
    max_rows: int
    chunk_row_bytes: int
    epilogue: Epilogue = field(default_factory=Epilogue)


def split_evenly(count: int, most: int) -> list[tuple[int, int]]:
    """Cut `count` into the fewest parts of at most `most`, as [(size, how many)], larger first; [(1, 0)] for nothing."""
    if not count:
        return [(1, 0)]
    parts = -(-count // most)
    size, rest = divmod(count, parts)
    return [(size + 1, rest), (size, parts - rest)] if rest else [(size, parts)]


def merge_axes(axes: Sequence[Axis], tallest: int) -> tuple[Axis, ...]:
    """Join neighbouring row axes that every buffer steps through evenly.

    A static tiled axis that already fills several tiles is not joined with a symbolic one: an even
    static split beats the remainders of a run-time extent.
    """
    merged: list[Axis] = []
    for axis in reversed(axes):
        if axis.extent == 1:
            continue
        if merged:
            inner = merged[0]
            even = all(o == i * inner.extent for o, i in zip(axis.strides, inner.strides, strict=True))
            mixed = isinstance(inner.extent, int) and not isinstance(axis.extent, int)
            if even and not (mixed and isinstance(inner.extent, int) and inner.extent >= 4 * tallest):
                merged[0] = Axis(axis.extent * inner.extent, inner.a, inner.outputs, inner.operands, inner.b)
                continue
        merged.insert(0, axis)
    if not merged:
        last = axes[-1]
        merged = [Axis(1, last.a, last.outputs, last.operands, last.b)]
    return tuple(merged)


class _Writer:
    """Emits one contraction; holds what its parts share."""

    def __init__(self, spec: Contraction, dims: DimTable) -> None:
        self.spec, self.dims = spec, dims
        self.n_outputs = spec.epilogue.outputs
        rows = merge_axes(spec.rows, spec.max_rows)
        self.inner: Axis | None = None  # the axis that lies wholly inside a tile
        last = rows[-1].extent
        if len(rows) > 1 and isinstance(last, int) and 2 * last <= spec.max_rows and isinstance(rows[-2].extent, int):
            self.inner, rows = rows[-1], rows[:-1]
        self.outer, self.tiled = rows[:-1], rows[-1]
        self.inner_rows = int(self.inner.extent) if self.inner else 1  # type: ignore[arg-type]
        self.height = max(1, spec.max_rows // self.inner_rows)
        self.names = ["a", "b", *(f"o{n}" for n in range(self.n_outputs))]
        self.names += [f"e{n}" for n in range(len(spec.operand_columns))]
        self.tiles: dict[str, str] = {}
        self.runs, self.depth = spec.runs, spec.depth
        self.blocks, self.block_step = self.cut_depth()

    def cut_depth(self) -> tuple[int, Dim]:
        """(blocks along k, step of `a` between them); takes the blocks' loop off `runs` or `depth`."""
        spec = self.spec
        counts = [*(n for n, _ in spec.runs), spec.depth]
        total, tiles = product(counts), self.most_tiles()
        if not isinstance(total, int) or tiles < 2:
            return 1, 0
        raw = tiles * self.height * self.inner_rows * spec.panels.width * 4
        if 4 * total * spec.panels.width <= DEPTH_BYTES or raw > RAW_BYTES:
            return 1, 0
        for level, (count, step) in enumerate(spec.runs):
            if count != 1 and all(n == 1 for n, _ in spec.runs[:level]):
                assert isinstance(count, int)
                self.runs = spec.runs[level + 1 :]
                return count, step
        assert isinstance(spec.depth, int)
        wanted = math.ceil(4 * total * spec.panels.width / DEPTH_BYTES)
        blocks = next((n for n in range(wanted, 2 * wanted + 1) if spec.depth % n == 0), 1)
        self.depth = spec.depth // blocks
        return blocks, self.depth

    def heights(self) -> list[int]:
        extent = self.tiled.extent
        if isinstance(extent, int):
            return [size for size, _ in split_evenly(extent, self.height)]
        powers = [1 << bit for bit in reversed(range(self.height.bit_length())) if 1 << bit < self.height]
        return [self.height, *powers]

    def access(self, index: int, column: int) -> Access:
        """Tile access of buffer `index` in the order of `self.names`."""
        inner = self.inner.strides[index] if self.inner else 0
        rows = (self.dims.text(self.tiled.strides[index]), self.dims.text(inner))
        return Access(self.names[index], rows, column)

    def tile(self, height: int, vectors: int, tail: int, carry: str) -> str:
        """Make sure the tile function exists; return its name."""
        spec = self.spec
        first = 2 + self.n_outputs
        tile = Tile(
            rows=(height, self.inner_rows),
            vectors=vectors,
            tail=tail,
            a=self.access(0, 1),
            runs=tuple(Run(self.dims.text(n), self.dims.text(s)) for n, s in self.runs if n != 1),
            depth=self.dims.text(self.depth),
            panel=vectors * spec.isa.lanes,
            outputs=tuple(self.access(2 + n, 1) for n in range(self.n_outputs)),
            operands=tuple(self.access(first + n, c) for n, c in enumerate(spec.operand_columns)),
            epilogue=spec.epilogue,
            prefetch=spec.isa.lanes >= 8,
            stream=self.stream(),
            carry=carry,
        )
        if tile.name not in self.tiles:
            self.tiles[tile.name] = microkernel.emit(tile, spec.isa)
        return tile.name

    def call(self, name: str, start: str, counted: bool, raw: str) -> str:
        """A call of a tile whose first row is `start` along the tiled axis."""
        arguments = []
        for index in range(len(self.names)):
            if index == 1:
                arguments.append("bp")
                continue
            stride = self.dims.text(self.tiled.strides[index])
            arguments.append(f"{self.names[index]}r + ({start}) * {stride}")
        arguments += ["cols"] if counted else []
        arguments += ["next", "share"] if self.stream() else []
        arguments += [raw] if raw else []
        return f"{name}({', '.join(arguments)}, d);"

    def stream(self) -> int:
        """Cache lines of the next panel that a tile fetches per k; 0 where panels are small or read once.

        Weights come from memory or L3 once per run. The tiles of a panel share the work of fetching the next one, so that
        memory and multipliers work at the same time, instead of in turns.
        """
        spec = self.spec
        depth = product([spec.depth, *(n for n, _ in spec.runs)])
        total = self.total_tiles()
        if spec.isa.lanes < 8 or self.most_tiles() == 1 or not isinstance(depth, int) or 4 * depth * spec.panels.width < STREAM_BYTES:
            return 0
        return math.ceil(spec.panels.width / 16 / self.most_tiles()) if isinstance(total, int) else 1

    def unit(self, vectors: int, tail: int, carry: str) -> list[str]:
        """Statements for row tile `t` of the current rows."""
        extent, counted = self.tiled.extent, tail == COUNTED

        def call(height: int, start: str, done: str = "0") -> str:
            """A tile of `height`, after `done` rows of this unit."""
            raw = f"raw + {done} * {self.inner_rows * vectors * self.spec.isa.lanes}" if carry else ""
            return self.call(self.tile(height, vectors, tail, carry), start, counted, raw)

        if isinstance(extent, int):
            (big, many), *small = split_evenly(extent, self.height)
            text = call(big, f"t * {big}")
            if not small:
                return [text]
            ((size, _),) = small
            return [f"if (t < {many}) {text}", f"else {call(size, f'{big * many} + (t - {many}) * {size}')}"]
        tallest, *powers = self.heights()
        total = self.dims.text(extent)
        out = [
            f"int64_t m = t * {tallest}, left = {total} - m;",
            f"if (left >= {tallest}) {call(tallest, 'm')}",
            "else {",
        ]
        done = f"(m - t * {tallest})"
        out += [f"  if (left & {size}) {{ {call(size, 'm', done)} m += {size}; }}" for size in powers]
        return [*out, "}"]

    def kernel(self) -> str:
        """The whole source."""
        spec = self.spec
        body = self.main()
        tails = set()
        if isinstance(spec.panels.columns, int):
            tails = {spec.panels.rest % spec.isa.lanes} - {0}
        functions = partial_functions(spec.isa, tails)
        if not isinstance(spec.panels.columns, int):
            functions += counted_functions(spec.isa)
        return "\n".join([functions + GRID, *self.tiles.values(), *body]) + "\n"

    def decompose(self, index: str, axes: Sequence[Axis], prefix: str) -> list[str]:
        """Declare the indices of the axes of a flat index."""
        out, rest = [], index
        for n in reversed(range(1, len(axes))):
            extent = self.dims.text(axes[n].extent)
            out += [f"int64_t {prefix}{n} = {rest} % {extent}, {prefix}q{n} = {rest} / {extent};"]
            rest = f"{prefix}q{n}"
        return [*out, f"int64_t {prefix}0 = {rest};"] if axes else out

    def offsets(self, axes: Sequence[Axis], prefix: str, index: int) -> str:
        """C text of the offset of buffer `index` at the current axis indices."""
        terms = [
            f"{prefix}{n} * {self.dims.text(axis.strides[index])}"
            for n, axis in enumerate(axes)
            if axis.strides[index] != 0
        ]
        return " + ".join(terms) or "0"

    def main(self) -> list[str]:
        spec, dims, panels = self.spec, self.dims, self.spec.panels
        extent = self.tiled.extent
        tiles = dims.text((extent + (self.height - 1)) // self.height)
        rows = " * ".join([*(dims.text(a.extent) for a in self.outer), tiles])
        groups = " * ".join([*(dims.text(a.extent) for a in spec.groups), "1"])
        count = dims.text(panels.count)
        depth = " * ".join([*(dims.text(n) for n, _ in spec.runs), dims.text(spec.depth)])
        out = [
            "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
            "  const float *A = p[0], *B = p[1];",
            *(f"  float *O{n} = p[{2 + n}];" for n in range(self.n_outputs)),
            *(f"  const float *E{n} = p[{2 + self.n_outputs + n}];" for n in range(len(spec.operand_columns))),
            f"  const int64_t U = {rows}, P = {count}, C = {groups} * P, K = {depth};",
            "  int64_t u0, u1, c0, c1;",
            f"  @ENTRY@_grid(tid, nt, U, C, U * {self.height * self.inner_rows * spec.chunk_row_bytes // 4} < C * K * {panels.width},"
            " &u0, &u1, &c0, &c1);",
            f"  const int64_t chunk = {self.chunk()};",
            "  for (int64_t ub = u0; ub < u1; ub += chunk) {",
            "    const int64_t ue = ub + chunk < u1 ? ub + chunk : u1;",
            "    for (int64_t c = c0; c < c1; c++) {",
            "      const int64_t j = c % P, g = c / P;",
            *("      " + line for line in self.decompose("g", spec.groups, "g")),
        ]
        columns = (1, *([1] * self.n_outputs), *spec.operand_columns)
        for index, name in enumerate(self.names):
            if name == "b":
                group = self.offsets(spec.groups, "g", 1)
                out.append(f"      const float *bp = B + {group} + j * K * {panels.width};")
                if self.stream():
                    out.append(f"      const int64_t part = ({panels.width} + ue - ub - 1) / (ue - ub);")
                continue
            const = "" if name.startswith("o") else "const "
            panel = f" + j * {panels.width}" if index and columns[index - 1] else ""
            offset = self.offsets(spec.groups, "g", index) + panel
            out.append(f"      {const}float *{name}g = {name.upper()} + {offset};")
        if not isinstance(panels.columns, int):
            out.append(f"      const int64_t cols = {dims.text(panels.columns)} - j * {panels.width};")
            out += [f"      if (cols >= {panels.width}) {{", *self.units(panels.vectors, 0)]
            out += ["      } else {", *self.units(panels.vectors, COUNTED), "      }"]
        elif not panels.rest:
            out += self.units(panels.vectors, 0)
        else:
            last = self.units(math.ceil(panels.rest / panels.lanes), panels.rest % panels.lanes)
            if not panels.full:
                out += last
            else:
                out += [f"      if (j < {panels.full}) {{", *self.units(panels.vectors, 0)]
                out += ["      } else {", *last, "      }"]
        return [*out, "    }", "  }", "}"]

    def total_tiles(self) -> Dim:
        """Row tiles of the whole contraction."""
        return product([*(a.extent for a in self.outer), (self.tiled.extent + (self.height - 1)) // self.height])

    def chunk(self) -> int | str:
        """Row tiles per pass over the panels, as C text where the rows are known at run time only.

        All of them at once while `a` fits WHOLE_BYTES: reading `a` again per panel from L3 then costs less than reading `b`
        again. Else so few that their share of `a` stays in L2 over all panels, and of even size.
        """
        total, (whole, most) = self.total_tiles(), self.chunk_limits()
        if not isinstance(total, int):
            return f"(U <= {whole} ? U : {most})"
        if total <= whole:
            return max(1, total)
        chunks = math.ceil(total / most)
        spec = self.spec
        weights = product([spec.depth, *(n for n, _ in spec.runs), spec.panels.packed_columns]) * 4
        count = spec.panels.count
        rows = total * self.height * self.inner_rows * spec.chunk_row_bytes
        if isinstance(weights, int) and isinstance(count, int) and (chunks - 1) * weights > (count - 1) * rows:
            return total
        return math.ceil(total / chunks)

    def chunk_limits(self) -> tuple[int, int]:
        """(row tiles up to which there is one chunk, row tiles of a chunk beyond)."""
        unit = max(1, self.height * self.inner_rows * self.spec.chunk_row_bytes)
        return max(1, WHOLE_BYTES // unit), max(1, CHUNK_BYTES // unit)

    def most_tiles(self) -> int:
        """Row tiles of the largest chunk."""
        chunk = self.chunk()
        return chunk if isinstance(chunk, int) else max(self.chunk_limits())

    def units(self, vectors: int, tail: int) -> list[str]:
        """The loop over the row tiles of one chunk for one panel, once per block of k."""
        tiles = self.dims.text((self.tiled.extent + (self.height - 1)) // self.height)
        if self.blocks == 1:
            return self.row_tiles(vectors, tail, tiles)
        width, rows = vectors * self.spec.isa.lanes, self.height * self.inner_rows
        depth = " * ".join([*(self.dims.text(n) for n, _ in self.runs), self.dims.text(self.depth)])
        return [
            f"      float sums[{self.most_tiles() * rows * width}] __attribute__((aligned(64)));",
            f"      for (int64_t i = 0; i < (ue - ub) * {rows * width}; i++) sums[i] = 0.0f;",
            f"      for (int64_t kb = 0; kb < {self.blocks}; kb++, bp += {depth} * {width}) {{",
            *self.row_tiles(vectors, tail, tiles),
            "      }",
        ]

    def row_tiles(self, vectors: int, tail: int, tiles: str) -> list[str]:
        """The loop over the row tiles of one chunk for one block of a panel."""
        width = vectors * self.spec.isa.lanes
        out = [f"      int64_t t = ub % {tiles}, r = ub / {tiles};"]
        out += ["      " + line for line in self.decompose("r", self.outer, "i")]
        out += ["      for (int64_t u = ub; u < ue; u++) {"]
        for index, name in enumerate(self.names):
            if name != "b":
                const = "" if name.startswith("o") else "const "
                block = f" + kb * {self.dims.text(self.block_step)}" if index == 0 and self.blocks > 1 else ""
                out.append(f"        {const}float *{name}r = {name}g + {self.offsets(self.outer, 'i', index)}{block};")
        if self.stream():
            size = " * ".join([*(self.dims.text(n) for n, _ in self.runs), self.dims.text(self.depth)])
            # Shares in floats per k. The tiles after the last share fetch nothing new.
            out.append(f"        const int64_t share = (u - ub) * part < {width} ? part : 0;")
            out.append(f"        const float *next = bp + {size} * ({width} + (share ? (u - ub) * part : 0));")
        if self.blocks == 1:
            out += ["        " + line for line in self.unit(vectors, tail, "")]
        else:
            out.append(f"        float *raw = sums + (u - ub) * {self.height * self.inner_rows * width};")
            out += [f"        if (kb < {self.blocks - 1}) {{", *self.unit(vectors, tail, "sum")]
            out += ["        } else {", *self.unit(vectors, tail, "last"), "        }"]
        step = ""
        for n in range(len(self.outer)):
            inner = f" if (i{n} == {self.dims.text(self.outer[n].extent)}) {{ i{n} = 0; {step} }}" if n else ""
            step = f"i{n}++;{inner}"
        return [*out, f"        if (++t == {tiles}) {{ t = 0; {step} }}", "      }"]


def emit(spec: Contraction, dims: DimTable) -> str:
    """The C source (with `@ENTRY@` for its name) of a contraction.

    Parameters of the function: `p` = a, packed b, outputs, epilogue operands; `d` = `dims.entries`.
    """
    return _Writer(spec, dims).kernel()


# Threads form a tm x tn grid over (row tiles, panels): the one whose largest share is smallest; among equals the one
# with most columns where `wide` (b is larger than a, and should be read by one thread each), else with fewest.
GRID = """
static inline void @ENTRY@_grid(int64_t tid, int64_t nt, int64_t U, int64_t C, int wide,
                                int64_t *u0, int64_t *u1, int64_t *c0, int64_t *c1) {
  int64_t tm = 1, tn = 1, best = -1;
  for (int64_t n = 1; n <= nt && n <= C; n++) {
    const int64_t m = nt / n < U ? nt / n : U;
    if (m < 1) break;
    const int64_t share = ((U + m - 1) / m) * ((C + n - 1) / n);
    if (best < 0 || share < best + wide) { best = share; tm = m; tn = n; }
  }
  if (tid >= tm * tn) { *u0 = *u1 = *c0 = *c1 = 0; return; }
  const int64_t i = tid / tn, j = tid % tn;
  *u0 = U * i / tm; *u1 = U * (i + 1) / tm;
  *c0 = C * j / tn; *c1 = C * (j + 1) / tn;
}
"""
