"""Generated CUDA loops: interpreted against the references on awkward shapes, layouts and types; compiled with static checks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dovetail.codegen.loop_ir import Buffer, LoopKernel, Nest, Scope, Store, load, reduce
from dovetail.codegen.lower import lower
from dovetail.codegen.print_numpy import run_numpy
from dovetail.codegen.print_triton import print_kernel
from dovetail.codegen.tactic import Group
from dovetail.codegen.triton_interpreter import interpret
from dovetail.codegen.triton_schedule import plan_nest
from dovetail.codegen.triton_stages import split
from dovetail.core.dims import evaluate, sym
from dovetail.core.dtypes import BF16, BOOL, F16, F32, F64, I8, I32, I64, U8
from dovetail.ir.graph import Value
from dovetail.ir.layout import channels_last, strided
from dovetail.kernels.cuda.loop_tactic import Loop
from dovetail.kernels.cuda.weight_loop_tactic import WeightLoop
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

LOOP, WEIGHTS = Loop(), WeightLoop()
LAST = channels_last(4)
N, S = sym("N"), sym("S")

Build = Callable[[Body], Any]


def data(group: Group, sizes: Mapping[str, int]) -> list[np.ndarray[Any, Any]]:
    """Seeded operands; integers are small and of both signs."""
    rng = np.random.default_rng(17)
    found = []
    for value in group.inputs:
        shape, kind = tuple(evaluate(d, sizes) for d in value.tensor.shape), value.tensor.dtype
        if kind == BOOL:
            found.append(rng.random(shape) < 0.5)
        elif kind.is_int:
            found.append(rng.integers(0 if kind.kind == "uint" else -3, 4, shape).astype(kind.numpy))
        else:
            found.append(rng.uniform(-2, 2, shape).astype(kind.numpy))
    return found


def check(build: Build, *, configs: bool = False, tolerance: float = 5e-6, kind: str = "loop", layout=None, **sizes: int) -> None:
    """The heuristic's kernel, or all configurations, against the references."""
    group = fused(build, kind=kind, layout=layout)
    assert LOOP.supports(group, SM90) is None
    arrays = data(group, sizes)
    want = expected(group, arrays, sizes)
    for config in LOOP.configs(group, SM90) if configs else ((),):
        close(run_group(group, LOOP, config, arrays, SM90, sizes), want, tolerance)


# ---------------------------------------------------------------- pointwise and movement
UNARY = {
    "Abs": {}, "Atan": {}, "Ceil": {}, "Cosh": {}, "Erf": {}, "Exp": {}, "Floor": {}, "Neg": {}, "Round": {}, "Sign": {}, "Sigmoid": {},
    "Tanh": {}, "Relu": {}, "LeakyRelu": {"alpha": 0.1}, "Elu": {"alpha": 1.3}, "Selu": {}, "HardSigmoid": {}, "HardSwish": {}, "Mish": {},
    "Swish": {"alpha": 1.7}, "Softplus": {}, "Gelu": {}, "Clip": {"min": -0.7, "max": 1.1}, "Asinh": {}, "Reciprocal": {}, "Sin": {},
}  # fmt: skip


def test_unary_functions():
    check(lambda b: tuple(b(op, b.input(F32, 13), **attrs) for op, attrs in UNARY.items()))


@pytest.mark.parametrize("kind", [F16, BF16, F32])
def test_pointwise_chain_broadcasts(kind):
    def build(b: Body) -> Value:
        scaled = b("Mul", b.input(kind, 3, 7, 5), b.weight(kind, 5))
        return b("Relu", b("Add", scaled, b.input(kind, 3, 1, 1)))

    check(build, configs=True)


def test_special_values_pass_as_in_the_references():
    def build(b: Body) -> tuple[Value, ...]:
        x = b.input(F32, 6)
        return b("Relu", x), b("Max", x, b.input(F32, 1)), b("Clip", x, min=-1.0, max=1.0)

    group = fused(build)
    arrays = [np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 3], np.float32), np.zeros(1, np.float32)]
    close(run_group(group, LOOP, (), arrays, SM90), expected(group, arrays))


