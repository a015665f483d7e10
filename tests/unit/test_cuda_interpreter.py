"""The interpreter of Triton kernels: what it computes, and that it leaves Triton as it was."""

from __future__ import annotations

import importlib

import ml_dtypes
import numpy as np
import pytest

from dovetail.codegen.kernel import Kernel, Launch, Param, TensorMap, make_triton_kernel
from dovetail.codegen.triton_interpreter import interpret
from dovetail.core.dims import sym
from dovetail.core.errors import ExecutionError


def kernel(body: str, types: tuple[str, ...], dims: tuple[str, ...] = (), helpers: str = "", maps: tuple = ()) -> Kernel:
    names = [f"p{i}" for i in range(len(types))] + list(dims)
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    return make_triton_kernel(
        f"{helpers}@triton.jit\ndef @ENTRY@({', '.join(names)}):\n{lines}\n",
        params=[Param("in", i) for i in range(len(types))], dims=[sym(d) for d in dims],
        launch=Launch((1, 1, 1), 4, 1, types, (True,) * len(types), maps), tactic="test",
    )  # fmt: skip


def run(k: Kernel, arrays: list[np.ndarray], dims: tuple[int, ...] = (), grid: tuple[int, int, int] = (1, 1, 1), **more) -> None:
    interpret(k, [a.ctypes.data for a in arrays], dims, grid, **more)


def random(*shape: int, kind: type = np.float32) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(kind)


def test_masked_copy_touches_nothing_outside():
    k = kernel("i = tl.program_id(0) * 64 + tl.arange(0, 64)\ntl.store(p1 + i, tl.load(p0 + i, mask=i < d0) * 2, mask=i < d0)",
               ("fp16", "fp16"), ("d0",))  # fmt: skip
    x, y = random(100, kind=np.float16), np.zeros(128, np.float16)
    run(k, [x, y], (100,), (2, 1, 1))
    np.testing.assert_array_equal(y[:100], x * 2)
    assert not y[100:].any()


def test_waits_do_nothing():
    k = kernel("gdc_wait()\ntl.store(p0, tl.load(p0) + 1)\ngdc_launch_dependents()", ("fp32",))
    x = np.ones(1, np.float32)
    run(k, [x])
    assert x[0] == 2


@pytest.mark.parametrize(
    "name", ["expm1", "log1p", "tanh", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "rint", "trunc"]
)
def test_device_library(name):
    k = kernel(f"i = tl.arange(0, 32)\ntl.store(p1 + i, libdevice.{name}(tl.load(p0 + i)))", ("fp32", "fp32"))
    x, y = np.linspace(-1, 1, 32, dtype=np.float32), np.zeros(32, np.float32)
    run(k, [x, y])
    library = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh"}
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, getattr(np, library.get(name, name))(x))


def test_device_library_of_two_operands_broadcasts():
    k = kernel("i = tl.arange(0, 8)\nx = tl.load(p0 + i)\n"
               "tl.store(p1 + i[:, None] * 8 + i[None, :], libdevice.pow(x[:, None], x[None, :]) + libdevice.copysign(x, -1.0)[None, :])",
               ("fp32", "fp32"))  # fmt: skip
    x, y = np.arange(1, 9, dtype=np.float32), np.zeros((8, 8), np.float32)
    run(k, [x, y])
    np.testing.assert_array_equal(y, x[:, None] ** x[None, :] - x)


