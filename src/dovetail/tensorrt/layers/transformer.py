"""Layers of transformers besides attention: rotary embedding, updates of key-value caches, mixtures of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import product
from dovetail.core.dtypes import F32, I64
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import AttentionIOForm, DataType, KVCacheMode, LayerType, MoEActType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.layers.quantization import (
    by_blocks,
    dequantized,
    dynamically_quantized,
    quantized,
)
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, boolean, dims_setting, extents, integer, number, of
from dovetail.tensorrt.tensor import ITensor


class IRotaryEmbeddingLayer(ILayer):
    """Queries or keys (batch, heads, sequence, size), turned by the angles of their places.

    Cosines and sines are (batch, sequence, half the rotated size), or (places, half) with the places of input 3 (batch, sequence).
    """

    __slots__ = ()
    _layer_type, _label, _most_inputs = LayerType.ROTARY_EMBEDDING, "RotaryEmbedding", 4
    interleaved = Setting[bool](boolean, False, "Whether pairs are neighbours, not halves apart.")
    rotary_embedding_dim = Setting[int](integer, 0, "How much of the size is rotated; 0: all.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, cos, sin, places = (*inputs, None)[:4]
        ids = None if places is None else net.cast(places, I64)
        attributes = {"interleaved": int(self.interleaved), "rotary_embedding_dim": self.rotary_embedding_dim}
        return [net.op("RotaryEmbedding", x, cos, sin, ids, **attributes)]


class IKVCacheUpdateLayer(ILayer):
    """A cache (batch, heads, capacity, size) with new keys or values (batch, heads, number, size) from place `write_indices` (batch) on.

    With `update_lengths`, of sample b only as many as its length says are written. PACKED_NHD updates are (sum of lengths, heads, size).
    """

    __slots__ = ()
    _layer_type, _label = LayerType.KV_CACHE_UPDATE, "KVCacheUpdate"
    cache_mode = Setting[KVCacheMode](of(KVCacheMode), KVCacheMode.LINEAR, "How it writes.")
    update_form = Setting[AttentionIOForm](of(AttentionIOForm), AttentionIOForm.PADDED_BHND, "How the updates lie.")

    @property
    def update_lengths(self) -> ITensor | None:
        """How many updates each sample has; None: all."""
        inputs = self._record.inputs
        return inputs[3] if len(inputs) > 3 else None

    @update_lengths.setter
    def update_lengths(self, value: ITensor) -> None:
        given = expect(ITensor, value, "IKVCacheUpdateLayer.update_lengths")
        self._record.inputs[3:] = [given]
        self._record.network._changed(self._record)

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        cache, update, start, lengths = (*inputs, None)[:4]
        assert cache is not None and update is not None and start is not None
        first = net.cast(start, I64)
        packed = self.update_form is AttentionIOForm.PACKED_NHD
        if lengths is None and not packed:
            return [net.op("TensorScatter", cache, update, first, axis=-2, mode="linear")]
        if lengths is None:
            raise ModelError(f"{self.name}: got packed updates without lengths, expected them; set update_lengths")
        # Which update, if any, each place of the cache gets.
        size = net.op("Squeeze", net.extents([cache.shape[2]]), [0])
        places = net.op("Sub", net.op("Range", np.int64(0), size, np.int64(1)), net.op("Unsqueeze", first, [1]))
        count = net.op("Unsqueeze", net.cast(lengths, I64), [1])
        written = net.op("And", net.op("GreaterOrEqual", places, np.int64(0)), net.op("Less", places, count))
        if packed:
            begin = net.op("CumSum", net.cast(lengths, I64), np.int64(0), exclusive=1)
            rows = net.op("Where", written, net.op("Add", places, net.op("Unsqueeze", begin, [1])), np.int64(0))
            found = net.op("Transpose", net.op("Gather", update, rows, axis=0), perm=(0, 2, 1, 3))
        else:
            rows = net.op("Where", written, places, np.int64(0))
            turned = net.op("Transpose", update, perm=(0, 2, 1, 3))
            found = net.op("GatherND", turned, net.op("Unsqueeze", rows, [2]), batch_dims=1)
            found = net.op("Transpose", found, perm=(0, 2, 1, 3))
        chosen = net.op("Unsqueeze", written, [1, 3])
        return [net.op("Where", chosen, found, cache)]


_GATED_WEIGHTS, _GATED_BIASES, _SCALE = 3, 6, 9


class IMoELayer(ILayer):
    """A mixture of experts: each token's scores weigh the results of the experts selected for it.

    An expert computes down(activation(gate(x)) * up(x)). Tokens are (batch, sequence, size), selected experts and their scores
    (batch, sequence, number); weights (experts, size, inner) and (experts, inner, size), biases (experts, inner) and (experts, size).
    """

    __slots__ = ()
    _layer_type, _label = LayerType.MOE, "MoE"
    activation_type = Setting[MoEActType](of(MoEActType), MoEActType.NONE, "The activation of the gate.")
    quantization_to_type = Setting[DataType](of(DataType), DataType.FLOAT, "The narrow type of what enters `down`; FLOAT: none.")
    quantization_block_shape = dims_setting((), "How many elements share a scale, per axis, where the data decide scales.")
    dyn_q_output_scale_type = Setting[DataType](of(DataType), DataType.FLOAT, "The type of scales that the data decide.")
    swiglu_param_limit = Setting[float](number, float("inf"), "Gates are cut above it, and what they gate on both sides.")
    swiglu_param_alpha = Setting[float](number, 1.0, "The factor inside of the sigmoid.")
    swiglu_param_beta = Setting[float](number, 0.0, "What is added to what gates gate.")

    def set_gated_weights(
        self, fc_gate_weights: ITensor, fc_up_weights: ITensor, fc_down_weights: ITensor, activation_type: MoEActType
    ) -> None:
        """Give the weights of all experts."""
        expect(MoEActType, activation_type, "set_gated_weights: activation_type")
        put_inputs(self, _GATED_WEIGHTS, [fc_gate_weights, fc_up_weights, fc_down_weights], "set_gated_weights")
        self.activation_type = activation_type

    def set_gated_biases(self, fc_gate_biases: ITensor, fc_up_biases: ITensor, fc_down_biases: ITensor) -> None:
        """Give the biases of all experts."""
        put_inputs(self, _GATED_BIASES, [fc_gate_biases, fc_up_biases, fc_down_biases], "set_gated_biases")

    def set_quantization_static(self, fc_down_activation_scale: ITensor, data_type: DataType) -> None:
        """Round what enters `down` into a narrow type, with a given scale."""
        self.quantization_to_type = data_type
        put_inputs(self, _SCALE, [fc_down_activation_scale], "set_quantization_static")
        self._record.change("dynamic", False)

    def set_quantization_dynamic_dbl_q(
        self, fc_down_activation_dbl_q_scale: ITensor, data_type: DataType, block_shape: Any, dyn_q_output_scale_type: DataType
    ) -> None:
        """Round what enters `down` into a narrow type, with scales per block that the data decide, scaled by a given one."""
        self.quantization_to_type = data_type
        self.quantization_block_shape = Dims(extents(block_shape, "set_quantization_dynamic_dbl_q: block_shape"))
        self.dyn_q_output_scale_type = dyn_q_output_scale_type
        put_inputs(self, _SCALE, [fc_down_activation_dbl_q_scale], "set_quantization_dynamic_dbl_q")
        self._record.change("dynamic", True)

    def set_swiglu_params(self, limit: float, alpha: float, beta: float) -> None:
        """Give the three parameters of the gate."""
        self.swiglu_param_limit, self.swiglu_param_alpha, self.swiglu_param_beta = limit, alpha, beta

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, selected, scores, gate, up, down, gate_bias, up_bias, down_bias, scale = (*inputs, *[None] * 10)[:10]
        assert x is not None and selected is not None and scores is not None
        if gate is None or up is None or down is None:
            raise ModelError(f"{self.name}: got no weights, expected those of all experts; set_gated_weights")
        experts, size, count = down.shape[0], x.shape[-1], product(x.shape[:-1])
        tokens = net.reshape(x, (1, count, size))
        gates = _gated(self, net, _linear(net, tokens, gate, gate_bias))
        hidden = net.op("Mul", gates, _lifted(self, net, _linear(net, tokens, up, up_bias)))
        results = _linear(net, _narrowed(self, net, hidden, scale), down, down_bias)
        # How much each expert counts for each token: (experts, tokens, 1).
        flags = net.cast(net.constant(np.array([0, 1], np.float32)), scores.dtype)
        chosen = net.op("OneHot", net.cast(selected, I64), net.extents([experts]), flags, axis=-1)
        rank = len(scores.shape)
        weighted = net.op("Mul", chosen, net.op("Unsqueeze", scores, [rank]))
        share = net.reshape(net.op("ReduceSum", weighted, [rank - 1], keepdims=0), (count, experts, 1))
        share = net.op("Transpose", share, perm=(1, 0, 2))
        mixed = net.op("ReduceSum", net.op("Mul", results, net.cast(share, results.dtype)), [0], keepdims=0)
        return [net.reshape(mixed, x.shape)]


def put_inputs(layer: ILayer, position: int, tensors: Sequence[ITensor], where: str) -> None:
    """Give a layer inputs from a position on."""
    given = [expect(ITensor, t, where) for t in tensors]
    record = layer._record
    record.inputs += [None] * (position + len(given) - len(record.inputs))
    record.inputs[position : position + len(given)] = given
    record.network._changed(record)


def _linear(net: Scope, x: Value, weights: Value, bias: Value | None) -> Value:
    """One product per expert."""
    made: Value = net.op("MatMul", x, net.cast(weights, x.dtype))
    return made if bias is None else net.op("Add", made, net.cast(net.op("Unsqueeze", bias, [1]), x.dtype))


def _gated(layer: IMoELayer, net: Scope, gate: Value) -> Value:
    if np.isfinite(layer.swiglu_param_limit):
        gate = net.op("Min", gate, net.number(layer.swiglu_param_limit, gate))
    if layer.activation_type is MoEActType.NONE:
        return gate
    alpha = layer.swiglu_param_alpha
    inner = gate if alpha == 1 else net.op("Mul", gate, net.number(alpha, gate))
    made: Value = net.op("Mul", gate, net.op("Sigmoid", inner))
    return made


def _lifted(layer: IMoELayer, net: Scope, up: Value) -> Value:
    limit, beta = layer.swiglu_param_limit, layer.swiglu_param_beta
    if np.isfinite(limit):
        up = net.op("Clip", up, net.number(-limit, up), net.number(limit, up))
    return up if beta == 0 else net.op("Add", up, net.number(beta, up))


def _narrowed(layer: IMoELayer, net: Scope, hidden: Value, scale: Value | None) -> Value:
    """What enters `down`, as rounded into the narrow type."""
    if scale is None or layer.quantization_to_type is DataType.FLOAT:
        return hidden
    second = net.reshape(scale, ())
    if not layer._record.values.get("dynamic"):
        codes = quantized(net, hidden, second, to_dtype(layer.quantization_to_type), {})
        return dequantized(net, codes, second, hidden.dtype, {})
    kept = tuple(layer.quantization_block_shape)
    blocks = (1,) * (len(hidden.shape) - len(kept)) + kept
    kind = layer.dyn_q_output_scale_type
    codes, scales = dynamically_quantized(net, layer, hidden, second, blocks, layer.quantization_to_type, kind)
    factor = net.cast(scales, F32)
    if kind is DataType.FP8:
        factor = net.op("Mul", factor, net.cast(second, F32))
    return net.cast(by_blocks(net, net.cast(codes, F32), factor), hidden.dtype)


class AddTransformers(NetworkBase):
    """The `add_*` methods of this family."""

    def add_rotary_embedding(
        self, input: ITensor, cos_cache: ITensor, sin_cache: ITensor, interleaved: bool, rotary_embedding_dim: int
    ) -> IRotaryEmbeddingLayer | None:
        """Turn queries or keys by the angles of their places."""
        named = {"input": input, "cos_cache": cos_cache, "sin_cache": sin_cache}
        return self._add(
            IRotaryEmbeddingLayer,
            [expect(ITensor, t, f"add_rotary_embedding: {name}") for name, t in named.items()],
            interleaved=boolean(interleaved, "add_rotary_embedding: interleaved"),
            rotary_embedding_dim=integer(rotary_embedding_dim, "add_rotary_embedding: rotary_embedding_dim"),
        )

    def add_kv_cache_update(
        self, cache: ITensor, update: ITensor, write_indices: ITensor, cache_mode: KVCacheMode
    ) -> IKVCacheUpdateLayer | None:
        """Write new keys or values into a cache."""
        named = {"cache": cache, "update": update, "write_indices": write_indices}
        inputs = [expect(ITensor, t, f"add_kv_cache_update: {name}") for name, t in named.items()]
        return self._add(IKVCacheUpdateLayer, inputs, cache_mode=expect(KVCacheMode, cache_mode, "add_kv_cache_update: cache_mode"))

    def add_moe(
        self, hidden_states: ITensor, selected_experts_for_tokens: ITensor, scores_for_selected_experts: ITensor
    ) -> IMoELayer | None:
        """Mix the results of experts."""
        named = {
            "hidden_states": hidden_states,
            "selected_experts_for_tokens": selected_experts_for_tokens,
            "scores_for_selected_experts": scores_for_selected_experts,
        }
        return self._add(IMoELayer, [expect(ITensor, t, f"add_moe: {name}") for name, t in named.items()])