@pytest.mark.parametrize(
    ("op", "kinds"),
    [("Div", (I32, I32)), ("Mod", (I64, I64)), ("Less", (F16, F16)), ("And", (BOOL, BOOL)), ("Xor", (BOOL, BOOL)), ("Equal", (I8, I8)),
     ("Sub", (U8, U8)), ("Pow", (F32, F32)), ("Min", (I64, I64)), ("Mul", (F64, F64))],
)  # fmt: skip
def test_binary_functions_by_type(op, kinds):
    def build(b: Body) -> Value:
        left, right = b.input(kinds[0], 4, 9), b.input(kinds[1], 9)
        return b(op, b("Abs", left) if op == "Pow" else left, right)

    check(build)


@pytest.mark.parametrize(
    ("source", "to"), [(F32, F16), (I64, F16), (F32, BOOL), (BOOL, F32), (BOOL, I64), (F16, I32), (I64, U8), (F64, F32)]
)
def test_casts(source, to):
    check(lambda b: b("Cast", b.input(source, 5, 11), to=to))


def test_select_takes_flags_of_another_shape():
    check(lambda b: b("Where", b.input(BOOL, 6, 7), b.input(F16, 7), b.input(F16, 6, 1)))


@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (1, 1, 1), (997,)])
def test_shapes_at_the_edge(shape):
    check(lambda b: b("Relu", b.input(F16, *shape)))


def test_run_time_sizes():
    check(lambda b: b("Relu", b("Add", b.input(F16, N, S, 12), b.input(F16, S, 1))), N=3, S=37)


def test_layouts_of_operands_differ():
    check(lambda b: b("Add", b.input(F16, 2, 5, 6, 7, layout=LAST), b.input(F16, 2, 5, 6, 7)), layout=LAST, configs=True)
    check(lambda b: b("Add", b.input(F32, 9, 10, layout=strided((25, 2), 3)), b.input(F32, 10)), layout=strided((1, 9), 0))


@pytest.mark.parametrize("perm", [(0, 2, 1), (2, 1, 0), (1, 0, 2), (2, 0, 1)])
def test_transposes(perm):
    check(lambda b: b("Neg", b("Transpose", b.input(F16, 19, 3, 70), perm=perm)), configs=perm == (0, 2, 1))


def test_transpose_of_run_time_sizes():
    check(lambda b: b("Transpose", b.input(F32, N, 5, S), perm=(0, 2, 1)), N=2, S=67)


def test_movements():
    check(lambda b: b("Pad", b.input(F16, 3, 7, 5), pads=(0, 1, 2, 0, 3, -1), value=1.5))
    check(lambda b: b("Pad", b.input(F16, 3, 7), pads=(2, 1, 1, 3), mode="reflect"))
    check(lambda b: b("Slice", b.input(F32, 9, 10), starts=(8, 1), ends=(-1, 9), axes=(0, 1), steps=(-2, 3)))
    check(lambda b: b("Tile", b.input(I64, 3, 4), repeats=(2, 3)))
    check(lambda b: b("Trilu", b.input(F32, 7, 9), upper=False, k=1))
    check(lambda b: b("Reshape", b("Transpose", b.input(F16, 4, 6, 5), perm=(0, 2, 1)), shape=(20, 6)))
    check(lambda b: b("Expand", b.input(F16, 5, 1), shape=(3, 5, 4)))


def test_concat_is_one_kernel_of_several_nests():
    def build(b: Body) -> Value:
        return b("Relu", b("Concat", b.input(F16, 3, 4, 5), b.input(F16, 3, 7, 5), b.input(F16, 3, 1, 5), axis=1))

    check(build)
    assert len(kernels_of(fused(build), LOOP, (), SM90)) == 1
    check(lambda b: b("Concat", b.input(F16, N, 1, 64), b.input(F16, N, 7, 64), axis=1), N=3)


def test_gathers():
    check(lambda b: b("Gather", b.weight(F16, 30, 72), b.input(I64, 2, 5), axis=0), configs=True)
    check(lambda b: b("Gather", b.input(F32, 6, 30), b.input(I32, 5), axis=1))
    check(lambda b: b("GatherElements", b.input(F32, 6, 5), b.input(I64, 6, 5), axis=1))
    check(lambda b: b("GatherND", b.input(F32, 6, 5, 16), b.input(I64, 4, 2)))
    check(lambda b: b("OneHot", b.input(I64, 5), b.input(F32, 2), depth=7, axis=1))


