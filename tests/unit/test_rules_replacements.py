"""Replacements: what they make, what they may read, and what is refused with the model left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import dovetail
from dovetail.core.errors import RuleError, UsageError
from dovetail.model.model import Model
from dovetail.model.rules import apply_rules, registered, rewrite, select, shipped_rules, unregister
from dovetail.model.rules.definition import define
from tests.unit.rule_models import applied, assert_same, copied, graph, node, operators, rule

X = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
SHAPES: dict[str, list[int | str]] = {"x": ["N", 4]}


def relu(op: Any, x: Any) -> Any:
    return op.Relu(x)


def model_of_relu(**options: Any) -> onnx.ModelProto:
    return graph([node("Relu", "x", "r"), node("Neg", "r", "y")], SHAPES, ["y"], **options)


def test_names_of_outputs_stay_and_constants_are_nodes() -> None:
    model = graph([node("Neg", "x", "n"), node("Relu", "n", "y")], SHAPES, ["y"])
    before = copied(model)
    assert applied(model, rule(relu, lambda op, x: op.Max(x, 0.0)))
    assert [v.name for v in model.graph.output] == ["y"] and not model.graph.initializer
    assert [n.op_type for n in model.graph.node] == ["Neg", "Constant", "Max"]
    assert_same(before, model, X)


@pytest.mark.parametrize("last", [False, True])
def test_an_input_may_be_returned(last: bool) -> None:
    nodes = [node("Neg", "x", "n"), node("Relu", "n", "y")] if last else [node("Relu", "x", "r"), node("Neg", "r", "y")]
    model = graph(nodes, SHAPES, ["y"])
    assert applied(model, rule(relu, lambda op, x: x))
    assert operators(model) == (["Neg", "Identity"] if last else ["Neg"])


def test_a_match_tells_shapes_types_dims_and_declines() -> None:
    seen: list[Any] = []

    def pattern(op: Any, x: Any, shape: Any) -> Any:
        return op.Reshape(x, shape).named("out")

    def replacement(op: Any, x: Any, shape: Any, match: Any) -> Any:
        seen.append((x.shape, x.dtype, x.rank, match.dims(shape), match["out"].shape, match.opset, match.nodes, match["out"].op))
        return match.decline("only looking")

    nodes = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Concat", "n four", "t", axis=0), node("Reshape", "x t", "y")]
    weights = {"zero": np.array([0]), "four": np.array([2, 2])}
    log = applied(graph(nodes, SHAPES, ["y"], weights), rule(pattern, replacement))
    ((shape, kind, rank, dims, out, opset, names, op),) = seen
    assert (str(shape[0]), shape[1], kind, rank, opset, names, op) == ("N", 4, "f32", 2, 17, ("n_y",), "Reshape")
    assert [str(d) for d in dims] == ["N", "2", "2"] and [str(d) for d in out] == ["N", "2", "2"]
    assert [m.reason for m in log.near_misses] == ["declined: only looking"]


def test_numbers_take_the_type_of_their_neighbours() -> None:
    model = graph([node("Relu", "x", "y")], {"x": [3]}, ["y"], kind=onnx.TensorProto.FLOAT16)
    assert applied(model, rule(relu, lambda op, x: op.Cast(op.Max(op.Add(op.Cast(x, to="f32"), 1), 1.0), to=x.dtype)))
    constants = [onnx.numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"]
    assert [c.dtype for c in constants] == [np.float32, np.float32]
    narrow = graph([node("Relu", "x", "y")], {"x": [3]}, ["y"], kind=onnx.TensorProto.FLOAT16)
    assert applied(narrow, rule(relu, lambda op, x: op.Max(x, 0)))
    assert onnx.numpy_helper.to_array(narrow.graph.node[0].attribute[0].t).dtype == np.float16


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (lambda op, x: op.Cast(op.Relu(op.Neg(x)), to="f16"), r"breaks the type of 'r': got f16\[N, 4\], expected f32\[N, 4\]"),
        (lambda op, x: op.Unsqueeze(x, [0]), r"breaks the type of 'r': got f32\[1, N, 4\], expected f32\[N, 4\]"),
        (lambda op, x: op.Concat(x, x, axis=1), r"got f32\[N, 8\], expected f32\[N, 4\]"),
        (lambda op, x: op.Concat(x, x, axis=0), r"got f32\[2 \* N, 4\]|got f32\[2\*N, 4\]"),
        (lambda op, x: op.MatMul(x, op.constant(np.ones((5, 4), np.float32))), "its replacement does not fit"),
        (lambda op, x: (x, x), "returned 2 values, expected 1"),
        (lambda op, x: None, "returned None as output 0, expected a value"),
        (lambda op, x: 1 / 0, r"failed at test_rules_replacements.py:\d+ \(ZeroDivisionError"),
        (lambda op, x: op.Relux(x), "got the operator 'Relux', which ONNX has not"),
        (lambda op, x: op.Elu(x, beta=1.0), "got the attribute 'beta', expected one of alpha"),
        (lambda op, x: op.Add(x, "y"), "got 'y' as input 1"),
        (lambda op, x: op.Mul(x, op.Constant(2.0)), r"Constant: got 1 inputs, expected op\.constant\(value\), or the number where it is"),
        (lambda op, x: op.Add(x), r"Add: got 1 inputs, expected A, B \(opset"),
        (lambda op, x: op.Unsqueeze(x, axes=[0]), r"'axes'.*in this opset 'axes' is its input 1: op\.Unsqueeze\(data, axes\)"),
    ],
)
def test_wrong_replacements_are_named_and_change_nothing(replacement: Any, message: str) -> None:
    model = model_of_relu()
    before = model.SerializeToString()
    with pytest.raises(RuleError, match=message) as raised:
        applied(model, rule(relu, replacement))
    assert "rule 'rule' at n_r" in str(raised.value)
    assert model.SerializeToString() == before


def test_a_condition_that_fails_is_named() -> None:
    broken = rule(lambda op, x: op.LeakyRelu(x, alpha=lambda a: a < "1"), relu)
    with pytest.raises(RuleError, match=r"at n_y \(LeakyRelu\): its condition at test_rules_replacements.py:\d+ failed on 0.25"):
        applied(graph([node("LeakyRelu", "x", "y", alpha=0.25)], SHAPES, ["y"]), broken)


def test_a_rule_that_never_ends_is_named() -> None:
    model = model_of_relu()
    before = model.SerializeToString()
    with pytest.raises(RuleError, match="rule 'rule' matches what it wrote, 100 times over"):
        applied(model, rule(relu, lambda op, x: op.Relu(op.Identity(x))))
    pair = [
        rule(relu, lambda op, x: op.Max(x, 0.0), "there"),
        rule(lambda op, x: op.Max(x, 0.0), lambda op, x: op.Relu(x), "back"),
    ]
    with pytest.raises(RuleError, match=r"rules '(there|back)', '(there|back)' match what they wrote"):
        applied(model, *pair)
    assert model.SerializeToString() == before


def test_a_failure_in_a_later_round_leaves_the_model_as_it_was() -> None:
    def fails(op: Any, x: Any) -> Any:
        raise ValueError("no")

    model = model_of_relu()
    before = model.SerializeToString()
    with pytest.raises(RuleError, match="ValueError: no"):
        applied(model, rule(relu, lambda op, x: op.Max(x, 0.0), "first"), rule(lambda op, x: op.Max(x, 0.0), fails, "second"))
    assert model.SerializeToString() == before


def test_rules_follow_each_other() -> None:
    model = graph([node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")], SHAPES, ["y"])
    before = copied(model)
    log = applied(model, rule(lambda op, x: op.Relu(op.Relu(x)), relu))
    assert operators(model) == ["Relu"] and len(log.matches) == 2
    assert_same(before, model, X)


def test_operators_that_the_opset_has_not_got_decline() -> None:
    log = applied(model_of_relu(), rule(relu, lambda op, x: op.Gelu(x)))
    assert "Gelu is in ONNX from opset 20, the model has 17" in log.near_misses[0].reason


def test_own_domains_are_imported_and_types_that_cannot_be_known_are_reported() -> None:
    model = model_of_relu()
    log = applied(model, rule(relu, lambda op, x: op.call("my.domain::Op", x, alpha=0.5)))
    assert {o.domain: o.version for o in model.opset_import} == {"": 17, "my.domain": 1}
    assert "no plugin" in log.matches[0].unchecked and model.graph.node[0].attribute[0].f == 0.5


def test_weights_keep_their_names_in_what_is_computed_from_them() -> None:
    def pattern(op: Any, x: Any, w: Any, s: Any) -> Any:
        return op.Mul(op.MatMul(x, w), s)

    weights = {"w": np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32), "s": np.array([1, 2, 3], np.float32)}
    model = graph([node("MatMul", "x w", "m"), node("Mul", "m s", "y")], SHAPES, ["y"], weights)
    before = copied(model)
    log = applied(model, rule(pattern, lambda op, x, w, s: op.MatMul(x, op.Mul(w, s))))
    assert log.matches[0].relied_on == () and {t.name for t in model.graph.initializer} == {"w", "s"}
    assert_same(before, model, X, 1e-6)


def test_initializers_that_nothing_reads_any_more_go() -> None:
    weights = {"w": np.ones((4, 4), np.float32), "unused": np.ones(1, np.float32)}
    model = graph([node("MatMul", "x w", "m"), node("Relu", "m", "y")], SHAPES, ["y"], weights)
    applied(model, rule(lambda op, x, w: op.MatMul(x, w), lambda op, x, w: x))
    assert [t.name for t in model.graph.initializer] == ["unused"]


# ---------------------------------------------------------------------- definitions
@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (lambda op, x: x, relu, "a pattern needs a root"),
        (lambda op, x: None, relu, "a pattern needs a root"),
        (lambda op: (), lambda op: None, "a pattern needs a root"),
        (lambda op, x: op.maybe(op.Relu(x)), relu, "a pattern needs a root"),
        (lambda op, x, z: op.Relu(x), relu, "no output of the pattern depends on: z"),
        (lambda op, x: op.Relu(x), lambda op, q: op.Relu(q), "got the parameter 'q', expected names of the pattern: match, x"),
        (lambda op, x: op.Relu("x"), relu, "got 'x' at an input"),
        (lambda op, x: op.Relu(x.y), relu, r"test_rules_replacements.py:\d+\): its pattern failed \(AttributeError"),
        (lambda op, x: op.relu(x), relu, "got the operator 'relu', which ONNX has not, expected Relu"),
        (lambda op, x: op.Elu(x, aplha=1.0), relu, "got the attribute 'aplha', expected one of alpha"),
        (lambda: None, relu, "expected \\(op, x"),
        (None, relu, "got the pattern None"),
    ],
)
def test_wrong_definitions(pattern: Any, replacement: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message) as raised:
        define([pattern], replacement, "wrong")
    assert "rule 'wrong'" in str(raised.value)


def test_names_are_unique() -> None:
    @rewrite(relu)
    def unique_name(op: Any, x: Any) -> Any:
        return op.Max(x, 0.0)

    try:
        assert unique_name in registered() and unique_name.name == "unique_name"
        with pytest.raises(RuleError, match="got a second one"):
            rewrite(relu, name="unique_name")(unique_name.replacement)
        with pytest.raises(RuleError, match="got a second one"):
            rewrite(relu, name="dilated-conv")(unique_name.replacement)
        assert rewrite(relu, name="unique_name", replace=True)(unique_name.replacement) in registered()
    finally:
        assert unregister("unique_name") and not unregister("unique_name")


RULES = """
import dovetail

