"""Print a model, the IR after a pass, a plan, or a kernel's source.

    dovetail inspect model.onnx                     inputs, outputs, operators, weights with statistics
    dovetail inspect model.onnx --after simplify    the IR after a stage of the pipeline
    dovetail inspect resnet50.plan                  bindings, kernels, steps, memory
    dovetail inspect resnet50.plan --kernel NAME    a kernel's C or Triton source (a prefix of the name, or a node's, will do)
"""

from __future__ import annotations

import argparse

from dovetail.cli import options
from dovetail.cli.artifact import is_plan
from dovetail.core.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail inspect`."""
    parser.add_argument("file", help="ONNX model or engine file")
    parser.add_argument("--after", metavar="STAGE", help="print the IR after this stage (model only; 'list' names them)")
    parser.add_argument("--weights", action="store_true", help="list every weight, not only the largest")
    parser.add_argument("--kernel", metavar="NAME", help="print this kernel's source (engine only)")
    parser.add_argument("--steps", action="store_true", help="list every step (engine only)")
    options.add_build(parser)
    options.add_threads(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Dispatch on what the file is."""
    if is_plan(args.file):
        if args.after:
            raise UsageError("--after: got an engine file, expected a model; an engine's IR is fixed")
        from dovetail.cli.inspect_plan import inspect_kernel, inspect_plan

        return inspect_kernel(args) if args.kernel else inspect_plan(args)
    if args.kernel:
        raise UsageError("--kernel: got a model, expected an engine file; build it first")
    if args.after:
        from dovetail.cli.inspect_ir import inspect_ir

        return inspect_ir(args)
    from dovetail.cli.inspect_model import inspect_model

    return inspect_model(args)
