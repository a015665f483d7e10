"""The oracle: symbols, data-dependent shapes, regions, and what it says when something does not fit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dovetail.core import dtypes as d
from dovetail.core.dims import sym
from dovetail.core.errors import BindingError, ExecutionError, ShapeError
from dovetail.frontend.importer import import_onnx
from dovetail.ir.graph import Graph, Module
from dovetail.ir.types import TensorType
from dovetail.ops.evaluate import evaluate, trace

F32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
info = helper.make_tensor_value_info


def _model(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]) -> Module:
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=n) for n in outputs])
    return import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def test_symbols_bind_from_inputs_and_every_value_can_be_had() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("ReduceSum", ["r"], ["y"], keepdims=0),
    ]
    module = _model(nodes, [info("x", F32, ["N", 3])], ["y", "s"])
    for n in (0, 1, 5):
        x = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
        result = evaluate(module, {"x": x}, also=["r"])
        np.testing.assert_allclose(result["y"], np.maximum(x, 0).sum(), rtol=1e-6)
        assert result["s"].tolist() == [n, 3]
        np.testing.assert_array_equal(result["r"], np.maximum(x, 0))
    assert set(trace(module, {"x": x})) >= {v.name for v in module.main.values()}


def test_data_dependent_shapes_bind_fresh_symbols() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["nz"]),
        helper.make_node("Transpose", ["nz"], ["t"]),
        helper.make_node("GatherND", ["x", "t"], ["y"]),
    ]
    module = _model(nodes, [info("x", F32, ["N", "M"])], ["y"])
    x = np.array([[0, 2, 0], [3, 0, 4]], np.float32)
    assert evaluate(module, {"x": x})["y"].tolist() == [2, 3, 4]
    assert evaluate(module, {"x": x * 0})["y"].shape == (0,)


def test_shapes_from_run_time_data() -> None:
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["z"]), helper.make_node("Add", ["z", "x"], ["y"])]
    module = _model(nodes, [info("s", I64, [2]), info("x", F32, [])], ["y"])
    got = evaluate(module, {"s": np.array([2, 3]), "x": np.array(7, np.float32)})["y"]
    assert got.shape == (2, 3) and (got == 7).all()
    with pytest.raises(ShapeError, match=">= 0"):
        evaluate(module, {"s": np.array([2, -3]), "x": np.array(7, np.float32)})


def test_if_takes_one_branch() -> None:
    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(op, ["x"], [f"{op}_y"])], op, [], [info(f"{op}_y", F32, ["N"])])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Neg"), else_branch=branch("Abs"))
    module = _model([node], [info("c", BOOL, []), info("x", F32, ["N"])], ["y"])
    x = np.array([1, -2], np.float32)
    assert evaluate(module, {"c": np.array(True), "x": x})["y"].tolist() == [-1, 2]
    assert evaluate(module, {"c": np.array(False), "x": x})["y"].tolist() == [1, 2]


def test_loop_carries_and_stacks() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("Add", ["a", "x"], ["a_out"]),
            helper.make_node("Identity", ["a_out"], ["step"]),
        ],
        "body",
        [info("i", I64, []), info("go", BOOL, []), info("a", F32, [2])],
        [info("go_out", BOOL, []), info("a_out", F32, [2]), info("step", F32, [2])],
    )
    node = helper.make_node("Loop", ["n", "", "x"], ["last", "all"], body=body)
    module = _model([node], [info("n", I64, []), info("x", F32, [2])], ["last", "all"])
    x = np.array([1, 10], np.float32)
    result = evaluate(module, {"n": np.array(3), "x": x})
    assert result["last"].tolist() == [4, 40]
    assert result["all"].tolist() == [[2, 20], [3, 30], [4, 40]]
    assert evaluate(module, {"n": np.array(0), "x": x})["all"].shape == (0, 2)


def test_fusion_runs_its_body() -> None:
    type_ = TensorType(d.F32, (sym("N"),))
    body = Graph("fusion")
    inner = body.add_input("a", type_)
    body.set_outputs([body.add("Relu", [inner], types=[type_]).output])
    module = Module(Graph("main"))
    x = module.main.add_input("x", type_)
    node = module.main.add("Fusion", [x], {"kind": "pointwise"}, types=[type_], regions=[body], names=["y"])
    module.main.set_outputs([node.output])
    got = evaluate(module, {"x": np.array([-1, 2], np.float32)})["y"]
    assert got.tolist() == [0, 2]


def test_wrong_inputs_are_named() -> None:
    module = _model(
        [helper.make_node("Add", ["x", "z"], ["y"])], [info("x", F32, ["N", 3]), info("z", F32, ["N", 3])], ["y"]
    )
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(BindingError, match="z"):
        evaluate(module, {"x": x})
    with pytest.raises(BindingError, match="expected f32"):
        evaluate(module, {"x": x, "z": x.astype(np.float64)})
    with pytest.raises(ShapeError, match="axis 1, expected 3"):
        evaluate(module, {"x": x, "z": np.zeros((2, 4), np.float32)})
    with pytest.raises(ShapeError, match="axis 0, expected N = 2"):
        evaluate(module, {"x": x, "z": np.zeros((5, 3), np.float32)})
    with pytest.raises(BindingError, match="nowhere"):
        evaluate(module, {"x": x, "z": x}, also=["nowhere"])


def test_a_wrong_inference_is_caught() -> None:
    module = Module(Graph("main"))
    x = module.main.add_input("x", TensorType(d.F32, (2, 3)))
    wrong = module.main.add("ReduceSum", [x], {"axes": (1,), "keepdims": False}, types=[TensorType(d.F32, (3,))])
    module.main.set_outputs([wrong.output])
    with pytest.raises(ShapeError, match="got size 2 on axis 0, expected 3"):
        evaluate(module, {"x": np.zeros((2, 3), np.float32)})


def test_failing_references_say_where() -> None:
    module = Module(Graph("main"))
    x = module.main.add_input("x", TensorType(d.F32, (sym("N"),)))
    y = module.main.add_input("y", TensorType(d.F32, (sym("M"),)))
    node = module.main.add("Add", [x, y], types=[TensorType(d.F32, (sym("N"),))], origin=["my_add"])
    module.main.set_outputs([node.output])
    with pytest.raises(ExecutionError, match="my_add"):
        evaluate(module, {"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)})


def test_constants_behind_shapes_that_depend_on_weights() -> None:
    """NonZero of a weight defines a symbol that is known at import, and so is all that follows."""
    weight = np.array([0, 3, 0, 5], np.float32)
    nodes = [
        helper.make_node("NonZero", ["w"], ["nz"]),
        helper.make_node("Shape", ["nz"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
        helper.make_node("Cast", ["nz"], ["places"], to=F32),
        helper.make_node("Add", ["places", "zeros"], ["sum"]),
        helper.make_node("ReduceMax", ["sum"], ["top"], keepdims=0),
        helper.make_node("Clip", ["x", "", "top"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x", F32, ["N"])], [onnx.ValueInfoProto(name="y")], [onnx.numpy_helper.from_array(weight, "w")]
    )
    module = import_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert "Clip" in {node.op for node in module.main.nodes}, "the bound should have become an attribute"
    assert [guard.weight for guard in module.guards] == ["w"]
    assert evaluate(module, {"x": np.arange(6, dtype=np.float32)})["y"].tolist() == [0, 1, 2, 3, 3, 3]
