"""What the generator may add next: reductions, rows, contractions, windows, shapes, control; see `operators.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.generate import BOOL, F32, I32, I64, Generator, Nodes
from tests.fuzz.operators import KINDS, axis_of, proposal, size, static_axis

_REDUCE = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
_CHANNEL_NORMS = (
    "BatchNormalization", "BatchNormalization", "InstanceNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN",
)  # fmt: skip


# ---------------------------------------------------------------------- reductions and rows
@proposal(10)
def reduce(g: Generator) -> Nodes | None:
    op = g.rng.choice(_REDUCE)
    v = g.pick(lambda v: v.dtype.kind == "f" or (v.dtype in (I64, I32) and op in ("ReduceSum", "ReduceMax", "ReduceMin")))
    if v is None:
        return None
    axes = g.rng.sample(range(-v.rank, 0), g.rng.randint(0, min(2, v.rank)))
    keep = {"keepdims": g.rng.randint(0, 1)}
    if op == "ReduceSum" or g.opset >= 18:
        return [g.node(op, [v.name, *([g.ints(*axes)] if axes else [])], **keep)]
    return [g.node(op, [v.name], **keep, **({"axes": axes} if axes else {}))]


@proposal(3)
def arg(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1 and v.dtype != BOOL)
    if v is None:
        return None
    op, axis = g.rng.choice(["ArgMax", "ArgMin"]), axis_of(g, v)
    return [g.node(op, [v.name], axis=axis, keepdims=g.rng.randint(0, 1), select_last_index=g.rng.randint(0, 1))]


@proposal(3)
def cumsum(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1 and v.dtype in (F32, I64, I32))
    if v is None:
        return None
    axis = g.weight(np.array(axis_of(g, v), np.int64))
    return [g.node("CumSum", [v.name, axis], exclusive=g.rng.randint(0, 1), reverse=g.rng.randint(0, 1))]


@proposal(3)
def topk(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype in (F32, I64) and static_axis(g, v) is not None)
    if v is None:
        return None
    axis = static_axis(g, v)
    assert axis is not None
    return [g.node("TopK", [v.name, g.ints(g.rng.randint(1, size(v.shape[axis])))], 2, axis=axis, largest=g.rng.randint(0, 1))]


@proposal(7)
def softmax(g: Generator) -> Nodes | None:
    v = g.floats(least=1)
    return v and [g.node(g.rng.choice(["Softmax", "Softmax", "LogSoftmax", "Hardmax"]), [v.name], axis=axis_of(g, v))]


@proposal(6)
def layer_norm(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank >= 1 and isinstance(v.shape[-1], int) and v.shape[-1] > 1)
    if v is None:
        return None
    shape = [v.shape[-1]]
    if g.chance(0.5):
        inputs = [v.name, g.fresh(v.dtype, shape), *([g.fresh(v.dtype, shape)] if g.chance(0.7) else [])]
        return [g.node("LayerNormalization", inputs, axis=-1)]
    reduce_axes: dict[str, Any] = {} if g.opset >= 18 else {"axes": [-1]}
    axes = [g.ints(-1)] if g.opset >= 18 else []
    a = g.node("ReduceMean", [v.name, *axes], **reduce_axes)
    b = g.node("Sub", [v.name, a.output[0]])
    c = g.node("Pow", [b.output[0], g.weight(np.array(2, np.float32))])
    d = g.node("ReduceMean", [c.output[0], *axes], **reduce_axes)
    e = g.node("Add", [d.output[0], g.weight(np.array(1e-2, np.float32))])
    f = g.node("Sqrt", [e.output[0]])
    h = g.node("Div", [b.output[0], f.output[0]])
    return [a, b, c, d, e, f, h, g.node("Mul", [g.fresh(v.dtype, shape), h.output[0]])]


@proposal(6)
def channel_norm(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank >= 3 and isinstance(v.shape[1], int) and v.shape[1] > 0)
    if v is None:
        return None
    channels = [v.shape[1]]
    op = g.rng.choice(_CHANNEL_NORMS)
    if op == "BatchNormalization":
        positive = g.weight(g.draw(F32, [size(v.shape[1])]) ** 2 + np.float32(0.1))
        return [g.node(op, [v.name, g.fresh(F32, channels), g.fresh(F32, channels), g.fresh(F32, channels), positive])]
    if op == "InstanceNormalization":
        return [g.node(op, [v.name, g.fresh(F32, channels), g.fresh(F32, channels)], epsilon=1e-2)]
    if op == "LpNormalization":
        return [g.node(op, [v.name], axis=axis_of(g, v), p=g.rng.choice([1, 2]))]
    return [g.node(op, [v.name], **({"size": 3} if op == "LRN" else {}))]


# ---------------------------------------------------------------------- contractions and windows
@proposal(12)
def matmul(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank >= 1 and isinstance(v.shape[-1], int))
    if v is None:
        return None
    n = g.rng.choice([1, 3, 8, 16, 20])
    kind = g.rng.randrange(5)
    if kind == 0 and v.rank >= 2:
        t = g.node("Transpose", [v.name], perm=[*range(v.rank - 2), v.rank - 1, v.rank - 2])
        return [t, g.node("MatMul", g.rng.sample([v.name, t.output[0]], 2))]
    if kind == 1:
        other = g.pick(lambda o: o.dtype == F32 and o.rank >= 1 and o.shape[-2 if o.rank > 1 else -1] == v.shape[-1])
        if other is not None:
            return [g.node("MatMul", [v.name, other.name])]
    if kind == 2 and v.rank >= 2 and isinstance(v.shape[-2], int):
        return [g.node("MatMul", [g.fresh(F32, [n, v.shape[-2]]), v.name])]
    if kind == 3:
        return [g.node("MatMul", [v.name, g.fresh(F32, [v.shape[-1]])])]
    product = g.node("MatMul", [v.name, g.fresh(F32, [v.shape[-1], n])])
    if g.chance(0.6):
        return [product, g.node("Add", g.rng.sample([product.output[0], g.fresh(F32, [n])], 2))]
    return [product]


@proposal(4)
def gemm(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank == 2 and isinstance(v.shape[1], int))
    if v is None:
        return None
    n, flip = g.rng.choice([1, 5, 16]), g.rng.randint(0, 1)
    weight = g.fresh(F32, [n, v.shape[1]] if flip else [v.shape[1], n])
    bias = g.rng.choice([[], [g.fresh(F32, [n])], [g.fresh(F32, [])], [g.fresh(F32, [v.shape[0], 1])]])
    if g.chance(0.2) and isinstance(v.shape[0], int):
        return [g.node("Gemm", [v.name, g.fresh(F32, [v.shape[0], n])], transA=1)]
    return [g.node("Gemm", [v.name, weight, *bias], transB=flip, alpha=g.rng.choice([1.0, 0.5]), beta=g.rng.choice([1.0, 2.0]))]


@proposal(2)
def einsum(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank == 3 and isinstance(v.shape[2], int))
    if v is None:
        return None
    return [g.node("Einsum", [v.name, g.fresh(F32, [4, v.shape[2]])], equation=g.rng.choice(["abc,dc->abd", "abc,dc->dab", "abc,dc->ad"]))]


@proposal(12)
def conv(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank in (3, 4) and all(isinstance(d, int) and d > 0 for d in v.shape[1:]))
    if v is None:
        return None
    channels, images = size(v.shape[1]), v.rank - 2
    kernel = [g.rng.choice([k for k in (1, 3, 2, 5) if k <= size(d)]) for d in v.shape[2:]]
    attrs: dict[str, Any] = {"strides": [g.rng.choice([1, 1, 2])] * images}
    if g.chance(0.6):
        attrs["pads"] = [g.rng.randint(0, max(k // 2, 0)) for k in kernel] * 2
    if g.chance(0.15):
        attrs["dilations"] = [2] * images
    group = g.rng.choice([1, 1, channels, 2 if channels % 2 == 0 else 1])
    attrs["group"] = group
    outputs = group * g.rng.choice([1, 2, 4])
    if g.chance(0.2):
        weight = g.fresh(F32, [channels, outputs // group, *kernel])
        made = g.node("ConvTranspose", [v.name, weight, *([g.fresh(F32, [outputs])] if g.chance(0.5) else [])], **attrs)
    else:
        weight = g.fresh(F32, [outputs, channels // group, *kernel])
        made = g.node("Conv", [v.name, weight, *([g.fresh(F32, [outputs])] if g.chance(0.6) else [])], **attrs)
    if g.chance(0.4):
        return [made, g.node(g.rng.choice(["Relu", "Sigmoid", "HardSwish"]), [made.output[0]])]
    return [made]


@proposal(5)
def pool(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank in (3, 4) and all(isinstance(d, int) and d >= 2 for d in v.shape[2:]))
    if v is None:
        return None
    op = g.rng.choice(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
    if op.startswith("Global"):
        return [g.node(op, [v.name])]
    kernel = [g.rng.choice([2, 3] if size(d) > 2 else [2]) for d in v.shape[2:]]
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": [g.rng.choice([1, 2])] * (v.rank - 2)}
    if g.chance(0.5):
        attrs["pads"] = [g.rng.randint(0, 1)] * (2 * (v.rank - 2))
    if op != "LpPool" or g.opset >= 18:
        attrs["ceil_mode"] = g.rng.randint(0, 1)
    if op == "AveragePool":
        attrs["count_include_pad"] = g.rng.randint(0, 1)
    return [g.node(op, [v.name], **attrs)]


@proposal(3)
def resize(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank == 4 and all(isinstance(d, int) and d > 1 for d in v.shape[2:]))
    if v is None:
        return None
    scales = g.weight(np.array([1, 1, *g.rng.choice([(2, 2), (2, 1), (0.5, 0.5)])], np.float32))
    mode = g.rng.choice(["nearest", "linear", "cubic"])
    where = g.rng.choice(["asymmetric", "half_pixel", "align_corners"]) if mode != "nearest" else "asymmetric"
    rounding = {"nearest_mode": "floor"} if mode == "nearest" else {}
    return [g.node("Resize", [v.name, "", scales], mode=mode, coordinate_transformation_mode=where, **rounding)]


@proposal(1.5)
def recurrent(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == F32 and v.rank == 3 and isinstance(v.shape[2], int) and v.shape[2] > 0)
    if v is None:
        return None
    op, gates = g.rng.choice([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    directions, hidden = g.rng.choice([1, 2]), g.rng.choice([3, 8])
    inputs = [v.name, g.fresh(F32, [directions, gates * hidden, v.shape[2]]), g.fresh(F32, [directions, gates * hidden, hidden])]
    if g.chance(0.6):
        inputs.append(g.fresh(F32, [directions, 2 * gates * hidden]))
    return [g.node(op, inputs, 2, hidden_size=hidden, direction="bidirectional" if directions == 2 else "forward")]


# ---------------------------------------------------------------------- shapes, data-dependent extents, control
@proposal(3)
def shape(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1)
    return v and [g.node(g.rng.choice(["Shape", "Size"]), [v.name])]


@proposal(7)
def by_shape(g: Generator) -> Nodes | None:
    """Exporters' chains from Shape to the operators that shapes drive."""
    v = g.pick(lambda v: v.rank >= 2)
    if v is None:
        return None
    whole = g.node("Shape", [v.name])
    first = g.node("Gather", [whole.output[0], g.weight(np.array(0, np.int64))], axis=0)
    kind = g.rng.randrange(6)
    if kind == 0:
        row = g.node("Unsqueeze", [first.output[0], g.ints(0)])
        target = g.node("Concat", g.rng.sample([row.output[0], g.ints(-1)], 2), axis=0)
        return [whole, first, row, target, g.node("Reshape", [v.name, target.output[0]])]
    if kind == 1:
        rest = g.node("Slice", [whole.output[0], g.ints(1), g.ints(1 << 40)])
        target = g.node("Concat", [g.ints(-1), rest.output[0]], axis=0)
        return [whole, rest, target, g.node("Reshape", [v.name, target.output[0]])]
    if kind == 2:
        value = helper.make_tensor("value", KINDS[F32], [1], [0.5])
        full = g.node("ConstantOfShape", [whole.output[0]], value=value)
        return [whole, full] + ([g.node("Add", [full.output[0], v.name])] if v.dtype == F32 else [])
    if kind == 3:
        other = g.fresh(F32, [1] * v.rank)
        return [whole, g.node("Expand", [other, whole.output[0]])]
    if kind == 4:
        steps = g.node("Range", [g.weight(np.array(0, np.int64)), first.output[0], g.weight(np.array(1, np.int64))])
        return [whole, first, steps, g.node("Cast", [steps.output[0]], to=KINDS[F32])]
    half = g.node("Div", [first.output[0], g.weight(np.array(2, np.int64))])
    row = g.node("Unsqueeze", [half.output[0], g.ints(0)])
    ends = [g.ints(0), row.output[0]] if g.chance(0.5) else [row.output[0], g.ints(1 << 40)]
    return [whole, first, half, row, g.node("Slice", [v.name, *ends, g.ints(0)])]


