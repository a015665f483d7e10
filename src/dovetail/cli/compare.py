"""Compare the outputs of two models or engines on the same inputs, and with --layers every intermediate value.

    dovetail compare model.onnx model.plan
    dovetail compare model.onnx model.plan --inputs x.npz --layers
    dovetail compare a.plan b.plan --tolerance 1e-5 --json

The first argument is the reference. Exit code 1 if anything differs by more than the tolerance; the first bad layer is on top.
"""

from __future__ import annotations

import argparse
from typing import Any

from dovetail.cli import data, options, output
from dovetail.cli.artifact import is_plan
from dovetail.cli.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail compare`."""
    parser.add_argument("a", help="reference: engine file or ONNX model")
    parser.add_argument("b", help="engine file or ONNX model")
    parser.add_argument("--layers", action="store_true", help="compare intermediate values too")
    parser.add_argument(
        "--tolerance", type=float, metavar="T",
        help="relative L2 difference allowed (default: 1e-4; 2e-3 with an engine in fp16 or tf32, 1e-2 in bf16, or 1.5 times what its "
        "certificate found)",
    )  # fmt: skip
    options.add_data(parser)
    options.add_shapes(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from dovetail import api

    with progress(args):
        sides: list[Any] = [
            api.load(path, threads=args.threads, trust=args.trust) if is_plan(path) else path for path in (args.a, args.b)
        ]
        feeds = data.inputs(args, _bindings(sides))
        comparison = api.compare(sides[0], sides[1], inputs=feeds, layers=args.layers, tolerance=args.tolerance)
    output.show(args, comparison.json(), str(comparison))
    return 0 if comparison.ok else 1


def _bindings(sides: list[Any]) -> list[Any]:
    """The inputs that either side takes: an engine's bindings, else what the model declares."""
    for side in sides:
        if not isinstance(side, str):
            return list(side.inputs)
    from dovetail.frontend.reader import read_model
    from dovetail.model.equivalence import declared_inputs

    return list(declared_inputs(read_model(sides[0])[0]))
