"""`dovetail report` and `dovetail view`: pages and fused graphs of engines."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import dovetail


def data_of(path: Path) -> dict:
    """The document in a page."""
    found = re.search(r'<script type="application/json" id="document">(.*?)</script>', path.read_text(), re.S)
    assert found
    return json.loads(found[1])


def test_report_times_the_engine(plan: Path, inputs: Path, model: Path, tmp_path: Path, call: Callable) -> None:
    page = tmp_path / "r.html"
    outcome = call("report", plan, "-o", page, "--inputs", inputs, "--model", model, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["measured"] and outcome.json["latency_ms"] > 0 and outcome.json["bytes"] == page.stat().st_size
    found = data_of(page)
    assert found["title"] == plan.name and all(s["us"] is not None for s in found["steps"])
    assert found["onnx_ops"]["/conv"] == "Conv" and found["engine"]["sizes"] == {"N": 2}
    assert found["totals"]["latency"]["median_ms"] > 0


def test_report_without_a_run(plan: Path, call: Callable) -> None:
    outcome = call("report", plan, "--no-run")
    assert outcome.code == 0 and "not timed: --no-run was given" in outcome.out
    found = data_of(plan.with_suffix(".html"))
    assert found["machine"] is None and found["totals"]["not_run"] == "--no-run was given"


def test_report_of_a_model_builds_it(model: Path, tmp_path: Path, call: Callable) -> None:
    outcome = call("report", model, "-o", tmp_path / "r.html", "--no-run", "--no-tune", "--verify", "off", "-q")
    assert outcome.code == 0, outcome.err
    assert data_of(tmp_path / "r.html")["steps"]


def test_what_report_cannot_do(plan: Path, model: Path, tmp_path: Path, call: Callable) -> None:
    nowhere = call("report", plan, "-o", tmp_path / "no" / "r.html", "--no-run")
    assert nowhere.code == 2 and "whose folder does not exist" in nowhere.err
    (tmp_path / "junk.plan").write_bytes(b"junk")
    assert call("report", tmp_path / "junk.plan").code == 1
    assert call("report", tmp_path / "none.plan").code == 1
    target = call("report", plan, "--no-run", "--target", "sm_90")
    assert target.code == 2 and "--target" in target.err
    other = onnx.load(model)
    for node in other.graph.node:
        node.name = f"other{node.name}"
    onnx.save(other, tmp_path / "other.onnx")
    wrong = call("report", plan, "-o", tmp_path / "r.html", "--no-run", "--model", tmp_path / "other.onnx")
    assert wrong.code == 2 and "none of whose nodes" in wrong.err
    assert not (tmp_path / "r.html").exists()


def test_engine_saves_its_report(model: Path, tmp_path: Path) -> None:
    engine = dovetail.build(model, tune=False, verify="off")
    engine.save_report(tmp_path / "r.html", {"x": np.zeros((3, 3, 16, 16), np.float32)})
    found = data_of(tmp_path / "r.html")
    assert found["engine"]["sizes"] == {"N": 3} and found["totals"]["profile"]["runs"] > 0
    assert found["title"] == model.name


def test_view_exports_the_fused_graph(plan: Path, inputs: Path, tmp_path: Path, call: Callable) -> None:
    outcome = call("view", plan, "--export", tmp_path / "f.onnx", "--inputs", inputs, "--json")
    assert outcome.code == 0, outcome.err
    fused = onnx.load(tmp_path / "f.onnx")
    onnx.checker.check_model(fused)
    assert [v.name for v in fused.graph.input] == ["x"] and [v.name for v in fused.graph.output] == ["y"]
    assert all(node.domain == "dovetail" for node in fused.graph.node) and len(fused.graph.node) == outcome.json["nodes"]
    known = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in fused.graph.node]
    conv = next(a for a in known if b"/conv" in a["onnx_nodes"])
    assert conv["time_us"] > 0 and 0 < conv["time_share"] <= 1 and conv["precision"] == b"f32" and conv["bytes"] > 0
    assert conv["kernel"].startswith(b"k_") and conv["tactic"] and conv["shapes"]
    names = {name for node in fused.graph.node for name in node.output}
    assert "y" in names and names <= {"y", *(v.name for v in fused.graph.value_info)}


def test_view_exports_without_a_run(plan: Path, tmp_path: Path, call: Callable) -> None:
    outcome = call("view", plan, "--export", tmp_path / "f.onnx", "--no-run")
    assert outcome.code == 0 and "without times" in outcome.out
    for verb in ("build", "check", "report"):
        refused = call(verb, tmp_path / "f.onnx")
        assert refused.code == 1 and "a drawing of the engine" in refused.err and "expected a model" in refused.err


def test_what_view_cannot_do(plan: Path, model: Path, tmp_path: Path, call: Callable) -> None:
    assert call("view", model, "--export", tmp_path / "f.onnx").code == 2
    assert call("view", plan, "--no-run", "--export", tmp_path / "no" / "f.onnx").code == 2
    assert call("view", model, "--port", "99999").code == 2
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    assert call("view", tmp_path / "junk.onnx", "--no-browser").code == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = call("view", model, "--port", taken.getsockname()[1], "--no-browser")
    assert busy.code == 2 and "cannot be used" in busy.err


@pytest.mark.parametrize("what", ["model", "engine"])
def test_view_serves_until_it_is_interrupted(what: str, plan: Path, model: Path) -> None:
    pytest.importorskip("netron")
    path = model if what == "model" else plan
    command = [sys.executable, "-m", "dovetail", "view", str(path), "--no-browser", *(["--no-run"] if what == "engine" else [])]
    # A shell has background jobs ignore interrupts, and what they start would, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.search(r"http://\S+?(?=;)", line)
            assert address, line or process.stderr.read()
            with urllib.request.urlopen(address[0], timeout=30) as answer:
                assert b"<html" in answer.read().lower()
            process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert process.returncode == 0
        finally:
            process.kill()
