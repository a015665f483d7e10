"""Products on a GPU: every configuration that the tuner may choose, against the reference, twice with equal bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dovetail.codegen.tactic import Group
from dovetail.codegen.triton_compiler import compile_kernels
from dovetail.core.dtypes import BF16, F16, F32, DType
from dovetail.ir.layout import Layout, strided
from dovetail.kernels.cuda.gemv import Strip
from dovetail.kernels.cuda.matmul import Tile
from dovetail.kernels.cuda.matmul_tactic import Gemm, Gemv, TmaGemm
from dovetail.kernels.cuda.matmul_tma import Tile as CopiedTile
from tests.gpu.harness import run_on_gpu, target
from tests.gpu.reference import relative_l2
from tests.unit.cuda_harness import Body, expected, fused, kernels_of

ERROR = {"f32": 1e-5, "f16": 1e-3, "bf16": 8e-3}


def product(
    m: int, n: int, k: int, kind: DType = F16, *, act: str = "Gelu", residual: bool = False, batch: tuple[int, ...] = (),
    shared: bool = True, right: Layout | None = None, constant: bool = True,
) -> Group:  # fmt: skip
    """act(x w + b + residual)."""

    def build(b: Body) -> Any:
        x = b.input(kind, *batch, m, k)
        shape = (k, n) if shared else (*batch, k, n)
        w = b.weight(kind, *shape) if constant and right is None else b.input(kind, *shape, layout=right)
        y = b("Add", b("MatMul", x, w), b.weight(kind, n))
        y = b("Add", y, b.input(kind, *batch, m, n)) if residual else y
        return b(act, y) if act else y

    return fused(build, "matmul", "MatMul")


GROUPS = {
    "few rows": product(32, 1000, 512, act="Relu"),
    "one row": product(1, 1000, 2048, act=""),
    "one row, right transposed": product(1, 1000, 2048, act="", right=strided((1, 2048), 0)),
    "small": product(128, 768, 768),
    "deep": product(128, 768, 3072, act="", residual=True),
    "large": product(1024, 1536, 768),
    "large with a residual": product(2048, 768, 768, act="", residual=True),
    "tails": product(197, 1000, 591),
    "rows in batches": product(50, 200, 136, batch=(3,), residual=True),
    "batches": product(128, 136, 64, batch=(2, 3), shared=False, constant=False, act=""),
    "right transposed": product(256, 384, 512, right=strided((1, 512), 0)),
    "bf16": product(256, 384, 512, BF16),
    "fp32": product(200, 300, 256, F32),
}


def arrays_of(group: Group) -> list[Any]:
    rng = np.random.default_rng(3)
    assert group.anchor is not None
    depth = group.anchor.input(0).tensor.shape[-1]
    scale = [depth**-0.5 if v.index == group.anchor.input(1).index else 1.0 for v in group.body.inputs]
    return [(rng.standard_normal(v.tensor.shape) * s).astype(v.tensor.dtype.numpy) for v, s in zip(group.body.inputs, scale, strict=True)]


@pytest.mark.parametrize("tactic", [Gemm(), Gemv(), TmaGemm()], ids=lambda t: t.name)
@pytest.mark.parametrize("name", GROUPS)
def test_every_configuration(name: str, tactic: Any) -> None:
    group = GROUPS[name]
    reason = tactic.supports(group, target())
    if reason is not None:
        pytest.skip(reason)
    configs = list(tactic.configs(group, target()))
    # Some that the model does not choose for these sizes.
    if tactic.name == "gemm" and group.inputs[0].tensor.dtype != F32:
        tile = Tile(64, 64, 32, 4, 3, ahead=1)
        others = (tile, replace(tile, split=2), replace(tile, swap=1, bm=16), replace(tile, bn=96), replace(tile, early=0))
        configs += [t.config for t in others]
    elif tactic.name == "gemv":
        configs += [Strip(16, 64, 4, 3).config]
    elif tactic.name == "gemm_tma":
        tile_ = CopiedTile(128, 192, 64, 8, 3, persistent=1)
        configs += [t.config for t in (tile_, replace(tile_, persistent=0, bn=64, ahead=1), replace(tile_, bn=128, flatten=1))]
    kernels = [kernels_of(group, tactic, c, target())[0] for c in configs]
    machine = compile_kernels(kernels, target())
    arrays = arrays_of(group)
    (want,) = expected(group, arrays)
    ran = 0
    for config, kernel in zip(configs, kernels, strict=True):
        if isinstance(machine[kernel.entry], str) or machine[kernel.entry].shared > target().shared_bytes:  # type: ignore[union-attr]
            continue
        (got,) = run_on_gpu(group, tactic, config, arrays, machine)
        error = relative_l2(got, want)
        assert error <= ERROR[group.outputs[0].tensor.dtype.name], f"{dict(config)}: relative L2 {error:.1e}"
        ran += 1
    assert ran >= len(configs) // 2, "most configurations compile"
