"""Convolutions over windows that touch: products over patches, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dovetail.core.dims import sym
from dovetail.ir.graph import Module, Value
from dovetail.ir.rewriter import apply_rules
from dovetail.ops.infer import infer
from dovetail.passes.patches import patches_as_product
from tests.unit.ir_builder import Builder, ops, rewritten


def conv(height: int, width: int, k: int, channels: int = 3, bias: bool = True, **attrs: Any) -> Callable[[Builder], Value]:
    def build(b: Builder) -> Value:
        x = b.input(sym("n"), channels, height, width)
        given = {"strides": (k, k), **attrs}
        return b.conv(x, b.random(10, channels, k, k), b.random(10) if bias else None, **given)

    return build


def apply(build: Callable[[Builder], Value]) -> Module:
    module, _ = rewritten(build, lambda m: apply_rules(m, [patches_as_product], infer), {"n": 2})
    return module


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("height", "width", "k"), [(16, 24, 8), (7, 7, 7), (48, 16, 16)])
def test_windows_become_rows_of_a_product(height: int, width: int, k: int, bias: bool) -> None:
    module = apply(conv(height, width, k, bias=bias))
    assert ops(module)["Conv"] == 0 and ops(module)["MatMul"] == 1


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (conv(18, 24, 8, pads=(3, 0, 3, 0)), "hangs over"), (conv(16, 24, 8, strides=(4, 8)), "overlaps"),
        (conv(17, 24, 8), "leaves a rest"), (conv(16, 16, 2), "is short"), (conv(16, 16, 8, channels=64), "is deep"),
    ],
)  # fmt: skip
def test_others_stay(build: Callable[[Builder], Value], why: str) -> None:
    assert ops(apply(build))["Conv"] == 1, why
