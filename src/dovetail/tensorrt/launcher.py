"""Runs of a context on a client's memory: the shortest road that the device has, with times and values of steps where they are wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from dovetail.core.errors import BindingError, ExecutionError
from dovetail.runtime import ExecutionContext, Observer, Record, RuntimeEngine
from dovetail.tensorrt import standins


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

    def use_memory(self, address: int, size: int, owner: Any = None) -> None:
        """Keep values between steps there; see `ExecutionContext.use_memory`."""
        self._context.use_memory(address, size, owner)

    def run(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: int | None, *,
        taps: Collection[str] = (), timed: bool = False, steady: bool = False,
    ) -> Results:  # fmt: skip
        """Run once.

        Args:
            inputs, outputs: as of `ExecutionContext.run`; outputs as functions.
            stream: of a GPU; None waits for the end.
            steady: whether the same memory may be expected in later runs.

        Raises:
            Error: as of `ExecutionContext.run`.
        """
        handle = stream if self.runtime.device != "cpu" else None
        if taps or timed:
            observer: Observer = self.runtime._observer(taps)
            found = self._context.run(inputs, outputs, observer=observer, stream=handle)
            return Results(found, observer.records, observer.taps)
        return Results(self._context.run(inputs, outputs, stream=handle))

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
