"""A bundle of cubins: the machine code of a CUDA plan, one piece per kernel, as the member `kernels.cubins`.

A header of little-endian integers, so that reading needs no parser: magic, count, then per kernel the length of its entry
name, the offset and the length of its code; the names; the code, each piece aligned to 64 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.core.errors import PlanFormatError

_MAGIC = b"DVTLCUB1"
_HEAD = struct.Struct("<8sQ")
_RECORD = struct.Struct("<QQQ")
_MAX_KERNELS = 1 << 20
_ALIGNMENT = 64

# Of an ELF file with 64-bit addresses: where its header says where sections are, a section, an entry of `.nv.info`.
_SECTIONS, _COUNTS, _SECTION, _ENTRY = struct.Struct("<Q"), struct.Struct("<HHH"), struct.Struct("<IIQQQQIIQQ"), struct.Struct("<BBH")
_SIZED = 4  # an entry with a payload
_FRAME, _REGISTERS = 0x11, 0x2F  # attributes: pairs of a symbol and a number


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


@dataclass(frozen=True)
class Usage:
    """What a kernel takes: registers and bytes of local memory (`stack`: spills) per thread, bytes of static shared memory."""

    registers: int
    stack: int
    shared: int


def usage(code: bytes | memoryview) -> Usage | None:
    """What the machine code of one kernel says of itself; None if it is no cubin."""
    view = memoryview(code).cast("B")
    try:
        if bytes(view[:4]) != b"\x7fELF":
            return None
        (start,), (size, count, names) = _SECTIONS.unpack_from(view, 40), _COUNTS.unpack_from(view, 58)
        sections = [_SECTION.unpack_from(view, start + i * size) for i in range(count)]
        texts = sections[names][4]
        registers = stack = shared = 0
        for name, _, _, _, offset, length, *_ in sections:
            label = bytes(view[texts + name : texts + name + 64]).split(b"\0")[0]
            if label == b".nv.info":
                found = _attributes(view[offset : offset + length])
                registers, stack = found.get(_REGISTERS, 0), found.get(_FRAME, 0)
            elif label.startswith(b".nv.shared.") and label != b".nv.shared.reserved.0":
                shared += length
    except (struct.error, IndexError):
        return None
    return Usage(registers, stack, shared)


def _attributes(info: memoryview) -> dict[int, int]:
    """The largest number of each attribute."""
    found: dict[int, int] = {}
    at = 0
    while at < len(info):
        kind, attribute, size = _ENTRY.unpack_from(info, at)
        at += _ENTRY.size
        if kind == _SIZED:
            if attribute in (_FRAME, _REGISTERS):
                found[attribute] = max(found.get(attribute, 0), struct.unpack_from("<II", info, at)[1])
            at += size
    return found


def _error(what: str) -> PlanFormatError:
    return PlanFormatError(f"kernels.cubins: got {what}, expected a bundle of cubins; build the engine again")
