"""Lowerings of the pointwise ops."""

from __future__ import annotations

import math

from dovetail.codegen.loop_ir import Expr, call, compute_dtype
from dovetail.codegen.lower.build import (
    add,
    both,
    cast,
    const_of,
    div,
    either,
    eq,
    le,
    lt,
    maximum,
    minimum,
    mul,
    ne,
    select,
    sub,
    unary,
)
from dovetail.codegen.lower.context import Context, Index, NotLowerable, lowering
from dovetail.core.dtypes import BF16, BOOL, F16, F32, F64, DType
from dovetail.ir.graph import Node, Value

_UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan",
    "Atanh": "atanh", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp",
    "Floor": "floor", "Log": "log", "Neg": "neg", "Round": "rint", "Sigmoid": "sigmoid", "Sin": "sin",
    "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh", "BitwiseNot": "bitnot", "Not": "not",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "max", "Min": "min", "And": "and",
    "Or": "or", "Xor": "xor", "BitwiseAnd": "bitand", "BitwiseOr": "bitor", "BitwiseXor": "bitxor",
}  # fmt: skip
_COMPARE = {"Equal": "eq", "Less": "lt", "LessOrEqual": "le"}
_SWAPPED = {"Greater": "lt", "GreaterOrEqual": "le"}


@lowering(*_UNARY)
def _unary(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    if x.dtype.is_int and node.op in ("Ceil", "Floor", "Round"):
        return x
    return unary(_UNARY[node.op], x)


@lowering("Copy")
def _copy(ctx: Context, node: Node, index: Index) -> Expr:
    return ctx.operand(node, 0, index)


@lowering(*_BINARY)
def _binary(ctx: Context, node: Node, index: Index) -> Expr:
    a, b = ctx.operand(node, 0, index), ctx.operand(node, 1, index)
    return call(_BINARY[node.op], (a, b), a.dtype)


@lowering(*_COMPARE, *_SWAPPED)
def _compare(ctx: Context, node: Node, index: Index) -> Expr:
    a, b = ctx.operand(node, 0, index), ctx.operand(node, 1, index)
    if node.op in _SWAPPED:
        return call(_SWAPPED[node.op], (b, a), BOOL)
    return call(_COMPARE[node.op], (a, b), BOOL)


@lowering("Where")
def _where(ctx: Context, node: Node, index: Index) -> Expr:
    condition, a, b = (ctx.operand(node, i, index) for i in range(3))
    return select(condition, a, b)


@lowering("Sign")
def _sign(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    if x.dtype.kind == "uint":
        return select(eq(x, 0), const_of(0, x.dtype), const_of(1, x.dtype))
    negative = select(lt(x, 0), const_of(-1, x.dtype), x)
    return select(lt(0, x), const_of(1, x.dtype), negative)


@lowering("Reciprocal")
def _reciprocal(ctx: Context, node: Node, index: Index) -> Expr:
    return div(1, ctx.operand(node, 0, index))


@lowering("Mod")
def _mod(ctx: Context, node: Node, index: Index) -> Expr:
    a, b = ctx.operand(node, 0, index), ctx.operand(node, 1, index)
    rest = call("fmod" if a.dtype.is_float else "rem", (a, b), a.dtype)
    if node.attrs.get("fmod") or a.dtype.kind == "uint":
        return rest
    differs = call("xor", (lt(rest, 0), lt(b, 0)), BOOL)
    floored = select(both(ne(rest, 0), differs), add(rest, b), rest)
    if a.dtype.is_float:
        return select(eq(rest, 0), call("copysign", (rest, b), a.dtype), floored)
    return floored


@lowering("Pow")
def _pow(ctx: Context, node: Node, index: Index) -> Expr:
    base, exponent = ctx.operand(node, 0, index), ctx.operand(node, 1, index)
    if base.dtype.is_int and exponent.dtype.kind == "uint":
        return _integer_power(base, cast(exponent, base.dtype))
    if base.dtype != F32 or exponent.dtype == F64:
        raise NotLowerable(f"Pow of {base.dtype} to {exponent.dtype} is not generated")
    return call("pow", (base, cast(exponent, F32)), F32)


def _integer_power(base: Expr, exponent: Expr) -> Expr:
    """Square and multiply with wrap-around over all bits of the exponent."""
    result, square = const_of(1, base.dtype), base
    for bit in range(base.dtype.bits):
        odd = call("bitand", (call("shr", (exponent, const_of(bit, base.dtype)), base.dtype), const_of(1, base.dtype)), base.dtype)
        result = select(ne(odd, 0), mul(result, square), result)
        square = mul(square, square)
    return result


@lowering("BitShift")
def _bit_shift(ctx: Context, node: Node, index: Index) -> Expr:
    x, amount = ctx.operand(node, 0, index), ctx.operand(node, 1, index)
    if x.dtype.kind != "uint":
        raise NotLowerable("BitShift of signed integers is not generated")
    return call("shl" if node.attrs["direction"] == "LEFT" else "shr", (x, amount), x.dtype)


@lowering("IsNaN")
def _is_nan(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    return ne(x, x)


@lowering("IsInf")
def _is_inf(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    positive = bool(node.attrs.get("detect_positive", True))
    negative = bool(node.attrs.get("detect_negative", True))
    if positive and negative:
        return eq(unary("abs", x), math.inf)
    if positive or negative:
        return eq(x, math.inf if positive else -math.inf)
    return const_of(False, BOOL)


# ---------------------------------------------------------------------- activations
@lowering("Relu")
def _relu(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    # Written so that NaN stays NaN: a comparison with NaN is false.
    return select(lt(x, 0), const_of(0, x.dtype), x)


@lowering("LeakyRelu")
def _leaky_relu(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    return select(lt(x, 0), mul(x, float(node.attrs.get("alpha", 0.01))), x)


@lowering("PRelu")
def _prelu(ctx: Context, node: Node, index: Index) -> Expr:
    x, slope = ctx.operand(node, 0, index), ctx.operand(node, 1, index)
    return select(lt(x, 0), mul(x, slope), x)


@lowering("ThresholdedRelu")
def _thresholded_relu(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    return select(lt(float(node.attrs.get("alpha", 1.0)), x), x, const_of(0, x.dtype))


def _expm1_negative(x: Expr) -> Expr:
    return unary("expm1", minimum(x, 0))


@lowering("Elu")
def _elu(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    return select(lt(x, 0), mul(_expm1_negative(x), float(node.attrs.get("alpha", 1.0))), x)


@lowering("Selu")
def _selu(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    alpha = float(node.attrs.get("alpha", 1.6732631921768188))
    gamma = float(node.attrs.get("gamma", 1.0507010221481323))
    return mul(select(lt(0, x), x, mul(_expm1_negative(x), alpha)), gamma)


@lowering("Celu")
def _celu(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    alpha = float(node.attrs.get("alpha", 1.0))
    negative = minimum(mul(_expm1_negative(div(x, alpha)), alpha), 0)
    return add(maximum(x, 0), negative)


@lowering("Gelu")
def _gelu(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    if node.attrs.get("approximate", "none") == "tanh":
        cube = mul(mul(x, x), x)
        inner = mul(add(x, mul(cube, 0.044715)), math.sqrt(2 / math.pi))
        return mul(mul(x, 0.5), add(unary("tanh", inner), 1.0))
    return mul(mul(x, 0.5), add(unary("erf", mul(x, math.sqrt(0.5))), 1.0))


@lowering("HardSigmoid")
def _hard_sigmoid(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    line = add(
        mul(x, float(node.attrs.get("alpha", 0.2))), float(node.attrs.get("beta", 0.5))
    )
    return minimum(maximum(line, 0), 1)


@lowering("HardSwish")
def _hard_swish(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    return mul(x, minimum(maximum(add(mul(x, 1 / 6), 0.5), 0), 1))


@lowering("Mish")
def _mish(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    # tanh(log(1 + n)) with n = e**x is n(n + 2) / (n(n + 2) + 2); from x = 20 on it is 1.
    n = unary("exp", minimum(x, 20.0))
    square = mul(n, add(n, 2.0))
    return mul(x, div(square, add(square, 2.0)))


@lowering("Swish")
def _swish(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    alpha = float(node.attrs.get("alpha", 1.0))
    return mul(x, unary("sigmoid", x if alpha == 1.0 else mul(x, alpha)))


@lowering("Shrink")
def _shrink(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    if not x.dtype.is_float:
        raise NotLowerable("Shrink of integers is not generated")
    bias, lambd = float(node.attrs.get("bias", 0.0)), float(node.attrs.get("lambd", 0.5))
    above = select(lt(lambd, x), sub(x, bias), const_of(0, x.dtype))
    return select(lt(x, -lambd), add(x, bias), above)


@lowering("Softplus")
def _softplus(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    tail = unary("log1p", unary("exp", unary("neg", unary("abs", x))))
    return add(maximum(x, 0), tail)


@lowering("Softsign")
def _softsign(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    return div(x, add(unary("abs", x), 1))


@lowering("Clip")
def _clip(ctx: Context, node: Node, index: Index) -> Expr:
    x = ctx.operand(node, 0, index)
    low, high = node.attrs.get("min"), node.attrs.get("max")
    if low is not None:
        x = maximum(x, const_of(low, x.dtype))
    return x if high is None else minimum(x, const_of(high, x.dtype))


# ---------------------------------------------------------------------- conversions
_LARGEST = {"f16": 65504.0, "bf16": 2.0**127 * (2 - 2.0**-7)}


@lowering("Cast")
def _cast(ctx: Context, node: Node, index: Index) -> Expr:
    x, to = ctx.operand(node, 0, index), node.attrs["to"]
    if node.attrs.get("clamp") and x.dtype.is_float:
        limit = _LARGEST[to.name]
        bounded = minimum(maximum(x, const_of(-limit, x.dtype)), const_of(limit, x.dtype))
        x = select(lt(unary("abs", x), const_of(math.inf, x.dtype)), bounded, x)  # infinities and NaN stay
    return convert(x, to)


def convert(x: Expr, to: DType) -> Expr:
    """x rounded to an element type, in that type's compute dtype."""
    if to in (F16, BF16):
        if x.dtype == F64:
            raise NotLowerable(f"casts from f64 to {to} round twice")
        return unary(f"round_{to.name}", cast(x, F32))
    return cast(x, compute_dtype(to))


def _parameter(ctx: Context, node: Node, position: int, index: Index) -> Expr:
    """A scale or zero point at an element of the output: one for all, per axis, or per block."""
    value: Value = node.input(position)
    shape = value.tensor.shape
    block, axis = int(node.attrs.get("block_size", 0)), int(node.attrs.get("axis", 1))
    if block:
        return ctx.load(value, tuple(i // block if d == axis else i for d, i in enumerate(index)))
    if len(shape) == 0 or all(d == 1 for d in shape):
        return ctx.load(value, (0,) * len(shape))
    return ctx.load(value, (index[axis],))


@lowering("DequantizeLinear")
def _dequantize(ctx: Context, node: Node, index: Index) -> Expr:
    x, scale = ctx.load(node.input(0), index), _parameter(ctx, node, 1, index)
    wide = F64 if x.dtype.bits >= 32 else F32
    value = cast(x, wide)
    if len(node.inputs) > 2 and node.inputs[2] is not None and not x.dtype.is_float:
        value = sub(value, cast(_parameter(ctx, node, 2, index), wide))
    return cast(mul(value, cast(scale, wide)), compute_dtype(node.output.tensor.dtype))


@lowering("QuantizeLinear")
def _quantize(ctx: Context, node: Node, index: Index) -> Expr:
    to = node.output.tensor.dtype
    if not to.is_int or to.bits > 16:
        raise NotLowerable(f"QuantizeLinear to {to} is not generated")
    if node.attrs.get("precision") not in (None, F32):
        raise NotLowerable(f"QuantizeLinear in {node.attrs['precision']} is not generated")
    x, scale = ctx.load(node.input(0), index), _parameter(ctx, node, 1, index)
    if x.dtype == F64 or scale.dtype == F64:
        raise NotLowerable("QuantizeLinear of f64 is not generated")
    value = unary("rint", div(cast(x, F32), cast(scale, F32)))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        value = add(value, cast(_parameter(ctx, node, 2, index), F32))
    signed = to.kind == "int"
    low, high = (-(2 ** (to.bits - 1)) if signed else 0), 2 ** (to.bits - signed) - 1
    bounded = minimum(maximum(value, float(low)), float(high))
    # NaN has no integer; the reference takes 0.
    return cast(select(either(lt(value, 0), le(0, value)), bounded, const_of(0, F32)), to)
