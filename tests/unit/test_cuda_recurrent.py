"""LSTM, GRU and RNN for a GPU: projected layers under the interpreter, and the rewrite that projects them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dovetail.kernels.cpu
import dovetail.kernels.cuda
from dovetail.codegen.lower import reason_not_lowerable
from dovetail.codegen.tactic import Group
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, evaluate, sym
from dovetail.core.dtypes import F16, F32, F64, I32, DType
from dovetail.ir.layout import strided
from dovetail.ir.verifier import verify
from dovetail.kernels.cuda.recurrent import ACTIVATIONS, GATES
from dovetail.kernels.cuda.recurrent_tactic import Steps
from dovetail.ops.evaluate import evaluate as evaluate_module
from dovetail.passes.fuse import fuse
from dovetail.passes.legalise import legalise
from dovetail.reference.recurrent import activation_parameters
from tests.unit.cuda_harness import (
    SM80,
    SM90,
    Body,
    aot,
    close,
    expected,
    fused,
    kernels_of,
    run_group,
)
from tests.unit.ir_builder import Builder, built, feeds

TACTIC = Steps()
FUNCTIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def named(activations: tuple[str, ...]) -> dict[str, Any]:
    parameters = [(*activation_parameters(a), 0.0, 0.0)[:2] for a in activations]
    return {
        "activations": activations, "activation_alpha": tuple(float(a) for a, _ in parameters),
        "activation_beta": tuple(float(b) for _, b in parameters),
    }  # fmt: skip


def layer(
    op: str, steps: Dim, batch: Dim, hidden: int, direction: str = "forward", kind: DType = F32, with_: str = "b", layout: Any = None,
    activations: tuple[str, ...] = (), **attrs: Any,
) -> Group:  # fmt: skip
    """A projected layer; `with_` names the optional operands: b, l(engths), h, c, p."""
    n, gates = 2 if direction == "bidirectional" else 1, GATES[op]

    def build(b: Body) -> Any:
        x = b.input(kind, steps, batch, n * gates * hidden, layout=layout)
        optional = {
            "b": lambda: b.weight(kind, n, 2 * gates * hidden), "l": lambda: b.input(I32, batch),
            "h": lambda: b.input(kind, n, batch, hidden), "c": lambda: b.input(kind, n, batch, hidden),
            "p": lambda: b.weight(kind, n, 3 * hidden),
        }  # fmt: skip
        r = b.weight(kind, n, gates * hidden, hidden)
        rest = [optional[name]() if name in with_ else None for name in ("blhcp" if op == "LSTM" else "blh")]
        first = b(op, x, None, r, *rest, hidden_size=hidden, direction=direction, **named(activations or FUNCTIONS[op] * n), **attrs)
        assert first.producer is not None
        return first.producer.outputs

    return fused(build, "recurrent", op)


def check(g: Group, sizes: dict[str, int] | None = None, tolerance: float = 5e-6) -> None:
    sizes, rng = sizes or {}, np.random.default_rng(2)
    arrays = []
    for value in g.inputs:
        shape, kind = tuple(evaluate(d, sizes) for d in value.tensor.shape), value.tensor.dtype
        if kind == I32:
            arrays.append(rng.integers(0, 5, shape).astype(np.int32))
        else:
            arrays.append((rng.standard_normal(shape) * 0.4).astype(kind.numpy))
    assert TACTIC.supports(g, SM90) is None, TACTIC.supports(g, SM90)
    close(run_group(g, TACTIC, (), arrays, SM90, sizes), expected(g, arrays, sizes), tolerance)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("with_", ["", "b", "bl", "blhcp"])
@pytest.mark.parametrize("op", GATES)
def test_layers(op, with_, direction):
    check(layer(op, 4, 2, 5, direction, with_=with_))


@pytest.mark.parametrize("op", GATES)
def test_blocks_of_units(op):
    check(layer(op, 2, 1, 67, with_="bh"))


@pytest.mark.parametrize("more", [{"clip": 0.3}, {"linear_before_reset": True}, {"linear_before_reset": True, "clip": 0.5}])
def test_gru_options(more):
    check(layer("GRU", 3, 2, 7, "bidirectional", with_="blh", **more))
    check(layer("GRU", 3, 2, 7, with_="", **more))


@pytest.mark.parametrize("more", [{"clip": 0.3}, {"input_forget": True}])
def test_lstm_options(more):
    check(layer("LSTM", 3, 2, 7, "bidirectional", with_="blhcp", **more))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name):
    check(layer("RNN", 3, 2, 5, activations=(name,)))
    check(layer("RNN", 2, 1, 5, "bidirectional", activations=(name, "Tanh")))


def test_16_bits_and_views():
    check(layer("LSTM", 3, 2, 8, kind=F16), tolerance=2e-3)
    check(layer("GRU", 3, 2, 8, layout=strided((30, 90, 1), 2)))  # batch-major input


def test_sizes_of_the_run():
    for sizes in ({"T": 1, "B": 3}, {"T": 4, "B": 1}, {"T": 0, "B": 2}):
        check(layer("LSTM", sym("T"), sym("B"), 6, "bidirectional", with_="blh"), sizes)


def test_reasons():
    assert "f64" in (TACTIC.supports(layer("LSTM", 2, 2, 4, kind=F64), SM90) or "")


def test_machine_code():
    groups = [layer("LSTM", 20, 4, 256, "bidirectional", with_="blhcp"), layer("GRU", sym("T"), sym("B"), 100, kind=F16)]
    aot([k for g in groups for k in kernels_of(g, TACTIC, (), SM90)], SM90)
    aot(kernels_of(groups[0], TACTIC, (), SM80), SM80)


@pytest.mark.parametrize("op", GATES)
def test_legalise_projects_the_inputs(op):
    def build(b: Builder) -> Any:
        gates = GATES[op]
        x, w, r = b.input(4, 2, 3), b.random(2, gates * 5, 3), b.random(2, gates * 5, 5)
        return b(op, x, w, r, b.random(2, 2 * gates * 5), hidden_size=5, direction="bidirectional", **named(FUNCTIONS[op] * 2))

    module = built(build)
    given = feeds(module)
    before = evaluate_module(module, given)
    legalise(module, Target.parse("cpu:avx2"))
    assert "MatMul" not in [n.op for n in module.main.nodes]
    legalise(module, Target.parse("cuda:sm_90"))
    verify(module)
    assert "MatMul" in [n.op for n in module.main.nodes]
    close(list(evaluate_module(module, given).values()), list(before.values()))
    assert not fuse(module, Target.parse("cuda:sm_90"), reason_not_lowerable).host


assert dovetail.kernels.cpu and dovetail.kernels.cuda  # registers the tactics
