"""Epilogues in vector form: against the references, and equal bit for bit on every vector width."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from dovetail.codegen.compiler import compile_c
from dovetail.codegen.lower.epilogue import epilogue_code, epilogue_reason, side_inputs
from dovetail.codegen.target import Target
from dovetail.codegen.vmath import prelude
from dovetail.core.dtypes import F32, F64, I32
from dovetail.ir.graph import Graph
from dovetail.ir.types import TensorType
from dovetail.ops.infer import infer
from dovetail.reference.registry import call

N = 2048


def node(body, op, inputs, **attrs):
    return body.add(op, inputs, attrs, types=infer(op, inputs, attrs))


def matmul_body():
    body = Graph("body")
    a, b = body.add_input("a", TensorType(F32, (32, 8))), body.add_input("b", TensorType(F32, (8, 64)))
    return body, node(body, "MatMul", (a, b))


def run(body, anchor, arrays, vector):
    sides = side_inputs(body, anchor)
    lanes = 1 if vector == "float" else int(vector[1:-1])
    names = {anchor.output: "acc"} | {v: f"s{i}" for i, v in enumerate(sides)}
    code = epilogue_code(body, names, vector, prefix="q")
    read = "*(const {0} *)(p[{1}] + i)"
    loads = [f"const {vector} acc = {read.format(vector, 0)};"]
    loads += [f"const {vector} s{k} = {read.format(vector, k + 1)};" for k in range(len(sides))]
    stores = [f"*({vector} *)(p[{len(sides) + 1 + k}] + i) = {r};" for k, r in enumerate(code.results)]
    text = "\n".join([*loads, *code.statements, *stores])
    source = f"{prelude(Target.host())}void f(float **p) {{ for (int i = 0; i < {N}; i += {lanes}) {{\n{text}\n}} }}\n"
    outs = [np.empty(N, np.float32) for _ in code.results]
    pointers = (ctypes.c_void_p * (len(arrays) + len(outs)))(*[x.ctypes.data for x in (*arrays, *outs)])
    ctypes.CDLL(str(compile_c(source, Target.host()))).f(pointers)
    return outs


OPS = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.2}, "Sigmoid": {}, "Tanh": {}, "Gelu": {}, "HardSwish": {}, "HardSigmoid": {}, "Mish": {},
    "Swish": {}, "Elu": {}, "Selu": {}, "Celu": {}, "Softplus": {}, "Softsign": {}, "Clip": {"min": -1.0, "max": 2.0}, "Exp": {}, "Erf": {},
    "Abs": {}, "Neg": {}, "Sqrt": {}, "Floor": {}, "Round": {}, "Reciprocal": {}, "Sign": {}, "ThresholdedRelu": {}, "Shrink": {},
    "Log": {},
}  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_unary(op):
    body, anchor = matmul_body()
    body.set_outputs(node(body, op, (anchor.output,), **OPS[op]).outputs)
    assert epilogue_reason(body, anchor) is None
    x = np.random.default_rng(0).uniform(-6, 6, N).astype(np.float32)
    results = [run(body, anchor, [x], v)[0] for v in ("float", "v4f", "v8f", Target.host().vector_type)]
    with np.errstate(all="ignore"):
        (expected,) = call(op, [x], OPS[op])
    np.testing.assert_allclose(results[0], expected, rtol=2e-6, atol=1e-6)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].view(np.int32), other.view(np.int32))


def test_chain_with_bias_residual_mask_and_two_outputs():
    body, anchor = matmul_body()
    bias = body.add_input("bias", TensorType(F32, (64,)))
    residual = body.add_input("residual", TensorType(F32, (32, 64)))
    summed = node(body, "Add", (anchor.output, bias)).output
    positive = node(body, "Greater", (summed, residual)).output
    other = node(body, "LessOrEqual", (bias, residual)).output
    mask = node(body, "And", (positive, node(body, "Not", (other,)).output)).output
    chosen = node(body, "Where", (mask, summed, residual)).output
    body.set_outputs([chosen, node(body, "Mul", (chosen, summed)).output])
    assert epilogue_reason(body, anchor) is None
    assert side_inputs(body, anchor) == [bias, residual]
    rng = np.random.default_rng(1)
    x, b, r = (rng.standard_normal(N).astype(np.float32) for _ in range(3))
    total = x + b
    want = np.where((total > r) & ~(b <= r), total, r)
    for vector in ("float", Target.host().vector_type):
        first, second = run(body, anchor, [x, b, r], vector)
        np.testing.assert_array_equal(first, want)
        np.testing.assert_array_equal(second, want * total)


def test_reasons():
    body, anchor = matmul_body()
    body.set_outputs(node(body, "Sin", (anchor.output,)).outputs)
    assert "sin" in (epilogue_reason(body, anchor) or "")
    body, anchor = matmul_body()
    body.set_outputs(node(body, "Softmax", (anchor.output,)).outputs)
    assert "Softmax" in (epilogue_reason(body, anchor) or "")
    body, anchor = matmul_body()
    side = body.add_input("side", TensorType(I32, (64,)))
    cast = node(body, "Cast", (side,), to=F32).output
    body.set_outputs(node(body, "Add", (anchor.output, cast)).outputs)
    assert "not a float" in (epilogue_reason(body, anchor) or "")
    body, anchor = matmul_body()
    body.set_outputs(node(body, "Cast", (anchor.output,), to=F64).outputs)
    assert "f64" in (epilogue_reason(body, anchor) or "")
