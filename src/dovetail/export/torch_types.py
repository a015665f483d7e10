"""PyTorch's names of types, as registered translations and messages need them."""

from __future__ import annotations

from typing import Any

from dovetail.core.dtypes import DTYPES, DType
from dovetail.core.optional import require

_NAMES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "f8e4m3", "float8_e5m2": "f8e5m2",
    "float8_e4m3fnuz": "f8e4m3fnuz", "float8_e5m2fnuz": "f8e5m2fnuz", "float8_e8m0fnu": "f8e8m0", "int64": "i64", "int32": "i32",
    "int16": "i16", "int8": "i8", "uint64": "u64", "uint32": "u32", "uint16": "u16", "uint8": "u8", "bool": "bool",
    "complex64": "c64", "complex128": "c128",
}  # fmt: skip
# The order of PyTorch's ScalarType, which traces hold as ints.
_CODES = (
    "u8", "i8", "i16", "i32", "i64", "f16", "f32", "f64", None, "c64", "c128", "bool", None, None, None, "bf16", None, None, None,
    None, None, None, None, "f8e5m2", "f8e4m3", "f8e5m2fnuz", "f8e4m3fnuz", "u16", "u32", "u64",
)  # fmt: skip


def of_dtype(kind: Any) -> DType | None:
    """The DType of a `torch.dtype`; None where models do not have it."""
    name = _NAMES.get(str(kind).removeprefix("torch."))
    return None if name is None else DTYPES[name]


def of_code(code: int) -> DType | None:
    """The DType of a number of PyTorch's `ScalarType`; None where models do not have it."""
    name = _CODES[code] if 0 <= code < len(_CODES) else None
    return None if name is None else DTYPES[name]


def to_torch(kind: DType) -> Any:
    """The `torch.dtype` of a DType."""
    torch = require("torch", "torch", "exporting from PyTorch")
    return getattr(torch, next(name for name, ours in _NAMES.items() if ours == kind.name))


def is_scalar_type(argument: Any) -> bool:
    """Whether an argument of a PyTorch schema is an element type; schemas show it as an int."""
    return "ScalarType" in str(getattr(argument, "real_type", argument.type))
