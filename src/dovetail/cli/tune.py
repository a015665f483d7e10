"""Choose an engine's tactics again by measuring on this machine: for engines built where their GPU was not.

    dovetail build model.onnx --target sm_90 -o model.plan      # anywhere
    dovetail tune model.plan -o tuned.plan                      # on the machine with the GPU
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dovetail.cli import options, output
from dovetail.cli.artifact import load_engine
from dovetail.cli.progress import progress
from dovetail.core.text import size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail tune`."""
    parser.add_argument("engine", help="engine file")
    parser.add_argument("-o", "--output", metavar="M.plan", help="the tuned engine (default: in the place of the old one)")
    options.add_device(parser)
    options.add_tuning(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Tune and save."""
    from dovetail import api

    target = Path(args.output or args.engine)
    with progress(args) as update:
        engine = load_engine(args, args.engine)
        tuned = api.tune(
            engine, device=args.device, time_budget=args.time_budget, optimization_level=args.optimization_level,
            verify=args.verify, progress=update,
        )  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        tuned.save(target)
    report = tuned.report()
    data = {"output": str(target), "report": report.json()}
    output.show(args, data, f"{report}\n\n{target}: {size_text(target.stat().st_size)}")
    return 0
