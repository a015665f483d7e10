"""Whether a replacement gives values of the types that it takes the place of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from dovetail.core.dims import Dim, Expr, evaluate, substitute, sym, symbols
from dovetail.core.errors import Error
from dovetail.frontend.importer import main_context
from dovetail.frontend.protos import domain_of, free_names
from dovetail.ir.graph import Value as IRValue
from dovetail.ir.types import TensorType
from dovetail.model.rules.match import Match

_SMALL = 1024
_TRIED = ((96, 7), (120, 11), (48, 5))  # sizes: a first one and a step, so that symbols differ


def check_types(match: Match, nodes: Sequence[onnx.NodeProto], results: Sequence[str], model: onnx.ModelProto) -> str:
    """Check that `nodes` compute `results` of the types of the match's outputs; returns why that cannot be said, "" if it can.

    Raises:
        RuleError: an operator does not take what it is given, or dtype, rank or a size differ.
    """
    expected = [match.types.of(match.scope, name) for name in match.found.outputs]
    found = _infer(match, nodes, results, model)
    if isinstance(found, str):
        return found
    unknown = [name for name, type_ in zip(match.found.outputs, expected, strict=True) if type_ is None]
    for name, want, got in zip(match.found.outputs, expected, found, strict=True):
        if want is None:
            continue
        wrong = (
            got.dtype != want.dtype
            or len(got.shape) != len(want.shape)
            or any(_differ(a, b) for a, b in zip(got.shape, want.shape, strict=True))
        )
        if wrong:
            raise match.problem(
                f"its replacement breaks the type of {name!r}: got {_text(got)}, expected {_text(want)}; "
                "correct the rule, or let it decline"
            )
    return f"the type of {', '.join(unknown)} is not known" if unknown else ""


def _text(type_: TensorType) -> str:
    return f"{type_.dtype}[{', '.join(map(str, type_.shape))}]"


def _differ(a: Dim, b: Dim) -> bool:
    """Whether two sizes differ at all sizes of the inputs that are tried."""
    if a == b:
        return False
    names = sorted(symbols(a) | symbols(b))
    if symbols(a) != symbols(b):
        return False
    for first, step in _TRIED:
        env = {name: first + step * k for k, name in enumerate(names)}
        try:
            if evaluate(a, env) == evaluate(b, env):
                return False
        except (Error, ArithmeticError):
            return False
    return True


def _infer(
    match: Match, nodes: Sequence[onnx.NodeProto], results: Sequence[str], model: onnx.ModelProto
) -> list[TensorType] | str:
    """Types of results by importing the nodes alone; or why they cannot be known."""
    made = {o for n in nodes for o in n.output}
    body = helper.make_graph(list(nodes), "replacement", [], [])
    names: dict[str, None] = {}
    free_names(body, names)
    names |= dict.fromkeys(r for r in results if r not in made)
    originals: dict[str, Any] = {}
    for name in names:
        type_ = match.types.of(match.scope, name)
        if type_ is None:
            return f"the type of {name!r} is not known"
        size = type_.size
        constant = match.scope.constant(name) if isinstance(size, int) and size <= _SMALL and match.scope.is_constant(name) else None
        if constant is not None:
            body.initializer.append(onnx.numpy_helper.from_array(constant[1], name))
            continue
        shape: list[int | str] = []
        for dim in type_.shape:
            if isinstance(dim, Expr):
                alias = next((k for k, v in originals.items() if v == dim), f"dim{len(originals)}")
                originals[alias] = dim
                shape.append(alias)
            else:
                shape.append(dim)
        if type_.dtype.kind == "string":
            return f"{name!r} holds strings"
        body.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(type_.dtype.numpy), shape))
    body.output.extend(onnx.ValueInfoProto(name=r) for r in dict.fromkeys(results))
    opsets = {domain_of(o.domain): o.version for o in model.opset_import} | {
        domain_of(n.domain): 1 for n in nodes if domain_of(n.domain) not in match.opsets
    }
    alone = helper.make_model(body, opset_imports=[helper.make_opsetid(k, v) for k, v in opsets.items()], ir_version=model.ir_version)
    alone.functions.extend(model.functions)
    context = main_context(alone, None)
    try:
        context.import_main({})
    except Error as error:
        raise match.problem(f"its replacement does not fit: {error}") from error
    if context.session.problems:
        return "; ".join(context.session.problems)
    types = []
    for name in results:
        value = context.look_up(name)
        if not isinstance(value, IRValue) or not isinstance(value.type, TensorType):
            return f"{name!r} is no tensor"
        shape_ = tuple(substitute(d, originals) if symbols(d) <= originals.keys() else sym("?") for d in value.type.shape)
        types.append(TensorType(value.type.dtype, shape_))
    return types
