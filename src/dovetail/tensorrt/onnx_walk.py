"""From an ONNX model to the layers of a network: its inputs, nodes and outputs one by one, and the roles of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from dovetail.core.errors import Error, ModelError
from dovetail.frontend.protos import densify, domain_of
from dovetail.frontend.reader import element_type, read_tensor
from dovetail.tensorrt.dtypes import to_data_type
from dovetail.tensorrt.enums import DataType, WeightsRole
from dovetail.tensorrt.onnx_layers import typed_layer
from dovetail.tensorrt.tensor import ITensor

if TYPE_CHECKING:
    from dovetail.tensorrt.network import INetworkDefinition

# Ops whose second and third input, as initializers, are a kernel and a bias.
_KERNELS = ("Conv", "ConvTranspose", "Gemm")
_DOUBLE = onnx.TensorProto.DOUBLE

Array = np.ndarray[Any, Any]
NodeError = Callable[[int, onnx.NodeProto, Error], None]


@dataclass
class RefitMap:
    """What weights are to the layers that read them; a weight that several layers read comes again as `name_1`, `name_2` …"""

    names: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    roles: list[WeightsRole] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _uses: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, layer: str, role: WeightsRole) -> None:
        """Note a use of a weight."""
        count = self._uses[name]
        self._uses[name] += 1
        self.names.append(f"{name}_{count}" if count else name)
        self.layers.append(layer)
        self.roles.append(role)
        self._names.append(name)

    def truncate(self, count: int) -> None:
        """Forget all but the first uses."""
        for name in self._names[count:]:
            self._uses[name] -= 1
        for kept in (self.names, self.layers, self.roles, self._names):
            del kept[count:]


class Walk:
    """Adds one model to one network.

    Args:
        folder: where external data of the model lie.
        given: values of initializers in the place of the model's.
        fallback: makes a layer of a node that has no importer, or is to be a plugin; returns None where that is not its business.
        warn: is told of what is not as the model says.
    """

    def __init__(
        self,
        network: INetworkDefinition,
        model: onnx.ModelProto,
        folder: Path | None,
        given: Mapping[str, Array],
        fallback: Callable[[onnx.NodeProto, Walk], list[ITensor] | None],
        warn: Callable[[str], None],
    ) -> None:
        self.network, self.model, self.folder, self.fallback, self.warn = network, model, folder, fallback, warn
        self.opsets = {domain_of(o.domain): o.version for o in model.opset_import}
        self.tensors: dict[str, ITensor | Array] = {}
        self.refit_map = RefitMap()
        self.by_name: dict[str, int] = {}
        self._given = given
        self._doubles = False

    def run(self) -> tuple[int, onnx.NodeProto, Error] | None:
        """Add everything; what went wrong with the first node that cannot be added, and its position.

        Raises:
            ModelError: inputs, initializers or outputs are invalid.
        """
        graph = self.model.graph
        for tensor in graph.initializer:
            self.tensors[tensor.name] = np.asarray(self._narrow(self._given.get(tensor.name), tensor), order="C")
        for sparse in graph.sparse_initializer:
            self.tensors[sparse.values.name] = densify(sparse, self.folder)
        for value in graph.input:
            if value.name not in self.tensors:
                self._input(value)
        for index, node in enumerate(graph.node):
            named = self._named(node)
            try:
                self._node(named)
            except Error as error:
                return index, named, error
        for value in graph.output:
            self._output(value.name)
        return None

    # ------------------------------------------------------------------ inputs, outputs
    def _input(self, value: onnx.ValueInfoProto) -> None:
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"input {value.name!r}: got a sequence, map or optional, expected a tensor")
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            raise ModelError(f"input {value.name!r}: got no shape, expected one, with names for extents that may differ")
        if kind.elem_type == _DOUBLE:
            self._say_doubles()
            data_type = DataType.FLOAT
        else:
            try:
                data_type = to_data_type(element_type(kind.elem_type, f"input {value.name!r}"))
            except TypeError as error:
                raise ModelError(f"input {value.name!r}: {error}") from error
        shape = [d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else -1 for d in kind.shape.dim]
        tensor = self.network.add_input(value.name, data_type, shape)
        if tensor is None:
            raise ModelError(f"input {value.name!r}: the network does not take it; see the log")
        for axis, dim in enumerate(kind.shape.dim):
            if shape[axis] == -1 and dim.dim_param:
                tensor.set_dimension_name(axis, dim.dim_param)
        self.tensors[value.name] = tensor

    def _output(self, name: str) -> None:
        found = self.tensors.get(name)
        if found is None:
            raise ModelError(f"output {name!r} is computed by no node")
        self.network.mark_output(self._renamed(self.tensor(name), name))

    def _renamed(self, tensor: ITensor, name: str) -> ITensor:
        """A tensor that may be returned by a name: inputs, and what is an output already, are copied."""
        if not tensor.is_network_input and not tensor.is_network_output:
            return tensor
        return _named_output(self.network.add_identity(tensor), name)

    def tensor(self, name: str) -> ITensor:
        """The tensor of a name; initializers become constant layers of that name.

        Raises:
            ModelError: nothing computes it.
        """
        found = self.tensors.get(name)
        if found is None:
            raise ModelError(f"model: {name!r} is used before any node computes it; the graph is not in order or is damaged")
        if isinstance(found, ITensor):
            return found
        self.network.set_weights_name(found, name)
        layer: Any = self.network.add_constant(found.shape, found)
        made = _named_output(layer, name)
        layer.name = name
        self.refit_map.add(name, name, WeightsRole.CONSTANT)
        self.tensors[name] = made
        return made

    # ------------------------------------------------------------------ nodes
    def _named(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A node with a name that no other layer has."""
        base = node.name or f"node_of_{next((o for o in node.output if o), node.op_type)}"
        name, count = base, self.by_name.get(base, 0)
        while name in self.by_name:
            name, count = f"{base}_{count + 1}", count + 1
        self.by_name[base] = count
        self.by_name.setdefault(name, 0)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = name
        return self._without_doubles(copy)

    def _node(self, node: onnx.NodeProto) -> None:
        for name in node.input:
            if name and name not in self.tensors:
                raise ModelError(f"{node.name}: {name!r} is used before any node computes it; the graph is not in order or is damaged")
        first = self.network.num_layers
        made = self.fallback(node, self)
        if made is None:
            made = typed_layer(node, self)
            if made is not None and node.op_type in _KERNELS:
                self._note_weights(node, kept=True)
        if made is None:
            made = self.network._add_node(node, self.tensors, self.opsets, functions=list(self.model.functions), folder=self.folder)
            self._note_weights(node)
        for index in range(first, self.network.num_layers):
            layer = self.network.get_layer(index)
            if layer is not None and not layer.metadata:
                layer.metadata = f"[ONNX Layer: {node.name}]"
        for name, tensor in zip((o for o in node.output if o), made, strict=True):
            if name in self.tensors:
                raise ModelError(f"{node.name}: output {name!r} is computed twice")
            self.tensors[name] = tensor

    def _note_weights(self, node: onnx.NodeProto, kept: bool = False) -> None:
        """The roles of a node's weights. Those that lie as TensorRT's kernels do are kernels, others constants by their own names.

        Args:
            kept: the layer has the weights itself, and the network knows them.
        """
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        kernels = node.op_type in _KERNELS and not node.domain and (node.op_type != "Gemm" or transposed)
        for position, name in enumerate(node.input):
            if not name or isinstance(self.tensors[name], ITensor):
                continue
            if kernels and position in (1, 2):
                role, layer = (WeightsRole.KERNEL, WeightsRole.BIAS)[position - 1], node.name
            else:
                role, layer = WeightsRole.CONSTANT, name
            self.refit_map.add(name, layer, role)
            if not kept:
                self.network._parsed_weights[(layer, role)] = name

    # ------------------------------------------------------------------ double precision
    def _say_doubles(self) -> None:
        if not self._doubles:
            self._doubles = True
            self.warn("The model has DOUBLE tensors; they are cast to FLOAT.")

    def _narrow(self, given: Array | None, tensor: onnx.TensorProto) -> Array:
        """The values of an initializer, the caller's in the place of the model's; doubles as floats."""
        array = read_tensor(tensor, self.folder) if given is None else given.reshape(tuple(tensor.dims))
        if array.dtype == np.float64:
            self._say_doubles()
            return array.astype(np.float32)
        return array

    def _without_doubles(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A copy of a node that makes floats where it would make doubles."""
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.type == onnx.AttributeProto.INT and attribute.i == _DOUBLE:
                self._say_doubles()
                attribute.i = onnx.TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _DOUBLE:
                self._say_doubles()
                array = read_tensor(attribute.t, self.folder).astype(np.float32)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array, attribute.t.name))
        return node


def _named_output(layer: Any, name: str) -> ITensor:
    """The output of a new layer, by a name.

    Raises:
        ModelError: the network has refused the layer.
    """
    if layer is None:
        raise ModelError(f"{name!r}: the network does not take it; see the log")
    tensor: ITensor = layer.get_output(0)
    tensor.name = name
    return tensor
