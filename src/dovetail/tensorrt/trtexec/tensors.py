"""The memory of trtexec's inputs and outputs, on the host and, for a GPU's engine, on the device; its contents in files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dovetail.core.errors import UsageError
from dovetail.device.cpu.memory import address, aligned_bytes
from dovetail.device.cuda.driver import Driver, Stream
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enums import DataType
from dovetail.tensorrt.trtexec import specs
from dovetail.tensorrt.trtexec.console import number

Array = np.ndarray[Any, Any]


class Memory(Protocol):
    """So many bytes: `host` can be read and written here, `address` is what an engine gets."""

    host: Array
    address: int

    def upload(self, stream: Stream) -> None:
        """Copy to the device, in a stream."""

    def download(self, stream: Stream) -> None:
        """Copy from the device, in a stream."""

    def free(self) -> None:
        """Give the memory back."""


class HostMemory:
    """Host memory, which engines on the CPU use as it is."""

    def __init__(self, size: int) -> None:
        self.host: Array = aligned_bytes(max(size, 1))[:size]
        self.address = address(self.host)

    def upload(self, stream: Stream) -> None:
        """Nothing has to be copied."""

    def download(self, stream: Stream) -> None:
        """Nothing has to be copied."""

    def free(self) -> None:
        """The array goes with its last user."""


class DeviceMemory:
    """Memory of a GPU, and as much pinned memory on the host."""

    def __init__(self, driver: Driver, size: int) -> None:
        self._driver = driver
        self.host: Array = driver.host_memory(max(size, 1))[:size]
        self.address = driver.allocate(max(size, 1))

    def upload(self, stream: Stream) -> None:
        """Copy to the device, in a stream."""
        if self.host.size:
            self._driver.upload(self.address, self.host, stream)

    def download(self, stream: Stream) -> None:
        """Copy from the device, in a stream."""
        if self.host.size:
            self._driver.download(self.host, self.address, stream)

    def free(self) -> None:
        """Give the device's part back."""
        self._driver.free(self.address)


class Tensor:
    """An input or output of one context.

    Args:
        driver: of the GPU that it lies on; None: on the host, as for engines on the CPU and for inputs that are read as shapes.
    """

    def __init__(self, name: str, kind: DataType, shape: tuple[int, ...], is_input: bool, driver: Driver | None) -> None:
        self.name, self.kind, self.is_input = name, kind, is_input
        self.dtype = to_dtype(kind).numpy
        self._driver = driver
        self.shape = shape
        self.memory: Memory = self._allocate(0)
        self.resize(shape)

    def resize(self, shape: tuple[int, ...], size: int = -1) -> None:
        """Have memory for a shape; for at least so many bytes, where those are said."""
        self.shape = shape
        needed = max(size, self.dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        if needed > self.memory.host.nbytes:
            self.memory.free()
            self.memory = self._allocate(needed)

    def _allocate(self, size: int) -> Memory:
        return HostMemory(size) if self._driver is None else DeviceMemory(self._driver, size)

    @property
    def values(self) -> Array:
        """The values on the host, as they lie in memory."""
        size = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        found: Array = self.memory.host[:size].view(self.dtype).reshape(self.shape)
        return found

    def fill(self, rng: np.random.Generator) -> None:
        """Random values: floats of -1 to 1, bytes of any value, mixed booleans, and 0 or 1 for the integers that index."""
        values = self.values
        if self.kind is DataType.BOOL or (self.dtype.itemsize > 2 and values.dtype.kind in "iu"):
            values[...] = rng.integers(0, 2, values.shape)
        elif values.dtype.kind in "iu":
            limits = np.iinfo(values.dtype)
            values[...] = rng.integers(limits.min, limits.max, values.shape, endpoint=True)
        else:
            values[...] = np.asarray(rng.uniform(-1, 1, values.shape)).astype(self.dtype)

    def read(self, path: str, flag: str) -> None:
        """Take the bytes of a file.

        Raises:
            UsageError: it has not as many bytes as the tensor.
            OSError: it cannot be read.
        """
        data = Path(path).read_bytes()
        values = self.values
        if len(data) != values.nbytes:
            raise UsageError(
                f"{flag}: {self.name}: got {len(data)} bytes in {path}, expected {values.nbytes}: {specs.text_of(self.shape)} of "
                f"{specs.type_text(self.kind)}"
            )
        self.memory.host[: len(data)] = np.frombuffer(data, np.uint8)

    # ---- out ----
    def text(self) -> str:
        """The values with spaces between them, as `--dumpOutput` prints them."""
        return " ".join(number(float(v)) if self.dtype.kind not in "iub" else str(int(v)) for v in self.values.reshape(-1))

    def json(self) -> dict[str, Any]:
        """As `--exportOutput` has it."""
        flat = self.values.reshape(-1)
        listed = flat.astype(np.int64).tolist() if self.dtype.kind in "iub" else [float(number(float(v))) for v in flat]
        return {"name": self.name, "dimensions": "x".join(map(str, self.shape)), "values": listed}

    def raw_name(self) -> str:
        """The name of its file under `--dumpRawBindingsToFile`."""
        extents = "".join(f"{d}." for d in self.shape)
        return safe_name(f"{self.name}.{'input' if self.is_input else 'output'}.{extents}{specs.type_text(self.kind)}.raw")

    def write(self, path: str) -> None:
        """Write the bytes to a file.

        Raises:
            OSError: it cannot be written.
        """
        Path(path).write_bytes(self.values.tobytes())


def safe_name(text: str) -> str:
    """A text as the name of a file."""
    return re.sub(r"[^\w.\-]", "_", text, flags=re.ASCII)


def write_outputs(path: str, tensors: list[Tensor]) -> None:
    """Write `--exportOutput`.

    Raises:
        OSError: the file cannot be written.
    """
    body = ",\n".join("  " + json.dumps(t.json()) for t in tensors if not t.is_input)
    Path(path).write_text(f"[\n{body}\n]\n", encoding="utf-8")
