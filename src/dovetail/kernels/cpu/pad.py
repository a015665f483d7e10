"""Copy of a channels-last image into a buffer with a halo, for producers that could not write one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dovetail.core.dims import Dim, product
from dovetail.kernels.cpu import tiles
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
        steps: take every n-th pixel per spatial axis (only without pads); () takes all.
        channel: floats between the channels of a source pixel.
    """

    batch: Dim
    spatial: tuple[Dim, ...]
    channels: int
    pads: tuple[tuple[int, int], ...]
    x: Image
    y: Image
    fill: str = "0.0f"
    steps: tuple[int, ...] = ()
    channel: Dim = 1

    @property
    def padded(self) -> tuple[Dim, ...]:
        """Spatial extents of the destination."""
        return tuple(n + lo + hi for n, (lo, hi) in zip(self.spatial, self.pads, strict=True))


def plan(
    batch: Dim, spatial: tuple[Dim, ...], channels: int, pads: tuple[tuple[int, int], ...], x: Image,
    kernel: tuple[int, ...], strides: tuple[int, ...], filters: int,
) -> PadConfig | None:  # fmt: skip
    """The copy of its input that a convolution should make, or None if it should read the input where it lies.

    A copy adds the padding; it gathers the pixels that a strided 1x1 kernel reads; and it breaks pixel distances at which
    the rows of a tile share cache sets (measured: 14x32 tiles fall from 95 to 76 % of peak). Without padding it
    pays only if the filters are many: copying costs about 0.3 cycles per element, computing `filters` / 32.
    """
    point = all(k == 1 for k in kernel)
    padded = any(lo or hi for lo, hi in pads)
    gather = point and not padded and any(s != 1 for s in strides)
    step = strides[-1] if not gather else 1
    crowded = tiles.rows_without_conflict(4 * channels * step) < _TALL_TILE and channels > 256
    if not padded and not ((gather or crowded) and filters >= _MANY_FILTERS):
        return None
    pitch = channels + 16 if crowded else channels
    steps = strides if gather else ()
    config = PadConfig(batch, spatial, channels, pads, x, x, steps=steps)
    return replace(config, y=dense(subsampled(config).padded, pitch))


_TALL_TILE = 14
_MANY_FILTERS = 320


def subsampled(config: PadConfig) -> PadConfig:
    """The same copy with `steps` folded into the strides and extents of the source."""
    if not config.steps:
        return config
    spatial = tuple((n + (s - 1)) // s for n, s in zip(config.spatial, config.steps, strict=True))
    strides = tuple(x * s for x, s in zip(config.x.spatial, config.steps, strict=True))
    return replace(config, spatial=spatial, x=Image(config.x.batch, strides), steps=())


def dense(spatial: tuple[Dim, ...], channels: int) -> Image:
    """Placement of an image of these extents with this many floats per pixel, channels last."""
    strides: list[Dim] = []
    step: Dim = channels
    for extent in reversed(spatial):
        strides.insert(0, step)
        step = step * extent
    return Image(step, tuple(strides))


def emit(config: PadConfig, dims: DimTable) -> str:
    """C source of the copy; parameters are x, y. Threads split the rows of the destination."""
    config = subsampled(config)
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
    if config.channel != 1:
        # Channels first: one pass per channel along the row, writing every pixel's element of that channel.
        copy = (
            f"for (int64_t c = 0; c < {channels}; c++) {{ const float *restrict s = x + c * {dims.text(config.channel)};"
            f" float *restrict t = y + c;"
            f" for (int64_t w = 0; w < {width}; w++) t[w * {y_pixel}] = s[w * {x_pixel}]; }}"
            f" y += {width} * {y_pixel};"
        )
    elif config.x.spatial[-1] == channels and config.y.spatial[-1] == channels:
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
