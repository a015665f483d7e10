"""What shapes of inputs say before a run: shapes of outputs, values that drive shapes, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovetail.core.dims import run_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import ShapeError
from dovetail.engine import memory
from dovetail.engine.plan import HostSegment, Plan, Port, Postfix, Program
from dovetail.runtime.match import PortMatcher
from dovetail.runtime.stage import Layout, symbols_of

Shape = tuple[int, ...]
Partial = tuple[int | None, ...]
"""A shape with None where an extent is not known yet."""

_PLACED = ("arena", "workspace")


def output_shapes(
    plan: Plan, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Partial | None]:
    """Shapes of the outputs; None for extents that only a run can tell, or that inputs without a shape decide, and for sequences.

    Args:
        shapes: of inputs by name, as the caller sees them; those that are left out leave their symbols open.
        values: contents of inputs that drive shapes (see `read_as_dims`), flattened.

    Raises:
        ShapeError: a shape does not fit its declaration, or a value is no size.
    """
    env = sizes_of(plan, shapes, values)
    return {p.name: None if p.tensor.shape is None else _known(p, env) for p in plan.outputs}


def sizes_of(
    plan: Plan, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Sequence[int]] | None = None
) -> dict[str, int]:
    """The symbols that shapes of inputs, and values of those that drive shapes, define; arguments and errors as of `output_shapes`."""
    given = [p for p in plan.inputs if p.name in shapes]
    matcher = PortMatcher(given, plan.symbols)
    env = matcher.match([memory_shape(p, shapes[p.name]) for p in given], {})
    known = values or {}
    for name, readers in read_as_dims(plan.main).items():
        for segment in readers if name in known else ():
            for definition in segment.defines:
                value = int(known[name][definition.index])
                if value < 0:
                    raise ShapeError(f"input {name!r}: got {value} for the dimension {definition.symbol}, expected a non-negative size")
                env[definition.symbol] = value
    return env


def read_as_dims(program: Program) -> dict[str, list[HostSegment]]:
    """Inputs whose values become sizes as they are, and the segments that read them."""
    root = memory.roots(program)
    inputs = {root[p.tensor.buffer]: p.name for p in program.inputs}
    found: dict[str, list[HostSegment]] = {}
    for segment in program.segments:
        if isinstance(segment, HostSegment) and segment.op == "BindSymbols":
            source = segment.inputs[0]
            if source is not None and root[source.buffer] in inputs:
                found.setdefault(inputs[root[source.buffer]], []).append(segment)
    return found


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
