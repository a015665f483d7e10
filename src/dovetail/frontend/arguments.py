"""What a caller writes as inputs and attributes of an ONNX op, as importers want to see it, checked against the op's schema."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.defs import OpSchema

from dovetail.core.dtypes import BOOL, DTYPES, F32, I64, STR, DType, dtype
from dovetail.core.errors import ModelError, UsageError
from dovetail.frontend.session import Body
from dovetail.ir.graph import Value
from dovetail.ir.types import TensorType

_Kind = OpSchema.AttrType
_OPEN = 2**31 - 1
_TENSOR = "tensor("
# ONNX's names of element types in type constraints.
_ONNX_NAMES = {
    "float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "int32": "i32", "int16": "i16",
    "int8": "i8", "uint64": "u64", "uint32": "u32", "uint16": "u16", "uint8": "u8", "bool": "bool", "string": "str",
}  # fmt: skip


@functools.lru_cache(maxsize=1024)
def schema_of(op: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    """What ONNX says of an op; None where it does not know it."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


def similar_ops(op: str) -> list[str]:
    """Names of ONNX ops that are spelled like `op`."""
    names = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
    return difflib.get_close_matches(op, sorted(names), 3)


# --- attributes -----------------------------------------------------------------------------------


def attributes_of(schema: onnx.defs.OpSchema | None, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Attributes by name; None leaves one out.

    Raises:
        ModelError: unknown, missing or of another type than the schema says.
    """
    present = {name: value for name, value in given.items() if value is not None}
    if schema is None:
        return {name: _plain(value) for name, value in present.items()}
    for name in present:
        if name not in schema.attributes:
            known = ", ".join(sorted(schema.attributes)) or "none"
            raise ModelError(f"{where}: got the unknown attribute {name!r}, expected one of: {known}; remove it or fix its spelling")
    missing = [name for name, declared in schema.attributes.items() if declared.required and name not in present]
    if missing:
        raise ModelError(f"{where}: got no attribute {missing[0]!r}, expected a value of it; give it")
    return {name: _fitting(schema.attributes[name].type, value, f"{where}: attribute {name!r}") for name, value in present.items()}


def _plain(value: Any) -> Any:
    """An attribute of an op that has no schema."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return type_code(value) if isinstance(value, DType | np.dtype | type) else value


def type_code(kind: Any) -> int:
    """ONNX's number of an element type."""
    found = dtype(kind)
    return int(onnx.TensorProto.STRING if found == STR else onnx.helper.np_dtype_to_tensor_dtype(found.numpy))


def _fitting(kind: Any, value: Any, where: str) -> Any:
    try:
        if kind in _EACH:
            if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
                raise TypeError("a single value")
            return [_EACH[kind](v) for v in value]
        if kind in _ONE:
            return _ONE[kind](value)
        if kind == _Kind.GRAPH and not isinstance(value, onnx.GraphProto | Body):
            raise TypeError("use if_, loop or scan for bodies in Python")
    except (TypeError, ValueError, UsageError) as error:
        wanted = kind.name.lower()
        raise ModelError(f"{where}: got {value!r} ({error}), expected {_ARTICLES.get(wanted, wanted)}; convert it") from error
    return value


def _int(value: Any) -> int:
    if isinstance(value, DType | np.dtype | type) or (isinstance(value, str) and value in DTYPES):
        return type_code(value)
    if isinstance(value, bool | int | np.integer | np.bool_):
        return int(value)
    raise TypeError(f"a {type(value).__name__}")


def _float(value: Any) -> float:
    if isinstance(value, int | float | np.integer | np.floating):
        return float(value)
    raise TypeError(f"a {type(value).__name__}")


def _text(value: Any) -> str:
    if isinstance(value, str | bytes):
        return value if isinstance(value, str) else value.decode()
    raise TypeError(f"a {type(value).__name__}")


_ONE: dict[Any, Callable[[Any], Any]] = {
    _Kind.INT: _int, _Kind.FLOAT: _float, _Kind.STRING: _text, _Kind.TENSOR: np.asarray, _Kind.SPARSE_TENSOR: np.asarray,
}  # fmt: skip
_EACH: dict[Any, Callable[[Any], Any]] = {_Kind.INTS: _int, _Kind.FLOATS: _float, _Kind.STRINGS: _text}
_ARTICLES = {
    "int": "an int", "float": "a float", "string": "text", "ints": "a sequence of ints", "floats": "a sequence of floats",
    "strings": "a sequence of texts", "graph": "a GraphProto", "tensor": "an array",
}  # fmt: skip


# --- inputs ---------------------------------------------------------------------------------------


def inputs_of(
    schema: onnx.defs.OpSchema | None, given: Sequence[Any], where: str, strict: bool = True
) -> list[Value | np.ndarray[Any, Any] | None]:
    """Inputs as values, arrays or None; Python numbers and sequences become arrays of the type that the op wants there.

    Args:
        strict: hold them against the schema, which else only says what numbers are.

    Raises:
        ModelError: too many or too few, or of types that do not go together.
    """
    inputs = [read_input(v, f"{where}: input {i}") for i, v in enumerate(given)]
    if schema is not None and strict:
        _check_count(schema, inputs, where)
    types = _bound_types(schema, inputs, where, strict)
    made: list[Value | np.ndarray[Any, Any] | None] = []
    for i, value in enumerate(inputs):
        if isinstance(value, _Weak):
            # Numbers alone agree on the type of the widest kind.
            peers = [v.array for j, v in enumerate(inputs) if isinstance(v, _Weak) and _same_type(schema, i, j)]
            kind = max((a.dtype.kind for a in peers if a.size), key="Obif".index, default="f")
            made.append(_typed(schema, i, value, types, kind, where))
        else:
            made.append(value)
    return made


class _Weak:
    """Python numbers, whose element type is what the place asks for."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array


def read_input(value: Any, where: str) -> Value | np.ndarray[Any, Any] | _Weak | None:
    """One input: a value, None, an array, or Python numbers.

    Raises:
        UsageError: something else.
    """
    if value is None or isinstance(value, Value):
        return value
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        return as_array(value)
    if isinstance(value, Sequence) and any(isinstance(v, Value) for v in value):
        raise UsageError(f"{where}: got a {type(value).__name__} of values, expected a value; pass them one by one")
    if isinstance(value, bool | int | float | str | Sequence):
        try:
            array = np.asarray(value, object if _has_text(value) else None)
        except ValueError as error:  # rows of different lengths
            raise UsageError(f"{where}: got {value!r} ({error}), expected numbers in equal rows") from error
        if array.dtype.kind in "bifO" and (array.dtype != object or _has_text(value)):
            return _Weak(array)
        if array.size == 0:
            return _Weak(array)
    raise UsageError(f"{where}: got {value!r}, expected a value of the network, an array, numbers or None")


def as_array(value: Any) -> np.ndarray[Any, Any]:
    """An array as models hold it: row-major, in this machine's byte order, text as objects.

    Raises:
        UsageError: an element type that models do not have.
    """
    array = np.asarray(value, order="C")  # np.ascontiguousarray would give 0-d arrays an axis
    return array.astype(dtype(array.dtype).numpy, copy=False)


def _has_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Sequence) and any(map(_has_text, value)))


def strong(value: _Weak) -> np.ndarray[Any, Any]:
    """Python numbers where nothing says their type: f32, i64, bool, or str."""
    return value.array.astype(_DEFAULTS[value.array.dtype.kind].numpy)


_DEFAULTS = {"b": BOOL, "i": I64, "f": F32, "O": STR}


def _check_count(schema: onnx.defs.OpSchema, inputs: Sequence[Any], where: str) -> None:
    names = ", ".join(p.name for p in schema.inputs) or "none"
    if len(inputs) > schema.max_input or len(inputs) < schema.min_input:
        most = "" if schema.max_input == schema.min_input else " or more" if schema.max_input >= _OPEN else f" to {schema.max_input}"
        raise ModelError(f"{where}: got {len(inputs)} inputs, expected {schema.min_input}{most} ({names})")
    for position, value in enumerate(inputs):
        formal = _formal(schema, position)
        if value is None and formal.option == OpSchema.FormalParameterOption.Single:
            raise ModelError(f"{where}: got None for input {position} ({formal.name}), expected a value; connect it")


def _formal(schema: onnx.defs.OpSchema, position: int) -> onnx.defs.OpSchema.FormalParameter:
    return schema.inputs[min(position, len(schema.inputs) - 1)]


def _bound_types(schema: onnx.defs.OpSchema | None, inputs: Sequence[Any], where: str, strict: bool) -> dict[str, DType]:
    """The element type of each type variable of the schema, which all its inputs must share."""
    found: dict[str, tuple[int, DType]] = {}
    for position, value in enumerate(inputs):
        if schema is None or not schema.inputs:
            break
        formal = _formal(schema, position)
        kind = _dtype_of(value)
        if kind is None or _TENSOR in formal.type_str or not formal.is_homogeneous:
            continue
        first, bound = found.setdefault(formal.type_str, (position, kind))
        if bound != kind and strict:
            raise ModelError(
                f"{where}: got {kind} for input {position} ({formal.name}), expected {bound} as input {first} "
                f"({_formal(schema, first).name}) has; cast one of them"
            )
    return {variable: kind for variable, (_, kind) in found.items()}


def _dtype_of(value: Any) -> DType | None:
    if isinstance(value, Value):
        return value.type.dtype if isinstance(value.type, TensorType) else None
    return dtype(value.dtype) if isinstance(value, np.ndarray) else None


def _same_type(schema: onnx.defs.OpSchema | None, i: int, j: int) -> bool:
    """Whether two inputs have one element type."""
    if i == j or schema is None or not schema.inputs:
        return i == j
    a, b = _formal(schema, i), _formal(schema, j)
    return bool(a.is_homogeneous) and a.type_str == b.type_str


def _typed(
    schema: onnx.defs.OpSchema | None, position: int, value: _Weak, types: Mapping[str, DType], kind: str, where: str
) -> np.ndarray[Any, Any]:
    """Python numbers as an array of the type of their place; `kind` is what they would have alone, as NumPy calls it."""
    if schema is None or not schema.inputs:
        return strong(value)
    formal = _formal(schema, position)
    wanted = types.get(formal.type_str)
    if wanted is None:
        allowed = [_ONNX_NAMES.get(t[len(_TENSOR) : -1]) for t in sorted(formal.types) if t.startswith(_TENSOR)]
        usual = _DEFAULTS[kind]
        known = [dtype(name) for name in allowed if name is not None]
        wanted = next((o for o in (usual, F32 if kind == "i" else I64, I64) if o in known), known[0] if known else usual)
    fits = {"b": wanted == BOOL, "i": wanted.is_int or wanted.is_float, "f": wanted.is_float, "O": wanted == STR}
    if value.array.size and not fits[value.array.dtype.kind]:
        raise ModelError(
            f"{where}: got {value.array.tolist()!r} for input {position} ({formal.name}), expected {wanted}; pass numbers of that kind"
        )
    with np.errstate(over="ignore"):
        array = value.array.astype(wanted.numpy)
    if not _same_numbers(value.array, array):
        raise ModelError(
            f"{where}: got {value.array.tolist()!r} for input {position} ({formal.name}), expected what {wanted} can hold; cast the others"
        )
    return array


def _same_numbers(given: np.ndarray[Any, Any], array: np.ndarray[Any, Any]) -> bool:
    """Whether numbers are as they were, but for rounding."""
    if given.dtype.kind not in "if":
        return True
    back = array.astype(np.float64)
    return bool(np.all(back == given) if dtype(array.dtype).is_int else np.all(np.isfinite(back) == np.isfinite(given)))


# --- outputs --------------------------------------------------------------------------------------


def output_count(
    schema: onnx.defs.OpSchema | None, op: str, attributes: Mapping[str, Any], inputs: Sequence[Value | np.ndarray[Any, Any] | None]
) -> int | None:
    """How many outputs an op has whose caller does not say: those that every call has; None where nothing is known."""
    if schema is None:
        return None
    if op == "Split":
        sizes = inputs[1] if len(inputs) > 1 else None
        if isinstance(attributes.get("num_outputs"), int):
            return int(attributes["num_outputs"])
        if "split" in attributes:
            return len(attributes["split"])
        if sizes is not None and isinstance(sizes.shape[0], int):
            return int(sizes.shape[0])
    return max(1, int(schema.min_output))
