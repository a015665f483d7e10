"""Runs the kernels of one group on a GPU, outside of any plan: for verification and for measuring."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from dovetail.codegen.kernel import Kernel, TensorMap
from dovetail.codegen.tactic import Emitted
from dovetail.codegen.triton_compiler import Compiled
from dovetail.core.dims import Dim, evaluate
from dovetail.core.errors import CompileError, DeviceLostError
from dovetail.device.cuda import libraries
from dovetail.device.cuda.driver import Arguments, Driver, Function, Launch, Stream
from dovetail.device.cuda.driver import TensorMap as DeviceMap
from dovetail.device.cuda.memory import DeviceMemory, parts
from dovetail.tuner.launch import Placed, Sizes

PATIENCE_S = 120.0
"""Seconds that the kernels of one group may take where they are checked; ordinary ones take milliseconds."""

_LOOK_S = 0.0002  # between looks

Machine = Mapping[str, Compiled | str]
Call = Callable[[Stream], None]
"""Queues one step."""


class Functions:
    """The kernels that a device has loaded, by entry."""

    def __init__(self, driver: Driver, machine: Machine) -> None:
        self.driver, self.machine = driver, machine
        self._loaded: dict[str, Function] = {}

    def compiled(self, kernel: Kernel) -> Compiled:
        """The machine code of a kernel.

        Raises:
            CompileError: it has none.
        """
        found = self.machine.get(kernel.entry)
        if not isinstance(found, Compiled):
            raise CompileError(f"{kernel.tactic}: {kernel.entry} has no machine code ({found}), expected it to be compiled; build again")
        return found

    def function(self, kernel: Kernel) -> Function:
        """The loaded function of a kernel; the device's context is active."""
        if kernel.entry not in self._loaded:
            compiled = self.compiled(kernel)
            self._loaded[kernel.entry] = self.driver.load(compiled.binary, kernel.entry, compiled.shared)
        return self._loaded[kernel.entry]

    def close(self) -> None:
        """Give the functions back, which nothing uses any more; the device's context is active."""
        for function in self._loaded.values():
            self.driver.unload(function)
        self._loaded.clear()


def own_bytes(emitted: Emitted, functions: Functions, sizes: Sizes) -> list[int]:
    """Bytes of the buffers that belong to the kernels: temps first, then per step workspace, counters and scratch."""
    found = [evaluate(size, sizes) for size in emitted.temps]
    for step in emitted.steps:
        kernel = step.kernel
        counters = 0 if kernel.launch is None else 4 * kernel.launch.counters
        found += [evaluate(kernel.workspace_bytes, sizes), counters, _scratch(kernel, functions, sizes)]
    return found


def _grid(kernel: Kernel, sizes: Sizes) -> tuple[int, int, int]:
    assert kernel.launch is not None
    x, y, z = (evaluate(d, sizes) for d in kernel.launch.grid)
    return x, y, z


def _scratch(kernel: Kernel, functions: Functions, sizes: Sizes) -> int:
    if kernel.launch is None:
        return 0
    x, y, z = _grid(kernel, sizes)
    compiled = functions.compiled(kernel)
    return compiled.scratch * x * y * z * compiled.cluster


def calls(
    emitted: Emitted, functions: Functions, sizes: Sizes, inputs: Sequence[int], outputs: Sequence[int], own: Sequence[int]
) -> list[Call]:
    """What queues the steps of a group, in order.

    Args:
        inputs, outputs: device addresses of the operands' logical origins.
        own: addresses of the buffers of `own_bytes`; counters are zero.

    Raises:
        CompileError: a kernel without machine code.
        DeviceError: a library that is not there.
    """
    driver = functions.driver
    found: list[Call] = []
    at = len(emitted.temps)
    for step in emitted.steps:
        workspace, counters, scratch = own[at : at + 3]
        at += 3
        kernel = step.kernel
        pointers = []
        for operand in step.args:
            if operand.role == "in":
                pointers.append(inputs[operand.index])
            elif operand.role == "out":
                pointers.append(outputs[operand.index])
            elif operand.role == "temp":
                pointers.append(own[operand.index])
            else:
                pointers.append(workspace if operand.role == "workspace" else counters)
        values = _ints(kernel.dims, sizes)
        if kernel.launch is None:
            found.append(_library(kernel, driver, pointers, values, workspace))
            continue
        grid = _grid(kernel, sizes)
        if 0 in grid:
            continue
        compiled = functions.compiled(kernel)
        maps = kernel.launch.maps or (None,) * len(pointers)
        arguments = Arguments([0 if m is None else len(m.shape) for m in maps], values, scratch)
        described = iter(compiled.descriptors)
        for position, (pointer, tensor_map) in enumerate(zip(pointers, maps, strict=True)):
            if tensor_map is None:
                arguments.set_pointer(position, pointer)
            else:
                record = _described(pointer, tensor_map, next(described), sizes)
                arguments.set_map(position, record, driver.encode(record))
        launch = Launch(functions.function(kernel), grid, compiled.threads, compiled.shared, arguments, compiled.pdl, compiled.cluster)
        found.append(lambda stream, launch=launch: driver.launch(launch, stream))  # type: ignore[misc]  # binds this step's
    return found