# ---------------------------------------------------------------- reductions
@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax"])
def test_reductions(op, axes):
    check(lambda b: b(op, b.input(F16, 5, 13, 20), axes=axes, keepdims=axes == (1,)), configs=axes == (1, 2))


def test_reductions_by_type():
    check(lambda b: b("ReduceMax", b.input(BOOL, 7, 40), axes=(1,)))
    check(lambda b: b("ReduceMin", b.input(I64, 7, 40), axes=(1,)))
    check(lambda b: b("ReduceSum", b.input(I8, 7, 40), axes=(0,)))
    check(lambda b: b("ReduceProd", b.input(F32, 7, 19), axes=(1,)))
    check(lambda b: b("ReduceMean", b.input(F64, 7, 19), axes=(1,)))


def test_a_reduction_passes_nan_on():
    def build(b: Body) -> tuple[Value, ...]:
        x = b.input(F32, 9, 33)
        return b("ReduceMax", x, axes=(1,)), b("ReduceMin", x, axes=(0,))

    group = fused(build)
    array = np.random.default_rng(2).standard_normal((9, 33)).astype(np.float32)
    array[3, 30] = np.nan
    close(run_group(group, LOOP, (), [array], SM90), expected(group, [array]))


def test_reductions_over_nothing_and_run_time_extents():
    check(lambda b: b("ReduceSum", b.input(F32, 7, S), axes=(1,)), S=0)
    check(lambda b: b("ReduceMax", b.input(F32, N, S), axes=(1,)), N=3, S=2100)
    check(lambda b: b("ReduceMean", b.input(F16, N, 40, S), axes=(2,)), N=2, S=17)


def test_mean_over_channels_last_planes():
    check(lambda b: b("ReduceMean", b.input(F16, 2, 130, 5, 7, layout=LAST), axes=(2, 3)), configs=True)


def test_arg_extrema():
    check(lambda b: b("ArgMax", b("Relu", b.input(F16, 3, 70)), axis=1, keepdims=False))
    check(lambda b: b("ArgMin", b.input(F32, 3, 70, 5), axis=1, select_last_index=True))


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 100), -1), ((30, 17), 0), ((5, 1), 1), ((3, 9, 4), 1), ((2, 20000), 1)])
def test_softmax(shape, axis):
    check(lambda b: b("Softmax", b("Add", b.input(F16, *shape), b.input(F16, shape[-1])), axis=axis), configs=shape == (4, 3, 100))


def test_softmax_of_run_time_rows():
    check(lambda b: b("Softmax", b.input(F32, N, S), axis=1), N=3, S=300)
    check(lambda b: b("LogSoftmax", b.input(F16, S, 6), axis=0), S=30)


def summed_norm(b: Body) -> Value:
    total = b("Add", b.input(F16, 5, 100), b.input(F16, 5, 100))
    return b("LayerNormalization", total, b.weight(F16, 100), b.weight(F16, 100), axis=1)


def test_normalisations():
    check(summed_norm, configs=True)
    check(lambda b: b("LayerNormalization", b("Gather", b.weight(F16, 9, 64), b.input(I64, 3, 5), axis=0), b.weight(F16, 64), None, axis=2))
    check(lambda b: b("LayerNormalization", b.input(F32, 4, 3, 50), b.weight(F32, 3, 50), None, axis=1))
    check(lambda b: b("RMSNormalization", b.input(F32, 4, 100), b.weight(F32, 100), axis=1))
    check(lambda b: b("LayerNormalization", b.input(F16, N, S), b.weight(F16, S), b.weight(F16, S), axis=1), N=2, S=1500)


@pytest.mark.parametrize("layout", [None, LAST])
@pytest.mark.parametrize(("op", "attrs"), [("GroupNormalization", {"num_groups": 3}), ("InstanceNormalization", {})])
def test_normalisations_of_planes(op, attrs, layout):
    check(lambda b: b(op, b.input(F16, 2, 12, 5, 7, layout=layout), b.weight(F16, 12), b.weight(F16, 12), **attrs), layout=layout)


@pytest.mark.parametrize(("reverse", "exclusive"), [(False, False), (True, False), (False, True), (True, True)])
def test_running_sums(reverse, exclusive):
    check(lambda b: b("CumSum", b.input(F32, 3, 12, 5), axis=1, reverse=reverse, exclusive=exclusive))


