"""Plugins as clients write them, and how tests build and run engines with plugins on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import dovetail.tensorrt as trt
from tests.tensorrt.engines import Log


def view(address: int, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
    """The array at an address, as clients reach it."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(tuple(shape))


def tensors(descs: Sequence[trt.PluginTensorDesc], addresses: Sequence[int]) -> list[np.ndarray[Any, Any]]:
    """The arrays that `enqueue` is given."""
    return [view(a, tuple(d.dims), trt.nptype(d.type)) for d, a in zip(descs, addresses, strict=True)]


@contextlib.contextmanager
def registered(*creators: Any, namespace: str = "") -> Iterator[None]:
    """The registry with some creators, while the block lasts."""
    registry = trt.get_plugin_registry()
    for creator in creators:
        assert registry.register_creator(creator, namespace)
    try:
        yield
    finally:
        for creator in creators:
            registry.deregister_creator(creator)


class V3(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
    """A plugin that is its own capabilities; `fields` of the class name its attributes, which are int32 arrays."""

    name = ""
    fields: tuple[str, ...] = ()
    calls: list[tuple[Any, ...]]

    def __init__(self, fc: Any = None) -> None:
        trt.IPluginV3.__init__(self)
        trt.IPluginV3OneCore.__init__(self)
        trt.IPluginV3OneBuildV2.__init__(self)
        trt.IPluginV3OneRuntime.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace, self.num_outputs = self.name, "1", "", 1
        for field in fc or ():
            setattr(self, field.name, np.array(field.data))

    def get_capability_interface(self, type: Any) -> Any:
        return self

    def get_output_data_types(self, input_types: Any) -> Any:
        return [input_types[0]] * self.num_outputs

    def get_output_shapes(self, inputs: Any, shape_inputs: Any, expr_builder: Any) -> Any:
        return [trt.DimsExprs(inputs[0])] * self.num_outputs

    def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
        return in_out[pos].desc.format == trt.TensorFormat.LINEAR

    def configure_plugin(self, inp: Any, out: Any) -> None:
        pass

    def on_shape_change(self, inp: Any, out: Any) -> None:
        pass

    def get_fields_to_serialize(self) -> Any:
        return trt.PluginFieldCollection([trt.PluginField(f, getattr(self, f), trt.PluginFieldType.INT32) for f in self.fields])

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    def clone(self) -> Any:
        made = type(self)()
        made.__dict__.update(self.__dict__)
        return made

    def enqueue(self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int) -> None:
        self.compute(*tensors(input_desc, inputs), *tensors(output_desc, outputs))

    def compute(self, *arrays: np.ndarray[Any, Any]) -> None:
        raise NotImplementedError


class V3Creator(trt.IPluginCreatorV3One):
    """Makes plugins of a class, and notes what it was asked for."""

    def __init__(self, kind: type[V3]) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.kind, self.name, self.plugin_version, self.plugin_namespace = kind, kind.name, "1", ""
        self.field_names = trt.PluginFieldCollection([trt.PluginField(f, np.array([]), trt.PluginFieldType.INT32) for f in kind.fields])
        self.asked: list[tuple[str, Any]] = []

    def create_plugin(self, name: str, fc: Any, phase: Any) -> Any:
        self.asked.append((name, phase))
        return self.kind(fc)


def fields(**values: Any) -> trt.PluginFieldCollection:
    """Fields of int32."""
    return trt.PluginFieldCollection([trt.PluginField(n, np.array(v, np.int32), trt.PluginFieldType.INT32) for n, v in values.items()])


def built(
    define: Callable[[Any], Any],
    log: Log | None = None,
    profile: dict[str, Any] | None = None,
    flags: int = 0,
    outputs: Sequence[str] = ("y",),
) -> Any:
    """A serialized engine of the tensors that `define` returns for a network; None where the build fails."""
    builder = trt.Builder(log or Log())
    network = builder.create_network(flags)
    found = define(network)
    for name, tensor in zip(outputs, found if isinstance(found, tuple) else (found,), strict=True):
        tensor.name = name
        network.mark_output(tensor)
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    if profile is not None:
        shapes = builder.create_optimization_profile()
        for name, rows in profile.items():
            shapes.set_shape(name, *rows)
        config.add_optimization_profile(shapes)
    return builder.build_serialized_network(network, config)


class _Outputs(trt.IOutputAllocator):
    """Memory for outputs of any size."""

    def __init__(self) -> None:
        trt.IOutputAllocator.__init__(self)
        self.memory: dict[str, Any] = {}
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
        self.memory[tensor_name] = np.empty(size + alignment, np.uint8)
        self.addresses[tensor_name] = -(-self.memory[tensor_name].ctypes.data // alignment) * alignment
        return self.addresses[tensor_name]

    def notify_shape(self, tensor_name: str, shape: Any) -> None:
        self.shapes[tensor_name] = tuple(shape)


class Runner:
    """Runs an engine at addresses of arrays."""

    def __init__(self, serialized: Any, log: Log | None = None) -> None:
        self.engine = trt.Runtime(log or Log()).deserialize_cuda_engine(serialized)
        self.context = self.engine.create_execution_context()

    def __call__(self, **inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]] | None:
        """The outputs by name; None where the run fails."""
        allocator = _Outputs()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        outputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
        for name, array in inputs.items():
            assert self.context.set_input_shape(name, array.shape)
            assert self.context.set_tensor_address(name, array.ctypes.data)
        for name in outputs:
            assert self.context.set_output_allocator(name, allocator)
        if not self.context.execute_async_v3(0):
            return None
        kinds = {n: np.dtype(trt.nptype(self.engine.get_tensor_dtype(n))) for n in outputs}
        return {n: view(allocator.addresses[n], allocator.shapes[n], kinds[n]).copy() for n in outputs}
