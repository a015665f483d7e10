"""Attention: three inputs and an output as layers at the border of one object that says the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from dovetail.core.dtypes import BOOL, F32, I64
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    AttentionIOForm,
    AttentionNormalizationOp,
    CausalMaskKind,
    DataType,
    LayerType,
)
from dovetail.tensorrt.layer import ILayer, LayerRecord
from dovetail.tensorrt.layers.quantization import dequantized, quantized
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import boolean, integer
from dovetail.tensorrt.tensor import ITensor

E = TypeVar("E")
_MASK, _SCALE, _QUERY_LENGTHS, _KEY_LENGTHS = 3, 4, 5, 6


class IAttention:
    """norm(query x key^T + mask) x value, with queries (batch, heads, sequence, size); scores are not scaled.

    Keys and values may have fewer heads, each of which serves several of the queries'. PACKED_NHD tensors are
    (sum of lengths, heads, size), with the lengths of their sequences.
    """

    def __init__(self, network: NetworkBase, inputs: list[ITensor], norm_op: AttentionNormalizationOp, causal: CausalMaskKind) -> None:
        self._network = network
        self._values: dict[str, Any] = {"norm_op": norm_op, "causal_kind": causal, "decomposable": False}
        padded = AttentionIOForm.PADDED_BHND
        self._values |= {"to_type": DataType.FLOAT, "query_form": padded, "key_value_form": padded}
        entry = network._add(IAttentionInputLayer, inputs, outputs=3, attention=self)
        assert entry is not None
        self._entry: LayerRecord = entry._record
        last = network._add(IAttentionOutputLayer, [*self._entry.outputs], attention=self)
        assert last is not None
        self._exit: LayerRecord = last._record

    def _keep(self, kind: type[E], key: str, value: Any) -> None:
        self._values[key] = expect(kind, value, f"IAttention.{key}")
        self._network._changed(self._exit)

    def _optional(self, position: int) -> ITensor | None:
        inputs = self._exit.inputs
        return inputs[position] if len(inputs) > position else None

    def _put(self, position: int, tensor: ITensor, what: str) -> None:
        expect(ITensor, tensor, f"IAttention.{what}")
        inputs = self._exit.inputs
        inputs += [None] * (position + 1 - len(inputs))
        inputs[position] = tensor
        self._network._changed(self._exit)

    # ---- properties ----
    @property
    def norm_op(self) -> AttentionNormalizationOp:
        """How scores are normalised."""
        found: AttentionNormalizationOp = self._values["norm_op"]
        return found

    @norm_op.setter
    def norm_op(self, value: AttentionNormalizationOp) -> None:
        self._keep(AttentionNormalizationOp, "norm_op", value)

    @property
    def causal_kind(self) -> CausalMaskKind:
        """Which keys come after a query and are left out."""
        found: CausalMaskKind = self._values["causal_kind"]
        return found

    @causal_kind.setter
    def causal_kind(self, value: CausalMaskKind) -> None:
        self._keep(CausalMaskKind, "causal_kind", value)

    @property
    def causal(self) -> bool:
        """Whether keys that come after a query are left out; the old name of `causal_kind`."""
        return self.causal_kind is not CausalMaskKind.NONE

    @causal.setter
    def causal(self, value: bool) -> None:
        wanted = boolean(value, "IAttention.causal")
        self.causal_kind = CausalMaskKind.UPPER_LEFT if wanted else CausalMaskKind.NONE

    @property
    def decomposable(self) -> bool:
        """Whether it may be computed step by step; it may here anyway."""
        return bool(self._values["decomposable"])

    @decomposable.setter
    def decomposable(self, value: bool) -> None:
        self._values["decomposable"] = boolean(value, "IAttention.decomposable")

    @property
    def mask(self) -> ITensor | None:
        """What is added to scores, or, of type BOOL, which of them count; repeated along extents of 1."""
        return self._optional(_MASK)

    @mask.setter
    def mask(self, value: ITensor) -> None:
        self._put(_MASK, value, "mask")

    @property
    def normalization_quantize_scale(self) -> ITensor | None:
        """The scale with which normalised scores are rounded into a narrow type."""
        return self._optional(_SCALE)

    @normalization_quantize_scale.setter
    def normalization_quantize_scale(self, value: ITensor) -> None:
        self._put(_SCALE, value, "normalization_quantize_scale")

    @property
    def normalization_quantize_to_type(self) -> DataType:
        """The narrow type of normalised scores; FLOAT: none."""
        found: DataType = self._values["to_type"]
        return found

    @normalization_quantize_to_type.setter
    def normalization_quantize_to_type(self, value: DataType) -> None:
        self._keep(DataType, "to_type", value)

    @property
    def query_form(self) -> AttentionIOForm:
        """How queries, and the output, lie."""
        found: AttentionIOForm = self._values["query_form"]
        return found

    @query_form.setter
    def query_form(self, value: AttentionIOForm) -> None:
        self._keep(AttentionIOForm, "query_form", value)

    @property
    def key_value_form(self) -> AttentionIOForm:
        """How keys and values lie."""
        found: AttentionIOForm = self._values["key_value_form"]
        return found

    @key_value_form.setter
    def key_value_form(self, value: AttentionIOForm) -> None:
        self._keep(AttentionIOForm, "key_value_form", value)

    @property
    def query_lengths(self) -> ITensor | None:
        """How many queries each sequence has."""
        return self._optional(_QUERY_LENGTHS)

    @query_lengths.setter
    def query_lengths(self, value: ITensor) -> None:
        self._put(_QUERY_LENGTHS, value, "query_lengths")

    @property
    def key_value_lengths(self) -> ITensor | None:
        """How many keys each sequence has."""
        return self._optional(_KEY_LENGTHS)

    @key_value_lengths.setter
    def key_value_lengths(self, value: ITensor) -> None:
        self._put(_KEY_LENGTHS, value, "key_value_lengths")

    @property
    def name(self) -> str:
        """The name, for reports."""
        return self._exit.name

    @name.setter
    def name(self, value: str) -> None:
        self._exit.name = expect(str, value, "IAttention.name")
        self._entry.name = f"{value}_input"

    @property
    def metadata(self) -> str:
        """Text of the client's."""
        return self._exit.metadata

    @metadata.setter
    def metadata(self, value: str) -> None:
        self._exit.metadata = expect(str, value, "IAttention.metadata")

    @property
    def num_ranks(self) -> int:
        """How many devices take part: 1."""
        return 1

    @num_ranks.setter
    def num_ranks(self, value: int) -> None:
        if integer(value, "IAttention.num_ranks") != 1:
            self._network._refuse(f"{self.name}: got {value} ranks, expected 1: collectives of several devices are not supported")

    @property
    def num_inputs(self) -> int:
        """The number of inputs: query, key and value."""
        return 3

    @property
    def num_outputs(self) -> int:
        """The number of outputs."""
        return 1

    def get_input(self, index: int) -> ITensor | None:
        """Query, key or value."""
        position = integer(index, "IAttention.get_input: index")
        return self._entry.inputs[position] if 0 <= position < 3 else None

    def set_input(self, index: int, tensor: ITensor) -> bool:
        """Replace the query, the key or the value; whether there is such an input."""
        position = integer(index, "IAttention.set_input: index")
        if not 0 <= position < 3:
            self._network._refuse(f"{self.name}: set_input: got the index {position}, expected 0 to 2")
            return False
        self._entry.inputs[position] = expect(ITensor, tensor, "IAttention.set_input: tensor")
        self._network._changed(self._entry)
        return True

    def get_output(self, index: int) -> ITensor | None:
        """The result."""
        return self._exit.outputs[0] if integer(index, "IAttention.get_output: index") == 0 else None

    def __repr__(self) -> str:
        return f"<IAttention: {self.name}>"


