"""Weight-time packing by the shared kernels of `weight_pack`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dovetail.codegen.kernel import Param, make_kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Step, Tactic, tactic
from dovetail.codegen.target import Target
from dovetail.core.dtypes import F32
from dovetail.ir.graph import Node, Value
from dovetail.ir.types import TensorType
from dovetail.kernels.cpu.weight_pack import Columns, Filters, panels, winograd

_OPS = frozenset({"PackGemmB", "PackConv", "PackDepthwise", "PackWinograd", "Copy"})


@dataclass(frozen=True)
class _Source:
    """One array that a pack reads: input position, shape and strides; and the factor (position, strides) on it."""

    position: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    factor: tuple[int, tuple[int, ...]] | None = None


class _Declined(Exception):
    """The kernels cannot do it; the message is the reason. Never leaves this module."""


@tactic
class WeightPack(Tactic):
    """Packs constant operands, and transposes them, whatever strides they have; folds a factor per column."""

    name = "weight_pack"
    kinds = ("pack",)

    def supports(self, group: Group, target: Target) -> str | None:
        """One packing of fp32 weights whose axes merge, over a factor per column or over concatenated columns."""
        try:
            _steps(group)
        except _Declined as reason:
            return str(reason)
        return None

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """A call of a shared kernel per source."""
        return Emitted(tuple(_steps(group)))


def _steps(group: Group) -> list[Step]:
    node = group.body.outputs[0].producer
    if node is None or node.op not in _OPS:
        raise _Declined("it is no packing")
    if any(v.tensor.dtype != F32 for v in (*group.inputs, *group.outputs)):
        raise _Declined("only fp32 weights are packed by a kernel")
    if any(not isinstance(d, int) or d == 0 for v in (*group.inputs, *group.outputs) for d in v.tensor.shape):
        raise _Declined("its sizes are empty or not known")
    if node.op == "PackWinograd":
        return [_winograd(node, _source(group, node.input(0)))]
    if node.op == "Copy":
        return [_panels(_transposition(_source(group, node.input(0)), group.outputs[0].tensor), 0, None)]
    concat = node.input(0).producer
    if concat is not None and concat.op == "Concat":
        return _joined(group, node, concat)
    source = _source(group, node.input(0))
    return [_panels(_columns(node, source), source.position, source.factor)]


def _joined(group: Group, node: Node, concat: Node) -> list[Step]:
    """A packing of arrays side by side: each is packed into its columns."""
    rank = concat.output.tensor.rank
    axis = rank - 2 if node.attrs.get("transposed") else rank - 1
    if node.op != "PackGemmB" or concat.attrs["axis"] % rank != axis:
        raise _Declined("its parts do not lie side by side")
    whole, start, steps = concat.output.tensor.shape[axis], 0, []
    assert isinstance(whole, int)
    for part in concat.operands:
        source = _source(group, part)
        columns = _columns(node, source)
        count = columns.columns[0]
        columns = replace(columns, columns=(whole, columns.columns[1]), start=start, stop=start + count)
        steps.append(_panels(columns, source.position, source.factor))
        start += count
    return steps


def _source(group: Group, value: Value) -> _Source:
    position = group.position(value)
    if position is not None:
        return _Source(position, _ints(value.tensor.shape), _strides(group.inputs[position].tensor))
    node = value.producer
    assert node is not None
    if node.op != "Mul":
        raise _Declined(f"{node.op} is not computed while packing")
    whole = next((v for v in node.operands if group.position(v) is not None and v.tensor.shape == value.tensor.shape), None)
    factor = next((v for v in node.operands if v is not whole), None)
    at = None if factor is None else group.position(factor)
    if whole is None or factor is None or at is None:
        raise _Declined("only one array times one factor is computed while packing")
    strides = _strides(group.inputs[at].tensor)
    extents = _ints(factor.tensor.shape)
    spread = tuple(0 if n == 1 else s for n, s in zip(extents, strides, strict=True))
    lead = value.tensor.rank - len(extents)
    source = _source(group, whole)
    return replace(source, factor=(at, (0,) * lead + spread))


def _ints(shape: Sequence[object]) -> tuple[int, ...]:
    kept = tuple(d for d in shape if isinstance(d, int))
    if len(kept) != len(shape):
        raise _Declined("its sizes are not known")
    return kept


def _strides(type_: TensorType) -> tuple[int, ...]:
    return _ints(type_.placement.strides(type_.shape))


def _merged(source: _Source, axes: Sequence[int]) -> tuple[int, int]:
    """(extent, stride) of neighbouring axes seen as one."""
    extent, stride = 1, 0
    for axis in reversed(axes):
        n, s = source.shape[axis], source.strides[axis]
        if n == 1:
            continue
        if extent == 1:
            extent, stride = n, s
        elif s == stride * extent:
            extent *= n
        else:
            raise _Declined("its axes do not merge")
    return extent, stride


def _columns(node: Node, source: _Source) -> Columns:
    """Where the matrix that a packing op cuts into panels lies."""
    shape, strides, rank = source.shape, source.strides, len(source.shape)
    group, axis = 1, 0
    if node.op == "PackGemmB":
        depth, axis = (rank - 1, rank - 2) if node.attrs.get("transposed") else (rank - 2, rank - 1)
        groups, outer, inner = _merged(source, range(rank - 2)), (1, 0), (shape[depth], strides[depth])
    elif node.op == "PackConv":
        group = int(node.attrs["group"])
        groups = (group, shape[0] // group * strides[0])
        outer, inner = _merged(source, range(2, rank)), (shape[1], strides[1])
    else:
        groups, outer, inner = (1, 0), (1, 0), _merged(source, range(2, rank))
    count = shape[axis] // group
    lanes = int(node.attrs["lanes"])
    width = int(node.attrs["width"]) if node.op != "PackDepthwise" else -(-count // lanes) * lanes
    factor = None
    if source.factor is not None:
        along = _along(source, axis)
        factor = (along * count if group > 1 else 0, along)
    return Columns(groups, outer, inner, (count, strides[axis]), width, lanes, 0, count, factor)


def _along(source: _Source, axis: int) -> int:
    """The stride of a factor that varies along one axis only."""
    assert source.factor is not None
    strides = source.factor[1]
    if any(s for a, s in enumerate(strides) if a != axis):
        raise _Declined("the factor is not one number per column")
    return strides[axis]


def _transposition(source: _Source, out: TensorType) -> Columns:
    """A copy whose rows are strided in the source, as one panel over the whole last axis."""
    axes = [a for a, n in enumerate(source.shape) if n != 1]
    runs: list[list[int]] = []
    for axis in axes:
        last = runs[-1][-1] if runs else None
        dense = last is not None and source.strides[last] == source.strides[axis] * source.shape[axis]
        if dense:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    if not 2 <= len(runs) <= 4 or _strides(out) != _strides(TensorType(out.dtype, out.shape)):
        raise _Declined("it is no transposition of a few axes")
    merged = [_merged(source, run) for run in runs]
    groups, outer, inner, columns = [(1, 0)] * (4 - len(merged)) + merged
    return Columns(groups, outer, inner, columns, columns[0], 1, 0, columns[0])


def _panels(columns: Columns, position: int, factor: tuple[int, tuple[int, ...]] | None) -> Step:
    source = panels(factor is not None)
    return _step(source, columns.dims(), position, factor, columns.elements, columns.elements * 8)


def _winograd(node: Node, source: _Source) -> Step:
    m, c, *_ = source.shape
    lanes, width = int(node.attrs["lanes"]), int(node.attrs["width"])
    if lanes % 4 or width % 4:
        raise _Declined("panels are not a multiple of four columns")
    sm, sc, sr, sk = source.strides
    factor = None if source.factor is None else _along(source, 0)
    filters = Filters((m, sm), (c, sc), sr, sk, width, lanes, factor)
    tile = int(node.attrs.get("tile", 4))
    text = winograd(8 if lanes % 8 == 0 and width % 8 == 0 else 4, factor is not None, tile)
    points = (tile + 2) ** 2
    return _step(text, filters.dims(), source.position, source.factor, m * c * 8 * points, m * c * 4 * (9 + points))


def _step(
    source: str, dims: tuple[int, ...], position: int, factor: tuple[int, tuple[int, ...]] | None, flops: int, moved: int
) -> Step:
    operands = [Operand("in", position)]
    if factor is not None:
        operands.append(Operand("in", factor[0]))
    operands.append(Operand("out", 0))
    kernel = make_kernel(
        source, params=[Param(o.role, o.index) for o in operands], dims=dims, flops=flops, bytes=moved,
        tactic=WeightPack.name,
    )  # fmt: skip
    return Step(kernel, tuple(operands))
