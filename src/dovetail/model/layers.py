"""Layers of an ONNX model with their parameters and their arithmetic, in terms of the shape symbols where sizes are open."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from dovetail.benchmark.flops import contraction_flops
from dovetail.core.dims import Dim, evaluate, symbols, total
from dovetail.core.errors import ShapeError
from dovetail.frontend.protos import domain_of
from dovetail.frontend.reader import dtype_name
from dovetail.ir.graph import Graph, Module, Time
from dovetail.ir.types import TensorType
from dovetail.model.proto_graph import attribute, subgraphs

_PASS_ON = frozenset(
    ("Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "QuantizeLinear", "DequantizeLinear")
)
_CHANNEL_AXES = {"Conv": 0, "ConvInteger": 0, "DeformConv": 0, "ConvTranspose": 1, "Gemm": 0, "MatMul": -1}
_USUAL = {4: 224, 5: 64}
_USUAL_LENGTH = 128


@dataclass(frozen=True)
class Layer:
    """One node of a model.

    Attributes:
        name: the node's, or that of its first output where it has none.
        op: operator, with its domain where that is not ONNX's own.
        dtype, shape: of the first output, as far as it is known (() is a scalar, None unknown).
        parameters: elements of the float weights that it reads, as they are or through transpositions and the like; one that several
            layers share counts in each.
        flops: operations of its contractions (2 per multiply-add); None where the model cannot be imported.
        depth: how many subgraphs it is inside of; what is in a loop counts once.
    """

    name: str
    op: str
    dtype: str
    shape: tuple[Dim, ...] | None
    parameters: int
    flops: Dim | None
    depth: int = 0

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys; expressions as text."""
        return {
            "name": self.name, "op": self.op, "dtype": self.dtype, "shape": None if self.shape is None else [*map(plain_dim, self.shape)],
            "parameters": self.parameters, "flops": None if self.flops is None else plain_dim(self.flops), "depth": self.depth,
        }  # fmt: skip


def layers(model: onnx.ModelProto, module: Module | None) -> list[Layer]:
    """The layers of a model in order, those of subgraphs after the node that they belong to; constants are left out.

    Args:
        module: the model as it was imported, for types and arithmetic; None where it cannot be.
    """
    flops: dict[str, list[Dim]] = {}
    types: dict[str, TensorType] = {}
    if module is not None:
        _survey(module.main, flops, types)
    sizes = {t.name: math.prod(t.dims) for t in model.graph.initializer if _is_float(t)}
    return list(_walk(model.graph, sizes, None if module is None else flops, types, 0))


def _survey(graph: Graph, flops: dict[str, list[Dim]], types: dict[str, TensorType]) -> None:
    """Arithmetic by the name of the model's node, and types by the name of the value."""
    for node in graph.nodes:
        for value in node.outputs:
            if isinstance(value.type, TensorType):
                types.setdefault(value.name, value.type)
        work = contraction_flops(node)
        if work != 0 and node.origin and graph.time_of(node) != Time.WEIGHT:
            flops.setdefault(node.origin[0], []).append(work)
        for region in node.regions:
            _survey(region, flops, types)


def _walk(
    graph: onnx.GraphProto, sizes: dict[str, int], flops: dict[str, list[Dim]] | None, types: dict[str, TensorType], depth: int
) -> Iterator[Layer]:
    sizes = dict(sizes)
    for node in graph.node:
        first = next((o for o in node.output if o), node.op_type)
        if node.op_type == "Constant":
            tensor = attribute(node, "value")
            if isinstance(tensor, onnx.TensorProto) and _is_float(tensor):
                sizes[first] = math.prod(tensor.dims)
            continue
        name = node.name or first
        kind = types.get(first)
        work = None if flops is None else total(flops.pop(name, ()))
        read = sum(sizes.get(i, 0) for i in dict.fromkeys(node.input))
        if node.op_type in _PASS_ON and node.input and node.input[0] in sizes:
            # What is done to a weight ahead of its reader: the reader has the parameters.
            sizes[first], read = sizes[node.input[0]], 0
        yield Layer(
            name, node.op_type if not domain_of(node.domain) else f"{node.domain}:{node.op_type}", "" if kind is None else kind.dtype.name,
            None if kind is None else kind.shape, read, work, depth,
        )  # fmt: skip
        for inner in subgraphs(node):
            own = {t.name: math.prod(t.dims) for t in inner.initializer if _is_float(t)}
            yield from _walk(inner, sizes | own, flops, types, depth + 1)


def _is_float(tensor: onnx.TensorProto) -> bool:
    return dtype_name(tensor.data_type).startswith(("float", "double", "bfloat"))


def channel_axes(graph: onnx.GraphProto) -> dict[str, int]:
    """The axis of output channels of each weight that a convolution or a product with a matrix reads, as it is or transposed."""
    found: dict[str, int] = {}
    made = {node.output[0]: node for node in graph.node if node.op_type in ("Identity", "Transpose") and node.input and node.output}
    for node in graph.node:
        if node.op_type in _CHANNEL_AXES and len(node.input) > 1:
            axis: int | None = _CHANNEL_AXES[node.op_type]
            if node.op_type == "Gemm" and not attribute(node, "transB", 0):
                axis = 1
            name = node.input[1]
            while name in made and axis is not None:
                if made[name].op_type == "Transpose":
                    order = attribute(made[name], "perm")
                    # Without an order all axes are turned around.
                    axis = -1 - axis if order is None else order[axis] if -len(order) <= axis < len(order) else None
                name = made[name].input[0]
            if axis is not None:
                found[name] = axis
        for inner in subgraphs(node):
            found |= channel_axes(inner)
    return found


# ---------------------------------------------------------------------- amounts of work
def work_total(found: Iterable[Layer]) -> Dim:
    """Operations of layers together."""
    return total(layer.flops for layer in found if layer.flops is not None)


def work_at(work: Dim, sizes: Mapping[str, int]) -> int:
    """Operations at given sizes; other symbols are 1. 0 where that is no size."""
    try:
        return int(evaluate(work, {name: sizes.get(name, 1) for name in symbols(work)}))
    except ShapeError:
        return 0


def usual_sizes(module: Module) -> dict[str, int]:
    """A usual size for each open one of a model's inputs: 1 along the first axis, 224 for images, 128 for what else varies."""
    found: dict[str, int] = {}
    for value in module.main.inputs:
        if not isinstance(value.type, TensorType):
            continue
        for axis, dim in enumerate(value.type.shape):
            size = 1 if axis == 0 else _USUAL.get(value.type.rank, _USUAL_LENGTH) if axis > 1 else _USUAL_LENGTH
            for name in sorted(symbols(dim)):
                low, high = module.meta.get("symbol_bounds", {}).get(name, (None, None))[:2]
                found.setdefault(name, min(max(size, low or 0), high or size))
    return found


def plain_dim(dim: Dim) -> int | str:
    """A number, or an expression as text."""
    return dim if isinstance(dim, int) else str(dim)


def work_text(work: int | str | None) -> str:
    """An amount for people: 8.18 G, or an expression such as 8.18 G*N."""
    if work is None:
        return ""
    if isinstance(work, int):
        return amount(work)
    return re.sub(r"(?<![\w.])\d{4,}(?![\w.])", lambda match: amount(int(match.group())), work)


def amount(count: float) -> str:
    """A count for people, in steps of a thousand: 25.6 M."""
    for unit in ("", " k", " M", " G", " T"):
        if abs(count) < 999.5 or unit == " T":
            return f"{count:.0f}" if not unit else f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError
