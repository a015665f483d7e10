"""Recurrent layers of TensorRT before 10: stacks of LSTM, GRU or plain cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import product
from dovetail.core.dtypes import F32, I32
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    LayerType,
    RNNDirection,
    RNNGateType,
    RNNInputMode,
    RNNOperation,
    WeightsRole,
)
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, boolean, elements, integer, of
from dovetail.tensorrt.tensor import ITensor
from dovetail.tensorrt.weights import Weights, values

_LENGTHS, _HIDDEN, _CELL = 1, 2, 3
# The gates of a cell in ONNX's order.
_GATES = {
    RNNOperation.RELU: (RNNGateType.INPUT,),
    RNNOperation.TANH: (RNNGateType.INPUT,),
    RNNOperation.LSTM: (RNNGateType.INPUT, RNNGateType.OUTPUT, RNNGateType.FORGET, RNNGateType.CELL),
    RNNOperation.GRU: (RNNGateType.UPDATE, RNNGateType.RESET, RNNGateType.HIDDEN),
}
_OPS = {RNNOperation.RELU: "RNN", RNNOperation.TANH: "RNN", RNNOperation.LSTM: "LSTM", RNNOperation.GRU: "GRU"}


class IRNNv2Layer(ILayer):
    """A stack of recurrent layers over (…, sequence, size): all states of the last one, then the final states of all, by layer.

    Layers are counted from 0; with two directions, layer 2 i reads forward and 2 i + 1 backward.
    """

    __slots__ = ()
    _layer_type, _label = LayerType.RNN_V2, "RNN"
    op = Setting[RNNOperation](of(RNNOperation), RNNOperation.RELU, "The cell.")
    input_mode = Setting[RNNInputMode](of(RNNInputMode), RNNInputMode.LINEAR, "Whether the first layer multiplies its input.")
    direction = Setting[RNNDirection](of(RNNDirection), RNNDirection.UNIDIRECTION, "The directions it reads in.")

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return int(self._record.values["layer_count"])

    @property
    def hidden_size(self) -> int:
        """The size of a state."""
        return int(self._record.values["hidden_size"])

    @property
    def max_seq_length(self) -> int:
        """The longest sequence."""
        return int(self._record.values["max_seq_length"])

    @property
    def data_length(self) -> int:
        """The size of an element of the input."""
        (tensor,) = self._record.inputs[:1]
        return tensor.shape[-1] if tensor is not None else 0

    @property
    def seq_lengths(self) -> ITensor | None:
        """How long each sequence is; None: all as long as the input."""
        return optional_input(self, _LENGTHS)

    @seq_lengths.setter
    def seq_lengths(self, value: ITensor) -> None:
        put_input(self, _LENGTHS, value, "seq_lengths")

    @property
    def hidden_state(self) -> ITensor | None:
        """The states at first, by layer: (…, layers, hidden size); None: zeros."""
        return optional_input(self, _HIDDEN)

    @hidden_state.setter
    def hidden_state(self, value: ITensor) -> None:
        put_input(self, _HIDDEN, value, "hidden_state")

    @property
    def cell_state(self) -> ITensor | None:
        """The cells of an LSTM at first, by layer; None: zeros."""
        return optional_input(self, _CELL)

    @cell_state.setter
    def cell_state(self, value: ITensor) -> None:
        put_input(self, _CELL, value, "cell_state")

    def set_weights_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool, weights: Any) -> None:
        """Give a gate its matrix, of rows of the hidden size, for the input (`is_w`) or for the state."""
        self._record.change(key_of("weights", layer_index, gate, is_w), elements(weights, "set_weights_for_gate: weights"))

    def get_weights_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool) -> Any:
        """The matrix of a gate."""
        return self._record.values.get(key_of("weights", layer_index, gate, is_w), Weights()).numpy()

    def set_bias_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool, bias: Any) -> None:
        """Give a gate what is added to the product with the input (`is_w`) or with the state."""
        self._record.change(key_of("bias", layer_index, gate, is_w), elements(bias, "set_bias_for_gate: bias"))

    def get_bias_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool) -> Any:
        """The bias of a gate."""
        return self._record.values.get(key_of("bias", layer_index, gate, is_w), Weights()).numpy()

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, lengths, hidden, cell = (*inputs, None, None, None)[:4]
        assert x is not None
        outer, (steps, size) = x.shape[:-2], x.shape[-2:]
        batch, width, directions = product(outer), self.hidden_size, _directions(self)
        layers = self.num_layers * directions
        sequence = net.op("Transpose", net.reshape(x, (batch, steps, size)), perm=(1, 0, 2))
        counts = None if lengths is None else net.cast(net.reshape(lengths, (batch,)), I32)
        first = [None if s is None else net.op("Transpose", net.reshape(s, (batch, layers, width)), perm=(1, 0, 2)) for s in (hidden, cell)]
        is_lstm = self.op is RNNOperation.LSTM
        last: list[list[Value]] = [[], []]
        for index in range(self.num_layers):
            span = [index * directions], [(index + 1) * directions], [0]
            states = [None if s is None else net.op("Slice", s, *span) for s in first[: 1 + is_lstm]]
            operands = [*_operands(self, net, index, sequence), counts, *states]
            attributes = _attributes(self)
            outputs = net.op(_OPS[self.op], sequence, *operands, outputs=2 + is_lstm, **attributes)
            joined = net.op("Transpose", outputs[0], perm=(0, 2, 1, 3))
            sequence = net.reshape(joined, (steps, batch, directions * width))
            for kept, value in zip(last, outputs[1:], strict=False):
                kept.append(value)
        results = [net.reshape(net.op("Transpose", sequence, perm=(1, 0, 2)), (*outer, steps, directions * width))]
        for states_of in last[: 1 + is_lstm]:
            whole = net.op("Concat", *states_of, axis=0)
            results.append(net.reshape(net.op("Transpose", whole, perm=(1, 0, 2)), (*outer, layers, width)))
        return results


def optional_input(layer: ILayer, position: int) -> ITensor | None:
    """An input that may be absent."""
    inputs = layer._record.inputs
    return inputs[position] if len(inputs) > position else None


def put_input(layer: ILayer, position: int, tensor: ITensor, what: str) -> None:
    """Give a layer an input that it may lack."""
    expect(ITensor, tensor, f"{type(layer).__name__}.{what}")
    record = layer._record
    record.inputs += [None] * (position + 1 - len(record.inputs))
    record.inputs[position] = tensor
    record.network._changed(record)


def key_of(what: str, layer_index: int, gate: RNNGateType, is_w: bool) -> str:
    """Under what a gate's weights are kept."""
    index, kind = integer(layer_index, "layer_index"), expect(RNNGateType, gate, "gate")
    return f"{what}.{index}.{kind.name}.{'W' if boolean(is_w, 'is_w') else 'R'}"


