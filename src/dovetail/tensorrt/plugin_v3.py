"""`IPluginV3`: plugins of version 3 as clients subclass them: capabilities for core, build and runtime, and their creators."""

from __future__ import annotations

from typing import Any, ClassVar

from dovetail.tensorrt.enums import (
    APILanguage,
    DataType,
    PluginCapabilityType,
    QuickPluginCreationRequest,
    TensorRTPhase,
)
from dovetail.tensorrt.hooks import IErrorRecorder, IGpuAllocator, IVersionedInterface, pure
from dovetail.tensorrt.plugin_desc import DynamicPluginTensorDesc, PluginTensorDesc
from dovetail.tensorrt.plugin_expr import DimsExprs, IExprBuilder
from dovetail.tensorrt.plugin_fields import PluginFieldCollection


class IPluginV3(IVersionedInterface):
    """A plugin: gives its capabilities, which often are itself."""

    _kind = "IPluginV3"

    def get_capability_interface(self, type: PluginCapabilityType) -> Any:
        """The object that implements a capability: an IPluginV3OneCore, IPluginV3OneBuild or IPluginV3OneRuntime."""
        pure(IPluginV3, "get_capability_interface")

    def clone(self) -> IPluginV3:
        """Another plugin of the same state."""
        pure(IPluginV3, "clone")

    def destroy(self) -> None:
        """Called when the plugin is no longer used; does nothing."""


class IPluginCapability(IVersionedInterface):
    """What the capabilities have in common."""

    _kind = "IPluginCapability"


class IPluginV3OneCore(IPluginCapability):
    """Name, version and namespace: `plugin_name`, `plugin_version`, `plugin_namespace`, which subclasses set."""

    _kind = "PLUGIN_V3ONE_CORE"
    plugin_name: str = ""
    plugin_version: str = ""
    plugin_namespace: str = ""


class IPluginV3OneBuild(IPluginCapability):
    """Types, shapes, formats and tactics; subclasses set `num_outputs`."""

    _kind = "PLUGIN_V3ONE_BUILD"
    DEFAULT_FORMAT_COMBINATION_LIMIT: ClassVar[int] = 100
    num_outputs: int = 1
    format_combination_limit: int = 100
    metadata_string: str | None = None
    timing_cache_id: str | None = None

    def get_output_data_types(self, input_types: list[DataType]) -> list[DataType]:
        """The element type of each output. By default what a subclass has under the name of 10.0, `get_output_datatypes`."""
        if type(self).get_output_datatypes is IPluginV3OneBuild.get_output_datatypes:
            pure(IPluginV3OneBuild, "get_output_data_types")
        return self.get_output_datatypes(input_types)

    def get_output_datatypes(self, input_types: list[DataType]) -> list[DataType]:
        """The name of `get_output_data_types` in 10.0 to 10.2."""
        if type(self).get_output_data_types is IPluginV3OneBuild.get_output_data_types:
            pure(IPluginV3OneBuild, "get_output_datatypes")
        return self.get_output_data_types(input_types)

    def get_output_shapes(self, inputs: list[DimsExprs], shape_inputs: list[DimsExprs], expr_builder: IExprBuilder) -> list[DimsExprs]:
        """The shape of each output, from the shapes of inputs and the values of shape inputs."""
        pure(IPluginV3OneBuild, "get_output_shapes")

    def supports_format_combination(self, pos: int, in_out: list[DynamicPluginTensorDesc], num_inputs: int) -> bool:
        """Whether the tensor at `pos`, of inputs followed by outputs, may be as described, given those ahead of it."""
        pure(IPluginV3OneBuild, "supports_format_combination")

    def configure_plugin(self, in_: list[DynamicPluginTensorDesc], out: list[DynamicPluginTensorDesc]) -> None:
        """Take note of the tensors that were chosen."""
        pure(IPluginV3OneBuild, "configure_plugin")

    def get_workspace_size(self, in_: list[DynamicPluginTensorDesc], out: list[DynamicPluginTensorDesc]) -> int:
        """The bytes of scratch memory that a run may need; 0 by default."""
        return 0

    def get_valid_tactics(self) -> list[int]:
        """The numbers (from 1) of ways to compute; none by default."""
        return []


class IPluginV3OneBuildV2(IPluginV3OneBuild):
    """The build capability of plugins that may write to their inputs."""

    def get_aliased_input(self, output_index: int) -> int:
        """The index of the input that an output shares its memory with; -1, the default, for none."""
        return -1


