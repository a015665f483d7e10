"""Binds a stage of a program: evaluates sizes, places memory, fills step tables.

Data-dependent symbols split a program into *stages*: a stage ends with the segment that defines
symbols, and the next one is bound when their values are known. Most programs have one stage.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail.core.dims import run_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import ExecutionError, PlanFormatError
from dovetail.device.cpu.host import NO_BARRIER, STEP_WORDS
from dovetail.device.cpu.memory import address, aligned_bytes
from dovetail.device.cpu.pool import MAX_THREADS
from dovetail.engine import memory, order
from dovetail.engine.plan import (
    Arg,
    Attr,
    Buffer,
    ControlSegment,
    DimAttr,
    HostSegment,
    KernelRef,
    NativeSegment,
    Postfix,
    Program,
    Segment,
    Step,
    TensorRef,
)

STATIC_KINDS = ("weight", "packed", "shape")
_PLACED_KINDS = ("arena", "workspace")
_MAX_BYTES = 1 << 46


def symbols_of(program: Postfix) -> frozenset[str]:
    """Names of the symbols that a postfix program reads."""
    return frozenset(t[1:] for t in program if isinstance(t, str) and t.startswith("$"))


class Layout:
    """What is known of a program before shapes: storage roots, lifetimes, stages."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.root = memory.roots(program)
        self.lifetimes = memory.lifetimes(program)
        self.stages: list[tuple[int, int]] = []
        stage_of: dict[str, int] = {}
        start = 0
        for index, segment in enumerate(program.segments):
            if not isinstance(segment, NativeSegment) and segment.defines:
                self.stages.append((start, index + 1))
                start = index + 1
                for definition in segment.defines:
                    stage_of.setdefault(definition.symbol, len(self.stages))
        self.stages.append((start, len(program.segments)))
        self.defined = frozenset(stage_of)

        def stage(*programs: Postfix) -> int:
            names = frozenset[str]().union(*map(symbols_of, programs))
            return max((stage_of.get(n, 0) for n in names), default=0)

        self.size_stage = [stage(b.size) for b in program.buffers]
        # A root must wait until the sizes of all that share its storage are known.
        root_stage = list(self.size_stage)
        for buffer in program.buffers:
            root = self.root[buffer.id]
            root_stage[root] = max(root_stage[root], self.size_stage[buffer.id])
        self.root_stage = root_stage
        self.port_stage = [stage(*(p.tensor.shape or ())) for p in program.outputs]
        self.dying = self._last_uses()
        # Native-only programs with direct outputs never look at arrays, only at addresses.
        self.needs_arrays = any(not isinstance(s, NativeSegment) for s in program.segments)

    def _last_uses(self) -> list[tuple[int, ...]]:
        """Per segment the host buffers that nothing reads after it, so that they can be freed."""
        buffers = self.program.buffers
        last: dict[int, int] = {}
        for index, segment in enumerate(self.program.segments):
            if isinstance(segment, NativeSegment):
                used = [arg.buffer for step in segment.steps for arg in step.args]
            else:
                used = [r.buffer for r in segment.inputs + segment.outputs if r is not None]
            last.update((self.root[b], index) for b in used)
        for port in self.program.outputs:
            last.pop(self.root[port.tensor.buffer], None)
        dying: list[list[int]] = [[] for _ in self.program.segments]
        for root, index in last.items():
            if buffers[root].kind == "host":
                dying[index].append(root)
        return [tuple(d) for d in dying]


@dataclass(slots=True)
class Frame:
    """State of one run: where each buffer is. Indexed by root buffer id.

    `arrays` holds uint8 vectors, object arrays, or for opaque host values the object itself.
    """

    addresses: list[int]
    arrays: list[Any]


