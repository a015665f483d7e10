"""Print a model, one of its tensors, the IR after a pass, a plan, a kernel's source, or a file of weights.

    dovetail inspect model.onnx                     inputs, outputs, operators, work, suspicious weights
    dovetail inspect model.onnx --layers --weights  every layer and every weight, with statistics and histograms
    dovetail inspect model.onnx --tensor NAME       one tensor: type, producer, consumers, statistics and values of a weight
    dovetail inspect model.onnx --after simplify    the IR after a stage of the pipeline
    dovetail inspect resnet50.plan                  bindings, kernels, steps, memory, weights
    dovetail inspect resnet50.plan --kernel NAME    a kernel's C or Triton source (a prefix of the name, or a node's, will do)
    dovetail inspect weights.safetensors            arrays of a .safetensors or .npz file, with statistics
"""

from __future__ import annotations

import argparse

from dovetail.cli import options
from dovetail.cli.artifact import is_arrays, is_plan
from dovetail.core.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail inspect`."""
    parser.add_argument("file", help="ONNX model, engine file, or arrays (.npz, .safetensors)")
    parser.add_argument("--after", metavar="STAGE", help="print the IR after this stage (model only; 'list' names them)")
    parser.add_argument("--layers", action="store_true", help="list every layer, not only those with the most work (model only)")
    parser.add_argument("--weights", action="store_true", help="list every weight, not only the largest")
    parser.add_argument("--tensor", metavar="NAME", help="show one tensor: where it is made and read, and what is in a weight")
    parser.add_argument("--kernel", metavar="NAME", help="print this kernel's source (engine only)")
    parser.add_argument("--steps", action="store_true", help="list every step (engine only)")
    options.add_build(parser)
    options.add_threads(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Dispatch on what the file is."""
    kind = "arrays" if is_arrays(args.file) else "engine" if is_plan(args.file) else "model"
    _refuse(args, kind)
    if args.tensor is not None:
        from dovetail.cli.inspect_tensor import inspect_tensor

        return inspect_tensor(args, kind)
    if kind == "arrays":
        from dovetail.cli.inspect_tensor import inspect_arrays

        return inspect_arrays(args)
    if kind == "engine":
        from dovetail.cli.inspect_plan import inspect_kernel, inspect_plan

        return inspect_kernel(args) if args.kernel else inspect_plan(args)
    if args.after:
        from dovetail.cli.inspect_ir import inspect_ir

        return inspect_ir(args)
    from dovetail.cli.inspect_model import inspect_model

    return inspect_model(args)


def _refuse(args: argparse.Namespace, kind: str) -> None:
    """Say which options make no sense for a file of this kind."""
    what = {"arrays": "a file of arrays", "engine": "an engine file", "model": "a model"}[kind]
    for option, given, kinds, why in (
        ("--after", args.after, ("model",), "expected a model; an engine's IR is fixed"),
        ("--layers", args.layers, ("model",), "expected a model; --steps lists what an engine runs"),
        ("--kernel", args.kernel, ("engine",), "expected an engine file; build it first"),
        ("--steps", args.steps, ("engine",), "expected an engine file; build it first, or see a model's --layers"),
    ):
        if given and kind not in kinds:
            raise UsageError(f"{option}: got {what}, {why}")
