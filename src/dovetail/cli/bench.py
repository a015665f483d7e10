"""Measure latency, interleaved with other runtimes on the same inputs and number of threads.

    dovetail bench resnet50.plan --vs onnxruntime,openvino
    dovetail bench model.onnx --threads 2 --plot latency.svg --json

Every round runs all candidates in rotating order; the ratio is the median over rounds of the ratio of medians, with
a bootstrap 95 % interval. Peers get the ONNX model: `--model`, or the file that the engine was built from.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail.cli import data, options, output
from dovetail.cli.artifact import is_plan, open_engine
from dovetail.cli.progress import progress
from dovetail.core.errors import UsageError
from dovetail.model.sample_inputs import Arrays

if TYPE_CHECKING:
    import onnx

    from dovetail.api import Engine
    from dovetail.benchmark.measure import Measurement

OURS = "dovetail"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail bench`."""
    parser.add_argument("engine", help="engine file or ONNX model")
    parser.add_argument("--vs", default="", metavar="A,B", help="peers: onnxruntime, openvino")
    parser.add_argument("--model", metavar="M.onnx", help="the model for the peers, where `engine` is an engine file")
    options.add_data(parser)
    parser.add_argument("--rounds", type=options.positive, default=20, help="interleaved rounds (default: 20)")
    parser.add_argument("--round-s", type=float, default=0.25, metavar="S", help="seconds per candidate and round (default: 0.25)")
    parser.add_argument("--plot", metavar="P.svg", help="draw the latencies (.svg, .png, .pdf; needs matplotlib)")
    options.add_build(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, draw the plot."""
    from dovetail.api.resident import resident_run
    from dovetail.benchmark import peers
    from dovetail.benchmark.measure import measure
    from dovetail.benchmark.plot import plot_latencies

    args.threads = args.threads or len(os.sched_getaffinity(0))
    rivals = peers.parse(args.vs)
    if args.rounds < 2:
        raise UsageError(f"--rounds: got {args.rounds}, expected at least 2 for an interval")
    with progress(args) as update:
        engine = open_engine(args, args.engine, update)
        feeds = {k: np.ascontiguousarray(v) for k, v in data.inputs(args, engine.inputs).items()}
        model = _model(args, needed=bool(rivals))
        candidates: dict[str, Callable[[], object]] = {OURS: lambda: engine.run(feeds)}
        if (alone := resident_run(engine.runtime, engine.inputs, feeds)) is not None:
            candidates[f"{OURS} on {engine.runtime.device}"] = alone
        for name in rivals:
            assert model is not None
            candidates[name] = peers.PEERS[name](model, feeds, args.threads)
        result = measure(candidates, rounds=args.rounds, round_s=args.round_s, base=OURS, progress=update)
    report = _report(args, engine, result, model, feeds)
    if args.plot:
        plot_latencies(result, Path(args.plot), f"{Path(args.engine).name}, {args.threads} thread(s)")
    output.show(args, report, _text(args, report))
    return 0


def _model(args: argparse.Namespace, needed: bool) -> onnx.ModelProto | None:
    """The ONNX model for the peers (and for counting operations)."""
    from dovetail.frontend.reader import read_model

    path = args.model or (None if is_plan(args.engine) else args.engine) or _source(args)
    if path is None:
        if needed:
            raise UsageError(f"bench: {args.engine} does not say where its model is; pass --model M.onnx for the peers")
        return None
    model, folder = read_model(path)
    if folder is not None:
        import onnx

        onnx.load_external_data_for_model(model, str(folder))
    return model


def _source(args: argparse.Namespace) -> str | None:
    """The model that the engine was built from, if it is still there, else the one that lies beside the engine."""
    from dovetail.engine.file import EngineFile

    recorded = EngineFile(args.engine).build.get("source")
    beside = Path(args.engine).with_suffix(".onnx")
    for path in ([Path(recorded)] if isinstance(recorded, str) and recorded else []) + [beside]:
        if path.is_file():
            return str(path)
    return None


def _report(
    args: argparse.Namespace, engine: Engine, result: Measurement, model: onnx.ModelProto | None, feeds: Arrays
) -> dict[str, Any]:
    from dovetail import __version__
    from dovetail.benchmark import peers
    from dovetail.benchmark.peak import measure_gflops

    # The peak is that of the CPU's units: a share of it says nothing of a GPU.
    peak = measure_gflops(args.threads) if engine.plan.target.startswith("cpu") else 0.0
    flops = _flops(model, feeds) if model is not None else None
    report = result.json()
    for row in report["latencies"]:
        row["version"] = __version__ if row["name"].startswith(OURS) else peers.version(row["name"])
        row["peak_share"] = flops / (row["median_ms"] * 1e6 * peak) if flops and peak else None
    return report | {
        "engine": args.engine,
        "target": engine.plan.target,
        "threads": args.threads,
        "precision": _precision(engine),
        "device": engine.runtime.device,
        "machine": platform.processor() or platform.machine(),
        "fma_peak_gflops": peak or None,
        "model_gflop": flops / 1e9 if flops else None,
        "inputs": {name: list(x.shape) for name, x in feeds.items()},
        "plot": args.plot,
    }


def _precision(engine: Engine) -> str:
    """What the engine computes in, as its build recorded it."""
    report: Any = engine.plan.meta.get("report")
    return str(report["actual"]["precision"]) if isinstance(report, dict) and "actual" in report else "fp32"


def _flops(model: onnx.ModelProto, feeds: Arrays) -> int:
    from dovetail.benchmark.flops import model_flops
    from dovetail.frontend.importer import import_onnx

    fixed = {name: x.shape for name, x in feeds.items()}
    return model_flops(import_onnx(model, fixed), {})


def _text(args: argparse.Namespace, report: dict[str, Any]) -> str:
    ratios = {r["name"]: r for r in report["ratios"]}
    rows = []
    for row in report["latencies"]:
        ratio = ratios.get(row["name"])
        shown = f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "1"
        share = "" if row["peak_share"] is None else f"{100 * row['peak_share']:.0f} %"
        rows.append(
            [f"{row['name']} {row['version']}", *(f"{row[k]:.3f}" for k in ("median_ms", "min_ms", "p90_ms", "p99_ms")),
             f"{row['throughput_qps']:.1f}", share, shown]
        )  # fmt: skip
    head = ["runtime", "median ms", "min ms", "p90 ms", "p99 ms", "runs/s", "of peak", f"times {OURS} [95 %]"]
    shapes = ", ".join(f"{n}{output.shape_text(s)}" for n, s in report["inputs"].items())
    how = f"{report['threads']} thread(s), {report['precision']}, {report['target']}"
    note = f"{report['rounds']} interleaved rounds, {how}, inputs {shapes}"
    work = []
    if report["fma_peak_gflops"]:
        work.append(f"FMA peak of {report['threads']} thread(s), measured: {report['fma_peak_gflops']:.0f} GFLOP/s")
    if report["model_gflop"]:
        work.append(f"the model's contractions: {report['model_gflop']:.2f} GFLOP")
    lines = [output.table(head, rows), note, "; ".join(work)]
    return "\n".join(lines + ([f"plot: {args.plot}"] if args.plot else []))
