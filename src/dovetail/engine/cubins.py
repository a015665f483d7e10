"""The machine code of a CUDA plan's kernels as one member of an engine file, `kernels.cubins`.

    8 bytes   "DTCUBIN1"
    8 bytes   length of the index, little-endian
    index     JSON: entry name -> [offset, size], offsets from the start of the file
    cubins    each at a multiple of 64

The same kernels give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from dovetail.core.errors import PlanFormatError
from dovetail.engine.codec import parse_json

MEMBER = "kernels.cubins"
"""Name of the member, beside the plan."""

_MAGIC = b"DTCUBIN1"
_ALIGNMENT = 64
_MAX_INDEX = 16 << 20
_MAX_KERNELS = 1 << 16
_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def pack(kernels: Mapping[str, bytes]) -> bytes:
    """Put machine code by entry name into one member."""
    names = sorted(kernels)
    # Offsets are part of the index whose length they depend on: leave room for the longest ones.
    room = len(json.dumps({name: [1 << 53, 1 << 53] for name in names}))
    at = _aligned(16 + room)
    index: dict[str, list[int]] = {}
    parts = []
    for name in names:
        code = kernels[name]
        index[name] = [at, len(code)]
        parts.append(code + bytes(_aligned(len(code)) - len(code)))
        at += len(parts[-1])
    text = json.dumps(index).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + text
    return head + bytes(_aligned(16 + room) - len(head)) + b"".join(parts)


def unpack(data: bytes | memoryview) -> dict[str, bytes]:
    """The machine code by entry name.

    Raises:
        PlanFormatError: not such a member, or a damaged one.
    """
    view = memoryview(data)
    if len(view) < 16 or bytes(view[:8]) != _MAGIC:
        raise _error(f"got {bytes(view[:8])!r} at the start, expected {_MAGIC!r}")
    length = int.from_bytes(view[8:16], "little")
    if length > min(_MAX_INDEX, len(view) - 16):
        raise _error(f"got an index of {length} bytes in {len(view)} bytes")
    index = parse_json(view[16 : 16 + length], MEMBER, _MAX_INDEX)
    if not isinstance(index, dict) or len(index) > _MAX_KERNELS:
        raise _error("got an index that is none")
    found: dict[str, bytes] = {}
    for name, span in index.items():
        if not _ENTRY.fullmatch(name) or not isinstance(span, list) or len(span) != 2 or not all(type(n) is int for n in span):
            raise _error(f"got a damaged record of {name[:40]!r}")
        start, size = span
        if not 16 + length <= start <= start + size <= len(view):
            raise _error(f"the kernel {name!r} leaves the file")
        found[name] = bytes(view[start : start + size])
    return found


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _error(what: str) -> PlanFormatError:
    return PlanFormatError(f"{MEMBER}: {what}; the file is damaged, build the engine again")
