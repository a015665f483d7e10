"""Layers over axes: reduce, softmax, ragged softmax, top-k, cumulative sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovetail.core.dtypes import I64
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    CumulativeOperation,
    DataType,
    LayerType,
    ReduceOperation,
    TopKOperation,
)
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, boolean, integer, of
from dovetail.tensorrt.tensor import ITensor


def axes_of(layer: ILayer, mask: int, rank: int, shift: int) -> list[int]:
    """The axes of a mask, which has a bit per axis.

    Raises:
        ModelError: none, or one that the tensor does not have.
    """
    found = [axis for axis in range(64) if mask >> axis & 1]
    if not found or found[-1] >= rank - shift:
        raise ModelError(f"{layer.name}: got the axes {mask:#b}, expected bits of the {rank - shift} axes of its input")
    return [axis + shift for axis in found]


class IReduceLayer(ILayer):
    """Sums, products, extrema or means over axes."""

    __slots__ = ()
    _layer_type, _label = LayerType.REDUCE, "Reduce"
    op = Setting[ReduceOperation](of(ReduceOperation), ReduceOperation.SUM, "What is made of the elements.")
    axes = Setting[int](integer, 0, "The axes, a bit each.")
    keep_dims = Setting[bool](boolean, False, "Whether reduced axes stay, with extent 1.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        (x,) = inputs
        assert x is not None
        if self.op not in _REDUCTIONS:
            raise ModelError(f"{self.name}: got {self.op}, expected one of {', '.join(str(o) for o in _REDUCTIONS)}")
        axes = axes_of(self, self.axes, len(x.shape), net.shift)
        return [net.op(_REDUCTIONS[self.op], x, axes, keepdims=int(self.keep_dims))]


_REDUCTIONS = {
    ReduceOperation.SUM: "ReduceSum",
    ReduceOperation.PROD: "ReduceProd",
    ReduceOperation.MAX: "ReduceMax",
    ReduceOperation.MIN: "ReduceMin",
    ReduceOperation.AVG: "ReduceMean",
}


class ISoftMaxLayer(ILayer):
    """Softmax along one axis."""

    __slots__ = ()
    _layer_type, _label = LayerType.SOFTMAX, "SoftMax"
    axes = Setting[int](integer, 1, "The axis, as a mask; at first the third from the end, or the first.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        (x,) = inputs
        assert x is not None
        (axis, *more) = axes_of(self, self.axes, len(x.shape), net.shift)
        if more:
            raise ModelError(f"{self.name}: got the axes {self.axes:#b}, expected one")
        return [net.op("Softmax", x, axis=axis)]


class IRaggedSoftMaxLayer(ILayer):
    """Softmax of the first elements of each row, as many as `bounds` says; the rest is 0. Input (…, rows, columns), bounds (…, rows, 1)."""

    __slots__ = ()
    _layer_type, _label = LayerType.RAGGED_SOFTMAX, "RaggedSoftMax"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, bounds = inputs
        assert x is not None and bounds is not None
        size = net.op("Squeeze", net.extents([x.shape[-1]]), [0])
        places = net.op("Range", np.int64(0), size, np.int64(1))
        inside = net.op("Less", places, net.cast(bounds, I64))
        lowest = net.number(float(np.finfo(np.float32).min) if x.dtype.bits == 32 else -6e4, x)
        # Rows without elements are 0 throughout.
        result = net.op("Softmax", net.op("Where", inside, x, lowest), axis=-1)
        return [net.op("Where", inside, result, net.number(0, x))]


class ITopKLayer(ILayer):
    """The k largest or smallest elements along an axis, in order, and their indices."""

    __slots__ = ()
    _layer_type, _label, _most_inputs, _shape_inputs = LayerType.TOPK, "TopK", 2, (1,)
    op = Setting[TopKOperation](of(TopKOperation), TopKOperation.MAX, "What is looked for.")
    k = Setting[int](integer, 0, "How many; input 1 gives it where that is known at run time only.")
    axes = Setting[int](integer, 0, "The axis, as a mask.")
    indices_type = Setting[DataType](of(DataType), DataType.INT32, "The element type of the indices.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, count = (*inputs, None)[:2]
        assert x is not None
        (axis, *more) = axes_of(self, self.axes, len(x.shape), net.shift)
        if more:
            raise ModelError(f"{self.name}: got the axes {self.axes:#b}, expected one")
        k = np.array([self.k], np.int64) if count is None else net.reshape(net.cast(count, I64), (1,))
        largest = int(self.op is TopKOperation.MAX)
        values, indices = net.op("TopK", x, k, axis=axis, largest=largest)
        return [values, net.cast(indices, to_dtype(self.indices_type))]


class ICumulativeLayer(ILayer):
    """Sums of all elements up to each one along an axis, which input 1 says."""

    __slots__ = ()
    _layer_type, _label, _shape_inputs = LayerType.CUMULATIVE, "Cumulative", (1,)
    op = Setting[CumulativeOperation](of(CumulativeOperation), CumulativeOperation.SUM, "What is accumulated.")
    exclusive = Setting[bool](boolean, False, "Whether an element's own sum leaves it out.")
    reverse = Setting[bool](boolean, False, "Whether sums start at the end.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        x, axis = inputs
        assert x is not None and axis is not None
        (place,) = net.dims(net.reshape(axis, (1,)))
        if not isinstance(place, int):
            raise ModelError(f"{self.name}: got an axis that only a run knows, expected a constant")
        rank = len(x.shape) - net.shift
        return [net.op("CumSum", x, np.int64(place % rank + net.shift), exclusive=int(self.exclusive), reverse=int(self.reverse))]


class AddReductions(NetworkBase):
    """The `add_*` methods of this family."""

    def add_reduce(self, input: ITensor, op: ReduceOperation, axes: int, keep_dims: bool) -> IReduceLayer | None:
        """Reduce axes, given as a mask."""
        return self._add(
            IReduceLayer,
            [expect(ITensor, input, "add_reduce: input")],
            op=expect(ReduceOperation, op, "add_reduce: op"),
            axes=integer(axes, "add_reduce: axes"),
            keep_dims=boolean(keep_dims, "add_reduce: keep_dims"),
        )

    def add_softmax(self, input: ITensor) -> ISoftMaxLayer | None:
        """Softmax along an axis."""
        expect(ITensor, input, "add_softmax: input")
        rank = len(input.shape) if input.shape._valid else 1
        return self._add(ISoftMaxLayer, [input], axes=1 << max(rank - 3, 0))

    def add_ragged_softmax(self, input: ITensor, bounds: ITensor) -> IRaggedSoftMaxLayer | None:
        """Softmax of rows of different lengths."""
        inputs = [expect(ITensor, input, "add_ragged_softmax: input"), expect(ITensor, bounds, "add_ragged_softmax: bounds")]
        return self._add(IRaggedSoftMaxLayer, inputs)

    def add_topk(
        self, input: ITensor, op: TopKOperation, k: int, axes: int, indices_type: DataType = DataType.INT32
    ) -> ITopKLayer | None:
        """The k largest or smallest along an axis."""
        return self._add(
            ITopKLayer,
            [expect(ITensor, input, "add_topk: input")],
            outputs=2,
            op=expect(TopKOperation, op, "add_topk: op"),
            k=integer(k, "add_topk: k"),
            axes=integer(axes, "add_topk: axes"),
            indices_type=expect(DataType, indices_type, "add_topk: indices_type"),
        )

    def add_cumulative(
        self, input: ITensor, axis: ITensor, op: CumulativeOperation, exclusive: bool, reverse: bool
    ) -> ICumulativeLayer | None:
        """Running sums along an axis."""
        return self._add(
            ICumulativeLayer,
            [expect(ITensor, input, "add_cumulative: input"), expect(ITensor, axis, "add_cumulative: axis")],
            op=expect(CumulativeOperation, op, "add_cumulative: op"),
            exclusive=boolean(exclusive, "add_cumulative: exclusive"),
            reverse=boolean(reverse, "add_cumulative: reverse"),
        )
