"""The part of `dovetail export` that is for models of TensorFlow: SavedModel, Keras, frozen graph, TFLite.

    dovetail export saved_model/ -o model.onnx
    dovetail export model.keras -o model.onnx --dynamic image:0=n
    dovetail export frozen.pb -o model.onnx --inputs x:0 --outputs probs:0
    dovetail export model.tflite -o model.onnx --continue-on-error --plugins my_ops.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dovetail.cli import options, output
from dovetail.cli.data import load_arrays
from dovetail.core.errors import UsageError
from dovetail.core.text import size_text

_DEFAULTS: dict[str, Any] = {
    "outputs": None, "signature": None, "tag": None, "shapes": [], "continue_on_error": False, "keep_unused_inputs": False,
    "inputs_as_nchw": None, "outputs_as_nchw": None, "dequantize": False, "large_model": False, "verbose": False,
}  # fmt: skip
"""The options that only a model of TensorFlow has, with the values that they have where they are not given."""

_PYTORCH_ONLY: dict[str, Any] = {
    "weights": None, "arg": [], "model_class": None, "input": [], "exporter": "dynamo", "allow_fallback": False, "output_names": None,
}  # fmt: skip


def add_tensorflow_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dovetail export` that are for models of TensorFlow alone."""
    group = parser.add_argument_group("models of TensorFlow")
    group.add_argument(
        "--outputs", metavar="NAME:0,…",
        help="tensors at which a frozen graph ends, or the outputs to keep; --inputs NAME:0,… says where it begins",
    )  # fmt: skip
    group.add_argument("--signature", metavar="NAME", help="of a SavedModel (default: serving_default, or the only one)")
    group.add_argument("--tag", metavar="TAG,…", help="of a SavedModel with several graphs (default: serve, or the only one)")
    options.add_shapes(group)  # type: ignore[arg-type]  # a group takes arguments as a parser does
    group.add_argument(
        "--continue-on-error", action="store_true", help="leave operators without translation in the model, for plugins of their names"
    )
    group.add_argument("--keep-unused-inputs", action="store_true", help="keep inputs that nothing reads")
    group.add_argument("--inputs-as-nchw", metavar="NAME,…", help="inputs that get the channels in front")
    group.add_argument("--outputs-as-nchw", metavar="NAME,…", help="outputs that get the channels in front")
    group.add_argument("--dequantize", action="store_true", help="make an fp32 model of a quantised TFLite model")
    group.add_argument("--large-model", action="store_true", help="constants beyond 2 GiB (default: found out for variables)")
    group.add_argument("--verbose", action="store_true", help="let TensorFlow and tf2onnx write to stderr")


def refuse_tensorflow_arguments(args: argparse.Namespace) -> None:
    """Say that an option is only for models of TensorFlow, where the model is another.

    Raises:
        UsageError: one was given.
    """
    _refuse(args, _DEFAULTS, "a model of PyTorch", "a model of TensorFlow")


def run_tensorflow(args: argparse.Namespace) -> int:
    """Export, check, write, and print the report."""
    from dovetail.export.from_tensorflow import tensorflow

    path = Path(args.output)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"--output: got {args.output!r}, expected a file in a folder that exists")
    _refuse(args, _PYTORCH_ONLY, "a model of TensorFlow", "a model of PyTorch")
    samples = args.inputs is not None and args.inputs.endswith(".npz")
    model = tensorflow(
        args.model,
        inputs=None if samples else _names(args.inputs),
        outputs=_names(args.outputs),
        signature=args.signature,
        tag=args.tag,
        opset=args.opset,
        shapes=options.shapes(args),
        dynamic=_dynamic(args.dynamic),
        inputs_as_nchw=_names(args.inputs_as_nchw) or (),
        outputs_as_nchw=_names(args.outputs_as_nchw) or (),
        keep_unused_inputs=args.keep_unused_inputs,
        continue_on_error=args.continue_on_error,
        dequantize=args.dequantize,
        large_model=args.large_model,
        simplify=args.simplify,
        check=not args.no_check,
        tolerance=args.tolerance,
        samples=load_arrays(args.inputs) if samples else None,
        seed=args.seed,
        verbose=args.verbose,
    )
    model.save(path)
    size = sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}.data")) if p.is_file())
    output.show(args, model.report.json() | {"file": str(path), "bytes": size}, f"{model.report}\n{path}: {size_text(size)}")
    return 0


def _refuse(args: argparse.Namespace, defaults: dict[str, Any], got: str, expected: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name, default in defaults.items() if getattr(args, name, default) != default]
    if given:
        raise UsageError(f"{', '.join(given)}: got {got} ({args.model}), expected {expected}")


def _names(text: str | None) -> list[str] | None:
    """Names with commas between."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"got {text!r}, expected names with commas between, such as x:0,y:0")
    return names


def _dynamic(texts: Sequence[str]) -> dict[str, dict[int, str]]:
    """`--dynamic INPUT:AXIS=NAME`."""
    found: dict[str, dict[int, str]] = {}
    for text in texts:
        where, equals, name = text.rpartition("=")
        tensor, colon, axis = where.rpartition(":")
        if not equals or not colon or not tensor or not axis.isdigit() or not name.isidentifier():
            raise UsageError(f"--dynamic: got {text!r}, expected INPUT:AXIS=NAME, such as image:0=batch")
        found.setdefault(tensor, {})[int(axis)] = name
    return found
