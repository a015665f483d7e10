"""`ILayer`, and the record of a layer that all its handles share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, LayerType, WeightsRole
from dovetail.tensorrt.settings import integer
from dovetail.tensorrt.tensor import ITensor
from dovetail.tensorrt.weights import Weights

if TYPE_CHECKING:
    from dovetail.ir.graph import Value
    from dovetail.tensorrt.network_base import NetworkBase
    from dovetail.tensorrt.scope import Scope, ShapeScope


class LayerRecord:
    """What a network knows of one layer.

    Attributes:
        kind: the class that says what the layer computes.
        type: what clients see as its type.
        values: its settings by key.
        precision, output_types: what the client asked for.
    """

    __slots__ = (
        "__weakref__", "inputs", "kind", "metadata", "name", "network", "output_types", "outputs", "precision", "type", "values",
    )  # fmt: skip

    def __init__(
        self, network: NetworkBase, kind: type[ILayer], name: str, inputs: Sequence[ITensor | None], values: dict[str, Any]
    ) -> None:
        self.network, self.kind, self.type, self.name = network, kind, kind._layer_type, name
        self.inputs: list[ITensor | None] = list(inputs)
        self.outputs: list[ITensor] = []
        self.values = values
        self.metadata = ""
        self.precision: DataType | None = None
        self.output_types: dict[int, DataType] = {}

    def change(self, key: str, value: Any) -> None:
        """Keep a setting; what was lowered of the layer is no longer true."""
        self.values[key] = value
        self.network._changed(self)

    def handle(self) -> ILayer:
        """The layer as its own class."""
        return self.kind._of(self)

    def __repr__(self) -> str:
        return f"<{self.kind.__name__}: {self.name}>"


class ILayer:
    """A layer of a network.

    Objects of it are handles: two of the same layer are equal, and a handle may be given any layer class
    (`layer.__class__ = trt.IConvolutionLayer`), which says which properties it shows, not what is computed.
    """

    # A handle has no other state, so that its class may change, and clients that list attributes see properties only.
    __slots__ = ("_record",)
    _record: LayerRecord
    _layer_type: ClassVar[LayerType] = LayerType.IDENTITY
    # How TensorRT calls the type in names of layers that have none.
    _label: ClassVar[str] = "Layer"
    # Up to which index `set_input` may go beyond the inputs there are.
    _most_inputs: ClassVar[int] = 0
    # Inputs whose contents decide shapes.
    _shape_inputs: ClassVar[tuple[int, ...]] = ()
    # Whether inputs of one kind must have one element type (which the wider one then decides).
    _unifies: ClassVar[bool] = False

    # Whether it does something besides giving outputs.
    _acts: ClassVar[bool] = False

    def __init__(self) -> None:
        raise TypeError(f"dovetail.tensorrt.{type(self).__name__}: No constructor defined!")

    @classmethod
    def _of(cls, record: LayerRecord) -> ILayer:
        handle = object.__new__(cls)
        handle._record = record
        return handle

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        """The values of its outputs; every class of layers has its own. Not abstract, as clients hold plain handles of this class."""
        raise NotImplementedError(type(self).__name__)

    def _needs(self) -> list[ITensor]:
        """The tensors that must be lowered before it."""
        return [t for t in self._record.inputs if t is not None]

    def _weights(self) -> dict[WeightsRole, Weights]:
        """Its weights by role."""
        return {}

    def _lower_shapes(self, net: ShapeScope, inputs: list[Value | None]) -> Sequence[Value]:
        """The values of its outputs, where only their types matter and loops are not run."""
        return self._lower(net, inputs)

    def _needs_for_shapes(self) -> list[ITensor]:
        """The tensors that decide the types of its outputs."""
        return self._needs()

    # ---- what clients see ----
    @property
    def name(self) -> str:
        """The name, for reports and refits."""
        return self._record.name

    @name.setter
    def name(self, value: str) -> None:
        self._record.name = expect(str, value, "ILayer.name")

    @property
    def metadata(self) -> str:
        """Text of the client's, kept with the layer."""
        return self._record.metadata

    @metadata.setter
    def metadata(self, value: str) -> None:
        self._record.metadata = expect(str, value, "ILayer.metadata")

    @property
    def num_ranks(self) -> int:
        """How many devices take part: 1."""
        return 1

    @num_ranks.setter
    def num_ranks(self, value: int) -> None:
        if integer(value, "ILayer.num_ranks") != 1:
            self._record.network._reporter.error(f"{self.name}: got {value} ranks, expected 1: several devices are not supported")

    @property
    def type(self) -> LayerType:
        """What kind of layer it is."""
        return self._record.type

    @property
    def num_inputs(self) -> int:
        """The number of inputs, absent ones between others included."""
        return len(self._record.inputs)

    @property
    def num_outputs(self) -> int:
        """The number of outputs."""
        return len(self._record.outputs)

    def get_input(self, index: int) -> ITensor | None:
        """The input at an index, None where there is none."""
        position = integer(index, "ILayer.get_input: index")
        inputs = self._record.inputs
        return inputs[position] if 0 <= position < len(inputs) else None

    def set_input(self, index: int, tensor: ITensor) -> None:
        """Set or replace an input; the optional ones of a layer are added this way."""
        position = integer(index, "ILayer.set_input: index")
        given = expect(ITensor, tensor, "ILayer.set_input: tensor")
        record = self._record
        most = max(len(record.inputs), record.kind._most_inputs)
        if not 0 <= position < most or given._network is not record.network:
            why = f"got the index {position}, expected 0 to {most - 1}"
            if given._network is not record.network:
                why = "got a tensor of another network"
            record.network._reporter.error(f"{record.name}: set_input: {why}")
            return
        record.inputs += [None] * (position + 1 - len(record.inputs))
        record.inputs[position] = given
        record.network._changed(record)

    def get_output(self, index: int) -> ITensor | None:
        """The output at an index, None where there is none."""
        position = integer(index, "ILayer.get_output: index")
        outputs = self._record.outputs
        return outputs[position] if 0 <= position < len(outputs) else None

    # ---- precision, which networks that are not strongly typed leave to the builder ----
    @property
    def precision(self) -> DataType:
        """The type to compute in; FLOAT, if never set."""
        return DataType.FLOAT if self._record.precision is None else self._record.precision

    @precision.setter
    def precision(self, value: DataType) -> None:
        wanted = expect(DataType, value, "ILayer.precision")
        if may_be_typed(self, "precision"):
            self._record.precision = wanted

    @property
    def precision_is_set(self) -> bool:
        """Whether the client has set a precision."""
        return self._record.precision is not None

    def reset_precision(self) -> None:
        """Leave the precision to the builder."""
        self._record.precision = None

    def set_output_type(self, index: int, dtype: DataType) -> None:
        """Ask for the element type of an output."""
        position = integer(index, "ILayer.set_output_type: index")
        wanted = expect(DataType, dtype, "ILayer.set_output_type: dtype")
        if may_be_typed(self, "set_output_type"):
            self._record.output_types[position] = wanted
            self._record.network._changed(self._record)

    def get_output_type(self, index: int) -> DataType:
        """The element type of an output, asked for or as it follows."""
        position = integer(index, "ILayer.get_output_type: index")
        asked = self._record.output_types.get(position)
        return self._record.outputs[position].dtype if asked is None else asked

    def output_type_is_set(self, index: int) -> bool:
        """Whether the client has asked for an output's element type."""
        return integer(index, "ILayer.output_type_is_set: index") in self._record.output_types

    def reset_output_type(self, index: int) -> None:
        """Let an output's element type follow from the inputs."""
        self._record.output_types.pop(integer(index, "ILayer.reset_output_type: index"), None)
        self._record.network._changed(self._record)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ILayer) and other._record is self._record

    def __hash__(self) -> int:
        return id(self._record)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._record.name}>"


def may_be_typed(layer: ILayer, what: str) -> bool:
    """Whether clients may choose the layer's types: not in a strongly typed network, where tensors decide them."""
    network = layer._record.network
    if network._strongly_typed():
        network._refuse(f"{layer.name}: {what}: got a strongly typed network, expected one that is not; add a cast instead")
        return False
    return True
