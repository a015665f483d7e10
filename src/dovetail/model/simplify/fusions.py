"""What exporters write out becomes one operator again, where the opset has it: Gelu and LayerNormalization. Only when asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import onnx

from dovetail.model.proto_graph import attribute
from dovetail.model.simplify.scope import Scope, describe

_GELU_SINCE, _LAYER_NORM_SINCE = 20, 17


def fuse_gelu(scope: Scope) -> list[str]:
    """x * 0.5 * (1 + erf(x / √2)) becomes Gelu, and so does its approximation with tanh; from opset 20 on."""
    texts: list[str] = []
    for node in scope.graph.node if scope.opset >= _GELU_SINCE else ():
        if not scope.is_op(node, "Mul"):
            continue
        factors = list(_factors(scope, node))
        numbers = [v for f in factors if (v := _number(scope, f)) is not None]
        others = [f for f in factors if _number(scope, f) is None]
        if len(others) != 2 or not math.isclose(math.prod(numbers), 0.5, rel_tol=1e-3) or not numbers:
            continue
        for x, sigmoid in (others, reversed(others)):
            kind = _gelu_kind(scope, sigmoid, x)
            if kind:
                texts.append(describe(node))
                node.op_type = "Gelu"
                node.input[:] = [x]
                node.attribute.append(onnx.helper.make_attribute("approximate", kind))
                break
    return texts


def _factors(scope: Scope, node: onnx.NodeProto) -> Iterator[str]:
    """The operands of a product of products; products that others read are operands themselves."""
    for name in node.input:
        inner = scope.made_by(name, "Mul")
        if inner is not None and scope.only_use(name):
            yield from _factors(scope, inner)
        else:
            yield name


def _number(scope: Scope, name: str) -> float | None:
    """The value of a constant with one element, and at most one axis."""
    tensor = scope.constants.get(name)
    if tensor is None or len(tensor.dims) > 1 or any(d != 1 for d in tensor.dims):
        return None
    value = scope.constant(name)
    return None if value is None else float(value.reshape(-1)[0])


def _plus(scope: Scope, name: str, number: float) -> str:
    """The other operand of an Add of a number; empty if it is none."""
    return _with_number(scope, name, "Add", lambda v: math.isclose(v, number, rel_tol=1e-3))


def _times(scope: Scope, name: str, number: float) -> str:
    """The other operand of a product with a number, or of a quotient by its reciprocal; empty if it is none."""
    found = _with_number(scope, name, "Mul", lambda v: math.isclose(v, number, rel_tol=1e-3))
    return found or _with_number(scope, name, "Div", lambda v: v != 0 and math.isclose(1 / v, number, rel_tol=1e-3), (1,))


def _with_number(scope: Scope, name: str, op: str, fits: Callable[[float], bool], positions: tuple[int, ...] = (0, 1)) -> str:
    node = scope.made_by(name, op)
    if node is None:
        return ""
    for position in positions:
        value = _number(scope, node.input[position])
        if value is not None and fits(value):
            return str(node.input[1 - position])
    return ""


def _gelu_kind(scope: Scope, name: str, x: str) -> str:
    """What a value is that multiplies x/2: "none" for 1 + erf(x/√2), "tanh" for the approximation, empty for anything else."""
    inner = scope.producers.get(_plus(scope, name, 1.0))
    if inner is None:
        return ""
    if scope.is_op(inner, "Erf") and _times(scope, inner.input[0], math.sqrt(0.5)) == x:
        return "none"
    if scope.is_op(inner, "Tanh"):
        added = scope.made_by(_times(scope, inner.input[0], math.sqrt(2 / math.pi)), "Add")
        if added is None or x not in added.input:
            return ""
        cubed = added.input[1] if added.input[0] == x else added.input[0]
        return "tanh" if _is_cube(scope, _times(scope, cubed, 0.044715), x) else ""
    return ""


def _is_cube(scope: Scope, name: str, x: str) -> bool:
    power = scope.made_by(name, "Pow")
    if power is not None:
        return bool(power.input[0] == x and _number(scope, power.input[1]) == 3)
    product = scope.made_by(name, "Mul")
    return product is not None and sorted(_factors(scope, product)) == [x, x, x]


def fuse_layer_norms(scope: Scope) -> list[str]:
    """(x - mean) / √(variance + ε) * scale + bias over the last axes becomes LayerNormalization; from opset 17 on."""
    texts: list[str] = []
    for node in scope.graph.node if scope.opset >= _LAYER_NORM_SINCE else ():
        if not scope.is_op(node, "Add"):
            continue
        for position in (0, 1):
            product, bias = scope.made_by(node.input[1 - position], "Mul"), node.input[position]
            if product is None or bias not in scope.constants or not scope.only_use(node.input[1 - position]):
                continue
            found = _normalised(scope, product)
            if found is None or list(scope.constants[found[1]].dims) != list(scope.constants[bias].dims):
                continue
            x, scale, epsilon = found
            texts.append(describe(node))
            node.op_type = "LayerNormalization"
            node.input[:] = [x, scale, bias]
            node.attribute.append(onnx.helper.make_attribute("axis", -len(scope.constants[scale].dims)))
            node.attribute.append(onnx.helper.make_attribute("epsilon", epsilon))
            break
    return texts


def _normalised(scope: Scope, product: onnx.NodeProto) -> tuple[str, str, float] | None:
    """(x, scale, ε) of a product of a scale and x normalised over its last axes."""
    for position in (0, 1):
        scale, quotient = product.input[position], scope.made_by(product.input[1 - position], "Div")
        root = None if quotient is None else scope.made_by(quotient.input[1], "Sqrt")
        if scale not in scope.constants or quotient is None or root is None:
            continue
        centred = scope.made_by(quotient.input[0], "Sub")
        added = scope.made_by(root.input[0], "Add")
        if centred is None or added is None:
            continue
        x, rank = centred.input[0], scope.rank(centred.input[0])
        sizes = scope.shape(x)
        dims = list(scope.constants[scale].dims)
        if rank is None or sizes is None or not dims or dims != list(sizes[-len(dims) :]) or str(scope.dtype(x)) not in ("f32", "f16"):
            continue
        axes = set(range(rank - len(dims), rank))
        for side in (0, 1):
            epsilon = _number(scope, added.input[side])
            square = _mean_of(scope, added.input[1 - side], axes)
            if epsilon is not None and _is_square(scope, square, quotient.input[0]) and _mean_of(scope, centred.input[1], axes) == x:
                return x, scale, epsilon
    return None


def _mean_of(scope: Scope, name: str, axes: set[int]) -> str:
    """What a value is the mean of, over these axes, which it keeps; empty if it is none."""
    node = scope.made_by(name, "ReduceMean")
    given = None if node is None else scope.axes(node, 1)
    rank = None if node is None else scope.rank(node.input[0])
    if node is None or given is None or rank is None or attribute(node, "keepdims", 1) != 1:
        return ""
    return str(node.input[0]) if {a % rank for a in given} == axes else ""


def _is_square(scope: Scope, name: str, of: str) -> bool:
    power, product = scope.made_by(name, "Pow"), scope.made_by(name, "Mul")
    if power is not None:
        return bool(power.input[0] == of and _number(scope, power.input[1]) == 2)
    return product is not None and list(product.input) == [of, of]
