"""Arithmetic with constants becomes part of the weights before it: of convolutions, Gemm and MatMul."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from dovetail.model.proto_graph import attribute
from dovetail.model.simplify.chains import constant_pads
from dovetail.model.simplify.scope import FOLD_LIMIT_BYTES, Array, Scope, describe, set_attribute
from dovetail.model.weights import stored_bytes

_FLOATS = ("f32", "f16", "bf16", "f64")


@dataclass
class _Affine:
    """What a node does to each output channel of the one before it: y = x * factor + shift."""

    factor: Array
    shift: Array


def fold_batch_norms(scope: Scope) -> list[str]:
    """BatchNormalization after a Conv, ConvTranspose or Gemm with constant weights becomes part of the weights."""
    texts, dead = [], []
    for norm in scope.graph.node:
        if not scope.is_op(norm, "BatchNormalization") or attribute(norm, "training_mode", 0) or attribute(norm, "spatial", 1) != 1:
            continue
        if sum(bool(n) for n in norm.output) != 1 or (scope.opset < 7 and attribute(norm, "is_test", 0) == 0):
            continue
        constants = [scope.constant(n) for n in norm.input[1:5]]
        if len(constants) != 4 or any(c is None for c in constants):
            continue
        scale, shift, mean, variance = (np.asarray(c, np.float64) for c in constants)
        factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        if _absorb(scope, norm, norm.input[0], _Affine(factor, shift - mean * factor)):
            dead.append(norm)
            texts.append(describe(norm))
    scope.remove_nodes(dead)
    return texts


def fold_scales(scope: Scope) -> list[str]:
    """Mul, Div, Add and Sub by a constant per channel after a Conv, ConvTranspose or Gemm become part of its weights and bias."""
    texts, dead = [], []
    for node in scope.graph.node:
        if not scope.is_op(node, "Mul", "Div", "Add", "Sub") or scope.opset < 7:
            continue
        for position in (1, 0):
            name, other = node.input[position], node.input[1 - position]
            if name not in scope.constants or other in scope.constants or (position == 0 and node.op_type in ("Div", "Sub")):
                continue
            layer = scope.made_by(other, "Conv", "ConvTranspose", "Gemm")
            value = None if layer is None else _per_channel(scope, layer, name)
            if value is None:
                continue
            if node.op_type == "Div" and not value.all():
                continue
            if _absorb(scope, node, other, _change(node.op_type, value)):
                dead.append(node)
                texts.append(describe(node))
                break
    scope.remove_nodes(dead)
    return texts


def _change(op: str, value: Array) -> _Affine:
    """What an operation with a constant does."""
    if op in ("Add", "Sub"):
        return _Affine(np.ones_like(value), value if op == "Add" else -value)
    return _Affine(value if op == "Mul" else 1 / value, np.zeros_like(value))


def _per_channel(scope: Scope, layer: onnx.NodeProto, name: str) -> Array | None:
    """A constant as one number for all, or one per output channel of a layer; None if it is neither."""
    dims = [int(d) for d in scope.constants[name].dims]
    rank = 2 if layer.op_type == "Gemm" else len(scope.constants[layer.input[1]].dims) if layer.input[1] in scope.constants else 0
    channels = _channels(scope, layer)
    if rank == 0 or channels is None or len(dims) > rank:
        return None
    dims = [1] * (rank - len(dims)) + dims
    if any(d != 1 for axis, d in enumerate(dims) if axis != 1) or dims[1] not in (1, channels):
        return None
    value = scope.constant(name)
    return None if value is None or not np.isfinite(value.astype(np.float64)).all() else value.astype(np.float64).reshape(-1)


def _channels(scope: Scope, layer: onnx.NodeProto) -> int | None:
    weight = scope.constants.get(layer.input[1])
    if weight is None:
        return None
    if layer.op_type == "Conv":
        return int(weight.dims[0])
    if layer.op_type == "ConvTranspose":
        return int(weight.dims[1]) * int(attribute(layer, "group", 1))
    return int(weight.dims[0] if attribute(layer, "transB", 0) else weight.dims[1])


def _absorb(scope: Scope, node: onnx.NodeProto, source: str, change: _Affine) -> bool:
    """Put a change of channels into the weights of the layer that computes `source`; the layer then computes what `node` did."""
    layer = scope.made_by(source, "Conv", "ConvTranspose", "Gemm")
    if layer is None or not scope.only_use(source) or scope.dtype(layer.input[1]) is None:
        return False
    kind = scope.dtype(layer.input[1])
    channels = _channels(scope, layer)
    bias_name = layer.input[2] if len(layer.input) > 2 else ""
    if channels is None or kind is None or kind.name not in _FLOATS or change.factor.size not in (1, channels):
        return False
    if bias_name and bias_name not in scope.constants:
        return False
    if layer.op_type == "Gemm" and scope.opset < 7:
        return False
    scaled = bool((change.factor != 1).any())
    # Shared weights would be there twice.
    stored = stored_bytes(scope.constants[layer.input[1]])
    if scaled and scope.uses[layer.input[1]] > 1 and stored > FOLD_LIMIT_BYTES:
        return False
    weight = scope.constant(layer.input[1]) if scaled else None
    bias = scope.constant(bias_name) if bias_name else None
    if (scaled and weight is None) or (bias_name and bias is None):
        return False
    factor, shift = (np.broadcast_to(x, (channels,)) for x in (change.factor, change.shift))
    beta = float(attribute(layer, "beta", 1.0))
    added = np.zeros(channels)
    if bias is not None:
        wide = bias.astype(np.float64) * (beta if layer.op_type == "Gemm" else 1.0)
        if wide.size not in (1, channels) or (wide.ndim and wide.shape[-1] != wide.size):
            return False
        added = np.broadcast_to(wide.reshape(-1), (channels,))
    total = added * factor + shift
    with np.errstate(over="ignore"):
        folded = None if weight is None else _scale(layer, weight.astype(np.float64), factor).astype(weight.dtype)
        if not all(np.isfinite(x.astype(np.float64)).all() for x in (total.astype(kind.numpy), folded) if x is not None):
            return False  # what was finite would not be, as a weight
    if folded is not None:
        name = scope.unique(f"{layer.input[1]}_folded")
        scope.add_constant(name, folded)
        layer.input[1] = name
    if bias_name or total.any():
        name = scope.unique(f"{bias_name or layer.output[0]}_folded")
        scope.add_constant(name, total.astype(kind.numpy))
        layer.input[:] = [*layer.input[:2], name]
        if layer.op_type == "Gemm":
            set_attribute(layer, "beta", 1.0)
    layer.output[0] = node.output[0]
    return True


def _scale(layer: onnx.NodeProto, weight: Array, factor: Array) -> Array:
    """The weights of a layer with each output channel scaled, in fp64."""
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *([1] * (weight.ndim - 1)))
    if layer.op_type == "ConvTranspose":
        groups = int(attribute(layer, "group", 1))
        split = weight.reshape(groups, -1, *weight.shape[1:])
        scaled = split * factor.reshape(groups, 1, -1, *([1] * (weight.ndim - 2)))
        return np.asarray(scaled.reshape(weight.shape))
    return np.asarray(weight * (factor.reshape(-1, 1) if attribute(layer, "transB", 0) else factor.reshape(1, -1)))


# ---------------------------------------------------------------------- padding
def fold_pads(scope: Scope) -> list[str]:
    """Padding with zeros of spatial axes becomes part of the Conv or AveragePool that reads it."""
    texts = []
    for node in scope.graph.node:
        before = scope.made_by(node.input[0], "Pad") if scope.is_op(node, "Conv", "AveragePool", "MaxPool") else None
        if before is None or attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b""):
            continue
        found = constant_pads(scope, before)
        kernel = _kernel(scope, node)
        if found is None or kernel is None:
            continue
        pads, value = found
        rank = len(pads) // 2
        own = list(attribute(node, "pads") or [0] * (2 * (rank - 2)))
        if rank < 3 or len(own) != 2 * (rank - 2) or min(pads) < 0 or any(pads[axis] for axis in (0, 1, rank, rank + 1)):
            continue
        if node.op_type == "MaxPool":
            if value > -3e38 or len(node.output) > 1:
                continue
        elif value != 0 or str(scope.dtype(node.input[0])) not in _FLOATS:
            continue
        total = [a + b for a, b in zip(own, [*pads[2:rank], *pads[rank + 2 :]], strict=True)]
        if node.op_type != "Conv":
            if attribute(node, "ceil_mode", 0) or any(t >= k for t, k in zip(total, [*kernel, *kernel], strict=True)):
                continue
            if node.op_type == "AveragePool":
                if scope.opset < 7 or (any(own) and not attribute(node, "count_include_pad", 0)):
                    continue
                set_attribute(node, "count_include_pad", 1)
        set_attribute(node, "pads", total)
        node.input[0] = before.input[0]
        texts.append(f"{describe(before)} into {describe(node)}")
    return texts


def _kernel(scope: Scope, node: onnx.NodeProto) -> list[int] | None:
    given = attribute(node, "kernel_shape")
    if given is not None:
        return list(given)
    shape = scope.shape(node.input[1]) if len(node.input) > 1 else None
    return None if shape is None else [int(d) for d in shape[2:] if isinstance(d, int)]


# ---------------------------------------------------------------------- Gemm
def make_gemms(scope: Scope) -> list[str]:
    """MatMul of matrices and the Add of a row to its result become Gemm; a transposed operand becomes its transA or transB."""
    if scope.opset < 7:
        return []
    texts, dead = [], []
    for node in scope.graph.node:
        if scope.is_op(node, "Gemm"):
            for position, name in ((0, "transA"), (1, "transB")):
                before = scope.made_by(node.input[position], "Transpose")
                if before is not None and list(attribute(before, "perm") or [1, 0]) == [1, 0]:
                    set_attribute(node, name, 1 - attribute(node, name, 0))
                    node.input[position] = before.input[0]
                    texts.append(f"{describe(before)} into {describe(node)}")
            continue
        if not scope.is_op(node, "Add"):
            continue
        for position in (0, 1):
            product = scope.made_by(node.input[position], "MatMul")
            row = node.input[1 - position]
            if product is None or not scope.only_use(node.input[position]) or not _is_gemm(scope, product, row):
                continue
            texts.append(f"{describe(product)} and {describe(node)}")
            # In the place of the Add: what it adds may be computed after the product.
            node.op_type = "Gemm"
            node.input[:] = [*product.input, row]
            dead.append(product)
            break
    scope.remove_nodes(dead)
    return texts


def _is_gemm(scope: Scope, product: onnx.NodeProto, row: str) -> bool:
    kind = scope.dtype(product.output[0])
    a, b = (scope.shape(n) for n in product.input)
    added = scope.shape(row)
    if kind is None or kind.name not in _FLOATS or a is None or b is None or len(a) != 2 or len(b) != 2 or added is None:
        return False
    wide = (1,) * (2 - len(added)) + tuple(added)
    return len(wide) == 2 and wide[0] == 1 and wide[1] in (1, b[1])
