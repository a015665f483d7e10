"""The plan as JSON: strict, bounded, and equal to what was written.

Decoding trusts nothing: exact keys, exact types, bounded sizes, nesting and integers; whatever does
not fit raises PlanFormatError with the path to it. Meaning is checked by `engine.check`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from dovetail.core.dtypes import DTYPES, DType
from dovetail.core.errors import PlanFormatError, PlanVersionError
from dovetail.engine import plan as schema
from dovetail.engine.plan import FORMAT_VERSION, DimAttr, Json, Plan, Postfix

MAX_BYTES = 256 << 20
"""Longest plan text."""
MAX_ITEMS = 1 << 20
"""Longest list."""
MAX_STRING = 1 << 16
MAX_ATTRIBUTE = 1 << 24
"""Longest text among the attributes of a host step: those of a plugin call may hold arrays."""
MAX_SYMBOL = 1 << 10
MAX_PROGRAM = 512
"""Most instructions of a dimension."""
MAX_DEPTH = 24
"""Deepest nesting of regions, attributes and metadata."""

_INT64 = 1 << 63
_OPERATORS = frozenset(("+", "-", "*", "//", "%", "min", "max"))

Decoder = Callable[[Any, int], Any]


def dumps(plan: Plan) -> bytes:
    """The plan as canonical JSON: equal plans give equal bytes."""
    document = {"format": FORMAT_VERSION, "plan": encode(plan)}
    return json.dumps(document, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def loads(data: bytes | memoryview) -> Plan:
    """Read a plan.

    Raises:
        PlanVersionError: written by a newer release.
        PlanFormatError: anything else that is wrong.
    """
    document = parse_json(data, "plan", MAX_BYTES)
    if not isinstance(document, dict) or "format" not in document:
        raise PlanFormatError("plan: got no format version, expected a plan document")
    version = document["format"]
    if version != FORMAT_VERSION or isinstance(version, bool):
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise PlanVersionError(
                f"plan: got format {version}, expected {FORMAT_VERSION}; update Dovetail"
            )
        raise PlanFormatError(f"plan: got format {version!r}, expected {FORMAT_VERSION}")
    if set(document) != {"format", "plan"}:
        raise PlanFormatError(f"plan: got the keys {sorted(document)}, expected format and plan")
    try:
        result: Plan = _decoder(Plan)(document["plan"], 0)
    except _Mismatch as error:
        path = "".join(f"[{k}]" if isinstance(k, int) else f".{k[:60]}" for k in error.path[::-1])
        raise PlanFormatError(f"plan{path}: {error}; rebuild the engine") from None
    return result


def parse_json(data: bytes | memoryview, where: str, limit: int) -> Any:
    """Bounded, strict JSON: UTF-8, no NaN, no duplicate keys.

    Raises:
        PlanFormatError: not that.
    """
    if len(data) > limit:
        raise PlanFormatError(f"{where}: got {len(data)} bytes, expected at most {limit}")
    try:
        return json.loads(
            str(data, "utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise PlanFormatError(f"{where}: got damaged JSON ({error}); rebuild the engine") from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys")
    return result


# --- encoding -------------------------------------------------------------------------------------


def encode(value: Any) -> Json:
    """A plan dataclass (or a part of one) as JSON values; fields at their default are left out."""
    result: Json = _encode_as(type(value), value)
    return result


def _encode_as(kind: Any, value: Any) -> Any:
    if kind == Postfix:
        return value[0] if len(value) == 1 else list(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        result = {
            f.name: _encode_as(hints[f.name], getattr(value, f.name))
            for f in dataclasses.fields(kind)
            if not _is_default(f, getattr(value, f.name))
        }
        tag = _TAGS.get(kind)
        return {"segment": tag, **result} if tag else result
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        members = [m for m in get_args(kind) if m is not type(None)]
        if len(members) == 1:
            return _encode_as(members[0], value)
        return _encode_as(type(value), value)
    if origin is tuple:
        return [_encode_as(get_args(kind)[0], v) for v in value]
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        attrs = _is_attr(get_args(kind)[1])
        return {k: _encode_attr(v) if attrs else v for k, v in value.items()}
    return value


def _is_attr(kind: Any) -> bool:
    """Whether a mapping's values are attributes; the other mappings hold plain JSON."""
    return DType in get_args(kind)


