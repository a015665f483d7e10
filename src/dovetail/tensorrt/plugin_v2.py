"""`IPluginV2` and its extensions: plugins of version 2 as clients subclass them, and their creator."""

from __future__ import annotations

from typing import Any, ClassVar

from dovetail.core.env import env
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.enums import DataType, TensorFormat
from dovetail.tensorrt.hooks import pure
from dovetail.tensorrt.plugin_desc import DynamicPluginTensorDesc, PluginTensorDesc
from dovetail.tensorrt.plugin_expr import DimsExprs, IExprBuilder
from dovetail.tensorrt.plugin_fields import PluginFieldCollection
from dovetail.tensorrt.plugin_v3 import IPluginCreatorInterface


class IPluginV2:
    """A plugin of fixed shapes and one element type; subclasses set `plugin_type`, `plugin_version`, `num_outputs`."""

    plugin_type: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""
    num_outputs: int = 1

    @property
    def tensorrt_version(self) -> int:
        """The version of TensorRT that the plugin is written for, as a number: 8601 is 8.6.1, 101601 is 10.16.1."""
        return _version()

    @property
    def serialization_size(self) -> int:
        """The number of bytes that `serialize` gives."""
        return len(as_bytes(self.serialize()))

    def get_output_shape(self, index: int, input_shapes: list[Dims]) -> Dims:
        """The shape of an output; of networks with an implicit batch, without it."""
        pure(IPluginV2, "get_output_shape")

    def supports_format(self, dtype: DataType, format: TensorFormat) -> bool:
        """Whether all tensors may be of an element type and format."""
        pure(IPluginV2, "supports_format")

    def configure_with_format(
        self, input_shapes: list[Dims], output_shapes: list[Dims], dtype: DataType, format: TensorFormat, max_batch_size: int
    ) -> None:
        """Take note of the tensors that were chosen. Does nothing by default."""

    def initialize(self) -> int:
        """Called ahead of the first run; 0 for success."""
        return 0

    def terminate(self) -> None:
        """Called after the last run."""

    def get_workspace_size(self, max_batch_size: int) -> int:
        """The bytes of scratch memory that a run may need."""
        return 0

    def execute_async(self, batch_size: int, inputs: list[int], outputs: list[int], workspace: int, stream_handle: int) -> int | None:
        """Compute the outputs in a stream of the device; tensors are given by address. 0 or None for success."""
        pure(IPluginV2, "execute_async")

    def serialize(self) -> bytes:
        """What the creator makes this plugin again from."""
        pure(IPluginV2, "serialize")

    def destroy(self) -> None:
        """Called when the plugin is no longer used; does nothing."""

    def clone(self) -> IPluginV2:
        """Another plugin of the same state."""
        pure(IPluginV2, "clone")


class IPluginV2Ext(IPluginV2):
    """A plugin of fixed shapes whose outputs may have element types of their own."""

    def get_output_data_type(self, index: int, input_types: list[DataType]) -> DataType:
        """The element type of an output."""
        pure(IPluginV2Ext, "get_output_data_type")

    def configure_plugin(
        self, input_shapes: list[Dims], output_shapes: list[Dims], input_types: list[DataType], output_types: list[DataType],
        input_is_broadcasted: list[bool], output_is_broacasted: list[bool], format: TensorFormat, max_batch_size: int,
    ) -> None:  # fmt: skip
        """Take note of the tensors that were chosen. Does nothing by default."""

    def attach_to_context(self, cudnn: int, cublas: int, allocator: Any) -> None:
        """Called when an execution context is made: handles (0 here) and the allocator (None here). Does nothing by default."""

    def detach_from_context(self) -> None:
        """Called when an execution context ends. Does nothing by default."""

    def clone(self) -> IPluginV2Ext:
        """Another plugin of the same state."""
        pure(IPluginV2Ext, "clone")


class IPluginV2IOExt(IPluginV2Ext):
    """A plugin of fixed shapes that chooses element type and format tensor by tensor (in C++ only, in TensorRT)."""

    def supports_format_combination(self, pos: int, in_out: list[PluginTensorDesc], num_inputs: int, num_outputs: int) -> bool:
        """Whether the tensor at `pos`, of inputs followed by outputs, may be as described, given those ahead of it."""
        pure(IPluginV2IOExt, "supports_format_combination")

    def configure_plugin(self, in_: list[PluginTensorDesc], out: list[PluginTensorDesc]) -> None:  # type: ignore[override]  # as TensorRT has it
        """Take note of the tensors that were chosen. Does nothing by default."""


