"""Graphs of the stand-in: what a program does in a stream while it captures it, kept as functions and run again at every launch.

Copies and fills of the Python runtime are captured, and what `record` is given: an execution context gives its run.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

# A step does its work and returns the number of a cudaError_t.
Step = Callable[[], int]


@dataclass
class Graph:
    """What one capture recorded."""

    steps: list[Step] = field(default_factory=list)
    broken: bool = False


_lock = threading.Lock()
_numbers = itertools.count(0x100, 0x10)
_captures: dict[int, Graph] = {}  # by stream
_graphs: dict[int, tuple[Step, ...]] = {}
_executables: dict[int, tuple[Step, ...]] = {}


def begin(stream: int) -> bool:
    """Begin to capture a stream; False where it is captured already."""
    with _lock:
        if stream in _captures:
            return False
        _captures[stream] = Graph()
        return True


def record(stream: int, step: Step) -> bool:
    """Whether the stream is captured; the step then belongs to its graph, and must not be done now."""
    if not _captures:
        return False
    with _lock:
        graph = _captures.get(stream)
        if graph is not None:
            graph.steps.append(step)
        return graph is not None


def status(stream: int) -> int:
    """0: not captured, 1: captured, 2: captured, but something was asked of it that a capture cannot do."""
    with _lock:
        graph = _captures.get(stream)
        return 0 if graph is None else 1 + graph.broken


def break_capture(stream: int) -> bool:
    """Note that a captured stream was asked for what a capture cannot do, such as to be waited for; False where it is not captured."""
    with _lock:
        graph = _captures.get(stream)
        if graph is not None:
            graph.broken = True
        return graph is not None


def end(stream: int) -> int | None:
    """End the capture of a stream: the graph's number, 0 for one that is broken, None where nothing was captured."""
    with _lock:
        graph = _captures.pop(stream, None)
        if graph is None or graph.broken:
            return None if graph is None else 0
        number = next(_numbers)
        _graphs[number] = tuple(graph.steps)
        return number


def instantiate(graph: int) -> int | None:
    """An executable of a graph; None where there is no such graph."""
    with _lock:
        if graph not in _graphs:
            return None
        number = next(_numbers)
        _executables[number] = _graphs[graph]
        return number


def update(executable: int, graph: int) -> bool:
    """Give an executable the steps of another graph; False where one of them does not exist."""
    with _lock:
        known = executable in _executables and graph in _graphs
        if known:
            _executables[executable] = _graphs[graph]
        return known


def launch(executable: int, stream: int) -> int | None:
    """Do the steps in order, or add them to the graph that the stream is captured into.

    Returns: 0, the first error, which ends it, or None where there is no such executable.
    """
    with _lock:
        steps = _executables.get(executable)
    if steps is None:
        return None
    for step in steps:
        if not record(stream, step) and (code := step()):
            return code
    return 0


def forget(number: int) -> bool:
    """Destroy a graph or an executable; False where it does not exist."""
    with _lock:
        return any(table.pop(number, None) is not None for table in (_graphs, _executables))
