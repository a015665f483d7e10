"""Interleaved measurement: order, ratios, intervals, peers, operation counts."""

import itertools
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dovetail.benchmark import measure as module
from dovetail.benchmark import peers
from dovetail.benchmark.flops import model_flops
from dovetail.benchmark.measure import confidence, measure, ratio
from dovetail.codegen.target import Target
from dovetail.core.errors import UsageError
from dovetail.frontend.importer import import_onnx


def test_rounds_are_interleaved_in_rotating_order() -> None:
    calls: list[str] = []
    result = measure({n: lambda n=n: calls.append(n) for n in "abc"}, rounds=3, round_s=0.0, pause_s=0.0)
    timed = calls[3 * (1 + module._CALIBRATION_RUNS):]
    order = [name for name, _ in itertools.groupby(timed)]
    assert order == list("abc" + "bca" + "cab")
    assert result.rounds == 3
    assert all(x.runs == 3 * module._MIN_RUNS_PER_ROUND for x in result.latencies)


def test_a_slower_candidate_has_a_ratio_above_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def takes(milliseconds: int) -> None:
        now[0] += milliseconds * 1_000_000

    clock = SimpleNamespace(perf_counter_ns=lambda: now[0], sleep=lambda seconds: None)
    monkeypatch.setattr(module, "time", clock)
    result = measure({"fast": lambda: takes(1), "slow": lambda: takes(4)}, rounds=4, round_s=0.01, pause_s=0.0)
    assert [(x.name, x.median_ms, x.runs) for x in result.latencies] == [("fast", 1.0, 4 * 10), ("slow", 4.0, 4 * 3)]
    (found,) = result.ratios
    assert (found.name, found.base) == ("slow", "fast")
    assert found.low == found.ratio == found.high == 4.0


def test_ratio_is_taken_per_round() -> None:
    # The machine got twice as slow half-way; the ratio of the candidates did not change.
    samples = {"a": np.array([[1.0], [1.0], [2.0], [2.0]]), "b": np.array([[3.0], [3.0], [6.0], [6.0]])}
    found = ratio("b", "a", samples)
    assert (found.ratio, found.low, found.high) == (3.0, 3.0, 3.0)


def test_confidence_interval_is_deterministic_and_holds_the_median() -> None:
    values = np.random.default_rng(1).normal(5, 1, 50)
    low, high = confidence(values)
    assert (low, high) == confidence(values)
    assert low < np.median(values) < high
    assert high - low < 1


@pytest.mark.parametrize("candidates, rounds", [({}, 5), ({"a": lambda: None}, 1)])
def test_nothing_to_measure(candidates: dict, rounds: int) -> None:
    with pytest.raises(UsageError, match=r"bench: got .* expected"):
        measure(candidates, rounds=rounds)


def test_unknown_peer() -> None:
    with pytest.raises(UsageError, match="got 'tflite', expected some of onnxruntime, openvino"):
        peers.parse("onnxruntime,tflite")


def test_missing_peer_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "version", lambda name: None)
    with pytest.raises(UsageError, match="pip install openvino"):
        peers.parse("openvino")


def _model() -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 4, 3, 3], np.ones(8 * 4 * 9, np.float32))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 10, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 10, 12])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_peers_compute_the_model(name: str) -> None:
    if peers.version(name) is None:
        pytest.skip(f"{name} is not installed")
    x = np.ones((2, 4, 10, 12), np.float32)
    output = next(iter(_values(peers.PEERS[name](_model(), {"x": x}, 1)())))
    assert output.shape == (2, 8, 10, 12)
    assert output[0, 0, 5, 5] == 36


def _values(result: object) -> list:
    return list(result.values()) if hasattr(result, "values") else list(result)


def test_operations_of_a_convolution() -> None:
    module = import_onnx(_model())
    assert model_flops(module, {"N": 3}) == 2 * 3 * 8 * 10 * 12 * 4 * 9


def test_peak_kernel_source_is_made_for_the_target() -> None:
    from dovetail.benchmark.peak import measure_gflops, source

    assert "vector_size(32)" in source(Target.parse("cpu:avx2"))
    assert measure_gflops(1, seconds=0.0) > 0.1
