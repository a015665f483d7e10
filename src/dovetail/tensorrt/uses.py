"""Which tensors of a network decide shapes, and which carry data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dovetail.tensorrt.enums import LayerType

if TYPE_CHECKING:
    from dovetail.tensorrt.layer import LayerRecord
    from dovetail.tensorrt.tensor import ITensor


class Uses:
    """What the tensors of a network are for.

    Args:
        layers: all of them, in order.
        outputs: what the network returns.
        shapes: those of them that are returned as shapes, in host memory.
    """

    def __init__(self, layers: Sequence[LayerRecord], outputs: Sequence[ITensor], shapes: Sequence[ITensor]) -> None:
        self._shape: set[ITensor] = set()
        self._execution = {t for t in outputs if t not in shapes}
        pending = list(shapes)
        for record in layers:
            for position, tensor in enumerate(record.inputs):
                if tensor is not None and position in record.kind._shape_inputs:
                    pending.append(tensor)
        while pending:
            tensor = pending.pop()
            if tensor in self._shape:
                continue
            self._shape.add(tensor)
            producer = tensor._producer
            # The shape of a tensor is known without its data.
            if producer is not None and producer.type is not LayerType.SHAPE:
                pending += [t for t in producer.inputs if t is not None]
        for record in reversed(layers):
            only_shapes = record.outputs and all(t in self._shape and t not in self._execution for t in record.outputs)
            if not only_shapes:
                data = (t for i, t in enumerate(record.inputs) if t is not None and i not in record.kind._shape_inputs)
                self._execution.update(data)

    def is_shape(self, tensor: ITensor) -> bool:
        """Whether a shape depends on the tensor's contents."""
        return tensor in self._shape

    def is_execution(self, tensor: ITensor) -> bool:
        """Whether the tensor's contents are data, of outputs in the end."""
        return tensor in self._execution or tensor not in self._shape
