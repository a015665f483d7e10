"""Branches without control flow: an If of two cheap branches computes both and selects.

Running a region costs more than a few pointwise operations, and values of a region cannot fuse with what is around it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core.dims import product
from dovetail.ir.graph import Graph, Node, Time, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.ir.types import TensorType
from dovetail.ops.registry import POINTWISE, find
from dovetail.passes.clean import replace

_MOST_NODES = 8


def _costly(region: Graph) -> str | None:
    """None if a region may be computed in vain, else the reason why not."""
    nodes = [n for n in region.nodes if n.op != "Constant"]
    if len(nodes) > _MOST_NODES:
        return f"a branch has {len(nodes)} nodes, more than {_MOST_NODES}"
    for node in nodes:
        spec = find(node.op)
        if spec is None or spec.kind != POINTWISE or node.regions or node.attrs.get("impure") or node.attrs.get("symbols"):
            return f"{node.op} is not pointwise"
        for value in (*node.operands, *node.outputs):
            # Integer division by zero traps where the branch is not taken; floats give NaN, which is not selected.
            if not isinstance(value.type, TensorType) or not (value.tensor.dtype.is_float or value.tensor.dtype.kind == "bool"):
                return f"{node.op} works on {value.type}"
    return None


def _inlined(region: Graph, captures: Sequence[Value | None], rewrite: Rewrite, before: Node) -> list[Value]:
    """A region's nodes in front of `before`; returns its results."""
    known: dict[Value, Value | None] = dict(zip(region.inputs, captures, strict=True))
    for node in region.nodes:
        inputs = [None if v is None else known[v] for v in node.inputs]
        copy = rewrite.graph.add(
            node.op, inputs, node.attrs, types=[v.type for v in node.outputs], origin=node.origin, before=before
        )
        known.update(zip(node.outputs, copy.outputs, strict=True))
    results = [known[v] for v in region.outputs]
    return [v for v in results if v is not None]


@rule("If")
def select_between_cheap_branches(node: Node, rewrite: Rewrite) -> str | None:
    """If of two pointwise branches of a few nodes is Where(condition, first, second)."""
    condition = node.input(0)
    if condition.time != Time.RUN:
        return "the condition is known before the run"
    if node.attrs.get("symbols") or product(condition.tensor.shape) != 1:
        return "its results have sizes of their own"
    for region in node.regions:
        if [v.type for v in region.outputs] != [v.type for v in node.outputs]:
            return "the branches have results of different types"
        if any(not isinstance(v.type, TensorType) for v in region.outputs):
            return "a result is a sequence"
        reason = _costly(region)
        if reason is not None:
            return reason
    first, second = (_inlined(region, node.inputs[1:], rewrite, node) for region in node.regions)
    if condition.tensor.rank:
        condition = rewrite.emit("Reshape", condition, shape=())
    chosen = [
        rewrite.emit("Where", condition, a, b, name=old.name)
        for a, b, old in zip(first, second, node.outputs, strict=True)
    ]
    replace(rewrite, node, *chosen)
    return None


BRANCH_RULES = (select_between_cheap_branches,)
