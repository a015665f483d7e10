"""Small Triton kernels and hand-written plans over them, compiled for the GPU of this machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from dovetail import runtime
from dovetail.codegen.kernel import Kernel, Launch, Param, TensorMap, make_triton_kernel
from dovetail.codegen.target import CUDA_ISAS, Target
from dovetail.codegen.triton_compiler import Compiled, compile_kernels, require
from dovetail.core.dims import ceil_div, sym
from dovetail.engine import cubins
from dovetail.engine.plan import (
    Arg,
    Buffer,
    ControlSegment,
    CudaLaunch,
    HostSegment,
    KernelRef,
    NativeSegment,
    Plan,
    Port,
    Program,
    Step,
    Symbol,
    Tap,
    TensorMapArg,
    TensorRef,
    WeightSpec,
    postfix,
)

N = sym("N")
F = np.float32
BLOCK = 1024

_POINTWISE = """\
@triton.jit
def @ENTRY@({pointers}, n):
    i = tl.program_id(0) * {block} + tl.arange(0, {block})
    inside = i < n
{wait}{loads}
    tl.store(out + i, {value}, mask=inside)
{trigger}"""


def pointwise(value: str, inputs: int, pdl: bool) -> Kernel:
    """out[i] = value, an expression over a[i] and b[i]."""
    names = "ab"[:inputs]
    text = _POINTWISE.format(
        pointers=", ".join([*names, "out"]), block=BLOCK, value=value,
        wait="    gdc_wait()\n" if pdl else "", trigger="    gdc_launch_dependents()\n" if pdl else "",
        loads="\n".join(f"    {n} = tl.load({n} + i, mask=inside)" for n in names),
    )  # fmt: skip
    params = [*(Param("in", i) for i in range(inputs)), Param("out", 0)]
    launch = Launch((ceil_div(N, BLOCK), 1, 1), 4, 1, ("fp32",) * len(params), (True,) * len(params), pdl=pdl)
    return make_triton_kernel(text, params=params, dims=[N], launch=launch, tactic="test")


_COUNTED = """\
@triton.jit
def @ENTRY@(a, partial, out, counters, n):
    i = tl.program_id(0)
    k = i * {block} + tl.arange(0, {block})
{wait}    tl.store(partial + i, tl.sum(tl.load(a + k, mask=k < n, other=0.0), 0))
    arrived = tl.atomic_add(counters, 1, sem="acq_rel")
    if arrived == tl.num_programs(0) - 1:
        total = 0.0
        for j in range(0, tl.num_programs(0)):
            total += tl.load(partial + j, volatile=True)
        tl.store(out, total)
        tl.store(counters, 0)
{trigger}"""


def counted(pdl: bool) -> Kernel:
    """out[0] = sum of a; the last program to arrive adds the parts in order."""
    text = _COUNTED.format(
        block=BLOCK, wait="    gdc_wait()\n" if pdl else "", trigger="    gdc_launch_dependents()\n" if pdl else ""
    )
    params = [Param("in", 0), Param("workspace", 0), Param("out", 0), Param("counters", 0)]
    launch = Launch((ceil_div(N, BLOCK), 1, 1), 4, 1, ("fp32", "fp32", "fp32", "i32"), (True,) * 4, pdl=pdl, counters=1)
    return make_triton_kernel(text, params=params, dims=[N], launch=launch, workspace_bytes=4 * ceil_div(N, BLOCK), tactic="test")


_MAPPED = """\
@triton.jit
def @ENTRY@(a, out, n):
{wait}    tile = a.load([tl.program_id(0) * 16, tl.program_id(1) * 64])
    r = tl.program_id(0) * 16 + tl.arange(0, 16)
    c = tl.program_id(1) * 64 + tl.arange(0, 64)
    tl.store(out + r[:, None] * {columns} + c[None, :], tile * 3, mask=(r[:, None] < n) & (c[None, :] < {columns}))
{trigger}"""
COLUMNS = 72


def mapped(pdl: bool) -> Kernel:
    """out = 3 * a of N rows and COLUMNS fp16 columns, loaded by the copy engine."""
    text = _MAPPED.format(columns=COLUMNS, wait="    gdc_wait()\n" if pdl else "", trigger="    gdc_launch_dependents()\n" if pdl else "")
    tensor_map = TensorMap((N, COLUMNS), (COLUMNS, 1), (16, 64))
    launch = Launch(
        (ceil_div(N, 16), ceil_div(COLUMNS, 64), 1), 4, 1, ("fp16", "fp16"), (True, True), maps=(tensor_map, None), pdl=pdl
    )  # fmt: skip
    return make_triton_kernel(text, params=[Param("in", 0), Param("out", 0)], dims=[N], launch=launch, tactic="test")


@dataclass(frozen=True)
class Machine:
    """The kernels of a GPU, compiled: by the names below."""

    target: str
    kernels: dict[str, Kernel]
    compiled: dict[str, Compiled]
    bundle: bytes

    def entry(self, name: str) -> str:
        """The entry of a kernel."""
        return self.kernels[name].entry

    @property
    def refs(self) -> tuple[KernelRef, ...]:
        """The kernels as a plan has them."""
        found = []
        for kernel in self.kernels.values():
            c = self.compiled[kernel.entry]
            launch = CudaLaunch(c.threads, c.shared, c.scratch, c.scratch_align, c.pdl, c.cluster, c.descriptors)
            writes = tuple(i for i, p in enumerate(kernel.params) if p.role != "in")
            found.append(KernelRef(kernel.entry, len(kernel.params), len(kernel.dims), launch=launch, writes=writes))
        return tuple(found)

    def step(self, name: str, *buffers: int, dims=(N,), **kw) -> Step:
        """A call of a kernel over whole buffers."""
        kernel = self.kernels[name]
        assert kernel.launch is not None
        maps = kernel.launch.maps or (None,) * len(buffers)
        args = tuple(
            Arg(b, map=None if m is None else TensorMapArg(tuple(map(postfix, m.shape)), tuple(map(postfix, m.strides)), m.block))
            for b, m in zip(buffers, maps, strict=True)
        )
        return Step(kernel.entry, args, tuple(map(postfix, dims)), grid=tuple(map(postfix, kernel.launch.grid)), tactic="test", **kw)

    def plan(self, main: Program, **kw) -> Plan:
        """A plan over these kernels, of one symbol N."""
        return Plan(self.target, main, symbols=(Symbol("N"),), kernels=self.refs, **kw)

    def engine(self, plan: Plan, weights=None, **kw):
        """An engine of a plan."""
        return runtime.open(plan, kernels=[self.bundle], weights=weights, **kw)


@functools.cache
def machine(capability: int) -> Machine:
    """Kernels for a device of this capability."""
    known = sorted(int(isa.removeprefix("sm_")) for isa in CUDA_ISAS)
    isa = f"sm_{max(c for c in known if c <= capability)}"
    target = Target.parse(f"cuda:{isa}")
    pdl = capability >= 90
    kernels = {
        "double": pointwise("2 * a", 1, pdl), "increment": pointwise("a + 1", 1, pdl), "add": pointwise("a + b", 2, pdl),
        "counted": counted(pdl),
    }  # fmt: skip
    if pdl:
        kernels["mapped"] = mapped(pdl)
    compiled = require(compile_kernels(kernels.values(), target), kernels.values())
    bundle = cubins.pack({entry: bytes(c.binary) for entry, c in compiled.items()})
    return Machine(str(target), kernels, compiled, bundle)


def tensor(buffer: int, *shape, dtype="f32") -> TensorRef:
    """A dense tensor over a whole buffer."""
    return TensorRef(buffer, dtype, tuple(map(postfix, shape)))


def chain(m: Machine, length: int) -> Program:
    """y = x doubled and incremented in turn, `length` kernels; `expected` computes the same."""
    buffers = [Buffer(0, "input", "f32", postfix(N), "x"), Buffer(1, "output", "f32", postfix(N), "y")]
    steps, taps, source = [], [], 0
    for i in range(length):
        target = 1 if i == length - 1 else len(buffers)
        if target > 1:
            buffers.append(Buffer(target, "arena", "f32", postfix(N)))
        steps.append(m.step(("double", "increment")[i % 2], source, target, origin=(f"node{i}",)))
        taps.append(Tap(f"value{i}", tensor(target, N), 0, i))
        source = target
    return Program(
        tuple(buffers), (Port("x", tensor(0, N)),), (Port("y", tensor(1, N)),), (NativeSegment(tuple(steps)),), tuple(taps)
    )


def expected(x, length):
    """What `chain` computes."""
    x = np.array(x, F)
    for i in range(length):
        x = x + 1 if i % 2 else 2 * x
    return x


def with_host_step(m: Machine) -> Program:
    """y = 2 * (-(2 * x)), with the negation on the host."""
    return Program(
        (
            Buffer(0, "input", "f32", postfix(N), "x"), Buffer(1, "arena", "f32", postfix(N)), Buffer(2, "arena", "f32", postfix(N)),
            Buffer(3, "output", "f32", postfix(N), "y"),
        ),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(3, N)),),
        (
            NativeSegment((m.step("double", 0, 1),)),
            HostSegment("Neg", (tensor(1, N),), (tensor(2, N),), origin=("the host node",)),
            NativeSegment((m.step("double", 2, 3),)),
        ),
    )  # fmt: skip


def looped(m: Machine) -> Program:
    """y = the state after n times state = 2 * state + x, which starts as x + 1."""
    body = Program(
        (
            Buffer(0, "input", "i64", (1,), "i"), Buffer(1, "input", "bool", (1,), "c"), Buffer(2, "input", "f32", postfix(N), "s"),
            Buffer(3, "input", "f32", postfix(N), "x"), Buffer(4, "arena", "f32", postfix(N)), Buffer(5, "output", "f32", postfix(N)),
        ),
        (Port("i", tensor(0, dtype="i64")), Port("c", tensor(1, dtype="bool")), Port("s", tensor(2, N)), Port("x", tensor(3, N))),
        (Port("more", tensor(1, dtype="bool")), Port("state", tensor(5, N))),
        (NativeSegment((m.step("double", 2, 4), m.step("add", 4, 3, 5))),),
    )  # fmt: skip
    return Program(
        (
            Buffer(0, "input", "i64", (1,), "n"), Buffer(1, "input", "f32", postfix(N), "x"), Buffer(2, "arena", "f32", postfix(N)),
            Buffer(3, "host", "f32", postfix(N)), Buffer(4, "output", "f32", postfix(N), "y"),
        ),
        (Port("n", tensor(0, dtype="i64")), Port("x", tensor(1, N))),
        (Port("y", tensor(4, N)),),
        (
            NativeSegment((m.step("increment", 1, 2),)),
            ControlSegment("Loop", (body,), (tensor(0, dtype="i64"), None, tensor(2, N), tensor(1, N)), (tensor(3, N),), carried=1),
            NativeSegment((m.step("double", 3, 4),)),
        ),
    )  # fmt: skip


def forked(m: Machine) -> Program:
    """y = (2 x + 2) + (x + 2), two of the steps beside each other."""
    beside = (m.step("double", 1, 2), m.step("increment", 1, 3, lane=1, waits=(0,)))
    return Program(
        (Buffer(0, "input", "f32", postfix(N), "x"), *(Buffer(i, "arena", "f32", postfix(N)) for i in (1, 2, 3)),
         Buffer(4, "output", "f32", postfix(N), "y")),
        (Port("x", tensor(0, N)),), (Port("y", tensor(4, N)),),
        (NativeSegment((m.step("increment", 0, 1), *beside, m.step("add", 2, 3, 4, waits=(2,)))),),
    )  # fmt: skip


def weighted(m: Machine, count: int) -> Plan:
    """y = x + packed, packed = 2 * w, of `count` elements."""
    program = Program(
        (Buffer(0, "weight", "f32", (count,), "w"), Buffer(1, "output", "f32", (count,), "w.packed")), (),
        (Port("w.packed", tensor(1, count)),), (NativeSegment((_fixed(m.step("double", 0, 1, dims=(count,)), count),)),),
    )  # fmt: skip
    main = Program(
        (
            Buffer(0, "input", "f32", (count,), "x"), Buffer(1, "output", "f32", (count,), "y"),
            Buffer(2, "packed", "f32", (count,), "w.packed"),
        ),
        (Port("x", tensor(0, count)),), (Port("y", tensor(1, count)),),
        (NativeSegment((_fixed(m.step("add", 0, 2, 1, dims=(count,)), count),)),),
    )  # fmt: skip
    return replace(m.plan(main), symbols=(), weights=(WeightSpec("w", "f32", (count,)),), weights_program=program)


def _fixed(step: Step, count: int) -> Step:
    return replace(step, grid=((-(-count // BLOCK),), (1,), (1,)))


def summed(m: Machine) -> Program:
    """y = the sum of x, by counters."""
    return Program(
        (
            Buffer(0, "input", "f32", postfix(N), "x"), Buffer(1, "output", "f32", (1,), "y"),
            Buffer(2, "workspace", "u8", postfix(4 * ceil_div(N, BLOCK))), Buffer(3, "counters", "i32", (1,)),
        ),
        (Port("x", tensor(0, N)),), (Port("y", tensor(1, 1)),), (NativeSegment((m.step("counted", 0, 2, 1, 3),)),),
    )  # fmt: skip


def tripled(m: Machine) -> Program:
    """y = 3 * x of N rows, read by the copy engine."""
    size = postfix(N * COLUMNS)
    return Program(
        (Buffer(0, "input", "f16", size, "x"), Buffer(1, "output", "f16", size, "y")),
        (Port("x", tensor(0, N, COLUMNS, dtype="f16")),), (Port("y", tensor(1, N, COLUMNS, dtype="f16")),),
        (NativeSegment((m.step("mapped", 0, 1),)),),
    )  # fmt: skip
