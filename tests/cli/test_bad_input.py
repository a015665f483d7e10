"""What a user may get wrong: one error that says where, what, and what to do; never a trace, and no file left behind."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest


def refused(outcome, *parts: str) -> None:
    assert outcome.code in (1, 2), outcome.err
    assert outcome.err.count("error:") == 1 and "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err


def test_inputs_that_are_no_npz(plan: Path, tmp_path: Path, call: Callable) -> None:
    np.save(tmp_path / "x.npy", np.ones(3, np.float32))
    refused(call("run", plan, "--inputs", tmp_path / "x.npy"), "x.npy", "numpy.savez")
    refused(call("run", plan, "--inputs", tmp_path / "missing.npz"), "missing.npz: cannot be read", "check the path")
    refused(call("run", plan, "--inputs", tmp_path), "cannot be read, Is a directory")
    (tmp_path / "text.npz").write_text("hello")
    refused(call("run", plan, "--inputs", tmp_path / "text.npz"), "not a readable .npz")


def test_an_engine_where_a_model_is_wanted_and_the_reverse(plan: Path, model: Path, tmp_path: Path, call: Callable) -> None:
    for arguments in (["build", plan, "-o", tmp_path / "n.plan"], ["check", plan], ["simplify", plan, tmp_path / "s.onnx"]):
        refused(call(*arguments), "got an engine, expected an ONNX model")
    refused(call("refit", model, model, "-o", tmp_path / "n.plan"), "no engine", "dovetail build")
    refused(call("verify", model), "no engine", "dovetail build")
    assert not (tmp_path / "n.plan").exists() and not (tmp_path / "s.onnx").exists()


@pytest.mark.parametrize("verb", ["inspect", "check", "explain", "profile", "simplify"])
@pytest.mark.parametrize("kind", ["empty", "text", "folder"])
def test_no_model(verb: str, kind: str, tmp_path: Path, call: Callable) -> None:
    path = tmp_path / "m.onnx"
    path.mkdir() if kind == "folder" else path.write_text("hello world\n" if kind == "text" else "")
    refused(call(verb, path, *([tmp_path / "s.onnx"] if verb == "simplify" else [])), "m.onnx: got")


@pytest.mark.parametrize("option", ["build -o", "run --outputs", "profile --trace", "report --no-run -o", "refit -o"])
def test_a_folder_in_the_place_of_a_result_is_refused_before_the_work(option: str, plan: Path, model: Path, tmp_path: Path, call: Callable):
    verb, *rest = option.split()
    taken = tmp_path / "taken"
    taken.mkdir()
    files = {"build": [model], "refit": [plan, model]}.get(verb, [plan])
    refused(call(verb, *files, *rest, taken), f"{rest[-1] if rest[-1] != '-o' else '--output'}: got", "which is a folder")
    assert not list(taken.iterdir()) and not list(tmp_path.glob(".*"))


def test_places_that_cannot_be_written(plan: Path, model: Path, tmp_path: Path, call: Callable) -> None:
    (tmp_path / "file").write_text("")
    refused(call("refit", plan, model, "-o", tmp_path / "file" / "n.plan"), "expected a place to write to")


def test_inputs_too_large_for_the_memory(plan: Path, model: Path, call: Callable) -> None:
    described = json.loads(call("inspect", plan, "--json").out)["inputs"]
    name, shape = described[0]["name"], described[0]["shape"]
    assert not isinstance(shape[0], int)
    sizes = ",".join(str(10**10 if k == 0 else d) for k, d in enumerate(shape))
    refused(call("run", plan, "--shapes", f"{name}:[{sizes}]"), "memory:", "use smaller shapes")
    sizes = ",".join(str(d + 1 if isinstance(d, int) else 1) for d in shape)
    refused(call("run", plan, "--shapes", f"{name}:[{sizes}]"), "which the engine is built for")


def test_explain_of_a_node_that_is_not_there_names_those_that_are(plan: Path, call: Callable) -> None:
    refused(call("explain", plan, "--node", "nope"), "--node: got 'nope'", "expected a node such as")


def test_reduce_with_inputs_that_do_not_fit_is_no_failure_of_the_model(model: Path, tmp_path: Path, call: Callable) -> None:
    np.savez(tmp_path / "x.npz", other=np.ones(3, np.float32))
    refused(call("debug", "reduce", model, "-o", tmp_path / "q.onnx", "--inputs", tmp_path / "x.npz"), "got inputs ['other']")
    assert not (tmp_path / "q.onnx").exists()


def test_simplify_takes_its_result_as_other_verbs_do(model: Path, tmp_path: Path, call: Callable) -> None:
    assert call("simplify", model, "-o", tmp_path / "a.onnx").code == 0
    assert call("simplify", model, tmp_path / "b.onnx").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    refused(call("simplify", model), "got no file to write")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "expected torchvision:NAME"),
        ("m.onnx", "an ONNX model is what export writes"),
        ("net.py", "which callable of it, net.py:NAME?"),
        ("folder", "a SavedModel folder (with saved_model.pb in it)"),
    ],
)
def test_what_is_no_source_of_an_export_is_said_before_any_package_is_asked_for(spec: str, message: str, tmp_path: Path, call: Callable):
    refused(call("export", spec, "-o", tmp_path / "m.onnx"), f"got {spec!r}", message)


def test_another_archive_is_no_engine(inputs: Path, call: Callable) -> None:
    refused(call("run", inputs), "got no manifest.json, expected an engine file")


def test_simplify_of_a_model_that_cannot_run_says_why(tmp_path: Path, call: Callable) -> None:
    graph = onnx.parser.parse_graph("g () => (float[2] r) { r = Relu (x) }")
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    refused(call("simplify", tmp_path / "m.onnx", tmp_path / "s.onnx"), "'x' is used before any node computes it")
    assert not (tmp_path / "s.onnx").exists()
