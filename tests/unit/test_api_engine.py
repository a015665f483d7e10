"""The public Engine: build, run, save, load, taps, profile, report, refit, verify, compare."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import dovetail
from dovetail.core.env import override
from dovetail.frontend.importer import import_onnx
from dovetail.ops.evaluate import evaluate
from tests.unit.small_models import classifier, relu, two_outputs


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with override(home=tmp_path_factory.mktemp("home")):
        yield


@pytest.fixture(scope="module")
def engine() -> dovetail.Engine:
    return dovetail.build(classifier(), tune=False)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12), np.float32)


def test_build_runs_and_agrees_with_the_oracle(engine: dovetail.Engine) -> None:
    for count in (1, 2, 5):
        x = images(count)
        y = engine.run({"x": x})["y"]
        want = evaluate(import_onnx(classifier()), {"x": x})["y"]
        assert y.shape == (count, 5)
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-6)
        assert np.array_equal(engine(x), y) and np.array_equal(engine(x=x), y)


@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_models_are_accepted_as_path_and_bytes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(relu(), path)
    engine = dovetail.build(path if kind == "path" else path.read_bytes(), verify="off", tune=False)
    assert np.array_equal(engine(np.full((1, 8), -1, np.float32)), np.zeros((1, 8)))
    assert (engine.model_path == str(path)) == (kind == "path")


def test_bindings_say_name_dtype_and_shape(engine: dovetail.Engine) -> None:
    (x,), (y,) = engine.inputs, engine.outputs
    assert (x.name, x.dtype.name, [str(d) for d in x.shape or ()]) == ("x", "f32", ["N", "3", "12", "12"])
    assert str(y) == "y: f32[N, 5]"


def test_several_outputs_come_in_order() -> None:
    engine = dovetail.build(two_outputs(), verify="off", tune=False)
    a, b = np.full((2, 4), 5, np.float32), np.full((2, 4), 3, np.float32)
    total, difference = engine(a, b=b)
    assert (total == 8).all() and (difference == 2).all()
    with pytest.raises(dovetail.BindingError, match="in order and by name"):
        engine(a, b, a=a)
    with pytest.raises(dovetail.BindingError, match="got 3 inputs"):
        engine(a, b, a)


class Tensor:
    """A stand-in for another library's array: DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **kwargs: object) -> object:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def from_dlpack(array: object) -> Tensor:
    return Tensor(np.from_dlpack(array))  # type: ignore[arg-type]


def test_arrays_of_another_library_come_back_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    library = types.ModuleType("otherlib")
    library.from_dlpack = from_dlpack  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "otherlib", library)
    monkeypatch.setattr(Tensor, "__module__", "otherlib")
    engine = dovetail.build(relu(), verify="off", tune=False)
    y = engine(Tensor(np.full((1, 8), 2, np.float32)))
    assert isinstance(y, Tensor) and (y.array == 2).all()
    assert isinstance(engine(np.zeros((1, 8), np.float32)), np.ndarray)


def test_bad_calls_name_what_is_wrong(engine: dovetail.Engine) -> None:
    with pytest.raises(dovetail.BindingError, match="float64"):
        engine.run({"x": images(1).astype(np.float64)})
    with pytest.raises(dovetail.ShapeError, match="12"):
        engine.run({"x": np.zeros((1, 3, 12, 13), np.float32)})
    with pytest.raises(dovetail.BindingError, match="'x'"):
        engine.run({"z": images(1)})
    with pytest.raises(dovetail.UsageError, match="verify"):
        dovetail.build(relu(), verify="maybe")
    with pytest.raises(dovetail.UsageError, match="target"):
        dovetail.build(relu(), target="cpu:mmx")


def test_taps_return_values_and_leave_outputs_as_they_are(engine: dovetail.Engine) -> None:
    x = images(2)
    plain = engine.run({"x": x})
    assert "r" in engine.tap_names
    both = engine.run({"x": x}, taps=["r"])
    assert both["y"].tobytes() == plain["y"].tobytes()
    want = evaluate(import_onnx(classifier()), {"x": x}, also=["r"])["r"]
    np.testing.assert_allclose(both["r"], want, rtol=1e-4, atol=1e-5)
    assert np.array_equal(engine.tap(["r"], {"x": x})["r"], both["r"])
    with pytest.raises(dovetail.BindingError, match="nothing_like_it"):
        engine.tap(["nothing_like_it"], {"x": x})


def test_save_and_load_give_the_same_engine(engine: dovetail.Engine, tmp_path: Path) -> None:
    path = tmp_path / "m.plan"
    engine.save(path)
    loaded = dovetail.load(path, threads=1)
    x = images(3)
    assert loaded(x).tobytes() == engine(x).tobytes()
    assert loaded.threads == 1
    assert loaded.certificate == json.loads(json.dumps(engine.certificate))
    assert "k_" in loaded.source and loaded.graph == engine.graph
    again = tmp_path / "again.plan"
    loaded.save(again)
    assert dovetail.load(again)(x).tobytes() == engine(x).tobytes()


