"""Write a smaller ONNX model that computes the same: constants folded, chains merged, do-nothing nodes removed.

    dovetail simplify model.onnx small.onnx
    dovetail simplify model.onnx small.onnx --shapes x:[1,3,224,224]
    dovetail simplify model.onnx small.onnx --only fold_constants remove_identities --explain

Opset, IR version, metadata and the names of inputs and outputs stay. Weights in files of their own are never loaded as a whole, and are
written beside the result. The result is checked before it is written: by default both models run on seeded inputs, with ONNX
Runtime where it is installed and ONNX's reference evaluator elsewhere (more than 512 MiB of weights in files: with Dovetail's
references, one operator after the other); an output may differ by 1e-4, or by what rounding the original's inputs and weights does to it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from dovetail.cli import options, output
from dovetail.core.errors import ModelError, UsageError
from dovetail.core.text import size_text
from dovetail.model.equivalence import check
from dovetail.model.model import Model
from dovetail.model.rules.log import text as rule_lines
from dovetail.model.simplifier import (
    FUSIONS,
    INLINE_FUNCTIONS,
    REWRITES,
    RULES,
    Simplification,
    simplify,
)
from dovetail.model.weights import all_tensors, is_external, stored_bytes

_REWRITES = (INLINE_FUNCTIONS, RULES, *REWRITES, *FUSIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail simplify`."""
    parser.add_argument("model", help="ONNX file")
    parser.add_argument("result", nargs="?", help="ONNX file to write")
    parser.add_argument("-o", "--output", metavar="SMALL.onnx", help="the same, as other verbs call it")
    options.add_shapes(parser)
    options.add_rules(parser)
    parser.add_argument("--skip", nargs="+", choices=_REWRITES, default=[], metavar="REWRITE",
                        help=f"rewrites to leave out: {', '.join(_REWRITES)}")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=_REWRITES, metavar="REWRITE", help="the only rewrites to apply (default: all)")
    parser.add_argument("--fuse", action="store_true",
                        help="make Gelu and LayerNormalization of what exporters wrote out, where the opset has them")  # fmt: skip
    parser.add_argument("--explain", action="store_true", help="list every change with its place")
    parser.add_argument("--check", choices=("outputs", "valid", "none"), default="outputs",
                        help="outputs (default): run both models on seeded inputs; valid: ONNX's checker alone; none")  # fmt: skip
    parser.add_argument("--no-check", dest="check", action="store_const", const="none", help="short for --check none")
    parser.add_argument("--check-n", type=options.positive, default=1, metavar="N", help="number of seeded inputs to compare on")
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Simplify, check, write, and print the table."""
    if (args.result is None) == (args.output is None):
        raise UsageError("simplify: got no file to write, or two, expected one: dovetail simplify model.onnx small.onnx")
    args.result = args.result or args.output
    original = Model.load(args.model)
    made = simplify(original, shapes=options.shapes(args), skip=args.skip, only=args.only, rules=args.rules, fuse=args.fuse)
    error = None
    if args.check == "valid" or (args.check == "outputs" and _is_valid(original)):
        made.model.check()
    if args.check == "outputs":
        error = check(original, made.model, args.check_n)
    report = _report(args, original, made, error)
    path = Path(args.result)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.model.save(path)
    output.show(args, report, _text(args, report))
    return 0


def _is_valid(model: Model) -> bool:
    """Whether ONNX's checker accepts a model; many that it does not accept run."""
    try:
        model.check()
    except ModelError:
        return False
    return True


def _report(args: argparse.Namespace, before: Model, made: Simplification, error: float | None) -> dict[str, Any]:
    models = (before, made.model)
    counts = [Counter(n.op_type for n in m.proto.graph.node) for m in models]
    return {
        "model": args.model,
        "result": args.result,
        "operators": {op: [counts[0][op], counts[1][op]] for op in sorted(counts[0] | counts[1])},
        "nodes": [len(m.proto.graph.node) for m in models],
        "weights": [len(m.weights) for m in models],
        "bytes": [_bytes(m) for m in models],
        "inputs": [v.name for v in made.model.proto.graph.input],
        "outputs": [v.name for v in made.model.proto.graph.output],
        "rewrites": made.counts,
        "changes": [{"rewrite": a.rewrite, "place": a.place} for a in made.applied],
        "rules": made.rules.json(),
        "check": args.check,
        "max_relative_error": error,
    }


def _bytes(model: Model) -> int:
    """Size of a model with its weights in files."""
    return int(model.proto.ByteSize()) + sum(stored_bytes(t) for t in all_tensors(model.proto) if is_external(t))


def _text(args: argparse.Namespace, report: dict[str, Any]) -> str:
    rows: list[list[object]] = [[op, *pair] for op, pair in report["operators"].items()]
    rows += [["all nodes", *report["nodes"]], ["initializers", *report["weights"]]]
    rows.append(["size", *map(size_text, report["bytes"])])
    parts = [output.table(["operator", "original", "simplified"], rows)]
    if report["rewrites"]:
        parts.append(output.table(["rewrite", "changes"], [[name, count] for name, count in report["rewrites"].items()]))
    if args.explain:
        parts += [f"{change['rewrite']}: {change['place']}" for change in report["changes"]]
    if args.explain:
        parts += rule_lines(report["rules"])
    checked = {
        "none": "not checked",
        "valid": "ONNX's checker accepts it; outputs were not compared",
        "outputs": f"checked against the original: largest relative difference {report['max_relative_error'] or 0:.1e}",
    }[args.check]
    return "\n".join([*parts, f"{args.result}: {checked}"])
