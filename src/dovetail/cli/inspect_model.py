"""`dovetail inspect` of an ONNX model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.cli import options, output
from dovetail.cli.inspect_weights import suspicions_text, weights_text
from dovetail.core.dims import parse, symbols
from dovetail.frontend.reader import read_model
from dovetail.model.description import describe
from dovetail.model.layers import amount, work_at, work_text

_TOP = 10
_LONGEST = 48
_WIDTH = 24


def inspect_model(args: argparse.Namespace) -> int:
    """Print inputs, outputs, operators with their work, what is suspicious in the weights, and layers and weights."""
    model, folder = read_model(args.file)
    data = describe(model, folder, options.shapes(args))
    output.show(args, {"model": args.file, **data}, _text(args, data))
    return 0


def _text(args: argparse.Namespace, data: dict[str, Any]) -> str:
    opsets = ", ".join(f"{k} {v}" for k, v in data["opsets"].items())
    lines = [
        f"{args.file}: IR version {data['ir_version']}, opset {opsets}" + (f", by {data['producer']}" if data["producer"] else ""),
        *(f"  input   {v['name']}: {v['dtype']}{output.shape_text(v['shape'])}" for v in data["inputs"]),
        *(f"  output  {v['name']}: {v['dtype']}{output.shape_text(v['shape'])}" for v in data["outputs"]),
        f"  {amount(data['parameters'])} parameters; {_work(data)}",
        *(f"  training mode: {node}; export the model in evaluation mode" for node in data["training"]),
        *suspicions_text(data["suspicious"], data["weights"]),
        "",
        output.table(["operator", "nodes", "parameters", "FLOP", "share"], _operators(data)),
    ]
    if data["functions"]:
        lines.append("functions: " + ", ".join(data["functions"]))
    if data["layers"] and not data["flops_unknown"]:
        layers = _layers(data, args.layers)
        lines += ["", *layers] if layers else []
    return "\n".join([*lines, *weights_text(data["weights"], args.weights)])


def _work(data: Mapping[str, Any]) -> str:
    if data["flops_unknown"]:
        return f"arithmetic not known: {data['flops_unknown']} (dovetail check lists all)"
    how = "FLOP in contractions (2 per multiply-add)"
    text = work_text(data["flops"])
    if not isinstance(data["flops"], str):
        return f"{text} {how}"
    at = f"{_sizes(data)} (--shapes for other sizes)"
    return f"{text} {how}; below{at}" if len(text) <= _LONGEST else f"{amount(_at(data, data['flops']))} {how}{at}"


def _sizes(data: Mapping[str, Any]) -> str:
    """The sizes that amounts of work are given for."""
    used = symbols(parse(data["flops"]))
    return " at " + ", ".join(f"{name}={data['flops_at'].get(name, 1)}" for name in sorted(used))


def _operators(data: Mapping[str, Any]) -> list[tuple[object, ...]]:
    whole = max(1, _at(data, data["flops"]))
    rows = []
    for op, nodes in data["operators"].items():
        found = data["work"].get(op, {"parameters": 0, "flops": 0})
        work = _at(data, found["flops"])
        rows.append((op, nodes, _some(found["parameters"]), _some(work), _share(work, whole)))
    return [*rows, ("total", data["nodes"], _some(data["parameters"]), _some(_at(data, data["flops"])), "")]


def _layers(data: Mapping[str, Any], everything: bool) -> list[str]:
    layers: Sequence[Mapping[str, Any]] = data["layers"]
    works = {id(x): _at(data, x["flops"]) for x in layers}
    most = sorted((x for x in layers if works[id(x)] or x["parameters"]), key=lambda x: (-works[id(x)], -x["parameters"]))
    shown = layers if everything else most[:_TOP]
    whole = max(1, _at(data, data["flops"]))
    rows = [
        ("  " * x["depth"] + x["name"], x["op"], output.shape_text(x["shape"]) if x["dtype"] else "?", _some(x["parameters"]),
         _some(works[id(x)]), _share(works[id(x)], whole))
        for x in shown
    ]  # fmt: skip
    if not rows:
        return []  # nothing has parameters or contractions: the operators say it all
    left = len(layers) - len(shown)
    head = f"{len(layers)} layers" if everything else "the layers with the most work" + (f"; {left} more with --layers" if left else "")
    return [head, output.table(["layer", "operator", "output", "parameters", "FLOP", "share"], rows)]


def _at(data: Mapping[str, Any], work: int | str | None) -> int:
    """Operations as a number, at the usual sizes where sizes are open."""
    return work if isinstance(work, int) else 0 if work is None else work_at(parse(work), data["flops_at"])


def _some(count: int) -> str:
    return amount(count) if count else ""


def _share(work: int, whole: int) -> str:
    return f"{100 * work / whole:4.1f} % {'█' * round(_WIDTH * work / whole)}".rstrip() if work else ""
