"""What the loop tactics of all targets share."""

from __future__ import annotations

from dovetail.codegen.lower import reason_not_lowerable
from dovetail.codegen.tactic import Group
from dovetail.ops.registry import POINTWISE, find


def reason_against(group: Group) -> str | None:
    """None if every node of the group's body has a loop form, else the reason of the first that has none."""
    return next((reason for node in group.body.nodes if (reason := reason_not_lowerable(node)) is not None), None)


def overwritable(group: Group) -> tuple[tuple[int, int], ...]:
    """Inputs that a pointwise group may overwrite: each element is read only where it is written."""
    pointwise = all((spec := find(n.op)) is not None and spec.kind == POINTWISE for n in group.body.nodes)
    if not pointwise:
        return ()
    same = [i for i, v in enumerate(group.inputs) if v.type == group.outputs[0].type]
    return tuple((0, i) for i in same[:1])
