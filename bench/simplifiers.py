"""Nodes that `dovetail simplify`, onnxsim and OnnxSlim leave of the models in `models/`, as a Markdown table.

    python -m bench.simplifiers
    python -m bench.simplifiers dynamic_unet torchvision_swin_t

Nodes of subgraphs count, Constant nodes do not. A peer that is not installed (pip install onnxsim onnxslim), or fails, has a dash.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable

import onnx

from dovetail import Model
from dovetail.model.proto_graph import subgraphs
from models import zoo


def nodes(graph: onnx.GraphProto) -> int:
    """The number of nodes of a graph and those in it, without constants."""
    return sum(1 + sum(map(nodes, subgraphs(n))) for n in graph.node if n.op_type != "Constant")


def dovetail(model: onnx.ModelProto) -> onnx.ModelProto:
    """Ours."""
    return Model(model).simplify().proto


def onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    """With onnxsim's defaults."""
    return importlib.import_module("onnxsim").simplify(model)[0]


def onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    """With OnnxSlim's defaults."""
    return importlib.import_module("onnxslim").slim(model)


def count(simplifier: Callable[[onnx.ModelProto], onnx.ModelProto], model: onnx.ModelProto) -> str:
    """What a simplifier leaves, as text."""
    try:
        return str(nodes(simplifier(model).graph))
    except Exception as error:  # each peer has its own kinds; the table goes on
        print(f"{simplifier.__name__}: {type(error).__name__}: {error}"[:200], file=sys.stderr)
        return "–"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names (default: all)")
    print("| model | exported | dovetail | onnxsim | OnnxSlim |\n|---|---:|---:|---:|---:|")
    for name in parser.parse_args().models or zoo.names():
        model = zoo.load(name)
        cells = [count(simplifier, model) for simplifier in (dovetail, onnxsim, onnxslim)]
        print(f"| {name} | {nodes(model.graph)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