class Resources:
    """Read-only data that programs find by name: weights, packed weights, shape results."""

    __slots__ = ("maps",)

    def __init__(
        self,
        weights: Mapping[str, NDArray[Any]],
        packed: Mapping[str, NDArray[Any]],
        shapes: Mapping[str, NDArray[Any]],
    ) -> None:
        self.maps = {"weight": weights, "packed": packed, "shape": shapes}

    def find(self, buffer: Buffer) -> NDArray[Any]:
        """The array behind a static buffer.

        Raises:
            PlanFormatError: nothing has that name.
        """
        try:
            return self.maps[buffer.kind][buffer.name]
        except KeyError:
            raise PlanFormatError(
                f"plan: got a {buffer.kind} buffer named {buffer.name!r}, expected one of the "
                f"{len(self.maps[buffer.kind])} known names; rebuild the engine"
            ) from None


class View:
    """A `TensorRef` with its shape, strides and offset evaluated."""

    __slots__ = ("buffer", "dtype", "nbytes", "offset", "root", "shape", "static", "strides", "whole")

    def __init__(self, ref: TensorRef, layout: Layout, env: Mapping[str, int]) -> None:
        self.root = layout.root[ref.buffer]
        self.buffer = layout.program.buffers[self.root]
        self.static = self.buffer.kind in STATIC_KINDS
        numpy = dtype(ref.dtype).numpy
        self.dtype: np.dtype[Any] = numpy
        self.shape: tuple[int, ...] | None = None
        self.strides: tuple[int, ...] | None = None
        self.offset = 0
        if ref.shape is not None:
            self.shape = tuple(run_program(d, env) for d in ref.shape)
            if min(self.shape, default=0) < 0:
                raise ExecutionError(
                    f"{self.buffer.name or 'tensor'}: got the shape {self.shape}, expected "
                    "non-negative extents; the input shapes do not fit this model"
                )
            self.offset = run_program(ref.offset, env) * numpy.itemsize
            if ref.strides is not None:
                self.strides = tuple(run_program(s, env) * numpy.itemsize for s in ref.strides)
        # Bytes of the dense tensor, and whether it starts its buffer and is dense.
        self.nbytes = numpy.itemsize * math.prod(self.shape or ())
        self.whole = self.shape is not None and self.strides is None and self.offset == 0

    def of(self, frame: Frame, resources: Resources) -> Any:
        """The tensor as an array over the buffer's memory, or an opaque host value."""
        storage = resources.find(self.buffer) if self.static else frame.arrays[self.root]
        if self.shape is None:
            return storage
        if storage is None:
            raise PlanFormatError(
                f"plan: buffer {self.root} ({self.buffer.name or self.buffer.kind}) is read before "
                "it is written; rebuild the engine"
            )
        if storage.dtype == object:
            return storage.reshape(self.shape)
        try:
            return np.ndarray(self.shape, self.dtype, storage, self.offset, self.strides)
        except (TypeError, ValueError) as error:
            raise PlanFormatError(
                f"plan: a tensor of shape {self.shape} leaves buffer {self.root} of "
                f"{storage.nbytes} bytes ({error}); rebuild the engine"
            ) from error


class Bound(ABC):
    """A native segment bound to shapes: what it launches, once it knows where the weights are."""

    __slots__ = ("segment",)

    def __init__(self, segment: NativeSegment) -> None:
        self.segment = segment

    @abstractmethod
    def point_to(self, resources: Resources) -> None:
        """Fill in the addresses of weights and shape results."""


