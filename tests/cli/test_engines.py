"""Verbs over engine files: build, run, bench, compare, verify, inspect, explain."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import dovetail
from dovetail.cli.inspect_plan import extract


def test_build_writes_an_engine_and_reports(model: Path, tmp_path: Path, call: Callable) -> None:
    plan = tmp_path / "out" / "m.plan"
    outcome = call("build", model, "-o", plan, "--json")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert data["output"] == str(plan) and plan.stat().st_size == data["output_bytes"]
    assert data["report"]["requested"]["precision"] == "fp32"
    assert call("build", model).code == 0
    assert model.with_suffix(".plan").is_file(), "the default name is the model's"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--precision", "int3"], "precision: got 'int3'"),
        (["--device", "toaster"], "device: got 'toaster'"),
        (["--target", "cpu:mmx"], "target: got 'cpu:mmx'"),
    ],
)
def test_what_cannot_be_had_is_refused(options: list[str], message: str, model: Path, tmp_path: Path, call: Callable) -> None:
    outcome = call("build", model, "-o", tmp_path / "m.plan", *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "m.plan").exists()


def test_shapes_for_an_unknown_input(model: Path, call: Callable) -> None:
    outcome = call("build", model, "--shapes", "z:[1,3,16,16]")
    assert outcome.code == 1
    assert "'z'" in outcome.err and "'x'" in outcome.err


def test_build_into_a_folder_that_cannot_be_made(model: Path, call: Callable) -> None:
    outcome = call("build", model, "-o", model / "m.plan")
    assert outcome.code == 2 and "expected a place to write to" in outcome.err


def test_run_agrees_with_onnxruntime(plan: Path, model: Path, inputs: Path, tmp_path: Path, call: Callable) -> None:
    results = tmp_path / "y.npz"
    outcome = call("run", plan, "--inputs", inputs, "--outputs", results, "--json")
    assert outcome.code == 0, outcome.err
    with np.load(inputs) as x, np.load(results) as y:
        (expected,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, dict(x))
        assert y.files == ["y"]
        np.testing.assert_allclose(y["y"], expected, rtol=1e-4, atol=1e-5)
    (row,) = outcome.json["outputs"]
    assert row["shape"] == [2, 5]
    assert row["mean"] == pytest.approx(float(expected.mean()), rel=1e-4)


def test_run_makes_inputs_where_there_are_none(plan: Path, call: Callable) -> None:
    def means(*options: object) -> list[float]:
        return [r["mean"] for r in call("run", plan, "--json", *options).json["outputs"]]

    assert means("--seed", 1) == means("--seed", 1) != means("--seed", 2)
    assert call("run", plan, "--shapes", "x:[3,3,16,16]", "--json").json["outputs"][0]["shape"] == [3, 5]


def test_affinity_is_checked_and_used(plan: Path, inputs: Path, call: Callable) -> None:
    cpu = min(os.sched_getaffinity(0))
    try:
        outcome = call("run", plan, "--inputs", inputs, "--threads", 2, "--affinity", cpu, "--json")
        assert outcome.json["outputs"][0]["shape"] == [2, 5]
        pinned = [os.sched_getaffinity(t.native_id) for t in threading.enumerate() if t.name.startswith("dovetail-")]
        assert pinned == [{cpu}]
        assert call("run", plan, "--affinity", "none").code == 2
        assert call("run", plan, "--affinity", "0-100000").code == 2
    finally:
        dovetail.set_affinity(())


def test_run_of_a_model_builds_it_first(model: Path, inputs: Path, call: Callable) -> None:
    assert call("run", model, "--inputs", inputs, "--json").json["outputs"][0]["shape"] == [2, 5]


@pytest.mark.parametrize(
    "arrays, names",
    [
        ({"x": np.zeros((2, 4, 16, 16), np.float32)}, ["'x'"]),
        ({"x": np.zeros((2, 3, 16, 16), np.int64)}, ["'x'"]),
        ({"z": np.zeros((2, 3, 16, 16), np.float32)}, ["x"]),
        ({}, ["x"]),
    ],
)
def test_inputs_that_do_not_fit(arrays: dict, names: list[str], plan: Path, tmp_path: Path, call: Callable) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    outcome = call("run", plan, "--inputs", tmp_path / "bad.npz", "--outputs", tmp_path / "y.npz")
    assert outcome.code == 1, outcome.err
    assert all(name in outcome.err for name in names)
    assert not (tmp_path / "y.npz").exists()


def test_types_without_a_name_in_numpy_pass_through_files(tmp_path: Path, call: Callable) -> None:
    model = tmp_path / "m.onnx"
    text = '<ir_version: 9, opset_import: ["": 18]> g (bfloat16[N] x) => (bfloat16[N] y) { y = Neg (x) }'
    onnx.save(onnx.parser.parse_model(text), model)
    assert call("build", model, "-o", tmp_path / "m.plan").code == 0
    for source, result in (("a", "b"), ("b", "c")):
        given = [] if source == "a" else ["--inputs", tmp_path / "x.npz"]
        outcome = call("run", tmp_path / "m.plan", *given, "--shapes", "x:[5]", "--outputs", tmp_path / f"{result}.npz")
        assert outcome.code == 0, outcome.err
        np.savez(tmp_path / "x.npz", x=np.load(tmp_path / f"{result}.npz")["y"])
    first, second = (np.load(tmp_path / f"{n}.npz")["y"].view(np.uint16) for n in "bc")
    np.testing.assert_array_equal(first ^ second, np.full(5, 1 << 15))  # the sign
    outcome = call("compare", model, tmp_path / "m.plan", "--inputs", tmp_path / "x.npz")
    assert outcome.code == 0, outcome.err


def test_pickled_inputs_are_refused(plan: Path, tmp_path: Path, call: Callable) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], object))
    outcome = call("run", plan, "--inputs", tmp_path / "evil.npz")
    assert outcome.code == 1 and "savez" in outcome.err
    (tmp_path / "text.npz").write_text("hello")
    assert call("run", plan, "--inputs", tmp_path / "text.npz").code == 1
    assert call("run", plan, "--inputs", tmp_path / "none.npz").code == 1


@pytest.mark.parametrize("verb", ["run", "inspect", "explain", "verify"])
def test_damaged_engines_are_user_errors(verb: str, plan: Path, tmp_path: Path, call: Callable) -> None:
    data = plan.read_bytes()
    for name, content in [("short", data[: len(data) // 2]), ("zip", b"PK\x03\x04" + bytes(100))]:
        path = tmp_path / f"{name}.plan"
        path.write_bytes(content)
        outcome = call(verb, path)
        assert outcome.code == 1, outcome.err
        assert "Traceback" not in outcome.err


def test_bench_interleaves_peers_and_draws(plan: Path, tmp_path: Path, call: Callable) -> None:
    plot = tmp_path / "p.svg"
    arguments = ["bench", plan, "--vs", "onnxruntime", "--threads", 1, "--rounds", 2, "--round-s", 0, "--plot", plot]
    outcome = call(*arguments)
    assert outcome.code == 0, outcome.err
    assert "dovetail" in outcome.out and "onnxruntime" in outcome.out
    assert plot.read_text().lstrip().startswith("<?xml")
    data = call(*arguments, "--json").json
    assert [r["name"] for r in data["latencies"]] == ["dovetail", "onnxruntime"]
    assert data["threads"] == 1 and data["fma_peak_gflops"] > 1
    (ratio,) = data["ratios"]
    assert 0 < ratio["low"] <= ratio["ratio"] <= ratio["high"]


def test_bench_needs_the_model_for_peers(plan: Path, tmp_path: Path, call: Callable) -> None:
    alone = tmp_path / "alone.plan"
    shutil.copy(plan, alone)
    outcome = call("bench", alone, "--rounds", 2, "--round-s", 0, "--json")
    assert outcome.code == 0 and outcome.json["ratios"] == []
    assert call("bench", plan, "--vs", "tflite").code == 2
    assert call("bench", plan, "--rounds", 1).code == 2


def test_compare_accepts_equals_and_names_differences(plan: Path, model: Path, inputs: Path, tmp_path: Path, call: Callable) -> None:
    outcome = call("compare", model, plan, "--inputs", inputs)
    assert outcome.code == 0, outcome.err + outcome.out
    assert call("compare", model, plan, "--layers", "--json").code == 0
    changed = onnx.load(model)
    bias = next(t for t in changed.graph.initializer if t.name == "fc.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, "fc.bias"))
    onnx.save(changed, tmp_path / "changed.onnx")
    outcome = call("compare", tmp_path / "changed.onnx", plan, "--inputs", inputs)
    assert outcome.code == 1
    assert "y" in outcome.out


def test_verify_repeats_the_certificate(plan: Path, call: Callable) -> None:
    outcome = call("verify", plan)
    assert outcome.code == 0, outcome.err
    assert call("verify", plan, "--json").json


def test_inspect_prints_the_plan(plan: Path, call: Callable) -> None:
    outcome = call("inspect", plan, "--steps")
    assert outcome.code == 0, outcome.err
    assert "input   x: f32[N,3,16,16]" in outcome.out and "output  y: f32[N,5]" in outcome.out
    assert "/conv" in outcome.out
    data = call("inspect", plan, "--json").json
    assert "targets" in data and data["kernels"] >= 1
    assert {"plan.json", "kernels.c"} <= {name.split("/")[-1] for name in data["members"]}


def test_inspect_prints_one_kernel(plan: Path, call: Callable) -> None:
    step = next(s for s in call("inspect", plan, "--json").json["steps"] if "/conv" in s["origin"] and s["kind"] == "kernel")
    outcome = call("inspect", plan, "--kernel", step["kernel"])
    assert outcome.code == 0, outcome.err
    assert f"{step['kernel']}(int64_t tid" in outcome.out.replace("  ", " ")
    assert call("inspect", plan, "--kernel", step["kernel"][:10]).code == 0
    assert call("inspect", plan, "--kernel", "k_none").code == 2


def test_kernels_are_cut_out_whole() -> None:
    unit = "prelude\nstatic int k_a_help;\nvoid k_a(int x)\n{\n}\nvoid k_b(int x)\n{\n}\n"
    assert extract(unit, "k_a", ["k_a", "k_b"]) == "static int k_a_help;\nvoid k_a(int x)\n{\n}"
    assert extract(unit, "k_b", ["k_a", "k_b"]) == "void k_b(int x)\n{\n}"


@pytest.mark.parametrize("stage", ["import", "simplify", "fuse", "select"])
def test_inspect_prints_the_ir_after_a_stage(stage: str, model: Path, call: Callable) -> None:
    from dovetail.ir.parser import parse_module

    outcome = call("inspect", model, "--after", stage)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("dovetail.ir ")
    assert [v.name for v in parse_module(outcome.out).main.inputs] == ["x"]
    assert ("Fusion" in outcome.out) == (stage in ("fuse", "select"))


def test_stages_are_listed(model: Path, plan: Path, call: Callable) -> None:
    assert "fuse" in call("inspect", model, "--after", "list").out.split()
    assert call("inspect", model, "--after", "nonsense").code == 2
    assert call("inspect", plan, "--after", "fuse").code == 2
    assert call("inspect", model, "--kernel", "k").code == 2


def test_explain_says_why(plan: Path, call: Callable) -> None:
    outcome = call("explain", plan)
    assert outcome.code == 0, outcome.err
    assert "chosen" in outcome.out and "not fused" in outcome.out
    data = call("explain", plan, "--node", "/conv", "--json").json
    assert data["groups"] and all(any("/conv" in n for n in [g["name"], *g["origin"]]) for g in data["groups"])
    assert call("explain", plan, "--node", "no such node", "--json").json["error"]["type"] == "UsageError"
