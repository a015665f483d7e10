"""Finding what makes an engine wrong: rules, fusions and kernels that are broken on purpose, and parts of models that still fail."""

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.cli import main
from dovetail.codegen.lower import context
from dovetail.core.errors import BindingError, BuildError, ModelError, UsageError
from dovetail.ir.limit import limited
from dovetail.ir.rewriter import rule
from dovetail.passes import fuse as fusing
from dovetail.passes import simplify as simplifying
from tests.unit.plugin_models import F32, onnx_model


def model():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="/m"), helper.make_node("Relu", ["m"], ["r"], name="/r"),
        helper.make_node("Identity", ["r"], ["i"], name="/i"), helper.make_node("MatMul", ["i", "v"], ["z"], name="/v"),
        helper.make_node("Softmax", ["z"], ["s"], name="/s"), helper.make_node("Exp", ["s"], ["e"], name="/e"),
        helper.make_node("Neg", ["e"], ["y"], name="/n"),
    ]  # fmt: skip
    weights = {"w": rng.standard_normal((64, 128)).astype(np.float32), "v": rng.standard_normal((128, 32)).astype(np.float32)}
    return onnx_model(nodes, {"x": (F32, ["N", 64])}, ["y"], weights)


def test_with_a_limit_a_build_makes_the_first_rewrites_of_the_whole_build() -> None:
    with limited(None) as every:
        dovetail.build(model(), tune=False, verify="off")
    assert len(every.made) >= 3 and any(r.what.startswith("fusion into") for r in every.made)
    for most in range(len(every.made)):
        with limited(most) as some:
            dovetail.build(model(), tune=False, verify="off")
        assert some.made == every.made[:most]


def test_an_engine_that_is_right() -> None:
    found = dovetail.bisect(model())
    assert found.ok and found.builds == 1 and "is right" in str(found)


@rule("Softmax")
def wrong_softmax(node, rewrite):
    """Nothing like a softmax."""
    rewrite.replace(node, rewrite.emit("Sigmoid", node.input(0)))
    return None


def test_a_wrong_rule_is_found_with_its_node(monkeypatch) -> None:
    monkeypatch.setattr(simplifying, "SIMPLIFY_RULES", (*simplifying.SIMPLIFY_RULES, wrong_softmax))
    shown: list[str] = []
    found = dovetail.bisect(model(), {"x": np.ones((3, 64), np.float32)}, tried=shown.append)
    assert (found.kind, found.what) == ("rewrite", "wrong_softmax") and "/s" in found.where
    assert found.error > 0.1 and found.without <= found.tolerance and found.builds == len(shown) <= 10
    assert found.first_bad and "wrong_softmax" in str(found) and found.json()["kind"] == "rewrite"


def test_a_rule_that_breaks_the_build_is_found_too(monkeypatch) -> None:
    @rule("Exp")
    def broken(node, rewrite):
        raise ModelError("no such thing") if node.graph.name == "main" else None

    @rule("Exp")
    def into_erf(node, rewrite):
        rewrite.replace(node, rewrite.emit("Erf", node.input(0)))

    def unprintable(ctx, node, index):
        raise BuildError("no text for it")

    monkeypatch.setitem(context._lowerings, "Erf", unprintable)
    monkeypatch.setattr(simplifying, "SIMPLIFY_RULES", (*simplifying.SIMPLIFY_RULES, into_erf))
    found = dovetail.bisect(model(), {"x": np.ones((3, 64), np.float32)})
    assert (found.kind, found.what) == ("rewrite", "into_erf") and found.error == float("inf")
    assert found.json()["error"] == "inf"
    monkeypatch.setattr(simplifying, "SIMPLIFY_RULES", (broken,))
    with pytest.raises(ModelError, match="no such thing"):
        dovetail.bisect(model())  # nothing was rewritten: no rewrite is to blame


def test_a_wrong_fusion_is_found(monkeypatch) -> None:
    """A group that loses one of its members."""
    right = fusing._group

    def wrong(graph, draft, members):
        group = right(graph, draft, members)
        for node in list(group.body.nodes):
            if node.op == "Relu" and len(members) > 1:
                group.body.replace_uses(node.output, node.input(0))
        return group

    monkeypatch.setattr(fusing, "_group", wrong)
    found = dovetail.bisect(model(), {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)})
    assert found.kind == "rewrite" and found.what.startswith("fusion into") and "/r" in found.what + found.where


