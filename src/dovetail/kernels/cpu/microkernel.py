"""The register tile: a block of output rows by a few vectors of columns, accumulated in registers.

One tile computes `c[i][j] = sum over runs and k of a[row i + run + k] * b[k][j]`. GEMM has one run of
length K; a convolution over channels-last data is the same with one run per kernel row (dilation 1,
dense pixels) or per kernel position. Rows lie on two axes (outer, inner) so that narrow images can
put several image rows in one tile.

Measured on two-FMA-port AVX-512: 12..14 rows by 2 vectors reach 95 % of peak with packed `b` streamed from
L2, provided that `b` is prefetched about 8 steps ahead and that the rows of `a` do not share cache
sets; no blocking over K is needed up to K = 4608.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dovetail.kernels.cpu.epilogue import Access, Epilogue
from dovetail.kernels.cpu.text import Isa

PREFETCH_STEPS = 8
_UNROLLS = (4, 3, 5, 7, 2)
ENOUGH = 8
"""Accumulators that keep two FMA units of latency 4 busy; tiles of fewer keep several sums per output."""
COUNTED = -1
"""Value of `Tile.tail` for a last column block whose width is known at run time only."""


@dataclass(frozen=True)
class Run:
    """A loop over kernel positions: how often (C text), and how far `a` moves each time."""

    count: str
    stride: str


@dataclass(frozen=True)
class Tile:
    """One variant of the register tile.

    Attributes:
        rows: (outer, inner) numbers of rows.
        vectors: registers per row.
        tail: valid lanes of the last vector; 0 = all, COUNTED = columns come as an argument.
        a: rows of the left operand.
        runs: loops around the innermost, outermost first.
        depth: length of the innermost run (C text).
        panel: floats between successive k in `b` (C text where it is not packed).
        outputs, operands: buffers of the epilogue.
        epilogue: what happens before the store.
        prefetch: whether `b` is prefetched.
        b_is_partial: whether `b` ends at the tail, too (it is not padded to whole vectors).
        scalars: further int64_t parameters that `depth` and the strides may name.
        stream: cache lines per k that are fetched ahead from where the next panel lies (parameters `next`, and
            `share` floats per k); 0 = none.
        carry: "" sums from zero to the epilogue; "sum" adds to the raw sums in the parameter `raw` and leaves them
            there; "last" adds to them and goes on to the epilogue.
    """

    rows: tuple[int, int]
    vectors: int
    tail: int
    a: Access
    runs: tuple[Run, ...]
    depth: str
    panel: int | str
    outputs: tuple[Access, ...]
    operands: tuple[Access, ...]
    epilogue: Epilogue
    prefetch: bool = True
    b_is_partial: bool = False
    scalars: tuple[str, ...] = ()
    stream: int = 0
    carry: str = ""

    @property
    def name(self) -> str:
        """C name, unique within its kernel."""
        tail = {0: "", COUNTED: "_n"}.get(self.tail, f"_r{self.tail}")
        stream = f"_s{self.stream}" if self.stream else ""
        return f"@ENTRY@_t{self.rows[0]}x{self.rows[1]}x{self.vectors}{tail}{stream}{'_' + self.carry if self.carry else ''}"

    @property
    def parameters(self) -> str:
        """C parameter list."""
        outs = [f"float *{o.pointer}" for o in self.outputs]
        ops = [f"const float *{e.pointer}" for e in self.operands]
        cols = ["int64_t cols"] if self.tail == COUNTED else []
        scalars = [f"int64_t {name}" for name in self.scalars]
        first = [f"const float *{self.a.pointer}", "const float *b"]
        stream = ["const float *next", "int64_t share"] if self.stream else []
        raw = ["float *raw"] if self.carry else []
        return ", ".join([*first, *outs, *ops, *cols, *scalars, *stream, *raw, "const int64_t *d"])


def max_rows(isa: Isa, vectors: int) -> int:
    """Rows that fit the registers beside the vectors of `b` and one broadcast."""
    return max(1, (isa.registers - 1 - vectors) // vectors)


def emit(tile: Tile, isa: Isa) -> str:
    """The C function of a tile, with its epilogue pass before it where that is costly."""
    out = costly_pass(tile, isa) if tile.epilogue.costly and tile.carry != "sum" else []
    out += [f"static __attribute__((noinline)) void {tile.name}({tile.parameters}) {{"]
    rows = [(o, i) for o in range(tile.rows[0]) for i in range(tile.rows[1])]
    width = tile.vectors * isa.lanes
    for r in range(len(rows)):
        first = [isa.load(f"raw + {r * width + j * isa.lanes}") if tile.carry else "{0}" for j in range(tile.vectors)]
        out.append(f"  {isa.vector} {', '.join(f'c{r}_{j} = {value}' for j, value in enumerate(first))};")
    out += _fetch_results(tile, isa, rows)
    parts = _parts(len(rows) * tile.vectors)
    for q in range(1, parts):
        names = ", ".join(f"c{r}_{j}_{q} = {{0}}" for r in range(len(rows)) for j in range(tile.vectors))
        out.append(f"  {isa.vector} {names};")
    out += _accumulate(tile, isa, rows, parts)
    for q in range(1, parts):
        out.append("  " + " ".join(f"c{r}_{j} = c{r}_{j} + c{r}_{j}_{q};" for r in range(len(rows)) for j in range(tile.vectors)))
    if tile.carry == "sum":
        for r in range(len(rows)):
            out += ["  " + isa.store(f"raw + {r * width + j * isa.lanes}", f"c{r}_{j}") for j in range(tile.vectors)]
    else:
        out += finish(tile, isa)
    return "\n".join([*out, "}"]) + "\n"


def finish(tile: Tile, isa: Isa) -> list[str]:
    """Statements that run the epilogue over the accumulators c<row>_<vector> and store the results."""
    out = []
    rows = [(o, i) for o in range(tile.rows[0]) for i in range(tile.rows[1])]
    if tile.epilogue.costly:
        width = tile.vectors * isa.lanes
        out.append(f"  float tile[{len(rows) * width}] __attribute__((aligned(64)));")
        for r in range(len(rows)):
            for j in range(tile.vectors):
                out.append("  " + isa.store(f"tile + {r * width + j * isa.lanes}", f"c{r}_{j}"))
        names = ["tile", *(x.pointer for x in (*tile.outputs, *tile.operands))]
        names += ["cols"] if tile.tail == COUNTED else []
        names += [*tile.scalars, *(["next", "share"] if tile.stream else []), *(["raw"] if tile.carry else [])]
        return [*out, f"  {tile.name}_e({', '.join([*names, 'd'])});"]
    for j in range(tile.vectors):
        out += fixed_loads(tile, isa, j)
        for r, (o, i) in enumerate(rows):
            out.append("  { " + " ".join(finish_one(tile, isa, f"c{r}_{j}", str(o), str(i), j)) + " }")
        out.append("  }")
    return out


def _parts(accumulators: int) -> int:
    """Independent sums per output: a few accumulators alone would wait for the latency of each addition."""
    return 1 if accumulators >= ENOUGH else 2 ** math.ceil(math.log2(ENOUGH / accumulators))


def _accumulate(tile: Tile, isa: Isa, rows: list[tuple[int, int]], parts: int) -> list[str]:
    out, a = [], tile.a.pointer
    for level, run in enumerate(tile.runs):
        name = f"a{level}"
        out.append(f"  const float *{name} = {a};")
        out.append(f"  for (int64_t r{level} = 0; r{level} < {run.count}; r{level}++, {name} += {run.stride}) {{")
        a = name
    if parts > 1:
        out += [
            "  int64_t k = 0;",
            f"  for (; k + {parts} <= {tile.depth}; k += {parts}, b += {parts} * {tile.panel}) {{",
            *_fetch_next(tile, parts),
            *(line for q in range(parts) for line in _step(tile, isa, rows, a, q)),
            "  }",
            f"  for (; k < {tile.depth}; k++, b += {tile.panel}) {{",
            *_step(tile, isa, rows, a, 0),
            "  }",
        ]
        return out + ["  }"] * len(tile.runs)
    out.append(f'  _Pragma("clang loop unroll_count({_unroll(tile.depth)})")')
    out.append(f"  for (int64_t k = 0; k < {tile.depth}; k++, b += {tile.panel}) {{")
    out += _fetch_next(tile, 1)
    out += _step(tile, isa, rows, a, 0)
    out.append("  }")
    return out + ["  }"] * len(tile.runs)


def _fetch_results(tile: Tile, isa: Isa, rows: list[tuple[int, int]]) -> list[str]:
    """Fetch the lines that the epilogue reads and writes, so that they are there when the sums are."""
    if not tile.prefetch or tile.carry == "sum" or tile.tail == COUNTED:
        return []
    places = [(access, 1) for access in tile.outputs]
    places += [(access, 0) for access in tile.operands if not access.fixed]
    return [
        f"  __builtin_prefetch({access.pointer} + {access.offset(str(o), str(i))} + {column}, {write});"
        for access, write in places
        for o, i in rows
        for column in (range(0, tile.vectors * isa.lanes, 16) if access.column else (0,))
    ]


def _fetch_next(tile: Tile, steps: int) -> list[str]:
    """Fetch this tile's share of the next panel into L2, so that its first tile need not wait for memory."""
    fetches = [f"    __builtin_prefetch(next + {16 * n}, 0, 2);" for n in range(tile.stream * steps)]
    return [*fetches, f"    next += {steps} * share;"] if tile.stream else []