class IAttentionBoundaryLayer(ILayer):
    """A layer at the border of an attention."""

    __slots__ = ()

    @property
    def attention(self) -> IAttention:
        """The attention."""
        attention: IAttention = self._record.values["attention"]
        return attention


class IAttentionInputLayer(IAttentionBoundaryLayer):
    """Query, key and value as they enter."""

    __slots__ = ()
    _layer_type, _label = LayerType.ATTENTION_INPUT, "AttentionInput"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op("Identity", v) for v in inputs]


class IAttentionOutputLayer(IAttentionBoundaryLayer):
    """The result of an attention."""

    __slots__ = ()
    _layer_type, _label = LayerType.ATTENTION_OUTPUT, "AttentionOutput"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        q, k, v, mask, scale, q_lengths, k_lengths = (*inputs, *[None] * 7)[:7]
        assert q is not None and k is not None and v is not None
        attention = self.attention
        packed = attention.query_form is AttentionIOForm.PACKED_NHD
        if packed is not (attention.key_value_form is AttentionIOForm.PACKED_NHD):
            raise ModelError(f"{self.name}: got queries and keys of different forms, expected both packed or neither")
        if packed and (q_lengths is None or k_lengths is None):
            raise ModelError(f"{self.name}: got packed tensors without lengths, expected query_lengths and key_value_lengths")
        if packed:
            q, k, v = (net.op("Unsqueeze", net.op("Transpose", t, perm=(1, 0, 2)), [0]) for t in (q, k, v))
        allowed = _allowed(net, attention.causal_kind, q, k, q_lengths, k_lengths, packed)
        result = _attended(net, attention, q, k, v, mask, allowed, scale)
        if packed:
            result = net.op("Transpose", net.op("Squeeze", result, [0]), perm=(1, 0, 2))
        return [result]


