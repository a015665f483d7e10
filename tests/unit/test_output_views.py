"""Outputs that are views of what kernels write: they are written where the caller wants them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper as h
from onnx import numpy_helper as nh

import dovetail
from dovetail.engine.plan import Plan

RNG = np.random.default_rng(3)


def model(nodes: list[onnx.NodeProto], outputs: list[str], **weights: np.ndarray) -> onnx.ModelProto:
    x = h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 6])
    ends = [h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs]
    graph = h.make_graph(nodes, "g", [x], ends, [nh.from_array(a, n) for n, a in weights.items()])
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9)


def kinds(plan: Plan) -> list[str]:
    return [plan.main.buffers[p.tensor.buffer].kind for p in plan.main.outputs]


@pytest.mark.parametrize("rows", [3, 1, 0])
def test_a_reshaped_result_is_an_output_buffer(rows: int) -> None:
    shape = np.array([0, 2, 3], np.int64)
    nodes = [h.make_node("Relu", ["x"], ["r"]), h.make_node("Reshape", ["r", "s"], ["y"])]
    engine = dovetail.build(model(nodes, ["y"], s=shape), tune=False)
    assert kinds(engine.plan) == ["output"]
    x = RNG.standard_normal((rows, 6)).astype(np.float32)
    given = np.full((rows, 2, 3), np.nan, np.float32)
    engine.run({"x": x}, outputs={"y": given})
    np.testing.assert_array_equal(given, np.maximum(x, 0).reshape(rows, 2, 3))
    np.testing.assert_array_equal(engine.run({"x": x})["y"], given)


def test_a_part_of_a_result_and_two_views_of_one_are_copied() -> None:
    shape, start, end = np.array([0, 2, 3], np.int64), np.array([1], np.int64), np.array([4], np.int64)
    nodes = [
        h.make_node("Relu", ["x"], ["r"]), h.make_node("Reshape", ["r", "s"], ["y"]), h.make_node("Neg", ["x"], ["n"]),
        h.make_node("Slice", ["n", "a", "b", "axis"], ["z"]),
    ]  # fmt: skip
    axis = np.array([1], np.int64)
    engine = dovetail.build(model(nodes, ["y", "r", "z"], s=shape, a=start, b=end, axis=axis), tune=False)
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    found = engine.run({"x": x})
    np.testing.assert_array_equal(found["r"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["y"], np.maximum(x, 0).reshape(4, 2, 3))
    np.testing.assert_array_equal(found["z"], -x[:, 1:4])


def test_every_output_of_a_gpu_is_written_by_the_run_itself() -> None:
    """Reshaped, sliced, shared, passed through and constant outputs: no run needs a copy after it, so all can be captured."""
    pytest.importorskip("triton")
    from dovetail import builder, runtime
    from dovetail.builder.options import BuildOptions
    from dovetail.codegen.triton_host import host_driver
    from dovetail.runtime.cuda.arrays import DeviceArray

    c = RNG.standard_normal((2, 3)).astype(np.float32)
    nodes = [
        h.make_node("Relu", ["x"], ["r"]), h.make_node("Reshape", ["r", "s"], ["y"]), h.make_node("Neg", ["x"], ["n"]),
        h.make_node("Slice", ["n", "a", "b", "axis"], ["z"]),
        h.make_node("Identity", ["x"], ["same"]), h.make_node("Identity", ["c"], ["k"]),
        h.make_node("Exp", ["x"], ["e"]), h.make_node("Reshape", ["e", "s"], ["flat"]),
    ]  # fmt: skip
    one = {"s": np.array([0, 2, 3], np.int64), "a": np.array([1], np.int64), "b": np.array([4], np.int64), "axis": np.array([1], np.int64)}
    names = ["y", "r", "z", "same", "k", "flat"]
    built = builder.build(model(nodes, names, c=c, **one), BuildOptions(device="cuda", target="cuda:sm_90", verify="off"))
    assert kinds(built.plan) == ["output"] * 6
    driver = host_driver(built.kernels)
    context = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver).context()
    for rows in (2, 2, 5):
        x = RNG.standard_normal((rows, 6)).astype(np.float32)
        inputs, wanted = {"x": DeviceArray.of(driver, x)}, {
            "y": np.maximum(x, 0).reshape(rows, 2, 3), "r": np.maximum(x, 0), "z": -x[:, 1:4], "same": x, "k": c,
            "flat": np.exp(x).reshape(rows, 2, 3),
        }  # fmt: skip
        outputs = {n: DeviceArray.of(driver, np.full_like(a, np.nan)) for n, a in wanted.items()}
        binding = context.bind(inputs, outputs)
        for _ in range(2):
            binding.run()
            for name, array in wanted.items():
                np.testing.assert_allclose(outputs[name].numpy(), array, rtol=1e-6, err_msg=name)
