"""The part of a weights program that depends on some weights: what a refit of these runs again.

What is packed of other weights stays as it is; steps of the part find it by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from dovetail.engine import memory
from dovetail.engine.plan import (
    Arg,
    Buffer,
    ControlSegment,
    KernelRef,
    NativeSegment,
    Program,
    Segment,
    Step,
    TensorRef,
)

_KEPT_RUNNERS = 8
_KEPT_BYTES = 64 << 20


class _Runner(Protocol):
    @property
    def held(self) -> int:
        """Bytes of memory that stay between runs."""


Runner = TypeVar("Runner", bound=_Runner)


@dataclass(frozen=True, slots=True)
class _Unit:
    """A step, or a segment that is not native: what it touches, by root buffer."""

    segment: int
    step: Step | None
    weights: frozenset[str]
    touched: frozenset[int]  # other buffers than weights
    written: frozenset[int]


class Dependence:
    """What each step of a program without inputs follows from.

    A kernel that does not say which of its pointers it writes (`KernelRef.writes`) may write them all.
    """

    def __init__(self, program: Program, kernels: Sequence[KernelRef]) -> None:
        self.program = program
        self._root = memory.roots(program)
        self._writes = {k.entry: k.writes for k in kernels}
        self._outputs = {self._root[p.tensor.buffer] for p in program.outputs}
        self._units = [u for i, s in enumerate(program.segments) for u in self._units_of(i, s)]
        # Symbols that a segment defines bind all that follows it.
        self._whole = any(not isinstance(s, NativeSegment) and s.defines for s in program.segments)

    def part(self, weights: Collection[str]) -> Program:
        """The steps behind all outputs that depend on some weights, with these outputs; empty where none does.

        Outputs that stay as they are and that a step reads become `packed` buffers of their names.
        """
        if self._whole:
            return self.program
        changed = self._changed(frozenset(weights))
        renewed = changed & self._outputs
        units: list[_Unit] = []
        while True:
            units = self._needed(renewed)
            # A step that is needed for one result may write another one, which then is made anew as well.
            more = frozenset(r for u in units for r in u.written if r in self._outputs)
            if more <= renewed:
                break
            renewed |= more
        return self._cut(units, renewed)

    def _units_of(self, index: int, segment: Segment) -> list[_Unit]:
        if not isinstance(segment, NativeSegment):
            inputs = self._split(r.buffer for r in segment.inputs if r is not None)
            written = frozenset(self._root[r.buffer] for r in segment.outputs if r is not None)
            names = inputs[0]
            if isinstance(segment, ControlSegment):
                names |= frozenset(n for region in segment.regions for n in weights_of(region))
            return [_Unit(index, None, names, inputs[1] | written, written)]
        found = []
        for step in segment.steps:
            writes = self._writes[step.kernel]
            names, touched = self._split(a.buffer for a in step.args)
            places = range(len(step.args)) if writes is None else writes
            written = frozenset(self._root[step.args[i].buffer] for i in places) & touched
            found.append(_Unit(index, step, names, touched, written))
        return found

    def _split(self, buffers: Iterable[int]) -> tuple[frozenset[str], frozenset[int]]:
        """Names of weights, and the other buffers, by root."""
        roots = {self._root[b] for b in buffers}
        known = self.program.buffers
        names = frozenset(known[r].name for r in roots if known[r].kind == "weight")
        return names, frozenset(r for r in roots if known[r].kind != "weight")

    def _changed(self, weights: frozenset[str]) -> frozenset[int]:
        changed: set[int] = set()
        for unit in self._units:
            if not unit.weights.isdisjoint(weights) or not unit.touched.isdisjoint(changed):
                changed |= unit.written
        return frozenset(changed)

    def _needed(self, renewed: frozenset[int]) -> list[_Unit]:
        """The units that make some outputs, in order."""
        wanted = set(renewed)
        while True:
            before = len(wanted)
            units = [u for u in reversed(self._units) if self._wants(u, wanted)]
            if len(wanted) == before:
                return units[::-1]

    def _wants(self, unit: _Unit, wanted: set[int]) -> bool:
        if unit.written.isdisjoint(wanted):
            return False
        wanted |= unit.touched - self._outputs
        return True

    def _cut(self, units: Sequence[_Unit], renewed: frozenset[int]) -> Program:
        program, root = self.program, self._root
        outputs = tuple(p for p in program.outputs if root[p.tensor.buffer] in renewed)
        used = {b for u in units for b in self._buffers_of(u)} | {p.tensor.buffer for p in outputs}
        for number in list(used):
            while (alias := program.buffers[number].alias) is not None:
                used.add(alias)
                number = alias
        names = {root[p.tensor.buffer]: p.name for p in program.outputs}
        numbers = {old: new for new, old in enumerate(sorted(used))}
        buffers = []
        for old, new in numbers.items():
            buffer = program.buffers[old]
            if old in names and old not in renewed:
                buffers.append(Buffer(new, "packed", buffer.dtype, buffer.size, names[old]))
            else:
                buffers.append(replace(buffer, id=new, alias=None if buffer.alias is None else numbers[buffer.alias]))

        def moved(ref: TensorRef | None) -> TensorRef | None:
            return None if ref is None else replace(ref, buffer=numbers[ref.buffer])

        segments: list[Segment] = []
        steps: list[Step] = []
        for unit in units:
            if unit.step is not None:
                # The steps that are left follow one another: those that others waited for may be gone.
                args = tuple(_moved_arg(a, numbers) for a in unit.step.args)
                steps.append(replace(unit.step, args=args, lane=0, waits=()))
                continue
            if steps:
                segments.append(NativeSegment(tuple(steps)))
                steps = []
            segment = program.segments[unit.segment]
            assert not isinstance(segment, NativeSegment)
            segments.append(
                replace(segment, inputs=tuple(map(moved, segment.inputs)), outputs=tuple(map(moved, segment.outputs)))
            )
        if steps:
            segments.append(NativeSegment(tuple(steps)))
        ports = tuple(replace(p, tensor=replace(p.tensor, buffer=numbers[p.tensor.buffer])) for p in outputs)
        return Program(tuple(buffers), (), ports, tuple(segments))

    def _buffers_of(self, unit: _Unit) -> list[int]:
        if unit.step is not None:
            return [a.buffer for a in unit.step.args]
        segment = self.program.segments[unit.segment]
        assert not isinstance(segment, NativeSegment)
        return [r.buffer for r in segment.inputs + segment.outputs if r is not None]


class Parts(Generic[Runner]):
    """Runners of the parts of a weights program; those of the last few refits are kept, bound and ready."""

    def __init__(self, program: Program, kernels: Sequence[KernelRef], make: Callable[[Program], Runner]) -> None:
        """`make` makes the runner of a part."""
        self._program, self._kernels, self._make = program, kernels, make
        self._dependence: Dependence | None = None
        self._runners: OrderedDict[frozenset[str], Runner] = OrderedDict()

    def runner(self, weights: Collection[str]) -> Runner:
        """The runner for what depends on some weights."""
        key = frozenset(weights)
        found = self._runners.pop(key, None)
        if found is None:
            if self._dependence is None:
                self._dependence = Dependence(self._program, self._kernels)
            found = self._make(self._dependence.part(key))
        self._runners[key] = found
        while len(self._runners) > 1 and (len(self._runners) > _KEPT_RUNNERS or self._held() > _KEPT_BYTES):
            self._runners.popitem(last=False)
        return found

    def release(self) -> None:
        """Forget all runners."""
        self._runners.clear()

    def _held(self) -> int:
        return sum(r.held for r in self._runners.values())


def weights_of(program: Program) -> frozenset[str]:
    """Names of the initializers that a program and its regions read."""
    own = frozenset(b.name for b in program.buffers if b.kind == "weight")
    regions = (r for s in program.segments if isinstance(s, ControlSegment) for r in s.regions)
    return own.union(*map(weights_of, regions))


def _moved_arg(arg: Arg, numbers: Mapping[int, int]) -> Arg:
    return replace(arg, buffer=numbers[arg.buffer])