def _allowed(
    net: Scope, causal: CausalMaskKind, q: Value, k: Value, q_lengths: Value | None, k_lengths: Value | None, packed: bool
) -> Value | None:
    """Which keys a query may see, (queries, keys) or (batch, 1, queries, keys); None: all."""
    if causal is CausalMaskKind.NONE and k_lengths is None and q_lengths is None:
        return None
    rows, columns = (_range(net, t.shape[2]) for t in (q, k))
    row, column = net.op("Unsqueeze", rows, [1]), net.op("Unsqueeze", columns, [0])
    found: list[Value] = []
    shift: Any = net.op("Sub", net.extents([k.shape[2]]), net.extents([q.shape[2]]))
    if packed:
        assert q_lengths is not None and k_lengths is not None
        (q_of, q_at, q_count), (k_of, k_at, k_count) = _placed(net, rows, q_lengths), _placed(net, columns, k_lengths)
        row, column = net.op("Unsqueeze", q_at, [1]), net.op("Unsqueeze", k_at, [0])
        found.append(net.op("Equal", net.op("Unsqueeze", q_of, [1]), net.op("Unsqueeze", k_of, [0])))
        counts = [net.op("Gather", c, q_of, axis=0) for c in (k_count, q_count)]
        shift = net.op("Unsqueeze", net.op("Sub", *counts), [1])
    elif k_lengths is not None:
        lengths = net.op("Reshape", net.cast(k_lengths, I64), np.array([-1, 1, 1, 1], np.int64))
        found.append(net.op("Less", column, lengths))
        if q_lengths is not None:
            shift = net.op("Sub", lengths, net.op("Reshape", net.cast(q_lengths, I64), np.array([-1, 1, 1, 1], np.int64)))
        else:
            shift = net.op("Sub", lengths, net.extents([q.shape[2]]))
    if causal is CausalMaskKind.UPPER_LEFT:
        found.append(net.op("LessOrEqual", column, row))
    elif causal is CausalMaskKind.LOWER_RIGHT:
        found.append(net.op("LessOrEqual", column, net.op("Add", row, shift)))
    if not found:
        return None
    made = found[0]
    for more in found[1:]:
        made = net.op("And", made, more)
    return made


def _range(net: Scope, extent: Any) -> Value:
    made: Value = net.op("Range", np.int64(0), net.op("Squeeze", net.extents([extent]), [0]), np.int64(1))
    return made


