"""Generated mathematics against float64 NumPy, and scalars against vectors bit for bit."""

from __future__ import annotations

import ctypes
import math

import ml_dtypes
import numpy as np
import pytest

from dovetail.codegen.compiler import compile_c
from dovetail.codegen.target import ISAS, Target
from dovetail.codegen.vmath import prelude

FUNCTIONS = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "tanh": np.tanh, "erf": np.vectorize(math.erf),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "rint": np.rint, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
}  # fmt: skip
VECTOR = ("exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid", "rint", "floor", "ceil", "trunc", "sqrt")
SPECIAL = np.array(
    [0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-40, 1.17e-38, 1, -1, 88.72, 88.73, -87.4, -103.9, -104.0, 0.5, 1.5,
     2.5, -0.5, -1.5, 8388609, 0.3466, -0.3466, 0.625, 3.925, 1e10, -1e10, 16777216, 0.99999994, 1.0000001, -0.99999994],
    np.float32,
)  # fmt: skip
TARGETS = [t for t in (Target.parse(f"cpu:{isa}") for isa in ISAS) if t.supports_host()]


@pytest.fixture(scope="module", params=TARGETS, ids=str)
def library(request):
    target = request.param
    vector, lanes = target.vector_type, target.vector_floats
    loop = "void {0}(const {1} *restrict a, {2} *restrict b, int64_t n) {{ for (int64_t i = 0; i < n; i++) b[i] = {3}; }}\n"
    text = prelude(target)
    for name in FUNCTIONS:
        text += loop.format(f"s_{name}", "float", "float", f"dt_{name}f(a[i])")
    for name in VECTOR:
        text += (
            f"void v_{name}(const float *a, float *b, int64_t n) {{ for (int64_t i = 0; i + {lanes} <= n; i += {lanes}) "
            f"dt_store_{vector}(b + i, dt_{name}_{vector}(dt_load_{vector}(a + i))); }}\n"
        )
    two = "void {0}(const float *a, const float *c, float *b, int64_t n) {{ for (int64_t i = 0; i < n; i++) b[i] = {1}; }}\n"
    for name in ("pow", "fmod", "max", "min"):
        text += two.format(name, f"dt_{name}f(a[i], c[i])")
    for a, b, kinds in (("f32", "f16", ("float", "uint16_t")), ("f32", "bf16", ("float", "uint16_t"))):
        text += loop.format(f"{a}_{b}", kinds[0], kinds[1], f"dt_{a}_{b}(a[i])")
        text += loop.format(f"{b}_{a}", kinds[1], kinds[0], f"dt_{b}_{a}(a[i])")
    return ctypes.CDLL(str(compile_c(text, target)))


def run(library, name, *arrays, out=np.float32):
    result = np.empty(arrays[0].shape, out)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*arrays, result)]
    getattr(library, name)(*pointers, ctypes.c_int64(result.size))
    return result


def arguments(name):
    rng = np.random.default_rng(1)
    wide = np.exp(rng.uniform(-60, 60, 30000)) * rng.choice([-1, 1], 30000)
    x = np.concatenate([rng.uniform(-100, 100, 30000), rng.uniform(-2, 2, 30000), wide])
    x = x.astype(np.float32)
    x = np.concatenate([SPECIAL, x])
    if name in ("sin", "cos", "tan"):
        x = x[~(np.abs(x) >= 2**28) | np.isinf(x)]
    return x[: x.size // 16 * 16]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy_and_special_values(library, name):
    x = arguments(name)
    got = run(library, f"s_{name}", x)
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name](x.astype(np.float64))
        expected = exact.astype(np.float32)
        normal = np.isfinite(expected) & (np.abs(expected) > 1e-37)
        error = np.abs(got[normal] - exact[normal]) / np.abs(exact[normal])
    assert error.max() <= 5e-7, x[normal][error.argmax()]
    rest, wanted = got[~normal], expected[~normal]
    same = (rest == wanted) | (np.isnan(rest) & np.isnan(wanted))
    # Denormal results may be off by a few units of the last place.
    with np.errstate(invalid="ignore"):
        same |= np.abs(rest.astype(np.float64) - wanted) <= np.maximum(1e-44, 1e-6 * np.abs(wanted))
    assert same.all(), (x[~normal][~same], rest[~same], wanted[~same])


@pytest.mark.parametrize("name", VECTOR)
def test_vectors_equal_scalars(library, name):
    x = arguments(name)
    np.testing.assert_array_equal(
        run(library, f"v_{name}", x).view(np.int32), run(library, f"s_{name}", x).view(np.int32)
    )


def test_two_operands(library):
    rng = np.random.default_rng(2)
    special = np.array([(a, b) for a in SPECIAL for b in [*SPECIAL, 2.0, 3.0, -2.0, -3.0]], np.float32)
    special = special[np.abs(special[:, 0]) < 1e9]
    a = np.concatenate([special[:, 0], np.exp(rng.uniform(-20, 20, 20000)), rng.uniform(-9, 9, 9000)]).astype(np.float32)
    b = np.concatenate([special[:, 1], rng.uniform(-4, 4, 20000), rng.integers(-9, 9, 9000)]).astype(np.float32)
    with np.errstate(all="ignore"):
        exact = np.power(a.astype(np.float64), b.astype(np.float64))
        got, expected = run(library, "pow", a, b), exact.astype(np.float32)
        normal = np.isfinite(expected) & (np.abs(expected) > 1e-37)
        assert (np.abs(got - exact) / np.abs(exact))[normal].max() < 1e-7
        off = ~normal & ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
        assert not (off & ~(np.abs(got - expected) < 1e-44)).any(), (a[off], b[off], got[off])
        for name, function in (("max", np.maximum), ("min", np.minimum)):
            np.testing.assert_array_equal(run(library, name, a, b), function(a, b))
        # Exact as long as the quotient fits the mantissa of a double.
        small = np.isnan(a) | np.isnan(b) | (b == 0) | (np.abs(a.astype(np.float64) / b) < 2**29)
        np.testing.assert_array_equal(run(library, "fmod", a, b)[small], np.fmod(a, b)[small])


@pytest.mark.parametrize(("name", "kind"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_narrow_floats_round_to_even(library, name, kind):
    every = np.arange(65536, dtype=np.uint16)
    wide = run(library, f"{name}_f32", every)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(wide, every.view(kind).astype(np.float32))
        rng = np.random.default_rng(3)
        middle = (wide[:-1].astype(np.float64) + wide[1:]) / 2  # ties
        x = np.concatenate([wide, middle, rng.normal(size=9000) * np.exp(rng.uniform(-20, 12, 9000)), SPECIAL])
        x = x.astype(np.float32)
        got, expected = run(library, f"f32_{name}", x, out=np.uint16), x.astype(kind).view(np.uint16)
    ordinary = ~np.isnan(x)
    np.testing.assert_array_equal(got[ordinary], expected[ordinary])
    assert np.isnan(got[~ordinary].view(kind).astype(np.float32)).all()
