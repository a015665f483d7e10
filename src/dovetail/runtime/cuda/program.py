"""Runs a program on a device: kernels in a stream, host and control segments on copies that move only when somebody reads them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.errors import BindingError, ExecutionError
from dovetail.device.cpu.memory import aligned_bytes, aligned_empty
from dovetail.device.cuda.driver import ALIGNMENT, Driver
from dovetail.device.cuda.memory import DeviceMemory
from dovetail.engine.plan import NativeSegment, Program
from dovetail.runtime.cuda import plugin_step
from dovetail.runtime.cuda.arrays import DeviceView
from dovetail.runtime.cuda.code import CudaCode, CudaResources
from dovetail.runtime.cuda.queue import Queue
from dovetail.runtime.cuda.stage import Blocks, CudaStage
from dovetail.runtime.cuda.values import DeviceValue, fresh
from dovetail.runtime.observe import Observer
from dovetail.runtime.program import Kernels, ProgramRunner, storage_of
from dovetail.runtime.stage import Bound, CallCode, Frame, Resources, Stage, View

Array = NDArray[Any]

_SMALL = 1 << 12  # bytes that are as well sent to each region anew

# Where the newest value of a buffer is.
_DEVICE, _BOTH, _HOST = 0, 1, 2


@dataclass(slots=True)
class CudaFrame(Frame):
    """`addresses` are the device's, `arrays` copies on the host; `state` says which of the two is current, `sizes` their bytes."""

    state: bytearray
    sizes: list[int | None]
    mark: int  # of the queue's temporary memory when the run began
    kept: list[Any]  # values in memory of their own


