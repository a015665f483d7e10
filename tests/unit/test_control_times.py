"""If, Loop and Scan over what is known at load, from the shapes of a run, or in the run: where regions are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dovetail
from dovetail import builder, runtime
from dovetail.builder.options import BuildOptions
from dovetail.ir.graph import Time
from dovetail.ir.parser import parse_module
from dovetail.ir.printer import print_module
from tests.unit.small_models import model

node = helper.make_node
WEIGHT = np.array([[2, -0.5], [1, 0.25]], np.float32)
WEIGHTS = {
    "w": WEIGHT, "known": np.array([[0.5, 0.1], [0.3, -0.2], [1, 0.2]], np.float32), "zero": np.zeros(2, np.float32),
    "three": np.array(3), "limit": np.array(0.75, np.float32),
}  # fmt: skip
BEFORE = {
    "weight": [node("Mul", ["known", "known"], ["b"])],
    "shape": [node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["b"], value=helper.make_tensor("", 1, [1], [0.5]))],
    "run": [node("Sin", ["x"], ["b"])],
}


def port(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def control(op: str) -> list[onnx.NodeProto]:
    """From `b` [n, 2] to `r` [n, 2]."""
    product = [node("MatMul", ["b", "w"], ["p"]), node("Tanh", ["p"], ["t"])]
    if op == "If":
        then = helper.make_graph(product, "then", [], [port("t")])
        other = helper.make_graph([node("Neg", ["b"], ["e"])], "else", [], [port("e")])
        return [
            node("ReduceMean", ["b"], ["m"], keepdims=0), node("Less", ["m", "limit"], ["c"]),
            node("If", ["c"], ["r"], then_branch=then, else_branch=other),
        ]  # fmt: skip
    if op == "Loop":
        steps = [node("Identity", ["more"], ["again"]), node("MatMul", ["a", "w"], ["p"]), node("Tanh", ["p"], ["t"])]
        entry = [port("i", TensorProto.INT64, []), port("more", TensorProto.BOOL, []), port("a")]
        body = helper.make_graph(steps, "body", entry, [port("again", TensorProto.BOOL, []), port("t")])
        return [node("Loop", ["three", "", "b"], ["r"], body=body)]
    steps = [node("Add", ["state", "row"], ["next"]), node("Tanh", ["next"], ["t"])]
    entry, results = ([port(name, shape=[2]) for name in names] for names in (("state", "row"), ("next", "t")))
    body = helper.make_graph(steps, "body", entry, results)
    return [node("Scan", ["zero", "b"], ["last", "r"], body=body, num_scan_inputs=1)]


def wanted(op: str, time: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    b = {"weight": WEIGHTS["known"] ** 2, "shape": np.full_like(x, 0.5), "run": np.sin(x)}[time]
    if op == "If":
        return np.tanh(b @ WEIGHT) if b.mean() < 0.75 else -b
    if op == "Loop":
        return np.tanh(np.tanh(np.tanh(b @ WEIGHT) @ WEIGHT) @ WEIGHT)
    return np.tanh(np.cumsum(b, 0))


@pytest.mark.parametrize("target", ["cpu", "cuda:sm_90"])
@pytest.mark.parametrize("time", BEFORE)
@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_regions(op, time, target):
    """Its result is an output, and drives what the run computes."""
    nodes = [*BEFORE[time], *control(op), node("ReduceSum", ["r"], ["q"], keepdims=0), node("Add", ["x", "q"], ["y"])]
    used = {name for n in nodes for name in n.input} | {"w"}
    made = model(nodes, {"x": ["N", 2]}, {"r": ["M", 2], "y": ["N", 2]}, {k: v for k, v in WEIGHTS.items() if k in used})
    if target == "cpu":
        engine = dovetail.build(made, verify="off", tune=False)
    else:
        pytest.importorskip("triton")
        from dovetail.codegen.triton_host import host_driver

        built = builder.build(made, BuildOptions(target=target, verify="off", precision="fp32"))
        driver = host_driver(built.kernels, capability=90)
        engine = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver).context()
    for n in (3, 1, 4):
        x = np.random.default_rng(n).standard_normal((n, 2)).astype(np.float32)
        found, r = engine.run({"x": x}), wanted(op, time, x)
        np.testing.assert_allclose(found["r"], r, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["y"], x + r.sum(), rtol=1e-5, atol=1e-5)


def test_sizes_that_no_dim_can_say_are_bound_in_the_run_although_shapes_tell_them() -> None:
    """Whether a size is even is known from shapes; as an extent it becomes a symbol, which the shapes program cannot hand on."""
    even = onnx.parser.parse_model("""
    <ir_version: 9, opset_import: ["": 18]>
    g (float[N,3] x) => (float[P,3] y)
    <int64[1] two = {2}, int64[1] zero = {0}> {
      s = Shape <start = 0, end = 1> (x)
      r = Mod (s, two)
      e = Equal (r, zero)
      c = Cast <to = 7> (e)
      p = Concat <axis = 0> (zero, zero, c, zero)
      y = Pad (x, p)
    }
    """)
    engine = dovetail.build(even, tune=False)
    for size in (2, 3, 1, 8, 0):
        x = np.random.default_rng(size).standard_normal((size, 3)).astype(np.float32)
        assert np.array_equal(engine.run({"x": x})["y"], np.pad(x, ((0, 1 - size % 2), (0, 0))))


def test_data_dependent_sizes_of_what_a_rewrite_has_made_constant() -> None:
    empty = onnx.parser.parse_model("""
    <ir_version: 9, opset_import: ["": 17]>
    g (float[1,32] x) => (int64[2,K] y) <float[0,32] none = {}> {
      less = Less (none, x)
      y = NonZero (less)
    }
    """)
    engine = dovetail.build(empty, tune=False)
    assert engine.run({"x": np.ones((1, 32), np.float32)})["y"].shape == (2, 0)
    # The stored graph says so, too.
    restored = parse_module(engine.graph)
    assert print_module(restored) == engine.graph and restored.main.symbol_times == {"nonzero0": Time.RUN}
