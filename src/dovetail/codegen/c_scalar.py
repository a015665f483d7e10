"""How single expressions of the loop IR are written in C: types, constants, functions, index polynomials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from dovetail.core.dims import Dim, Symbol, symbols
from dovetail.core.dtypes import BF16, BOOL, F16, F32, F64, DType

# Element types in memory and of local variables.
_MEMORY = {"f16": "uint16_t", "bf16": "uint16_t", "f32": "float", "f64": "double", "bool": "uint8_t"}
INTEGERS = ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64")
DTYPES = (*_MEMORY, *INTEGERS)


def memory_type(dtype: DType) -> str:
    """The C type of an element in a buffer."""
    if dtype.name in INTEGERS:
        return f"{'u' if dtype.kind == 'uint' else ''}int{dtype.bits}_t"
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
        if math.isnan(number):
            return f'__builtin_nan{suffix}("")'
        if math.isinf(number) or (dtype == F32 and abs(number) >= 2.0**128):
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


_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "and": "&",
    "or": "|", "bitand": "&", "bitor": "|", "bitxor": "^",
}  # fmt: skip
# Functions of vmath.prelude by family of suffixes.
_FLOAT = frozenset(
    {
        "exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
        "cosh", "asinh", "acosh", "atanh", "pow", "fmod", "floor", "ceil", "rint", "trunc", "copysign",
    }
)  # fmt: skip
_F64 = frozenset(["floor", "rint", "trunc"])


def unsupported(fn: str, dtype: DType) -> str | None:
    """None if function `fn` exists on operands of `dtype`, else the reason."""
    if dtype == F64 and fn in _FLOAT and fn not in _F64:
        return f"{fn} is not generated in double precision"
    return None


def function(fn: str, args: list[str], operand: DType, dtype: DType) -> str:
    """The C expression of `fn`; `operand` is the dtype of its (last) operand, `dtype` of its result."""
    if fn in _BINARY:
        text = f"{args[0]} {_BINARY[fn]} {args[1]}"
        # Integer promotion must be cut back to the operand's width.
        return f"({local_type(dtype)})({text})" if dtype.is_int and dtype.bits < 32 else text
    if fn in _FLOAT and operand.is_float:
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
    if operand.is_float and dtype.is_int and dtype.bits < 64:
        # Through int64: values beyond the range keep their low bits.
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
    "xor": lambda a, o, d: f"{a[0]} != {a[1]}",
    "select": lambda a, o, d: f"{a[0]} ? {a[1]} : {a[2]}",
    "sqrt": lambda a, o, d: f"dt_sqrt{'d' if d == F64 else 'f'}({a[0]})",
    "shl": _shift("<<"),
    "shr": _shift(">>"),
    "round_f16": lambda a, o, d: f"dt_f16_f32(dt_f32_f16({a[0]}))",
    "round_bf16": lambda a, o, d: f"dt_bf16_f32(dt_f32_bf16({a[0]}))",
}


def dim_text(d: Dim, names: Mapping[str, str], plain: Callable[[Dim], bool]) -> str:
    """A Dim as a C expression of int64; `plain(d)` says that d is known not to be negative.

    Divisions of values that may be negative go through `dt_floordiv` and `dt_floormod`.
    """
    if isinstance(d, int):
        return f"{d}l" if d >= 0 else f"({d}l)"
    parts: list[str] = []
    for monomial, factor in d.terms:
        words = [str(abs(factor)) + "l"] if abs(factor) != 1 or not monomial else []
        for atom in monomial:
            if isinstance(atom, Symbol):
                words.append(names[atom.name])
                continue
            a, b = (dim_text(x, names, plain) for x in atom.args)
            if atom.op in ("//", "%"):
                if all(plain(x) for x in atom.args):
                    words.append(f"({a} {'/' if atom.op == '//' else '%'} {b})")
                else:
                    words.append(f"dt_{'floordiv' if atom.op == '//' else 'floormod'}({a}, {b})")
            else:
                words.append(f"dt_{atom.op}i({a}, {b})")
        parts.append(("- " if factor < 0 else "+ ") + " * ".join(words))
    text = " ".join(parts)
    return f"({text[2:]})" if text.startswith("+ ") else f"(0l {text})"


def dim_symbols(d: Dim) -> list[str]:
    """The symbols of a Dim in a fixed order."""
    return sorted(symbols(d))
