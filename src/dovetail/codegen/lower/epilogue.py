"""Epilogues of GEMM and convolution templates: pointwise bodies printed on vectors of fp32.

    code = epilogue_code(body, names, "v16f", prefix="e")

- `body`: the fusion body (a Graph, anchor included). Everything between the anchor's output and the
  body's outputs must be pointwise; `epilogue_reason(body, anchor)` gives None or says what is not.
- `names`: C variables of type `vector` for the anchor's output value and for every other value that the
  outputs need and that the template has loaded: bias (a vector of channels), residual (same shape), scalars
  (`dt_set_v16f(p[0])`). Keys are *body* values (body inputs or the anchor's output). Narrow floats
  are already widened to fp32.
- `vector`: "v16f", "v8f", "v4f" (see `vmath.prelude`) or "float", for scalar tails.
- `code.statements`: C statements, each variable prefixed with `prefix`; put them in a block after the loads.
- `code.results`: per body output, the name of the fp32 variable that holds it. The template stores it, rounding
  narrow floats with `dt_f32_f16` / `dt_f32_bf16`.

`side_inputs(body, anchor)` lists the body inputs that the template must load, in order.
Arithmetic is the same for every vector width, so tails and bodies agree bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.codegen.c_scalar import literal, unsupported
from dovetail.codegen.loop_ir import Call, Const, Expr, Leaf, Scope, compute_dtype, leaf
from dovetail.codegen.lower.context import Context, Index, NotLowerable, find_lowering
from dovetail.core.dtypes import BOOL, F32
from dovetail.ir.graph import Graph, Node, Value
from dovetail.ir.types import TensorType
from dovetail.ops.registry import OpKind, find

# Functions with a vector form in vmath.prelude, beside operators.
_MATH = frozenset(
    ["exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid", "floor", "ceil", "rint", "trunc", "sqrt", "abs", "max", "min", "copysign"]
)
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_COMPARE = frozenset({"lt", "le", "eq", "ne"})


@dataclass(frozen=True)
class EpilogueCode:
    """Statements, and the variables (of compute dtypes) that hold the results, one per body output."""

    statements: tuple[str, ...]
    results: tuple[str, ...]


class Elementwise(Context):
    """Lowers pointwise nodes at one element; `names` gives the variables of the operands that are there."""

    def __init__(self, names: Mapping[Value, str]) -> None:
        super().__init__(Scope(), {})
        self._names = names

    def value(self, value: Value) -> Expr:
        """The element of a value."""
        return self.once((value,), lambda: self._value(value))

    def _value(self, value: Value) -> Expr:
        if value in self._names:
            return leaf(self._names[value], compute_dtype(value.tensor.dtype))
        node = value.producer
        if node is None:
            raise NotLowerable(f"operand {value.name} has not been loaded")
        spec, function = find(node.op), find_lowering(node.op)
        if spec is None or spec.kind != OpKind.POINTWISE or function is None:
            raise NotLowerable(f"{node.op} is not pointwise")
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            raise NotLowerable(f"{node.op} has no vector form")
        return function(self, node, ())

    def operand(self, node: Node, position: int, index: Index | object) -> Expr:
        """The element of an operand; templates broadcast when they load."""
        return self.value(node.input(position))


def side_inputs(body: Graph, anchor: Node) -> list[Value]:
    """The body inputs that the outputs read other than through the anchor, in order of the inputs."""
    found: set[Value] = set()
    pending, seen = list(body.outputs), set()
    while pending:
        value = pending.pop()
        if value in seen or value.producer is anchor:
            continue
        seen.add(value)
        if value.producer is None:
            found.add(value)
        else:
            pending += value.producer.operands
    return [v for v in body.inputs if v in found]


def epilogue_reason(body: Graph, anchor: Node) -> str | None:
    """None if what follows the anchor has a vector form, else the reason why not."""
    if len(anchor.outputs) != 1:
        return f"{anchor.op} has {len(anchor.outputs)} results"
    values = [anchor.output, *side_inputs(body, anchor)]
    for value in (*values, *body.outputs):
        if not isinstance(value.type, TensorType) or not value.tensor.dtype.is_float:
            return f"{value.name} is not a float tensor"
        if value.tensor.dtype.bits > 32:
            return f"{value.name} is {value.tensor.dtype}"
    try:
        epilogue_code(body, {v: f"x{i}" for i, v in enumerate(values)}, "v16f")
    except NotLowerable as reason:
        return str(reason)
    return None


def epilogue_code(
    body: Graph, names: Mapping[Value, str], vector: str, prefix: str = "e"
) -> EpilogueCode:
    """The statements that compute the body's outputs from the variables in `names`.

    Raises:
        NotLowerable: `epilogue_reason` gives the same reason beforehand.
    """
    ctx = Elementwise(names)
    printer = _VectorPrinter(vector, prefix)
    results = tuple(printer.emit(ctx.value(v)) for v in body.outputs)
    return EpilogueCode(tuple(printer.statements), results)


class ElementPrinter(ABC):
    """Prints expressions of single elements, a statement for each operation.

    Attributes:
        statements: what has been printed.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.statements: list[str] = []
        self._memo: dict[Expr, str] = {}

    def emit(self, e: Expr) -> str:
        """The variable that holds e."""
        if isinstance(e, Leaf):
            return e.name
        found = self._memo.get(e)
        if found is None:
            text = self._text(e)
            found = f"{self.prefix}{len(self.statements)}"
            self.statements.append(self._definition(e, found, text))
            self._memo[e] = found
        return found

    @abstractmethod
    def _text(self, e: Expr) -> str:
        """The value of e, whose operands are emitted first."""

    @abstractmethod
    def _definition(self, e: Expr, name: str, text: str) -> str:
        """The statement that gives a name to the value of e."""


