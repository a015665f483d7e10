"""Parts of models cut out and replaced, nodes put in and taken out: what comes out computes what was meant."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dovetail
from tests.unit.edit_models import chain, info, inputs, model_of, ops, outputs, run, with_if

X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def test_extract_takes_what_lies_between_and_its_weights() -> None:
    model = chain()
    part = model.extract(["c"], ["y"])
    assert ops(part) == ["Relu", "Mul"] and list(part.weights) == ["s"]
    assert inputs(part) == {"c": "f32[N, 4]"} and outputs(part) == {"y": "f32[N, 4]"}
    c = X @ model.weights["w"] + model.weights["b"]
    assert np.allclose(run(part, c=c)["y"], run(model, x=X)["y"])


def test_extract_without_names_takes_the_models_own() -> None:
    model = chain()
    assert ops(model.extract(outputs=["z"])) == ["MatMul", "Add", "Sigmoid"]
    assert ops(model.extract(["r"], ["y"])) == ["Mul"]
    assert outputs(model.extract(["a"])) == outputs(model)


def test_extract_makes_an_input_of_a_weight() -> None:
    part = chain().extract(["x", "w"], ["a"])
    assert inputs(part) == {"x": "f32[N, 4]", "w": "f32[4, 4]"} and not list(part.weights)


def test_extract_sees_what_bodies_capture() -> None:
    model = with_if()
    part = model.extract(["r", "flag"], ["y"])
    assert inputs(part) == {"r": "f32[N, 4]", "flag": "bool[]"} and list(part.weights) == ["k"]
    assert np.array_equal(run(part, r=X, flag=np.array(True))["y"], X * np.arange(4, dtype=np.float32))
    with pytest.raises(dovetail.UsageError, match=r"still needed is 'x' by way of 'r' → 'y'"):
        model.extract(["flag"], ["y"])


@pytest.mark.parametrize(
    "starts, ends, message",
    [
        (["x"], ["yy"], r"got 'yy' \(did you mean 'y'\?\), expected names of a tensor"),
        (["w"], ["y"], r"do not cut \['y'\] off the rest: still needed is 'x' by way of 'a' → 'c' → 'r' → 'y'"),
        (["c", "x"], ["y"], r"does not depend on 'x'; leave it out"),
        (["y"], ["y"], r"got 'y' as input and as output"),
        (["x"], ["/relu"], r"'/relu' is a node, which makes 'r'; expected a tensor"),
        (["x"], ["w"], r"expected what a node computes; it is an input or a weight"),
        (["x"], [], r"got no names"),
        (["x", "x"], ["y"], r"got 'x' twice"),
    ],
)
def test_extract_refuses(starts: list[str], ends: list[str], message: str) -> None:
    with pytest.raises(dovetail.UsageError, match=message):
        chain().extract(starts, ends)


def unknown_type() -> dovetail.Model:
    nodes = [helper.make_node("Frob", ["x"], ["a"], domain="my"), helper.make_node("Frob", ["a"], ["y"], domain="my")]
    return model_of(nodes, [info("x", ["N", 4])], [info("y", ["N", 4])], my=1)


def test_extract_asks_for_types_that_nothing_tells() -> None:
    with pytest.raises(dovetail.UsageError, match=r"the type of 'a' is not known .* --types a:float:\[N,3\]"):
        unknown_type().extract(["a"], ["y"])
    part = unknown_type().extract(["a"], ["y"], types={"a": ("float16", ("M", 4))})
    assert inputs(part) == {"a": "f16[M, 4]"}


def test_replace_by_an_operator() -> None:
    model = chain()
    result = model.replace(["c"], ["y"], "LeakyRelu", attributes={"alpha": 0.5})
    assert ops(result) == ["MatMul", "Add", "Sigmoid", "LeakyRelu"] and list(result.weights) == ["w", "b"]
    c = X @ model.weights["w"] + model.weights["b"]
    assert np.allclose(run(result, x=X)["y"], np.where(c > 0, c, c / 2))
    assert ops(model) == ["MatMul", "Add", "Relu", "Mul", "Sigmoid"]  # the argument is as it was


def test_replace_keeps_what_others_need() -> None:
    result = chain().replace(["x", "w", "b"], ["y"], "Gemm")
    assert sorted(ops(result)) == ["Add", "Gemm", "MatMul", "Sigmoid"]


def test_replace_by_an_operator_of_another_domain_keeps_the_type() -> None:
    result = chain().replace(["c"], ["r"], "Frob", domain="my.ops", version=3, attributes={"mode": "fast"})
    assert {o.domain: o.version for o in result.proto.opset_import} == {"": 17, "my.ops": 3}
    assert {v.name: v.type.tensor_type.elem_type for v in result.proto.graph.value_info}["r"] == TensorProto.FLOAT
    assert outputs(result)["y"] == "f32[N, 4]"


def test_replace_by_a_model() -> None:
    model = chain()
    nodes = [helper.make_node("Mul", ["p", "w"], ["a"], name="/mul"), helper.make_node("Add", ["a", "q"], ["out"])]
    other = model_of(nodes, [info("p", ["N", 4]), info("q", ["N", 4])], [info("out", ["N", 4])], {"w": np.float32(3.0)})
    result = model.replace(["c", "a"], ["r"], other, names={"q": "c"})
    a = X @ model.weights["w"]
    c = a + model.weights["b"]
    assert np.allclose(run(result, x=X)["y"], (a * 3 + c) * 2, atol=1e-6)
    names = [name for n in result.proto.graph.node for name in n.output]
    assert len(names) == len(set(names)) and {"w", "w_1"} <= set(result.weights)
    prefixed = model.replace(["c", "a"], ["r"], other, names={"q": "c"}, prefix="new/")
    assert "new/w" in list(prefixed.weights)


def test_replace_by_a_model_with_bodies_frees_their_names() -> None:
    model = with_if()
    nested = model.replace(["x", "flag"], ["y"], model)
    names = [name for node in nested.proto.graph.node for name in node.output]
    assert len(names) == len(set(names)) == 2
    for flag in (True, False):
        want = run(model, x=X, flag=np.array(flag))["y"]
        assert np.array_equal(run(nested, x=X, flag=np.array(flag))["y"], want)


def test_replace_by_a_model_refuses_what_does_not_match() -> None:
    def other(opset: int = 17, kind: int = TensorProto.FLOAT, shape: tuple[object, ...] = ("N", 4)) -> dovetail.Model:
        node = helper.make_node("Neg", ["p"], ["q"])
        return model_of([node], [info("p", shape, kind)], [info("q", shape, kind)], opset=opset)

    for guest, message in (
        (other(opset=18), r"the other model is of opset 18, this one of 17"),
        (other(kind=TensorProto.DOUBLE), r"'c' is float\[N,4\], the other model's 'p' is double\[N,4\]"),
        (other(shape=(4,)), r"expected the same rank"),
    ):
        with pytest.raises(dovetail.UsageError, match=message):
            chain().replace(["c"], ["r"], guest)
    with pytest.raises(dovetail.UsageError, match=r"the other model has the inputs \['p'\], got \['c', 'a'\]"):
        chain().replace(["c", "a"], ["r"], other())
    with pytest.raises(dovetail.UsageError, match=r"got 'pp' for 'c', expected an input of the other model; did you mean 'p'"):
        chain().replace(["c"], ["r"], other(), names={"pp": "c"})


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda m: m.replace(["c"], ["r"], "Rellu"), r"got the operator 'Rellu', which ONNX does not have; did you mean .*'Relu'"),
        (lambda m: m.replace(["c"], ["r"], "LeakyRelu", attributes={"alfa": 1.0}), r"has no attribute 'alfa'; did you mean 'alpha'"),
        (lambda m: m.replace(["c"], ["r"], "Cast"), r"Cast needs the attribute 'to'"),
        (lambda m: m.replace(["c"], ["r"], "Gelu"), r"Gelu is not in opset 17, it came with 20; convert-opset first"),
        (lambda m: m.replace(["c"], ["r"], "Cast", attributes={"to": 7}), r"the result is not valid: .*Mul"),
        (lambda m: m.replace(["y"], ["c"], "Relu"), r"do not cut \['c'\] off the rest"),
        (lambda m: m.replace_op("Relu6", "Relu"), r"no node is a Relu6; did you mean 'Relu'"),
        (lambda m: m.replace_op("Mul", "Relu"), r"the result is not valid"),
    ],
)
def test_replace_refuses(edit: Callable[[dovetail.Model], dovetail.Model], message: str) -> None:
    with pytest.raises(dovetail.UsageError, match=message):
        edit(chain())


def test_replace_every_node_of_an_operator_with_mapped_attributes() -> None:
    then = helper.make_graph([helper.make_node("Elu", ["x"], ["m"], alpha=0.5)], "then", [], [info("m", None)])
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "else", [], [info("o", None)])
    nodes = [
        helper.make_node("If", ["flag"], ["a"], then_branch=then, else_branch=other),
        helper.make_node("Elu", ["a"], ["y"], name="/elu", alpha=0.25),
    ]
    model = model_of(nodes, [info("x", [4]), info("flag", [], TensorProto.BOOL)], [info("y", [4])])
    result = model.replace_op("Elu", "Celu", attributes={"alpha": 2.0})
    assert ops(result) == ["If", "Celu"] and result.proto.graph.node[1].name == "/elu"
    custom = model.replace_op("Elu", "MyElu", domain="my", attribute_names={"alpha": "slope"})
    bodies = [a.g for a in custom.proto.graph.node[0].attribute]
    found = [n for g in (custom.proto.graph, *bodies) for n in g.node if n.op_type == "MyElu"]
    assert [[a.name for a in n.attribute] for n in found] == [["slope"], ["slope"]]
    dropped = model.replace_op("Elu", "Relu", attribute_names={"alpha": None})
    assert ops(dropped) == ["If", "Relu"]


def test_insert_on_a_value_an_input_a_weight_and_an_output() -> None:
    model = chain()
    for tensor, factor in (("r", 2.0), ("y", 2.0), ("x", None), ("b", None)):
        result = model.insert(tensor, "Mul", inputs=[np.float32(2.0)])
        assert ops(result).count("Mul") == 2 and outputs(result) == outputs(model)
        got = run(result, x=X)["y"]
        if factor:
            assert np.allclose(got, run(model, x=X)["y"] * factor)
        assert not np.allclose(got, run(model, x=X)["y"])


def test_numbers_take_the_type_that_the_operator_wants() -> None:
    result = chain().insert("r", "Clip", inputs=[0, 6]).insert("c", "Unsqueeze", inputs=[[1]], before=["/sigmoid"])
    assert {n: str(result.weights[n].dtype) for n in result.weights if "clip" in n or "unsqueeze" in n} == {
        "r_clip_1": "float32", "r_clip_2": "float32", "c_unsqueeze_1": "int64",
    }  # fmt: skip
    assert np.allclose(run(result, x=X)["y"], np.clip(run(chain(), x=X)["y"] / 2, 0, 6) * 2)


def test_outputs_get_the_types_that_edits_give_them() -> None:
    model = chain()
    assert outputs(model.insert("y", "Cast", attributes={"to": TensorProto.FLOAT16})) == {"y": "f16[N, 4]", "z": "f32[N, 4]"}
    assert outputs(model.insert("z", "Unsqueeze", inputs=[[1]]))["z"] == "f32[N, 1, 4]"
    assert outputs(model.replace(["c"], ["z"], "Shape"))["z"] == "i64[2]"
    assert outputs(model.replace(["c"], ["z"], "Frob", domain="my"))["z"] == "f32[N, 4]"


def test_insert_before_some_readers_alone() -> None:
    model = chain()
    result = model.insert("c", "Neg", before=["/sig*"])
    assert np.allclose(run(result, x=X)["y"], run(model, x=X)["y"])
    assert np.allclose(run(result, x=X)["z"], 1 - run(model, x=X)["z"], atol=1e-6)
    with pytest.raises(dovetail.UsageError, match=r"Mul '/mul' does not read 'c'; Relu '/relu', Sigmoid '/sigmoid' does"):
        model.insert("c", "Neg", before=["/mul"])
    with pytest.raises(dovetail.UsageError, match=r"no node is called '/reluu'; did you mean '/relu'"):
        model.insert("c", "Neg", before=["/reluu"])


def test_insert_reaches_readers_in_bodies() -> None:
    result = with_if().insert("r", "Neg")
    assert np.array_equal(run(result, x=X, flag=np.array(False))["y"], -np.maximum(X, 0))


def test_insert_a_pair_of_quantisation() -> None:
    model = chain().convert_opset(21)
    result = model.insert_qdq("r", 0.05, 0)
    want = np.clip(np.rint(run(model.mark_output(["r"]), x=X)["r"] / 0.05), -128, 127) * 0.05
    assert np.allclose(run(result, x=X)["y"], want * 2, atol=1e-5)
    for arguments, message in (
        ((-1.0,), "expected a positive number"),
        ((0.1, 200), "expected one that int8 holds"),
        ((0.1, 0, "int3"), "got the element type 'int3'"),
    ):
        with pytest.raises(dovetail.UsageError, match=message):
            model.insert_qdq("r", *arguments)
    assert ops(result.delete(["r_quantized", "r_dequantized"])) == ops(model)


def test_delete_reconnects_what_fits() -> None:
    model = chain()
    result = model.delete(["/relu"])
    c = X @ model.weights["w"] + model.weights["b"]
    assert np.allclose(run(result, x=X)["y"], c * 2)
    assert np.allclose(run(model.delete(op="Sigmoid"), x=X)["z"], c)  # an output keeps its name
    assert np.allclose(run(model.delete(["/matmul", "/add"]), x=X)["y"], np.maximum(X, 0) * 2)
    everything = model.delete(["/*"])
    assert ops(everything) == ["Identity", "Identity"]
    assert np.array_equal(run(everything, x=X)["z"], X)
    assert list(everything.weights) == []


def test_delete_takes_out_what_stands_on_a_weight() -> None:
    nodes = [helper.make_node("Identity", ["w"], ["v"]), helper.make_node("Mul", ["x", "v"], ["y"])]
    model = model_of(nodes, [info("x", [4])], [info("y", [4])], {"w": np.arange(4, dtype=np.float32)})
    result = model.delete(op="Identity")
    assert ops(result) == ["Mul"] and list(result.proto.graph.node[0].input) == ["x", "w"]


def test_delete_says_what_would_be_open() -> None:
    two = model_of([helper.make_node("Add", ["a", "b"], ["c"], name="/add"), helper.make_node("Relu", ["c"], ["y"])],
                   [info("a", [4]), info("b", [4])], [info("y", [4])])  # fmt: skip
    with pytest.raises(dovetail.UsageError, match=r"Add '/add' leaves 'c' open: 'a' and 'b' could both stand for it"):
        two.delete(["/add"])
    shape = model_of([helper.make_node("Cast", ["a"], ["c"], name="/cast", to=7), helper.make_node("Neg", ["c"], ["y"])],
                     [info("a", [4])], [info("y", [4], TensorProto.INT64)])  # fmt: skip
    with pytest.raises(dovetail.UsageError, match=r"'a' is float\[4\], 'c' was int64\[4\]; delete what needs them"):
        shape.delete(["c"])
    with pytest.raises(dovetail.UsageError, match="no node is a Elu"):
        two.delete(op="Elu")
    with pytest.raises(dovetail.UsageError, match="got neither names nor an operator"):
        two.delete()


def test_results_are_models_that_dovetail_builds() -> None:
    model = chain()
    part = model.extract(["c"], ["y"]).insert("r", "Neg").rename({"y": "out"})
    engine = dovetail.build(part, verify="off", tune=False)
    assert np.allclose(engine.run({"c": X})["out"], -np.maximum(X, 0) * 2)


def test_types_that_contradict_are_refused() -> None:
    with pytest.raises(dovetail.UsageError, match=r"Mul '/mul' reads 'r_cast' \(float16\) and 's' \(float\), expected one type"):
        chain().insert("r", "Cast", attributes={"to": onnx.TensorProto.FLOAT16})
