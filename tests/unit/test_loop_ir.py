"""Hand-built loop kernels: C against NumPy, thread counts, index simplification."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail.codegen.index import Ranges
from dovetail.codegen.loop_ir import (
    Buffer,
    LoopKernel,
    Nest,
    Scope,
    Store,
    call,
    const,
    index_value,
    load,
    reduce,
    row,
    row_ref,
)
from dovetail.codegen.print_c import print_kernel
from dovetail.codegen.print_numpy import run_numpy
from dovetail.codegen.schedule import normalise, schedule
from dovetail.core.dims import sym
from dovetail.core.dtypes import BF16, F16, F32, I64
from dovetail.ir.layout import channels_last, row_major
from tests.unit.loop_harness import run_c


def buffer(role, index, shape, dtype=F32, layout=None):
    layout = layout or row_major(len(shape))
    return Buffer(role, index, dtype, shape, layout.strides(shape))


def check(kernel, inputs, out_size, out_dtype=np.float32, env=None, tolerance=2e-6):
    env = env or {}
    expected = np.zeros(out_size, out_dtype)
    run_numpy(kernel, [*inputs, expected], env)
    printed = print_kernel(kernel)
    results = []
    for threads in (1, 2, 3, 7):
        got = np.full(out_size, 77, out_dtype)
        run_c(printed, [*inputs, got], env, threads)
        results.append(got)
    for got in results[1:]:
        np.testing.assert_array_equal(results[0], got)
    np.testing.assert_allclose(
        results[0].astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
    )
    return printed, expected


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).ravel()


@pytest.mark.parametrize("n", [0, 1, 3, 5000])
def test_pointwise_with_run_time_extent_merges_to_one_loop(n):
    s = Scope()
    shape = (sym("N"), 7, 3)
    x, y, o = buffer("in", 0, shape), buffer("in", 1, (7, 3)), buffer("out", 0, shape)
    i, j, k = (s.axis(e) for e in shape)
    at = (i.index, j.index, k.index)
    a, b = load(s, x, x.offset(at)), load(s, y, y.offset(at[1:]))
    value = call("exp", (call("sub", (a, b), F32),), F32)
    kernel = LoopKernel((x, y, o), (Nest((i, j, k), (Store(o, o.offset(at), value),)),), s)
    assert len(normalise(kernel.nests[0], s).axes) == 2
    check(kernel, [random(n, 7, 3), random(7, 3)], n * 21, env={"N": n})


def softmax(shape, axis, layout=None):
    s = Scope()
    layout = layout or row_major(len(shape))
    x, o = buffer("in", 0, shape, layout=layout), buffer("out", 0, shape, layout=layout)
    axes = [s.axis(e) for e in shape]
    at = [a.index for a in axes]

    def element(inner):
        index = [inner.index if d == axis else v for d, v in enumerate(at)]
        return load(s, x, x.offset(index))

    k, m, r = s.axis(shape[axis]), s.axis(shape[axis]), s.axis(shape[axis])
    top = reduce(s, "max", (k,), element(k))
    exps = row((m,), call("exp", (call("sub", (element(m), top), F32),), F32))
    total = reduce(s, "sum", (r,), row_ref(s, exps, (r.index,)))
    value = call("div", (row_ref(s, exps, (at[axis],)), total), F32)
    order = tuple(axes[d] for d in layout.order)
    return LoopKernel((x, o), (Nest(order, (Store(o, o.offset(at), value),)),), s)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 33), 1), ((5, 33), 0), ((3, 7, 300), 1), ((2, 1, 4), 1), ((4, 1), 1), ((2, 6000), 1)],
)
def test_softmax_rows_and_columns(shape, axis):
    x = random(*shape)
    _, expected = check(softmax(shape, axis), [x], x.size)
    e = np.exp(x.reshape(shape) - x.reshape(shape).max(axis, keepdims=True))
    np.testing.assert_allclose(expected.reshape(shape), e / e.sum(axis, keepdims=True), rtol=1e-6)


def test_softmax_over_channels_of_channels_last():
    shape = (2, 19, 3, 5)
    check(softmax(shape, 1, channels_last(4)), [random(*shape)], 2 * 19 * 15)


def test_softmax_of_a_long_row_of_run_time_length_uses_workspace():
    kernel = softmax((3, sym("K")), 1)
    printed, _ = check(kernel, [random(3, 513)], 3 * 513, env={"K": 513})
    assert printed.workspace_bytes != 0
    assert [p.role for p in printed.params] == ["in", "out", "workspace"]


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("kind", ["sum", "max", "min", "prod"])
def test_reductions(axes, kind):
    shape = (5, 13, 70)
    s = Scope()
    out_shape = tuple(n for d, n in enumerate(shape) if d not in axes)
    x, o = buffer("in", 0, shape), buffer("out", 0, out_shape)
    outer = [s.axis(n) for n in out_shape]
    inner = {d: s.axis(shape[d]) for d in axes}
    free = iter(outer)
    at = [inner[d].index if d in axes else next(free).index for d in range(3)]
    value = reduce(s, kind, tuple(inner.values()), load(s, x, x.offset(at)))
    store = Store(o, o.offset([a.index for a in outer]), value)
    kernel = LoopKernel((x, o), (Nest(tuple(outer), (store,)),), s)
    data = random(*shape)
    check(kernel, [data], int(np.prod(out_shape, dtype=int)), tolerance=2e-5)
    data[17] = np.nan
    if kind in ("max", "min"):
        check(kernel, [data], int(np.prod(out_shape, dtype=int)))


@pytest.mark.parametrize("layout", [None, channels_last(4)])
def test_pooling_window_with_padding(layout):
    s = Scope()
    shape, out_shape = (2, 5, 9, 11), (2, 5, 5, 6)
    layout = layout or row_major(4)
    x = buffer("in", 0, shape, layout=layout)
    o = buffer("out", 0, out_shape, layout=layout)
    n, c, h, w = axes = [s.axis(e) for e in out_shape]
    kh, kw = s.axis(3), s.axis(3)
    ih, iw = h.index * 2 + kh.index - 1, w.index * 2 + kw.index - 1
    guards = (ih, 8 - ih, iw, 10 - iw)
    element = load(s, x, x.offset((n.index, c.index, ih, iw)), guards)
    value = reduce(s, "max", (kh, kw), element, guards)
    order = tuple(axes[d] for d in layout.order)
    store = Store(o, o.offset([a.index for a in axes]), value)
    check(LoopKernel((x, o), (Nest(order, (store,)),), s), [random(*shape)], 2 * 5 * 30)


@pytest.mark.parametrize("shape", [(3, 5), (64, 100), (1, 7), (130, 257)])
def test_transpose_is_tiled(shape):
    s = Scope()
    x, o = buffer("in", 0, shape), buffer("out", 0, shape[::-1])
    i, j = s.axis(shape[1]), s.axis(shape[0])
    store = Store(o, o.offset((i.index, j.index)), load(s, x, x.offset((j.index, i.index))))
    kernel = LoopKernel((x, o), (Nest((i, j), (store,)),), s)
    if min(shape) > 1:
        assert schedule(normalise(kernel.nests[0], s), s).tile == i
    data = random(*shape)
    _, expected = check(kernel, [data], data.size, tolerance=0)
    np.testing.assert_array_equal(expected.reshape(shape[::-1]), data.reshape(shape).T)


def test_space_to_depth_divisions_fold_away():
    s = Scope()
    x, o = buffer("in", 0, (6, 8)), buffer("out", 0, (3, 4, 2, 2))
    i, j = s.axis(6), s.axis(8)
    at = (i.index // 2, j.index // 2, i.index % 2, j.index % 2)
    store = Store(o, o.offset(at), load(s, x, x.offset((i.index, j.index))))
    kernel = LoopKernel((x, o), (Nest((i, j), (store,)),), s)
    data = random(6, 8)
    printed, expected = check(kernel, [data], 48, tolerance=0)
    addresses = [line for line in printed.source.splitlines() if "in0[" in line or "out0[" in line]
    assert addresses and not any("%" in line or "/" in line for line in addresses)
    want = data.reshape(3, 2, 4, 2).transpose(0, 2, 1, 3).ravel()
    np.testing.assert_array_equal(expected, want)


def test_gather_reads_indices_from_memory():
    s = Scope()
    table, idx, o = buffer("in", 0, (9, 4)), buffer("in", 1, (6,), I64), buffer("out", 0, (6, 4))
    i, j = s.axis(6), s.axis(4)
    raw = load(s, idx, i.index)
    zero = const(0, I64)
    from dovetail.core.dtypes import BOOL

    wrapped = call("add", (raw, const(9, I64)), I64)
    fixed = call("select", (call("lt", (raw, zero), BOOL), wrapped, raw), I64)
    store = Store(o, o.offset((i.index, j.index)), load(s, table, table.offset((s.data(fixed), j.index))))
    indices = np.array([0, 8, -1, 3, -9, 2], np.int64)
    data = random(9, 4)
    kernel = LoopKernel((table, idx, o), (Nest((i, j), (store,)),), s)
    _, expected = check(kernel, [data, indices], 24, tolerance=0)
    np.testing.assert_array_equal(expected.reshape(6, 4), data.reshape(9, 4)[indices])


@pytest.mark.parametrize("axis", [0, 1])
def test_scan(axis):
    s = Scope()
    x, o = buffer("in", 0, (4, 37)), buffer("out", 0, (4, 37))
    i, j = s.axis(4), s.axis(37)
    k = s.axis((4, 37)[axis])
    at = (k.index, j.index) if axis == 0 else (i.index, k.index)
    sums = row((k,), load(s, x, x.offset(at)), scan=True)
    value = row_ref(s, sums, ((i, j)[axis].index,))
    kernel = LoopKernel((x, o), (Nest((i, j), (Store(o, o.offset((i.index, j.index)), value),)),), s)
    data = random(4, 37)
    _, expected = check(kernel, [data], 148)
    np.testing.assert_allclose(expected.reshape(4, 37), data.reshape(4, 37).cumsum(axis), rtol=1e-5)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_narrow_floats_round_once(dtype):
    s = Scope()
    x, o = buffer("in", 0, (1000,), dtype), buffer("out", 0, (1000,), dtype)
    i = s.axis(1000)
    value = call("mul", (load(s, x, i.index), const(1.1, F32)), F32)
    kernel = LoopKernel((x, o), (Nest((i,), (Store(o, i.index, value),)),), s)
    data = random(1000).astype(dtype.numpy)
    check(kernel, [data], 1000, dtype.numpy, tolerance=0)


def test_iota_and_two_outputs_of_different_shape():
    s = Scope()
    x, rows, o = buffer("in", 0, (6, 50)), buffer("out", 0, (6,)), buffer("out", 1, (6, 50))
    i, j, k = s.axis(6), s.axis(50), s.axis(50)
    total = reduce(s, "sum", (k,), load(s, x, x.offset((i.index, k.index))))
    value = call("add", (total, call("cast", (index_value(s, j.index),), F32)), F32)
    first = Nest((i,), (Store(rows, i.index, total),))
    second = Nest((i, j), (Store(o, o.offset((i.index, j.index)), value),))
    kernel = LoopKernel((x, rows, o), (first, second), s)
    data = random(6, 50)
    got_rows, got = np.zeros(6, np.float32), np.zeros(300, np.float32)
    run_c(print_kernel(kernel), [data, got_rows, got], {}, 2)
    want = data.reshape(6, 50).sum(1)
    np.testing.assert_allclose(got_rows, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        got.reshape(6, 50), want[:, None] + np.arange(50, dtype=np.float32), rtol=1e-5, atol=1e-5
    )


def test_index_ranges():
    i, j, n = sym("@0"), sym("@1"), sym("N")
    r = Ranges({"@0": n, "@1": 4})
    assert r.simplify((i * 4 + j) // 4) == i
    assert r.simplify((i * 4 + j) % 4) == j
    assert r.simplify((j * n + i) // n) == j
    assert r.simplify((j * n + i) % n) == i
    assert r.simplify(4 * ((i + j) // 4) + (i + j) % 4) == i + j
    assert r.non_negative(n - 1 - i) and not r.non_negative(j - 1)
