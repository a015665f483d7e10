"""What trtexec prints and writes of times, to the letter, for times that are known."""

import json
import math
import re

import numpy as np
import pytest

from dovetail.core.env import override
from dovetail.tensorrt.enums import DataType, Severity, TensorLocation
from dovetail.tensorrt.trtexec import report
from dovetail.tensorrt.trtexec.accuracy import distance
from dovetail.tensorrt.trtexec.banner import banner
from dovetail.tensorrt.trtexec.console import Console, label, number
from dovetail.tensorrt.trtexec.debug import DebugWriter, statistics
from dovetail.tensorrt.trtexec.options import parse
from dovetail.tensorrt.trtexec.report import LayerTimes, Trace
from dovetail.tensorrt.trtexec.tensors import Tensor, safe_name


def trace(start: float, h2d: float, compute: float, d2h: float, enqueue: float) -> Trace:
    """A run whose parts follow each other."""
    a, b = start + h2d, start + h2d + compute
    return Trace(a, a + enqueue, start, a, a, b, b, b + d2h)


def text(lines: report.Lines) -> list[str]:
    letters = {Severity.INFO: "I", Severity.WARNING: "W", Severity.VERBOSE: "V"}
    return [f"[{letters[severity]}] {line}" for severity, line in lines]


def performance(traces: list[Trace], **changes: object) -> list[str]:
    wanted: dict[str, object] = {"warm_up_ms": 0.0, "average": 2, "percentiles": (90.0, 99.0), **changes}
    return text(report.performance(traces, **wanted))  # type: ignore[arg-type]


def test_the_report_to_the_letter():
    runs = [trace(10.0 * i, 0.25, 1 + i / 100, 0.125, 0.5) for i in range(4)]
    assert performance(runs, warm_up_ms=5.0)[:2] == [
        "[I] Warmup completed 1 queries over 5 ms", "[I] Timing trace has 3 queries over 0.021405 s",
    ]  # fmt: skip
    assert [line for line in performance(runs, notes=["a note"]) if not line.startswith("[V]")] == [
        "[I] Warmup completed 0 queries over 0 ms",
        "[I] Timing trace has 4 queries over 0.031405 s",
        "[I] a note",
        "[I] ",
        "[I] === Trace details ===",
        "[I] Trace averages of 2 runs:",
        "[I] Average on 2 runs - GPU latency: 1.005 ms - Host latency: 1.38 ms (enqueue 0.5 ms)",
        "[I] Average on 2 runs - GPU latency: 1.025 ms - Host latency: 1.4 ms (enqueue 0.5 ms)",
        "[I] ",
        "[I] === Performance summary ===",
        "[I] Throughput: 127.368 qps",
        "[I] Latency: min = 1.375 ms, max = 1.405 ms, mean = 1.39 ms, median = 1.39 ms, "
        "percentile(90%) = 1.405 ms, percentile(99%) = 1.405 ms",
        "[I] Enqueue Time: min = 0.5 ms, max = 0.5 ms, mean = 0.5 ms, median = 0.5 ms, "
        "percentile(90%) = 0.5 ms, percentile(99%) = 0.5 ms",
        "[I] H2D Latency: min = 0.25 ms, max = 0.25 ms, mean = 0.25 ms, median = 0.25 ms, "
        "percentile(90%) = 0.25 ms, percentile(99%) = 0.25 ms",
        "[I] GPU Compute Time: min = 1 ms, max = 1.03 ms, mean = 1.015 ms, median = 1.015 ms, "
        "percentile(90%) = 1.03 ms, percentile(99%) = 1.03 ms",
        "[I] D2H Latency: min = 0.125 ms, max = 0.125 ms, mean = 0.125 ms, median = 0.125 ms, percentile(90%) = 0.125 ms, "
        "percentile(99%) = 0.125 ms",
        "[I] Total Host Walltime: 0.031405 s",
        "[I] Total GPU Compute Time: 0.00406 s",
        "[I] Explanations of the performance metrics are printed in the verbose logs.",
        "[I] ",
    ]
    assert "[V] === Explanations of the performance metrics ===" in performance(runs)


@pytest.mark.parametrize("share, index", [(0, 0), (50, 4), (90, 8), (95, 9), (99, 9), (100, 9)])
def test_percentiles_pick_a_run(share, index):
    ordered = [float(i) for i in range(10)]
    assert report.percentile(share, ordered) == index
    assert report.percentile(share, [7.0]) == 7 and report.percentile(share, []) == math.inf


def warned(*runs: Trace, streams: int = 1) -> list[str]:
    return [line for line in performance(list(runs), streams=streams) if line.startswith("[W]")]


def test_warnings():
    assert not warned(trace(0, 0, 1, 0, 0.8), trace(5, 0, 1.01, 0, 0.8))
    assert warned(trace(0, 0, 1, 0, 0.81))[0].startswith("[W] * Throughput may be bound by Enqueue Time rather than GPU Compute")
    assert "host-to-device transfers for the inputs" in warned(trace(0, 1, 1, 0, 0))[0]
    assert "device-to-host transfers for the outputs" in warned(trace(0, 0, 1, 1, 0))[0]
    unstable = "[W] * GPU compute time is unstable, with coefficient of variance = 50%."
    assert warned(trace(0, 0, 1, 0, 0), trace(5, 0, 3, 0, 0))[0] == unstable
    assert "Multiple inference streams are used" in warned(trace(0, 0, 1, 0, 0), streams=2)[0]


