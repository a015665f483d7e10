"""Simplify: every rule fires where it should, leaves alone what it should, and never changes results."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail.core.dims import sym
from dovetail.core.dtypes import BOOL, F16, F32, F64, I32, I64
from dovetail.ir.graph import Time, Value
from dovetail.ops.evaluate import evaluate
from dovetail.passes.clean import drop_dead_code, merge_common_subexpressions
from dovetail.passes.identities import is_exact_cast
from dovetail.passes.simplify import SIMPLIFY_RULES, simplify
from tests.unit.ir_builder import Build, Builder, built, feeds, ops, rewritten

SAME = {"strides": (1, 1), "dilations": (1, 1), "group": 1}


def cut(b: Builder, x: Value, start: int, end: int, axis: int) -> Value:
    return b("Slice", x, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))


def halves(b: Builder, first: int) -> Value:
    """Two slices that cover a value, put together in order or the other way round."""
    x = b.input(5, 2)
    parts = [cut(b, x, 0, 2, 0), cut(b, x, 2, 5, 0)]
    return b("Concat", parts[first], parts[1 - first], axis=0)


def scaled_conv(group: int = 1, extents: tuple[int, ...] = (6, 1, 1)) -> Build:
    def build(b: Builder) -> Value:
        y = b.conv(b.input(2, 4, 5, 5), b.random(6, 4 // group, 3, 3), b.random(6), pads=(1, 1, 1, 1), group=group)
        return b("Mul", y, b.random(*extents))

    return build


def scaled_transposed_conv(b: Builder) -> Value:
    y = b(
        "ConvTranspose", b.input(1, 4, 3, 3), b.random(4, 3, 2, 2),
        strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1), group=2, output_padding=(0, 0),
    )  # fmt: skip
    return b("Add", b("Mul", y, b.random(6, 1, 1)), b.random(6, 1, 1))


def shared_conv(b: Builder) -> tuple[Value, ...]:
    y = b.conv(b.input(1, 2, 4, 4), b.random(3, 2, 1, 1))
    return b("Mul", y, b.random(3, 1, 1)), b("Add", y, b.random(3, 1, 1))


def biased_matmul(b: Builder) -> Value:
    y = b("Add", b("MatMul", b.input(2, 3, 4), b.random(4, 5)), b.random(5))
    return b("Mul", y, b.weight(0.5))


def flattened(b: Builder) -> Value:
    x = b.input(2, 3, 4)
    y = b("MatMul", b("Reshape", x, shape=(6, 4)), b.random(4, 5))
    y = b("Relu", b("Add", y, b.random(5)))
    return b("Reshape", y, shape=(2, 3, 5))


def swapped(b: Builder) -> Value:
    """Rows with the axes ahead of them swapped."""
    return b("Transpose", b.input(3, 2, 4), perm=(1, 0, 2))


def turned_heads(b: Builder) -> Value:
    """Heads ahead of rows put behind them, samples last of what is ahead of the heads."""
    return b("Transpose", b.input(2, 2, 3, 2), perm=(2, 0, 1, 3))


def windowed_norm(perm: tuple[int, ...] = (0, 1, 3, 2, 4, 5), axis: int = 3, shape: tuple[int, ...] = (2, 2, 3, 2, 3, 5)) -> Build:
    """A norm cut into windows of 3 x 3, as shifted-window transformers do."""

    def build(b: Builder) -> Value:
        x = b.input(2, 6, 6, 5)
        y = b("LayerNormalization", x, b.random(*x.tensor.shape[axis:]), axis=axis)
        y = b("Transpose", b("Reshape", y, shape=shape), perm=perm)
        return b("Reshape", y, shape=(8, 9, 5))

    return build


def unwindowed(b: Builder) -> Value:
    """Windows of 3 x 3 back in the order of the image, its axes still split."""
    return b("Transpose", b("Reshape", b("Relu", b.input(8, 9, 5)), shape=(2, 2, 2, 3, 3, 5)), perm=(0, 1, 3, 2, 4, 5))


def branched(b: Builder, dilations: tuple[int, int] = (1, 1), group: int = 1) -> Value:
    """3x3 and 1x1 convolutions of one input, summed."""
    x = b.input(1, 4, 6, 6)
    large = b.conv(x, b.random(4, 4 // group, 3, 3), b.random(4), pads=(1, 1, 1, 1), group=group)
    pads = (1, 1, 1, 1) if dilations == (1, 1) else (2, 2, 2, 2)
    small = b.conv(x, b.random(4, 4 // group, 1, 1), group=group)
    if dilations != (1, 1):
        small = b.conv(x, b.random(4, 4 // group, 3, 3), pads=pads, dilations=dilations, group=group)
    return b("Add", large, small)


def shortcut(b: Builder, group: int = 1, pads: tuple[int, ...] = (1, 1, 1, 1), dilation: int = 1) -> Value:
    """A convolution plus its input, scaled and shifted per channel."""
    x = b.input(1, 4, 6, 6)
    w = b.random(4, 4 // group, 3, 3)
    y = b.conv(x, w, pads=tuple(p * dilation for p in pads), group=group, dilations=(dilation, dilation))
    return b("Add", b("Add", b("Mul", x, b.random(4, 1, 1)), b.random(4, 1, 1)), y)


# rule -> (a module where it applies, what is left of which op, a module where it must not apply)
CASES: dict[str, tuple[Build, dict[str, int], Build]] = {
    "drop_neutral_operand": (
        lambda b: b("Mul", b.weight(1.0), b("Add", b.input(3), b.weight([0.0]))),
        {"Mul": 0, "Add": 0},
        lambda b: (b("Sub", b.weight(0.0), b.input(3)), b("Add", b.input(3), b.weight(np.zeros((2, 1), np.float32)))),
    ),
    "fill_empty_results": (
        lambda b: (
            b("CumSum", b("Expand", b.input(0, 4), shape=(2, 0, 4)), axis=1),
            b("ReduceSum", b("MatMul", b.input(3, 0), b.random(0, 3)), axes=(0,), keepdims=False),
            b("Relu", b("Slice", b.input(6, 5), starts=(2,), ends=(2,), axes=(1,), steps=(1,))),
        ),
        {"CumSum": 0, "Expand": 0, "Relu": 0, "Slice": 0, "MatMul": 1, "ReduceSum": 1},
        lambda b: b("Concat", b.input(0, 3), b.input(2, 3), axis=0),
    ),
    "expand_power": (
        lambda b: b("Pow", b.input(4), b.weight(2.0)),
        {"Pow": 0, "Mul": 1},
        lambda b: b("Pow", b.input(4), b.weight(3.0)),
    ),
    "simplify_cast": (
        lambda b: (b("Cast", b("Cast", b.input(4), to=F64), to=F16), b("Cast", b("Cast", b.input(3), to=F64), to=F32)),
        {"Cast": 1},
        lambda b: b("Cast", b("Cast", b.input(4), to=F16), to=F32),
    ),
    "drop_repeated_unary": (
        lambda b: b("Neg", b("Neg", b("Relu", b("Relu", b.input(4))))),
        {"Neg": 0, "Relu": 1},
        lambda b: b("Neg", b("Abs", b("Neg", b.input(4)))),
    ),
    "merge_clips": (
        lambda b: b("Clip", b("Relu", b.input(9)), max=1.0, min=-1.0),
        {"Relu": 0, "Clip": 1},
        lambda b: b("Clip", b("Clip", b.input(9), min=1.0, max=2.0), min=-2.0, max=0.0),
    ),
    "expand_to_own_shape": (
        lambda b: b("Expand", b.input(2, 3), shape=(2, 3)),
        {"Expand": 0},
        lambda b: b("Expand", b.input(1, 3), shape=(2, 3)),
    ),
    "drop_expand_before_broadcast": (
        lambda b: b("Add", b("Expand", b.input(1, 3), shape=(2, 3)), b.input(2, 1)),
        {"Expand": 0},
        lambda b: b("Add", b("Expand", b.input(1, 3), shape=(2, 3)), b.input(1, 3)),
    ),
    "simplify_transpose": (
        lambda b: (
            b("Transpose", b("Transpose", b.input(2, 3, 4), perm=(2, 0, 1)), perm=(1, 2, 0)),
            b("Transpose", b.input(2, 1, 4), perm=(1, 0, 2)),
        ),
        {"Transpose": 0, "Reshape": 1},
        lambda b: b("Transpose", b.input(2, 1, 4), perm=(2, 1, 0)),
    ),
    "simplify_reshape": (
        lambda b: b("Reshape", b("Reshape", b.input(2, 6), shape=(3, 4)), shape=(12,)),
        {"Reshape": 1},
        lambda b: b("Reshape", b("Transpose", b.input(2, 6), perm=(1, 0)), shape=(2, 6)),
    ),
    "simplify_slice": (
        lambda b: (
            cut(b, b("Concat", b.input(2, 3), b.input(2, 4), axis=1), 3, 7, 1),
            cut(b, cut(b, b.input(9), 2, 8, 0), 1, 4, 0),
            cut(b, b.input(5), 0, 5, 0),
            cut(b, cut(b, b.input(6, 7), 1, 5, 1), 2, 4, 0),
        ),
        {"Concat": 0, "Slice": 2},
        lambda b: cut(b, b("Concat", b.input(2, 3), b.input(2, 4), axis=1), 2, 5, 1),
    ),
    "simplify_concat": (
        lambda b: (
            halves(b, first=0),
            b("Concat", b("Concat", b.input(2), b.input(3), axis=0), b.input(4), axis=0),
        ),
        {"Concat": 1, "Slice": 0},
        lambda b: halves(b, first=1),
    ),
    "drop_empty_movement": (
        lambda b: b("Tile", b("Pad", b.input(2, 3), pads=(0, 0, 0, 0)), repeats=(1, 1)),
        {"Tile": 0, "Pad": 0},
        lambda b: b("Tile", b("Pad", b.input(2, 3), pads=(0, 1, 0, 0)), repeats=(2, 1)),
    ),
    "absorb_zero_pad": (
        lambda b: b.conv(b("Pad", b.input(1, 2, 4, 4), pads=(0, 0, 1, 0, 0, 0, 2, 1)), b.random(3, 2, 3, 3), pads=(0, 1, 0, 0)),
        {"Pad": 0},
        lambda b: b.conv(b("Pad", b.input(1, 2, 4, 4), pads=(0, 0, 1, 1, 0, 0, 1, 1), value=1.0), b.random(3, 2, 3, 3)),
    ),
    "sink_reshape": (
        flattened,
        {"Reshape": 0},
        lambda b: (
            b("MatMul", b("Reshape", b.input(2, 3, 4), shape=(3, 8)), b.random(8, 5)),
            b("Relu", b("Reshape", b.input(2, 3, 4), shape=(6, 4))),
        ),
    ),
    "sink_reshape_of_product": (
        lambda b: b("Relu", b("Add", b("Reshape", b("MatMul", b.input(6, 4), b.random(4, 5)), shape=(2, 3, 5)), b.input(2, 3, 5))),
        {"Reshape": 2},
        lambda b: b("Add", b("Reshape", b("MatMul", b.input(6, 4), b.random(4, 5)), shape=(2, 3, 5)), b.input(3, 5)),
    ),
    "hoist_transpose": (
        lambda b: b("Transpose", b("MatMul", b("Reshape", turned_heads(b), shape=(3, 2, 4)), b.random(4, 5)), perm=(1, 0, 2)),
        {"Transpose": 1},
        lambda b: b("Transpose", b("MatMul", b("Relu", b.input(3, 2, 4)), b.random(4, 5)), perm=(1, 0, 2)),
    ),
    "sink_transpose": (
        lambda b: b("Transpose", b("Reshape", b("Relu", swapped(b)), shape=(2, 3, 2, 2)), perm=(2, 1, 0, 3)),
        {"Transpose": 1},
        lambda b: b("Softmax", b("MatMul", swapped(b), b.random(4, 5)), axis=0),
    ),
    "join_transposes": (
        lambda b: b("Add", swapped(b), b("Transpose", b("MatMul", b.input(3, 2, 4), b.random(4, 4)), perm=(1, 0, 2))),
        {"Transpose": 1},
        lambda b: (
            b("Add", swapped(b), b("Transpose", b("MatMul", b.input(2, 4, 3), b.random(3, 3)), perm=(0, 2, 1))),
            b("Add", swapped(b), swapped(b)),
        ),
    ),
    "split_before_transpose": (
        lambda b: b("Reshape", b("Transpose", b("Reshape", b.input(5, 2, 12), shape=(5, 6, 4)), perm=(1, 0, 2)), shape=(2, 3, 5, 2, 2)),
        {"Reshape": 1, "Transpose": 1},
        lambda b: b("Reshape", b("Transpose", b("Reshape", b.input(5, 2, 12), shape=(5, 6, 4)), perm=(1, 0, 2)), shape=(3, 10, 4)),
    ),
    "split_before_norm": (
        windowed_norm(),
        {"Reshape": 2, "Transpose": 1, "LayerNormalization": 1},
        lambda b: (windowed_norm(axis=2)(b), windowed_norm(shape=(2, 6, 3, 2, 5, 1))(b)),
    ),
    "merge_after_add": (
        lambda b: b("Relu", b("Add", b.input(2, 6, 6, 5), b("Reshape", unwindowed(b), shape=(2, 6, 6, 5)))),
        {"Reshape": 3, "Transpose": 1},
        lambda b: b("Add", b.input(6, 5), b("Reshape", unwindowed(b), shape=(2, 6, 6, 5))),
    ),
    "fold_scale": (
        lambda b: (scaled_conv()(b), scaled_conv(group=2)(b), scaled_conv(extents=())(b), scaled_transposed_conv(b)),
        {"Mul": 0},
        lambda b: (*shared_conv(b), scaled_conv(extents=(6, 5, 1))(b)),
    ),
    "fold_shift": (
        lambda b: (
            b("Sub", b.conv(b.input(1, 2, 4, 4), b.random(3, 2, 1, 1)), b.random(1, 3, 1, 1)),
            b("Add", b.weight(0.25), b.conv(b.input(1, 2, 4, 4), b.random(3, 2, 1, 1))),
        ),
        {"Add": 0, "Sub": 0},
        lambda b: (*shared_conv(b), b("Sub", b.random(3, 1, 1), b.conv(b.input(1, 2, 4, 4), b.random(3, 2, 1, 1)))),
    ),
    "distribute_scale_over_bias": (
        biased_matmul,
        {"Mul": 0, "Add": 1},
        lambda b: b("Mul", b("Add", b("MatMul", b.input(3, 4), b.random(4, 5)), b.input(5)), b.weight(0.5)),
    ),
    "gather_one_position": (
        lambda b: b("Gather", b.input(3, 4, 5), b.weight(np.array(-1, np.int64)), axis=1),
        {"Gather": 0, "Slice": 1},
        lambda b: b("Gather", b.input(3, 4, 5), b.weight(np.array([0, 2], np.int64)), axis=1),
    ),
    "hoist_scale_over_transpose": (
        lambda b: b(
            "Mul",
            b("Transpose", b("Add", b("MatMul", b.input(2, 3, 4), b.random(4, 5)), b.random(5)), perm=(0, 2, 1)),
            b.random(5, 1),
        ),
        {"Mul": 0, "MatMul": 1, "Add": 1},
        lambda b: b("Mul", b("Transpose", b("MatMul", b.input(2, 3, 4), b.random(4, 5)), perm=(0, 2, 1)), b.random(3)),
    ),
    "merge_parallel_convs": (
        lambda b: (branched(b), branched(b, group=2)),
        {"Add": 0, "Conv": 2},
        lambda b: branched(b, dilations=(2, 2)),
    ),
    "merge_scaled_input": (
        lambda b: (shortcut(b), shortcut(b, group=2), shortcut(b, group=4, dilation=2)),
        {"Add": 0, "Mul": 0, "Conv": 3},
        lambda b: b("Add", b("Add", b("Mul", b.input(1, 4, 6, 6), b.random(4, 1, 1)), b.random(4, 1, 1)),
                    b.conv(b.input(1, 4, 6, 6), b.random(4, 4, 3, 3), pads=(1, 1, 1, 1))),
    ),
    "combine_weight_operands": (
        lambda b: b("Add", b.random(5), b("Add", b.input(3, 5), b.random(5))),
        {"Add": 1},
        lambda b: b("Add", b("Add", b.input(5), b.random(5)), b.input(5)),
    ),
}


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == {r.name for r in SIMPLIFY_RULES}


@pytest.mark.parametrize("rule", CASES)
def test_rule_applies(rule: str) -> None:
    build, left, _ = CASES[rule]
    module, applied = rewritten(build, simplify)
    assert rule in applied
    counts = ops(module)
    assert {op: counts[op] for op in left} == left


@pytest.mark.parametrize("rule", CASES)
def test_rule_declines(rule: str) -> None:
    _, _, build = CASES[rule]
    _, applied = rewritten(build, simplify)
    assert rule not in applied


def batch_norm(b: Builder) -> Value:
    """What the importer makes of Conv and BatchNormalization."""
    scale, bias, mean = b.random(6), b.random(6), b.random(6)
    var = b.weight(np.linspace(0.5, 1.5, 6).astype(np.float32))
    factor = b("Div", scale, b("Sqrt", b("Add", var, b.weight(1e-5, "~eps"))))
    shift = b("Sub", bias, b("Mul", mean, factor))
    y = b.conv(b.input(2, 4, 5, 5), b.random(6, 4, 3, 3))
    y = b("Mul", y, b("Reshape", factor, shape=(6, 1, 1)))
    return b("Relu", b("Add", y, b("Reshape", shift, shape=(6, 1, 1))))


def test_batch_norm_folds_into_the_convolution_and_still_refits() -> None:
    module, _ = rewritten(batch_norm, simplify)
    assert ops(module) == {"Conv": 1, "Relu": 1}
    conv = next(n for n in module.main.nodes if n.op == "Conv")
    assert conv.input(1).time == conv.input(2).time == Time.WEIGHT
    assert module.guards == []
    assert {"n11", "n13", "n14"} & set(conv.origin) >= {"n11"}
    plain = built(batch_norm)
    for m in (plain, module):
        m.weights["w0"] = np.full(6, 2.5, np.float32)  # the scale: a refit by the user's own name
    inputs = feeds(plain)
    (a,), (b,) = evaluate(plain, inputs).values(), evaluate(module, inputs).values()
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_reading_a_named_weight_leaves_a_guard() -> None:
    module, _ = rewritten(lambda b: b("Mul", b.input(3), b.weight(1.0, "gain")), simplify)
    assert [(g.weight, g.rewrite) for g in module.guards] == [("gain", "Mul by 1")]


def test_symbolic_shapes_simplify() -> None:
    n = sym("n")

    def build(b: Builder) -> Value:
        x = b.input(n, 4, 6)
        y = b("Reshape", b("Reshape", x, shape=(n * 4, 6)), shape=(n, 4, 6))
        return b("Slice", y, starts=(0,), ends=(n,), axes=(0,), steps=(1,))

    module, _ = rewritten(build, simplify, {"n": 3})
    assert len(module.main) == 0


def test_dead_code_goes_but_definitions_of_used_symbols_stay() -> None:
    def build(b: Builder) -> Value:
        x, size = b.input(4), b.input(1, dtype=I64)
        b("Relu", b("Exp", x))
        b.graph.add("BindSymbols", (size,), {"symbols": ("u",)}, types=())
        b.graph.add("BindSymbols", (size,), {"symbols": ("unused",)}, types=())
        return b("Iota", size=sym("u"), dtype=I32)

    module = built(build)
    assert drop_dead_code(module.main) == 3
    assert [n.op for n in module.main.nodes] == ["BindSymbols", "Iota"]


def test_common_subexpressions_merge_but_not_by_content() -> None:
    def build(b: Builder) -> tuple[Value, ...]:
        x = b.input(4)
        a, c = b("Exp", x), b("Exp", x)
        w, v = b.weight([1.0, 2, 3, 4], "w"), b.weight([1.0, 2, 3, 4], "v")
        return b("Add", b("Mul", a, w), b("Mul", c, v)), b("Clip", x, min=0), b("Clip", x, min=0.0)

    module = built(build)
    assert merge_common_subexpressions(module.main) == 1
    assert ops(module)["Mul"] == 2
    assert ops(module)["Clip"] == 2  # 0 and 0.0 are different attributes


def test_exact_casts() -> None:
    assert is_exact_cast(F16, F32) and is_exact_cast(BOOL, I32) and is_exact_cast(I32, F64)
    assert not is_exact_cast(I32, F32) and not is_exact_cast(F32, F16) and not is_exact_cast(I64, I32)
