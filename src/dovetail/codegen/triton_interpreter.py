"""Runs Triton kernels in this process, on host memory, without a GPU.

    interpret(kernel, [address of each parameter], [value of each run-time dim], grid)

Triton's interpreter does the work: blocks are NumPy arrays and pointers are addresses of this process, so what a kernel computes
(indices, masks, tails, arithmetic) shows; layouts, races, shared memory and the waits between kernels do not. Interpreted are the
kernel's text and Triton's own library functions, whatever TRITON_INTERPRET says, and all that has to be replaced in Triton's modules
for that is put back afterwards, so that the same process can compile. Needs Triton 3.9 or newer.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import math
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.triton_compiler import module_text
from dovetail.core.errors import ExecutionError

Array = np.ndarray[Any, Any]
Descriptor = tuple[Sequence[int], Sequence[int]]
"""Shape and strides, in elements, of what a tensor map describes."""

# The interpreter keeps the running program's position in a global.
_lock = threading.RLock()


def interpret(
    kernel: Kernel,
    pointers: Sequence[int],
    dims: Sequence[int],
    grid: tuple[int, int, int],
    descriptors: Sequence[Descriptor | None] = (),
) -> None:
    """Run all programs of a Triton kernel, one after the other.

    Args:
        kernel: made by `make_triton_kernel`.
        pointers: an address per parameter; of a tensor map the address of the tensor.
        dims: a value per run-time dim.
        grid: number of programs along the three axes.
        descriptors: per parameter with a tensor map its shape and strides; where they are not given the map's own are used, which
            must then be plain numbers.

    Raises:
        ExecutionError: the kernel failed; says in which line.
    """
    launch = kernel.launch
    assert launch is not None, f"{kernel.tactic} is no Triton kernel"
    assert len(pointers) == len(kernel.params) and len(dims) == len(kernel.dims), "one address per parameter, one value per dim"
    with _lock:
        module = _module(kernel.entry, module_text(kernel))
        tri = _triton()
        maps = launch.maps or (None,) * len(pointers)
        given = [*descriptors, *[None] * (len(pointers) - len(descriptors))]
        with _interpreting(tri), np.errstate(all="ignore"):
            arguments: list[Any] = []
            for address, kind, tensor_map, described in zip(pointers, launch.types, maps, given, strict=True):
                pointer = _pointer(tri, address, kind)
                if tensor_map is not None:
                    shape, strides = described or (tensor_map.shape, tensor_map.strides)
                    pointer = _descriptor(tri, pointer, shape, strides, tensor_map.block)
                arguments.append(pointer)
            arguments += [_integer(tri, value) for value in dims]
            tri.builder.set_grid_dim(*grid)
            for z in range(grid[2]):
                for y in range(grid[1]):
                    for x in range(grid[0]):
                        tri.builder.set_grid_idx(x, y, z)
                        try:
                            module[kernel.entry](*arguments)
                        except Exception as error:
                            raise _failure(kernel, (x, y, z), error) from error


def _failure(kernel: Kernel, program: tuple[int, int, int], error: Exception) -> ExecutionError:
    """The error with the line of the kernel that it came from."""
    lines = module_text(kernel).splitlines()
    inside = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == _filename(kernel.entry)]
    where = f" line {inside[-1].lineno} `{lines[(inside[-1].lineno or 1) - 1].strip()}`" if inside else ""
    return ExecutionError(
        f"interpreter: {kernel.tactic} kernel {kernel.entry}, program {program}{where}: {type(error).__name__}: {error}"
    )


# ---------------------------------------------------------------- arguments
def _pointer(tri: Any, address: int, kind: str) -> Any:
    type_ = tri.tl.str_to_ty(f"*{kind}", None)
    return tri.tl.tensor(tri.handle(np.array([address], np.uint64), type_), type_)


def _integer(tri: Any, value: int) -> Any:
    return tri.tl.tensor(tri.handle(np.array([value], np.int32), tri.tl.int32), tri.tl.int32)


def _descriptor(tri: Any, base: Any, shape: Sequence[Any], strides: Sequence[Any], block: Sequence[int]) -> Any:
    if not all(isinstance(d, int) for d in (*shape, *strides)):
        raise ExecutionError("interpreter: a tensor map has run-time sizes, expected their values in `descriptors`")
    outer = [_integer64(tri, s) for s in strides[:-1]]
    return tri.semantic.make_tensor_descriptor(
        base, [_integer(tri, s) for s in shape], [*outer, tri.tl.constexpr(1)], [tri.tl.constexpr(b) for b in block], padding_option="zero",
    )  # fmt: skip


def _integer64(tri: Any, value: int) -> Any:
    return tri.tl.tensor(tri.handle(np.array([value], np.int64), tri.tl.int64), tri.tl.int64)


# ---------------------------------------------------------------- text to functions
@functools.cache
def _triton() -> Any:
    """Triton's modules, imported when first needed."""
    tl = importlib.import_module("triton.language")
    interpreter = importlib.import_module("triton.runtime.interpreter")
    jit = importlib.import_module("triton.runtime.jit")
    return SimpleNamespace(
        tl=tl, core=tl.core, interpreter=interpreter, builder=interpreter.interpreter_builder,
        semantic=interpreter.interpreter_semantic, handle=interpreter.TensorHandle, function=jit.JITFunction,
    )  # fmt: skip