class NativeCode(Bound):
    """A native segment with its step table filled in."""

    __slots__ = ("_keep", "dims", "dynamic", "pointers", "static", "table", "team")

    def __init__(
        self,
        segment: NativeSegment,
        layout: Layout,
        env: Mapping[str, int],
        sizes: Sequence[int | None],
        base: Sequence[int],
        kernels: Mapping[str, tuple[int, KernelRef]],
    ) -> None:
        super().__init__(segment)
        n_pointers = sum(len(s.args) for s in segment.steps)
        n_dims = sum(len(s.dims) for s in segment.steps)
        pointers = np.zeros(n_pointers + 1, np.uint64)
        dims = np.zeros(n_dims + 1, np.int64)
        table = np.zeros((len(segment.steps), STEP_WORDS), np.uint64)
        self.dynamic: list[tuple[int, int, int]] = []  # pointer, root buffer, byte offset
        self.static: list[tuple[int, Buffer, int, int]] = []  # pointer, buffer, offset, need
        self.team = 1
        barriers = order.barriers(segment.steps)
        at, dim_at = 0, 0
        for row, step in enumerate(segment.steps):
            entry, kernel = kernels[step.kernel]
            values = [run_program(d, env) for d in step.dims]
            reach = extents_of(kernel, values)
            table[row] = (
                entry,
                address(pointers) + 8 * at,
                address(dims) + 8 * dim_at,
                (0 if barriers[row] else NO_BARRIER) | step.max_threads << 32,
            )
            dims[dim_at : dim_at + len(values)] = values
            dim_at += len(values)
            self.team = max(self.team, step.max_threads or MAX_THREADS)
            for position, arg in enumerate(step.args):
                root = layout.root[arg.buffer]
                buffer = layout.program.buffers[root]
                offset, size = reached(step, arg, env, sizes, reach[position] if reach else 0)
                if buffer.kind in STATIC_KINDS:
                    self.static.append((at, buffer, offset, size))
                elif buffer.kind in _PLACED_KINDS:
                    pointers[at] = base[root] + offset
                else:
                    self.dynamic.append((at, root, offset))
                at += 1
        # The table holds raw addresses: keep what they point to.
        self._keep = (pointers, dims, table)
        self.pointers = pointers.data
        self.dims = dims
        self.table = address(table)

    def point_to(self, resources: Resources) -> None:
        """Fill in the addresses of weights and shape results."""
        for at, buffer, offset, size in self.static:
            array = resources.find(buffer)
            if array.nbytes < size:
                raise PlanFormatError(
                    f"plan: {buffer.kind} {buffer.name!r} has {array.nbytes} bytes, expected "
                    f"{size}; rebuild the engine"
                )
            self.pointers[at] = address(array) + offset


def reached(
    step: Step, arg: Arg, env: Mapping[str, int], sizes: Sequence[int | None], need: int
) -> tuple[int, int]:
    """Byte offset of an argument and the size of its buffer.

    Raises:
        PlanFormatError: the kernel would leave the buffer.
    """
    offset = run_program(arg.offset, env)
    size = sizes[arg.buffer]
    if size is None or not 0 <= offset <= size or offset + need > size:
        raise PlanFormatError(
            f"plan: step {step.kernel} of {', '.join(step.origin) or 'the program'} reaches bytes "
            f"{offset} to {offset + need} of buffer {arg.buffer} of {size} bytes; rebuild the engine"
        )
    return offset, size


def extents_of(kernel: KernelRef, dims: Sequence[int]) -> list[int] | None:
    """Bytes that a kernel touches from each pointer, where it is known."""
    if kernel.extents is None:
        return None
    env = {f"d{i}": value for i, value in enumerate(dims)}
    return [run_program(e, env) for e in kernel.extents]


class CallCode:
    """A host or control segment with attributes and inputs evaluated.

    Outputs belong to the next stage where the segment defines symbols: see `Stage.pending`.
    """

    __slots__ = ("attrs", "index", "inputs", "outputs", "segment")

    def __init__(
        self,
        segment: HostSegment | ControlSegment,
        index: int,
        layout: Layout,
        env: Mapping[str, int],
    ) -> None:
        self.segment = segment
        self.index = index
        self.inputs = views(segment.inputs, layout, env)
        self.outputs = () if segment.defines else views(segment.outputs, layout, env)
        attrs = segment.attrs if isinstance(segment, HostSegment) else {}
        self.attrs = {k: evaluate_attr(v, env) for k, v in attrs.items()}


def views(
    refs: Sequence[TensorRef | None], layout: Layout, env: Mapping[str, int]
) -> tuple[View | None, ...]:
    """Evaluate tensor references; None stays None."""
    return tuple(None if r is None else View(r, layout, env) for r in refs)


def evaluate_attr(value: Attr, env: Mapping[str, int]) -> Any:
    """An attribute with its dimensions as ints."""
    if isinstance(value, DimAttr):
        return run_program(value.program, env)
    if isinstance(value, tuple):
        return tuple(evaluate_attr(v, env) for v in value)
    return value