def test_library_functions_of_triton():
    k = kernel(
        """
i = tl.arange(0, 64)
x = tl.load(p0 + i)
top, place = tl.max(x, 0, return_indices=True)
s = tl.sum(tl.reshape(x, (8, 8)), axis=1, keep_dims=True)
tl.store(p1 + i, tl.sigmoid(x) + top + place + tl.cumsum(x, 0))
tl.store(p2 + tl.arange(0, 8)[:, None], s + tl.zeros((8, 1), tl.float32))
tl.store(p3 + i, tl.sort(x))
""",
        ("fp32",) * 4,
    )
    x, y, s, z = random(64), np.zeros(64, np.float32), np.zeros(8, np.float32), np.zeros(64, np.float32)
    run(k, [x, y, s, z])
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-x)) + x.max() + x.argmax() + np.cumsum(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(s, x.reshape(8, 8).sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(z, np.sort(x))


def test_reductions_with_functions_of_the_kernel():
    helpers = "@triton.jit\ndef @ENTRY@_nan_max(a, b):\n    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)\n\n"
    helpers += "@triton.jit\ndef @ENTRY@_first(a, i, b, j):\n    left = (a > b) | ((a == b) & (i < j))\n"
    helpers += "    return tl.where(left, a, b), tl.where(left, i, j)\n\n"
    k = kernel(
        """
i = tl.arange(0, 16)
x = tl.load(p0 + i)
tl.store(p1, tl.reduce(x, 0, @ENTRY@_nan_max))
best, at = tl.reduce((tl.where(i == 7, 0.0, x), i), 0, @ENTRY@_first)
tl.store(p1 + 1, best)
tl.store(p1 + 2, at.to(tl.float32))
tl.store(p2 + i, tl.associative_scan(x, 0, @ENTRY@_nan_max, reverse=True))
""",
        ("fp32",) * 3, helpers=helpers,
    )  # fmt: skip
    x, y, z = np.array([1, 5, 2, 5, 0, 3, 4, np.nan] + [1] * 8, np.float32), np.zeros(3, np.float32), np.zeros(16, np.float32)
    run(k, [x, y, z])
    assert np.isnan(y[0]) and tuple(y[1:]) == (5, 1)
    np.testing.assert_array_equal(z, np.maximum.accumulate(x[::-1])[::-1])


@pytest.mark.parametrize(("kind", "name"), [(np.float16, "fp16"), (ml_dtypes.bfloat16, "bf16"), (np.float32, "fp32")])
def test_dot_sums_in_fp32_and_rounds_once(kind, name):
    k = kernel(
        """
i = tl.arange(0, 16)
at = i[:, None] * 16 + i[None, :]
a = tl.load(p0 + at)
acc = tl.zeros((16, 16), tl.float32)
for _ in range(0, d0):
    acc = tl.dot(a, tl.trans(a), acc, input_precision="ieee")
tl.store(p1 + at, acc.to(p1.dtype.element_ty))
""",
        (name, name), ("d0",),
    )  # fmt: skip
    x, y = random(16, 16).astype(kind), np.zeros((16, 16), kind)
    run(k, [x.view(np.uint16) if name == "bf16" else x, y], (3,))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y.astype(np.float64), 3 * wide @ wide.T, rtol=2.0 ** (-8 if name == "bf16" else -10))


def test_bfloat16_rounds_to_nearest_even():
    k = kernel("i = tl.arange(0, 64)\ntl.store(p1 + i, tl.load(p0 + i).to(tl.bfloat16))", ("fp32", "bf16"))
    x, y = random(64), np.zeros(64, ml_dtypes.bfloat16)
    x[0] = np.nan
    run(k, [x, y])
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_tensor_maps_clip_at_the_edge():
    shape = TensorMap((sym("M"), 24), (40, 1), (16, 16))
    k = kernel(
        "for j in range(0, 2):\n    p1.store([0, j * 16], p0.load([0, j * 16]))", ("fp16", "fp16"), ("d0",), maps=(shape, shape)
    )  # fmt: skip
    x, memory = random(5, 40, kind=np.float16), np.zeros((9, 40), np.float16)
    run(k, [x, memory], (5,), descriptors=[((5, 24), (40, 1))] * 2)
    np.testing.assert_array_equal(memory[:5, :24], x[:, :24])
    assert not memory[5:].any() and not memory[:, 24:].any()
    with pytest.raises(ExecutionError, match="descriptors"):
        run(k, [x, memory], (5,))


def test_counters_work_for_the_last_arriver():
    k = kernel(
        """
here = tl.program_id(0)
tl.store(p0 + here, here + 1.0)
if tl.atomic_add(p1, 1) == tl.num_programs(0) - 1:
    tl.store(p2, tl.sum(tl.load(p0 + tl.arange(0, 4)), 0))
    tl.store(p1, 0)
""",
        ("fp32", "i32", "fp32"),
    )
    partial, counter, result = np.zeros(4, np.float32), np.zeros(1, np.int32), np.zeros(1, np.float32)
    run(k, [partial, counter, result], grid=(4, 1, 1))
    assert result[0] == 10 and counter[0] == 0


def test_a_failure_names_the_line():
    k = kernel("x = tl.load(p0)\ny = tl.arange(0, 8) + tl.arange(0, 16)\ntl.store(p0, x)", ("fp32",))
    with pytest.raises(ExecutionError, match=r"line \d+ `y = tl.arange\(0, 8\) \+ tl.arange\(0, 16\)`"):
        run(k, [np.zeros(1, np.float32)])


def test_triton_is_left_as_it_was():
    names = ["triton.language", "triton.language.core", "triton.language.math", "triton.language.standard", "triton.runtime.interpreter"]
    places = [importlib.import_module(n) for n in names]
    places += [places[0].tensor, places[0].dtype, places[1].tensor_descriptor_base]
    before = [dict(vars(p)) for p in places]
    test_library_functions_of_triton()
    with pytest.raises(ExecutionError):
        run(kernel("tl.load(p0 + tl.arange(0, 3))", ("fp32",)), [np.zeros(4, np.float32)])
    for place, old in zip(places, before, strict=True):
        now = vars(place)
        assert {k for k in now if now[k] is not old.get(k)} == set()
