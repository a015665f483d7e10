"""Expands an ONNX op that has a function body: one of the model's own functions, or the body in its schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    NodeProto,
    TypeProto,
    helper,
    numpy_helper,
)

from dovetail.core.dims import Expr
from dovetail.core.errors import ModelError
from dovetail.frontend.registry import OnnxNode
from dovetail.ir.graph import Value
from dovetail.ir.types import SequenceType, TensorType, Type

if TYPE_CHECKING:
    from dovetail.frontend.importer import ImportContext

_MAX_DEPTH = 64
_active: list[tuple[str, str]] = []  # functions being expanded, outermost first


def expand(node: OnnxNode, ctx: ImportContext) -> list[Value | None] | None:
    """Import the function body of `node` in its place; None if the op has no body.

    Raises:
        ModelError: a function of the model calls itself, or is called with too many inputs.
    """
    function = ctx.function(node.domain, node.op_type)
    if function is None:
        function = _schema_function(node)
    if function is None:
        return None
    key = (node.domain, node.op_type)
    if key in _active or len(_active) >= _MAX_DEPTH:
        raise ModelError(f"{node.name} ({node.op_type}): a function that calls itself, expected a finite expansion; fix the model")
    if len(node.inputs) > len(function.input):
        raise ModelError(
            f"{node.name} ({node.op_type}): got {len(node.inputs)} inputs, expected at most {len(function.input)}; fix the call"
        )
    body = body_nodes(function, _attribute_protos(node))
    inputs = {name: node.input(i) for i, name in enumerate(function.input)}
    opsets = {o.domain: o.version for o in function.opset_import} or dict(ctx.opsets)
    wanted = list(function.output)[: max(node.n_outputs, 1)]
    _active.append(key)
    try:
        return ctx.inline(body, inputs, wanted, opsets)
    finally:
        _active.pop()


def _schema_function(node: OnnxNode) -> FunctionProto | None:
    """The body that the op's schema gives at the model's opset, with the attribute defaults filled in."""
    try:
        schema = onnx.defs.get_schema(node.op_type, node.opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    types = [_type_proto(v.type if v is not None else None) for v in node.inputs]
    return schema_body(schema, node.opset, lambda: _node_proto(node, schema), types)


def schema_body(
    schema: onnx.defs.OpSchema, opset: int, call: Callable[[], NodeProto], types: Sequence[TypeProto]
) -> FunctionProto | None:
    """The function that an op's schema defines it by, with the attribute defaults filled in; None if it has none.

    Args:
        opset: the newest version of ONNX's ops that the body may use.
        call: makes the node that calls it, which some bodies depend on.
        types: of its inputs.
    """
    found: FunctionProto | None = None
    usable = [v for v in schema.function_opset_versions if v <= opset]
    if usable:
        found = _parse(schema.get_function_with_opset_version(max(usable)))
    elif schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        if versions:
            given = [t.SerializeToString() for t in types]
            found = _parse(schema.get_context_dependent_function_with_opset_version(max(versions), call().SerializeToString(), given))
    if found is None:
        return None
    declared = {a.name for a in found.attribute_proto}
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        if name not in declared and default.type != AttributeProto.UNDEFINED:
            copied = found.attribute_proto.add()
            copied.CopyFrom(default)
            copied.name = name
    return found


def body_nodes(function: FunctionProto, given: Iterable[AttributeProto]) -> list[NodeProto]:
    """The nodes of a function's body for the attributes of a call."""
    attributes = {a.name: a for a in function.attribute_proto} | {a.name: a for a in given}
    return [_bound(n, attributes) for n in function.node]


def _parse(data: bytes | FunctionProto) -> FunctionProto:
    if isinstance(data, FunctionProto):
        return data
    proto = FunctionProto()
    proto.ParseFromString(data)
    return proto


def _bound(proto: NodeProto, attributes: Mapping[str, AttributeProto]) -> NodeProto:
    """A copy of a body node with references to the function's attributes replaced by what the call gives."""
    node = NodeProto()
    node.CopyFrom(proto)
    del node.attribute[:]
    for attribute in proto.attribute:
        if attribute.ref_attr_name:
            source = attributes.get(attribute.ref_attr_name)
            if source is None:  # the caller gives none: the body op's own default applies
                continue
            copied = node.attribute.add()
            copied.CopyFrom(source)
            copied.name = attribute.name
            continue
        copied = node.attribute.add()
        copied.CopyFrom(attribute)
        for graph in _graphs(copied):
            bound = [_bound(n, attributes) for n in graph.node]
            del graph.node[:]
            graph.node.extend(bound)
    return node


def _graphs(attribute: AttributeProto) -> Iterable[GraphProto]:
    if attribute.type == AttributeProto.GRAPH:
        return [attribute.g]
    return list(attribute.graphs)


def _attribute_protos(node: OnnxNode) -> Iterable[AttributeProto]:
    for name, value in node.attrs.items():
        yield _attribute_proto(name, value, None)


def _attribute_proto(name: str, value: Any, kind: int | None) -> AttributeProto:
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(value, name))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and not value:
        return helper.make_attribute(name, [], attr_type=kind or AttributeProto.INTS)
    return helper.make_attribute(name, value)


def _node_proto(node: OnnxNode, schema: onnx.defs.OpSchema) -> NodeProto:
    """The call as ONNX's function builders want to see it."""
    proto = NodeProto(op_type=node.op_type, domain=node.domain)
    proto.input.extend("" if v is None else f"i{k}" for k, v in enumerate(node.inputs))
    proto.output.extend(node.outputs)
    for name, value in node.attrs.items():
        declared = schema.attributes.get(name)
        proto.attribute.append(_attribute_proto(name, value, None if declared is None else int(declared.type.value)))
    return proto


def _type_proto(type_: Type | None) -> TypeProto:
    if type_ is None:
        return TypeProto()
    if isinstance(type_, SequenceType):
        return helper.make_sequence_type_proto(_type_proto(type_.element))
    return _tensor_type_proto(type_)


def _tensor_type_proto(type_: TensorType) -> TypeProto:
    shape = [None if isinstance(d, Expr) else d for d in type_.shape]
    element = onnx.TensorProto.STRING if type_.dtype.kind == "string" else helper.np_dtype_to_tensor_dtype(type_.dtype.numpy)
    return helper.make_tensor_type_proto(element, shape)