def _placed(net: Scope, tokens: Value, lengths: Value) -> tuple[Value, Value, Value]:
    """Of each token, its sequence and its place there, and all lengths."""
    counts = net.cast(lengths, I64)
    ends = net.op("CumSum", counts, np.int64(0))
    later = net.op("GreaterOrEqual", net.op("Unsqueeze", tokens, [1]), net.op("Unsqueeze", ends, [0]))
    of = net.op("ReduceSum", net.cast(later, I64), [1], keepdims=0)
    begins = net.op("Sub", ends, counts)
    return of, net.op("Sub", tokens, net.op("Gather", begins, of, axis=0)), counts


def _attended(
    net: Scope, attention: IAttention, q: Value, k: Value, v: Value, mask: Value | None, allowed: Value | None, scale: Value | None
) -> Value:
    rounds = scale is not None and attention.normalization_quantize_to_type is not DataType.FLOAT
    if attention.norm_op is AttentionNormalizationOp.SOFTMAX and not rounds:
        joined = mask
        if allowed is not None and mask is not None:
            if mask.dtype == BOOL:
                joined = net.op("And", mask, allowed)
            else:
                joined = net.op("Where", allowed, mask, net.number(-np.inf, mask))
        elif allowed is not None:
            joined = allowed
        if joined is not None and joined.dtype != BOOL:
            joined = net.cast(joined, q.dtype)
        made: Value = net.op("Attention", q, k, v, joined, scale=1.0)
        return made
    heads = q.shape[1]
    k, v = (_served(net, t, heads) for t in (k, v))
    scores = net.cast(net.op("MatMul", q, net.op("Transpose", k, perm=(0, 1, 3, 2))), F32)
    left_out = net.number(-np.inf if attention.norm_op is AttentionNormalizationOp.SOFTMAX else 0, scores)
    for one in (mask, allowed):
        if one is not None:
            scores = net.op("Where", one, scores, left_out) if one.dtype == BOOL else net.op("Add", scores, net.cast(one, F32))
    if attention.norm_op is AttentionNormalizationOp.SOFTMAX:
        scores = net.op("Softmax", scores, axis=-1)
    if rounds:
        assert scale is not None
        one_scale = net.reshape(scale, ())
        codes = quantized(net, scores, one_scale, to_dtype(attention.normalization_quantize_to_type), {})
        scores = dequantized(net, codes, one_scale, F32, {})
    result: Value = net.op("MatMul", net.cast(scores, v.dtype), v)
    return result


def _served(net: Scope, kept: Value, heads: Any) -> Value:
    """Keys or values with as many heads as queries have."""
    batch, own, count, size = kept.shape
    if own == heads:
        return kept
    group = heads // own
    wide = net.op("Expand", net.op("Unsqueeze", kept, [2]), net.extents((batch, own, group, count, size)))
    return net.reshape(wide, (batch, heads, count, size))


class AddAttention(NetworkBase):
    """The `add_*` methods of this family."""

    def add_attention(
        self, query: ITensor, key: ITensor, value: ITensor, norm_op: AttentionNormalizationOp, causal: bool
    ) -> IAttention | None:
        """Attend; `causal` leaves out keys after the query, counted from the first of both."""
        kind = CausalMaskKind.UPPER_LEFT if boolean(causal, "add_attention: causal") else CausalMaskKind.NONE
        return self.add_attention_v2(query, key, value, norm_op, kind)

    def add_attention_v2(
        self, query: ITensor, key: ITensor, value: ITensor, norm_op: AttentionNormalizationOp, causal_kind: CausalMaskKind
    ) -> IAttention | None:
        """Attend; `causal_kind` says which keys come after a query."""
        named = {"query": query, "key": key, "value": value}
        inputs = [expect(ITensor, t, f"add_attention: {name}") for name, t in named.items()]
        expect(AttentionNormalizationOp, norm_op, "add_attention: norm_op")
        expect(CausalMaskKind, causal_kind, "add_attention: causal_kind")
        if any(t._network is not self for t in inputs):
            self._refuse("add_attention: got a tensor of another network, expected tensors of this one")
            return None
        return IAttention(self, inputs, norm_op, causal_kind)