def test_padding_along_the_axis_of_tiles():
    """Whether a whole tile is inside depends on one number, beside masks of blocks."""

    def build(b: Body) -> Value:
        return b("Transpose", b("Pad", b.input(F32, N, 4, 6, 5), pads=(0, 2, 2, 0, 0, 1, 0, 0)), perm=(3, 1, 0, 2))

    check(build, N=3)


@pytest.mark.parametrize("strides", [(0, 5, 1), (60, 0, 1), (60, 5, 0)])
def test_running_sums_of_widened_values(strides):
    """An axis of stride 0 beside the sum, whose rows all have the same sums, or along it."""
    group = fused(lambda b: b("CumSum", b.input(F32, 3, 12, 5, layout=strided(strides, 0)), axis=1, reverse=True))
    (x,) = data(group, {})
    x = np.broadcast_to(x[tuple(slice(None) if s else slice(1) for s in strides)], x.shape)
    for config in LOOP.configs(group, SM90):
        close(run_group(group, LOOP, config, [x], SM90), expected(group, [x]), 5e-6)


@pytest.mark.parametrize("exclusive", [False, True])
def test_running_sums_of_one_element(exclusive):
    check(lambda b: b("CumSum", b.input(F32, 3, 1, 5), axis=1, exclusive=exclusive, reverse=True))


def test_running_sums_pass_from_chunk_to_chunk():
    check(lambda b: b("CumSum", b.input(I64, 3, S), axis=1), S=2100)


def test_a_row_is_loaded_once():
    (kernel,) = kernels_of(fused(summed_norm), LOOP, (), SM90)
    assert kernel.source.count("tl.load(") == 4


# ---------------------------------------------------------------- stages
@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda b: b("ReduceMean", b.input(F16, 1, 32, 70, 71, layout=LAST), axes=(2, 3)), 2),
        (lambda b: b("Softmax", b.input(F16, 1, 40000), axis=1), 3),
        (lambda b: b("LayerNormalization", b.input(F32, 2, 33333), b.weight(F32, 33333), None, axis=1), 3),
        (lambda b: b("ArgMax", b.input(F16, 1, 30011), axis=1), 3),
        (lambda b: b("Div", b.input(F32, 2000), b("ReduceMax", b("Abs", b.input(F32, 30000)), axes=(0,))), 2),
        (lambda b: b("ReduceSum", b.input(F32, S, 1000), axes=(0, 1)), 2),
    ],
)
def test_long_reductions_run_in_stages(build, count):
    group = fused(build)
    config = (("split", 1),)
    assert len(kernels_of(group, LOOP, config, SM90)) == count
    assert len(kernels_of(group, LOOP, (("split", 0),), SM90)) == 1
    sizes = {"S": 31}
    arrays = data(group, sizes)
    close(run_group(group, LOOP, config, arrays, SM90, sizes), expected(group, arrays, sizes), 5e-6)


def test_stages_come_by_themselves_where_much_is_reduced_to_little():
    large, small = (fused(lambda b, n=n: b("ReduceMean", b.input(F16, 1, n), axes=(1,))) for n in (1 << 20, 4096))
    assert [len(kernels_of(g, LOOP, (), SM90)) for g in (large, small)] == [2, 1]
    assert LOOP.configs(large, SM90) == ((), (("split", 0),))


