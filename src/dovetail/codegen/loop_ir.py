"""The loop IR: tensor expressions over index variables.

A `LoopKernel` is a list of *nests*. A nest has axes (its iteration space) and stores; each store writes one
element of a buffer per point of that space: `buffer[offset] = value`. Values are pure, shared expressions:

    Const(value)                      IndexValue(dim)        an index as an int64 value
    Load(buffer, offset, guards)      Call(fn, args)         Leaf(name), a C variable of a template
    Reduce(kind, axes, value)         sum, prod, max, min over own axes; accumulates in the value's dtype
    RowRef(row, index)                an element of a `Row`: a local array over own axes, computed once

Indices and offsets are `Dim` polynomials in which symbols stand for axes (`@0`), for integers read from memory
(`#0`, see `Scope.data`) and for run-time dims. A guard is a Dim that must be >= 0, else the load gives 0
without touching memory. Offsets count elements from the address of the logical element (0, 0, …).

Nothing says where an expression is computed: a printer places each one in the outermost loop that binds
its indices. So a reduction that does not depend on the inner axis is hoisted to the row, and an equal
expression is computed once. Expressions are interned: equal ones are identical objects.

Values have a *compute dtype*: f32 for f16, bf16 and f32, otherwise the dtype itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dovetail.core.dims import Dim, substitute, sym, symbols
from dovetail.core.dtypes import BF16, F16, F32, I64, DType

REDUCTIONS = ("sum", "prod", "max", "min")


def compute_dtype(dtype: DType) -> DType:
    """The dtype in which elements of `dtype` are computed."""
    return F32 if dtype in (F16, BF16) else dtype


@dataclass(frozen=True)
class Axis:
    """One index variable: symbol name and extent."""

    name: str
    extent: Dim

    @property
    def index(self) -> Dim:
        """The variable as a Dim."""
        return sym(self.name)


@dataclass(frozen=True)
class Buffer:
    """One kernel operand: role ("in" or "out"), position of that role, element type, shape and strides in elements."""

    role: str
    index: int
    dtype: DType
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]

    def offset(self, index: Iterable[Dim]) -> Dim:
        """The element offset of a logical index."""
        total: Dim = 0
        for i, stride in zip(index, self.strides, strict=True):
            total = total + i * stride
        return total


class Expr:
    """Base of expressions; `dtype` is the compute dtype, `free` the index symbols it depends on."""

    __slots__ = ("__weakref__", "dtype", "free")
    dtype: DType
    free: frozenset[str]


_interned: weakref.WeakValueDictionary[tuple[Any, ...], Expr] = weakref.WeakValueDictionary()


def _intern(key: tuple[Any, ...], make: Callable[[], Expr]) -> Any:
    found = _interned.get(key)
    if found is None:
        found = _interned.setdefault(key, make())
    return found


class Const(Expr):
    """A literal."""

    __slots__ = ("value",)
    value: float | int | bool


class IndexValue(Expr):
    """An index as an int64 value."""

    __slots__ = ("index",)
    index: Dim


class Load(Expr):
    """One element of a buffer, or 0 where a guard is negative."""

    __slots__ = ("buffer", "guards", "offset")
    buffer: Buffer
    offset: Dim
    guards: tuple[Dim, ...]


class Call(Expr):
    """A scalar function of scalars; `print_c` lists the functions."""

    __slots__ = ("args", "fn")
    fn: str
    args: tuple[Expr, ...]


class Leaf(Expr):
    """A variable that surrounding template code defines."""

    __slots__ = ("name",)
    name: str


class Reduce(Expr):
    """A reduction of `value` over the points of its own axes where all Dims of `where` are >= 0.

    An empty one gives the neutral element.
    """

    __slots__ = ("axes", "kind", "value", "where")
    kind: str
    axes: tuple[Axis, ...]
    value: Expr
    where: tuple[Dim, ...]


class Row(Expr):
    """A local array over its own axes; with `scan`, a running sum along its (only) axis."""

    __slots__ = ("axes", "scan", "value")
    axes: tuple[Axis, ...]
    value: Expr
    scan: bool


class RowRef(Expr):
    """One element of a row."""

    __slots__ = ("index", "row")
    row: Row
    index: tuple[Dim, ...]


class Scope:
    """Names of one kernel's axes and of integers read from memory."""

    def __init__(self) -> None:
        self._axes = 0
        self.extents: dict[str, Dim] = {}
        self._data: dict[Expr, str] = {}
        self.values: dict[str, Expr] = {}

    def axis(self, extent: Dim) -> Axis:
        """A fresh axis."""
        self._axes += 1
        axis = Axis(f"@{self._axes - 1}", extent)
        self.extents[axis.name] = extent
        return axis

    def data(self, value: Expr) -> Dim:
        """An integer expression as a Dim that may appear in indices."""
        if isinstance(value, IndexValue):
            return value.index
        if isinstance(value, Const):
            return int(value.value)
        name = self._data.get(value)
        if name is None:
            name = self._data[value] = f"#{len(self._data)}"
            self.values[name] = value
        return sym(name)

    def free(self, d: Dim) -> frozenset[str]:
        """The axis symbols that d depends on, also through integers read from memory."""
        found: set[str] = set()
        for name in symbols(d):
            if name[0] == "@":
                found.add(name)
            elif name[0] == "#":
                found |= self.values[name].free
        return frozenset(found)


