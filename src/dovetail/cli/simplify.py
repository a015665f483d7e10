"""Write a smaller ONNX model that computes the same: constants folded, dead and do-nothing nodes removed.

    dovetail simplify model.onnx small.onnx
    dovetail simplify model.onnx small.onnx --shapes x:[1,3,224,224]

Opset, IR version, metadata and the names of inputs and outputs stay. The result is checked against the original
on seeded inputs, with ONNX Runtime where it is installed and ONNX's reference evaluator elsewhere, before it is written:
an output may differ by 1e-4, or by what rounding the original's inputs and weights does to it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from dovetail.cli import options, output
from dovetail.core.errors import ModelError, UsageError
from dovetail.frontend.reader import read_model
from dovetail.model.equivalence import check
from dovetail.model.simplifier import REWRITES, simplify

_PROTO_LIMIT = (1 << 31) - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail simplify`."""
    parser.add_argument("model", help="ONNX file")
    parser.add_argument("result", help="ONNX file to write")
    options.add_shapes(parser)
    parser.add_argument("--skip", nargs="+", choices=sorted(REWRITES), default=[], metavar="REWRITE",
                        help=f"rewrites to leave out: {', '.join(REWRITES)}")  # fmt: skip
    parser.add_argument("--no-check", action="store_true", help="do not compare with the original")
    parser.add_argument("--check-n", type=options.positive, default=1, metavar="N", help="number of seeded inputs to compare on")
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Simplify, check, write, and print the table."""
    model, folder = read_model(args.model)
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    if external and folder is not None:
        try:
            onnx.load_external_data_for_model(model, str(folder))
        except (OSError, ValueError, onnx.checker.ValidationError) as cause:
            raise ModelError(f"{args.model}: external data cannot be read ({cause}); put it beside the model") from cause
    original = onnx.ModelProto()
    original.CopyFrom(model)
    _fix_shapes(model, options.shapes(args) or {})
    result = simplify(model, skip=frozenset(args.skip))
    error = None if args.no_check else check(original, result, args.check_n)
    save(result, Path(args.result), external)
    report = _report(args, original, result, error)
    output.show(args, report, _text(args, report))
    return 0


def _fix_shapes(model: onnx.ModelProto, shapes: Mapping[str, tuple[int | str, ...]]) -> None:
    """Write the given shapes into the model's inputs."""
    inputs = {v.name: v for v in model.graph.input}
    for name, dims in shapes.items():
        if name not in inputs:
            raise UsageError(f"--shapes: got {name!r}, expected names of inputs: {sorted(inputs)}")
        tensor = inputs[name].type.tensor_type
        if tensor.HasField("shape") and len(tensor.shape.dim) != len(dims):
            raise UsageError(f"--shapes: got {len(dims)} dimensions for {name!r}, expected {len(tensor.shape.dim)}")
        del tensor.shape.dim[:]
        for dim in dims:
            if isinstance(dim, str) and ".." in dim:
                raise UsageError(f"--shapes: got the range {dim!r} for {name!r}, expected a size or a name here")
            added = tensor.shape.dim.add()
            if isinstance(dim, int):
                added.dim_value = dim
            else:
                added.dim_param = dim
    if shapes:
        # Types inferred for the old shapes would contradict the new ones.
        del model.graph.value_info[:]
        for value in model.graph.output:
            if value.type.WhichOneof("value") == "tensor_type":
                value.type.tensor_type.ClearField("shape")


def save(model: onnx.ModelProto, path: Path, external: bool) -> None:
    """Write the model through a temporary file; large weights go to PATH.data where they have to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if external or model.ByteSize() > _PROTO_LIMIT:
        location = f"{path.name}.data"
        (path.parent / location).unlink(missing_ok=True)  # onnx appends to a file that exists
        onnx.save_model(model, path, save_as_external_data=True, location=location)
        return
    handle, scratch = tempfile.mkstemp(suffix=".onnx.tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model.SerializeToString())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------- the report
def _report(args: argparse.Namespace, before: onnx.ModelProto, after: onnx.ModelProto, error: float | None) -> dict[str, Any]:
    counts = [Counter(n.op_type for n in m.graph.node) for m in (before, after)]
    operators = {op: [counts[0][op], counts[1][op]] for op in sorted(counts[0] | counts[1])}
    return {
        "model": args.model,
        "result": args.result,
        "operators": operators,
        "nodes": [len(before.graph.node), len(after.graph.node)],
        "weights": [len(before.graph.initializer), len(after.graph.initializer)],
        "bytes": [before.ByteSize(), after.ByteSize()],
        "inputs": [v.name for v in after.graph.input],
        "outputs": [v.name for v in after.graph.output],
        "max_relative_error": error,
    }


def _text(args: argparse.Namespace, report: dict[str, Any]) -> str:
    rows: list[list[object]] = [[op, *pair] for op, pair in report["operators"].items()]
    rows += [["all nodes", *report["nodes"]], ["initializers", *report["weights"]]]
    rows.append(["size", *map(output.size, report["bytes"])])
    error = report["max_relative_error"]
    checked = "not checked" if error is None else f"checked against the original: largest relative difference {error:.1e}"
    return output.table(["operator", "original", "simplified"], rows) + f"\n{args.result}: {checked}"
