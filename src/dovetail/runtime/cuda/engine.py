"""The engine on a GPU: the interface of `RuntimeEngine`, with streams, arrays on the device and asynchronous runs."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.core.errors import PlanFormatError
from dovetail.device.cpu import default_threads
from dovetail.device.cpu.memory import Recycler
from dovetail.device.cpu.pool import check_threads
from dovetail.device.cuda.driver import Driver, Function, Stream, require_capability
from dovetail.device.cuda.driver import driver as driver_of
from dovetail.device.cuda.memory import BLOCK_ALIGNMENT, LOCKED, BlockCache, Uploader
from dovetail.engine import cubins
from dovetail.engine.check import check
from dovetail.engine.plan import KernelRef, Plan
from dovetail.runtime import weights as weight_sets
from dovetail.runtime.cuda import weights as device_weights
from dovetail.runtime.cuda.arrays import stream_handle
from dovetail.runtime.cuda.context import CudaContext, Pending
from dovetail.runtime.cuda.program import CudaRunner
from dovetail.runtime.cuda.queue import Queues
from dovetail.runtime.cuda.stage import CudaStage
from dovetail.runtime.cuda.weights import CudaWeights
from dovetail.runtime.engine import (
    _IDLE_CONTEXTS,
    Binary,
    ExecutionContext,
    RuntimeEngine,
    give_back,
    remember,
)
from dovetail.runtime.nvtx import Ranges
from dovetail.runtime.observe import Observer
from dovetail.runtime.partial import Parts
from dovetail.runtime.shapes import memory_shape, sizes_of

Array = np.ndarray[Any, Any]


class CudaEngine(RuntimeEngine):
    """A plan for a GPU, ready to run there. Thread-safe; see `runtime.open`.

    Arrays on the device come in and go out without a copy (DLPack, `__cuda_array_interface__`): where an input is one, results
    without an array of their own are of its kind; else they are NumPy arrays. `threads` means nothing here.
    """

    _weights: CudaWeights
    _parts: Any  # of CudaRunner

    def __init__(
        self,
        plan: Plan,
        *,
        kernels: Sequence[Binary] = (),
        weights: Mapping[str, Array] | None = None,
        threads: int | None = None,
        stored: weight_sets.Stored | None = None,
        device: int = 0,
        driver: Driver | None = None,
    ) -> None:
        """`kernels` are bundles of cubins; `driver` is another one than the real one of the device, for tests."""
        check(plan)
        self.plan = plan
        self.threads = default_threads() if threads is None else check_threads(threads)
        self.driver = driver_of(device) if driver is None else driver
        require_capability("plan", plan.target, self.driver.properties)
        self._host = None
        self._kernels = _Functions(plan, kernels, self.driver)
        self._contexts: deque[ExecutionContext] = deque(maxlen=_IDLE_CONTEXTS)
        self._captured: list[Any] = []  # what graphs of callers use, as long as the engine lives
        self._lock = threading.Lock()
        self._queues = Queues(self.driver)
        with self.driver.active():
            self._queue = queue = self._queues.make()
            # These hold no engine, as the engine holds them: memory goes back with its last reference.
            runner = partial(CudaRunner, kernels=self._kernels, driver=self.driver, queue=queue)
            known = {} if stored is None else dict(stored.hashes)
            self._uploader = Uploader(self.driver, self._queue.own)
            self._weights = device_weights.build(plan, weights or {}, runner(plan.weights_program), self._uploader, known)
            self._uploader.release()
        self._parts = Parts(plan.weights_program, plan.kernels, runner)
        self._memory = weight_sets.recycler(self._weights)
        # For refits of some weights, where allocations would take as long as the copies.
        self._locked = Recycler(LOCKED, self._uploader.host_parts)
        self._blocks = BlockCache(self.driver, LOCKED, self._queues.settle)
        remember(self)

    @property
    def device(self) -> str:
        """The device that the engine runs on, such as "cuda:0"."""
        return f"cuda:{self.driver.properties.ordinal}"

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        stream: Any = None,
    ) -> dict[str, Any]:
        """Run once, on any thread; see `RuntimeEngine.run`.

        With `stream` (a handle, or a stream object of any package) the run is queued there: results on the device follow in its
        order, those on the host are complete. Without it all results are complete. In a stream that is being captured the kernels
        become part of the caller's graph, whose memory the engine then keeps.

        Raises:
            ExecutionError: a capture of an engine with steps on the host.
        """
        handle = stream_handle(stream)
        if handle is not None and self.is_capturing(handle):
            # Its memory belongs to the caller's graph from now on: no other run may have it.
            return self.context().run(inputs, outputs, stream=handle)
        idle = self._take()
        try:
            return idle.run(inputs, outputs, threads=threads, stream=handle)
        finally:
            give_back(self._contexts, idle)

    def run_async(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None) -> Pending:
        """Queue a run and return at once, as far as no step runs on the host; see `CudaContext.run_async`."""
        context = self._take()
        assert isinstance(context, CudaContext)
        pending = context.run_async(inputs, outputs, stream=stream)
        # Its context serves others once somebody has waited, or nobody will.
        pending._release = weakref.finalize(pending, give_back, self._contexts, context)
        pending._release.atexit = False
        return pending

    def context(self) -> CudaContext:
        """A context for one thread, with a stream and memory of its own."""
        return CudaContext(self)

    def memory_bytes(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """See `RuntimeEngine.memory_bytes`; allocates as much while it finds out, since libraries are asked what they take."""
        sizes_of(self.plan, shapes)
        context = self.context()
        with self.driver.active():
            stage = context._runner.stage(tuple(memory_shape(p, shapes[p.name]) for p in self.plan.inputs), {})
        block = stage.block if isinstance(stage, CudaStage) else None
        return (0 if block is None else block.size) + BLOCK_ALIGNMENT

    def release_memory(self) -> None:
        """See `RuntimeEngine.release_memory`."""
        with self._lock, self.driver.active():
            self._memory.release()
            self._locked.release()
            self._blocks.release()
            self._parts.release()
            self._uploader.release()

    def _refit(self, old: Any, changes: Mapping[str, Any]) -> CudaWeights:
        small = sum(int(getattr(value, "nbytes", LOCKED)) for value in changes.values()) <= LOCKED
        memory = self._locked if small else self._memory
        with self.driver.active():
            return device_weights.refit(
                self.plan, old, changes, self._parts.runner, self._uploader, memory, self._blocks, self.threads
            )


    def is_capturing(self, stream: Stream) -> bool:
        """Whether a stream records a CUDA graph."""
        with self.driver.active():
            return self.driver.is_capturing(stream)

    def _observer(self, taps: Any = (), nan: bool = False, ranges: Ranges | None = None) -> Observer:
        return Observer(1.0, taps, nan, ranges)


class _Functions(Mapping[str, tuple[Function, KernelRef]]):
    """Kernels by entry; their code is loaded when a step first needs it."""

    def __init__(self, plan: Plan, bundles: Sequence[Binary], driver: Driver) -> None:
        self._driver = driver
        self._refs = {k.entry: k for k in plan.kernels}
        self._code: dict[str, bytes | memoryview] = {}
        for bundle in bundles:
            self._code |= cubins.unpack(Path(bundle).read_bytes() if isinstance(bundle, str | Path) else bundle)
        missing = [k.entry for k in plan.kernels if not k.library and k.entry not in self._code]
        if missing:
            raise PlanFormatError(
                f"plan: got no machine code for the kernel {missing[0]}, expected it among {len(self._code)} kernels; rebuild the engine"
            )
        self._loaded: dict[str, tuple[Function, KernelRef]] = {}
        self._lock = threading.Lock()

    def __getitem__(self, entry: str) -> tuple[Function, KernelRef]:
        found = self._loaded.get(entry)
        if found is None:
            ref = self._refs[entry]
            with self._lock:
                found = self._loaded.get(entry)
                if found is None:
                    function = None
                    if not ref.library:
                        shared = 0 if ref.launch is None else ref.launch.shared
                        function = self._driver.load(bytes(self._code[entry]), entry, shared)
                    found = self._loaded[entry] = function, ref
        return found

    def __iter__(self) -> Any:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)
