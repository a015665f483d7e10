"""fp16 engines whose values pass its range: kept in fp32 and reported, repeated from the record, or refused by name."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

import dovetail
from dovetail import builder
from dovetail.builder.blame import first_wrong
from dovetail.builder.options import BuildOptions
from dovetail.builder.ranges import RangeDecision, Ranges
from dovetail.builder.restore import as_recorded, options_of, ranges_of, restore
from dovetail.cli import main, options
from dovetail.cli.explain import select
from dovetail.core.dtypes import F16
from dovetail.core.env import override
from dovetail.core.errors import UsageError, VerificationError
from dovetail.device.cuda.driver_host import HostDriver
from dovetail.frontend.importer import import_onnx
from dovetail.ops.evaluate import evaluate
from tests.unit.cuda_device import plug_in
from tests.unit.small_models import model

FP16: dict[str, Any] = {"device": "cuda", "precision": "fp16", "tune": False}


def normalised(scale: float = 1e4) -> ModelProto:
    """x[N,6,40] → MatMul, whose results reach 30 times `scale`, variance normalisation, MatMul → y[N,6,24]."""
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["large"], name="expand"),
        helper.make_node("ReduceMean", ["large"], ["mean"], name="mean", axes=[2]),
        helper.make_node("Sub", ["large", "mean"], ["centred"], name="centre"),
        helper.make_node("Mul", ["centred", "centred"], ["squares"], name="square"),
        helper.make_node("ReduceMean", ["squares"], ["variance"], name="variance", axes=[2]),
        helper.make_node("Sqrt", ["variance"], ["deviation"], name="root"),
        helper.make_node("Div", ["centred", "deviation"], ["normal"], name="norm"),
        helper.make_node("MatMul", ["normal", "v"], ["y"], name="project"),
    ]
    weights = {"w": scale * rng.standard_normal((40, 72), np.float32), "v": rng.standard_normal((72, 24), np.float32)}
    return model(nodes, {"x": ["N", 6, 40]}, {"y": ["N", 6, 24]}, weights)


def cancelling() -> ModelProto:
    """x[N,32] → the difference of two products with almost equal weights → y[N,16]: fp16 says nothing of it."""
    rng = np.random.default_rng(6)
    w = rng.standard_normal((32, 16), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="first"),
        helper.make_node("MatMul", ["x", "b"], ["q"], name="second"),
        helper.make_node("Sub", ["p", "q"], ["y"], name="difference"),
    ]
    weights = {"a": w, "b": w + np.float32(1e-4) * rng.standard_normal(w.shape, np.float32)}
    return model(nodes, {"x": ["N", 32]}, {"y": ["N", 16]}, weights)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    """cuda:0 as a driver that interprets the kernels of whatever is built."""
    return plug_in(monkeypatch)


def inputs(scale: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.float32(scale) * np.random.default_rng(0).standard_normal((2, 6, 40)).astype(np.float32)}


def error(engine: dovetail.Engine, proto: ModelProto, given: dict[str, np.ndarray]) -> float:
    want, got = evaluate(import_onnx(proto), given)["y"], engine.run(given)["y"]
    return float(np.linalg.norm(got - want) / np.linalg.norm(want)) if np.isfinite(got).all() else np.inf


def test_what_is_too_large_is_kept_and_reported(device: HostDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = dovetail.build(normalised(), **FP16)
    assert error(engine, normalised(), inputs()) <= 2e-3
    report = engine.report().json()
    assert report["ranges"]["measured"] and report["ranges"]["inputs"].startswith("seeded normal numbers: x [")
    (kept,) = report["ranges"]["kept"]
    assert (kept["value"], kept["node"]) == ("large", "expand (MatMul)") and 1e5 < kept["largest"] < 1e6
    assert set(report["flops_by_dtype"]) == {"f16"} and report["actual"]["precision"] == "fp16"
    assert any("reads values of up to" in entry["reason"] for entry in report["kept_in_fp32"])
    assert "expand (MatMul): large reaches" in str(engine.report()) and "safe in fp16 is 16376" in str(engine.report())
    assert engine.plan.certificate["engine"]["outputs"][0]["relative_l2"] <= 2e-3
    assert any("safe range" in entry["reason"] for entry in select(report)["kept_in_fp32"])

    path = tmp_path / "m.plan"
    engine.save(path)
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ranges"] == report["ranges"] and shown["kept_in_fp32"] == report["kept_in_fp32"]
    assert main(["explain", str(path)]) == 0 and "kept in fp32: " in capsys.readouterr().out


def test_a_recorded_decision_is_repeated_without_measuring(device: HostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = dovetail.build(normalised(), **FP16)
    monkeypatch.setattr("dovetail.builder.measure", lambda *a, **k: pytest.fail("measured again"))
    module = restore(engine.graph, engine.plan, engine.weights())
    again = builder.compile_module(module, options_of(engine.plan), choose=as_recorded(engine.plan), ranges=ranges_of(engine.plan))
    assert [k.entry for k in again.plan.kernels] == [k.entry for k in engine.plan.kernels]
    assert again.ranges.data() == engine.report().json()["ranges"]
    assert engine.verify("sample")["engine"]["checked"]


def test_samples_show_what_seeded_inputs_do_not(device: HostDriver) -> None:
    plain = dovetail.build(normalised(30.0), **FP16)
    assert not plain.report().json()["ranges"]["kept"] and error(plain, normalised(30.0), inputs(1e3)) > 0.1
    engine = dovetail.build(normalised(30.0), samples=[inputs(), inputs(1e3)], **FP16)
    report = engine.report().json()
    assert report["ranges"]["inputs"] == "2 of the caller's samples" and len(report["ranges"]["kept"]) == 1
    assert error(engine, normalised(30.0), inputs(1e3)) <= 2e-3
    assert engine.plan.certificate["engine"]["seeds"] == 2 and engine.plan.certificate["engine"]["sizes"] == {"N": 2}


def test_without_verification_nothing_is_claimed(device: HostDriver) -> None:
    engine = dovetail.build(normalised(), verify="off", **FP16)
    assert engine.report().json()["ranges"] == RangeDecision(reason="verify='off'").data()
    assert "ranges: not measured: verify='off'" in str(engine.report())
    bf16 = dovetail.build(normalised(), **FP16 | {"precision": "bf16"})
    assert not bf16.report().json()["ranges"]["measured"] and "ranges" not in str(bf16.report())


def test_infinities_are_refused_by_name(device: HostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.builder._measured", lambda *a: Ranges(False, "for this test"))
    with pytest.raises(
        VerificationError, match=r"not finite.*goes wrong is 'large' of expand \(MatMul\) reaches [\d.e+]+ in fp32.*bf16.*--samples"
    ):
        dovetail.build(normalised(), **FP16)


def test_a_model_that_amplifies_rounding_is_refused_unless_its_error_is_accepted(device: HostDriver) -> None:
    with pytest.raises(VerificationError, match=r"amplifies rounding.*--tolerance"):
        dovetail.build(cancelling(), **FP16)
    engine = dovetail.build(cancelling(), tolerance=20.0, **FP16)
    (row,) = engine.plan.certificate["engine"]["outputs"]
    assert engine.plan.certificate["engine"]["tolerance"] == 20.0 and 0.1 < row["relative_l2"] < 20


def test_nodes_are_kept_in_fp32_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.builder.compile_plan", lambda plan, *a: builder.machine_code.MachineCode(plan, "", None, None))
    asked = BuildOptions(target="sm_90", precision="fp16", verify="off", fp32_nodes=("proj*",), allow_fallback=True)
    plan = builder.build(normalised(), asked).plan
    report: Any = plan.meta["report"]
    assert {"node": "project (MatMul)", "reason": "fp32_nodes says so"} in report["kept_in_fp32"]
    assert set(report["flops"]) == {"f16", "f32"} and options_of(plan).fp32_nodes == ("proj*",)
    with pytest.raises(UsageError, match="got 'projekt', expected the name of a node, such as project"):
        builder.build(normalised(), BuildOptions(target="sm_90", precision="fp16", verify="off", fp32_nodes=("projekt",)))
    with pytest.raises(UsageError, match="for fp32, expected precision 'fp16' or 'bf16'"):
        BuildOptions(target="sm_90", fp32_nodes=("project",)).check()
    with pytest.raises(UsageError, match="tolerance: got 0"):
        BuildOptions(target="sm_90", precision="fp16", tolerance=0).check()


def test_the_first_value_that_goes_wrong() -> None:
    module = import_onnx(normalised())
    builder.optimise(module)
    told, kind = first_wrong(module, inputs(), {"large", "y"}, F16, 2e-3)
    assert kind == "overflow" and told.startswith("'large' of expand (MatMul) reaches")
    assert first_wrong(module, inputs(), {"normal", "y"}, F16, 2e-3) == ("", "")
    told, kind = first_wrong(module, inputs(1e-3), {"large"}, F16, 1e-5)
    assert kind == "rounding" and told.startswith("'large' of expand (MatMul)") and "is off by" in told
    told, kind = first_wrong(module, inputs(1e-12), {"large"}, F16, 1e-5)
    assert kind == "underflow" and told.endswith("where kernels round to f16, which has fewer digits below 6.1e-05")


def test_the_command_line_reads_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **inputs())
    parser = argparse.ArgumentParser()
    options.add_build(parser)
    words = ["--samples", str(tmp_path / "a.npz"), "--fp32-nodes", "head/*", "z", "--tolerance", "0.05"]
    given = options.build_options(parser.parse_args(words))
    assert given["fp32_nodes"] == ("head/*", "z") and given["tolerance"] == 0.05
    assert np.array_equal(given["samples"][0]["x"], inputs()["x"])
    plain = options.build_options(parser.parse_args([]))
    assert plain["samples"] is None and plain["fp32_nodes"] == () and plain["tolerance"] is None


def test_choices_between_close_candidates_may_differ(device: HostDriver) -> None:
    proto = cancelling()
    proto.graph.node[-1].output[0] = "d"
    proto.graph.node.append(helper.make_node("TopK", ["d", "k"], ["y", "i"], name="best"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([3], np.int64), "k"))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    (row,) = dovetail.build(proto, **FP16).plan.certificate["engine"]["outputs"]
    assert row["relative_l2"] > 0.1 and row["rounding_moves_it_by"] > 0.05


def test_seeded_ranges_are_measured_once(device: HostDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with override(cache=tmp_path):
        first = dovetail.build(normalised(), **FP16)
        monkeypatch.setattr("dovetail.builder.measure", lambda *a, **k: pytest.fail("measured again"))
        second = dovetail.build(normalised(), **FP16)
        assert second.report().json()["ranges"] == first.report().json()["ranges"]
        assert [k.entry for k in second.plan.kernels] == [k.entry for k in first.plan.kernels]
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            dovetail.build(normalised(2e4), **FP16)
