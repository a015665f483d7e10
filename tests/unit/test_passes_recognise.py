"""Recognise: written-out forms become named ops, near misses do not, and results stay."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dovetail.core.dims import Dim, sym
from dovetail.core.dtypes import BOOL, F16, F32
from dovetail.ir.graph import Module, Time, Value
from dovetail.ir.rewriter import RewriteLog
from dovetail.passes.recognise import RECOGNISE_RULES, recognise
from dovetail.passes.simplify import simplify
from tests.unit.ir_builder import Build, Builder, built, feeds, ops, rewritten


def pipeline(module: Module) -> RewriteLog:
    simplify(module)
    return recognise(module)


# ------------------------------------------------------------------ activations
def gelu_erf(b: Builder, half_first: bool = False, divide: bool = True, half: float = 0.5) -> Value:
    x = b.input(3, 5)
    inner = b("Div", x, b.weight(math.sqrt(2))) if divide else b("Mul", b.weight(math.sqrt(0.5)), x)
    gate = b("Add", b("Erf", inner), b.weight(1.0))
    if half_first:
        return b("Mul", b("Mul", x, b.weight(half)), gate)
    return b("Mul", b("Mul", x, gate), b.weight(half))


def gelu_tanh(b: Builder, factored: bool = False, cubic: float = 0.044715) -> Value:
    x = b.input(3, 5)
    if factored:
        square = b("Mul", b("Mul", x, x), b.weight(cubic))
        inner = b("Mul", b("Mul", x, b.weight(math.sqrt(2 / math.pi))), b("Add", b.weight(1.0), square))
    else:
        cube = b("Mul", b("Pow", x, b.weight(3.0)), b.weight(cubic))
        inner = b("Mul", b("Add", x, cube), b.weight(math.sqrt(2 / math.pi)))
    gate = b("Add", b("Tanh", inner), b.weight(1.0))
    return b("Mul", b("Mul", x, b.weight(0.5)), gate)


def gated(b: Builder, *chain: str, **attrs: float) -> Value:
    x = b.input(3, 5)
    y = x
    for op in chain[:-1]:
        y = b(op, y)
    return b("Mul", x, b(chain[-1], y, **attrs))


def quick_gelu(b: Builder) -> Value:
    x = b.input(3, 5)
    return b("Mul", x, b("Sigmoid", b("Mul", x, b.weight(1.702))))


def hard_gate(b: Builder, high: float = 6.0, swish: bool = False) -> Value:
    x = b.input(3, 5)
    gate = b("Clip", b("Add", x, b.weight(3.0)), min=0.0, max=high)
    return b("Div", b("Mul", x, gate) if swish else gate, b.weight(6.0))


# ------------------------------------------------------------------ rows
def softmax(b: Builder, axes: tuple[int, ...] = (1,)) -> Value:
    x = b.input(3, 5)
    e = b("Exp", b("Sub", x, b("ReduceMax", x, axes=axes, keepdims=True)))
    return b("Div", e, b("ReduceSum", e, axes=axes, keepdims=True))


def rms_norm(b: Builder, how: str = "reciprocal", axes: tuple[int, ...] = (2,)) -> Value:
    x = b.input(2, 3, 8)
    v = b("Add", b("ReduceMean", b("Pow", x, b.weight(2.0)), axes=axes, keepdims=True), b.weight(1e-6))
    if how == "reciprocal":
        y = b("Mul", x, b("Reciprocal", b("Sqrt", v)))
    elif how == "one over":
        y = b("Mul", b("Div", b.weight(1.0), b("Sqrt", v)), x)
    elif how == "power":
        y = b("Mul", x, b("Pow", v, b.weight(-0.5)))
    else:
        y = b("Div", x, b("Sqrt", v))
    return b("Mul", b.random(8), y)


def layer_norm(b: Builder, axes: tuple[int, ...] = (2,), scale: tuple[int, ...] = (8,), square: str = "Pow") -> Value:
    x = b.input(2, 3, 8)
    d = b("Sub", x, b("ReduceMean", x, axes=axes, keepdims=True))
    squares = b("Pow", d, b.weight(2.0)) if square == "Pow" else b("Mul", d, d)
    v = b("ReduceMean", squares, axes=axes, keepdims=True)
    y = b("Div", d, b("Sqrt", b("Add", v, b.weight(1e-5))))
    return b("Add", b("Mul", y, b.random(*scale)), b.random(*scale))


def group_norm(b: Builder, inner_scale: float = 1.0) -> Value:
    x = b.input(2, 6, 4, 5)
    y = b("Reshape", x, shape=(2, 3, 40))
    y = b("InstanceNormalization", y, b.weight(np.full(3, inner_scale, np.float32)), b.weight(np.zeros(3, np.float32)), epsilon=1e-5)
    y = b("Reshape", y, shape=(2, 6, 4, 5))
    return b("Add", b("Mul", y, b.random(6, 1, 1)), b.random(6, 1, 1))


# ------------------------------------------------------------------ attention
def attention(
    b: Builder,
    masked: str = "",
    groups: int = 1,
    guard: str = "",
    pre_scale: bool = False,
    steps: Dim = 3,
    rank: int = 4,
    axis: int = -1,
    batch: int = 2,
) -> Value:
    heads = () if rank == 3 else (4,)
    few = () if rank == 3 else (4 // groups,)
    q, k, v = b.input(batch, *heads, steps, 8), b.input(batch, *few, 5, 8), b.input(batch, *few, 5, 6)
    if groups > 1:
        k, v = (
            b("Reshape", b("Expand", b("Reshape", t, shape=(2, *few, 1, 5, d)), shape=(2, *few, groups, 5, d)), shape=(2, *heads, 5, d))
            for t, d in ((k, 8), (v, 6))
        )
    kt = b("Transpose", k, perm=(*range(rank - 2), rank - 1, rank - 2))
    root = 8**-0.25
    if pre_scale:
        s = b("MatMul", b("Mul", q, b.weight(root)), b("Mul", kt, b.weight(root)))
    else:
        s = b("Div", b("MatMul", q, kt), b.weight(root**-2))
    mask: Value | None = None
    if masked == "add":
        mask = b.random(1, 1, 3, 5)
        s = b("Add", s, mask)
    elif masked in ("windows", "mixed windows"):
        if masked == "mixed windows":
            s = b("Add", s, b.input(4, 1, 3, 5))
        s = b("Add", b("Add", s, b.random(4, 3, 5)), b.random(1, 1, 3, 5))
        s = b("Add", b("Reshape", s, shape=(2, 2, 4, 3, 5)), b.random(1, 2, 1, 3, 5))
        s = b("Reshape", s, shape=(4, 4, 3, 5))
    elif masked == "where":
        s = b("Where", b.input(2, 1, 3, 5, dtype=BOOL), s, b.weight(-3.4e38))
    elif masked == "soft where":
        s = b("Where", b.input(2, 1, 3, 5, dtype=BOOL), s, b.weight(-100.0))
    elif masked == "scalar":
        s = b("Add", s, b.weight(2.0))
    p = b("Softmax", s, axis=axis)
    if guard == "nan":
        p = b("Where", b("IsNaN", p), b.weight(0.0), p)
    elif guard == "mask":
        assert mask is not None
        peak = b("ReduceMax", mask, axes=(3,), keepdims=True)
        p = b("Where", b("Equal", peak, b.weight(-math.inf)), b.weight(0.0), p)
    return b("MatMul", p, v)


def half_attention(b: Builder) -> Value:
    """fp16 with the softmax in fp32, as exporters write it."""
    q, k, v = (b.input(1, 2, 3, 4, dtype=F16) for _ in range(3))
    s = b("Cast", b("MatMul", q, b("Transpose", k, perm=(0, 1, 3, 2))), to=F32)
    return b("MatMul", b("Cast", b("Softmax", s, axis=-1), to=F16), v)


def transposed(b: Builder, *, weights: bool = True, dims: tuple[Dim, ...] = (5, 4), rank: int = 2, **attrs: object) -> Value:
    kernel = attrs.pop("kernel", (3, 4))
    group = int(attrs.get("group", 1))  # type: ignore[call-overload]
    w = b.random(4, 6 // group, *kernel) if weights else b.input(4, 6 // group, *kernel)
    full = {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank, "output_padding": (0,) * rank, "group": 1}
    return b("ConvTranspose", b.input(2, 4, *dims), w, b.random(6), **(full | attrs))


APPLIES: list[tuple[str, str, Build]] = [
    ("recognise_gelu", "Gelu", gelu_erf),
    ("recognise_gelu", "Gelu", lambda b: gelu_erf(b, half_first=True, divide=False)),
    ("recognise_gelu", "Gelu", gelu_tanh),
    ("recognise_gelu", "Gelu", lambda b: gelu_tanh(b, factored=True)),
    ("recognise_swish", "Swish", lambda b: gated(b, "Sigmoid")),
    ("recognise_swish", "Swish", quick_gelu),
    ("recognise_swish", "Mish", lambda b: gated(b, "Softplus", "Tanh")),
    ("recognise_swish", "HardSwish", lambda b: gated(b, "HardSigmoid", alpha=1 / 6, beta=0.5)),
    ("recognise_hard_sigmoid", "HardSigmoid", hard_gate),
    ("recognise_hard_sigmoid", "HardSwish", lambda b: hard_gate(b, swish=True)),
    ("recognise_softmax", "Softmax", softmax),
    ("recognise_norm", "RMSNormalization", rms_norm),
    ("recognise_norm", "RMSNormalization", lambda b: rms_norm(b, "one over")),
    ("recognise_norm", "RMSNormalization", lambda b: rms_norm(b, "power")),
    ("absorb_norm_scale", "RMSNormalization", lambda b: rms_norm(b, "root")),
    ("absorb_norm_bias", "LayerNormalization", layer_norm),
    ("recognise_norm", "LayerNormalization", lambda b: layer_norm(b, square="Mul")),
    ("recognise_instance_norm", "InstanceNormalization", lambda b: layer_norm(b, scale=(3, 1))),
    ("recognise_group_norm", "GroupNormalization", group_norm),
    ("recognise_attention", "Attention", attention),
    ("recognise_attention", "Attention", lambda b: attention(b, masked="add", pre_scale=True, guard="nan")),
    ("recognise_attention", "Attention", lambda b: attention(b, masked="add", guard="mask")),
    ("recognise_attention", "Attention", lambda b: attention(b, masked="where")),
    ("recognise_attention", "Attention", lambda b: attention(b, groups=2)),
    ("recognise_attention", "Attention", lambda b: attention(b, rank=3)),
    ("recognise_attention", "Attention", lambda b: attention(b, masked="windows", batch=4)),
    ("recognise_attention", "Attention", half_attention),
    ("transposed_conv_as_conv", "Conv", lambda b: transposed(b, kernel=(2, 2), strides=(2, 2))),
]

TRANSPOSED: list[dict[str, object]] = [
    {"kernel": (2, 2), "strides": (2, 2)},
    {"kernel": (4, 4), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)},
    {"kernel": (2, 2), "strides": (2, 2), "output_padding": (1, 0)},
    {"kernel": (3, 5), "strides": (3, 2), "pads": (0, 2, 1, 1), "group": 2},
    {"kernel": (1, 2), "strides": (2, 3)},
    {"kernel": (3, 3)},
    {"kernel": (3, 3), "dilations": (2, 1)},
    {"kernel": (2, 3), "dilations": (3, 2), "strides": (2, 2), "pads": (1, 0, 0, 2), "group": 2},
    {"kernel": (3, 2), "strides": (2, 1), "weights": False},
]


@pytest.mark.parametrize("attrs", TRANSPOSED)
@pytest.mark.parametrize("symbolic", [False, True])
def test_transposed_convolutions(attrs: dict[str, object], symbolic: bool) -> None:
    dims: tuple[Dim, ...] = (sym("h"), 4) if symbolic else (5, 4)
    module, applied = rewritten(lambda b: transposed(b, dims=dims, **attrs), pipeline, {"h": 6})
    assert "transposed_conv_as_conv" in applied
    assert ops(module)["Conv"] == 1


DECLINES: list[tuple[str, Build]] = [
    ("recognise_gelu", lambda b: gelu_erf(b, half=0.4)),
    ("recognise_gelu", lambda b: gelu_tanh(b, cubic=0.05)),
    ("recognise_swish", lambda b: b("Mul", b.input(3, 5), b("Sigmoid", b.input(3, 5)))),
    ("recognise_hard_sigmoid", lambda b: hard_gate(b, high=5.0)),
    ("recognise_softmax", lambda b: softmax(b, axes=(0, 1))),
    ("recognise_norm", lambda b: rms_norm(b, axes=(1,))),
    ("absorb_norm_scale", lambda b: layer_norm(b, scale=(3, 1))),
    ("absorb_norm_bias", lambda b: layer_norm(b, scale=(3, 1))),
    ("recognise_instance_norm", layer_norm),
    ("recognise_group_norm", lambda b: group_norm(b, inner_scale=2.0)),
    ("transposed_conv_as_conv", lambda b: transposed(b, pads=(-1, 0, 0, 0))),
    ("recognise_attention", lambda b: attention(b, axis=2)),
    ("recognise_attention", lambda b: attention(b, masked="soft where")),
    ("recognise_attention", lambda b: attention(b, masked="scalar")),
    ("recognise_attention", lambda b: attention(b, masked="mixed windows", batch=4)),
]


def test_every_rule_has_cases() -> None:
    names = {r.name for r in RECOGNISE_RULES}
    assert {rule for rule, _, _ in APPLIES} == names
    assert {rule for rule, _ in DECLINES} == names


@pytest.mark.parametrize(("rule", "op", "build"), APPLIES)
def test_rule_applies(rule: str, op: str, build: Build) -> None:
    rtol = 2e-3 if build is half_attention else 1e-5
    module, applied = rewritten(build, pipeline, rtol=rtol)
    assert rule in applied
    counts = ops(module)
    assert counts[op] == 1
    others = set(counts) - {op, "Reshape", "Where", "Transpose"}
    assert others == set()


@pytest.mark.parametrize(("rule", "build"), DECLINES)
def test_rule_declines(rule: str, build: Build) -> None:
    _, applied = rewritten(build, pipeline)
    assert rule not in applied


def test_attention_with_symbolic_steps() -> None:
    module, _ = rewritten(lambda b: attention(b, steps=sym("s")), pipeline, {"s": 4})
    assert ops(module) == {"Attention": 1}


def test_grouped_heads_lose_their_copies() -> None:
    module, _ = rewritten(lambda b: attention(b, groups=2, pre_scale=True), pipeline)
    (node,) = [n for n in module.main.nodes if n.op == "Attention"]
    assert node.input(1).tensor.shape == (2, 2, 5, 8)
    assert ops(module) == {"Attention": 1}


def test_a_mask_per_window_stays_small() -> None:
    """The sum of all biases has one entry per window, not per sample, and no run-time node makes it."""
    module, _ = rewritten(lambda b: attention(b, masked="windows", batch=4), pipeline)
    (node,) = [n for n in module.main.nodes if n.op == "Attention"]
    assert node.input(3).tensor.shape == (2, 4, 3, 5)
    assert node.input(3).time == Time.WEIGHT


def test_read_constants_are_guarded() -> None:
    module, _ = rewritten(gelu_erf, pipeline)
    assert {g.rewrite for g in module.guards} == {"Gelu"}
    assert len(module.guards) == 3  # sqrt 2, one, one half


def test_a_row_that_is_masked_whole_gives_zeros() -> None:
    from dovetail.ops.evaluate import evaluate

    def build(b: Builder) -> Value:
        return attention(b, masked="where")

    plain, module = built(build), built(build)
    pipeline(module)
    inputs = feeds(plain)
    inputs["x3"][:] = False  # finite lowest scores: all keys are equally likely, in both forms
    (a,), (c,) = evaluate(plain, inputs).values(), evaluate(module, inputs).values()
    np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)


