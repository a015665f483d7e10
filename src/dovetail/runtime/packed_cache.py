"""The cache of packed weights on disk, so that an engine that was opened before opens at once.

A file per key: the header's length, the header (JSON), then the packed arrays, each aligned to 64
bytes and described by the header. It is mapped, not read, so that a warm start costs no copy and
processes share the pages.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.env import env
from dovetail.core.log import logger
from dovetail.device.cpu.memory import ALIGNMENT

Array = NDArray[Any]

_FORMAT = 2


def key_of(parts: Sequence[object]) -> str:
    """Hash of all that packed weights depend on."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()


def _path(key: str) -> Path:
    return env().cache / "packed" / f"{key}.bin"


def read(key: str, names: Sequence[str]) -> dict[str, Array] | None:
    """The packed weights of a key, mapped read-only; None where there is no intact file."""
    try:
        data: Array = np.memmap(_path(key), np.uint8, "r").view(np.ndarray)
    except (OSError, ValueError):
        return None
    try:
        header_size = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + header_size].tobytes())
        if header["key"] != key or header["size"] != data.nbytes:
            raise ValueError("another key or size")
        result = {}
        for name in names:
            start, size = header["arrays"][name]
            if not 0 <= start <= start + size <= data.nbytes or start % ALIGNMENT:
                raise ValueError(f"{name} leaves the file")
            result[name] = data[start : start + size]
    except (KeyError, TypeError, ValueError) as error:
        logger("runtime").warning("packed weights %s are damaged (%s): packing again", key, error)
        return None
    return result


def write(key: str, packed: Mapping[str, Array]) -> None:
    """Keep packed weights for the next start; a cache that cannot be written is only slower."""
    arrays: dict[str, tuple[int, int]] = {}
    room = 128 + sum(len(json.dumps(name)) + 48 for name in packed)
    start = end = _padded(8 + len(key) + room, 4096)
    for name, array in packed.items():
        if not isinstance(array, np.ndarray) or array.dtype == object:
            return  # sequences and strings are not worth a format of their own
        arrays[name] = (start, array.nbytes)
        end = start + array.nbytes
        start = _padded(end, ALIGNMENT)
    header = json.dumps({"key": key, "size": end, "arrays": arrays}).encode()
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(".tmp", key[:16], path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                for name, (offset, _) in arrays.items():
                    file.seek(offset)
                    file.write(packed[name].data)
                file.truncate(end)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        logger("runtime").warning("packed weights are not cached: %s", error)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
