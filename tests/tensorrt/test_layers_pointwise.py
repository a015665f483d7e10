"""Layers that compute element by element."""

import math

import numpy as np

import dovetail.tensorrt as trt
from tests.tensorrt.coverage import exercises
from tests.tensorrt.layer_suite import Suite, network

A, E, U = trt.ActivationType, trt.ElementWiseOperation, trt.UnaryOperation
_erf = np.vectorize(math.erf, otypes=[np.float32])

ACTIVATIONS = {
    "RELU": lambda x, a, b: np.maximum(x, 0),
    "SIGMOID": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "TANH": lambda x, a, b: np.tanh(x),
    "LEAKY_RELU": lambda x, a, b: np.where(x < 0, a * x, x),
    "ELU": lambda x, a, b: np.where(x < 0, a * (np.exp(x) - 1), x),
    "SELU": lambda x, a, b: b * np.where(x < 0, a * (np.exp(x) - 1), x),
    "SOFTSIGN": lambda x, a, b: x / (1 + np.abs(x)),
    "SOFTPLUS": lambda x, a, b: a * np.log(np.exp(b * x) + 1),
    "CLIP": lambda x, a, b: np.maximum(a, np.minimum(b, x)),
    "HARD_SIGMOID": lambda x, a, b: np.maximum(0, np.minimum(1, a * x + b)),
    "SCALED_TANH": lambda x, a, b: a * np.tanh(b * x),
    "THRESHOLDED_RELU": lambda x, a, b: np.where(x > a, x, 0),
    "GELU_ERF": lambda x, a, b: 0.5 * x * (1 + _erf(np.sqrt(0.5) * x)),
    "GELU_TANH": lambda x, a, b: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (0.044715 * x**3 + x))),
}
UNARY = {
    "EXP": np.exp, "LOG": np.log, "SQRT": np.sqrt, "RECIP": lambda x: 1 / x, "ABS": np.abs, "NEG": np.negative, "SIN": np.sin,
    "COS": np.cos, "TAN": np.tan, "SINH": np.sinh, "COSH": np.cosh, "ASIN": np.arcsin, "ACOS": np.arccos, "ATAN": np.arctan,
    "ASINH": np.arcsinh, "ACOSH": np.arccosh, "ATANH": np.arctanh, "CEIL": np.ceil, "FLOOR": np.floor, "ERF": _erf, "SIGN": np.sign,
    "ROUND": np.round,
}  # fmt: skip
ELEMENTWISE = {
    "SUM": np.add, "PROD": np.multiply, "MAX": np.maximum, "MIN": np.minimum, "SUB": np.subtract, "DIV": np.divide,
    "POW": np.power, "EQUAL": np.equal, "GREATER": np.greater, "LESS": np.less, "FLOOR_DIV": lambda a, b: np.floor(a / b),
}  # fmt: skip


def _members(enum, names):
    return [f"{enum}.{name}" for name in names]


@exercises(
    "INetworkDefinition.add_activation", "IActivationLayer.type", "IActivationLayer.alpha", "IActivationLayer.beta",
    *_members("ActivationType", ACTIVATIONS),
)  # fmt: skip
def test_activations():
    suite = Suite()
    array = 2 * suite.random(3, 7)
    x = suite.input(array)
    assert set(ACTIVATIONS) == set(A.__members__)
    for name, function in ACTIVATIONS.items():
        layer = suite.net.add_activation(x, A.RELU)
        layer.type, layer.alpha, layer.beta = getattr(A, name), 0.3, 0.7
        assert (layer.type, layer.alpha, layer.beta) == (getattr(A, name), 0.3, 0.7)
        suite.expect(layer, function(array, np.float32(0.3), np.float32(0.7)).astype(np.float32))
    suite.run()


@exercises("INetworkDefinition.add_unary", "IUnaryLayer.op", *_members("UnaryOperation", trt.UnaryOperation.__members__))
def test_unary():
    suite = Suite(1)
    array = suite.rng.uniform(0.1, 0.9, (5, 3)).astype(np.float32)
    x, more = suite.input(array), suite.input(array + 1)
    for name, function in UNARY.items():
        layer = suite.net.add_unary(more if name == "ACOSH" else x, U.EXP)
        layer.op = getattr(U, name)
        assert layer.op is getattr(U, name)
        suite.expect(layer, function(array + 1 if name == "ACOSH" else array))
    flags = np.array([True, False, True])
    suite.expect(suite.net.add_unary(suite.input(flags), U.NOT), ~flags)
    odd = suite.input(np.array([1, np.inf, np.nan, -np.inf], np.float32))
    suite.expect(suite.net.add_unary(odd, U.ISINF), np.array([False, True, False, True]))
    suite.expect(suite.net.add_unary(odd, U.ISNAN), np.array([False, False, True, False]))
    assert set(UNARY) | {"NOT", "ISINF", "ISNAN"} == set(U.__members__)
    suite.run()


