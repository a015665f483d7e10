"""An engine on a GPU with its inputs and outputs there: what a caller pays whose data never leaves the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dovetail.api.bindings import Binding
from dovetail.core.errors import BindingError, ExecutionError
from dovetail.runtime import RuntimeEngine
from dovetail.runtime.cuda import CudaEngine
from dovetail.runtime.cuda.arrays import DeviceArray


def resident_run(engine: RuntimeEngine, inputs: list[Binding], feeds: Mapping[str, Any]) -> Callable[[], object] | None:
    """A function that runs the engine once on copies of the inputs on the device, into outputs there, and waits for the end.

    From its third call on it replays CUDA graphs. An engine with steps on the host runs those between them.

    Args:
        inputs: the engine's.
        feeds: arrays on the host, by name.

    Returns:
        None for an engine that runs on a CPU.
    """
    if not isinstance(engine, CudaEngine):
        return None
    arrays = {b.name: _on_device(engine, b, feeds[b.name]) for b in inputs if b.name in feeds}
    context = engine.context()
    outputs = context.run(arrays)
    try:
        return context.bind(arrays, outputs).run
    except (BindingError, ExecutionError):  # something of it is on the host by nature
        return lambda: context.run(arrays)


def _on_device(engine: CudaEngine, binding: Binding, value: Any) -> Any:
    """A copy on the device that lies in memory as the engine wants it; what is no array stays as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        return value
    if not binding.order:
        return DeviceArray.of(engine.driver, value)
    lying = DeviceArray.of(engine.driver, np.ascontiguousarray(value.transpose(binding.order)))
    return lying.transpose([int(axis) for axis in np.argsort(binding.order)])
