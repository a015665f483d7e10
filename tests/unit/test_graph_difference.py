"""Matching nodes of two graphs, and differences of weights."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail.model import weight_difference as weights_module
from dovetail.model.graph_difference import GraphDifference, NodeView, compare_graphs, model_nodes
from dovetail.model.weight_difference import compare_weights, weight_change


def model(nodes: Sequence[onnx.NodeProto], names: Sequence[str] = ("x", "y")) -> onnx.ModelProto:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in names]
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    return helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], [weight]))


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attributes)


def compared(a: Sequence[onnx.NodeProto], b: Sequence[onnx.NodeProto]) -> GraphDifference:
    return compare_graphs(model_nodes(model(a)), model_nodes(model(b)))


BASE = (node("MatMul", "x w", "h", "fc"), node("LeakyRelu", "h", "r", "act", alpha=0.1), node("Softmax", "r", "y", "out", axis=-1))


def test_equal_graphs() -> None:
    found = compared(BASE, BASE)
    assert found.equal and found.same == 3 and found.json()["operators"] == {}


def test_attributes_that_changed_are_named() -> None:
    found = compared(BASE, (BASE[0], node("LeakyRelu", "h", "r", "act", alpha=0.2), node("Softmax", "r", "y", "out")))
    what = {c.a.label: c.what for c in found.changed}
    assert what["out"] == ("axis -1 -> default",)
    assert what["act"][0].startswith("alpha 0.1") and "0.2" in what["act"][0]
    assert not found.equal and found.same == 1 and not any(c.rewired for c in found.changed)


def test_a_replaced_operator_is_one_change() -> None:
    found = compared(BASE, (BASE[0], node("Relu", "h", "r", "act"), BASE[2]))
    (change,) = found.changed
    assert change.what == ("operator LeakyRelu -> Relu", "alpha 0.10000000149011612 -> default")
    assert found.operators == {"LeakyRelu": (1, 0), "Relu": (0, 1)} and not found.removed and not found.added


def test_added_and_removed_nodes_and_who_reads_something_else_then() -> None:
    longer = (BASE[0], node("Relu", "h", "e", "extra"), node("LeakyRelu", "e", "r", "act", alpha=0.1), BASE[2])
    found = compared(BASE, longer)
    assert [n.label for n in found.added] == ["extra"] and not found.removed
    (change,) = found.changed
    assert change.rewired and change.what == ("input 0 from fc -> from extra",)
    assert [n.label for n in compared(longer, BASE).removed] == ["extra"]


def test_other_names_alone_are_no_difference() -> None:
    middle = node("LeakyRelu", "1", "2", "L_1", alpha=0.1)
    other = (node("MatMul", "in v", "1", "MatMul_0"), middle, node("Softmax", "2", "y", "S_2", axis=-1))
    a, b = model_nodes(model(BASE)), model_nodes(model(other, ("in", "y")))
    found = compare_graphs(a, b, {"x": "in"})
    assert found.equal and found.same == 3
    assert {(x.label, y.label) for x, y in found.renamed} == {("fc", "MatMul_0"), ("act", "L_1"), ("out", "S_2")}
    assert not compare_graphs(a, b, {"x": "x"}).equal


def test_a_node_in_the_middle_is_found_among_other_names() -> None:
    names = [f"n{i}" for i in range(6)]
    chain = [node("Relu" if i % 2 else "Sigmoid", names[i - 1] if i else "x", names[i], f"a{i}") for i in range(6)]
    renamed = [node("Relu" if i % 2 else "Sigmoid", f"m{i - 1}" if i else "x", f"m{i}", f"b{i}") for i in range(3)]
    renamed += [node("Exp", "m2", "m3", "new")]
    renamed += [node("Relu" if i % 2 else "Sigmoid", f"m{i}", f"m{i + 1}", f"b{i}") for i in range(3, 6)]
    found = compare_graphs(model_nodes(model(chain)), model_nodes(model(renamed)))
    assert [n.label for n in found.added] == ["new"] and not found.removed
    assert [c.what for c in found.changed] == [("input 0 from a2 -> from new",)]


def test_two_inputs_swapped_are_seen() -> None:
    a = (node("Relu", "x", "p", "p"), node("Exp", "x", "q", "q"), node("Sub", "p q", "y", "s"))
    (change,) = compared(a, (a[0], a[1], node("Sub", "q p", "y", "s"))).changed
    assert change.rewired and len(change.what) == 2


def test_nodes_of_branches_and_repeated_names() -> None:
    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph([node(op, "x", "b", "inner")], op, [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])

    def whole(op: str) -> list[onnx.NodeProto]:
        return [
            node("Relu", "x", "r", "same"), node("Exp", "r", "c", "same"),
            helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch(op), else_branch=branch("Abs")),
        ]  # fmt: skip

    found = compared(whole("Neg"), whole("Sin"))
    assert [c.what for c in found.changed] == [("operator Neg -> Sin",)] and found.same == 4


def test_many_nodes_take_no_time() -> None:
    a = [NodeView(f"a{i}", f"a{i}", "Relu", {}, (f"a{i - 1}",), (f"a{i}",)) for i in range(5000)]
    b = [NodeView(f"b{i}", f"b{i}", "Relu", {}, (f"b{i - 1}",), (f"b{i}",)) for i in range(5000)]
    assert compare_graphs(a, b).same >= 4999


def test_tensors_in_attributes_are_compared_by_type_and_values() -> None:
    def holding(tensor: onnx.TensorProto) -> tuple[onnx.NodeProto, ...]:
        return node("ConstantOfShape", "x", "c", "k", value=tensor), node("Add", "x c", "y", "add")

    ones = helper.make_tensor("c", TensorProto.FLOAT, [4], [1.0] * 4)
    assert compared(holding(ones), holding(numpy_helper.from_array(np.ones(4, np.float32)))).equal
    bits = numpy_helper.from_array(np.ones(4, np.float32).view(np.int32))
    (change,) = compared(holding(ones), holding(bits)).changed
    assert "float[4]" in change.what[0] and "int32[4]" in change.what[0]


# ---------------------------------------------------------------------- weights
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_distances_of_weights(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "_CHUNK", chunk)
    a = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
    b = a.copy()
    b[1, 4] += 0.5
    change = weight_change("w", a, b)
    assert change is not None and (change.changed, change.size, change.max_abs) == (1, 10, 0.5)
    assert change.relative_l2 == pytest.approx(0.5 / np.linalg.norm(a))
    assert weight_change("w", a, a.copy()) is None


def test_nan_in_the_same_places_is_equal_elsewhere_infinite() -> None:
    a = np.array([np.nan, 1, 2], np.float32)
    assert weight_change("w", a, a.copy()) is None
    moved = weight_change("w", a, np.array([1, np.nan, 2], np.float32))
    assert moved is not None and math.isinf(moved.relative_l2) and moved.changed == 2


def test_large_integers_and_imaginary_parts_count() -> None:
    for a, b in ((np.array([2**60, 1]), np.array([2**60 + 1, 1])), (np.array([1 + 2j, 3]), np.array([1 + 1j, 3]))):
        change = weight_change("w", a, b)
        assert change is not None and change.changed == 1


def test_other_types_have_a_distance_other_shapes_none() -> None:
    a = np.array([1.0, 1 / 3], np.float32)
    half = a.astype(np.float16)
    found = compare_weights({"w": a, "v": a}, {"w": half, "v": a.reshape(1, 2)})
    assert found.retyped["v"] == ("float32[2]", "float32[1, 2]", None)
    distance = found.retyped["w"][2]
    assert distance == pytest.approx(np.linalg.norm(half.astype(np.float64) - a) / np.linalg.norm(a), rel=1e-6)
    assert found.json()["retyped"]["w"][2] == distance


def test_names_types_and_values() -> None:
    ones = np.ones((2, 2), np.float32)
    found = compare_weights(
        {"same": ones, "moved": ones, "wide": ones, "gone": ones, "hashed": ones},
        {"same": ones.copy(), "moved": ones * 2, "wide": ones.astype(np.float16), "new": ones, "hashed": ones},
        equal=["hashed"],
    )
    assert (found.removed, found.added, found.same) == (("gone",), ("new",), 2)
    assert found.retyped == {"wide": ("float32[2, 2]", "float16[2, 2]", 0.0)} and [c.name for c in found.changed] == ["moved"]
    assert found.changed[0].relative_l2 == 1 and not found.equal