@exercises(
    "INetworkDefinition.add_elementwise", "IElementWiseLayer.op", *_members("ElementWiseOperation", trt.ElementWiseOperation.__members__)
)
def test_elementwise():
    suite = Suite(2)
    a, b = suite.rng.uniform(0.5, 3, (4, 1, 5)).astype(np.float32), suite.rng.uniform(0.5, 3, (1, 3, 5)).astype(np.float32)
    x, y = suite.input(a, dynamic=True), suite.input(b)
    for name, function in ELEMENTWISE.items():
        layer = suite.net.add_elementwise(x, y, E.SUM)
        layer.op = getattr(E, name)
        assert layer.op is getattr(E, name)
        suite.expect(layer, function(a, b))
    p, q = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    for name, function in {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}.items():
        suite.expect(suite.net.add_elementwise(suite.input(p), suite.input(q), getattr(E, name)), function(p, q))
    # Whole numbers are divided toward 0 by DIV, and downward by FLOOR_DIV.
    m, n = np.array([7, -7, 7, -7, 6, -6, 0], np.int32), np.array([2, 2, -2, -2, 3, 3, -5], np.int32)
    suite.expect(suite.net.add_elementwise(suite.input(m), suite.input(n), E.DIV), np.trunc(m / n).astype(np.int32))
    suite.expect(suite.net.add_elementwise(suite.input(m), suite.input(n), E.FLOOR_DIV), m // n)
    suite.run()


def test_ranks_must_be_equal():
    net, log = network()
    x, y = net.add_input("x", trt.float32, (2, 3)), net.add_input("y", trt.float32, (3,))
    layer = net.add_elementwise(x, y, E.SUM)
    assert not layer.get_output(0).shape._valid
    assert "expected equally many" in log.errors[0] and len(log.errors) == 1


@exercises(
    "INetworkDefinition.add_select", "INetworkDefinition.add_identity", "INetworkDefinition.add_cast", "ICastLayer.to_type",
    "INetworkDefinition.add_parametric_relu", "ILayer.set_output_type", "ILayer.output_type_is_set", "ILayer.get_output_type",
    "ILayer.reset_output_type", "ISelectLayer", "IIdentityLayer", "ICastLayer", "IParametricReLULayer",
)  # fmt: skip
def test_choosing_and_casting():
    suite = Suite(3)
    a, b, slopes = suite.random(4, 5), suite.random(4, 5), suite.random(1, 5)
    x, y = suite.input(a), suite.input(b)
    suite.expect(suite.net.add_select(suite.input(a > 0), x, y), np.where(a > 0, a, b))
    suite.expect(suite.net.add_parametric_relu(x, suite.const(slopes)), np.where(a < 0, a * slopes, a))
    cast = suite.net.add_cast(x, trt.float16)
    cast.to_type = trt.int32
    assert cast.to_type is trt.int32
    suite.expect(cast, a.astype(np.int32))
    for kind, expected in ((trt.float16, a.astype(np.float16)), (trt.bool, a.astype(bool))):
        suite.expect(suite.net.add_cast(x, kind), expected)
    same = suite.net.add_identity(x)
    assert not same.output_type_is_set(0) and same.get_output_type(0) is trt.float32
    same.set_output_type(0, trt.int32)
    assert same.output_type_is_set(0) and same.get_output(0).dtype is same.get_output_type(0) is trt.int32
    suite.expect(same, a.astype(np.int32))
    plain = suite.net.add_identity(y)
    plain.set_output_type(0, trt.float16)
    plain.reset_output_type(0)
    suite.expect(plain, b)
    suite.run()


@exercises(
    "INetworkDefinition.add_scale", "INetworkDefinition.add_scale_nd", "IScaleLayer.mode", "IScaleLayer.shift", "IScaleLayer.scale",
    "IScaleLayer.power", "IScaleLayer.channel_axis", "ScaleMode.UNIFORM", "ScaleMode.CHANNEL", "ScaleMode.ELEMENTWISE",
)  # fmt: skip
def test_scale():
    suite = Suite(4)
    array = suite.rng.uniform(0.5, 2, (2, 3, 4, 5)).astype(np.float32)
    x = suite.input(array)
    one = [np.array([v], np.float32) for v in (0.25, 1.5, 2.0)]
    suite.expect(suite.net.add_scale(x, trt.ScaleMode.UNIFORM, *one), (array * 1.5 + 0.25) ** 2)
    channel = suite.rng.uniform(0.5, 2, (3,)).astype(np.float32)
    suite.expect(suite.net.add_scale(x, trt.ScaleMode.CHANNEL, scale=channel), array * channel[:, None, None])
    last = suite.rng.uniform(0.5, 2, (5,)).astype(np.float32)
    layer = suite.net.add_scale_nd(x, trt.ScaleMode.UNIFORM, channel_axis=1)
    layer.mode, layer.shift, layer.channel_axis = trt.ScaleMode.CHANNEL, last, 3
    assert (layer.mode, layer.channel_axis) == (trt.ScaleMode.CHANNEL, 3) and np.array_equal(layer.shift, last)
    assert len(layer.scale) == 0 and len(layer.power) == 0
    suite.expect(layer, array + last)
    layer = suite.net.add_scale_nd(x, trt.ScaleMode.ELEMENTWISE, channel_axis=2)
    each = suite.rng.uniform(0.5, 2, (4, 5)).astype(np.float32)
    layer.scale, layer.power = each, each
    suite.expect(layer, (array * each) ** each, 1e-4)
    suite.run()


def test_wrong_types_of_arguments():
    net, _ = network()
    x = net.add_input("x", trt.float32, (2, 3))
    for call in (
        lambda: net.add_activation(x, E.SUM), lambda: net.add_activation("x", A.RELU), lambda: net.add_unary(x, 3),
        lambda: net.add_elementwise(x, None, E.SUM), lambda: net.add_cast(x, np.float32), lambda: net.add_select(x, x, 1),
    ):  # fmt: skip
        try:
            call()
        except TypeError:
            continue
        raise AssertionError("expected a TypeError")
    assert net.num_layers == 0
