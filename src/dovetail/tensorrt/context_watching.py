"""What a client is told of runs: times of layers, debug tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.errors import ExecutionError
from dovetail.device.cpu.memory import address as address_of
from dovetail.runtime.engine import tap_names
from dovetail.tensorrt.context_state import ContextState
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.dtypes import to_data_type
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.hooks import IDebugListener, IProfiler, call, told
from dovetail.tensorrt.launcher import Results
from dovetail.tensorrt.memory import seen_by_client


class WatchedContext(ContextState):
    """A context with a profiler and a debug listener."""

    def _after(self, results: Results, stream: int | None) -> None:
        self._times = self._layer_times(results.records) if results.records is not None else self._times
        if self._profiler is not None and self._emits_profile and results.records is not None:
            self.report_to_profiler()
        if self._listener is not None:
            self._show_debug_tensors(results, stream or 0)

    @property
    def profiler(self) -> IProfiler | None:
        """Told the time of every layer after each run, which is slower with it; None at first."""
        return self._profiler

    @profiler.setter
    def profiler(self, profiler: IProfiler | None) -> None:
        self._profiler = None if profiler is None else expect(IProfiler, profiler, "IExecutionContext.profiler")

    @property
    def enqueue_emits_profile(self) -> bool:
        """Whether a run tells the profiler at once; else `report_to_profiler` does."""
        return self._emits_profile

    @enqueue_emits_profile.setter
    def enqueue_emits_profile(self, on: bool) -> None:
        self._emits_profile = expect(bool, on, "IExecutionContext.enqueue_emits_profile")

    def report_to_profiler(self) -> bool:
        """Tell the profiler the layers' times of the last run; False and an error in the log where there are none."""
        if self._profiler is None or self._times is None:
            return self._refuse("report_to_profiler", "got no profiler or no run with one, expected a profiler to be set before a run")
        times, self._times = self._times, None
        return all(
            call(self._reporter, "IProfiler.report_layer_time", told, self._profiler.report_layer_time, name, ms, default=False)
            for name, ms in times.items()
        )

    def _layer_times(self, records: Sequence[Any]) -> dict[str, float]:
        """Milliseconds by layer, of the records of a run."""
        layers = self._engine._engine_layers()
        suffix = f" [profile {self._profile}]" if self._profile else ""
        same: dict[Any, list[str]] = {}
        for layer in layers:
            same.setdefault(layer.key, []).append(layer.name + suffix)
        times = {name: 0.0 for names in same.values() for name in names}
        turns: dict[Any, int] = {}
        for record in records:
            key = (record.origin, record.tactic, record.kernel)
            names = same.get(key)
            if names is None:  # a step inside a loop or a branch, whose layer has its time in all
                continue
            turn = turns.get(key, 0)
            turns[key] = turn + 1
            times[names[turn % len(names)]] += record.nanoseconds / 1e6
        return times

    # ------------------------------------------------------------------ debug tensors
    def set_debug_listener(self, listener: IDebugListener | None) -> bool:
        """Have a listener shown the tensors whose debug state is on; None ends that."""
        self._listener = None if listener is None else expect(IDebugListener, listener, "IExecutionContext.set_debug_listener: listener")
        return True

    def get_debug_listener(self) -> IDebugListener | None:
        """Who is shown debug tensors; None at first."""
        return self._listener

    def set_tensor_debug_state(self, name: str, flag: bool) -> bool:
        """Switch the debug state of a tensor that was marked for debugging."""
        expect(bool, flag, "IExecutionContext.set_tensor_debug_state: flag")
        if not self._engine.is_debug_tensor(name):
            return self._refuse("set_tensor_debug_state", f"got {name!r}, expected a tensor that was marked for debugging in the network")
        (self._watched.add if flag else self._watched.discard)(name)
        return True

    def get_debug_state(self, name: str) -> bool:
        """The debug state of a tensor."""
        return expect(str, name, "IExecutionContext.get_debug_state: name") in self._watched

    def set_all_tensors_debug_state(self, flag: bool) -> bool:
        """Switch the debug state of all tensors that were marked for debugging."""
        on = expect(bool, flag, "IExecutionContext.set_all_tensors_debug_state: flag")
        self._watched = set(self._engine._record.debug) if on else set()
        return True

    @property
    def unfused_tensors_debug_state(self) -> bool:
        """Whether all tensors that are stored, since they are inside no fusion, are shown to the listener."""
        return self._watch_unfused

    @unfused_tensors_debug_state.setter
    def unfused_tensors_debug_state(self, on: bool) -> None:
        if expect(bool, on, "IExecutionContext.unfused_tensors_debug_state") and not self._engine._record.debug_unfused:
            self._refuse("unfused_tensors_debug_state", "got True for an engine whose unfused tensors were not marked as debug tensors")
            return
        self._watch_unfused = on

    def _wanted_taps(self) -> frozenset[str]:
        if self._listener is None:
            return frozenset()
        stored = tap_names(self._engine._engine.plan.main)
        return stored if self._watch_unfused else stored & self._watched

    def _show_debug_tensors(self, results: Results, stream: int) -> None:
        """Show the listener what it asked for.

        Raises:
            ExecutionError: it refuses.
        """
        assert self._listener is not None
        hidden = {n: [a] for n, a in results.outputs.items() if n in self._watched and n not in self._engine._tensors}
        for name, arrays in {**results.taps, **hidden}.items():
            for value in arrays:
                array = np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.numpy())
                try:
                    data_type = to_data_type(array.dtype)
                except TypeError:
                    continue  # float64 and strings, which TensorRT has no name for
                shape = Dims(self._engine._without_batch(array.shape))
                with seen_by_client(array) as location:
                    shown = call(
                        self._reporter, "IDebugListener.process_debug_tensor", self._listener.process_debug_tensor, address_of(array),
                        location, data_type, shape, name, stream, default=False,
                    )  # fmt: skip
                if shown is False:  # listeners that return nothing refuse nothing
                    raise ExecutionError(f"debug tensor {name!r}: the listener refused it")
