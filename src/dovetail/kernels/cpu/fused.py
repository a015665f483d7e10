"""From a fused group to the epilogue of a template: which operands, where they lie, what is computed."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.codegen.lower.epilogue import epilogue_code, epilogue_reason, side_inputs
from dovetail.codegen.tactic import Group
from dovetail.core.dtypes import F32
from dovetail.ir.types import TensorType
from dovetail.kernels.cpu.epilogue import Epilogue
from dovetail.kernels.cpu.text import Isa

# Ops that compile to a few instructions; any other makes an epilogue costly.
_CHEAP = frozenset({"Add", "Sub", "Mul", "Max", "Min", "Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "Abs"})


def type_reason(group: Group) -> str | None:
    """None if every operand and result is an fp32 tensor, else the one that is not."""
    for value in (*group.body.inputs, *group.body.outputs):
        if not isinstance(value.type, TensorType) or value.tensor.dtype != F32:
            return f"{value.name} is {value.type}, expected f32"
    return None


def epilogue_problem(group: Group) -> str | None:
    """None if what follows the anchor can be its epilogue, else the reason why not."""
    assert group.anchor is not None
    if len(group.anchor.outputs) != 1:
        return f"{group.anchor.op} has {len(group.anchor.outputs)} outputs"
    shape = group.anchor.output.tensor.shape
    for value in group.body.outputs:
        if value.tensor.shape != shape:
            return f"output {value.name} has another shape than {group.anchor.op}"
    return epilogue_reason(group.body, group.anchor)


def make_epilogue(group: Group, isa: Isa, bias: bool, before: Sequence[str] = ()) -> Epilogue:
    """The epilogue of a group.

    Args:
        group: the fused group.
        isa: vector shape.
        bias: whether the anchor has a bias, which then is operand 0, ahead of `sides`.
        before: C statements applied to the variable `acc` first.
    """
    assert group.anchor is not None
    anchor = group.anchor
    values = side_inputs(group.body, anchor)
    v = isa.vector

    def body(acc: str, operands: Sequence[str]) -> tuple[list[str], list[str]]:
        first = [f"{v} acc0 = {acc} + {operands[0]};"] if bias else [f"{v} acc0 = {acc};"]
        names = {anchor.output: "acc0"}
        names.update(zip(values, operands[1 if bias else 0 :], strict=True))
        code = epilogue_code(group.body, names, v, prefix="y")
        return [*first, *before, *code.statements], list(code.results)

    others = [n.op for n in group.body.nodes if n is not anchor]
    costly = any(op not in _CHEAP for op in others)
    return Epilogue(len(values) + bias, len(group.outputs), body, costly)
