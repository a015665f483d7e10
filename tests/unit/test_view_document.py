"""What a report says of an engine: steps, values, work, times, memory."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.api.pages import contents_of_engine, make_document, measure
from dovetail.view.document import SCHEMA

RNG = np.random.default_rng(0)


Shapes = dict[str, list[Any]]


def model(nodes: list[onnx.NodeProto], inputs: Shapes, outputs: Shapes, weights: dict[str, Any]) -> onnx.ModelProto:
    """A model of float tensors."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(w, np.float32), n) for n, w in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def document(source: onnx.ModelProto, run: bool = False, **options: Any) -> dict[str, Any]:
    """The document of an engine that is built by rule."""
    engine = dovetail.build(source, **{"tune": False, "verify": "off", **options})
    measured = measure(engine, whole=False) if run else None
    found = make_document(contents_of_engine(engine), "m", measured)
    json.dumps(found)  # plain data
    assert found["schema"] == SCHEMA
    return found


def two_layers() -> onnx.ModelProto:
    """MatMul, Relu, MatMul, Softmax; the batch is open."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="/a/first"),
        helper.make_node("Relu", ["h"], ["r"], name="/a/relu"),
        helper.make_node("MatMul", ["r", "v"], ["z"], name="/b/second"),
        helper.make_node("Softmax", ["z"], ["y"], name="/b/softmax"),
    ]
    weights = {"w": RNG.standard_normal((32, 64)), "v": RNG.standard_normal((64, 16))}
    return model(nodes, {"x": ["N", 32]}, {"y": ["N", 16]}, weights)


def test_steps_pass_on_values_from_input_to_output() -> None:
    found = document(two_layers())
    values, steps = found["values"], found["steps"]
    first = next(s for s in steps if "/a/first" in s["nodes"])
    assert first["nodes"] == ["/a/first", "/a/relu"]
    assert [values[v]["name"] for v in first["reads"]] == ["x"]
    assert values[first["writes"][0]]["name"] == "r" and values[first["writes"][0]]["shape"] == [1, 64]
    reader = next(s for s in steps if first["writes"][0] in s["reads"])
    assert "/b/second" in reader["nodes"]
    view = found["views"][0]
    assert [n["kind"] for n in view["nodes"]].count("input") == 1 and [n["kind"] for n in view["nodes"]].count("output") == 1
    assert all(e["from"] < e["to"] for e in view["edges"])
    assert len(view["edges"]) == len(view["nodes"]) - 1, "a chain"


def test_arithmetic_is_that_of_the_model_counted_once() -> None:
    found = document(two_layers())
    products = 2 * 32 * 64 + 2 * 64 * 16
    assert found["totals"]["flops"] == products
    assert sum(s["flops"] for s in found["steps"]) == products + 64 + 16, "and one per element of Relu and Softmax"


def test_bytes_are_values_and_weights() -> None:
    first = next(s for s in document(two_layers())["steps"] if "/a/first" in s["nodes"])
    assert first["read"] == 32 * 4 and first["written"] == 64 * 4
    assert first["weight_bytes"] >= 32 * 64 * 4


def test_times_belong_to_steps() -> None:
    found = document(two_layers(), run=True)
    assert all(s["us"] is not None and s["us"] >= 0 for s in found["steps"])
    assert sum(s["share"] for s in found["steps"]) == pytest.approx(1, abs=1e-6)
    assert found["machine"]["gflops"]["f32"] > 0 and found["machine"]["gigabytes"] > 0
    assert all(s["bound"] in ("compute", "memory") and s["roof_us"] > 0 for s in found["steps"])


def test_sizes_are_those_of_the_inputs() -> None:
    engine = dovetail.build(two_layers(), tune=False, verify="off")
    measured = measure(engine, {"x": np.zeros((6, 32), np.float32)}, whole=False)
    found = make_document(contents_of_engine(engine), "m", measured)
    assert found["engine"]["sizes"] == {"N": 6} and found["engine"]["inputs"][0]["shape"] == [6, 32]


def test_a_residual_goes_around_and_memory_holds_it() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Softmax", ["h"], ["s"], name="softmax"),
        helper.make_node("MatMul", ["s", "w"], ["m"], name="second"),
        helper.make_node("Softmax", ["m"], ["t"], name="again"),
        helper.make_node("Add", ["t", "h"], ["y"], name="add"),
    ]
    found = document(model(nodes, {"x": [64, 64]}, {"y": [64, 64]}, {"w": RNG.standard_normal((64, 64))}))
    edges = {(e["from"], e["to"]) for e in found["views"][0]["edges"]}
    boxes = found["views"][0]["nodes"]
    by_node = {name: n for n, box in enumerate(boxes) for s in box.get("steps", ()) for name in found["steps"][s]["nodes"]}
    assert (by_node["first"], by_node["add"]) in edges and (by_node["first"], by_node["softmax"]) in edges
    held = next(b for b in found["memory"]["buffers"] if b["name"].split(", ")[0] == "h")
    writer = next(n for n, s in enumerate(found["steps"]) if "first" in s["nodes"])
    reader = next(n for n, s in enumerate(found["steps"]) if "add" in s["nodes"])
    assert (held["first"], held["last"], held["bytes"]) == (writer, reader, 64 * 64 * 4)
    assert max(b["offset"] + b["bytes"] for b in found["memory"]["buffers"]) <= found["memory"]["total_bytes"]


def test_parts_of_a_concat_each_have_their_maker() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="left"),
        helper.make_node("MatMul", ["x", "v"], ["b"], name="right"),
        helper.make_node("Relu", ["a"], ["ra"], name="left_relu"),
        helper.make_node("Sigmoid", ["b"], ["rb"], name="right_sigmoid"),
        helper.make_node("Concat", ["ra", "rb"], ["c"], name="concat", axis=1),
        helper.make_node("Softmax", ["c"], ["y"], name="softmax"),
    ]
    found = document(model(nodes, {"x": [4, 32]}, {"y": [4, 48]}, {"w": RNG.standard_normal((32, 16)), "v": RNG.standard_normal((32, 32))}))
    steps, values = found["steps"], found["values"]
    reader = next(s for s in steps if "softmax" in s["nodes"])
    makers = {name for v in reader["reads"] for name in steps[values[v]["producer"]]["nodes"]}
    assert {"left", "right"} <= makers or "concat" in makers


def test_levels_of_detail_hold_every_step_once() -> None:
    found = document(two_layers())
    outer = [n for n, s in enumerate(found["steps"]) if s["parent"] < 0]
    for view in found["views"]:
        assert sorted(s for node in view["nodes"] for s in node.get("steps", ())) == outer
    assert {node["label"] for node in found["views"][-1]["nodes"] if node["kind"] == "steps"} == {"a", "b"}


def test_the_body_of_a_loop_is_nested() -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["s", "w"], ["m"], name="inner"), helper.make_node("Tanh", ["m"], ["t"], name="tanh"),
         helper.make_node("Identity", ["c"], ["d"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("t", TensorProto.FLOAT, [4, 8])],
    )  # fmt: skip
    loop_node = helper.make_node("Loop", ["n", "", "x"], ["y"], name="loop", body=body)
    source = model([loop_node], {"x": [4, 8]}, {"y": [4, 8]}, {"w": np.eye(8)})
    source.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT64, []))
    found = document(source, run=True)
    loop = next(n for n, s in enumerate(found["steps"]) if s["kind"] == "control")
    inner = [s for s in found["steps"] if s["parent"] == loop]
    assert any("inner" in s["nodes"] for s in inner) and all(s["depth"] == 1 for s in inner)
    assert len([n for n in found["views"][0]["nodes"] if n["kind"] == "steps"]) == sum(s["parent"] < 0 for s in found["steps"])