def _directions(layer: IRNNv2Layer) -> int:
    return 1 if layer.direction is RNNDirection.UNIDIRECTION else 2


def _attributes(layer: IRNNv2Layer) -> dict[str, Any]:
    directions = _directions(layer)
    found: dict[str, Any] = {"hidden_size": layer.hidden_size, "direction": "bidirectional" if directions == 2 else "forward"}
    if layer.op is RNNOperation.GRU:
        found["linear_before_reset"] = 1
    if layer.op is RNNOperation.RELU:
        found["activations"] = ["Relu"] * directions
    return found


def _operands(layer: IRNNv2Layer, net: Scope, index: int, sequence: Value) -> list[Value]:
    """W, R and B of one layer, all directions."""
    width, size = layer.hidden_size, sequence.shape[-1]
    if not isinstance(size, int):
        raise ModelError(f"{layer.name}: got elements of {size}, expected a size that is known before the run")
    directions, gates = _directions(layer), _GATES[layer.op]
    skips = index == 0 and layer.input_mode is RNNInputMode.SKIP
    made: list[list[Value]] = [[], [], []]
    for direction in range(directions):
        parts = (("weights", True, size), ("weights", False, width), ("bias", True, 1), ("bias", False, 1))
        found: list[Value] = []
        for what, is_w, columns in parts:
            rows = [_gate(layer, net, what, index * directions + direction, g, is_w, columns, skips) for g in gates]
            whole = net.op("Concat", *rows, axis=0)
            found.append(net.cast(whole if what == "weights" else net.reshape(whole, (width * len(gates),)), sequence.dtype))
        made[0].append(found[0])
        made[1].append(found[1])
        made[2].append(net.op("Concat", found[2], found[3], axis=0))
    return [net.op("Concat", *(net.op("Unsqueeze", v, [0]) for v in kind), axis=0) for kind in made]


def _gate(layer: IRNNv2Layer, net: Scope, what: str, index: int, gate: RNNGateType, is_w: bool, columns: int, skips: bool) -> Value:
    """One gate's matrix or bias; an input that is not multiplied passes as it is."""
    width = layer.hidden_size
    if what == "weights" and is_w and skips:
        if columns != width:
            raise ModelError(f"{layer.name}: got elements of {columns}, expected the hidden size {width}, as the input is not multiplied")
        return net.constant(np.eye(width, dtype=np.float32))
    key = key_of(what, index, gate, is_w)
    weights = layer._record.values.get(key, Weights())
    if not weights.size:
        if what == "weights":
            raise ModelError(f"{layer.name}: got no weights for gate {gate.name} of layer {index}, expected them; set_weights_for_gate")
        return net.constant(np.zeros((width, columns), F32.numpy))
    named = net.network._names_of_weights
    role = WeightsRole.KERNEL if what == "weights" else WeightsRole.BIAS
    name = net.network._weights_name(layer._record, weights, role) if weights._pointer in named else f"{layer.name} {key}"
    array = values(weights)
    if array.size != width * columns:
        raise ModelError(f"{layer.name}: got {array.size} elements for {key}, expected {width * columns}")
    return net.named_weight(name, array.reshape(width, columns), weights)


class AddRecurrent(NetworkBase):
    """The `add_*` method of this family."""

    def add_rnn_v2(
        self, input: ITensor, layer_count: int, hidden_size: int, max_seq_length: int, op: RNNOperation
    ) -> IRNNv2Layer | None:
        """A stack of recurrent layers."""
        expect(RNNOperation, op, "add_rnn_v2: op")
        return self._add(
            IRNNv2Layer,
            [expect(ITensor, input, "add_rnn_v2: input")],
            outputs=3 if op is RNNOperation.LSTM else 2,
            layer_count=integer(layer_count, "add_rnn_v2: layer_count"),
            hidden_size=integer(hidden_size, "add_rnn_v2: hidden_size"),
            max_seq_length=integer(max_seq_length, "add_rnn_v2: max_seq_length"),
            op=op,
        )
