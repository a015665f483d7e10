"""`ITensor`: a tensor of a network, whose shape and type are true at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dovetail.tensorrt import enums
from dovetail.tensorrt.dims import Dims, invalid
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, TensorFormat, TensorLocation
from dovetail.tensorrt.settings import extents, integer, number

if TYPE_CHECKING:
    from dovetail.tensorrt.layer import LayerRecord
    from dovetail.tensorrt.network_base import NetworkBase

_ALL_FORMATS = sum(1 << int(f) for f in TensorFormat.__members__.values())


class ITensor:
    """An input of a network, or an output of a layer. Networks and layers make tensors; there is one object for each."""

    def __init__(self, network: NetworkBase, name: str, producer: LayerRecord | None, index: int) -> None:
        self._network, self._name, self._producer, self._index = network, name, producer, index
        self._declared: tuple[int, ...] | None = None
        self._data_type: DataType | None = None
        self._read_as: DataType | None = None  # the type of an input when layers began to read it
        self._location = TensorLocation.DEVICE
        self._formats: int | None = None
        self._range: tuple[float, float] | None = None
        self._dimension_names: dict[int, str] = {}
        self._broadcast = False

    @property
    def name(self) -> str:
        """The name; of inputs and outputs of the network, that of the engine's tensor."""
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = expect(str, value, "ITensor.name")

    @property
    def shape(self) -> Dims:
        """The shape, -1 for extents that are not known before the run; invalid where the layers ahead do not fit together."""
        return self._network._shape(self)

    @shape.setter
    def shape(self, value: Any) -> None:
        found = extents(value, "ITensor.shape")
        if self._producer is not None:
            self._network._reporter.error(f"{self._name}: got a shape for what a layer computes, expected a network input")
            return
        self._declared = found
        self._network._reset()

    @property
    def dtype(self) -> DataType:
        """The element type. Of the network's inputs and outputs it can be set."""
        return self._network._dtype(self)

    @dtype.setter
    def dtype(self, value: DataType) -> None:
        kind = expect(DataType, value, "ITensor.dtype")
        if self._producer is None:
            if self._read_as is None and self._network._is_read(self):
                self._read_as = self._data_type
            self._network._reset()
        self._data_type = kind

    @property
    def broadcast_across_batch(self) -> bool:
        """Whether one batch element serves all, in networks of implicit batch."""
        return self._broadcast

    @broadcast_across_batch.setter
    def broadcast_across_batch(self, value: bool) -> None:
        self._broadcast = bool(value)

    @property
    def location(self) -> TensorLocation:
        """The memory that a client gives for it."""
        return self._location

    @location.setter
    def location(self, value: TensorLocation) -> None:
        self._location = expect(TensorLocation, value, "ITensor.location")

    @property
    def allowed_formats(self) -> int:
        """The formats that an input or output may have: a mask of `1 << int(TensorFormat)`; all, if never set."""
        return _ALL_FORMATS if self._formats is None else self._formats

    @allowed_formats.setter
    def allowed_formats(self, value: int) -> None:
        self._formats = integer(value, "ITensor.allowed_formats")

    @property
    def is_network_input(self) -> bool:
        """Whether clients give it."""
        return self._network._is_input(self)

    @property
    def is_network_output(self) -> bool:
        """Whether the engine returns it."""
        return self._network._is_output(self)

    @property
    def is_shape_tensor(self) -> bool:
        """Whether shapes are computed of it."""
        return self._network._uses().is_shape(self)

    @property
    def is_execution_tensor(self) -> bool:
        """Whether data are computed of it, or it is an output."""
        return self._network._uses().is_execution(self)

    # ---- ranges, for INT8 without Q/DQ layers ----
    @property
    def dynamic_range(self) -> tuple[float, float] | None:
        """The smallest and the largest value, or None."""
        return self._range

    @dynamic_range.setter
    def dynamic_range(self, value: tuple[float, float]) -> None:
        low, high = value
        self.set_dynamic_range(low, high)

    def set_dynamic_range(self, min: float, max: float) -> bool:
        """Give the smallest and the largest value; whether they are finite and in order."""
        low, high = number(min, "ITensor.set_dynamic_range: min"), number(max, "ITensor.set_dynamic_range: max")
        if not -3.5e38 < low <= high < 3.5e38:
            self._network._reporter.error(f"{self._name}: got the range [{low}, {high}], expected finite numbers in order")
            return False
        self._range = (low, high)
        return True

    def reset_dynamic_range(self) -> None:
        """Forget the range."""
        self._range = None

    # ---- names of dimensions ----
    def set_dimension_name(self, index: int, name: str) -> None:
        """Name an axis of an input; axes of equal names have equal sizes."""
        self._dimension_names[integer(index, "ITensor.set_dimension_name: index")] = expect(
            str, name, "ITensor.set_dimension_name: name"
        )
        if self._producer is None:
            self._network._reset()

    def get_dimension_name(self, index: int) -> str | None:
        """The name of an axis, or None."""
        return self._dimension_names.get(integer(index, "ITensor.get_dimension_name: index"))

    def __repr__(self) -> str:
        return f"<ITensor: {self._name}>"


def dims_of(shape: tuple[Any, ...] | None) -> Dims:
    """A shape of Dovetail's as clients see it; None for one that does not exist."""
    return invalid() if shape is None else Dims([d if isinstance(d, int) else -1 for d in shape])


TensorFormats = enums.TensorFormat
