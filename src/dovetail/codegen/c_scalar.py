"""How single expressions of the loop IR are written in C: types, constants, functions, index polynomials."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dovetail.codegen import scalar
from dovetail.codegen.scalar import FUNCTIONS, INTEGERS, OPERATORS, DimSyntax
from dovetail.core.dims import Dim, symbols
from dovetail.core.dtypes import BF16, BOOL, F16, F32, F64, DType

# Element types in memory and of local variables.
_MEMORY = {"f16": "uint16_t", "bf16": "uint16_t", "f32": "float", "f64": "double", "bool": "uint8_t"}


def memory_type(dtype: DType) -> str:
    """The C type of an element in a buffer."""
    if dtype.name in INTEGERS:
        return f"{scalar.integer_name(dtype)}_t"
    return _MEMORY[dtype.name]


def local_type(dtype: DType) -> str:
    """The C type of a local variable of a compute dtype."""
    return "_Bool" if dtype == BOOL else memory_type(dtype)


def literal(value: float | int | bool, dtype: DType) -> str:
    """A C literal of a compute dtype."""
    if dtype == BOOL:
        return "1" if value else "0"
    if dtype.is_float:
        suffix = "f" if dtype == F32 else ""
        number = float(value)
        special = scalar.non_finite(number, dtype)
        if special == "nan":
            return f'__builtin_nan{suffix}("")'
        if special:
            return f"{'-' if number < 0 else ''}__builtin_inf{suffix}()"
        return f"({number.hex()}{suffix})"
    number_ = int(value)
    if dtype.bits == 64:
        if dtype.kind == "uint":
            return f"{number_}ul"
        return f"{number_}l" if number_ > -(2**63) else "(-9223372036854775807l - 1)"
    return f"(({local_type(dtype)}){number_}l)"


def widen(text: str, dtype: DType) -> str:
    """A loaded element as its compute dtype."""
    if dtype == F16:
        return f"dt_f16_f32({text})"
    if dtype == BF16:
        return f"dt_bf16_f32({text})"
    return text


def narrow(text: str, dtype: DType) -> str:
    """A value of the compute dtype as an element of `dtype` in memory."""
    if dtype == F16:
        return f"dt_f32_f16({text})"
    if dtype == BF16:
        return f"dt_f32_bf16({text})"
    return text


# Those of `FUNCTIONS` that vmath.prelude has in double precision, too.
_DOUBLE = frozenset(["floor", "rint", "trunc"])


def unsupported(fn: str, dtype: DType) -> str | None:
    """None if function `fn` exists on operands of `dtype`, else the reason."""
    return scalar.double_reason(fn, dtype, _DOUBLE)


def function(fn: str, args: list[str], operand: DType, dtype: DType) -> str:
    """The C expression of `fn`; `operand` is the dtype of its (last) operand, `dtype` of its result."""
    if fn in OPERATORS:
        text = f"{args[0]} {OPERATORS[fn]} {args[1]}"
        # Integer promotion must be cut back to the operand's width.
        return f"({local_type(dtype)})({text})" if dtype.is_int and dtype.bits < 32 else text
    if fn in FUNCTIONS and operand.is_float:
        return f"dt_{fn}{'d' if operand == F64 else 'f'}({', '.join(args)})"
    return _SPECIAL[fn](args, operand, dtype)


def _div(a: list[str], operand: DType, dtype: DType) -> str:
    if dtype.is_float:
        return f"{a[0]} / {a[1]}"
    t = local_type(dtype)
    # C leaves x / 0 and MIN / -1 undefined; NumPy gives 0 and wraps.
    if dtype.kind == "uint":
        return f"{a[1]} == 0 ? 0 : ({t})({a[0]} / {a[1]})"
    return f"{a[1]} == 0 ? 0 : {a[1]} == -1 ? ({t})(0 - {a[0]}) : ({t})({a[0]} / {a[1]})"


def _rem(a: list[str], operand: DType, dtype: DType) -> str:
    t = local_type(dtype)
    if dtype.kind == "uint":
        return f"{a[1]} == 0 ? 0 : ({t})({a[0]} % {a[1]})"
    return f"({a[1]} == 0) | ({a[1]} == -1) ? 0 : ({t})({a[0]} % {a[1]})"


def _cast(a: list[str], operand: DType, dtype: DType) -> str:
    if dtype == BOOL:
        return f"{a[0]} != 0"
    if scalar.wraps(operand, dtype):
        return f"({local_type(dtype)})(int64_t){a[0]}"
    return f"({local_type(dtype)}){a[0]}"


def _extreme(name: str, less: str) -> Callable[[list[str], DType, DType], str]:
    def write(a: list[str], operand: DType, dtype: DType) -> str:
        if dtype.is_float:
            return f"dt_{name}{'d' if dtype == F64 else 'f'}({a[0]}, {a[1]})"
        return f"{a[0]} {less} {a[1]} ? {a[0]} : {a[1]}"

    return write


def _abs(a: list[str], operand: DType, dtype: DType) -> str:
    if dtype.is_float:
        return f"__builtin_fabs{'' if dtype == F64 else 'f'}({a[0]})"
    if dtype.kind == "uint":
        return a[0]
    return f"({local_type(dtype)})({a[0]} < 0 ? 0 - {a[0]} : {a[0]})"


def _shift(operator: str) -> Callable[[list[str], DType, DType], str]:
    def write(a: list[str], operand: DType, dtype: DType) -> str:
        t = local_type(dtype)
        return f"{a[1]} >= {dtype.bits} ? ({t})0 : ({t})({a[0]} {operator} {a[1]})"

    return write


_SPECIAL: Mapping[str, Callable[[list[str], DType, DType], str]] = {
    "div": _div,
    "rem": _rem,
    "cast": _cast,
    "max": _extreme("max", ">"),
    "min": _extreme("min", "<"),
    "abs": _abs,
    "neg": lambda a, o, d: f"-{a[0]}" if d.is_float else f"({local_type(d)})(0 - {a[0]})",
    "not": lambda a, o, d: f"!{a[0]}",
    "bitnot": lambda a, o, d: f"({local_type(d)})~{a[0]}",
    "select": lambda a, o, d: f"{a[0]} ? {a[1]} : {a[2]}",
    "sqrt": lambda a, o, d: f"dt_sqrt{'d' if d == F64 else 'f'}({a[0]})",
    "shl": _shift("<<"),
    "shr": _shift(">>"),
    "round_f16": lambda a, o, d: f"dt_f16_f32(dt_f32_f16({a[0]}))",
    "round_bf16": lambda a, o, d: f"dt_bf16_f32(dt_f32_bf16({a[0]}))",
}


_DIMS = DimSyntax(
    suffix="l",
    quotient="/",
    remainder="%",
    floored=lambda op, a, b: f"dt_{'floordiv' if op == '//' else 'floormod'}({a}, {b})",
    extreme=lambda op, a, b: f"dt_{op}i({a}, {b})",
)


def dim_text(d: Dim, names: Mapping[str, str], plain: Callable[[Dim], bool]) -> str:
    """A Dim as a C expression of int64; `plain(d)` says that d is known not to be negative.

    Divisions of values that may be negative go through `dt_floordiv` and `dt_floormod`.
    """
    return scalar.dim_text(d, names, plain, _DIMS)


def dim_symbols(d: Dim) -> list[str]:
    """The symbols of a Dim in a fixed order."""
    return sorted(symbols(d))