class _VectorPrinter(ElementPrinter):
    """Prints expressions on fp32 vectors, or on scalars with the same arithmetic."""

    def __init__(self, vector: str, prefix: str) -> None:
        super().__init__(prefix)
        self.vector = vector
        self.suffix = "f" if vector == "float" else f"_{vector}"
        self.mask = "int32_t" if vector == "float" else f"{vector[:-1]}i"

    def _definition(self, e: Expr, name: str, text: str) -> str:
        return f"const {self.mask if e.dtype == BOOL else self.vector} {name} = {text};"

    def _text(self, e: Expr) -> str:
        if isinstance(e, Const) and e.dtype == F32:
            return f"dt_set{self.suffix}({literal(e.value, F32)})"
        if not isinstance(e, Call) or e.dtype not in (F32, BOOL):
            raise NotLowerable(f"a value of {e.dtype} has no vector form")
        operands = e.args[1:] if e.fn == "select" else e.args
        kinds = {a.dtype for a in operands}
        if unsupported(e.fn, e.args[-1].dtype) or not kinds <= {F32, BOOL}:
            raise NotLowerable(f"{e.fn} has no vector form")
        args = [self.emit(a) for a in e.args]
        joined = ", ".join(args)
        if e.fn in _LOGIC and kinds == {BOOL}:
            return f"{args[0]} {_LOGIC[e.fn]} {args[1]}"
        if e.fn == "not":
            return f"~{args[0]}"
        if kinds == {F32}:
            if e.fn in _OPERATORS:
                return f"{args[0]} {_OPERATORS[e.fn]} {args[1]}"
            if e.fn == "neg":
                return f"-{args[0]}"
            if e.fn in _COMPARE or e.fn in _MATH:
                return f"dt_{e.fn}{self.suffix}({joined})"
            if e.fn == "select":
                return f"dt_sel{self.suffix}({joined})"
        raise NotLowerable(f"{e.fn} has no vector form")
