"""What shapes of inputs say before a run: shapes of outputs, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovetail.core.dims import run_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import ShapeError
from dovetail.engine import memory
from dovetail.engine.plan import Plan, Port, Postfix
from dovetail.runtime.match import PortMatcher
from dovetail.runtime.stage import Layout, symbols_of

Shape = tuple[int, ...]
Partial = tuple[int | None, ...]
"""A shape with None where an extent is not known yet."""

_PLACED = ("arena", "workspace")


def sizes_of(plan: Plan, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The symbols that shapes of inputs define.

    Args:
        shapes: by name, as the caller sees them; those that are left out leave their symbols open.

    Raises:
        ShapeError: a shape does not fit its declaration.
    """
    given = [p for p in plan.inputs if p.name in shapes]
    return PortMatcher(given, plan.symbols).match([memory_shape(p, shapes[p.name]) for p in given], {})


def known_shapes(ports: Sequence[Port], env: Mapping[str, int]) -> dict[str, Partial | None]:
    """Shapes by name as the caller sees them, at these sizes: None for extents that need others, and for sequences."""
    return {p.name: None if p.tensor.shape is None else _known(p, env) for p in ports}


def arena_bytes(plan: Plan, env: Mapping[str, int]) -> int:
    """Bytes for the values between the steps of a run at these sizes; what data decides, and regions, are left out."""
    program = plan.main
    layout = Layout(program)
    buffers = program.buffers
    placed = [r for r in layout.lifetimes if buffers[r].kind in _PLACED and symbols_of(buffers[r].size) <= env.keys()]
    sizes = [run_program(buffers[r].size, env) * dtype(buffers[r].dtype).itemsize for r in placed]
    return memory.place(sizes, [layout.lifetimes[r] for r in placed])[1] if placed else 0


def _known(port: Port, env: Mapping[str, int]) -> Partial:
    assert port.tensor.shape is not None
    extents = [_extent(d, env) for d in port.tensor.shape]
    return tuple(extents[port.order.index(axis)] for axis in range(len(extents))) if port.order else tuple(extents)


def _extent(program: Postfix, env: Mapping[str, int]) -> int | None:
    return run_program(program, env) if symbols_of(program) <= env.keys() else None


def memory_shape(port: Port, shape: Sequence[int]) -> Shape:
    """The shape of the tensor behind a port, from the shape that the caller sees."""
    if not port.order:
        return tuple(shape)
    if len(shape) != len(port.order):
        raise ShapeError(f"input {port.name!r}: got rank {len(shape)} (shape {tuple(shape)}), expected rank {len(port.order)}")
    return tuple(shape[axis] for axis in port.order)
