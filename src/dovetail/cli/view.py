"""Open a model in Netron, or an engine: its fused graph, one node per kernel, with times, tactics and precisions as attributes.

    dovetail view model.onnx                        opens the browser; Ctrl-C ends it
    dovetail view model.plan --port 9000 --no-browser
    dovetail view model.plan --export fused.onnx    writes the fused graph as an ONNX file for any viewer, without Netron

Netron is an extra: pip install 'dovetail[view]'. `dovetail report` shows more of an engine, and needs nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx

from dovetail.cli import data, options, output
from dovetail.cli.artifact import is_plan, open_engine
from dovetail.core.errors import DeviceError, UsageError
from dovetail.core.files import replacing
from dovetail.engine.file import EngineFile
from dovetail.frontend.reader import read_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail view`."""
    parser.add_argument("file", help="ONNX model or engine file")
    parser.add_argument("--port", type=int, help="port to serve on (default: the first free one from 8080 on)")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open nothing")
    parser.add_argument("--export", metavar="F.onnx", help="write an engine's fused graph as an ONNX file instead")
    parser.add_argument("--no-run", action="store_true", help="do not time an engine: its graph has no times")
    parser.add_argument("--device", metavar="D", help="where to time an engine (default: as it was built for)")
    options.add_data(parser)
    options.add_shapes(parser)
    options.add_threads(parser)
    options.add_trust(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Make the graph, and serve or write it."""
    from dovetail.view import netron

    plan = is_plan(args.file)
    if args.export and not plan:
        raise UsageError(f"--export: got {args.file}, which is a model already, expected an engine file; build it first")
    if args.export:
        return _export(args)
    port = netron.free_port(args.port)
    if plan:
        name, content = f"{Path(args.file).stem}.fused.onnx", _fused(args).SerializeToString()
    else:
        read_model(args.file)  # an error of ours if it is no model
        name, content = str(args.file), None
    address = netron.serve(name, content, port, not args.no_browser)
    output.show(args, {"file": args.file, "address": address}, f"{args.file}: {address}; Ctrl-C ends it")
    print(end="", flush=True)
    netron.wait()
    return 0


def _export(args: argparse.Namespace) -> int:
    model = _fused(args)
    path = Path(args.export)
    if not path.parent.is_dir():
        raise UsageError(f"--export: got {path}, whose folder does not exist; make it first")
    with replacing(path) as file:
        file.write(model.SerializeToString())
    timed = any(a.name == "time_us" for node in model.graph.node for a in node.attribute)
    found = {"engine": args.file, "model": str(path), "nodes": len(model.graph.node), "timed": timed}
    output.show(args, found, f"{path}: {found['nodes']} nodes, {'with' if timed else 'without'} times")
    return 0


def _fused(args: argparse.Namespace) -> onnx.ModelProto:
    """The fused graph, with times if the engine can run here."""
    from dovetail.api import pages
    from dovetail.view.netron import fused_model

    title = Path(args.file).name
    reason = "--no-run was given"
    if not args.no_run:
        try:
            engine = open_engine(args, args.file)
        except DeviceError as error:
            if args.device or args.inputs:
                raise
            reason = str(error)
        else:
            measured = pages.measure(engine, data.inputs(args, engine.inputs), whole=False)
            return fused_model(pages.make_document(pages.contents_of_engine(engine), title, measured))
    file = EngineFile(args.file)
    return fused_model(pages.make_document(pages.contents_of_file(file, file.targets[0]), title, None, reason))
