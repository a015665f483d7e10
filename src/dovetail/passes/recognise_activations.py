"""Recognises activations that exporters write out: GELU, SiLU, Mish, hard sigmoid and hard swish."""

from __future__ import annotations

import math

from dovetail.ir.graph import Node, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.passes.clean import replace, used_once
from dovetail.passes.patterns import Product, Scalars, added_number, factors_of, is_near, made_by


def _is_scaled(value: Value, x: Value, factor: float, scalars: Scalars) -> bool:
    """Whether value = x * factor."""
    product = factors_of(value, scalars)
    return product.factors == [x] and is_near(product.number, factor)


def _cubic(value: Value, x: Value, scalars: Scalars) -> bool:
    """Whether value = x + 0.044715 x^3, in any of the ways to write it."""
    node = made_by(value, "Add")
    if node is None:
        return False
    sides = (node.input(0), node.input(1))
    orders = (sides, sides[::-1])
    return any(first is x and _is_cube(factors_of(second, scalars), x, scalars) for first, second in orders)


def _is_cube(product: Product, x: Value, scalars: Scalars) -> bool:
    powers = 0
    for factor in product.factors:
        power = made_by(factor, "Pow")
        if factor is x:
            powers += 1
        elif power is not None and power.input(0) is x:
            exponent = scalars.number(power.input(1))
            powers += int(exponent) if exponent is not None and exponent.is_integer() else 100
        else:
            square = made_by(factor, "Mul")
            powers += 2 if square is not None and square.input(0) is x and square.input(1) is x else 100
    return powers == 3 and is_near(product.number, 0.044715)


def _tanh_argument(value: Value, x: Value, scalars: Scalars) -> bool:
    """Whether value = sqrt(2 / pi) (x + 0.044715 x^3)."""
    product = factors_of(value, scalars)
    if not is_near(product.number, math.sqrt(2 / math.pi)):
        return False
    if len(product.factors) == 1:
        return _cubic(product.factors[0], x, scalars)
    if len(product.factors) == 2 and x in product.factors:
        # Factored: x (1 + 0.044715 x^2).
        (other,) = [f for f in product.factors if f is not x] or [x]
        shifted = added_number(other, scalars)
        if shifted is None or shifted[1] != 1:
            return False
        square = factors_of(shifted[0], scalars)
        return square.factors == [x, x] and is_near(square.number, 0.044715)
    return False


@rule("Mul")
def recognise_gelu(node: Node, rewrite: Rewrite) -> str | None:
    """0.5 x (1 + erf(x / sqrt 2)) and its tanh approximation are Gelu."""
    scalars = Scalars(rewrite.module)
    product = factors_of(node.output, scalars)
    if len(product.factors) != 2 or not is_near(product.number, 0.5):
        return "not one half of two factors"
    for i in (0, 1):
        x, gate = product.factors[i], product.factors[1 - i]
        shifted = added_number(gate, scalars)
        if shifted is None or shifted[1] != 1:
            continue
        erf, tanh = made_by(shifted[0], "Erf"), made_by(shifted[0], "Tanh")
        if erf is not None and _is_scaled(erf.input(0), x, math.sqrt(0.5), scalars):
            approximate = "none"
        elif tanh is not None and _tanh_argument(tanh.input(0), x, scalars):
            approximate = "tanh"
        else:
            continue
        scalars.commit("Gelu")
        replace(rewrite, node, rewrite.emit("Gelu", x, name=node.output.name, approximate=approximate))
        return None
    return "no factor is 1 + erf or 1 + tanh of the other"


@rule("Mul")
def recognise_swish(node: Node, rewrite: Rewrite) -> str | None:
    """x sigmoid(alpha x) is Swish; x tanh(softplus(x)) is Mish; x hardsigmoid(x) is HardSwish."""
    for i in (0, 1):
        x, gate = node.input(i), node.input(1 - i)
        inner = made_by(gate, "Sigmoid", "Tanh", "HardSigmoid")
        if inner is None or not used_once(gate) or x.type != node.output.type:
            continue
        if inner.op == "Sigmoid":
            scalars = Scalars(rewrite.module)
            product = factors_of(inner.input(0), scalars)
            if product.factors != [x]:
                continue
            if inner.input(0) is not x:
                scalars.commit("Swish")
            replace(rewrite, node, rewrite.emit("Swish", x, name=node.output.name, alpha=product.number))
            return None
        if inner.op == "Tanh":
            softplus = made_by(inner.input(0), "Softplus")
            if softplus is None or softplus.input(0) is not x:
                continue
            replace(rewrite, node, rewrite.emit("Mish", x, name=node.output.name))
            return None
        slope, offset = inner.attrs.get("alpha", 0.2), inner.attrs.get("beta", 0.5)
        if inner.input(0) is x and is_near(slope, 1 / 6, 1e-5) and offset == 0.5:
            replace(rewrite, node, rewrite.emit("HardSwish", x, name=node.output.name))
            return None
    return "no operand is a gate of the other"


@rule("Mul", "Div")
def recognise_hard_sigmoid(node: Node, rewrite: Rewrite) -> str | None:
    """clip(x + 3, 0, 6) / 6 is HardSigmoid with slope 1/6; times x it is HardSwish."""
    scalars = Scalars(rewrite.module)
    product = factors_of(node.output, scalars)
    if not is_near(product.number, 1 / 6, 1e-5) or len(product.factors) not in (1, 2):
        return "not one sixth of one or two factors"
    for gate in product.factors:
        clip = made_by(gate, "Clip")
        if clip is None or clip.attrs.get("min") != 0 or clip.attrs.get("max") != 6:
            continue
        shifted = added_number(clip.input(0), scalars)
        if shifted is None or shifted[1] != 3:
            continue
        x = shifted[0]
        if len(product.factors) == 2:
            others = [f for f in product.factors if f is not gate]
            if others != [x]:
                continue
        scalars.commit("HardSigmoid")
        if len(product.factors) == 2:
            y = rewrite.emit("HardSwish", x, name=node.output.name)
        else:
            y = rewrite.emit("HardSigmoid", x, name=node.output.name, alpha=1 / 6, beta=0.5)
        replace(rewrite, node, y)
        return None
    return "no factor is clip(x + 3, 0, 6)"


ACTIVATION_RULES = (recognise_gelu, recognise_swish, recognise_hard_sigmoid)
