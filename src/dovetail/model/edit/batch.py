"""Another batch: a number, or a name for any; with the Reshapes that had the old one in their constants."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from dovetail.core.errors import UsageError
from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.edit.names import describe
from dovetail.model.edit.value_types import shape_of
from dovetail.model.model import Model
from dovetail.model.proto_graph import attribute


@dataclass
class Batch:
    """What a change of the batch found, besides the model."""

    old: int | str | None
    new: int | str
    inputs: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    """Nodes whose constant target was changed."""
    suspects: list[str] = field(default_factory=list)
    """Nodes whose constants may hold the old batch, and that were left alone, with the reason."""


def batch(model: Model, size: int | str, *, inputs: Iterable[str] | None = None) -> Model:
    """The model with another size (or name) of the first dimension of its inputs; see `rebatch` for what was changed.

    Raises:
        UsageError: no inputs with a common batch, or constants that hold the old one where none can be put for it.
    """
    return rebatch(model, size, inputs=inputs)[0]


def rebatch(model: Model, size: int | str, *, inputs: Iterable[str] | None = None) -> tuple[Model, Batch]:
    """The model with another batch, and what was changed for it.

    A Reshape to a constant shape is changed where the rows of its data stay together: its leading size becomes 0 (as the data)
    or -1 (the rest), so that every sample lies as before. What cannot be shown to be right is listed.

    Args:
        size: a number, or a name of a dimension.
        inputs: inputs that have a batch; default those whose first dimension is as the first input's.

    Raises:
        UsageError: as `batch`.
    """
    draft = Draft(model, "batch")
    if isinstance(size, bool) or (isinstance(size, int) and size < 1) or (isinstance(size, str) and not size.isidentifier()):
        raise draft.fail(f"got {size!r}, expected a number from 1 or a name such as N")
    known = draft.inputs()
    ranked = {name: shape for name, v in known.items() if (shape := shape_of(v.type))}
    if inputs is not None:
        chosen = draft.names(inputs, "input", known)
        if flat := [name for name in chosen if name not in ranked]:
            raise draft.fail(f"input {flat[0]!r} has no first dimension: it is {kinds.text(known[flat[0]].type)}")
    elif not ranked:
        raise draft.fail("no input has a first dimension; name the inputs with --inputs, or give them shapes with set-shape")
    else:
        first = next(iter(ranked.values()))[0]
        chosen = [name for name, shape in ranked.items() if shape[0] == first and first is not None] or [next(iter(ranked))]
    olds = {ranked[name][0] for name in chosen}
    if len(olds) > 1:
        sizes = sorted(map(str, olds))
        raise draft.fail(f"the inputs {chosen} have different first dimensions: {sizes}; name those of the batch with --inputs")
    found = Batch(olds.pop(), size, chosen)
    if isinstance(found.old, int):
        # Shapes with the old batch tell which constants hold it.
        _free_reshapes(draft, found)
    elif isinstance(found.old, str):
        draft.replace_dim(found.old, size)
    draft.forget_types(outputs=True)
    for name in chosen:
        shape = shape_of(known[name].type) or ()
        kinds.set_shape_of(known[name].type, [size, *shape[1:]])
    _still_fits(draft, found)
    return draft.finish(), found


def _free_reshapes(draft: Draft, found: Batch) -> None:
    """Let the targets of Reshapes follow the data where that is sure to keep each sample's rows together."""
    old = found.old
    assert isinstance(old, int)
    constant = draft.constants()
    for node in draft.graph.node:
        if node.op_type == "Reshape" and len(node.input) == 2:
            target = constant(node.input[1])
            if target is None:
                continue
            sizes = [int(d) for d in target.reshape(-1)]
            new = _freed(sizes, shape_of(draft.types.get(node.input[0])), old, bool(attribute(node, "allowzero", 0)))
            if isinstance(new, str):
                found.suspects.append(f"{describe(node)} to {sizes}: {new}")
            elif new != sizes:
                node.input[1] = draft.add_weight(f"{node.output[0]}_shape", np.array(new, np.int64))
                found.fixed.append(f"{describe(node)} to {new}")
        elif node.op_type in ("Expand", "ConstantOfShape", "Tile", "Slice") and old > 1:
            for name in node.input:
                value = constant(name)
                if value is not None and value.dtype == np.int64 and value.size and int(value.reshape(-1)[0]) == old:
                    found.suspects.append(f"{describe(node)}: its constant {name!r} is {value.reshape(-1).tolist()}")
    draft.drop_unused_weights()


def _freed(target: list[int], data: tuple[int | str | None, ...] | None, old: int, allow_zero: bool) -> list[int] | str:
    """The target for any batch; as it is where it has no batch; a reason where that is not known."""
    if not target or target[0] == -1 or (target[0] == 0 and not allow_zero):
        return target
    if data is None or not all(isinstance(d, int) for d in data):
        return "the shape of its data is not known" if target[0] == old else target
    sizes = [d for d in data if isinstance(d, int)]
    if not sizes or sizes[0] != old:
        # A batch of one is everywhere; what does not lead with it has none, or has it inside.
        return "the batch does not lead its data" if old > 1 and old in sizes else target
    rest = math.prod(sizes[1:])
    if -1 in target[1:]:
        known = math.prod(d for d in target[1:] if d > 0)
        return [0, *target[1:]] if target[0] == old and known and rest % known == 0 and not allow_zero else "its own -1 hides the batch"
    tail = math.prod(target[1:]) if 0 not in target[1:] else 0
    if tail and rest % tail == 0 and target[0] == old * (rest // tail):
        # 0 is the data's own size, and keeps its name.
        return [0 if tail == rest and not allow_zero else -1, *target[1:]]
    return "its leading size does not hold whole samples"


def _still_fits(draft: Draft, found: Batch) -> None:
    """Refuse a model whose constants contradict the new batch, with all that may be to blame."""
    try:
        draft.import_it()
    except UsageError as error:
        listed = "".join(f"\n  {text}" for text in found.suspects)
        raise UsageError(
            f"{error}; {found.old!r} in the place of {found.new!r} may be held in"
            + (f":{listed}" if listed else " a constant: export the model with a dynamic batch")
        ) from error
