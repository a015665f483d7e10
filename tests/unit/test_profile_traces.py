"""Profiles as Chrome traces, and NVTX ranges around runs and steps."""

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.api.profile import summarise
from dovetail.cli import main
from dovetail.core.env import override
from dovetail.core.errors import ExecutionError, UsageError
from dovetail.runtime import nvtx
from dovetail.runtime.observe import Record
from tests.cli.conftest import small_model
from tests.unit import cuda_engines
from tests.unit.native_engines import STEPS, ramp

X = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}


@pytest.fixture(scope="module")
def engine() -> dovetail.Engine:
    return dovetail.build(small_model(), verify="off", tune=False)


def loop_model() -> onnx.ModelProto:
    """Three times h = relu(h @ w), in a loop that a run decides the length of."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["m"], name="/loop/mul"), helper.make_node("Relu", ["m"], ["h_out"], name="/loop/relu"),
         helper.make_node("Identity", ["c"], ["c_out"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("h", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("c_out", TensorProto.BOOL, []), helper.make_tensor_value_info("h_out", TensorProto.FLOAT, [4, 4])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], name="/loop", body=body)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4]), helper.make_tensor_value_info("n", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])], [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check_format(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """What the format asks for; returns the complete events."""
    text = json.dumps(trace, allow_nan=False)
    assert json.loads(text) == trace and isinstance(trace["traceEvents"], list) and trace["displayTimeUnit"] in ("ms", "ns")
    named = set()
    for event in trace["traceEvents"]:
        assert event["ph"] in ("M", "X", "C") and isinstance(event["name"], str) and event["name"]
        assert type(event["pid"]) is int and type(event["tid"]) is int
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index") and len(event["args"]) == 1
            if event["name"] == "thread_name":
                named.add(event["tid"])
        else:
            assert event["ts"] >= 0
        if event["ph"] == "C":
            assert all(isinstance(v, float | int) and v >= 0 for v in event["args"].values())
        if event["ph"] == "X":
            assert event["dur"] >= 0 and isinstance(event["cat"], str)
    complete = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert {e["tid"] for e in complete} <= named
    # Events of one thread follow one another.
    for tid in {e["tid"] for e in complete}:
        end = 0.0
        for event in (e for e in complete if e["tid"] == tid):
            assert event["ts"] >= end - 1e-6
            end = event["ts"] + event["dur"]
    return complete


def test_a_trace_has_every_step_with_the_names_of_the_model(engine: dovetail.Engine, tmp_path: Path) -> None:
    profile = engine.profile(X, runs=2)
    path = tmp_path / "t.json"
    run, *steps = check_format(profile.trace(path, "small"))
    assert json.loads(path.read_text()) == profile.trace(title="small")
    assert run["cat"] == "run" and run["dur"] == pytest.approx(profile.total_us) == pytest.approx(sum(s["dur"] for s in steps))
    assert len(steps) == len(profile.rows)
    assert {n for s in steps for n in s["args"]["nodes"]} >= {"/conv", "/relu", "/fc"}
    conv = next(s for s in steps if "/relu" in s["args"]["nodes"])
    assert conv["args"]["tactic"] == next(r.tactic for r in profile.rows if "/relu" in r.origin) and conv["args"]["bytes"] > 0
    assert sum(s["args"]["flop"] for s in steps) >= 2 * (2 * 16 * 256 * 27 + 2 * 16 * 5)
    assert any("small on cpu" in str(e["args"]) for e in profile.trace(title="small")["traceEvents"] if e["name"] == "process_name")


def test_lanes_are_threads_and_hosts_a_category() -> None:
    records = [Record(("a",), "gemm", "k1", "native", 1000.0, 0), Record(("b",), "gemm", "k2", "native", 3000.0, 2),
               Record(("c",), "host", "NonZero", "host", 500.0)]  # fmt: skip
    profile = summarise([records, records], 1, "cuda:0")
    _, *steps = check_format(profile.trace())
    assert [s["tid"] for s in steps] == [1, 3, 1] and [s["cat"] for s in steps] == ["kernel", "kernel", "host"]
    assert [s["ts"] for s in steps] == [0, 1, 4] and steps[2]["args"]["tactic"] == "host NonZero"
    assert profile.rows[1].lane == 2 and profile.json()["rows"][1]["lane"] == 2


def test_steps_of_loops_are_not_counted_twice() -> None:
    engine = dovetail.build(loop_model(), verify="off", tune=False)
    profile = engine.profile({"x": np.ones((4, 4), np.float32), "n": np.array(3)}, runs=2)
    check_format(profile.trace())
    inner = [r for r in profile.rows if any(n.startswith("/loop/") for n in r.origin)]
    (outer,) = [r for r in profile.rows if r.kernel == "Loop"]
    assert len(inner) >= 3 and outer.us + sum(r.us for r in inner) <= profile.total_us + 1e-6
    with_time = [Record(("i",), "t", "k", "native", 40.0)]
    from dovetail.runtime.observe import Observer

    observer = Observer()
    observer.records += with_time
    observer.host(("loop",), "Loop", 100, 0)
    assert observer.records[-1].nanoseconds == 60


def test_the_command_writes_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = tmp_path / "m.onnx", tmp_path / "t.json"
    onnx.save(small_model(), model)
    assert main(["profile", str(model), "--runs", "2", "--trace", str(path), "-q", "--no-tune", "--verify", "off"]) == 0
    assert f"trace: {path}" in capsys.readouterr().out
    check_format(json.loads(path.read_text()))
    assert main(["profile", str(model), "--trace", str(tmp_path / "none" / "t.json"), "-q", "--no-tune", "--verify", "off"]) == 2


# ---------------------------------------------------------------------- NVTX
class Calls(list[str]):
    """What a fake library was called with: names of ranges, and None for their ends."""

    def names(self) -> list[str]:
        return [name for name in self if name != ")"]

    def depth(self) -> int:
        return len(self.names()) - self.count(")")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """The nvtx package, faked."""
    found = Calls()
    package = SimpleNamespace(
        push_range=lambda message, domain: found.append(f"{domain}: {message}"), pop_range=lambda domain: found.append(")")
    )
    monkeypatch.setitem(sys.modules, "nvtx", package)
    clear = nvtx.ranges.cache_clear
    clear()
    yield found
    clear()


def test_nothing_is_loaded_where_nobody_asks(engine: dovetail.Engine, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvtx, "ranges", lambda: pytest.fail("ranges were asked for"))
    engine.run(X)
    engine.profile(X, runs=1)
    assert calls == []


def test_runs_are_marked(engine: dovetail.Engine, calls: Calls) -> None:
    expected = engine.run(X)
    with override(nvtx="runs"):
        got = engine.run(X)
        engine.context().run(X)
    assert calls == [f"dovetail: dovetail run ({engine.plan.target})", ")"] * 2
    np.testing.assert_array_equal(got["y"], expected["y"])


def test_every_step_is_marked_inside_of_its_run(engine: dovetail.Engine, calls: Calls) -> None:
    expected = engine.run(X)
    with override(nvtx="steps"):
        got = engine.run(X)
    np.testing.assert_array_equal(got["y"], expected["y"])
    assert calls.depth() == 0 and calls[-1] == ")" and calls[-2] == ")"
    steps = calls.names()[1:]
    assert len(steps) == len(engine.profile(X, runs=1).rows)
    assert any("/conv" in s and "[" in s for s in steps)


def test_profiles_are_marked_when_asked(engine: dovetail.Engine, calls: Calls) -> None:
    profile = engine.profile(X, runs=1, nvtx=True)
    assert len(profile.rows) * 2 + 2 == len(calls.names()) and calls.depth() == 0  # one run to warm up


def test_host_steps_and_loops_are_marked(calls: Calls) -> None:
    engine = dovetail.build(loop_model(), verify="off", tune=False)
    engine.profile({"x": np.ones((4, 4), np.float32), "n": np.array(2)}, runs=1, nvtx=True)
    assert any("[host Loop]" in name for name in calls.names()) and calls.depth() == 0


def test_runs_and_steps_of_a_gpu_are_marked(calls: Calls) -> None:
    tested = cuda_engines.engine(cuda_engines.plan(cuda_engines.chain(*STEPS)), driver=cuda_engines.host_driver())
    expected = tested.run({"x": ramp()})["y"]
    with override(nvtx="runs"):
        for _ in range(3):  # step by step, captured, replayed
            np.testing.assert_array_equal(tested.run({"x": ramp()})["y"], expected)
    assert calls == [f"dovetail: dovetail run ({tested.plan.target})", ")"] * 3
    calls.clear()
    with override(nvtx="steps"):
        np.testing.assert_array_equal(tested.run({"x": ramp()})["y"], expected)
    assert len(calls.names()) == 1 + len(STEPS) and calls.depth() == 0
    calls.clear()
    assert len(tested.profile({"x": ramp()}, nvtx_ranges=True)[1]) == len(STEPS) == len(calls.names()) - 1


def test_ranges_end_where_a_run_fails(calls: Calls) -> None:
    found = nvtx.ranges()
    with pytest.raises(ExecutionError), found.around("outer"), found.around("inner"):
        raise ExecutionError("no")
    assert calls.depth() == 0 and len(calls) == 4


def test_the_library_itself_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    class Function:
        def __init__(self, name: str) -> None:
            self.name = name
            self.argtypes: Any = None
            self.restype: Any = None

        def __call__(self, *args: Any) -> int:
            called.append((self.name, *args))
            return 0

    library = SimpleNamespace(nvtxRangePushA=Function("push"), nvtxRangePop=Function("pop"))

    def load(path: str) -> Any:
        if not path.startswith("libnvToolsExt"):
            raise OSError(f"{path}: no such file")
        return library

    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(nvtx.ctypes, "CDLL", load)
    nvtx.ranges.cache_clear()
    with nvtx.ranges().around("größe\0x"):
        pass
    assert called == [("push", "größe?x".encode()), ("pop",)] and library.nvtxRangePushA.argtypes == [ctypes.c_char_p]
    nvtx.ranges.cache_clear()


def test_without_a_library_the_request_is_an_error(engine: dovetail.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> Any:
        raise OSError(f"{path}: no such file")

    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(nvtx.ctypes, "CDLL", load)
    nvtx.ranges.cache_clear()
    with pytest.raises(UsageError, match="pip install nvtx"):
        engine.profile(X, runs=1, nvtx=True)
    engine.run(X)


@pytest.mark.parametrize(("text", "value"), [("", ""), ("0", ""), ("1", "runs"), ("runs", "runs"), ("STEPS", "steps")])
def test_the_variable(text: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import dovetail.core.env as module

    monkeypatch.setenv("DOVETAIL_NVTX", text)
    assert module._read().nvtx == value
    monkeypatch.setenv("DOVETAIL_NVTX", "all")
    with pytest.raises(UsageError, match="DOVETAIL_NVTX"):
        module._read()
