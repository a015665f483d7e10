"""Conditionals: two branches, of which a run computes one."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core.dims import Dim
from dovetail.core.errors import ModelError
from dovetail.frontend.graph_builder import GraphBuilder
from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import LayerType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.layers.boundaries import Construct, inside_of
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import ModelScope, Scope, ShapeScope
from dovetail.tensorrt.tensor import ITensor


class IIfConditional(Construct):
    """Two branches of a network: what reads its inputs belongs to them, until its outputs."""

    def set_condition(self, condition: ITensor) -> IConditionLayer | None:
        """What decides: a scalar of type BOOL."""
        expect(ITensor, condition, "set_condition: condition")
        for record in self._of(IConditionLayer):
            layer = record.handle()
            assert isinstance(layer, IConditionLayer)
            layer.set_input(0, condition)
            return layer
        return self._add(IConditionLayer, [condition], outputs=0)

    def add_input(self, input: ITensor) -> IIfConditionalInputLayer | None:
        """A tensor as it enters the branches."""
        return self._add(IIfConditionalInputLayer, [expect(ITensor, input, "add_input: input")])

    def add_output(self, true_subgraph_output: ITensor, false_subgraph_output: ITensor) -> IIfConditionalOutputLayer | None:
        """A result: a tensor of either branch."""
        inputs = [
            expect(ITensor, true_subgraph_output, "add_output: true_subgraph_output"),
            expect(ITensor, false_subgraph_output, "add_output: false_subgraph_output"),
        ]
        return self._add(IIfConditionalOutputLayer, inputs)


class IIfConditionalBoundaryLayer(ILayer):
    """A layer at the border of a conditional."""

    __slots__ = ()

    @property
    def conditional(self) -> IIfConditional:
        """The conditional."""
        conditional: IIfConditional = self._record.values["construct"]
        return conditional


class IConditionLayer(IIfConditionalBoundaryLayer):
    """What decides."""

    __slots__ = ()
    _layer_type, _label = LayerType.CONDITION, "Condition"


class IIfConditionalInputLayer(IIfConditionalBoundaryLayer):
    """A tensor as it enters the branches."""

    __slots__ = ()
    _layer_type, _label = LayerType.CONDITIONAL_INPUT, "ConditionalInput"

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op("Identity", *inputs)]


class IIfConditionalOutputLayer(IIfConditionalBoundaryLayer):
    """A result of whichever branch ran: input 0 is of the true one, input 1 of the other."""

    __slots__ = ()
    _layer_type, _label = LayerType.CONDITIONAL_OUTPUT, "ConditionalOutput"

    def _needs(self) -> list[ITensor]:
        return self.conditional._outer()

    def _needs_for_shapes(self) -> list[ITensor]:
        return [t for t in self._record.inputs if t is not None]

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        assert isinstance(net, ModelScope)
        (tensor,) = self._record.outputs
        if tensor not in net.known:
            lower_conditional(self.conditional, net)
        return [net.known[tensor]]

    def _lower_shapes(self, net: ShapeScope, inputs: list[Value | None]) -> Sequence[Value]:
        yes, no = inputs
        assert yes is not None and no is not None
        if len(yes.shape) != len(no.shape) or yes.dtype != no.dtype:
            raise ModelError(f"{self.name}: got {yes.type} and {no.type} of the branches, expected one element type and rank")
        shape: list[Dim | None] = [a if a == b else None for a, b in zip(yes.shape, no.shape, strict=True)]
        return [net.stand_in(yes.dtype, shape)]


IIfConditional._exit = IIfConditionalOutputLayer


def lower_conditional(conditional: IIfConditional, scope: ModelScope) -> None:
    """Lower both branches, and note all outputs."""
    inside = inside_of(conditional._network, conditional)
    conditions = conditional._of(IConditionLayer)
    if not conditions:
        raise ModelError(f"{conditional.name}: got no condition, expected one; set_condition(tensor)")
    scope.prepare(inside, conditional._outer())
    exits = conditional._exits()

    def branch(net: GraphBuilder, position: int) -> list[Value]:
        region = scope.region(net, inside)
        for record in conditional._of(IIfConditionalInputLayer):
            (tensor,) = record.inputs
            assert tensor is not None
            region.known[record.outputs[0]] = scope.known[tensor]
        wanted = [record.inputs[position] for record in exits]
        return [region.value(t) for t in wanted if t is not None]

    (condition,) = conditions[0].inputs
    assert condition is not None
    decided = scope.reshape(scope.known[condition], ())
    results = scope.net.if_(
        decided, lambda net: branch(net, 0), lambda net: branch(net, 1), name=conditional.name
    )
    for record, value in zip(exits, results if isinstance(results, tuple) else (results,), strict=True):
        scope.known[record.outputs[0]] = value


class AddConditionals(NetworkBase):
    """The `add_*` method of this family."""

    def add_if_conditional(self) -> IIfConditional:
        """A conditional, whose layers are added through it."""
        self._constructs += 1
        return IIfConditional(self, f"(Unnamed Conditional* {self._constructs - 1})")
