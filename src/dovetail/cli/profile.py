"""Show where the time of a run goes: every step with the nodes that it computes, slowest first.

    dovetail profile resnet50.plan
    dovetail profile model.onnx --device cuda --fp16 --inputs x.npz --json
    dovetail profile resnet50.plan --trace trace.json      open it in ui.perfetto.dev or chrome://tracing
    nsys profile dovetail profile resnet50.plan --nvtx     every step as a range over its kernel, in Nsight Systems

Steps are timed one by one, so that their sum is more than the latency of a run: `dovetail bench` measures that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dovetail.cli import data, options, output
from dovetail.cli.artifact import open_engine
from dovetail.cli.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail profile`."""
    parser.add_argument("engine", help="engine file or ONNX model")
    options.add_data(parser)
    parser.add_argument("--runs", type=options.positive, default=10, help="runs that the medians are over (default: 10)")
    parser.add_argument("--trace", metavar="T.json", help="write a trace in Chrome's format, for Perfetto and chrome://tracing")
    parser.add_argument("--nvtx", action="store_true", help="mark runs and steps by NVTX ranges, for Nsight Systems")
    options.add_build(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Run a few times with time stamps, and print the table."""
    with progress(args) as update:
        engine = open_engine(args, args.engine, update)
    feeds = data.inputs(args, engine.inputs)
    profile = engine.profile(feeds, runs=args.runs, nvtx=args.nvtx)
    if args.trace:
        profile.trace(args.trace, Path(args.engine).name)
    shapes = {name: list(x.shape) for name, x in feeds.items()}
    shown = ", ".join(f"{name}{output.shape_text(shape)}" for name, shape in shapes.items())
    output.show(
        args, {"engine": args.engine, "target": engine.plan.target, "inputs": shapes, "trace": args.trace, **profile.json()},
        f"{args.engine}: {engine.plan.target}, inputs {shown}\n{profile}" + (f"\ntrace: {args.trace}" if args.trace else ""),
    )  # fmt: skip
    return 0