class CudaRunner(ProgramRunner):
    """See `runtime.program.ProgramRunner`. All but strings and sequences may be on the device.

    Inputs are NumPy arrays or `DeviceView`; per output None (a fresh NumPy array), a NumPy array, a `DeviceView`, or a function
    that makes one. Results on the device are complete when the queue's stream is; those on the host after `queue.wait()`, of
    regions at once.
    """

    def __init__(self, program: Program, kernels: Kernels, driver: Driver, queue: Queue, *, nested: bool = False) -> None:
        super().__init__(program, kernels, None)
        self.driver = driver
        self.queue = queue
        self._nested = nested
        self._blocks: Any = Blocks(driver, queue, self._forget)
        self._slots: dict[int, DeviceMemory] = {}
        # Arrays of library calls: where each was first, and those that have been elsewhere since.
        self._seen: dict[int, int] = {}
        self._moving: set[int] = set()
        ports = {self.layout.root[p.tensor.buffer] for p in (*program.inputs, *program.outputs)}
        # Buffers whose copies must be kept track of: all others live on the device alone.
        self._tracked = frozenset(self._viewed | ports)

    @property
    def held(self) -> int:
        """Bytes of device memory that stay between runs."""
        return sum(block.size for block in [*self._blocks, *self._slots.values()] if block is not None)

    def uncapturable(self) -> str:
        """Why a run cannot be part of somebody's CUDA graph; empty if it can."""
        for segment in self.program.segments:
            if not isinstance(segment, NativeSegment):
                name = getattr(segment, "op", None) or getattr(segment, "kind", "")
                return f"the node {', '.join(segment.origin) or name} ({name}) runs on the host"
        for i, port in enumerate(self.program.outputs):
            if i not in self._owned:
                return f"the output {port.name!r} is not a buffer of its own"
        return ""

    def _forget(self, number: int) -> None:
        """Drop what is bound to the block of a stage."""
        stale = [self._stages] if number == 0 else [s.children for s in self._at(number - 1)]
        for cache in stale:
            cache.clear()

    def _at(self, number: int) -> list[Stage]:
        level = list(self._stages.values())
        for _ in range(number):
            level = [child for stage in level for child in stage.children.values()]
        return level

    # --- memory ---------------------------------------------------------------------------------

    def _bind(self, number: int, env: Mapping[str, int], parent: Stage | None) -> Stage:
        return CudaStage(self.layout, number, env, parent, self._blocks, self._kernels)

    def _slot(self, root: int, size: int) -> int:
        """Memory for an input or output that the caller has elsewhere; it stays where it is from run to run."""
        found = self._slots.get(root)
        if found is None or found.size < size:
            self._slots.pop(root, None)
            found = None
            found = self._slots[root] = DeviceMemory(self.driver, size)
        return found.address

    def _in_place(self, stage: Stage, root: int, pointer: int) -> bool:
        """Whether the caller's array is read or written where it is: kernels want it aligned, library calls always in one place."""
        if pointer % ALIGNMENT:
            return False
        if self.queue.capturing or not any(root in code.fixed for code in stage.natives if isinstance(code, CudaCode)):
            return True
        if self._seen.setdefault(root, pointer) != pointer:
            self._moving.add(root)
        return root not in self._moving

    def slots(self) -> list[DeviceMemory]:
        """The memory behind `_slot`, for whoever must keep it."""
        return list(self._slots.values())

    def _frame(self, stage: Stage, inputs: Sequence[Any], observer: Observer | None) -> Frame:
        state = bytearray(len(self.program.buffers))
        frame = CudaFrame(stage.frame.addresses.copy(), stage.frame.arrays.copy(), state, stage.sizes, self.queue.mark, [])
        for root, value, opaque in zip(self._input_roots, inputs, self._opaque, strict=True):
            if isinstance(value, DeviceView):
                frame.addresses[root] = value.address
                if value.nbytes and not self._in_place(stage, root, value.address):
                    frame.addresses[root] = self._slot(root, value.nbytes)
                    self.driver.copy(frame.addresses[root], value.address, value.nbytes, self.queue.stream)
            else:
                frame.arrays[root] = value if opaque else storage_of(value)
                frame.state[root] = _HOST
        return frame

    def _join(self, frame: Frame, stage: Stage) -> None:
        assert isinstance(frame, CudaFrame)
        super()._join(frame, stage)
        frame.sizes = stage.sizes

    def _to_device(self, root: int, frame: CudaFrame) -> None:
        """Bring what the host has written to the device."""
        array = frame.arrays[root]
        if not isinstance(array, np.ndarray) or array.dtype == object:
            return  # no kernel reads strings and sequences
        kind = self.program.buffers[root].kind
        if kind == "host":
            frame.addresses[root] = self.queue.temporary(array.nbytes)
        elif kind == "input":
            frame.addresses[root] = self._slot(root, array.nbytes)
            if root in self._seen:
                self._moving.add(root)
        self.queue.send(frame.addresses[root], array)
        frame.state[root] = _BOTH

    def _to_host(self, root: int, frame: CudaFrame) -> None:
        """Bring what kernels have written to the host."""
        array = aligned_bytes(frame.sizes[root] or 0)
        self.queue.fetch(array, frame.addresses[root])
        self.queue.synchronize()
        frame.arrays[root] = array
        frame.state[root] = _BOTH

    def _read(self, view: View, frame: Frame, resources: Resources) -> Any:
        assert isinstance(frame, CudaFrame)
        root = view.root
        if not view.static and frame.state[root] == _DEVICE and frame.addresses[root]:
            self._to_host(root, frame)
        if not view.static and frame.arrays[root] is None and frame.sizes[root] == 0:
            frame.arrays[root] = aligned_bytes(0)  # nothing is anywhere, on the host too
        return view.of(frame, resources)

    def _argument(self, view: View, frame: Frame, resources: Resources) -> Any:
        """An input of a control segment: on the device where it is there, or large enough to go there once for all regions."""
        assert isinstance(frame, CudaFrame)
        if view.shape is None or view.strides is not None or view.dtype.hasobject:
            return self._read(view, frame, resources)
        if view.static:
            assert isinstance(resources, CudaResources)
            found = resources.on_device(view.buffer)
            if found is None:
                return self._read(view, frame, resources)
            return DeviceValue(self.queue, found.address + view.offset, view.shape, view.dtype)
        root = view.root
        if frame.state[root] == _HOST:
            if view.nbytes < _SMALL:
                return self._read(view, frame, resources)
            self._to_device(root, frame)
        return DeviceValue(self.queue, frame.addresses[root] + view.offset, view.shape, view.dtype)

    def _call(
        self, code: CallCode, stage: Stage, frame: Frame, resources: Resources, version: int, threads: int, observer: Observer | None
    ) -> tuple[Any, ...]:
        function = plugin_step.gpu_function(code)
        if function is not None:
            assert isinstance(frame, CudaFrame)
            start = self._stamp(observer)
            inputs = [None if v is None else self._on_device(v, frame, resources) for v in code.inputs]
            results = plugin_step.call(function, code, inputs, self.queue, lambda view: self._target(view, frame))
            if results is not None:
                if observer is not None:
                    observer.host(code.segment.origin, "Plugin", self._stamp(observer) - start)
                return results
        return super()._call(code, stage, frame, resources, version, threads, observer)

    def _stamp(self, observer: Observer | None) -> int:
        """The time at which the device has done all that is queued; 0 where nobody asks."""
        if observer is None:
            return 0
        self.queue.synchronize()
        return time.perf_counter_ns()

    def _on_device(self, view: View, frame: CudaFrame, resources: Resources) -> DeviceView:
        """A tensor as a dense array on the device."""
        found = self._argument(view, frame, resources)
        if isinstance(found, DeviceView):
            return found
        array = np.array(found, order="C")
        made = fresh(self.queue, array.shape, array.dtype)
        self.queue.send(made.address, array)
        return made

    def _target(self, view: View, frame: CudaFrame) -> int:
        """Where a step may write a result itself; 0 where that has no dense memory on the device."""
        placed = view.buffer.kind != "host" and view.strides is None and frame.state[view.root] != _HOST
        return frame.addresses[view.root] + view.offset if placed and frame.addresses[view.root] else 0

    def _arguments(self, region: ProgramRunner, values: Sequence[Any]) -> tuple[list[Any], tuple[Any, ...]]:
        on_device = {i: v for i, v in enumerate(values) if isinstance(v, DeviceValue)}
        for i, value in on_device.items():
            want = region.matcher.dtypes[i]
            if value.dtype != want:
                raise BindingError(f"input {region.matcher.ports[i].name!r}: got dtype {value.dtype}, expected {want}")
        stand_in = [np.empty(0, v.dtype) if i in on_device else v for i, v in enumerate(values)]
        found, shapes = region.matcher.convert(stand_in)
        return (
            [on_device.get(i, v) for i, v in enumerate(found)],
            tuple(on_device[i].shape if i in on_device else s for i, s in enumerate(shapes)),
        )

    def _store(
        self, outputs: Sequence[View | None], results: Sequence[Any], frame: Frame, resources: Resources, origin: str
    ) -> None:
        assert isinstance(frame, CudaFrame)
        rest = list(outputs)
        for i, (view, value) in enumerate(zip(outputs, results, strict=False)):
            if view is None or not isinstance(value, DeviceValue) or view.shape is None or view.strides is not None:
                continue
            if value.dtype != view.dtype or value.shape != view.shape:
                raise ExecutionError(
                    f"{origin or view.buffer.name}: the regions gave {value.dtype} {value.shape}, expected {view.dtype} {view.shape}"
                )
            root = view.root
            if view.buffer.kind == "host":
                kept = value.owned()
                frame.kept.append(kept)
                frame.addresses[root], frame.arrays[root] = kept.address, None
            elif frame.state[root] == _HOST:
                continue  # a part of what the host has: it goes there
            elif value.address != frame.addresses[root] + view.offset:
                self.driver.copy(frame.addresses[root] + view.offset, value.address, value.nbytes, self.queue.stream)
            frame.state[root] = _DEVICE
            rest[i] = None
        super()._store(rest, results, frame, resources, origin)

    def _put(self, view: View, value: Array, frame: Frame, resources: Resources) -> None:
        assert isinstance(frame, CudaFrame)
        root = view.root
        if view.buffer.kind == "host":
            super()._put(view, value, frame, resources)
        elif view.dtype.hasobject:
            np.copyto(view.of(frame, resources), value)
        elif view.whole and view.nbytes == frame.sizes[root] and view.buffer.kind != "input":
            frame.arrays[root] = storage_of(np.asarray(value, order="C"))
        else:
            if frame.state[root] == _DEVICE:
                self._to_host(root, frame)
            if not frame.arrays[root].flags.writeable:
                frame.arrays[root] = frame.arrays[root].copy()
            np.copyto(view.of(frame, resources), value)
        frame.state[root] = _HOST

    def direct(self, stage: Stage, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[int] | None:
        """Where every buffer is, if a run on these arrays is nothing but kernels that read and write them; else None."""
        if self.layout.needs_arrays or len(self.layout.stages) > 1 or len(self._owned) < len(self.program.outputs):
            return None
        addresses = stage.frame.addresses.copy()
        for root, value in zip(self._input_roots, inputs, strict=True):
            if not isinstance(value, DeviceView) or (value.nbytes and not self._in_place(stage, root, value.address)):
                return None
            addresses[root] = value.address
        for i, view in stage.outputs:
            if view.buffer.kind == "input":
                continue
            given, root = outputs[i], self._owned[i]
            if not isinstance(given, DeviceView) or not given.address or not self._in_place(stage, root, given.address):
                return None
            if not view.whole or view.nbytes != stage.sizes[root]:
                return None
            addresses[root] = given.address
        return addresses

    def run_direct(self, stage: Stage, addresses: list[int], resources: Resources, version: int) -> None:
        """Queue a run that is nothing but kernels; see `direct`."""
        if stage.version != version:
            for native in stage.natives:
                native.point_to(resources)
            stage.version = version
        for native in stage.natives:
            assert isinstance(native, CudaCode)
            native.run(addresses, self.queue)

    # --- running --------------------------------------------------------------------------------

    def _native(
        self, code: Bound, stage: Stage, frame: Frame, resources: Resources, threads: int, observer: Observer | None
    ) -> None:
        assert isinstance(code, CudaCode) and isinstance(frame, CudaFrame)
        if code.watched is None:
            code.watched = tuple(code.roots & self._tracked)
            code.written = tuple(r for r in code.watched if self._writable(r))
        state = frame.state
        for root in code.watched:
            if state[root] == _HOST:
                self._to_device(root, frame)
        if observer is not None:
            self._observe_device(code, stage, frame, resources, observer)
            return
        code.run(frame.addresses, self.queue)
        for root in code.written:
            state[root] = _DEVICE

    def _writable(self, root: int) -> bool:
        """Whether kernels may write a buffer: an input only where an output updates it."""
        kind = self.program.buffers[root].kind
        return kind in ("arena", "workspace", "output") or (kind == "input" and root in self._owner)

    def _observe_device(self, code: CudaCode, stage: Stage, frame: CudaFrame, resources: Resources, observer: Observer) -> None:
        """Run with time stamps, in as many pieces as taps need; results stay the same."""
        steps = code.segment.steps
        index = next(i for i, s in enumerate(self.program.segments) if s is code.segment)
        written = [r for r in code.roots if self._writable(r)]
        code.move(frame.addresses)
        start = 0
        for cut in observer.cuts(len(steps), self._taps.get(index, ())):
            with observer.around(steps[start:cut]):
                stamps = np.cumsum([0.0, *code.timed(self.queue, start, cut)])
            observer.native(steps[start:cut], np.rint(stamps).astype(np.int64))
            start = cut
            for root in written:
                frame.state[root] = _DEVICE
            self._tap(index, cut - 1, stage, frame, resources, observer)

    def _region(self, program: Program) -> ProgramRunner:
        return CudaRunner(program, self._kernels, self.driver, self.queue, nested=True)

    # --- outputs --------------------------------------------------------------------------------

    def _allocate_outputs(
        self,
        stage: Stage,
        frame: Frame,
        outputs: Sequence[Any] | None,
        results: list[Any],
        inputs: Sequence[Any],
        observer: Observer | None,
    ) -> None:
        for i, view in stage.outputs:
            root = self._owned.get(i)
            if root is None:
                continue
            if view.buffer.kind == "input":  # the output updates the caller's array in place
                results[i] = inputs[self._input_roots.index(root)]
                continue
            given = None if outputs is None else outputs[i]
            assert view.shape is not None
            if self._nested and not view.dtype.hasobject and view.whole and view.nbytes == stage.sizes[root]:
                given = fresh(self.queue, view.shape, view.dtype)
            if view.dtype.hasobject:
                results[i] = given if isinstance(given, np.ndarray) else np.empty(view.shape, view.dtype)
                frame.arrays[root] = results[i]
                continue
            if view.whole and view.nbytes == stage.sizes[root]:
                if callable(given):
                    given = given(view.shape, view.dtype)
                results[i] = aligned_empty(view.shape, view.dtype) if given is None else given
                if isinstance(given, DeviceView) and given.address and self._in_place(stage, root, given.address):
                    frame.addresses[root] = given.address
                    continue
            frame.addresses[root] = self._slot(root, stage.sizes[root] or 0)

    def _collect(
        self, stage: Stage, frame: Frame, resources: Resources, outputs: Sequence[Any] | None, results: list[Any]
    ) -> None:
        assert isinstance(frame, CudaFrame)
        for i, result in enumerate(results):
            given = None if outputs is None else outputs[i]
            if result is not None:
                if self._nested and isinstance(result, DeviceValue) and frame.state[self._owned[i]] == _HOST:
                    # What the host has made stays there: most of it are conditions.
                    results[i] = np.array(self._read(stage.result(i), frame, resources), order="C")
                    continue
                self._deliver(result, self._owned[i], frame)
            elif self._nested and (kept := self._kept_value(stage.result(i), frame)) is not None:
                results[i] = kept
            elif callable(given) or isinstance(given, DeviceView):
                results[i] = self._copy_out(stage.result(i), given, frame, resources)
            else:
                view = stage.result(i)
                value = self._read(view, frame, resources)
                if given is not None:
                    np.copyto(given, value)
                    results[i] = given
                elif view.shape is None or (view.buffer.kind == "host" and view.whole and view.root not in self._shared):
                    results[i] = value
                else:
                    results[i] = np.array(value, order="C")
        if self._nested:
            self.queue.finish_staged()
            self.queue.release(frame.mark)

    def _kept_value(self, view: View, frame: CudaFrame) -> DeviceValue | None:
        """A result of a region that has no buffer of its own, in memory of its own; None where it is not on the device."""
        if view.static or view.shape is None or view.strides is not None or view.dtype.hasobject or frame.state[view.root] == _HOST:
            return None
        pointer = frame.addresses[view.root]
        return DeviceValue(self.queue, pointer + view.offset, view.shape, view.dtype).owned() if pointer else None

    def _deliver(self, result: Any, root: int, frame: CudaFrame) -> None:
        """Let a result that has a buffer of its own hold that buffer's value."""
        array, pointer = frame.arrays[root], frame.addresses[root]
        if isinstance(result, DeviceView):
            if frame.state[root] == _HOST:
                self.queue.send(result.address, array)
            elif pointer != result.address:
                self.driver.copy(result.address, pointer, result.nbytes, self.queue.stream)
        elif result.dtype == object:
            return
        elif frame.state[root] == _DEVICE:
            self.queue.fetch(result, pointer)
        elif storage_of(result) is not array:
            storage_of(result)[:] = array[: result.nbytes]

    def _copy_out(self, view: View, given: Any, frame: CudaFrame, resources: Resources) -> Any:
        """A result on the device that has no buffer of its own."""
        if view.shape is None or view.dtype.hasobject:  # no device has these
            return self._read(view, frame, resources)
        target: DeviceView = given(view.shape, view.dtype) if callable(given) else given
        if not view.static and view.strides is None and frame.state[view.root] != _HOST:
            self.driver.copy(target.address, frame.addresses[view.root] + view.offset, target.nbytes, self.queue.stream)
        else:
            self.queue.send(target.address, np.array(self._read(view, frame, resources), order="C"))
        return target
