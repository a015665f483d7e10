"""OpSpecs of the activation functions."""

from __future__ import annotations

from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.arithmetic import FLOAT, NUMBER, SIGNED, check_dtype, check_same_dtype
from dovetail.ops.registry import POINTWISE, broadcast, op


def _same(name: str, x: TensorType, expected: str = FLOAT) -> TensorType:
    check_dtype(name, x.dtype, expected)
    return TensorType(x.dtype, x.shape)


@op("Relu", POINTWISE)
def relu(x: TensorType) -> TensorType:
    """max(x, 0). ONNX Relu-14."""
    return _same("Relu", x, SIGNED)


@op("LeakyRelu", POINTWISE)
def leaky_relu(x: TensorType, *, alpha: float = 0.01) -> TensorType:
    """Y = x if x >= 0 else alpha * x. ONNX LeakyRelu-16."""
    return _same("LeakyRelu", x)


@op("PRelu", POINTWISE)
def prelu(x: TensorType, slope: TensorType) -> TensorType:
    """Y = x if x >= 0 else slope * x; the slope broadcasts to x. ONNX PRelu-16."""
    check_same_dtype("PRelu", x, slope)
    check_dtype("PRelu", x.dtype, NUMBER)
    return TensorType(x.dtype, broadcast(x.shape, slope.shape))


@op("ThresholdedRelu", POINTWISE)
def thresholded_relu(x: TensorType, *, alpha: float = 1.0) -> TensorType:
    """Y = x if x > alpha else 0. ONNX ThresholdedRelu-22."""
    return _same("ThresholdedRelu", x)


@op("Elu", POINTWISE)
def elu(x: TensorType, *, alpha: float = 1.0) -> TensorType:
    """Y = x if x >= 0 else alpha * (exp(x) - 1). ONNX Elu-22."""
    return _same("Elu", x)


@op("Selu", POINTWISE)
def selu(
    x: TensorType,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> TensorType:
    """Y = gamma * (x if x > 0 else alpha * (exp(x) - 1)). ONNX Selu-22."""
    return _same("Selu", x)


@op("Celu", POINTWISE)
def celu(x: TensorType, *, alpha: float = 1.0) -> TensorType:
    """Y = max(0, x) + min(0, alpha * (exp(x / alpha) - 1)). ONNX Celu-28."""
    return _same("Celu", x)


@op("Gelu", POINTWISE)
def gelu(x: TensorType, *, approximate: str = "none") -> TensorType:
    """X * Phi(x), with Phi exact ("none") or by the tanh formula ("tanh"). ONNX Gelu-20."""
    if approximate not in ("none", "tanh"):
        raise TypeInferenceError(
            f"Gelu: got approximate={approximate!r}, expected 'none' or 'tanh'; fix the attribute"
        )
    return _same("Gelu", x)


@op("HardSigmoid", POINTWISE)
def hard_sigmoid(x: TensorType, *, alpha: float = 0.2, beta: float = 0.5) -> TensorType:
    """max(0, min(1, alpha * x + beta)). ONNX HardSigmoid-22."""
    return _same("HardSigmoid", x)


@op("HardSwish", POINTWISE)
def hard_swish(x: TensorType) -> TensorType:
    """X * max(0, min(1, x / 6 + 1 / 2)). ONNX HardSwish-22."""
    return _same("HardSwish", x)


@op("Mish", POINTWISE)
def mish(x: TensorType) -> TensorType:
    """X * tanh(log(1 + exp(x))). ONNX Mish-22."""
    return _same("Mish", x)


@op("Sigmoid", POINTWISE)
def sigmoid(x: TensorType) -> TensorType:
    """1 / (1 + exp(-x)). ONNX Sigmoid-13."""
    return _same("Sigmoid", x)


@op("Swish", POINTWISE)
def swish(x: TensorType, *, alpha: float = 1.0) -> TensorType:
    """X * sigmoid(alpha * x). ONNX Swish-24."""
    return _same("Swish", x)


@op("Shrink", POINTWISE)
def shrink(x: TensorType, *, bias: float = 0.0, lambd: float = 0.5) -> TensorType:
    """Y = x + bias below -lambd, x - bias above lambd, else 0. ONNX Shrink-9."""
    return _same("Shrink", x, NUMBER)


@op("Softplus", POINTWISE)
def softplus(x: TensorType) -> TensorType:
    """log(1 + exp(x)). ONNX Softplus-22."""
    return _same("Softplus", x)


@op("Softsign", POINTWISE)
def softsign(x: TensorType) -> TensorType:
    """X / (1 + |x|). ONNX Softsign-22."""
    return _same("Softsign", x)


@op("Clip", POINTWISE)
def clip(
    x: TensorType, *, min: int | float | None = None, max: int | float | None = None
) -> TensorType:
    """min(max(x, min), max); either bound may be absent, NaN stays NaN. ONNX Clip-13."""
    return _same("Clip", x, NUMBER)
