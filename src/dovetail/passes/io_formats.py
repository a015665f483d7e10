"""Formats of inputs and outputs: the element type and the order in memory of what the caller hands over.

Shapes stay logical for the caller: a channels-last image is still [N, C, H, W]. The element type is a Cast behind an input
or before an output, which the first and last fusions absorb. For the order, the graph takes and gives the array as it lies
in memory, with a Transpose next to it, which is a view; the plan's port tells the runtime which axes the caller swaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.core.dtypes import BF16, F16, F32, DType
from dovetail.core.errors import UsageError
from dovetail.ir.graph import Module, Value
from dovetail.ir.layout import channels_last
from dovetail.ir.types import TensorType

TYPES: dict[str, DType] = {"f32": F32, "f16": F16, "bf16": BF16}
ORDERS = ("row_major", "channels_last")
ORDERS_KEY = "io_orders"
"""Where the module's metadata holds the orders: "in 0", "out 1" … → the caller's axes from outermost to innermost in memory."""


@dataclass(frozen=True)
class IOFormat:
    """The element type of a binding (None: the model's) and the order of its elements in memory."""

    dtype: DType | None
    order: str = "row_major"

    @staticmethod
    def parse(name: str, text: str) -> IOFormat:
        """The format written as `f16`, `channels_last` or `f16:channels_last`.

        Raises:
            UsageError: any other text.
        """
        dtype: DType | None = None
        order = ""
        for word in text.split(":"):
            if word in TYPES and dtype is None and not order:
                dtype = TYPES[word]
            elif word in ORDERS and not order:
                order = word
            else:
                raise UsageError(
                    f"io_formats: got {text!r} for {name!r}, expected an element type ({', '.join(TYPES)}), an order "
                    f"({', '.join(ORDERS)}), or both as in f16:channels_last"
                )
        return IOFormat(dtype, order or "row_major")


def apply_formats(module: Module, formats: Mapping[str, str] | None) -> None:
    """Give inputs and outputs of the main graph the element types asked for, and note their orders for the layout pass.

    Raises:
        UsageError: a name that is no input or output, or a format that its type cannot have.
    """
    graph = module.main
    names = module.meta.get("output_names") or [v.name for v in graph.outputs]
    inputs = {v.name: v for v in graph.inputs}
    outputs = dict(zip(names, graph.outputs, strict=True))
    orders: dict[str, list[int]] = {}
    for name, text in (formats or {}).items():
        wanted = IOFormat.parse(name, text)
        if name not in inputs and name not in outputs:
            raise UsageError(f"io_formats: got {name!r}, expected one of {', '.join([*inputs, *outputs])}")
        if name in inputs:
            value = inputs[name]
            _check(name, value, wanted)
            _retype_input(module, value, wanted.dtype)
            if wanted.order != "row_major":
                orders[f"in {value.index}"] = _reorder_input(module, value)
        if name in outputs:
            position = names.index(name)
            value = graph.outputs[position]
            _check(name, value, wanted)
            _retype_output(module, position, wanted.dtype)
            if wanted.order != "row_major":
                orders[f"out {position}"] = _reorder_output(module, position)
    if orders:
        module.meta[ORDERS_KEY] = orders


def _check(name: str, value: Value, wanted: IOFormat) -> None:
    if not isinstance(value.type, TensorType):
        raise UsageError(f"io_formats: {name!r} is a sequence, expected a tensor; drop its format")
    own = value.type.dtype
    if wanted.dtype is not None and wanted.dtype != own and own not in TYPES.values():
        raise UsageError(f"io_formats: got {wanted.dtype} for {name!r} of type {own}, expected a float tensor; drop its element type")
    if wanted.order == "channels_last" and value.type.rank < 3:
        raise UsageError(f"io_formats: got channels_last for {name!r} of rank {value.type.rank}, expected rank 3 or more; use row_major")


def _retype_input(module: Module, value: Value, dtype: DType | None) -> None:
    own = value.tensor.dtype
    if dtype is None or dtype == own:
        return
    graph = module.main
    value.type = value.tensor.with_dtype(dtype)
    cast = graph.add(
        "Cast", (value,), {"to": own}, types=[value.tensor.with_dtype(own)], names=[f"{value.name}.{own}"],
        before=next(iter(graph.nodes), None),
    )  # fmt: skip
    for node, position in value.uses:
        if node is not cast:
            graph.set_input(node, position, cast.output)
    graph.set_outputs([cast.output if v is value else v for v in graph.outputs])


def _retype_output(module: Module, position: int, dtype: DType | None) -> None:
    graph = module.main
    value = graph.outputs[position]
    if dtype is None or dtype == value.tensor.dtype:
        return
    cast = graph.add(
        "Cast", (value,), {"to": dtype, "clamp": True} if dtype.bits == 16 else {"to": dtype}, types=[value.tensor.with_dtype(dtype)],
        names=[f"{value.name}.{dtype}"], origin=value.producer.origin if value.producer is not None else (),
    )  # fmt: skip
    graph.set_outputs([cast.output if i == position else v for i, v in enumerate(graph.outputs)])


def _reorder_input(module: Module, value: Value) -> list[int]:
    """Let an input be what lies in memory: channels last, with a Transpose behind it."""
    graph, type_ = module.main, value.tensor
    order = channels_last(type_.rank).order
    readers = value.uses
    value.type = TensorType(type_.dtype, tuple(type_.shape[axis] for axis in order))
    back = graph.add(
        "Transpose", (value,), {"perm": inverse(order)}, types=[type_], names=[f"{value.name}.logical"],
        before=next(iter(graph.nodes), None),
    )  # fmt: skip
    for node, position in readers:
        graph.set_input(node, position, back.output)
    graph.set_outputs([back.output if v is value else v for v in graph.outputs])
    return list(order)


def _reorder_output(module: Module, position: int) -> list[int]:
    """Let an output be what lies in memory."""
    graph = module.main
    value = graph.outputs[position]
    order = channels_last(value.tensor.rank).order
    moved = graph.add(
        "Transpose", (value,), {"perm": order}, types=[TensorType(value.tensor.dtype, tuple(value.tensor.shape[a] for a in order))],
        names=[f"{value.name}.memory"], origin=value.producer.origin if value.producer is not None else (),
    )  # fmt: skip
    graph.set_outputs([moved.output if i == position else v for i, v in enumerate(graph.outputs)])
    return list(order)


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes one."""
    return tuple(order.index(axis) for axis in range(len(order)))
