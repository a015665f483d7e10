"""CUDA plans by hand over kernels that are Python functions on host memory, and engines of them on a `HostDriver`."""

from dataclasses import replace

import numpy as np

from dovetail import runtime
from dovetail.core.dims import sym
from dovetail.device.cuda import TensorMap
from dovetail.device.cuda.driver_host import HostDriver, memory_at
from dovetail.engine import cubins
from dovetail.engine.plan import (
    CudaLaunch,
    KernelRef,
    NativeSegment,
    Plan,
    Program,
    Symbol,
    postfix,
)
from tests.unit import native_plans

N = sym("N")
F = np.float32
BLOCK = 4  # elements that one program computes


def _f32(pointer, n):
    return memory_at(pointer, 4 * n).view(F)


def _unary(function):
    def kernel(grid, x, y, n):
        assert grid == (-(-n // BLOCK), 1, 1)
        _f32(y, n)[:] = function(_f32(x, n).copy())

    return kernel


def _add(grid, x, y, z, n):
    _f32(z, n)[:] = _f32(x, n) + _f32(y, n)


def _scale(grid, x, y, z, n, m):
    _f32(z, n)[:] = _f32(x, n) * np.resize(_f32(y, m), n)


def _counted(grid, x, y, counters, n):
    """Doubles; the last program to arrive puts the counter back, as a reduction does."""
    counter = memory_at(counters, 4).view(np.int32)
    assert counter[0] == 0, "counters are zero before a launch"
    counter[0] = grid[0]
    _f32(y, n)[:] = 2 * _f32(x, n)
    counter[0] = 0


def _mapped(grid, x, y, n):
    assert isinstance(x, TensorMap) and x.shape == (1, n) and x.strides == (n, 1), x
    _f32(y, n)[:] = 3 * _f32(x.address, n)


FUNCTIONS = {
    "k_double": _unary(lambda x: 2 * x),
    "k_increment": _unary(lambda x: x + 1),
    "k_reverse": _unary(lambda x: x[::-1]),
    "k_copy": _unary(lambda x: x),
    "k_add": _add,
    "k_scale": _scale,
    "k_counted": _counted,
    "k_mapped": _mapped,
}
_SHAPES = {"k_add": (3, 1), "k_scale": (3, 2), "k_counted": (3, 1)}
MAP_RECORD = {"kind": 7, "element": 4, "swizzle": 0, "box": [1, 4]}


def _launch(name):
    scratch, maps = 128 if name == "k_reverse" else 0, (MAP_RECORD,) if name == "k_mapped" else ()
    return CudaLaunch(128, 0, scratch, 128, pdl=True, descriptors=maps)


WRITES = {"k_add": (2,), "k_scale": (2,), "k_counted": (1, 2)}
KERNELS = tuple(KernelRef(n, *_SHAPES.get(n, (2, 1)), launch=_launch(n), writes=WRITES.get(n, (1,))) for n in FUNCTIONS)
BUNDLE = cubins.pack({name: name.encode() for name in FUNCTIONS})


def run(code, entry, grid, values):
    """What the host driver does with a kernel."""
    assert bytes(code) == entry.encode()
    FUNCTIONS[entry](grid, *values)


def host_driver(ordinal=0, **kw):
    return HostDriver(run, ordinal, **kw)


def on_cuda(program):
    """A program of `native_plans` with grids."""
    segments = []
    for segment in program.segments:
        if isinstance(segment, NativeSegment):
            steps = tuple(
                replace(s, grid=(*_grid(s), (1,), (1,))) if not s.grid else s for s in segment.steps
            )
            segment = NativeSegment(steps)
        elif hasattr(segment, "regions"):
            segment = replace(segment, regions=tuple(on_cuda(r) for r in segment.regions))
        segments.append(segment)
    return replace(program, segments=tuple(segments))


def _grid(step):
    dim = step.dims[0]
    return ((*dim, BLOCK - 1, "+", BLOCK, "//"),)


def plan(main, *, symbols=("N",), **kw):
    """A plan for a GPU; `main` and the programs among `kw` may lack grids."""
    programs = {k: on_cuda(v) if isinstance(v, Program) else v for k, v in kw.items()}
    return Plan(
        "cuda:sm_90", on_cuda(main), symbols=tuple(Symbol(s) if isinstance(s, str) else s for s in symbols), kernels=KERNELS, **programs
    )


def from_cpu(cpu_plan):
    """A plan of `native_plans` as one for a GPU."""
    return plan(
        cpu_plan.main, symbols=cpu_plan.symbols, weights=cpu_plan.weights, guards=cpu_plan.guards,
        weights_program=cpu_plan.weights_program, shapes_program=cpu_plan.shapes_program,
    )  # fmt: skip


def engine(cuda_plan, weights=None, driver=None, **kw):
    """An engine of a plan on host memory."""
    return runtime.open(cuda_plan, kernels=[BUNDLE], weights=weights, driver=driver or host_driver(), **kw)


step, buffer, tensor, chain, scaled = (
    native_plans.step, native_plans.buffer, native_plans.tensor, native_plans.chain, native_plans.scaled,
)  # fmt: skip
__all__ = ["N", "engine", "plan", "postfix"]
