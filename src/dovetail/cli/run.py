"""Run an engine or a model on inputs from an .npz file.

    dovetail run resnet50.plan --inputs x.npz --outputs y.npz
    dovetail run model.onnx --shapes x:[4,3,224,224]          (seeded inputs)
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from dovetail.cli import data, options, output
from dovetail.cli.artifact import open_engine
from dovetail.cli.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail run`."""
    parser.add_argument("engine", help="engine file or ONNX model")
    options.add_data(parser)
    parser.add_argument("--outputs", metavar="Y.npz", help="write the outputs here")
    options.add_build(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Run once and describe the outputs."""
    with progress(args) as update:
        engine = open_engine(args, args.engine, update)
    feeds = data.inputs(args, engine.inputs)
    start = time.perf_counter()
    results = engine.run(feeds)
    latency_ms = (time.perf_counter() - start) * 1e3
    if args.outputs:
        data.save_arrays(args.outputs, results)
    rows = [describe(name, array) for name, array in results.items()]
    text = output.table(
        ["output", "dtype", "shape", "min", "mean", "max"],
        [[r["name"], r["dtype"], output.shape_text(r["shape"]), *(_number(r[k]) for k in ("min", "mean", "max"))] for r in rows],
    )
    if args.outputs:
        text += f"\n{args.outputs}"
    output.show(args, {"outputs": rows, "first_run_ms": latency_ms, "written": args.outputs}, text)
    return 0


def describe(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Name, dtype, shape, and statistics of a numeric array."""
    row: dict[str, Any] = {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    row |= dict.fromkeys(("min", "mean", "max", "nan"))
    if array.size and array.dtype.kind not in "OSU":
        wide = np.asarray(array, np.float64)
        finite = wide[np.isfinite(wide)]
        row["nan"] = int(np.isnan(wide).sum())
        if finite.size:
            row |= {"min": float(finite.min()), "mean": float(finite.mean()), "max": float(finite.max())}
    return row


def _number(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else ""
