"""The CPU contraction templates against float64 NumPy, on shapes that hit every tail and border."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dovetail.codegen import vmath
from dovetail.codegen.compiler import compile_c
from dovetail.codegen.kernel import ENTRY, entry_name
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, evaluate, sym
from dovetail.kernels.cpu import attention, contraction, conv, gemm, pack, pad, window, winograd
from dovetail.kernels.cpu.contraction import Axis
from dovetail.kernels.cpu.conv import ConvConfig
from dovetail.kernels.cpu.epilogue import Epilogue
from dovetail.kernels.cpu.gemm import GemmConfig
from dovetail.kernels.cpu.pad import PadConfig
from dovetail.kernels.cpu.text import DimTable, Isa
from dovetail.reference import packing
from dovetail.reference.attention import attention as attention_reference
from dovetail.reference.contraction import convolve, windows

TARGETS = [t for t in map(Target.parse, ("cpu:avx512", "cpu:avx2", "cpu:generic")) if t.supports_host()]
GUARD = np.float32(-77.25)


@functools.cache
def function(template: str, target: Target) -> ctypes._CFuncPtr:
    """Compile a kernel template and return its entry."""
    entry = entry_name(template)
    source = vmath.prelude(target) + template.replace(ENTRY, entry)
    return getattr(ctypes.CDLL(str(compile_c(source, target))), entry)


def run(
    template: str, target: Target, buffers: Sequence[np.ndarray], dims: Sequence[int] = (), threads: int = 1
) -> None:
    """Call a kernel once per thread number, in this thread."""
    entry = function(template, target)
    p = (ctypes.c_void_p * max(1, len(buffers)))(*(b.ctypes.data for b in buffers))
    d = (ctypes.c_int64 * max(1, len(dims)))(*dims)
    for tid in range(threads):
        entry(ctypes.c_int64(tid), ctypes.c_int64(threads), p, d)


def same_for_all_threads(
    template: str, target: Target, buffers: list[np.ndarray], out: int, dims: Sequence[int] = ()
) -> np.ndarray:
    """Run with 1, 2, 3 and 5 threads from the same start; assert bitwise equality and return the result."""
    start, results = buffers[out].copy(), []
    for threads in (1, 2, 3, 5):
        buffers[out][...] = start
        run(template, target, buffers, dims, threads)
        results.append(buffers[out].copy())
    for other in results[1:]:
        assert np.array_equal(results[0].view(np.int32), other.view(np.int32))
    return results[0]


def bias_relu(isa: Isa) -> Epilogue:
    """max(acc + bias, 0)."""
    v = isa.vector

    def body(acc: str, operands: Sequence[str]) -> tuple[list[str], list[str]]:
        return [f"{v} y = dt_max_{v}({acc} + {operands[0]}, dt_set_{v}(0.0f));"], ["y"]

    return Epilogue(1, 1, body)


def gelu_residual(isa: Isa, costly: bool) -> Epilogue:
    """gelu(acc + bias) + residual."""
    v = isa.vector

    def body(acc: str, operands: Sequence[str]) -> tuple[list[str], list[str]]:
        return [
            f"{v} x = {acc} + {operands[0]};",
            f"{v} y = x * 0.5f * (dt_erf_{v}(x * 0.70710678f) + 1.0f) + {operands[1]};",
        ], ["y"]

    return Epilogue(2, 1, body, costly)


def erf(x: np.ndarray) -> np.ndarray:
    import math

    return np.vectorize(math.erf)(x)


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 2e-6, depth: int = 1) -> None:
    """Compare relative to the largest result; rounding of sums grows with the root of their length."""
    tolerance *= max(1.0, (depth / 1024) ** 0.5)
    scale = np.abs(want).max() or 1.0
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() / scale < tolerance


GEMM_SHAPES = [
    (1, 1, 1), (1, 1000, 64), (3, 17, 5), (7, 33, 19), (13, 16, 31), (29, 64, 40), (57, 100, 23),
    (64, 96, 1024), (31, 130, 7), (2, 200, 3), (5, 48, 12), (128, 24, 9), (20, 8, 0), (9, 7, 300),
    (29, 84, 4800), (45, 40, 2500), (17, 33, 4999),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), GEMM_SHAPES)
def test_gemm_static(target: Target, m: int, n: int, k: int) -> None:
    """Static extents; output rows lie 3 floats apart so that stray writes show."""
    isa, rng, dims = Isa.of(target), np.random.default_rng(m * n + k), DimTable()
    a = rng.standard_normal((m, k), np.float32)
    b = rng.standard_normal((k, n), np.float32)
    bias = rng.standard_normal(n, np.float32)
    rows, vectors = gemm.default_tile(isa, m, n, k, k)
    config = GemmConfig(isa, (), Axis(m, k, (n + 3,), (0,)), n, k, rows, vectors, (1,), bias_relu(isa))
    packed = packing.pack_gemm_b(b, width=config.panels.width, lanes=config.pack_lanes)
    out = np.full((m, n + 3), GUARD, np.float32)
    got = same_for_all_threads(gemm.emit(config, dims), target, [a, packed, out, bias], 2)
    assert (got[:, n:] == GUARD).all()
    close(got[:, :n], np.maximum(a.astype(np.float64) @ b + bias, 0), depth=k)
    assert dims.entries == []


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), GEMM_SHAPES)
def test_gemm_symbolic(target: Target, m: int, n: int, k: int) -> None:
    """All extents at run time, residual in place, one kernel source for all."""
    isa, rng, dims = Isa.of(target), np.random.default_rng(m + n * k), DimTable()
    M, N, K = sym("M"), sym("N"), sym("K")
    rows, vectors = gemm.default_tile(isa, M, N, K, K)
    epilogue = gelu_residual(isa, costly=True)
    config = GemmConfig(isa, (), Axis(M, K, (N,), (0, N)), N, K, rows, vectors, (1, 1), epilogue)
    a = rng.standard_normal((m, k), np.float32)
    b = rng.standard_normal((k, n), np.float32)
    bias = rng.standard_normal(n, np.float32)
    residual = rng.standard_normal((m, n), np.float32)
    packed = packing.pack_gemm_b(b, width=config.panels.width, lanes=config.pack_lanes)
    out = residual.copy()
    source = gemm.emit(config, dims)
    values = [evaluate(e, {"M": m, "N": n, "K": k}) for e in dims.entries]
    got = same_for_all_threads(source, target, [a, packed, out, bias, out], 2, values)
    x = a.astype(np.float64) @ b + bias
    close(got, x * 0.5 * (erf(x * np.sqrt(0.5)) + 1) + residual, depth=k)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("costly", [False, True])
def test_gemm_sums_deep_panels_in_parts(target: Target, costly: bool) -> None:
    """Panels beyond the L2 budget are cut along k; raw sums wait in between, the in-place residual comes last."""
    isa, rng, dims = Isa.of(target), np.random.default_rng(5), DimTable()
    m, n, k = 31, 48, 5000
    a = rng.standard_normal((m, k), np.float32)
    b = rng.standard_normal((k, n), np.float32)
    bias = rng.standard_normal(n, np.float32)
    residual = rng.standard_normal((m, n), np.float32)
    epilogue = gelu_residual(isa, costly)
    config = GemmConfig(isa, (), Axis(m, k, (n,), (0, n)), n, k, 6, 2, (1, 1), epilogue)
    packed = packing.pack_gemm_b(b, width=config.panels.width, lanes=config.pack_lanes)
    out = residual.copy()
    source = gemm.emit(config, dims)
    if isa.lanes >= 8:
        assert "_sum(" in source and "_last(" in source
    got = same_for_all_threads(source, target, [a, packed, out, bias, out], 2)
    x = a.astype(np.float64) @ b + bias
    close(got, x * 0.5 * (erf(x * np.sqrt(0.5)) + 1) + residual, depth=k)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gemm_of_unknown_rows_sums_deep_panels_in_parts(target: Target) -> None:
    """One source for few rows (one chunk) and for many (several chunks), some of one tile only."""
    isa, rng, dims = Isa.of(target), np.random.default_rng(6), DimTable()
    n, k = 33, 5000
    config = GemmConfig(isa, (), Axis(sym("M"), k, (n,), (0,)), n, k, 6, 2, (1,), bias_relu(isa))
    source = gemm.emit(config, dims)
    assert ("_sum(" in source) == (isa.lanes >= 8 or 4 * k * config.panels.width > contraction.DEPTH_BYTES)
    b = rng.standard_normal((k, n), np.float32)
    bias = rng.standard_normal(n, np.float32)
    packed = packing.pack_gemm_b(b, width=config.panels.width, lanes=config.pack_lanes)
    for m in (0, 1, 5, 14, 31, 160, 200):
        a = rng.standard_normal((m, k), np.float32)
        out = np.full((m, n), GUARD, np.float32)
        values = [evaluate(e, {"M": m}) for e in dims.entries]
        got = same_for_all_threads(source, target, [a, packed, out, bias], 2, values)
        if m:
            close(got, np.maximum(a.astype(np.float64) @ b + bias, 0), depth=k)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_gemm_batched(target: Target) -> None:
    """Batches of B, a broadcast batch of A, and a per-row scalar operand."""
    isa, rng, dims = Isa.of(target), np.random.default_rng(0), DimTable()
    h, g, m, k, n = 3, 2, 17, 20, 37
    a = rng.standard_normal((h, m, k), np.float32)
    b = rng.standard_normal((g, h, k, n), np.float32)
    row = rng.standard_normal((m,), np.float32)

    def scale(acc: str, operands: Sequence[str]) -> tuple[list[str], list[str]]:
        return [], [f"{acc} * {operands[0]}"]

    rows, vectors = gemm.default_tile(isa, m, n, k, k)
    config = GemmConfig(isa, (), Axis(m, k, (n,), (1,)), n, k, rows, vectors, (0,), Epilogue(1, 1, scale))
    block = k * int(config.panels.packed_columns)
    batch = (Axis(g, 0, (h * m * n,), (0,), h * block), Axis(h, m * k, (m * n,), (0,), block))
    config = GemmConfig(isa, batch, config.rows, n, k, rows, vectors, (0,), config.epilogue)
    packed = packing.pack_gemm_b(b, width=config.panels.width, lanes=config.pack_lanes)
    out = np.full((g, h, m, n), GUARD, np.float32)
    got = same_for_all_threads(gemm.emit(config, dims), target, [a, packed, out, row], 2)
    close(got, (a.astype(np.float64) @ b) * row[:, None])


# (batch, channels, filters, group, in, kernel, strides, pads, dilations)
CONVS = [
    (1, 3, 20, 1, (23, 23), (7, 7), (2, 2), (3, 3), (1, 1)),
    (2, 16, 40, 1, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 24, 64, 1, (14, 13), (1, 1), (1, 1), (0, 0), (1, 1)),
    (3, 8, 33, 1, (9, 11), (1, 1), (2, 2), (0, 0), (1, 1)),
    (1, 5, 7, 1, (12, 12), (3, 3), (1, 1), (2, 2), (2, 2)),
    (1, 48, 48, 2, (8, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    (2, 12, 12, 4, (5, 6), (3, 2), (1, 2), (1, 0), (2, 1)),
    (1, 6, 4, 1, (33,), (5,), (2,), (2,), (1,)),
    (1, 4, 6, 1, (5, 6, 7), (3, 2, 3), (1, 1, 2), (1, 0, 1), (1, 1, 1)),
    (1, 32, 64, 1, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    (1, 512, 16, 1, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    (1, 528, 40, 1, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 580, 34, 2, (6, 5), (1, 9), (1, 1), (0, 4), (1, 1)),
]


def conv_case(target: Target, case: tuple, symbolic: bool, pitch: int) -> None:
    batch, channels, filters, group, space, kernel, strides, pads, dilations = case
    isa, rng = Isa.of(target), np.random.default_rng(channels * filters)
    x = rng.standard_normal((batch, channels, *space), np.float32)
    w = rng.standard_normal((filters, channels // group, *kernel), np.float32)
    bias = rng.standard_normal(filters, np.float32)
    want = convolve(x.astype(np.float64), w.astype(np.float64), strides, (*pads, *pads), dilations, group)
    out = want.shape[2:]
    residual = rng.standard_normal((batch, *out, filters + pitch), np.float32)
    moved = np.moveaxis(want, 1, -1) + bias + residual[..., :filters]
    names = [sym(n) for n in "DHW"[-len(space) :]]
    env = {"N": batch, **{str(s): n for s, n in zip(names, space, strict=True)}}
    n: Dim = sym("N") if symbolic else batch
    extents: tuple[Dim, ...] = tuple(names) if symbolic else space
    padded = tuple(e + 2 * p for e, p in zip(extents, pads, strict=True))
    outs = tuple(
        (e - (k - 1) * d - 1) // s + 1 for e, k, d, s in zip(padded, kernel, dilations, strides, strict=True)
    )
    place = pad.dense(padded, channels + pitch)
    target_place = pad.dense(outs, filters + pitch)
    pd = DimTable()
    padding = PadConfig(n, extents, channels, tuple((p, p) for p in pads), pad.dense(extents, channels), place)
    buffer = np.full((batch, *(s + 2 * p for s, p in zip(space, pads, strict=True)), channels + pitch), GUARD, np.float32)
    source = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    text = pad.emit(padding, pd)
    buffer = same_for_all_threads(text, target, [source, buffer], 1, [evaluate(e, env) for e in pd.entries])
    expected = np.pad(source, ((0, 0), *((p, p) for p in pads), (0, 0)))
    assert np.array_equal(buffer[..., :channels], expected)
    assert (buffer[..., channels:] == GUARD).all()

    def body(acc: str, operands: Sequence[str]) -> tuple[list[str], list[str]]:
        return [], [f"{acc} + {operands[0]} + {operands[1]}"]

    taps = int(np.prod(kernel))
    rows, vectors = conv.default_tile(
        isa, outs, filters // group, strides, place, taps * channels // group, taps == 1 and set(strides) == {1}
    )
    none = conv.Image(0, (0,) * len(space))
    config = ConvConfig(
        isa, n, channels, filters, group, kernel, strides, dilations, outs, place, (target_place,), rows, vectors,
        (none, target_place), (1, 1), Epilogue(2, 1, body),
    )  # fmt: skip
    packed = packing.pack_conv(w, group=group, width=config.panels.width, lanes=isa.lanes)
    table = DimTable()
    text = conv.emit(config, table)
    values = [evaluate(e, env) for e in table.entries]
    result = residual.copy()
    got = same_for_all_threads(text, target, [buffer, packed, result, bias, result], 2, values)
    assert np.array_equal(got[..., filters:], residual[..., filters:])
    close(got[..., :filters], moved, depth=taps * channels // group)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv_static(target: Target, case: tuple) -> None:
    conv_case(target, case, symbolic=False, pitch=0)


@pytest.mark.parametrize("target", TARGETS[:1], ids=str)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv_symbolic_and_sliced(target: Target, case: tuple) -> None:
    """Run-time batch and image, and pixels that are slices of wider ones."""
    conv_case(target, case, symbolic=True, pitch=5)


# (batch, channels, space, kernel, strides, pads (top, left, bottom, right), dilations)
WINDOWS = [
    (1, 16, (7, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    (2, 24, (14, 15), (5, 5), (1, 1), (2, 2, 2, 2), (1, 1)),
    (1, 35, (29, 31), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    (1, 5, (9, 40), (3, 2), (1, 3), (0, 1, 2, 0), (2, 1)),
    (3, 8, (4, 3), (7, 7), (1, 1), (3, 3, 3, 3), (1, 1)),
    (1, 40, (12, 12), (2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    (1, 17, (1, 30), (1, 9), (1, 1), (0, 4, 0, 4), (1, 2)),
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("case", WINDOWS, ids=str)
@pytest.mark.parametrize("mode", [window.DEPTHWISE, window.MAXIMUM, window.AVERAGE])
def test_window(target: Target, case: tuple, mode: str) -> None:
    """Static and run-time extents give the same bits, and the right ones."""
    batch, channels, space, kernel, strides, pads, dilations = case
    isa, rng = Isa.of(target), np.random.default_rng(channels)
    x = rng.standard_normal((batch, channels, *space), np.float32)
    w = rng.standard_normal((channels, 1, *kernel), np.float32)
    low, high = pads[:2], pads[2:]
    margin = ((0, 0), (0, 0), *zip(low, high, strict=True))
    fill = -np.inf if mode == window.MAXIMUM else 0
    view = windows(np.pad(x.astype(np.float64), margin, constant_values=fill), kernel, strides, dilations)
    ones = windows(np.pad(np.ones_like(x), margin), kernel, strides, dilations)
    want = {
        window.DEPTHWISE: lambda: np.einsum("nchwij,cij->nchw", view, w[:, 0]),
        window.MAXIMUM: lambda: view.max((-1, -2)),
        window.AVERAGE: lambda: view.sum((-1, -2)) / ones.sum((-1, -2)),
    }[mode]()
    out = want.shape[2:]
    residual = rng.standard_normal((batch, *out, channels), np.float32)
    want = np.moveaxis(want, 1, -1) + residual

    def body(acc: str, operands: Sequence[str]) -> tuple[list[str], list[str]]:
        return [], [f"{acc} + {operands[0]}"]

    results = []
    for symbolic in (False, True):
        h, wd = (sym("H"), sym("W")) if symbolic else space
        oh, ow = (
            (e + low[n] + high[n] - (kernel[n] - 1) * dilations[n] - 1) // strides[n] + 1 for n, e in enumerate((h, wd))
        )
        place = pad.dense((oh, ow), channels)
        config = window.WindowConfig(
            isa, mode, batch, channels, kernel, strides, dilations, tuple(zip(low, high, strict=True)), (h, wd), (oh, ow),
            pad.dense((h, wd), channels), (place,), window.default_pixels(isa, mode, kernel), (place,), (1,),
            epilogue=Epilogue(1, 1, body, costly=symbolic),
        )  # fmt: skip
        table = DimTable()
        text = window.emit(config, table)
        values = [evaluate(e, {"H": space[0], "W": space[1]}) for e in table.entries]
        result = residual.copy()
        image = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        buffers = [image, result, result]
        if mode == window.DEPTHWISE:
            buffers.insert(1, packing.pack_depthwise(w, lanes=isa.lanes))
        out_at = len(buffers) - 2
        results.append(same_for_all_threads(text, target, buffers, out_at, values))
    close(results[0], want)
    assert np.array_equal(results[0], results[1])


# (batch, channels, filters, (H, W), ((top, bottom), (left, right)))
WINOGRADS = [
    (1, 16, 32, (14, 14), ((1, 1), (1, 1))),
    (2, 20, 39, (7, 9), ((1, 1), (1, 1))),
    (1, 5, 70, (13, 30), ((0, 1), (2, 0))),
    (1, 32, 16, (4, 3), ((1, 1), (1, 1))),
    (3, 1024, 8, (6, 6), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("case", WINOGRADS, ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("tile", [4, 2])
def test_winograd(target: Target, case: tuple, symbolic: bool, tile: int) -> None:
    batch, channels, filters, space, pads = case
    isa, rng = Isa.of(target), np.random.default_rng(channels)
    x = rng.standard_normal((batch, channels, *space), np.float32)
    w = rng.standard_normal((filters, channels, 3, 3), np.float32)
    bias = rng.standard_normal(filters, np.float32)
    low, high = zip(*pads, strict=True)
    want = convolve(x.astype(np.float64), w.astype(np.float64), (1, 1), (*low, *high), (1, 1), 1)
    out = want.shape[2:]
    want = np.maximum(np.moveaxis(want, 1, -1) + bias, 0)
    n: Dim = sym("N") if symbolic else batch
    h, wd = (sym("H"), sym("W")) if symbolic else space
    outs = (h + sum(pads[0]) - 2, wd + sum(pads[1]) - 2)
    tiles = n * -(-outs[0] // tile) * -(-outs[1] // tile) if not symbolic else sym("T")
    config = winograd.WinogradConfig(
        isa, n, channels, filters, pads, (h, wd), outs, pad.dense((h, wd), channels), (pad.dense(outs, filters),), 2,
        winograd.default_block(channels, tiles, tile), (conv.Image(0, (0, 0)),), (1,), bias_relu(isa), tile,
    )  # fmt: skip
    table = DimTable()
    text = winograd.emit(config, table)
    env = {"N": batch, "H": space[0], "W": space[1]}
    values = [evaluate(e, env) for e in table.entries]
    packed = packing.pack_winograd(w, width=config.panels.width, lanes=isa.lanes, tile=tile)
    result = np.full((batch, *out, filters), GUARD, np.float32)
    scratch = np.full(evaluate(config.workspace_bytes, env) // 4, np.nan, np.float32)
    image = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    got = same_for_all_threads(text, target, [image, packed, result, bias, scratch], 2, values)
    close(got, want, 1e-4 if tile == 4 else 5e-6)


# (batch, heads, key heads, S, T, D, Dv, options)
ATTENTIONS: list[tuple[int, int, int, int, int, int, int, dict[str, Any]]] = [
    (1, 2, 2, 7, 9, 16, 16, {}),
    (2, 4, 2, 33, 33, 20, 24, {"causal": True}),
    (1, 3, 1, 1, 70, 64, 40, {"mask": attention.ADDED}),
    (2, 2, 2, 40, 45, 8, 5, {"mask": attention.BOOLEAN, "softcap": 3.0}),
    (1, 2, 2, 30, 50, 12, 33, {"causal": True, "past": 20, "left": 6}),
    (2, 2, 1, 19, 31, 12, 17, {"causal": True, "has_lengths": True, "mask": attention.BOOLEAN}),
    (1, 1, 1, 17, 17, 4, 4, {"left": 2, "right": 3}),
    (6, 2, 2, 10, 11, 8, 7, {"mask": attention.ADDED, "mask_batch": 3}),
]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_attention(target: Target, case: tuple, symbolic: bool) -> None:
    """Against the reference in float64; some rows see nothing and must be zero."""
    b, h, g, s, t, dq, dv, options = case
    isa, rng = Isa.of(target), np.random.default_rng(s * t)
    q = rng.standard_normal((b, h, s, dq), np.float32)
    k = rng.standard_normal((b, g, t, dq), np.float32)
    v = rng.standard_normal((b, g, t, dv), np.float32)
    mask, lengths = None, None
    if options.get("mask") == attention.ADDED:
        mask = rng.standard_normal((options.get("mask_batch", b), 1, s, t), np.float32)
    elif options.get("mask") == attention.BOOLEAN:
        mask = rng.random((b, h, s, t)) < 0.6
        mask[:, :, 1] = False
    if options.get("has_lengths"):
        lengths = rng.integers(1, t + 1, b)
    want = attention_reference(
        q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), mask, lengths, scale=0.3,
        is_causal=options.get("causal", False), softcap=options.get("softcap", 0.0), past=options.get("past", 0),
        left_window=options.get("left", -1), right_window=options.get("right", -1),
    )  # fmt: skip
    B, S, T = (sym("B"), sym("S"), sym("T")) if symbolic else (b, s, t)
    strides = (0, 0, 0)
    if mask is not None:
        strides = (mask.shape[1] * S * T, S * T if mask.shape[1] > 1 else 0, T)
    config = attention.AttentionConfig(
        isa, B, h, g, S, T, dq, dv, 0.3, (h * S * dq, S * dq, dq), (g * T * dv, T * dv, dv), (S * h * dv, dv, h * dv),
        attention.default_rows(isa, S), mask_strides=strides, mask_keys=T, **options,
    )  # fmt: skip
    packing_config = pack.PackConfig(((B, g * T * dq), (g, T * dq)), dq, config.key_panels, 1, dq)
    env = {"B": b, "S": s, "T": t}
    pd, ad = DimTable(), DimTable()
    packed = np.full(evaluate(packing_config.floats, env), GUARD, np.float32)
    text = pack.emit(packing_config, pd)
    packed = same_for_all_threads(text, target, [k, packed], 1, [evaluate(e, env) for e in pd.entries])
    width = config.key_panels.width
    assert np.array_equal(packed.reshape(b, g, -1), packing.pack_panels(np.swapaxes(k, -1, -2), width, width))
    out = np.full((b, s, h, dv), GUARD, np.float32)
    scratch = np.full(evaluate(config.workspace_bytes, env) // 4, np.nan, np.float32)
    buffers = [q, packed, v, out, *(x for x in (mask, lengths) if x is not None), scratch]
    text = attention.emit(config, ad)
    got = same_for_all_threads(text, target, buffers, 3, [evaluate(e, env) for e in ad.entries])
    close(got.transpose(0, 2, 1, 3), want)
