"""Runs a program: native segments by step table, host segments by reference, control by regions.

One executor serves the weights program, the shapes program, the main program and every region.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dovetail import reference
from dovetail.core.dtypes import dtype
from dovetail.core.errors import Error, ExecutionError, PlanFormatError
from dovetail.device.cpu.host import STEP_WORDS
from dovetail.device.cpu.memory import address, aligned_bytes, aligned_empty
from dovetail.device.cpu.pool import Pool
from dovetail.engine.plan import (
    ControlSegment,
    HostSegment,
    KernelRef,
    NativeSegment,
    Program,
    SymbolDef,
    Tap,
)
from dovetail.runtime import control, nvtx
from dovetail.runtime.match import PortMatcher, outer_symbols
from dovetail.runtime.observe import Observer
from dovetail.runtime.stage import (
    Bound,
    CallCode,
    Frame,
    Layout,
    NativeCode,
    Resources,
    Stage,
    View,
)

_CACHED_SHAPES = 16

Kernels = Mapping[str, tuple[Any, KernelRef]]
"""What a step calls, by entry: an address or whatever else the device launches."""

Array = NDArray[Any]


class ProgramRunner:
    """Executes one program for one thread; caches what it binds per shape.

    `pool` gives the worker pool (looked up per run: a fork replaces it).
    """

    def __init__(self, program: Program, kernels: Kernels, pool: Callable[[], Pool] | None) -> None:
        self.program = program
        self._kernels = kernels
        self._pool = pool
        self.layout = Layout(program)
        self.matcher = PortMatcher(program.inputs)
        self._outer = tuple(
            sorted(outer_symbols(program) - self.layout.defined - self.matcher.symbols)
        )
        self._blocks: list[NDArray[np.uint8]] = []
        self._stages: dict[Any, Stage] = {}
        self._controls: dict[int, tuple[control.Control, list[ProgramRunner]]] = {}
        self._taps: dict[int, list[Tap]] = {}
        for tap in program.taps:
            self._taps.setdefault(tap.segment, []).append(tap)
        buffers = program.buffers
        root = self.layout.root
        self._input_roots = [root[p.tensor.buffer] for p in program.inputs]
        self._opaque = [p.tensor.shape is None for p in program.inputs]
        # The first output over an `output` buffer owns it; the others are copied out at the end.
        self._owner: dict[int, int] = {}
        for i, port in enumerate(program.outputs):
            kind = buffers[root[port.tensor.buffer]].kind
            if kind in ("output", "input"):
                updates = kind == "input" and buffers[port.tensor.buffer].kind == "output"
                if kind == "output" or updates:
                    self._owner.setdefault(root[port.tensor.buffer], i)
        self._owned = {i: r for r, i in self._owner.items()}
        output_roots = [root[p.tensor.buffer] for p in program.outputs]
        self._shared = {r for r in output_roots if output_roots.count(r) > 1}
        # Buffers that are looked at as arrays; kernels need addresses only.
        self._viewed = {
            root[r.buffer]
            for segment in program.segments
            if not isinstance(segment, NativeSegment)
            for r in segment.inputs + segment.outputs
            if r is not None
        }.union(output_roots)
        self._with_arrays = self.layout.needs_arrays or len(self._owner) < len(program.outputs)

    @property
    def held(self) -> int:
        """Bytes of memory that stay between runs."""
        return sum(block.nbytes for block in self._blocks)

    def lend(self, block: Any) -> None:
        """Keep the values between the steps of the first stage in `block`, where that is large enough; None: in memory of its own."""
        self._stages.clear()
        self._blocks[:] = [] if block is None else [block]

    def stage(self, shapes: tuple[Any, ...], env: Mapping[str, int]) -> Stage:
        """The first stage for these input shapes; binds it unless it is cached.

        Raises:
            ShapeError: a shape does not fit its declaration.
        """
        key = (shapes, tuple([env[s] for s in self._outer])) if self._outer else shapes
        found = self._stages.get(key)
        if found is None:
            symbols = self.matcher.match(shapes, env)
            found = self._bind(0, symbols, None)
            self._check_input_sizes(found, shapes)
            _remember(self._stages, key, found)
        return found

    def run(
        self,
        stage: Stage,
        inputs: Sequence[Any],
        outputs: Sequence[Any] | None,
        resources: Resources,
        version: int,
        threads: int,
        observer: Observer | None = None,
    ) -> list[Any]:
        """Run from `stage` on; returns the outputs in order.

        `inputs` are C-contiguous arrays of the declared dtypes (objects where opaque), `outputs`
        None or per output None, a writable C-contiguous array to fill, or a function of shape and
        dtype that makes one. `version` identifies
        `resources`: step tables are pointed to it again when it differs from the last run's.
        """
        frame = self._frame(stage, inputs, observer)
        dying = self.layout.dying
        results: list[Any] = [None] * len(self.program.outputs)
        results_of_definer: tuple[Any, ...] = ()
        while True:
            if stage.version != version:
                for native in stage.natives:
                    native.point_to(resources)
                stage.version = version
            self._allocate_outputs(stage, frame, outputs, results, inputs, observer)
            first = self.layout.stages[stage.number][0]
            if stage.pending:
                self._store(stage.pending, results_of_definer, frame, resources, "")
                if observer is not None:
                    self._tap(first - 1, None, stage, frame, resources, observer)
            for index, code in enumerate(stage.code, first):
                if isinstance(code, Bound):
                    self._native(code, stage, frame, resources, threads, observer)
                else:
                    results_of_definer = self._call(
                        code, stage, frame, resources, version, threads, observer
                    )
                    if not code.segment.defines:
                        origin = ", ".join(code.segment.origin)
                        self._store(code.outputs, results_of_definer, frame, resources, origin)
                        if observer is not None:
                            self._tap(code.index, None, stage, frame, resources, observer)
                if isinstance(code, Bound) or not code.segment.defines:
                    for root in dying[index]:
                        frame.arrays[root] = None
            if stage.number + 1 == len(self.layout.stages):
                break
            # `code` is the definer that ends the stage: its inputs are read once more.
            stage = self._next(stage, results_of_definer, code, frame, resources)
            for root in dying[index]:
                frame.arrays[root] = None
            self._join(frame, stage)
        self._collect(stage, frame, resources, outputs, results)
        return results

    # --- what depends on where memory is; `runtime.cuda.program` has other answers ---------------

    def _bind(self, number: int, env: Mapping[str, int], parent: Stage | None) -> Stage:
        return Stage(self.layout, number, env, parent, self._blocks, self._kernels)

    def _frame(self, stage: Stage, inputs: Sequence[Any], observer: Observer | None) -> Frame:
        """Where everything is when a run begins."""
        frame = Frame(stage.frame.addresses.copy(), stage.frame.arrays.copy())
        with_arrays = self._with_arrays or observer is not None
        for root, value, opaque in zip(self._input_roots, inputs, self._opaque, strict=True):
            if not opaque:
                frame.addresses[root] = address(value)
                if with_arrays and (root in self._viewed or observer is not None):
                    frame.arrays[root] = storage_of(value)
            else:
                frame.arrays[root] = value
        return frame

    def _join(self, frame: Frame, stage: Stage) -> None:
        """Add the memory that a later stage has placed."""
        frame.addresses = _merge(frame.addresses, stage.frame.addresses)
        frame.arrays = [
            new if old is None else old
            for old, new in zip(frame.arrays, stage.frame.arrays, strict=True)
        ]

    def _native(
        self,
        code: Bound,
        stage: Stage,
        frame: Frame,
        resources: Resources,
        threads: int,
        observer: Observer | None,
    ) -> None:
        assert isinstance(code, NativeCode)
        pointers, addresses = code.pointers, frame.addresses
        for at, root, offset in code.dynamic:
            pointers[at] = addresses[root] + offset
        if observer is None:
            self._launch(code.table, len(code.segment.steps), min(threads, code.team))
        else:
            self._observe(code, stage, frame, resources, threads, observer)

    def _read(self, view: View, frame: Frame, resources: Resources) -> Any:
        """A tensor as an array on the host."""
        return view.of(frame, resources)

    def _argument(self, view: View, frame: Frame, resources: Resources) -> Any:
        """An input of a control segment."""
        return self._read(view, frame, resources)

    def _arguments(
        self, region: ProgramRunner, values: Sequence[Any]
    ) -> tuple[list[Any], tuple[Any, ...]]:
        """Inputs of a region as its runner wants them, and their shapes."""
        return region.matcher.convert(values)

    def _put(self, view: View, value: Array, frame: Frame, resources: Resources) -> None:
        """Write an array of the right dtype and shape to where a tensor is."""
        if view.buffer.kind == "host":
            value = np.asarray(value, order="C")
            frame.arrays[view.root] = storage_of(value)
            frame.addresses[view.root] = address(value)
        else:
            np.copyto(view.of(frame, resources), value)

    def _region(self, program: Program) -> ProgramRunner:
        """A runner for a region of a control segment."""
        return ProgramRunner(program, self._kernels, self._pool)

    # --- native ---------------------------------------------------------------------------------

    def _launch(self, table: int, n_steps: int, threads: int, stamps: int | None = None) -> int:
        if self._pool is None:
            raise PlanFormatError(
                "plan: got native steps but no host library, expected one with the kernels; "
                "rebuild the engine"
            )
        return self._pool().run(table, n_steps, threads, stamps)

    def _observe(
        self,
        code: NativeCode,
        stage: Stage,
        frame: Frame,
        resources: Resources,
        threads: int,
        observer: Observer,
    ) -> None:
        """Run a table with stamps, in as many pieces as taps need; results stay the same."""
        steps = code.segment.steps
        index = next(i for i, s in enumerate(self.program.segments) if s is code.segment)
        start = 0
        for cut in observer.cuts(len(steps), self._taps.get(index, ())):
            stamps = np.zeros(cut - start + 1, np.int64)
            with observer.around(steps[start:cut]):
                self._launch(
                    code.table + start * 8 * STEP_WORDS,
                    cut - start,
                    min(threads, code.team),
                    address(stamps),
                )
            observer.native(steps[start:cut], stamps)
            start = cut
            self._tap(index, cut - 1, stage, frame, resources, observer)

    def _tap(
        self,
        segment: int,
        step: int | None,
        stage: Stage,
        frame: Frame,
        resources: Resources,
        observer: Observer,
    ) -> None:
        for tap in self._taps.get(segment, ()):
            if observer.wants(tap.name) and step in (None, tap.step):
                value = self._read(View(tap.tensor, self.layout, stage.env), frame, resources)
                steps = self.program.segments[segment]
                origin = (
                    steps.origin
                    if isinstance(steps, HostSegment | ControlSegment)
                    else steps.steps[tap.step].origin
                )
                observer.value(tap.name, value, origin)

    # --- host and control -----------------------------------------------------------------------

    def _call(
        self,
        code: CallCode,
        stage: Stage,
        frame: Frame,
        resources: Resources,
        version: int,
        threads: int,
        observer: Observer | None,
    ) -> tuple[Any, ...]:
        if observer is None or observer.ranges is None:
            return self._call_host(code, stage, frame, resources, version, threads, observer)
        segment = code.segment
        name = segment.kind if isinstance(segment, ControlSegment) else segment.op
        with observer.ranges.around(nvtx.host_name(segment.origin, name)):
            return self._call_host(code, stage, frame, resources, version, threads, observer)

    def _call_host(
        self,
        code: CallCode,
        stage: Stage,
        frame: Frame,
        resources: Resources,
        version: int,
        threads: int,
        observer: Observer | None,
    ) -> tuple[Any, ...]:
        segment = code.segment
        read = self._argument if isinstance(segment, ControlSegment) else self._read
        inputs = [None if v is None else read(v, frame, resources) for v in code.inputs]
        for view, value in zip(code.inputs, inputs, strict=True):
            if view is not None and view.buffer.kind in ("input", "weight", "packed", "shape"):
                _protect(value)
        start = time.perf_counter_ns() if observer is not None else 0
        since = len(observer.records) if observer is not None else 0
        results: tuple[Any, ...] = ()
        if isinstance(segment, ControlSegment):
            node, regions = self._control(code.index, segment)

            def invoke(region: int, arguments: Sequence[Any]) -> list[Any]:
                runner = regions[region]
                values, shapes = self._arguments(runner, arguments)
                inner = runner.stage(shapes, stage.env)
                return runner.run(inner, values, None, resources, version, threads, observer)

            results = node.run(inputs, invoke)
        elif segment.op != "BindSymbols":
            # The arena is reused and inputs belong to the caller: host values must stand alone.
            results = tuple(
                _detach(r, inputs) for r in _call_reference(segment, inputs, code.attrs)
            )
        if observer is not None:
            name = segment.kind if isinstance(segment, ControlSegment) else segment.op
            observer.host(segment.origin, name, time.perf_counter_ns() - start, since)
        return results

    def _control(
        self, index: int, segment: ControlSegment
    ) -> tuple[control.Control, list[ProgramRunner]]:
        found = self._controls.get(index)
        if found is None:
            regions = [self._region(r) for r in segment.regions]
            found = self._controls[index] = control.Control(segment), regions
        return found

    def _store(
        self,
        outputs: Sequence[View | None],
        results: Sequence[Any],
        frame: Frame,
        resources: Resources,
        origin: str,
    ) -> None:
        if len(outputs) > len(results):
            raise ExecutionError(
                f"{origin}: the host step returned {len(results)} values, expected {len(outputs)}"
            )
        for view, value in zip(outputs, results, strict=False):
            if view is None:
                continue
            if view.shape is None:
                frame.arrays[view.root] = value
                continue
            if not isinstance(value, np.ndarray):
                value = np.asarray(value, view.dtype)
            if value.dtype != view.dtype or value.shape != view.shape:
                raise ExecutionError(
                    f"{origin or view.buffer.name}: the host step returned {value.dtype} "
                    f"{value.shape}, expected {view.dtype} {view.shape}"
                )
            self._put(view, value, frame, resources)

    def _next(
        self,
        stage: Stage,
        results: Sequence[Any],
        code: Bound | CallCode,
        frame: Frame,
        resources: Resources,
    ) -> Stage:
        assert isinstance(code, CallCode)
        segment = code.segment
        values = [self._defined(d, code, results, frame, resources) for d in segment.defines]
        key = tuple(values)
        child = stage.children.get(key)
        if child is None:
            env = dict(stage.env)
            for definition, value in zip(segment.defines, values, strict=True):
                env[definition.symbol] = value
            number = stage.number + 1
            child = self._bind(number, env, stage)
            _remember(stage.children, key, child)
        return child

    def _defined(
        self,
        definition: SymbolDef,
        code: CallCode,
        results: Sequence[Any],
        frame: Frame,
        resources: Resources,
    ) -> int:
        where = ", ".join(code.segment.origin) or "program"
        if definition.output is not None:
            return int(np.shape(results[definition.output])[definition.index])
        view = code.inputs[0]
        flat = np.empty(0) if view is None else np.asarray(self._read(view, frame, resources)).reshape(-1)
        if definition.index >= flat.size:
            raise ExecutionError(
                f"{where}: got {flat.size} values, expected at least {definition.index + 1} "
                f"to define the dimension {definition.symbol}"
            )
        value = int(flat[definition.index])
        if value < 0:
            raise ExecutionError(
                f"{where}: got {value} for the dimension {definition.symbol}, expected a "
                "non-negative value; the input data do not fit this model"
            )
        return value

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
        with_arrays = self._with_arrays or observer is not None
        for i, view in stage.outputs:
            root = self._owned.get(i)
            if root is None:
                continue
            given = None if outputs is None else outputs[i]
            if view.buffer.kind == "input":  # the output updates the caller's array in place
                results[i] = inputs[self._input_roots.index(root)]
                continue
            if view.whole and view.nbytes == stage.sizes[root]:
                assert view.shape is not None
                if callable(given):
                    array = given(view.shape, view.dtype)
                elif given is not None:
                    array = given
                elif view.dtype.hasobject:
                    array = np.empty(view.shape, view.dtype)
                else:
                    array = aligned_empty(view.shape, view.dtype)
                results[i] = array
            else:  # a part of its buffer, or padded: copied out at the end
                array = aligned_bytes(stage.sizes[root] or 0)
            frame.addresses[root] = address(array)
            if with_arrays or results[i] is None:
                frame.arrays[root] = storage_of(array)

    def _collect(
        self,
        stage: Stage,
        frame: Frame,
        resources: Resources,
        outputs: Sequence[Any] | None,
        results: list[Any],
    ) -> None:
        """Fill the results that no output buffer holds."""
        for i, result in enumerate(results):
            if result is not None:
                continue
            view = stage.result(i)
            value = self._read(view, frame, resources)
            given = None if outputs is None else outputs[i]
            if callable(given) and view.shape is not None:
                given = given(view.shape, view.dtype)
            if given is not None and view.shape is not None:
                np.copyto(given, value)
                results[i] = given
            elif view.shape is None or (
                view.buffer.kind == "host" and view.whole and view.root not in self._shared
            ):
                results[i] = value
            else:
                results[i] = np.array(value, order="C")

    def _check_input_sizes(self, stage: Stage, shapes: tuple[Any, ...]) -> None:
        for root, port, shape in zip(self._input_roots, self.program.inputs, shapes, strict=True):
            size = stage.sizes[root]
            if shape is None or port.tensor.dtype == "str":
                continue
            given = dtype(port.tensor.dtype).itemsize
            for extent in shape:
                given *= extent
            if size is None or size > given:
                raise PlanFormatError(
                    f"plan: input {port.name!r} of {given} bytes is used as {size} bytes; "
                    "rebuild the engine"
                )


def _merge(old: list[int], new: list[int]) -> list[int]:
    return [a or b for a, b in zip(old, new, strict=True)]


def storage_of(array: Array) -> Array:
    """The memory of a C-contiguous array as a uint8 vector; object arrays as they are."""
    if array.dtype == object:
        return array
    return array.reshape(-1).view(np.uint8)


def _protect(value: Any) -> None:
    if isinstance(value, np.ndarray) and value.base is not None:
        value.flags.writeable = False


def _detach(value: Any, inputs: Sequence[Any]) -> Any:
    """The value, copied where it might share memory with one of the inputs."""
    if isinstance(value, list | tuple):
        return type(value)([_detach(v, inputs) for v in value])
    if isinstance(value, np.ndarray):
        for other in inputs:
            if isinstance(other, np.ndarray) and np.may_share_memory(value, other):
                return np.array(value, order="C")
    return value


def _call_reference(
    segment: HostSegment, inputs: Sequence[Any], attrs: Mapping[str, Any]
) -> tuple[Any, ...]:
    function = reference.lookup(segment.op)
    try:
        result = function(*inputs, **attrs)
    except Exception as error:
        what = str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"
        raise ExecutionError(
            f"{', '.join(segment.origin) or 'program'}: host step {segment.op} failed ({what})"
        ) from error
    return result if isinstance(result, tuple) else (result,)


def _remember(cache: dict[Any, Stage], key: Any, stage: Stage) -> None:
    """Keep the newest `_CACHED_SHAPES` entries; dicts keep insertion order."""
    while len(cache) >= _CACHED_SHAPES:
        del cache[next(iter(cache))]
    cache[key] = stage
