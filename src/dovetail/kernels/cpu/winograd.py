"""Winograd convolution, stride 1, channels last: F(4x4, 3x3) has 2.25 multiplications per output instead of 9, F(2x2, 3x3) 4.

A block of tiles (6x6 inputs, 4x4 outputs each; or 4x4 and 2x2) is transformed into a scratch of the thread that stays in L2; then, panel by
panel of filters, 36 (or 16) small GEMMs with the register tile fill a second scratch in L1/L2, and the inverse transform
with the epilogue follows at once. Borders are zero by skipping loads, so no padded copy is needed.
Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015), points 0, 1, -1, (2, -2,) infinity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dovetail.core.dims import Dim, ceil_div, minimum
from dovetail.kernels.cpu import microkernel
from dovetail.kernels.cpu.contraction import GRID, Panels, split_evenly
from dovetail.kernels.cpu.conv import Image
from dovetail.kernels.cpu.epilogue import Access, Epilogue
from dovetail.kernels.cpu.microkernel import Tile, load_part
from dovetail.kernels.cpu.text import DimTable, Isa, partial_functions

# By the extent of tiles: bytes of a transformed block, and tiles in it. Measured: the small transform rather fills the L2
# cache than reads its weights twice.
_SCRATCH_BYTES = {4: 600 << 10, 2: 840 << 10}
_MAX_BLOCK = {4: 28, 2: 56}
_MAX_THREADS = 64


@dataclass(frozen=True)
class WinogradConfig:
    """A 3x3 convolution of stride and dilation 1.

    Attributes:
        batch, channels, filters: N, C, M.
        pads: (low, high) per axis.
        space, out: input and output extents.
        x: input placement, the pointer at pixel (0, 0).
        outputs, operands: placements for the epilogue.
        operand_columns: 1 if an operand varies along channels, else 0.
        vectors: registers per row of the GEMM tile.
        block: most tiles per block.
        epilogue: what happens before the store.
        tile: output extent of a tile, 4 or 2.
    """

    isa: Isa
    batch: Dim
    channels: int
    filters: int
    pads: tuple[tuple[int, int], tuple[int, int]]
    space: tuple[Dim, Dim]
    out: tuple[Dim, Dim]
    x: Image
    outputs: tuple[Image, ...]
    vectors: int
    block: int
    operands: tuple[Image, ...] = ()
    operand_columns: tuple[int, ...] = ()
    epilogue: Epilogue = field(default_factory=Epilogue)
    tile: int = 4

    @property
    def edge(self) -> int:
        """Input extent of a tile."""
        return self.tile + 2

    @property
    def points(self) -> int:
        """Transform points of a tile: products per tile, channel and filter."""
        return self.edge**2

    @property
    def panels(self) -> Panels:
        """The cut of the filters, which fixes the packing of the weights."""
        return Panels(self.filters, self.vectors, self.isa.lanes)

    @property
    def pitch(self) -> int:
        """Floats between tiles of one transform point; never a multiple of 4 KiB, so that rows spread over the cache."""
        rounded = math.ceil(self.channels / self.isa.lanes) * self.isa.lanes
        return rounded + 16 if rounded % 1024 == 0 else rounded

    @property
    def tiles(self) -> Dim:
        """Number of output tiles."""
        return self.batch * ceil_div(self.out[0], self.tile) * ceil_div(self.out[1], self.tile)

    @property
    def scratch(self) -> int:
        """Floats of one thread's workspace."""
        return self.points * self.block * (self.pitch + self.panels.width)

    @property
    def workspace_bytes(self) -> Dim:
        """Workspace of all threads; no more of them than (block, panel) pairs get work."""
        pairs = ceil_div(self.tiles, self.block) * self.panels.count
        return minimum(pairs, _MAX_THREADS) * (self.scratch * 4)


def relative_cost(high: int, wide: int, tile: int) -> int:
    """Estimated time per channel and filter of one image of these output extents, to compare tiles.

    Two operations per point and tile; reading a transformed weight costs as much as 30 operations (4 bytes at 20 GB/s
    against 150 GFLOP/s).
    """
    return (tile + 2) ** 2 * (2 * math.ceil(high / tile) * math.ceil(wide / tile) + 30)