def _step(tile: Tile, isa: Isa, rows: list[tuple[int, int]], a: str, part: int) -> list[str]:
    """One multiply-accumulate of all rows with one row of `b`, into the accumulators of one part."""
    out = ["    {"]
    ahead = PREFETCH_STEPS * tile.panel if isinstance(tile.panel, int) else f"{PREFETCH_STEPS} * {tile.panel}"
    at = f"{part * tile.panel}" if isinstance(tile.panel, int) else f"{part} * {tile.panel}"
    if tile.prefetch:
        for start in range(0, tile.vectors * isa.lanes, 16):
            out.append(f"    __builtin_prefetch(b + {ahead} + {at} + {start});")
    loads = []
    for j in range(tile.vectors):
        tail = tile.tail if tile.b_is_partial else 0
        loads.append(f"b{j} = " + load_part(isa, Access("b", ("0", "0")), at, j, tail, j == tile.vectors - 1))
    out.append(f"    const {isa.vector} {', '.join(loads)};")
    suffix = f"_{part}" if part else ""
    for r, (o, i) in enumerate(rows):
        # One C expression, so that the compiler contracts it to a fused multiply-add where there is one.
        terms = " ".join(f"c{r}_{j}{suffix} = x * b{j} + c{r}_{j}{suffix};" for j in range(tile.vectors))
        out.append(
            f"    {{ const float s = {a}[{tile.a.offset(str(o), str(i))} + k + {part}];"
            f" const {isa.vector} x = {isa.splat('s')}; {terms} }}"
        )
    return [*out, "    }"]


