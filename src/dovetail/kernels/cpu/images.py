"""What the tactics around images share: reasons, layouts, placements and padded copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import ANY, CHANNELS_LAST, ROW_MAJOR, Group, Operand, Step
from dovetail.core.dims import Dim
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.types import TensorType
from dovetail.kernels.cpu import pad
from dovetail.kernels.cpu.conv import Image
from dovetail.kernels.cpu.fused import epilogue_problem, type_reason
from dovetail.kernels.cpu.pad import PadConfig
from dovetail.kernels.cpu.text import DimTable
from dovetail.kernels.fused import Side, attributes, is_run_time, sides


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
    pads = attributes(anchor)["pads"]
    if not all(isinstance(p, int) and p >= 0 for p in pads):
        return f"pads {pads} are not all known and non-negative"
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


def image_layouts(group: Group, copies: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Channels last for images, including those of the epilogue; the rest as it comes.

    Args:
        group: the fused group.
        copies: whether its template reads a padded copy of the input.
    """
    anchor = group.anchor
    assert anchor is not None
    rank = anchor.output.tensor.rank
    wants = [ANY] * len(group.inputs)
    for side in sides(group):
        wants[side.position] = CHANNELS_LAST if side.value.tensor.rank == rank else ROW_MAJOR
    bias = bias_of(anchor) if anchor.op == "Conv" else None
    if bias is not None and bias.producer is None:
        wants[bias.index] = ROW_MAJOR  # read in vectors; one of the run may be a view
    x = anchor.input(0)
    # An input of the model that is copied for its padding may as well be reordered by that copy.
    wants[x.index] = ANY if copies and group.inputs[x.index].producer is None else CHANNELS_LAST
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


def input_copy(group: Group, kernel: tuple[int, ...]) -> PadConfig | None:
    """The copy of its input that a group's convolution should make, or None."""
    anchor = group.anchor
    assert anchor is not None
    x = group.inputs[anchor.input(0).index].tensor
    channels, filters = x.shape[1], anchor.output.tensor.shape[1]
    assert isinstance(channels, int) and isinstance(filters, int)
    attrs = attributes(anchor)
    pads, spatial = attrs["pads"], x.rank - 2
    pairs = tuple((int(pads[n]), int(pads[spatial + n])) for n in range(spatial))
    strides = tuple(attrs["strides"])
    each = filters // int(attrs["group"])
    copy = pad.plan(x.shape[0], x.shape[2:], channels, pairs, image_of(x), kernel, strides, each)
    channel = x.placement.strides(x.shape)[1]
    return copy if copy is None or channels == 1 else replace(copy, channel=channel)


def copy_step(group: Group, config: PadConfig, tactic_name: str) -> tuple[Step, Dim]:
    """(step that copies the input of a group's convolution into temporary 0, its bytes)."""
    assert group.anchor is not None
    table = DimTable()
    args = (Operand("in", group.anchor.input(0).index), Operand("temp", 0))
    size = config.y.batch * config.batch * 4
    kernel = make_kernel(
        pad.emit(config, table),
        params=[Param(o.role, o.index) for o in args],
        dims=table.entries,
        bytes=size * 2,
        tactic=tactic_name,
    )
    return Step(kernel, args), size
