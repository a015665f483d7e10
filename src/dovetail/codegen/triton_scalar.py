"""How single expressions of the loop IR are written in Triton: types, constants, functions, index polynomials.

Every text is an expression over Triton tensors (or scalars) of compute dtypes: fp32 for fp16, bf16 and fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from dovetail.core.dims import Dim, Symbol
from dovetail.core.dtypes import BF16, BOOL, F16, F32, F64, DType

# Element types of buffers and of local values. A bool is a byte in memory.
_POINTER = {"f16": "fp16", "bf16": "bf16", "f32": "fp32", "f64": "fp64", "bool": "i8"}
_LOCAL = {"f16": "tl.float16", "bf16": "tl.bfloat16", "f32": "tl.float32", "f64": "tl.float64", "bool": "tl.int1"}
INTEGERS = ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64")
DTYPES = (*_POINTER, *INTEGERS)


def pointer_type(dtype: DType) -> str:
    """The element type of a pointer parameter: "fp16", "i64"."""
    return dtype.name if dtype.name in INTEGERS else _POINTER[dtype.name]


def tensor_type(dtype: DType) -> str:
    """The dtype of a local tensor: `tl.float32`, `tl.int64`."""
    if dtype.name in INTEGERS:
        return f"tl.{'u' if dtype.kind == 'uint' else ''}int{dtype.bits}"
    return _LOCAL[dtype.name]


def literal(value: float | int | bool, dtype: DType) -> str:
    """A constant of a compute dtype, as a scalar expression."""
    if dtype == BOOL:
        return "True" if value else "False"
    if dtype.is_float:
        number = float(value)
        if math.isnan(number):
            return 'float("nan")'
        if math.isinf(number) or (dtype == F32 and abs(number) >= 2.0**128):
            return f'float("{"-" if number < 0 else ""}inf")'
        return repr(number)
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


_BINARY = {
    "add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "and": "&",
    "or": "|", "xor": "!=", "bitand": "&", "bitor": "|", "bitxor": "^",
}  # fmt: skip
# Functions that Triton has itself, and those of the device library.
_OWN = frozenset(["exp", "log", "erf", "floor", "ceil", "sigmoid", "sin", "cos"])
_LIBRARY = {
    "expm1": "expm1", "log1p": "log1p", "tanh": "tanh", "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan",
    "sinh": "sinh", "cosh": "cosh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "pow": "pow", "fmod": "fmod",
    "rint": "rint", "trunc": "trunc", "copysign": "copysign",
}  # fmt: skip
_DOUBLE_TOO = frozenset(["exp", "log", "floor", "ceil", "sqrt", "rint", "trunc"])


def unsupported(fn: str, dtype: DType) -> str | None:
    """None if function `fn` exists on operands of `dtype`, else the reason."""
    if dtype == F64 and (fn in _OWN or fn in _LIBRARY) and fn not in _DOUBLE_TOO:
        return f"{fn} is not generated in double precision"
    return None


def function(fn: str, args: list[str], operand: DType, dtype: DType) -> str:
    """The expression of `fn`; `operand` is the dtype of its (last) operand, `dtype` of its result."""
    if fn in _BINARY:
        return f"({args[0]} {_BINARY[fn]} {args[1]})"
    if operand.is_float and fn in _OWN:
        return f"tl.{fn}({args[0]})"
    if operand.is_float and fn in _LIBRARY:
        return f"libdevice.{_LIBRARY[fn]}({', '.join(args)})"
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
    if operand.is_float and dtype.is_int and dtype.bits < 64:
        # Through int64: values beyond the range keep their low bits.
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


def dim_text(d: Dim, names: Mapping[str, str], plain: Callable[[Dim], bool] = lambda d: True) -> str:
    """A Dim as an integer expression; `plain(d)` says that d is known not to be negative.

    Device division truncates: where an operand may be negative, the quotient is corrected to the floor.
    """
    if isinstance(d, int):
        return str(d) if d >= 0 else f"({d})"
    parts: list[str] = []
    for monomial, factor in d.terms:
        words = [str(abs(factor))] if abs(factor) != 1 or not monomial else []
        for atom in monomial:
            if isinstance(atom, Symbol):
                words.append(names[atom.name])
                continue
            a, b = (dim_text(x, names, plain) for x in atom.args)
            if atom.op in ("//", "%"):
                if all(plain(x) for x in atom.args):
                    words.append(f"({a} {atom.op} {b})")
                elif atom.op == "//":
                    words.append(f"(({a} - ((({a}) % ({b})) + ({b})) % ({b})) // ({b}))")
                else:
                    words.append(f"(((({a}) % ({b})) + ({b})) % ({b}))")
            else:
                words.append(f"tl.{'maximum' if atom.op == 'max' else 'minimum'}({a}, {b})")
        parts.append(("- " if factor < 0 else "+ ") + " * ".join(words))
    text = " ".join(parts)
    return f"({text[2:]})" if text.startswith("+ ") else f"(0 {text})"
