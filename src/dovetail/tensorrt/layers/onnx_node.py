"""A node of an ONNX graph as a layer: what parsers add where no other layer has the node's exact meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.frontend.protos import free_names
from dovetail.ir.graph import Value
from dovetail.tensorrt import enums
from dovetail.tensorrt.enums import LayerType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.tensor import ITensor


class OnnxNodeLayer(ILayer):
    """One ONNX node, subgraphs included, imported as Dovetail imports models; `type` is the closest layer type."""

    __slots__ = ()
    _label = "OnnxNode"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        node: _Node = self._record.values["node"]
        scope: dict[str, Value | None] = dict(zip(node.names, inputs, strict=True))
        for name, array in node.weights.items():
            scope[name] = net.named_weight(name, array, array)
        results = net.net.node(node.proto, scope, node.opsets, functions=node.functions, folder=node.folder)
        return [results[name] for name in node.outputs]


class _Node:
    """What such a layer keeps of its node."""

    def __init__(
        self, proto: onnx.NodeProto, tensors: Mapping[str, ITensor | np.ndarray[Any, Any]], opsets: Mapping[str, int],
        functions: Sequence[onnx.FunctionProto], folder: Path | None,
    ) -> None:  # fmt: skip
        read: dict[str, None] = dict.fromkeys(n for n in proto.input if n)
        for attribute in proto.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                free_names(graph, read)
        known = {name: tensors[name] for name in read if name in tensors}
        self.inputs = {name: t for name, t in known.items() if isinstance(t, ITensor)}
        self.weights = {name: t for name, t in known.items() if not isinstance(t, ITensor)}
        self.names = list(self.inputs)
        self.outputs = [name for name in proto.output if name]
        self.proto, self.opsets, self.functions, self.folder = proto, dict(opsets), functions, folder


# The closest layer type by op; of all others PLUGIN_V2 says that it is none of TensorRT's.
_TYPES = {
    LayerType.CONVOLUTION: "Conv ConvInteger QLinearConv DeformConv",
    LayerType.DECONVOLUTION: "ConvTranspose",
    LayerType.CAST: "Cast CastLike",
    LayerType.ACTIVATION: """Relu Sigmoid Tanh LeakyRelu Elu Selu Softsign Softplus Clip HardSigmoid ThresholdedRelu Gelu Celu
        HardSwish Mish Shrink Swish""",
    LayerType.POOLING: "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool",
    LayerType.LRN: "LRN",
    LayerType.SCALE: "BatchNormalization",
    LayerType.SOFTMAX: "Softmax LogSoftmax Hardmax",
    LayerType.CONCATENATION: "Concat",
    LayerType.ELEMENTWISE: """Add Sub Mul Div Pow Max Min And Or Xor Equal Greater Less GreaterOrEqual LessOrEqual Mod Sum Mean
        BitShift BitwiseAnd BitwiseOr BitwiseXor""",
    LayerType.UNARY: """Exp Log Sqrt Reciprocal Abs Neg Sin Cos Tan Sinh Cosh Asin Acos Atan Asinh Acosh Atanh Ceil Floor Erf Not
        Sign Round IsInf IsNaN BitwiseNot""",
    LayerType.PADDING: "Pad",
    LayerType.SHUFFLE: "Reshape Transpose Flatten DepthToSpace SpaceToDepth",
    LayerType.REDUCE: """ReduceSum ReduceProd ReduceMax ReduceMin ReduceMean ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
        ReduceSumSquare""",
    LayerType.TOPK: "TopK ArgMax ArgMin",
    LayerType.GATHER: "Gather GatherElements GatherND",
    LayerType.MATRIX_MULTIPLY: "MatMul Gemm MatMulInteger QLinearMatMul",
    LayerType.CONSTANT: "Constant ConstantOfShape",
    LayerType.IDENTITY: "Identity Dropout",
    LayerType.SLICE: "Slice Split Expand Tile",
    LayerType.SHAPE: "Shape Size",
    LayerType.PARAMETRIC_RELU: "PRelu",
    LayerType.RESIZE: "Resize Upsample",
    LayerType.SELECT: "Where",
    LayerType.FILL: "Range RandomUniform RandomNormal RandomUniformLike RandomNormalLike EyeLike",
    LayerType.QUANTIZE: "QuantizeLinear",
    LayerType.DEQUANTIZE: "DequantizeLinear",
    LayerType.DYNAMIC_QUANTIZE: "DynamicQuantizeLinear",
    LayerType.CONDITION: "If",
    LayerType.LOOP_OUTPUT: "Loop Scan LSTM GRU RNN",
    LayerType.SCATTER: "Scatter ScatterElements ScatterND",
    LayerType.EINSUM: "Einsum",
    LayerType.ONE_HOT: "OneHot",
    LayerType.NON_ZERO: "NonZero",
    LayerType.GRID_SAMPLE: "GridSample",
    LayerType.NMS: "NonMaxSuppression",
    LayerType.REVERSE_SEQUENCE: "ReverseSequence",
    LayerType.NORMALIZATION: "LayerNormalization InstanceNormalization GroupNormalization RMSNormalization",
    LayerType.SQUEEZE: "Squeeze",
    LayerType.UNSQUEEZE: "Unsqueeze",
    LayerType.CUMULATIVE: "CumSum",
    LayerType.ATTENTION_OUTPUT: "Attention",
    LayerType.ROTARY_EMBEDDING: "RotaryEmbedding",
    LayerType.KV_CACHE_UPDATE: "TensorScatter",
}
_TYPE_OF = {op: kind for kind, ops in _TYPES.items() for op in ops.split()}


class AddNodes(NetworkBase):
    """What parsers add layers with."""

    def _add_node(
        self,
        node: onnx.NodeProto,
        tensors: Mapping[str, ITensor | np.ndarray[Any, Any]],
        opsets: Mapping[str, int],
        *,
        functions: Sequence[onnx.FunctionProto] = (),
        folder: Path | None = None,
    ) -> list[ITensor]:
        """The outputs of a node as tensors with the node's names for them; absent ones are left out.

        Args:
            tensors: tensors and weights (arrays, which refits know by that name) by the names that the node reads; more do no harm.
            opsets: versions by domain.
            functions: those that the model defines.
            folder: where external data of its attributes lie.

        Raises:
            UnsupportedOpError: it cannot be imported.
            ModelError: it is invalid.
        """
        kept = _Node(node, tensors, opsets, functions, folder)
        layer = self._add(OnnxNodeLayer, list(kept.inputs.values()), outputs=len(kept.outputs), node=kept)
        assert layer is not None
        record = layer._record
        record.type = _TYPE_OF.get(node.op_type, enums.LayerType.PLUGIN_V2) if not node.domain else enums.LayerType.PLUGIN_V2
        record.name = node.name or record.name
        for tensor, name in zip(record.outputs, kept.outputs, strict=True):
            tensor._name = name
        try:
            self._shape_scope().lower_all(record.outputs)
        except BaseException:
            self._layers.remove(record)
            raise
        return list(record.outputs)
