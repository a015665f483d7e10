"""Conv by direct convolution on channels-last data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import (
    ANY,
    CHANNELS_LAST,
    ROW_MAJOR,
    Config,
    Emitted,
    Group,
    Operand,
    Pack,
    Step,
    Tactic,
    tactic,
)
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, product
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.types import TensorType
from dovetail.kernels.cpu import conv, pad
from dovetail.kernels.cpu.conv import ConvConfig, Image
from dovetail.kernels.cpu.fused import (
    Side,
    epilogue_problem,
    in_place,
    is_run_time,
    make_epilogue,
    sides,
    type_reason,
)
from dovetail.kernels.cpu.microkernel import max_rows
from dovetail.kernels.cpu.text import DimTable, Isa


def image_of(type_: TensorType) -> Image:
    """Batch and spatial strides of a [N, C, spatial...] value."""
    strides = type_.placement.strides(type_.shape)
    return Image(strides[0], strides[2:])


def conv_reason(group: Group) -> str | None:
    """None if a group is an fp32 convolution with constant filters and known channels, else the reason why not."""
    anchor = group.anchor
    if anchor is None or anchor.op != "Conv":
        return "the group is not built around a Conv"
    if any(v.producer is not None for v in anchor.operands):
        return "an operand of Conv is computed inside the group"
    if not all(isinstance(p, int) and p >= 0 for p in anchor.attrs["pads"]):
        return f"pads {anchor.attrs['pads']} are not all known and non-negative"
    x, w = anchor.input(0).tensor, anchor.input(1).tensor
    if not 3 <= x.rank <= 5:
        return f"rank {x.rank} has not 1 to 3 spatial axes"
    if not isinstance(x.shape[1], int) or not all(isinstance(d, int) for d in w.shape):
        return "channels or kernel extents are symbolic"
    if group.inputs[anchor.input(1).index].time != Time.WEIGHT:
        return "filters are computed at run time"
    return type_reason(group) or epilogue_problem(group) or side_reason(group)


def side_reason(group: Group) -> str | None:
    """Epilogue operands must have stride 1 or 0 along channels."""
    assert group.anchor is not None
    rank = group.anchor.output.tensor.rank
    for side in sides(group):
        shape = (1,) * (rank - side.value.tensor.rank) + side.value.tensor.shape
        movable = is_run_time(group, side.value) and side.value.tensor.rank == rank
        if shape[1] != 1 and not movable and any(d != 1 for d in shape[2:]):
            return f"operand {side.value.name} is not contiguous along channels"
    return None


def image_layouts(group: Group) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Channels last for images, including those of the epilogue; the rest as it comes."""
    anchor = group.anchor
    assert anchor is not None
    rank = anchor.output.tensor.rank
    wants = [ANY] * len(group.inputs)
    for side in sides(group):
        wants[side.position] = CHANNELS_LAST if side.value.tensor.rank == rank else ROW_MAJOR
    wants[anchor.input(0).index] = CHANNELS_LAST
    return tuple(wants), (CHANNELS_LAST,) * len(group.outputs)


def side_images(found: Sequence[Side], bias: Value | None, spatial: int) -> tuple[tuple[Image, ...], tuple[int, ...]]:
    """(placements, column strides) of the bias, if any, and the epilogue's operands."""
    images = [Image(s.strides[0], s.strides[2:]) for s in found]
    columns = [1 if s.strides[1] != 0 else 0 for s in found]
    if bias is not None:
        images.insert(0, Image(0, (0,) * spatial))
        columns.insert(0, 1)
    return tuple(images), tuple(columns)


def bias_of(anchor: Node) -> Value | None:
    """The bias input of a Conv node."""
    return anchor.inputs[2] if len(anchor.inputs) > 2 else None


def bias_operands(anchor: Node, found: Sequence[Side]) -> list[Operand]:
    """Kernel arguments of the bias, if any, and the epilogue's operands."""
    bias = bias_of(anchor)
    first = [Operand("in", bias.index)] if bias is not None else []
    return [*first, *(Operand("in", s.position) for s in found)]


