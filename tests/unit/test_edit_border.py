"""Names, shapes, types, layouts, batch, opsets, and what comes in and goes out of a model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.model.edit import checked, rebatch
from dovetail.model.edit.dtypes import wide_weights
from tests.unit.edit_models import chain, info, inputs, model_of, ops, outputs, run, with_if

X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def image_model(batch: Any = "N") -> dovetail.Model:
    """A convolution and a classifier that flattens by a Reshape to constant sizes where the batch is a number."""
    rng = np.random.default_rng(0)
    weights = {
        "k": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "fc": rng.standard_normal((8 * 16, 5)).astype(np.float32),
        "flat": np.array([batch if isinstance(batch, int) else 0, 128], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="/conv", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "flat"], ["f"], name="/flatten"),
        helper.make_node("MatMul", ["f", "fc"], ["y"], name="/fc"),
    ]
    return model_of(nodes, [info("x", [batch, 3, 4, 4])], [info("y", [batch, 5]), info("c", [batch, 8, 4, 4])], weights)


# ---------------------------------------------------------------------- names
def test_rename_everything() -> None:
    model = chain()
    result = model.rename({"x": "image", "w": "weight", "c": "sum", "y": "scores"}, nodes={"/add": "/bias"}, dims={"N": "batch"})
    assert inputs(result) == {"image": "f32[batch, 4]"} and outputs(result) == {"scores": "f32[batch, 4]", "z": "f32[batch, 4]"}
    assert list(result.weights) == ["weight", "b", "s"] and result.proto.graph.node[1].name == "/bias"
    assert np.array_equal(run(result, image=X)["scores"], run(model, x=X)["y"])
    assert checked.same(model, result, "rename", border=checked.renamed({"x": "image"})) == 0


def test_rename_by_expression_and_prefix() -> None:
    result = chain().rename(pattern=(r"^/(\w)", r"net.\1"), of=["nodes"])
    assert [n.name for n in result.proto.graph.node] == ["net.matmul", "net.add", "net.relu", "net.mul", "net.sigmoid"]
    assert list(chain().rename(prefix="model.", of=["weights"]).weights) == ["model.w", "model.b", "model.s"]
    inner = chain().rename(prefix="v/", of=["intermediate"])
    assert [n.output[0] for n in inner.proto.graph.node] == ["v/a", "v/c", "v/r", "y", "z"]


def test_rename_reaches_bodies() -> None:
    result = with_if().rename({"r": "relu", "k": "factors", "m": "product"})
    assert np.array_equal(run(result, x=X, flag=np.array(True))["y"], np.maximum(X, 0) * np.arange(4, dtype=np.float32))


@pytest.mark.parametrize(
    "names, message",
    [
        ({"tensors": {"x": "y"}}, r"'x' and 'y' would both be the tensor 'y'"),
        ({"tensors": {"xx": "y"}}, r"got 'xx' \(did you mean 'x'\?\)"),
        ({"tensors": {"x": ""}}, r"got an empty name for 'x'"),
        ({"nodes": {"/relu": "/add"}}, r"would both be the node '/add'"),
        ({"dims": {"M": "K"}}, r"got 'M' \(there are 'N'\)"),
        ({"pattern": ("(", "x")}, r"got the expression '\(' .* none of Python's re"),
        ({"pattern": ("^.+$", "same"), "of": ["tensors"]}, r"would both be the tensor 'same'"),
        ({"pattern": ("nowhere", "x")}, r"nothing to rename"),
        ({}, r"nothing to rename"),
        ({"prefix": "p", "of": ["weight"]}, r"got 'weight' \(did you mean 'weights'\?\)"),
    ],
)
def test_rename_refuses(names: dict[str, Any], message: str) -> None:
    with pytest.raises(dovetail.UsageError, match=message):
        chain().rename(**names)


# ---------------------------------------------------------------------- shapes
def test_set_shape_is_followed_through_the_model() -> None:
    result = image_model().set_shape({"x": (7, 3, 4, 4)})
    assert outputs(result) == {"y": "f32[7, 5]", "c": "f32[7, 8, 4, 4]"}
    assert outputs(result.set_shape({"x": ("B", 3, 4, 4)}))["c"] == "f32[B, 8, 4, 4]"


@pytest.mark.parametrize(
    "shapes, message",
    [
        ({"x": (1, 4, 4, 4)}, r"the result is not valid: .*conv"),
        ({"x": (1, 3, 4)}, r"got 3 dimensions for 'x', expected 4: it is float\[N,3,4,4\]"),
        ({"x": (1, 3, -4, 4)}, r"got the size -4"),
        ({"x": ("1..4", 3, 4, 4)}, r"got the range '1..4' .* ranges are for `dovetail build`"),
        ({"xx": (1,)}, r"got 'xx' \(did you mean 'x'\?\)"),
        ({"y": ("N", 6)}, r"the result is not valid: .*\(5\) vs \(6\)"),
    ],
)
def test_set_shape_refuses(shapes: dict[str, Any], message: str) -> None:
    with pytest.raises(dovetail.UsageError, match=message):
        image_model().set_shape(shapes)


# ---------------------------------------------------------------------- the batch
def test_a_fixed_batch_becomes_dynamic_and_reshapes_follow() -> None:
    model = image_model(1)
    result, found = rebatch(model, "N")
    assert inputs(result) == {"x": "f32[N, 3, 4, 4]"} and outputs(result) == {"y": "f32[N, 5]", "c": "f32[N, 8, 4, 4]"}
    assert found.old == 1 and found.fixed == ["Reshape '/flatten' to [0, 128]"] and not found.suspects
    assert checked.same_batches(model, result, found.inputs, "N") < 1e-6
    assert outputs(model.batch(6))["y"] == "f32[6, 5]"
    assert outputs(image_model().batch(4)) == {"y": "f32[4, 5]", "c": "f32[4, 8, 4, 4]"}
    assert outputs(image_model().batch("B")) == {"y": "f32[B, 5]", "c": "f32[B, 8, 4, 4]"}


def reshaped(target: list[int], shape: list[Any], out: list[Any]) -> dovetail.Model:
    nodes = [helper.make_node("Reshape", ["x", "to"], ["y"], name="/reshape")]
    return model_of(nodes, [info("x", shape)], [info("y", out)], {"to": np.array(target, np.int64)})


@pytest.mark.parametrize(
    "target, shape, new",
    [
        ([2, 12], [2, 3, 4], [0, 12]),
        ([6, 4], [2, 3, 4], [-1, 4]),  # rows of samples below each other
        ([2, 2, -1], [2, 3, 4], [0, 2, -1]),
        ([-1, 12], [2, 3, 4], [-1, 12]),
        ([0, 12], [2, 3, 4], [0, 12]),
    ],
)
def test_targets_of_reshapes(target: list[int], shape: list[int], new: list[int]) -> None:
    out = list(np.empty(shape).reshape([s or shape[0] for s in target]).shape)
    result, found = rebatch(reshaped(target, shape, out), "N")
    name = result.proto.graph.node[0].input[1]
    assert result.weights[name].tolist() == new and bool(found.fixed) == (new != target)
    assert checked.same_batches(reshaped(target, shape, out), result, ["x"], "N") == 0


def test_what_holds_the_batch_elsewhere_is_told_of() -> None:
    with pytest.raises(dovetail.UsageError, match=r"the result is not valid: .* may be held in:\n  Reshape '/reshape' to \[3, 8\]"):
        reshaped([3, 8], [2, 3, 4], [3, 8]).batch(3)
    mixed = model_of([helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])],
                     [info("x", [1, 4])], [info("y", [1, 4])])  # fmt: skip
    with pytest.raises(dovetail.VerificationError, match="mixes its samples"):
        checked.same_batches(mixed, mixed.batch("N"), ["x"], "N")
    with pytest.raises(dovetail.UsageError, match="expected a number from 1 or a name"):
        mixed.batch(0)
    with pytest.raises(dovetail.UsageError, match=r"got 'xx' \(did you mean 'x'\?\)"):
        mixed.batch(2, inputs=["xx"])


# ---------------------------------------------------------------------- types and layouts
def test_set_dtype_of_inputs_outputs_and_weights() -> None:
    model = image_model()
    result = model.set_dtype("float16")
    assert inputs(result) == {"x": "f16[N, 3, 4, 4]"} and outputs(result) == {"y": "f16[N, 5]", "c": "f16[N, 8, 4, 4]"}
    assert checked.same_cast(model, result) < 2e-3
    one = model.set_dtype({"x": "u8"})
    assert inputs(one)["x"] == "u8[N, 3, 4, 4]" and outputs(one) == outputs(model)
    assert checked.same_cast(model, one) < 1e-6
    stored = model.set_dtype(weights="bf16")
    assert {n: str(stored.weights[n].dtype) for n in stored.weights} == {"k": "bfloat16", "fc": "bfloat16", "flat": "int64"}
    assert 0 < checked.same_cast(model, stored) < 2e-2


def test_set_dtype_refuses() -> None:
    model = image_model()
    for arguments, message in (
        (({"x": "flot16"},), r"got the element type 'flot16'; did you mean .*'float16'"),
        (({"q": "float16"},), r"got 'q'"),
        ((), r"got nothing to change"),
        (({"x": "string"},), r"strings and numbers are not cast"),
    ):
        with pytest.raises(dovetail.UsageError, match=message):
            model.set_dtype(*arguments)
    with pytest.raises(dovetail.UsageError, match=r"got int8 for weights"):
        model.set_dtype(weights="int8")
    big = model.copy()
    big.weights["k"] = np.full((8, 3, 3, 3), 1e6, np.float32)
    assert wide_weights(big.set_dtype(weights="float16")) == ["k"]
    big.weights["fc"] = np.full((128, 5), -1e6, np.float32)
    with pytest.raises(dovetail.UsageError, match=r"range of float16: 'k' \(up to 1e\+06\), 'fc' \(up to 1e\+06\); store them in bfloat16"):
        big.set_dtype(weights="float16")


def test_io_layout() -> None:
    model = image_model()
    result = model.io_layout({"x": "NHWC", "c": "nhwc"})
    assert inputs(result) == {"x": "f32[N, 4, 4, 3]"} and outputs(result)["c"] == "f32[N, 4, 4, 8]"
    image = np.random.default_rng(2).standard_normal((2, 3, 4, 4)).astype(np.float32)
    got, want = run(result, x=image.transpose(0, 2, 3, 1)), run(model, x=image)
    assert np.allclose(got["y"], want["y"]) and np.allclose(got["c"].transpose(0, 3, 1, 2), want["c"])
    back = result.io_layout({"x": "NCHW", "c": "NCHW"})
    assert inputs(back) == inputs(model) and outputs(back) == outputs(model)
    for layouts, message in (
        ({"x": "NHCW"}, "did you mean"),
        ({"y": "NHWC"}, r"'y' is float\[N,5\], expected 4 axes"),
        ({}, "got no names"),
    ):
        with pytest.raises(dovetail.UsageError, match=message):
            model.io_layout(layouts)


# ---------------------------------------------------------------------- versions
def every_version() -> dovetail.Model:
    """Operators that changed their attributes and inputs between opsets, one of them in a body."""
    then = helper.make_graph([helper.make_node("ReduceSum", ["x", "axes"], ["t"], keepdims=1)], "then", [], [info("t", None)])
    other = helper.make_graph([helper.make_node("ReduceMax", ["x"], ["e"], axes=[1], keepdims=1)], "else", [], [info("e", None)])
    nodes = [
        helper.make_node("If", ["flag"], ["a"], name="/if", then_branch=then, else_branch=other),
        helper.make_node("Reshape", ["a", "to"], ["b"], name="/reshape", allowzero=0),
        helper.make_node("ReduceMean", ["x"], ["m"], name="/mean", axes=[1], keepdims=0),
        helper.make_node("Softmax", ["x"], ["s"], name="/softmax", axis=1),
        helper.make_node("Shape", ["x"], ["n"], name="/shape"),
    ]
    outs = [info("b", ["N"]), info("m", ["N"]), info("s", ["N", 4]), info("n", [2], TensorProto.INT64)]
    weights = {"axes": np.array([1], np.int64), "to": np.array([-1], np.int64)}
    return model_of(nodes, [info("x", ["N", 4]), info("flag", [], TensorProto.BOOL)], outs, weights)


@pytest.mark.parametrize("opset", [13, 15, 18, 21, 24])
def test_opsets(opset: int) -> None:
    model = every_version()
    result = model.convert_opset(opset)
    assert result.opset == opset and inputs(result) == inputs(model) and outputs(result) == outputs(model)
    assert checked.same(model, result, "convert-opset") < 1e-6
    names = [n.name for n in result.proto.graph.node]
    assert {"/if", "/reshape", "/softmax", "/shape"} <= set(names)


@pytest.mark.parametrize("opset", [11, 12, 13, 18])
def test_opsets_that_onnxs_converter_knows_no_direct_way_to(opset: int) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], name="/mean", keepdims=1, noop_with_empty_axes=0),
        helper.make_node("Reshape", ["m", "to"], ["y"], name="/reshape", allowzero=1),
    ]
    weights = {"axes": np.array([1], np.int64), "to": np.array([-1, 1], np.int64)}
    model = model_of(nodes, [info("x", ["N", 4])], [info("y", ["N", 1])], weights, opset=20, ir=9)
    result = model.convert_opset(opset)
    assert ops(result) == ["ReduceMean", "Reshape"] and checked.same(model, result, "convert-opset") == 0


def test_opset_conversion_keeps_what_the_converter_forgets() -> None:
    model = chain().copy()
    model.proto.metadata_props.add(key="author", value="me")
    model.proto.graph.node[0].doc_string = "first"
    model.proto.opset_import.append(helper.make_opsetid("my", 2))
    result = model.replace(["c"], ["r"], "Frob", domain="my").convert_opset(21)
    assert result.proto.metadata_props[0].value == "me" and result.proto.graph.node[0].doc_string == "first"
    assert "Frob" in ops(result) and {o.domain: o.version for o in result.proto.opset_import} == {"": 21, "my": 2}


@pytest.mark.parametrize("inner, opset, fine", [("Add", 13, True), ("Add", 21, True), ("ReduceMean", 18, False)])
def test_functions_of_a_model_get_its_opset(inner: str, opset: int, fine: bool) -> None:
    body = helper.make_node("Add", ["a", "a"], ["b"]) if inner == "Add" else helper.make_node("ReduceMean", ["a"], ["b"], axes=[0])
    function = helper.make_function("own", "Step", ["a"], ["b"], [body], [helper.make_opsetid("", 17)])
    graph = helper.make_graph([helper.make_node("Step", ["x"], ["y"], domain="own")], "g", [info("x", [2, 4])], [info("y", ["M", 4])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = dovetail.Model.load(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8))
    if fine:
        result = model.convert_opset(opset)
        assert result.proto.functions[0].opset_import[0].version == opset == result.opset
        assert checked.same(model, result, "convert-opset") == 0
    else:
        with pytest.raises(dovetail.UsageError, match=r"changed up to opset 18: ReduceMean in own::Step; `dovetail simplify`"):
            model.convert_opset(opset)


def test_operators_that_stop_a_conversion_are_listed() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["a"], name="/gelu"),
        helper.make_node("Trilu", ["a"], ["b"], name="/upper"),
        helper.make_node("Trilu", ["b"], ["c"], name="/lower", upper=0),
        helper.make_node("Pad", ["c", "p"], ["y"], name="/pad", mode="wrap"),
    ]
    weights = {"p": np.zeros(4, np.int64)}
    model = model_of(nodes, [info("x", [2, 4])], [info("y", [2, 4])], weights, opset=20, ir=9)
    with pytest.raises(dovetail.UsageError) as caught:
        model.convert_opset(13)
    text = str(caught.value)
    assert "from opset 20 to 13, these operators stop it:" in text
    assert "Trilu is not in opset 13 (Trilu '/upper', Trilu '/lower')" in text and "Gelu" not in text
    assert "Pad: it wraps around, which came with opset 19 (Pad '/pad')" in text
    for arguments, message in (
        ({"opset": 999}, "got opset 999, expected 7 to"),
        ({}, "got no version"),
        ({"ir_version": 99}, "got IR version 99"),
        ({"ir_version": 4}, "expected at least 9: opset 20 came with it"),
    ):
        with pytest.raises(dovetail.UsageError, match=message):
            model.convert_opset(**arguments)


def test_ir_versions() -> None:
    model = chain().convert_opset(8)
    old = model.convert_opset(ir_version=3)
    assert [v.name for v in old.proto.graph.input] == ["x", "w", "b", "s"] and inputs(old) == {"x": "f32[N, 4]"}
    new = old.convert_opset(ir_version=10)
    assert [v.name for v in new.proto.graph.input] == ["x"]
    assert np.array_equal(run(new, x=X)["y"], run(chain(), x=X)["y"])


# ---------------------------------------------------------------------- outputs and inputs
def test_outputs_are_marked_and_unmarked() -> None:
    model = chain()
    marked = model.mark_output(["a", "r"])
    assert list(outputs(marked)) == ["y", "z", "a", "r"] and outputs(marked)["r"] == "f32[N, 4]"
    assert np.array_equal(run(marked, x=X)["a"], run(model.extract(outputs=["a"]), x=X)["a"])
    fewer = marked.unmark_output(["y", "z", "r"])
    assert outputs(fewer) == {"a": "f32[N, 4]"} and ops(fewer) == ["MatMul"] and list(fewer.weights) == ["w"]
    for call, message in (
        (lambda: model.mark_output(["y"]), "'y' is an output of the model already"),
        (lambda: model.mark_output(["w"]), "it is an input or a weight"),
        (lambda: model.unmark_output(["a"]), r"got 'a'"),
        (lambda: model.unmark_output(["y", "z"]), "no output would be left"),
    ):
        with pytest.raises(dovetail.UsageError, match=message):
            call()


@pytest.mark.parametrize("ir", [3, 8])
def test_weights_and_inputs_change_places(ir: int) -> None:
    model = chain().convert_opset(8).convert_opset(ir_version=ir)
    opened = model.to_input(["b"])
    assert list(inputs(opened)) == ["x", "b"] and list(opened.weights) == ["w", "s"]
    frozen = opened.freeze({"b": np.array(model.weights["b"])})
    assert list(inputs(frozen)) == ["x"]
    assert np.array_equal(run(frozen, x=X)["y"], run(model, x=X)["y"])
    assert inputs(with_if().freeze({"flag": True})) == {"x": "f32[N, 4]"}
    with pytest.raises(dovetail.UsageError, match=r"got float32\[5\] for 'b', expected float\[4\]"):
        opened.freeze({"b": np.zeros(5, np.float32)})
    with pytest.raises(dovetail.UsageError, match=r"got 'y' .*expected names of a weight"):
        model.to_input(["y"])


EDITS: list[Callable[[dovetail.Model], dovetail.Model]] = [
    lambda m: m.extract(outputs=["y"]), lambda m: m.insert("c", "Neg"), lambda m: m.delete(["/flatten"]),
    lambda m: m.rename({"x": "q"}), lambda m: m.set_dtype("f16"), lambda m: m.io_layout({"x": "NHWC"}), lambda m: m.batch(3),
    lambda m: m.convert_opset(21), lambda m: m.mark_output(["f"]), lambda m: m.to_input(["fc"]), lambda m: m.set_shape({"x": (1, 3, 4, 5)}),
    lambda m: m.replace(["c"], ["f"], "Nope"),
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_the_argument_is_never_touched(edit: Callable[[dovetail.Model], dovetail.Model]) -> None:
    model = image_model()
    before = model.proto.SerializeToString(deterministic=True)
    try:
        result = edit(model)
    except dovetail.UsageError:
        pass
    else:
        onnx.checker.check_model(result.proto, full_check=True)
    assert model.proto.SerializeToString(deterministic=True) == before


def test_a_model_that_was_contradictory_before_can_still_be_edited() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info("x", [4])], [info("y", [5])],
                              [numpy_helper.from_array(np.zeros(1, np.float32), "unused")])  # fmt: skip
    model = dovetail.Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert list(inputs(model.rename({"x": "a"}))) == ["a"]
