"""Concatenations of values of a run with weights, which lie in a run's memory only once they are copied there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper as h
from onnx import numpy_helper as nh

import dovetail

RNG = np.random.default_rng(7)


def model(axis: int, shapes: list[tuple[int, ...]], batch: int | str = 1) -> onnx.ModelProto:
    """y = k * k, k = Concat(c0, Relu(x), c1, c0), with c0 and c1 as initializers."""
    first, image, last = shapes
    weights = [nh.from_array(RNG.standard_normal(s).astype(np.float32), n) for n, s in (("c0", first), ("c1", last))]
    nodes = [
        h.make_node("Relu", ["x"], ["r"]),
        h.make_node("Concat", ["c0", "r", "c1", "c0"], ["k"], axis=axis),
        h.make_node("Mul", ["k", "k"], ["y"]),
    ]  # fmt: skip
    x = h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, *image[1:]])
    y = h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    return h.make_model(h.make_graph(nodes, "g", [x], [y], weights), opset_imports=[h.make_opsetid("", 17)], ir_version=9)


def expected(proto: onnx.ModelProto, x: np.ndarray, axis: int, **changed: np.ndarray) -> np.ndarray:
    c = {w.name: nh.to_array(w) for w in proto.graph.initializer} | changed
    return np.concatenate([c["c0"], np.maximum(x, 0), c["c1"], c["c0"]], axis) ** 2


@pytest.mark.parametrize(
    ("axis", "shapes"),
    [
        (1, [(1, 1, 6), (1, 3, 6), (1, 2, 6)]),
        (-1, [(2, 3, 1), (2, 3, 5), (2, 3, 7)]),
        (0, [(1, 4), (3, 4), (2, 4)]),
        (1, [(1, 3, 5, 5), (1, 8, 5, 5), (1, 1, 5, 5)]),
        (1, [(2, 0, 3), (2, 3, 3), (2, 1, 3)]),
    ],
)
def test_weights_beside_values_of_the_run(axis: int, shapes: list[tuple[int, ...]]) -> None:
    proto = model(axis, shapes, shapes[1][0])
    engine = dovetail.build(proto, tune=False)
    for _ in range(2):  # memory is reused from run to run
        x = RNG.standard_normal(shapes[1]).astype(np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], expected(proto, x, axis))
    changed = RNG.standard_normal(shapes[0]).astype(np.float32)
    engine.refit({"c0": changed})
    np.testing.assert_array_equal(engine.run({"x": x})["y"], expected(proto, x, axis, c0=changed))


def test_the_number_of_rows_is_known_at_run_time() -> None:
    proto = model(0, [(1, 4), (3, 4), (2, 4)], "N")
    engine = dovetail.build(proto, tune=False)
    for rows in (1, 5, 0, 17):
        x = RNG.standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], expected(proto, x, 0))
