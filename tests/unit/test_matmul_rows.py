"""Products whose left rows share cache sets: spread by a copy, over one row axis or a symbolic batch of them."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail import builder, runtime
from dovetail.builder.options import BuildOptions
from dovetail.core.dims import Dim, sym
from dovetail.core.dtypes import F32
from dovetail.ir import Graph, Module, TensorType
from dovetail.ops.infer import infer


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lead", [(sym("N"), 61), (sym("N"), 13), (61,)], ids=str)
def test_crowded_rows(lead: tuple[Dim, ...], batch: int) -> None:
    """K of 1024 floats is one page per row; the result is that of NumPy for every batch."""
    rng = np.random.default_rng(len(lead) * 10 + batch)
    module = Module(Graph("main"))
    x = module.main.add_input("x", TensorType(F32, (*lead, 1024)))
    module.weights["w"] = (rng.standard_normal((1024, 400)) / 32).astype(np.float32)
    w = module.main.add("Constant", (), {"name": "w"}, types=[TensorType(F32, (1024, 400))], names=["w"]).output
    y = module.main.add("MatMul", (x, w), {}, types=infer("MatMul", (x, w), {})).output
    module.main.set_outputs([y])
    module.main.update_times()
    module.meta["output_names"] = ["y"]
    built = builder.compile_module(module, BuildOptions(tune=False, verify="off"))
    engine = runtime.RuntimeEngine(
        built.plan, kernels=[built.binary], host=built.host_binary, weights=module.weights, threads=1
    )
    array = rng.standard_normal(tuple(d if isinstance(d, int) else batch for d in (*lead, 1024)), dtype=np.float32)
    np.testing.assert_allclose(engine.run({"x": array})["y"], array @ module.weights["w"], rtol=0, atol=1e-4)
