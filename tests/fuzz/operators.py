"""What the generator may add next, pointwise and moving data (`operators_sums.py` has the rest).

Each proposal draws operands and attributes and hands back nodes, or None where nothing fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from dovetail.core.dims import Expr
from tests.fuzz.case import Value
from tests.fuzz.generate import BOOL, F16, F32, F64, I32, I64, Generator, Nodes

Proposal = Callable[[Generator], "Nodes | None"]
PROPOSALS: dict[Proposal, float] = {}
KINDS = {F32: TensorProto.FLOAT, F16: TensorProto.FLOAT16, F64: TensorProto.DOUBLE, I64: TensorProto.INT64, I32: TensorProto.INT32,
         BOOL: TensorProto.BOOL, np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}  # fmt: skip
_UNARY = (
    "Relu", "Sigmoid", "Tanh", "Exp", "Sqrt", "Log", "Neg", "Abs", "Erf", "Softplus", "Softsign", "Elu", "LeakyRelu", "Selu",
    "HardSigmoid", "HardSwish", "Mish", "Sin", "Cos", "Floor", "Ceil", "Round", "Sign", "Reciprocal", "Celu", "ThresholdedRelu", "Atan",
    "Identity", "Dropout", "IsNaN", "Shrink",
)  # fmt: skip


def proposal(weight: float) -> Callable[[Proposal], Proposal]:
    """Register a proposal, to be drawn so often."""

    def register(function: Proposal) -> Proposal:
        PROPOSALS[function] = weight
        return function

    return register


def axis_of(g: Generator, v: Value) -> int:
    """An axis, counted from either end."""
    return g.rng.randint(-v.rank, v.rank - 1)


def static_axis(g: Generator, v: Value, least: int = 1) -> int | None:
    """An axis of known extent."""
    found = [i for i, d in enumerate(v.shape) if isinstance(d, int) and d >= least]
    return g.rng.choice(found) if found else None


def size(d: Any) -> int:
    """A static extent."""
    assert isinstance(d, int)
    return d


# ---------------------------------------------------------------------- pointwise
@proposal(12)
def unary(g: Generator) -> Nodes | None:
    v = g.floats()
    return v and [g.node(g.rng.choice(_UNARY), [v.name])]


@proposal(16)
def binary(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype != BOOL)
    if v is None:
        return None
    operands = [v.name, g.partner(v)]
    g.rng.shuffle(operands)
    if v.dtype.kind == "f" and g.chance(0.15):
        positive = g.node("Abs", [operands[0]])
        return [positive, g.node("Pow", [positive.output[0], g.weight(g.rng.choice([np.array(2, v.dtype), np.array([0.5], v.dtype)]))])]
    last = "PRelu" if v.dtype.kind == "f" else "Mod"
    return [g.node(g.rng.choice(["Add", "Sub", "Mul", "Div", "Add", "Mul", "Max", "Min", last]), operands)]


@proposal(4)
def variadic(g: Generator) -> Nodes | None:
    v = g.floats()
    if v is None:
        return None
    operands = [v.name, *(g.partner(v) for _ in range(g.rng.randint(0, 2)))]
    g.rng.shuffle(operands)
    return [g.node(g.rng.choice(["Sum", "Mean", "Max", "Min"]), operands)]


@proposal(6)
def compare(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype != BOOL)
    if v is None:
        return None
    operands = [v.name, g.partner(v)]
    g.rng.shuffle(operands)
    return [g.node(g.rng.choice(["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"]), operands)]


@proposal(4)
def logic(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype == BOOL)
    if v is None:
        return None
    op = g.rng.choice(["And", "Or", "Xor", "Not"])
    return [g.node(op, [v.name] if op == "Not" else g.rng.sample([v.name, g.partner(v)], 2))]


@proposal(7)
def where(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: True)
    if v is None:
        return None
    values = [v.name, g.partner(v)]
    g.rng.shuffle(values)
    return [g.node("Where", [g.partner(v, BOOL), *values])]


@proposal(5)
def cast(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: True)
    if v is None:
        return None
    kinds = [F32, F32, F32, F16, F64, I64, I32, BOOL, np.dtype(np.uint8), np.dtype(np.int8)]
    if v.dtype == F32:
        kinds = [I64, I32, F16, BOOL, F64]
    return [g.node("Cast", [v.name], to=KINDS[g.rng.choice(kinds)])]


@proposal(3)
def clip(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype in (F32, I64, I32, F16))
    if v is None:
        return None
    scalar = g.pick(lambda s: s.dtype == v.dtype and s.shape == ()) if g.chance(0.3) else None
    low = "" if g.chance(0.3) else scalar.name if scalar else g.fresh(v.dtype, ())
    high = "" if g.chance(0.3) else g.weight(np.array(1, v.dtype))
    return [g.node("Clip", [v.name, low, high] if high else [v.name, low] if low else [v.name])]


@proposal(2)
def gelu(g: Generator) -> Nodes | None:
    v = g.floats()
    if v is None:
        return None
    if g.opset >= 20 and g.chance(0.5):
        return [g.node("Gelu", [v.name], approximate=g.rng.choice(["none", "tanh"]))]
    halves = [g.weight(np.array(c, v.dtype)) for c in (math.sqrt(2), 1, 0.5)]
    a = g.node("Div", [v.name, halves[0]])
    b = g.node("Erf", [a.output[0]])
    c = g.node("Add", [halves[1], b.output[0]])
    d = g.node("Mul", [v.name, c.output[0]])
    return [a, b, c, d, g.node("Mul", [d.output[0], halves[2]])]


# ---------------------------------------------------------------------- movement
@proposal(7)
def transpose(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1)
    if v is None:
        return None
    attrs = {} if g.chance(0.2) else {"perm": g.rng.sample(range(v.rank), v.rank)}
    return [g.node("Transpose", [v.name], **attrs)]


def _factors(g: Generator, n: int) -> list[int]:
    result = []
    for _ in range(g.rng.randint(0, 3)):
        choices = [f for f in range(1, n + 1) if n % f == 0]
        f = g.rng.choice(choices)
        result.append(f)
        n //= f
    result.append(n)
    g.rng.shuffle(result)
    return result


@proposal(9)
def reshape(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: True)
    if v is None:
        return None
    if all(isinstance(d, int) for d in v.shape):
        count = math.prod(map(size, v.shape))
        target = _factors(g, count) if count else [0, g.rng.choice([1, 3])]
        if count and g.chance(0.3):
            target[g.rng.randrange(len(target))] = -1
        if g.chance(0.05) and count == 1:
            target = []
        return [g.node("Reshape", [v.name, g.ints(*target)], allowzero=int(not count))]
    kept = g.rng.randint(0, v.rank - 1)
    rest = v.shape[kept:]
    inner = math.prod(d for d in rest if isinstance(d, int))
    if not inner:
        return None
    target = [0] * kept + ([-1, *_factors(g, inner)] if any(isinstance(d, Expr) for d in rest) else _factors(g, inner))
    return [g.node("Reshape", [v.name, g.ints(*target)])]


@proposal(2)
def flatten(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1)
    return v and [g.node("Flatten", [v.name], axis=axis_of(g, v))]


@proposal(4)
def unsqueeze(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank <= 4)
    if v is None:
        return None
    ones = [i for i, d in enumerate(v.shape) if d == 1]
    if ones and g.chance(0.5):
        return [g.node("Squeeze", [v.name, g.ints(*g.rng.sample(ones, g.rng.randint(1, len(ones))))])]
    axes = g.rng.sample(range(v.rank + 1), 1)
    return [g.node("Unsqueeze", [v.name, g.ints(*axes)])]


@proposal(10)
def concat(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1)
    if v is None:
        return None
    axis = axis_of(g, v) % v.rank

    def fits(o: Value) -> bool:
        if o.dtype != v.dtype or o.rank != v.rank:
            return False
        return all(a == b for i, (a, b) in enumerate(zip(o.shape, v.shape, strict=True)) if i != axis)

    operands = [v.name]
    for _ in range(g.rng.randint(0, 3)):
        other = g.pick(fits) if g.chance(0.5) else None
        shape = [d if i != axis else g.rng.choice([1, 1, 2, 3, 8, 0, d]) for i, d in enumerate(v.shape)]
        operands.append(other.name if other else v.name if g.chance(0.2) else g.fresh(v.dtype, shape))
    if not any(isinstance(d, Expr) for d in v.shape) and g.chance(0.1):
        operands = [n for n in operands if n in g.weights] or operands
    g.rng.shuffle(operands)
    return [g.node("Concat", operands, axis=g.rng.choice([axis, axis - v.rank]))]


@proposal(6)
def split(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: static_axis(g, v, 2) is not None)
    if v is None:
        return None
    axis = static_axis(g, v, 2)
    assert axis is not None
    extent = size(v.shape[axis])
    cut = g.rng.randint(0, extent)
    parts = [cut, extent - cut] if g.chance(0.7) else [1, extent - 2, 1]
    if extent % 2 == 0 and g.chance(0.4):
        return [g.node("Split", [v.name], 2, axis=axis, **({"num_outputs": 2} if g.opset >= 18 else {}))]
    return [g.node("Split", [v.name, g.ints(*parts)], len(parts), axis=axis)]


@proposal(8)
def slices(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1)
    if v is None:
        return None
    axes = g.rng.sample(range(v.rank), g.rng.randint(1, min(2, v.rank)))
    starts, ends, steps = [], [], []
    for axis in axes:
        d = v.shape[axis]
        extent = d if isinstance(d, int) else 1
        step = g.rng.choice([1, 1, 1, 1, 2, -1, 3])
        start, end = (g.rng.randint(0, max(extent - 1, 0)), g.rng.choice([extent, 1 << 40, -1, extent - 1]))
        if step < 0:
            start, end = g.rng.choice([-1, extent]), g.rng.choice([-(1 << 40), 0])
        if isinstance(d, Expr) and step > 0:
            start, end = g.rng.choice([(0, 1), (0, -1), (1, 1 << 40), (-1, 1 << 40), (0, 2)])
        starts.append(start)
        ends.append(end)
        steps.append(step)
    return [g.node("Slice", [v.name, g.ints(*starts), g.ints(*ends), g.ints(*axes), g.ints(*steps)])]


@proposal(7)
def gather(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: static_axis(g, v) is not None)
    if v is None:
        return None
    axis = static_axis(g, v)
    assert axis is not None
    extent = size(v.shape[axis])
    shape = g.rng.choice([(), (1,), (3,), (2, 2), (0,)])
    index = g.numbers.integers(-extent, extent, shape).astype(g.rng.choice([I64, I64, I32]))
    name = g.weight(index)
    known = g.pick(lambda i: i.dtype in (I64, I32) and all(a.size == 0 or ((a >= 0).all() and (a < extent).all()) for a in i.arrays))
    if known is not None and g.chance(0.5):
        name = known.name
    return [g.node("Gather", [v.name, name], axis=axis)]


@proposal(2)
def gather_elements(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1 and all(isinstance(d, int) and d > 0 for d in v.shape))
    if v is None:
        return None
    axis = g.rng.randrange(v.rank)
    shape = [size(d) if i != axis else g.rng.randint(1, 4) for i, d in enumerate(v.shape)]
    index = g.weight(g.numbers.integers(0, size(v.shape[axis]), shape).astype(np.int64))
    if g.chance(0.5):
        return [g.node("GatherElements", [v.name, index], axis=axis)]
    shape[axis] = min(shape[axis], size(v.shape[axis]))
    order = np.argsort(g.numbers.random([size(d) for d in v.shape]), axis)
    order = np.take(order, range(shape[axis]), axis).astype(np.int64)
    return [g.node("ScatterElements", [v.name, g.weight(order), g.fresh(v.dtype, shape)], axis=axis)]


@proposal(2)
def scatter_nd(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 1 and isinstance(v.shape[0], int) and v.shape[0] >= 2)
    if v is None:
        return None
    rows = g.weight(g.numbers.permutation(size(v.shape[0]))[:2].reshape(2, 1).astype(np.int64))
    if g.chance(0.5) or not all(isinstance(d, int) for d in v.shape):
        return [g.node("GatherND", [v.name, rows])]
    return [g.node("ScatterND", [v.name, rows, g.fresh(v.dtype, (2, *v.shape[1:]))])]


@proposal(6)
def pad(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: 1 <= v.rank <= 5 and v.dtype != BOOL)
    if v is None:
        return None
    mode = g.rng.choice(["constant", "constant", "edge", "reflect"])
    pads = [g.rng.choice([0, 0, 1, 2]) if mode != "reflect" or (isinstance(d, int) and d > 2) else 0 for d in (*v.shape, *v.shape)]
    if mode == "constant" and g.chance(0.15):
        axis = static_axis(g, v, 3)
        if axis is not None:
            pads[axis] = -1
    inputs = [v.name, g.ints(*pads)]
    if mode == "constant" and g.chance(0.6):
        inputs.append(g.fresh(v.dtype, ()))
    return [g.node("Pad", inputs, mode=mode)]


@proposal(4)
def expand(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank <= 4)
    if v is None:
        return None
    target = [g.rng.choice([1, 2, 3]) if d == 1 else d if isinstance(d, int) else 1 for d in v.shape]
    if g.chance(0.3):
        target = [2, *target]
    return [g.node("Expand", [v.name, g.ints(*target)])]


@proposal(3)
def tile(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: 1 <= v.rank <= 4)
    return v and [g.node("Tile", [v.name, g.ints(*(g.rng.choice([1, 1, 2, 3]) for _ in v.shape))])]


@proposal(2)
def depth_to_space(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank == 4 and isinstance(v.shape[1], int) and v.shape[1] % 4 == 0 and v.shape[1] > 0)
    if v is not None and g.chance(0.6):
        return [g.node("DepthToSpace", [v.name], blocksize=2, mode=g.rng.choice(["DCR", "CRD"]))]
    v = g.pick(lambda v: v.rank == 4 and all(isinstance(d, int) and d % 2 == 0 for d in v.shape[2:]))
    return v and [g.node("SpaceToDepth", [v.name], blocksize=2)]


@proposal(2)
def trilu(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.rank >= 2)
    if v is None:
        return None
    k = [g.weight(np.array(g.rng.randint(-2, 2), np.int64))] if g.chance(0.6) else []
    return [g.node("Trilu", [v.name, *k], upper=g.rng.randint(0, 1))]


@proposal(2)
def one_hot(g: Generator) -> Nodes | None:
    v = g.pick(lambda v: v.dtype in (I64, I32) and v.rank <= 3)
    if v is None:
        return None
    depth, values = g.weight(np.array(5, np.int64)), g.weight(np.array([0.5, 2], np.float32))
    return [g.node("OneHot", [v.name, depth, values], axis=g.rng.randint(-1, v.rank))]