def test_long_traces_leave_out_the_middle():
    runs = [trace(float(i), 0, 0.5, 0, 0) for i in range(450)]
    lines = performance(runs, average=1)
    averages = [line for line in lines if "Average on" in line]
    assert len(averages) == 400
    start = next(i for i, line in enumerate(lines) if "Average on" in line)
    assert lines[start + 200] == "[I] ... Omitting 50 lines" and "Average on" in lines[start + 201]
    assert not any("Omitting" in line for line in performance(runs[:400], average=1))


def test_the_last_run_counts_even_if_all_were_warm_up():
    skipped, rest = report.counted([trace(0, 0, 1, 0, 0), trace(5, 0, 1, 0, 0)], 1000.0)
    assert skipped == 1 and len(rest) == 1


def test_times_as_json(tmp_path):
    row = trace(1, 0.25, 1, 0.125, 0.5).json()
    assert list(row) == [
        "startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs",
        "h2dMs", "computeMs", "d2hMs", "latencyMs",
    ]  # fmt: skip
    assert row["h2dMs"] == 0.25 and row["latencyMs"] == 1.375 and row["endEnqMs"] == 1.75
    report.write_json(str(tmp_path / "t.json"), [row, row])
    assert json.loads((tmp_path / "t.json").read_text()) == [row, row]


# ---- layers ----


def layer_times() -> LayerTimes:
    times = LayerTimes()
    for first, second in ((1.0, 0.25), (2.0, 0.25), (6.0, 0.5)):
        for name, value in (("conv + relu", first), ("nothing", 0.0), ("fc", second)):
            times.add(name, value)
    return times


def test_the_profile_to_the_letter():
    assert text(layer_times().lines()) == [
        "[I] ",
        "[I] === Profile (3 iterations ) ===",
        "[I]    Time(ms)     Avg.(ms)   Median(ms)   Time(%)   Layer",
        "[I]        9.00       3.0000       2.0000      90.0   conv + relu",
        "[I]        1.00       0.3333       0.2500      10.0   fc",
        "[I]       10.00       3.3333       2.2500     100.0   Total",
        "[I] ",
    ]


def test_the_profile_as_json():
    assert layer_times().json() == [
        {"count": 3},
        {"name": "conv + relu", "timeMs": 9.0, "averageMs": 3.0, "medianMs": 2.0, "percentage": 90.0},
        {"name": "fc", "timeMs": 1.0, "averageMs": 1 / 3, "medianMs": 0.25, "percentage": 10.0},
    ]


# ---- lines ----


@pytest.mark.parametrize(
    "value, shown", [(0.0433136, "0.0433136"), (1e-5, "1e-05"), (1234567.0, "1.23457e+06"), (3.0, "3"), (math.inf, "inf")]
)
def test_numbers_are_those_of_cpp_streams(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    "version, shown",
    [("10.16.1.11", "[TensorRT v101601] [b11]"), ("11.1.0.106", "[TensorRT v110100] [b106]"), ("8.6.1.6", "[TensorRT v8601]")],
)
def test_the_first_and_the_last_line(version, shown):
    with override(tensorrt_version=version):
        assert label("PASSED", ["--onnx=m.onnx", "--fp16"]) == f"&&&& PASSED TensorRT.trtexec {shown} # trtexec --onnx=m.onnx --fp16"