def padded_input(
    group: Group, pads: Sequence[int], tactic_name: str
) -> tuple[Step | None, Operand, Image, tuple[Dim, ...]]:
    """(copy into a padded buffer, operand the template reads, its placement, bytes of temporaries).

    Without padding the template reads the input itself.
    """
    assert group.anchor is not None
    position = group.anchor.input(0).index
    x = group.inputs[position].tensor
    if not any(pads):
        return None, Operand("in", position), image_of(x), ()
    spatial = x.rank - 2
    pairs = tuple((int(pads[n]), int(pads[spatial + n])) for n in range(spatial))
    channels = x.shape[1]
    assert isinstance(channels, int)
    extents = tuple(n + lo + hi for n, (lo, hi) in zip(x.shape[2:], pairs, strict=True))
    place = pad.dense(extents, channels)
    config = pad.PadConfig(x.shape[0], x.shape[2:], channels, pairs, image_of(x), place)
    table = DimTable()
    args = (Operand("in", position), Operand("temp", 0))
    size = x.shape[0] * product(extents) * channels * 4
    kernel = make_kernel(
        pad.emit(config, table),
        params=[Param(o.role, o.index) for o in args],
        dims=table.entries,
        bytes=x.size * 8,
        tactic=tactic_name,
    )
    return Step(kernel, args), Operand("temp", 0), place, (size,)


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
        return image_layouts(group)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The measured rule first, then the other tiles of the instruction set."""
        isa = Isa.of(target)
        first = self._conv(group, target, None, None)
        found = [(first.max_rows, first.vectors)]
        filters = first.filters // first.group
        for vectors in (2, 3, 4):
            other = (max_rows(isa, vectors), vectors)
            if filters > isa.lanes * (vectors - 1) and other not in found:
                found.append(other)
        return tuple((("rows", r), ("vectors", v)) for r, v in found)

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """The filters."""
        spec = self._conv(group, target, config, None)
        assert group.anchor is not None
        attrs = (("group", spec.group), ("width", spec.panels.width), ("lanes", spec.isa.lanes))
        return (Pack(group.anchor.input(1).index, "PackConv", attrs),)

    def _conv(self, group: Group, target: Target, config: Config | None, place: Image | None) -> ConvConfig:
        isa, anchor = Isa.of(target), group.anchor
        assert anchor is not None
        x_type = group.inputs[anchor.input(0).index].tensor
        w, y = anchor.input(1).tensor.shape, anchor.output.tensor.shape
        channels, filters = x_type.shape[1], w[0]
        kernel = tuple(int(k) for k in w[2:])  # type: ignore[arg-type]  # known: supports checked
        assert isinstance(channels, int) and isinstance(filters, int)
        strides, groups = anchor.attrs["strides"], anchor.attrs["group"]
        if place is None:
            padded = any(anchor.attrs["pads"])
            place = pad.dense(x_type.shape[2:], channels) if padded else image_of(x_type)
        images, columns = side_images(sides(group), bias_of(anchor), len(kernel))
        if config is None:
            taps = math.prod(kernel)
            merged = taps == 1 and set(strides) == {1} and not any(anchor.attrs["pads"])
            depth = taps * channels // groups
            tile = conv.default_tile(isa, y[2:], filters // groups, strides, place, depth, merged)
        else:
            given = dict(config)
            tile = int(given["rows"]), int(given["vectors"])
        return ConvConfig(
            isa, y[0], channels, filters, groups, kernel, tuple(strides), tuple(anchor.attrs["dilations"]), y[2:], place,
            tuple(image_of(v.tensor) for v in group.outputs), tile[0], tile[1], images, columns,
            make_epilogue(group, isa, bias_of(anchor) is not None),
        )  # fmt: skip

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """The convolution, behind a padded copy of its input where it has padding."""
        anchor = group.anchor
        assert anchor is not None
        copy, source, place, temps = padded_input(group, anchor.attrs["pads"], self.name)
        spec = replace(self._conv(group, target, config, place), x=place)
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
        steps = (Step(kernel, args),) if copy is None else (copy, Step(kernel, args))
        return Emitted(steps, temps, in_place(group, found))
