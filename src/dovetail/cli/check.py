"""List everything in a model that is not supported, at once and without building; and forecast its size and work.

    dovetail check model.onnx
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from dovetail.cli import options, output
from dovetail.core.errors import UnsupportedOpError
from dovetail.core.text import counted, size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail check`."""
    parser.add_argument("model", help="ONNX file")
    options.add_shapes(parser)
    options.add_rules(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Import the model and say what came of it; exit code 1 if something is not supported."""
    from dovetail.frontend.importer import import_onnx
    from dovetail.model.model import Model
    from dovetail.model.rules import apply_rules
    from dovetail.model.training import training_nodes

    model = Model.load(args.model)
    log = apply_rules(model, args.rules, shapes=options.shapes(args))
    proto = model.proto
    data: dict[str, Any] = {
        "model": args.model,
        "opsets": {o.domain or "ai.onnx": o.version for o in proto.opset_import},
        "operators": dict(sorted(Counter(n.op_type for n in proto.graph.node).items())),
        "supported": True,
        "problems": [],
        "rules": log.json(),
        "training": training_nodes(proto),
    }
    trained = [f"  training {node}: export the model in evaluation mode" for node in data["training"]]
    applied = f"\n{log}" if log or args.rules else ""
    try:
        module = import_onnx(model, options.shapes(args))
    except UnsupportedOpError as error:
        data |= {"supported": False, "problems": list(error.problems)}
        lines = "\n".join(f"  {p}" for p in error.problems)
        count = len(error.problems)
        output.show(args, data, f"{args.model}: {counted(count, 'node')} not supported\n{lines}{applied}")
        return 1
    from dovetail.benchmark.flops import model_flops

    symbols = _symbols(module)
    weights = sum(int(array.nbytes) for array in module.weights.values())
    flops = model_flops(module, dict.fromkeys(symbols, 1))
    data |= {
        "weights_bytes": weights,
        "gflop": flops / 1e9,
        "symbols": symbols,
        "inputs": {v.name: str(v.type) for v in module.main.inputs},
        "outputs": {v.name: str(v.type) for v in module.main.outputs},
    }
    at = f" with {', '.join(f'{s}=1' for s in symbols)}" if symbols else ""
    text = [
        f"{args.model}: every node is supported",
        f"  nodes    {len(proto.graph.node)} in the model, {len(module.main)} in the IR",
        f"  weights  {size_text(weights)}",
        f"  work     {flops / 1e9:.2f} GFLOP in contractions{at}",
        *(f"  input    {name}: {type_}" for name, type_ in data["inputs"].items()),
        *(f"  output   {name}: {type_}" for name, type_ in data["outputs"].items()),
        *trained,
    ]
    output.show(args, data, "\n".join(text) + applied)
    return 0


def _symbols(module: Any) -> list[str]:
    from dovetail.core.dims import symbols
    from dovetail.ir.types import TensorType

    found: dict[str, None] = {}
    for value in module.main.inputs:
        if isinstance(value.type, TensorType):
            for dim in value.type.shape:
                found.update(dict.fromkeys(sorted(symbols(dim))))
    return list(found)
