"""Layers that compute with a plugin of the client's."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from dovetail.core.errors import Error
from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    LayerType,
    NetworkDefinitionCreationFlag,
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


@functools.cache
def _with_shape_inputs(inputs: int, count: int) -> type[IPluginV3Layer]:
    """The layer's class where its last inputs decide shapes, which classes of layers say."""
    if not count:
        return IPluginV3Layer
    places = tuple(range(inputs, inputs + count))
    return type("IPluginV3Layer", (IPluginV3Layer,), {"__slots__": (), "__module__": __name__, "_shape_inputs": places})


class AddPlugins(NetworkBase):
    """The `add_*` methods of this family."""

    def add_plugin_v2(self, inputs: Sequence[ITensor | None], plugin: Any) -> IPluginV2Layer | None:
        """Compute with a plugin of the interfaces before version 3."""
        given = [None if t is None else expect(ITensor, t, "add_plugin_v2: inputs") for t in inputs]
        count = self._plugin_outputs(plugin, "add_plugin_v2: plugin")
        return None if count is None else self._add(IPluginV2Layer, given, outputs=count, plugin=plugin)

    def add_plugin_v3(self, inputs: Sequence[ITensor | None], shape_inputs: Sequence[ITensor], plugin: Any) -> IPluginV3Layer | None:
        """Compute with a plugin of interface version 3."""
        given = [None if t is None else expect(ITensor, t, "add_plugin_v3: inputs") for t in inputs]
        shapes = [expect(ITensor, t, "add_plugin_v3: shape_inputs") for t in shape_inputs]
        count = self._plugin_outputs(plugin, "add_plugin_v3: plugin")
        kind = _with_shape_inputs(len(given), len(shapes))
        return None if count is None else self._add(kind, [*given, *shapes], outputs=count, plugin=plugin, shape_inputs=len(shapes))

    def _plugin_outputs(self, plugin: Any, where: str) -> int | None:
        """How many outputs a plugin has; None, with a message, where its methods fail."""
        lowering = importlib.import_module("dovetail.tensorrt.plugin_lowering")
        try:
            count: int = lowering.output_count(plugin, where)
            return count
        except Error as error:
            self._refuse(f"{where}: {error}")
            return None

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
