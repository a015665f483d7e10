"""The engine at run time: immutable code, versioned weights, contexts for threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dovetail.core.dtypes import dtype
from dovetail.core.env import env
from dovetail.core.errors import BindingError, ExecutionError, PlanFormatError, UsageError
from dovetail.device.cpu import HostLibrary, KernelLibrary, default_threads
from dovetail.device.cpu.memory import ALIGNMENT, address
from dovetail.device.cpu.pool import check_threads
from dovetail.device.cpu.pool import pool as process_pool
from dovetail.engine.check import check
from dovetail.engine.plan import Plan, Program
from dovetail.runtime import nvtx
from dovetail.runtime import weights as weight_sets
from dovetail.runtime.arrays import (
    as_input,
    as_output,
    at_address,
    in_logical_order,
    in_memory_order,
)
from dovetail.runtime.match import PortMatcher
from dovetail.runtime.observe import Observer, Record
from dovetail.runtime.partial import Parts
from dovetail.runtime.program import Kernels, ProgramRunner
from dovetail.runtime.shapes import arena_bytes, sizes_of
from dovetail.runtime.stage import Resources, Stage

Array = NDArray[Any]
Binary = str | Path | bytes | memoryview
"""A compiled library: a path, or its bytes."""

Make = Callable[[tuple[int, ...], np.dtype[Any]], Any]
"""Makes the array of an output of this shape and dtype, as the caller sees it."""

T = TypeVar("T")

_IDLE_CONTEXTS = 16


@dataclass(frozen=True)
class Refitted:
    """A refit that can be undone: the weight sets before and after it, and the names of what it replaced."""

    old: weight_sets.WeightSet
    new: weight_sets.WeightSet
    names: tuple[str, ...]


class RuntimeEngine:
    """A plan with its kernels and weights, ready to run. Thread-safe; see `runtime.open`."""

    def __init__(
        self,
        plan: Plan,
        *,
        kernels: Sequence[Binary] = (),
        host: Binary | None = None,
        weights: Mapping[str, Array] | None = None,
        threads: int | None = None,
        stored: weight_sets.Stored | None = None,
    ) -> None:
        check(plan)
        self.plan = plan
        self.threads = default_threads() if threads is None else check_threads(threads)
        self._libraries = [KernelLibrary(k) for k in kernels]
        self._kernels: Kernels = {k.entry: (self._find(k.entry), k) for k in plan.kernels}
        self._host = HostLibrary.current() if host is None else HostLibrary.load(host)
        self._runner = runners(self._kernels, self._host)
        self._contexts: deque[ExecutionContext] = deque(maxlen=_IDLE_CONTEXTS)
        self._lock = threading.Lock()
        self._weights = weight_sets.build(plan, weights or {}, self._packer, self.threads, stored)
        self._parts = Parts(plan.weights_program, plan.kernels, self._runner)
        self._memory = weight_sets.recycler(self._weights)
        remember(self)

    @property
    def device(self) -> str:
        """The device that the engine runs on."""
        return "cpu"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(p.name for p in self.plan.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(p.name for p in self.plan.outputs)

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """Run once, on any thread.

        Inputs are read in place where contiguous (NumPy, DLPack, buffers). `outputs` gives arrays
        to write into, or functions of a shape and a dtype that make one, called once the shape is
        known; the others are fresh and belong to the caller. `stream` is for engines on a GPU: see
        `CudaEngine.run`.

        Raises:
            BindingError: unknown or missing name, wrong dtype, unusable array.
            ShapeError: a shape that does not fit.
            ExecutionError: the run itself failed.
        """
        context = self._take()
        try:
            return context.run(inputs, outputs, threads=threads, stream=stream)
        finally:
            give_back(self._contexts, context)

    def run_async(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any] | None = None,
        *,
        stream: Any = None,
    ) -> Any:
        """Queue a run on a GPU: see `CudaEngine.run_async`.

        Raises:
            UsageError: the engine runs on the CPU.
        """
        raise UsageError(
            "run_async: got an engine on the CPU, expected one on a GPU; call run from a thread"
        )

    def memory_bytes(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Bytes that a context keeps for a run on inputs of these shapes, rounded up so that any address will do.

        What only data decide is not counted.

        Raises:
            ShapeError: shapes that do not fit.
        """
        return arena_bytes(self.plan, sizes_of(self.plan, shapes)) + ALIGNMENT

    def context(self) -> ExecutionContext:
        """A context for one thread: it keeps its bindings, so it never waits for another."""
        return ExecutionContext(self)

    def profile(
        self, inputs: Mapping[str, Any], *, threads: int | None = None, nvtx_ranges: bool = False
    ) -> tuple[dict[str, Any], list[Record]]:
        """Run once with time stamps; returns the outputs and one record per step.

        `nvtx_ranges` marks the run and every step for Nsight Systems; steps then run one by one.

        Raises:
            UsageError: NVTX is asked for and not installed.
        """
        if not nvtx_ranges and not env().nvtx:
            observer = self._observer()
            return self._observed(inputs, threads, observer), observer.records
        found = nvtx.ranges()
        observer = self._observer(ranges=found)
        with found.around(nvtx.run_name(self.plan)):
            return self._observed(inputs, threads, observer), observer.records

    def tap(
        self, inputs: Mapping[str, Any], names: Collection[str], *, threads: int | None = None
    ) -> tuple[dict[str, Any], dict[str, list[Array]]]:
        """Run once and copy out named values; a value in a loop gives one array per iteration.

        Raises:
            BindingError: a name that the plan cannot tap.
        """
        known = tap_names(self.plan.main)
        unknown = sorted(set(names) - known)
        if unknown:
            raise BindingError(
                f"tap: got {unknown}, expected some of the {len(known)} values at kernel "
                "boundaries; values inside a fusion have no storage"
            )
        observer = self._observer(names)
        return self._observed(inputs, threads, observer), observer.taps

    def check_nan(self, inputs: Mapping[str, Any], *, threads: int | None = None) -> dict[str, Any]:
        """Run once and look for NaN after every step.

        Raises:
            ExecutionError: names the first step that produced one.
        """
        return self._observed(inputs, threads, self._observer(nan=True))

    def set_weights(self, changes: Mapping[str, Any]) -> Refitted:
        """Refit: replace weights by their original names, all or none; only what depends on them is packed anew.

        Runs in progress finish with the old weights, later ones take the new.

        Raises:
            RefitError: unknown name, wrong dtype or shape, or a violated guard.
        """
        with self._lock:
            old = self._weights
            self._weights = self._refit(old, changes)
            return Refitted(old, self._weights, tuple(changes))

    def restore_weights(self, refitted: Refitted) -> bool:
        """Undo a refit; True if nothing else has changed since, so that the weights are the very ones from before."""
        with self._lock:
            if self._weights is refitted.new:
                self._weights = refitted.old
                return True
            self._weights = self._refit(self._weights, {n: refitted.old.arrays[n] for n in refitted.names})
            return False

    def release_memory(self) -> None:
        """Give back what refits keep for the next one: memory for one more set of weights, at most."""
        with self._lock:
            self._memory.release()
            self._parts.release()

    def _refit(self, old: Any, changes: Mapping[str, Any]) -> Any:
        """The weight set after a refit; the caller has the lock."""
        return weight_sets.refit(self.plan, old, changes, self._parts.runner, self._memory, self.threads)

    def weight(self, name: str) -> Array:
        """The current value of an original initializer (read-only).

        Raises:
            BindingError: no such weight.
        """
        try:
            view = self._weights.arrays[name].view()
        except KeyError:
            raise BindingError(f"weight: got {name!r}, expected an initializer's name") from None
        view.flags.writeable = False
        return view

    # --- internal -------------------------------------------------------------------------------

    def _find(self, entry: str) -> int:
        for library in self._libraries:
            if entry in library:
                return library.address(entry)
        raise PlanFormatError(
            f"plan: got no binary for the kernel {entry}, expected it in one of "
            f"{len(self._libraries)} libraries; rebuild the engine"
        )

    def _packer(self) -> ProgramRunner:
        """A runner for the weights program: needed at a cold start only."""
        return self._runner(self.plan.weights_program)

    def _take(self) -> ExecutionContext:
        try:
            context = self._contexts.pop()
        except IndexError:
            return self.context()
        context.engine = self
        return context

    def _observer(
        self, taps: Collection[str] = (), nan: bool = False, ranges: nvtx.Ranges | None = None
    ) -> Observer:
        tick = 0.0 if self._host is None else self._host.nanoseconds_per_tick()
        return Observer(tick, taps, nan, ranges)

    def _observed(
        self, inputs: Mapping[str, Any], threads: int | None, observer: Observer
    ) -> dict[str, Any]:
        context = self._take()
        try:
            return context.run(inputs, threads=threads, observer=observer)
        finally:
            give_back(self._contexts, context)