def _unroll(depth: str) -> int:
    """How far to unroll the innermost loop: a divisor of its length where that is known and short."""
    length = depth.removesuffix("L")
    if length.isdigit() and int(length) <= 64:
        return next((n for n in _UNROLLS if int(length) % n == 0), _UNROLLS[0])
    return _UNROLLS[0]


def load_part(isa: Isa, access: Access, offset: str, j: int, tail: int, last: bool) -> str:
    """C expression of operand vector j at a row offset, taking only the valid lanes of a tail."""
    if access.column == 0:
        return isa.splat(f"({access.pointer})[{offset}]")
    address = f"{access.pointer} + {offset} + {j * isa.lanes}"
    if tail == COUNTED:
        return f"@ENTRY@_ldn({address}, cols - {j * isa.lanes})"
    return f"@ENTRY@_ld{tail}({address})" if last and tail else isa.load(address)


def fixed_loads(tile: Tile, isa: Isa, j: int) -> list[str]:
    """Open a scope with the operands that are the same for all rows (a bias) of column vector j."""
    loads = [
        f"const {isa.vector} f{n} = {load_part(isa, e, '0', j, tile.tail, j == tile.vectors - 1)};"
        for n, e in enumerate(tile.operands)
        if e.fixed
    ]
    return ["  { " + " ".join(loads)]


def finish_one(tile: Tile, isa: Isa, acc: str, outer: str, inner: str, j: int) -> list[str]:
    """Statements that turn one accumulator into stored results."""
    last = j == tile.vectors - 1
    out, names = [], []
    for n, e in enumerate(tile.operands):
        if e.fixed:
            names.append(f"f{n}")
            continue
        out.append(f"const {isa.vector} e{n}v = {load_part(isa, e, e.offset(outer, inner), j, tile.tail, last)};")
        names.append(f"e{n}v")
    statements, results = tile.epilogue.body(acc, names)
    out += statements
    for access, result in zip(tile.outputs, results, strict=True):
        address = f"{access.pointer} + {access.offset(outer, inner)} + {j * isa.lanes}"
        if tile.tail == COUNTED:
            out.append(f"@ENTRY@_stn({address}, {result}, cols - {j * isa.lanes});")
        elif last and tile.tail:
            out.append(f"@ENTRY@_st{tile.tail}({address}, {result});")
        else:
            out.append(isa.store(address, result))
    return out


def costly_pass(tile: Tile, isa: Isa) -> list[str]:
    """A function that runs the epilogue over a raw tile in L1, where nothing else holds registers."""
    width = tile.vectors * isa.lanes
    parameters = tile.parameters.replace(f"const float *{tile.a.pointer}, const float *b", "const float *t", 1)
    out = [f"static __attribute__((noinline)) void {tile.name}_e({parameters}) {{"]
    for j in range(tile.vectors):
        out += fixed_loads(tile, isa, j)
        body = finish_one(tile, isa, "acc", "o", "i", j)
        out += [
            f"  for (int64_t o = 0; o < {tile.rows[0]}; o++) for (int64_t i = 0; i < {tile.rows[1]}; i++) {{",
            f"    {isa.vector} acc = {isa.load(f't + (o * {tile.rows[1]} + i) * {width} + {j * isa.lanes}')};",
            "    " + "\n    ".join(body),
            "  }",
            "  }",
        ]
    return [*out, "}"]
