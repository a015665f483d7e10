"""Shapes in functions of plugins: expressions (`ShapeExpr`, `ShapeExprs`) where a plugin is described, numbers (`Shape`) where it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.enums import DimensionOperation
from dovetail.tensorrt.plugin_desc import DynamicPluginTensorDesc, PluginTensorDesc
from dovetail.tensorrt.plugin_expr import IDimensionExpr, IExprBuilder

BUILDER: ContextVar[IExprBuilder] = ContextVar("BUILDER")
"""The builder of the shape calculation that is under way, which size tensors are declared with."""


class ShapeExpr:
    """An extent as an expression: `ShapeExpr(int)`, `ShapeExpr(expression)`; `ShapeExpr()` is fake.

    Fake ones stand for extents where only element types are asked for: results with them are fake, and have no value.
    """

    __hash__ = None  # type: ignore[assignment]  # equality is an expression

    def __init__(self, value: int | IDimensionExpr | ShapeExpr | None = None) -> None:
        self._known: IDimensionExpr | None
        if isinstance(value, ShapeExpr):
            self._known = value._known
        elif value is None or isinstance(value, IDimensionExpr):
            self._known = value
        else:
            self._known = IExprBuilder().constant(value)

    @property
    def _expr(self) -> IDimensionExpr | None:
        return self._known

    def _op(self, op: DimensionOperation, other: int | ShapeExpr) -> ShapeExpr:
        second = other if isinstance(other, ShapeExpr) else ShapeExpr(other)
        if self.is_size_tensor or second.is_size_tensor:
            raise ValueError("It is not permitted to perform binary operations on size tensor expressions")
        if self._expr is None or second._expr is None:
            return ShapeExpr()
        return ShapeExpr(IExprBuilder().operation(op, self._expr, second._expr))

    def __add__(self, other: int | ShapeExpr) -> ShapeExpr:
        return self._op(DimensionOperation.SUM, other)

    def __sub__(self, other: int | ShapeExpr) -> ShapeExpr:
        return self._op(DimensionOperation.SUB, other)

    def __mul__(self, other: int | ShapeExpr) -> ShapeExpr:
        return self._op(DimensionOperation.PROD, other)

    def __floordiv__(self, other: int | ShapeExpr) -> ShapeExpr:
        return self._op(DimensionOperation.FLOOR_DIV, other)

    def __eq__(self, other: int | ShapeExpr) -> ShapeExpr:  # type: ignore[override]  # an expression, too
        return self._op(DimensionOperation.EQUAL, other)

    def __lt__(self, other: int | ShapeExpr) -> ShapeExpr:
        return self._op(DimensionOperation.LESS, other)

    @property
    def is_fake(self) -> bool:
        """Whether only element types are asked for, so that it has no value."""
        return self._expr is None

    @property
    def is_size_tensor(self) -> bool:
        """Whether the plugin computes it in the run."""
        return False

    @property
    def is_constant(self) -> bool:
        """Whether it is a number at build time.

        Raises:
            RuntimeError: it is fake.
        """
        if self._expr is None:
            raise RuntimeError("Not accessible for fake 'ShapeExpr's. Check is_fake to determine accessibility.")
        return self._expr.is_constant()

    def constant_value(self) -> int:
        """The number.

        Raises:
            RuntimeError: it is fake, or no number.
        """
        if not self.is_constant or self._expr is None:
            raise RuntimeError("Not accessible for non-constant shape expressions. Check is_constant to determine accessibility.")
        return self._expr.get_constant_value()

    def __repr__(self) -> str:
        return "FakeShapeExpr" if self._expr is None else f"ShapeExpr[{self._expr._dim}]"


class SizeTensorShapeExpr(ShapeExpr):
    """The extent that a size tensor holds; nothing is computed of it."""

    def __init__(self, size_tensor_desc: Any) -> None:
        super().__init__()
        self._of = size_tensor_desc

    @property
    def _expr(self) -> IDimensionExpr | None:
        if self._known is None and not self.is_fake:
            opt, most = self._of.opt._expr, self._of.upper_bound._expr
            self._known = BUILDER.get().declare_size_tensor(self._of.index, opt, most)
        return self._known

    @property
    def is_fake(self) -> bool:
        """Whether only element types are asked for."""
        fake: bool = self._of.opt.is_fake
        return fake

    @property
    def is_size_tensor(self) -> bool:
        """Whether the plugin computes it in the run: yes."""
        return True

    def __repr__(self) -> str:
        return "ShapeExpr[is_size_tensor = True]"


class ShapeExprs:
    """A shape of expressions: `ShapeExprs(rank)` is filled by index, `ShapeExprs.from_tuple` from extents."""

    def __init__(self, length: int, _is_dummy: bool = False) -> None:
        self._items = [ShapeExpr() if _is_dummy else ShapeExpr(0) for _ in range(length)]

    @classmethod
    def from_tuple(cls, shape_exprs: Iterable[ShapeExpr | int]) -> ShapeExprs:
        """The shape of some extents."""
        made = cls(0)
        made._items = [e if isinstance(e, ShapeExpr) else ShapeExpr(e) for e in shape_exprs]
        return made

    def numel(self) -> ShapeExpr:
        """The number of elements."""
        product = ShapeExpr(1)
        for extent in self._items:
            product = product * extent
        return product

    def __iter__(self) -> Iterator[ShapeExpr]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __setitem__(self, index: int, shape: ShapeExpr | int) -> None:
        self._items[index] = shape if isinstance(shape, ShapeExpr) else ShapeExpr(shape)

    def __repr__(self) -> str:
        return f"ShapeExprs[{', '.join(map(repr, self._items))}]"


class Shape:
    """A shape of numbers, -1 for extents that are not known yet: of a tuple or a description of a tensor.

    Raises:
        ValueError: made of something else.
    """

    def __init__(self, tensor_desc: tuple[int, ...] | DynamicPluginTensorDesc | PluginTensorDesc) -> None:
        self._bounds: DynamicPluginTensorDesc | None = None
        if isinstance(tensor_desc, DynamicPluginTensorDesc):
            self._bounds, dims = tensor_desc, tensor_desc.desc.dims
        elif isinstance(tensor_desc, PluginTensorDesc):
            dims = tensor_desc.dims
        elif isinstance(tensor_desc, tuple):
            dims = Dims(tensor_desc)
        else:
            raise ValueError(f"Shape: got {type(tensor_desc).__name__}, expected a tuple, a DynamicPluginTensorDesc or a PluginTensorDesc")
        self._dims = Dims(dims)

    def numel(self) -> int:
        """The number of elements.

        Raises:
            ValueError: an extent is not known.
        """
        if self.is_dynamic:
            raise ValueError("Shape has at least one dynamic dimension.")
        return math.prod(self._dims)

    @property
    def is_dynamic(self) -> bool:
        """Whether an extent is not known."""
        return -1 in list(self._dims)

    def _bound(self, name: str) -> tuple[int, ...]:
        if not self.is_dynamic:
            raise ValueError(f"{name} property is only accessible if is_dynamic is true")
        if self._bounds is None:
            raise AttributeError(f"Shape has at least one dynamic dimension, but nothing is known of its '{name}'.")
        return tuple(getattr(self._bounds, name))

    @property
    def opt(self) -> tuple[int, ...]:
        """The likely shape, while it is dynamic."""
        return self._bound("opt")

    @property
    def min(self) -> tuple[int, ...]:
        """The least shape, while it is dynamic."""
        return self._bound("min")

    @property
    def max(self) -> tuple[int, ...]:
        """The largest shape, while it is dynamic."""
        return self._bound("max")

    def __iter__(self) -> Iterator[int]:
        return iter(self._dims)

    def __len__(self) -> int:
        return len(self._dims)

    def __getitem__(self, index: Any) -> Any:
        return self._dims[index]

    def __setitem__(self, index: int, val: int) -> None:
        self._dims[index] = val

    def __str__(self) -> str:
        return f"Shape{tuple(self._dims)}"


def _operate(op: DimensionOperation, first: int | ShapeExpr, second: int | ShapeExpr) -> ShapeExpr:
    if not isinstance(first, ShapeExpr) and not isinstance(second, ShapeExpr):
        raise ValueError("Both arguments cannot be 'int's")
    return (first if isinstance(first, ShapeExpr) else ShapeExpr(first))._op(op, second)


def cdiv(first: int | ShapeExpr, second: int | ShapeExpr) -> ShapeExpr:
    """The quotient, rounded up.

    Raises:
        ValueError: both are ints.
    """
    return _operate(DimensionOperation.CEIL_DIV, first, second)


def max(first: int | ShapeExpr, second: int | ShapeExpr) -> ShapeExpr:
    """The larger of two extents.

    Raises:
        ValueError: both are ints.
    """
    return _operate(DimensionOperation.MAX, first, second)


def min(first: int | ShapeExpr, second: int | ShapeExpr) -> ShapeExpr:
    """The smaller of two extents.

    Raises:
        ValueError: both are ints.
    """
    return _operate(DimensionOperation.MIN, first, second)
