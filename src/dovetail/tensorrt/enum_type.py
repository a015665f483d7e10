"""The enum type of TensorRT's bindings: named integers that print, compare and pickle as theirs do.

Python's `IntEnum` differs where clients look: `str`, `repr`, `__members__`, the result of arithmetic, equality with ints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self, TypeVar

T = TypeVar("T")


class Member:
    """A number in the body of an enum class, which becomes a member of it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __get__(self, instance: object, owner: type[T]) -> T:
        """What a reader of the class attribute gets; `__init_subclass__` puts the member here."""
        raise AttributeError("an enum's members exist once its class does")  # pragma: no cover


def members(count: int, start: int = 0) -> Iterator[Member]:
    """Consecutive numbers from `start`, to be unpacked into names."""
    return (Member(start + i) for i in range(count))


class Enum:
    """One value of an enum: `name`, `value`, `int()`, ordered and hashable; equal only to the same value of the same enum.

    `E(number)` is the member of that number. A second name for a number is the same object and prints by the first name.
    Any member may stand where Python wants an index, as in `1 << E.A`.

    Raises:
        TypeError: the number is no integer.
        ValueError: the enum has no such number.
    """

    __slots__ = ("_name", "_value")
    __members__: ClassVar[dict[str, Any]] = {}
    _by_value: ClassVar[dict[int, Any]] = {}
    _name: str
    _value: int

    def __init_subclass__(cls) -> None:
        numbers = {name: item.value for name, item in vars(cls).items() if isinstance(item, Member)}
        if not numbers:
            return
        cls._by_value = {}
        cls.__members__ = {}
        for name, number in numbers.items():
            member = cls._by_value.get(number)
            if member is None:
                member = object.__new__(cls)
                object.__setattr__(member, "_name", name)
                object.__setattr__(member, "_value", number)
                cls._by_value[number] = member
            cls.__members__[name] = member
            setattr(cls, name, member)
        # The raw table of pybind11, which some clients look for; spelled so that Python does not mangle it.
        setattr(cls, "__entries", {name: (member, None) for name, member in cls.__members__.items()})

    def __new__(cls, value: Any) -> Self:
        """The member of a number."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{cls.__name__}: got {value!r}, expected an integer")
        member: Self | None = cls._by_value.get(value)
        if member is None:
            raise ValueError(f"{cls.__name__}: got {value}, expected one of {sorted(cls._by_value)}")
        return member

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self}.{name}: members of enums do not change")

    @property
    def name(self) -> str:
        """The name of this value."""
        return self._name

    @property
    def value(self) -> int:
        """The number of this value."""
        return self._value

    def __int__(self) -> int:
        return self._value

    __index__ = __int__

    def __hash__(self) -> int:
        return hash(self._value)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._value == other._value

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self._name}"

    def __repr__(self) -> str:
        return f"<{self}: {self._value}>"

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        return type(self), (self._value,)

    def __lt__(self, other: Self) -> bool:
        return self._value < other._value if type(other) is type(self) else NotImplemented

    def __le__(self, other: Self) -> bool:
        return self._value <= other._value if type(other) is type(self) else NotImplemented

    def __gt__(self, other: Self) -> bool:
        return self._value > other._value if type(other) is type(self) else NotImplemented

    def __ge__(self, other: Self) -> bool:
        return self._value >= other._value if type(other) is type(self) else NotImplemented

    def __rlshift__(self, other: int) -> int:
        return other << self._value if isinstance(other, int) else NotImplemented


class Flag(Enum):
    """An enum of bit positions, whose members combine with each other and with ints; the results are ints."""

    __slots__ = ()

    def _other(self, other: object) -> int | None:
        return int(other) if isinstance(other, int) or type(other) is type(self) else None

    def __and__(self, other: object) -> int:
        number = self._other(other)
        return NotImplemented if number is None else self._value & number

    def __or__(self, other: object) -> int:
        number = self._other(other)
        return NotImplemented if number is None else self._value | number

    def __xor__(self, other: object) -> int:
        number = self._other(other)
        return NotImplemented if number is None else self._value ^ number

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> int:
        return ~self._value


E = TypeVar("E")


def expect(kind: type[E] | tuple[type[E], ...], value: object, where: str) -> E:
    """The value, if it is of that type: what pybind11 does with every argument.

    Raises:
        TypeError: it is of another type; `where` names the method and the argument.
    """
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise TypeError(f"{where}: got {value!r}, expected {' or '.join(k.__name__ for k in kinds)}")
    return value
