"""3x3 Conv by Winograd F(4x4, 3x3) and F(2x2, 3x3)."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Pack, Step, Tactic, tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import product
from dovetail.kernels.cpu import winograd
from dovetail.kernels.cpu.fused import make_epilogue
from dovetail.kernels.cpu.images import (
    bias_of,
    bias_operands,
    conv_reason,
    image_layouts,
    image_of,
    side_images,
)
from dovetail.kernels.cpu.text import DimTable, Isa
from dovetail.kernels.cpu.winograd import WinogradConfig
from dovetail.kernels.fused import attributes, in_place, sides

_LEAST_CHANNELS = 32  # below, the transforms cost more than the multiplications they save
_LEAST_EXTENT = 12  # below, tiles of four waste too much of the last row and column


@tactic
class Winograd(Tactic):
    """Three to four times fewer multiplications for 3x3 filters, at some loss of accuracy."""

    name = "winograd"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Ungrouped 3x3 filters of stride and dilation 1 over enough channels and pixels."""
        reason = conv_reason(group)
        if reason is not None:
            return reason
        anchor = group.anchor
        assert anchor is not None
        x, w, y = (v.tensor.shape for v in (anchor.input(0), anchor.input(1), anchor.output))
        if w[2:] != (3, 3):
            return f"kernel {w[2:]} is not 3x3"
        attrs = attributes(anchor)
        if set(attrs["strides"]) != {1} or set(attrs["dilations"]) != {1} or attrs["group"] != 1:
            return "strides, dilations and group are not all 1"
        channels, filters = x[1], w[0]
        assert isinstance(channels, int) and isinstance(filters, int)
        if min(channels, filters) < _LEAST_CHANNELS:
            return f"{channels} -> {filters} channels are fewer than {_LEAST_CHANNELS}"
        if any(isinstance(n, int) and n < _LEAST_EXTENT for n in y[2:]):
            return f"output {y[2:]} is smaller than {_LEAST_EXTENT}"
        return None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        return image_layouts(group)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The cheaper tile by estimate first. Tiles of two multiply more, but read half of the weights. Then wider panels."""
        assert group.anchor is not None
        # An image of unknown size is taken as large, an unknown batch as 1.
        high, wide = (n if isinstance(n, int) else 64 for n in group.anchor.output.tensor.shape[2:])
        tiles = sorted((4, 2), key=lambda tile: winograd.relative_cost(high, wide, tile))
        shapes = [(tile, 2) for tile in tiles] + ([(tiles[0], 4)] if Isa.of(target).registers == 32 else [])
        return tuple((("tile", tile), ("vectors", vectors)) for tile, vectors in shapes)

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """The transformed filters."""
        assert group.anchor is not None
        spec = self._spec(group, config, target)
        attrs = (("width", spec.panels.width), ("lanes", spec.isa.lanes), ("tile", spec.tile))
        return (Pack(group.anchor.input(1).index, "PackWinograd", attrs),)

    def _spec(self, group: Group, config: Config, target: Target) -> WinogradConfig:
        isa, anchor = Isa.of(target), group.anchor
        assert anchor is not None
        x = group.inputs[anchor.input(0).index].tensor
        y, w = anchor.output.tensor.shape, anchor.input(1).tensor.shape
        channels, filters = x.shape[1], w[0]
        assert isinstance(channels, int) and isinstance(filters, int)
        pads = attributes(anchor)["pads"]
        images, columns = side_images(sides(group), bias_of(anchor), 2)
        given = dict(config)
        tile = int(given["tile"])
        tiles = y[0] * (-(-y[2] // tile)) * (-(-y[3] // tile)) if all(isinstance(n, int) for n in y) else None
        block = winograd.default_block(channels, tiles if tiles is not None else y[0], tile)
        return WinogradConfig(
            isa, y[0], channels, filters, ((pads[0], pads[2]), (pads[1], pads[3])), (x.shape[2], x.shape[3]),
            (y[2], y[3]), image_of(x), tuple(image_of(v.tensor) for v in group.outputs), int(given["vectors"]), block,
            images, columns, make_epilogue(group, isa, bias_of(anchor) is not None), tile,
        )  # fmt: skip

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel with a workspace per thread."""
        anchor = group.anchor
        assert anchor is not None
        spec = self._spec(group, config, target)
        found = sides(group)
        table = DimTable()
        text = winograd.emit(spec, table)
        outs = [Operand("out", n) for n in range(len(group.outputs))]
        args = (
            Operand("in", anchor.input(0).index), Operand("in", anchor.input(1).index), *outs,
            *bias_operands(anchor, found), Operand("workspace", 0),
        )  # fmt: skip
        y, w = anchor.output.tensor, anchor.input(1).tensor
        kernel = make_kernel(
            text,
            params=[Param(o.role, o.index) for o in args],
            dims=table.entries,
            workspace_bytes=spec.workspace_bytes,
            flops=y.size * product(w.shape[1:]) * 2,
            bytes=(anchor.input(0).tensor.size + w.size * 4 + y.size) * 4,
            tactic=self.name,
            config=config,
        )
        return Emitted((Step(kernel, args),), (), in_place(group, found))

    def relative_error(self) -> float:
        """Measured 5e-6 to 1e-5 of the largest value on seeded normal inputs; heavy tails allow for more."""
        return 5e-5
