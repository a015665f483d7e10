"""Loops that are Keras' GRU become ONNX's GRU: tf2onnx knows the cell as Keras 2 wrote it, not as Keras 3 does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.export.tensorflow_runtime import require_module

_ACTIVATIONS = ("Tanh", "Relu", "Sigmoid")
_FOUND = "dovetail_gru"


@dataclass(frozen=True)
class _Cell:
    """Positions among the inputs of a loop's body, and the activation of the candidate."""

    x: int
    state: int
    kernel: int
    recurrent_kernel: int
    bias: int
    outputs: int
    activation: str


def rewrite_keras_gru(graph: Any, ops: Any) -> Any:
    """A rewriter of tf2onnx, which calls it for the bodies of loops first, and then for the graph around them."""
    nodes = list(ops)
    cells = [cell for node in nodes if node.type == "TensorListSetItem" and (cell := _cell(graph, node)) is not None]
    if len(cells) == 1:
        setattr(graph, _FOUND, cells[0])
    for node in nodes:
        if node.is_while():
            body = require_module("tf2onnx.tf_loader").find_function(node.get_attr_str("body"))
            cell = getattr(body, _FOUND, None)
            if cell is not None:
                _replace(graph, node, cell)
    return graph.get_nodes()


def _pairs(node: Any, op: str | tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    """Both orders of the two inputs of a commutative operator of that type."""
    if node is not None and node.type in ((op,) if isinstance(op, str) else op) and len(node.inputs) == 2:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


_ADD = ("Add", "AddV2")


def _cell(graph: Any, write: Any) -> _Cell | None:
    """The GRU cell whose output a body writes: z * state + (1 - z) * candidate; None if it is none."""
    for kept, fresh in _pairs(write.inputs[2], _ADD):
        for z, state in _pairs(kept, "Mul"):
            for rest, candidate in _pairs(fresh, "Mul"):
                fits = z.type == "Sigmoid" and state.is_graph_input() and rest.type == "Sub" and rest.inputs[1] is z
                if fits and _is_one(rest.inputs[0]) and candidate.type in _ACTIVATIONS:
                    return _with_gates(graph, write, z, state, candidate)
    return None


def _with_gates(graph: Any, write: Any, z: Any, state: Any, candidate: Any) -> _Cell | None:
    """The rest of the cell: its three sums of a part of x @ kernel + bias and a part of state @ recurrent_kernel + bias."""
    for given, reset in _pairs(candidate.inputs[0], _ADD):
        for r, recurrent in _pairs(reset, "Mul"):
            if r.type != "Sigmoid":
                continue
            sums = [*_ordered(z.inputs[0]), *_ordered(r.inputs[0]), (given, recurrent)]
            if len(sums) != 3 or any(part.type != "Split" or piece.type != "StridedSlice" for part, piece in sums):
                continue
            inner, outer = sums[0][0].inputs[1], sums[0][1].inputs[0]
            if not _in_order(sums, candidate, z, r, inner, outer):
                continue
            places = _operands(graph, inner, outer, state)
            if places is not None and write.inputs[0].is_graph_input():
                x, kernel, recurrent_kernel, bias = places
                names = graph.input_names
                return _Cell(
                    x, names.index(state.output[0]), kernel, recurrent_kernel, bias, names.index(write.input[0]), candidate.type
                )
    return None


def _ordered(total: Any) -> list[tuple[Any, Any]]:
    """The two terms of a sum with the part of a Split in front; nothing if there is none."""
    return [(a, b) for a, b in _pairs(total, _ADD) if a.type == "Split"][:1]


def _in_order(sums: Any, candidate: Any, z: Any, r: Any, inner: Any, outer: Any) -> bool:
    """Whether the parts are those of update gate, reset gate and candidate, in this order, of equal size."""
    consumers = [z.inputs[0], r.inputs[0], candidate.inputs[0]]
    units = None
    for position, ((part, piece), consumer) in enumerate(zip(sums, consumers, strict=True)):
        if part.inputs[1] is not inner or piece.inputs[0] is not outer or part.output[position] not in consumer.input:
            return False
        constants = [c.get_tensor_value(as_list=False) for c in piece.inputs[1:] if c.is_const()]
        if len(constants) != 3 or len(constants[0]) != 2 or list(constants[2]) != [1, 1]:
            return False
        begin, end = int(constants[0][1]), int(constants[1][1])
        units = units or end
        # The last piece may end at 0, which Keras masks as "to the end".
        if begin != position * units or (position < 2 and end != begin + units):
            return False
    return True


def _operands(graph: Any, inner: Any, outer: Any, state: Any) -> tuple[int, int, int, int] | None:
    """Positions of x, kernel, recurrent kernel and bias among the body's inputs."""
    bias = []
    found = []
    for position, (total, factor) in enumerate(((inner, "TensorListGetItem"), (outer, None))):
        if total.type not in ("BiasAdd", *_ADD) or total.inputs[0].type != "MatMul" or total.inputs[1].type != "Squeeze":
            return None
        product, row = total.inputs[0], total.inputs[1]
        split = row.inputs[0]
        if split.type != "Split" or row.input[0] != split.output[position] or (factor or product.inputs[0].type) != product.inputs[0].type:
            return None
        if any(product.get_attr_value(name, False) for name in ("transpose_a", "transpose_b")):
            return None
        kernel = _source(product.inputs[1])
        bias.append(_source(split.inputs[1]))
        found.append(kernel)
    item = inner.inputs[0].inputs[0]
    if outer.inputs[0].inputs[0] is not state or bias[0] is not bias[1] or not item.inputs[0].is_graph_input():
        return None
    if any(node is None for node in (*found, bias[0])):
        return None
    x, kernel, recurrent, both = (graph.input_names.index(n.output[0]) for n in (item.inputs[0], *found, bias[0]))
    return x, kernel, recurrent, both


def _source(node: Any) -> Any:
    """The input of the body that a node hands on; None if it is computed there."""
    while node.type == "Identity":
        node = node.inputs[0]
    return node if node.is_graph_input() else None


def _is_one(node: Any) -> bool:
    return bool(node.is_const()) and bool(np.all(node.get_tensor_value(as_list=False) == 1))


def _replace(graph: Any, loop: Any, cell: _Cell) -> None:
    """Put a GRU in the place of a loop, where its weights are constants and its input is a whole tensor."""
    builder = require_module("tf2onnx.graph_builder").GraphBuilder(graph)
    weights = [loop.input[i] for i in (cell.kernel, cell.recurrent_kernel, cell.bias)]
    unstacked = loop.inputs[cell.x]
    if not all(graph.is_const(name) for name in weights) or unstacked.type != "TensorListFromTensor":
        return
    kernel, recurrent, bias = (graph.get_tensor_value(name, as_list=False) for name in weights)
    x, units = unstacked.input[0], recurrent.shape[0]
    names = require_module("tf2onnx.utils")
    w, r, b = (
        graph.make_const(names.make_name(f"gru_{name}"), np.ascontiguousarray(array[None]), skip_conversion=True).output[0]
        for name, array in (("W", kernel.T), ("R", recurrent.T), ("B", bias.reshape(-1)))
    )
    state = builder.make_unsqueeze({"data": loop.input[cell.state], "axes": [0]})
    shape, kind = graph.get_shape(x) or [-1, -1, -1], graph.get_dtype(x)
    made = graph.make_node(
        "GRU", [x, w, r, b, "", state], output_count=2, dtypes=[kind, kind],
        attr={"direction": "forward", "hidden_size": units, "linear_before_reset": 1, "activations": ["Sigmoid", cell.activation]},
        shapes=[[shape[0], 1, shape[1], units], [1, shape[1], units]],
    )  # fmt: skip
    sequence = builder.make_squeeze({"data": made.output[0], "axes": [1]})
    for consumer in graph.find_output_consumers(loop.output[cell.outputs]):
        if consumer.type == "TensorListStack":
            graph.replace_all_inputs(consumer.output[0], sequence)
    graph.replace_all_inputs(loop.output[cell.state], builder.make_squeeze({"data": made.output[1], "axes": [0]}))
