"""Weights as a safetensors file: written with aligned data, read by mapping.

Element types that the format lacks are stored as U8 with their type in the metadata. Tensors are
ordered by falling element size, so each is aligned to its element.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.dtypes import DTYPES, DType, dtype
from dovetail.core.errors import PlanFormatError
from dovetail.engine.codec import parse_json

Array = NDArray[Any]

_NAMES = {
    "f64": "F64", "f32": "F32", "f16": "F16", "bf16": "BF16", "f8e4m3": "F8_E4M3",
    "f8e5m2": "F8_E5M2", "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8", "u64": "U64",
    "u32": "U32", "u16": "U16", "u8": "U8", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {v: DTYPES[k] for k, v in _NAMES.items()}
_MAX_HEADER = 100 << 20
_MAX_RANK = 32


def serialise(weights: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """The pieces of a safetensors file, in order; equal weights give equal bytes."""
    order = sorted(weights, key=lambda n: (-dtype(weights[n].dtype).itemsize, n))
    header: dict[str, Any] = {}
    special: dict[str, str] = {}
    pieces: list[memoryview] = []
    offset = 0
    for name in order:
        if name == "__metadata__":
            raise PlanFormatError("weights: got the name '__metadata__', which the format reserves")
        array, kind = weights[name], dtype(weights[name].dtype)
        data, shape = _bytes_of(array), list(array.shape)
        if kind.name not in _NAMES:
            special[name] = json.dumps({"dtype": kind.name, "shape": shape})
            shape = [data.nbytes]
        header[name] = {
            "dtype": _NAMES.get(kind.name, "U8"),
            "shape": shape,
            "data_offsets": [offset, offset + data.nbytes],
        }
        offset += data.nbytes
        pieces.append(data)
    if special:
        header["__metadata__"] = special
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    yield len(text).to_bytes(8, "little") + text
    yield from pieces


def read(data: memoryview, where: str = "weights.safetensors") -> dict[str, Array]:
    """All tensors as read-only views of `data` (strings are copied).

    Raises:
        PlanFormatError: not a safetensors file, or a tensor leaves it.
    """
    if len(data) < 8:
        raise PlanFormatError(f"{where}: got {len(data)} bytes, expected a safetensors file")
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        raise PlanFormatError(f"{where}: the header of {size} bytes leaves the file")
    header = parse_json(data[8 : 8 + size], where, _MAX_HEADER)
    body = data[8 + size :]
    if not isinstance(header, dict):
        raise PlanFormatError(f"{where}: got no table of tensors, expected a safetensors file")
    special = header.pop("__metadata__", {})
    if not isinstance(special, dict):
        raise PlanFormatError(f"{where}: got damaged metadata")
    return {
        name: _tensor(entry, special.get(name), body, f"{where}[{name[:60]!r}]")
        for name, entry in header.items()
    }


def _tensor(entry: Any, note: Any, body: memoryview, where: str) -> Array:
    try:
        kind: DType | None = _DTYPES.get(entry["dtype"])
        shape, (start, end) = entry["shape"], entry["data_offsets"]
        if note is not None:
            stated = json.loads(note)
            kind, shape = DTYPES.get(stated["dtype"]), stated["shape"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise PlanFormatError(f"{where}: got a damaged entry") from None
    extents = shape if isinstance(shape, list) and len(shape) <= _MAX_RANK else [-1]
    if (
        kind is None
        or not all(type(n) is int and 0 <= n < 1 << 48 for n in (*extents, start, end))
        or not start <= end <= len(body)
    ):
        raise PlanFormatError(f"{where}: got a damaged entry, expected dtype, shape and offsets")
    raw = np.frombuffer(body[start:end], np.uint8)
    if kind.kind == "string":
        return _strings(raw, extents, where)
    if math.prod(extents) * kind.itemsize != end - start:
        raise PlanFormatError(
            f"{where}: got {end - start} bytes, expected {extents} elements of {kind}"
        )
    if start % kind.itemsize:
        raw = raw.copy()  # files of other writers may be unaligned
    return raw.view(kind.numpy).reshape(extents)


def _bytes_of(array: Array) -> memoryview:
    if array.dtype == object:
        text = json.dumps([str(v) for v in array.reshape(-1)], ensure_ascii=False)
        return memoryview(text.encode())
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def _strings(raw: Array, shape: list[int], where: str) -> Array:
    values = parse_json(raw.tobytes(), where, _MAX_HEADER)
    if (
        not isinstance(values, list)
        or len(values) != math.prod(shape)
        or not all(isinstance(v, str) for v in values)
    ):
        raise PlanFormatError(f"{where}: got damaged strings, expected {shape}")
    result = np.empty(len(values), object)
    result[:] = values
    return result.reshape(shape)
