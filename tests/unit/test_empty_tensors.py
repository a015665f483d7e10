"""Runs in which tensors have no elements: parts of them begin nowhere."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import dovetail
from dovetail import builder
from dovetail.builder.options import BuildOptions
from tests.unit.small_models import model

node = helper.make_node


@pytest.mark.parametrize("shape", [["N", 4, 6], [0, 4, 6], [2, 4, 0]], ids=["symbol", "static", "inner"])
def test_parts_of_nothing(shape):
    """Slices in the middle, from the end and against the grain of a tensor that is empty in this run."""
    nodes = [
        node("Split", ["x", "cut"], ["a", "b"], axis=1), node("Relu", ["b"], ["c"]), node("Gather", ["x", "last"], ["d"], axis=1),
        node("Slice", ["x", "two", "none", "first", "back"], ["e"]), node("Neg", ["e"], ["f"]),
    ]  # fmt: skip
    weights = {
        "cut": np.array([1, 3]), "last": np.array([-1]), "two": np.array([-1]), "none": np.array([-9]), "first": np.array([0]),
        "back": np.array([-1]),
    }  # fmt: skip
    outputs = {"a": [shape[0], 1, shape[2]], "c": [shape[0], 3, shape[2]], "d": [shape[0], 1, shape[2]], "f": list(shape)}
    engine = dovetail.build(model(nodes, {"x": shape}, outputs, weights), verify="off", tune=False)
    for n in (0, 3, 1, 0) if shape[0] == "N" else (shape[0],):
        x = np.random.default_rng(n).standard_normal((n, *shape[1:])).astype(np.float32)
        found = engine.run({"x": x})
        for name, want in {"a": x[:, :1], "c": np.maximum(x[:, 1:], 0), "d": x[:, 3:], "f": -x[::-1]}.items():
            np.testing.assert_array_equal(found[name], want)


def test_shape_results_of_other_shapes_on_a_gpu():
    """An output that depends on shapes alone is copied to the host anew for each of them, in one context."""
    pytest.importorskip("triton")
    from dovetail import runtime
    from dovetail.codegen.triton_host import host_driver

    nodes = [
        node("Shape", ["x"], ["s"]), node("Expand", ["one", "s"], ["e"]), node("ReduceSum", ["e"], ["y"], keepdims=0),
        node("Relu", ["x"], ["z"]),
    ]  # fmt: skip
    made = model(nodes, {"x": ["N", 3]}, {"y": [], "z": ["N", 3]}, {"one": np.ones((1, 1), np.float32)})
    assert made.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    built = builder.build(made, BuildOptions(target="cuda:sm_80", verify="off"))
    driver = host_driver(built.kernels, capability=80)
    context = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver).context()
    for n in (2, 5, 2, 1):
        assert context.run({"x": np.ones((n, 3), np.float32)})["y"] == 3 * n


def test_a_sum_over_nothing_on_a_gpu():
    """An extent of 0 beside extents that only runs know."""
    pytest.importorskip("triton")
    from dovetail import runtime
    from dovetail.codegen.triton_host import host_driver

    nodes = [
        node("Gather", ["x", "none"], ["g"], axis=2), node("ReduceSum", ["g"], ["y"], keepdims=0),
        node("Concat", ["x", "g", "x"], ["z"], axis=2),
    ]  # fmt: skip
    made = model(nodes, {"x": ["N", "M", 3]}, {"y": [], "z": ["N", "M", 6]}, {"none": np.zeros(0, np.int64)})
    built = builder.build(made, BuildOptions(target="cuda:sm_80", verify="off"))
    driver = host_driver(built.kernels, capability=80)
    context = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver).context()
    found = context.run({"x": np.ones((2, 4, 3), np.float32)})
    assert found["y"] == 0 and found["z"].shape == (2, 4, 6)
