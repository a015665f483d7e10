"""Arithmetic of a model: multiplications and additions of its contractions, from the IR."""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.core import dims
from dovetail.core.dims import Dim, evaluate, product
from dovetail.core.errors import ShapeError
from dovetail.ir.graph import Module, Node


def model_flops(module: Module, sizes: Mapping[str, int]) -> int:
    """Operations (2 per multiply-add) of all contractions of the main graph for given symbol sizes.

    Contractions whose sizes depend on data are left out: the result is a lower bound there.
    """
    total = 0
    for node in module.main.nodes:
        flops = node_flops(node)
        try:
            total += evaluate(flops, sizes)
        except ShapeError:
            continue
    return total


def node_flops(node: Node) -> Dim:
    """Operations of one Conv, ConvTranspose or MatMul; 0 for any other node."""
    if node.op == "Conv":
        weight = node.input(1).tensor.shape
        return 2 * node.outputs[0].tensor.size * product(weight[1:])
    if node.op == "ConvTranspose":
        weight = node.input(1).tensor.shape
        return 2 * node.input(0).tensor.size * product(weight[1:])
    if node.op == "MatMul":
        return 2 * node.outputs[0].tensor.size * node.input(0).tensor.shape[-1]
    return 0


def contraction_flops(node: Node) -> Dim:
    """Operations of any node that multiplies and adds: `node_flops`, and those of Attention, DeformConv and recurrent ops."""
    if node.op == "Attention":
        q, k = node.input(0).tensor, node.input(1).tensor
        keys = k.shape[-2] if k.rank == 4 else k.shape[1]
        return 2 * keys * (q.size + node.outputs[0].tensor.size)
    if node.op == "DeformConv":
        return 2 * node.outputs[0].tensor.size * product(node.input(1).tensor.shape[1:])
    if node.op in ("LSTM", "GRU", "RNN"):
        steps, samples = node.input(0).tensor.shape[:2]
        weights = [v.tensor.size for v in node.inputs[1:3] if v is not None]
        return 2 * steps * samples * dims.total(weights)
    return node_flops(node)
