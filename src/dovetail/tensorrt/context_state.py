"""The state of a context: its engine, memory and settings."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from dovetail.core.errors import BindingError, Error, ExecutionError
from dovetail.runtime import AbsentEngine
from dovetail.tensorrt.block import Block
from dovetail.tensorrt.engine import ICudaEngine
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    ErrorCodeTRT,
    ExecutionContextAllocationStrategy,
    ProfilingVerbosity,
)
from dovetail.tensorrt.hooks import (
    IDebugListener,
    IGpuAllocator,
    IOutputAllocator,
    IProfiler,
    recorder_property,
)
from dovetail.tensorrt.launcher import Launcher
from dovetail.tensorrt.logger import Reporter
from dovetail.tensorrt.memory import integer
from dovetail.tensorrt.runtime_config import IRuntimeConfig


class ContextState:
    """What a context knows and how it is set up, with the memory for values between layers."""

    def __init__(
        self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> None:
        runtime = engine._engine.runtime
        if isinstance(runtime, AbsentEngine):
            raise runtime.refusal("context")
        self._engine = engine
        self._strategy = strategy
        self._reporter = Reporter(engine._reporter.logger, engine._reporter.recorder)
        self._launcher = Launcher(runtime)
        self._name = ""
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._values: dict[str, tuple[int, ...]] = {}
        self._held: dict[str, np.ndarray[Any, Any]] = {}
        self._addresses: dict[str, int] = {}
        self._views: dict[tuple[str, int, tuple[int, ...]], Any] = {}
        self._allocators: dict[str, IOutputAllocator] = {}
        self._temporary: IGpuAllocator | None = None
        self._memory: tuple[int, int] | None = None
        self._block: Block | None = None
        self._profiler: IProfiler | None = None
        self._emits_profile = True
        self._times: dict[str, float] | None = None
        self._listener: IDebugListener | None = None
        self._watched: set[str] = set()
        self._watch_unfused = False
        self._debug_sync = False
        self._consumed = 0
        self._aux_streams: tuple[int, ...] = ()
        self._cache_limit = 0
        self._nvtx = engine.profiling_verbosity
        self._set_fixed_shapes()
        if strategy is ExecutionContextAllocationStrategy.STATIC:
            self._reserve(max(engine._memory_bytes(i) for i in range(engine.num_optimization_profiles)) if self._source() else 0)

    # ------------------------------------------------------------------ what it is
    @property
    def engine(self) -> ICudaEngine:
        """The engine that it runs."""
        return self._engine

    @property
    def name(self) -> str:
        """The client's name for the context; empty at first."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = expect(str, name, "IExecutionContext.name")

    error_recorder = recorder_property("IExecutionContext", "Where errors are recorded; the engine's at first.")

    @property
    def debug_sync(self) -> bool:
        """Whether a run waits for each of its steps, so that an error is that of the step which made it."""
        return self._debug_sync

    @debug_sync.setter
    def debug_sync(self, on: bool) -> None:
        self._debug_sync = expect(bool, on, "IExecutionContext.debug_sync")

    @property
    def nvtx_verbosity(self) -> ProfilingVerbosity:
        """How much of the layers is said in NVTX ranges: at most as much as the engine was built with."""
        return self._nvtx

    @nvtx_verbosity.setter
    def nvtx_verbosity(self, verbosity: ProfilingVerbosity) -> None:
        asked = expect(ProfilingVerbosity, verbosity, "IExecutionContext.nvtx_verbosity")
        if asked is ProfilingVerbosity.DETAILED and self._engine.profiling_verbosity is not ProfilingVerbosity.DETAILED:
            self._reporter.error(
                f"IExecutionContext.nvtx_verbosity: got DETAILED, expected no more than {self._engine.profiling_verbosity.name}, which the "
                "engine was built with",
                ErrorCodeTRT.INVALID_ARGUMENT,
            )
            return
        self._nvtx = asked

    @property
    def persistent_cache_limit(self) -> int:
        """Bytes of a GPU's L2 cache that values may be kept in between steps: 0, nothing is set aside; kept as it is set."""
        return self._cache_limit

    @persistent_cache_limit.setter
    def persistent_cache_limit(self, size: int) -> None:
        if expect(int, size, "IExecutionContext.persistent_cache_limit") < 0:
            raise TypeError(f"IExecutionContext.persistent_cache_limit: got {size}, expected a size in bytes")
        self._cache_limit = size

    def get_runtime_config(self) -> IRuntimeConfig:
        """What the context was made with."""
        config = IRuntimeConfig()
        config.set_execution_context_allocation_strategy(self._strategy)
        return config

    # ------------------------------------------------------------------ memory
    @property
    def device_memory(self) -> int:
        """The address of the memory that the client gave for the values between layers; 0 where the context has its own."""
        return 0 if self._memory is None else self._memory[0]

    @device_memory.setter
    def device_memory(self, memory: Any) -> None:
        self.set_device_memory(memory, self._engine.device_memory_size)

    def set_device_memory(self, memory: Any, size: int) -> None:
        """Use so many bytes at an address for the values between layers, until the context is gone or gets others."""
        address = integer(memory, "IExecutionContext.set_device_memory: memory")
        if expect(int, size, "IExecutionContext.set_device_memory: size") < 0:
            self._refuse("set_device_memory", f"got {size} bytes, expected a size")
            return
        self._memory = (address, size)
        self._use_memory(address, size)

    def update_device_memory_size_for_shapes(self) -> int:
        """Bytes that a run on the shapes set so far takes; 0 and an error in the log where shapes are missing or do not fit."""
        try:
            return self._launcher.runtime.memory_bytes(self._input_shapes())
        except Error as error:
            self._error("update_device_memory_size_for_shapes", error, ErrorCodeTRT.INVALID_STATE)
            return 0

    @property
    def temporary_allocator(self) -> IGpuAllocator | None:
        """Allocates the values between layers, in the place of the runtime's allocator, where the client gives no memory."""
        return self._temporary

    @temporary_allocator.setter
    def temporary_allocator(self, allocator: IGpuAllocator | None) -> None:
        self._temporary = None if allocator is None else expect(IGpuAllocator, allocator, "IExecutionContext.temporary_allocator")

    def _source(self) -> IGpuAllocator | None:
        return self._temporary or self._engine._allocator

    def _use_memory(self, address: int, size: int, owner: Any = None) -> None:
        try:
            self._launcher.use_memory(address, size, owner)
        except Error as error:
            self._error("set_device_memory", error, ErrorCodeTRT.FAILED_EXECUTION)

    def _reserve(self, size: int, stream: int | None = None) -> None:
        """Have so many bytes of the client's allocator for the values between layers, in the order of a stream if there is one.

        Raises:
            ExecutionError: it gave none.
        """
        source = self._source()
        if source is None:
            return
        if self._block is None or self._block.source is not source:
            if self._block is not None:
                self._block.release()
            self._block = Block(self._reporter, source)
            weakref.finalize(self, self._block.release)
        if self._block.grow(size, stream):
            self._use_memory(self._block.address, self._block.size, self._block)

    def _provide(self, shapes: Mapping[str, tuple[int, ...]], stream: int | None) -> None:
        """See that the values between layers have the memory that the client wanted for them.

        Raises:
            ExecutionError: it is too small, or there is none.
        """
        own = self._strategy is not ExecutionContextAllocationStrategy.USER_MANAGED
        if self._memory is None and own and self._source() is None:
            return
        needed = self._launcher.runtime.memory_bytes(shapes)
        if self._memory is None and own:
            self._reserve(needed, stream)
            return
        granted = 0 if self._memory is None else self._memory[1]
        if granted < needed:
            raise ExecutionError(f"got {granted} bytes of device memory, expected {needed} for these shapes; call set_device_memory")

    # ------------------------------------------------------------------ internal
    def _refuse(self, where: str, why: str) -> bool:
        self._reporter.error(f"IExecutionContext.{where}: {why}", ErrorCodeTRT.INVALID_ARGUMENT)
        return False

    def _error(self, where: str, error: Error, code: ErrorCodeTRT) -> bool:
        self._reporter.error(f"IExecutionContext.{where}: {error}", code)
        return False

    def _set_fixed_shapes(self) -> None:
        for name in self._engine._record.inputs:
            shape = tuple(self._engine.get_tensor_shape(name))
            if -1 not in shape:
                self._shapes[name] = shape

    def _input_shapes(self, batch: int | None = None) -> dict[str, tuple[int, ...]]:
        """The shapes of all inputs, batch included.

        Raises:
            BindingError: some are not set.
        """
        missing = [n for n in self._engine._record.inputs if n not in self._shapes]
        if missing:
            raise BindingError(f"got no shape for the inputs {', '.join(missing)}, expected set_input_shape for each")
        if not self._engine._record.implicit_batch:
            return dict(self._shapes)
        first = self._engine.max_batch_size if batch is None else batch
        return {name: (first, *shape) for name, shape in self._shapes.items()}
