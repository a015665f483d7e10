"""Epilogues and prologues of Triton templates: pointwise bodies printed on blocks of fp32.

    code = epilogue_code(body, names, prefix="e")

Like `lower.epilogue`, whose `side_inputs` says which body inputs the template must load: `names` maps the anchor's output (and each
loaded body input) to the name of a Triton tensor of its compute dtype, with shapes that broadcast against the accumulator.
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.codegen import scalar, triton_scalar
from dovetail.codegen.loop_ir import Call, Const, Expr
from dovetail.codegen.lower.context import NotLowerable
from dovetail.codegen.lower.epilogue import ElementPrinter, Elementwise, EpilogueCode, side_inputs
from dovetail.ir.graph import Graph, Node, Value
from dovetail.ir.types import TensorType


def epilogue_code(body: Graph, names: Mapping[Value, str], prefix: str = "e") -> EpilogueCode:
    """The statements that compute the body's outputs from the variables in `names`.

    Raises:
        NotLowerable: `epilogue_reason` gives the same reason beforehand.
    """
    return value_code(list(body.outputs), names, prefix)


def value_code(values: list[Value], names: Mapping[Value, str], prefix: str = "e") -> EpilogueCode:
    """The statements that compute any values of a body from the variables in `names`; see `epilogue_code`."""
    ctx = Elementwise(names)
    printer = _BlockPrinter(prefix)
    results = tuple(printer.emit(ctx.value(v)) for v in values)
    return EpilogueCode(tuple(printer.statements), results)


def epilogue_reason(body: Graph, anchor: Node) -> str | None:
    """None if what follows the anchor can be computed on blocks, else the reason why not."""
    if len(anchor.outputs) != 1:
        return f"{anchor.op} has {len(anchor.outputs)} results"
    values = [anchor.output, *side_inputs(body, anchor)]
    for value in (*values, *body.outputs):
        if not isinstance(value.type, TensorType) or value.tensor.dtype.name not in scalar.DTYPES:
            return f"{value.name} is {value.type}, which has no generated code"
    try:
        epilogue_code(body, {v: f"x{i}" for i, v in enumerate(values)})
    except NotLowerable as reason:
        return str(reason)
    return None


class _BlockPrinter(ElementPrinter):
    """Prints expressions over Triton tensors."""

    def _definition(self, e: Expr, name: str, text: str) -> str:
        return f"{name} = {text}"

    def _text(self, e: Expr) -> str:
        if isinstance(e, Const):
            return triton_scalar.full(e.value, e.dtype)
        if not isinstance(e, Call):
            raise NotLowerable("an index has no block form")
        operand = e.args[-1].dtype
        reason = triton_scalar.unsupported(e.fn, operand)
        if reason is not None:
            raise NotLowerable(reason)
        return triton_scalar.function(e.fn, [self.emit(a) for a in e.args], operand, e.dtype)
