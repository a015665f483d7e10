"""Rules in builds: the oracle, reports, refits, options, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dovetail
from dovetail.api.tuning import tune
from dovetail.cli import main
from dovetail.core.errors import RefitError, RuleError, UsageError, VerificationError
from dovetail.model.model import Model
from dovetail.model.rules import apply_rules, unregister
from dovetail.plugins import unregister as unregister_plugin
from tests.unit.rule_models import copied, graph, node, rule

X = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
OPTIONS: dict[str, Any] = {"tune": False, "threads": 1}


def quick_gelu() -> onnx.ModelProto:
    """y = (x * sigmoid(k x)) W, with k = 1.702 an initializer."""
    nodes = [node("Mul", "x k", "a"), node("Sigmoid", "a", "s"), node("Mul", "s x", "m"), node("MatMul", "m w", "y")]
    weights = {"k": np.float32(1.702), "w": np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)}
    return graph(nodes, {"x": ["N", 4]}, ["y"], weights)


def pattern(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(op.Mul(x, 1.702)))


def right(op: Any, x: Any) -> Any:
    return op.Div(x, op.Add(op.Exp(op.Mul(x, -1.702)), 1.0))


def wrong(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(op.Mul(x, 1.0)))


def test_a_build_applies_rules_and_is_verified_against_the_original() -> None:
    model = quick_gelu()
    before = model.SerializeToString()
    plain = dovetail.build(model, rules="none", **OPTIONS)
    engine = dovetail.build(model, rules=[rule(pattern, right, "quick")], **OPTIONS)
    assert model.SerializeToString() == before
    np.testing.assert_allclose(engine.run(X)["y"], plain.run(X)["y"], rtol=1e-5, atol=1e-6)
    done = engine.report().json()["rules"]
    assert done["checked_against"] == "the original model" and done["rules"]["quick"] == {"matches": 1, "near_misses": 0}
    assert done["matches"][0]["nodes"] == ["n_a", "n_s", "n_m"] and done["matches"][0]["relied_on"] == ["k"]
    text = str(engine.report())
    assert "rewrite rules: quick x1; verified against the original model" in text and "quick at n_m" in text
    assert "rules" not in plain.report().json() and "rewrite rules" not in str(plain.report())
    assert engine.plan.certificate["engine"]["checked"]


def test_a_wrong_rule_is_caught_and_named() -> None:
    both = [rule(pattern, wrong, "culprit"), rule(lambda op, x, w: op.MatMul(x, w), lambda op, x, w: op.Gemm(x, w), "innocent")]
    with pytest.raises(VerificationError, match="the rewrite rule 'culprit' at n_m changed what the model computes") as raised:
        dovetail.build(quick_gelu(), rules=both, **OPTIONS)
    assert "innocent" not in str(raised.value)
    assert "please report" not in str(raised.value), "the user's rule is no bug of a kernel"


def test_without_verification_the_report_claims_none() -> None:
    text = str(dovetail.build(quick_gelu(), rules=[rule(pattern, wrong, "culprit")], verify="off", **OPTIONS).report())
    assert "culprit x1; verified against nothing: verification is off" in text


def test_an_approximation_is_named_and_may_be_accepted() -> None:
    nearly = rule(pattern, lambda op, x: op.Mul(x, op.Sigmoid(op.Mul(x, 1.7015))), "nearly")
    with pytest.raises(VerificationError, match=r"the rewrite rule 'nearly' at n_m changed .* \(--tolerance\)"):
        dovetail.build(quick_gelu(), rules=["none", nearly], **OPTIONS)
    dovetail.build(quick_gelu(), rules=["none", nearly], tolerance=1e-2, **OPTIONS)


def test_networks_defined_in_python_take_no_rules() -> None:
    net = dovetail.Network()
    net.output(net.op("Relu", net.input("x", "f32", (3,))), "y")
    dovetail.build(net, **OPTIONS)
    with pytest.raises(UsageError, match="rules rewrite ONNX graphs"):
        dovetail.build(net, rules=[rule(pattern, right, "quick")], **OPTIONS)


def test_a_wrong_rule_is_caught_although_its_result_was_verified_as_a_model_before() -> None:
    model = quick_gelu()
    rewritten = copied(model)
    apply_rules(Model.load(rewritten), ["none", rule(pattern, wrong, "culprit")])
    dovetail.build(rewritten, rules="none", **OPTIONS)
    with pytest.raises(VerificationError, match="culprit"):
        dovetail.build(model, rules=["none", rule(pattern, wrong, "culprit")], **OPTIONS)


def test_a_refit_keeps_names_and_refuses_what_a_rule_relied_on() -> None:
    engine = dovetail.build(quick_gelu(), rules=[rule(pattern, right, "quick")], **OPTIONS)
    with pytest.raises(RefitError, match=r"rewrite rule 'quick' relied on its value \[1.702\]"):
        engine.refit({"k": np.float32(2)})
    w = np.eye(4, dtype=np.float32)
    engine.refit({"k": np.float32(1.702), "w": w})
    x = X["x"]
    np.testing.assert_allclose(engine.run(X)["y"], x / (1 + np.exp(-1.702 * x)), rtol=1e-5, atol=1e-6)


def test_weights_that_rules_left_without_a_reader_are_ignored_by_refits() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Mul", "m one", "y")]
    weights = {"w": np.ones((4, 4), np.float32), "one": np.ones(4, np.float32)}
    model = graph(nodes, {"x": ["N", 4]}, ["y"], weights)
    engine = dovetail.build(model, rules=["none", rule(lambda op, x, c: op.Mul(x, c), lambda op, x, c: x, "drop")], **OPTIONS)
    engine.refit({"w": 2 * weights["w"], "one": weights["one"]})
    np.testing.assert_allclose(engine.run(X)["y"], X["x"] @ (2 * weights["w"]), rtol=1e-5)


def test_operators_that_nobody_can_run_are_replaced_and_the_report_says_what_was_checked() -> None:
    model = graph([node("Mystery", "x", "h", domain="my.domain"), node("Neg", "h", "y")], {"x": ["N", 4]}, ["y"], domains=("my.domain",))
    with pytest.raises(dovetail.UnsupportedOpError):
        dovetail.build(model, **OPTIONS)
    known = rule(lambda op, x: op.call("my.domain::Mystery", x), lambda op, x: op.Abs(x), "known")
    engine = dovetail.build(model, rules=[known], **OPTIONS)
    np.testing.assert_array_equal(engine.run(X)["y"], -np.abs(X["x"]))
    done = engine.report().json()["rules"]
    assert done["checked_against"] == "the model as the rules left it" and "Mystery" in done["reason"]
    assert "because the original has operators that nobody here can run" in str(engine.report())


def test_rules_may_call_plugins() -> None:
    @dovetail.plugin("RuleSwish", namespace="")
    def swish(x: Any, *, alpha: float = 1.0) -> Any:
        return x / (1 + np.exp(-alpha * x))

    @swish.shape
    def _(x: Any, *, alpha: float = 1.0) -> Any:
        return x

    try:
        calls = rule(pattern, lambda op, x: op.call("my.domain::RuleSwish", x, alpha=1.702), "call")
        engine = dovetail.build(quick_gelu(), rules=[calls], **OPTIONS)
        assert engine.report().json()["rules"]["checked_against"] == "the original model"
        assert engine.report().json()["plugins"][0]["name"] == "RuleSwish"
    finally:
        unregister_plugin("RuleSwish")


def test_tuning_keeps_what_rules_did() -> None:
    engine = dovetail.build(quick_gelu(), rules=[rule(pattern, right, "quick")], **OPTIONS)
    assert tune(engine, time_budget=0.1).report().json()["rules"] == engine.report().json()["rules"]


def test_unknown_rules_and_broken_ones() -> None:
    with pytest.raises(UsageError, match="rules: got 'absent'"):
        dovetail.build(quick_gelu(), rules="absent", **OPTIONS)
    with pytest.raises(RuleError, match="breaks the type"):
        dovetail.build(quick_gelu(), rules=rule(pattern, lambda op, x: op.Cast(x, to="f16"), "bad"), **OPTIONS)


def test_guards_on_constants_of_inner_graphs_and_of_nodes() -> None:
    scale = node("Constant", "", "k", value=onnx.numpy_helper.from_array(np.float32(1.702)))
    model = quick_gelu()
    del model.graph.initializer[0]
    model.graph.node.insert(0, scale)
    engine = dovetail.build(model, rules=[rule(pattern, right, "quick")], **OPTIONS)
    with pytest.raises(RefitError, match="rewrite rule 'quick'"):
        engine.refit({"k": np.float32(2)})
    engine.refit({"w": np.eye(4, dtype=np.float32)}, strict=True)


# ---------------------------------------------------------------------- the command line
FILE = """
import dovetail