def default_block(channels: int, tiles: Dim, tile: int = 4) -> int:
    """Tiles per block: the transformed block fits the L2 cache; blocks are of nearly equal size, and several are an even number."""
    most = max(4, min(_MAX_BLOCK[tile], _SCRATCH_BYTES[tile] // ((tile + 2) ** 2 * channels * 4)))
    if isinstance(tiles, int):
        blocks = math.ceil(max(1, tiles) / most)
        return math.ceil(tiles / (blocks + blocks % 2 if blocks > 1 else 1)) or 1
    return most


def _input_transform(v: str, t: list[str], out: str) -> list[str]:
    """Statements for the values of B^T t, six or four."""
    if len(t) == 4:
        a, b, c, d = t
        return [f"{out.format(n)} = {value};" for n, value in enumerate((f"{a} - {c}", f"{b} + {c}", f"{c} - {b}", f"{b} - {d}"))]
    a, b, c, d, e, f = t
    return [
        f"const {v} p = {d} - {b} * 4.0f, q = {e} - {c} * 4.0f, r = {d} - {b}, s = {e} - {c};",
        f"{out.format(0)} = ({a} * 4.0f - {c} * 5.0f) + {e};",
        f"{out.format(1)} = q + p;",
        f"{out.format(2)} = q - p;",
        f"{out.format(3)} = r * 2.0f + s;",
        f"{out.format(4)} = s - r * 2.0f;",
        f"{out.format(5)} = ({b} * 4.0f - {d} * 5.0f) + {f};",
    ]


def _output_transform(v: str, t: list[str], out: str) -> list[str]:
    """Statements for the values of A^T t, four or two."""
    if len(t) == 4:
        a, b, c, d = t
        return [f"{out.format(0)} = {a} + {b} + {c};", f"{out.format(1)} = {b} - {c} - {d};"]
    a, b, c, d, e, f = t
    return [
        f"const {v} p = {b} + {c}, q = {b} - {c}, r = {d} + {e}, s = {d} - {e};",
        f"{out.format(0)} = {a} + p + r;",
        f"{out.format(1)} = s * 2.0f + q;",
        f"{out.format(2)} = r * 4.0f + p;",
        f"{out.format(3)} = (s * 8.0f + q) + {f};",
    ]


class _Writer:
    def __init__(self, spec: WinogradConfig, dims: DimTable) -> None:
        self.spec, self.dims, self.functions = spec, dims, dict[str, str]()

    def forward(self) -> str:
        """C function: transform one tile's input, of which rows [i0, i1) and columns [j0, j1) exist."""
        spec, isa, text = self.spec, self.spec.isa, self.dims.text
        v, lanes = isa.vector, isa.lanes
        row, column = text(spec.x.spatial[0]), text(spec.x.spatial[1])
        plane, n = spec.block * spec.pitch, spec.edge
        full, tail = divmod(spec.channels, lanes)
        out = [
            "static __attribute__((noinline)) void @ENTRY@_f(const float *x, float *y,"
            " int64_t i0, int64_t i1, int64_t j0, int64_t j1, const int64_t *d) {",
        ]

        def body(load_tail: int) -> list[str]:
            source = Access("x", ("0", "0"))
            lines = [f"  {v} t[{n * n}];", f"  if (i0 == 0 && i1 == {n} && j0 == 0 && j1 == {n}) {{"]
            for j in range(n):
                loads = ", ".join(
                    f"d{i} = {load_part(isa, source, f'{i} * {row} + {j} * {column} + c', 0, load_tail, True)}" for i in range(n)
                )
                names = [f"d{i}" for i in range(n)]
                lines += [f"  {{ const {v} {loads};", *_input_transform(v, names, f"t[{{}} * {n} + {j}]"), "  }"]
            part = load_part(isa, source, f"i * {row} + j * {column} + c", 0, load_tail, True)
            lines += [
                "  } else {",
                f"  {v} z[{n * n}];",
                f"  for (int64_t i = 0; i < {n * n}; i++) z[i] = dt_set_{v}(0.0f);",
                f"  for (int64_t i = i0; i < i1; i++) for (int64_t j = j0; j < j1; j++) z[i * {n} + j] = {part};",
                f"  for (int64_t j = 0; j < {n}; j++) {{",
                *_input_transform(v, [f"z[{i * n} + j]" for i in range(n)], f"t[{{}} * {n} + j]"),
                "  } }",
            ]
            for i in range(n):
                names = [f"t[{i * n + j}]" for j in range(n)]
                stored = [f"  {{ {v} {', '.join(f'o{j}' for j in range(n))};", *_input_transform(v, names, "o{}")]
                stored += [isa.store(f"y + {(i * n + j) * plane} + c", f"o{j}") for j in range(n)]
                lines += [*stored, "  }"]
            return lines

        if full:
            out += [f"  for (int64_t c = 0; c < {full * lanes}; c += {lanes}) {{", *body(0), "  }"]
        if tail:
            out += [f"  {{ const int64_t c = {full * lanes};", *body(tail), "  }"]
        return "\n".join([*out, "}"])

    def parts(self) -> list[tuple[int, int]]:
        """Row tiles of the GEMMs: [(rows, how many)]."""
        return split_evenly(self.spec.block, microkernel.max_rows(self.spec.isa, self.spec.vectors))

    def stream(self) -> int:
        """Cache lines of the next point's weights that each row tile fetches per k: they are read once per block."""
        tiles = sum(many for _, many in self.parts())
        return math.ceil(self.spec.panels.width / 16 / tiles) if self.spec.isa.lanes >= 8 else 0

    def gemm(self, rows: int, vectors: int) -> str:
        """Register tile for `rows` tiles of one transform point; returns its name."""
        spec = self.spec
        width = vectors * spec.isa.lanes
        a = Access("a", ("0", f"{spec.pitch}L"))
        tile = Tile(
            (1, rows), vectors, 0, a, (), f"{spec.channels}L", width, (Access("o0", ("0", f"{spec.panels.width}L")),), (),
            Epilogue(), spec.isa.lanes >= 8, stream=self.stream(),
        )  # fmt: skip
        self.functions.setdefault(tile.name, microkernel.emit(tile, spec.isa))
        return tile.name

    def inverse(self, vectors: int, tail: int) -> str:
        """C function: inverse transform and epilogue of one tile's panel; returns its name."""
        spec, isa, text = self.spec, self.spec.isa, self.dims.text
        v, name = isa.vector, f"@ENTRY@_i{vectors}_{tail}"
        outs = tuple(Access(f"o{n}", (text(i.spatial[0]), text(i.spatial[1]))) for n, i in enumerate(spec.outputs))
        ops = tuple(
            Access(f"e{n}", (text(i.spatial[0]), text(i.spatial[1])), c)
            for n, (i, c) in enumerate(zip(spec.operands, spec.operand_columns, strict=True))
        )
        tile = Tile((spec.tile, spec.tile), vectors, tail, Access("m", ("0", "0")), (), "1", 0, outs, ops, spec.epilogue)
        parameters = [f"float *{o.pointer}" for o in outs] + [f"const float *{e.pointer}" for e in ops]
        plane, n, m = spec.block * spec.panels.width, spec.edge, spec.tile
        out = [
            f"static __attribute__((noinline)) void {name}(const float *m, {', '.join(parameters)},"
            " int64_t rh, int64_t rw, const int64_t *d) {",
        ]
        for j in range(vectors):
            out += [f"  {{ {v} t[{m * n}], y[{m * m}];"]
            for column in range(n):
                loads = ", ".join(
                    f"d{i} = {isa.load(f'm + {(i * n + column) * plane + j * isa.lanes}')}" for i in range(n)
                )
                names = [f"d{i}" for i in range(n)]
                out += [f"  {{ const {v} {loads};", *_output_transform(v, names, f"t[{{}} * {n} + {column}]"), "  }"]
            for i in range(m):
                names = [f"t[{i * n + column}]" for column in range(n)]
                out += ["  {", *_output_transform(v, names, f"y[{i * m} + {{}}]"), "  }"]
            out += microkernel.fixed_loads(tile, isa, j)
            body = "\n    ".join(microkernel.finish_one(tile, isa, "acc", "o", "i", j))
            out += [
                "  for (int64_t o = 0; o < rh; o++) for (int64_t i = 0; i < rw; i++) {",
                f"    const {v} acc = y[o * {m} + i];\n    {body}",
                "  }",
                "  }",
                "  }",
            ]
        self.functions[name] = "\n".join([*out, "}"])
        return name

    def panel(self, vectors: int, tail: int) -> list[str]:
        """GEMMs and inverse transforms of one panel for the tiles of a block."""
        spec, text = self.spec, self.dims.text
        plane, m = spec.block * spec.pitch, spec.tile
        parts = self.parts()
        out = [f"for (int64_t e = 0; e < {spec.points}; e++) {{"]
        columns = int(spec.panels.packed_columns)  # type: ignore[arg-type]
        offset = f"e * {spec.channels * columns} + j * {spec.channels * spec.panels.width}"
        at = done = 0
        tiles = sum(many for _, many in parts)
        share = math.ceil(spec.panels.width / tiles)
        if self.stream():
            # After the last point comes the first of the next panel.
            block = spec.channels * spec.panels.width
            out += [
                f"  const float *next = e < {spec.points - 1} ? W + {offset} + {spec.channels * columns}",
                f"                                            : W + (j + 1) * {block};",
            ]
        for size, many in parts:
            for _ in range(many):
                fetch = f", next + {done * share * spec.channels}, {share}" if self.stream() else ""
                out.append(
                    f"  {self.gemm(size, vectors)}(V + e * {plane} + {at * spec.pitch}, W + {offset},"
                    f" M + e * {spec.block * spec.panels.width} + {at * spec.panels.width}{fetch}, d);"
                )
                at, done = at + size, done + 1
        inverse = self.inverse(vectors, tail)
        arguments = []
        for n, image in enumerate(spec.outputs):
            arguments.append(f"O{n} + {self.place(image)} + j * {spec.panels.width}")
        for n, (image, column) in enumerate(zip(spec.operands, spec.operand_columns, strict=True)):
            arguments.append(f"E{n} + {self.place(image)}" + (f" + j * {spec.panels.width}" if column else ""))
        return [
            *out,
            "}",
            "for (int64_t k = 0; k < tiles; k++) {",
            *self.position("t0 + k"),
            f"  const int64_t lh = {text(spec.out[0])} - ty * {m}, lw = {text(spec.out[1])} - tx * {m};",
            f"  {inverse}(M + k * {spec.panels.width}, {', '.join(arguments)}, lh < {m} ? lh : {m}, lw < {m} ? lw : {m}, d);",
            "}",
        ]

    def place(self, image: Image) -> str:
        """C text of the offset of a tile's first output pixel."""
        text = self.dims.text
        row, column = text(image.spatial[0]), text(image.spatial[1])
        return f"tn * {text(image.batch)} + ty * {self.spec.tile} * {row} + tx * {self.spec.tile} * {column}"

    def position(self, index: str) -> list[str]:
        """Declarations of a tile's batch entry and place."""
        text = self.dims.text
        high, wide = (text(ceil_div(n, self.spec.tile)) for n in self.spec.out)
        return [f"  const int64_t tt = {index}, tx = tt % {wide}, ty = tt / {wide} % {high}, tn = tt / {wide} / {high};"]

    def kernel(self) -> str:
        """The whole source."""
        spec, text, panels = self.spec, self.dims.text, self.spec.panels
        n_out = len(spec.outputs)
        plane, pitch, n = spec.block * spec.pitch, spec.pitch, spec.edge
        (top, _), (left, _) = spec.pads
        tiles = text(spec.tiles)
        out = [
            "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
            "  const float *X = p[0], *W = p[1];",
            *(f"  float *O{n} = p[{2 + n}];" for n in range(n_out)),
            *(f"  const float *E{n} = p[{2 + n_out + n}];" for n in range(len(spec.operands))),
            f"  const int64_t T = {tiles}, U = (T + {spec.block - 1}) / {spec.block};",
            "  int64_t u0, u1, c0, c1;",
            f"  @ENTRY@_grid(tid, nt < {_MAX_THREADS} ? nt : {_MAX_THREADS}, U, {text(panels.count)}, 0, &u0, &u1, &c0, &c1);",
            "  if (u0 >= u1 || c0 >= c1) return;",
            f"  float *V = (float *)p[{2 + n_out + len(spec.operands)}] + tid * {spec.scratch}L, *M = V + {spec.points * plane}L;",
            "  for (int64_t u = u0; u < u1; u++) {",
            f"    const int64_t t0 = u * {spec.block}, tiles = T - t0 < {spec.block} ? T - t0 : {spec.block};",
            "    for (int64_t k = 0; k < tiles; k++) {",
            *self.position("t0 + k"),
            f"      const int64_t fy = ty * {spec.tile} - {top}, fx = tx * {spec.tile} - {left};",
            f"      const int64_t ly = {text(spec.space[0])} - fy, lx = {text(spec.space[1])} - fx;",
            f"      @ENTRY@_f(X + tn * {text(spec.x.batch)} + fy * {text(spec.x.spatial[0])} + fx * {text(spec.x.spatial[1])},"
            f" V + k * {pitch}, fy < 0 ? -fy : 0, ly < {n} ? ly : {n}, fx < 0 ? -fx : 0, lx < {n} ? lx : {n}, d);",
            "    }",
            # A short last block still runs full GEMM tiles: its missing rows must hold numbers.
            f"    for (int64_t k = tiles; k < {spec.block}; k++) for (int64_t e = 0; e < {spec.points}; e++)",
            f"      for (int64_t c = 0; c < {spec.channels}; c++) V[e * {plane} + k * {pitch} + c] = 0.0f;",
            "    for (int64_t j = c0; j < c1; j++) {",
        ]
        last = (math.ceil(panels.rest / panels.lanes), panels.rest % panels.lanes)
        if not panels.rest:
            out += self.panel(panels.vectors, 0)
        elif not panels.full:
            out += self.panel(*last)
        else:
            out += [f"if (j < {panels.full}) {{", *self.panel(panels.vectors, 0), "} else {", *self.panel(*last), "}"]
        out += ["    }", "  }", "}"]
        tails = {spec.channels % spec.isa.lanes, panels.rest % panels.lanes} - {0}
        partial = partial_functions(spec.isa, tails)
        return "\n".join([partial + GRID, self.forward(), *self.functions.values(), *out]) + "\n"


def emit(spec: WinogradConfig, dims: DimTable) -> str:
    """C source; parameters are x, packed weights, outputs, epilogue operands, workspace."""
    return _Writer(spec, dims).kernel()
