"""Runs the kernels of one group on memory of its own, laid out as its operand types say.

Verification and tuning use it: the group is taken out of the model, so it needs no plan. Around each
operand lies a guard zone with a fixed pattern, which shows writes outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dovetail.codegen.compiler import compile_c
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import Dim, evaluate, symbols
from dovetail.device.cpu import (
    ALIGNMENT,
    HOST_SOURCE,
    HostLibrary,
    Pool,
    aligned_bytes,
    pool,
)
from dovetail.device.cpu.host import STEP_WORDS
from dovetail.device.cpu.memory import address
from dovetail.ir.graph import Graph, Time
from dovetail.ir.types import TensorType
from dovetail.ops.infer import infer

Array = np.ndarray[Any, Any]
Sizes = Mapping[str, int]

DEFAULT_SIZE = 64
"""What tuning takes a symbol for where nobody says better."""

_GUARD_BYTES = 4 * ALIGNMENT
# As fp32 this is a NaN, so that values read from outside an operand show in the results.
_GUARD_BYTE = 0xFF


def host_pool(target: Target) -> Pool:
    """The worker pool of this process; compiles the host library if none is loaded.

    Raises:
        CompileError: no compiler.
    """
    return pool(HostLibrary.current() or HostLibrary.load(compile_c(HOST_SOURCE, target)))


@dataclass(frozen=True)
class Placed:
    """An operand in memory.

    Attributes:
        memory: all bytes, the guards included.
        array: the logical view.
        low, high: the bytes between the guards.
    """

    memory: Array
    array: Array
    low: int
    high: int

    @property
    def address(self) -> int:
        """Address of the logical element (0, 0, …), which is what kernels get."""
        return address(self.array)

    def intact(self) -> bool:
        """Whether the guards still hold their pattern."""
        before, after = self.memory[: self.low], self.memory[self.high :]
        return bool((before == _GUARD_BYTE).all() and (after == _GUARD_BYTE).all())

    @property
    def nbytes(self) -> int:
        """Bytes between the guards."""
        return self.high - self.low


def place(type_: TensorType, sizes: Sizes, data: Array | None = None) -> Placed:
    """Memory for one operand; holds `data` where given, else the guard pattern.

    Halos hold the layout's fill. The logical origin has the same distance from a cache line as in
    a plan.
    """
    kind = type_.dtype.numpy
    item = kind.itemsize
    layout = type_.placement
    shape = tuple(evaluate(d, sizes) for d in type_.shape)
    strides = tuple(evaluate(s, sizes) for s in layout.strides(type_.shape))
    halo = layout.halo if layout.halo and layout.explicit is None else ((0, 0),) * len(shape)
    first = sum(min(0, (d - 1) * s) - lo * s for d, s, (lo, _) in zip(shape, strides, halo, strict=True))
    last = sum(max(0, (d - 1) * s) + hi * s for d, s, (_, hi) in zip(shape, strides, halo, strict=True))
    if 0 in shape:
        first = last = 0
    base = evaluate(layout.base(type_.shape), sizes) * item
    # `origin` is congruent to `base` modulo a cache line, as for a buffer that starts at one.
    origin = -(-(_GUARD_BYTES - first * item) // ALIGNMENT) * ALIGNMENT + base % ALIGNMENT
    low, high = origin + first * item, origin + (last + 1) * item
    memory = aligned_bytes(high + _GUARD_BYTES)
    memory[:] = _GUARD_BYTE
    if any(lo or hi for lo, hi in halo):
        memory[low:high].view(kind)[:] = layout.fill
    array: Array = np.ndarray(shape, kind, memory, origin, tuple(s * item for s in strides))
    if data is not None:
        array[...] = data
    return Placed(memory, array, low, high)


def symbols_of(type_: TensorType) -> frozenset[str]:
    """Symbols of a type's shape and of where it lies: parts of a concat start behind their neighbours."""
    layout = type_.placement
    where = (*layout.strides(type_.shape), layout.base(type_.shape))
    return frozenset().union(*(symbols(d) for d in (*type_.shape, *where)))


