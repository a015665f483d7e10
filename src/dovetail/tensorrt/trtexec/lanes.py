"""One context of trtexec with its inputs and outputs: set up, and run with times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from dovetail.core.errors import DeviceError, ExecutionError, UsageError
from dovetail.device.cuda.driver import Driver
from dovetail.tensorrt.context import IExecutionContext
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.engine import ICudaEngine
from dovetail.tensorrt.enums import ExecutionContextAllocationStrategy
from dovetail.tensorrt.hooks import IOutputAllocator
from dovetail.tensorrt.trtexec import specs
from dovetail.tensorrt.trtexec.build import is_input, tensor_names
from dovetail.tensorrt.trtexec.console import Console, number
from dovetail.tensorrt.trtexec.options import InferenceOptions, Shape
from dovetail.tensorrt.trtexec.report import Trace
from dovetail.tensorrt.trtexec.tensors import DeviceMemory, HostMemory, Memory, Tensor


class Clock:
    """Milliseconds since the start, on the host and in the events of a GPU."""

    def __init__(self, driver: Driver | None) -> None:
        self.driver = driver
        self._event: Any = None
        if driver is not None:
            stream = driver.create_stream()
            self._event = driver.create_event(timing=True)
            driver.record(self._event, stream)
            driver.synchronize(stream)
            driver.destroy_stream(stream)
        self._start = time.perf_counter_ns()

    def now(self) -> float:
        """The host's time."""
        return (time.perf_counter_ns() - self._start) / 1e6

    def at(self, event: Any) -> float:
        """The time of an event that was reached."""
        assert self.driver is not None
        return self.driver.elapsed_ns(self._event, event) / 1e6


class _Allocator(IOutputAllocator):
    """Memory for an output whose size only a run can tell."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self._tensor = tensor

    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
        """The tensor's memory, larger if need be."""
        self._tensor.resize((0,), size)
        return self._tensor.memory.address

    def notify_shape(self, tensor_name: str, shape: Dims) -> None:
        """Take the shape of this run."""
        self._tensor.resize(tuple(shape))


@dataclass
class _Pending:
    """A run on a GPU that may not be over."""

    enqueued: tuple[float, float]
    events: list[Any]


