"""GEMM: C = A B with packed B, any batch axes, fused epilogue."""

from __future__ import annotations

from dataclasses import dataclass, field

from dovetail.core.dims import Dim
from dovetail.kernels.cpu import contraction, tiles
from dovetail.kernels.cpu.contraction import Axis, Contraction, Panels
from dovetail.kernels.cpu.epilogue import Epilogue
from dovetail.kernels.cpu.text import DimTable, Isa


@dataclass(frozen=True)
class GemmConfig:
    """A matrix product [batch..., M, K] x [batch..., K, N].

    Attributes:
        isa: vector shape.
        batch: batch axes, outermost first; `b` strides in floats of packed B, 0 where B is shared.
        rows: the axis of M (its `b` is 0).
        columns: N.
        depth: K. The left operand is contiguous along K.
        operand_columns: column stride (0 or 1) of each epilogue operand.
        max_rows, vectors: register tile.
        epilogue: what happens before the store.
    """

    isa: Isa
    batch: tuple[Axis, ...]
    rows: Axis
    columns: Dim
    depth: Dim
    max_rows: int
    vectors: int
    operand_columns: tuple[int, ...] = ()
    epilogue: Epilogue = field(default_factory=Epilogue)

    @property
    def panels(self) -> Panels:
        """The cut of the columns, which fixes the packing of B."""
        return Panels(self.columns, self.vectors, self.isa.lanes)

    @property
    def pack_lanes(self) -> int:
        """What the last panel is rounded up to: whole panels where N is symbolic."""
        return self.isa.lanes if isinstance(self.columns, int) else self.panels.width


def default_tile(isa: Isa, rows: Dim, columns: Dim, depth: Dim, row_stride: Dim) -> tuple[int, int]:
    """(max_rows, vectors) by the measured rules."""
    return tiles.choose(isa, rows, columns, row_stride, depth)


def emit(config: GemmConfig, dims: DimTable) -> str:
    """C source of the product; parameters are a, packed b, outputs, epilogue operands."""
    shared = tuple(axis for axis in config.batch if axis.b == 0)
    own = tuple(axis for axis in config.batch if axis.b != 0)
    depth = config.depth if isinstance(config.depth, int) else 1024
    spec = Contraction(
        isa=config.isa,
        groups=own,
        rows=(*shared, config.rows),
        runs=(),
        depth=config.depth,
        panels=config.panels,
        operand_columns=config.operand_columns,
        max_rows=config.max_rows,
        chunk_row_bytes=4 * depth,
        epilogue=config.epilogue,
    )
    return contraction.emit(spec, dims)
