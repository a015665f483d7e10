"""What the user calls the weights that an exporter renamed, as far as nodes and shapes tell.

PyTorch's exporter folds the transposition of a linear layer's weight into an initializer named `onnx::MatMul_123`;
the node that reads it is named by its module: `/encoder/layer.0/attention/query/MatMul`. So the initializer is
`encoder.layer.0.attention.query.weight`, transposed. Nothing is guessed where contents may have been changed:
an `onnx::Conv_123` has a batch normalisation folded into it.
"""

from __future__ import annotations

import re

from dovetail.api.recipes import Recipe
from dovetail.ir.graph import Module, Node, Time, Value

RENAMED = re.compile(r"onnx::\w+_\d+")
_FOLDED = re.compile(r"onnx::MatMul_\d+")
_NODE = re.compile(r"/(?P<scope>.+)/(?P<op>[A-Za-z]+)(_\d+)?")


def exported_names(module: Module) -> dict[str, Recipe]:
    """By weight what it is made of, for those that are linear layers' weights transposed."""
    return {
        name: Recipe("arrange", (f"{paths[0]}.weight",), axes=(1, 0))
        for name, (rank, paths) in _read_by(module, "MatMul").items()
        if _FOLDED.fullmatch(name) and rank == 2 and len(paths) == 1
    }


def modules_of(module: Module) -> dict[str, list[str]]:
    """By weight the paths of the modules whose nodes read it."""
    return {name: paths for name, (_, paths) in _read_by(module, None).items()}


def module_path(scope: str) -> str:
    """The path of a module from the scope of its nodes: "layer1/layer1.0/conv1" is layer1.0.conv1."""
    parts: list[str] = []
    for part in scope.split("/"):
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)


def _read_by(module: Module, op: str | None) -> dict[str, tuple[int, list[str]]]:
    """By weight its rank, and the paths of the modules with a node of an ONNX op (or any) that reads it."""
    found: dict[str, tuple[int, list[str]]] = {}
    for node in module.main.nodes:
        if node.op != "Constant":
            continue
        names = (_NODE.fullmatch(name) for reader in _readers(node.output) for name in reader.origin)
        scopes = dict.fromkeys(m["scope"] for m in names if m and op in (None, m["op"]))
        found[node.attrs["name"]] = node.output.tensor.rank, [module_path(scope) for scope in scopes]
    return found


def _readers(value: Value) -> list[Node]:
    """The nodes that read a value, through what a load computes from it: rewrites have moved factors into weights."""
    found: dict[Node, None] = {}
    pending = list(value.consumers)
    while pending:
        node = pending.pop(0)
        if node not in found:
            found[node] = None
            pending += [n for v in node.outputs if v.time == Time.WEIGHT for n in v.consumers]
    return list(found)
