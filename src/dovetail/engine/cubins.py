"""A bundle of cubins: the machine code of a CUDA plan, one piece per kernel, as the member `kernels.cubins`.

A header of little-endian integers, so that reading needs no parser: magic, count, then per kernel the length of its entry
name, the offset and the length of its code; the names; the code, each piece aligned to 64 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from dovetail.core.errors import PlanFormatError

_MAGIC = b"DVTLCUB1"
_HEAD = struct.Struct("<8sQ")
_RECORD = struct.Struct("<QQQ")
_MAX_KERNELS = 1 << 20
_ALIGNMENT = 64


def pack(kernels: Mapping[str, bytes]) -> bytes:
    """The bundle of kernels by entry name; equal mappings give equal bytes."""
    names = sorted(kernels)
    encoded = [name.encode() for name in names]
    at = _HEAD.size + _RECORD.size * len(names) + sum(map(len, encoded))
    records, pieces = [], []
    for name, text in zip(names, encoded, strict=True):
        padding = -at % _ALIGNMENT
        pieces += [bytes(padding), kernels[name]]
        records.append(_RECORD.pack(len(text), at + padding, len(kernels[name])))
        at += padding + len(kernels[name])
    return b"".join([_HEAD.pack(_MAGIC, len(names)), *records, *encoded, *pieces])


def unpack(data: bytes | memoryview) -> dict[str, memoryview]:
    """The kernels of a bundle, as views of it.

    Raises:
        PlanFormatError: it is damaged.
    """
    view = memoryview(data).cast("B")
    if len(view) < _HEAD.size or bytes(view[:8]) != _MAGIC:
        raise _error("no bundle of cubins")
    _, count = _HEAD.unpack_from(view)
    at = _HEAD.size + _RECORD.size * count
    if count > _MAX_KERNELS or at > len(view):
        raise _error(f"{count} kernels in {len(view)} bytes")
    found: dict[str, memoryview] = {}
    for index in range(count):
        length, offset, size = _RECORD.unpack_from(view, _HEAD.size + _RECORD.size * index)
        if at + length > len(view) or offset + size > len(view) or offset < at:
            raise _error(f"kernel {index} outside the bundle")
        try:
            name = str(view[at : at + length], "ascii")
        except ValueError:
            raise _error(f"a damaged name of kernel {index}") from None
        if name in found:
            raise _error(f"kernel {name[:40]} twice")
        found[name] = view[offset : offset + size]
        at += length
    return found


def _error(what: str) -> PlanFormatError:
    return PlanFormatError(f"kernels.cubins: got {what}, expected a bundle of cubins; build the engine again")
