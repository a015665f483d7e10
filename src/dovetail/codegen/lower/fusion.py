"""From a fusion body to a loop kernel, and the question whether a node can be in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dovetail.codegen import c_scalar, scalar
from dovetail.codegen.loop_ir import (
    Axis,
    Buffer,
    Call,
    Expr,
    Load,
    LoopKernel,
    Nest,
    Scope,
    Store,
    walk,
)
from dovetail.codegen.lower.context import Context, NotLowerable, find_lowering
from dovetail.core.dims import Dim
from dovetail.ir.graph import Graph, Node, Value
from dovetail.ir.types import TensorType
from dovetail.ops.registry import OpKind, find


def lower(
    body: Graph, inputs: Sequence[TensorType], outputs: Sequence[TensorType]
) -> LoopKernel:
    """One kernel for a fusion body.

    Args:
        body: its inputs correspond to `inputs` by position, its outputs to `outputs`.
        inputs: types of the operands with the layouts they lie in.
        outputs: types of the results with the layouts to write.

    The kernel's buffers are the operands that the body reads, then the results.

    Raises:
        NotLowerable: some node has no loop form (`reason_not_lowerable` says so beforehand).
    """
    scope = Scope()
    operands = {
        value: _buffer("in", position, kind)
        for position, (value, kind) in enumerate(zip(body.inputs, inputs, strict=True))
    }
    ctx = Context(scope, operands)
    results = [_buffer("out", position, kind) for position, kind in enumerate(outputs)]
    nests: list[Nest] = []
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, kind in enumerate(outputs):
        groups.setdefault((kind.shape, kind.placement.order), []).append(position)
    for members in groups.values():
        first = outputs[members[0]]
        values = [body.outputs[m] for m in members]
        for piece in _pieces(values, first.shape):
            axes = [scope.axis(size) for _, size in piece]
            index = tuple(a.index + start for a, (start, _) in zip(axes, piece, strict=True))
            stores = tuple(
                Store(results[m], results[m].offset(index), ctx.load(body.outputs[m], index))
                for m in members
            )
            order: tuple[Axis, ...] = tuple(axes[d] for d in first.placement.order)
            nests.append(Nest(order, stores))
    used = {
        e.buffer
        for nest in nests
        for store in nest.stores
        for e in walk([store.value], scope)
        if isinstance(e, Load)
    }
    buffers = (*(b for b in operands.values() if b in used), *results)
    return LoopKernel(buffers, tuple(nests), scope)


def _buffer(role: str, position: int, kind: TensorType) -> Buffer:
    if kind.dtype.name not in scalar.DTYPES:
        raise NotLowerable(f"{kind.dtype} has no generated code")
    return Buffer(role, position, kind.dtype, kind.shape, kind.placement.strides(kind.shape))


Piece = tuple[tuple[Dim, Dim], ...]


def _pieces(values: Sequence[Value], shape: tuple[Dim, ...]) -> Iterator[Piece]:
    """The output domain as boxes of (start, extent), cut where a concat changes its source."""
    whole: Piece = tuple((0, d) for d in shape)
    node = next((n for v in values if (n := _concat_below(v)) is not None), None)
    if node is None:
        yield whole
        return
    axis = int(node.attrs["axis"])
    start: Dim = 0
    for part in node.operands:
        size = part.tensor.shape[axis]
        yield (*whole[:axis], (start, size), *whole[axis + 1 :])
        start = start + size


def _concat_below(value: Value) -> Node | None:
    """A concat that reaches the value through pointwise nodes of its shape."""
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        node = current.producer
        if node is None or current in seen or current.tensor.shape != value.tensor.shape:
            continue
        seen.add(current)
        if node.op == "Concat":
            return node
        spec = find(node.op)
        if spec is not None and spec.kind == OpKind.POINTWISE:
            pending += node.operands
    return None


_MAX_REASONS = 4096
_reasons: dict[tuple[object, ...], str | None] = {}


def reason_not_lowerable(node: Node) -> str | None:
    """None if the node can be in a loop group, else the reason why not.

    Fusion, layout and selection all ask, and models repeat their nodes, so answers are kept by what they depend on:
    operator, attributes, types, and which operands are the same value.
    """
    operands = {v: i for i, v in enumerate(dict.fromkeys(node.operands))}
    wiring = tuple(None if v is None else operands[v] for v in node.inputs)
    types = tuple(v.type for v in (*operands, *node.outputs))
    names = tuple(v.name for v in (*operands, *node.outputs) if not isinstance(v.type, TensorType))
    key = (node.op, tuple(node.attrs.items()), wiring, types, names)
    if key not in _reasons:
        if len(_reasons) >= _MAX_REASONS:
            _reasons.clear()
        _reasons[key] = _reason_not_lowerable(node)
    return _reasons[key]


def _reason_not_lowerable(node: Node) -> str | None:
    if find_lowering(node.op) is None:
        return f"{node.op} has no loop form"
    if len(node.outputs) != 1:
        return f"{node.op} with {len(node.outputs)} results has no loop form"
    for value in (*node.operands, *node.outputs):
        if not isinstance(value.type, TensorType):
            return f"{node.op}: {value.name} is not a tensor"
        if value.tensor.dtype.name not in scalar.DTYPES:
            return f"{node.op} on {value.tensor.dtype} is not generated"
    scope = Scope()
    try:
        operands = dict.fromkeys(node.operands)
        ctx = Context(scope, {v: _buffer("in", i, v.tensor) for i, v in enumerate(operands)})
        axes = [scope.axis(d) for d in node.output.tensor.shape]
        element = ctx.load(node.output, [a.index for a in axes])
    except NotLowerable as reason:
        return str(reason)
    return _unsupported(element, scope)


def _unsupported(value: Expr, scope: Scope) -> str | None:
    for e in walk([value], scope):
        if isinstance(e, Call):
            reason = c_scalar.unsupported(e.fn, e.args[-1].dtype)
            if reason is not None:
                return reason
    return None
