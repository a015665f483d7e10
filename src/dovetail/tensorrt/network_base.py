"""What a network keeps and knows: tensors, layers, outputs, names of weights; the `add_*` methods are in `layers/`."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from dovetail.core.dims import Dim
from dovetail.core.errors import Error
from dovetail.frontend.network import Network
from dovetail.ir.graph import Value
from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.dtypes import to_data_type, to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    DataType,
    ErrorCodeTRT,
    NetworkDefinitionCreationFlag,
    WeightsRole,
)
from dovetail.tensorrt.hooks import recorder_property
from dovetail.tensorrt.layer import ILayer, LayerRecord
from dovetail.tensorrt.logger import Reporter
from dovetail.tensorrt.scope import ModelScope, ShapeScope
from dovetail.tensorrt.settings import extents
from dovetail.tensorrt.tensor import ITensor, dims_of
from dovetail.tensorrt.uses import Uses
from dovetail.tensorrt.weights import Weights, address, as_weights

L = TypeVar("L", bound=ILayer)


class NetworkBase(Deprecated):
    """A network as a list of layers, with its inputs and outputs."""

    def __init__(self, reporter: Reporter, flags: int = 0, builder: Any = None, implicit_batch: bool = False) -> None:
        # Recorders are set per object, so this one must not be the builder's.
        self._reporter = Reporter(reporter.logger, reporter.recorder)
        self._flags, self._builder, self._implicit_batch = flags, builder, implicit_batch
        self._name = "Unnamed Network 0"
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []
        self._shape_outputs: list[ITensor] = []
        self._layers: list[LayerRecord] = []
        self._count = self._constructs = 0
        self._scope: ShapeScope | None = None
        self._failed: set[ITensor] = set()
        self._debug: list[ITensor] = []
        self._debug_unfused = False
        self._names_of_weights: dict[int, tuple[str, Weights]] = {}
        self._places_of_names: dict[str, int] = {}
        self._refittable: set[str] = set()
        # Of layers that a parser made of ONNX nodes, which have no weights of their own.
        self._parsed_weights: dict[tuple[str, WeightsRole], str] = {}
        self._known_uses: Uses | None = None
        # Least, likely and largest shapes of inputs, which plugins are told of in a build.
        self._profile: Mapping[str, Any] = {}

    # ---- adding layers ----
    def _add(self, layer_class: type[L], inputs: Sequence[ITensor | None], outputs: int = 1, **values: Any) -> L | None:
        """A new layer; None, with a message, where an input is of another network."""
        if any(t is not None and t._network is not self for t in inputs):
            self._refuse(f"{layer_class.__name__}: got a tensor of another network, expected tensors of this one")
            return None
        base = f"(Unnamed Layer* {self._count}) [{layer_class._label}]"
        self._count += 1
        record = LayerRecord(self, layer_class, base, inputs, values)
        for index in range(outputs):
            suffix = "_output" if outputs == 1 else f"_output_{index + 1}"
            record.outputs.append(ITensor(self, base + suffix, record, index))
        self._layers.append(record)
        self._known_uses = None
        handle = record.handle()
        assert isinstance(handle, layer_class)
        return handle

    def _refuse(self, message: str) -> None:
        """Say why a call has no result."""
        self._reporter.error(message, ErrorCodeTRT.INVALID_ARGUMENT)

    def add_input(self, name: str, dtype: DataType, shape: Any) -> ITensor | None:
        """Declare an input; -1 in its shape is an extent that each run may choose. None if the name is taken or empty."""
        expect(str, name, "add_input: name")
        expect(DataType, dtype, "add_input: dtype")
        declared = extents(shape, "add_input: shape")
        if not name or any(t.name == name for t in self._inputs):
            self._refuse(f"add_input: got the name {name!r}, expected one that no other input has")
            return None
        if any(d < -1 for d in declared):
            self._refuse(f"add_input: got the shape {declared} of {name!r}, expected extents of at least 0, or -1")
            return None
        tensor = ITensor(self, name, None, len(self._inputs))
        tensor._declared, tensor._data_type = declared, dtype
        self._inputs.append(tensor)
        return tensor

    # ---- what clients read ----
    @property
    def name(self) -> str:
        """The name of the network, and of engines built of it."""
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = expect(str, value, "INetworkDefinition.name")

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        """The number of inputs."""
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        """The number of outputs."""
        return len(self._all_outputs())

    @property
    def has_implicit_batch_dimension(self) -> bool:
        """Whether shapes leave out the batch."""
        return self._implicit_batch

    @property
    def has_explicit_precision(self) -> bool:
        """Whether the network was created with EXPLICIT_PRECISION."""
        return self.get_flag(NetworkDefinitionCreationFlag.EXPLICIT_PRECISION)

    error_recorder = recorder_property("INetworkDefinition", "What is told of errors, besides the logger.")

    @property
    def builder(self) -> Any:
        """The builder that made it."""
        return self._builder

    @property
    def flags(self) -> int:
        """The flags it was created with: bits of NetworkDefinitionCreationFlag."""
        return self._flags

    def get_flag(self, flag: NetworkDefinitionCreationFlag) -> bool:
        """Whether it was created with a flag."""
        expect(NetworkDefinitionCreationFlag, flag, "get_flag: flag")
        if flag is NetworkDefinitionCreationFlag.EXPLICIT_BATCH:
            return not self._implicit_batch
        return bool(self._flags & (1 << flag))

    def get_layer(self, index: int) -> ILayer | None:
        """The layer at an index as a plain ILayer, whose `type` says what it is; None where there is none."""
        position = operator.index(index)
        return ILayer._of(self._layers[position]) if 0 <= position < len(self._layers) else None

    def get_input(self, index: int) -> ITensor | None:
        """The input at an index, None where there is none."""
        position = operator.index(index)
        return self._inputs[position] if 0 <= position < len(self._inputs) else None

    def get_output(self, index: int) -> ITensor | None:
        """The output at an index, None where there is none."""
        position, outputs = operator.index(index), self._all_outputs()
        return outputs[position] if 0 <= position < len(outputs) else None

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int) -> ILayer:
        position = operator.index(index)
        if not -len(self._layers) <= position < len(self._layers):
            raise IndexError(f"INetworkDefinition: got the index {position}, expected one of {len(self._layers)} layers")
        return ILayer._of(self._layers[position])

    def __iter__(self) -> Iterator[ILayer]:
        return iter([ILayer._of(record) for record in self._layers])

    def __bool__(self) -> bool:
        return True

    # ---- outputs ----
    def _all_outputs(self) -> list[ITensor]:
        return self._outputs + self._shape_outputs

    def mark_output(self, tensor: ITensor) -> None:
        """Return a tensor from the engine."""
        self._mark(self._outputs, tensor, "mark_output")

    def unmark_output(self, tensor: ITensor) -> None:
        """No longer return a tensor."""
        self._unmark(self._outputs, tensor, "unmark_output")

    def mark_output_for_shapes(self, tensor: ITensor) -> bool:
        """Return a shape tensor in host memory; whether that is new."""
        return self._mark(self._shape_outputs, tensor, "mark_output_for_shapes")

    def unmark_output_for_shapes(self, tensor: ITensor) -> bool:
        """No longer return a shape tensor; whether it was."""
        return self._unmark(self._shape_outputs, tensor, "unmark_output_for_shapes")

    def mark_debug(self, tensor: ITensor) -> bool:
        """Let debug listeners see a tensor; whether that is new."""
        return self._mark(self._debug, tensor, "mark_debug")

    def unmark_debug(self, tensor: ITensor) -> bool:
        """No longer show a tensor to debug listeners; whether it was."""
        return self._unmark(self._debug, tensor, "unmark_debug")

    def is_debug_tensor(self, tensor: ITensor) -> bool:
        """Whether debug listeners see a tensor."""
        return expect(ITensor, tensor, "is_debug_tensor: tensor") in self._debug

    def mark_unfused_tensors_as_debug_tensors(self) -> bool:
        """Let debug listeners see all tensors that the engine keeps in memory."""
        self._debug_unfused = True
        return True

    def unmark_unfused_tensors_as_debug_tensors(self) -> bool:
        """Undo `mark_unfused_tensors_as_debug_tensors`."""
        self._debug_unfused = False
        return True

    def _mark(self, marked: list[ITensor], tensor: ITensor, where: str) -> bool:
        expect(ITensor, tensor, f"{where}: tensor")
        self._known_uses = None
        if tensor._network is not self:
            self._reporter.error(f"{where}: got a tensor of another network, expected one of this network", ErrorCodeTRT.INVALID_ARGUMENT)
            return False
        if tensor in marked:
            return False
        marked.append(tensor)
        return True

    def _unmark(self, marked: list[ITensor], tensor: ITensor, where: str) -> bool:
        expect(ITensor, tensor, f"{where}: tensor")
        self._known_uses = None
        if tensor not in marked:
            return False
        marked.remove(tensor)
        return True

    def remove_tensor(self, tensor: ITensor) -> None:
        """Take a tensor out of the network: an input, or what no layer reads any more."""
        expect(ITensor, tensor, "remove_tensor: tensor")
        for marked in (self._inputs, self._outputs, self._shape_outputs, self._debug):
            if tensor in marked:
                marked.remove(tensor)
        for record in self._readers().get(tensor, ()):
            record.inputs = [None if t is tensor else t for t in record.inputs]
        self._reset()

    # ---- names of weights ----
    def set_weights_name(self, weights: Any, name: str) -> bool:
        """Name the weights that lie at an address, for refits; whether that could be done."""
        given = as_weights(weights, "set_weights_name: weights")
        expect(str, name, "set_weights_name: name")
        if not self._name_weights(given, name):
            self._refuse(f"set_weights_name: got the name {name!r} for {given!r}, expected a new name, and weights that are not empty")
            return False
        return True

    def _name_weights(self, weights: Weights, name: str) -> bool:
        """Name weights; whether the name is free and they are not empty."""
        place = address(weights)
        taken = self._places_of_names.get(name, place)
        if not weights.size or not name or name.startswith("~") or taken != place:
            return False
        self._places_of_names[name] = place
        self._names_of_weights[place] = (name, weights)
        for record in self._layers:
            if any(isinstance(v, Weights) and address(v) == place for v in record.values.values()):
                self._changed(record)
        return True

    def mark_weights_refittable(self, name: str) -> bool:
        """Let refits change weights of this name, even where the builder's REFIT_INDIVIDUAL leaves all others fixed."""
        self._refittable.add(expect(str, name, "mark_weights_refittable: name"))
        return True

    def unmark_weights_refittable(self, name: str) -> bool:
        """Undo `mark_weights_refittable`."""
        self._refittable.discard(expect(str, name, "unmark_weights_refittable: name"))
        return True

    def are_weights_marked_refittable(self, name: str) -> bool:
        """Whether `mark_weights_refittable` was called for a name."""
        return expect(str, name, "are_weights_marked_refittable: name") in self._refittable

    def _weights_name(self, record: LayerRecord, weights: Weights, role: WeightsRole) -> str:
        """What weights are called: as the client says, else after their layer and role."""
        named = self._names_of_weights.get(address(weights)) if weights.size else None
        return named[0] if named is not None else f"{record.name} {role.name}"

    def _weights(self) -> dict[tuple[str, WeightsRole], str]:
        """The names of all weights, by layer and role."""
        return self._parsed_weights | {
            (record.name, role): self._weights_name(record, weights, role)
            for record in self._layers
            for role, weights in record.handle()._weights().items()
            if weights.size
        }

    # ---- precision ----
    def _precision(self) -> dict[str, tuple[DataType | None, dict[int, DataType]]]:
        """What clients asked for, of layers for which they did: the type to compute in, and types of outputs by index."""
        return {r.name: (r.precision, dict(r.output_types)) for r in self._layers if r.precision is not None or r.output_types}

    def _ranges(self) -> dict[str, tuple[float, float]]:
        """Dynamic ranges by tensor."""
        tensors = [*self._inputs, *(t for r in self._layers for t in r.outputs)]
        return {t.name: t._range for t in tensors if t._range is not None}

    # ---- shapes ----
    def _shape_scope(self) -> ShapeScope:
        if self._scope is None:
            self._scope = ShapeScope(self)
        return self._scope

    def _found(self, tensor: ITensor) -> Value | None:
        """The value that stands for a tensor in the network so far; None, said once, where there is none."""
        scope = self._shape_scope()
        if tensor in self._failed:
            return None
        try:
            return scope.value(tensor)
        except Error as error:
            self._failed.add(tensor)
            self._reporter.error(str(error), ErrorCodeTRT.INVALID_ARGUMENT)
            return None

    def _shape(self, tensor: ITensor) -> Dims:
        if tensor._producer is None and tensor._declared is not None:
            return Dims(tensor._declared)
        value = self._found(tensor)
        return dims_of(None if value is None else value.shape[self._shape_scope().shift :])

    def _dtype(self, tensor: ITensor) -> DataType:
        if tensor._data_type is not None and (tensor._producer is None or tensor in self._outputs):
            return tensor._data_type
        value = self._found(tensor)
        return DataType.FLOAT if value is None else to_data_type(value.dtype)

    def _declare(self, net: Network, tensor: ITensor, name: str) -> Value:
        """An input of the network as one of a `dovetail.Network`."""
        assert tensor._declared is not None and tensor._data_type is not None
        names = {axis: symbol_name(text) for axis, text in tensor._dimension_names.items()}
        shape: list[Dim | str | None] = [names.get(axis) if d == -1 else d for axis, d in enumerate(tensor._declared)]
        if self._implicit_batch:
            shape = ["batch", *shape]
        value = net.input(name, to_dtype(tensor._data_type), tuple(shape))
        # What is not strongly typed computes as before when an input's type changes: the client chooses what lies in memory.
        asked, read_as = value.dtype, None if tensor._read_as is None else to_dtype(tensor._read_as)
        if read_as is None or read_as == asked or not (read_as.is_float and asked.is_float) or self._strongly_typed():
            return value
        cast: Value = net.op("Cast", value, to=read_as)
        return cast

    def _strongly_typed(self) -> bool:
        return self.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def _is_read(self, tensor: ITensor) -> bool:
        """Whether a layer reads a tensor."""
        return any(t is tensor for record in self._layers for t in record.inputs)

    def _changed(self, record: LayerRecord) -> None:
        """A layer is no longer what it was."""
        self._failed.clear()
        self._known_uses = None
        if self._scope is not None:
            self._scope.forget(record)

    def _reset(self) -> None:
        """Inputs are no longer what they were."""
        self._scope = None
        self._failed.clear()
        self._known_uses = None

    def _readers(self) -> dict[ITensor, list[LayerRecord]]:
        """The layers that read a tensor, or whose result it decides from afar, as a loop's."""
        found: dict[ITensor, list[LayerRecord]] = {}
        for record in self._layers:
            for tensor in dict.fromkeys([*(t for t in record.inputs if t is not None), *record.handle()._needs_for_shapes()]):
                found.setdefault(tensor, []).append(record)
        return found

    def _uses(self) -> Uses:
        if self._known_uses is None:
            self._known_uses = Uses(self._layers, self._all_outputs(), self._shape_outputs)
        return self._known_uses

    def _is_input(self, tensor: ITensor) -> bool:
        return tensor in self._inputs

    def _is_output(self, tensor: ITensor) -> bool:
        return tensor in self._outputs or tensor in self._shape_outputs

    # ---- the model ----
    def _model(self, extra: Sequence[ITensor] = ()) -> Network:
        """The network as a `dovetail.Network`: inputs and outputs by the names that they have now, layers as origins.

        Args:
            extra: more tensors to return, under their names, such as those that debug listeners see.

        Raises:
            Error: there are no outputs, or layers do not fit together.
        """
        net = Network()
        scope = ModelScope(self, net)
        for tensor in self._inputs:
            scope.known[tensor] = self._declare(net, tensor, tensor.name)
        outputs = list(dict.fromkeys([*self._all_outputs(), *extra]))
        # Layers without readers that act, such as assertions, are run too.
        scope.lower_all([*outputs, *(t for r in self._layers if r.kind._acts for t in r.handle()._needs())])
        for record in self._layers:
            if record.kind._acts:
                scope.lower(record)
        for tensor in outputs:
            dtype = None if tensor._data_type is None else to_dtype(tensor._data_type)
            net.output(scope.known[tensor], tensor.name, dtype=dtype)
        return net


def symbol_name(text: str) -> str | None:
    """A symbol for a dimension's name, which may be any text; None for no name."""
    plain = re.sub(r"\W", "_", text)
    return None if not plain else plain if not plain[0].isdigit() else f"d{plain}"

