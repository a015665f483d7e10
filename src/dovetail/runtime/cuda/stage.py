"""Binds a stage on a device: one block of memory for its arena, workspaces and kernels' scratch, and its launches."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from dovetail.device.cuda.driver import Driver
from dovetail.device.cuda.memory import DeviceMemory, parts
from dovetail.engine import memory
from dovetail.engine.plan import NativeSegment, Segment
from dovetail.runtime.cuda.code import PLACED_KINDS, CudaCode, Prepared, prepare
from dovetail.runtime.cuda.queue import Queue
from dovetail.runtime.stage import Bound, CallCode, Layout, Stage


class Blocks(list[DeviceMemory | None]):
    """The block of each stage of a program; one serves all shapes and grows with the largest."""

    def __init__(self, driver: Driver, queue: Queue, outgrown: Callable[[int], None]) -> None:
        """`outgrown` is a method of the owner's; it is called before a block makes room for a larger one, with the number of its stage."""
        super().__init__()
        self.driver = driver
        self.queue = queue
        # No cycle, so that memory of the device goes back when its owner goes, and not at some later collection.
        self._outgrown = weakref.WeakMethod(outgrown)

    def reserve(self, number: int, size: int) -> DeviceMemory:
        """The block of a stage, of at least `size` bytes."""
        while len(self) <= number:
            self.append(None)
        block = self[number]
        if block is None or block.size < size:
            # The old one goes first, so that both need not fit together.
            self[number] = block = None
            if (outgrown := self._outgrown()) is not None:
                outgrown(number)
            block = self[number] = DeviceMemory(self.driver, size)
        return block


class CudaStage(Stage):
    """See `runtime.stage.Stage`; addresses are the device's."""

    block: DeviceMemory | None
    _driver: Driver
    _counters: DeviceMemory | None
    _prepared: dict[int, list[Prepared]]
    _workspaces: dict[int, int]

    def _place(self, layout: Layout, blocks: list[Any]) -> None:
        assert isinstance(blocks, Blocks)
        self.block = self._counters = None
        self._driver = blocks.driver
        buffers = layout.program.buffers
        mine = [r for r in layout.lifetimes if buffers[r].kind in PLACED_KINDS and layout.root_stage[r] == self.number]
        placed = [r for r in mine if buffers[r].kind != "counters"]
        sizes = [self.sizes[r] or 0 for r in placed]
        offsets, total = memory.place(sizes, [layout.lifetimes[r] for r in placed])
        start, end = layout.stages[self.number]
        segments = layout.program.segments
        self._prepared = {
            i: prepare(segment, self.env, self._kernels, self._driver)
            for i, segment in enumerate(segments[start:end], start)
            if isinstance(segment, NativeSegment)
        }
        steps = [one for prepared in self._prepared.values() for one in prepared]
        # Launches overlap, so each has scratch of its own; library calls of a lane follow one another.
        scratch, own = parts([one.scratch for one in steps])
        wanted: dict[int, int] = {}
        for one in steps:
            wanted[one.step.lane] = max(wanted.get(one.step.lane, 0), one.workspace)
        workspaces, shared = parts(list(wanted.values()))
        total = -(-total // 256) * 256
        if total + own + shared:
            self.block = blocks.reserve(self.number, total + own + shared)
            base = self.block.address
            for root, offset in zip(placed, offsets, strict=True):
                self.frame.addresses[root] = base + offset
            for one, offset in zip(steps, scratch, strict=True):
                one.scratch_address = base + total + offset if one.scratch else 0
        first = self.block.address + total + own if self.block is not None else 0
        self._workspaces = {lane: first + offset for lane, offset in zip(wanted, workspaces, strict=True)}
        counters = [r for r in mine if buffers[r].kind == "counters"]
        if counters:
            offsets, total = parts([self.sizes[r] or 0 for r in counters])
            self._counters = DeviceMemory(self._driver, total)
            # Not in the run's stream: that may be recording for somebody's graph.
            queue = blocks.queue
            self._driver.zero(self._counters.address, total, queue.own)
            self._driver.synchronize(queue.own)
            for root, offset in zip(counters, offsets, strict=True):
                self.frame.addresses[root] = self._counters.address + offset

    def _bind(self, segment: Segment, index: int, layout: Layout) -> Bound | CallCode:
        if isinstance(segment, NativeSegment):
            addresses = self.frame.addresses
            prepared = self._prepared.pop(index)
            return CudaCode(
                segment, layout, self.env, self.sizes, addresses, self._kernels, prepared, self._workspaces, self._driver
            )
        return CallCode(segment, index, layout, self.env)
