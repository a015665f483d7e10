"""Properties of layers: what a client sets is checked, kept with the layer, and noted as a change of the network."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from dovetail.tensorrt.dims import Dims, DimsHW, Permutation
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.weights import Weights, as_weights

if TYPE_CHECKING:
    from dovetail.tensorrt.layer import ILayer

T = TypeVar("T")
Convert = Callable[[Any, str], Any]


class Setting(Generic[T]):
    """A property of a layer class.

    Args:
        convert: checks a value of the client's; raises TypeError.
        default: what a layer has until it is set.
        doc: what it is.
        show: makes what clients read of what is kept; values that can change are given as copies.
        key: the name it is kept under; default: its own. An old name of a property shares the key of the new one.
    """

    def __init__(
        self, convert: Convert, default: Any, doc: str, *, show: Callable[[Any], Any] | None = None, key: str = ""
    ) -> None:
        self.convert, self.default, self.show, self.key, self.__doc__ = convert, default, show, key, doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.where = f"{owner.__name__}.{name}"
        self.key = self.key or name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(self, instance: ILayer, owner: type | None = None) -> T: ...
    def __get__(self, instance: ILayer | None, owner: type | None = None) -> Self | T:
        if instance is None:
            return self
        value = instance._record.values.get(self.key, self.default)
        shown: T = value if self.show is None or value is None else self.show(value)
        return shown

    def __set__(self, instance: ILayer, value: Any) -> None:
        instance._record.change(self.key, self.convert(value, self.where))


def integer(value: Any, where: str) -> int:
    """An int, or what Python takes for one."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: got {value!r}, expected an integer") from None


def number(value: Any, where: str) -> float:
    """A float, or what Python takes for one."""
    if hasattr(value, "__float__") or hasattr(value, "__index__"):
        return float(value)
    raise TypeError(f"{where}: got {value!r}, expected a number")


def boolean(value: Any, where: str) -> bool:
    """A bool; ints and NumPy's bools count."""
    if type(value).__name__ in ("bool", "bool_") or isinstance(value, int):
        return bool(value)
    raise TypeError(f"{where}: got {value!r}, expected a bool")


def text(value: Any, where: str) -> str:
    """A str."""
    return expect(str, value, where)


def of(kind: type) -> Convert:
    """A value of one class, such as a member of an enum."""
    return lambda value, where: expect(kind, value, where)


def extents(value: Any, where: str) -> tuple[int, ...]:
    """A shape: Dims or any sequence of ints, kept as a tuple."""
    try:
        return tuple(value if isinstance(value, Dims) else Dims(value))
    except TypeError:
        raise TypeError(f"{where}: got {value!r}, expected Dims or a sequence of ints") from None


def pair(value: Any, where: str) -> tuple[int, ...]:
    """Height and width."""
    found = extents(value, where)
    if len(found) != 2:
        raise TypeError(f"{where}: got {value!r}, expected height and width")
    return found


def order(value: Any, where: str) -> tuple[int, ...]:
    """A permutation of axes, kept as a tuple of 8."""
    try:
        return tuple(value if isinstance(value, Permutation) else Permutation(value))
    except TypeError:
        raise TypeError(f"{where}: got {value!r}, expected a Permutation or a sequence of ints") from None


def elements(value: Any, where: str) -> Weights:
    """Weights, or an array."""
    return as_weights(value, where)


def optional(convert: Convert) -> Convert:
    """None, or what `convert` takes."""
    return lambda value, where: None if value is None else convert(value, where)


def dims_setting(default: tuple[int, ...] | None, doc: str, key: str = "") -> Setting[Dims]:
    """A shape, window or stride."""
    return Setting(extents, default, doc, show=Dims, key=key)


def pair_setting(key: str, doc: str) -> Setting[DimsHW]:
    """The old two-dimensional name of a property."""
    return Setting(pair, None, doc, show=_height_and_width, key=key)


def _height_and_width(value: tuple[int, ...]) -> DimsHW:
    return DimsHW(tuple(value)[-2:])


def weights_setting(doc: str) -> Setting[Any]:
    """Weights; clients read an array where NumPy has the type."""
    return Setting(elements, Weights(), doc, show=lambda weights: weights.numpy())
