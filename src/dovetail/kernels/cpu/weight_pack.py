"""C sources of weight-time packing: panels, and the Winograd transform.

All sizes and strides are run-time dims, so that the packs of all weights of all models share a few sources. A source
comes in two variants: with and without a factor per column, which is how a folded batch normalisation reaches the weights
without an array in between.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from dovetail.reference.packing import WINOGRAD_G


@dataclass(frozen=True)
class Columns:
    """Where the source of a packing lies, in elements: y[g][panel][t, c][n] = x[g*xg + t*xt + c*xc + n*xn].

    Attributes:
        groups: (extent, stride) of independent matrices.
        outer, inner: (extent, stride) of the two parts of the depth.
        columns: (extent of the packed whole, stride).
        width, lanes: the cut into panels.
        start, stop: the packed columns that this source holds.
        factor: (stride per group, stride per column) of the factors, if there are any.
    """

    groups: tuple[int, int]
    outer: tuple[int, int]
    inner: tuple[int, int]
    columns: tuple[int, int]
    width: int
    lanes: int
    start: int
    stop: int
    factor: tuple[int, int] | None = None

    def dims(self) -> tuple[int, ...]:
        """The run-time dims of `panels`."""
        head = (*self.groups, *self.outer, *self.inner, *self.columns, self.width, self.lanes, self.start, self.stop)
        return head if self.factor is None else (*head, *self.factor)

    @property
    def elements(self) -> int:
        """Elements that are read."""
        return self.groups[0] * self.outer[0] * self.inner[0] * (self.stop - self.start)


def panels(scaled: bool) -> str:
    """C source of the packing into panels; parameters are x, the factors if `scaled`, y. Dims: `Columns.dims`.

    Threads split (group, panel, block of the depth). A block is 64 deep and written 16 columns at a time, so that what a
    transposition touches stays in the first-level cache.
    """
    factor = " * s[n * sn]" if scaled else ""
    once = " * z" if scaled else ""
    fetch = "const float z = s[n * sn]; " if scaled else ""
    return "\n".join(
        [
            "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
            "  const float *X = p[0];" + (" const float *S = p[1]; float *Y = p[2];" if scaled else " float *Y = p[1];"),
            "  const int64_t G = d[0], xg = d[1], T = d[2], xt = d[3], C = d[4], xc = d[5], N = d[6], xn = d[7];",
            "  const int64_t W = d[8], L = d[9], lo = d[10], hi = d[11];",
            "  const int64_t sg = d[12], sn = d[13];" if scaled else "",
            "  const int64_t K = T * C, full = N / W, tail = (N % W + L - 1) / L * L, size = K * (full * W + tail);",
            "  const int64_t j0 = lo / W, P = (hi + W - 1) / W - j0, B = T < 64 ? 64 / T : 1, Q = (C + B - 1) / B;",
            "  for (int64_t i = G * P * Q * tid / nt; i < G * P * Q * (tid + 1) / nt; i++) {",
            # Rows are read along a whole row, columns along a whole column.
            "    const int64_t r = i % (P * Q), g = i / (P * Q);",
            "    const int64_t q = xn == 1 ? r / P : r % Q, j = j0 + (xn == 1 ? r % P : r / Q);",
            "    const int64_t c0 = q * B, c1 = c0 + B < C ? c0 + B : C, w = j < full ? W : tail;",
            "    const int64_t a = lo > j * W ? lo - j * W : 0, b = hi < j * W + w ? hi - j * W : w;",
            "    const int64_t e = hi == N ? w : b;",
            "    const float *x = X + g * xg + (j * W - lo) * xn;",
            "    const float *s = S + g * sg + (j * W - lo) * sn;" if scaled else "",
            "    float *restrict y = Y + g * size + j * W * K;",
            "    if (xn == 1) {",
            "      for (int64_t t = 0; t < T; t++) for (int64_t c = c0; c < c1; c++) {",
            "        const float *v = x + t * xt + c * xc; float *restrict u = y + (t * C + c) * w;",
            f"        for (int64_t n = a; n < b; n++) u[n] = v[n]{factor};",
            "      }",
            "    } else {",
            "      for (int64_t m = a; m < b; m += 16) {",
            "        const int64_t z1 = m + 16 < b ? m + 16 : b;",
            f"        if (T == 1) for (int64_t n = m; n < z1; n++) {{ {fetch}const float *v = x + n * xn;",
            f"          for (int64_t c = c0; c < c1; c++) y[c * w + n] = v[c * xc]{once}; }}",
            f"        else for (int64_t n = m; n < z1; n++) {{ {fetch}const float *v = x + n * xn;",
            "          for (int64_t c = c0; c < c1; c++) for (int64_t t = 0; t < T; t++)",
            f"            y[(t * C + c) * w + n] = v[c * xc + t * xt]{once}; }}",
            "      }",
            "    }",
            "    if (b < e) for (int64_t t = 0; t < T; t++) for (int64_t c = c0; c < c1; c++)",
            "      for (int64_t n = b; n < e; n++) y[(t * C + c) * w + n] = 0.0f;",
            "  }",
            "}",
        ]
    ) + "\n"


@dataclass(frozen=True)
class Filters:
    """The source of a Winograd packing: [M, C, 3, 3] with these strides, and the cut into panels."""

    outer: tuple[int, int]
    inner: tuple[int, int]
    rows: int
    columns: int
    width: int
    lanes: int
    factor: int | None = None

    def dims(self) -> tuple[int, ...]:
        """The run-time dims of `winograd`."""
        head = (*self.outer, *self.inner, self.rows, self.columns, self.width, self.lanes)
        return head if self.factor is None else (*head, self.factor)


def _combination(coefficients: list[float], names: list[str]) -> str:
    terms = [f"{c!r} * {n}" if c != 1 else n for c, n in zip(coefficients, names, strict=True) if c]
    return " + ".join(terms)


def winograd(step: int, scaled: bool, tile: int) -> str:
    """C source of the F(tile x tile, 3x3) filter transform into panels; parameters are w, the factors if `scaled`, y.

    Args:
        step: columns computed at a time: 4 or 8, and a divisor of what panels are rounded up to.
        scaled: whether a factor per filter comes first.
        tile: output extent of the transform.

    As its reference it multiplies by the factor in fp32, transforms in float64 and rounds once. Threads split (panel,
    input channel).
    """
    g: list[list[float]] = WINOGRAD_G[tile].tolist()
    points = tile + 2
    lines = [
        f"typedef double @ENTRY@_v __attribute__((vector_size({8 * step}), aligned(8)));",
        f"typedef float @ENTRY@_f __attribute__((vector_size({4 * step}), aligned(4)));",
        "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
        "  const float *X = p[0];" + (" const float *S = p[1]; float *Y = p[2];" if scaled else " float *Y = p[1];"),
        "  const int64_t M = d[0], xm = d[1], C = d[2], xc = d[3], xr = d[4], xk = d[5], W = d[6], L = d[7];",
        "  const int64_t sm = d[8];" if scaled else "",
        "  const int64_t full = M / W, tail = (M % W + L - 1) / L * L, plane = C * (full * W + tail);",
        "  const int64_t P = (M + W - 1) / W;",
        "  for (int64_t i = P * C * tid / nt; i < P * C * (tid + 1) / nt; i++) {",
        "    const int64_t c = i % C, j = i / C, w = j < full ? W : tail;",
        "    float *restrict y = Y + j * W * C + c * w;",
        f"    for (int64_t n = 0; n < w; n += {step}) {{",
        "      @ENTRY@_v " + ", ".join(f"g{i} = {{0}}" for i in range(9)) + ";",
        f"      for (int64_t l = 0; l < {step} && j * W + n + l < M; l++) {{",
        "        const float *x = X + (j * W + n + l) * xm + c * xc;",
        "        const float s = S[(j * W + n + l) * sm];" if scaled else "",
    ]
    for row, column in itertools.product(range(3), range(3)):
        value = f"x[{row} * xr + {column} * xk]" + (" * s" if scaled else "")
        lines.append(f"        {{ const float q = {value}; g{3 * row + column}[l] = q; }}")
    lines.append("      }")
    for a in range(points):
        for column in range(3):
            value = _combination(g[a], [f"g{3 * row + column}" for row in range(3)])
            lines.append(f"      const @ENTRY@_v t{a}{column} = {value};")
        for b in range(points):
            value = _combination(g[b], [f"t{a}{column}" for column in range(3)])
            lines.append(
                f"      *(@ENTRY@_f *)(y + {points * a + b} * plane + n) = __builtin_convertvector({value}, @ENTRY@_f);"
            )
    return "\n".join([*lines, "    }", "  }", "}"]) + "\n"