def _library(kernel: Kernel, driver: Driver, pointers: list[int], values: list[int], workspace: int) -> Call:
    call = libraries.prepare(kernel.library, driver, json.loads(kernel.source), values)
    return lambda stream: call.launch(pointers, workspace, stream)


def _described(pointer: int, given: TensorMap, meta: Mapping[str, object], sizes: Sizes) -> DeviceMap:
    box = meta["box"]
    assert isinstance(box, list | tuple)
    return DeviceMap(
        pointer, int(str(meta["kind"])), int(str(meta["element"])), tuple(_ints(given.shape, sizes)), tuple(_ints(given.strides, sizes)),
        tuple(int(b) for b in box), int(str(meta["swizzle"])),
    )  # fmt: skip


def _ints(dims: Iterable[Dim], sizes: Sizes) -> list[int]:
    return [evaluate(d, sizes) for d in dims]


class DeviceLaunch:
    """The kernels of a group bound to copies of placed operands on a device.

    Args:
        emitted: the kernels, in order.
        inputs, outputs: operands in host memory, with their guards; `run` writes the outputs there.
        sizes: values of the symbols.
        functions: the device and its machine code.
    """

    def __init__(
        self, emitted: Emitted, inputs: Sequence[Placed], outputs: Sequence[Placed], sizes: Sizes, functions: Functions
    ) -> None:
        self._driver, self._placed, self._outputs = functions.driver, [*inputs, *outputs], outputs
        self._kernels = [f"{step.kernel.entry} ({step.kernel.tactic})" for step in emitted.steps]
        driver = functions.driver
        with driver.active():
            own = own_bytes(emitted, functions, sizes)
            offsets, total = parts([*(p.memory.nbytes for p in self._placed), *own])
            self._memory = DeviceMemory(driver, total)
            self._offsets = [self._memory.address + o for o in offsets]
            operands = [
                base + (placed.address - _start(placed)) for base, placed in zip(self._offsets, self._placed, strict=False)
            ]
            self._stream, self._done = driver.create_stream(), driver.create_event()
            driver.zero(self._memory.address, total, self._stream)
            self._calls = calls(
                emitted, functions, sizes, operands[: len(inputs)], operands[len(inputs) :], self._offsets[len(self._placed) :]
            )

    def run(self) -> None:
        """Upload all operands, run the kernels once, and fetch everything back, guards included.

        Raises:
            DeviceLostError: they do not end, and nothing but the end of this process ends them.
        """
        driver = self._driver
        with driver.active():
            for base, placed in zip(self._offsets, self._placed, strict=False):
                driver.upload(base, placed.memory, self._stream)
            for call in self._calls:
                call(self._stream)
            driver.record(self._done, self._stream)
            self._wait()
            for base, placed in zip(self._offsets, self._placed, strict=False):
                driver.download(placed.memory, base, self._stream)
            driver.synchronize(self._stream)

    def _wait(self) -> None:
        """Wait for the kernels, though not for ever: a call that waits for one that hangs would never return."""
        driver, end = self._driver, time.monotonic() + PATIENCE_S
        while not driver.reached(self._done):
            if time.monotonic() > end:
                driver.lost = driver.lost or f"the kernels {', '.join(self._kernels)} did not end within {PATIENCE_S:g} s"
                raise DeviceLostError(
                    f"cuda:{driver.properties.ordinal}: {driver.lost}, and keep the device busy until this process ends; end it, build "
                    "with tuning, which leaves such kernels out, and report this"
                )
            time.sleep(_LOOK_S)

    def close(self) -> None:
        """Give stream and event back; the memory goes with the object. What a lost device had is gone."""
        if self._driver.lost:
            return
        with self._driver.active():
            self._driver.destroy_event(self._done)
            self._driver.destroy_stream(self._stream)


def _start(placed: Placed) -> int:
    return int(placed.memory.ctypes.data)
