"""Contexts of CUDA engines: a stream, memory and graphs for one thread, arrays on the device, asynchronous runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail.core.env import env
from dovetail.core.errors import BindingError, ExecutionError
from dovetail.device.cpu.pool import check_threads
from dovetail.device.cuda.driver import Stream
from dovetail.device.cuda.memory import BLOCK_ALIGNMENT, DeviceMemory
from dovetail.engine.plan import Program
from dovetail.runtime import weights as weight_sets
from dovetail.runtime.arrays import in_logical_order
from dovetail.runtime.cuda import weights as device_weights
from dovetail.runtime.cuda.arrays import (
    Allocate,
    DeviceView,
    allocator_in_order,
    allocator_like,
    as_device,
    as_given,
    is_device_array,
    stream_handle,
)
from dovetail.runtime.cuda.program import CudaRunner
from dovetail.runtime.cuda.queue import Queue
from dovetail.runtime.cuda.weights import CudaWeights, DeviceResources
from dovetail.runtime.engine import ExecutionContext, Make
from dovetail.runtime.observe import Observer
from dovetail.runtime.stage import Stage

if TYPE_CHECKING:
    from dovetail.runtime.cuda.engine import CudaEngine


class Pending:
    """A run that may be under way.

    `outputs` by name: those on the device may be used in the order of the run's stream, those on the host after `wait`.
    """

    def __init__(self, queue: Queue, outputs: dict[str, Any], kept: Any, lock: threading.Lock) -> None:
        self.outputs = outputs
        self._queue = queue
        self._kept = kept  # the caller's arrays, until the device is done with them
        self._lock = lock
        self._run = queue.run
        self._release: Any = None

    @property
    def done(self) -> bool:
        """Whether the run has ended on the device."""
        with self._lock, self._queue.driver.active():
            return self._queue.run != self._run or self._queue.done

    def wait(self) -> dict[str, Any]:
        """The outputs, complete."""
        # A later run of the context has waited for this one's copies before it began.
        with self._lock, self._queue.driver.active():
            if self._queue.run == self._run or not all(isinstance(v, np.ndarray) for v in self.outputs.values()):
                self._queue.wait()
        self._kept = None
        if self._release is not None:
            self._release()
        return self.outputs


@dataclass(slots=True)
class _Call:
    """What a run is called with, as the runner wants it, and what its programs find by name."""

    stage: Stage
    values: list[Any]
    given: list[Any]
    addresses: list[int] | None  # where the run is nothing but kernels on these arrays
    token: int = -1  # of the resources
    resources: Any = None


class Binding:
    """Arrays that many runs read and write; made by `CudaContext.bind`. Refits count; the arrays must stay where they are."""

    def __init__(self, context: CudaContext, call: _Call, outputs: dict[str, Any]) -> None:
        self.context = context
        self.outputs = outputs
        self._call = call

    def run(self, stream: Any = None) -> dict[str, Any]:
        """Run once; with `stream` queue the run there and return at once."""
        context, queue = self.context, self.context.queue
        handle = stream_handle(stream)
        with context._alone():
            context._execute(self._call, handle, handle is not None and context.driver.is_capturing(handle), None)
            if handle is None:
                queue.wait()
        return self.outputs


class CudaContext(ExecutionContext):
    """A stream, an arena per stage, CUDA graphs per bound shape; for one thread at a time. Made by `CudaEngine.context`."""

    engine: CudaEngine
    _runner: CudaRunner
    _shapes: CudaRunner

    def __init__(self, engine: CudaEngine) -> None:
        self.driver = engine.driver
        with self.driver.active():
            self.queue = engine._queues.make()
        super().__init__(engine)
        self._kept: Any = None

    def _borrowed(self, address: int, size: int, owner: Any) -> DeviceMemory:
        start = -address % BLOCK_ALIGNMENT
        return DeviceMemory.at(self.driver, address + start, size - start, owner)

    def _make_runner(self, program: Program) -> CudaRunner:
        return CudaRunner(program, self.engine._kernels, self.driver, self.queue)

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        observer: Observer | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """As `CudaEngine.run`. After a capture the context belongs to the graph: do not run it elsewhere while that may run."""
        if threads is not None:
            check_threads(threads)
        with self._alone():
            handle = stream_handle(stream)
            results = self._queued(inputs, outputs, observer, handle)
            if not self.queue.capturing:
                if stream is None:
                    self.queue.wait()
                    self._kept = None
                else:
                    self.queue.finish_fetches()
        example = next((v for v in inputs.values() if not isinstance(v, np.ndarray)), None)
        return {k: as_given(v, example) for k, v in results.items()} if stream is None else results

    def run_async(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None) -> Pending:
        """Queue a run; the caller keeps input arrays on the device alive and unchanged in the stream's order.

        Runs of one context follow one another; contexts of their own overlap.
        """
        with self._alone():
            results = self._queued(inputs, outputs, None, stream_handle(stream))
            return Pending(self.queue, results, self._kept, self._busy)

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Binding:
        """Fix arrays on the device for many runs, which then cost one call of the driver.

        Raises:
            BindingError: an array on the host, or one that does not fit.
            ExecutionError: the engine has steps on the host.
        """
        if reason := self._runner.uncapturable():
            raise ExecutionError(f"bind: expected an engine that runs on the device alone, but {reason}; call run")
        for name, value in (*inputs.items(), *((n, outputs.get(n)) for n in self._output_names)):
            if value is None or not is_device_array(value):
                raise BindingError(f"bind: got {type(value).__name__} for {name!r}, expected an array on {self.engine.device}; call run")
        with self._alone():
            call = self._call(inputs, outputs, self.queue.own, False)
            self.driver.synchronize(self.queue.own)  # with what the arrays' packages have asked to wait for
        return Binding(self, call, dict(outputs))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._enter()
        try:
            with self.driver.active():
                yield
        finally:
            self._busy.release()

    def _queued(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None, observer: Observer | None, stream: Stream | None
    ) -> dict[str, Any]:
        capturing = stream is not None and self.driver.is_capturing(stream)
        if capturing and (reason := self._runner.uncapturable()):
            raise ExecutionError(
                f"capture: got a stream that is being captured, expected an engine that runs on the device alone, but {reason}; "
                "run the engine outside of the capture"
            )
        call = self._call(inputs, outputs or {}, self.queue.own if stream is None else stream, capturing)
        return self._execute(call, stream, capturing, observer)

    def _call(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], stream: Stream, capturing: bool) -> _Call:
        """The caller's arrays and the stage of their shapes."""
        values, example = self._device_inputs(inputs, stream, capturing)
        shapes = tuple([None if p[2] else v.shape for v, p in zip(values, self._ports, strict=True)])
        stage = self._runner.stage(shapes, {})
        make = None if example is None else allocator_like(example, self.driver, stream, capturing)
        given = self._device_outputs(outputs, values, stage, make, stream, capturing)
        return _Call(stage, values, given, self._runner.direct(stage, values, given))

    def _execute(self, call: _Call, stream: Stream | None, capturing: bool, observer: Observer | None) -> dict[str, Any]:
        if observer is None and env().nvtx:
            return self._marked(lambda watching: self._launch(call, stream, capturing, None if capturing else watching))
        return self._launch(call, stream, capturing, observer)

    def _launch(self, call: _Call, stream: Stream | None, capturing: bool, observer: Observer | None) -> dict[str, Any]:
        engine, queue = self.engine, self.queue
        weights = engine._weights  # this run's, whatever a refit does meanwhile
        results_of_shapes, token = self._device_shape_results(call.stage, weights)
        if call.token != token:
            call.token = token
            call.resources = DeviceResources(
                queue, weights.raw, weights.device, weights.values, results_of_shapes, weights.copies
            )
        self._kept = (call, weights)
        if observer is None and not capturing and env().check_nan:
            observer = engine._observer(nan=True)
        queue.begin(stream, capturing)
        results: Sequence[Any]
        try:
            if call.addresses is not None and observer is None:
                self._runner.run_direct(call.stage, call.addresses, call.resources, token)
                results = [call.values[self._updates[i]] if i in self._updates else g for i, g in enumerate(call.given)]
            else:
                results = self._runner.run(
                    call.stage, call.values, call.given, call.resources, token, engine.threads, observer
                )
        finally:
            queue.end()
        if capturing:  # all that the caller's graph reads and writes besides his own arrays
            engine._captured.append((queue, self._runner, self._shapes, call, weights, self._runner.slots()))
        found = {}
        for name, value in zip(self._output_names, results, strict=True):
            if isinstance(value, DeviceView):
                found[name] = value.value
            else:
                order = self._output_orders.get(name)
                found[name] = value if order is None else in_logical_order(value, order)
        return found

    def _device_inputs(self, inputs: Mapping[str, Any], stream: Stream, capturing: bool) -> tuple[list[Any], Any]:
        """Inputs as the runner wants them, and the first one that is on the device."""
        example = None
        host = {}
        values: dict[int, DeviceView] = {}
        for i, (name, want, opaque) in enumerate(self._ports):
            value = inputs.get(name)
            if opaque or value is None or not is_device_array(value):
                if capturing:
                    raise BindingError(f"input {name!r}: got an array in host memory, expected one on the device while a graph is captured")
                continue
            order = self._orders.get(i, ())
            values[i] = as_device(f"input {name!r}", value, want, self.driver, stream, capturing, order)
            example = value if example is None else example
            host[name] = np.empty((0,) * max(len(order), 1), want)  # in its place where host arrays are checked
        if len(values) == len(self._ports) == len(inputs):
            return list(values.values()), example
        checked = self._inputs({**inputs, **host})
        return [values.get(i, v) for i, v in enumerate(checked)], example

    def _device_shape_results(self, stage: Stage, weights: CudaWeights) -> tuple[Mapping[str, Any], int]:
        if not self._shapes.program.outputs:
            return {}, weights.version
        if stage.shapes is None or stage.shapes[0] != weights.version:
            resources = DeviceResources(self.queue, weights.raw, weights.device, weights.values, {}, weights.copies)
            first = self._shapes.stage((), stage.env)
            found = device_weights.run_to_device(self._shapes, first, resources, weights.version)
            stage.shapes = (weights.version, found, weight_sets.new_token())
        return stage.shapes[1], stage.shapes[2]

    def _device_outputs(
        self,
        outputs: Mapping[str, Any],
        values: Sequence[Any],
        stage: Stage,
        make: Allocate | None,
        stream: Stream,
        capturing: bool,
    ) -> list[Any]:
        """Per output the caller's array, what makes one, or None for a fresh NumPy array."""
        on_device = {k: v for k, v in outputs.items() if k in self._output_set and (callable(v) or is_device_array(v))}
        given: list[Any] = [None] * len(self._output_names)
        if len(on_device) < len(outputs):
            given = self._outputs({k: v for k, v in outputs.items() if k not in on_device}, values, stage)
        shapes = {i: view.shape for i, view in stage.outputs if view.shape is not None}
        taken = [(v.address, v.nbytes) for v in values if isinstance(v, DeviceView)]
        for i, (name, want) in enumerate(zip(self._output_names, self._output_dtypes, strict=True)):
            value = on_device.get(name)
            where = f"output {name!r}"
            if value is None:
                if given[i] is None and make is not None and not want.hasobject:
                    order = self._output_orders.get(name, ())
                    made = allocator_in_order(make, order) if order else make
                    # Where the shape is known only later, the run itself makes the array.
                    late = shapes.get(i) is None or i in self._updates
                    given[i] = made if late else made(shapes[i], want)
                if capturing and (given[i] is None or isinstance(given[i], np.ndarray)):
                    raise BindingError(f"{where}: got an array in host memory, expected one on the device while a graph is captured")
                continue
            if callable(value):
                if i not in self._updates:
                    given[i] = partial(self._made_on_device, i, value, stream, capturing)
                continue
            view = as_device(where, value, want, self.driver, stream, capturing, self._output_orders.get(name, ()))
            shape = shapes.get(i)
            if shape is not None and view.shape != shape:
                raise BindingError(f"{where}: got shape {view.shape}, expected {shape}")
            start = view.address
            if i in self._updates:
                source = values[self._updates[i]]
                if not isinstance(source, DeviceView) or source.address != start:
                    raise BindingError(
                        f"{where}: got an array of its own, expected the one bound to input {self._ports[self._updates[i]][0]!r}, which it "
                        "updates in place"
                    )
            elif any(start < b + n and b < start + view.nbytes for b, n in taken):
                raise BindingError(f"{where}: got memory that overlaps another binding, expected memory of its own")
            taken.append((start, view.nbytes))
            given[i] = view
        return given

    def _made_on_device(
        self, index: int, make: Make, stream: Stream, capturing: bool, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> DeviceView:
        """What a caller's function gives for an output of a shape in memory."""
        name, order = self._output_names[index], self._output_orders.get(self._output_names[index], ())
        value = make(tuple(shape[order.index(axis)] for axis in range(len(shape))) if order else shape, dtype)
        if not is_device_array(value):
            raise BindingError(f"output {name!r}: got {type(value).__name__}, expected an array on {self.engine.device}")
        view = as_device(f"output {name!r}", value, dtype, self.driver, stream, capturing, order)
        if view.shape != shape:
            raise BindingError(f"output {name!r}: got shape {view.shape}, expected {shape}")
        return view
