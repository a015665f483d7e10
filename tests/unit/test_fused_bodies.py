"""Random fusion bodies of mixed families, lowered to one kernel each, against the references node by node."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dovetail.codegen.lower import lower
from dovetail.codegen.print_c import print_kernel
from dovetail.core.dtypes import F32
from dovetail.ir.graph import Graph
from dovetail.ir.types import TensorType
from dovetail.ops.infer import infer
from dovetail.reference.registry import call
from tests.unit.loop_harness import run_c

BINARY = ("Add", "Mul", "Max", "Sub")
OTHERS = (
    "Tanh", "Relu", "Sigmoid", "Softmax", "ReduceMean", "ReduceMax", "LayerNormalization", "Transpose", "Reshape", "Concat",
    "CumSum", "Slice",
)  # fmt: skip


def fits(a, b):
    return all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True))


def attributes(rng, op, shape):
    axis = rng.randrange(3)
    if op in ("Softmax", "CumSum", "LayerNormalization", "Concat"):
        return {"axis": axis}
    if op.startswith("Reduce"):
        return {"axes": (axis,), "keepdims": True}
    if op == "Transpose":
        return {"perm": tuple(rng.sample(range(3), 3))}
    if op == "Reshape":
        a, b, c = shape
        return {"shape": rng.choice([(a * b, 1, c), (c, a, b), (1, a * b * c, 1)])}
    if op == "Slice":
        return {"starts": (shape[axis] // 3,), "ends": (shape[axis],), "axes": (axis,), "steps": (1,)}
    return {}


def random_body(rng):
    body = Graph("body")
    shape = (rng.choice([1, 3, 5]), rng.choice([1, 4, 17]), rng.choice([1, 8, 33]))
    shapes = [tuple(d if rng.random() < 0.8 else 1 for d in shape) for _ in range(3)]
    values = [body.add_input(f"x{i}", TensorType(F32, s)) for i, s in enumerate(shapes)]
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    arrays = [numbers.uniform(-2, 2, s).astype(np.float32) for s in shapes]
    known = dict(zip(values, arrays, strict=True))
    for _ in range(rng.randint(2, 7)):
        op = rng.choice(BINARY + OTHERS)
        x = rng.choice(values[-3:])
        inputs = [x]
        if op in BINARY:
            inputs.append(rng.choice([v for v in values if fits(v.tensor.shape, x.tensor.shape)]))
        elif op == "Concat":
            inputs.append(x)
        elif op == "LayerNormalization":
            inputs += [None, None]
        attrs = attributes(rng, op, x.tensor.shape)
        node = body.add(op, inputs, attrs, types=infer(op, inputs, attrs))
        (known[node.output],) = call(op, [None if v is None else known[v] for v in inputs], attrs)
        values.append(node.output)
    body.set_outputs([values[-1]])
    return body, arrays, known[values[-1]]


@pytest.mark.parametrize("seed", range(24))
def test_fused_bodies(seed):
    body, arrays, expected = random_body(random.Random(seed))
    kernel = print_kernel(lower(body, [v.tensor for v in body.inputs], [body.outputs[0].tensor]))
    results = []
    for threads in (1, 3):
        got = np.zeros(expected.size, np.float32)
        used = [arrays[p.index].ravel() if p.role == "in" else got for p in kernel.params if p.role != "workspace"]
        run_c(kernel, used, {}, threads)
        results.append(got)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[0].reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
