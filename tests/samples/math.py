"""Samples of the math families: arithmetic, logic, activations, casts, reductions, quantisation, text, signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from dovetail.core import dtypes as d
from tests.samples.sample import Array, Sample

Shape = tuple[int, ...]
Draw = Callable[[np.random.Generator, Shape], Array]

# Awkward on purpose: scalars, ones, primes, sizes that no vector width divides, and nothing at all.
SHAPES: tuple[Shape, ...] = ((), (1,), (7,), (2, 3), (3, 1, 5), (1, 17, 2, 3), (0, 4))
PAIRS: tuple[tuple[Shape, Shape], ...] = (
    ((3, 4), (3, 4)),
    ((3, 4), ()),
    ((), (5,)),
    ((2, 3, 5), (3, 1)),
    ((1, 7), (11, 1)),
    ((2, 1, 3), (1, 5, 1)),
    ((0, 3), (1, 3)),
    ((13,), (13,)),
)


def normal(scale: float = 1.0, dtype: Any = np.float32) -> Draw:
    """Normal numbers."""
    return lambda rng, shape: np.asarray(rng.normal(0, scale, shape)).astype(dtype)


def uniform(low: float, high: float, dtype: Any = np.float32) -> Draw:
    """Uniform numbers in [low, high)."""
    return lambda rng, shape: np.asarray(rng.uniform(low, high, shape)).astype(dtype)


def whole(low: int, high: int, dtype: Any = np.int32) -> Draw:
    """Whole numbers in [low, high)."""
    return lambda rng, shape: np.asarray(rng.integers(low, high, shape)).astype(dtype)


def coin(rng: np.random.Generator, shape: Shape) -> Array:
    """Truth values."""
    return np.asarray(rng.random(shape) < 0.5)


def special(rng: np.random.Generator, shape: Shape) -> Array:
    """Normal numbers with NaN, infinities and signed zeros among them."""
    x = np.asarray(rng.normal(0, 2, shape)).astype(np.float32)
    flat = x.reshape(-1)
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38], np.float32)
    flat[: len(odd)] = odd[: flat.size]
    return flat.reshape(shape)


def _drawn(draws: Sequence[Draw], shapes: Sequence[Shape]) -> Callable[[np.random.Generator], list[Array | None]]:
    return lambda rng: [draw(rng, shape) for draw, shape in zip(draws, shapes, strict=True)]


def _given(*arrays: Array | None) -> Callable[[np.random.Generator], list[Array | None]]:
    return lambda rng: list(arrays)


def _unary(op: str, draw: Draw, exact: bool = False, **attrs: Any) -> list[Sample]:
    return [Sample(op, _drawn([draw], [shape]), attrs, exact) for shape in SHAPES]


def _binary(op: str, a: Draw, b: Draw, exact: bool = False, **attrs: Any) -> list[Sample]:
    return [Sample(op, _drawn([a, b], pair), attrs, exact) for pair in PAIRS]


def _pointwise() -> list[Sample]:
    samples: list[Sample] = []
    for op, draw in {
        "Acos": uniform(-1, 1), "Acosh": uniform(1, 9), "Asin": uniform(-1, 1), "Asinh": normal(3),
        "Atan": normal(3), "Atanh": uniform(-0.99, 0.99), "Cos": normal(5), "Cosh": normal(2),
        "Erf": normal(2), "Exp": normal(3), "Log": uniform(1e-3, 9), "Reciprocal": uniform(0.1, 9),
        "Sin": normal(5), "Sinh": normal(2), "Sqrt": uniform(0, 9), "Tan": uniform(-1.4, 1.4),
        "Tanh": normal(2), "Sigmoid": normal(9), "Softplus": normal(9), "Softsign": normal(3),
        "Mish": normal(4), "HardSwish": normal(4), "Elu": normal(2), "Celu": normal(2),
        "Selu": normal(2), "Gelu": normal(3), "HardSigmoid": normal(3), "Swish": normal(4),
    }.items():  # fmt: skip
        samples += _unary(op, draw)
        samples.append(Sample(op, _drawn([draw], [(5, 9)]), {}))
        samples.append(Sample(op, _drawn([lambda r, s, g=draw: g(r, s).astype(np.float16)], [(4, 7)]), {}))
        samples.append(
            Sample(op, _drawn([lambda r, s, g=draw: g(r, s).astype(ml_dtypes.bfloat16)], [(33,)]), {})
        )
    for op in ("Abs", "Ceil", "Floor", "Neg", "Round", "Sign", "Relu"):
        samples += _unary(op, normal(3), exact=True)
        samples.append(Sample(op, _drawn([special], [(3, 5)]), {}, exact=True))
    halves = np.arange(-9, 10, dtype=np.float32) / 2
    samples.append(Sample("Round", _given(halves), {}, exact=True))
    for op in ("Abs", "Neg", "Sign", "Relu"):
        samples += _unary(op, whole(-99, 99, np.int32), exact=True)
    for op in ("Exp", "Tanh", "Sigmoid", "Softplus", "Erf", "Gelu"):
        samples.append(Sample(op, _given(np.array([-200, -88, -1e-6, 0, 1e-6, 88, 200], np.float32)), {}))
    samples += _unary("LeakyRelu", normal(), alpha=0.1) + _unary("ThresholdedRelu", normal(), True, alpha=0.5)
    samples += _unary("Elu", normal(), alpha=2.0) + _unary("Celu", normal(), alpha=2.0)
    samples += _unary("Selu", normal(), alpha=2.0, gamma=3.0) + _unary("Gelu", normal(), approximate="tanh")
    samples += _unary("HardSigmoid", normal(3), alpha=0.5, beta=0.6) + _unary("Swish", normal(), alpha=1.7)
    samples += _unary("Shrink", normal(2), bias=0.5, lambd=1.5) + _unary("Shrink", whole(-9, 9), lambd=2.0)
    samples += _unary("Clip", normal(3), True, min=-1.5, max=2.0) + _unary("Clip", special, True, min=0.0)
    samples += _unary("Clip", whole(-9, 9), True, max=3) + _unary("Clip", normal(), True, min=2.0, max=-2.0)
    samples += _binary("PRelu", normal(), uniform(0, 1))
    for op in ("Add", "Sub", "Mul"):
        samples += _binary(op, normal(), normal(), exact=True)
        samples += _binary(op, whole(-99, 99, np.int64), whole(-99, 99, np.int64), exact=True)
        samples.append(Sample(op, _drawn([whole(-128, 128, np.int8)] * 2, [(257,), (257,)]), {}, exact=True))
    samples += _binary("Div", normal(), uniform(0.5, 2))
    samples += _binary("Div", whole(-99, 99), lambda r, s: np.where(coin(r, s), 7, -4).astype(np.int32), True)
    for op in ("Max", "Min"):
        samples += _binary(op, special, normal(), exact=True) + _binary(op, whole(-9, 9), whole(-9, 9), True)
    nonzero: Draw = lambda r, s: np.where(coin(r, s), 5, -3).astype(np.int32)  # noqa: E731
    samples += _binary("Mod", whole(-99, 99), nonzero, True) + _binary("Mod", whole(-99, 99), nonzero, True, fmod=True)
    samples += _binary("Mod", normal(9), uniform(1, 4), fmod=True)
    for op, attrs in (("Mod", {"fmod": True}), ("Mod", {}), ("Pow", {}), ("Div", {}), ("Max", {})):
        halves16 = [uniform(0.5, 9, np.float16), uniform(1, 3, np.float16)]
        samples.append(Sample(op, _drawn(halves16, [(3, 11), (11,)]), attrs))
    samples += _binary("Pow", uniform(0.1, 3), normal()) + _binary("Pow", normal(2), whole(0, 4, np.float32))
    samples += _binary("Pow", whole(-5, 5), whole(0, 4), True) + _binary("Pow", uniform(0.1, 3), whole(-3, 4, np.int64))
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        samples += _binary(op, whole(0, 256, np.uint8), whole(0, 256, np.uint8), True)
        samples += _binary(op, whole(-999, 999), whole(-999, 999), True)
    samples += _unary("BitwiseNot", whole(0, 256, np.uint8), True) + _unary("BitwiseNot", whole(-99, 99), True)
    for direction in ("LEFT", "RIGHT"):
        samples += _binary("BitShift", whole(0, 256, np.uint8), whole(0, 12, np.uint8), True, direction=direction)
        samples += _binary("BitShift", whole(-999, 999), whole(-2, 40), True, direction=direction)
    return samples


def _logic() -> list[Sample]:
    samples: list[Sample] = []
    for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        samples += _binary(op, special, special, True) + _binary(op, whole(0, 3), whole(0, 3), True)
    samples += _binary("Equal", coin, coin, True)
    for op in ("And", "Or", "Xor"):
        samples += _binary(op, coin, coin, True)
    samples += _unary("Not", coin, True) + _unary("IsNaN", special, True) + _unary("IsInf", special, True)
    samples += _unary("IsInf", special, True, detect_negative=False)
    samples += _unary("IsInf", special, True, detect_positive=False)
    for shapes in (((3, 4), (3, 4), (3, 4)), ((4,), (3, 1), ()), ((2, 1, 1), (3, 1), (5,)), ((0,), (0,), (1,))):
        samples.append(Sample("Where", _drawn([coin, special, normal()], shapes), {}, True))
        samples.append(Sample("Where", _drawn([coin, whole(0, 9), whole(0, 9)], shapes), {}, True))
    return samples


def _casts() -> list[Sample]:
    samples = []
    numbers = np.array([-300.7, -128.5, -1.5, -0.4, 0.0, 0.5, 1.5, 3.49, 127.9, 300.2, 65504.0], np.float32)
    small = np.array([-3.7, -1.5, 0.0, 0.5, 1.5, 3.49, 7.0, 100.3, 0.007], np.float32)
    for to in (d.F64, d.F32, d.F16, d.BF16, d.I64, d.I32, d.BOOL):
        samples += _unary("Cast", normal(9), True, to=to) + _unary("Cast", whole(-99, 99), True, to=to)
        samples.append(Sample("Cast", _given(numbers), {"to": to}, True))
    for to in (d.I16, d.I8, d.U8, d.U16, d.U32, d.U64, d.I4, d.U4, d.I2, d.U2):
        samples += _unary("Cast", whole(0, 2), True, to=to)
        samples.append(Sample("Cast", _drawn([whole(0, 128, np.int64)], [(29,)]), {"to": to}, True))
    for to in (d.F8E4M3, d.F8E5M2, d.F8E4M3FNUZ, d.F8E5M2FNUZ, d.F4E2M1):
        for saturate in (True, False):
            samples.append(Sample("Cast", _given(small), {"to": to, "saturate": saturate}, True))
            samples.append(Sample("Cast", _given(np.array([1e9, -1e9, np.inf], np.float32)), {"to": to, "saturate": saturate}, True))
    for mode in ("up", "down", "nearest"):
        positive = np.array([1.0, 1.25, 1.5, 3.1, 1e-3, 1e30], np.float32)
        samples.append(Sample("Cast", _given(positive), {"to": d.F8E8M0, "round_mode": mode}, True))
    samples.append(Sample("Cast", _given(np.array(["1.5", "-2", "INF"], object)), {"to": d.F32}, True))
    samples.append(Sample("Cast", _given(np.array([1, -20], np.int64)), {"to": d.STR}, True))
    samples += _unary("BitCast", normal(), True, to=d.I32) + _unary("BitCast", whole(0, 99), True, to=d.F32)
    samples.append(Sample("BitCast", _drawn([whole(0, 2, np.uint8)], [(5,)]), {"to": d.BOOL}, True))
    return samples


_REDUCED: tuple[tuple[Shape, tuple[int, ...]], ...] = (
    ((5,), (0,)),
    ((3, 4), (1,)),
    ((3, 4), (0,)),
    ((2, 3, 5), (0, 2)),
    ((2, 1, 3, 17), (1, 2, 3)),
    ((2, 3), ()),
    ((1, 67), (1,)),
)


def _reductions() -> list[Sample]:
    samples = []
    for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
        for shape, axes in _REDUCED:
            for keepdims in (True, False):
                attrs = {"axes": axes, "keepdims": keepdims}
                samples.append(Sample(op, _drawn([normal()], [shape]), attrs))
                samples.append(Sample(op, _drawn([whole(-4, 4, np.int64)], [shape]), attrs, True))
        samples.append(Sample(op, _drawn([normal(1, np.float16)], [(3, 65)]), {"axes": (1,)}))
        samples.append(Sample(op, lambda rng: [np.asarray(rng.integers(0, 5, ()), np.int32)], {"axes": ()}, True))
    for op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"):
        samples.append(Sample(op, _given(np.zeros((2, 0, 3), np.float32)), {"axes": (1,)}, True))
    for op in ("ReduceMax", "ReduceMin"):
        samples.append(Sample(op, _drawn([special], [(3, 5)]), {"axes": (1,)}, True))
        samples.append(Sample(op, _drawn([coin], [(3, 5)]), {"axes": (1,)}, True))
    for op in ("ArgMax", "ArgMin"):
        for last in (False, True):
            for shape, axis in (((5,), 0), ((3, 4), 1), ((2, 7, 3), 1), ((2, 1, 3), 0)):
                attrs = {"axis": axis, "keepdims": last, "select_last_index": last}
                samples.append(Sample(op, _drawn([whole(0, 3, np.float32)], [shape]), attrs, True))
    for op in ("CumSum", "CumProd"):
        for exclusive in (False, True):
            for reverse in (False, True):
                for shape, axis in (((5,), 0), ((3, 4), 1), ((2, 7, 3), 1), ((0, 2), 0)):
                    attrs = {"axis": axis, "exclusive": exclusive, "reverse": reverse}
                    samples.append(Sample(op, _drawn([normal()], [shape]), attrs))
                    samples.append(Sample(op, _drawn([whole(-3, 4)], [shape]), attrs, True))
    for op in ("Softmax", "LogSoftmax"):
        for shape, axis in (((5,), 0), ((3, 4), 1), ((3, 4), -1), ((2, 7, 3), 1), ((2, 1), 1), ((2, 1001), 1), ((0, 3), 1)):
            samples.append(Sample(op, _drawn([normal(5)], [shape]), {"axis": axis}))
        samples.append(Sample(op, _drawn([normal(2, np.float16)], [(3, 65)]), {"axis": 1}))
        samples.append(Sample(op, _given(np.array([[1e4, 1e4 + 1, -1e4], [-np.inf, 0, 1]], np.float32)), {"axis": 1}))
    for keepdims in (True, False):
        samples.append(
            Sample(
                "ReduceAt",
                lambda rng: [rng.normal(0, 1, (2, 3, 5)).astype(np.float32), np.array([-1, 0], np.int64)],
                {"function": "ReduceSum", "keepdims": keepdims, "symbols": ("a", "b", "c") if keepdims else ("a",)},
            )
        )
    samples.append(
        Sample(
            "CumulateAt",
            lambda rng: [rng.normal(0, 1, (2, 3)).astype(np.float32), np.array(-1, np.int64)],
            {"function": "CumSum", "reverse": True},
        )
    )
    return samples


def _quantised() -> list[Sample]:
    samples = []
    for kind in (np.uint8, np.int8, np.int16, np.uint16, ml_dtypes.int4, ml_dtypes.uint4):
        zero = np.array(3, np.int8).astype(kind)
        for shape in ((7,), (2, 3, 5), (0, 3)):
            samples.append(
                Sample("QuantizeLinear", lambda r, s=shape, z=zero: [normal(9)(r, s), np.array(0.1, np.float32), z], {"axis": 0})
            )
            samples.append(
                Sample(
                    "DequantizeLinear",
                    lambda r, s=shape, k=kind, z=zero: [whole(0, 7, k)(r, s), np.array(0.1, np.float32), z],
                    {"axis": 0},
                )
            )
    scales = np.array([0.1, 0.2, 0.5], np.float32)
    zeros = np.array([0, 5, 255], np.uint8)
    samples.append(Sample("QuantizeLinear", lambda r: [normal(20)(r, (2, 3, 5)), scales, zeros], {"axis": 1}))
    samples.append(Sample("DequantizeLinear", lambda r: [whole(0, 256, np.uint8)(r, (2, 3, 5)), scales, zeros], {"axis": 1}))
    samples.append(Sample("DequantizeLinear", lambda r: [whole(-999, 999)(r, (3, 5)), scales, None], {"axis": 0}))
    block = lambda r: uniform(0.1, 1)(r, (2, 3))  # noqa: E731
    samples.append(Sample("QuantizeLinear", lambda r: [normal(9)(r, (2, 5)), block(r), None], {"axis": 1, "block_size": 2}))
    samples.append(
        Sample("DequantizeLinear", lambda r: [whole(0, 9, np.uint8)(r, (2, 5)), block(r), None], {"axis": 1, "block_size": 2})
    )
    for to in (d.F8E4M3, d.F8E5M2):
        samples.append(
            Sample("QuantizeLinear", lambda r: [normal(900)(r, (3, 5)), np.array(0.5, np.float32)], {"axis": 0, "output_dtype": to})
        )
    ties = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], np.float32)
    samples.append(Sample("QuantizeLinear", _given(ties, np.array(1, np.float32), np.array(1, np.int8)), {"axis": 0}, True))
    return samples


def _host() -> list[Sample]:
    words = np.array(["a b", "", "c  d e", "x"], object)
    counts = {"ngram_counts": (0, 4), "ngram_indexes": (0, 1, 2, 3, 4, 5, 6), "pool": (2, 3, 5, 4, 5, 6, 7, 8, 6, 7)}
    return [
        Sample("Det", _drawn([normal()], [(3, 3)])),
        Sample("Det", _drawn([normal()], [(2, 5, 5)])),
        Sample("RandomUniform", _given(), {"shape": (3, 4), "low": -1.0, "high": 2.0, "seed": 7.0}),
        Sample("RandomNormal", _given(), {"shape": (3, 4), "mean": 1.0, "scale": 0.1, "seed": 7.0}),
        Sample("Multinomial", _drawn([normal()], [(2, 5)]), {"sample_size": 9, "seed": 7.0, "dtype": d.I32}),
        Sample("DFT", _drawn([normal()], [(2, 7, 1)]), {"length": 7, "axis": 1}),
        Sample("DFT", _drawn([normal()], [(2, 8, 2)]), {"length": 5, "axis": 1, "inverse": True}),
        Sample("DFT", _drawn([normal()], [(2, 8, 1)]), {"length": 8, "axis": 1, "onesided": True}),
        Sample("DFT", _drawn([normal()], [(2, 5, 2)]), {"length": 8, "axis": 1, "onesided": True, "inverse": True}),
        Sample("DFTAt", lambda r: [normal()(r, (2, 7, 1)), np.array(-2, np.int64)], {"symbols": ("a", "b")}),
        Sample("STFT", _drawn([normal()], [(2, 33, 1)]), {"frame_step": 4, "frame_length": 8}),
        Sample(
            "STFT",
            lambda r: [normal()(r, (1, 33, 1)), uniform(0, 1)(r, (8,))],
            {"frame_step": 5, "frame_length": 8, "onesided": False},
        ),
        Sample(
            "MelWeightMatrix",
            _given(np.array(8192, np.int64), np.array(0.0, np.float32), np.array(4096.0, np.float32)),
            {"bins": 8, "dft_length": 16},
        ),
        Sample("StringConcat", _given(words, np.array("!", object)), {}, True),
        Sample("RegexFullMatch", _given(words), {"pattern": r"\w( \w)?"}, True),
        Sample("StringSplit", _given(words), {"symbols": ("n",)}, True),
        Sample("StringSplit", _given(words[2:]), {"delimiter": " ", "maxsplit": 1, "symbols": ("n",)}, True),
        Sample("StringNormalizer", _given(words), {"stopwords": ("X",), "case_change_action": "UPPER", "symbols": ("n",)}, True),
        Sample(
            "TfIdfVectorizer",
            _drawn([whole(2, 9, np.int64)], [(2, 12)]),
            {"mode": "TF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 1, **counts},
            True,
        ),
    ]


SAMPLES: list[Sample] = _pointwise() + _logic() + _casts() + _reductions() + _quantised() + _host()