def sizes_of(group: Group, given: Sizes) -> dict[str, int]:
    """The sizes to measure a group at: those `given`, else `DEFAULT_SIZE`, and 1 for symbols of first axes, which are batches."""
    sizes: dict[str, int] = {}
    for value in (*group.inputs, *group.outputs, *group.body.inputs):
        for name in sorted(symbols_of(value.tensor)):
            sizes.setdefault(name, DEFAULT_SIZE)
        for axis, d in enumerate(value.tensor.shape):
            for name in sorted(symbols(d)):
                sizes[name] = min(sizes[name], 1 if axis == 0 else DEFAULT_SIZE)
    return sizes | {k: v for k, v in given.items() if k in sizes}


def with_packs(group: Group, tactic: Tactic, config: Config, target: Target) -> Group:
    """The group as `tactic.emit` expects it: a copy of its node whose packed operands have packed types."""
    graph = Graph("launch")
    # What is known before the run stays so: kernels may read it early.
    values = [
        graph.add("Constant", (), {"name": v.name}, types=[v.type], names=[v.name]).output
        if v.time == Time.WEIGHT
        else graph.add_input(v.name, v.type)
        for v in group.inputs
    ]
    node = graph.add(
        "Fusion", values, group.node.attrs, types=[v.type for v in group.outputs],
        regions=[group.body], origin=group.node.origin,
    )  # fmt: skip
    for pack in tactic.packs(group, config, target):
        attrs = dict(pack.attrs)
        value = node.input(pack.position)
        (type_,) = infer(pack.op, (value,), attrs)
        name = f"{value.name}.packed"
        packed = graph.add("Constant", (), {"name": name}, types=[type_], names=[name], before=node).output
        graph.set_input(node, pack.position, packed if value.time == Time.WEIGHT else graph.add_input(name, type_))
    graph.update_times()
    return replace(group, node=node)


class Launch:
    """The kernels of a group bound to memory.

    Args:
        emitted: the kernels, in order.
        inputs, outputs: the group's operands.
        sizes: values of the symbols.
        find: address of a kernel entry.
    """

    def __init__(
        self,
        emitted: Emitted,
        inputs: Sequence[Placed],
        outputs: Sequence[Placed],
        sizes: Sizes,
        find: Callable[[str], int],
    ) -> None:
        self.steps = len(emitted.steps)
        temps = [aligned_bytes(evaluate(size, sizes)) for size in emitted.temps]
        self._keep: list[Any] = [temps, inputs, outputs]
        table = np.zeros((self.steps, STEP_WORDS), np.uint64)
        for row, step in enumerate(emitted.steps):
            kernel = step.kernel
            pointers = np.zeros(len(step.args) + 1, np.uint64)
            for position, operand in enumerate(step.args):
                if operand.role == "in":
                    pointers[position] = inputs[operand.index].address
                elif operand.role == "out":
                    pointers[position] = outputs[operand.index].address
                elif operand.role == "temp":
                    pointers[position] = address(temps[operand.index])
                else:
                    workspace = aligned_bytes(evaluate(kernel.workspace_bytes, sizes))
                    self._keep.append(workspace)
                    pointers[position] = address(workspace)
            dims = np.array([*(evaluate(d, sizes) for d in kernel.dims), 0], np.int64)
            self._keep += [pointers, dims]
            table[row] = (find(kernel.entry), address(pointers), address(dims), 0)
        self._table = table
        self._stamps = np.zeros(self.steps + 1, np.int64)

    def run(self, workers: Pool, threads: int) -> None:
        """Run once."""
        workers.run(address(self._table), self.steps, threads)

    def ticks(self, workers: Pool, threads: int) -> int:
        """Run once and return the ticks that the kernels took, without the call into native code."""
        workers.run(address(self._table), self.steps, threads, address(self._stamps))
        return int(self._stamps[-1] - self._stamps[0])


def amount(kernels: Sequence[Kernel], sizes: Sizes) -> tuple[int, int]:
    """(arithmetic operations, bytes moved) of one call of each kernel, as they estimate it."""

    def total(dims: Sequence[Dim]) -> int:
        return sum(evaluate(d, sizes) for d in dims)

    return total([k.flops for k in kernels]), total([k.bytes for k in kernels])
