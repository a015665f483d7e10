"""What the CUDA templates around images share: the extents of a convolution or a pooling window, reasons and layouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.codegen.tactic import ANY, CHANNELS_LAST, Group
from dovetail.codegen.triton_epilogue import epilogue_reason
from dovetail.core.dims import Dim, product
from dovetail.core.dtypes import BF16, F16, F32, DType
from dovetail.ir.graph import Node, Time, Value
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.conv_prologue import find_prologue, image_of
from dovetail.kernels.cuda.writer import Rows, Writer, scaled
from dovetail.kernels.fused import attributes, sides

FLOATS = (F16, BF16, F32)


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes of [N, C, spatial…].

    Attributes:
        x: the input, with its layout.
        y: the anchor's result (its layout is that of the outputs).
        batch: N.
        channels: C.
        kernel, strides, dilations, low: per spatial axis; `low` is the padding in front.
        space, out: input and output extents per spatial axis.
        padded: per spatial axis, whether some window may reach beyond the input.
    """

    x: TensorType
    y: TensorType
    batch: Dim
    channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    low: tuple[int, ...]
    space: tuple[Dim, ...]
    out: tuple[Dim, ...]
    padded: tuple[bool, ...]

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def taps(self) -> int:
        """Positions of one window."""
        return math.prod(self.kernel)

    @property
    def pixels(self) -> Dim:
        """Output positions of all images."""
        return product((self.batch, *self.out))

    @property
    def x_strides(self) -> tuple[Dim, ...]:
        """Element strides of the input, per logical axis."""
        return self.x.placement.strides(self.x.shape)

    def in_place(self) -> bool:
        """Whether output position i reads input position i and nothing else."""
        return self.taps == 1 and not any(self.padded) and set(self.strides) == {1}

    def rows(self, name: str) -> Rows:
        """The output positions as rows of a tile: a linear index over images and spatial axes."""
        return Rows(name, ((0, self.batch), *((axis + 2, extent) for axis, extent in enumerate(self.out))))


def window_of(group: Group, kernel: Sequence[int]) -> Window:
    """The window of a group whose anchor is a convolution or a pooling."""
    anchor = group.anchor
    assert anchor is not None
    attrs = attributes(anchor)
    x = source_of(group)
    y, rank = anchor.output.tensor, len(kernel)
    channels = x.shape[1]
    assert isinstance(channels, int)
    pads = attrs["pads"]
    low, high = tuple(map(int, pads[:rank])), tuple(map(int, pads[rank:]))
    return Window(
        x, y, x.shape[0], channels, tuple(kernel), tuple(attrs["strides"]), tuple(attrs["dilations"]), low,
        x.shape[2:], y.shape[2:], tuple(a > 0 or b > 0 for a, b in zip(low, high, strict=True)),
    )  # fmt: skip


def source_of(group: Group) -> TensorType:
    """The type of the image that a group loads, with the layout in which it lies."""
    assert group.anchor is not None
    value = group.anchor.input(0)
    return image_of(group) if value.producer is not None else group.inputs[value.index].tensor


@dataclass(frozen=True)
class Convolution:
    """A convolution's extents.

    Attributes:
        window: the window over the input.
        filters: M, all groups together.
        groups: groups of channels.
        dtype: of input and filters.
        bias: the body value of the bias, if any.
        weights: position of the filters among the group's inputs.
    """

    window: Window
    filters: int
    groups: int
    dtype: DType
    bias: Value | None
    weights: int

    @property
    def depth(self) -> int:
        """Channels of one group."""
        return self.window.channels // self.groups

    @property
    def width(self) -> int:
        """Filters of one group."""
        return self.filters // self.groups

    @property
    def flops(self) -> Dim:
        """Arithmetic operations."""
        return self.window.pixels * (2 * self.filters * self.depth * self.window.taps)

    @property
    def bytes(self) -> Dim:
        """Elements of input, filters and one result, in bytes."""
        weights = self.filters * self.depth * self.window.taps
        return (self.window.x.size + self.window.y.size + weights) * self.dtype.itemsize


