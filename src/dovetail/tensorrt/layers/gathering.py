"""Layers driven by indices: gather, scatter, one-hot, non-zero."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core.dtypes import I64
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, GatherMode, LayerType, ScatterMode
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, integer, of
from dovetail.tensorrt.tensor import ITensor


class IGatherLayer(ILayer):
    """Elements of the first input at indices of the second.

    DEFAULT takes slices along `axis`, for each of `num_elementwise_dims` leading axes that both inputs have; ELEMENT takes an
    element per index along `axis`; ND reads the last axis of the indices as a place behind those leading axes.
    """

    __slots__ = ()
    _layer_type, _label = LayerType.GATHER, "Gather"
    axis = Setting[int](integer, 0, "The axis of DEFAULT and ELEMENT.")
    num_elementwise_dims = Setting[int](integer, 0, "How many leading axes both inputs have: 0 or 1 for DEFAULT.")
    mode = Setting[GatherMode](of(GatherMode), GatherMode.DEFAULT, "How the indices are read.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        data, indices = inputs
        assert data is not None and indices is not None
        rank, shared = len(data.shape) - net.shift, self.num_elementwise_dims
        if self.mode is GatherMode.ND:
            return [net.op("GatherND", data, net.cast(indices, I64), batch_dims=shared + net.shift)]
        if not -rank <= self.axis < rank:
            raise ModelError(f"{self.name}: got the axis {self.axis}, expected one of {rank}")
        axis = self.axis % rank + net.shift
        if self.mode is GatherMode.ELEMENT:
            return [net.op("GatherElements", data, indices, axis=axis)]
        if shared + net.shift == 0 or (indices.shape[:1] == (1,) and net.shift and not shared):
            flat = net.op("Squeeze", indices, [0]) if net.shift else indices
            return [net.op("Gather", data, flat, axis=axis)]
        return [_gathered(net, data, indices, axis, shared + net.shift)]


def _gathered(net: Scope, data: Value, indices: Value, axis: int, shared: int) -> Value:
    """A gather along an axis, for each element of leading axes that both inputs share."""
    if axis < shared:
        raise ModelError(f"gather: got the axis {axis}, expected one behind the {shared} that both inputs share")
    # To the front of what is not shared, gathered there as places of one number, and back behind the axes it was behind.
    rank, more = len(data.shape), len(indices.shape) - shared
    order = (*range(shared), axis, *(a for a in range(shared, rank) if a != axis))
    places = net.op("Unsqueeze", net.cast(indices, I64), [len(indices.shape)])
    taken = net.op("GatherND", net.op("Transpose", data, perm=order), places, batch_dims=shared)
    between = axis - shared
    found = tuple(range(shared, shared + more))
    rest = tuple(range(shared + more, len(taken.shape)))
    result: Value = net.op("Transpose", taken, perm=(*range(shared), *rest[:between], *found, *rest[between:]))
    return result


class IScatterLayer(ILayer):
    """The first input with updates written at indices; of several for one place, any may win."""

    __slots__ = ()
    _layer_type, _label = LayerType.SCATTER, "Scatter"
    axis = Setting[int](integer, 0, "The axis of ELEMENT.")
    mode = Setting[ScatterMode](of(ScatterMode), ScatterMode.ELEMENT, "How the indices are read.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        data, indices, updates = inputs
        assert data is not None and indices is not None
        if self.mode is ScatterMode.ND:
            return [net.op("ScatterND", data, net.cast(indices, I64), updates)]
        rank = len(data.shape) - net.shift
        return [net.op("ScatterElements", data, indices, updates, axis=self.axis % rank + net.shift)]


class IOneHotLayer(ILayer):
    """A new axis of `depth` elements, one of which is `values[1]`, at the index; the others are `values[0]`."""

    __slots__ = ()
    _layer_type, _label, _shape_inputs = LayerType.ONE_HOT, "OneHot", (2,)
    axis = Setting[int](integer, -1, "Where the new axis goes.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        indices, values, depth = inputs
        assert indices is not None and depth is not None
        rank = len(indices.shape) - net.shift + 1
        axis = self.axis % rank + net.shift
        return [net.op("OneHot", indices, net.reshape(depth, (1,)), values, axis=axis)]


class INonZeroLayer(ILayer):
    """The places of elements that are not 0, a column each: (rank, number of them)."""

    __slots__ = ()
    _layer_type, _label = LayerType.NON_ZERO, "NonZero"
    indices_type = Setting[DataType](of(DataType), DataType.INT32, "The element type of the places.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.cast(net.op("NonZero", *inputs), to_dtype(self.indices_type))]


class AddGathering(NetworkBase):
    """The `add_*` methods of this family."""

    def add_gather(self, input: ITensor, indices: ITensor, axis: int) -> IGatherLayer | None:
        """Take slices along an axis."""
        inputs = [expect(ITensor, input, "add_gather: input"), expect(ITensor, indices, "add_gather: indices")]
        return self._add(IGatherLayer, inputs, axis=integer(axis, "add_gather: axis"))

    def add_gather_v2(self, input: ITensor, indices: ITensor, mode: GatherMode) -> IGatherLayer | None:
        """Take elements as a mode says."""
        inputs = [expect(ITensor, input, "add_gather_v2: input"), expect(ITensor, indices, "add_gather_v2: indices")]
        return self._add(IGatherLayer, inputs, mode=expect(GatherMode, mode, "add_gather_v2: mode"))

    def add_scatter(self, data: ITensor, indices: ITensor, updates: ITensor, mode: ScatterMode) -> IScatterLayer | None:
        """Write updates into a copy of a tensor."""
        named = {"data": data, "indices": indices, "updates": updates}
        inputs = [expect(ITensor, t, f"add_scatter: {name}") for name, t in named.items()]
        return self._add(IScatterLayer, inputs, mode=expect(ScatterMode, mode, "add_scatter: mode"))

    def add_one_hot(self, indices: ITensor, values: ITensor, depth: ITensor, axis: int) -> IOneHotLayer | None:
        """Write indices as rows with one element set."""
        named = {"indices": indices, "values": values, "depth": depth}
        inputs = [expect(ITensor, t, f"add_one_hot: {name}") for name, t in named.items()]
        return self._add(IOneHotLayer, inputs, axis=integer(axis, "add_one_hot: axis"))

    def add_non_zero(self, input: ITensor, indices_type: DataType = DataType.INT32) -> INonZeroLayer | None:
        """Find the elements that are not 0."""
        chosen = expect(DataType, indices_type, "add_non_zero: indices_type")
        return self._add(INonZeroLayer, [expect(ITensor, input, "add_non_zero: input")], indices_type=chosen)
