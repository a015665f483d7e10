"""The contexts that the driver API and pycuda make current: a stack per thread, of contexts of the one device."""

from __future__ import annotations

import itertools
import threading

_numbers = itertools.count(1)


class ContextRecord:
    """One context: its number (never 0), and whether it still exists."""

    def __init__(self) -> None:
        self.number = 0x1000 * next(_numbers)
        self.alive = True


class _Stack(threading.local):
    def __init__(self) -> None:
        self.records: list[ContextRecord] = []


_stack = _Stack()
_known: dict[int, ContextRecord] = {}
_primary: list[ContextRecord] = []
_lock = threading.Lock()
initialized = threading.Event()


def make() -> ContextRecord:
    """A new context, which is not current yet."""
    record = ContextRecord()
    _known[record.number] = record
    return record


def primary() -> ContextRecord:
    """The device's primary context."""
    with _lock:
        if not _primary:
            _primary.append(make())
    return _primary[0]


def known(number: int) -> ContextRecord | None:
    """The context of that number, if it still exists."""
    return _known.get(number)


def end(record: ContextRecord) -> None:
    """Destroy a context; the thread that has it current has it no longer."""
    record.alive = False
    _known.pop(record.number, None)
    if current() is record:
        _stack.records.pop()


def push(record: ContextRecord) -> None:
    """Make a context current to this thread."""
    _stack.records.append(record)


def pop() -> ContextRecord | None:
    """Take the current context off this thread's stack; None where there is none."""
    return _stack.records.pop() if _stack.records else None


def current() -> ContextRecord | None:
    """This thread's current context."""
    return _stack.records[-1] if _stack.records else None


def replace(record: ContextRecord | None) -> None:
    """Put a context in place of the current one; None takes it off."""
    if _stack.records:
        _stack.records.pop()
    if record is not None:
        _stack.records.append(record)
