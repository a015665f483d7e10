"""Checks what a plan means: ids in range, names known, every value written before it is read.

Decoding (`engine.codec`) has checked types and sizes. What depends on shapes (offsets, views,
extents) is checked at binding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dovetail.core.dtypes import DTYPES
from dovetail.core.errors import PlanFormatError
from dovetail.engine import order
from dovetail.engine.plan import (
    Attr,
    ControlSegment,
    DimAttr,
    HostSegment,
    KernelRef,
    NativeSegment,
    Plan,
    Port,
    Postfix,
    Program,
    Segment,
    Step,
    TensorRef,
)

_MAX_RANK = 32
_MAX_NESTING = 16
_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def check(plan: Plan) -> None:
    """Check a plan.

    Raises:
        PlanFormatError: where it contradicts itself.
    """
    kernels: dict[str, KernelRef] = {}
    for kernel in plan.kernels:
        where = f"plan.kernels[{kernel.entry[:40]!r}]"
        _expect(_ENTRY.fullmatch(kernel.entry) is not None, where, "a C identifier")
        _expect(kernel.entry not in kernels, where, "a name of its own")
        _expect(0 <= kernel.pointers <= 1024 and 0 <= kernel.dims <= 1024, where, "sane counts")
        if kernel.extents is not None:
            _expect(len(kernel.extents) == kernel.pointers, where, "an extent per pointer")
            names = {f"d{i}" for i in range(kernel.dims)}
            for extent in kernel.extents:
                _expect(_names(extent) <= names, where, "extents over its dims")
        if kernel.writes is not None:
            _expect(list(kernel.writes) == sorted(set(kernel.writes)), where, "distinct positions in order as what it writes")
            _expect(all(0 <= w < kernel.pointers for w in kernel.writes), where, "what it writes among its pointers")
        _launch(kernel, where)
        kernels[kernel.entry] = kernel
    _distinct((w.name for w in plan.weights), "plan.weights")
    for spec in plan.weights:
        where = f"plan.weights[{spec.name[:60]!r}]"
        _expect(spec.dtype in DTYPES, where, "a known dtype")
        _expect(len(spec.shape) <= _MAX_RANK, where, f"at most rank {_MAX_RANK}")
        _expect(min(spec.shape, default=0) >= 0, where, "non-negative extents")
    weights = {w.name for w in plan.weights}
    for guard in plan.guards:
        _expect(guard.weight in weights, f"plan.guards[{guard.weight[:60]!r}]", "a weight's name")
    _distinct((s.name for s in plan.symbols), "plan.symbols")
    for symbol in plan.symbols:
        upper = symbol.lower if symbol.upper is None else symbol.upper
        where = f"plan.symbols[{symbol.name[:60]!r}]"
        _expect(0 <= symbol.lower <= upper, where, "0 <= lower <= upper")
    static = {"weight": weights, "packed": set[str](), "shape": set[str]()}
    _expect(not plan.weights_program.inputs, "plan.weights_program", "no inputs")
    _Checker(kernels, static).program(plan.weights_program, set(), "plan.weights_program", 0)
    static["packed"] = {p.name for p in plan.weights_program.outputs}
    _expect(not plan.shapes_program.inputs, "plan.shapes_program", "no inputs")
    symbols = {s for p in plan.main.inputs for d in p.tensor.shape or () for s in _names(d)}
    _Checker(kernels, static).program(plan.shapes_program, symbols, "plan.shapes_program", 0)
    static["shape"] = {p.name for p in plan.shapes_program.outputs}
    _Checker(kernels, static).program(plan.main, set(), "plan.main", 0)


def _launch(kernel: KernelRef, where: str) -> None:
    """Bounds on what is handed to the driver."""
    launch = kernel.launch
    _expect(kernel.library in ("", "cublaslt", "cudnn"), where, "a known library")
    _expect(not (kernel.library and launch), where, "a kernel or a library call")
    if launch is None:
        return
    _expect(0 < launch.threads <= 1024 and launch.threads % 32 == 0, where, "32 to 1024 threads in warps")
    _expect(0 <= launch.shared <= 232448, where, "at most 227 KiB of shared memory")
    _expect(0 <= launch.scratch <= 1 << 20 and 0 < launch.scratch_align <= 4096, where, "at most 1 MiB of scratch a block")
    _expect(1 <= launch.cluster <= 16, where, "clusters of 1 to 16 blocks")
    _expect(len(launch.descriptors) <= kernel.pointers, where, "at most one descriptor per parameter")


class _Checker:
    """Walks programs; `static` holds the names that weight, packed and shape buffers may have."""

    def __init__(self, kernels: dict[str, KernelRef], static: dict[str, set[str]]) -> None:
        self._kernels = kernels
        self._static = static

    def program(self, program: Program, outer: set[str], where: str, depth: int) -> None:
        _expect(depth <= _MAX_NESTING, where, f"at most {_MAX_NESTING} nested regions")
        roots = self._buffers(program, where)
        _distinct((p.name for p in program.inputs), f"{where}.inputs")
        _distinct((p.name for p in program.outputs), f"{where}.outputs")
        known = set(outer)
        written: set[int] = set()
        for i, port in enumerate(program.inputs):
            self._port(port, program, f"{where}.inputs[{i}]")
            buffer = program.buffers[port.tensor.buffer]
            _expect(buffer.kind == "input", f"{where}.inputs[{i}]", "an input buffer")
            _expect(buffer.id not in written, f"{where}.inputs[{i}]", "a buffer of its own")
            written.add(buffer.id)
            for dim in port.tensor.shape or ():
                if len(dim) == 1:
                    known |= _names(dim)
        for i, port in enumerate(program.inputs):
            _symbols(port.tensor.shape or (), known, f"{where}.inputs[{i}]")
        for i, port in enumerate(program.outputs):
            self._port(port, program, f"{where}.outputs[{i}]")
        owned = {roots[p.tensor.buffer] for p in program.outputs}
        for buffer in program.buffers:
            at = f"{where}.buffers[{buffer.id}]"
            if buffer.id == roots[buffer.id]:
                if buffer.kind in self._static:
                    written.add(buffer.id)
                    _expect(
                        buffer.name in self._static[buffer.kind],
                        at,
                        f"the name of a {buffer.kind} value, got {buffer.name[:60]!r}",
                    )
                elif buffer.kind == "input":
                    _expect(buffer.id in written, at, "an input port over it")
                elif buffer.kind == "output":
                    _expect(buffer.id in owned, at, "an output port over it")
        for i, segment in enumerate(program.segments):
            self._segment(segment, program, roots, known, written, f"{where}.segments[{i}]", depth)
        for i, port in enumerate(program.outputs):
            at = f"{where}.outputs[{i}]"
            self._ref_symbols(port.tensor, known, at)
            self._available(port.tensor, program, roots, written, at)
        for buffer in program.buffers:
            _symbols((buffer.size,), known, f"{where}.buffers[{buffer.id}]")
        for i, tap in enumerate(program.taps):
            at = f"{where}.taps[{i}]"
            self._ref(tap.tensor, program, at)
            _expect(0 <= tap.segment < len(program.segments), at, "a segment of the program")
            inside = program.segments[tap.segment]
            steps = len(inside.steps) if isinstance(inside, NativeSegment) else 1
            _expect(0 <= tap.step < steps, at, "a step of the segment")

    def _buffers(self, program: Program, where: str) -> list[int]:
        roots = []
        for i, buffer in enumerate(program.buffers):
            at = f"{where}.buffers[{i}]"
            _expect(buffer.id == i, at, "its position as id")
            _expect(buffer.dtype in DTYPES, at, "a known dtype")
            root, seen = i, {i}
            while (alias := program.buffers[root].alias) is not None:
                _expect(0 <= alias < len(program.buffers), at, "a buffer as alias")
                _expect(alias not in seen, at, "aliases without a cycle")
                seen.add(alias)
                root = alias
            if root != i:
                updates = buffer.kind == "output" and program.buffers[root].kind == "input"
                shares = buffer.kind in ("arena", "workspace", "output")
                writable = program.buffers[root].kind in ("arena", "workspace", "output")
                _expect(updates or (shares and writable), at, "an alias of writable storage")
            roots.append(root)
        return roots

    def _segment(
        self,
        segment: Segment,
        program: Program,
        roots: Sequence[int],
        known: set[str],
        written: set[int],
        where: str,
        depth: int,
    ) -> None:
        if isinstance(segment, NativeSegment):
            for i, step in enumerate(segment.steps):
                at = f"{where}.steps[{i}]"
                kernel = self._kernels.get(step.kernel)
                if kernel is None:
                    raise _error(at, f"a kernel of the plan, got {step.kernel[:60]!r}")
                _expect(len(step.args) == kernel.pointers, at, f"{kernel.pointers} arguments")
                _expect(len(step.dims) == kernel.dims, at, f"{kernel.dims} dims")
                _expect(0 <= step.max_threads <= 64, at, "max_threads of 0 to 64")
                _expect(len(step.grid) == (3 if kernel.launch is not None else 0), at, "a grid for a kernel of a GPU, and for no other")
                _symbols((*step.dims, *step.grid), known, at)
                for arg in step.args:
                    _expect(0 <= arg.buffer < len(roots), at, "buffers of the program")
                    _symbols((arg.offset,), known, at)
                    if arg.map is not None:
                        rank = len(arg.map.shape)
                        _expect(1 <= rank <= 5 and rank == len(arg.map.strides) == len(arg.map.block), at, "a map of one rank, 1 to 5")
                        _expect(all(0 < b <= 1024 for b in arg.map.block), at, "tiles of 1 to 1024 elements an axis")
                        _symbols((*arg.map.shape, *arg.map.strides), known, at)
                    root = roots[arg.buffer]
                    kind = program.buffers[root].kind
                    if kind == "host":
                        _expect(root in written, at, f"host buffer {root} to be written before")
                    _expect(program.buffers[root].dtype != "str", at, "numbers")
                    written.add(root)
            self._order(segment.steps, program, roots, where)
            return
        for i, ref in enumerate(segment.inputs):
            if ref is not None:
                at = f"{where}.inputs[{i}]"
                self._ref(ref, program, at)
                self._ref_symbols(ref, known, at)
                self._available(ref, program, roots, written, at)
        if isinstance(segment, HostSegment):
            for value in segment.attrs.values():
                _symbols(_dims_of(value), known, f"{where}.attrs")
            if segment.op == "BindSymbols":
                _expect(not segment.outputs, where, "no outputs")
                _expect(all(d.output is None for d in segment.defines), where, "values as sources")
        else:
            self._control(segment, known, where, depth)
        for definition in segment.defines:
            _expect(definition.symbol not in known, where, "symbols that are new")
            _expect(0 <= definition.index < 1 << 20, where, "a sane index")
            if definition.output is None:
                _expect(bool(segment.inputs) and segment.inputs[0] is not None, where, "an input")
            else:
                _expect(0 <= definition.output < len(segment.outputs), where, "one of its outputs")
        known.update(d.symbol for d in segment.defines)
        for i, ref in enumerate(segment.outputs):
            if ref is None:
                continue
            at = f"{where}.outputs[{i}]"
            self._ref(ref, program, at)
            self._ref_symbols(ref, known, at)
            kind = program.buffers[roots[ref.buffer]].kind
            _expect(kind in ("arena", "output", "host", "workspace", "input"), at, "writable")
            if kind == "input":
                _expect(program.buffers[ref.buffer].kind == "output", at, "an in-place output")
            if kind == "host" and ref.shape is not None:
                _expect(ref.strides is None and ref.offset == (0,), at, "a whole host buffer")
            written.add(roots[ref.buffer])

    def _order(self, steps: Sequence[Step], program: Program, roots: Sequence[int], where: str) -> None:
        """Lanes and waits that name steps, and that order all steps which cannot run at the same time."""
        for i, step in enumerate(steps):
            at = f"{where}.steps[{i}]"
            _expect(0 <= step.lane < order.MAX_LANES, at, f"a lane of 0 to {order.MAX_LANES - 1}")
            _expect(list(step.waits) == sorted(set(step.waits)), at, "distinct waits in order")
            _expect(all(0 <= w < i and steps[w].lane != step.lane for w in step.waits), at, "waits for earlier steps of other lanes")
        if order.lanes_of(steps) == 1:
            return
        clocks = order.clocks(steps)
        for earlier, later in order.conflicts(order.uses(steps, program.buffers, roots, self._kernels)):
            if not clocks.precedes(earlier, later):
                raise _error(f"{where}.steps[{later}]", f"to follow step {earlier}, with which it shares memory that one of them writes")

    def _control(self, segment: ControlSegment, known: set[str], where: str, depth: int) -> None:
        carried, count = segment.carried, len(segment.inputs)
        _expect(carried >= 0 and segment.scan_inputs >= 0, where, "non-negative counts")
        _expect(len(segment.regions) == (2 if segment.kind == "If" else 1), where, "its regions")
        outputs = len(segment.outputs)
        if segment.kind == "If":
            _expect(count >= 1 and segment.inputs[0] is not None, where, "a condition")
            arguments, results = count - 1, outputs
        elif segment.kind == "Loop":
            _expect(count >= 2 + carried and outputs >= carried, where, "carried values")
            arguments, results = count, outputs + 1
        else:
            scans = segment.scan_inputs
            _expect(scans >= 1 and count >= carried + scans, where, "scan inputs")
            _expect(outputs >= carried, where, "final states")
            axes = (segment.scan_input_axes, segment.scan_input_directions)
            _expect(all(len(a) == scans for a in axes), where, "an axis per scan input")
            axes = (segment.scan_output_axes, segment.scan_output_directions)
            _expect(all(len(a) == outputs - carried for a in axes), where, "an axis per output")
            arguments, results = count, outputs
        for i, region in enumerate(segment.regions):
            at = f"{where}.regions[{i}]"
            _expect(len(region.inputs) == arguments, at, f"{arguments} inputs")
            _expect(len(region.outputs) == results, at, f"{results} outputs")
            self.program(region, known, at, depth + 1)

    def _available(
        self,
        ref: TensorRef,
        program: Program,
        roots: Sequence[int],
        written: set[int],
        where: str,
    ) -> None:
        _expect(roots[ref.buffer] in written, where, f"buffer {ref.buffer} to be written before")

    def _port(self, port: Port, program: Program, where: str) -> None:
        self._ref(port.tensor, program, where)
        _expect(len(port.name) <= 4096, where, "a shorter name")
        rank = len(port.tensor.shape or ())
        _expect(not port.order or sorted(port.order) == list(range(rank)), where, "an order of all axes")

    def _ref(self, ref: TensorRef, program: Program, where: str) -> None:
        _expect(0 <= ref.buffer < len(program.buffers), where, "a buffer of the program")
        _expect(ref.dtype in DTYPES, where, "a known dtype")
        buffer = program.buffers[ref.buffer]
        if ref.shape is None:
            opaque = buffer.kind in ("host", "input", "packed", "shape")
            _expect(opaque, where, "a host buffer for an opaque value")
            return
        _expect(len(ref.shape) <= _MAX_RANK, where, f"at most rank {_MAX_RANK}")
        _expect(ref.strides is None or len(ref.strides) == len(ref.shape), where, "full strides")
        _expect((ref.dtype == "str") == (buffer.dtype == "str"), where, "strings as strings")

    def _ref_symbols(self, ref: TensorRef, known: set[str], where: str) -> None:
        _symbols(ref.shape or (), known, where)
        _symbols(ref.strides or (), known, where)
        _symbols((ref.offset,), known, where)


def _names(program: Postfix) -> set[str]:
    return {t[1:] for t in program if isinstance(t, str) and t.startswith("$")}


def _symbols(programs: Iterable[Postfix], known: set[str], where: str) -> None:
    for program in programs:
        unknown = _names(program) - known
        if unknown:
            raise _error(where, f"known symbols, got {', '.join(sorted(unknown))[:120]}")


def _dims_of(value: Attr) -> Iterable[Postfix]:
    if isinstance(value, DimAttr):
        yield value.program
    elif isinstance(value, tuple):
        for item in value:
            yield from _dims_of(item)


def _distinct(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        _expect(name not in seen, f"{where}[{name[:60]!r}]", "distinct names")
        seen.add(name)


def _expect(condition: bool, where: str, expected: str) -> None:
    if not condition:
        raise _error(where, expected)


def _error(where: str, expected: str) -> PlanFormatError:
    return PlanFormatError(f"{where}: expected {expected}; rebuild the engine")
