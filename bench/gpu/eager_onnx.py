"""An ONNX graph run node by node by torch: in fp32, or in fp16 or bf16 as a module does after `.half()`.

In fp16 weights, activations and every operator are fp16, with torch's own kernels; integers stay integers, numbers without a
dimension stay Python-like scalars. Where exporters write as several nodes what torch's modules compute in one kernel or in fp32
(`COMPOSED`), those nodes run in fp32 and only their result is rounded, as it is there; `composed=False` rounds every node's result.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bench.gpu.eager_ops import CONTROL, OPS, READ_ON_HOST, Attributes, torch

Array = np.ndarray[Any, Any]
Pattern = str | float | tuple[Any, ...]

COMMUTATIVE = frozenset({"Add", "Mul"})
_GATE = ("Add", ("Erf", ("Div", "x", 2**0.5)), 1.0)
_MEAN = ("Sqrt", ("Add", ("ReduceMean", ("Pow", "x", 2.0)), "eps"))
_MEAN_OF_PRODUCT = ("Sqrt", ("Add", ("ReduceMean", ("Mul", "x", "x")), "eps"))
_SCALED = ("MatMul", ("Mul", "q", "c"), ("Mul", "k", "d"))
COMPOSED: tuple[Pattern, ...] = (
    ("Mul", ("Mul", "x", _GATE), 0.5),  # gelu
    ("Mul", "x", ("Sigmoid", "x")),  # silu
    ("Mul", "x", ("Reciprocal", _MEAN)),  # RMS norms, which transformers compute in fp32
    ("Mul", "x", ("Div", 1.0, _MEAN_OF_PRODUCT)),
    ("Softmax", _SCALED),  # scaled_dot_product_attention keeps its scores in fp32
    ("Softmax", ("Add", _SCALED, "mask")),
    ("Softmax", ("Add", ("MatMul", "q", "k"), "mask")),
)
"""(operator, operands…): a name stands for one value, a number for a constant; operands beyond those are free."""



class Composed:
    """The nodes of a graph that run in fp32 within fp16; needs no torch.

    Attributes:
        within: results of those nodes.
        roots: the results among them that are rounded to fp16.
    """

    def __init__(self, nodes: Sequence[onnx.NodeProto], arrays: Mapping[str, Array]) -> None:
        self._producers = {o: n for n in nodes for o in n.output}
        self._arrays = arrays
        self.within: set[str] = set()
        self.roots: set[str] = set()
        for node in nodes:
            for pattern in COMPOSED:
                inner: set[str] = set()
                if self._matches(pattern, node.output[0], {}, inner):
                    self.within |= inner
                    self.roots.add(node.output[0])
            if node.op_type in ("Cos", "Sin"):  # angles are fp32 in modules of rotary embeddings
                self.roots.add(node.output[0])
                self._add_ancestors(node.output[0])

    def _add_ancestors(self, name: str) -> None:
        pending = [name]
        while pending:
            name = pending.pop()
            if name in self._producers and name not in self.within:
                self.within.add(name)
                pending += self._producers[name].input

    def _matches(self, pattern: Pattern, name: str, found: dict[str, str], inner: set[str]) -> bool:
        if isinstance(pattern, str):
            return found.setdefault(pattern, name) == name
        if isinstance(pattern, float):
            array = self._arrays.get(name)
            return array is not None and array.size == 1 and bool(np.isclose(array.item(), pattern))
        node = self._producers.get(name)
        if node is None or node.op_type != pattern[0] or len(node.input) < len(pattern) - 1:
            return False
        operands = pattern[1:]
        for order in itertools.permutations(operands) if node.op_type in COMMUTATIVE else [operands]:
            trial, names = dict(found), set(inner)
            if all(self._matches(p, n, trial, names) for p, n in zip(order, node.input, strict=False)):
                found.update(trial)
                inner |= names | {name}
                return True
        return False


class Graph:
    """A graph ready to run.

    Args:
        proto: the graph.
        precision: of floats, "fp32", "fp16" or "bf16".
        composed: what `COMPOSED` says runs in fp32 within.
        device: where floats and inputs are.
        channels_last: images and weights of convolutions in that order of memory.
    """

    def __init__(self, proto: onnx.GraphProto, *, precision: str = "fp32", composed: bool = True, device: str = "cpu",
                 channels_last: bool = False) -> None:  # fmt: skip
        self.precision, self.device, self.channels_last = precision, device, channels_last
        self.narrow_type = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        self.inputs = [v.name for v in proto.input]
        self.outputs = [v.name for v in proto.output]
        self.arrays: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in proto.initializer}
        for node in proto.node:
            if node.op_type == "Constant":
                self.arrays[node.output[0]] = numpy_helper.to_array(onnx.helper.get_node_attr_value(node, "value"))
        self.nodes = [n for n in proto.node if n.op_type != "Constant"]
        self.composed = Composed(self.nodes if self.narrow_type is not None and composed else [], self.arrays)
        self.attributes = [self._attributes(n, composed) for n in self.nodes]
        self._given: dict[str, Any] = {}
        self._wide: dict[str, Any] = {}
        for name, array in self.arrays.items():
            value = self._place(torch.from_numpy(np.array(array)))
            self._given[name], self._wide[name] = self.narrow(value), value

    def _attributes(self, node: onnx.NodeProto, composed: bool) -> Attributes:
        found = Attributes()
        for a in node.attribute:
            value = onnx.helper.get_attribute_value(a)
            if isinstance(value, onnx.GraphProto):
                value = Graph(value, precision=self.precision, composed=composed, device=self.device, channels_last=self.channels_last)
            elif isinstance(value, onnx.TensorProto):
                value = torch.from_numpy(np.array(numpy_helper.to_array(value)))
            found[a.name] = value
        return found

    def _place(self, value: Any) -> Any:
        """Floats that have a dimension go to the device; integers start on the CPU, where shapes are computed."""
        if not value.is_floating_point() or not value.ndim:
            return value
        value = value.to(self.device)
        return value.contiguous(memory_format=torch.channels_last) if self.channels_last and value.ndim == 4 else value

    def narrow(self, value: Any) -> Any:
        """The value as fp16 or bf16 keeps it: finite numbers stay finite (modules write masks as the least number there is)."""
        if self.narrow_type is None or not torch.is_tensor(value) or value.dtype != torch.float32 or not value.ndim:
            return value
        most = torch.finfo(self.narrow_type).max
        return torch.where(value.isfinite(), value.clamp(-most, most), value).to(self.narrow_type)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        """All outputs by name, as tensors; feeds are arrays."""
        given = {k: self._place(torch.from_numpy(np.array(v))) for k, v in feeds.items()}
        with torch.no_grad():
            results = self.call([self.narrow(given[n]) for n in self.inputs if n in given], {})
        return dict(zip(self.outputs, results, strict=True))

    def call(self, arguments: Sequence[Any], captured: Mapping[str, Any]) -> list[Any]:
        """The outputs for the inputs in order, initializers left out; `captured` has the values of the graph around."""
        values: dict[str, Any] = {**captured, **self._given}
        values.update(zip([n for n in self.inputs if n not in self.arrays], arguments, strict=True))
        for node, attributes in zip(self.nodes, self.attributes, strict=True):
            wide = node.output[0] in self.composed.within
            operands = [self._operand(n, values, wide) for n in node.input]
            try:
                results = self._node(node.op_type, attributes, operands, values)
            except Exception as error:
                error.add_note(f"in {node.op_type} {node.name or node.output[0]}")
                raise
            for name, result in zip(node.output, results, strict=False):
                values[name] = result if wide and name not in self.composed.roots else self.narrow(result)
        return [values[n] for n in self.outputs]

    def _operand(self, name: str, values: Mapping[str, Any], wide: bool) -> Any:
        if not name:
            return None
        value = self._wide.get(name, values[name]) if wide else values[name]
        return value.float() if wide and value.dtype == self.narrow_type else value

    def _node(self, op: str, attributes: Attributes, operands: list[Any], values: Mapping[str, Any]) -> Sequence[Any]:
        if op == "If":
            branch = attributes.then_branch if bool(operands[0]) else attributes.else_branch
            results: list[Any] = branch.call([], values)
            return results
        if op == "Loop":
            return _loop(attributes.body, operands, values)
        moved = 1 if op in READ_ON_HOST else len(operands)
        if any(x is not None and x.ndim and x.device.type != "cpu" for x in operands[:moved]):
            operands = [self._moved(x) for x in operands[:moved]] + operands[moved:]
        result = OPS[op](attributes, *operands)
        return result if isinstance(result, tuple | list) else (result,)

    def _moved(self, x: Any) -> Any:
        """An operand on the device; numbers stay on the CPU, from where operators take them like Python's, unrounded."""
        return x if x is None or not (x.ndim or x.dtype == torch.bool) else x.to(self.device)


def _loop(body: Graph, operands: list[Any], values: Mapping[str, Any]) -> list[Any]:
    """Loop: carried values, then the stacked elements of each iteration."""
    most, going, *carried = operands
    stacked: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    count, limit = 0, None if most is None else int(most)
    going = True if going is None else bool(going)
    while going and (limit is None or count < limit):
        keep, *results = body.call([torch.tensor(count), torch.tensor(True), *carried], values)
        carried, elements = results[: len(carried)], results[len(carried) :]
        for all_of_it, element in zip(stacked, elements, strict=True):
            all_of_it.append(element)
        going, count = bool(keep), count + 1
    return [*carried, *(torch.stack(s) for s in stacked)]


def missing(proto: onnx.GraphProto) -> set[str]:
    """Operators of a graph, and of the graphs in it, that have no torch function here."""
    found = {n.op_type for n in proto.node} - OPS.keys() - CONTROL
    for node in proto.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                found |= missing(a.g)
    return found
