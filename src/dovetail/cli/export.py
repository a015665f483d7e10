"""Export a model of PyTorch or TensorFlow to ONNX, in evaluation mode, checked and compared with the original.

    dovetail export torchvision:resnet50 -o resnet50.onnx --dynamic x:0=batch
    dovetail export timm:convnext_atto -o m.onnx --weights checkpoint.safetensors
    dovetail export transformers:bert -o bert.onnx --input input_ids:i64[batch,seq] --arg num_hidden_layers=4
    dovetail export my_package.models:make_net -o net.onnx --input x:f32[1,3,224,224]
    dovetail export net.py:Net -o net.onnx --inputs x.npz --exporter torchscript --opset 13
    dovetail export saved.pt2 -o m.onnx
    dovetail export saved_model/ -o m.onnx --signature serving_default
    dovetail export model.keras -o m.onnx
    dovetail export frozen.pb -o m.onnx --inputs x:0 --outputs probs:0 --opset 15
    dovetail export model.tflite -o m.onnx

Weights of named models are random with a fixed seed unless --weights gives some. Initializers have the names of the state dict, so
that `dovetail refit` and `Engine.refit(model.state_dict())` work. The file is written whole, after all checks, or not at all.
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from dovetail.cli import options, output
from dovetail.cli.data import load_arrays
from dovetail.cli.export_tensorflow import (
    add_tensorflow_arguments,
    refuse_tensorflow_arguments,
    run_tensorflow,
)
from dovetail.cli.progress import progress
from dovetail.core.errors import UsageError
from dovetail.core.text import size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail export`."""
    parser.add_argument(
        "model", metavar="SPEC",
        help="torchvision:NAME, timm:NAME, transformers:CONFIG, package.module:callable, file.py:callable, or saved.pt2; "
        "of TensorFlow a SavedModel folder, a .keras, .h5, .pb or .tflite file",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", required=True, metavar="M.onnx", help="ONNX file to write; weights beyond 2 GiB go to M.onnx.data"
    )
    given = parser.add_argument_group("the model")
    given.add_argument(
        "--weights", metavar="W", help="a file (.pt, .pth, .bin, .safetensors), random, pretrained, or a name of pretrained weights"
    )
    given.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="argument of the model, such as num_classes=10")
    given.add_argument("--model-class", metavar="C", help="class of transformers, such as BertForMaskedLM (default: AutoModel's)")
    inputs = parser.add_argument_group("example inputs")
    inputs.add_argument(
        "--input", action="append", default=[], metavar="NAME:TYPE[DIMS]",
        help="an input, such as x:f32[1,3,224,224]; a dim that is a name or a range (batch, 1..32) is a dynamic axis",
    )  # fmt: skip
    options.add_data(inputs)  # type: ignore[arg-type]  # a group takes arguments as a parser does
    inputs.add_argument(
        "--dynamic", action="append", default=[], metavar="INPUT:AXIS=NAME",
        help="an axis of any size, such as input0:0=batch; input0 is the first input",
    )  # fmt: skip
    how = parser.add_argument_group("the export")
    how.add_argument("--exporter", choices=("dynamo", "torchscript"), default="dynamo", help="of PyTorch (default: dynamo)")
    how.add_argument("--allow-fallback", action="store_true", help="take the other exporter where this one fails")
    how.add_argument("--opset", type=options.positive, metavar="N", help="of ONNX's operators (default: what PyTorch recommends)")
    how.add_argument("--output-names", nargs="+", metavar="NAME", help="default: keys of a dict that forward returns, or output0 …")
    how.add_argument("--simplify", action="store_true", help="simplify the model; parameters that this folds lose their names")
    how.add_argument("--no-check", action="store_true", help="do not compare outputs with PyTorch's")
    how.add_argument("--tolerance", type=float, metavar="T", help="relative L2 difference that counts as equal (default: by type)")
    add_tensorflow_arguments(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Load, export, check, write, and print the report."""
    from dovetail.export.tensorflow_sources import is_tensorflow

    if is_tensorflow(args.model):
        return run_tensorflow(args)
    refuse_tensorflow_arguments(args)
    from dovetail.export import pytorch
    from dovetail.export.torch_sources import load
    from dovetail.export.torch_weights import settle_norms

    path = Path(args.output)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--output: got {args.output!r}, expected a file in a folder that exists")
    with progress(args) as report:
        if report is not None:
            report("load", 0, 1)
        loaded = load(args.model, weights=args.weights, options=_options(args.arg), model_class=args.model_class, seed=args.seed)
        if report is not None:
            report("load", 1, 1)
        given, keywords, names, axes = _inputs(args, loaded)
        if loaded.random and given is not None and settle_norms(loaded.model, given, keywords or {}, args.seed):
            loaded.notes.append("batch norms have the statistics of seeded noise, so that values stay in scale")
        model = pytorch(
            loaded.model, given, keywords, dynamic=axes + args.dynamic, opset=args.opset, exporter=args.exporter,
            allow_fallback=args.allow_fallback, input_names=names, output_names=args.output_names, simplify=args.simplify,
            check=not args.no_check, tolerance=args.tolerance, name=args.model, progress=report,
        )  # fmt: skip
        model.report.notes[:0] = loaded.notes
        model.save(path)
    size = sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}.data")) if p.is_file())
    output.show(args, model.report.json() | {"file": str(path), "bytes": size}, f"{model.report}\n{path}: {size_text(size)}")
    return 0


def _inputs(args: argparse.Namespace, loaded: Any) -> tuple[Any, dict[str, Any] | None, list[str] | None, list[str]]:
    """(args, kwargs, names of inputs where they are not forward's own, dynamic axes) from options, or as the model brings them."""
    from dovetail.export.torch_inputs import arguments, input_spec, tensors_from, tensors_of
    from dovetail.export.torch_subject import parameters

    if args.input and args.inputs:
        raise UsageError("--input and --inputs: got both, expected one: arrays have types and sizes already")
    specs = [input_spec(text) for text in args.input]
    if args.inputs:
        tensors = tensors_from(load_arrays(args.inputs))
    elif specs or loaded.args is None:
        specs = specs or loaded.specs
        tensors = tensors_of(specs, args.seed)
    else:
        return loaded.args, None, None, []
    axes = [f"{spec.name}:{axis}={name}" for spec in specs for axis, name in spec.axes.items()]
    if not tensors:
        return None, None, None, axes  # a program has its own; of a module, this is an error that says what to give
    if not hasattr(loaded.model, "forward"):
        return tuple(tensors.values()), {}, None, axes
    ordered, named = arguments(loaded.model, tensors)
    alone = next(iter(tensors)) if len(tensors) == 1 else ""
    renamed = alone and alone not in parameters(loaded.model) and not alone.startswith("input")
    return ordered, named, [alone] if renamed else None, axes


def _options(texts: list[str]) -> dict[str, Any]:
    """`--arg NAME=VALUE`: Python's literals, and all else as text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg: got {text!r}, expected NAME=VALUE, such as num_classes=10")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = {"true": True, "false": False, "none": None}.get(value.lower(), value)
    return found
