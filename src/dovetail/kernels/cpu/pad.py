"""Copy of a channels-last image into a buffer with a halo, for producers that could not write one."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.core.dims import Dim, product
from dovetail.kernels.cpu.conv import Image
from dovetail.kernels.cpu.text import DimTable


@dataclass(frozen=True)
class PadConfig:
    """A padded copy.

    Attributes:
        batch: N.
        spatial: spatial extents of the source.
        channels: contiguous floats per pixel.
        pads: (low, high) per spatial axis, not negative.
        x: source placement.
        y: destination placement, whose pointer is at the first padded pixel.
        fill: value of the halo (C literal).
    """

    batch: Dim
    spatial: tuple[Dim, ...]
    channels: int
    pads: tuple[tuple[int, int], ...]
    x: Image
    y: Image
    fill: str = "0.0f"

    @property
    def padded(self) -> tuple[Dim, ...]:
        """Spatial extents of the destination."""
        return tuple(n + lo + hi for n, (lo, hi) in zip(self.spatial, self.pads, strict=True))


def dense(spatial: tuple[Dim, ...], channels: int) -> Image:
    """Placement of a dense channels-last image of these extents."""
    strides: list[Dim] = []
    step: Dim = channels
    for extent in reversed(spatial):
        strides.insert(0, step)
        step = step * extent
    return Image(step, tuple(strides))


def emit(config: PadConfig, dims: DimTable) -> str:
    """C source of the copy; parameters are x, y. Threads split the rows of the destination."""
    outer = config.padded[:-1]
    rows = dims.text(config.batch * product(outer))
    low, high = config.pads[-1]
    inside, source, target = [], ["0"], ["0"]
    out = []
    rest = "r"
    for n in reversed(range(len(outer))):
        extent = dims.text(outer[n])
        out += [f"    const int64_t h{n} = {rest} % {extent} - {config.pads[n][0]}, q{n} = {rest} / {extent};"]
        rest = f"q{n}"
        inside.append(f"h{n} >= 0 && h{n} < {dims.text(config.spatial[n])}")
        source.append(f"h{n} * {dims.text(config.x.spatial[n])}")
        target.append(f"(h{n} + {config.pads[n][0]}) * {dims.text(config.y.spatial[n])}")
    x_pixel, y_pixel = dims.text(config.x.spatial[-1]), dims.text(config.y.spatial[-1])
    width, channels = dims.text(config.spatial[-1]), config.channels
    fill = f"for (int64_t c = 0; c < {channels}; c++) y[c] = {config.fill};"
    if config.x.spatial[-1] == channels and config.y.spatial[-1] == channels:
        copy = f"for (int64_t c = 0; c < {width} * {channels}; c++) y[c] = x[c]; y += {width} * {channels};"
    else:
        copy = (
            f"for (int64_t w = 0; w < {width}; w++, x += {x_pixel}, y += {y_pixel})"
            f" for (int64_t c = 0; c < {channels}; c++) y[c] = x[c];"
        )
    return "\n".join(
        [
            "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
            "  const float *X = p[0]; float *Y = p[1];",
            f"  const int64_t R = {rows};",
            "  for (int64_t r = R * tid / nt; r < R * (tid + 1) / nt; r++) {",
            *out,
            f"    float *restrict y = Y + {rest} * {dims.text(config.y.batch)} + {' + '.join(target)};",
            f"    if (!({' && '.join(inside) or '1'})) {{",
            f"      for (int64_t w = 0; w < {dims.text(config.padded[-1])}; w++, y += {y_pixel}) {fill}",
            "      continue;",
            "    }",
            f"    const float *restrict x = X + {rest} * {dims.text(config.x.batch)} + {' + '.join(source)};",
            f"    for (int64_t w = 0; w < {low}; w++, y += {y_pixel}) {fill}",
            f"    {copy}",
            f"    for (int64_t w = 0; w < {high}; w++, y += {y_pixel}) {fill}",
            "  }",
            "}",
        ]
    ) + "\n"