def test_stages_keep_the_meaning_of_the_loops():
    group = fused(lambda b: b("GroupNormalization", b.input(F32, 1, 6, 60, 67), b.weight(F32, 6), b.weight(F32, 6), num_groups=2))
    arrays = data(group, {})
    kernel = lower(group.body, [v.tensor for v in group.inputs], [v.tensor for v in group.outputs])
    stages, temps = split(kernel, 132, 8192)
    assert len(stages) == 3
    memory = [np.full(evaluate(t, {}) // 4, np.nan, np.float32) for t in temps]
    result = np.zeros(6 * 60 * 67, np.float32)
    for stage in stages:
        held = {"in": [a.ravel() for a in arrays], "temp": memory, "out": [result]}
        run_numpy(stage, [held[b.role][b.index] for b in stage.buffers], {})
    close([result.reshape(1, 6, 60, 67)], expected(group, arrays), 5e-6)


# ---------------------------------------------------------------- windows and contractions
WINDOW = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}


def test_pools():
    check(lambda b: b("MaxPool", b.input(F16, 1, 8, 9, 7, layout=LAST), **WINDOW), kind="pool", layout=LAST)
    check(lambda b: b("AveragePool", b.input(F16, 1, 3, 9, 7), count_include_pad=False, **WINDOW), kind="pool")
    check(lambda b: b("MaxPool", b.input(F32, 2, 3, 40), kernel=(20,), strides=(3,), pads=(4, 4), dilations=(1,)), kind="pool")
    check(lambda b: b("LRN", b.input(F32, 1, 7, 3, 3), size=3))


def test_resize():
    check(lambda b: b("Resize", b.input(F16, 1, 16, 5, 7, layout=LAST), sizes=(1, 16, 10, 14), mode="linear"), layout=LAST)
    check(lambda b: b("Resize", b.input(F32, 1, 3, 5, 7), sizes=(1, 3, 5, 4), mode="cubic"))
    check(lambda b: b("Resize", b.input(F16, 1, 3, N, 7), sizes=(1, 3, N * 2, 14), mode="nearest"), N=5)


def test_contractions_that_no_template_takes():
    check(lambda b: b("MatMul", b.input(F64, 5, 40), b.input(F64, 40, 9)), kind="matmul")
    check(lambda b: b("MatMul", b.input(I32, 3, 5, 7), b.input(I32, 7, 4)), kind="matmul")
    attrs = {"strides": (1, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 2}
    check(lambda b: b("Conv", b.input(F32, 1, 4, 6, 5), b.weight(F32, 2, 2, 3, 3), **attrs), kind="conv")


# ---------------------------------------------------------------- in general
def test_what_has_no_block_form_gives_a_reason():
    group = fused(lambda b: b("CumSum", b.input(F32, 3, S), axis=1, reverse=True))
    assert "running sum" in (LOOP.supports(group, SM90) or "")


def test_waits_only_where_programs_may_start_early():
    group = fused(lambda b: b("Relu", b.input(F16, 64)))
    (new,), (old,) = (kernels_of(group, LOOP, (), target) for target in (SM90, SM80))
    assert "gdc_wait()" in new.source and new.launch is not None and new.launch.pdl
    assert "gdc" not in old.source and old.launch is not None and not old.launch.pdl


def test_weights_are_loaded_before_the_wait():
    group = fused(lambda b: b("LayerNormalization", b.input(F16, 128, 768), b.weight(F16, 768), b.weight(F16, 768), axis=1))
    (kernel,) = kernels_of(group, LOOP, (), SM90)
    before, after = kernel.source.split("gdc_wait()")
    assert (before.count("tl.load("), after.count("tl.load(")) == (2, 1)


def test_what_makes_weights_waits_for_what_makes_its_operands():
    build: Build = lambda b: b("Softmax", b.weight(F32, 8, 100), axis=1)  # noqa: E731 - one line says it
    (kernel,) = kernels_of(fused(build), LOOP, (), SM90)
    assert "tl.load(" not in kernel.source.split("gdc_wait()")[0]


def test_a_reduction_of_reductions():
    s = Scope()
    x, o = Buffer("in", 0, F32, (3, 20, 30), (600, 30, 1)), Buffer("out", 0, F32, (3,), (1,))
    i, j, k = s.axis(3), s.axis(20), s.axis(30)
    inner = reduce(s, "max", (k,), load(s, x, x.offset((i.index, j.index, k.index))))
    nest = Nest((i,), (Store(o, i.index, reduce(s, "sum", (j,), inner)),))
    kernel = LoopKernel((x, o), (nest,), s)
    assert plan_nest(nest, s, 132).kind == "rows"
    array = np.random.default_rng(4).standard_normal((3, 20, 30)).astype(np.float32)
    got = np.zeros(3, np.float32)
    printed = print_kernel(kernel, SM90)
    assert printed.launch is not None
    interpret(printed, [array.ctypes.data, got.ctypes.data], [], (evaluate(printed.launch.grid[0], {}), 1, 1))
    np.testing.assert_allclose(got, array.max(2).sum(1), rtol=1e-6)


# ---------------------------------------------------------------- weights
_PRINTED = """
from dovetail.codegen.print_triton import print_kernel
from dovetail.codegen.target import Target
from dovetail.core.dtypes import F32
from dovetail.kernels.weight_loops import Structure, loops_of

apart = (F32, (None, None, None, None))
loops = loops_of(Structure((apart, apart), (("Relu", (), (0,), F32),), 4))
print(print_kernel(loops, Target.parse("cuda:sm_90")).source)
"""


def test_a_source_is_the_same_in_every_process():
    def printed(seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run([sys.executable, "-c", _PRINTED], capture_output=True, text=True, check=True, env=env).stdout

    assert len({printed(seed) for seed in "123"}) == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda b: b("Cast", b.input(F32, 33, 70), to=F16),
        lambda b: b("Copy", b.input(F32, 33, 9, 70, layout=strided((630, 1, 9), 0))),
        lambda b: b("Cast", b("Mul", b.input(F32, 33, 3, 7), b.input(F32, 33, 1, 1)), to=F16),
        lambda b: b("Mul", b.input(F32, 33), b("Reciprocal", b("Sqrt", b("Abs", b.input(F32, 33))))),
    ],
)
def test_weight_loops(build):
    group = fused(build, kind="weight_loop")
    assert WEIGHTS.supports(group, SM90) is None
    arrays = data(group, {})
    close(run_group(group, WEIGHTS, (), arrays, SM90), expected(group, arrays))


def test_weight_loops_share_a_source_and_write_parts():
    first, second = (fused(lambda b, n=n: b("Cast", b.input(F32, n, 8), to=F16), kind="weight_loop") for n in (33, 160))
    (a,), (c,) = (kernels_of(g, WEIGHTS, (), SM90) for g in (first, second))
    assert a.entry == c.entry and a.dims != c.dims
    part = fused(lambda b: b("Copy", b.input(F32, 33, 9)), kind="weight_loop", layout=strided((20, 1), 5))
    arrays = data(part, {})
    close(run_group(part, WEIGHTS, (), arrays, SM90), arrays)
    assert not kernels_of(part, WEIGHTS, (), SM90)[0].launch.aligned[1]


# ---------------------------------------------------------------- machine code
def wide(b: Body) -> Value:
    return b("Relu", b("Add", b("Add", b.input(F16, 8, 128, 768), b.weight(F16, 768)), b.input(F16, 8, 128, 768)))


SAMPLE: dict[str, tuple[Build, Any]] = {
    "pointwise": (wide, None),
    "run time": (lambda b: b("Relu", b("Add", b.input(F16, N, S, 768), b.weight(F16, 768))), None),
    "norm": (lambda b: b("LayerNormalization", b.input(F16, 1024, 768), b.weight(F16, 768), b.weight(F16, 768), axis=1), None),
    "softmax": (lambda b: b("Softmax", b.input(F16, 12, 128, 128), axis=-1), None),
    "mean": (lambda b: b("ReduceMean", b.input(F16, 8, 1280, 7, 7, layout=LAST), axes=(2, 3)), None),
    "pool": (lambda b: b("MaxPool", b.input(F16, 8, 64, 112, 112, layout=LAST), **WINDOW), LAST),
    "transpose": (lambda b: b("Copy", b.input(F16, 8, 256, 56, 56)), LAST),
    "gather": (lambda b: b("Gather", b.weight(F16, 30000, 768), b.input(I64, 8, 128), axis=0), None),
    "scan": (lambda b: b("CumSum", b.input(F32, 30, 1000), axis=1), None),
    "stages": (lambda b: b("Softmax", b.input(F16, 1, 50000), axis=1), None),
}  # fmt: skip


@pytest.mark.parametrize("target", [SM80, SM90], ids=["sm_80", "sm_90"])
def test_machine_code_has_wide_accesses_and_no_spills(target, tmp_path: Path):
    names = list(SAMPLE) if target == SM90 else ["pointwise", "norm", "pool", "transpose"]
    groups = {name: fused(SAMPLE[name][0], layout=SAMPLE[name][1]) for name in names}
    kernels = {name: kernels_of(group, LOOP, (), target) for name, group in groups.items()}
    found = aot([k for some in kernels.values() for k in some], target)
    for name in kernels.keys() - {"scan", "stages"}:
        for kernel in kernels[name]:
            text = sass(found[kernel.entry], tmp_path)
            assert any("LDG.E.128" in line for line in text), f"{name} loads element by element"
            if name != "mean":
                assert any("STG.E.128" in line for line in text), f"{name} stores element by element"