def runners(kernels: Kernels, host: HostLibrary | None) -> Callable[[Program], ProgramRunner]:
    """What makes runners over these kernels. It does not hold an engine, as engines hold it."""
    pool = None if host is None else partial(process_pool, host)
    return lambda program: ProgramRunner(program, kernels, pool)


def give_back(contexts: deque[ExecutionContext], context: ExecutionContext) -> None:
    """Keep a context for a later run of its engine.

    It does not hold the engine meanwhile, so that memory goes back with the engine's last reference, and not at some later collection.
    """
    del context.engine
    contexts.append(context)


class ExecutionContext:
    """Bindings and memory for one thread at a time; made by `RuntimeEngine.context`."""

    def __init__(self, engine: RuntimeEngine) -> None:
        self.engine = engine
        plan = engine.plan
        self._runner = self._make_runner(plan.main)
        self._runner.matcher = PortMatcher(plan.inputs, plan.symbols)
        self._shapes = self._make_runner(plan.shapes_program)
        self._busy = threading.Lock()
        self._ports = [
            (p.name, dtype(p.tensor.dtype).numpy, p.tensor.shape is None) for p in plan.inputs
        ]
        self._orders = {i: p.order for i, p in enumerate(plan.inputs) if p.order}
        self._output_orders = {p.name: p.order for p in plan.outputs if p.order}
        self._output_names = [p.name for p in plan.outputs]
        self._output_set = frozenset(self._output_names)
        self._output_dtypes = [dtype(p.tensor.dtype).numpy for p in plan.outputs]
        self._updates = self._updated_inputs()

    def _make_runner(self, program: Program) -> ProgramRunner:
        return self.engine._runner(program)

    def use_memory(self, address: int, size: int, owner: Any = None) -> None:
        """Keep the values between steps in the caller's memory on the engine's device, as far as that is large enough.

        Args:
            address: of the first byte; 0 goes back to memory of the context's own.
            size: in bytes; `RuntimeEngine.memory_bytes` says how many a run takes.
            owner: kept as long as the memory is used.

        Raises:
            ExecutionError: a run is in progress.
        """
        self._enter()
        try:
            self._runner.lend(self._borrowed(address, size, owner) if address else None)
        finally:
            self._busy.release()

    def _borrowed(self, address: int, size: int, owner: Any) -> Any:
        memory = at_address(address, (size,), np.dtype(np.uint8), owner)
        return memory[-address % ALIGNMENT :]

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        observer: Observer | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """As `RuntimeEngine.run`; a second thread in the same context is an error."""
        engine = self.engine
        if stream is not None:
            raise UsageError(
                "stream: got one for an engine on the CPU, expected none; it is for engines on a GPU"
            )
        self._enter()
        try:
            values = self._inputs(inputs)
            runner = self._runner
            shapes = tuple(
                [None if p[2] else v.shape for v, p in zip(values, self._ports, strict=True)]
            )
            stage = runner.stage(shapes, {})
            weights = engine._weights  # this run's, whatever a refit does meanwhile
            results_of_shapes, token = self._shape_results(stage, weights)
            given = None if outputs is None else self._outputs(outputs, values, stage)
            flags = env()
            if observer is None and flags.check_nan:
                observer = engine._observer(nan=True)
            resources = Resources(weights.raw, weights.packed, results_of_shapes)
            team = engine.threads if threads is None else check_threads(threads)

            if observer is None and flags.nvtx:
                results = self._marked(
                    lambda watching: runner.run(stage, values, given, resources, token, team, watching)
                )
            else:
                results = runner.run(stage, values, given, resources, token, team, observer)
            return self._logical(dict(zip(self._output_names, results, strict=True)))
        finally:
            self._busy.release()

    def _marked(self, run: Callable[[Observer | None], T]) -> T:
        """Run inside of an NVTX range; step by step, each in its own, where the environment asks for that."""
        found = nvtx.ranges()
        with found.around(nvtx.run_name(self.engine.plan)):
            return run(self.engine._observer(ranges=found) if env().nvtx == "steps" else None)

    def _logical(self, results: dict[str, Any]) -> dict[str, Any]:
        """Results as the caller sees them, whatever their order in memory."""
        for name, order in self._output_orders.items():
            results[name] = in_logical_order(results[name], order)
        return results

    def _enter(self) -> None:
        """Take the context for this thread; whoever does releases `_busy`."""
        if not self._busy.acquire(blocking=False):
            raise ExecutionError(
                "context: got a second run while one is in progress, expected one thread per "
                "context; call engine.run, or make a context for each thread"
            )

    def _inputs(self, inputs: Mapping[str, Any]) -> list[Any]:
        values = []
        for i, (name, want, opaque) in enumerate(self._ports):
            try:
                value = inputs[name]
            except KeyError:
                raise BindingError(
                    f"inputs: got no {name!r} among {sorted(map(str, inputs))}, "
                    f"expected {', '.join(p[0] for p in self._ports)}"
                ) from None
            if i in self._orders:
                value = in_memory_order(f"input {name!r}", value, self._orders[i])
            if not opaque and not (
                type(value) is np.ndarray
                and value.dtype == want
                and value.flags.c_contiguous
                and not want.hasobject
            ):
                value = self._converted(i, name, value, want)
            values.append(value)
        for i in self._updates.values():
            if not values[i].flags.writeable:
                raise BindingError(
                    f"input {self._ports[i][0]!r}: got a read-only array, expected a writable one, "
                    "because the engine updates it in place"
                )
        if len(inputs) != len(values):
            unknown = sorted(set(inputs) - {p[0] for p in self._ports})
            raise BindingError(
                f"inputs: got {unknown}, expected only {', '.join(p[0] for p in self._ports)}"
            )
        return values

    def _converted(self, index: int, name: str, value: Any, want: np.dtype[Any]) -> Array:
        array = as_input(name, value, want)
        if index in self._updates.values() and not np.may_share_memory(array, value):
            raise BindingError(
                f"input {name!r}: got an array that must be copied, expected a C-contiguous one, "
                "because the engine updates it in place"
            )
        return array

    def _shape_results(
        self, stage: Stage, weights: weight_sets.WeightSet
    ) -> tuple[Mapping[str, Array], int]:
        """Results of the shapes program for this binding, and what identifies them."""
        program = self._shapes.program
        if not program.outputs:
            return {}, weights.version
        if stage.shapes is None or stage.shapes[0] != weights.version:
            resources = Resources(weights.raw, weights.packed, {})
            first = self._shapes.stage((), stage.env)
            values = self._shapes.run(
                first, (), None, resources, weights.version, self.engine.threads
            )
            found = weight_sets.by_name(program, values)
            stage.shapes = (weights.version, found, weight_sets.new_token())
        return stage.shapes[1], stage.shapes[2]

    def _outputs(
        self, outputs: Mapping[str, Any], values: Sequence[Any], stage: Stage
    ) -> list[Any]:
        if not outputs.keys() <= self._output_set:
            raise BindingError(
                f"outputs: got {sorted(outputs.keys() - self._output_set)}, expected some of "
                f"{', '.join(self._output_names)}"
            )
        shapes = {i: view.shape for i, view in stage.outputs}
        taken = [(address(v), v.nbytes) for v in values if isinstance(v, np.ndarray)]
        given: list[Any] = []
        for i, port in enumerate(self.engine.plan.outputs):
            if port.name not in outputs:
                given.append(None)
                continue
            array, want, shape = outputs[port.name], self._output_dtypes[i], shapes.get(i)
            if callable(array):
                given.append(partial(self._made, i, array) if i not in self._updates else None)
                continue
            if port.order:
                array = in_memory_order(f"output {port.name!r}", array, port.order)
            if not (
                type(array) is np.ndarray
                and array.dtype == want
                and array.shape == shape
                and array.flags.c_contiguous
                and array.flags.writeable
            ):
                array = as_output(port.name, array, want, shape)
            start = address(array)
            if i in self._updates:
                source = values[self._updates[i]]
                if not isinstance(source, np.ndarray) or start != address(source):
                    raise BindingError(
                        f"output {port.name!r}: got an array of its own, expected the one bound "
                        f"to input {self._ports[self._updates[i]][0]!r}, which it updates in place"
                    )
            elif any(start < b + n and b < start + array.nbytes for b, n in taken):
                raise BindingError(
                    f"output {port.name!r}: got memory that overlaps another binding, expected "
                    "memory of its own"
                )
            taken.append((start, array.nbytes))
            given.append(array)
        return given

    def _made(self, index: int, make: Make, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """What a caller's function gives for an output of a shape in memory, in memory's order of axes."""
        name, order = self._output_names[index], self._output_orders.get(self._output_names[index], ())
        array = make(tuple(shape[order.index(axis)] for axis in range(len(shape))) if order else shape, dtype)
        if order:
            array = in_memory_order(f"output {name!r}", array, order)
        return as_output(name, array, dtype, shape)

    def _updated_inputs(self) -> dict[int, int]:
        """Output index → input index, for outputs that share an input's storage."""
        main = self._runner.program
        inputs = {p.tensor.buffer: i for i, p in enumerate(main.inputs)}
        root = self._runner.layout.root
        return {
            i: inputs[root[p.tensor.buffer]]
            for i, p in enumerate(main.outputs)
            if main.buffers[p.tensor.buffer].kind == "output" and root[p.tensor.buffer] in inputs
        }


def tap_names(program: Program) -> frozenset[str]:
    """Names of all values that a program and its regions can tap."""
    names = {t.name for t in program.taps}
    for segment in program.segments:
        for region in getattr(segment, "regions", ()):
            names |= tap_names(region)
    return frozenset(names)


_engines: weakref.WeakSet[RuntimeEngine] = weakref.WeakSet()


def remember(engine: RuntimeEngine) -> None:
    """Let a forked child renew an engine's locks."""
    _engines.add(engine)


def _renew_locks() -> None:
    """A lock may have been held, and a context been in use, by a thread the child lacks."""
    for engine in _engines:
        engine._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
