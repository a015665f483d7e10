"""Weight sets on a device: packed by the weights program there, with the raw initializers that kernels read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.errors import PlanFormatError
from dovetail.device.cpu.memory import Recycler
from dovetail.device.cuda.driver import Driver, Stream
from dovetail.device.cuda.memory import BlockCache, DeviceMemory, Uploader, parts
from dovetail.engine.memory import roots
from dovetail.engine.plan import Buffer, ControlSegment, NativeSegment, Plan, Program
from dovetail.runtime.cuda.arrays import Allocate, DeviceView
from dovetail.runtime.cuda.code import CudaResources
from dovetail.runtime.cuda.program import CudaRunner
from dovetail.runtime.cuda.queue import Queue
from dovetail.runtime.program import storage_of
from dovetail.runtime.weights import WeightSet, changed, fitted, new_token

Array = NDArray[Any]
_ORDERED = 16 << 20  # bytes of passing memory beyond which the driver should get it back at once

Values = Mapping[str, Any]
"""By name a `DeviceView`, an array on the host, or a host value that is no array."""


class CudaWeights(WeightSet):
    """One immutable version of all weights; `device` are the raw initializers that kernels of runs read, `values` the packed ones."""

    def __init__(
        self, arrays: Mapping[str, Array], device: Mapping[str, DeviceView], values: Values, hashes: Mapping[str, str],
        raw: Mapping[str, Array], copies: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(arrays, {}, hashes, raw)
        self.device = dict(device)
        self.values = dict(values)
        self.copies = dict(copies or {})  # of packed weights on the host, for host steps that read them


class DeviceResources(CudaResources):
    """What programs find by name, on the device and on the host: raw weights, packed weights, results of the shapes program."""

    __slots__ = ("_copies", "_device", "_of_shapes", "_queue")

    def __init__(
        self, queue: Queue, raw: Mapping[str, Array], device: Mapping[str, DeviceView], packed: Values, shapes: Values,
        copies: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(raw, packed, shapes)
        self._queue = queue
        self._device = device
        self._copies = copies
        self._of_shapes: dict[str, Any] = {}  # copies of what is another value for other shapes

    def find(self, buffer: Buffer) -> Any:
        """See `Resources.find`."""
        value = super().find(buffer)
        if not isinstance(value, DeviceView):
            return value
        copies, key = self._of_shapes if buffer.kind == "shape" else self._copies, f"{buffer.kind} {buffer.name}"
        found = copies.get(key)
        if found is None:
            found = np.empty(value.nbytes, np.uint8)
            self._queue.fetch(found, value.address)
            self._queue.synchronize()
            copies[key] = found
        return found

    def on_device(self, buffer: Buffer) -> DeviceView | None:
        """See `CudaResources.on_device`."""
        value = self._device.get(buffer.name) if buffer.kind == "weight" else super().find(buffer)
        return value if isinstance(value, DeviceView) else None

    def device(self, buffer: Buffer) -> tuple[int, int]:
        """See `CudaResources.device`."""
        value = self.on_device(buffer)
        if value is None:
            raise PlanFormatError(
                f"plan: got a {buffer.kind} buffer named {buffer.name!r} that is not on the device, expected one that kernels can read; "
                "rebuild the engine"
            )
        return value.address, value.nbytes


def build(plan: Plan, given: Mapping[str, Array], runner: CudaRunner, uploader: Uploader, hashes: Mapping[str, str]) -> CudaWeights:
    """Upload what kernels read and run the weights program; its results stay on the device.

    Raises:
        RefitError: weights are missing or do not fit the plan.
        DeviceError: too little memory.
    """
    arrays = fitted(plan, given)
    raw = {name: storage_of(a) for name, a in arrays.items()}
    lasting = {n: arrays[n] for n in sorted(_lasting(plan))}
    device, values = _made(arrays, raw, lasting, {}, {}, runner, uploader)
    return CudaWeights(arrays, device, values, hashes, raw)


def refit(
    plan: Plan, old: CudaWeights, changes: Mapping[str, Any], runner: Callable[[Collection[str]], CudaRunner], uploader: Uploader,
    memory: Recycler, blocks: BlockCache, threads: int,
) -> CudaWeights:  # fmt: skip
    """A new set with some weights replaced; `old` is untouched.

    Args:
        runner: gives the runner for what depends on some weights; the rest is taken over from `old`.
        memory, blocks: where the new ones are, on the host and on the device.

    Raises:
        RefitError: unknown name, wrong dtype or shape, or a violated guard.
    """
    new = changed(plan, old, changes, memory, threads)
    # What a run of the kernels reads: a name that is not here was never on the device.
    lasting = {n: new.arrays[n] for n in sorted(new.names) if n in old.device}
    device = {n: view for n, view in old.device.items() if n not in lasting}
    device, values = _made(new.arrays, new.raw, lasting, device, old.values, runner(new.names), uploader, blocks.take)
    copies = {k: v for k, v in old.copies.items() if k.partition(" ")[2] not in values}
    return CudaWeights(new.arrays, device, {**old.values, **values}, new.hashes, new.raw, copies)


def _lasting(plan: Plan) -> set[str]:
    """Names of the initializers that kernels of runs read."""
    return device_weights(plan.main) | device_weights(plan.shapes_program)


def _made(
    arrays: Mapping[str, Array], raw: Mapping[str, Array], lasting: Mapping[str, Array], device: Mapping[str, DeviceView],
    packed: Values, runner: CudaRunner, uploader: Uploader, take: Callable[[int], DeviceMemory] | None = None,
) -> tuple[dict[str, DeviceView], dict[str, Any]]:  # fmt: skip
    """The raw weights on the device, with those of `lasting` anew, and the results of a weights program."""
    device = dict(device) | upload(uploader, lasting, take)
    passing: list[int] = []
    driver, stream = runner.driver, runner.queue.own
    try:
        if not runner.program.outputs:
            return device, {}
        needed = {n: arrays[n] for n in sorted(device_weights(runner.program) - device.keys())}
        small = sum(a.nbytes for a in needed.values() if a.dtype != object) <= _ORDERED
        own = upload(uploader, needed, (lambda size: _ordered(passing, driver, size, stream)) if small else None)
        resources = DeviceResources(runner.queue, raw, device | own, packed, {}, {})
        return device, run_to_device(runner, runner.stage((), {}), resources, new_token(), take)
    finally:
        for pointer in passing:
            driver.free_ordered(pointer, stream)
        uploader.finish()


def _ordered(taken: list[int], driver: Driver, size: int, stream: Stream) -> DeviceMemory:
    """Memory in the order of a stream, which takes the driver less time than any other; the caller frees what is `taken`."""
    taken.append(driver.allocate_ordered(size, stream))
    return DeviceMemory.at(driver, taken[-1], size)


def run_to_device(
    runner: CudaRunner, stage: Any, resources: CudaResources, token: int, take: Callable[[int], DeviceMemory] | None = None
) -> dict[str, Any]:
    """Run a program without inputs; results by name, on the device but for those that no device has, and complete."""
    program = runner.program
    queue = runner.queue
    queue.begin(None, False)
    allocate = _in_one_block(take or partial(DeviceMemory, runner.driver), [view.nbytes for _, view in stage.outputs])
    wanted = [None if p.tensor.shape is None or p.tensor.dtype == "str" else allocate for p in program.outputs]
    try:
        results = runner.run(stage, (), wanted, resources, token, 1)
    finally:
        queue.end()
    queue.wait()
    queue.synchronize()
    return {
        port.name: storage_of(value) if isinstance(value, np.ndarray) and port.tensor.shape is not None else value
        for port, value in zip(program.outputs, results, strict=True)
    }


def _in_one_block(take: Callable[[int], DeviceMemory], sizes: Sequence[int]) -> Allocate:
    """Makes arrays that share one allocation; what does not fit any more gets one of its own."""
    _, total = parts(sizes)
    state: dict[str, Any] = {"block": None, "used": 0}

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceView:
        view = DeviceView(0, shape, dtype)
        _, size = parts([view.nbytes])
        if state["used"] + size > total:
            view.owner = take(size)
            view.address = view.owner.address
            return view
        if state["block"] is None:
            state["block"] = take(total)
        view.owner = state["block"]
        view.address = view.owner.address + state["used"]
        state["used"] += size
        return view

    return allocate


def upload(
    uploader: Uploader, arrays: Mapping[str, Array], take: Callable[[int], DeviceMemory] | None = None
) -> dict[str, DeviceView]:
    """Copies of host arrays, in one block; later work in the uploader's stream finds them there. `take` gives the block."""
    arrays = {name: a for name, a in arrays.items() if a.dtype != object}
    if not arrays:
        return {}
    offsets, total = parts([a.nbytes for a in arrays.values()])
    block = DeviceMemory(uploader.driver, total) if take is None else take(total)
    found = {}
    uploader.upload(block.address, list(zip(offsets, arrays.values(), strict=True)))
    for (name, array), offset in zip(arrays.items(), offsets, strict=True):
        found[name] = DeviceView(block.address + offset, array.shape, array.dtype, block)
    return found


def device_weights(program: Program) -> set[str]:
    """Names of the initializers that kernels of a program and of its regions read, or that its regions are given."""
    root = roots(program)
    names: set[str] = set()
    for segment in program.segments:
        if isinstance(segment, NativeSegment):
            for step in segment.steps:
                buffers = (program.buffers[root[arg.buffer]] for arg in step.args)
                names.update(b.name for b in buffers if b.kind == "weight")
        elif isinstance(segment, ControlSegment):
            given = (program.buffers[root[ref.buffer]] for ref in segment.inputs if ref is not None)
            names.update(b.name for b in given if b.kind == "weight" and b.dtype != "str")
            for region in segment.regions:
                names |= device_weights(region)
    return names