def _filename(entry: str) -> str:
    return f"<triton {entry}>"


@functools.lru_cache(maxsize=512)
def _module(entry: str, text: str) -> dict[str, Any]:
    """The names that a kernel's text defines, its functions rewritten for the interpreter."""
    tri = _triton()
    tree = ast.parse(text)
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            _rewrite(tri, statement)
    ast.fix_missing_locations(tree)
    names = _interpreter_names(tri)
    exec(compile(tree, _filename(entry), "exec"), names)  # text that this package made
    unseen = dict.fromkeys(("gdc_wait", "gdc_launch_dependents", "prefetch_l2"), _nothing)
    names |= {**unseen, "nearest_tf32": _elementwise(tri, _nearest_tf32, None), "libdevice": _library(), entry: names[entry]}
    return names


def _nothing(*_: Any, **__: Any) -> None:
    """Waiting for other kernels, where kernels run one after the other; and fetching ahead."""


def _interpreter_names(tri: Any) -> dict[str, Any]:
    """The names that rewritten functions use."""
    return {
        name: value
        for name, value in vars(tri.interpreter).items()
        if name in ("interpreter_semantic", "_InterpreterComparison", "tl")
    }


def _rewrite(tri: Any, function: ast.FunctionDef) -> None:
    function.decorator_list = []
    for position, statement in enumerate(function.body):
        function.body[position] = tri.interpreter.ASTTransformer().visit(statement)


class _Function:
    """One of Triton's library functions, rewritten when first called."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._rewritten: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._rewritten is None:
            tri = _triton()
            tree = ast.parse(textwrap.dedent(inspect.getsource(self._function)))
            definition = tree.body[0]
            assert isinstance(definition, ast.FunctionDef)
            _rewrite(tri, definition)
            ast.fix_missing_locations(tree)
            names = _namespace(self._function.__module__)
            local: dict[str, Any] = {}
            exec(compile(tree, self._function.__code__.co_filename, "exec"), names, local)  # Triton's own text
            self._rewritten = local[definition.name]
        return self._rewritten(*args, **kwargs)


@functools.cache
def _namespace(module: str) -> dict[str, Any]:
    """The globals of one of Triton's modules, with its functions rewritten."""
    tri = _triton()
    found = {**vars(importlib.import_module(module)), **_interpreter_names(tri)}
    return {name: _interpreted(tri, value) if isinstance(value, tri.function) else value for name, value in found.items()}


_functions: dict[Any, _Function] = {}


def _interpreted(tri: Any, function: Any) -> _Function:
    # The hash of a JITFunction is one of all that it calls; the Python function below it has a plain one.
    if function.fn not in _functions:
        _functions[function.fn] = _Function(function.fn)
    return _functions[function.fn]


