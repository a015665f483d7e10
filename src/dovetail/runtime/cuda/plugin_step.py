"""Calls of plugins that work on arrays on the GPU: no copy to the host, no wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dovetail.core.errors import Error, ExecutionError
from dovetail.engine.plan import HostSegment
from dovetail.plugins import find
from dovetail.plugins.attributes import decode
from dovetail.runtime.cuda.arrays import DeviceArray, DeviceView
from dovetail.runtime.cuda.queue import Queue
from dovetail.runtime.cuda.values import DeviceValue, fresh
from dovetail.runtime.stage import CallCode, View


def gpu_function(code: CallCode) -> Callable[..., Any] | None:
    """What runs a host step on the device; None where nothing does: no such plugin, strings, results whose extents the run decides."""
    segment, attrs = code.segment, code.attrs
    if not isinstance(segment, HostSegment) or segment.op != "Plugin" or segment.defines:
        return None
    found = find(attrs["name"], attrs.get("version", "1"), attrs.get("namespace", ""))
    views = [v for v in (*code.inputs, *code.outputs) if v is not None]
    if found is None or any(v.shape is None or v.dtype.hasobject for v in views):
        return None
    if any(kind.kind == "string" or None in shape for kind, shape in attrs["results"]):
        return None
    return found.gpu_function


def call(
    function: Callable[..., Any], code: CallCode, inputs: Sequence[DeviceView | None], queue: Queue, place: Callable[[View], int]
) -> tuple[DeviceValue, ...] | None:
    """Run the function in the queue's stream.

    Args:
        inputs: dense arrays on the device.
        place: the address of the memory in which a result is wanted; 0 where it has none yet.

    Returns:
        the results, or None where the function leaves the call to the host.

    Raises:
        ExecutionError: it failed; names the node and the plugin.
    """
    driver, attrs = queue.driver, code.attrs
    results = []
    for index, (kind, shape) in enumerate(attrs["results"]):
        view = code.outputs[index] if index < len(code.outputs) else None
        address = place(view) if view is not None and (view.shape, view.dtype) == (shape, kind.numpy) else 0
        results.append(DeviceValue(queue, address, shape, kind.numpy) if address else fresh(queue, shape, kind.numpy))
    given = [None if x is None else DeviceArray.at(driver, x.address, x.shape, x.dtype, x) for x in inputs]
    out = tuple(DeviceArray.at(driver, x.address, x.shape, x.dtype, x) for x in results)
    attributes: Mapping[str, Any] = decode(attrs.get("attributes", "{}"))
    where = f"{', '.join(code.segment.origin) or 'program'}: plugin {attrs['name']}"
    try:
        answer = function(*given, out=out, stream=int(queue.stream), **attributes)
    except Error as error:
        raise ExecutionError(f"{where} failed ({error})") from error
    except Exception as error:
        raise ExecutionError(
            f"{where} failed on the GPU ({type(error).__name__}: {error}); the fault is in the plugin's function, or in its inputs"
        ) from error
    if answer is NotImplemented:
        return None
    if answer is not None:
        raise ExecutionError(f"{where}: got a {type(answer).__name__} from its GPU function, expected None; write results to `out`")
    return tuple(results)
