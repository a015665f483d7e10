"""The CPU suite: ten models, 1 and 2 threads, batch 1 and 8, against ONNX Runtime and OpenVINO.

    python -m bench.cpu_suite --output build/bench
    python -m bench.cpu_suite --models torchvision_resnet50 --threads 1 --batch 1

Writes results.json and results.md as it goes, ratios.svg at the end, so that an interrupted run keeps what it has. The method is that of
`dovetail bench` (docs/performance.md). Per model and thread count, the score is the latency of the faster peer over ours.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import dovetail
from bench.ratio_plot import plot_ratios
from dovetail.benchmark import peers
from dovetail.benchmark.flops import model_flops
from dovetail.benchmark.machine import cpu_name
from dovetail.benchmark.measure import Measurement, confidence, measure
from dovetail.benchmark.peak import measure_gflops
from dovetail.cli.output import table
from dovetail.frontend.importer import import_onnx
from models import zoo

SUITE = {
    "torchvision_resnet50": "ResNet-50",
    "torchvision_vgg11": "VGG-11",
    "torchvision_mobilenet_v3_small": "MobileNetV3-small",
    "torchvision_efficientnet_b0": "EfficientNet-B0",
    "torchvision_regnet_x_1_6gf": "RegNetX-1.6GF",
    "torchvision_densenet121": "DenseNet-121",
    "torchvision_vit_b_16": "ViT-B/16",
    "torchvision_swin_t": "Swin-T",
    "torchvision_convnext_tiny": "ConvNeXt-T",
    "transformers_bert_base_opset17": "BERT-base, 128 tokens",
}
OURS = "dovetail"


@dataclass
class Row:
    """One model at one number of threads and batch size."""

    model: str
    label: str
    threads: int
    batch: int
    strict_fp32: bool
    ours_ms: float
    peers_ms: dict[str, float]
    best_peer: str
    ratio: float
    low: float
    high: float
    gflop: float
    peak_gflops: float
    peak_share: float
    build_s: float
    max_error: float
    host_steps: int
    samples: dict[str, list[float]] = field(default_factory=dict)


def run_model(name: str, threads: int, batch: int, args: argparse.Namespace, strict: bool = False) -> Row:
    """Build one model and measure it against the peers."""
    model = zoo.load(name)
    feeds = {k: np.ascontiguousarray(v) for k, v in zoo.inputs(model, batch=batch).items()}
    start = time.perf_counter()
    engine = dovetail.build(model, threads=threads, strict_fp32=strict, verify="off")
    build_s = time.perf_counter() - start
    candidates: dict[str, Callable[[], object]] = {OURS: lambda: engine.run(feeds)}
    for peer in args.vs:
        candidates[peer] = peers.PEERS[peer](model, feeds, threads)
    error = _error(engine.run(feeds), model, candidates)
    peak = measure_gflops(threads)
    result = measure(candidates, rounds=args.rounds, round_s=args.round_s, base=OURS)
    flops = model_flops(import_onnx(model, {k: v.shape for k, v in feeds.items()}), {})
    report = engine.plan.meta["report"]
    return _row(name, threads, batch, strict, result, flops, peak, build_s, error, report["host_calls"])


def _error(ours: dict[str, np.ndarray], model: onnx.ModelProto, candidates: dict[str, Callable[[], object]]) -> float:
    """Largest relative L2 difference of our outputs from ONNX Runtime's; NaN without it."""
    if "onnxruntime" not in candidates:
        return math.nan
    theirs: Any = candidates["onnxruntime"]()
    worst = 0.0
    for value, other in zip(model.graph.output, theirs, strict=True):
        want, got = np.asarray(other, np.float64), np.asarray(ours[value.name], np.float64)
        worst = max(worst, float(np.linalg.norm(want - got) / (np.linalg.norm(want) or 1.0)))
    return worst