# ---------------------------------------------------------------- replacements
@contextmanager
def _interpreting(tri: Any) -> Iterator[None]:
    """Triton's language functions work on the interpreter's blocks inside."""
    places = [tri.tl, tri.core, tri.tl.math, tri.tl.tensor, tri.tl.dtype, tri.tl.condition, tri.core.tensor_descriptor_base, tri.builder]
    before = [dict(vars(place)) for place in places]
    try:
        # `_patch_lang` finds the modules among the globals of the function that it is given.
        tri.interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tri.tl, "core": tri.core}))
        for place in (tri.tl, tri.tl.tensor):
            for name, value in list(vars(place).items()):
                if isinstance(value, tri.function):
                    setattr(place, name, _as_method(_interpreted(tri, value)))
        for place in (tri.tl, tri.core):
            place.reduce = functools.partial(_reduce, tri)
            place.associative_scan = functools.partial(_scan, tri)
        tri.builder.cast_impl = functools.partial(_cast, tri, type(tri.builder).cast_impl)
        tri.builder.create_dot = functools.partial(_dot, tri)
        tri.builder.create_splat = functools.partial(_splat, tri, type(tri.builder).create_splat)
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            for name, value in list(vars(place).items()):
                if name not in old:
                    delattr(place, name)
                elif value is not old[name]:
                    setattr(place, name, old[name])


def _splat(tri: Any, original: Any, type_: Any, given: Any) -> Any:
    """A number as a block: a comparison of two stays one of booleans, though its handle has the type of its operands."""
    if given.data.dtype == np.bool_:
        return tri.handle(np.full(type_.shape, given.data.reshape(-1)[0]), tri.tl.int1)
    return original(tri.builder, type_, given)


def _as_method(function: _Function) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def _tensor(tri: Any, data: Array, dtype: Any, scalar: bool = False) -> Any:
    """A block, or a number where `scalar`: the interpreter keeps those as arrays of one element."""
    if scalar:
        return tri.tl.tensor(tri.handle(np.ascontiguousarray(data).reshape(1), dtype), dtype)
    return tri.tl.tensor(tri.handle(data, dtype), tri.tl.block_type(dtype, list(data.shape)))


def _reduce(tri: Any, given: Any, axis: Any, combine: Callable[..., Any], keep_dims: bool = False, **_: Any) -> Any:
    """`tl.reduce`: halves are combined until one is left, whole blocks at a time."""
    several = isinstance(given, tuple | tri.tl.tuple)
    blocks = list(given) if several else [given]
    rank = len(blocks[0].shape)
    axis = getattr(axis, "value", axis)
    data = [b.handle.data.reshape(-1) if axis is None else np.moveaxis(b.handle.data, axis, 0) for b in blocks]
    types = [b.dtype for b in blocks]
    while len(data[0]) > 1:
        half = len(data[0]) // 2
        parts = [_tensor(tri, d[low : low + half], t) for low in (0, half) for d, t in zip(data, types, strict=True)]
        result = combine(*parts)
        results = list(result) if isinstance(result, tuple | tri.tl.tuple) else [result]
        data = [np.broadcast_to(r.handle.data, d[:half].shape).astype(d.dtype, copy=False) for r, d in zip(results, data, strict=True)]
    answers = []
    for d, t in zip(data, types, strict=True):
        if getattr(keep_dims, "value", keep_dims):
            answers.append(_tensor(tri, d.reshape((1,) * rank) if axis is None else np.moveaxis(d, 0, axis), t))
        else:
            answers.append(_tensor(tri, d[0], t, scalar=d[0].ndim == 0))
    return tuple(answers) if several else answers[0]


def _scan(tri: Any, given: Any, axis: Any, combine: Callable[..., Any], reverse: bool = False, **_: Any) -> Any:
    """`tl.associative_scan`: each position takes in the one 1, 2, 4, … before it, whole blocks at a time."""
    several = isinstance(given, tuple | tri.tl.tuple)
    blocks = list(given) if several else [given]
    axis, step = getattr(axis, "value", axis), -1 if getattr(reverse, "value", reverse) else 1
    data = [np.moveaxis(b.handle.data, axis, 0)[::step].copy() for b in blocks]
    types = [b.dtype for b in blocks]
    distance = 1
    while distance < len(data[0]):
        # Whole blocks, since their extents must be powers of two; what has none before it stays.
        earlier = [_tensor(tri, np.roll(d, distance, 0), t) for d, t in zip(data, types, strict=True)]
        later = [_tensor(tri, d, t) for d, t in zip(data, types, strict=True)]
        result = combine(*earlier, *later)
        results = list(result) if isinstance(result, tuple | tri.tl.tuple) else [result]
        for d, r in zip(data, results, strict=True):
            d[distance:] = r.handle.data[distance:]
        distance *= 2
    answers = tuple(_tensor(tri, np.moveaxis(d[::step], 0, axis), t) for d, t in zip(data, types, strict=True))
    return answers if several else answers[0]