def const(value: float | int | bool, dtype: DType) -> Const:
    """A literal of a compute dtype."""

    def make() -> Expr:
        e = Const()
        e.value, e.dtype, e.free = value, dtype, frozenset()
        return e

    result: Const = _intern((Const, type(value), repr(value), dtype), make)
    return result


def index_value(scope: Scope, index: Dim) -> Expr:
    """An index as an int64 expression."""
    if isinstance(index, int):
        return const(index, I64)

    def make() -> Expr:
        e = IndexValue()
        e.index, e.dtype, e.free = index, I64, scope.free(index)
        return e

    result: Expr = _intern((IndexValue, id(scope), index), make)
    return result


def load(scope: Scope, buffer: Buffer, offset: Dim, guards: tuple[Dim, ...] = ()) -> Load:
    """An element of a buffer."""
    kept = tuple(dict.fromkeys(g for g in guards if not isinstance(g, int) or g < 0))

    def make() -> Expr:
        e = Load()
        e.buffer, e.offset, e.guards = buffer, offset, kept
        e.dtype = compute_dtype(buffer.dtype)
        e.free = scope.free(offset).union(*(scope.free(g) for g in kept))
        return e

    result: Load = _intern((Load, id(scope), buffer, offset, kept), make)
    return result


def call(fn: str, args: tuple[Expr, ...], dtype: DType) -> Call:
    """A scalar function application."""

    def make() -> Expr:
        e = Call()
        e.fn, e.args, e.dtype = fn, args, dtype
        e.free = frozenset().union(*(a.free for a in args))
        return e

    # The arguments are kept alive by the node, so their identities stay valid while it lives.
    result: Call = _intern((Call, fn, tuple(map(id, args)), dtype), make)
    return result


def leaf(name: str, dtype: DType) -> Leaf:
    """A variable of surrounding code."""

    def make() -> Expr:
        e = Leaf()
        e.name, e.dtype, e.free = name, dtype, frozenset()
        return e

    result: Leaf = _intern((Leaf, name, dtype), make)
    return result


def _names(axes: tuple[Axis, ...]) -> frozenset[str]:
    return frozenset(a.name for a in axes)


def reduce(
    scope: Scope, kind: str, axes: tuple[Axis, ...], value: Expr, where: tuple[Dim, ...] = ()
) -> Expr:
    """A reduction; without axes and conditions it is the value itself."""
    assert kind in REDUCTIONS, kind
    kept = tuple(dict.fromkeys(g for g in where if not isinstance(g, int) or g < 0))
    if not axes and not kept:
        return value

    def make() -> Expr:
        e = Reduce()
        e.kind, e.axes, e.value, e.where, e.dtype = kind, axes, value, kept, value.dtype
        e.free = value.free.union(*(scope.free(g) for g in kept)) - _names(axes)
        return e

    result: Expr = _intern((Reduce, id(scope), kind, axes, id(value), kept), make)
    return result


def row(axes: tuple[Axis, ...], value: Expr, scan: bool = False) -> Row:
    """A local array."""
    assert not scan or len(axes) == 1

    def make() -> Expr:
        e = Row()
        e.axes, e.value, e.scan, e.dtype = axes, value, scan, value.dtype
        e.free = value.free - _names(axes)
        return e

    result: Row = _intern((Row, axes, id(value), scan), make)
    return result


