"""Say what differs between two files, each an ONNX model or an engine: graph, compilation, weights, outputs, speed.

    dovetail diff a.onnx b.onnx
    dovetail diff model.onnx model.plan --layers          the first bad layer, if outputs differ
    dovetail diff a.plan b.plan --only engine,speed
    dovetail diff a.onnx b.onnx --speed                   builds both, and measures them interleaved

Exit code 1 if outputs differ by more than the tolerance, or were asked for and cannot be compared; other differences are reported.
"""

from __future__ import annotations

import argparse

from dovetail.cli import data, options, output
from dovetail.cli.artifact import is_plan
from dovetail.cli.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail diff`."""
    parser.add_argument("a", help="what is compared with: ONNX model or engine file")
    parser.add_argument("b", help="ONNX model or engine file")
    parser.add_argument("--only", metavar="SECTIONS", help="some of graph,engine,weights,outputs,speed (default: all that apply)")
    parser.add_argument("--layers", action="store_true", help="compare intermediate values too, and name the first bad one")
    parser.add_argument("--speed", action="store_true", help="measure models, too, built with default options (engines always are)")
    parser.add_argument("--tolerance", type=float, metavar="T", help="relative L2 difference allowed in outputs (default: the precision's)")
    options.add_data(parser)
    options.add_shapes(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    from dovetail import api

    feeds = data.load_arrays(args.inputs) if args.inputs else None
    with progress(args) as update:
        found = api.diff(
            args.a, args.b, only=_sections(args), inputs=feeds, shapes=options.shapes(args), layers=args.layers,
            tolerance=args.tolerance, seed=args.seed, threads=args.threads, trust=args.trust, progress=update,
        )  # fmt: skip
    output.show(args, found.json(), str(found))
    return 0 if found.ok else 1


def _sections(args: argparse.Namespace) -> list[str] | None:
    if args.only is not None:
        return [s.strip() for s in args.only.split(",") if s.strip()] + (["speed"] if args.speed else [])
    if not args.speed:
        return None
    both = is_plan(args.a) and is_plan(args.b)
    return ["graph", *(["engine"] if both else []), "weights", "outputs", "speed"]
