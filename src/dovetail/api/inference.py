"""Shapes of outputs before a run: from shapes of inputs, and from values of the inputs that shapes are computed of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail.builder.oracle import attributes
from dovetail.core import dims
from dovetail.core.dims import Dim, Symbol
from dovetail.core.errors import Error, ShapeError
from dovetail.ir.graph import Node, Value
from dovetail.ir.parser import parse_module
from dovetail.ir.types import TensorType
from dovetail.reference.registry import call
from dovetail.runtime.shapes import Partial, known_shapes, sizes_of

if TYPE_CHECKING:
    from dovetail.api.engine import Engine

# Ops that count what they find in data, at most all elements of this input.
_COUNTED = {"NonZero": 0, "Compress": 1, "Unique": 0, "NonMaxSuppression": 1}
_LONGEST = 64
"""Elements of an input that shapes may be computed of."""


class ShapeInference:
    """What shapes an engine gives for shapes that it is given.

    Attributes:
        inputs: names of the inputs whose values decide shapes: short vectors of integers, through arithmetic of any kind.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        main = parse_module(engine.graph).main
        found = [sources for node in main.nodes if node.op == "BindSymbols" and (sources := _sources(node)) is not None]
        wanted = {node for nodes, _ in found for node in nodes}
        self._nodes = [node for node in main.nodes if node in wanted]
        self._counted = [node for node in main.nodes if node.op in _COUNTED]
        read = {value for _, values in found for value in values}
        self.inputs = tuple(v.name for v in main.inputs if v in read)

    def sizes(self, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any] | None = None) -> dict[str, int]:
        """Symbols that are known from shapes and from values of `inputs`.

        Raises:
            ShapeError: a shape does not fit its declaration, or what is computed of the values is no size.
        """
        env = sizes_of(self._engine.plan, shapes)
        known: dict[Value, Any] = {}
        for node in self._nodes:
            for value in node.inputs:
                if value is not None and value.producer is None and values is not None and value.name in values:
                    kind = value.tensor
                    extents = [d if isinstance(d, int) else env.get(str(d), -1) for d in kind.shape]
                    known[value] = np.asarray(values[value.name], kind.dtype.numpy).reshape(extents)
            if all(v is None or v in known for v in node.inputs):
                self._run(node, known, env)
        return env

    def outputs(self, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any] | None = None) -> dict[str, Partial | None]:
        """Shapes of the outputs: None for extents that only a run can tell, or that what is left out decides, and for sequences.

        Args:
            shapes: of inputs by name.
            values: of `inputs` by name.

        Raises:
            ShapeError: as of `sizes`.
        """
        return known_shapes(self._engine.plan.outputs, self.sizes(shapes, values))

    def largest(self, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any] | None = None) -> dict[str, Partial | None]:
        """As `outputs`, with the largest sizes that data may choose, such as the number of elements that a NonZero may find."""
        env = self.sizes(shapes, values)
        most: dict[str, int] = {}
        for node in self._counted:
            read = [[_upper(d, env, most) for d in v.tensor.shape] for v in node.inputs if v is not None]
            counted = read[_COUNTED[node.op]]
            if None not in counted:
                most[str(node.attrs["symbols"][0])] = math.prod(d for d in counted if d is not None)
        return {
            b.name: None if b.shape is None else tuple(_upper(d, env, most) for d in b.shape) for b in self._engine.outputs
        }  # fmt: skip

    def _run(self, node: Node, known: dict[Value, Any], env: dict[str, int]) -> None:
        """Compute a node, and the symbols that it binds."""
        arrays = [None if v is None else known[v] for v in node.inputs]
        if node.op == "BindSymbols":
            for symbol, number in zip(node.attrs["symbols"], np.asarray(arrays[0]).reshape(-1).tolist(), strict=False):
                if number < 0:
                    raise ShapeError(f"{', '.join(node.origin)}: got {number} for the dimension {symbol}, expected a non-negative size")
                env[str(symbol)] = int(number)
        elif node.op == "Constant":
            known[node.output] = self._engine.weight(node.attrs["name"])
        else:
            try:
                results = call(node.op, arrays, attributes(node, env))
            except (Error, KeyError, ValueError, IndexError):
                return  # a size that it needs is not known yet, or the run will say what is wrong
            known.update(zip(node.outputs, results, strict=True))


def _sources(last: Node) -> tuple[set[Node], set[Value]] | None:
    """The nodes that compute what `last` reads, and the inputs that they read; None where those are no shapes."""
    nodes, inputs, open_ = {last}, set[Value](), [last]
    while open_:
        for value in open_.pop().inputs:
            if value is None or value.producer in nodes:
                continue
            if value.producer is None:
                kind = value.type
                if not isinstance(kind, TensorType) or not kind.dtype.is_int or not isinstance(kind.size, int) or kind.size > _LONGEST:
                    return None
                inputs.add(value)
            elif value.producer.regions:
                return None
            else:
                nodes.add(value.producer)
                open_.append(value.producer)
    return nodes, inputs


def _upper(dim: Dim, env: Mapping[str, int], most: Mapping[str, int]) -> int | None:
    """The largest that a dim may be, with symbols of `env` known and others at most as in `most`; None where that is not plain."""
    rest = dims.substitute(dim, env)
    if isinstance(rest, int):
        return rest
    rising = all(factor > 0 and all(isinstance(atom, Symbol) for atom in monomial) for monomial, factor in rest.terms if monomial)
    return dims.evaluate(rest, most) if rising and dims.symbols(rest) <= most.keys() else None
