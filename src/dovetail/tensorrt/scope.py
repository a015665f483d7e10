"""Layers become operators of a `dovetail.Network`: in one graph, in the order that their inputs ask for.

A `ShapeScope` serves the shapes and types of a network that is still being defined; it lowers what is asked for, once, and
stands an input of the right type in for what only a run of a loop gives. A `ModelScope` lowers everything for a build, with
loops and branches as regions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail.core.dims import Dim
from dovetail.core.dtypes import DType
from dovetail.core.errors import ModelError
from dovetail.frontend.graph_builder import GraphBuilder
from dovetail.frontend.network import Network
from dovetail.ir.graph import Value
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enums import WeightsRole
from dovetail.tensorrt.tensor import ITensor
from dovetail.tensorrt.weights import Weights, values

if TYPE_CHECKING:
    from dovetail.tensorrt.layer import ILayer, LayerRecord
    from dovetail.tensorrt.network_base import NetworkBase

# Of types of one kind, the later one holds what the earlier ones do.
_WIDTHS = (("f16", "bf16", "f32"), ("i8", "u8", "i32", "i64"))


class Scope(ABC):
    """Lowers layers into one graph.

    Attributes:
        net: what operators are added with.
        known: values of tensors.
        shift: how many axes there are ahead of those that clients count: 1 with an implicit batch.
    """

    is_model = False

    def __init__(self, network: NetworkBase, net: GraphBuilder) -> None:
        self.network, self.net = network, net
        self.known: dict[ITensor, Value] = {}
        self.shift = 1 if network._implicit_batch else 0

    # ---- what layers are written with ----
    def op(self, op: str, *inputs: Any, **attributes: Any) -> Any:
        """Add an ONNX op of the newest opset; see `GraphBuilder.op`."""
        return self.net.op(op, *inputs, **attributes)

    def cast(self, value: Value, dtype: DType) -> Value:
        """The value in an element type."""
        made: Value = value if value.dtype == dtype else self.op("Cast", value, to=dtype)
        return made

    def constant(self, array: np.ndarray[Any, Any]) -> Value:
        """An array as a value."""
        return self.net.constant(array)

    def number(self, value: float, like: Value) -> np.ndarray[Any, Any]:
        """A scalar of the element type of another value."""
        return np.asarray(value, like.dtype.numpy)

    def reshape(self, value: Value, shape: Sequence[Dim]) -> Value:
        """The value in another shape, whose extents may be those of other values."""
        made: Value = value if value.shape == tuple(shape) else self.op("Reshape", value, self.extents(shape), allowzero=1)
        return made

    def extents(self, shape: Sequence[Dim]) -> Any:
        """Extents as an operand: numbers, or a tensor where some are known at run time only."""
        if all(isinstance(d, int) for d in shape):
            return np.array(shape, np.int64)
        return self.net._context.emit("DimTensor", values=tuple(shape))

    def dims(self, value: Value) -> tuple[Dim, ...]:
        """What a shape tensor says."""
        return self.net.dims(value)

    def weight(self, layer: ILayer, weights: Weights, role: WeightsRole, shape: Sequence[int] | None, dtype: DType | None = None) -> Value:
        """Weights of a layer, in a shape (None: flat) and an element type.

        Raises:
            ModelError: not as many elements as the shape has.
        """
        array = values(weights)
        if shape is not None:
            if int(np.prod(shape, dtype=np.int64)) != array.size:
                raise ModelError(f"{layer.name}: got {array.size} elements of {role.name} weights, expected {tuple(shape)}")
            array = array.reshape(tuple(shape))
        made = self.named_weight(self.network._weights_name(layer._record, weights, role), array, weights)
        return made if dtype is None else self.cast(made, dtype)

    @abstractmethod
    def named_weight(self, name: str, array: np.ndarray[Any, Any], source: Any) -> Value:
        """Weights by their name; each is there once."""

    # ---- the walk ----
    def value(self, tensor: ITensor) -> Value:
        """The value of a tensor, lowered with all that it needs if it was not yet.

        Raises:
            ModelError: layers do not fit together, or depend on each other in a circle.
        """
        self.lower_all([tensor])
        return self.known[tensor]

    def lower_all(self, tensors: Iterable[ITensor]) -> None:
        """Lower all layers that some tensors need."""
        pending = [t for t in tensors if t not in self.known][::-1]
        entered: set[ITensor] = set()
        while pending:
            tensor = pending[-1]
            if tensor in self.known:
                pending.pop()
                continue
            record = tensor._producer
            if record is None:
                self.known[tensor] = self.input(tensor)
                continue
            missing = [t for t in self.needs(record) if t not in self.known]
            if not missing:
                self.lower(record)
            elif tensor in entered:
                raise ModelError(f"{record.name}: got an input that depends on its own output, expected layers in an order; use a loop")
            entered.add(tensor)
            pending += missing

    @abstractmethod
    def input(self, tensor: ITensor) -> Value:
        """The value of a network input."""

    def needs(self, record: LayerRecord) -> list[ITensor]:
        """What must be lowered before a layer."""
        return record.handle()._needs()

    def lower(self, record: LayerRecord) -> None:
        """Lower one layer, whose inputs are known."""
        with self.net.named(record.name):
            # What a loop's or a branch's result is read from exists inside of it only.
            inputs = [None if t is None else self.known.get(t) for t in record.inputs]
            if record.kind._unifies:
                inputs = self._unified(inputs)
            self.finish(record, self.call(record, inputs))

    def call(self, record: LayerRecord, inputs: list[Value | None]) -> Sequence[Value]:
        """The values of a layer's outputs."""
        return record.handle()._lower(self, inputs)

    def finish(self, record: LayerRecord, results: Sequence[Value]) -> None:
        """Keep the values of a layer's outputs, in the types that the client asked for."""
        for index, (tensor, value) in enumerate(zip(record.outputs, results, strict=True)):
            asked = record.output_types.get(index)
            self.known[tensor] = value if asked is None else self.cast(value, to_dtype(asked))

    def _unified(self, inputs: list[Value | None]) -> list[Value | None]:
        """Inputs of one kind in one element type, as TensorRT reformats what meets."""
        made = list(inputs)
        for kind in _WIDTHS:
            found = [v.dtype for v in made if v is not None and v.dtype.name in kind]
            if len(set(found)) < 2:
                continue
            widest = max(found, key=lambda d: kind.index(d.name))
            if {d.name for d in found} == {"f16", "bf16"}:
                widest = next(v.dtype for v in made if v is not None and v.dtype.name == "bf16")
            made = [v if v is None or v.dtype.name not in kind else self.cast(v, widest) for v in made]
        return made