class IPluginV3OneRuntime(IPluginCapability):
    """How a plugin runs."""

    _kind = "PLUGIN_V3ONE_RUNTIME"

    def set_tactic(self, tactic: int) -> None:
        """Take the tactic that was chosen; 0 where there are none. Does nothing by default."""

    def on_shape_change(self, in_: list[PluginTensorDesc], out: list[PluginTensorDesc]) -> None:
        """Called ahead of a run whose shapes are not those of the last one. Does nothing by default."""

    def enqueue(
        self, input_desc: list[PluginTensorDesc], output_desc: list[PluginTensorDesc],
        inputs: list[int], outputs: list[int], workspace: int, stream: int,
    ) -> None:  # fmt: skip
        """Compute the outputs, in a stream of the device; tensors are given by address. Raise where that fails."""
        pure(IPluginV3OneRuntime, "enqueue")

    def attach_to_context(self, resource_context: IPluginResourceContext) -> IPluginV3:
        """A clone of the plugin for one execution context."""
        pure(IPluginV3OneRuntime, "attach_to_context")

    def get_fields_to_serialize(self) -> PluginFieldCollection:
        """What the creator makes this plugin again from."""
        pure(IPluginV3OneRuntime, "get_fields_to_serialize")


# ---- quickly deployable plugins: what `tensorrt.plugin` makes of functions ----


class IPluginV3QuickCore(IPluginCapability):
    """Name, version and namespace of a quickly deployable plugin."""

    _kind = "PLUGIN_V3QUICK_CORE"
    plugin_name: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""


class IPluginV3QuickBuild(IPluginCapability):
    """The build capability of a quickly deployable plugin."""

    _kind = "PLUGIN_V3QUICK_BUILD"
    num_outputs: int = 1
    metadata_string: str | None = None
    timing_cache_id: str | None = None


class IPluginV3QuickAOTBuild(IPluginV3QuickBuild):
    """The build capability of a quickly deployable plugin that gives a compiled kernel."""

    _kind = "PLUGIN_V3QUICKAOT_BUILD"


class IPluginV3QuickRuntime(IPluginCapability):
    """The runtime capability of a quickly deployable plugin."""

    _kind = "PLUGIN_V3QUICK_RUNTIME"


# ---- creators ----


class IPluginCreatorInterface(IVersionedInterface):
    """What all creators have in common: `name`, `plugin_version`, `plugin_namespace` and `field_names`, which subclasses set."""

    _kind = "PLUGIN CREATOR_INTERFACE"
    name: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""
    field_names: Any = PluginFieldCollection()

    @property
    def api_language(self) -> APILanguage:
        """The language that implements the creator: PYTHON."""
        return APILanguage.PYTHON


class IPluginCreatorV3One(IPluginCreatorInterface):
    """Makes plugins of version 3."""

    _kind = "PLUGIN CREATOR_V3ONE"
    name: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""
    field_names: Any = PluginFieldCollection()

    def create_plugin(self, name: str, field_collection: PluginFieldCollection, phase: TensorRTPhase) -> IPluginV3 | None:
        """A plugin of those fields, for a build or for a run; None where that fails."""
        pure(IPluginCreatorV3One, "create_plugin")


class IPluginCreatorV3Quick(IPluginCreatorInterface):
    """Makes quickly deployable plugins."""

    _kind = "PLUGIN CREATOR_V3QUICK"
    name: str = ""
    plugin_version: str = "1"
    plugin_namespace: str = ""
    field_names: Any = PluginFieldCollection()

    def create_plugin(
        self, name: str, namespace: str, field_collection: PluginFieldCollection, phase: TensorRTPhase,
        quickPluginType: QuickPluginCreationRequest = QuickPluginCreationRequest.UNKNOWN,
    ) -> Any:  # fmt: skip
        """A plugin of those fields; the request says whether the compiled kernel or the Python function is wanted."""
        pure(IPluginCreatorV3Quick, "create_plugin")


# ---- resources ----


class IPluginResource(IVersionedInterface):
    """Something that plugins share by a key of the registry."""

    _kind = "IPluginResource"

    def clone(self) -> IPluginResource:
        """The object that the registry keeps; called for the first plugin that asks for the key."""
        pure(IPluginResource, "clone")

    def release(self) -> None:
        """Called when no plugin uses the resource any more."""
        pure(IPluginResource, "release")


class IPluginResourceContext:
    """What an execution context offers to its plugins."""

    def __init__(self, error_recorder: IErrorRecorder | None = None, gpu_allocator: IGpuAllocator | None = None) -> None:
        self._recorder, self._allocator = error_recorder, gpu_allocator

    @property
    def error_recorder(self) -> IErrorRecorder | None:
        """What is told of errors."""
        return self._recorder

    @property
    def gpu_allocator(self) -> IGpuAllocator | None:
        """What allocates the context's memory."""
        return self._allocator
