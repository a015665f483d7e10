"""Loops: recurrences, iterators, trip limits and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim
from dovetail.core.dtypes import I64
from dovetail.core.errors import ModelError
from dovetail.frontend.graph_builder import GraphBuilder
from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import LayerType, LoopOutput, TripLimit
from dovetail.tensorrt.layer import ILayer, LayerRecord
from dovetail.tensorrt.layers.boundaries import Construct, inside_of
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import ModelScope, Scope, ShapeScope
from dovetail.tensorrt.settings import Setting, boolean, integer
from dovetail.tensorrt.tensor import ITensor


class ILoop(Construct):
    """A loop of a network: what reads its recurrences and iterators is its body, until its outputs."""

    def add_recurrence(self, initial_value: ITensor) -> IRecurrenceLayer | None:
        """A value that each iteration hands on to the next; input 1 of the layer is what is handed on."""
        return self._add(IRecurrenceLayer, [expect(ITensor, initial_value, "add_recurrence: initial_value")])

    def add_trip_limit(self, tensor: ITensor, kind: TripLimit) -> ITripLimitLayer | None:
        """What ends the loop: a number of iterations, or a condition that must hold at the start of each."""
        expect(TripLimit, kind, "add_trip_limit: kind")
        if any(r.values["kind"] is kind for r in self._of(ITripLimitLayer)):
            self._network._refuse(f"add_trip_limit: got {kind} twice in {self._name}, expected at most one of each kind")
            return None
        return self._add(ITripLimitLayer, [expect(ITensor, tensor, "add_trip_limit: tensor")], outputs=0, kind=kind)

    def add_iterator(self, tensor: ITensor, axis: int = 0, reverse: bool = False) -> IIteratorLayer | None:
        """A slice of a tensor per iteration."""
        return self._add(
            IIteratorLayer,
            [expect(ITensor, tensor, "add_iterator: tensor")],
            axis=integer(axis, "add_iterator: axis"),
            reverse=boolean(reverse, "add_iterator: reverse"),
        )

    def add_loop_output(self, tensor: ITensor, kind: LoopOutput, axis: int = 0) -> ILoopOutputLayer | None:
        """A result of the loop: the last value of a tensor of the body, or all its values along a new axis."""
        return self._add(
            ILoopOutputLayer,
            [expect(ITensor, tensor, "add_loop_output: tensor")],
            kind=expect(LoopOutput, kind, "add_loop_output: kind"),
            axis=integer(axis, "add_loop_output: axis"),
        )

    def _limit(self, kind: TripLimit) -> ITensor | None:
        return next((r.inputs[0] for r in self._of(ITripLimitLayer) if r.values["kind"] is kind), None)


class ILoopBoundaryLayer(ILayer):
    """A layer at the border of a loop."""

    __slots__ = ()

    @property
    def loop(self) -> ILoop:
        """The loop."""
        loop: ILoop = self._record.values["construct"]
        return loop

    def _needs(self) -> list[ITensor]:
        # The loop sees to them.
        return []

    def _needs_for_shapes(self) -> list[ITensor]:
        return [t for t in self._record.inputs if t is not None]

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        raise ModelError(f"{self.name}: got a use outside of {self.loop.name}, expected uses inside; add a loop output")


class IRecurrenceLayer(ILoopBoundaryLayer):
    """What one iteration hands to the next: input 0 at first, then input 1."""

    __slots__ = ()
    _layer_type, _label, _most_inputs = LayerType.RECURRENCE, "Recurrence", 2

    def _needs_for_shapes(self) -> list[ITensor]:
        return [t for t in self._record.inputs[:1] if t is not None]

    def _lower_shapes(self, net: ShapeScope, inputs: list[Value | None]) -> Sequence[Value]:
        (first,) = inputs[:1]
        assert first is not None
        return [net.stand_in(first.dtype, first.shape)]


class ITripLimitLayer(ILoopBoundaryLayer):
    """What ends a loop."""

    __slots__ = ()
    _layer_type, _label = LayerType.TRIP_LIMIT, "TripLimit"

    @property
    def kind(self) -> TripLimit:
        """Whether it is a number of iterations or a condition."""
        kind: TripLimit = self._record.values["kind"]
        return kind


class IIteratorLayer(ILoopBoundaryLayer):
    """A slice of a tensor per iteration, in order or from the end."""

    __slots__ = ()
    _layer_type, _label = LayerType.ITERATOR, "Iterator"
    axis = Setting[int](integer, 0, "The axis that is cut.")
    reverse = Setting[bool](boolean, False, "Whether iterations start at the end.")

    def _lower_shapes(self, net: ShapeScope, inputs: list[Value | None]) -> Sequence[Value]:
        (x,) = inputs
        assert x is not None
        axis = _axis(self, self.axis, len(x.shape) - net.shift, net.shift)
        return [net.stand_in(x.dtype, (*x.shape[:axis], *x.shape[axis + 1 :]))]


class ILoopOutputLayer(ILoopBoundaryLayer):
    """A result of a loop: input 0 is a tensor of the body, input 1 the extent along which values are put behind each other."""

    __slots__ = ()
    _layer_type, _label, _most_inputs, _shape_inputs = LayerType.LOOP_OUTPUT, "LoopOutput", 2, (1,)
    axis = Setting[int](integer, 0, "The axis of values behind each other.")

    @property
    def kind(self) -> LoopOutput:
        """Which values it gives."""
        kind: LoopOutput = self._record.values["kind"]
        return kind

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        assert isinstance(net, ModelScope)
        (tensor,) = self._record.outputs
        if tensor not in net.known:
            LoopLowering(self.loop, net).run()
        return [net.known[tensor]]

    def _needs(self) -> list[ITensor]:
        return self.loop._outer()

    def _lower_shapes(self, net: ShapeScope, inputs: list[Value | None]) -> Sequence[Value]:
        x, length = (*inputs, None)[:2]
        assert x is not None
        if self.kind is LoopOutput.LAST_VALUE:
            return [net.stand_in(x.dtype, x.shape)]
        if length is None:
            raise ModelError(f"{self.name}: got no input 1, expected the length of the result; set_input(1, tensor)")
        (extent,) = net.dims(net.reshape(length, (1,)))
        axis = _axis(self, self.axis, len(x.shape) - net.shift + 1, net.shift)
        return [net.stand_in(x.dtype, (*x.shape[:axis], extent, *x.shape[axis:]))]


ILoop._exit = ILoopOutputLayer


def _axis(layer: ILayer, axis: int, rank: int, shift: int) -> int:
    if not -rank <= axis < rank:
        raise ModelError(f"{layer.name}: got the axis {axis}, expected one of {rank}")
    return axis % rank + shift


class LoopLowering:
    """One loop becomes an ONNX Loop; all its outputs are known then."""

    def __init__(self, loop: ILoop, scope: ModelScope) -> None:
        self.loop, self.scope = loop, scope
        self.inside = inside_of(loop._network, loop)
        self.recurrences = loop._of(IRecurrenceLayer)
        self.count = loop._limit(TripLimit.COUNT)
        self.condition = loop._limit(TripLimit.WHILE)
        if self.count is None and self.condition is None:
            raise ModelError(f"{loop.name}: got no trip limit, expected one; add_trip_limit(tensor, kind)")
        for record in self.recurrences:
            if len(record.inputs) < 2 or record.inputs[1] is None:
                raise ModelError(f"{record.name}: got no input 1, expected what is handed on; set_input(1, tensor)")
        outputs = loop._exits()
        # What is carried anyway needs no stack.
        self.last = {r: self._carried(r) for r in outputs if r.values["kind"] is LoopOutput.LAST_VALUE}
        self.stacked = [r for r in outputs if self.last.get(r) is None]

    def _carried(self, output: LayerRecord) -> int | None:
        """The recurrence whose final value an output is; None where it is no recurrence's."""
        tensor = output.inputs[0]
        found = (i for i, r in enumerate(self.recurrences) if tensor is r.outputs[0] or tensor is r.inputs[1])
        return next(found, None)

    def run(self) -> None:
        """Lower the loop and note its outputs."""
        scope = self.scope
        scope.prepare(self.inside, self.loop._outer())
        known = scope.known
        trips = None if self.count is None else scope.reshape(scope.cast(known[self.count], I64), ())
        first = [known[_given(r.inputs[0])] for r in self.recurrences]
        start = None if self.condition is None else self._condition(scope, scope.net, first)
        results = scope.net.loop(self._body, *first, trips=trips, condition=start, name=self.loop.name)
        carried, stacks = results[: len(first)], results[len(first) :]
        for record, place in self.last.items():
            if place is not None:
                known[record.outputs[0]] = carried[place]
        for record, stack in zip(self.stacked, stacks, strict=True):
            with scope.net.named(record.name):
                known[record.outputs[0]] = self._arranged(record, stack)

    def _condition(self, scope: ModelScope, net: GraphBuilder, values: Sequence[Value]) -> Value:
        """Whether an iteration that starts with these values runs."""
        assert self.condition is not None
        ahead = scope.region(net, self.inside)
        for record, value in zip(self.recurrences, values, strict=True):
            ahead.known[record.outputs[0]] = value
        return ahead.reshape(ahead.value(self.condition), ())

    def _body(self, net: GraphBuilder, i: Value, *carried: Value) -> list[Any]:
        body = self.scope.region(net, self.inside)
        for record, value in zip(self.recurrences, carried, strict=True):
            body.known[record.outputs[0]] = value
        for record in self.loop._of(IIteratorLayer):
            body.known[record.outputs[0]] = self._slice(body, record, i)
        following = [body.value(_given(r.inputs[1])) for r in self.recurrences]
        stacked = [body.value(_given(r.inputs[0])) for r in self.stacked]
        goes_on: Any = np.array(True) if self.condition is None else self._condition(self.scope, net, following)
        return [goes_on, *following, *stacked]

    def _slice(self, body: ModelScope, record: LayerRecord, i: Value) -> Value:
        layer = record.handle()
        assert isinstance(layer, IIteratorLayer)
        x = body.known[_given(record.inputs[0])]
        if layer.reverse:
            if self.count is None:
                raise ModelError(f"{record.name}: got a reversed iterator without a trip count, expected one; add_trip_limit")
            trips = body.reshape(body.cast(body.known[self.count], I64), ())
            i = body.op("Sub", body.op("Sub", trips, np.int64(1)), i)
        axis = _axis(layer, layer.axis, len(x.shape) - body.shift, body.shift)
        taken: Value = body.op("Gather", x, i, axis=axis)
        return taken

    def _arranged(self, record: LayerRecord, stack: Value) -> Value:
        """A stack of values, first axis first, as the output wants it."""
        scope, layer = self.scope, record.handle()
        assert isinstance(layer, ILoopOutputLayer)
        if layer.kind is LoopOutput.LAST_VALUE:
            last: Value = scope.op("Gather", stack, np.int64(-1), axis=0)
            return last
        if layer.kind is LoopOutput.REVERSE:
            stack = scope.op("Slice", stack, [-1], [np.iinfo(np.int64).min], [0], [-1])
        length = record.inputs[1] if len(record.inputs) > 1 else None
        if length is None:
            raise ModelError(f"{record.name}: got no input 1, expected the length of the result; set_input(1, tensor)")
        (extent,) = scope.dims(scope.reshape(scope.known[length], (1,)))
        stack = self._fitted(stack, extent)
        rank = len(stack.shape)
        axis = _axis(layer, layer.axis, rank - scope.shift, scope.shift)
        order = (*range(1, axis + 1), 0, *range(axis + 1, rank))
        arranged: Value = scope.op("Transpose", stack, perm=order) if axis else stack
        return arranged

    def _fitted(self, stack: Value, extent: Dim) -> Value:
        """Behind the iterations that ran, zeros up to the length of the result."""
        if stack.shape[0] == extent:
            return stack
        scope = self.scope
        shape = scope.extents((extent, *stack.shape[1:]))
        zeros = scope.op("Expand", scope.number(0, stack), shape)
        whole = scope.op("Concat", stack, zeros, axis=0)
        fitted: Value = scope.op("Slice", whole, [0], scope.extents([extent]), [0])
        return scope.reshape(fitted, (extent, *stack.shape[1:]))


def _given(tensor: ITensor | None) -> ITensor:
    assert tensor is not None
    return tensor


class AddLoops(NetworkBase):
    """The `add_*` method of this family."""

    def add_loop(self) -> ILoop:
        """A loop, whose layers are added through it."""
        self._constructs += 1
        return ILoop(self, f"(Unnamed Loop* {self._constructs - 1})")