def convolution_of(group: Group) -> Convolution:
    """The convolution of a group; `conv_reason` has accepted it, and its filters may be packed already."""
    anchor = group.anchor
    assert anchor is not None
    w = anchor.input(1)
    filters, kernel = w.tensor.shape[0], w.tensor.shape[2:]
    assert isinstance(filters, int)
    window = window_of(group, [int(k) for k in kernel])  # type: ignore[arg-type]  # known: conv_reason checked
    groups = int(attributes(anchor)["group"])
    return Convolution(window, filters, groups, w.tensor.dtype, bias_of(anchor), w.index)


def bias_of(anchor: Node) -> Value | None:
    """The bias input of a Conv node."""
    return anchor.inputs[2] if len(anchor.inputs) > 2 else None


def window_reason(group: Group, *, prologue: bool = False) -> str | None:
    """None if the templates can walk over a group's windows and write its results, else the reason why not.

    Args:
        prologue: whether the template computes the image from others as it loads it.
    """
    anchor = group.anchor
    assert anchor is not None
    if any(v.producer is not None for v in (anchor.operands[1:] if prologue else anchor.operands)):
        return f"an operand of {anchor.op} is computed inside the group"
    if prologue and isinstance(found := find_prologue(group), str):
        return found
    pads = attributes(anchor)["pads"]
    if not all(isinstance(p, int) and p >= 0 for p in pads):
        return f"pads {pads} are not all known and non-negative"
    x = anchor.input(0).tensor
    if not 3 <= x.rank <= 5:
        return f"rank {x.rank} has not 1 to 3 spatial axes"
    if not isinstance(x.shape[1], int) or x.shape[1] == 0:
        return "the number of channels is symbolic or zero"
    if x.dtype not in FLOATS:
        return f"{x.dtype} has no template"
    if any(v.tensor.shape != anchor.output.tensor.shape for v in group.body.outputs):
        return f"a result has another shape than {anchor.op}"
    return epilogue_reason(group.body, anchor)


def conv_reason(group: Group, *, prologue: bool = False) -> str | None:
    """None if a group is a convolution of floats with filters known before the run, else the reason why not."""
    anchor = group.anchor
    if anchor is None or anchor.op != "Conv":
        return "the group is not built around a Conv"
    w = anchor.input(1)
    if not all(isinstance(d, int) and d > 0 for d in w.tensor.shape):
        return "filters have symbolic or empty extents"
    reason = window_reason(group, prologue=prologue)
    if reason is None and group.inputs[w.index].time != Time.WEIGHT:
        return "filters are computed at run time"
    return reason


def image_layouts(group: Group, x: str = CHANNELS_LAST) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Channels last for images, those of the epilogue included; what is broadcast comes as it is.

    Args:
        group: the fused group.
        x: the wish for the input image.
    """
    anchor = group.anchor
    assert anchor is not None
    wants = [ANY] * len(group.inputs)
    for side in sides(group):
        if side.value.tensor.shape == anchor.output.tensor.shape:
            wants[side.position] = CHANNELS_LAST
    found = find_prologue(group)
    if not isinstance(found, str):
        wants[found.image.index] = x
    return tuple(wants), (CHANNELS_LAST,) * len(group.outputs)


def corner(w: Writer, window: Window, rows: Rows, lines: list[str], guarded: Sequence[int]) -> tuple[str, dict[int, str]]:
    """(element offset of the first tap of each row's window, variables of that tap's index per axis of `guarded`), shape [rows] each.

    The offset is "0" where all rows lie at one place. `rows` are output positions; those beyond the last one must have been clamped to it.
    """
    strides = window.x_strides
    if window.in_place() and not guarded:
        return rows.offset(w, strides, lines), {}
    parts = rows.split(w, lines)
    terms = [scaled(w, parts[0], strides[0])]
    starts: dict[int, str] = {}
    for axis, (step, low) in enumerate(zip(window.strides, window.low, strict=True)):
        first = scaled(w, parts[axis + 2], step)
        if first == "0" and (low or axis in guarded):
            first = f"{rows.name} * 0"  # one position along this axis, but one per row
        if low:
            first = f"({first} - {low})"
        if axis in guarded or low:
            name = w.fresh("f")
            lines.append(f"{name} = {first}")
            first = starts[axis] = name
        elif first != parts[axis + 2] and first != "0":
            first = f"({first})"
        terms.append(scaled(w, first, strides[axis + 2]))
    offset = w.fresh("o")
    lines.append(f"{offset} = {' + '.join(t for t in terms if t != '0') or f'{rows.name} * 0'}")
    return offset, starts
