"""Layers that compute with a plugin of the client's."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    LayerType,
    NetworkDefinitionCreationFlag,
    PluginCapabilityType,
    QuickPluginCreationRequest,
)
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.tensor import ITensor


class _PluginLayer(ILayer):
    """A layer that holds a plugin."""

    __slots__ = ()

    @property
    def plugin(self) -> Any:
        """The plugin."""
        return self._record.values["plugin"]

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        # Most networks have no plugins, and need not import what runs them.
        lowering = importlib.import_module("dovetail.tensorrt.plugin_lowering")
        results: Sequence[Value] = lowering.lower(self, net, inputs)
        return results


class IPluginV2Layer(_PluginLayer):
    """A layer that holds an `IPluginV2`."""

    __slots__ = ()
    _layer_type, _label = LayerType.PLUGIN_V2, "PluginV2"


class IPluginV3Layer(_PluginLayer):
    """A layer that holds an `IPluginV3`; its last inputs are shape tensors, as many as `add_plugin_v3` was given."""

    __slots__ = ()
    _layer_type, _label = LayerType.PLUGIN_V3, "PluginV3"


class AddPlugins(NetworkBase):
    """The `add_*` methods of this family."""

    def add_plugin_v2(self, inputs: Sequence[ITensor | None], plugin: Any) -> IPluginV2Layer | None:
        """Compute with a plugin of the interfaces before version 3."""
        given = [None if t is None else expect(ITensor, t, "add_plugin_v2: inputs") for t in inputs]
        if not hasattr(plugin, "num_outputs"):
            raise TypeError(f"add_plugin_v2: plugin: got {plugin!r}, expected an IPluginV2")
        return self._add(IPluginV2Layer, given, outputs=int(plugin.num_outputs), plugin=plugin)

    def add_plugin_v3(self, inputs: Sequence[ITensor | None], shape_inputs: Sequence[ITensor], plugin: Any) -> IPluginV3Layer | None:
        """Compute with a plugin of interface version 3."""
        given = [None if t is None else expect(ITensor, t, "add_plugin_v3: inputs") for t in inputs]
        shapes = [expect(ITensor, t, "add_plugin_v3: shape_inputs") for t in shape_inputs]
        if not hasattr(plugin, "get_capability_interface"):
            raise TypeError(f"add_plugin_v3: plugin: got {plugin!r}, expected an IPluginV3")
        build = plugin.get_capability_interface(PluginCapabilityType.BUILD)
        if build is None:
            self._refuse("add_plugin_v3: got a plugin without a build capability, expected one; return it from get_capability_interface")
            return None
        return self._add(
            IPluginV3Layer, [*given, *shapes], outputs=int(build.num_outputs), plugin=plugin, shape_inputs=len(shapes)
        )

    def add_plugin(self, func: Any, aot: bool | None = None) -> IPluginV3Layer | None:
        """Add what `trt.plugin.op.<namespace>.<name>(...)` returned: inputs, shape inputs and a plugin, or what makes them.

        Args:
            func: a tuple, or a function of a `QuickPluginCreationRequest` that returns one.
            aot: whether the plugin must be one that is compiled ahead of time; default: as the network's flags prefer.
        """
        made = func
        if callable(func):
            made = func(self._plugin_request(aot))
        if not isinstance(made, tuple) or len(made) != 3:
            raise TypeError(f"add_plugin: got {made!r}, expected what an operator of tensorrt.plugin returns")
        return self.add_plugin_v3(*made)

    def _plugin_request(self, aot: bool | None) -> QuickPluginCreationRequest:
        if aot is not None:
            return QuickPluginCreationRequest.STRICT_AOT if aot else QuickPluginCreationRequest.STRICT_JIT
        if self.get_flag(NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS):
            return QuickPluginCreationRequest.PREFER_AOT
        if self.get_flag(NetworkDefinitionCreationFlag.PREFER_JIT_PYTHON_PLUGINS):
            return QuickPluginCreationRequest.PREFER_JIT
        return QuickPluginCreationRequest.UNKNOWN
