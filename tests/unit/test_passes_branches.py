"""If of two cheap branches: selected where that is safe and cheap, kept with a reason otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dovetail.core.dims import sym
from dovetail.core.dtypes import BOOL, F32, I64, DType
from dovetail.ir.graph import Graph, Module, Value
from dovetail.ir.rewriter import apply_rules
from dovetail.ir.types import TensorType
from dovetail.ops.evaluate import evaluate
from dovetail.ops.infer import infer
from dovetail.passes.branches import BRANCH_RULES
from tests.unit.ir_builder import Builder, built, ops, rewritten

Body = Callable[[Graph, list[Value]], Value]


def node(graph: Graph, op: str, *inputs: Value, **attrs: object) -> Value:
    return graph.add(op, inputs, attrs, types=infer(op, inputs, attrs)).output


def twice(graph: Graph, x: list[Value]) -> Value:
    return node(graph, "Add", x[0], x[0])


def ratio(graph: Graph, x: list[Value]) -> Value:
    return node(graph, "Sqrt", node(graph, "Div", x[0], x[1]))


def same(graph: Graph, x: list[Value]) -> Value:
    return x[0]


def long(graph: Graph, x: list[Value]) -> Value:
    y = x[0]
    for _ in range(9):
        y = node(graph, "Tanh", y)
    return y


def product(graph: Graph, x: list[Value]) -> Value:
    return node(graph, "MatMul", x[0], x[1])


def branch(
    first: Body, second: Body, dtype: DType = F32, condition: tuple[int, ...] = (), fixed: bool = False
) -> Callable[[Builder], Value]:
    """If(condition, first, second) over two square inputs."""

    def build(b: Builder) -> Value:
        n = sym("n")
        x, y = (b.input(n, n, dtype=dtype) for _ in range(2))
        chosen = b.weight(np.asarray(True)) if fixed else b.input(*condition, dtype=BOOL)
        regions = []
        for body in (first, second):
            region = Graph("branch")
            inner = [region.add_input(f"i{k}", v.type) for k, v in enumerate((x, y))]
            region.set_outputs([body(region, inner)])
            regions.append(region)
        return b.graph.add(
            "If", (chosen, x, y), {}, types=[TensorType(dtype, (n, n))], regions=regions, origin=("if",)
        ).output

    return build


def reasons(module: Module) -> list[str]:
    return [reason for _, _, reason in apply_rules(module, BRANCH_RULES, infer).declined]


@pytest.mark.parametrize("condition", [(), (1,), (1, 1)])
@pytest.mark.parametrize(("first", "second"), [(twice, ratio), (ratio, same), (same, same)])
def test_cheap_branches_become_a_selection(first: Body, second: Body, condition: tuple[int, ...]) -> None:
    build = branch(first, second, condition=condition)
    module, applied = rewritten(build, lambda m: apply_rules(m, BRANCH_RULES, infer), {"n": 3})
    assert applied == {"select_between_cheap_branches"}
    assert ops(module)["If"] == 0 and ops(module)["Where"] == 1


@pytest.mark.parametrize("taken", [False, True])
def test_what_the_other_branch_computes_does_not_show(taken: bool) -> None:
    """The branch that is not taken makes NaN and infinity."""
    module = built(branch(ratio, twice))
    apply_rules(module, BRANCH_RULES, infer)
    x, y = np.array([[-1.0]], np.float32), np.array([[0.0]], np.float32)
    feeds = dict(zip((v.name for v in module.main.inputs), (x, y, np.asarray(taken)), strict=True))
    with np.errstate(all="ignore"):
        (got,) = evaluate(module, feeds).values()
    assert np.isnan(got).all() if taken else np.array_equal(got, [[-2.0]])


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (branch(twice, long), "a branch has 9 nodes, more than 8"),
        (branch(product, twice), "MatMul is not pointwise"),
        (branch(twice, same, dtype=I64), "Add works on i64"),
        (branch(twice, same, fixed=True), "known before the run"),
    ],
)
def test_other_branches_stay(build: Callable[[Builder], Value], reason: str) -> None:
    module = built(build)
    assert any(reason in r for r in reasons(module))
    assert sum(n.op == "If" for n in module.main.nodes) == 1
