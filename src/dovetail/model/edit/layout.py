"""The order of axes of inputs and outputs: NCHW and NHWC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.edit.names import nearest
from dovetail.model.model import Model
from dovetail.model.proto_graph import redirect

LAYOUTS = {
    "NHWC": (0, 2, 3, 1), "NCHW": (0, 3, 1, 2), "NWC": (0, 2, 1), "NCW": (0, 2, 1), "NDHWC": (0, 2, 3, 4, 1), "NCDHW": (0, 4, 1, 2, 3),
}  # fmt: skip
"""Where each axis of the new layout is in the old one: NHWC is made from NCHW, and NCHW from NHWC."""


def io_layout(model: Model, layouts: Mapping[str, str]) -> Model:
    """The model with other orders of axes of inputs and outputs; Transposes stand between them and the rest.

    Args:
        layouts: the new layout by input or output: NHWC (of one that was NCHW), NCHW (of one that was NHWC), and likewise
            NWC, NCW, NDHWC, NCDHW.

    Raises:
        UsageError: unknown names or layouts, or another rank.
    """
    draft = Draft(model, "io-layout")
    border = {**draft.inputs(), **draft.outputs()}
    draft.names(layouts, "input or output", border)
    for name, layout in layouts.items():
        if layout.upper() not in LAYOUTS:
            raise draft.fail(f"got the layout {layout!r} for {name!r}; {nearest(layout, LAYOUTS)}")
        order = LAYOUTS[layout.upper()]
        shape = kinds.shape_of(border[name].type)
        if shape is None or len(shape) != len(order):
            raise draft.fail(f"{name!r} is {kinds.text(border[name].type)}, expected {len(order)} axes for {layout}; see set-shape")
        if name in draft.inputs() and name in draft.outputs():
            raise draft.fail(f"{name!r} is an input and an output of the model; rename one of them apart first")
        _transpose(draft, name, order)
        kinds.set_shape_of(border[name].type, [shape[axis] for axis in order])
    return draft.finish()


def _transpose(draft: Draft, name: str, order: Sequence[int]) -> None:
    inside = draft.unique(f"{name}_inside")
    if name in draft.inputs():
        redirect(draft.graph.node, {name: inside})
        draft.add_node("Transpose", [name], [inside], perm=inverse(order))
    else:
        draft.rename_result(name, inside)
        redirect(draft.graph.node, {name: inside})
        draft.add_node("Transpose", [inside], [name], perm=list(order))


def inverse(order: Sequence[int]) -> list[int]:
    """The permutation that undoes another."""
    return [list(order).index(axis) for axis in range(len(order))]
