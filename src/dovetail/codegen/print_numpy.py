"""Evaluates a `LoopKernel` with vectorised NumPy: the oracle of the C printer.

`print_numpy` writes the kernel as the text of a Python function over flat arrays; `run_numpy` calls it. Every axis of a
nest, reduced ones included, becomes one array dimension, and index arrays broadcast against each other. It is meant
for small shapes and for machines without a compiler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from dovetail.codegen.loop_ir import (
    Call,
    Const,
    Expr,
    IndexValue,
    Load,
    LoopKernel,
    Nest,
    Reduce,
    Row,
    RowRef,
    Scope,
)
from dovetail.codegen.scalar import OPERATORS, neutral
from dovetail.codegen.schedule import all_axes
from dovetail.core.dims import Dim, Symbol
from dovetail.core.dtypes import BOOL, DType
from dovetail.core.dtypes import dtype as dtype_of

_CALLS = {
    "exp": "np.exp", "log": "np.log", "tanh": "np.tanh", "sin": "np.sin", "cos": "np.cos", "tan": "np.tan",
    "asin": "np.arcsin", "acos": "np.arccos", "atan": "np.arctan", "sinh": "np.sinh", "cosh": "np.cosh",
    "asinh": "np.arcsinh", "acosh": "np.arccosh", "atanh": "np.arctanh", "log1p": "np.log1p",
    "expm1": "np.expm1", "pow": "np.power", "fmod": "np.fmod", "rem": "np.fmod", "floor": "np.floor",
    "ceil": "np.ceil", "rint": "np.rint", "trunc": "np.trunc", "copysign": "np.copysign",
    "max": "np.maximum", "min": "np.minimum", "abs": "np.abs", "neg": "np.negative", "sqrt": "np.sqrt",
    "not": "np.logical_not", "bitnot": "np.bitwise_not", "select": "np.where", "erf": "erf",
    "sigmoid": "sigmoid", "shl": "shl", "shr": "shr", "round_f16": "round_f16", "round_bf16": "round_bf16",
}  # fmt: skip


def print_numpy(kernel: LoopKernel) -> str:
    """The kernel as a Python function `kernel(p, n)`: flat arrays by parameter, dims by symbol name."""
    lines = ["def kernel(p, n):"]
    for nest in kernel.nests:
        lines += ["    " + line for line in _Nest(nest, kernel).lines]
    return "\n".join([*lines, "    return None", ""])


def run_numpy(kernel: LoopKernel, arrays: Sequence[np.ndarray[Any, Any]], env: Mapping[str, int]) -> None:
    """Evaluate the kernel into its output arrays.

    `arrays` are flat, in parameter order, and start at the logical element (0, 0, …).
    """
    names: dict[str, Any] = {"np": np, "bf16": ml_dtypes.bfloat16, **_HELPERS}
    exec(compile(print_numpy(kernel), "<loop kernel>", "exec"), names)
    with np.errstate(all="ignore"):
        names["kernel"](list(arrays), dict(env))


class _Nest:
    def __init__(self, nest: Nest, kernel: LoopKernel) -> None:
        self.scope: Scope = kernel.scope
        self.position = {b: i for i, b in enumerate(kernel.buffers)}
        self.lines: list[str] = []
        self.memo: dict[Expr, str] = {}
        self.count = 0
        axes = all_axes(nest, kernel.scope)
        self.rank = len(axes)
        self.place = {a.name: i for i, a in enumerate(axes)}
        self.axes: dict[str, str] = {}
        for axis in axes:
            shape = ["1"] * self.rank
            shape[self.place[axis.name]] = "-1"
            self.axes[axis.name] = self.let(f"np.arange({self.dim(axis.extent)}).reshape({', '.join(shape)})")
        for store in nest.stores:
            value, offset = self.emit(store.value), self.dim(store.offset)
            extents = ", ".join(self.dim(a.extent) if a in nest.axes else "1" for a in axes)
            target = f"p[{self.position[store.buffer]}]"
            box = f"({extents},)" if axes else "()"
            self.lines.append(
                f"{target}[np.broadcast_to({offset}, {box})] = "
                f"np.broadcast_to({value}, {box}).astype({target}.dtype)"
            )

    def let(self, text: str) -> str:
        name = f"t{self.count}"
        self.count += 1
        self.lines.append(f"{name} = {text}")
        return name

    def dim(self, d: Dim) -> str:
        if isinstance(d, int):
            return str(d)
        terms = []
        for monomial, factor in d.terms:
            words = [str(factor)]
            for atom in monomial:
                if isinstance(atom, Symbol):
                    words.append(self.symbol(atom.name))
                    continue
                a, b = (self.dim(x) for x in atom.args)
                words.append(
                    f"({a} {atom.op} {b})" if atom.op in ("//", "%") else f"np.{atom.op}imum({a}, {b})"
                )
            terms.append(" * ".join(words))
        return f"({' + '.join(terms)})"

    def symbol(self, name: str) -> str:
        if name[0] == "@":
            return self.axes[name]
        if name[0] == "#":
            return self.emit(self.scope.values[name])
        return f"n[{name!r}]"

    def emit(self, e: Expr) -> str:
        found = self.memo.get(e)
        if found is None:
            found = self.memo[e] = self.let(self.text(e))
        return found

    def text(self, e: Expr) -> str:
        if isinstance(e, Const):
            value = e.value
            if isinstance(value, float) and not math.isfinite(value):
                return f"np.{e.dtype.numpy.name}({str(value)!r})"
            return f"np.{e.dtype.numpy.name}({value!r})"
        if isinstance(e, IndexValue):
            return f"np.asarray({self.dim(e.index)}, np.int64)"
        if isinstance(e, Load):
            return self.load(e)
        if isinstance(e, Reduce):
            return self.reduce(e)
        if isinstance(e, RowRef):
            return self.row_ref(e)
        if isinstance(e, Row):
            return self.row(e)
        assert isinstance(e, Call)
        args = [self.emit(a) for a in e.args]
        if e.fn in OPERATORS:
            text = f"({args[0]} {OPERATORS[e.fn]} {args[1]})"
        elif e.fn == "cast":
            text = f"{args[0]}"
        elif e.fn == "div":
            text = f"({args[0]} / {args[1]})" if e.dtype.is_float else f"truncdiv({args[0]}, {args[1]})"
        else:
            text = f"{_CALLS[e.fn]}({', '.join(args)})"
        return f"np.asarray({text}).astype(np.{_name(e.dtype)})"

    def mask(self, guards: Sequence[Dim]) -> str:
        return " & ".join(f"(np.asarray({self.dim(g)}) >= 0)" for g in guards)

    def load(self, e: Load) -> str:
        source = f"p[{self.position[e.buffer]}]"
        offset = self.dim(e.offset)
        cast = f".astype(np.{_name(e.dtype)})"
        if not e.guards:
            return f"{source}[np.asarray({offset})]{cast}"
        mask = self.let(self.mask(e.guards))
        return f"guarded({source}, {offset}, {mask}){cast}"

    def reduce(self, e: Reduce) -> str:
        shape = ["1"] * self.rank
        for a in e.axes:
            shape[self.place[a.name]] = self.dim(a.extent)
        value = self.emit(e.value)
        start = f"neutral({e.kind!r}, {value}.dtype)"
        if e.where:
            value = f"np.where({self.mask(e.where)}, {value}, {start})"
        full = f"full({value}, ({', '.join(shape)},))"
        places = tuple(self.place[a.name] for a in e.axes)
        function = {"sum": "add", "prod": "multiply", "max": "maximum", "min": "minimum"}[e.kind]
        dtype = f"np.{_name(e.dtype)}"
        return f"np.{function}.reduce({full}, axis={places}, keepdims=True, initial={start}, dtype={dtype})"

    def row(self, e: Row) -> str:
        shape = ["1"] * self.rank
        for a in e.axes:
            shape[self.place[a.name]] = self.dim(a.extent)
        full = f"full({self.emit(e.value)}, ({', '.join(shape)},))"
        if e.scan:
            return f"np.cumsum({full}, axis={self.place[e.axes[0].name]}, dtype=np.{_name(e.dtype)})"
        return full

    def row_ref(self, e: RowRef) -> str:
        source = self.emit(e.row)
        pairs = ", ".join(
            f"{self.place[a.name]}: {self.dim(i)}" for a, i in zip(e.row.axes, e.index, strict=True)
        )
        return f"pick({source}, {{{pairs}}})"


def _name(dtype: DType) -> str:
    return "bool_" if dtype == BOOL else str(dtype.numpy.name)


def _full(x: Any, shape: tuple[int, ...]) -> Any:
    return np.broadcast_to(x, np.broadcast_shapes(np.shape(x), shape))


def _guarded(source: Any, offset: Any, mask: Any) -> Any:
    offset, mask = np.broadcast_arrays(offset, mask)
    result = np.zeros(mask.shape, source.dtype)
    result[mask] = source[offset[mask]]
    return result


def _neutral(kind: str, dtype: Any) -> Any:
    return dtype.type(neutral(kind, dtype_of(dtype)))


def _pick(source: Any, places: dict[int, Any]) -> Any:
    rank = source.ndim
    index = []
    for position, extent in enumerate(source.shape):
        if position in places:
            index.append(np.asarray(places[position]))
        else:
            shape = [1] * rank
            shape[position] = -1
            index.append(np.arange(extent).reshape(shape))
    return source[tuple(index)]


def _truncdiv(a: Any, b: Any) -> Any:
    a, b = np.broadcast_arrays(a, b)
    safe = np.where(b == 0, np.ones_like(b), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, np.zeros_like(a), quotient)


def _shift(function: Any) -> Any:
    def shift(a: Any, b: Any) -> Any:
        bits = a.dtype.itemsize * 8
        return np.where(b >= bits, a.dtype.type(0), function(a, np.minimum(b, bits - 1)))

    return shift


_erf = np.vectorize(math.erf, otypes=[np.float64])

_HELPERS: dict[str, Any] = {
    "full": _full,
    "guarded": _guarded,
    "neutral": _neutral,
    "pick": _pick,
    "truncdiv": _truncdiv,
    "erf": _erf,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x.astype(np.float64))),
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "round_f16": lambda x: x.astype(np.float16),
    "round_bf16": lambda x: x.astype(ml_dtypes.bfloat16),
}

