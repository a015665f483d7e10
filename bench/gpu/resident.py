"""An engine with its inputs and outputs on the device: what a serving process with resident tensors would do."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import dovetail
from bench.gpu.timing import Candidate, Graph, Memory, check, download, driver
from dovetail.codegen.target import Target
from dovetail.core.errors import BindingError, ExecutionError

Array = np.ndarray[Any, Any]


class DeviceArray:
    """Memory of the device that any package reads by `__cuda_array_interface__`; strides in bytes, None for row-major."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None = None) -> None:
        self.address, self.shape, self.dtype, self.strides = address, shape, dtype, strides

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3, "strides": self.strides,
        }  # fmt: skip


class Resident:
    """An engine bound to inputs and outputs of its own on the device.

    Args:
        engine: a CUDA engine whose shapes are all known.
        feeds: inputs by name, in the types of the model.
    """

    def __init__(self, engine: dovetail.Engine, feeds: Mapping[str, Array]) -> None:
        self.target = Target.parse(engine.plan.target)
        self._memory = Memory()
        self._stream = check(driver().cuStreamCreate(driver().CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.stream = int(self._stream)
        self._context: Any = engine.context()
        # An input whose axes do not lie in their own order: channels are innermost then.
        channels_last = {p.name for p in engine.plan.inputs if p.order}
        self._inputs = {b.name: self._input(feeds[b.name], b.dtype.numpy, b.name in channels_last) for b in engine.inputs}
        self._outputs = {b.name: self._output(_known(b), b.dtype.numpy) for b in engine.outputs}
        self._first = engine.outputs[0].name
        self._binding: Any = None
        try:
            self.call()
        except BindingError:
            # The elements lie as the engine wants them; only what the array says of itself is in question.
            for name in channels_last:
                self._inputs[name].strides = None
            self.call()
        self.synchronize()
        with contextlib.suppress(ExecutionError, AttributeError):  # of engines with steps on the host
            self._binding = self._context.bind(self._inputs, self._outputs)
        self._engine = engine
        self.graph: Graph | None = None

    def _input(self, array: Array, dtype: np.dtype[Any], channels_last: bool) -> DeviceArray:
        values = np.ascontiguousarray(array).astype(dtype)
        if not channels_last:
            return DeviceArray(self._memory.upload(values), values.shape, dtype)
        order = (0, *range(2, values.ndim), 1)
        moved = np.ascontiguousarray(values.transpose(order))
        seen = moved.transpose(np.argsort(order))
        return DeviceArray(self._memory.upload(moved), values.shape, dtype, tuple(seen.strides))

    def _output(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        # Filled with a pattern that is NaN in every float type: what is not written shows.
        poison = np.full(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 0xFF, np.uint8)
        return DeviceArray(self._memory.upload(poison), shape, dtype)

    def call(self) -> None:
        """Enqueue one run, as the API does it: of a binding, where the engine runs on the device alone."""
        if self._binding is not None:
            self._binding.run(self.stream)
            return
        self._context.run(self._inputs, self._outputs, stream=self.stream)

    def synchronize(self) -> None:
        """Wait for what was enqueued."""
        check(driver().cuStreamSynchronize(self._stream))

    def capture(self) -> Candidate:
        """One run as a CUDA graph of its own, as peers are timed.

        Raises:
            dovetail.Error: steps on the host cannot be captured.
        """
        context: Any = self._engine.context()
        context.run(self._inputs, self._outputs, stream=self.stream)
        self.synchronize()
        self._captured = context  # the graph uses its memory
        self.graph = Graph(lambda stream: context.run(self._inputs, self._outputs, stream=stream))
        return self.graph.candidate("dovetail")

    def output(self) -> Array:
        """The first output of a fresh run (of the graph, if there is one), on the host."""
        if self.graph is not None:
            self.graph()
            check(driver().cuStreamSynchronize(driver().CUstream(self.graph.stream)))
        else:
            self.call()
            self.synchronize()
        found = self._outputs[self._first]
        return download(found.address, found.shape, found.dtype)


def _known(binding: Any) -> tuple[int, ...]:
    shape = tuple(binding.shape)
    if not all(isinstance(d, int) for d in shape):
        raise ValueError(f"output {binding.name}: got shape {shape}, expected known sizes; build with shapes=…")
    return shape
