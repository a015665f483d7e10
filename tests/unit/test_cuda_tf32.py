"""Products in TF32: operands are rounded to the nearest number with 10 bits of fraction, not cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dovetail.codegen.tactic import Group
from dovetail.core.dtypes import F32
from dovetail.kernels.cuda.attention_tactic import FlashAttention
from dovetail.kernels.cuda.conv_tactic import ImplicitGemm
from dovetail.kernels.cuda.matmul_tactic import Gemm
from tests.unit.cuda_harness import SM90, Body, aot, fused, kernels_of, run_group, sass

RNG = np.random.default_rng(5)
LOOSE = replace(SM90, tf32=True)


def nearest(x: np.ndarray) -> np.ndarray:
    """fp32 rounded to 10 bits of fraction, ties away from zero, by arithmetic in float64."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.trunc(fraction * 2**11 + np.copysign(0.5, fraction)), exponent - 11).astype(np.float32)


def product() -> Group:
    def body(b: Body):
        return b("MatMul", b.input(F32, 40, 48), b.weight(F32, 48, 33))

    return fused(body, kind="matmul", anchor="MatMul")


def test_operands_of_a_product_are_rounded_to_the_nearest() -> None:
    x, w = (RNG.standard_normal(s).astype(np.float32) for s in ((40, 48), (48, 33)))
    group = product()
    (got,) = run_group(group, Gemm(), Gemm().configs(group, LOOSE)[0], [x, w], LOOSE)
    np.testing.assert_allclose(got, nearest(x).astype(np.float64) @ nearest(w), rtol=1e-6, atol=1e-5)
    assert np.abs(got - x @ w).max() > 1e-5, "TF32 was not used"


def test_infinities_and_nan_stay() -> None:
    x, w = np.ones((40, 48), np.float32), np.ones((48, 33), np.float32)
    x[3, 5], x[4, 6], x[5, 7] = np.inf, np.nan, -np.inf
    x[6, 8] = np.array(0x7FFFFFFF, np.uint32).view(np.float32)
    group = product()
    (got,) = run_group(group, Gemm(), Gemm().configs(group, LOOSE)[0], [x, w], LOOSE)
    assert np.isposinf(got[3]).all() and np.isnan(got[4]).all() and np.isneginf(got[5]).all() and np.isnan(got[6]).all()
    np.testing.assert_array_equal(got[0], 48)


@pytest.mark.parametrize("what", ["product", "convolution", "attention"])
def test_machine_code_rounds_both_operands(what: str, tmp_path: Path) -> None:
    if what == "product":
        group, tactic = product(), Gemm()
    elif what == "convolution":
        tactic = ImplicitGemm()

        def conv(b: Body):
            x, w = b.input(F32, 1, 32, 9, 9), b.weight(F32, 32, 32, 3, 3)
            return b("Conv", x, w, strides=(1, 1), pads=(1,) * 4, dilations=(1, 1), group=1)

        group = fused(conv, kind="conv", anchor="Conv")
    else:
        tactic = FlashAttention()

        def attention(b: Body):
            q, k, v = (b.input(F32, 1, 2, 64, 32) for _ in range(3))
            return b("Attention", q, k, v, scale=0.2, is_causal=False, q_heads=2, kv_heads=2)

        group = fused(attention, kind="attention", anchor="Attention")
    config = tactic.configs(group, LOOSE)[0]
    kernel = next(k for k in kernels_of(group, tactic, config, LOOSE))
    assert "nearest_tf32" in kernel.source
    compiled = aot([kernel], LOOSE)[kernel.entry]
    text = sass(compiled, tmp_path)
    assert any("TF32" in line and "MMA" in line for line in text)
    # The conversion is two instructions: finite numbers get half of the last bit that tensor cores keep, which cut the rest off.
    assert sum("FSETP" in line and "INF" in line for line in text) >= 2, "nothing is rounded"
    assert "nearest_tf32" not in next(k for k in kernels_of(group, tactic, tactic.configs(group, SM90)[0], SM90)).source
