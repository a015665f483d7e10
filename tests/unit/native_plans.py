"""Small C kernels and hand-written plans for the tests of engine and runtime."""

from functools import cache
from pathlib import Path

from dovetail.codegen.compiler import compile_c
from dovetail.codegen.target import Target
from dovetail.core.dims import product, sym
from dovetail.device.cpu import HOST_SOURCE
from dovetail.engine.plan import (
    Arg,
    Buffer,
    KernelRef,
    NativeSegment,
    Plan,
    Port,
    Program,
    Step,
    Symbol,
    Tap,
    TensorRef,
    WeightSpec,
    postfix,
)

N = sym("N")

_KERNEL = """__attribute__((visibility("default")))
void {name}(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {{
    int64_t n = d[0], lo = n * tid / nt, hi = n * (tid + 1) / nt;
    {body}
}}
"""
_LOOP = "{decl} for (int64_t i = lo; i < hi; i++) {stmt};"
_XY = "const float *x = p[0]; float *y = p[1];"
_XYZ = "const float *x = p[0], *y = p[1]; float *z = p[2];"
_BODIES = {
    "k_double": (_XY, "y[i] = 2.0f * x[i]"),
    "k_increment": (_XY, "y[i] = x[i] + 1.0f"),
    "k_reverse": (_XY, "y[i] = x[n - 1 - i]"),
    "k_copy": (_XY, "y[i] = x[i]"),
    "k_add": (_XYZ, "z[i] = x[i] + y[i]"),
    "k_scale": (_XYZ, "z[i] = x[i] * y[i % d[1]]"),
}
KERNELS = {
    "k_double": KernelRef("k_double", 2, 1, writes=(1,)),
    "k_increment": KernelRef("k_increment", 2, 1, writes=(1,)),
    "k_reverse": KernelRef("k_reverse", 2, 1, writes=(1,)),
    "k_copy": KernelRef("k_copy", 2, 1, writes=(1,)),
    "k_add": KernelRef("k_add", 3, 1, writes=(2,)),
    "k_scale": KernelRef("k_scale", 3, 2, writes=(2,)),
}


@cache
def kernel_binary() -> Path:
    source = "#include <stdint.h>\n" + "".join(
        _KERNEL.format(name=n, body=_LOOP.format(decl=d, stmt=s)) for n, (d, s) in _BODIES.items()
    )
    return compile_c(source, Target.host())


@cache
def host_binary() -> Path:
    return compile_c(HOST_SOURCE, Target.host())


def tensor(buffer, *shape, dtype="f32", strides=None, offset=0):
    """A TensorRef from Dims."""
    return TensorRef(
        buffer,
        dtype,
        tuple(postfix(d) for d in shape),
        None if strides is None else tuple(postfix(s) for s in strides),
        postfix(offset),
    )


def buffer(i, kind, *shape, dtype="f32", name="", alias=None):
    return Buffer(i, kind, dtype, postfix(product(shape)), name, alias)


def step(kernel, *buffers, dims=(N,), **kw):
    args = tuple(b if isinstance(b, Arg) else Arg(b) for b in buffers)
    return Step(kernel, args, tuple(postfix(d) for d in dims), **kw)


def plan(main, *, symbols=("N",), **kw):
    return Plan(
        "cpu",
        main,
        symbols=tuple(Symbol(s) for s in symbols),
        kernels=tuple(KERNELS.values()),
        **kw,
    )


def chain(*kernels, in_place=False):
    """x (N) → kernels in turn → y, with a tap after each."""
    buffers = [buffer(0, "input", N, name="x"), buffer(1, "output", N, name="y")]
    steps, taps = [], []
    source = 0
    for i, kernel in enumerate(kernels):
        if i == len(kernels) - 1:
            target = 1
        else:
            target = len(buffers)
            alias = source if in_place and source > 1 else None
            buffers.append(buffer(target, "arena", N, alias=alias))
        steps.append(step(kernel, source, target, origin=(f"node{i}",), tactic=f"tactic{i}"))
        taps.append(Tap(f"value{i}", tensor(target, N), 0, i))
        source = target
    return Program(
        tuple(buffers),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(1, N)),),
        (NativeSegment(tuple(steps)),),
        tuple(taps),
    )


def scaled(count=4):
    """y = x * packed, packed = 2 * w; a weights program and a weight `w` of `count` elements."""
    weights_program = Program(
        (buffer(0, "weight", count, name="w"), buffer(1, "output", count, name="w.packed")),
        (),
        (Port("w.packed", tensor(1, count)),),
        (NativeSegment((step("k_double", 0, 1, dims=(count,)),)),),
    )
    main = Program(
        (
            buffer(0, "input", N, name="x"),
            buffer(1, "output", N, name="y"),
            buffer(2, "packed", count, name="w.packed"),
        ),
        (Port("x", tensor(0, N)),),
        (Port("y", tensor(1, N)),),
        (NativeSegment((step("k_scale", 0, 2, 1, dims=(N, count)),)),),
    )
    return plan(main, weights=(WeightSpec("w", "f32", (count,)),), weights_program=weights_program)
