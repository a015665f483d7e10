"""Compiled kernels of the math families against the references, on every sample, with fixed and with symbolic shapes."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail import builder, reference, runtime
from dovetail.builder import BuildOptions
from dovetail.core import dtypes as d
from dovetail.core.dims import sym
from dovetail.ir.graph import Graph, Module, Value
from dovetail.ir.types import TensorType
from dovetail.ops import spec
from dovetail.ops.infer import infer
from tests.samples.math import SAMPLES
from tests.samples.sample import Array, Sample

_OPS = sorted({s.op for s in SAMPLES if not spec(s.op).impure})
_GROUPS = [_OPS[i : i + 12] for i in range(0, len(_OPS), 12)]
# Their output sizes follow from attributes that these samples fix.
_FIXED = {"DFT", "STFT"}


def _add(graph: Graph, number: int, sample: Sample, symbolic: bool) -> tuple[dict[str, Array], tuple[Value, ...]]:
    """One node on inputs of its own."""
    feeds: dict[str, Array] = {}
    values: list[Value | None] = []
    for position, array in enumerate(sample.make()):
        if array is None:
            values.append(None)
            continue
        name = f"x{number}_{position}"
        shape = tuple(
            sym(f"s{number}_{position}_{axis}") if symbolic and n > 1 else n for axis, n in enumerate(array.shape)
        )
        values.append(graph.add_input(name, TensorType(d.dtype(array.dtype), shape)))
        feeds[name] = array
    attrs = spec(sample.op).complete(sample.attrs)
    if "symbols" in attrs:
        attrs["symbols"] = tuple(f"{name}_{number}" for name in attrs["symbols"])
    return feeds, graph.add(sample.op, values, attrs, types=infer(sample.op, values, attrs)).outputs


def _tolerance(want: Array, sample: Sample) -> float:
    if want.dtype.kind == "f" or d.dtype(want.dtype).is_float:
        return 4e-3 if d.dtype(want.dtype).bits <= 16 else 1e-5
    return 0 if sample.exact else 1  # rounding to integers may fall either way


@pytest.mark.slow
@pytest.mark.parametrize("symbolic", [False, True], ids=["fixed", "symbolic"])
@pytest.mark.parametrize("ops", _GROUPS, ids=[f"{g[0]}-{g[-1]}" for g in _GROUPS])
def test_kernels_agree_with_references(ops: list[str], symbolic: bool) -> None:
    module = Module(Graph("main"))
    feeds: dict[str, Array] = {}
    wanted: list[tuple[Sample, Array]] = []
    outputs: list[Value] = []
    for number, sample in enumerate(s for s in SAMPLES if s.op in ops):
        arrays = sample.make()
        # 0 against 1 is the one case that symbols do not broadcast.
        if symbolic and (sample.op in _FIXED or any(a is not None and a.size == 0 for a in arrays)):
            continue
        given, results = _add(module.main, number, sample, symbolic)
        feeds |= given
        outputs += results
        wanted += [(sample, want) for want in reference.call(sample.op, arrays, sample.attrs)]
    module.main.set_outputs(outputs)
    module.main.update_times()
    module.meta["output_names"] = [f"y{i}" for i in range(len(outputs))]
    built = builder.compile_module(module, BuildOptions(tune=False, verify="off"))
    engine = runtime.RuntimeEngine(
        built.plan, kernels=[built.binary], host=built.host_binary, weights=module.weights, threads=1
    )
    results = engine.run(feeds)
    assert len(results) == len(wanted)
    for i, (sample, want) in enumerate(wanted):
        got = results[f"y{i}"]
        assert got.shape == want.shape and d.dtype(got.dtype) == d.dtype(want.dtype), sample
        if d.dtype(want.dtype).kind == "string":
            assert got.tolist() == want.tolist(), sample
            continue
        tolerance = _tolerance(want, sample)
        np.testing.assert_allclose(
            got.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance, err_msg=str(sample)
        )
