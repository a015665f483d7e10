"""Each rewrite of `simplify` on the smallest model that has it: what is left, that it computes the same, and what must stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.frontend.importer import import_onnx
from dovetail.model.equivalence import check
from dovetail.model.rules.definition import define
from dovetail.model.simplifier import simplify
from dovetail.ops.evaluate import evaluate

Shape = Sequence[int | str]
RNG = np.random.default_rng(3)
N = 3  # what symbols are bound to


def f32(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Shape], outputs: Sequence[str] = ("y",), opset: int = 17,
    domains: Sequence[str] = (), **weights: Any,
) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info(n, TensorProto.BOOL if n == "c" else TensorProto.FLOAT, s) for n, s in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(op: str, inputs: str, output: str = "", **attrs: Any) -> onnx.NodeProto:
    """A node over names with spaces between them; "-" is an absent input."""
    names = ["" if n == "-" else n for n in inputs.split()]
    outputs = ["" if n == "-" else n for n in (output or "y").split()]
    return helper.make_node(op, names, outputs, name=f"{op}_{outputs[0]}", **attrs)


def left(proto: onnx.ModelProto, rtol: float = 1e-5, **options: Any) -> dict[str, int]:
    """The operators that are left, after the comparison with the original."""
    original = dovetail.Model(proto)
    result = simplify(original, **options).model
    symbols = {"N": N, "M": 4}
    rng = np.random.default_rng(0)
    feeds = {}
    for port in original.inputs:
        shape = [d if isinstance(d, int) else symbols[str(d)] for d in port.shape or ()]
        feeds[port.name] = rng.integers(0, 2, shape).astype(bool) if port.dtype.name == "bool" else rng.uniform(-1, 1, shape).astype("f")
    want, got = evaluate(import_onnx(original), feeds), evaluate(import_onnx(result), feeds)
    assert list(want) == list(got)
    for name in want:
        assert want[name].dtype == got[name].dtype
        np.testing.assert_allclose(got[name], want[name], rtol=rtol, atol=rtol)
    return dict(Counter(n.op_type for n in result.proto.graph.node))


IMAGE: Shape = ("N", 4, 8, 8)


@pytest.mark.parametrize(
    "nodes, shape, weights, expected",
    [
        # nothing is done
        ([node("Slice", "x s e", "a"), node("Relu", "a")], IMAGE, {"s": ints(0, 0), "e": ints((1 << 63) - 1, 100)}, {"Relu": 1}),
        ([node("Expand", "x s", "a"), node("Relu", "a")], IMAGE, {"s": ints(1, 1, 8)}, {"Relu": 1}),
        ([node("Tile", "x s", "a"), node("Relu", "a")], IMAGE, {"s": ints(1, 1, 1, 1)}, {"Relu": 1}),
        ([node("Resize", "x - s", "a"), node("Relu", "a")], IMAGE, {"s": np.ones(4, np.float32)}, {"Relu": 1}),
        ([node("Resize", "x - - s", "a"), node("Relu", "a")], (2, 4, 8, 8), {"s": ints(2, 4, 8, 8)}, {"Relu": 1}),
        ([node("Reshape", "x s", "a"), node("Relu", "a")], (2, 4), {"s": ints(2, -1)}, {"Relu": 1}),
        ([node("Flatten", "x", "a"), node("Relu", "a")], ("N", 4), {}, {"Relu": 1}),
        ([node("Add", "x z", "a"), node("Mul", "a o", "b"), node("Relu", "b")], IMAGE,
         {"z": np.zeros((4, 1, 1), np.float32), "o": np.float32(1)}, {"Relu": 1}),
        ([node("Dropout", "x", "a m"), node("Relu", "a")], IMAGE, {}, {"Relu": 1}),
        ([node("Neg", "x", "a"), node("Neg", "a", "b"), node("Relu", "b", "c1"), node("Relu", "c1")], IMAGE, {}, {"Relu": 1}),
        ([node("MaxPool", "x", "a", kernel_shape=[1, 1]), node("Relu", "a")], IMAGE, {}, {"Relu": 1}),
        # something is
        ([node("Expand", "x s", "a"), node("Relu", "a")], (1, 4), {"s": ints(3, 4)}, {"Expand": 1, "Relu": 1}),
        ([node("Expand", "x s", "a"), node("Relu", "a")], (4,), {"s": ints(1, 1)}, {"Expand": 1, "Relu": 1}),
        ([node("Add", "x z", "a"), node("Relu", "a")], (1, 4), {"z": np.zeros((3, 4), np.float32)}, {"Add": 1, "Relu": 1}),
        ([node("Slice", "x s e a t", "b"), node("Relu", "b")], (4,),
         {"s": ints(-1), "e": ints(-100), "a": ints(0), "t": ints(-1)}, {"Slice": 1, "Relu": 1}),
        # chains
        ([node("Reshape", "x s", "a"), node("Reshape", "a t")], ("N", 4, 6), {"s": ints(0, 24), "t": ints(-1, 2, 12)}, {"Reshape": 1}),
        ([node("Reshape", "x s", "a"), node("Flatten", "a", axis=2)], ("N", 4, 6), {"s": ints(0, 2, 2, 6)}, {"Reshape": 1}),
        ([node("Unsqueeze", "x s", "a"), node("Squeeze", "a s", "b"), node("Relu", "b")], ("N", 4), {"s": ints(1)}, {"Relu": 1}),
        ([node("Transpose", "x", "a", perm=[0, 2, 3, 1]), node("Transpose", "a", "b", perm=[0, 3, 1, 2]), node("Relu", "b")], IMAGE, {},
         {"Relu": 1}),
        ([node("Transpose", "x", "a", perm=[0, 2, 3, 1]), node("Transpose", "a", perm=[0, 2, 3, 1])], IMAGE, {}, {"Transpose": 1}),
        ([node("Transpose", "x", "a", perm=[0, 2, 1, 3]), node("Reshape", "a s")], ("N", 1, 4, 6), {"s": ints(-1, 12)}, {"Reshape": 1}),
        ([node("Reshape", "x s", "a"), node("Transpose", "a", "b", perm=[0, 2, 1]), node("Reshape", "b t")], (2, 3, 4, 5),
         {"s": ints(6, 4, 5), "t": ints(2, 3, 5, 4)}, {"Transpose": 1}),
        ([node("Reshape", "x s", "a"), node("Transpose", "a", "b", perm=[0, 2, 1]), node("Reshape", "b t")], (2, 3, 4, 5),
         {"s": ints(6, 4, 5), "t": ints(3, 2, 5, 4)}, {"Reshape": 2, "Transpose": 1}),
        ([node("Cast", "x", "a", to=11), node("Cast", "a", "b", to=1), node("Relu", "b")], IMAGE, {}, {"Relu": 1}),
        ([node("Cast", "x", "a", to=10), node("Cast", "a", "b", to=1), node("Relu", "b")], IMAGE, {}, {"Cast": 2, "Relu": 1}),
        ([node("Slice", "x s e u", "a"), node("Slice", "a s e v")], IMAGE, {"s": ints(1), "e": ints(3), "u": ints(2), "v": ints(-1)},
         {"Slice": 1}),
        ([node("Slice", "x s e u", "a"), node("Slice", "a s e u")], IMAGE, {"s": ints(1), "e": ints(7), "u": ints(2)}, {"Slice": 2}),
        ([node("Concat", "x x", "a", axis=1), node("Relu", "x", "b"), node("Concat", "a b", axis=-3)], IMAGE, {},
         {"Concat": 1, "Relu": 1}),
        ([node("Pad", "x p", "a"), node("Pad", "a p")], ("N", 4), {"p": ints(0, 1, 0, 2)}, {"Pad": 1}),
        ([node("Expand", "x s", "a"), node("Add", "a w")], (1, 4), {"s": ints(3, 4), "w": f32(3, 4)}, {"Add": 1}),
        # into weights
        ([node("Pad", "x p", "a"), node("Conv", "a w")], IMAGE, {"p": ints(0, 0, 1, 0, 0, 0, 2, 1), "w": f32(2, 4, 3, 3)}, {"Conv": 1}),
        ([node("Pad", "x p", "a"), node("Conv", "a w")], IMAGE, {"p": ints(0, 1, 1, 0, 0, 0, 0, 0), "w": f32(2, 5, 3, 3)},
         {"Pad": 1, "Conv": 1}),
        ([node("Pad", "x p v", "a"), node("Conv", "a w")], IMAGE,
         {"p": ints(0, 0, 1, 0, 0, 0, 0, 0), "v": np.float32(1), "w": f32(2, 4, 3, 3)}, {"Pad": 1, "Conv": 1}),
        ([node("Pad", "x p", "a"), node("AveragePool", "a", kernel_shape=[3, 3])], IMAGE, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1)},
         {"AveragePool": 1}),
        ([node("Conv", "x w", "a"), node("Mul", "a m", "b"), node("Add", "s b", "c1"), node("Sub", "c1 m", "d"), node("Div", "d s")], IMAGE,
         {"w": f32(6, 4, 1, 1), "m": f32(6, 1, 1), "s": np.float32(2)}, {"Conv": 1}),
        ([node("Conv", "x w", "a"), node("Mul", "a m")], IMAGE, {"w": f32(8, 4, 1, 1), "m": f32(8)}, {"Conv": 1, "Mul": 1}),
        ([node("Conv", "x w b", "a", group=2), node("BatchNormalization", "a s b b s")], IMAGE,
         {"w": f32(6, 2, 3, 3), "b": f32(6), "s": f32(6)}, {"Conv": 1}),
        ([node("ConvTranspose", "x w b", "a", group=2), node("BatchNormalization", "a s b b s")], IMAGE,
         {"w": f32(4, 3, 3, 3), "b": f32(6), "s": f32(6)}, {"ConvTranspose": 1}),
        ([node("ConvTranspose", "x w", "a"), node("Mul", "a m")], IMAGE,
         {"w": f32(4, 3, 2, 2), "m": f32(1, 3, 1, 1)}, {"ConvTranspose": 1}),
        ([node("Gemm", "x w b", "a", transB=1, alpha=2.0, beta=0.5), node("BatchNormalization", "a s b b s")], ("N", 4),
         {"w": f32(6, 4), "b": f32(6), "s": f32(6)}, {"Gemm": 1}),
        ([node("MatMul", "x w", "a"), node("Add", "b a", "d"), node("Mul", "d b")], ("N", 4), {"w": f32(4, 6), "b": f32(6)}, {"Gemm": 1}),
        ([node("MatMul", "x w", "a"), node("Add", "b a")], ("N", 2, 4), {"w": f32(4, 6), "b": f32(6)}, {"MatMul": 1, "Add": 1}),
        ([node("MatMul", "x w", "a"), node("Add", "b a")], (1, 4), {"w": f32(4, 6), "b": f32(3, 6)}, {"MatMul": 1, "Add": 1}),
        ([node("Transpose", "x", "a", perm=[1, 0]), node("Gemm", "a w")], (4, 2), {"w": f32(4, 6)}, {"Gemm": 1}),
        # shapes
        ([node("Shape", "x", "a"), node("Gather", "a i", "b"), node("Concat", "b r", "c1", axis=0), node("Reshape", "x c1")], ("N", 4, 6),
         {"i": ints(0), "r": ints(24)}, {"Reshape": 1}),
        ([node("Shape", "x", "a"), node("Expand", "w a", "b"), node("Add", "x b")], ("N", 4), {"w": f32(1, 4)}, {"Add": 1}),
        ([node("Shape", "x", "a"), node("Slice", "a o t", "e"), node("Slice", "x z e o", "b"), node("Relu", "b")], ("N", 4),
         {"o": ints(1), "t": ints(2), "z": ints(0)}, {"Relu": 1}),
        ([node("Exp", "x", "a"), node("Shape", "a", "b"), node("Shape", "x", "d"), node("Mul", "b d")], ("N", "M"), {},
         {"Shape": 1, "Mul": 1}),
        # duplicates
        ([node("Exp", "x", "a"), node("Exp", "x", "b"), node("Sub", "a b")], IMAGE, {}, {"Exp": 1, "Sub": 1}),
        ([node("MatMul", "x v", "a"), node("MatMul", "x w", "b"), node("Sub", "a b")], ("N", 4), {"v": np.eye(4, 5), "w": np.eye(4, 5)},
         None),
    ],
)  # fmt: skip
def test_rewrites(nodes: list, shape: Shape, weights: dict, expected: dict[str, int] | None) -> None:
    if expected is None:  # of fp64 weights, which inputs here are not
        weights, expected = {n: w.astype(np.float32) for n, w in weights.items()}, {"MatMul": 1, "Sub": 1}
    assert left(model(nodes, {"x": shape}, **weights)) == expected


def branch(name: str, *nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.GraphProto:
    arrays = [numpy_helper.from_array(v, n) for n, v in weights.items()]
    return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)], arrays)


def test_branches_are_simplified_and_see_the_constants_around_them() -> None:
    then = branch("then", node("Mul", "k k", "t"), node("Identity", "x", "i"), node("Mul", "i t", "then_y"))
    other = branch("else", node("Identity", "x", "j"), node("Identity", "j", "else_y"))
    proto = model([node("If", "c", then_branch=then, else_branch=other)], {"x": (2, 3), "c": ()}, k=np.float32(3))
    assert left(proto) == {"If": 1}
    result = simplify(dovetail.Model(proto)).model.proto
    inner = {a.name: [n.op_type for n in a.g.node] for a in result.graph.node[0].attribute}
    assert inner == {"then_branch": ["Mul"], "else_branch": ["Identity"]}  # a branch has to compute what it returns


@pytest.mark.parametrize("taken", [True, False])
def test_an_if_with_a_constant_condition_becomes_its_branch(taken: bool) -> None:
    # Both branches and the graph around them use the same names inside.
    then = branch("then", node("Exp", "x", "t"), node("Add", "t w", "then_y"), w=f32(3))
    other = branch("else", node("Neg", "x", "t"), node("Sub", "t w", "else_y"), w=f32(3))
    nodes = [node("Not", "k", "c1"), node("If", "c1", "z", then_branch=then, else_branch=other), node("Relu", "z", "t"), node("Tanh", "t")]
    expected = {"Exp": 1, "Add": 1} if taken else {"Neg": 1, "Sub": 1}
    assert left(model(nodes, {"x": (2, 3)}, k=np.array(not taken))) == expected | {"Relu": 1, "Tanh": 1}


def test_loop_bodies_are_simplified() -> None:
    body = helper.make_graph(
        [node("Identity", "cond", "go"), node("Mul", "two two", "four"), node("Identity", "v", "i"), node("Add", "i four", "w")],
        "body",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("n", 7, []), ("cond", 9, []), ("v", 1, [2]))],
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (("go", 9, []), ("w", 1, [2]))],
    )
    proto = model([node("Loop", "trips - x", body=body)], {"x": (2,)}, trips=np.array(3), two=np.float32(2))
    assert left(proto) == {"Loop": 1}
    result = simplify(dovetail.Model(proto)).model.proto
    assert [n.op_type for n in result.graph.node[0].attribute[0].g.node] == ["Identity", "Add"]


def test_functions_of_the_model_become_their_bodies() -> None:
    body = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Add", ["b", "b"], ["c"])]
    proto = model([node("Twice", "x", "t", domain="own"), node("MatMul", "t w")], {"x": ("N", 40)}, domains=["own"], w=f32(40, 40))
    proto.functions.append(helper.make_function("own", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 17)]))
    assert left(proto) == {"Add": 1, "MatMul": 1}
    assert left(proto, skip=["inline_functions"]) == {"Twice": 1, "MatMul": 1}


def test_operators_of_other_domains_are_left_alone() -> None:
    nodes = [node(op, "x", name, domain="own") for op, name in (("Identity", "a"), ("Mystery", "b"), ("Mystery", "d"))]
    nodes += [node("Identity", "b", "e"), node("Constant", "", "k", value_float=2.0), node("Mul", "k k", "l"), node("Sum", "a e d l")]
    proto = model(nodes, {"x": ("N", 4)}, domains=["own"])
    result = simplify(dovetail.Model(proto)).model.proto
    assert [n.op_type for n in result.graph.node] == ["Identity", "Mystery", "Mystery", "Sum"]
    assert [t.name for t in result.graph.initializer] == ["l"]


def test_quantised_graphs_keep_their_pairs() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("DequantizeLinear", "w s z", "e"),
        node("Conv", "d e", "a"), node("QuantizeLinear", "a s z", "b"), node("DequantizeLinear", "b s z"),
    ]  # fmt: skip
    weights = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((2, 4, 1, 1), np.int8)}
    assert left(model(nodes, {"x": IMAGE}, **weights)) == {"QuantizeLinear": 2, "DequantizeLinear": 3, "Conv": 1}


def test_each_reader_keeps_a_dequantisation_of_its_own() -> None:
    """Runtimes fuse a layer with the DequantizeLinear ahead of it only where nothing else reads that one."""
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), node("DequantizeLinear", "q s z", "e")]
    nodes += [node("Relu", "d", "f"), node("Neg", "e", "g"), node("Add", "f g")]
    weights = {"s": np.float32(0.1), "z": np.int8(0)}
    assert left(model(nodes, {"x": IMAGE}, **weights))["DequantizeLinear"] == 2


@pytest.mark.parametrize("opset", [6, 7, 9, 10, 11, 13, 18, 21, 23, 26])
def test_all_opsets(opset: int) -> None:
    """What is an attribute in one opset is an input in another."""
    nodes, weights = [node("Identity", "x", "a"), node("Dropout", "a", "b", **({"is_test": 1} if opset < 7 else {}))], {}
    if opset < 11:
        nodes.append(node("Pad", "b", "d", pads=[0, 0, 1, 1, 0, 0, 1, 1]))
    else:
        nodes.append(node("Pad", "b p", "d"))
        weights["p"] = ints(0, 0, 1, 1, 0, 0, 1, 1)
    nodes.append(node("Conv", "d w", "e"))
    if opset < 10:
        nodes.append(node("Slice", "e", "f", starts=[0], ends=[9999], axes=[1]))
    else:
        nodes.append(node("Slice", "e s t u", "f"))
        weights |= {"s": ints(0), "t": ints(9999), "u": ints(1)}
    nodes.append(node("BatchNormalization", "f m b1 b1 m", **({"is_test": 1} if opset < 7 else {})))
    nodes[-1].output[:] = ["g"]
    if opset < 13:
        nodes += [node("Unsqueeze", "g", "h", axes=[0]), node("Squeeze", "h", "i", axes=[0])]
    else:
        nodes += [node("Unsqueeze", "g v", "h"), node("Squeeze", "h v", "i")]
        weights["v"] = ints(0)
    nodes.append(node("Relu", "i"))
    weights |= {"w": f32(3, 4, 3, 3), "m": f32(3), "b1": f32(3)}
    assert left(model(nodes, {"x": (2, 4, 8, 8)}, opset=opset, **weights)) == {"Conv": 1, "Relu": 1}


def test_what_is_unknown_stays_symbolic() -> None:
    """Two sizes that only differ in name may be different: neither Expand may go."""
    nodes = [node("Shape", "z", "s"), node("Expand", "x s", "a"), node("Relu", "a")]
    assert left(model(nodes, {"x": (1, "M"), "z": ("N", "M")})) == {"Shape": 1, "Expand": 1, "Relu": 1}


def test_initial_states_of_zeros_are_left_out() -> None:
    weights = {"w": f32(1, 20, 4), "r": f32(1, 20, 5), "one": ints(1), "five": ints(5), "i": ints(1), "o": np.zeros((1, 1, 5), "f")}
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s i", "n"), node("Concat", "one n five", "t", axis=0), node("ConstantOfShape", "t", "h"),
        node("LSTM", "x w r - - h h", "a", hidden_size=5),
    ]  # fmt: skip
    proto = model(nodes, {"x": (6, "N", 4)}, ["a"], **weights)
    assert left(proto) == {"LSTM": 1}
    proto.graph.node[3].attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.ones(1, np.float32))))
    assert left(proto)["ConstantOfShape"] == 1


def test_equal_weights_are_shared_unless_they_are_merely_untrained() -> None:
    nodes = [node("Mul", "x v", "a"), node("Mul", "a w", "b"), node("Add", "b r", "d"), node("Add", "d s", "e"), node("Mul", "e t")]
    trained, ones = f32(4, 4), np.full((4, 4), 2, np.float32)
    proto = model(nodes, {"x": ("N", 4, 4)}, v=trained, w=trained, r=ones, s=ones, t=ones)
    result = simplify(dovetail.Model(proto)).model
    assert list(result.weights) == ["v", "r", "s", "t"]


def test_inputs_that_nothing_reads_stay() -> None:
    result = simplify(dovetail.Model(model([node("Relu", "x")], {"x": (2,), "unused": (3,)}))).model
    assert [b.name for b in result.inputs] == ["x", "unused"]


def test_changes_are_said_with_their_place() -> None:
    nodes = [node("Identity", "x", "a"), node("Transpose", "a", "b", perm=[1, 0]), node("Transpose", "b", perm=[1, 0])]
    nodes.append(node("Relu", "y", "z"))
    made = simplify(dovetail.Model(model(nodes, {"x": (2, 3)}, ["z"])))
    said = [f"{a.rewrite}: {a.place}" for a in made.applied]
    assert said[0] == "remove_identities: Identity_a (Identity)"
    assert "merge_transposes: Transpose_y (Transpose) after Transpose_b (Transpose)" in said
    assert made.counts == {"remove_identities": 2, "merge_transposes": 1}


def gelu(*, tanh: bool) -> list[onnx.NodeProto]:
    if tanh:
        nodes = [node("Pow", "x three", "p"), node("Mul", "p k", "q"), node("Add", "x q", "r"), node("Mul", "r t", "s")]
        nodes.append(node("Tanh", "s", "e"))
    else:
        nodes = [node("Div", "x t", "s"), node("Erf", "s", "e")]
    return [*nodes, node("Add", "e one", "f"), node("Mul", "x f", "g"), node("Mul", "half g")]


@pytest.mark.parametrize("tanh", [False, True])
def test_gelu_is_fused_when_asked_for(tanh: bool) -> None:
    numbers = {"three": 3, "k": 0.044715, "t": 0.7978845608 if tanh else 1.41421356, "one": 1, "half": 0.5}
    weights = {n: np.float32(v) for n, v in numbers.items()}
    proto = model(gelu(tanh=tanh), {"x": IMAGE}, opset=20, **weights)
    assert left(proto, fuse=True) == {"Gelu": 1}
    assert "Gelu" not in left(proto)
    assert "Gelu" not in left(model(gelu(tanh=tanh), {"x": IMAGE}, opset=19, **weights), fuse=True)
    assert "Gelu" not in left(model(gelu(tanh=tanh), {"x": IMAGE}, opset=20, **weights | {"half": np.float32(0.6)}), fuse=True)


@pytest.mark.parametrize("axes, scale, fused", [((-1,), (6,), True), ((1, 2), (4, 6), True), ((1,), (6,), False), ((-1,), (4, 6), False)])
def test_layer_normalization_is_fused_when_asked_for(axes: tuple, scale: tuple, fused: bool) -> None:
    nodes = [
        node("ReduceMean", "x", "m", axes=axes), node("Sub", "x m", "d"),
        node("Pow", "d two", "p"), node("ReduceMean", "p", "v", axes=axes),
        node("Add", "v eps", "a"), node("Sqrt", "a", "r"), node("Div", "d r", "q"), node("Mul", "q s", "t"), node("Add", "t b"),
    ]  # fmt: skip
    proto = model(nodes, {"x": ("N", 4, 6)}, two=np.float32(2), eps=np.float32(1e-3), s=f32(*scale), b=f32(*scale))
    assert (left(proto, fuse=True) == {"LayerNormalization": 1}) is fused
    assert "LayerNormalization" not in left(proto)


def test_only_and_skip() -> None:
    proto = model([node("Identity", "x", "a"), node("Exp", "a", "b"), node("Exp", "a", "d"), node("Add", "b d")], {"x": (2,)})
    assert left(proto, only=["merge_duplicates"]) == {"Identity": 1, "Exp": 1, "Add": 1}
    assert left(proto, skip=["merge_duplicates"]) == {"Exp": 2, "Add": 1}
    with pytest.raises(dovetail.UsageError, match=r"simplify: got \['nonsense'\], expected names of rewrites"):
        simplify(dovetail.Model(proto), skip=["nonsense"])


def test_rewrite_rules_see_what_was_exported_and_what_is_left() -> None:
    def squared(op: Any, x: Any) -> Any:
        return op.Mul(x, x)

    def power(op: Any, x: Any) -> Any:
        return op.Pow(x, 2.0)

    rule = define([squared], power, "square")
    # As exported x has two names: the rule fits once the Identity is gone.
    proto = model([node("Identity", "x", "a"), node("Mul", "x a", "b"), node("Exp", "b")], {"x": ("N", 4)})
    assert left(proto) == {"Mul": 1, "Exp": 1}
    assert left(proto, rules=[rule]) == {"Pow": 1, "Exp": 1}
    made = simplify(dovetail.Model(proto), rules=[rule])
    assert made.counts["rules"] == 1 and made.rules.fired == ("square",)
    assert left(proto, rules=[rule], skip=["rules"]) == {"Mul": 1, "Exp": 1}


def test_what_was_simplified_once_does_not_change_again() -> None:
    nodes = [node("Pad", "x p", "a"), node("Conv", "a w", "b"), node("Mul", "b m", "d"), node("Identity", "d")]
    proto = model(nodes, {"x": IMAGE}, p=ints(0, 0, 1, 1, 0, 0, 1, 1), w=f32(6, 4, 3, 3), m=f32(6, 1, 1))
    once = simplify(dovetail.Model(proto)).model
    again = simplify(once)
    assert not again.applied
    assert again.model.proto == once.proto


def test_half_precision_models_pass_their_check() -> None:
    """A folded weight is rounded anew: by up to half a unit in the last place of its own type."""
    weights = {"w": f32(6, 4, 3, 3), "b": f32(6), "m": f32(6, 1, 1)}
    nodes = [node("Conv", "x w b", "a"), node("BatchNormalization", "a b b b b", "d"), node("Mul", "d m")]
    proto = model(nodes, {"x": (2, 4, 8, 8)}, **{n: v.astype(np.float16) for n, v in weights.items()})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2, 6, 6, 6]))
    result = simplify(dovetail.Model(proto)).model
    assert [n.op_type for n in result.proto.graph.node] == ["Conv"]
    assert 1e-5 < check(proto, result) < 1e-2
    result.weights[result.proto.graph.node[0].input[2]] = np.zeros(6, np.float16)
    with pytest.raises(dovetail.VerificationError):
        check(proto, result)


@pytest.mark.parametrize("first, middle, last", [
    (TensorProto.INT64, TensorProto.DOUBLE, TensorProto.INT64),  # large numbers are rounded on the way
    (TensorProto.INT16, TensorProto.FLOAT, TensorProto.STRING),  # "7.0" is not "7"
])  # fmt: skip
def test_casts_that_show_in_the_result_stay(first: int, middle: int, last: int) -> None:
    proto = model([node("Cast", "x", "a", to=middle), node("Cast", "a", to=last)], {"x": (2,)})
    proto.graph.input[0].type.tensor_type.elem_type = first
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", last, [2]))
    assert len(simplify(dovetail.Model(proto)).model.proto.graph.node) == 2


def test_weights_of_two_bodies_may_have_the_same_names() -> None:
    def body(name: str, **weights: np.ndarray) -> onnx.GraphProto:
        nodes = [node("Add", "x w", f"{name}_a"), node("Mul", f"{name}_a v", f"{name}_y")]
        tensors = [numpy_helper.from_array(v, n) for n, v in weights.items()]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [4])], tensors)

    one, other = f32(4), f32(4)
    for then, otherwise in (((one, other), (one, one)), ((one, one), (one, other))):
        bodies = {"then_branch": body("t", w=then[0], v=then[1]), "else_branch": body("e", w=otherwise[0], v=otherwise[1])}
        proto = model([node("If", "c", **bodies)], {"x": (4,), "c": ()})
        result = simplify(dovetail.Model(proto))
        assert result.counts == {"merge_weights": 1}
        for taken in (True, False):
            feeds = {"x": f32(4), "c": np.array(taken)}
            want, got = (evaluate(import_onnx(m), feeds)["y"] for m in (proto, result.model))
            np.testing.assert_array_equal(got, want)


def test_names_that_a_body_takes_for_its_own_values_stay_its_own() -> None:
    kinds = {"i": (TensorProto.INT64, []), "go": (TensorProto.BOOL, []), "k": (TensorProto.FLOAT, [4])}
    inputs = [helper.make_tensor_value_info(n, *kind) for n, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info(n, *kinds[k]) for n, k in (("on", "go"), ("next", "k"))]
    body = helper.make_graph([node("Identity", "go", "on"), node("Add", "k k", "next")], "body", inputs, outputs)
    nodes = [node("Identity", "x", "k"), node("Exp", "k", "e"), node("Loop", "trips - e", body=body)]
    proto = model(nodes, {"x": (4,)}, trips=np.array(3))
    assert [n.op_type for n in simplify(dovetail.Model(proto)).model.proto.graph.node] == ["Exp", "Loop"]
    feeds = {"x": f32(4)}
    want, got = (evaluate(import_onnx(m), feeds)["y"] for m in (proto, simplify(dovetail.Model(proto)).model))
    np.testing.assert_allclose(want, np.exp(feeds["x"]) * 8, rtol=1e-6)
    np.testing.assert_array_equal(got, want)


def test_shapes_are_of_tensors() -> None:
    proto = model([node("Relu", "x")], {"x": ()})
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    (given,) = simplify(dovetail.Model(proto), shapes={"x": ()}).model.inputs
    assert given.shape == ()
    proto.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2]))
    with pytest.raises(dovetail.UsageError, match="'x', expected the name of a tensor"):
        simplify(dovetail.Model(proto), shapes={"x": (3,)})
