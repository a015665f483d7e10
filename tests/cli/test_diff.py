"""`dovetail diff` and `dovetail.diff`: models and engines, what differs and the exit code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import dovetail
from dovetail.benchmark import measure as measuring
from tests.cli.conftest import small_model


def edited(path: Path, **changes: np.ndarray) -> Path:
    """The small model with other weights."""
    proto = small_model()
    for tensor in proto.graph.initializer:
        if tensor.name in changes:
            tensor.CopyFrom(numpy_helper.from_array(changes[tensor.name], tensor.name))
    onnx.save(proto, path)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short rounds."""
    import dovetail.api.difference as module

    monkeypatch.setattr(module, "_ROUNDS", 2)
    monkeypatch.setattr(module, "_ROUND_S", 0.001)


def test_a_model_equals_itself(model: Path, call: Callable) -> None:
    outcome = call("diff", model, model, "-q")
    assert outcome.code == 0
    assert outcome.out.startswith("outputs agree") and "graph equal; weights equal" in outcome.out
    data = call("diff", model, model, "--json").json
    assert data["ok"] and data["equal"] and data["engine"] is None and data["speed"] is None and data["notes"] == {}


def test_other_weights_change_outputs_and_the_exit_code(model: Path, tmp_path: Path, call: Callable) -> None:
    other = edited(tmp_path / "other.onnx", **{"fc.bias": np.full(5, 3, np.float32)})
    outcome = call("diff", model, other, "--layers")
    assert outcome.code == 1 and "outputs DIFFER: first bad output y" in outcome.out.splitlines()[0]
    data = call("diff", model, other, "--json").json
    assert [c["name"] for c in data["weights"]["changed"]] == ["fc.bias"] and data["weights"]["changed"][0]["changed"] == 5
    assert data["graph"]["equal"] and not data["ok"]
    assert call("diff", model, other, "--only", "graph,weights").code == 0
    assert call("diff", model, other, "--tolerance", "1e9").code == 0


def test_the_first_bad_layer_is_on_top(model: Path, tmp_path: Path, call: Callable) -> None:
    weight = numpy_helper.to_array(next(t for t in small_model().graph.initializer if t.name == "bn.shift"))
    other = edited(tmp_path / "other.onnx", **{"bn.shift": weight + 5})
    outcome = call("diff", model, other, "--layers")
    assert outcome.code == 1 and "first bad layer b," in outcome.out.splitlines()[0]


def test_a_changed_graph(model: Path, tmp_path: Path, call: Callable) -> None:
    proto = small_model()
    proto.graph.node[2].CopyFrom(helper.make_node("LeakyRelu", ["b"], ["r"], name="/relu", alpha=0.5))
    proto.opset_import[0].version = 16
    path = tmp_path / "leaky.onnx"
    onnx.save(proto, path)
    data = call("diff", model, path, "--only", "graph", "--json").json
    (change,) = data["graph"]["changed"]
    assert change["name"] == "/relu" and change["what"][0] == "operator Relu -> LeakyRelu"
    assert data["graph"]["opsets"] == {"ai.onnx": [17, 16]} and data["outputs"] is None
    out = call("diff", model, path, "--only", "graph").out
    assert "opset ai.onnx: 17 -> 16" in out and "Relu 1 -> 0" in out


def test_renamed_and_turned_weights_are_found_by_contents(model: Path, tmp_path: Path, call: Callable) -> None:
    proto = small_model()
    for tensor in proto.graph.initializer:
        if tensor.name == "fc.weight":
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor).T), "head"))
    proto.graph.node[5].CopyFrom(helper.make_node("Gemm", ["f", "head", "fc.bias"], ["y"], name="/fc", transB=1))
    path = tmp_path / "turned.onnx"
    onnx.save(proto, path)
    data = call("diff", model, path, "--json").json
    assert data["weights"]["removed"] == ["fc.weight"] and data["weights"]["added"] == ["head"]
    assert data["weights"]["found"] == {"head": "fc.weight transposed (1, 0)"}
    assert data["ok"] and not data["equal"]


def test_a_model_and_its_engine(model: Path, plan: Path, call: Callable) -> None:
    data = call("diff", model, plan, "--json").json
    assert data["ok"] and data["equal"] and data["graph"]["same"] == data["graph"]["nodes"][0] > 0
    assert call("diff", plan, model, "--only", "graph,weights", "--json").json["equal"]
    assert call("diff", model, plan, "--only", "engine").code == 2