def row_ref(scope: Scope, source: Row, index: tuple[Dim, ...]) -> RowRef:
    """An element of a local array."""

    def make() -> Expr:
        e = RowRef()
        e.row, e.index, e.dtype = source, index, source.dtype
        e.free = source.free.union(*(scope.free(i) for i in index))
        return e

    result: RowRef = _intern((RowRef, id(scope), id(source), index), make)
    return result


@dataclass(frozen=True)
class Store:
    """`buffer[offset] = value`, rounded to the buffer's dtype, at every point of the nest's axes."""

    buffer: Buffer
    offset: Dim
    value: Expr


@dataclass(frozen=True)
class Nest:
    """An iteration space (axes from outermost to innermost in the output's memory) and its stores."""

    axes: tuple[Axis, ...]
    stores: tuple[Store, ...]


@dataclass(frozen=True)
class LoopKernel:
    """A kernel in loop IR: operands in parameter order, nests that do not depend on each other."""

    buffers: tuple[Buffer, ...]
    nests: tuple[Nest, ...]
    scope: Scope = field(compare=False)


def children(e: Expr, scope: Scope) -> Iterator[Expr]:
    """The expressions directly below e, including integers read from memory in its indices."""
    if isinstance(e, Call):
        yield from e.args
    elif isinstance(e, (Reduce, Row)):
        yield e.value
    elif isinstance(e, RowRef):
        yield e.row
    for d in dims_of(e):
        for name in sorted(symbols(d)):
            if name[0] == "#":
                yield scope.values[name]


def dims_of(e: Expr) -> tuple[Dim, ...]:
    """The index polynomials of e itself."""
    if isinstance(e, IndexValue):
        return (e.index,)
    if isinstance(e, Load):
        return (e.offset, *e.guards)
    if isinstance(e, RowRef):
        return e.index
    if isinstance(e, Reduce):
        return e.where
    return ()


def walk(roots: Iterable[Expr], scope: Scope) -> Iterator[Expr]:
    """Every expression reachable from roots, each once."""
    seen: set[Expr] = set()
    stack = list(roots)
    while stack:
        e = stack.pop()
        if e not in seen:
            seen.add(e)
            yield e
            stack.extend(children(e, scope))


class Rewriter:
    """Rewrites expressions bottom up: `dim` maps every index polynomial, `axes` the axes of reductions and rows."""

    def __init__(
        self,
        scope: Scope,
        dim: Callable[[Dim], Dim],
        axes: Callable[[tuple[Axis, ...]], tuple[Axis, ...]] = lambda axes: axes,
    ) -> None:
        self.scope, self._dim, self._axes = scope, dim, axes
        self._done: dict[Expr, Expr] = {}

    def dim(self, d: Dim) -> Dim:
        """The rewritten index polynomial."""
        data = {
            name: self.scope.data(self(self.scope.values[name]))
            for name in sorted(symbols(d))
            if name[0] == "#"
        }
        changed: Mapping[str, Dim] = {n: v for n, v in data.items() if v != sym(n)}
        return self._dim(substitute(d, changed) if changed else d)

    def __call__(self, e: Expr) -> Expr:
        """The rewritten expression."""
        done = self._done
        # Operands first and without recursion: interpolation makes chains of hundreds of operations.
        pending = [e] if e not in done else []
        while pending:
            missing = [c for c in children(pending[-1], self.scope) if c not in done]
            if missing:
                pending += missing
            else:
                current = pending.pop()
                if current not in done:
                    done[current] = self._rebuild(current)
        return done[e]

    def _rebuild(self, e: Expr) -> Expr:
        if isinstance(e, IndexValue):
            return index_value(self.scope, self.dim(e.index))
        if isinstance(e, Load):
            guards = tuple(self.dim(g) for g in e.guards)
            return load(self.scope, e.buffer, self.dim(e.offset), guards)
        if isinstance(e, Call):
            return call(e.fn, tuple(self(a) for a in e.args), e.dtype)
        if isinstance(e, Reduce):
            where = tuple(self.dim(g) for g in e.where)
            return reduce(self.scope, e.kind, self._axes(e.axes), self(e.value), where)
        if isinstance(e, Row):
            return row(self._axes(e.axes), self(e.value), e.scan)
        if isinstance(e, RowRef):
            source = self(e.row)
            assert isinstance(source, Row)
            return row_ref(self.scope, source, tuple(self.dim(i) for i in e.index))
        return e