def _cast(tri: Any, original: Callable[..., Any], handle: Any, to: Any) -> Any:
    """Conversions; the interpreter's own to bf16 cuts digits off instead of rounding."""
    source, result = handle.dtype.scalar, to.scalar
    if tri.tl.bfloat16 in (source, result) and source != result:
        values = handle.data.view(ml_dtypes.bfloat16) if source == tri.tl.bfloat16 else handle.data
        if result == tri.tl.bfloat16:
            return tri.handle(values.astype(ml_dtypes.bfloat16).view(np.uint16), result)
        return tri.handle(values.astype(np.float32).astype(tri.interpreter._get_np_dtype(result)), result)
    return original(tri.builder, handle, to)


def _dot(tri: Any, a: Any, b: Any, accumulator: Any, precision: Any, imprecise: Any) -> Any:
    """`tl.dot`: products and sums in fp32 (float64 of float64, int32 of int8)."""
    wide = accumulator.data.dtype if accumulator.data.dtype.kind == "i" or accumulator.data.itemsize == 8 else np.dtype(np.float32)
    left, right = (x.data.view(ml_dtypes.bfloat16) if x.dtype.scalar == tri.tl.bfloat16 else x.data for x in (a, b))
    result = np.matmul(left.astype(wide), right.astype(wide))
    dtype = accumulator.dtype.scalar
    return tri.handle((result + accumulator.data).astype(tri.interpreter._get_np_dtype(dtype)), dtype)


def _nearest_tf32(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """fp32 with 10 bits of fraction, ties away from zero, as cvt.rna.tf32.f32 rounds; infinities and NaN stay."""
    rounded = ((x.view(np.uint32) + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


# ---------------------------------------------------------------- the device library
_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "exp": np.exp, "exp2": np.exp2, "exp10": lambda x: 10**x, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "log2": np.log2,
    "log10": np.log10, "tanh": np.tanh, "tan": np.tan, "sin": np.sin, "cos": np.cos, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "atan2": np.arctan2, "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh,
    "atanh": np.arctanh, "pow": np.power, "fmod": np.fmod, "rint": np.rint, "nearbyint": np.rint, "trunc": np.trunc,
    "floor": np.floor, "ceil": np.ceil, "copysign": np.copysign, "sqrt": np.sqrt, "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "cbrt": np.cbrt, "abs": np.abs, "fast_expf": np.exp, "fast_logf": np.log, "fast_tanhf": np.tanh, "fast_dividef": np.divide,
    "erf": lambda x: np.vectorize(math.erf, otypes=[x.dtype])(x), "erfc": lambda x: np.vectorize(math.erfc, otypes=[x.dtype])(x),
    "fma": lambda x, y, z: x * y + z, "div_rn": np.divide, "mul_rn": np.multiply, "hypot": np.hypot,
}  # fmt: skip
_TESTS: Mapping[str, Callable[..., Any]] = {"isnan": np.isnan, "isinf": np.isinf, "finitef": np.isfinite, "signbit": np.signbit}


@functools.cache
def _library() -> SimpleNamespace:
    """What stands for `triton.language.extra.libdevice`."""
    tri = _triton()
    return SimpleNamespace(
        **{name: _elementwise(tri, fn, None) for name, fn in _ELEMENTWISE.items()},
        **{name: _elementwise(tri, fn, tri.tl.int32) for name, fn in _TESTS.items()},
    )


def _elementwise(tri: Any, fn: Callable[..., Any], result: Any) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        known = next(a for a in args if isinstance(a, tri.tl.tensor))
        # Numbers take the type of the operand beside them.
        values = [a.handle.data if isinstance(a, tri.tl.tensor) else np.array([a], known.handle.data.dtype) for a in args]
        dtype = result or known.dtype
        data = np.asarray(fn(*values)).astype(tri.interpreter._get_np_dtype(dtype), copy=False)
        blocks = [a for a in args if isinstance(a, tri.tl.tensor) and a.type.is_block()]
        if not blocks:
            return _tensor(tri, data, dtype, scalar=True)
        shape = np.broadcast_shapes(*(tuple(int(n) for n in b.shape) for b in blocks))
        return _tensor(tri, data.reshape(shape), dtype)

    return call