def pattern(op, x):
    return op.Relu(x)

@dovetail.rewrite(pattern)
def {name}(op, x):
    return op.Max(x, 0.0)
"""


def test_files_of_rules(tmp_path: Path) -> None:
    """A file's rules are for whoever names the file: nothing stays registered for other builds."""
    before = registered()
    file = tmp_path / "my_rules.py"
    file.write_text(RULES.format(name="from_file"))
    model = model_of_relu()
    log = apply_rules(Model.load(model), str(file))
    assert log.fired == ("from_file",) and {"from_file", *(r.name for r in shipped_rules())} <= set(log.counts)
    (made,) = select([file, "none"])
    assert made.name == "from_file" and select([file, "none"]) == (made,), "the same contents are run once"
    assert registered() == before and not select("none") and not select([])
    assert "from_file" not in [r.name for r in select(None)]
    with pytest.raises(UsageError, match="got 'from_file', expected FILE"):
        select("from_file")
    file.write_text(RULES.format(name="renamed"))
    assert [r.name for r in select([file, "none"])] == ["renamed"]
    file.write_text("import dovetail\n\n1 / 0\n")
    with pytest.raises(RuleError, match=r"my_rules.py:3 failed \(ZeroDivisionError"):
        select([file])
    file.write_text("x = 1\n")
    with pytest.raises(RuleError, match="registers no rule"):
        select([file])
    with pytest.raises(RuleError, match="cannot be read"):
        select([tmp_path / "absent.py"])
    with pytest.raises(UsageError, match="got 'absent', expected FILE"):
        select("absent")
    assert registered() == before


