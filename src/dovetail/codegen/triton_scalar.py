"""How single expressions of the loop IR are written in Triton: types, constants, functions, index polynomials.

Every text is an expression over Triton tensors (or scalars) of compute dtypes: fp32 for fp16, bf16 and fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dovetail.codegen import scalar
from dovetail.codegen.scalar import FUNCTIONS, INTEGERS, OPERATORS, DimSyntax
from dovetail.core.dims import Dim
from dovetail.core.dtypes import BF16, BOOL, F16, F32, DType

# Element types of buffers and of local values. A bool is a byte in memory.
_POINTER = {"f16": "fp16", "bf16": "bf16", "f32": "fp32", "f64": "fp64", "bool": "i8"}
_LOCAL = {"f16": "tl.float16", "bf16": "tl.bfloat16", "f32": "tl.float32", "f64": "tl.float64", "bool": "tl.int1"}


def pointer_type(dtype: DType) -> str:
    """The element type of a pointer parameter: "fp16", "i64"."""
    return dtype.name if dtype.name in INTEGERS else _POINTER[dtype.name]


def tensor_type(dtype: DType) -> str:
    """The dtype of a local tensor: `tl.float32`, `tl.int64`."""
    if dtype.name in INTEGERS:
        return f"tl.{scalar.integer_name(dtype)}"
    return _LOCAL[dtype.name]


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant of a compute dtype, as a scalar expression."""
    if dtype == BOOL:
        return "True" if value else "False"
    if dtype.is_float:
        number = float(value)
        special = scalar.non_finite(number, dtype)
        return f'float("{special}")' if special else repr(number)
    return str(int(value)) if value >= 0 else f"({int(value)})"


def full(value: float | int | bool, dtype: DType) -> str:
    """A constant of exactly this dtype, as a zero-dimensional tensor that broadcasts: literals alone take a default type."""
    return f"tl.full((), {literal(value, dtype)}, {tensor_type(dtype)})"


def widen(text: str, dtype: DType) -> str:
    """A loaded element as its compute dtype."""
    if dtype in (F16, BF16):
        return f"{text}.to(tl.float32)"
    if dtype == BOOL:
        return f"({text} != 0)"
    return text


def narrow(text: str, dtype: DType) -> str:
    """A value of the compute dtype as an element of `dtype` in memory."""
    if dtype == BOOL:
        return f"({text}).to(tl.int8)"
    return f"({text}).to({tensor_type(dtype)})"


# Those of `FUNCTIONS` that Triton has itself; the others are of the device library.
_OWN = frozenset(["exp", "log", "erf", "floor", "ceil", "sigmoid", "sin", "cos"])
_DOUBLE = frozenset(["exp", "log", "floor", "ceil", "rint", "trunc"])


def unsupported(fn: str, dtype: DType) -> str | None:
    """None if function `fn` exists on operands of `dtype`, else the reason."""
    return scalar.double_reason(fn, dtype, _DOUBLE)


def function(fn: str, args: list[str], operand: DType, dtype: DType) -> str:
    """The expression of `fn`; `operand` is the dtype of its (last) operand, `dtype` of its result."""
    if fn in OPERATORS:
        return f"({args[0]} {OPERATORS[fn]} {args[1]})"
    if fn in FUNCTIONS and operand.is_float:
        return f"{'tl' if fn in _OWN else 'libdevice'}.{fn}({', '.join(args)})"
    return _SPECIAL[fn](args, operand, dtype)


def _div(a: list[str], operand: DType, dtype: DType) -> str:
    if dtype == F32:
        # Triton's own division is off by up to two units in the last place: enough to round to another integer.
        return f"tl.div_rn({a[0]}, {a[1]})"
    if dtype.is_float:
        return f"({a[0]} / {a[1]})"
    # x / 0 is undefined on the device; NumPy gives 0.
    return f"tl.where({a[1]} == 0, 0, {a[0]} // tl.where({a[1]} == 0, 1, {a[1]})).to({tensor_type(dtype)})"


def _rem(a: list[str], operand: DType, dtype: DType) -> str:
    return f"tl.where({a[1]} == 0, 0, {a[0]} % tl.where({a[1]} == 0, 1, {a[1]})).to({tensor_type(dtype)})"


def _cast(a: list[str], operand: DType, dtype: DType) -> str:
    if dtype == BOOL:
        return f"({a[0]} != 0)"
    if scalar.wraps(operand, dtype):
        return f"({a[0]}).to(tl.int64).to({tensor_type(dtype)})"
    return f"({a[0]}).to({tensor_type(dtype)})"


def _extreme(name: str) -> Callable[[list[str], DType, DType], str]:
    def write(a: list[str], operand: DType, dtype: DType) -> str:
        nan = ", propagate_nan=tl.PropagateNan.ALL" if dtype.is_float else ""
        return f"tl.{name}({a[0]}, {a[1]}{nan})"

    return write


def _shift(operator: str) -> Callable[[list[str], DType, DType], str]:
    def write(a: list[str], operand: DType, dtype: DType) -> str:
        far = f"{a[1]} >= {dtype.bits}"
        return f"tl.where({far}, 0, {a[0]} {operator} tl.where({far}, 0, {a[1]})).to({tensor_type(dtype)})"

    return write


_SPECIAL: Mapping[str, Callable[[list[str], DType, DType], str]] = {
    "div": _div,
    "sqrt": lambda a, o, d: f"tl.sqrt_rn({a[0]})" if d == F32 else f"tl.sqrt({a[0]})",
    "rem": _rem,
    "cast": _cast,
    "max": _extreme("maximum"),
    "min": _extreme("minimum"),
    "abs": lambda a, o, d: a[0] if d.kind == "uint" else f"tl.abs({a[0]})",
    "neg": lambda a, o, d: f"(-{a[0]})" if d.is_float else f"(0 - {a[0]})",
    "not": lambda a, o, d: f"({a[0]} == 0)",
    "bitnot": lambda a, o, d: f"(~{a[0]})",
    "select": lambda a, o, d: f"tl.where({a[0]}, {a[1]}, {a[2]})",
    "shl": _shift("<<"),
    "shr": _shift(">>"),
    "round_f16": lambda a, o, d: f"({a[0]}).to(tl.float16).to(tl.float32)",
    "round_bf16": lambda a, o, d: f"({a[0]}).to(tl.bfloat16).to(tl.float32)",
}


def _floored(op: str, a: str, b: str) -> str:
    """Device division truncates: the remainder is made positive, and the quotient is what is left without it."""
    remainder = f"((({a}) % ({b})) + ({b})) % ({b})"
    return f"(({a} - {remainder}) // ({b}))" if op == "//" else f"({remainder})"


_DIMS = DimSyntax(
    suffix="", quotient="//", remainder="%", floored=_floored, extreme=lambda op, a, b: f"tl.{op}imum({a}, {b})",
)  # fmt: skip


def dim_text(d: Dim, names: Mapping[str, str], plain: Callable[[Dim], bool] = lambda d: True) -> str:
    """A Dim as an integer expression; `plain(d)` says that d is known not to be negative."""
    return scalar.dim_text(d, names, plain, _DIMS)