def _encode_attr(value: Any) -> Json:
    if isinstance(value, DType):
        return {"dtype": value.name}
    if isinstance(value, DimAttr):
        return {"dim": list(value.program)}
    if isinstance(value, tuple):
        return [_encode_attr(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    raise TypeError(f"attribute: got {type(value).__name__}, expected a plan attribute")


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(value == field.default)
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return False


# --- decoding -------------------------------------------------------------------------------------
#
# A decoder takes a JSON value and its depth. Paths are put together only on the way out of a
# failure: plans have thousands of values, and opening an engine should take milliseconds.


class _Mismatch(Exception):
    """A value that does not fit; `path` grows from the inside out."""

    def __init__(self, got: Any, expected: str) -> None:
        text = repr(got)
        super().__init__(f"got {text[:60]}{'…' if len(text) > 60 else ''}, expected {expected}")
        self.path: list[int | str] = []


def _int(value: Any, depth: int) -> int:
    if type(value) is not int or not -_INT64 <= value < _INT64:
        raise _Mismatch(value, "an int64")
    return value


def _str(value: Any, depth: int) -> str:
    if type(value) is not str or len(value) > MAX_STRING:
        raise _Mismatch(value, "a string")
    return value


def _bool(value: Any, depth: int) -> bool:
    if type(value) is not bool:
        raise _Mismatch(value, "a bool")
    return value


def _postfix(value: Any, depth: int) -> Postfix:
    items = value if type(value) is list else [value]
    if not 1 <= len(items) <= MAX_PROGRAM:
        raise _Mismatch(value, f"1 to {MAX_PROGRAM} instructions")
    level = 0
    for item in items:
        kind = type(item)
        if kind is str and item[:1] == "$":
            operand = 1 < len(item) <= MAX_SYMBOL
        else:
            operand = kind is int and -_INT64 <= item < _INT64
        if operand:
            level += 1
        elif kind is str and level >= 2 and item in _OPERATORS:
            level -= 1
        else:
            raise _Mismatch(value, "a postfix program")
    if level != 1:
        raise _Mismatch(value, "a postfix program that leaves one value")
    return tuple(items)


def _attr(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _Mismatch(value, f"at most {MAX_DEPTH} levels")
    if isinstance(value, list):
        if len(value) > MAX_ITEMS:
            raise _Mismatch(len(value), f"at most {MAX_ITEMS} items")
        return tuple([_attr(v, depth + 1) for v in value])
    if isinstance(value, dict):
        if len(value) == 1:
            ((key, item),) = value.items()
            if key == "dtype" and isinstance(item, str) and item in DTYPES:
                return DTYPES[item]
            if key == "dim" and isinstance(item, list):
                return DimAttr(_postfix(item, depth))
            if key == "float" and item in ("nan", "inf", "-inf"):
                return float(item)
        raise _Mismatch(value, "an attribute")
    if type(value) is int:
        return _int(value, depth)
    if type(value) is str and len(value) > MAX_ATTRIBUTE:
        raise _Mismatch(value, f"at most {MAX_ATTRIBUTE} characters")
    return value  # text, bool, float or None: JSON has nothing else


def _json(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _Mismatch(value, f"at most {MAX_DEPTH} levels")
    if isinstance(value, list | dict):
        if len(value) > MAX_ITEMS:
            raise _Mismatch(len(value), f"at most {MAX_ITEMS} items")
        for item in value.values() if isinstance(value, dict) else value:
            _json(item, depth + 1)
    return value


_TAGS: dict[type, str] = {
    schema.NativeSegment: "native",
    schema.HostSegment: "host",
    schema.ControlSegment: "control",
}
_SEGMENTS = {tag: cls for cls, tag in _TAGS.items()}


def _segment(value: Any, depth: int) -> Any:
    tag = value.pop("segment", None) if isinstance(value, dict) else None
    if not isinstance(tag, str) or tag not in _SEGMENTS:
        raise _Mismatch(value, "a native, host or control segment")
    return _decoder(_SEGMENTS[tag])(value, depth)


_decoders: dict[Any, Decoder] = {int: _int, str: _str, bool: _bool}
_all_hints: dict[type, dict[str, Any]] = {}


def _hints(cls: Any) -> dict[str, Any]:
    if cls not in _all_hints:
        _all_hints[cls] = typing.get_type_hints(cls)
    return _all_hints[cls]


def _decoder(kind: Any) -> Decoder:
    if kind not in _decoders:
        _decoders[kind] = _make_decoder(kind)
    return _decoders[kind]


def _make_decoder(kind: Any) -> Decoder:
    if kind == Postfix:
        return _postfix
    if kind == schema.Segment:
        return _segment
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _choice(arguments)
    if origin is tuple:
        return _sequence(_decoder(arguments[0]))
    if origin in (Union, types.UnionType):
        members = [m for m in arguments if m is not type(None)]
        if len(members) != 1:
            raise TypeError(f"codec: no decoder for {kind}")
        return _optional(_decoder(members[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(_attr if _is_attr(arguments[1]) else _json)
    raise TypeError(f"codec: no decoder for {kind}")


def _record(cls: type) -> Decoder:
    fields: dict[str, Decoder] = {}
    required: set[str] = set()

    def prepare() -> None:  # at the first use: records may contain themselves
        for field in dataclasses.fields(cls):
            defaults = (field.default, field.default_factory)
            if defaults == (dataclasses.MISSING, dataclasses.MISSING):
                required.add(field.name)
        for field in dataclasses.fields(cls):
            fields[field.name] = _decoder(_hints(cls)[field.name])

    def decode(value: Any, depth: int) -> Any:
        if not fields:
            prepare()
        if depth > MAX_DEPTH:
            raise _Mismatch(cls.__name__, f"at most {MAX_DEPTH} levels of nesting")
        if type(value) is not dict:
            raise _Mismatch(value, f"a {cls.__name__}")
        if not required <= value.keys() <= fields.keys():
            raise _Mismatch(sorted(value), f"the fields of a {cls.__name__} ({list(fields)})")
        key = ""
        try:
            arguments = {}
            for key, item in value.items():
                arguments[key] = fields[key](item, depth + 1)
            return cls(**arguments)
        except _Mismatch as error:
            error.path.append(key)
            raise

    return decode


def _sequence(item: Decoder) -> Decoder:
    def decode(value: Any, depth: int) -> Any:
        if type(value) is not list or len(value) > MAX_ITEMS:
            raise _Mismatch(value, f"a list of at most {MAX_ITEMS} items")
        result: list[Any] = []
        try:
            for element in value:
                result.append(item(element, depth))
        except _Mismatch as error:
            error.path.append(len(result))
            raise
        return tuple(result)

    return decode


def _optional(item: Decoder) -> Decoder:
    return lambda value, depth: None if value is None else item(value, depth)


def _choice(allowed: tuple[Any, ...]) -> Decoder:
    def decode(value: Any, depth: int) -> Any:
        if type(value) is not str or value not in allowed:
            raise _Mismatch(value, f"one of {', '.join(allowed)}")
        return value

    return decode


def _mapping(item: Decoder) -> Decoder:
    def decode(value: Any, depth: int) -> Any:
        if type(value) is not dict or len(value) > MAX_ITEMS:
            raise _Mismatch(value, "a mapping")
        key = ""
        try:
            result = {}
            for key, element in value.items():
                result[_str(key, depth)] = item(element, depth + 1)
            return result
        except _Mismatch as error:
            error.path.append(key)
            raise

    return decode