class Lane:
    """A context and the tensors that it runs on.

    Raises:
        ExecutionError: the context cannot be had, or shapes do not fit.
    """

    def __init__(self, engine: ICudaEngine, options: InferenceOptions, driver: Driver | None, console: Console) -> None:
        self._options, self._driver, self._console = options, driver, console
        context = engine.create_execution_context(options.allocation)
        if context is None:
            raise ExecutionError("Unable to create execution context.")
        self.context: IExecutionContext = context
        self.stream = driver.create_stream() if driver is not None else 0
        if options.profile and not context.set_optimization_profile_async(options.profile, self.stream):
            raise ExecutionError(f"--useProfile: got {options.profile}, expected 0 to {engine.num_optimization_profiles - 1}")
        console.info("Setting persistentCacheLimit to 0 bytes.")
        self._workspace: Memory | None = None
        self.tensors: list[Tensor] = []
        self.inputs: dict[str, Tensor] = {}
        self._given: set[str] = set()  # inputs whose values flags or the engine say
        self._graph: Any = None
        self.pending: deque[_Pending] = deque()
        self.traces: list[Trace] = []
        names = tensor_names(engine)
        for name in (n for n in names if is_input(engine, n)):
            self._set_input(engine, name)
        if missing := context.infer_shapes():
            raise ExecutionError(f"Not all shapes are specified: {', '.join(missing)}")
        self._memory(engine)
        for name in (n for n in names if not is_input(engine, n)):
            self._set_output(engine, name)

    @property
    def outputs(self) -> list[Tensor]:
        """The outputs, in order."""
        return [t for t in self.tensors if not t.is_input]

    # ---- set up ----
    def _set_input(self, engine: ICudaEngine, name: str) -> None:
        declared = tuple(engine.get_tensor_shape(name))
        found = specs.find(self._options.shapes, name)
        on_host = engine.is_shape_inference_io(name)
        shape = _values_shape(declared, found) if on_host else self._shape(engine, name, declared, found)
        if -1 in declared and not self.context.set_input_shape(name, shape):
            raise ExecutionError(f"{name}: cannot run with the shape {specs.text_of(shape)}; see the error above")
        kind = engine.get_tensor_dtype(name)
        values = found is not None and specs.are_values(kind, declared, found)
        if not on_host and not values and -1 not in declared and found is not None and found != declared:
            raise ExecutionError(f"--shapes: {name}: got {specs.text_of(found)}, expected its fixed shape {specs.text_of(declared)}")
        tensor = Tensor(name, kind, shape, True, None if on_host else self._driver)
        if on_host or values:
            tensor.values.reshape(-1)[...] = found if found is not None else self._likely_values(engine, name, tensor)
            self._given.add(name)
        self._bind(tensor)
        self.inputs[name] = tensor

    def _likely_values(self, engine: ICudaEngine, name: str, tensor: Tensor) -> Any:
        known = engine.get_tensor_profile_values(name, self._options.profile)
        return known[1] if known else np.ones(tensor.values.size, tensor.dtype)

    def _shape(self, engine: ICudaEngine, name: str, declared: Shape, found: Shape | None) -> Shape:
        if -1 not in declared:
            return declared
        if found is not None:
            return found
        least = tuple(engine.get_tensor_profile_shape(name, self._options.profile)[0])
        shape = tuple(max(1, low) if d < 0 else d for d, low in zip(declared, least, strict=True))
        self._console.warning(
            f"Dynamic dimensions required for input: {name}, but no shapes were provided. Automatically overriding shape to: "
            f"{specs.text_of(shape)}"
        )
        return shape

    def _memory(self, engine: ICudaEngine) -> None:
        """Memory between layers, where the client gives it."""
        if self._options.allocation is ExecutionContextAllocationStrategy.USER_MANAGED:
            size = self.context.update_device_memory_size_for_shapes()
            self._workspace = HostMemory(size) if self._driver is None else DeviceMemory(self._driver, size)
            self.context.set_device_memory(self._workspace.address, size)
        elif self._options.allocation is ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE:
            size = engine.get_device_memory_size_for_profile_v2(self._options.profile)
        else:
            size = engine.device_memory_size_v2
        self._console.info(f"Created execution context with device memory size: {number(size / 2**20)} MiB")

    def _set_output(self, engine: ICudaEngine, name: str) -> None:
        shape = tuple(self.context.get_tensor_shape(name))
        known = all(d >= 0 for d in shape)
        alias = engine.get_aliased_input_tensor(name)
        tensor = Tensor(name, engine.get_tensor_dtype(name), shape if known else (0,), False, self._driver)
        if alias is not None:
            tensor.memory = self.inputs[alias].memory
        if known:
            self._bind(tensor)
        else:
            self.tensors.append(tensor)
            self.context.set_output_allocator(name, _Allocator(tensor))

    def _bind(self, tensor: Tensor) -> None:
        self.tensors.append(tensor)
        if not self.context.set_tensor_address(tensor.name, tensor.memory.address):
            raise ExecutionError(f"{tensor.name}: cannot set its address; see the error above")

    def say_bindings(self) -> None:
        """Print the inputs and outputs."""
        for tensor in self.tensors:
            word = "Input" if tensor.is_input else "Output"
            shape, kind = "x".join(map(str, tensor.shape)), specs.type_text(tensor.kind)
            self._console.info(f"{word} binding for {tensor.name} with dimensions {shape} and type {kind} is created.")

    def fill(self, files: Mapping[str, str], seed: int, say: Callable[[str], None]) -> None:
        """Give the inputs the bytes of files, and random values to those without one.

        Raises:
            UsageError: a file of a name that no input has, or of another size.
            OSError: it cannot be read.
        """
        if unknown := [n for n in files if n not in self.inputs]:
            raise UsageError(f"--loadInputs: Cannot find input tensor with name {unknown[0]!r}, expected one of {', '.join(self.inputs)}")
        rng = np.random.default_rng(seed)
        for name, tensor in self.inputs.items():
            if name in files:
                say(f"Using values loaded from {files[name]} for input {name}")
                tensor.read(files[name], "--loadInputs")
            elif name not in self._given:
                say(f"Using random values for input {name}")
                tensor.fill(rng)
        if self._driver is not None:
            for tensor in self.inputs.values():
                tensor.memory.upload(self.stream)
            self._driver.synchronize(self.stream)

    # ---- running ----
    def execute(self) -> None:
        """Start one run.

        Raises:
            ExecutionError: it failed, and the log says why.
        """
        if not self.context.execute_async_v3(self.stream):
            raise ExecutionError("Error occurred during inference")

    def run(self) -> None:
        """Run once, and have the outputs on the host.

        Raises:
            ExecutionError: it failed.
        """
        self.execute()
        self.fetch()

    def fetch(self) -> None:
        """Have the outputs of the last run on the host."""
        if self._driver is not None:
            for tensor in self.outputs:
                tensor.memory.download(self.stream)
            self._driver.synchronize(self.stream)

    def capture(self) -> None:
        """Keep a run as a CUDA graph; a run that cannot be captured stays one without."""
        driver = self._driver
        if driver is None:
            return
        self.run()  # what only a first run does must not be captured
        self._console.info("Capturing CUDA graph for the current execution context")
        driver.begin_capture(self.stream)
        try:
            self.execute()
            self._graph = driver.end_capture(self.stream)
        except (DeviceError, ExecutionError) as error:
            driver.abandon_capture(self.stream)
            self._console.warning(f"The CUDA graph capture on the stream has failed: {error}. The engine runs without one.")
            return
        self._console.info("Successfully captured CUDA graph for the current execution context")

    def enqueue(self, clock: Clock) -> None:
        """Begin a run. On a CPU it is over then; on a GPU `finish` waits for it."""
        if self._driver is None:
            if self._options.sleep_ms:
                time.sleep(self._options.sleep_ms / 1e3)
            start = clock.now()
            self.execute()
            end = clock.now()
            self.traces.append(Trace(start, start, start, start, start, end, end, end))
            return
        driver = self._driver
        events = [driver.create_event(timing=True) for _ in range(4)]
        driver.record(events[0], self.stream)
        if self._options.transfers:
            for tensor in self.inputs.values():
                tensor.memory.upload(self.stream)
        if self._options.sleep_ms:
            time.sleep(self._options.sleep_ms / 1e3)
        driver.record(events[1], self.stream)
        start = clock.now()
        if self._graph is not None and self.context.profiler is None:
            driver.launch_graph(self._graph, self.stream)
        else:
            self.execute()
        enqueued = (start, clock.now())
        driver.record(events[2], self.stream)
        if self._options.transfers:
            for tensor in self.outputs:
                tensor.memory.download(self.stream)
        driver.record(events[3], self.stream)
        self.pending.append(_Pending(enqueued, events))

    def finish(self, clock: Clock) -> None:
        """Wait for the oldest run that was begun on a GPU, and note its times."""
        driver = self._driver
        assert driver is not None
        run = self.pending.popleft()
        if self._options.spin:
            while not driver.reached(run.events[3]):
                pass
        else:
            driver.synchronize_event(run.events[3])
        # Times between neighbours: those since the start have fewer digits left.
        steps = (driver.elapsed_ns(a, b) / 1e6 for a, b in pairwise(run.events))
        begin, loaded, computed, done = accumulate(steps, initial=clock.at(run.events[0]))
        self.traces.append(Trace(*run.enqueued, begin, loaded, loaded, computed, computed, done))
        for event in run.events:
            driver.destroy_event(event)

    def close(self) -> None:
        """Give back what is a GPU's."""
        if self._driver is None:
            return
        if self._graph is not None:
            self._driver.destroy_graph(self._graph)
        for tensor in {id(t.memory): t for t in self.tensors}.values():
            tensor.memory.free()
        if self._workspace is not None:
            self._workspace.free()
        self._driver.destroy_stream(self.stream)


def _values_shape(declared: Shape, found: Shape | None) -> Shape:
    """The shape of an input that is read as a shape, whose values flags give in the place of one."""
    if -1 in declared:
        return (len(found),) if found is not None else (1,)
    return declared