def test_lines_have_a_time_and_a_severity(capsys):
    console = Console()
    console.info("a\nb")
    console.detail("hidden")
    console.log(Severity.WARNING, "w")
    Console(verbose=True).log(Severity.VERBOSE, "v")
    console.error("e")
    found = [re.fullmatch(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] (.*)", line) for line in capsys.readouterr().out.splitlines()]
    assert [m[1] if m else None for m in found] == ["[I] a", "[I] b", "[W] [TRT] w", "[V] [TRT] v", "[E] e"]


def test_the_banner_has_its_sections_in_order():
    lines = list(banner(parse(["--onnx=m.onnx", "--fp16", "--optShapes=x:4x2", "--memPoolSize=workspace:1.5"], 10)))
    assert [line for line in lines if line.startswith("===")] == [
        f"=== {name} ==="
        for name in (*(f"{part} Options" for part in ("Model", "Build", "System", "Inference", "Reporting")), "Device Information")
    ]
    for line in (
        "Format: ONNX", "Model: m.onnx", "Precision: FP32+FP16", "Input build shape (profile 0): x=4x2+4x2+4x2",
        "Input inference shape : x=4x2",
        "Duration: 3s (+ 200ms warm up)", "Percentiles: 90,95,99", "CUDA Graph: Disabled", "Data transfers: Enabled",
    ):  # fmt: skip
        assert line in lines
    assert next(line for line in lines if line.startswith("Memory Pools")).startswith("Memory Pools: workspace: 1.5 MiB, dlaSRAM: default")
    assert lines[-1].startswith("TensorRT version: ")
    assert "Format: *" in list(banner(parse(["--loadEngine=e"], 10)))


# ---- tensors, distances, debug files ----


def tensor(values: np.ndarray, kind: DataType = DataType.FLOAT, is_input: bool = False) -> Tensor:
    made = Tensor("a/b:0", kind, values.shape, is_input, None)
    made.values[...] = values
    return made


def test_outputs_are_printed_and_written(tmp_path):
    made = tensor(np.array([[1 / 3, -2.0]], np.float32))
    assert made.text() == "0.333333 -2"
    assert made.json() == {"name": "a/b:0", "dimensions": "1x2", "values": [0.333333, -2.0]}
    assert made.raw_name() == "a_b_0.output.1.2.fp32.raw"
    made.write(str(tmp_path / "raw"))
    assert (tmp_path / "raw").read_bytes() == made.values.tobytes()
    ints = tensor(np.array([3, -4]), DataType.INT64, is_input=True)
    assert ints.text() == "3 -4" and ints.json()["values"] == [3, -4] and ".input.2.int64." in ints.raw_name()
    assert tensor(np.array([True, False]), DataType.BOOL).text() == "1 0"
    assert tensor(np.array(2.5, np.float16), DataType.HALF).json()["dimensions"] == "" and safe_name("é x") == "__x"


@pytest.mark.parametrize("kind", [getattr(DataType, name) for name in ("FLOAT", "HALF", "BF16", "INT64", "INT8", "UINT8", "BOOL")])
def test_random_values_are_in_range_and_the_same_each_time(kind):
    one, two = (tensor(np.zeros((5, 7)), kind) for _ in range(2))
    for made in (one, two):
        made.fill(np.random.default_rng(3))
    assert (one.values == two.values).all() and len(np.unique(one.values.astype(np.float64))) > 1
    wide = one.values.astype(np.float64)
    low, high = {DataType.INT8: (-128, 127), DataType.UINT8: (0, 255), DataType.INT64: (0, 1), DataType.BOOL: (0, 1)}.get(kind, (-1, 1))
    assert (wide >= low).all() and (wide <= high).all()


def test_distances():
    expected = np.array([1.0, 2.0, 4.0, 0.0], np.float32)
    found = np.array([1.0, 2.5, 3.0, 0.0], np.float32)

    def loss(name: str, a: np.ndarray = found, atol: float = 0.6, rtol: float = 0.0) -> float:
        return distance(name, a, expected, atol, rtol)

    assert [loss(name) for name in ("L0", "L1", "L2", "LInf")] == [0.25, 0.375, 0.3125, 1.0]
    assert loss("Cosine") == pytest.approx(1 - 18 / math.sqrt(16.25 * 21)) and loss("L0", rtol=0.1) == 0
    for name in ("L0", "L1", "L2", "LInf", "Cosine"):
        assert loss(name, expected) == 0
        assert loss(name, np.array([np.nan, 2, 4, 0], np.float32)) > 0.2
        assert distance(name, np.zeros(0), np.zeros(0), 0, 0) == 0
    assert distance("LInf", np.array([np.nan, np.inf]), np.array([np.nan, np.inf]), 0, 0) == 0


def test_debug_tensors_are_written_in_all_formats(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = np.array([[1.5, np.nan], [np.inf, -0.5]], np.float32)
    narrow = np.array([1, 2], np.uint16)  # bf16
    with DebugWriter({"a/b": "own.bin"}, ("summary", "numpy", "string", "raw"), Console()) as writer:
        assert writer.process_debug_tensor(values.ctypes.data, TensorLocation.HOST, DataType.FLOAT, (2, 2), "a/b", 0)  # type: ignore[arg-type]
        assert writer.process_debug_tensor(narrow.ctypes.data, TensorLocation.HOST, DataType.BF16, (2,), "c", 0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.load("0000_a_b.npy"), values)
    assert np.load("0001_c_to_float.npy").dtype == np.float32 and "Converting bf16 to float" in capsys.readouterr().out
    assert (tmp_path / "own.bin").read_bytes() == (tmp_path / "0000_a_b.raw").read_bytes() == values.tobytes()
    assert (tmp_path / "0000_a_b.txt").read_text() == "1.5 nan inf -0.5\n"
    rows = json.loads((tmp_path / "tensor_summary.json").read_text())
    assert [r["name"] for r in rows] == ["a/b", "c"] and rows[0]["shape"] == [2, 2] and rows[0]["type"] == "fp32"
    assert rows[0]["statistics"] == {"min": -0.5, "max": 1.5, "avg": 0.5, "std": 1.0, "nan": 1, "inf": 1}
    assert rows[0]["files"] == {"assigned": "own.bin", "numpy": "0000_a_b.npy", "string": "0000_a_b.txt", "raw": "0000_a_b.raw"}
    assert statistics(np.zeros(0))["min"] is None and writer.seen == {"a/b", "c"}
