"""Matches input shapes against declared dimensions and finds the values of symbols."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import from_program, run_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import BindingError, ShapeError
from dovetail.engine.plan import (
    Attr,
    ControlSegment,
    DimAttr,
    HostSegment,
    NativeSegment,
    Port,
    Postfix,
    Program,
    Symbol,
    TensorRef,
)


class PortMatcher:
    """The declared inputs of a program: dtypes, shapes, symbols with bounds."""

    def __init__(self, ports: Sequence[Port], symbols: Sequence[Symbol] = ()) -> None:
        self.ports = ports
        self.dtypes = [dtype(p.tensor.dtype).numpy for p in ports]
        self.bounds = {s.name: s for s in symbols}
        self.symbols = frozenset(
            _single(d) for p in ports for d in p.tensor.shape or () if _single(d)
        )

    def declared(self, index: int) -> str:
        """The declared shape of a port for messages, as "(N, 3, 224)"."""
        port = self.ports[index]
        text = f"({', '.join(str(from_program(list(d))) for d in port.tensor.shape or ())})"
        return f"{text}, the caller's axes {port.order}," if port.order else text

    def shapes(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Shapes of arrays; None for opaque values."""
        return tuple(
            None if p.tensor.shape is None else v.shape
            for p, v in zip(self.ports, values, strict=True)
        )

    def convert(self, values: Sequence[Any]) -> tuple[list[Any], tuple[Any, ...]]:
        """Internal values as the ports want them, C-contiguous, and their shapes (None for opaque values).

        Raises:
            BindingError: another dtype.
        """
        arrays: list[Any] = []
        shapes: list[Any] = []
        for value, want, port in zip(values, self.dtypes, self.ports, strict=True):
            if port.tensor.shape is None:
                arrays.append(value)
                shapes.append(None)
                continue
            array = np.asarray(value, order="C")
            if array.dtype is not want and array.dtype != want:
                raise BindingError(f"input {port.name!r}: got dtype {array.dtype}, expected {want}")
            arrays.append(array)
            shapes.append(array.shape)
        return arrays, tuple(shapes)

    def match(self, shapes: Sequence[Any], outer: Mapping[str, int]) -> dict[str, int]:
        """Values of the symbols: those of `outer` and those that the shapes define.

        Raises:
            ShapeError: wrong rank or extent, disagreeing or out-of-bounds symbols.
        """
        env = dict(outer)
        origin: dict[str, str] = {}
        for i, shape in enumerate(shapes):
            declared = self.ports[i].tensor.shape
            if declared is None:
                continue
            if len(shape) != len(declared):
                raise ShapeError(
                    f"input {self.ports[i].name!r}: got rank {len(shape)} (shape {shape}), "
                    f"expected {self.declared(i)}"
                )
            for axis, (extent, dim) in enumerate(zip(shape, declared, strict=True)):
                name = _single(dim)
                if not name or name in env:
                    continue
                env[name] = extent
                origin[name] = f"{self.ports[i].name!r} axis {axis}"
                self._check_bounds(i, axis, name, extent)
        for i, shape in enumerate(shapes):
            for axis, dim in enumerate(self.ports[i].tensor.shape or ()):
                want = run_program(dim, env)
                if want != shape[axis]:
                    name = _single(dim)
                    why = f" because {name} = {want} from {origin[name]}" if name in origin else ""
                    raise ShapeError(
                        f"input {self.ports[i].name!r}: got shape {tuple(shape)}, expected "
                        f"{self.declared(i)} with {want} on axis {axis}{why}"
                    )
        return env

    def _check_bounds(self, port: int, axis: int, name: str, extent: int) -> None:
        bound = self.bounds.get(name)
        if bound is None:
            return
        if extent < bound.lower or (bound.upper is not None and extent > bound.upper):
            upper = "any" if bound.upper is None else bound.upper
            raise ShapeError(
                f"input {self.ports[port].name!r}: got {extent} on axis {axis} ({name}), expected "
                f"{bound.lower} to {upper}; build the engine with wider shapes"
            )


def _single(program: Postfix) -> str:
    """The symbol, if the program is nothing but one symbol; else ""."""
    token = program[0]
    return token[1:] if len(program) == 1 and isinstance(token, str) else ""


def outer_symbols(program: Program) -> frozenset[str]:
    """All symbols that a program or its regions mention."""
    names: set[str] = set()
    for item in _programs(program):
        names.update(t[1:] for t in item if isinstance(t, str) and t.startswith("$"))
    return frozenset(names)


def _programs(program: Program) -> Iterator[Postfix]:
    for buffer in program.buffers:
        yield buffer.size
    for port in (*program.inputs, *program.outputs):
        yield from _of_ref(port.tensor)
    for segment in program.segments:
        if isinstance(segment, NativeSegment):
            for step in segment.steps:
                yield from step.dims
                yield from step.grid
                for arg in step.args:
                    yield arg.offset
                    if arg.map is not None:
                        yield from (*arg.map.shape, *arg.map.strides)
            continue
        for ref in segment.inputs + segment.outputs:
            if ref is not None:
                yield from _of_ref(ref)
        if isinstance(segment, HostSegment):
            for value in segment.attrs.values():
                yield from _of_attr(value)
        elif isinstance(segment, ControlSegment):
            for region in segment.regions:
                inner = outer_symbols(region) - _defined_in(region)
                yield tuple("$" + name for name in inner)


def _of_ref(ref: TensorRef) -> Iterator[Postfix]:
    yield from ref.shape or ()
    yield from ref.strides or ()
    yield ref.offset


def _of_attr(value: Attr) -> Iterator[Postfix]:
    if isinstance(value, DimAttr):
        yield value.program
    elif isinstance(value, tuple):
        for item in value:
            yield from _of_attr(item)


def _defined_in(program: Program) -> set[str]:
    """Symbols that the segments or the input shapes of a region define."""
    names = {_single(d) for p in program.inputs for d in p.tensor.shape or ()}
    for segment in program.segments:
        if not isinstance(segment, NativeSegment):
            names.update(d.symbol for d in segment.defines)
    return names
