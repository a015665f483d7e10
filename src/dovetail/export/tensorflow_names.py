"""Names and sizes of an ONNX model's inputs and outputs, as the user of the TensorFlow model knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from dovetail.core.errors import Error, UsageError
from dovetail.core.log import logger
from dovetail.core.text import did_you_mean
from dovetail.export.tensorflow_graphs import Frozen
from dovetail.frontend.importer import import_onnx
from dovetail.ir.types import TensorType
from dovetail.model.model import Model
from dovetail.model.proto_graph import read_names

_log = logger("export")


def unused_inputs(model: onnx.ModelProto) -> list[str]:
    """The inputs that nothing reads."""
    read = set(read_names(model.graph.node)) | {v.name for v in model.graph.output}
    return [v.name for v in model.graph.input if v.name not in read]


def drop_unused_inputs(model: onnx.ModelProto, keep: bool) -> list[str]:
    """The inputs that nothing reads; they are taken away unless `keep`."""
    unused = unused_inputs(model)
    if not keep:
        kept = [v for v in model.graph.input if v.name not in unused]
        del model.graph.input[:]
        model.graph.input.extend(kept)
    return unused


def name_sizes(
    model: onnx.ModelProto, frozen: Frozen, dynamic: Mapping[str, Mapping[int, str]], shapes: Mapping[str, Sequence[Any]]
) -> None:
    """Give each size that is open a name: the user's, `batch` for the first axis where all inputs share it, else INPUT_AXIS.

    Raises:
        UsageError: an unknown input or axis in `dynamic`, or one whose size is fixed.
    """
    inputs = {v.name: v for v in model.graph.input}
    for name, axes in dynamic.items():
        if name not in inputs:
            raise UsageError(f"--dynamic: got {name!r}, expected names of inputs: {sorted(inputs)}{did_you_mean(name, inputs)}")
        dims = inputs[name].type.tensor_type.shape.dim
        for axis in axes:
            if not 0 <= axis < len(dims):
                raise UsageError(f"--dynamic: got axis {axis} of input {name!r}, expected 0 to {len(dims) - 1}")
            if dims[axis].dim_value:
                raise UsageError(
                    f"--dynamic: got axis {axis} of input {name!r}, whose size TensorFlow fixed to {dims[axis].dim_value}; "
                    "leave it open (None) in the signature"
                )
    used = set(inputs) - set(unused_inputs(model))
    for name, value in inputs.items():
        given = [size if isinstance(size, str) else None for size in shapes.get(name, ())]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            first = "batch" if axis == 0 and (frozen.shared_batch or used == {name}) else f"{name}_{axis}"
            dim.dim_param = dynamic.get(name, {}).get(axis) or (given[axis] if axis < len(given) and given[axis] else None) or first
    _infer_outputs(model)


def _infer_outputs(model: onnx.ModelProto) -> None:
    """Sizes of outputs in the inputs' names, as far as Dovetail's importer finds them; tf2onnx's own names go."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                dim.Clear()
    open_sizes = {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
    try:
        found = import_onnx(Model(model)).main.outputs
    except Error as error:
        _log.debug("sizes of outputs stay open: %s", error)
        return
    for value, better in zip(model.graph.output, found, strict=True):
        declared = value.type.tensor_type.shape.dim
        if isinstance(better.type, TensorType) and len(declared) == better.type.rank:
            for dim, size in zip(declared, better.type.shape, strict=True):
                if isinstance(size, int):
                    dim.dim_value = size
                elif str(size) in open_sizes:
                    dim.dim_param = str(size)
