"""Runs of a context on a client's memory: the shortest road that the device has, with times and values of steps where they are wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dovetail.core.errors import BindingError, ExecutionError
from dovetail.runtime import ExecutionContext, Observer, Record, RuntimeEngine
from dovetail.tensorrt import standins

_BOUND = 8


@dataclass(frozen=True)
class Results:
    """What a run gave: outputs by name, times of steps where they were wanted, values that were tapped."""

    outputs: Mapping[str, Any]
    records: list[Record] | None = None
    taps: Mapping[str, list[Any]] = field(default_factory=dict)


class Launcher:
    """A Dovetail context, its memory and its observers."""

    def __init__(self, runtime: RuntimeEngine) -> None:
        self.runtime = runtime
        self._context: ExecutionContext = runtime.context()
        # Runs on a GPU whose arrays stay where they are, by all that they depend on; None where that cannot be.
        self._bound: dict[Any, Any] | None = None if runtime.device == "cpu" else {}

    def use_memory(self, address: int, size: int, owner: Any = None) -> None:
        """Keep values between steps there; see `ExecutionContext.use_memory`."""
        self._context.use_memory(address, size, owner)
        if self._bound is not None:
            self._bound.clear()

    @property
    def binds(self) -> bool:
        """Whether runs on the same arrays can be repeated by one call of the driver: see `bind`."""
        return self._bound is not None

    def repeat(self, key: Any, stream: int | None) -> Results | None:
        """Run once more what was bound under a key; None where nothing was.

        Raises:
            Error: as of `ExecutionContext.run`.
        """
        found = None if self._bound is None else self._bound.get(key)
        return None if found is None else Results(self._finished(found.run(stream or 0), stream))

    def bind(self, key: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int | None) -> None:
        """Keep a run on these arrays for `repeat`, where all of it is on the GPU; not while the stream is being captured.

        Raises:
            ShapeError: shapes that do not fit.
        """
        from dovetail.runtime.cuda.context import CudaContext
        from dovetail.runtime.cuda.engine import CudaEngine

        assert isinstance(self._context, CudaContext) and isinstance(self.runtime, CudaEngine) and self._bound is not None
        if stream is not None and self.runtime.is_capturing(stream):
            return
        while len(self._bound) >= _BOUND:
            del self._bound[next(iter(self._bound))]
        try:
            self._bound[key] = self._context.bind(inputs, outputs)
        except ExecutionError:  # some of its steps are on the host: such an engine is run step by step
            self._bound = None

    def run(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int | None, *,
        taps: Collection[str] = (), timed: bool = False,
    ) -> Results:  # fmt: skip
        """Run once.

        Args:
            inputs, outputs: as of `ExecutionContext.run`; outputs as functions.
            stream: of a GPU; None waits for the end.

        Raises:
            Error: as of `ExecutionContext.run`.
        """
        # Without a stream a run follows what is queued in the client's, as in the default stream, which waits for them all.
        handle = (stream or 0) if self.runtime.device != "cpu" else None
        if taps or timed:
            observer: Observer = self.runtime._observer(taps)
            found = self._context.run(inputs, outputs, observer=observer, stream=handle)
            return Results(self._finished(found, stream), observer.records, observer.taps)
        return Results(self._finished(self._context.run(inputs, outputs, stream=handle), stream))

    def _finished(self, outputs: Mapping[str, Any], stream: int | None) -> Mapping[str, Any]:
        """The outputs of a run: complete where it was given no stream."""
        if stream is None and self.runtime.device != "cpu":
            from dovetail.runtime.cuda.engine import CudaEngine

            assert isinstance(self.runtime, CudaEngine)
            with self.runtime.driver.active():
                self.runtime.driver.synchronize(0)
        return outputs

    def copy(self, target: Any, value: Any, stream: int | None) -> None:
        """Write a result over a client's array of the same shape."""
        if isinstance(target, np.ndarray):
            np.copyto(target, value)
            return
        from dovetail.runtime.cuda.engine import CudaEngine

        assert isinstance(self.runtime, CudaEngine)
        driver = self.runtime.driver
        with driver.active():
            driver.copy(target.address, value.address, value.nbytes, stream or 0)
            if stream is None:
                driver.synchronize(0)

    def record(self, event: int, stream: int | None) -> None:
        """Record an event of the client's in his stream.

        Raises:
            ExecutionError: there is no CUDA that made it.
        """
        if self.runtime.device != "cpu":
            from dovetail.runtime.cuda import CudaEngine

            assert isinstance(self.runtime, CudaEngine)
            with self.runtime.driver.active():
                self.runtime.driver.record(event, stream or 0)
        elif standins.active():
            from dovetail.tensorrt.standins import device

            code = device.library().cudaEventRecord(event, stream or 0)
            if code:
                raise ExecutionError(f"input consumed event: cudaEventRecord gave the error {code}, expected an event of this process")
        else:
            raise BindingError(f"input consumed event: got {event:#x}, expected an event of CUDA, which is not in use here")
