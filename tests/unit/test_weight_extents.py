"""Operators whose extents depend on data, over initializers: extents that are known when the model is read, and guarded."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail

node = helper.make_node
WEIGHTS = {
    "mask": np.array([True, False, True]), "t": np.arange(3, dtype=np.float32),
    "same": np.array([4, 4, 7, 4, 9]), "big": np.ones((2, 3), bool),
    "zero": np.array([0]), "first": np.array([1]), "axis": np.array([1]),
}  # fmt: skip


def run(nodes, x, kind=TensorProto.FLOAT):
    used = {n for each in nodes for n in each.input}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", kind, None)], [numpy_helper.from_array(v, n) for n, v in WEIGHTS.items() if n in used],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    engine = dovetail.build(made, verify="off", tune=False)
    return engine, engine.run({"x": x})["y"]


@pytest.mark.parametrize(
    "nodes, want",
    [
        ([node("NonZero", ["mask"], ["i"]), node("Gather", ["x", "i"], ["y"], axis=1)], lambda x: x[:, [[0, 2]]]),
        ([node("Compress", ["t", "mask"], ["c"]), node("Add", ["c", "one"], ["y"])], lambda x: x[:, :1] + [[0, 2]]),
        (
            [node("Unique", ["same"], ["u", "", "", "n"]), node("Mul", ["u", "n"], ["m"]), node("Cast", ["m"], ["c"], to=1),
             node("Mul", ["c", "x"], ["y"])],
            lambda x: x * [[12, 7, 9]],
        ),
    ],
    ids=["nonzero", "compress", "unique"],
)  # fmt: skip
def test_extents_of_weights_are_known_in_runs(nodes, want):
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    nodes = [node("Slice", ["x", "zero", "first", "axis"], ["one"]), *nodes] if "one" in nodes[-1].input else nodes
    _, got = run(nodes, x)
    np.testing.assert_allclose(got, want(x).astype(np.float32), rtol=1e-6)


def test_what_extents_rest_on_is_guarded():
    engine, got = run(
        [node("NonZero", ["mask"], ["i"]), node("Gather", ["x", "i"], ["y"], axis=1)], np.ones((2, 3), np.float32)
    )
    assert got.shape == (2, 1, 2)
    with pytest.raises(dovetail.RefitError, match="mask"):
        engine.refit({"mask": np.array([True, True, True])})


def test_an_output_of_weights_alone():
    _, got = run([node("NonZero", ["big"], ["y"]), node("Relu", ["x"], ["z"])], np.ones((1, 2), np.float32), TensorProto.INT64)
    np.testing.assert_array_equal(got, np.array(np.nonzero(WEIGHTS["big"])))
