"""Writes the tensors that a run shows: bytes, NumPy files, text, and a summary."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.dtypes import has_nptype, to_dtype
from dovetail.tensorrt.enums import DataType, TensorLocation
from dovetail.tensorrt.hooks import IDebugListener
from dovetail.tensorrt.trtexec import specs
from dovetail.tensorrt.trtexec.console import Console, number
from dovetail.tensorrt.trtexec.tensors import safe_name

SUMMARY = "tensor_summary.json"
"""Where the summary of all tensors goes."""


class DebugWriter(IDebugListener):
    """Writes each tensor that it is shown; in a `with` block, the summary is written at its end.

    Args:
        files: where the bytes of tensors go, by name.
        formats: of the files that every tensor gets: some of summary, numpy, string and raw. They are called by the tensor's position
            and name, in the working folder.
    """

    def __init__(self, files: Mapping[str, str], formats: Collection[str], console: Console) -> None:
        super().__init__()
        self._files, self._formats, self._console = files, formats, console
        self._rows: list[dict[str, Any]] = []
        self.seen: set[str] = set()

    def __enter__(self) -> DebugWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if "summary" in self._formats and kind is None:
            Path(SUMMARY).write_text(json.dumps(self._rows, indent=2) + "\n", encoding="utf-8")

    def process_debug_tensor(self, addr: int, location: TensorLocation, type: DataType, shape: Dims, name: str, stream: int) -> bool:
        """Write one tensor."""
        dtype = to_dtype(type).numpy
        size = dtype.itemsize * int(np.prod(tuple(shape), dtype=np.int64))
        data = _bytes(addr, location, size)
        values = np.frombuffer(data, dtype).reshape(tuple(shape))
        written: dict[str, str] = {}
        base = f"{len(self._rows):04d}_{name}"
        self.seen.add(name)
        if name in self._files:
            written["assigned"] = self._write(self._files[name], name, data)
        if "numpy" in self._formats:
            written["numpy"] = self._numpy(base, name, type, values)
        if "string" in self._formats:
            text = " ".join(_text(v) for v in values.reshape(-1))
            written["string"] = self._write(safe_name(f"{base}.txt"), name, text.encode() + b"\n")
        if "raw" in self._formats:
            written["raw"] = self._write(safe_name(f"{base}.raw"), name, data)
        self._rows.append(
            {"name": name, "shape": list(shape), "type": specs.type_text(type), "statistics": statistics(values)}
            | ({"files": written} if written else {})
        )
        return True

    def _write(self, path: str, name: str, data: bytes) -> str:
        self._console.detail(f"Writing debug tensor '{name}' to file '{path}'")
        Path(path).write_bytes(data)
        return path

    def _numpy(self, base: str, name: str, kind: DataType, values: np.ndarray[Any, Any]) -> str:
        if not has_nptype(kind):
            self._console.warning(f"Converting {specs.type_text(kind)} to float for numpy dump of tensor '{name}'.")
            base, values = f"{base}_to_float", values.astype(np.float32)
        path = safe_name(f"{base}.npy")
        self._console.detail(f"Writing debug tensor '{name}' to numpy file '{path}'")
        np.save(path, values, allow_pickle=False)
        return path


def statistics(values: np.ndarray[Any, Any]) -> dict[str, float | int | None]:
    """The least, the largest and the mean finite value, their deviation, and how many are not finite; None where none is."""
    wide = values.astype(np.float64).reshape(-1)
    finite = wide[np.isfinite(wide)]
    found: dict[str, float | int | None] = dict.fromkeys(("min", "max", "avg", "std"))
    if finite.size:
        found |= {"min": float(finite.min()), "max": float(finite.max()), "avg": float(finite.mean()), "std": float(finite.std())}
    return {**found, "nan": int(np.isnan(wide).sum()), "inf": int(np.isinf(wide).sum())}


def _bytes(address: int, location: TensorLocation, size: int) -> bytes:
    if not size:
        return b""
    if location is TensorLocation.HOST:
        return ctypes.string_at(address, size)
    from dovetail.tensorrt import device

    where = device.device()
    if where == "cpu":  # host memory stands in for the device's
        return ctypes.string_at(address, size)
    from dovetail.device.cuda import driver
    from dovetail.runtime.cuda.arrays import DeviceArray

    return DeviceArray.at(driver(device.ordinal(where)), address, (size,), np.dtype(np.uint8)).numpy().tobytes()


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, np.integer | np.bool_) else number(float(value))