def _row(
    name: str, threads: int, batch: int, strict: bool, result: Measurement, flops: int, peak: float, build_s: float,
    error: float, host_steps: int,
) -> Row:  # fmt: skip
    medians = {x.name: x.median_ms for x in result.latencies}
    ours = medians.pop(OURS)
    ratio = low = high = math.nan
    best = min(medians, key=lambda k: medians[k], default="")
    if best:
        # The faster peer of each round, so that no peer is favoured by one lucky round.
        rounds = {k: np.median(v, axis=1) for k, v in result.samples_ms.items()}
        per_round = np.minimum.reduce([rounds[k] for k in medians]) / rounds[OURS]
        ratio = float(np.median(per_round))
        low, high = confidence(per_round)
    return Row(
        name, SUITE.get(name, name), threads, batch, strict, ours, medians, best, ratio, low, high, flops / 1e9, peak,
        flops / (ours * 1e6 * peak), build_s, error, host_steps,
        {k: [float(m) for m in np.median(v, axis=1)] for k, v in result.samples_ms.items()},
    )  # fmt: skip


def geomean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def markdown(rows: list[Row], vs: list[str]) -> str:
    """The tables of docs/performance.md: one per (batch, threads), with the geometric mean."""
    parts = [_machine(vs)]
    for batch, threads, strict in sorted({(r.batch, r.threads, r.strict_fp32) for r in rows}):
        group = [r for r in rows if (r.batch, r.threads, r.strict_fp32) == (batch, threads, strict)]
        head = ["model", "dovetail ms", *(f"{p} ms" for p in vs), "best peer / dovetail", "95 % interval", "of FMA peak", "rel. L2 error"]
        body = [
            [r.label, f"{r.ours_ms:.2f}", *(f"{r.peers_ms[p]:.2f}" for p in vs), f"{r.ratio:.2f}",
             f"{r.low:.2f} to {r.high:.2f}", f"{100 * r.peak_share:.0f} %", f"{r.max_error:.1e}"]
            for r in group
        ]  # fmt: skip
        title = f"Batch {batch}, {threads} thread{'s' * (threads > 1)}" + (", strict_fp32" if strict else "")
        mean = f"Geometric mean of the ratios: **{geomean([r.ratio for r in group]):.3f}**; FMA peak {group[0].peak_gflops:.0f} GFLOP/s."
        parts.append(f"### {title}\n\n{table(head, body)}\n\n{mean}")
    return "\n\n".join(parts) + "\n"


def _machine(vs: list[str]) -> str:
    versions = ", ".join(f"{p} {peers.version(p)}" for p in vs)
    return (
        f"{cpu_name()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}, Python {platform.python_version()}; "
        f"dovetail {dovetail.__version__}, {versions}."
    )


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.cpu_suite", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--models", nargs="+", default=list(SUITE), metavar="NAME", help="models of the zoo (default: the ten)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--vs", type=peers.parse, default="onnxruntime,openvino")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--round-s", type=float, default=0.3)
    parser.add_argument("--strict", action="store_true", help="also measure ResNet-50 under strict_fp32")
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    jobs = [(n, t, b, False) for b in args.batch for t in args.threads for n in args.models]
    if args.strict:
        jobs += [("torchvision_resnet50", t, 1, True) for t in args.threads]
    rows: list[Row] = []
    failed = 0
    for index, (name, threads, batch, strict) in enumerate(jobs):
        try:
            row = run_model(name, threads, batch, args, strict)
        except dovetail.Error as error:
            failed += 1
            print(f"{name}, {threads} threads, batch {batch}: {error}", file=sys.stderr)
            continue
        rows.append(row)
        others = ", ".join(f"{k} {v:.2f}" for k, v in row.peers_ms.items())
        print(f"[{index + 1}/{len(jobs)}] {row.label}, {threads} thread(s), batch {batch}: dovetail {row.ours_ms:.2f} ms, {others}; "
              f"ratio {row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}], {100 * row.peak_share:.0f} % of peak", flush=True)  # fmt: skip
        (args.output / "results.json").write_text(json.dumps([asdict(r) for r in rows], indent=1))
        (args.output / "results.md").write_text(markdown(rows, args.vs))
    print(markdown(rows, args.vs))
    if rows and args.vs:
        plot_ratios([asdict(r) for r in rows], args.output / "ratios.svg")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
