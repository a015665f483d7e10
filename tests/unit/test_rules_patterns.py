"""What patterns can say: where they fit, where they do not, and the reason that is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from dovetail.model.rules.definition import define
from tests.unit.rule_models import applied, assert_same, copied, graph, node, operators, rule

X = {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)}
SHAPES: dict[str, list[int | str]] = {"x": [2, 4]}


def swish(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def as_quotient(op: Any, x: Any) -> Any:
    return op.Div(x, op.Add(op.Exp(op.Neg(x)), 1.0))


@pytest.mark.parametrize("order", ["x s", "s x"])
def test_commutative_operators_match_both_ways(order: str) -> None:
    model = graph([node("Sigmoid", "x", "s"), node("Mul", order, "y")], SHAPES, ["y"])
    before = copied(model)
    log = applied(model, rule(swish, as_quotient))
    assert operators(model) == ["Neg", "Exp", "Add", "Div"]
    assert_same(before, model, X, 1e-6)
    (match,) = log.matches
    assert (match.nodes, match.operators, match.outputs) == (("n_s", "n_y"), ("Sigmoid", "Mul"), ("y",))
    assert "rule at n_y: Sigmoid → Mul became Neg → Exp → Add → Div" in str(log)


def test_a_near_miss_names_the_node_what_was_got_and_what_was_expected() -> None:
    model = graph([node("Tanh", "x", "t"), node("Sigmoid", "t", "s"), node("Mul", "x s", "y")], SHAPES, ["y"])
    log = applied(model, rule(swish, as_quotient))
    assert not log and operators(model) == ["Tanh", "Sigmoid", "Mul"]
    (miss,) = log.near_misses
    assert (miss.node, miss.matched, miss.size) == ("n_y (Mul)", 2, 2)
    assert miss.reason == "input 0 of n_s (Sigmoid): got 't', expected 'x', which the pattern calls 'x', too"
    assert log.json()["near_misses"][0]["reason"] == miss.reason


def test_a_rule_whose_operators_are_not_there_says_so() -> None:
    log = applied(graph([node("Relu", "x", "y")], SHAPES, ["y"]), rule(swish, as_quotient))
    assert log.skipped == {"rule": "the model has no Mul, no Sigmoid"} and "not tried: rule" in str(log)


def test_inner_values_that_are_read_elsewhere_decline_unless_shared() -> None:
    def shared(op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(x).shared())

    nodes = [node("Sigmoid", "x", "s"), node("Mul", "x s", "m"), node("Add", "m s", "y")]
    model = graph(nodes, SHAPES, ["y"])
    before = copied(model)
    (miss,) = applied(model, rule(swish, as_quotient)).near_misses
    assert "got 's' of n_s (Sigmoid) read by n_y (Add), too" in miss.reason
    assert applied(model, rule(shared, as_quotient)).matches[0].operators == ("Mul",)
    assert operators(model) == ["Sigmoid", "Neg", "Exp", "Add", "Div", "Add"]
    assert_same(before, model, X, 1e-6)


def test_an_inner_value_that_is_an_output_declines() -> None:
    model = graph([node("Sigmoid", "x", "s"), node("Mul", "x s", "y")], SHAPES, ["y", "s"])
    (miss,) = applied(model, rule(swish, as_quotient)).near_misses
    assert "as an output of the graph" in miss.reason


@pytest.mark.parametrize(("value", "fits"), [(1.702, True), (1.7020001, True), (1.71, False)])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_constants_by_value_within_rounding(value: float, fits: bool, shape: tuple[int, ...]) -> None:
    def quick(op: Any, x: Any) -> Any:
        return op.Mul(x, op.Sigmoid(op.Mul(1.702, x)))

    nodes = [node("Mul", "x k", "a"), node("Sigmoid", "a", "s"), node("Mul", "s x", "y")]
    log = applied(graph(nodes, SHAPES, ["y"], {"k": np.full(shape, value, np.float32)}), rule(quick, lambda op, x: op.Relu(x)))
    assert bool(log) == fits
    if fits:
        assert log.matches[0].relied_on == ("k",)
    else:
        assert "got the constant" in log.near_misses[0].reason and "expected the constant 1.702" in log.near_misses[0].reason


def test_captured_constants_and_attributes() -> None:
    def pattern(op: Any, x: Any) -> Any:
        return op.Add(op.LeakyRelu(x, alpha=op.attribute("slope", lambda a: a < 0.5)), op.constant("offset"))

    def replacement(op: Any, x: Any, slope: float, offset: Any, match: Any) -> Any:
        assert offset.is_constant and offset.shape == (4,) and offset.dtype == "f32" and offset.op is None
        return op.Add(op.Max(x, op.Mul(x, slope)), offset)

    weights = {"o": np.arange(4, dtype=np.float32)}
    model = graph([node("LeakyRelu", "x", "l", alpha=0.25), node("Add", "l o", "y")], SHAPES, ["y"], weights)
    before = copied(model)
    log = applied(model, rule(pattern, replacement))
    assert log.matches[0].relied_on == () and [t.name for t in model.graph.initializer] == ["o"]
    assert_same(before, model, X)
    steep = graph([node("LeakyRelu", "x", "l", alpha=0.75), node("Add", "l o", "y")], SHAPES, ["y"], weights)
    (miss,) = applied(steep, rule(pattern, replacement)).near_misses
    assert miss.reason == "n_l (LeakyRelu): attribute 'alpha': got 0.75, which the pattern's condition refuses"


@pytest.mark.parametrize(
    ("wanted", "given", "fits"),
    [(1, {}, True), (1, {"axis": 1}, True), (0, {}, False), (..., {}, True), (lambda a: a > 0, {"axis": 1}, True), (-1, {}, False)],
)
def test_attributes_exact_with_defaults_any_and_predicates(wanted: Any, given: dict[str, int], fits: bool) -> None:
    model = graph([node("Flatten", "x", "y", **given)], SHAPES, ["y"])
    log = applied(model, rule(lambda op, x: op.Flatten(x, axis=wanted), lambda op, x: op.Reshape(x, [2, 4])))
    assert bool(log) == fits


def test_optional_and_absent_inputs() -> None:
    def with_bias(op: Any, x: Any, w: Any, b: Any = None) -> Any:
        return op.Gemm(x, w, b)

    def without(op: Any, x: Any, w: Any) -> Any:
        return op.Gemm(x, w)

    def product(op: Any, x: Any, w: Any, b: Any) -> Any:
        y = op.MatMul(x, w)
        return y if b is None else op.Add(y, b)

    weights = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    for inputs, want in (("x w", ["MatMul"]), ("x w b", ["MatMul", "Add"])):
        model = graph([node("Gemm", inputs, "y")], SHAPES, ["y"], weights)
        before = copied(model)
        assert applied(model, rule(with_bias, product))
        assert operators(model) == want
        assert_same(before, model, X)
    model = graph([node("Gemm", "x w b", "y")], SHAPES, ["y"], weights)
    (miss,) = applied(model, rule(without, lambda op, x, w: op.MatMul(x, w))).near_misses
    assert "got 3 inputs, expected 2" in miss.reason


def test_variadic_inputs() -> None:
    def pattern(op: Any, *xs: Any) -> Any:
        return op.Relu(op.Concat(*xs, axis=1))

    def replacement(op: Any, *xs: Any) -> Any:
        return op.Concat(*[op.Relu(x) for x in xs], axis=1)

    model = graph([node("Concat", "x z x", "c", axis=1), node("Relu", "c", "y")], {"x": [2, 4], "z": [2, 3]}, ["y"])
    before = copied(model)
    assert applied(model, rule(pattern, replacement))
    assert operators(model) == ["Relu", "Relu", "Relu", "Concat"]
    assert_same(before, model, X | {"z": np.ones((2, 3), np.float32)})


def test_alternatives_and_optional_nodes() -> None:
    def pattern(op: Any, x: Any) -> Any:
        act = op.any_of(op.Relu(x), op.Clip(x, 0.0, None))
        return op.Neg(op.maybe(op.Identity(act)))

    def replacement(op: Any, x: Any) -> Any:
        return op.Min(op.Neg(x), 0.0)

    zero = {"zero": np.float32(0)}
    for nodes in (
        [node("Relu", "x", "a"), node("Neg", "a", "y")],
        [node("Clip", "x zero", "a"), node("Identity", "a", "i"), node("Neg", "i", "y")],
    ):
        model = graph(nodes, SHAPES, ["y"], zero)
        before = copied(model)
        assert applied(model, rule(pattern, replacement)), nodes
        assert operators(model) == ["Neg", "Min"]
        assert_same(before, model, X)


def test_several_outputs_beside_each_other() -> None:
    def pattern(op: Any, x: Any, v: Any, w: Any) -> Any:
        return op.MatMul(x, v), op.MatMul(x, w)

    def replacement(op: Any, x: Any, v: Any, w: Any) -> Any:
        return op.Split(op.MatMul(x, op.Concat(v, w, axis=1)), [v.shape[1], w.shape[1]], axis=1, outputs=2)

    rng = np.random.default_rng(1)
    weights = {"v": rng.standard_normal((4, 2)).astype(np.float32), "w": rng.standard_normal((4, 3)).astype(np.float32)}
    nodes = [node("MatMul", "x v", "a"), node("Relu", "a", "p"), node("MatMul", "x w", "b"), node("Relu", "b", "q")]
    model = graph(nodes, SHAPES, ["p", "q"], weights)
    before = copied(model)
    log = applied(model, rule(pattern, replacement))
    assert sorted(log.matches[0].outputs) == ["a", "b"]
    assert operators(model) == ["Concat", "MatMul", "Split", "Relu", "Relu"]
    assert_same(before, model, X, 1e-6)


def test_outputs_of_which_one_leads_to_the_other_are_no_match() -> None:
    def pattern(op: Any, x: Any, v: Any, z: Any) -> Any:
        return op.Add(x, v), op.Mul(x, z)

    nodes = [node("Add", "x x", "a"), node("Relu", "a", "r"), node("Mul", "x r", "b")]
    model = graph(nodes, SHAPES, ["b", "a"])
    log = applied(model, rule(pattern, lambda op, x, v, z: (op.Add(x, v), op.Mul(x, z))))
    assert not log and "depends on by way of nodes outside" in log.near_misses[0].reason


def test_outputs_of_one_node() -> None:
    def pattern(op: Any, x: Any) -> Any:
        a, b = op.Split(x, None, axis=1, outputs=2)
        return op.Mul(a, op.Sigmoid(b))

    def replacement(op: Any, x: Any) -> Any:
        half = x.shape[1] // 2
        a = op.Slice(x, op.constant([0]), op.constant([half]), op.constant([1]))
        return op.Mul(a, op.Sigmoid(op.Slice(x, op.constant([half]), op.constant([2 * half]), op.constant([1]))))

    nodes = [node("Split", "x", "a b", axis=1), node("Sigmoid", "b", "s"), node("Mul", "a s", "y")]
    model = graph(nodes, SHAPES, ["y"])
    before = copied(model)
    assert applied(model, rule(pattern, replacement))
    assert_same(before, model, X)
    other = graph([node("Split", "x", "b a", axis=1), *nodes[1:]], SHAPES, ["y"])
    (miss,) = applied(other, rule(pattern, replacement)).near_misses
    assert "expected output 0 of n_b (Split)" in miss.reason


def test_bodies_of_control_flow_are_searched_too() -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [node("Sigmoid", "x", f"s{name}"), node("Mul", f"x s{name}", f"m{name}"), node("Add", f"m{name} {one}", f"o{name}")],
            name, [], [helper.make_tensor_value_info(f"o{name}", 1, [2, 4])],
        )
        for name, one in (("then", "one"), ("else", "two"))
    }  # fmt: skip
    choice = helper.make_node("If", ["c"], ["y"], "choice", **branches)
    nodes = [node("ReduceSum", "x", "r", keepdims=0), node("Greater", "r zero", "c"), choice]
    weights = {"zero": np.float32(0), "one": np.float32(1), "two": np.float32(2)}
    model = graph(nodes, SHAPES, ["y"], weights)
    before = copied(model)
    log = applied(model, rule(swish, as_quotient))
    assert {m.nodes[-1] for m in log.matches} == {"choice/then_branch/n_mthen", "choice/else_branch/n_melse"}
    for sign in (1, -1):
        assert_same(before, model, {"x": sign * np.abs(X["x"])}, 1e-6)


def test_large_forms_win_over_small_ones_and_all_are_found() -> None:
    def chain(op: Any, x: Any) -> Any:
        inner = op.Neg(op.Relu(x))
        return op.any_of(op.Abs(inner), inner)

    model = graph([node("Relu", "x", "a"), node("Neg", "a", "b"), node("Abs", "b", "y")], SHAPES, ["y"])
    log = applied(model, rule(chain, lambda op, x, match: op.Max(x, 0.0)))
    assert [m.operators for m in log.matches] == [("Relu", "Neg", "Abs")]


def test_operators_of_other_domains() -> None:
    nodes = [node("Gelu", "x", "g", domain="com.microsoft"), node("Gelu", "g", "y", domain="other")]
    model = graph(nodes, SHAPES, ["y"], domains=("com.microsoft", "other"))
    log = applied(model, rule(lambda op, x: op.call("com.microsoft::Gelu", x), lambda op, x: op.Relu(x)))
    assert operators(model) == ["Relu", "Gelu"] and len(log.matches) == 1


def test_several_patterns_are_alternatives() -> None:
    def max_of_zero(op: Any, x: Any) -> Any:
        return op.Max(x, 0.0)

    def relu_with_scale(op: Any, x: Any, scale: Any) -> Any:
        return op.Mul(op.Relu(x), scale)

    def replacement(op: Any, x: Any, scale: Any = None) -> Any:
        clipped = op.Clip(x, 0.0, None)
        return clipped if scale is None else op.Mul(clipped, scale)

    either = define([max_of_zero, relu_with_scale], replacement, "either")
    nodes = [node("Max", "x zero", "a"), node("Relu", "a", "b"), node("Mul", "b two", "y")]
    model = graph(nodes, SHAPES, ["y"], {"zero": np.float32(0), "two": np.float32(2)})
    before = copied(model)
    assert len(applied(model, either).matches) == 2
    assert operators(model) == ["Clip", "Clip", "Mul"]
    assert_same(before, model, X)
