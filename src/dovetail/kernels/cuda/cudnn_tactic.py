"""Convolution with bias, residual and activation, and attention without a mask, by cuDNN; static shapes only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dovetail.codegen.kernel import Param, make_library_kernel
from dovetail.codegen.tactic import (
    ANY,
    CHANNELS_LAST,
    ROWS,
    Config,
    Emitted,
    Group,
    Operand,
    Pack,
    Tactic,
    single,
    tactic,
)
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import Dim
from dovetail.device.cuda import shared_library
from dovetail.device.cuda.cudnn import (
    ACTIVATIONS,
    WORKSPACE_BYTES,
    Attention,
    Convolution,
    Tensor,
    describe,
)
from dovetail.device.cuda.cudnn_backend import DATA_TYPES
from dovetail.ir.graph import Time
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.library_group import chain
from dovetail.kernels.cuda.writer import ALIGNMENT, is_aligned
from dovetail.kernels.fused import attributes, sides

PROPOSALS = 3
"""How many of the library's proposals compete: plans of fused graphs take up to a second each to compile."""


@dataclass(frozen=True)
class Problem:
    """A call and its operands, in its order."""

    call: Convolution | Attention
    operands: tuple[Operand, ...]
    flops: int


class _Cudnn(Tactic):
    """What the two tactics share."""

    device = "cuda"

    def supports(self, group: Group, target: Target) -> str | None:
        """What the library has a graph for, where it is installed."""
        found = self.problem(group, CudaTarget.of(target))
        return found if isinstance(found, str) else shared_library.missing("cudnn")

    @abstractmethod
    def problem(self, group: Group, target: CudaTarget) -> Problem | str:
        """The call that computes a group, or the reason why none does."""

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The library's proposals in its own order."""
        return tuple((("heuristic", n),) for n in range(PROPOSALS))

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """The call."""
        found = self.problem(group, CudaTarget.of(target))
        assert isinstance(found, Problem), found
        call = replace(found.call, heuristic=int(dict(config).get("heuristic", 0)))
        moved = sum(_bytes(v.tensor) for v in (*group.inputs, *group.outputs))
        return single(
            make_library_kernel(
                "cudnn", describe(call), params=[Param(o.role, o.index) for o in found.operands], dims=(), workspace_bytes=WORKSPACE_BYTES,
                flops=found.flops, bytes=moved, tactic=self.name, config=config,
            )
        )  # fmt: skip


@tactic
class CudnnConv(_Cudnn):
    """One graph around a convolution."""

    name = "cudnn"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Convolutions with filters known before the run, where the library is installed."""
        reason = super().supports(group, target)
        # Packed filters of a group that is taken out of its model count as run-time values, so `problem` does not ask.
        if reason is None and group.anchor is not None and group.inputs[group.anchor.input(1).index].time != Time.WEIGHT:
            return "filters are computed at run time"
        return reason

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last for images."""
        assert group.anchor is not None
        wants = [ANY] * len(group.inputs)
        wants[group.anchor.input(0).index] = CHANNELS_LAST
        for side in sides(group):
            if side.value.tensor.shape == group.anchor.output.tensor.shape:
                wants[side.position] = CHANNELS_LAST
        return tuple(wants), (CHANNELS_LAST,) * len(group.outputs)

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """The filters, channels inside."""
        assert group.anchor is not None
        w = group.anchor.input(1)
        taps = w.tensor.shape[2:]
        if all(k == 1 for k in taps):
            return ()
        return (Pack(w.index, "Transpose", (("perm", (0, *range(2, w.tensor.rank), 1)),)),)

    def problem(self, group: Group, target: CudaTarget) -> Problem | str:
        """The graph of a convolution with known shapes and channels innermost."""
        anchor = group.anchor
        if anchor is None or anchor.op != "Conv":
            return "the group is not built around a Conv"
        if any(v.producer is not None for v in anchor.operands):
            return "an operand of Conv is computed inside the group"
        epilogue = chain(group, tuple(ACTIVATIONS))
        if isinstance(epilogue, str):
            return epilogue
        attrs = attributes(anchor)
        x, y = group.inputs[anchor.input(0).index].tensor, group.outputs[0].tensor
        w = anchor.input(1).tensor
        reason = _conv_reason(x, w, y, int(attrs["group"]), attrs["pads"])
        if reason is not None:
            return reason
        bias: Operand | None = None
        if len(anchor.inputs) > 2 and anchor.inputs[2] is not None:
            if anchor.input(2).tensor.dtype != y.dtype:
                return f"the bias is {anchor.input(2).tensor.dtype.name}, the images {y.dtype.name}"
            bias = Operand("in", anchor.input(2).index)
        residual: Tensor | None = None
        added: Operand | None = None
        for side in epilogue.added:
            kind = side.value.tensor
            if kind.dtype != y.dtype:
                return f"{side.value.name} is {kind.dtype.name}, the images {y.dtype.name}"
            along = side.strides
            if kind.shape == y.shape and residual is None and along[1] == 1:
                residual, added = _of(group.inputs[side.position].tensor), Operand("in", side.position)
            elif bias is None and along[1] == 1 and not any(along[i] for i in range(len(along)) if i != 1):
                bias = Operand("in", side.position)
            else:
                return f"{side.value.name} of shape {kind.shape} is neither one bias nor one residual with channels innermost"
        spatial = x.rank - 2
        pads = tuple(map(int, attrs["pads"]))
        call = Convolution(
            type=x.dtype.name, x=_of(x), w=_filters(w), y=_of(y), strides=tuple(attrs["strides"]), dilations=tuple(attrs["dilations"]),
            low=pads[:spatial], high=pads[spatial:], bias=bias is not None, residual=residual, activation=epilogue.activation,
            tf32=target.tf32,
        )  # fmt: skip
        operands = [Operand("in", anchor.input(0).index), Operand("in", anchor.input(1).index)]
        operands += [o for o in (bias, added) if o is not None]
        return Problem(call, (*operands, Operand("out", 0)), 2 * _count(y.shape) * _count(w.shape[1:]))