class IPluginV2DynamicExtBase(IPluginV2):
    """What IPluginV2DynamicExt derives from."""


class IPluginV2DynamicExt(IPluginV2DynamicExtBase):
    """A plugin of any shapes: the newest of version 2. Subclasses set `plugin_type`, `plugin_version` and `num_outputs`."""

    FORMAT_COMBINATION_LIMIT: ClassVar[int] = 100

    def get_output_datatype(self, index: int, input_types: list[DataType]) -> DataType:
        """The element type of an output."""
        pure(IPluginV2DynamicExt, "get_output_datatype")

    def get_output_dimensions(self, output_index: int, inputs: list[DimsExprs], expr_builder: IExprBuilder) -> DimsExprs:
        """The shape of an output, from those of the inputs."""
        pure(IPluginV2DynamicExt, "get_output_dimensions")

    def supports_format_combination(self, pos: int, in_out: list[PluginTensorDesc], num_inputs: int) -> bool:
        """Whether the tensor at `pos`, of inputs followed by outputs, may be as described, given those ahead of it."""
        pure(IPluginV2DynamicExt, "supports_format_combination")

    # The arguments are called `pos` and `in_out` in the bindings, too.
    def configure_plugin(self, pos: list[DynamicPluginTensorDesc], in_out: list[DynamicPluginTensorDesc]) -> None:
        """Take note of the inputs and outputs that were chosen."""
        pure(IPluginV2DynamicExt, "configure_plugin")

    def get_workspace_size(self, in_: list[PluginTensorDesc], out: list[PluginTensorDesc]) -> int:  # type: ignore[override]  # as TensorRT has it
        """The bytes of scratch memory that a run may need; 0 by default."""
        return 0

    def initialize(self) -> int:
        """Called ahead of the first run; 0 or None for success."""
        return 0

    def terminate(self) -> None:
        """Called after the last run."""

    def enqueue(
        self, input_desc: list[PluginTensorDesc], output_desc: list[PluginTensorDesc],
        inputs: list[int], outputs: list[int], workspace: int, stream: int,
    ) -> None:  # fmt: skip
        """Compute the outputs, in a stream of the device; tensors are given by address. Raise where that fails."""
        pure(IPluginV2DynamicExt, "enqueue")

    def serialize(self) -> bytes:
        """What the creator makes this plugin again from; nothing by default."""
        return b""

    def get_serialization_size(self) -> int:
        """The number of bytes that `serialize` gives."""
        return len(as_bytes(self.serialize()))

    def destroy(self) -> None:
        """Called when the plugin is no longer used; does nothing."""

    def clone(self) -> IPluginV2DynamicExt:
        """Another plugin of the same state."""
        pure(IPluginV2DynamicExt, "clone")


class IPluginCreator(IPluginCreatorInterface):
    """Makes plugins of version 2; subclasses set `name`, `plugin_version`, `plugin_namespace` and `field_names`."""

    _kind = "PLUGIN CREATOR_V1"
    name: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""
    field_names: Any = PluginFieldCollection()

    @property
    def tensorrt_version(self) -> int:
        """The version of TensorRT that the creator is written for, as of plugins."""
        return _version()

    def create_plugin(self, name: str, field_collection: PluginFieldCollection) -> IPluginV2 | None:
        """A plugin of those fields; None where that fails."""
        pure(IPluginCreator, "create_plugin")

    def deserialize_plugin(self, name: str, serialized_plugin: bytes) -> IPluginV2 | None:
        """The plugin whose `serialize` gave those bytes; None where that fails."""
        pure(IPluginCreator, "deserialize_plugin")


def _version() -> int:
    """TensorRT's version as one number: 8601 is 8.6.1, 101601 is 10.16.1."""
    major, minor, patch = (int(part) for part in env().tensorrt_version.split(".")[:3])
    return 10000 * major + 100 * minor + patch if major >= 10 else 1000 * major + 100 * minor + patch


def as_bytes(data: Any) -> bytes:
    """What a plugin's `serialize` gave: bytes, or text.

    Raises:
        TypeError: something else.
    """
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"serialize: got {type(data).__name__}, expected bytes")
