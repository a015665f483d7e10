"""An engine with its inputs and outputs on the device: what a serving process with resident tensors would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import dovetail
from bench.gpu.timing import Memory, check, download, driver
from dovetail.codegen.target import Target

Array = np.ndarray[Any, Any]


class DeviceArray:
    """Row-major memory of the device that any package reads by `__cuda_array_interface__`."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.address, self.shape, self.dtype = address, shape, dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3, "strides": None}


class Resident:
    """An engine bound to inputs and outputs of its own on the device; `call` enqueues one run on `stream`."""

    def __init__(self, engine: dovetail.Engine, feeds: Mapping[str, Array]) -> None:
        self.target = Target.parse(engine.plan.target)
        self._memory = Memory()
        flags = driver().CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = check(driver().cuStreamCreate(flags))
        self.stream = int(self._stream)
        self._context = engine.context()
        self._inputs = {
            b.name: self._device(np.ascontiguousarray(feeds[b.name], b.dtype.numpy)) for b in engine.inputs
        }
        # The shapes of the results come from one run with arrays on the host.
        first = engine.run(dict(feeds))
        self._outputs = {b.name: self._device(np.ascontiguousarray(np.asarray(first[b.name]), b.dtype.numpy)) for b in engine.outputs}
        self._first_output = engine.outputs[0].name
        self.call()
        self.synchronize()

    def _device(self, array: Array) -> DeviceArray:
        return DeviceArray(self._memory.upload(array), array.shape, array.dtype)

    def call(self) -> None:
        """Enqueue one run."""
        self._context.run(self._inputs, self._outputs, stream=self.stream)

    def synchronize(self) -> None:
        """Wait for what was enqueued."""
        check(driver().cuStreamSynchronize(self._stream))

    def output(self) -> Array:
        """The first output of a fresh run, on the host."""
        self.call()
        self.synchronize()
        found = self._outputs[self._first_output]
        return download(found.address, found.shape, found.dtype)