def test_a_graph_that_needs_another_order_gets_one() -> None:
    """The replacement of two outputs stands where the last one was; readers of the first move behind it."""

    def pattern(op: Any, x: Any, v: Any, w: Any) -> Any:
        return op.Add(x, v), op.Sub(x, w)

    weights = {"v": np.float32(1), "w": np.float32(2)}
    nodes = [node("Add", "x v", "a"), node("Relu", "a", "p"), node("Sub", "x w", "b"), node("Mul", "b p", "y")]
    model = graph(nodes, SHAPES, ["y"], weights)
    before = copied(model)
    both = rule(pattern, lambda op, x, v, w: (op.Sum(x, v), op.Sum(x, op.Neg(w))))
    assert applied(model, both)
    assert_same(before, model, X)


def test_nodes_with_bodies_may_be_matched() -> None:
    body = helper.make_graph([node("Identity", "x", "o")], "b", [], [helper.make_tensor_value_info("o", 1, ["N", 4])])
    nodes = [helper.make_node("If", ["c"], ["i"], "choice", then_branch=body, else_branch=body), node("Relu", "i", "y")]
    model = graph(nodes, SHAPES, ["y"], {"c": np.array(True)})
    assert applied(model, rule(lambda op, c: op.Relu(op.If(c)), lambda op, c, match: match.decline("seen"))).near_misses


