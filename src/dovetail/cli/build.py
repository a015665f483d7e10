"""Compile an ONNX model into an engine file.

    dovetail build resnet50.onnx -o resnet50.plan
    dovetail build model.onnx --shapes x:[1..32,3,224,224] --target cpu:avx2
    dovetail build model.onnx -o model.plan --add --target sm_90 --fp16
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dovetail.cli import options, output
from dovetail.cli.progress import progress
from dovetail.core.text import size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail build`."""
    parser.add_argument("model", help="ONNX file")
    parser.add_argument("-o", "--output", metavar="M.plan", help="engine file (default: the model's name with .plan)")
    parser.add_argument("--add", action="store_true", help="add a target to an engine file of the same model, which keeps its others")
    options.add_build(parser)
    options.add_threads(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Build and save."""
    from dovetail import api

    target = Path(args.output) if args.output else Path(args.model).with_suffix(".plan")
    start = time.perf_counter()
    with progress(args) as update:
        engine = api.build(args.model, progress=update, **options.build_options(args))
        target.parent.mkdir(parents=True, exist_ok=True)
        if args.add:
            engine.add_to(target)
        else:
            engine.save(target)
    seconds = time.perf_counter() - start
    bytes_ = target.stat().st_size
    report = engine.report()
    data = {"output": str(target), "output_bytes": bytes_, "seconds": seconds, "report": report.json()}
    output.show(args, data, f"{report}\n\n{target}: {size_text(bytes_)}, built in {seconds:.1f} s")
    return 0
