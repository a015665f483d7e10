"""Write a page that shows what is inside an engine: one HTML file, opened by any browser, without a network.

    dovetail report resnet50.plan -o report.html
    dovetail report resnet50.plan -o report.html --inputs x.npz     times are for inputs like these
    dovetail report resnet50.plan -o report.html --no-run           from the file alone: for an engine whose device is not here
    dovetail report model.onnx -o report.html                       builds the model first

The page has the fused graph (zoom, search, a click on a kernel shows its source, its nodes and why it was chosen), kernels by
time, the roofline, the memory plan, precision, and the accuracy certificate.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.cli import data, options, output
from dovetail.cli.artifact import is_plan, open_engine
from dovetail.cli.progress import progress
from dovetail.core.errors import DeviceError, PlanFormatError, UsageError
from dovetail.core.text import size_text
from dovetail.engine.file import EngineFile

if TYPE_CHECKING:
    from dovetail.api.engine import Engine
    from dovetail.api.pages import Contents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail report`."""
    parser.add_argument("engine", help="engine file or ONNX model")
    parser.add_argument("-o", "--output", metavar="R.html", help="the page (default: beside the engine, .html)")
    parser.add_argument("--model", metavar="M.onnx", help="the model that the engine was built from: its operators are then named, too")
    parser.add_argument("--no-run", action="store_true", help="do not time it: the page has no times")
    options.add_data(parser)
    options.add_build(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Time the engine if it can run here, and write the page."""
    from dovetail.api.pages import make_page, measure
    from dovetail.view.page import write_text

    path = Path(args.output) if args.output else Path(args.engine).with_suffix(".html")
    if not path.parent.is_dir():
        raise UsageError(f"--output: got {path}, whose folder does not exist; make it first")
    with progress(args) as update:
        contents, engine, reason = _open(args, update)
        if not isinstance(contents.plan.meta.get("report"), dict):
            raise PlanFormatError(f"{args.engine}: got no build report in it, expected one; build the engine again")
        measured = None if engine is None else measure(engine, data.inputs(args, engine.inputs))
    if args.model:
        contents = replace(contents, onnx_ops=_operators(args.model, contents))
    text = make_page(contents, Path(args.engine).name, measured, reason)
    write_text(path, text)
    latency = None if measured is None or measured.latency is None else measured.latency["median_ms"]
    found = {
        "engine": args.engine, "page": str(path), "bytes": path.stat().st_size, "measured": measured is not None, "not_run": reason,
        "latency_ms": latency,
    }  # fmt: skip
    how = f"not timed: {reason}" if latency is None else f"median latency {latency:.3f} ms"
    output.show(args, found, f"{path}: {size_text(found['bytes'])}, {how}")
    return 0


def _open(args: argparse.Namespace, update: object) -> tuple[Contents, Engine | None, str]:
    """The contents of the engine; itself if it is to run, else why not."""
    from dovetail.api.pages import contents_of_engine, contents_of_file

    if not is_plan(args.engine):
        built = open_engine(args, args.engine, update)  # type: ignore[arg-type]  # what `progress` gives
        return contents_of_engine(built), None if args.no_run else built, "--no-run was given" if args.no_run else ""
    file = EngineFile(args.engine)
    if args.target is not None and args.target not in file.targets:
        raise UsageError(f"--target: got {args.target!r}, expected one of {', '.join(file.targets)}")
    if args.no_run:
        return contents_of_file(file, args.target or file.targets[0]), None, "--no-run was given"
    try:
        engine = open_engine(args, args.engine)
    except DeviceError as error:
        if args.device or args.inputs:  # asked to run it
            raise
        return contents_of_file(file, args.target or file.targets[0]), None, " ".join(str(error).split())
    return contents_of_engine(engine), engine, ""  # of a file that is not trusted, what was made again


def _operators(path: str, contents: Contents) -> dict[str, str]:
    """Operators of a model's nodes by their names; the engine must have been made of it."""
    from dovetail.frontend.reader import read_model

    found = {node.name: node.op_type if not node.domain else f"{node.domain}.{node.op_type}" for node in read_model(path)[0].graph.node}
    built: Any = contents.plan.meta["report"]
    known: set[str] = {name for group in built["groups"] for name in group["origin"]}
    if known and not known & set(found):
        raise UsageError(f"--model: got {path}, none of whose nodes is in {', '.join(sorted(known)[:3])}, …; pass the engine's own model")
    return found
