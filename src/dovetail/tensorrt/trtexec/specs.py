"""How values of trtexec's flags are written: shapes, formats, sizes of pools, names with files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from dovetail.core.errors import UsageError
from dovetail.tensorrt.enums import DataType, TensorFormat

T = TypeVar("T")

TYPES = {
    "fp32": DataType.FLOAT, "fp16": DataType.HALF, "bf16": DataType.BF16, "int32": DataType.INT32, "int64": DataType.INT64,
    "int8": DataType.INT8, "uint8": DataType.UINT8, "bool": DataType.BOOL, "fp8": DataType.FP8, "int4": DataType.INT4,
}  # fmt: skip
"""Element types as flags and reports have them."""

FORMATS = {
    "chw": TensorFormat.LINEAR, "chw2": TensorFormat.CHW2, "hwc8": TensorFormat.HWC8, "chw4": TensorFormat.CHW4,
    "chw16": TensorFormat.CHW16, "chw32": TensorFormat.CHW32, "dhwc8": TensorFormat.DHWC8, "cdhw32": TensorFormat.CDHW32,
    "hwc": TensorFormat.HWC, "dhwc": TensorFormat.DHWC, "hwc16": TensorFormat.HWC16, "dla_linear": TensorFormat.DLA_LINEAR,
    "dla_hwc4": TensorFormat.DLA_HWC4,
}  # fmt: skip
"""Memory orders as flags have them."""

_SUFFIXES = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def type_text(kind: DataType) -> str:
    """The name of an element type in reports, such as fp32."""
    return next((text for text, known in TYPES.items() if known is kind), kind.name.lower())


def split(text: str, separator: str = ",") -> list[str]:
    """The parts of a list, of which those inside single quotes may hold the separator; no parts of an empty text."""
    parts, start, quoted = [], 0, False
    for i, letter in enumerate(text):
        if letter == "'":
            quoted = not quoted
        elif letter == separator and not quoted:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]]] if text else []


def pair(flag: str, part: str) -> tuple[str, str]:
    """A name, quoted or not, and what follows its last colon outside of quotes.

    Raises:
        UsageError: there is no colon, or no name.
    """
    pieces = split(part, ":")
    name, rest = ":".join(pieces[:-1]), pieces[-1] if pieces else ""
    if len(name) > 1 and name[0] == name[-1] == "'":
        name = name[1:-1]
    if len(pieces) < 2 or not name:
        raise UsageError(f"{flag}: got {part!r}, expected name:value")
    return name, rest


def dims(flag: str, text: str) -> tuple[int, ...]:
    """A shape such as 1x3x224; () for nothing, and for the word scalar.

    Raises:
        UsageError: something else.
    """
    if text in ("", "scalar"):
        return ()
    try:
        found = tuple(int(extent) for extent in text.split("x"))
    except ValueError:
        raise UsageError(f"{flag}: got {text!r}, expected a shape such as 1x3x224x224") from None
    return found


def shapes(flag: str, text: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name.

    Raises:
        UsageError: a part that is none, a name that comes twice or has several wildcards.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in split(text):
        name, shape = pair(flag, part)
        if name in found:
            raise UsageError(f"{flag}: got {name!r} twice, expected one shape of it")
        one_wildcard(flag, name)
        found[name] = dims(flag, shape)
    return found


def one_wildcard(flag: str, name: str) -> None:
    """Check a name.

    Raises:
        UsageError: it has several wildcards.
    """
    if name.count("*") > 1:
        raise UsageError(f"{flag}: got {name!r}, expected at most one wildcard (*) in a name")


def matches(pattern: str, name: str) -> bool:
    """Whether a name is that of a flag, of which a * stands for anything."""
    head, star, tail = pattern.partition("*")
    return name == pattern or (bool(star) and len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail))


def find(found: Mapping[str, T], name: str) -> T | None:
    """What flags say of a name: under the name itself, else under the last pattern that it matches."""
    if name in found:
        return found[name]
    return next((found[pattern] for pattern in reversed(list(found)) if matches(pattern, name)), None)


def are_values(kind: DataType, declared: Sequence[int], found: Sequence[int]) -> bool:
    """Whether what a flag says of an input are its values, as of one that is read as a shape: integers, as many as it holds."""
    whole = kind in (DataType.INT32, DataType.INT64) and len(declared) == 1 and -1 not in declared
    return whole and len(found) == declared[0] and tuple(found) != tuple(declared)


def text_of(shape: Sequence[int]) -> str:
    """A shape as reports have it: 1x3x224; scalar for ()."""
    return "x".join(map(str, shape)) or "scalar"


def io_formats(flag: str, text: str) -> list[tuple[DataType, int]]:
    """The type and the bits of the formats of each tensor.

    Raises:
        UsageError: a type or a format that is none.
    """
    found = []
    for part in split(text):
        kind, _, names = part.partition(":")
        if kind not in TYPES:
            raise UsageError(f"{flag}: got the type {kind!r}, expected one of {', '.join(TYPES)}")
        bits = 0
        for name in (names or "chw").split("+"):
            if name not in FORMATS:
                raise UsageError(f"{flag}: got the format {name!r}, expected one of {', '.join(FORMATS)}")
            bits |= 1 << int(FORMATS[name])
        found.append((TYPES[kind], bits))
    return found


def format_text(kind: DataType, bits: int) -> str:
    """A type and its formats as flags have them."""
    return f"{type_text(kind)}:{'+'.join(name for name, value in FORMATS.items() if bits >> int(value) & 1)}"


def size(flag: str, text: str) -> int:
    """A number of bytes, such as 512M, 0.25G, 64KiB or, in MiB, 1024.

    Raises:
        UsageError: something else.
    """
    body = text.strip().upper()
    if len(body) > 2 and body.endswith("IB"):
        body = body[:-2]
    elif len(body) > 2 and body[-1] == "B" and body[-2] in "KMG":
        body = body[:-1]
    factor = _SUFFIXES.get(body[-1:], 0)
    try:
        number = float(body[:-1] if factor else body)
    except ValueError:
        number = -1.0
    if not 0 <= number < 2**62:
        raise UsageError(f"{flag}: got {text!r}, expected a size such as 512M (B, K, M or G; MiB without one)")
    return int(number * (factor or 1 << 20))


def typed_layers(flag: str, text: str, several: bool) -> Iterator[tuple[str, tuple[DataType, ...]]]:
    """Layers' names and types.

    Raises:
        UsageError: a type that is none, several where one is expected, or several wildcards.
    """
    for part in split(text):
        name, kinds = pair(flag, part)
        one_wildcard(flag, name)
        names = kinds.split("+") if several else [kinds]
        wrong = [kind for kind in names if kind not in TYPES]
        if wrong:
            raise UsageError(f"{flag}: got the type {wrong[0]!r} for {name!r}, expected one of {', '.join(TYPES)}")
        yield name, tuple(TYPES[kind] for kind in names)
