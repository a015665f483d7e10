"""Shapes of inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.model import Model


def set_shape(model: Model, shapes: Mapping[str, Sequence[int | str]]) -> Model:
    """The model with other shapes of inputs (and outputs); all shapes that follow are inferred again.

    Args:
        shapes: sizes, or names of dimensions that a caller chooses, by input or output.

    Raises:
        UsageError: unknown names, another rank, or shapes that the model contradicts.
    """
    draft = Draft(model, "set-shape")
    border = {**draft.inputs(), **draft.outputs()}
    draft.names(shapes, "input or output", border)
    inputs = set(draft.inputs())
    draft.forget_types(outputs=any(name in inputs for name in shapes))
    for name, shape in shapes.items():
        before = kinds.shape_of(border[name].type)
        if border[name].type.WhichOneof("value") != "tensor_type":
            raise draft.fail(f"{name!r} is {kinds.text(border[name].type)}, expected a tensor")
        if name in inputs and before is not None and len(before) != len(shape):
            raise draft.fail(f"got {len(shape)} dimensions for {name!r}, expected {len(before)}: it is {kinds.text(border[name].type)}")
        for size in shape:
            if isinstance(size, bool) or not isinstance(size, int | str) or (isinstance(size, int) and size < 0) or size == "":
                raise draft.fail(f"got the size {size!r} for {name!r}, expected a number from 0, or a name")
            if isinstance(size, str) and ".." in size:
                raise draft.fail(f"got the range {size!r} for {name!r}, expected a size or a name; ranges are for `dovetail build`")
        kinds.set_shape_of(border[name].type, shape)
    draft.import_it()
    return draft.finish()
