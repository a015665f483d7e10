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
MAX_PROGRAM = 512
"""Most instructions of a dimension."""
MAX_DEPTH = 24
"""Deepest nesting of regions, attributes and metadata."""

_INT64 = 1 << 63
_OPERATORS = frozenset(("+", "-", "*", "//", "%", "min", "max"))

Decoder = Callable[[Any, str, int], Any]


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
    result: Plan = _decoder(Plan)(document["plan"], "plan", 0)
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
        item = get_args(kind)[1]
        return {k: _encode_attr(v) if _is_attr(item) else v for k, v in value.items()}
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


def _fail(where: str, got: Any, expected: str) -> PlanFormatError:
    text = repr(got)
    return PlanFormatError(
        f"{where}: got {text[:60]}{'…' if len(text) > 60 else ''}, expected {expected}; "
        "rebuild the engine"
    )


def _int(value: Any, where: str, depth: int) -> int:
    if type(value) is not int or not -_INT64 <= value < _INT64:
        raise _fail(where, value, "an int64")
    return value


def _str(value: Any, where: str, depth: int) -> str:
    if type(value) is not str or len(value) > MAX_STRING:
        raise _fail(where, value, "a string")
    return value


def _bool(value: Any, where: str, depth: int) -> bool:
    if type(value) is not bool:
        raise _fail(where, value, "a bool")
    return value


def _postfix(value: Any, where: str, depth: int) -> Postfix:
    items = value if isinstance(value, list) else [value]
    if not 1 <= len(items) <= MAX_PROGRAM:
        raise _fail(where, value, f"1 to {MAX_PROGRAM} instructions")
    level = 0
    for item in items:
        symbol = type(item) is str and len(item) > 1 and item.startswith("$")
        if symbol or (type(item) is int and -_INT64 <= item < _INT64):
            level += 1
        elif type(item) is str and item in _OPERATORS and level >= 2:
            level -= 1
        else:
            raise _fail(where, value, "a postfix program")
    if level != 1:
        raise _fail(where, value, "a postfix program that leaves one value")
    return tuple(items)


def _attr(value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _fail(where, value, f"at most {MAX_DEPTH} levels")
    if isinstance(value, list):
        if len(value) > MAX_ITEMS:
            raise _fail(where, len(value), f"at most {MAX_ITEMS} items")
        return tuple(_attr(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value))
    if isinstance(value, dict):
        if len(value) == 1:
            ((key, item),) = value.items()
            if key == "dtype" and isinstance(item, str) and item in DTYPES:
                return DTYPES[item]
            if key == "dim" and isinstance(item, list):
                return DimAttr(_postfix(item, where, depth))
            if key == "float" and item in ("nan", "inf", "-inf"):
                return float(item)
        raise _fail(where, value, "an attribute")
    if type(value) is int:
        return _int(value, where, depth)
    if type(value) is str:
        return _str(value, where, depth)
    return value  # bool, float or None: JSON has nothing else


def _json(value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _fail(where, value, f"at most {MAX_DEPTH} levels")
    if isinstance(value, list | dict):
        if len(value) > MAX_ITEMS:
            raise _fail(where, len(value), f"at most {MAX_ITEMS} items")
        for item in value.values() if isinstance(value, dict) else value:
            _json(item, where, depth + 1)
    return value


_TAGS: dict[type, str] = {
    schema.NativeSegment: "native",
    schema.HostSegment: "host",
    schema.ControlSegment: "control",
}
_SEGMENTS = {tag: cls for cls, tag in _TAGS.items()}


def _segment(value: Any, where: str, depth: int) -> Any:
    tag = value.get("segment") if isinstance(value, dict) else None
    if not isinstance(tag, str) or tag not in _SEGMENTS:
        raise _fail(where, value, "a native, host or control segment")
    rest = {k: v for k, v in value.items() if k != "segment"}
    return _decoder(_SEGMENTS[tag])(rest, where, depth)


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
        return _sequence(arguments[0])
    if origin in (Union, types.UnionType):
        members = [m for m in arguments if m is not type(None)]
        if len(members) != 1:
            raise TypeError(f"codec: no decoder for {kind}")
        return _optional(members[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(_attr if _is_attr(arguments[1]) else _json)
    raise TypeError(f"codec: no decoder for {kind}")


def _record(cls: type) -> Decoder:
    fields: dict[str, Decoder] = {}
    required = set()

    def decode(value: Any, where: str, depth: int) -> Any:
        if not fields:  # filled at the first use: records may contain themselves
            for field in dataclasses.fields(cls):
                fields[field.name] = _decoder(_hints(cls)[field.name])
                if (
                    field.default is dataclasses.MISSING
                    and field.default_factory is dataclasses.MISSING
                ):
                    required.add(field.name)
        if depth > MAX_DEPTH:
            raise _fail(where, cls.__name__, f"at most {MAX_DEPTH} levels of nesting")
        if not isinstance(value, dict):
            raise _fail(where, value, f"a {cls.__name__}")
        if not required <= value.keys() <= fields.keys():
            raise _fail(where, sorted(value), f"the fields of a {cls.__name__} ({list(fields)})")
        return cls(**{k: fields[k](v, f"{where}.{k}", depth + 1) for k, v in value.items()})

    return decode


def _sequence(kind: Any) -> Decoder:
    item = _decoder(kind)

    def decode(value: Any, where: str, depth: int) -> Any:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise _fail(where, value, f"a list of at most {MAX_ITEMS} items")
        return tuple([item(v, f"{where}[{i}]", depth) for i, v in enumerate(value)])

    return decode


def _optional(kind: Any) -> Decoder:
    item = _decoder(kind)
    return lambda value, where, depth: None if value is None else item(value, where, depth)


def _choice(allowed: tuple[Any, ...]) -> Decoder:
    def decode(value: Any, where: str, depth: int) -> Any:
        if not isinstance(value, str) or value not in allowed:
            raise _fail(where, value, f"one of {', '.join(allowed)}")
        return value

    return decode


def _mapping(item: Decoder) -> Decoder:
    def decode(value: Any, where: str, depth: int) -> Any:
        if not isinstance(value, dict) or len(value) > MAX_ITEMS:
            raise _fail(where, value, "a mapping")
        return {
            _str(k, where, depth): item(v, f"{where}.{k[:60]}", depth + 1) for k, v in value.items()
        }

    return decode
