"""The parser's fallback: a node without an importer becomes a call of the plugin of its name, its attributes the plugin's fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from dovetail.core.errors import ModelError, UnsupportedOpError
from dovetail.frontend.plugins import has_plugin
from dovetail.frontend.protos import domain_of
from dovetail.frontend.reader import read_tensor
from dovetail.frontend.registry import TENSORRT, find_importer
from dovetail.ops.registry import find as find_spec
from dovetail.tensorrt.enums import OnnxParserFlag, PluginFieldType
from dovetail.tensorrt.logger import Reporter
from dovetail.tensorrt.tensor import ITensor

if TYPE_CHECKING:
    from dovetail.tensorrt.layers.plugin import IPluginV2Layer, IPluginV3Layer
    from dovetail.tensorrt.network import INetworkDefinition
    from dovetail.tensorrt.onnx_walk import Walk

_SHAPE_INPUTS = "tensorrt_plugin_shape_input_indices"
_KINDS = {
    "float32": PluginFieldType.FLOAT32, "float16": PluginFieldType.FLOAT16, "float64": PluginFieldType.FLOAT64,
    "bfloat16": PluginFieldType.BF16, "int8": PluginFieldType.INT8, "int16": PluginFieldType.INT16, "int32": PluginFieldType.INT32,
    "int64": PluginFieldType.INT64,
}  # fmt: skip
_ATTR = onnx.AttributeProto


class PluginFallback:
    """Makes plugin layers of nodes; what it is called with is a node and the walk that adds it."""

    def __init__(self, network: INetworkDefinition, reporter: Reporter, flags: int) -> None:
        self._network, self._reporter = network, reporter
        self._override = bool(flags >> int(OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE) & 1)

    def __call__(self, node: onnx.NodeProto, walk: Walk) -> list[ITensor] | None:
        """The outputs of the plugin layer that a node becomes; None for a node that is imported otherwise.

        Raises:
            UnsupportedOpError: the plugin's creator gives none.
        """
        opset = walk.opsets.get(domain_of(node.domain), 1)
        functions = {(domain_of(f.domain), f.name) for f in walk.model.functions}
        if not self._override and ((domain_of(node.domain), node.op_type) in functions or can_import(node.op_type, node.domain, opset)):
            return None
        name, version, namespace = _asked(node)
        creator = self._creator(name, version, namespace)
        if creator is None and (self._override or not has_plugin(name, version, namespace)):
            return None
        self._reporter.info(f"Searching for plugin: {name}, plugin_version: {version}, plugin_namespace: {namespace}")
        if creator is None:  # one of Dovetail's own, which the importer calls
            self._reporter.info(f"Successfully created plugin: {name}")
            return None
        return self._layer(node, walk, creator)

    def knows(self, node: onnx.NodeProto) -> bool:
        """Whether there is a plugin for a node."""
        name, version, namespace = _asked(node)
        return has_plugin(name, version, namespace) or self._creator(name, version, namespace) is not None

    def _creator(self, name: str, version: str, namespace: str) -> Any:
        from dovetail.tensorrt.plugin_registry import get_plugin_registry

        return get_plugin_registry().find(name, version, namespace)

    def _layer(self, node: onnx.NodeProto, walk: Walk, creator: Any) -> list[ITensor]:
        from dovetail.tensorrt.plugin_adapter import create
        from dovetail.tensorrt.plugin_fields import PluginFieldCollection
        from dovetail.tensorrt.plugin_v2 import IPluginV2

        attributes = {a.name: a for a in node.attribute}
        fields = PluginFieldCollection(self._fields(node, attributes, creator))
        inputs = [walk.tensor(name) if name else None for name in node.input]
        try:
            plugin = create(creator, node.name, _asked(node)[2], fields)
        except ModelError as error:
            raise UnsupportedOpError(f"{node.name} ({node.op_type}): {error}") from error
        self._reporter.info(f"Successfully created plugin: {node.op_type}")
        layer: IPluginV2Layer | IPluginV3Layer | None
        if isinstance(plugin, IPluginV2):
            layer = self._network.add_plugin_v2(inputs, plugin)
        else:
            shapes = _shape_inputs(node, attributes)
            data = [t for i, t in enumerate(inputs) if i not in shapes]
            values = [t for i in shapes if (t := inputs[i]) is not None]
            layer = self._network.add_plugin_v3(data, values, plugin)
        if layer is None:
            raise UnsupportedOpError(f"{node.name} ({node.op_type}): plugin: the network does not take it; see the log")
        layer.name = node.name
        names = [name for name in node.output if name]
        if layer.num_outputs < len(names):
            raise ModelError(f"{node.name} ({node.op_type}): got {len(names)} outputs, expected at most {layer.num_outputs} of its plugin")
        made = []
        for index, name in enumerate(node.output):
            if name:
                tensor = layer._record.outputs[index]
                tensor.name = name
                made.append(tensor)
        return made

    def _fields(self, node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto], creator: Any) -> Iterable[Any]:
        """The fields that the creator declares, in its order, of the attributes that the node has."""
        from dovetail.tensorrt.plugin_fields import PluginField

        for declared in creator.field_names or ():
            name = declared if isinstance(declared, str) else declared.name
            attribute = attributes.get(name)
            if attribute is None:
                why = "Ensure that the plugin creator has a default value defined and that it is used"
                self._reporter.warning(f"Attribute {name} not found in plugin node! {why}.")
                continue
            data, kind = _field_of(attribute, node)
            yield PluginField(name, data, kind)


def can_import(op: str, domain: str, opset: int) -> bool:
    """Whether there is an importer for an op, the user's included, or a function body in ONNX's own definition of it."""
    plain = domain_of(domain)
    if find_importer(op, opset, plain) is not None or (not plain and find_spec(op) is not None):
        return True
    if find_importer(op, 1, TENSORRT) is not None:
        return True
    try:
        schema = onnx.defs.get_schema(op, opset, plain)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _asked(node: onnx.NodeProto) -> tuple[str, str, str]:
    """Name, version and namespace of the plugin that a node asks for."""
    texts = {a.name: a.s.decode("utf-8", "replace") for a in node.attribute if a.type == _ATTR.STRING}
    return node.op_type, texts.get("plugin_version", "1"), texts.get("plugin_namespace", "")


def _field_of(attribute: onnx.AttributeProto, node: onnx.NodeProto) -> tuple[Any, PluginFieldType]:
    """The data and type of a field, as TensorRT makes them of an attribute: integers of 64 bits become such of 32."""
    kind = attribute.type
    if kind in (_ATTR.FLOAT, _ATTR.FLOATS):
        return np.array([attribute.f] if kind == _ATTR.FLOAT else list(attribute.floats), np.float32), PluginFieldType.FLOAT32
    if kind in (_ATTR.INT, _ATTR.INTS):
        wide = np.array([attribute.i] if kind == _ATTR.INT else list(attribute.ints), np.int64)
        return wide.astype(np.int32), PluginFieldType.INT32
    if kind in (_ATTR.STRING, _ATTR.STRINGS):
        text = attribute.s if kind == _ATTR.STRING else b"".join(attribute.strings)
        return np.frombuffer(text, np.uint8).astype(np.int8), PluginFieldType.CHAR
    if kind == _ATTR.TENSOR:
        array = read_tensor(attribute.t, None)
        if array.dtype.name in _KINDS:
            return array.reshape(-1), _KINDS[array.dtype.name]
    raise UnsupportedOpError(
        f"{node.name} ({node.op_type}): plugin: got the attribute {attribute.name!r} of type {_ATTR.AttributeType.Name(kind)}, expected "
        "numbers, texts or a tensor of them"
    )


def _shape_inputs(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> list[int]:
    """Which inputs a node hands to its plugin as shape tensors.

    Raises:
        ModelError: an index beyond the inputs.
    """
    asked = list(attributes[_SHAPE_INPUTS].ints) if _SHAPE_INPUTS in attributes else []
    count = len(node.input)
    if any(not -count <= i < count for i in asked):
        raise ModelError(f"{node.name} ({node.op_type}): got {asked} as {_SHAPE_INPUTS}, expected indices of {count} inputs")
    return [i % count for i in asked]
