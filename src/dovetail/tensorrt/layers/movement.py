"""Layers that move elements: constant, shuffle, concatenation, shape, squeeze, unsqueeze, reverse sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dovetail.core.dims import Dim, product
from dovetail.core.dtypes import I32, I64
from dovetail.core.env import env
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dims import Dims, Permutation
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import LayerType, WeightsRole
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import (
    Setting,
    boolean,
    dims_setting,
    elements,
    extents,
    integer,
    order,
    weights_setting,
)
from dovetail.tensorrt.tensor import ITensor
from dovetail.tensorrt.weights import Weights

# The version whose shapes have elements of 64 bits.
_INT64_SINCE = 10


class IConstantLayer(ILayer):
    """Weights as a tensor."""

    __slots__ = ()
    _layer_type, _label = LayerType.CONSTANT, "Constant"
    weights = weights_setting("The elements.")
    shape = dims_setting((), "The shape.")

    def _weights(self) -> dict[WeightsRole, Weights]:
        return {WeightsRole.CONSTANT: self._record.values["weights"]}

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        kept = self._record.values
        # With an implicit batch, one element serves all of it.
        return [net.weight(self, kept["weights"], WeightsRole.CONSTANT, ((1,) * net.shift + tuple(kept["shape"])))]


class IShuffleLayer(ILayer):
    """A transposition, a new shape, and another transposition.

    In `reshape_dims`, -1 is what is left and, while `zero_is_placeholder`, 0 is the extent of the input at that place.
    A shape that is known at run time only is input 1.
    """

    __slots__ = ()
    _layer_type, _label, _most_inputs, _shape_inputs = LayerType.SHUFFLE, "Shuffle", 2, (1,)
    first_transpose = Setting[Permutation](order, tuple(range(Dims.MAX_DIMS)), "The order of axes before.", show=Permutation)
    reshape_dims = dims_setting(None, "The new shape; never set, the one there is.")
    second_transpose = Setting[Permutation](order, tuple(range(Dims.MAX_DIMS)), "The order of axes after.", show=Permutation)
    zero_is_placeholder = Setting[bool](boolean, True, "Whether 0 stands for the extent of the input at that place.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x = inputs[0]
        assert x is not None
        kept = self._record.values
        x = _transposed(self, net, x, kept.get("first_transpose"))
        wanted: tuple[Dim, ...] | None = kept.get("reshape_dims")
        given = inputs[1] if len(inputs) > 1 else None
        if given is not None and not net.shift:
            # Only a run may know where the -1 is.
            x = net.op("Reshape", x, net.cast(given, I64), allowzero=int(not self.zero_is_placeholder))
            wanted = None
        elif given is not None:
            wanted = net.dims(given)
        if wanted is not None:
            x = net.reshape(x, _resolved(self, net, x, wanted))
        return [_transposed(self, net, x, kept.get("second_transpose"))]


def _resolved(layer: IShuffleLayer, net: Scope, x: Value, wanted: tuple[Dim, ...]) -> tuple[Dim, ...]:
    given = x.shape[net.shift :]
    placeholder = layer.zero_is_placeholder
    shape: list[Dim] = []
    for axis, extent in enumerate(wanted):
        if isinstance(extent, int) and extent == 0 and placeholder:
            if axis >= len(given):
                raise ModelError(f"{layer.name}: got 0 at {axis} in {wanted}, expected it within the {len(given)} axes of the input")
            extent = given[axis]
        shape.append(extent)
    if sum(isinstance(d, int) and d == -1 for d in shape) > 1:
        raise ModelError(f"{layer.name}: got the shape {wanted}, expected one -1 at most")
    if -1 in shape:
        place = shape.index(-1)
        known = product([d for i, d in enumerate(shape) if i != place])
        whole = product(given)
        if known == 0 or (isinstance(known, int) and isinstance(whole, int) and whole % known):
            raise ModelError(f"{layer.name}: got the shape {wanted} for {given}, expected extents that divide it")
        shape[place] = whole // known
    if all(isinstance(d, int) for d in (*shape, *given)) and product(shape) != product(given):
        raise ModelError(f"{layer.name}: got the shape {wanted} for {given}, expected as many elements")
    return (*x.shape[: net.shift], *shape)



def _transposed(layer: IShuffleLayer, net: Scope, x: Value, order: tuple[int, ...] | None) -> Value:
    rank = len(x.shape) - net.shift
    axes = tuple(range(rank)) if order is None else tuple(order[:rank])
    if sorted(axes) != list(range(rank)):
        raise ModelError(f"{layer.name}: got the order {axes}, expected each of the {rank} axes once")
    moved = (*range(net.shift), *(a + net.shift for a in axes))
    result: Value = x if moved == tuple(range(len(moved))) else net.op("Transpose", x, perm=moved)
    return result


class IConcatenationLayer(ILayer):
    """Its inputs behind each other along an axis."""

    __slots__ = ()
    _layer_type, _label, _unifies = LayerType.CONCATENATION, "Concatenation", True
    axis = Setting[int](integer, 0, "The axis; at first the third from the end, or 0.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        values = [v for v in inputs if v is not None]
        if net.shift:
            batch = next((v.shape[0] for v in values if v.shape[0] != 1), 1)
            values = [v if v.shape[0] == batch else net.op("Expand", v, net.extents((batch, *v.shape[1:]))) for v in values]
        return [net.op("Concat", *values, axis=_axis(self, values[0], net.shift))]


def _axis(layer: IConcatenationLayer, first: Value, shift: int) -> int:
    rank = len(first.shape) - shift
    chosen = layer._record.values.get("axis", max(rank - 3, 0))
    if not -rank <= chosen < rank:
        raise ModelError(f"{layer.name}: got the axis {chosen}, expected one of {rank}")
    return int(chosen % rank + shift)



class IShapeLayer(ILayer):
    """The shape of its input, of type INT64; of INT32 for programs that are told a version before 10."""

    __slots__ = ()
    _layer_type, _label = LayerType.SHAPE, "Shape"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        shape = net.op("Shape", *inputs, start=net.shift)
        return [net.cast(shape, I32) if int(env().tensorrt_version.split(".")[0]) < _INT64_SINCE else shape]


class _AxesLayer(ILayer):
    """A layer whose input 1 says axes, known before the run."""

    __slots__ = ()
    _most_inputs, _shape_inputs = 2, (1,)


def _axes(layer: ILayer, net: Scope, axes: Value | None, rank: int) -> tuple[int, ...]:
    assert axes is not None
    found = net.dims(axes)
    numbers = [d for d in found if isinstance(d, int)]
    if len(numbers) < len(found) or any(not -rank <= a < rank for a in numbers):
        raise ModelError(f"{layer.name}: got the axes {found}, expected numbers from {-rank} to {rank - 1}")
    return tuple(a % rank + net.shift for a in numbers)



class ISqueezeLayer(_AxesLayer):
    """Without axes of extent 1."""

    __slots__ = ()
    _layer_type, _label = LayerType.SQUEEZE, "Squeeze"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, axes = inputs
        assert x is not None
        return [net.op("Squeeze", x, list(_axes(self, net, axes, len(x.shape) - net.shift)))]


class IUnsqueezeLayer(_AxesLayer):
    """With more axes of extent 1."""

    __slots__ = ()
    _layer_type, _label = LayerType.UNSQUEEZE, "Unsqueeze"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, axes = inputs
        assert x is not None and axes is not None
        rank = len(x.shape) - net.shift + int(axes.shape[0]) if isinstance(axes.shape[0], int) else -1
        return [net.op("Unsqueeze", x, list(_axes(self, net, axes, rank)))]


class IReverseSequenceLayer(ILayer):
    """Each sequence of a batch, its first elements in reverse."""

    __slots__ = ()
    _layer_type, _label = LayerType.REVERSE_SEQUENCE, "ReverseSequence"
    batch_axis = Setting[int](integer, 1, "The axis of sequences.")
    sequence_axis = Setting[int](integer, 0, "The axis along sequences.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, lengths = inputs
        assert x is not None and lengths is not None
        rank = len(x.shape)
        axes = {"batch_axis": self.batch_axis % rank, "time_axis": self.sequence_axis % rank}
        if sorted(axes.values()) == [0, 1]:
            return [net.op("ReverseSequence", x, net.cast(lengths, I64), **axes)]
        # ONNX wants the two axes in front.
        front = [axes["time_axis"], axes["batch_axis"]]
        order = front + [a for a in range(rank) if a not in front]
        back = [order.index(a) for a in range(rank)]
        moved = net.op("Transpose", x, perm=order)
        turned = net.op("ReverseSequence", moved, net.cast(lengths, I64), batch_axis=1, time_axis=0)
        return [net.op("Transpose", turned, perm=back)]


class AddMovement(NetworkBase):
    """The `add_*` methods of this family."""

    def add_constant(self, shape: Any, weights: Any) -> IConstantLayer | None:
        """Weights as a tensor of a shape."""
        declared = extents(shape, "add_constant: shape")
        given = elements(weights, "add_constant: weights")
        count = product(declared)
        if count != given.size:
            self._refuse(f"add_constant: got {given.size} elements for the shape {declared}, expected {count}")
            return None
        return self._add(IConstantLayer, [], shape=declared, weights=given)

    def add_shuffle(self, input: ITensor) -> IShuffleLayer | None:
        """Transpose and reshape, as the layer's properties say."""
        return self._add(IShuffleLayer, [expect(ITensor, input, "add_shuffle: input")])

    def add_concatenation(self, inputs: Sequence[ITensor]) -> IConcatenationLayer | None:
        """Put tensors behind each other."""
        given = [expect(ITensor, t, "add_concatenation: inputs") for t in inputs]
        if not given:
            self._refuse("add_concatenation: got no inputs, expected at least one")
            return None
        rank = len(given[0].shape) if given[0].shape._valid else 0
        return self._add(IConcatenationLayer, given, axis=max(rank - 3, 0))

    def add_shape(self, input: ITensor) -> IShapeLayer | None:
        """The shape of a tensor."""
        return self._add(IShapeLayer, [expect(ITensor, input, "add_shape: input")])

    def add_squeeze(self, input: ITensor, axes: ITensor) -> ISqueezeLayer | None:
        """Remove axes of extent 1."""
        return self._add(ISqueezeLayer, [expect(ITensor, input, "add_squeeze: input"), expect(ITensor, axes, "add_squeeze: axes")])

    def add_unsqueeze(self, input: ITensor, axes: ITensor) -> IUnsqueezeLayer | None:
        """Insert axes of extent 1."""
        inputs = [expect(ITensor, input, "add_unsqueeze: input"), expect(ITensor, axes, "add_unsqueeze: axes")]
        return self._add(IUnsqueezeLayer, inputs)

    def add_reverse_sequence(self, input: ITensor, sequence_lens: ITensor) -> IReverseSequenceLayer | None:
        """Reverse the first elements of sequences."""
        inputs = [
            expect(ITensor, input, "add_reverse_sequence: input"),
            expect(ITensor, sequence_lens, "add_reverse_sequence: sequence_lens"),
        ]
        return self._add(IReverseSequenceLayer, inputs)
