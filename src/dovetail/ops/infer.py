"""Types of a node's outputs from its OpSpec, for importers and rewrites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dovetail.ir.graph import Value
from dovetail.ir.types import Type
from dovetail.ops.registry import spec


def infer(op: str, inputs: Sequence[Value | None], attrs: dict[str, Any]) -> Sequence[Type]:
    """The output types of `op` on these inputs.

    Raises:
        TypeInferenceError: operands or attributes do not fit.
    """
    given = {k: v for k, v in attrs.items() if k != "impure"}
    return spec(op).infer(*(None if v is None else v.type for v in inputs), **given)