def pattern(op, x):
    return op.Mul(x, op.Sigmoid(op.Mul(x, 1.702)))

@dovetail.rewrite(pattern)
def quick_from_file(op, x):
    return op.Div(x, op.Add(op.Exp(op.Mul(x, -1.702)), 1.0))
"""


def test_build_and_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, rules, plan = tmp_path / "m.onnx", tmp_path / "rules.py", tmp_path / "m.plan"
    onnx.save(quick_gelu(), model)
    rules.write_text(FILE)
    try:
        assert main(["build", str(model), "-o", str(plan), "--rules", str(rules), "--no-tune", "-q"]) == 0
        assert "rewrite rules: quick_from_file x1" in capsys.readouterr().out
        assert main(["check", str(model), "--rules", str(rules)]) == 0
        assert "rewrite rules: quick_from_file x1" in capsys.readouterr().out
        assert main(["explain", str(plan), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rules"]["matches"][0]["rule"] == "quick_from_file"
        assert main(["explain", str(plan), "--node", "n_s"]) == 0
        assert "quick_from_file at n_m" in capsys.readouterr().out
        assert main(["build", str(model), "-o", str(plan), "--rules", "none", "--no-tune", "-q"]) == 0
        assert "rewrite rules" not in capsys.readouterr().out
        assert main(["build", str(model), "-o", str(plan), "--rules", "absent", "-q"]) == 2
        assert main(["build", str(model), "-o", str(plan), "--rules", str(tmp_path / "absent.py"), "-q"]) == 1
    finally:
        unregister("quick_from_file")