class ShapeScope(Scope):
    """Shapes and types of what is defined so far."""

    def __init__(self, network: NetworkBase) -> None:
        self.root = Network()
        super().__init__(network, self.root)
        self.used: dict[LayerRecord, list[tuple[str, np.ndarray[Any, Any], Any]]] = {}
        self._weights: dict[str, tuple[Any, Value]] = {}
        self._count = 0
        self._current: LayerRecord | None = None

    def input(self, tensor: ITensor) -> Value:
        """The value of a network input."""
        return self.network._declare(self.root, tensor, self.fresh(tensor.name))

    def fresh(self, name: str) -> str:
        """A name that no other input of this graph has, even if a change brings the tensor back."""
        self._count += 1
        return f"{name}#{self._count}"

    def stand_in(self, dtype: DType, shape: Sequence[Dim | None]) -> Value:
        """A value of a type, of which no more is known."""
        return self.root.input(self.fresh("value"), dtype, tuple(shape))

    def named_weight(self, name: str, array: np.ndarray[Any, Any], source: Any) -> Value:
        """Weights by their name; each is there once."""
        if self._current is not None:
            self.used.setdefault(self._current, []).append((name, array, source))
        known = self._weights.get(name)
        # Held together with its value, so that another object cannot have its identity.
        if known is None or known[0] is not source or known[1].shape != array.shape:
            known = self._weights[name] = (source, self.root.weight(self.fresh(name), array))
        return known[1]

    def lower(self, record: LayerRecord) -> None:
        """Lower one layer, whose inputs are known."""
        self._current = record
        self.used.pop(record, None)
        super().lower(record)
        self._current = None

    def call(self, record: LayerRecord, inputs: list[Value | None]) -> Sequence[Value]:
        """The values of a layer's outputs."""
        return record.handle()._lower_shapes(self, inputs)

    def needs(self, record: LayerRecord) -> list[ITensor]:
        """What must be lowered before a layer."""
        return record.handle()._needs_for_shapes()

    def forget(self, record: LayerRecord) -> None:
        """Drop what a layer and all behind it have given."""
        if not any(t in self.known for t in record.outputs):
            return
        readers = self.network._readers()
        pending, seen = [record], {record}
        while pending:
            for tensor in pending.pop().outputs:
                self.known.pop(tensor, None)
                for reader in readers.get(tensor, ()):
                    if reader not in seen:
                        seen.add(reader)
                        pending.append(reader)


class ModelScope(Scope):
    """The whole network, or a region of it.

    Args:
        inside: the layers that a region lowers; the outer scope has the values of all others.
    """

    is_model = True

    def __init__(
        self, network: NetworkBase, net: GraphBuilder, outer: ModelScope | None = None, inside: frozenset[LayerRecord] = frozenset()
    ) -> None:
        super().__init__(network, net)
        self.outer, self.inside = outer, inside
        self.weights: dict[str, Value] = {} if outer is None else outer.weights
        if outer is not None:
            self.known.update(outer.known)

    def input(self, tensor: ITensor) -> Value:
        """The value of a network input."""
        raise ModelError(f"{tensor.name}: got a tensor that is no input of this network any more, expected one of its inputs")

    def named_weight(self, name: str, array: np.ndarray[Any, Any], source: Any) -> Value:
        """Weights by their name; each is there once."""
        if name not in self.weights:
            # Regions are traced more than once, and share weights: these are made outside of them, by `prepare`.
            self.weights[name] = self.net.weight(name, array)
        return self.reshape(self.weights[name], array.shape)

    def region(self, net: GraphBuilder, inside: frozenset[LayerRecord]) -> ModelScope:
        """The scope of a region."""
        return ModelScope(self.network, net, self, inside)

    def prepare(self, inside: frozenset[LayerRecord], outer: Sequence[ITensor]) -> None:
        """Lower all that a region reads from outside, and the weights in it: the graph is closed while a region is made."""
        self.lower_all(outer)
        shapes = self.network._shape_scope()
        for record in sorted(inside, key=self.network._layers.index):
            shapes.lower_all(record.outputs)
            for weight in shapes.used.get(record, ()):
                self.named_weight(*weight)

    def finish(self, record: LayerRecord, results: Sequence[Value]) -> None:
        """Keep the values of a layer's outputs, in the types that the client asked for."""
        super().finish(record, results)
        graph = self.net._context.graph
        for tensor in record.outputs:
            value = self.known[tensor]
            producer = value.producer
            own = producer is not None and producer.op != "Constant" and producer.origin == (record.name,)
            if own and self.outer is None and value.name != tensor.name:
                graph.rename(value, tensor.name)
