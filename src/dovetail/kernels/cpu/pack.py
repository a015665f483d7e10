"""Packing of a right operand that is computed at run time into the panels GEMM reads."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.core.dims import Dim, product
from dovetail.kernels.cpu.contraction import Panels
from dovetail.kernels.cpu.text import DimTable


@dataclass(frozen=True)
class PackConfig:
    """A packing kernel.

    Attributes:
        batch: (extent, stride in b) per batch axis, outermost first; packed batches are dense.
        depth: K.
        panels: the cut of N.
        row: elements between successive k in b.
        column: elements between successive n in b.
    """

    batch: tuple[tuple[Dim, Dim], ...]
    depth: Dim
    panels: Panels
    row: Dim
    column: Dim

    @property
    def block(self) -> Dim:
        """Packed floats of one batch entry."""
        return self.depth * self.panels.packed_columns

    @property
    def floats(self) -> Dim:
        """Packed floats in all."""
        return product(n for n, _ in self.batch) * self.block


_STEP = 64


def emit(config: PackConfig, dims: DimTable) -> str:
    """C source of the packing; parameters are b, packed. Threads split (batch, panel, block of k)."""
    panels, width = config.panels, config.panels.width
    depth, columns = dims.text(config.depth), dims.text(panels.columns)
    row, column = dims.text(config.row), dims.text(config.column)
    index, rest, offset = [], "g", ["0"]
    for n in reversed(range(len(config.batch))):
        extent, stride = config.batch[n]
        index.append(f"    const int64_t g{n} = {rest} % {dims.text(extent)}, h{n} = {rest} / {dims.text(extent)};")
        rest = f"h{n}"
        offset.append(f"g{n} * {dims.text(stride)}")
    lanes = panels.lanes if isinstance(panels.columns, int) else width
    # The inner loop runs along whichever direction of b is contiguous.
    along_n = (
        f"for (int64_t k = k0; k < k1; k++) {{ for (int64_t n = 0; n < m; n++) y[k * w + n] = x[k * {row} + n * {column}];"
        " for (int64_t n = m; n < w; n++) y[k * w + n] = 0.0f; }"
    )
    along_k = (
        f"for (int64_t n = 0; n < m; n++) for (int64_t k = k0; k < k1; k++) y[k * w + n] = x[k * {row} + n * {column}];\n"
        "    for (int64_t n = m; n < w; n++) for (int64_t k = k0; k < k1; k++) y[k * w + n] = 0.0f;"
    )
    full = f"if (m == {width}) for (int64_t k = k0; k < k1; k++) for (int64_t n = 0; n < {width}; n++)"
    copy = f"{full} y[k * {width} + n] = x[k * {row} + n];\n    else {along_n}" if config.column == 1 else along_k
    return "\n".join(
        [
            "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
            "  const float *B = p[0]; float *Y = p[1];",
            f"  const int64_t P = {dims.text(panels.count)}, S = ({depth} + {_STEP - 1}) / {_STEP};",
            f"  const int64_t T = {dims.text(product(n for n, _ in config.batch))} * P * S;",
            "  for (int64_t t = T * tid / nt; t < T * (tid + 1) / nt; t++) {",
            "    const int64_t s = t % S, j = t / S % P, g = t / S / P;",
            *index,
            f"    const int64_t k0 = s * {_STEP}, k1 = k0 + {_STEP} < {depth} ? k0 + {_STEP} : {depth};",
            f"    const int64_t left = {columns} - j * {width}, m = left < {width} ? left : {width};",
            f"    const int64_t w = (m + {lanes - 1}) / {lanes} * {lanes};",
            f"    const float *restrict x = B + {' + '.join(offset)} + j * {width} * {column};",
            f"    float *restrict y = Y + g * {dims.text(config.block)} + j * {width} * {depth};",
            f"    {copy}",
            "  }",
            "}",
        ]
    ) + "\n"
