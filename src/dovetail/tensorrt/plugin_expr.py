"""Shapes as plugins compute them: `IDimensionExpr`, `IExprBuilder` and `DimsExprs` over Dovetail's dims."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dovetail.core import dims
from dovetail.core.dims import Dim
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DimensionOperation


class IDimensionExpr:
    """An extent: a number, or an expression over the extents of a plugin's inputs. Made by an `IExprBuilder`."""

    __slots__ = ("_dim", "_size_of")
    _dim: Dim
    _size_of: int | None

    def __init__(self) -> None:
        raise TypeError("IDimensionExpr: No constructor defined!")

    @classmethod
    def _of(cls, dim: Dim, size_of: int | None = None) -> IDimensionExpr:
        made = object.__new__(cls)
        made._dim, made._size_of = dim, size_of
        return made

    def is_constant(self) -> bool:
        """Whether it is a number at build time."""
        return isinstance(self._dim, int)

    def get_constant_value(self) -> int:
        """The number; the smallest 64-bit integer where it is none."""
        return self._dim if isinstance(self._dim, int) else -(2**63)

    def is_size_tensor(self) -> bool:
        """Whether the plugin computes it in the run."""
        return self._size_of is not None

    # The names of 9.
    isConstant = is_constant
    getConstantValue = get_constant_value

    def __repr__(self) -> str:
        return f"<IDimensionExpr: {self._dim}>"


_OPERATIONS: dict[DimensionOperation, Callable[[Any, Any], Dim]] = {
    DimensionOperation.SUM: operator.add,
    DimensionOperation.PROD: operator.mul,
    DimensionOperation.SUB: operator.sub,
    DimensionOperation.MAX: dims.maximum,
    DimensionOperation.MIN: dims.minimum,
    # Of integers, a < b if b - a is at least 1.
    DimensionOperation.LESS: lambda a, b: dims.minimum(dims.maximum(b - a, 0), 1),
    DimensionOperation.EQUAL: lambda a, b: 1 - dims.minimum(dims.maximum(a - b, b - a), 1),
    DimensionOperation.FLOOR_DIV: dims.floor_div,
    DimensionOperation.CEIL_DIV: dims.ceil_div,
}


class IExprBuilder:
    """Makes expressions for extents; a plugin gets one for the time of one call.

    Attributes:
        sizes: of size tensors: the index of the plugin's output that holds the extent, with its likely and its largest value.
    """

    def __init__(self) -> None:
        self.sizes: dict[int, tuple[Dim, Dim]] = {}

    def constant(self, value: int) -> IDimensionExpr:
        """A number."""
        try:
            return IDimensionExpr._of(operator.index(value))
        except TypeError:
            raise TypeError(f"IExprBuilder.constant: got {value!r}, expected an integer") from None

    def operation(self, op: DimensionOperation, first: IDimensionExpr, second: IDimensionExpr) -> IDimensionExpr:
        """The result of an operation on two expressions."""
        expect(DimensionOperation, op, "IExprBuilder.operation: op")
        a, b = (expect(IDimensionExpr, e, "IExprBuilder.operation") for e in (first, second))
        return IDimensionExpr._of(_OPERATIONS[op](a._dim, b._dim))

    def declare_size_tensor(self, output_index: int, opt: IDimensionExpr, upper: IDimensionExpr) -> IDimensionExpr:
        """An extent that the plugin writes in the run, to its 0-d integer output of that index; it is at most `upper`."""
        index = operator.index(output_index)
        likely, most = (expect(IDimensionExpr, e, "IExprBuilder.declare_size_tensor") for e in (opt, upper))
        self.sizes[index] = likely._dim, most._dim
        return IDimensionExpr._of(dims.sym(size_symbol(index)), index)


class DimsExprs:
    """A shape of expressions: `DimsExprs(length)`, `DimsExprs(iterable)`, `DimsExprs(DimsExprs)`, or `DimsExprs()` of no extents."""

    __slots__ = ("_items",)
    __hash__ = None  # type: ignore[assignment]  # mutable

    def __init__(self, dims: int | Iterable[IDimensionExpr] = ()) -> None:
        self._items: list[IDimensionExpr]
        if hasattr(dims, "__iter__"):
            self._items = [expect(IDimensionExpr, d, "DimsExprs") for d in dims]
        else:
            self._items = [IDimensionExpr._of(0)] * operator.index(dims)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[IDimensionExpr]:
        return iter(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __setitem__(self, index: int, value: IDimensionExpr) -> None:
        self._items[operator.index(index)] = expect(IDimensionExpr, value, "DimsExprs")

    def __repr__(self) -> str:
        return f"DimsExprs({', '.join(str(e._dim) for e in self._items)})"


def size_symbol(output: int) -> str:
    """The symbol of an extent that the plugin's output of that index holds."""
    return f"z{output}"


def exprs(shape: Iterable[Dim]) -> DimsExprs:
    """A shape as plugins get it."""
    return DimsExprs(IDimensionExpr._of(d) for d in shape)


def extents(shape: DimsExprs) -> tuple[Dim, ...]:
    """The dims of a shape that a plugin gave."""
    return tuple(e._dim for e in shape)
