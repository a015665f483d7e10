"""Flash attention: what its kernels compute, under the interpreter, and what machine code they become."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dovetail.codegen.tactic import Group
from dovetail.core.dims import Dim, sym
from dovetail.core.dtypes import BF16, BOOL, F16, F32, F64, I64, DType
from dovetail.ir.layout import Layout, strided
from dovetail.ir.verifier import verify
from dovetail.kernels.cuda import attention_tactic
from dovetail.kernels.cuda.attention_shape import Tiling, parts
from dovetail.kernels.cuda.attention_tactic import FlashAttention
from dovetail.ops.evaluate import evaluate
from dovetail.passes.legalise import legalise
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
    sass,
)
from tests.unit.ir_builder import Builder, built, feeds

TACTIC = FlashAttention()
TOLERANCE = {F32: 3e-6, F16: 2e-3, BF16: 1.6e-2}


def group(
    kind: DType, batch: Dim, heads: int, key_heads: int, steps: Dim, keys: Dim, depth: Dim, value_depth: Dim | None = None,
    mask: tuple[DType, tuple[Dim, ...]] | None = None, lengths: bool = False, packed: bool = False,
    layouts: tuple[Layout | None, ...] = (None, None, None), out: Layout | None = None, **attrs: Any,
) -> Group:  # fmt: skip
    """An Attention alone in its group."""
    value_depth = depth if value_depth is None else value_depth

    def build(b: Body) -> Any:
        def operand(n: int, h: int, d: int, layout: Layout | None) -> Any:
            shape = (batch, n, h * d) if packed else (batch, h, n, d)
            return b.input(kind, *shape, layout=layout)

        q = operand(steps, heads, depth, layouts[0])
        k, v = operand(keys, key_heads, depth, layouts[1]), operand(keys, key_heads, value_depth, layouts[2])
        extra = [b.input(mask[0], *mask[1]) if mask else None, b.input(I64, batch) if lengths else None]
        named = {"q_heads": heads, "kv_heads": key_heads} if packed else {}
        return b("Attention", q, k, v, *extra, **{"scale": 0.2 if not isinstance(depth, int) else depth**-0.5, **named, **attrs})

    return fused(build, "attention", "Attention", out)


def arrays(g: Group, sizes: dict[str, int], seed: int = 3) -> list[np.ndarray]:
    from dovetail.core.dims import evaluate

    rng = np.random.default_rng(seed)
    found = []
    for value in g.inputs:
        shape = tuple(evaluate(d, sizes) for d in value.tensor.shape)
        kind = value.tensor.dtype
        if kind == BOOL:
            x = rng.random(shape) < 0.6
            if x.ndim >= 2 and x.shape[-2] > 1:
                x[..., 1, :] = False  # a row that sees nothing
        elif kind == I64:
            x = rng.integers(0, max(2, sizes.get("LENGTHS", 2)), shape)
        else:
            x = rng.standard_normal(shape).astype(kind.numpy)
        found.append(x)
    return found


def check(g: Group, sizes: dict[str, int] | None = None, tiling: Tiling | None = None, tolerance: float = 0.0) -> None:
    sizes = sizes or {}
    kind = g.inputs[0].tensor.dtype
    assert TACTIC.supports(g, SM90) is None
    config = tiling.config if tiling else TACTIC.configs(g, SM90)[0]
    given = arrays(g, sizes)
    close(run_group(g, TACTIC, config, given, SM90, sizes), expected(g, given, sizes), tolerance or TOLERANCE[kind])


@pytest.mark.parametrize("kind", [F16, BF16, F32])
@pytest.mark.parametrize(("steps", "keys"), [(1, 1), (7, 5), (64, 64), (40, 70), (33, 48)])
def test_all_keys_visible(kind, steps, keys):
    check(group(kind, 2, 3, 3, steps, keys, 32))


@pytest.mark.parametrize("depth", [1, 8, 16, 40, 72, 80, 96, 112, 160, 256])
def test_head_sizes_are_padded(depth):
    check(group(F16, 1, 2, 2, 19, 40, depth))


def test_value_size_of_its_own():
    check(group(F16, 2, 2, 2, 19, 40, 24, 80))
    check(group(F32, 2, 2, 2, 19, 40, 48, 16))


@pytest.mark.parametrize(
    ("depth", "widths"), [(64, (64,)), (80, (64, 16)), (96, (64, 32)), (56, (64,)), (160, (128, 32)), (7, (16,)), (192, (128, 64))]
)
def test_parts_of_a_head(depth, widths):
    found = parts(depth)
    assert tuple(p.width for p in found) == widths
    assert sum(p.valid for p in found) == depth and found[-1].start + found[-1].valid == depth


@pytest.mark.parametrize("attrs", [
    {"is_causal": True}, {"is_causal": True, "past": 11}, {"left_window": 9}, {"right_window": 4}, {"left_window": 20, "right_window": 3},
    {"is_causal": True, "left_window": 17}, {"is_causal": True, "left_window": 3, "past": 40}, {"left_window": 0, "right_window": 0},
    {"softcap": 1.5}, {"softcap": 3.0, "is_causal": True}, {"scale": -0.3}, {"scale": 0.0}, {"is_causal": True, "right_window": 5},
])  # fmt: skip
@pytest.mark.parametrize("splits", [1, 3])
def test_borders_of_what_is_visible(attrs, splits):
    check(group(F32, 1, 2, 2, 45, 83, 16, **attrs), tiling=Tiling(16, 16, 4, 2, splits))


@pytest.mark.parametrize(
    "shape", [(83,), (45, 83), (1, 83), (2, 1, 45, 83), (2, 2, 1, 83), (1, 2, 45, 83), (1, 1, 1, 83), (2, 1, 45, 60), (45, 1)]
)
@pytest.mark.parametrize("kind", [BOOL, F32, F16])
def test_masks(shape, kind):
    check(group(F32, 2, 2, 2, 45, 83, 16, mask=(kind, shape)), tiling=Tiling(16, 32, 4, 2, 1))


def test_mask_that_hides_by_infinity():
    g = group(F16, 2, 2, 2, 20, 50, 32, mask=(F16, (2, 1, 20, 50)))
    given = arrays(g, {})
    given[3][:, :, 3:, 10:] = -np.inf
    given[3][:, :, 5] = -np.inf
    for tiling in (Tiling(16, 16, 4, 2, 1), Tiling(16, 16, 4, 2, 2), Tiling(32, 64, 4, 1, 1)):
        (got,) = run_group(g, TACTIC, tiling.config, given, SM90)
        close([got], expected(g, given), 2e-3)
        assert not got[:, :, 5].any()


def test_rows_whose_keys_are_all_hidden_by_the_least_number():
    """The softmax of equal numbers is even, however small they are: what BERT does with padding alone."""
    g = group(F32, 2, 2, 2, 5, 3, 16, mask=(F32, (2, 1, 1, 3)))
    given = arrays(g, {})
    given[3][...] = np.finfo(np.float32).min
    given[3][1, ..., 1] = 0
    close(run_group(g, TACTIC, TACTIC.configs(g, SM90)[0], given, SM90), expected(g, given), 3e-6)


def test_one_mask_per_window():
    check(group(F16, 6, 1, 1, 49, 49, 32, mask=(F16, (3, 1, 49, 49))))
    check(group(F16, sym("N") * 4, 3, 3, 16, 16, 32, mask=(BOOL, (4, 3, 16, 16))), {"N": 2})


@pytest.mark.parametrize(
    ("heads", "key_heads", "steps", "keys", "splits"), [(8, 2, 1, 130, 4), (8, 2, 5, 37, 1), (6, 1, 10, 70, 1), (4, 2, 9, 64, 2)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_heads_that_share_keys(heads, key_heads, steps, keys, splits, causal):
    past = keys - steps if causal else 0
    g = group(F16, 2, heads, key_heads, steps, keys, 16, is_causal=causal, past=past, mask=(F32, (2, heads, steps, keys)))
    check(g, tiling=Tiling(16, 16, 2, 2, splits))


@pytest.mark.parametrize("attrs", [{}, {"is_causal": True}, {"left_window": 4}, {"is_causal": True, "left_window": 4}])
@pytest.mark.parametrize("splits", [1, 2])
def test_lengths(attrs, splits):
    g = group(F32, 5, 4, 2, 6, 40, 16, lengths=True, **attrs)
    given = arrays(g, {})
    given[-1] = np.array([40, 0, 6, 3, 17])
    for x, length in zip(given[1], given[-1], strict=True):
        x[:, length:] = np.nan  # nobody has written there
    for x, length in zip(given[2], given[-1], strict=True):
        x[:, length:] = np.inf
    (got,) = run_group(g, TACTIC, Tiling(16, 16, 4, 2, splits).config, given, SM90)
    clean = [np.nan_to_num(x, nan=0.0, posinf=0.0) if x.dtype == np.float32 else x for x in given]
    close([got], expected(g, clean), 3e-6)


def test_packed_rows():
    check(group(F16, 2, 4, 2, 21, 33, 24, packed=True, is_causal=True, past=12))
    check(group(BF16, 1, 3, 3, 128, 128, 64, packed=True))


def test_views_of_one_buffer():
    """q, k and v as thirds of [B, S, 3, H, D]; the result in the order [B, S, H, D]."""
    batch, heads, steps, depth = 2, 3, 37, 16
    row = 3 * heads * depth
    views = tuple(strided((steps * row, depth, row, 1), i * heads * depth) for i in range(3))
    out = strided((steps * heads * depth, depth, heads * depth, 1), 0)
    check(group(F16, batch, heads, heads, steps, steps, depth, layouts=views, out=out))


def test_keys_that_lie_transposed():
    check(group(F16, 2, 3, 3, 20, 40, 32, layouts=(None, Layout((0, 1, 3, 2)), None)))


def test_keys_shared_by_stride_zero():
    """Expanded heads are strides of 0."""
    expanded = strided((40 * 32, 0, 32, 1), 0)
    g = group(F16, 2, 3, 3, 20, 40, 32, layouts=(None, expanded, expanded))
    given = arrays(g, {})
    for x in given[1:]:
        x[:] = x[:, :1]
    close(run_group(g, TACTIC, TACTIC.configs(g, SM90)[0], given, SM90), expected(g, given), 2e-3)


@pytest.mark.parametrize("sizes", [{"B": 1, "S": 1, "T": 1}, {"B": 2, "S": 21, "T": 70}, {"B": 1, "S": 32, "T": 64}])
@pytest.mark.parametrize("splits", [1, 4])
def test_sizes_of_the_run(sizes, splits):
    batch, steps, keys = sym("B"), sym("S"), sym("T")
    check(group(F16, batch, 2, 2, steps, keys, 32), sizes, Tiling(32, 32, 4, 2, splits))
    g = group(F32, batch, 4, 2, steps, steps + sym("P"), 16, is_causal=True, past=sym("P"), mask=(BOOL, (batch, 1, 1, steps + sym("P"))))
    check(g, {**sizes, "P": 5}, Tiling(16, 16, 4, 2, splits))


def test_no_samples():
    check(group(F16, sym("B"), 2, 2, 5, 7, 32), {"B": 0})
    check(group(F16, 2, 2, 2, sym("S"), 7, 32), {"S": 0})


def test_parts_are_added_in_order_by_the_last_program_or_a_second_kernel():
    tiling = Tiling(16, 16, 4, 2, 4)
    known = TACTIC.emit(group(F16, 2, 2, 2, 3, 200, 32), tiling.config, SM90)
    unknown = TACTIC.emit(group(F16, sym("B"), 2, 2, 3, 200, 32), tiling.config, SM90)
    assert len(known.steps) == 1 and known.steps[0].kernel.launch.counters == 4
    assert len(unknown.steps) == 2 and len(known.temps) == len(unknown.temps) == 2
    check(group(F16, 2, 2, 2, 3, 200, 32), tiling=tiling)
    check(group(F16, sym("B"), 2, 2, 3, 200, 32), {"B": 2}, tiling)


@pytest.mark.parametrize(("reason", "make"), [
    ("f64", lambda: group(F64, 1, 1, 1, 4, 4, 16)),
    ("head size 320", lambda: group(F16, 1, 1, 1, 4, 4, 320)),
    ("softmax in f64", lambda: group(F32, 1, 1, 1, 4, 4, 16, softmax_dtype=F64)),
    ("symbolic", lambda: group(F16, 1, 2, 2, 4, 4, sym("D"))),
    ("the mask is i64", lambda: group(F16, 1, 2, 2, 4, 4, 16, mask=(I64, (4, 4)))),
])  # fmt: skip
def test_what_is_left_to_the_expanded_form(reason, make):
    assert reason in (TACTIC.supports(make(), SM90) or "")


def test_few_queries_of_long_keys_are_split():
    splits = dict(TACTIC.configs(group(F16, 1, 32, 8, 1, 4096, 128), SM90)[0])["splits"]
    assert splits >= 8
    assert dict(TACTIC.configs(group(F16, 8, 16, 16, 1024, 1024, 64), SM90)[0])["splits"] == 1


SHAPES = {
    "bert": lambda kind: group(kind, 1, 12, 12, 128, 128, 64, packed=True, mask=(BOOL, (1, 1, 1, 128))),
    "vit": lambda kind: group(kind, 8, 12, 12, 197, 197, 64),
    "diffusion": lambda kind: group(kind, 2, 8, 8, 1024, 1024, 80),
    "causal": lambda kind: group(kind, 1, 16, 16, sym("S"), sym("S"), 128, is_causal=True),
    "decode": lambda kind: group(kind, 1, 32, 8, 1, 4096, 128, lengths=True),
    "wide": lambda kind: group(kind, 8, 8, 8, 512, 512, 256),
}


@pytest.mark.parametrize("name", SHAPES)
def test_machine_code(name, tmp_path):
    g = SHAPES[name](F16)
    for target, instruction in ((SM90, "HGMMA" if name in ("diffusion", "causal", "wide") else "MMA"), (SM80, "HMMA")):
        if target is SM80 and name != "causal":
            continue
        compiled = aot(kernels_of(g, TACTIC, TACTIC.configs(g, target)[0], target), target)
        text = [line for c in compiled.values() for line in sass(c, tmp_path)]
        assert any(instruction in line for line in text), f"{name}: no {instruction}"


def test_machine_code_of_fp32(tmp_path):
    for target in (SM80, SM90):
        g = group(F32, 1, 12, 12, 128, 128, 64)
        aot(kernels_of(g, TACTIC, TACTIC.configs(g, target)[0], target), target)


def test_configurations_fit():
    for name, make in SHAPES.items():
        for target in (SM80, SM90):
            found = TACTIC.configs(make(F16), target)
            assert 2 <= len(found) <= attention_tactic._MOST_CONFIGS, name
            assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("kind", "depth", "expanded"), [(F32, 16, False), (F16, 32, False), (F16, 320, True), (BF16, 320, True), (F64, 8, True)]
)
def test_legalise_expands_what_the_tactic_declines(kind, depth, expanded):
    def build(b: Builder) -> Any:
        q, k, v = (b.input(2, h, n, depth, dtype=kind) for h, n in ((4, 5), (2, 9), (2, 9)))
        return b("Attention", q, k, v, b.input(5, 9, dtype=kind), scale=depth**-0.5, is_causal=True, past=4)

    module = built(build)
    given = feeds(module)
    before = evaluate(module, given)
    legalise(module, SM90)
    verify(module)
    assert ("Attention" not in [n.op for n in module.main.nodes]) == expanded
    close(list(evaluate(module, given).values()), list(before.values()), {F64: 1e-12, F32: 1e-6, F16: 4e-3, BF16: 3e-2}[kind])


assert ml_dtypes.bfloat16  # registers bf16 with NumPy
