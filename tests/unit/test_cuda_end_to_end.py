"""From ONNX to results on a driver whose kernels Triton's interpreter runs: plan, kernels, memory, graphs and weights together."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail import builder, runtime
from dovetail.builder.options import BuildOptions
from dovetail.engine.plan import ControlSegment, HostSegment, NativeSegment
from dovetail.runtime.cuda.arrays import DeviceArray

pytest.importorskip("triton")

RNG = np.random.default_rng(0)


def model():
    """A product with its epilogue, a softmax, and a step whose extent depends on data: softmax(relu(x w + b)), its large entries."""
    w, b = (RNG.standard_normal(s).astype(np.float32) for s in ((24, 16), (16,)))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Softmax", ["r"], ["s"], axis=-1), helper.make_node("Greater", ["s", "limit"], ["g"]),
        helper.make_node("NonZero", ["g"], ["where"]), helper.make_node("Cast", ["where"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "c"], ["squares"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["N", 24])],
        [value("s", TensorProto.FLOAT, ["N", 16]), value("squares", TensorProto.FLOAT, [2, "K"])],
        [numpy_helper.from_array(a, n) for n, a in (("w", w), ("b", b), ("limit", np.float32(0.1)))],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made, w, b


def rows():
    """What exporters write after attention (heads merged, axes swapped, a flat product, all of it undone, the residual), and windows."""
    w, b, v = (RNG.standard_normal(s).astype(np.float32) for s in ((8, 8), (8,), (8, 16)))
    shapes = {"flat": (-1, 8), "rows": (5, -1, 8), "split": (-1, 2, 2, 2, 3, 8), "merged": (-1, 6, 8)}
    make = helper.make_node
    nodes = [
        make("Relu", ["x"], ["a"]), make("Transpose", ["a"], ["t"], perm=[2, 0, 1, 3]),
        make("Reshape", ["t", "flat"], ["f"]), make("Gemm", ["f", "w", "b"], ["g"]),
        make("Reshape", ["g", "rows"], ["q"]), make("Transpose", ["q"], ["u"], perm=[1, 0, 2]), make("Add", ["u", "r"], ["y"]),
        make("Reshape", ["image", "split"], ["p"]), make("Transpose", ["p"], ["o"], perm=[0, 1, 3, 2, 4, 5]),
        make("Reshape", ["o", "merged"], ["m"]), make("MatMul", ["m", "v"], ["z"]),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    inputs = {"x": ["N", 2, 5, 4], "r": ["N", 5, 8], "image": ["N", 4, 6, 8]}
    graph = helper.make_graph(
        nodes, "g", [value(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [value("y", TensorProto.FLOAT, ["N", 5, 8]), value("z", TensorProto.FLOAT, ["M", 6, 16])],
        [numpy_helper.from_array(a, n) for n, a in (("w", w), ("b", b), ("v", v))]
        + [numpy_helper.from_array(np.array(s), n) for n, s in shapes.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made, w, b, v


def test_rows_move_within_the_kernels_around_a_product():
    from dovetail.codegen.triton_host import host_driver

    onnx_model, w, b, v = rows()
    built = builder.build(onnx_model, BuildOptions(device="cuda", target="cuda:sm_90", verify="off"))
    assert [len(s.steps) for s in built.plan.main.segments if isinstance(s, NativeSegment)] == [3]
    engine = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=host_driver(built.kernels))
    context = engine.context()
    for n in (3, 1, 0):
        x, r, image = (RNG.standard_normal(s).astype(np.float32) for s in ((n, 2, 5, 4), (n, 5, 8), (n, 4, 6, 8)))
        found = context.run({"x": x, "r": r, "image": image})
        np.testing.assert_allclose(found["y"], np.maximum(x, 0).transpose(0, 2, 1, 3).reshape(n, 5, 8) @ w + b + r, atol=1e-5)
        windows = image.reshape(n, 2, 2, 2, 3, 8).transpose(0, 1, 3, 2, 4, 5).reshape(4 * n, 6, 8)
        np.testing.assert_allclose(found["z"], windows @ v, atol=1e-5)


def reference(x, w, b):
    a = np.maximum(x @ w + b, 0)
    s = np.exp(a - a.max(-1, keepdims=True))
    s /= s.sum(-1, keepdims=True)
    return s, np.square(np.array(np.nonzero(s > 0.1), np.float32))


def test_a_model_builds_and_runs():
    from dovetail.codegen.triton_host import host_driver

    onnx_model, w, b = model()
    built = builder.build(onnx_model, BuildOptions(device="cuda", target="cuda:sm_90"))
    kinds = {type(segment) for segment in built.plan.main.segments}
    assert kinds == {NativeSegment, HostSegment} and ControlSegment not in kinds
    driver = host_driver(built.kernels)
    engine = runtime.make(built.plan, [built.binary], None, built.module.weights, None, None, driver=driver)
    context = engine.context()
    for n in (5, 5, 5, 1, 0):
        x = RNG.standard_normal((n, 24)).astype(np.float32)
        s, squares = reference(x, w, b) if n else (np.empty((0, 16)), np.empty((2, 0)))
        found = context.run({"x": x})
        np.testing.assert_allclose(found["s"], s, atol=1e-6)
        np.testing.assert_array_equal(found["squares"], squares)
        if n:
            found = context.run({"x": DeviceArray.of(driver, x)})
            np.testing.assert_allclose(found["s"].numpy(), s, atol=1e-6)
            np.testing.assert_array_equal(found["squares"].numpy(), squares)
    before = context.run({"x": x})
    engine.set_weights({"w": 2 * w})
    x = RNG.standard_normal((3, 24)).astype(np.float32)
    np.testing.assert_allclose(context.run({"x": x})["s"], reference(x, 2 * w, b)[0], atol=1e-6)
    engine.set_weights({"w": w})
    np.testing.assert_array_equal(before["s"].shape, (0, 16))
    np.testing.assert_allclose(context.run({"x": x})["s"], reference(x, w, b)[0], atol=1e-6)
