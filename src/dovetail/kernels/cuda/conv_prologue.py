"""What a convolution computes of its image as it loads it: pointwise chains over one image and operands of its channels.

    p = find_prologue(group)            # Prologue, or the reason why there is none
    text = p.apply(w, lines, loaded, place)

So a squeeze-excite scale costs no pass over the image, and neither does the cast of an input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dovetail.codegen import triton_scalar
from dovetail.codegen.lower.context import NotLowerable
from dovetail.codegen.tactic import Group, Operand
from dovetail.codegen.triton_epilogue import value_code
from dovetail.core.dims import Dim
from dovetail.ir.graph import Node, Value
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.writer import Writer
from dovetail.kernels.fused import broadcast_strides
from dovetail.ops.registry import OpKind, find


@dataclass(frozen=True)
class Factor:
    """An operand of a prologue that has one value per image and channel, or fewer.

    Attributes:
        value: of the body.
        position: among the group's inputs.
        strides: along images and channels.
    """

    value: Value
    position: int
    strides: tuple[Dim, Dim]


@dataclass(frozen=True)
class Prologue:
    """How an image comes from what is loaded.

    Attributes:
        result: the body value that the convolution reads.
        image: the body input with one element per pixel and channel.
        factors: the other operands.
    """

    result: Value
    image: Value
    factors: tuple[Factor, ...]

    @property
    def is_plain(self) -> bool:
        """Whether nothing is computed."""
        return self.result is self.image

    def apply(self, w: Writer, group: Group, lines: list[str], loaded: str, at: Callable[[Factor], tuple[str, str]]) -> str:
        """The variable of the image's elements as the convolution's operands; appends what computes it.

        Args:
            loaded: the variable of the elements in memory.
            at: the element offset of a factor, as text that broadcasts against the tile, and what masks it ("" = nothing).
        """
        if self.is_plain:
            return loaded
        names = {self.image: f"({triton_scalar.widen(loaded, self.image.tensor.dtype)})"}
        for factor in self.factors:
            kind = group.inputs[factor.position].tensor
            name, pointer = w.fresh("g"), w.pointer(Operand("in", factor.position), kind)
            offset, mask = at(factor)
            guard = f", mask={mask}, other=0.0" if mask else ""
            lines.append(f"{name} = {triton_scalar.widen(f'tl.load({pointer} + {offset}{guard})', kind.dtype)}")
            names[factor.value] = name
        code = value_code([self.result], names, prefix=w.fresh("x") + "_")
        lines += code.statements
        return triton_scalar.narrow(code.results[0], self.result.tensor.dtype)


def find_prologue(group: Group) -> Prologue | str:
    """What stands between a group's operands and the image of its convolution, or why that cannot be computed in a load."""
    assert group.anchor is not None
    result = group.anchor.input(0)
    if result.producer is None:
        return Prologue(result, result, ())
    leaves = _leaves(result)
    images = [v for v in leaves if v.tensor.shape == result.tensor.shape]
    if len(images) != 1:
        return f"the image is computed from {len(images)} images"
    factors = []
    for value in leaves:
        if value is images[0]:
            continue
        kind = group.inputs[value.index].tensor
        reason = _factor_reason(kind, result.tensor)
        if reason is not None:
            return reason
        strides = broadcast_strides(kind, result.tensor.rank)
        factors.append(Factor(value, value.index, (strides[0], strides[1])))
    found = Prologue(result, images[0], tuple(factors))
    try:
        value_code([result], {v: f"x{i}" for i, v in enumerate(leaves)})
    except NotLowerable as reason:
        return str(reason)
    return found


def image_of(group: Group) -> TensorType:
    """The type of the image that a group's convolution loads, with its layout."""
    found = find_prologue(group)
    assert isinstance(found, Prologue)
    return group.inputs[found.image.index].tensor


# Ops that cost little where every tile of columns computes them again.
_CHEAP = frozenset(
    {"Add", "Sub", "Mul", "Div", "Max", "Min", "Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "Abs", "Cast"}
)


def producer_reason(anchor: Node, producer: Node) -> str | None:
    """None if a node ahead of a convolution can be computed in its loads, else the reason why not."""
    spec, result = find(producer.op), producer.output.tensor
    if spec is None or spec.kind != OpKind.POINTWISE:
        return f"{producer.op} is not pointwise"
    if producer.op not in _CHEAP:
        return f"{producer.op} costs too much to be computed for each tile"
    if result.shape != anchor.input(0).tensor.shape:
        return "it is broadcast"
    whole = [v for v in producer.operands if v.tensor.shape == result.shape]
    if len(whole) != 1:
        return "it reads several images"
    for value in producer.operands:
        if value is not whole[0]:
            reason = _factor_reason(value.tensor, result)
            if reason is not None:
                return reason
    return None


def _factor_reason(kind: TensorType, image: TensorType) -> str | None:
    shape = (1,) * (image.rank - kind.rank) + kind.shape
    if any(d != 1 for d in shape[2:]):
        return "an operand varies along pixels"
    return None


def _leaves(result: Value) -> list[Value]:
    """The body inputs that a value is computed from."""
    found: dict[Value, None] = {}
    pending, seen = [result], set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.producer is None:
            found[value] = None
        else:
            pending += value.producer.operands
    return list(found)
