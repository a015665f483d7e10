"""Windows that stay within a channel: depthwise convolution, maximum and average pooling, channels last.

A tile is a few neighbouring output pixels by one vector of channels. Every input vector is loaded once per kernel
row and used by all taps that need it. Pixels outside the image are skipped: kernel rows by the loop's
bounds, columns when the tile is generated (its first column is a literal at the borders), or pixel by pixel
where the width is known at run time only. No padded copy is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dovetail.core.dims import Dim
from dovetail.kernels.cpu import microkernel
from dovetail.kernels.cpu.contraction import CHUNK_BYTES, GRID, split_evenly
from dovetail.kernels.cpu.conv import Image
from dovetail.kernels.cpu.epilogue import Access, Epilogue
from dovetail.kernels.cpu.microkernel import Tile, load_part
from dovetail.kernels.cpu.text import DimTable, Isa, partial_functions

DEPTHWISE, MAXIMUM, AVERAGE = "depthwise", "maximum", "average"


@dataclass(frozen=True)
class WindowConfig:
    """A window operation over two spatial axes.

    Attributes:
        mode: DEPTHWISE, MAXIMUM or AVERAGE.
        batch: N.
        channels: C.
        kernel, strides, dilations: per spatial axis.
        pads: (low, high) per spatial axis.
        counted: (low, high) margins per axis that count in an average's divisor.
        space, out: input and output extents.
        x: input placement, the pointer at pixel (0, 0).
        outputs, operands: placements for the epilogue.
        operand_columns: 1 if an operand varies along channels, else 0.
        pixels: pixels of a full tile.
        epilogue: what happens before the store.
    """

    isa: Isa
    mode: str
    batch: Dim
    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    space: tuple[Dim, Dim]
    out: tuple[Dim, Dim]
    x: Image
    outputs: tuple[Image, ...]
    pixels: int
    operands: tuple[Image, ...] = ()
    operand_columns: tuple[int, ...] = ()
    counted: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    epilogue: Epilogue = field(default_factory=Epilogue)


def default_pixels(isa: Isa, mode: str, kernel: tuple[int, int]) -> int:
    """Pixels per tile: as many accumulators as fit beside one kernel row of weights."""
    weights = kernel[1] if mode == DEPTHWISE and kernel[1] <= isa.registers // 3 else 1
    return max(2, min(14, isa.registers - weights - 2))


@dataclass(frozen=True)
class _Variant:
    """A tile: pixels, valid input columns [low, high) relative to its first, and divisors along the row."""

    pixels: int
    low: int
    high: int
    counts: tuple[int, ...]


class _Writer:
    def __init__(self, spec: WindowConfig, dims: DimTable) -> None:
        self.spec, self.dims = spec, dims
        self.tail = spec.channels % spec.isa.lanes
        self.blocks = math.ceil(spec.channels / spec.isa.lanes)
        self.reach = (spec.kernel[1] - 1) * spec.dilations[1] + 1
        self.functions: dict[str, str] = {}

    # ------------------------------------------------------------------ tiles
    def base(self, pixels: int, tail: int) -> Tile:
        """The tile record that the shared epilogue code works on."""
        spec, text = self.spec, self.dims.text
        outs = tuple(Access(f"o{n}", ("0L", text(i.spatial[1]))) for n, i in enumerate(spec.outputs))
        ops = tuple(
            Access(f"e{n}", ("0L", text(i.spatial[1])), c)
            for n, (i, c) in enumerate(zip(spec.operands, spec.operand_columns, strict=True))
        )
        a = Access("x", ("0L", text(spec.x.spatial[1])))
        return Tile((1, pixels), 1, tail, a, (), "1", 0, outs, ops, spec.epilogue)

    def parameters(self, tile: Tile) -> str:
        """C parameters of a tile function."""
        outs = [f"float *{o.pointer}" for o in tile.outputs]
        ops = [f"const float *{e.pointer}" for e in tile.operands]
        return ", ".join(
            ["const float *x", "const float *w", *outs, *ops, "int64_t h0", "int64_t h1", "float ch", "const int64_t *d"]
        )

    def add_costly(self, tile: Tile) -> None:
        """Make sure the out-of-line epilogue of a tile exists."""
        if tile.epilogue.costly:
            self.functions.setdefault(f"{tile.name}_e", "\n".join(microkernel.costly_pass(tile, self.spec.isa)))

    def neutral(self) -> str:
        """Initial value of the accumulators."""
        v = self.spec.isa.vector
        return f"dt_set_{v}(-__builtin_inff())" if self.spec.mode == MAXIMUM else f"dt_set_{v}(0.0f)"

    def combine(self, acc: str, x: str, w: str) -> str:
        """The statement that adds one input vector to an accumulator."""
        if self.spec.mode == DEPTHWISE:
            return f"{acc} = {x} * {w} + {acc};"
        if self.spec.mode == MAXIMUM:
            return f"{acc} = dt_max_{self.spec.isa.vector}({acc}, {x});"
        return f"{acc} = {acc} + {x};"

    def tile(self, variant: _Variant, tail: int) -> str:
        """Make sure a tile function exists; return its name."""
        spec, isa = self.spec, self.spec.isa
        counts = "_".join(map(str, variant.counts)) if spec.mode == AVERAGE else ""
        tile = self.base(variant.pixels, tail)
        name = f"@ENTRY@_w{variant.pixels}_{variant.low}_{variant.high}_{tail}_{counts}"
        if name in self.functions:
            return name
        self.add_costly(tile)
        accumulators = ", ".join(f"c{p}_0 = {self.neutral()}" for p in range(variant.pixels))
        out = [
            f"static __attribute__((noinline)) void {name}({self.parameters(tile)}) {{",
            f"  {isa.vector} {accumulators};",
            "  for (int64_t h = h0; h < h1; h++) {",
            f"    const float *r = x + h * {spec.dilations[0]} * {self.dims.text(spec.x.spatial[0])};",
        ]
        width = self.blocks * isa.lanes
        if spec.mode == DEPTHWISE:
            for k in range(spec.kernel[1]):
                out.append(f"    const {isa.vector} w{k} = {isa.load(f'w + (h * {spec.kernel[1]} + {k}) * {width}')};")
        for column, uses in self.columns(variant).items():
            source = Access("r", ("0", "0"))
            value = load_part(isa, source, f"{column} * {self.dims.text(spec.x.spatial[1])}", 0, tail, True)
            terms = " ".join(self.combine(f"c{p}_0", "v", f"w{k}") for p, k in uses)
            out.append(f"    {{ const {isa.vector} v = {value}; {terms} }}")
        out.append("  }")
        if spec.mode == AVERAGE:
            out += [f"  c{p}_0 = c{p}_0 / {isa.splat(f'(ch * {variant.counts[p]}.0f)')};" for p in range(variant.pixels)]
        out += [*microkernel.finish(tile, isa), "}"]
        self.functions[name] = "\n".join(out)
        return name

    def columns(self, variant: _Variant) -> dict[int, list[tuple[int, int]]]:
        """Input column -> the (pixel, tap) pairs that read it, for the columns inside the image."""
        found: dict[int, list[tuple[int, int]]] = {}
        for p in range(variant.pixels):
            for k in range(self.spec.kernel[1]):
                column = p * self.spec.strides[1] + k * self.spec.dilations[1]
                if variant.low <= column < variant.high:
                    found.setdefault(column, []).append((p, k))
        return dict(sorted(found.items()))

    def pixel(self, tail: int) -> str:
        """A single-pixel function whose taps along the row are known at run time."""
        spec, isa = self.spec, self.spec.isa
        tile = self.base(1, tail)
        name = f"@ENTRY@_p{tail}"
        if name in self.functions:
            return name
        self.add_costly(tile)
        width, taps = self.blocks * isa.lanes, spec.kernel[1]
        address = f"k * {spec.dilations[1]} * {self.dims.text(spec.x.spatial[1])}"
        parameters = self.parameters(tile).replace("float ch", "int64_t k0, int64_t k1, float ch")
        out = [
            f"static __attribute__((noinline)) void {name}({parameters}) {{",
            f"  {isa.vector} c0_0 = {self.neutral()};",
            "  for (int64_t h = h0; h < h1; h++) {",
            f"    const float *r = x + h * {spec.dilations[0]} * {self.dims.text(spec.x.spatial[0])};",
            "    for (int64_t k = k0; k < k1; k++) {",
            f"      const {isa.vector} v = {load_part(isa, Access('r', ('0', '0')), address, 0, tail, True)};",
        ]
        if spec.mode == DEPTHWISE:
            out.append(f"      const {isa.vector} u = {isa.load(f'w + (h * {taps} + k) * {width}')};")
        out += [f"      {self.combine('c0_0', 'v', 'u')}", "    }", "  }"]
        if spec.mode == AVERAGE:
            out.append(f"  c0_0 = c0_0 / {isa.splat('ch')};")
        self.functions[name] = "\n".join([*out, *microkernel.finish(tile, isa), "}"])
        return name

    # ------------------------------------------------------------------ rows
    def arguments(self, start: str) -> str:
        """Pointer arguments of a tile whose first output column is `start`."""
        spec, text = self.spec, self.dims.text
        first = f"({start}) * {spec.strides[1]} - {spec.pads[1][0]}"
        outs = [f"o{n}r + ({start}) * {text(i.spatial[1])}" for n, i in enumerate(spec.outputs)]
        ops = [f"e{n}r + ({start}) * {text(i.spatial[1])}" for n, i in enumerate(spec.operands)]
        return ", ".join([f"xr + ({first}) * {text(spec.x.spatial[1])}", "wb", *outs, *ops, "h0", "h1"])

    def count(self, first: int, axis: int) -> int:
        """Divisor along one axis of a window whose first tap is at `first`, for a static extent."""
        spec = self.spec
        low, high = spec.counted[axis]
        extent = spec.space[axis]
        assert isinstance(extent, int)
        taps = (first + k * spec.dilations[axis] for k in range(spec.kernel[axis]))
        return sum(-low <= t < extent + high for t in taps)

    def row(self, tail: int) -> list[str]:
        """Calls for one row of output pixels."""
        spec, text = self.spec, self.dims.text
        width, out_width = spec.space[1], spec.out[1]
        stride, low = spec.strides[1], spec.pads[1][0]
        if isinstance(width, int) and isinstance(out_width, int):
            out, at = [], 0
            starts: list[tuple[_Variant, list[int]]] = []
            for size, many in split_evenly(out_width, spec.pixels):
                for _ in range(many):
                    first = at * stride - low
                    last = (size - 1) * stride + self.reach
                    counts = tuple(self.count(first + p * stride, 1) for p in range(size))
                    variant = _Variant(size, max(0, -first), min(last, width - first), counts)
                    if starts and starts[-1][0] == variant:
                        starts[-1][1].append(at)
                    else:
                        starts.append((variant, [at]))
                    at += size
            for variant, places in starts:
                call = f"{self.tile(variant, tail)}({self.arguments('s')}, ch, d);"
                first, step = places[0], variant.pixels
                out.append(f"for (int64_t s = {first}; s <= {places[-1]}; s += {step}) {call}")
            return out
        pixels = spec.pixels
        full = _Variant(pixels, 0, (pixels - 1) * stride + self.reach, (spec.kernel[1],) * pixels)
        inside = f"s * {stride} >= {low} && (s + {pixels - 1}) * {stride} + {self.reach - low} <= {text(width)}"
        a, b = spec.counted[1]
        dilation, taps = spec.dilations[1], spec.kernel[1]
        return [
            f"for (int64_t s = 0; s < {text(out_width)};) {{",
            f"  if (s + {pixels} <= {text(out_width)} && {inside}) {{",
            f"    {self.tile(full, tail)}({self.arguments('s')}, ch, d); s += {pixels};",
            "  } else {",
            f"    const int64_t f = s * {stride} - {low};",
            f"    const int64_t k0 = @ENTRY@_lo(f, {dilation}), k1 = @ENTRY@_hi(f, {dilation}, {taps}, {text(width)});",
            f"    const int64_t q0 = @ENTRY@_lo(f + {a}, {dilation}),"
            f" q1 = @ENTRY@_hi(f, {dilation}, {taps}, {text(width)} + {b});",
            f"    {self.pixel(tail)}({self.arguments('s')}, k0, k1, ch * (float)(q1 - q0), d); s++;",
            "  }",
            "}",
        ]

    def kernel(self) -> str:
        """The whole source."""
        spec, text, lanes = self.spec, self.dims.text, self.spec.isa.lanes
        rows = text(spec.out[0])
        has_weights = spec.mode == DEPTHWISE
        first = 2 if has_weights else 1
        n_out = len(spec.outputs)
        height = spec.space[0]
        per_row = spec.x.spatial[0] if isinstance(spec.x.spatial[0], int) else 64 * spec.channels
        chunk = max(1, CHUNK_BYTES // max(1, 4 * per_row * spec.strides[0]))
        a, b = spec.counted[0]
        dilation, taps = spec.dilations[0], spec.kernel[0]
        out = [
            "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
            "  const float *X = p[0];",
            f"  const float *W = {'p[1]' if has_weights else '0'};",
            *(f"  float *O{n} = p[{first + n}];" for n in range(n_out)),
            *(f"  const float *E{n} = p[{first + n_out + n}];" for n in range(len(spec.operands))),
            f"  const int64_t U = {text(spec.batch)} * {rows}, C = {self.blocks};",
            "  int64_t u0, u1, c0, c1;",
            "  @ENTRY@_grid(tid, nt, U, C, 0, &u0, &u1, &c0, &c1);",
            f"  for (int64_t ub = u0; ub < u1; ub += {chunk}) {{",
            f"    const int64_t ue = ub + {chunk} < u1 ? ub + {chunk} : u1;",
            "    for (int64_t c = c0; c < c1; c++) for (int64_t u = ub; u < ue; u++) {",
            f"      const int64_t n = u / {rows}, y = u % {rows}, q = c * {lanes};",
            f"      const int64_t f = y * {spec.strides[0]} - {spec.pads[0][0]};",
            f"      const int64_t h0 = @ENTRY@_lo(f, {dilation}), h1 = @ENTRY@_hi(f, {dilation}, {taps}, {text(height)});",
            f"      const float ch = (float)(@ENTRY@_hi(f, {dilation}, {taps}, {text(height)} + {b})"
            f" - @ENTRY@_lo(f + {a}, {dilation}));",
            f"      const float *xr = X + n * {text(spec.x.batch)} + f * {text(spec.x.spatial[0])} + q;",
            "      const float *wb = W + q;",
        ]
        for n, image in enumerate(spec.outputs):
            out.append(f"      float *o{n}r = O{n} + n * {text(image.batch)} + y * {text(image.spatial[0])} + q;")
        for n, (image, column) in enumerate(zip(spec.operands, spec.operand_columns, strict=True)):
            place = f"n * {text(image.batch)} + y * {text(image.spatial[0])}" + (" + q" if column else "")
            out.append(f"      const float *e{n}r = E{n} + {place};")
        if self.tail and self.blocks > 1:
            out += [f"      if (c < {self.blocks - 1}) {{", *self.row(0), "      } else {", *self.row(self.tail), "      }"]
        else:
            out += self.row(self.tail)
        out += ["    }", "  }", "}"]
        partial = partial_functions(spec.isa, {self.tail} - {0})
        return "\n".join([partial + GRID + _BOUNDS, *self.functions.values(), *out]) + "\n"


def emit(spec: WindowConfig, dims: DimTable) -> str:
    """C source of a window operation; parameters are x, packed weights (depthwise only), outputs, epilogue operands."""
    return _Writer(spec, dims).kernel()


# Taps [lo, hi) of a window of n taps, `dilation` apart, first at f, that lie in [0, extent).
_BOUNDS = """
static inline int64_t @ENTRY@_lo(int64_t f, int64_t dilation) {
  return f >= 0 ? 0 : (-f + dilation - 1) / dilation;
}
static inline int64_t @ENTRY@_hi(int64_t f, int64_t dilation, int64_t n, int64_t extent) {
  const int64_t m = extent - f <= 0 ? 0 : (extent - f + dilation - 1) / dilation;
  return m < n ? m : n;
}
"""
