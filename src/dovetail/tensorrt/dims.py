"""`Dims` and its kin: short mutable vectors of ints that compare with tuples and lists and print like tuples."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self, overload


class Dims:
    """A shape: `Dims()` or `Dims(iterable of ints)`, at most 8 of them; -1 stands for an extent that is not fixed.

    Equal to a tuple, list or Dims of the same ints; indices may be negative; a slice is a tuple.
    A shape that does not exist (`invalid()`) has no length: `len` raises ValueError.

    Raises:
        TypeError: something that is no integer.
        ValueError: the wrong number of ints.
    """

    MAX_DIMS: ClassVar[int] = 8
    _length: ClassVar[int | None] = None

    __slots__ = ("_items", "_valid")
    __hash__ = None  # type: ignore[assignment]  # mutable

    def __init__(self, shape: Iterable[Any] | None = None) -> None:
        length = type(self)._length
        items = [0] * (length or 0) if shape is None else [_integer(self, x) for x in _iterate(self, shape)]
        if length is not None and len(items) != length:
            raise ValueError(f"{type(self).__name__}: got {len(items)} extents, expected {length}")
        if len(items) > self.MAX_DIMS:
            raise ValueError(f"{type(self).__name__}: got {len(items)} extents, expected at most {self.MAX_DIMS}")
        self._items = items
        self._valid = True

    def __len__(self) -> int:
        if not self._valid:
            raise ValueError("__len__() should return >= 0: the shape is invalid")
        return len(self._items)

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return tuple(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __setitem__(self, index: int | slice, value: Any) -> None:
        if isinstance(index, slice):
            new = [_integer(self, x) for x in _iterate(self, value)]
            if len(new) != len(self._items[index]):
                raise ValueError(f"{type(self).__name__}: got {len(new)} extents, expected {len(self._items[index])}")
            self._items[index] = new
        else:
            self._items[index] = _integer(self, value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dims):
            return self._valid == other._valid and self._items == other._items
        if isinstance(other, (tuple, list)):
            return self._valid and self._items == list(other)
        return NotImplemented

    def __bool__(self) -> bool:
        return self._valid and bool(self._items)

    def __repr__(self) -> str:
        return repr(tuple(self._items)) if self._valid else "(invalid)"

    __str__ = __repr__

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (list(self._items),)) if self._valid else (invalid, ())

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self)(self._items)
        new._valid = self._valid
        return new


class Dims2(Dims):
    """Two extents: `Dims2()`, `Dims2(a, b)` or `Dims2(iterable)`."""

    __slots__ = ()
    _length = 2

    def __init__(self, *dims: Any, **named: Any) -> None:
        super().__init__(_extents(self, dims, named))


class DimsHW(Dims2):
    """Height and width: `DimsHW()`, `DimsHW(h, w)` or `DimsHW(iterable)`; also as `.h` and `.w`."""

    __slots__ = ()

    @property
    def h(self) -> int:
        """The height."""
        return self[0]

    @h.setter
    def h(self, value: int) -> None:
        self[0] = value

    @property
    def w(self) -> int:
        """The width."""
        return self[1]

    @w.setter
    def w(self, value: int) -> None:
        self[1] = value


class Dims3(Dims):
    """Three extents: `Dims3()`, `Dims3(a, b, c)` or `Dims3(iterable)`."""

    __slots__ = ()
    _length = 3

    def __init__(self, *dims: Any, **named: Any) -> None:
        super().__init__(_extents(self, dims, named))


class Dims4(Dims):
    """Four extents: `Dims4()`, `Dims4(a, b, c, d)` or `Dims4(iterable)`."""

    __slots__ = ()
    _length = 4

    def __init__(self, *dims: Any, **named: Any) -> None:
        super().__init__(_extents(self, dims, named))


class Permutation:
    """An order of axes: `Permutation()` keeps them, `Permutation(iterable)` gives the first ones; always 8 long.

    Raises:
        TypeError: something that is no integer.
        ValueError: more than 8 axes.
    """

    __slots__ = ("_items",)
    __hash__ = None  # type: ignore[assignment]  # mutable

    def __init__(self, permutation: Iterable[Any] | None = None) -> None:
        given = [] if permutation is None else [_integer(self, x) for x in _iterate(self, permutation)]
        if len(given) > Dims.MAX_DIMS:
            raise ValueError(f"Permutation: got {len(given)} axes, expected at most {Dims.MAX_DIMS}")
        # Axes beyond those given stay where they are.
        self._items = given + list(range(len(given), Dims.MAX_DIMS))

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return tuple(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._items[index] = _integer(self, value)

    def __eq__(self, other: object) -> bool:
        return self._items == list(other) if isinstance(other, (Permutation, tuple, list)) else NotImplemented

    def __repr__(self) -> str:
        return repr(tuple(self._items))

    def __reduce__(self) -> tuple[type[Permutation], tuple[list[int]]]:
        return Permutation, (list(self._items),)


def invalid() -> Dims:
    """The shape of something that has none, such as the profile of an output."""
    dims = Dims()
    dims._valid = False
    return dims


def as_dims(shape: Any, where: str) -> Dims:
    """A Dims, or one made of the ints of an iterable, as TensorRT takes them.

    Raises:
        TypeError: no iterable of integers, or too many; `where` names the method and the argument.
    """
    if isinstance(shape, Dims):
        return shape
    if shape is None:
        raise TypeError(f"{where}: got None, expected up to {Dims.MAX_DIMS} integers")
    try:
        return Dims(shape)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: got {shape!r}, expected up to {Dims.MAX_DIMS} integers") from error


def _iterate(of: object, shape: Any) -> Iterable[Any]:
    if isinstance(shape, (str, bytes)) or not hasattr(shape, "__iter__"):
        raise TypeError(f"{type(of).__name__}: got {shape!r}, expected an iterable of integers")
    items: Iterable[Any] = shape
    return items


def _integer(of: object, item: Any) -> int:
    try:
        return operator.index(item)
    except TypeError:
        raise TypeError(f"{type(of).__name__}: got {item!r}, expected an integer") from None


def _extents(of: Dims, dims: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What `DimsN(...)` was given: None, one iterable, or the extents one by one, by position or by TensorRT's names."""
    length = type(of)._length or 0
    names = ("h", "w") if isinstance(of, DimsHW) else tuple(f"dim{i}" for i in range(length))
    if not named and len(dims) <= 1:
        return dims[0] if dims else None
    if not dims and set(named) == {"shape"}:
        return named["shape"]
    given = dict(zip(names, dims, strict=False)) | named
    if len(dims) + len(named) != length or set(given) != set(names):
        raise TypeError(f"{type(of).__name__}: got {dims} {named or ''}, expected {', '.join(names)}, or an iterable")
    return [given[name] for name in names]
