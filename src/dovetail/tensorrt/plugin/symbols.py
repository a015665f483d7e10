"""Scalars that a compiled kernel of a plugin is launched with: `SymInt32`, `SymIntExprs`, `KernelLaunchParams`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import PluginArgDataType, PluginArgType
from dovetail.tensorrt.plugin.shapes import ShapeExpr
from dovetail.tensorrt.plugin_expr import IDimensionExpr, IExprBuilder


class ISymExpr:
    """A scalar argument: its kind, its element type, and the expression that gives its value."""

    def __init__(self, expr: int | ShapeExpr | IDimensionExpr = 0, dtype: PluginArgDataType = PluginArgDataType.INT32) -> None:
        self._expr = as_expr(expr)
        self._dtype = expect(PluginArgDataType, dtype, "ISymExpr: dtype")

    @property
    def type(self) -> PluginArgType:
        """The kind: INT."""
        return PluginArgType.INT

    @property
    def dtype(self) -> PluginArgDataType:
        """The element type."""
        return self._dtype

    @property
    def expr(self) -> IDimensionExpr:
        """The value."""
        return self._expr


class _SymInt(ISymExpr):
    _width: ClassVar[PluginArgDataType]

    def __init__(self, value: int | ShapeExpr | IDimensionExpr = 0) -> None:
        super().__init__(value, self._width)


class SymInt8(_SymInt):
    """An argument of 8 bits."""

    _width = PluginArgDataType.INT8


class SymInt16(_SymInt):
    """An argument of 16 bits."""

    _width = PluginArgDataType.INT16


class SymInt32(_SymInt):
    """An argument of 32 bits."""

    _width = PluginArgDataType.INT32


class ISymExprs:
    """The scalar arguments of a kernel, in order: `SymIntExprs(count)` is filled by index."""

    def __init__(self, length: int = 0) -> None:
        self._items: list[ISymExpr] = [SymInt32(0) for _ in range(length)]

    @classmethod
    def from_tuple(cls, sym_exprs: Any) -> Any:
        """The arguments of an iterable of expressions; ints and shape expressions become such of 32 bits."""
        made = cls()
        made._items = [e if isinstance(e, ISymExpr) else SymInt32(e) for e in sym_exprs]
        return made

    @property
    def nbSymExprs(self) -> int:
        """The number of arguments."""
        return len(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[ISymExpr]:
        return iter(self._items)

    def __getitem__(self, index: int) -> ISymExpr:
        return self._items[index]

    def __setitem__(self, index: int, value: Any) -> None:
        self._items[index] = value if isinstance(value, ISymExpr) else SymInt32(value)


class SymExprs(ISymExprs):
    """The scalar arguments of a kernel."""


class SymIntExprs(SymExprs):
    """Integer arguments of a kernel."""


class KernelLaunchParams:
    """How a kernel is launched: `grid_x` … blocks of `block_x` … threads, with `shared_mem` bytes; ints or expressions."""

    __slots__ = ("_values",)

    def __init__(self, **params: Any) -> None:
        self._values: dict[str, IDimensionExpr] = {}
        for name, value in params.items():
            setattr(self, name, value)

    def _set(self, name: str, value: Any) -> None:
        self._values[name] = as_expr(value)

    def _get(self, name: str) -> IDimensionExpr:
        return self._values.get(name, as_expr(0 if name == "shared_mem" else 1))


def _parameter(name: str, doc: str) -> property:
    return property(lambda self: self._get(name), lambda self, value: self._set(name, value), doc=doc)


for _name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z"):
    setattr(KernelLaunchParams, _name, _parameter(_name, f"The extent of the {_name[:-2]} along {_name[-1]}; 1 by default."))
KernelLaunchParams.shared_mem = _parameter("shared_mem", "Bytes of dynamic shared memory; 0 by default.")  # type: ignore[attr-defined]


def as_expr(value: Any) -> IDimensionExpr:
    """The expression of an int or a shape expression.

    Raises:
        TypeError: something else, or a shape expression without a value.
    """
    if isinstance(value, ISymExpr):
        return value.expr
    if isinstance(value, ShapeExpr):
        value = value._expr
    if isinstance(value, IDimensionExpr):
        return value
    return IExprBuilder().constant(value)
