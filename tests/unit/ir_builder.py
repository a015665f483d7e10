"""Builds small modules for tests of passes, and runs them before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from dovetail.core.dims import Dim
from dovetail.core.dtypes import DTYPES, F32, DType
from dovetail.ir.graph import Graph, Module, Value
from dovetail.ir.rewriter import RewriteLog
from dovetail.ir.types import TensorType
from dovetail.ir.verifier import verify
from dovetail.ops.evaluate import evaluate
from dovetail.ops.infer import infer


class Builder:
    """A module under construction; calling it adds a node with inferred types."""

    def __init__(self) -> None:
        self.module = Module(Graph())
        self.graph = self.module.main
        self.rng = np.random.default_rng(7)

    def input(self, *shape: Dim, dtype: DType = F32) -> Value:
        """A graph input."""
        return self.graph.add_input(f"x{len(self.graph.inputs)}", TensorType(dtype, shape))

    def weight(self, array: Any, name: str = "") -> Value:
        """A named weight; a float or a list becomes fp32."""
        array = np.asarray(array, None if isinstance(array, np.ndarray) else np.float32)
        name = name or f"w{len(self.module.weights)}"
        self.module.weights[name] = array
        types = [TensorType(DTYPE[array.dtype.name], array.shape)]
        return self.graph.add("Constant", (), {"name": name}, types=types, names=[name]).output

    def random(self, *shape: int) -> Value:
        """A named weight of normal numbers."""
        return self.weight(self.rng.standard_normal(shape).astype(np.float32))

    def __call__(self, op: str, *inputs: Value | None, **attrs: Any) -> Any:
        node = self.graph.add(op, inputs, attrs, types=infer(op, inputs, attrs), origin=(f"n{len(self.graph)}",))
        return node.outputs[0] if len(node.outputs) == 1 else node.outputs

    def conv(self, x: Value, w: Value, bias: Value | None = None, **attrs: Any) -> Value:
        """A Conv with strides, dilations and pads that default to doing nothing."""
        rank = x.tensor.rank - 2
        full = {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank, "group": 1} | attrs
        return self("Conv", x, w, *([bias] if bias is not None else []), **full)


DTYPE = {t.numpy.name: t for t in DTYPES.values() if t.kind != "string"}

Build = Callable[[Builder], Value | tuple[Value, ...]]


def built(build: Build) -> Module:
    """The module that `build` makes with a fresh Builder."""
    b = Builder()
    results = build(b)
    b.graph.set_outputs(results if isinstance(results, tuple) else (results,))
    b.graph.update_times()
    verify(b.module)
    return b.module


def feeds(module: Module, symbols: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """Seeded inputs of a module; floats are normal, integers small, bools coins."""
    from dovetail.core.dims import evaluate as number

    rng = np.random.default_rng(3)
    found = {}
    for value in module.main.inputs:
        shape = tuple(number(d, symbols or {}) for d in value.tensor.shape)
        kind = value.tensor.dtype
        if kind.kind == "bool":
            found[value.name] = rng.random(shape) < 0.6
        elif kind.is_int:
            found[value.name] = rng.integers(0, 5, shape).astype(kind.numpy)
        else:
            found[value.name] = rng.standard_normal(shape).astype(kind.numpy)
    return found


def ops(module: Module) -> Counter[str]:
    """How often each op occurs that is not computed at weight time."""
    return Counter(n.op for n in module.main.nodes if not n.outputs or n.outputs[0].time != 0)


def rewritten(
    build: Build, apply: Callable[[Module], RewriteLog], symbols: dict[str, int] | None = None, rtol: float = 1e-5
) -> tuple[Module, set[str]]:
    """Run a pass on a built module; check that results stay; return the module and the names of applied rules."""
    before, after = built(build), built(build)
    log = apply(after)
    verify(after)
    inputs = feeds(before, symbols)
    expected, got = evaluate(before, inputs), evaluate(after, inputs)
    for a, b in zip(expected.values(), got.values(), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol)
    return after, {name for name, _ in log.applied}