def test_initializers_that_callers_may_override_are_no_constants() -> None:
    model = graph([node("Mul", "x k", "y")], SHAPES, ["y"], {"k": np.float32(2)})
    model.graph.input.append(helper.make_tensor_value_info("k", 1, []))
    double = rule(lambda op, x: op.Mul(x, 2.0), lambda op, x: op.Add(x, x))
    (miss,) = applied(model, double).near_misses
    assert "which is computed at run time, expected the constant 2.0" in miss.reason
    model.ir_version = 3  # where every initializer is listed among the inputs
    before = copied(model)
    assert applied(model, double).matches[0].relied_on == ("k",)
    assert [v.name for v in model.graph.input] == ["x"] and not model.graph.initializer
    assert_same(before, model, X)


def test_weights_in_files_stay_there_and_are_read_where_a_rule_asks(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32), "s": np.full(64, 3, np.float32)}
    nodes = [node("MatMul", "x w", "m"), node("Mul", "m s", "y")]
    onnx.save(graph(nodes, SHAPES, ["y"], weights), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)

    def replacement(op: Any, x: Any, w: Any, s: Any) -> Any:
        assert (s.array == 3).all()
        return op.MatMul(x, op.Mul(w, s))

    model = Model.load(tmp_path / "m.onnx")
    scaled = rule(lambda op, x, w, s: op.Mul(op.MatMul(x, w), s), replacement)
    log = apply_rules(model, ["none", scaled])
    assert log.matches[0].relied_on == ("s",)
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in model.proto.graph.initializer)
    engine = dovetail.build(tmp_path / "m.onnx", rules=["none", scaled], tune=False, threads=1)
    np.testing.assert_allclose(engine.run(X)["y"], X["x"] @ (weights["w"] * 3), rtol=1e-5, atol=1e-5)


def test_a_shape_of_the_build_is_what_rules_see() -> None:
    seen: list[Any] = []

    def replacement(op: Any, x: Any, match: Any) -> Any:
        seen.append(x.shape)
        return match.decline("looking")

    apply_rules(Model.load(model_of_relu()), ["none", rule(relu, replacement)], shapes={"x": (7, 4)})
    dovetail.build(model_of_relu(), shapes={"x": (5, 4)}, rules=["none", rule(relu, replacement)], tune=False, threads=1)
    assert seen == [(7, 4), (5, 4)]