class Stage:
    """One stage of a program, bound to values of its symbols.

    `pending` are the outputs of the segment that ended the stage before.
    """

    def __init__(
        self,
        layout: Layout,
        number: int,
        env: Mapping[str, int],
        parent: Stage | None,
        blocks: list[Any],
        kernels: Mapping[str, tuple[Any, KernelRef]],
    ) -> None:
        program = layout.program
        self.number = number
        self.env = dict(env)
        self._kernels = kernels
        self.version = -1  # of the weights that the step tables point to
        # Results of the shapes program: weights' version, arrays by name, token of the pair.
        self.shapes: tuple[int, Mapping[str, NDArray[Any]], int] | None = None
        self.children: dict[tuple[int, ...], Stage] = {}
        count = len(program.buffers)
        self.sizes: list[int | None] = list(parent.sizes) if parent else [None] * count
        self.frame: Frame = Frame(
            list(parent.frame.addresses) if parent else [0] * count,
            list(parent.frame.arrays) if parent else [None] * count,
        )
        for buffer in program.buffers:
            if layout.size_stage[buffer.id] == number:
                self.sizes[buffer.id] = _size(buffer, self.env)
        self._check_aliases(layout)
        self._place(layout, blocks)
        start, end = layout.stages[number]
        self.pending: tuple[View | None, ...] = ()
        if number:
            definer = program.segments[start - 1]
            assert not isinstance(definer, NativeSegment)
            self.pending = views(definer.outputs, layout, self.env)
        self.code: list[Bound | CallCode] = [
            self._bind(program.segments[i], i, layout) for i in range(start, end)
        ]
        self.natives = [c for c in self.code if isinstance(c, Bound)]
        self.outputs = [
            (i, View(port.tensor, layout, self.env))
            for i, port in enumerate(program.outputs)
            if layout.port_stage[i] == number
        ]
        self._results: dict[int, View] = dict(parent._results) if parent else {}
        self._results.update(self.outputs)

    def result(self, index: int) -> View:
        """The tensor of an output of the program; its shape is known by the last stage."""
        return self._results[index]

    def _bind(
        self,
        segment: Segment,
        index: int,
        layout: Layout,
    ) -> Bound | CallCode:
        if isinstance(segment, NativeSegment):
            addresses = self.frame.addresses
            return NativeCode(segment, layout, self.env, self.sizes, addresses, self._kernels)
        return CallCode(segment, index, layout, self.env)

    def _check_aliases(self, layout: Layout) -> None:
        for buffer in layout.program.buffers:
            size, whole = self.sizes[buffer.id], self.sizes[layout.root[buffer.id]]
            if size is not None and whole is not None and size > whole:
                raise PlanFormatError(
                    f"plan: buffer {buffer.id} of {size} bytes shares the storage of buffer "
                    f"{layout.root[buffer.id]} of {whole} bytes; rebuild the engine"
                )

    def _place(self, layout: Layout, blocks: list[Any]) -> None:
        buffers = layout.program.buffers
        placed = [
            root
            for root in layout.lifetimes
            if buffers[root].kind in _PLACED_KINDS and layout.root_stage[root] == self.number
        ]
        if not placed:
            return
        sizes = [self.sizes[root] or 0 for root in placed]
        offsets, total = memory.place(sizes, [layout.lifetimes[root] for root in placed])
        while len(blocks) <= self.number:
            blocks.append(aligned_bytes(0))
        # One block per stage serves all shapes; stages bound to a smaller one keep that alive.
        if blocks[self.number].nbytes < total:
            blocks[self.number] = aligned_bytes(total)
        block = blocks[self.number]
        for root, offset, size in zip(placed, offsets, sizes, strict=True):
            self.frame.arrays[root] = block[offset : offset + size]
            self.frame.addresses[root] = address(block) + offset


def _size(buffer: Buffer, env: Mapping[str, int]) -> int:
    size = run_program(buffer.size, env) * dtype(buffer.dtype).itemsize
    if not 0 <= size <= _MAX_BYTES:
        raise ExecutionError(
            f"{buffer.name or 'buffer'}: got a size of {size} bytes, expected 0 to {_MAX_BYTES}; "
            "the input shapes do not fit this model"
        )
    return size
