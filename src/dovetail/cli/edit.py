"""Change an ONNX model: one verb a job, the result checked and written to a new file.

    dovetail edit extract model.onnx -o head.onnx --inputs features --outputs scores
    dovetail edit replace model.onnx -o new.onnx --inputs a --outputs b --op HardSwish
    dovetail edit rename model.onnx -o new.onnx --tensors input0=image
    dovetail edit VERB --help

Every result passes onnx's checker and has its types inferred again. Where an edit must not change what the model computes
(rename, rewrite, io-layout, convert-opset, set-dtype, batch, mark-output, unmark-output, to-input, externalise, inline), it is
compared with the original on seeded inputs before it is written; --no-check skips that. Weights in files of their own are not read
until then. --json prints what changed as one JSON object.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from dovetail.cli import edit_verbs, options, output
from dovetail.core.errors import UsageError
from dovetail.core.text import size_text
from dovetail.model.edit import checked
from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.stripping import digest, stripped, stripped_tensor
from dovetail.model.model import Model
from dovetail.model.weights import stored_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail edit`, of all its verbs."""
    verbs = parser.add_subparsers(dest="edit", metavar="VERB", required=True)
    for name, verb in edit_verbs.EDITS.items():
        sub = verbs.add_parser(name, help=verb.summary, description=verb.description, formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument("model", help="ONNX file")
        sub.add_argument("-o", "--output", required=True, metavar="NEW.onnx", help="ONNX file to write; may be the model itself")
        verb.arguments(sub)
        sub.add_argument("--no-check", action="store_true", help="do not compare with the original")
        options.add_output(sub)
        # Also after the inner verb, where users write it; the outer parser has it like all verbs.
        sub.add_argument("--plugins", action="append", metavar="FILE.py", default=argparse.SUPPRESS, help="run a file that defines plugins")


def run(args: argparse.Namespace) -> int:
    """Edit, check, write, and print what changed."""
    target = Path(args.output)
    if not target.parent.is_dir() or target.is_dir():
        raise UsageError(f"--output: got {args.output!r}, expected a file in a folder that exists")
    verb = edit_verbs.EDITS[args.edit]
    original = Model.load(args.model)
    change = verb.run(original, args)
    error, why = None, "" if change.check else change.unchecked or "not compared: what it computes was meant to change"
    if args.no_check:
        why = "not compared: --no-check"
    elif change.check is not None and stripped(original.proto):
        why = "not compared: the values of its weights are stripped"
    elif change.check is not None:
        if checked.too_large(original):
            why = "not compared: more than 2 GiB of weights"
        else:
            error = change.check()
            why = change.unchecked if error is None else ""
    report = _report(args, original, change.model)
    compared = None
    if change.external is None:
        change.model.save(target)
    else:
        compared = _move_weights(change.model, target, change.external, not args.no_check)
    report |= {"max_relative_error": error, "weights_compared": compared, "notes": change.notes}
    output.show(args, report, _text(args, report, why))
    return 0


def _move_weights(model: Model, target: Path, external: bool, check: bool) -> int | None:
    """Write weights into a file of their own, or into the model's, and read them again; how many are the same."""
    before = {name: digest(model.weights[name]) for name in model.weights} if check else {}
    model.save(target, external=external)
    return checked.same_weights(before, Model.load(target)) if check else None


# ---------------------------------------------------------------------- the report
def _report(args: argparse.Namespace, before: Model, after: Model) -> dict[str, Any]:
    graphs = (before.proto.graph, after.proto.graph)
    counts = [Counter(n.op_type for n in g.node) for g in graphs]
    ports = [
        {side: {v.name: kinds.text(v.type) for v in values} for side, values in (("inputs", _inputs(m)), ("outputs", m.proto.graph.output))}
        for m in (before, after)
    ]
    return {
        "model": args.model,
        "result": args.output,
        "edit": args.edit,
        "nodes": [len(g.node) for g in graphs],
        "operators": {op: [counts[0][op], counts[1][op]] for op in sorted(counts[0] | counts[1]) if counts[0][op] != counts[1][op]},
        "weights": [len(g.initializer) for g in graphs],
        "weight_bytes": [sum(stored_bytes(t) for t in g.initializer if not stripped_tensor(t)) for g in graphs],
        "inputs": [p["inputs"] for p in ports],
        "outputs": [p["outputs"] for p in ports],
        "opset": [before.opset, after.opset],
        "ir_version": [before.proto.ir_version, after.proto.ir_version],
    }


def _inputs(model: Model) -> list[Any]:
    weights = {t.name for t in model.proto.graph.initializer}
    return [v for v in model.proto.graph.input if v.name not in weights]


def _text(args: argparse.Namespace, report: dict[str, Any], why: str) -> str:
    rows: list[list[object]] = [
        ["nodes", *report["nodes"]],
        *([f"  {op}", *pair] for op, pair in report["operators"].items()),
        ["weights", *report["weights"]],
        ["  size", *map(size_text, report["weight_bytes"])],
    ]
    rows += [[name, *report[name]] for name in ("opset", "ir_version") if report[name][0] != report[name][1]]
    for side in ("inputs", "outputs"):
        before, after = report[side]
        gone, new = [n for n in before if n not in after], [n for n in after if n not in before]
        changed = [n for n in before if n in after and before[n] != after[n]]
        rows += [[f"{side[:-1]} {n}", before[n], after[n]] for n in changed]
        rows += [[f"{side[:-1]} {n}", before[n], "–"] for n in gone] + [[f"{side[:-1]} {n}", "–", after[n]] for n in new]
    error, compared = report["max_relative_error"], report["weights_compared"]
    if error is not None:
        why = f"compared with the original: largest relative difference {error:.1e}"
    elif compared is not None:
        why = f"read again: all {compared} weights are the original's"
    notes = "".join(f"\n{note}" for note in report["notes"])
    return output.table(["", "before", "after"], rows) + notes + f"\n{args.output}: checked by onnx{f'; {why}' if why else ''}"
