"""Modules and programs of PyTorch where ONNX models go: in `dovetail.build`, and in `dovetail.compare`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.core.errors import BindingError, UsageError
from dovetail.export.exported import ExportedModel

Arrays = dict[str, Any]


def exported(model: Any, example_inputs: Any, shapes: Mapping[str, Sequence[int | str]] | None) -> ExportedModel:
    """The ONNX model of a module or program; named and bounded sizes in `shapes` become its dynamic axes.

    Args:
        example_inputs: a tuple of arguments, one tensor, or a dict of arguments by name; a program has its own.
        shapes: as of `dovetail.build`.

    Raises:
        UsageError: a module without example inputs; shapes that do not fit them.
        ExportError: as of `dovetail.export.pytorch`.
    """
    from dovetail.export.from_pytorch import pytorch

    args, kwargs = (None, dict(example_inputs)) if isinstance(example_inputs, Mapping) else (example_inputs, None)
    dynamic = {
        name: {axis: _axis_name(name, axis, dim) for axis, dim in enumerate(dims) if isinstance(dim, str)}
        for name, dims in (shapes or {}).items()
    }
    return pytorch(model, args, kwargs, dynamic=dynamic or None)


def _axis_name(name: str, axis: int, dim: str) -> str:
    return dim if dim.isidentifier() else re.sub(r"\W", "_", f"{name}_{axis}")


class TorchSide:
    """A module or program as a side of a comparison: its own outputs, by the names that its export has."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.subject: Any = None

    def tolerance(self) -> float:
        """As of a model in fp32."""
        return 1e-4

    def layers(self) -> list[str]:
        """None: values inside of modules have no names that an engine knows."""
        return []

    def inputs(self) -> Arrays:
        """A program's own example inputs.

        Raises:
            UsageError: a module, which has none.
        """
        from dovetail.export.torch_names import array_of
        from dovetail.export.torch_subject import subject

        if not hasattr(self.model, "example_inputs"):
            raise UsageError(f"compare: got a {type(self.model).__name__} of PyTorch and no inputs; pass inputs={{name: array}}")
        return {name: array_of(tensor) for name, tensor in subject(self.model, None, None).leaves.items()}

    def run(self, feeds: Arrays, layers: list[str]) -> tuple[Arrays, Arrays]:
        """Outputs by name.

        Raises:
            BindingError: inputs that it does not take.
        """
        from dovetail.export.torch_inputs import arguments, tensors_from
        from dovetail.export.torch_names import array_of
        from dovetail.export.torch_subject import evaluating, output_names, subject, tensors

        given = tensors_from(feeds)
        if hasattr(self.model, "forward"):
            args, kwargs = arguments(self.model, given)
            made = subject(self.model, args, kwargs)
        else:
            made = subject(self.model, None, None)
            if set(given) != set(made.leaves):
                raise BindingError(f"compare: got inputs {', '.join(given)}, expected {', '.join(made.leaves)}")
        with evaluating(made.module):
            outputs = made.run(given if made.program is not None else None)
        return dict(zip(output_names(outputs), map(array_of, tensors(outputs)), strict=True)), {}
