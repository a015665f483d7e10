"""Builds fused groups, runs their Triton kernels under the interpreter and compiles them ahead of time, for tests.

    g = fused(lambda b: b("Relu", b.input(F16, 4, 5)))
    got = run_group(g, tactic, config, [x], target)
    close(got, expected(g, [x]))
    machine_code = aot(kernels_of(g, tactic, config, target), target)
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.builder.oracle import run_body
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Config, Emitted, Group, Tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.codegen.triton_compiler import Compiled, compile_kernels
from dovetail.codegen.triton_interpreter import interpret
from dovetail.core.dims import Dim, evaluate
from dovetail.core.dtypes import DType, dtype
from dovetail.device.cpu import aligned_bytes
from dovetail.device.cpu.memory import address
from dovetail.ir.graph import Graph, Value
from dovetail.ir.layout import Layout
from dovetail.ir.types import TensorType
from dovetail.ops.infer import infer
from dovetail.reference.registry import call
from dovetail.tuner.launch import Placed, place, with_packs

Array = np.ndarray[Any, Any]

SM80, SM90 = CudaTarget.of(Target.parse("cuda:sm_80")), CudaTarget.of(Target.parse("cuda:sm_90"))

_GUARD = 256


class Body:
    """The body of a fusion under construction; calling it adds a node with inferred types."""

    def __init__(self) -> None:
        self.graph = Graph("body")
        self.weights: set[Value] = set()
        self.layouts: dict[Value, Layout | None] = {}

    def input(self, kind: DType, *shape: Dim, layout: Layout | None = None) -> Value:
        """An operand that is computed in every run."""
        value = self.graph.add_input(f"x{len(self.graph.inputs)}", TensorType(kind, shape))
        self.layouts[value] = layout
        return value

    def weight(self, kind: DType, *shape: Dim) -> Value:
        """An operand that is known before the run."""
        value = self.input(kind, *shape)
        self.weights.add(value)
        return value

    def __call__(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.graph.add(op, inputs, attrs, types=infer(op, inputs, attrs)).outputs[0]


def fused(
    build: Callable[[Body], Value | tuple[Value, ...]], kind: str = "loop", anchor: str = "", layout: Layout | None = None,
) -> Group:  # fmt: skip
    """A group as a plan would hold it.

    Args:
        build: makes the body and returns its results.
        kind: of the fusion.
        anchor: op of the node that the template is built around.
        layout: of all results.
    """
    body = Body()
    results = build(body)
    body.graph.set_outputs(results if isinstance(results, tuple) else (results,))
    outer = Graph("outer")
    values = []
    for value in body.graph.inputs:
        type_ = value.tensor.with_layout(body.layouts[value])
        if value in body.weights:
            values.append(outer.add("Constant", (), {"name": f"w{len(values)}"}, types=[type_]).output)
        else:
            values.append(outer.add_input(f"x{len(values)}", type_))
    types = [v.tensor.with_layout(layout) for v in body.graph.outputs]
    node = outer.add("Fusion", values, {"kind": kind}, types=types, regions=[body.graph], origin=("test",))
    outer.set_outputs(node.outputs)
    outer.update_times()
    found = [n for n in body.graph.nodes if n.op == anchor]
    return Group(node, body.graph, found[0] if found else None)


def expected(group: Group, arrays: Sequence[Array], sizes: Mapping[str, int] | None = None) -> tuple[Array, ...]:
    """What the group means: the references, with fp32 between the operators."""
    with np.errstate(all="ignore"):
        return run_body(group.body, arrays, sizes or {}, np.dtype(np.float32))


def emitted(group: Group, tactic: Tactic, config: Config, target: Target) -> Emitted:
    """The kernels of one configuration."""
    return tactic.emit(with_packs(group, tactic, config, target), config, target)


def kernels_of(group: Group, tactic: Tactic, config: Config, target: Target) -> list[Kernel]:
    """The kernels of one configuration, without their operands."""
    return [step.kernel for step in emitted(group, tactic, config, target).steps]


def run_group(
    group: Group, tactic: Tactic, config: Config, arrays: Sequence[Array], target: Target, sizes: Mapping[str, int] | None = None,
) -> list[Array]:  # fmt: skip
    """The results of a group's kernels under the interpreter; asserts that they write nothing else.

    Operands lie as their types say between guards of NaN; temporary buffers and workspaces start as NaN, counters as zeros.
    """
    sizes = sizes or {}
    packed = with_packs(group, tactic, config, target)
    given = list(arrays)
    for pack in tactic.packs(group, config, target):
        (given[pack.position],) = call(pack.op, [given[pack.position]], dict(pack.attrs))
    inputs = [place(v.tensor, sizes, a) for v, a in zip(packed.inputs, given, strict=True)]
    outputs = [place(v.tensor, sizes) for v in packed.outputs]
    launch(tactic.emit(packed, config, target), inputs, outputs, sizes)
    for value, placed in zip((*packed.inputs, *packed.outputs), (*inputs, *outputs), strict=True):
        assert placed.intact(), f"writes outside {value}"
    return [p.array for p in outputs]


def launch(steps: Emitted, inputs: Sequence[Placed], outputs: Sequence[Placed], sizes: Mapping[str, int]) -> None:
    """Run kernels on placed operands."""
    temps = [_Guarded(evaluate(size, sizes), 0xFF) for size in steps.temps]
    for step in steps.steps:
        kernel = step.kernel
        assert kernel.launch is not None, "library calls cannot be interpreted"
        own = [_Guarded(evaluate(kernel.workspace_bytes, sizes), 0xFF), _Guarded(4 * kernel.launch.counters, 0)]
        pointers = []
        for operand in step.args:
            if operand.role in ("in", "out"):
                pointers.append((inputs if operand.role == "in" else outputs)[operand.index].address)
            elif operand.role == "temp":
                pointers.append(temps[operand.index].address)
            else:
                pointers.append(own[operand.role == "counters"].address)
        for position, aligned in enumerate(kernel.launch.aligned):
            assert not aligned or pointers[position] % 16 == 0, f"parameter {position} is said to be aligned"
        maps = [m and (_ints(m.shape, sizes), _ints(m.strides, sizes)) for m in kernel.launch.maps]
        x, y, z = (evaluate(d, sizes) for d in kernel.launch.grid)
        interpret(kernel, pointers, _ints(kernel.dims, sizes), (x, y, z), maps)
        assert own[1].all_zero(), "counters are left as they were used"
        for memory in (*temps, *own):
            assert memory.intact(), f"{kernel.tactic} writes outside a buffer of its own"


def _ints(dims: Iterable[Dim], sizes: Mapping[str, int]) -> list[int]:
    return [evaluate(d, sizes) for d in dims]


class _Guarded:
    """A buffer of one kernel between guards."""

    def __init__(self, size: int, fill: int) -> None:
        self._size = size
        self._memory = aligned_bytes(size + 2 * _GUARD)
        self._memory[:] = 0xA5
        self._memory[_GUARD : _GUARD + size] = fill
        self.address = address(self._memory) + _GUARD

    def intact(self) -> bool:
        return bool((self._memory[:_GUARD] == 0xA5).all() and (self._memory[_GUARD + self._size :] == 0xA5).all())

    def all_zero(self) -> bool:
        return not self._memory[_GUARD : _GUARD + self._size].any()


def close(got: Sequence[Array], want: Sequence[Array], tolerance: float = 2e-6) -> None:
    """Assert that results agree: integers exactly, floats to one rounding step of their type or `tolerance`, NaN with NaN."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, f"got {a.dtype}{a.shape}, expected {b.dtype}{b.shape}"
        if not dtype(b.dtype).is_float:
            np.testing.assert_array_equal(a, b)
            continue
        step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(b.dtype.name, 0.0)
        limit = max(tolerance, step)
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=limit, atol=limit)


def aot(kernels: Iterable[Kernel], target: CudaTarget) -> dict[str, Compiled]:
    """Machine code of kernels; asserts that all compile, none spills and each fits the target's shared memory."""
    found: dict[str, Compiled] = {}
    for entry, compiled in compile_kernels(kernels, target).items():
        assert isinstance(compiled, Compiled), f"{entry}: {compiled}"
        assert compiled.stack == 0, f"{entry} spills {compiled.stack} bytes a thread"
        assert compiled.shared <= target.shared_bytes, f"{entry} takes {compiled.shared} bytes of shared memory"
        found[entry] = compiled
    return found


def sass(compiled: Compiled, folder: Path) -> list[str]:
    """The instructions of a kernel, one per line, such as "LDG.E.128 R4, [R2.64]"."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.binary)
    shown = subprocess.run([str(tool), "-sass", str(path)], capture_output=True, text=True, check=True).stdout
    return [m[1].strip() for m in re.finditer(r"/\*[0-9a-f]{4,}\*/\s+([^;]+);", shown)]