def test_an_untrusted_file_runs_kernels_made_from_its_graph(engine: dovetail.Engine, tmp_path: Path) -> None:
    path = tmp_path / "m.plan"
    engine.save(path, sign=False)
    x = images(2)
    loaded = dovetail.load(path)
    assert loaded(x).tobytes() == engine(x).tobytes()
    assert loaded.certificate["stale"] is True  # what the file claims was not checked here
    assert loaded.verify()["ok"] is True and "stale" not in loaded.certificate
    with override(home=tmp_path / "another_machine"):
        engine.save(path)
        assert dovetail.load(path, trust=True)(x).tobytes() == engine(x).tobytes()


def test_source_in_a_file_is_never_compiled(engine: dovetail.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    path = tmp_path / "hostile.plan"
    hostile = dovetail.Engine(engine._runtime, replace(engine._artifacts, source="#error hostile\n", kernels=b"no library"))
    hostile.save(path, sign=False)
    x = images(1)
    assert dovetail.load(path)(x).tobytes() == engine(x).tobytes()


def test_stripped_weights_must_be_passed(engine: dovetail.Engine, tmp_path: Path) -> None:
    path = tmp_path / "m.plan"
    engine.save(path, strip_weights=True)
    with pytest.raises(dovetail.Error, match="weights"):
        dovetail.load(path)
    x = images(1)
    assert dovetail.load(path, weights=engine.weights())(x).tobytes() == engine(x).tobytes()


def test_report_tells_tactics_memory_and_certificate(engine: dovetail.Engine) -> None:
    data = engine.report().json()
    assert sum(data["tactics"].values()) == len(data["groups"])
    assert data["host_steps"] == [] and engine.report().on_generated_code
    assert data["memory"]["bound_bytes"] <= data["memory"]["arena_bytes"]
    assert engine.report({"N": 4}).data["memory"]["arena_bytes"] > data["memory"]["arena_bytes"]
    assert data["gflop"]["f32"] == pytest.approx(2 * (16 * 27 * 144 + 16 * 5) / 1e9)
    assert data["certificate"]["kernels"]["checked"] == data["certificate"]["kernels"]["distinct"] > 0
    json.dumps(data)
    assert "tactics:" in str(engine.report())


def test_profile_names_nodes_and_sums_up(engine: dovetail.Engine) -> None:
    profile = engine.profile({"x": images(1)}, runs=3)
    assert {"conv", "softmax"} <= {name for row in profile.rows for name in row.origin}
    assert sum(r.share for r in profile.rows) == pytest.approx(1)
    assert sum(profile.by_tactic().values()) == pytest.approx(profile.total_us)
    json.dumps(profile.json())
    assert "conv" in str(profile)


def test_bench_and_sample_inputs(engine: dovetail.Engine) -> None:
    feeds = engine.sample_inputs({"N": 2})
    assert feeds["x"].shape == (2, 3, 12, 12)
    row = engine.bench(feeds, seconds=0.05)
    assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]


def test_refit_changes_results_and_marks_the_certificate_stale() -> None:
    engine, other = (dovetail.build(classifier(seed), tune=False) for seed in (0, 1))
    x = images(2)
    assert not np.allclose(engine(x), other(x))
    engine.refit(other.weights())
    assert engine(x).tobytes() == other(x).tobytes()
    assert engine.certificate["stale"] is True
    assert engine.verify()["ok"] is True and "stale" not in engine.certificate
    with pytest.raises(dovetail.RefitError, match="no_such"):
        engine.refit({"no_such": x})


def test_a_loaded_engine_verifies_again(engine: dovetail.Engine, tmp_path: Path) -> None:
    path = tmp_path / "m.plan"
    engine.save(path)
    certificate = dovetail.load(path).verify()
    assert certificate["level"] == "full" and certificate["engine"]["checked"]
    assert "note" not in certificate["kernels"]


def test_builds_with_the_same_caches_are_equal(tmp_path: Path) -> None:
    for name in ("a", "b"):
        dovetail.build(classifier()).save(tmp_path / name)
    from dovetail.engine.file import EngineFile

    first, second = (EngineFile(tmp_path / name).container for name in ("a", "b"))
    for member in first.members:
        if member != "build.json":
            assert bytes(first.member(member)) == bytes(second.member(member)), member


def test_compare_finds_equal_engines_equal(engine: dovetail.Engine) -> None:
    outcome = dovetail.compare(classifier(), engine, layers=True)
    assert outcome.ok and outcome.first_bad is None
    assert {d.name for d in outcome.layers} >= {"r"}
    assert outcome.json()["ok"] is True and "equal" in str(outcome)


def test_compare_names_the_first_bad_layer(engine: dovetail.Engine) -> None:
    changed = classifier()
    bias = next(t for t in changed.graph.initializer if t.name == "b")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.25), "b"))
    outcome = dovetail.compare(engine, dovetail.build(changed, verify="off", tune=False), {"x": images(2)}, layers=True)
    assert not outcome.ok
    assert outcome.first_bad is not None and outcome.first_bad.name == "r"
    assert str(outcome).startswith("first bad layer: r")
    json.dumps(outcome.json())


def test_compare_refuses_what_is_no_model() -> None:
    with pytest.raises(dovetail.UsageError, match="int"):
        dovetail.compare(relu(), 3)  # type: ignore[arg-type]