@pytest.mark.usefixtures("quick")
def test_two_engines(plan: Path, tmp_path: Path, call: Callable) -> None:
    other = tmp_path / "other.plan"
    model = edited(tmp_path / "m.onnx", **{"fc.bias": np.full(5, 3, np.float32)})
    assert call("build", model, "-o", other, "-q", "--shapes", "x:[2,3,16,16]", "--no-tune").code == 0
    outcome = call("diff", plan, other, "--json")
    data = outcome.json
    assert outcome.code == 1 and data["engine"] is not None and data["speed"]["a_ms"] > 0
    assert [c["name"] for c in data["weights"]["changed"]] == ["fc.bias"] and data["weights"]["same"] == 6
    assert any("input x" in line for line in data["graph"]["io"])
    text = call("diff", plan, other, "--only", "engine,speed").out
    assert "compilation:" in text and "interleaved rounds on cpu" in text


@pytest.mark.usefixtures("quick")
def test_the_speed_of_models_when_asked(model: Path, call: Callable) -> None:
    data = call("diff", model, model, "--speed", "-q", "--json").json
    assert data["speed"]["built"] == [str(model), str(model)] and data["graph"] is not None
    assert data["speed"]["low"] <= data["speed"]["ratio"] <= data["speed"]["high"]


def test_speed_is_decided_only_beyond_the_noise(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dovetail.api.difference as module

    engine = dovetail.build(model, verify="off", tune=False)
    ratios = iter([(0.97, 0.99), (0.9, 0.95), (1.0, 1.2), (1.03, 1.2), (0.99, 1.01)])

    def fake(calls: dict, **kwargs: object) -> measuring.Measurement:
        low, high = next(ratios)
        latency = [measuring.Latency(n, 1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0) for n in calls]
        return measuring.Measurement(tuple(latency), (measuring.Ratio("b", "a", (low + high) / 2, low, high),), 2, {})

    monkeypatch.setattr(module, "measure", fake)
    found = [dovetail.diff(engine, engine, only=["speed"]) for _ in range(5)]
    assert [d.speed["verdict"] for d in found] == ["undecided", "faster", "undecided", "slower", "same"]
    assert "not decided" in str(found[0]) and "b is faster: takes" in str(found[1]) and "same speed within 2 %" in str(found[4])


def test_stripped_engines_are_compared_by_hashes(model: Path, tmp_path: Path) -> None:
    a, b, c = (tmp_path / f"{n}.plan" for n in "abc")
    engine = dovetail.build(model, verify="off", tune=False)
    engine.save(a)
    engine.save(b, strip_weights=True)
    engine.refit({"fc.bias": np.full(5, 3, np.float32)})
    engine.save(c, strip_weights=True)
    assert dovetail.diff(a, b, only=["weights"]).equal
    found = dovetail.diff(b, c, only=["weights"]).weights
    assert found is not None and found.unread == ("fc.bias",) and not found.equal


def test_stripped_models_are_compared_by_hashes(model: Path, plan: Path, tmp_path: Path, call: Callable) -> None:
    bare = tmp_path / "bare.onnx"
    assert call("edit", "strip", model, "-o", bare, "-q").code == 0
    assert call("diff", model, bare, "--only", "graph,weights", "--json").json["equal"]
    assert call("diff", bare, plan, "--only", "weights", "--json").json["equal"]
    rng = np.random.default_rng(5)
    other = edited(tmp_path / "other.onnx", **{"conv.weight": rng.standard_normal((16, 3, 3, 3)).astype(np.float32)})
    assert call("diff", bare, other, "--only", "weights", "--json").json["weights"]["unread"] == ["conv.weight"]


def test_what_cannot_be_compared_is_said_and_the_rest_goes_on(model: Path, tmp_path: Path, call: Callable) -> None:
    proto = small_model()
    proto.graph.input[0].name = "image"
    proto.graph.node[0].input[0] = "image"
    path = tmp_path / "image.onnx"
    onnx.save(proto, path)
    outcome = call("diff", model, path)
    assert outcome.code == 1 and "outputs: not compared: got inputs ['x'] and ['image']" in outcome.out
    assert "graph: 6 -> 6 nodes: 6 equal" in outcome.out and "input x is only in a" in outcome.out
    assert call("diff", model, path, "--only", "graph,weights").code == 0


def test_inputs_of_the_user(model: Path, inputs: Path, call: Callable) -> None:
    assert call("diff", model, model, "--inputs", inputs).code == 0
    assert call("diff", model, model, "--shapes", "x:[3,3,16,16]").code == 0


@pytest.mark.parametrize("arguments", [("--only", "speeed"), ("--only", "graph,kernels")])
def test_unknown_sections(arguments: tuple[str, ...], model: Path, call: Callable) -> None:
    outcome = call("diff", model, model, *arguments)
    assert outcome.code == 2 and "expected some of graph, engine, weights, outputs, speed" in outcome.err


def test_broken_files(model: Path, tmp_path: Path, call: Callable) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    assert call("diff", model, bad).code == 1
    assert call("diff", model, tmp_path / "missing.onnx").code == 1
    bad.write_bytes(b"PK\x03\x04no engine")
    assert call("diff", model, bad).code == 1
