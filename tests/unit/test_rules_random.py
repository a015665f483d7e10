"""Random graphs full of forms that rules replace, shared, nested and beside each other: outputs stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.unit.rule_models import applied, assert_same, copied, graph, node, rule


def swish(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x).shared())


def pair(op: Any, x: Any, v: Any, w: Any) -> Any:
    return op.Add(x, v), op.Sub(x, w)


RULES = [
    rule(swish, lambda op, x: op.Div(x, op.Add(op.Exp(op.Neg(x)), 1.0)), "swish"),
    rule(lambda op, x, y: op.Relu(op.Add(x, y)), lambda op, x, y: op.Max(op.Sum(x, y), 0.0), "relu"),
    rule(pair, lambda op, x, v, w: (op.Sum(x, v), op.Sum(x, op.Neg(w))), "pair"),
    rule(lambda op, x: op.Neg(op.Neg(x)), lambda op, x: x, "twice"),
]


def random_graph(rng: np.random.Generator) -> onnx.ModelProto:
    names, nodes = ["x", "z"], []
    for i in range(int(rng.integers(3, 10))):
        a, b = (str(rng.choice(names[-3:])) for _ in range(2))
        inner, out = f"s{i}", f"v{i}"
        form = int(rng.integers(6))
        if form == 0:
            nodes += [node("Sigmoid", a, inner), node("Mul", f"{inner} {a}", out)]
        elif form == 1:
            nodes += [node("Add", f"{a} {b}", inner), node("Relu", inner, out)]
        elif form == 2:
            nodes += [node("Neg", a, inner), node("Neg", inner, out)]
        elif form == 3:
            nodes += [node("Add", f"{a} {b}", inner), node("Sub", f"{a} z", out)]
        else:
            nodes.append(node("Mul", f"{a} {b}", out) if form == 4 else node("Sigmoid", a, out))
        if form < 4 and rng.random() < 0.4:
            names.append(inner)
        names.append(out)
    results = list(dict.fromkeys([names[-1], *map(str, rng.choice(names[2:], 2))]))
    return graph(nodes, {"x": [2, 3], "z": [2, 3]}, results)


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_outputs_stay(start: int) -> None:
    matches = 0
    for seed in range(start, start + 20):
        rng = np.random.default_rng(seed)
        model = random_graph(rng)
        before = copied(model)
        matches += len(applied(model, *RULES).matches)
        assert_same(before, model, {n: rng.standard_normal((2, 3)).astype(np.float32) for n in ("x", "z")}, 1e-4)
    assert matches > 10
