"""`IExecutionContext`: runs an engine on addresses that the client gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dovetail.core.dtypes import DType
from dovetail.core.errors import BindingError, Error, ExecutionError
from dovetail.runtime.shapes import Partial
from dovetail.tensorrt import standins
from dovetail.tensorrt.bindings import ContextBindings
from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.context_watching import WatchedContext
from dovetail.tensorrt.dims import Dims, as_dims, invalid
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import ErrorCodeTRT
from dovetail.tensorrt.hooks import IOutputAllocator, call, told
from dovetail.tensorrt.launcher import Results
from dovetail.tensorrt.memory import ALIGNMENT, array_at, captured, integer

_VIEWS = 64
"""Arrays over clients' addresses that a context keeps."""


class IExecutionContext(WatchedContext, ContextBindings, Deprecated):
    """Shapes, addresses and memory for runs of an engine, by one thread at a time; made by `ICudaEngine.create_execution_context`.

    Failures are False or None, with an error in the log. On a CPU, addresses are those of host memory and a run is over when the
    call returns, whatever the stream.

    Raises:
        Error: the engine cannot run here.
    """

    # ------------------------------------------------------------------ profiles and shapes
    @property
    def active_optimization_profile(self) -> int:
        """The profile whose ranges shapes must be in."""
        return self._profile

    @active_optimization_profile.setter
    def active_optimization_profile(self, profile_index: int) -> None:
        self.set_optimization_profile_async(profile_index, 0)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: Any) -> bool:
        """Choose another profile; shapes of inputs that are not fixed must be set again."""
        integer(stream_handle, "IExecutionContext.set_optimization_profile_async: stream_handle")
        if not self._engine._known_profile(profile_index, "set_optimization_profile_async"):
            return False
        if profile_index != self._profile:
            self._profile = profile_index
            self._shapes, self._values, self._held = {}, {}, {}
            self._set_fixed_shapes()
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        """Set the shape of an input; False and an error in the log where it does not fit the engine or the profile."""
        dims = as_dims(shape, "IExecutionContext.set_input_shape: shape")
        return self._set_shape(expect(str, name, "IExecutionContext.set_input_shape: name"), dims, "set_input_shape")

    def _set_shape(self, name: str, shape: Dims, where: str) -> bool:
        engine = self._engine
        if name not in engine._inputs:
            expected = ", ".join(engine._record.inputs)
            return self._refuse(where, f"got {name!r}, expected one of the inputs {expected}")
        declared, given = tuple(engine.get_tensor_shape(name)), tuple(shape)
        if len(given) != len(declared) or any(d not in (-1, g) or g < 0 for d, g in zip(declared, given, strict=True)):
            return self._refuse(
                where,
                f"Static dimension mismatch while setting input shape for {name}. Set dimensions are {list(given)}. "
                f"Expected dimensions are {list(declared)}.",
            )
        least, _, most = engine.get_tensor_profile_shape(name, self._profile)
        if any(not low <= g <= high for low, g, high in zip(least, given, most, strict=True) if low >= 0):
            return self._refuse(
                where,
                f"Set dimension {list(given)} for tensor {name} does not satisfy any optimization profiles. "
                f"Valid range for profile {self._profile}: {list(least)}..{list(most)}.",
            )
        self._shapes[name] = given
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        """The shape of an input as set, or of an output as far as the inputs say it, with -1 else; invalid for an unknown name."""
        binding = self._engine._tensor(name, "get_tensor_shape")
        if binding is None:
            return invalid()
        if name in self._engine._inputs:
            return Dims(self._shapes.get(name, self._engine._declared(binding)))
        found = self._known_outputs("get_tensor_shape")
        shape = None if found is None else found[name]
        return invalid() if shape is None else Dims(self._engine._without_batch(tuple(-1 if d is None else d for d in shape)))

    def get_tensor_strides(self, name: str) -> Dims:
        """Elements from one index of an axis to the next, as the tensor lies in memory; -1 where that is not known yet."""
        binding = self._engine._tensor(name, "get_tensor_strides")
        if binding is None:
            return invalid()
        shape = tuple(self.get_tensor_shape(name))
        order = binding.order or tuple(range(len(shape)))
        strides, step = [0] * len(shape), 1
        for axis in reversed(order if len(order) == len(shape) else range(len(shape))):
            strides[axis] = step
            step = -1 if step < 0 or shape[axis] < 0 else step * shape[axis]
        return Dims(strides)

    def infer_shapes(self) -> list[str]:
        """Names of the inputs whose shapes, or values where they are read as shapes, are still missing.

        Raises:
            RuntimeError: shapes or values that contradict each other.
        """
        missing = [n for n in self._engine._record.inputs if n not in self._shapes]
        try:
            self._read_values()
        except Error as error:
            self._error("infer_shapes", error, ErrorCodeTRT.INVALID_ARGUMENT)
            raise RuntimeError(f"infer_shapes: {error}") from error
        missing += [n for n in self._engine._record.shape_inputs if n not in self._values and n not in missing]
        if not missing and self._known_outputs("infer_shapes") is None:
            raise RuntimeError("infer_shapes: the shapes of the inputs contradict each other; see the log")
        return missing

    @property
    def all_binding_shapes_specified(self) -> bool:
        """Whether the shapes of all inputs are known."""
        return all(name in self._shapes for name in self._engine._record.inputs)

    @property
    def all_shape_inputs_specified(self) -> bool:
        """Whether the values of all inputs that are read as shapes are known."""
        try:
            self._read_values()
        except Error as error:
            self._error("all_shape_inputs_specified", error, ErrorCodeTRT.INVALID_ARGUMENT)
            return False
        return all(name in self._values for name in self._engine._record.shape_inputs)

    def get_max_output_size(self, name: str) -> int:
        """Bytes that an output may take at most with the shapes that are set; -1 where nobody can tell before a run."""
        binding = self._engine._tensor(name, "get_max_output_size")
        if binding is None or name in self._engine._inputs:
            return -1
        try:
            self._read_values()
            shape = self._engine._engine.shape_inference.largest(self._whole_shapes(), self._values)[name]
        except Error as error:
            self._error("get_max_output_size", error, ErrorCodeTRT.INVALID_ARGUMENT)
            return -1
        if shape is None or any(d is None for d in shape):
            return -1
        size = math.prod(d or 0 for d in shape) * binding.dtype.itemsize
        return -(-size // ALIGNMENT) * ALIGNMENT

    def _set_values(self, name: str, values: tuple[int, ...]) -> bool:
        """Set what an input says that is read as a shape."""
        shape = self._shapes.get(name)
        least, _, most = self._engine.get_tensor_profile_values(name, self._profile) or [[], [], []]
        if shape is None or math.prod(shape) != len(values):
            return self._refuse("set_shape_input", f"got {len(values)} values for {name!r}, expected as many as its shape {shape} has")
        if any(not low <= v <= high for low, v, high in zip(least, values, most, strict=False)):
            return self._refuse("set_shape_input", f"got {list(values)} for {name!r}, expected the profile's range {least}..{most}")
        self._values[name] = values
        self._held[name] = np.array(values, self._engine._tensors[name].dtype.numpy).reshape(shape)
        return True

    def _read_values(self) -> None:
        """Read what inputs say that are read as shapes, from the client's host memory.

        Raises:
            BindingError: memory that is too small.
        """
        for name in self._engine._record.shape_inputs:
            if self._addresses.get(name) and name in self._shapes:
                array = self._array_of(name, self._shapes[name], self._addresses[name])
                self._values[name] = tuple(int(v) for v in array.reshape(-1))

    def _whole_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that are set, with the largest batch where that is implicit."""
        if not self._engine._record.implicit_batch:
            return self._shapes
        return {name: (self._engine.max_batch_size, *shape) for name, shape in self._shapes.items()}

    def _known_outputs(self, where: str) -> Mapping[str, Partial | None] | None:
        """Shapes of the outputs as far as they are known; None and an error in the log where inputs contradict each other."""
        try:
            self._read_values()
            return self._engine._engine.infer_shapes(self._whole_shapes(), self._values)
        except Error as error:
            self._error(where, error, ErrorCodeTRT.INVALID_ARGUMENT)
            return None

    # ------------------------------------------------------------------ addresses
    def set_tensor_address(self, name: str, memory: Any) -> bool:
        """Say where an input or output lies: in device memory, or in host memory for inputs that are read as shapes."""
        address = integer(memory, "IExecutionContext.set_tensor_address: memory")
        if self._engine._tensor(name, "set_tensor_address") is None:
            return False
        if name in self._engine._record.shape_inputs:
            self._values.pop(name, None)
            self._held.pop(name, None)
        self._addresses[name] = address
        return True

    def get_tensor_address(self, name: str) -> int:
        """Where an input or output lies; 0 where that was not said."""
        self._engine._tensor(name, "get_tensor_address")
        return self._addresses.get(name, 0)

    def set_output_allocator(self, name: str, output_allocator: IOutputAllocator | None) -> bool:
        """Have an output's memory from an allocator in each run, in the place of an address; None ends that."""
        if output_allocator is not None:
            expect(IOutputAllocator, output_allocator, "IExecutionContext.set_output_allocator: output_allocator")
        if self._engine._tensor(name, "set_output_allocator") is None:
            return False
        if name in self._engine._inputs:
            return self._refuse("set_output_allocator", f"got the input {name!r}, expected an output")
        if output_allocator is None:
            self._allocators.pop(name, None)
        else:
            self._allocators[name] = output_allocator
        return True

    def get_output_allocator(self, name: str) -> IOutputAllocator | None:
        """The allocator of an output; None where it has none."""
        self._engine._tensor(name, "get_output_allocator")
        return self._allocators.get(name)

    # ------------------------------------------------------------------ running
    def execute_async_v3(self, stream_handle: Any) -> bool:
        """Run in a stream, on the addresses that were set."""
        stream = integer(stream_handle, "IExecutionContext.execute_async_v3: stream_handle")
        return self._enqueue("execute_async_v3", self._addresses, stream)

    def execute_v2(self, bindings: Sequence[Any]) -> bool:
        """Run on addresses in the order of the inputs and outputs, and wait for the end."""
        return self._execute_list("execute_v2", bindings, None)

    def set_input_consumed_event(self, event: Any) -> bool:
        """Have a CUDA event recorded by each run once it has read its inputs; 0 ends that."""
        self._consumed = integer(event, "IExecutionContext.set_input_consumed_event: event")
        return True

    def get_input_consumed_event(self) -> int:
        """The event that runs record once they have read their inputs; 0 where there is none."""
        return self._consumed

    def set_aux_streams(self, aux_streams: Sequence[Any]) -> None:
        """Offer streams for kernels that run beside each other. They have streams of the context's own, ordered by the caller's."""
        self._aux_streams = tuple(integer(s, "IExecutionContext.set_aux_streams: aux_streams") for s in aux_streams)

    def _enqueue(
        self, where: str, addresses: Mapping[str, int], stream: int | None, batch: int | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> bool:  # fmt: skip
        """Run; with a stream in it, else to the end; with the inputs' shapes of now or those given."""
        try:
            shapes = self._input_shapes(batch) if shapes is None else shapes
            if captured(stream, partial(self._enqueue, where, dict(addresses), None, None, shapes)):
                return True
            self._provide(shapes, stream)
            results = self._repeated(shapes, addresses, stream)
            if results is None:
                inputs = {n: self._input(n, shapes[n], addresses.get(n, 0)) for n in self._engine._record.inputs}
                failed: list[str] = []
                outputs = self._outputs(addresses, stream, failed)
                results = self._launcher.run(inputs, outputs, stream, taps=self._wanted_taps(), timed=self._profiler is not None)
                if failed:
                    return False
                for name in self._engine._written_back:
                    self._launcher.copy(inputs[self._engine._aliased[name]], results.outputs[name], stream)
            if self._consumed:
                self._launcher.record(self._consumed, stream)
            self._after(results, stream)
        except Error as error:
            return self._error(where, error, ErrorCodeTRT.FAILED_EXECUTION)
        return True

    def _repeated(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int], stream: int | None) -> Results | None:
        """A run on a GPU by one call of the driver; None where nobody can tell beforehand what memory it uses, or must look inside."""
        apart = self._engine._record.shape_inputs or self._engine._written_back
        if not self._launcher.binds or apart or self._allocators or self._profiler is not None or self._wanted_taps():
            return None
        key = tuple(shapes.items()), tuple(addresses.get(name, 0) for name in self._engine._names)
        found = self._launcher.repeat(key, stream)
        if found is None:
            known = self._engine._engine.infer_shapes(shapes)
            outputs = {}
            for name, shape in known.items():
                if name in self._engine._aliased:
                    continue
                if shape is None or any(d is None for d in shape) or name not in self._engine._tensors:
                    return None
                outputs[name] = self._array_of(name, tuple(d or 0 for d in shape), addresses.get(name, 0))
            inputs = {n: self._input(n, shapes[n], addresses.get(n, 0)) for n in self._engine._record.inputs}
            outputs |= {name: inputs[source] for name, source in self._engine._aliased.items()}
            self._launcher.bind(key, inputs, outputs, stream)
            found = self._launcher.repeat(key, stream)
        return found

    def _input(self, name: str, shape: tuple[int, ...], address: int) -> Any:
        """The client's array of an input; of one that is read as a shape, what was set by `set_shape_input`."""
        return self._held[name] if name in self._held and not address else self._array_of(name, shape, address)

    def _array_of(self, name: str, shape: tuple[int, ...], address: int) -> Any:
        """The client's array of an input or output, in the order of axes that it lies in."""
        key = name, address, shape
        known = self._views.get(key)
        if known is not None:
            return known
        binding = self._engine._tensors[name]
        host = name in self._engine._record.shape_inputs
        where = f"tensor {name!r}"
        order = binding.order
        lying = tuple(shape[axis] for axis in order) if order else shape
        array = array_at(self._launcher.runtime, where, address, lying, _memory_dtype(where, binding.dtype), host=host)
        found = array.transpose([order.index(axis) for axis in range(len(order))]) if order else array
        # Memory of a stand-in is looked up each time: it may have gone, and other memory be there.
        if not standins.active():
            while len(self._views) >= _VIEWS:
                del self._views[next(iter(self._views))]
            self._views[key] = found
        return found

    def _outputs(self, addresses: Mapping[str, int], stream: int | None, failed: list[str]) -> dict[str, Any]:
        """What gives each output its memory once its shape is known."""
        made: dict[str, Any] = {}
        for name in self._engine._record.outputs:
            source = self._engine._aliased.get(name)
            address = addresses.get(name, 0)
            if source is not None:
                if address and address != addresses.get(source, 0):
                    raise BindingError(f"output {name!r}: got an address of its own, expected that of the input {source!r} that it updates")
                continue
            allocator = self._allocators.get(name)
            if allocator is not None:
                made[name] = partial(self._allocated, name, allocator, address, stream or 0, failed)
            else:
                made[name] = partial(self._bound_output, name, address)
        return made

    def _bound_output(self, name: str, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        return self._array_of(name, shape, address)

    def _allocated(
        self, name: str, allocator: IOutputAllocator, memory: int, stream: int, failed: list[str], shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> Any:  # fmt: skip
        """Memory for an output from the client's allocator, which learns the shape as well.

        Raises:
            ExecutionError: it gave none.
        """
        size = math.prod(shape) * dtype.itemsize
        reallocate = allocator.reallocate_output_async
        given = call(self._reporter, "IOutputAllocator.reallocate_output", reallocate, name, memory, size, ALIGNMENT, stream, default=0)
        address = 0 if given is None else integer(given, "IOutputAllocator.reallocate_output")
        if size and not address:
            raise ExecutionError(f"output {name!r}: the allocator gave no memory, expected {size} bytes")
        visible = Dims(self._engine._without_batch(shape))
        if not call(self._reporter, "IOutputAllocator.notify_shape", told, allocator.notify_shape, name, visible, default=False):
            failed.append(name)
        return self._array_of(name, shape, address)


def _memory_dtype(where: str, dtype: DType) -> np.dtype[Any]:
    if dtype.bits < 8:
        raise BindingError(f"{where}: {dtype} lies two to a byte, which no input or output may; expected a type of whole bytes")
    return dtype.numpy


