"""Conv by direct convolution on channels-last data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Pack, Step, Tactic, tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import product
from dovetail.kernels.cpu import conv
from dovetail.kernels.cpu.conv import ConvConfig
from dovetail.kernels.cpu.fused import make_epilogue
from dovetail.kernels.cpu.images import (
    bias_of,
    bias_operands,
    conv_reason,
    copy_step,
    image_layouts,
    image_of,
    input_copy,
    side_images,
)
from dovetail.kernels.cpu.microkernel import max_rows
from dovetail.kernels.cpu.text import DimTable, Isa
from dovetail.kernels.fused import attributes, in_place, sides


@tactic
class DirectConv(Tactic):
    """Direct convolution, grouped or not, 1 to 3 spatial axes."""

    name = "direct"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """fp32 with constant filters."""
        return conv_reason(group)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        assert group.anchor is not None
        return image_layouts(group, any(attributes(group.anchor)["pads"]))

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The measured rule first, then the other tiles of the instruction set."""
        isa = Isa.of(target)
        first = self._conv(group, target, None)
        found = [(first.max_rows, first.vectors)]
        filters = first.filters // first.group
        for vectors in (2, 3, 4):
            other = (max_rows(isa, vectors), vectors)
            if filters > isa.lanes * (vectors - 1) and other not in found:
                found.append(other)
        return tuple((("rows", r), ("vectors", v)) for r, v in found)

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """The filters."""
        spec = self._conv(group, target, config)
        assert group.anchor is not None
        attrs = (("group", spec.group), ("width", spec.panels.width), ("lanes", spec.isa.lanes))
        return (Pack(group.anchor.input(1).index, "PackConv", attrs),)

    def _conv(self, group: Group, target: Target, config: Config | None) -> ConvConfig:
        isa, anchor = Isa.of(target), group.anchor
        assert anchor is not None
        x_type = group.inputs[anchor.input(0).index].tensor
        w, y = anchor.input(1).tensor.shape, anchor.output.tensor.shape
        channels, filters = x_type.shape[1], w[0]
        kernel = tuple(int(k) for k in w[2:])  # type: ignore[arg-type]  # known: supports checked
        assert isinstance(channels, int) and isinstance(filters, int)
        attrs = attributes(anchor)
        strides, groups = tuple(attrs["strides"]), attrs["group"]
        copy = input_copy(group, kernel)
        place = image_of(x_type) if copy is None else copy.y
        if copy is not None and copy.steps:
            strides = (1,) * len(strides)  # the copy holds only the pixels that are read
        images, columns = side_images(sides(group), bias_of(anchor), len(kernel))
        if config is None:
            taps = math.prod(kernel)
            merged = taps == 1 and set(strides) == {1}
            depth = taps * channels // groups
            tile = conv.default_tile(isa, y[2:], filters // groups, strides, place, depth, merged)
        else:
            given = dict(config)
            tile = int(given["rows"]), int(given["vectors"])
        return ConvConfig(
            isa, y[0], channels, filters, groups, kernel, strides, tuple(attrs["dilations"]), y[2:], place,
            tuple(image_of(v.tensor) for v in group.outputs), tile[0], tile[1], images, columns,
            make_epilogue(group, isa, bias_of(anchor) is not None),
        )  # fmt: skip

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """The convolution, behind a copy of its input where that pays."""
        anchor = group.anchor
        assert anchor is not None
        spec = self._conv(group, target, config)
        copy = input_copy(group, spec.kernel)
        source = Operand("in", anchor.input(0).index) if copy is None else Operand("temp", 0)
        found = sides(group)
        table = DimTable()
        text = conv.emit(spec, table)
        outs = [Operand("out", n) for n in range(len(group.outputs))]
        args = (source, Operand("in", anchor.input(1).index), *outs, *bias_operands(anchor, found))
        y, w = anchor.output.tensor, anchor.input(1).tensor
        kernel = make_kernel(
            text,
            params=[Param(o.role, o.index) for o in args],
            dims=table.entries,
            flops=y.size * product(w.shape[1:]) * 2,
            bytes=(anchor.input(0).tensor.size + w.size + y.size) * 4,
            tactic=self.name,
            config=config,
        )
        if copy is None:
            return Emitted((Step(kernel, args),), (), in_place(group, found))
        first, size = copy_step(group, copy, self.name)
        return Emitted((first, Step(kernel, args)), (size,), in_place(group, found))
