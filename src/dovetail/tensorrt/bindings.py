"""Bindings by index, as TensorRT had them up to 9: the methods that `ICudaEngine` and `IExecutionContext` take over.

Inputs come first, then outputs; the bindings of profile k are the indices from k * n to (k + 1) * n - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dovetail.tensorrt.dims import Dims, as_dims, invalid
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, ErrorCodeTRT, TensorFormat, TensorLocation
from dovetail.tensorrt.memory import integer

if TYPE_CHECKING:
    from dovetail.tensorrt.context import IExecutionContext
    from dovetail.tensorrt.engine import ICudaEngine


class EngineBindings:
    """Bindings of an engine."""

    @property
    def num_bindings(self: ICudaEngine) -> int:  # type: ignore[misc]
        """The number of inputs and outputs, once per optimization profile."""
        return len(self._names) * self.num_optimization_profiles

    def __len__(self: ICudaEngine) -> int:  # type: ignore[misc]
        return self.num_bindings

    def __getitem__(self: ICudaEngine, item: int | str) -> Any:  # type: ignore[misc]
        """The name of a binding by its index, or the index by its name.

        Raises:
            IndexError: an index beyond the last one.
        """
        expect((int, str), item, "ICudaEngine[]")
        if isinstance(item, str):
            return self.get_binding_index(item)
        if not -self.num_bindings <= item < self.num_bindings:
            raise IndexError(f"ICudaEngine: got the binding {item}, expected 0 to {self.num_bindings - 1}")
        return self.get_binding_name(item % self.num_bindings)

    def __iter__(self: ICudaEngine) -> Iterator[str]:  # type: ignore[misc]
        return (self[index] for index in range(self.num_bindings))

    def get_binding_index(self: ICudaEngine, name: str) -> int:  # type: ignore[misc]
        """The index of a binding; -1 for an unknown name."""
        plain, profile = _split(expect(str, name, "ICudaEngine.get_binding_index: name"))
        if plain not in self._tensors or profile >= self.num_optimization_profiles:
            return -1
        return self._names.index(plain) + profile * len(self._names)

    def get_binding_name(self: ICudaEngine, index: int) -> str | None:  # type: ignore[misc]
        """The name of a binding, which ends in ` [profile k]` for a profile beyond the first; None beyond the last."""
        name = self._binding(index, "get_binding_name")
        if name is None:
            return None
        profile = index // len(self._names)
        return f"{name} [profile {profile}]" if profile else name

    def binding_is_input(self: ICudaEngine, binding: int | str) -> bool:  # type: ignore[misc]
        """Whether a binding, by index or name, is an input."""
        return self._binding(binding, "binding_is_input") in self._inputs

    def get_binding_shape(self: ICudaEngine, binding: int | str) -> Dims:  # type: ignore[misc]
        """The shape of a binding, by index or name; -1 where it is not fixed."""
        name = self._binding(binding, "get_binding_shape")
        return invalid() if name is None else self.get_tensor_shape(name)

    def get_binding_dtype(self: ICudaEngine, binding: int | str) -> DataType:  # type: ignore[misc]
        """The element type of a binding, by index or name."""
        name = self._binding(binding, "get_binding_dtype")
        return DataType.FLOAT if name is None else self.get_tensor_dtype(name)

    def get_location(self: ICudaEngine, binding: int | str) -> TensorLocation:  # type: ignore[misc]
        """The memory that a binding, by index or name, lies in."""
        name = self._binding(binding, "get_location")
        return TensorLocation.DEVICE if name is None else self.get_tensor_location(name)

    def get_binding_format(self: ICudaEngine, index: int) -> TensorFormat:  # type: ignore[misc]
        """The memory order of a binding."""
        name = self._binding(expect(int, index, "ICudaEngine.get_binding_format: index"), "get_binding_format")
        return TensorFormat.LINEAR if name is None else self.get_tensor_format(name)

    def get_binding_format_desc(self: ICudaEngine, index: int) -> str:  # type: ignore[misc]
        """The memory order and element type of a binding in words."""
        name = self._binding(expect(int, index, "ICudaEngine.get_binding_format_desc: index"), "get_binding_format_desc")
        return "" if name is None else self.get_tensor_format_desc(name)

    def get_binding_bytes_per_component(self: ICudaEngine, index: int) -> int:  # type: ignore[misc]
        """-1: no binding is a vector format, whose elements have components."""
        self._binding(expect(int, index, "ICudaEngine.get_binding_bytes_per_component: index"), "get_binding_bytes_per_component")
        return -1

    def get_binding_components_per_element(self: ICudaEngine, index: int) -> int:  # type: ignore[misc]
        """-1: no binding is a vector format, whose elements have components."""
        self._binding(expect(int, index, "ICudaEngine.get_binding_components_per_element: index"), "get_binding_components_per_element")
        return -1

    def get_binding_vectorized_dim(self: ICudaEngine, index: int) -> int:  # type: ignore[misc]
        """-1: no binding is a vector format."""
        self._binding(expect(int, index, "ICudaEngine.get_binding_vectorized_dim: index"), "get_binding_vectorized_dim")
        return -1

    def is_shape_binding(self: ICudaEngine, binding: int) -> bool:  # type: ignore[misc]
        """Whether shapes of other tensors depend on the values of a binding."""
        name = self._binding(expect(int, binding, "ICudaEngine.is_shape_binding: binding"), "is_shape_binding")
        return name is not None and self.is_shape_inference_io(name)

    def is_execution_binding(self: ICudaEngine, binding: int) -> bool:  # type: ignore[misc]
        """Whether a run reads or writes a binding: all of them."""
        return self._binding(expect(int, binding, "ICudaEngine.is_execution_binding: binding"), "is_execution_binding") is not None

    def get_profile_shape(self: ICudaEngine, profile_index: int, binding: int | str) -> list[Dims]:  # type: ignore[misc]
        """The least, best and largest shape of an input in a profile."""
        name = self._binding(binding, "get_profile_shape")
        return [invalid() for _ in range(3)] if name is None else self.get_tensor_profile_shape(name, profile_index)

    def get_profile_shape_input(self: ICudaEngine, profile_index: int, binding: int | str) -> list[list[int]]:  # type: ignore[misc]
        """The least, best and largest values of an input that is read as a shape; an empty list for all others."""
        name = self._binding(binding, "get_profile_shape_input")
        return [] if name is None else self.get_tensor_profile_values(name, profile_index)

    def _binding(self: ICudaEngine, binding: int | str, where: str) -> str | None:  # type: ignore[misc]
        """The tensor of a binding, by index or name; None and an error in the log where there is none."""
        expect((int, str), binding, f"ICudaEngine.{where}")
        if isinstance(binding, str):
            name, _ = _split(binding)
            return name if self._tensor(name, where) is not None else None
        if not 0 <= binding < self.num_bindings:
            self._reporter.error(
                f"ICudaEngine.{where}: got the binding {binding}, expected 0 to {self.num_bindings - 1}", ErrorCodeTRT.INVALID_ARGUMENT
            )
            return None
        return self._names[binding % len(self._names)]


class ContextBindings:
    """Bindings of a context."""

    _consumed: int  # the event that runs record once they have read their inputs

    def set_binding_shape(self: IExecutionContext, binding: int, shape: Any) -> bool:  # type: ignore[misc]
        """Set the shape of an input."""
        dims = as_dims(shape, "IExecutionContext.set_binding_shape: shape")
        name = self._own_binding(binding, "set_binding_shape")
        return name is not None and self._set_shape(name, dims, "set_binding_shape")

    def get_binding_shape(self: IExecutionContext, binding: int) -> Dims:  # type: ignore[misc]
        """The shape of a binding as far as it is known."""
        name = self._engine._binding(expect(int, binding, "IExecutionContext.get_binding_shape: binding"), "get_binding_shape")
        return invalid() if name is None else self.get_tensor_shape(name)

    def get_strides(self: IExecutionContext, binding: int) -> Dims:  # type: ignore[misc]
        """Elements from one index of an axis to the next."""
        name = self._engine._binding(expect(int, binding, "IExecutionContext.get_strides: binding"), "get_strides")
        return invalid() if name is None else self.get_tensor_strides(name)

    def set_shape_input(self: IExecutionContext, binding: int, shape: Sequence[int]) -> bool:  # type: ignore[misc]
        """Set the values of an input that is read as a shape."""
        if not hasattr(shape, "__iter__"):
            raise TypeError(f"IExecutionContext.set_shape_input: got {shape!r}, expected a list of integers")
        values = tuple(integer(v, "IExecutionContext.set_shape_input: shape") for v in shape)
        name = self._own_binding(binding, "set_shape_input")
        if name is None or name not in self._engine._record.shape_inputs:
            return self._refuse("set_shape_input", f"got the binding {binding}, expected an input that is read as a shape")
        return self._set_values(name, values)

    def get_shape(self: IExecutionContext, binding: int) -> list[int]:  # type: ignore[misc]
        """The values of an input that is read as a shape; an empty list where they are not known."""
        name = self._engine._binding(expect(int, binding, "IExecutionContext.get_shape: binding"), "get_shape")
        if name is None or not self.all_shape_inputs_specified:
            return []
        return list(self._values.get(name, ()))

    def execute(self: IExecutionContext, batch_size: int = 1, bindings: Sequence[Any] = ()) -> bool:  # type: ignore[misc]
        """Run on so many samples and wait for the end, where the batch is implicit; else as `execute_v2`."""
        return self._execute_list("execute", bindings, None, self._batch(batch_size, "execute"))

    def execute_async(  # type: ignore[misc]
        self: IExecutionContext, batch_size: int = 1, bindings: Sequence[Any] = (), stream_handle: Any = 0, input_consumed: Any = None
    ) -> bool:
        """Run on so many samples in a stream, where the batch is implicit; else as `execute_async_v2`."""
        stream = integer(stream_handle, "IExecutionContext.execute_async: stream_handle")
        return self._consuming(input_consumed, "execute_async", bindings, stream, self._batch(batch_size, "execute_async"))

    def execute_async_v2(self: IExecutionContext, bindings: Sequence[Any], stream_handle: Any, input_consumed: Any = None) -> bool:  # type: ignore[misc]
        """Run in a stream on addresses in the order of the bindings."""
        stream = integer(stream_handle, "IExecutionContext.execute_async_v2: stream_handle")
        return self._consuming(input_consumed, "execute_async_v2", bindings, stream, None)

    def _consuming(  # type: ignore[misc]
        self: IExecutionContext, event: Any, where: str, bindings: Sequence[Any], stream: int, batch: int | None
    ) -> bool:
        """Run, recording this event of the client's instead of the usual one."""
        if event is None:
            return self._execute_list(where, bindings, stream, batch)
        before: int = self._consumed
        self._consumed = integer(event, f"IExecutionContext.{where}: input_consumed")
        try:
            return self._execute_list(where, bindings, stream, batch)
        finally:
            self._consumed = before

    def _batch(self: IExecutionContext, size: int, where: str) -> int | None:  # type: ignore[misc]
        """The batch of a run: -1 where it is wrong, None where there is no implicit one."""
        expect(int, size, f"IExecutionContext.{where}: batch_size")
        if not self._engine.has_implicit_batch_dimension:
            return None
        return size if 1 <= size <= self._engine.max_batch_size else -1

    def _execute_list(  # type: ignore[misc]
        self: IExecutionContext, where: str, bindings: Sequence[Any], stream: int | None, batch: int | None = None
    ) -> bool:
        """Run on addresses in the order of the bindings: of the active profile, or of all of them."""
        if isinstance(bindings, str | bytes) or not hasattr(bindings, "__iter__"):
            raise TypeError(f"IExecutionContext.{where}: got {bindings!r}, expected a list of addresses")
        given = [0 if b is None else integer(b, f"IExecutionContext.{where}: bindings") for b in bindings]
        if batch == -1:
            return self._refuse(where, f"got a batch that is not in the range of 1 to {self._engine.max_batch_size}")
        names = self._engine._names
        if len(given) == self._engine.num_bindings and len(given) > len(names):
            start = self._profile * len(names)
            given = given[start : start + len(names)]
        if len(given) < len(names):
            return self._refuse(where, f"got {len(given)} addresses, expected {len(names)}: {', '.join(names)}")
        addresses = dict(zip(names, given, strict=False))
        return self._enqueue(where, addresses, stream, batch)

    def _own_binding(self: IExecutionContext, binding: int, where: str) -> str | None:  # type: ignore[misc]
        """The tensor of a binding of the active profile; None and an error in the log for those of others."""
        name = self._engine._binding(expect(int, binding, f"IExecutionContext.{where}: binding"), where)
        if name is not None and binding // len(self._engine._names) != self._profile:
            self._refuse(where, f"got the binding {binding}, expected one of the active profile {self._profile}")
            return None
        return name


def _split(name: str) -> tuple[str, int]:
    """The tensor and the profile of a binding's name."""
    plain, found, rest = name.rpartition(" [profile ")
    number = rest.removesuffix("]")
    return (plain, int(number)) if found and number.isdecimal() else (name, 0)