@proposal(1.5)
def data_dependent(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == BOOL and v.rank >= 1)
    if v is None:
        return None
    if g.chance(0.5):
        return [g.node("NonZero", [v.name])]
    flat = g.node("Reshape", [v.name, g.ints(-1)])
    return [flat, g.node("Compress", [v.name, flat.output[0]])]


@proposal(2)
def branch(g: Generator) -> Nodes | None:
    """An If over a value from outside, with a weight of its own in one branch."""
    v, flag = g.floats(least=1), g.pick(lambda v: v.dtype == BOOL and v.shape in ((), (1,)))
    if v is None or v.dtype != F32:
        return None
    condition = flag.name if flag is not None else g.input(BOOL, ())
    other = g.partner(v) if g.chance(0.5) else g.fresh(F32, ())
    a = [g.node("Relu", [v.name])]
    b = [g.node("Mul", [v.name, other])]
    b.append(g.node("Expand", [v.name, g.ints(1)]) if g.chance(0.3) else g.node("Tanh", [b[0].output[0]]))
    bodies = [_graph(n, [], [n[-1].output[0]]) for n in (a, b)]
    return [g.node("If", [condition], then_branch=bodies[0], else_branch=bodies[1])]


@proposal(2)
def loop(g: Generator) -> Nodes | None:
    """A Loop with a carried value, a value from outside, and stacked results."""
    v = g.pick(lambda v: v.dtype == F32 and v.rank >= 1)
    if v is None:
        return None
    i, c, x = g.name("i"), g.name("c"), g.name("x")
    body = [g.node("Identity", [c]), g.node("Tanh", [x])]
    body.append(g.node("Add", [body[1].output[0], v.name if g.chance(0.5) else g.fresh(F32, ())]))
    body.append(g.node("ReduceSum", [body[2].output[0]], keepdims=0))
    inputs = [helper.make_tensor_value_info(i, TensorProto.INT64, []), helper.make_tensor_value_info(c, TensorProto.BOOL, []),
              helper.make_tensor_value_info(x, TensorProto.FLOAT, None)]  # fmt: skip
    graph = _graph(body, inputs, [body[0].output[0], body[2].output[0], body[3].output[0]])
    trips = g.pick(lambda t: t.dtype == I64 and t.shape == () and all(0 <= int(a) <= 6 for a in t.arrays))
    count = trips.name if trips is not None and g.chance(0.5) else g.weight(np.array(g.rng.choice([0, 1, 3]), np.int64))
    return [g.node("Loop", [count, "", v.name], 2, body=graph)]


def _graph(nodes: Nodes, inputs: list[Any], outputs: list[str]) -> Any:
    kinds = [TensorProto.BOOL if i == 0 and len(outputs) == 3 else TensorProto.FLOAT for i in range(len(outputs))]
    results = [helper.make_tensor_value_info(n, k, None) for n, k in zip(outputs, kinds, strict=True)]
    return helper.make_graph(nodes, "body", inputs, results)
