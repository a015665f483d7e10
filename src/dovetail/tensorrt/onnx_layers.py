"""ONNX nodes as layers of TensorRT's own classes, where one has exactly the node's meaning: clients see and change their settings.

What is not here, or not in this form, stays a node (`layers/onnx_node.py`) that is imported as Dovetail imports models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from dovetail.core.errors import Error
from dovetail.core.log import logger
from dovetail.frontend.registry import Override, find_importer
from dovetail.tensorrt.dims import Permutation
from dovetail.tensorrt.enums import (
    ActivationType,
    ElementWiseOperation,
    MatrixOperation,
    PoolingType,
    ReduceOperation,
    UnaryOperation,
)
from dovetail.tensorrt.tensor import ITensor

if TYPE_CHECKING:
    from dovetail.tensorrt.onnx_walk import Walk

_ACTIVATIONS = {
    "Relu": ActivationType.RELU, "Sigmoid": ActivationType.SIGMOID, "Tanh": ActivationType.TANH, "Softsign": ActivationType.SOFTSIGN,
}  # fmt: skip
_ELEMENTWISE = {
    "Add": ElementWiseOperation.SUM, "Sub": ElementWiseOperation.SUB, "Mul": ElementWiseOperation.PROD, "Max": ElementWiseOperation.MAX,
    "Min": ElementWiseOperation.MIN, "Pow": ElementWiseOperation.POW, "Div": ElementWiseOperation.DIV, "And": ElementWiseOperation.AND,
    "Or": ElementWiseOperation.OR, "Xor": ElementWiseOperation.XOR, "Equal": ElementWiseOperation.EQUAL,
    "Greater": ElementWiseOperation.GREATER, "Less": ElementWiseOperation.LESS,
}  # fmt: skip
_UNARY = {
    "Exp": UnaryOperation.EXP, "Log": UnaryOperation.LOG, "Sqrt": UnaryOperation.SQRT, "Reciprocal": UnaryOperation.RECIP,
    "Abs": UnaryOperation.ABS, "Neg": UnaryOperation.NEG, "Sin": UnaryOperation.SIN, "Cos": UnaryOperation.COS, "Tan": UnaryOperation.TAN,
    "Ceil": UnaryOperation.CEIL, "Floor": UnaryOperation.FLOOR, "Erf": UnaryOperation.ERF, "Not": UnaryOperation.NOT,
    "Sign": UnaryOperation.SIGN,
}  # fmt: skip
_SPATIAL = (2, 3)
# From here on, the ops below mean what they mean in the newest version.
_OPSET = 13
_log = logger("tensorrt")


def typed_layer(node: onnx.NodeProto, walk: Walk) -> list[ITensor] | None:
    """The outputs of the layer that a node becomes; None where no class has its meaning, or the user has an importer for the op."""
    make = _MAKERS.get(node.op_type)
    opset = walk.opsets.get("", 1)
    if make is None or node.domain or opset < _OPSET or not _fits(node, opset):
        return None
    if isinstance(find_importer(node.op_type, opset, ""), Override):
        return None
    network, first, uses = walk.network, walk.network.num_layers, len(walk.refit_map.names)
    before = {name: walk.tensors[name] for name in node.input if name}
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    try:
        layer = make(node, attributes, walk)
        if layer is not None:
            layer.name = node.name
            tensor: ITensor = layer.get_output(0)
            tensor.name = node.output[0]
            network._shape_scope().lower_all([tensor])
            return [tensor]
    except (Error, TypeError, ValueError) as error:  # as a node, it fails with the importer's own words
        _log.debug("%s: as a layer: %s", node.name, error)
    if network.num_layers > first:
        del network._layers[first:]
        network._reset()
        walk.tensors.update(before)
        walk.refit_map.truncate(uses)
    return None


def _fits(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a node has the inputs, attributes and one output of its op's definition."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    if not schema.min_input <= len(node.input) <= schema.max_input or not all(node.input[: schema.min_input]) or len(node.output) != 1:
        return False
    return all(a.name in schema.attributes and int(schema.attributes[a.name].type) == a.type for a in node.attribute)


def _convolution(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    kernel, bias = (walk.tensors[name] if name else None for name in (*node.input[1:3], "")[:2])
    x = walk.tensors[node.input[0]]
    if not isinstance(x, ITensor) or not isinstance(kernel, np.ndarray) or isinstance(bias, ITensor) or not _plain_padding(attributes):
        return None
    window = kernel.shape[2:]
    if len(window) not in _SPATIAL or kernel.dtype.kind != "f" or set(attributes) & {"output_padding", "output_shape"}:
        return None
    groups = attributes.get("group", 1)
    up = node.op_type == "ConvTranspose"
    add = walk.network.add_deconvolution_nd if up else walk.network.add_convolution_nd
    layer: Any = add(x, kernel.shape[1] * groups if up else kernel.shape[0], window, kernel, bias)
    if layer is None:
        return None
    for name, array in zip(node.input[1:3], (kernel, bias), strict=False):
        if array is not None:
            walk.network.set_weights_name(array, name)
    layer.num_groups = groups
    layer.dilation_nd = attributes.get("dilations", [1] * len(window))
    return _windowed(layer, attributes, len(window))


def _windowed(layer: Any, attributes: dict[str, Any], rank: int) -> Any:
    pads = attributes.get("pads", [0] * (2 * rank))
    layer.stride_nd = attributes.get("strides", [1] * rank)
    layer.pre_padding, layer.post_padding = pads[:rank], pads[rank:]
    return layer


def _plain_padding(attributes: dict[str, Any]) -> bool:
    auto: bytes = attributes.get("auto_pad", b"NOTSET")
    return auto == b"NOTSET"


def _pooling(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    x, window = _inputs(node, walk)[0], attributes.get("kernel_shape", [])
    unusual = attributes.get("ceil_mode", 0) or attributes.get("storage_order", 0) or any(d != 1 for d in attributes.get("dilations", ()))
    if len(window) not in _SPATIAL or unusual or not _plain_padding(attributes):
        return None
    average = node.op_type == "AveragePool"
    layer: Any = walk.network.add_pooling_nd(x, PoolingType.AVERAGE if average else PoolingType.MAX, window)
    if layer is None:
        return None
    if average:
        layer.average_count_excludes_padding = not attributes.get("count_include_pad", 0)
    return _windowed(layer, attributes, len(window))


def _inputs(node: onnx.NodeProto, walk: Walk) -> list[ITensor]:
    """The inputs as tensors; initializers become constant layers."""
    return [walk.tensor(name) for name in node.input]


def _activation(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    return walk.network.add_activation(_inputs(node, walk)[0], _ACTIVATIONS[node.op_type])


def _leaky(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    kind = ActivationType.LEAKY_RELU if node.op_type == "LeakyRelu" else ActivationType.ELU
    layer: Any = walk.network.add_activation(_inputs(node, walk)[0], kind)
    layer.alpha = attributes.get("alpha", 0.01 if node.op_type == "LeakyRelu" else 1.0)
    return layer


def _rank(name: str, walk: Walk) -> int:
    found = walk.tensors[name]
    return len(found.shape)


def _elementwise(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    known = [walk.tensors[name] for name in node.input]
    if len(known) != 2 or not any(isinstance(t, ITensor) for t in known) or _rank(node.input[0], walk) != _rank(node.input[1], walk):
        return None
    first, second = (t.dtype if isinstance(t, ITensor) else _data_type(t) for t in known)
    if first != second:
        return None
    a, b = _inputs(node, walk)
    return walk.network.add_elementwise(a, b, _ELEMENTWISE[node.op_type])


def _data_type(array: np.ndarray[Any, Any]) -> Any:
    from dovetail.tensorrt.dtypes import to_data_type

    return to_data_type(array.dtype)


def _unary(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    return walk.network.add_unary(_inputs(node, walk)[0], _UNARY[node.op_type])


def _softmax(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    x = _inputs(node, walk)[0]
    rank = len(x.shape)
    axis = attributes.get("axis", -1)
    if not -rank <= axis < rank:
        return None
    layer: Any = walk.network.add_softmax(x)
    layer.axes = 1 << axis % rank
    return layer


def _concatenation(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    if not all(isinstance(walk.tensors[name], ITensor) for name in node.input) or "axis" not in attributes:
        return None
    inputs = _inputs(node, walk)
    rank = len(inputs[0].shape)
    if not -rank <= attributes["axis"] < rank:
        return None
    layer: Any = walk.network.add_concatenation(inputs)
    layer.axis = attributes["axis"] % rank
    return layer


def _transpose(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    x = _inputs(node, walk)[0]
    rank = len(x.shape)
    order = attributes.get("perm", list(range(rank))[::-1])
    if sorted(order) != list(range(rank)):
        return None
    layer: Any = walk.network.add_shuffle(x)
    layer.first_transpose = Permutation(order)
    return layer


def _matmul(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    ranks = [_rank(name, walk) for name in node.input]
    if len(ranks) != 2 or ranks[0] != ranks[1] or ranks[0] < 2:
        return None
    a, b = _inputs(node, walk)
    return walk.network.add_matrix_multiply(a, MatrixOperation.NONE, b, MatrixOperation.NONE)


def _global_average(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    x = _inputs(node, walk)[0]
    axes = sum(1 << axis for axis in range(2, len(x.shape)))
    return walk.network.add_reduce(x, ReduceOperation.AVG, axes, True) if axes else None


def _identity(node: onnx.NodeProto, attributes: dict[str, Any], walk: Walk) -> Any:
    return walk.network.add_identity(_inputs(node, walk)[0])


_MAKERS: dict[str, Callable[[onnx.NodeProto, dict[str, Any], Walk], Any]] = {
    "Conv": _convolution, "ConvTranspose": _convolution, "MaxPool": _pooling, "AveragePool": _pooling, "LeakyRelu": _leaky, "Elu": _leaky,
    "Softmax": _softmax, "Concat": _concatenation, "Transpose": _transpose, "MatMul": _matmul, "GlobalAveragePool": _global_average,
    "Identity": _identity, **dict.fromkeys(_ACTIVATIONS, _activation), **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_UNARY, _unary),
}  # fmt: skip
