"""Direct convolution on channels-last data: a GEMM whose left operand is read in place.

Neighbouring output pixels lie `stride * pixel` floats apart in the input, and one kernel row is `kw * C`
contiguous floats where pixels are dense and undilated, so no column matrix is built. The input carries its padding (a halo, or
a copy made by `pad`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dovetail.core.dims import Dim
from dovetail.kernels.cpu import contraction, tiles
from dovetail.kernels.cpu.contraction import Axis, Contraction, Panels
from dovetail.kernels.cpu.epilogue import Epilogue
from dovetail.kernels.cpu.text import DimTable, Isa


@dataclass(frozen=True)
class Image:
    """Element strides of a channels-last image: batch, then each spatial axis; channels are contiguous."""

    batch: Dim
    spatial: tuple[Dim, ...]


@dataclass(frozen=True)
class ConvConfig:
    """A convolution over 1 to 3 spatial axes.

    Attributes:
        isa: vector shape.
        batch: N.
        channels: input channels of all groups.
        filters: output channels of all groups.
        group: number of groups.
        kernel, strides, dilations: per spatial axis.
        out: output spatial extents.
        x: input placement; the pointer is at the first tap of output pixel 0, padding included.
        outputs: output placements.
        operands: epilogue operand placements.
        operand_columns: 1 if an operand varies along channels, else 0.
        max_rows, vectors: register tile.
        epilogue: what happens before the store.
    """

    isa: Isa
    batch: Dim
    channels: int
    filters: int
    group: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    out: tuple[Dim, ...]
    x: Image
    outputs: tuple[Image, ...]
    max_rows: int
    vectors: int
    operands: tuple[Image, ...] = ()
    operand_columns: tuple[int, ...] = ()
    epilogue: Epilogue = field(default_factory=Epilogue)

    @property
    def panels(self) -> Panels:
        """The cut of one group's filters, which fixes the packing of the weights."""
        return Panels(self.filters // self.group, self.vectors, self.isa.lanes)


def default_tile(
    isa: Isa, out: tuple[Dim, ...], filters: int, strides: tuple[int, ...], x: Image, depth: int, merged: bool
) -> tuple[int, int]:
    """(max_rows, vectors) by the measured rules.

    Args:
        isa: vector shape.
        out: output spatial extents.
        filters: filters of one group.
        strides: spatial strides.
        x: input placement.
        depth: length of the reduction.
        merged: whether image rows join into one long axis (1x1, stride 1).
    """
    fixed = [n for n in out if isinstance(n, int)]
    rows: Dim = out[-1]
    if len(fixed) == len(out):
        # Narrow images share tiles across rows, so they do not count as few rows.
        rows = math.prod(fixed) if merged else max(fixed[-1], min(64, math.prod(fixed)))
    step = x.spatial[-1] * strides[-1]
    return tiles.choose(isa, rows, filters, step, depth)


def emit(config: ConvConfig, dims: DimTable) -> str:
    """C source of the convolution; parameters are x, packed weights, outputs, epilogue operands."""
    inner = config.channels // config.group
    filters = config.filters // config.group
    pixel = config.x.spatial[-1]
    runs: list[tuple[Dim, Dim]] = [
        (n, s * d) for n, s, d in zip(config.kernel, config.x.spatial, config.dilations, strict=True)
    ]
    depth = inner
    if pixel == inner and (config.dilations[-1] == 1 or config.kernel[-1] == 1):
        depth = inner * config.kernel[-1]
        runs.pop()
    places = (*config.outputs, *config.operands)
    n_outputs = len(config.outputs)

    def axis(extent: Dim, a: Dim, others: tuple[Dim, ...], b: Dim = 0) -> Axis:
        return Axis(extent, a, others[:n_outputs], others[n_outputs:], b)

    rows = [axis(config.batch, config.x.batch, tuple(i.batch for i in places))]
    for n, extent in enumerate(config.out):
        rows.append(axis(extent, config.x.spatial[n] * config.strides[n], tuple(i.spatial[n] for i in places)))
    columns = (*([1] * n_outputs), *config.operand_columns)
    taps = math.prod(config.kernel)
    block = taps * inner * int(config.panels.packed_columns)  # type: ignore[arg-type]
    groups: tuple[Axis, ...] = ()
    if config.group > 1:
        groups = (axis(config.group, inner, tuple(filters * c for c in columns), block),)
    reused = math.prod(config.strides) if config.kernel != (1,) * len(config.kernel) else 1
    spec = Contraction(
        isa=config.isa,
        groups=groups,
        rows=tuple(rows),
        runs=tuple(runs),
        depth=depth,
        panels=config.panels,
        operand_columns=config.operand_columns,
        max_rows=config.max_rows,
        chunk_row_bytes=4 * inner * reused,
        epilogue=config.epilogue,
    )
    return contraction.emit(spec, dims)