def test_a_wrong_kernel_is_found(monkeypatch) -> None:
    monkeypatch.setitem(context._lowerings, "Neg", lambda ctx, node, index: ctx.operand(node, 0, index))
    found = dovetail.bisect(model())
    assert found.kind == "kernel" and "/n" in found.where and found.number == 0 and found.first_bad.startswith("y")
    assert "no other kernel computes it" in str(found)


def test_inputs_that_the_model_refuses_are_said_to_be() -> None:
    with pytest.raises(BindingError):
        dovetail.bisect(model(), {"z": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match="verify="):
        dovetail.bisect(model(), verify="full")


def test_a_model_that_runs_on_no_made_up_inputs_is_not_a_wrong_engine() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("SequenceAt", ["s", "i"], ["y"])], "g", [sequence], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array(0), "i")],
    )  # fmt: skip
    with pytest.raises(dovetail.Error, match="found no seeded inputs"):
        dovetail.bisect(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize("search", [dovetail.bisect, dovetail.reduce])
def test_options_that_no_build_takes_are_no_failures(search) -> None:
    with pytest.raises(UsageError, match="precision: got 'fp33'"):
        search(model(), precision="fp33")


def test_the_smallest_part_that_fails(monkeypatch) -> None:
    monkeypatch.setitem(context._lowerings, "Exp", lambda ctx, node, index: ctx.operand(node, 0, index))
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    # Softmax has an exponential of its own.
    found = dovetail.reduce(model(), {"x": x})
    assert found.reason == "an output is off" and found.nodes[1] == 1 and "Exp /e" in str(found)
    (name,) = found.inputs
    assert found.inputs[name].shape == (3, 32) and np.allclose(found.inputs[name].sum(-1), 1, atol=1e-5), "a value of the whole model"
    assert not dovetail.compare(found.model, dovetail.build(found.model, tune=False, verify="off"), found.inputs).ok
    onnx.checker.check_model(found.model.proto, full_check=True)


def test_what_fails_may_be_said_by_the_caller() -> None:
    def fails(part, feeds):
        kinds = {n.op_type for n in part.proto.graph.node}
        assert set(feeds) == {v.name for v in part.inputs}
        return "both" if {"Relu", "Softmax"} <= kinds else None

    found = dovetail.reduce(model(), fails=fails)
    assert [n.op_type for n in found.model.proto.graph.node] == ["Relu", "Identity", "MatMul", "Softmax"]
    assert found.json()["nodes"] == [7, 4]
    with pytest.raises(UsageError, match="does not fail"):
        dovetail.reduce(model())


def test_the_verb(tmp_path, capsys, monkeypatch) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    np.savez(tmp_path / "x.npz", x=np.ones((2, 64), np.float32))
    common = [str(path), "--inputs", str(tmp_path / "x.npz")]
    assert main(["debug", "bisect", *common]) == 0
    assert main(["debug", "reduce", *common, "-o", str(tmp_path / "small.onnx")]) == 2
    assert "does not fail" in capsys.readouterr().err and not (tmp_path / "small.onnx").exists()
    script = tmp_path / "check.py"
    script.write_text("import onnx, sys\nsys.exit(any(n.op_type == 'Softmax' for n in onnx.load(sys.argv[1]).graph.node))\n")
    command = f"{sys.executable} {script} {{model}} {{inputs}}"
    assert main(["debug", "reduce", *common, "-o", str(tmp_path / "small.onnx"), "--command", command]) == 0
    assert [n.op_type for n in onnx.load(tmp_path / "small.onnx").graph.node] == ["Softmax"]
    with np.load(tmp_path / "small.npz") as arrays:
        assert [a.shape for a in arrays.values()] == [(2, 32)]
    assert main(["debug", "reduce", *common, "--command", "true"]) == 2 and "{model}" in capsys.readouterr().err
    monkeypatch.setattr(simplifying, "SIMPLIFY_RULES", (*simplifying.SIMPLIFY_RULES, wrong_softmax))
    assert main(["debug", "bisect", *common, "--json"]) == 1 and '"what": "wrong_softmax"' in capsys.readouterr().out


def test_a_wrong_rule_of_the_users_is_found(tmp_path) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text(
        "import dovetail\n\n\n@dovetail.rewrite(lambda op, x: op.Exp(x))\ndef half(op, x):\n    return op.Mul(x, 0.5)\n"
    )
    found = dovetail.bisect(model(), rules=[str(rules)])
    assert (found.kind, found.what, found.number) == ("rewrite", "rewrite rule 'half'", 1) and "/e" in found.where
