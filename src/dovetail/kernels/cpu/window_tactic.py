"""Depthwise Conv, MaxPool and AveragePool by the window template."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Pack, Step, Tactic, tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import product
from dovetail.ir.graph import Node
from dovetail.kernels.cpu import window
from dovetail.kernels.cpu.conv import Image
from dovetail.kernels.cpu.fused import epilogue_problem, make_epilogue, type_reason
from dovetail.kernels.cpu.images import (
    bias_of,
    bias_operands,
    conv_reason,
    image_layouts,
    image_of,
    side_images,
    side_reason,
)
from dovetail.kernels.cpu.text import DimTable, Isa
from dovetail.kernels.cpu.window import AVERAGE, DEPTHWISE, MAXIMUM, WindowConfig
from dovetail.kernels.fused import attributes, in_place, sides

_Pairs = tuple[tuple[int, int], tuple[int, int]]


def _two(values: Sequence[int], neutral: int) -> tuple[int, int]:
    """Per-axis values of two spatial axes; one axis becomes a row of a one-row image."""
    return (neutral, values[0]) if len(values) == 1 else (values[0], values[1])


def _two_images(image: Image) -> Image:
    return Image(image.batch, (0, *image.spatial)) if len(image.spatial) == 1 else image


def _two_pads(pads: Sequence[int]) -> _Pairs:
    rank = len(pads) // 2
    pairs = [(pads[n], pads[rank + n]) for n in range(rank)]
    return (pairs[0], pairs[1]) if rank == 2 else ((0, 0), pairs[0])


def _config(group: Group, target: Target, mode: str, kernel: Sequence[int], counted: _Pairs) -> WindowConfig:
    isa, anchor = Isa.of(target), group.anchor
    assert anchor is not None
    attrs = attributes(anchor)
    x = group.inputs[anchor.input(0).index].tensor
    y = anchor.output.tensor.shape
    channels = x.shape[1]
    assert isinstance(channels, int)
    one_axis = x.rank == 3
    bias = bias_of(anchor) if mode == DEPTHWISE else None
    images, columns = side_images(sides(group), bias, x.rank - 2)
    taps = _two(kernel, 1)
    return WindowConfig(
        isa, mode, y[0], channels, taps, _two(attrs["strides"], 1), _two(attrs["dilations"], 1),
        _two_pads(attrs["pads"]), (1, x.shape[2]) if one_axis else (x.shape[2], x.shape[3]),
        (1, y[2]) if one_axis else (y[2], y[3]), _two_images(image_of(x)),
        tuple(_two_images(image_of(v.tensor)) for v in group.outputs), window.default_pixels(isa, mode, taps),
        tuple(map(_two_images, images)), columns, counted, make_epilogue(group, isa, bias is not None),
    )  # fmt: skip


def _emit(group: Group, spec: WindowConfig, weights: int | None, name: str, taps: int, config: Config) -> Emitted:
    anchor = group.anchor
    assert anchor is not None
    found = sides(group)
    table = DimTable()
    text = window.emit(spec, table)
    operands = bias_operands(anchor, found) if weights is not None else [Operand("in", s.position) for s in found]
    args = [Operand("in", anchor.input(0).index), *(Operand("out", n) for n in range(len(group.outputs))), *operands]
    if weights is not None:
        args.insert(1, Operand("in", weights))
    y = anchor.output.tensor
    kernel = make_kernel(
        text,
        params=[Param(o.role, o.index) for o in args],
        dims=table.entries,
        flops=y.size * taps * (2 if weights is not None else 1),
        bytes=(anchor.input(0).tensor.size + y.size) * 4,
        tactic=name,
        config=config,
    )
    return Emitted((Step(kernel, tuple(args)),), (), in_place(group, found))


@tactic
class Depthwise(Tactic):
    """Convolution of every channel with its own filter."""

    name = "depthwise"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """One filter per channel, one or two spatial axes."""
        reason = conv_reason(group)
        if reason is not None:
            return reason
        assert group.anchor is not None
        x, w = group.anchor.input(0).tensor, group.anchor.input(1).tensor
        groups = attributes(group.anchor)["group"]
        if groups != x.shape[1] or w.shape[0] != x.shape[1]:
            return f"group {groups} is not one channel in and out"
        if x.rank > 4:
            return "more than two spatial axes"
        return None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        return image_layouts(group)

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """The filters, channels innermost."""
        assert group.anchor is not None
        return (Pack(group.anchor.input(1).index, "PackDepthwise", (("lanes", Isa.of(target).lanes),)),)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        assert group.anchor is not None
        w = group.anchor.input(1)
        kernel = [int(k) for k in w.tensor.shape[2:] if isinstance(k, int)]
        spec = _config(group, target, DEPTHWISE, kernel, ((0, 0), (0, 0)))
        return _emit(group, spec, w.index, self.name, int(product(kernel)), config)  # type: ignore[arg-type]


@tactic
class Pool(Tactic):
    """Maximum and average pooling on channels-last data."""

    name = "pool"
    kinds = ("pool",)

    def supports(self, group: Group, target: Target) -> str | None:
        """One result, known channels and padding, one or two spatial axes."""
        anchor = group.anchor
        if anchor is None or anchor.op not in ("MaxPool", "AveragePool"):
            return "the group is not built around a MaxPool or AveragePool"
        if len(anchor.outputs) != 1:
            return "indices of the maxima are wanted"
        if anchor.input(0).producer is not None:
            return "its input is computed inside the group"
        x = anchor.input(0).tensor
        if x.rank not in (3, 4):
            return f"rank {x.rank} has not one or two spatial axes"
        if not isinstance(x.shape[1], int):
            return "the number of channels is symbolic"
        attrs = attributes(anchor)
        margins = (*attrs["pads"], *attrs.get("ceil_extra", ()))
        if not all(isinstance(p, int) and p >= 0 for p in margins):
            return f"pads {attrs['pads']} are not all known and non-negative"
        return type_reason(group) or epilogue_problem(group) or side_reason(group)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        return image_layouts(group)

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        anchor = group.anchor
        assert anchor is not None
        mode = MAXIMUM if anchor.op == "MaxPool" else AVERAGE
        kernel = attributes(anchor)["kernel"]
        spec = _config(group, target, mode, kernel, self._counted(anchor))
        return _emit(group, spec, None, self.name, int(product(kernel)), config)  # type: ignore[arg-type]

    @staticmethod
    def _counted(anchor: Node) -> _Pairs:
        """Margins that count in an average: the padding, less what only ceil mode added, if it is to count at all."""
        attrs = attributes(anchor)
        if not attrs.get("count_include_pad", False):
            return ((0, 0), (0, 0))
        pads = list(attrs["pads"])
        rank = len(pads) // 2
        for n, extra in enumerate(attrs.get("ceil_extra", ())):
            pads[rank + n] -= extra
        return _two_pads(pads)
