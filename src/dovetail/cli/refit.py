"""Write an engine file with other weights: nothing is compiled, and no GPU is needed for an engine of one.

    dovetail refit model.plan weights.safetensors -o new.plan
    dovetail refit model.plan trained.onnx -o new.plan --strict
    dovetail refit model.plan weights.npz -o new.plan --names names.json

Weights are named as in the model. A names file holds a JSON object: by weight of the engine the name in the weights file,
or [name, axes] for one that is transposed there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dovetail.cli import options, output
from dovetail.cli.artifact import is_plan
from dovetail.core.errors import UsageError
from dovetail.core.text import size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail refit`."""
    parser.add_argument("engine", help="engine file")
    parser.add_argument("weights", help="new weights: .safetensors, .npz or .onnx")
    parser.add_argument("-o", "--output", metavar="N.plan", help="the new engine (default: in the place of the old one)")
    parser.add_argument("--names", metavar="N.json", help="by weight of the engine its name in the weights file, or [name, axes]")
    parser.add_argument("--strict", action="store_true", help="demand a value for every weight")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="PATTERN", help="names in the weights file to leave aside")
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Check, write, and say what changed."""
    from dovetail.api.refitting import refit_file

    if not is_plan(args.engine):
        raise UsageError(f"{args.engine}: got a file that is no engine, expected one; build it: dovetail build {args.engine} -o M.plan")
    target = Path(args.output or args.engine)
    target.parent.mkdir(parents=True, exist_ok=True)
    changed = refit_file(
        args.engine, args.weights, target, names=_names(args.names) if args.names else None, strict=args.strict, ignore=args.ignore
    )
    size = target.stat().st_size
    data = {"output": str(target), "bytes": size, "weights": list(changed)}
    output.show(args, data, f"{target}: {len(changed)} weights replaced, {size_text(size)}")
    return 0


def _names(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: got no JSON ({error}), expected an object of names") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: got {type(found).__name__}, expected an object of names")
    return {name: (value[0], tuple(value[1])) if _transposed(value) else value for name, value in found.items()}


def _transposed(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], list)