def _conv_reason(x: TensorType, w: TensorType, y: TensorType, groups: int, pads: Sequence[Dim]) -> str | None:
    if x.dtype.name not in DATA_TYPES or not x.dtype == w.dtype == y.dtype:
        return f"the types are {x.dtype.name}, {w.dtype.name} and {y.dtype.name}"
    if x.rank != 4:
        return f"{x.rank - 2} spatial axes"
    if not all(isinstance(d, int) and d > 0 for t in (x, w, y) for d in t.shape):
        return "a shape is not known at build, or empty"
    if not all(isinstance(p, int) and p >= 0 for p in pads):
        return f"pads {pads} are not all known and non-negative"
    if groups > 1 and w.shape[1] == 1:
        return "the convolution is depthwise"
    for kind in (x, y):
        # Before layouts are assigned values lie as the model has them; afterwards as `layouts` asked.
        if kind.layout is not None and kind.placement.strides(kind.shape)[1] != 1 and kind.shape[1] != 1:
            return "the channels of an image are not innermost"
    return None


@tactic
class CudnnAttention(_Cudnn):
    """One attention operation."""

    name = "cudnn_attention"
    kinds = ("attention",)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Rows contiguous."""
        return (ROWS,) * len(group.inputs), (ROWS,) * len(group.outputs)

    def problem(self, group: Group, target: CudaTarget) -> Problem | str:
        """Attention without masks, windows, caches and caps, in fp16 or bf16."""
        anchor = group.anchor
        if anchor is None or anchor.op != "Attention":
            return "the group is not built around an Attention"
        if len(list(group.body.nodes)) != 1 or len(group.outputs) != 1:
            return "the group computes more than attention"
        if len([v for v in anchor.inputs if v is not None]) != 3 or any(v.producer is not None for v in anchor.operands):
            return "the attention has a mask or a cache"
        attrs = attributes(anchor)
        plain = not attrs["is_causal"] and attrs["softcap"] == 0 and attrs["past"] == 0 and attrs["left_window"] < 0
        if not plain or attrs["right_window"] >= 0 or attrs["scores"] >= 0:
            return "the attention is causal, windowed or capped, or gives its scores"
        types = [group.inputs[v.index].tensor for v in anchor.operands] + [group.outputs[0].tensor]
        if types[0].dtype.name not in ("f16", "bf16") or len({t.dtype for t in types}) > 1:
            return f"the types are {', '.join(t.dtype.name for t in types)}"
        heads = (attrs["q_heads"], attrs["kv_heads"], attrs["kv_heads"], attrs["q_heads"])
        tensors = [_heads(t, int(h)) for t, h in zip(types, heads, strict=True)]
        q, k, v, o = tensors
        if q is None or k is None or v is None or o is None:
            return "a shape is not known at build, or rows are not contiguous"
        if any(t.dims[3] % 8 or t.dims[3] > 128 for t in (q, v)):
            return f"heads of {q.dims[3]} and {v.dims[3]}"
        call = Attention(types[0].dtype.name, q, k, v, o, float(attrs["scale"]))
        operands = (*(Operand("in", x.index) for x in anchor.operands), Operand("out", 0))
        return Problem(call, operands, 2 * q.dims[0] * q.dims[1] * q.dims[2] * k.dims[2] * (q.dims[3] + v.dims[3]))


def _heads(kind: TensorType, heads: int) -> Tensor | None:
    """[batch, heads, rows, columns] of a value that may hold its heads packed in rows; None if it cannot be said."""
    if not all(isinstance(d, int) and d > 0 for d in kind.shape):
        return None
    strides = kind.placement.strides(kind.shape)
    if not all(isinstance(s, int) for s in strides) or strides[-1] != 1:
        return None
    if kind.rank == 4:
        return _tensor(kind.shape, strides, kind)
    if kind.rank != 3 or heads < 1:
        return None
    batch, rows, columns = (int(d) for d in kind.shape)  # type: ignore[arg-type]  # known: checked above
    size = columns // heads
    return _tensor((batch, heads, rows, size), (strides[0], size, strides[1], 1), kind)


def _of(kind: TensorType) -> Tensor:
    return _tensor(kind.shape, kind.placement.strides(kind.shape), kind)


def _tensor(shape: Sequence[Dim], strides: Sequence[Dim], placed: TensorType) -> Tensor:
    """A tensor of known extents; an axis of one element may have any stride."""
    dims = tuple(int(d) for d in shape)  # type: ignore[arg-type]  # known: the reasons above
    alignment = ALIGNMENT if is_aligned(placed) else placed.dtype.itemsize
    return Tensor(dims, tuple(int(s) for s in strides), alignment)  # type: ignore[arg-type]  # likewise


def _filters(w: TensorType) -> Tensor:
    """The filters as they are packed: channels innermost."""
    m, c, height, width = (int(d) for d in w.shape)  # type: ignore[arg-type]  # known: conv_reason checked
    return Tensor((m, c, height, width), (c * height * width, 1, c * width, c))


def _count(shape: Sequence[Dim]) -> int:
    total = 1
    for d in shape:
        total *= int(d)  # type: ignore[arg-type]  # known
    return total


def _bytes(kind: TensorType) -> int:
    return _count(kind.shape) * kind.dtype.itemsize
