"""One view of all kinds of plugin objects of clients: what a build asks of them, and what a run does.

Every call of a client's method goes through `Adapter.ask`, which names plugin and method where it raises or returns
something else than it should.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from dovetail.core.dims import Dim
from dovetail.core.errors import ModelError
from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.enums import DataType, PluginCapabilityType, TensorRTPhase
from dovetail.tensorrt.plugin_desc import DynamicPluginTensorDesc
from dovetail.tensorrt.plugin_expr import DimsExprs, IExprBuilder, exprs
from dovetail.tensorrt.plugin_fields import (
    PluginFieldCollection,
    collection,
    from_records,
    to_records,
)
from dovetail.tensorrt.plugin_v2 import (
    IPluginCreator,
    IPluginV2,
    IPluginV2DynamicExt,
    IPluginV2Ext,
    IPluginV2IOExt,
    as_bytes,
)
from dovetail.tensorrt.plugin_v3 import (
    IPluginCreatorInterface,
    IPluginCreatorV3One,
    IPluginCreatorV3Quick,
    IPluginResourceContext,
    IPluginV3,
    IPluginV3OneBuild,
    IPluginV3OneCore,
    IPluginV3OneRuntime,
    IPluginV3QuickBuild,
    IPluginV3QuickCore,
    IPluginV3QuickRuntime,
)

Descs = Sequence[DynamicPluginTensorDesc]
State = dict[str, Any]
"""What a plugin is made again from: attributes of a plugin call."""


class Adapter(ABC):
    """A plugin object of a client.

    Attributes:
        plugin: the client's object.
        key: name, version, namespace.
        outputs: how many outputs it has.
        fixed: whether it takes fixed shapes only.
        batched: whether the leading extent is an implicit batch, of which the plugin is not told.
    """

    fixed: ClassVar[bool] = False
    batched: bool = False

    def __init__(self, plugin: Any, key: tuple[Any, Any, Any], outputs: Any) -> None:
        self.plugin = plugin
        self.key: tuple[str, str, str] = (str(key[0]), str(key[1]), str(key[2] or ""))
        if not isinstance(outputs, int) or isinstance(outputs, bool) or outputs < 1:
            raise ModelError(f"plugin {self.key[0]}: num_outputs: got {outputs!r}, expected a number from 1")
        if not self.key[0]:
            wanted = "plugin_name (version 3) or plugin_type (version 2)"
            raise ModelError(f"plugin {type(plugin).__name__}: got no name, expected {wanted} to be set")
        self.outputs = outputs

    def ask(self, method: str, function: Callable[..., Any], *args: Any) -> Any:
        """What a client's method returns.

        Raises:
            ModelError: it raised.
        """
        try:
            return function(*args)
        except Exception as error:
            raise ModelError(f"plugin {self.key[0]}: {method}: Exception caught in {method}(): {type(error).__name__}: {error}") from error

    def wrong(self, method: str, got: Any, expected: str) -> ModelError:
        """The error about a result of a wrong type."""
        return ModelError(f"plugin {self.key[0]}: {method}: got {got!r} from the plugin, expected {expected}")

    # ---- the build ----
    def rank(self, ranks: list[int]) -> None:  # noqa: B027  # most kinds have no use for it
        """Tell a plugin that wants to know them the ranks of its inputs, ahead of `types`."""

    @abstractmethod
    def types(self, inputs: list[DataType]) -> list[DataType]:
        """The element types of outputs."""

    @abstractmethod
    def shapes(self, inputs: list[DimsExprs], values: list[DimsExprs], builder: IExprBuilder) -> list[DimsExprs]:
        """The shapes of outputs, from shapes of inputs and values of shape inputs."""

    @abstractmethod
    def supports(self, position: int, tensors: Descs, inputs: int) -> bool:
        """Whether a tensor may be as described."""

    @abstractmethod
    def configure(self, inputs: Descs, outputs: Descs) -> None:
        """Tell the plugin what was chosen."""

    def tactics(self) -> list[int]:
        """Numbers of its tactics."""
        return []

    def aliases(self) -> dict[int, int]:
        """Outputs that share memory with an input."""
        return {}

    def choose(self, tactic: int) -> None:  # noqa: B027  # most kinds have no tactics
        """Set the tactic; 0 for none."""

    def clone(self) -> Adapter:
        """A copy of the plugin."""
        copy = self.ask("clone", self.plugin.clone)
        if not isinstance(copy, type(self.plugin)):
            raise self.wrong("clone", copy, f"a {type(self.plugin).__name__}")
        return adapt(copy)

    @abstractmethod
    def state(self) -> State:
        """What the creator makes the plugin again from."""

    # ---- the run ----
    @abstractmethod
    def attach(self, tactic: int) -> Adapter:
        """The plugin for one context, ready to run: itself, or a clone."""

    @abstractmethod
    def reshape(self, inputs: Descs, outputs: Descs) -> int:
        """Tell the plugin the shapes of the next runs; the bytes of scratch memory that it wants."""

    @abstractmethod
    def enqueue(self, inputs: Descs, outputs: Descs, sources: list[int], targets: list[int], workspace: int, stream: int) -> None:
        """Run."""

    def close(self) -> None:
        """The plugin is not used any more."""
        destroy = getattr(self.plugin, "destroy", None)
        if destroy is not None:
            self.ask("destroy", destroy)

    def _data_types(self, method: str, found: Any) -> list[DataType]:
        listed = list(found) if isinstance(found, (list, tuple)) else None
        if listed is None or len(listed) != self.outputs or not all(isinstance(t, DataType) for t in listed):
            raise self.wrong(method, found, f"a list of {self.outputs} DataType")
        return listed

    def _flag(self, found: Any) -> bool:
        if type(found).__name__ not in ("bool", "bool_"):
            raise self.wrong("supports_format_combination", found, "a bool")
        return bool(found)

    def _bytes(self, found: Any) -> int:
        if found is None or isinstance(found, bool) or not hasattr(found, "__index__") or int(found) < 0:
            raise self.wrong("get_workspace_size", found, "a number of bytes")
        return int(found)


class _V3(Adapter):
    """An `IPluginV3`."""

    def __init__(self, plugin: IPluginV3) -> None:
        self.key, self.plugin = (type(plugin).__name__, "", ""), plugin
        core = self._capability(PluginCapabilityType.CORE, IPluginV3OneCore, IPluginV3QuickCore)
        self._build_part: IPluginV3OneBuild | None = None
        if core is None:
            raise self.wrong("get_capability_interface", core, "an IPluginV3OneCore")
        key = core.plugin_name, core.plugin_version, core.plugin_namespace
        self._build_part = self._capability(PluginCapabilityType.BUILD, IPluginV3OneBuild, IPluginV3QuickBuild)
        super().__init__(plugin, key, 1 if self._build_part is None else self._build_part.num_outputs)
        running = self._capability(PluginCapabilityType.RUNTIME, IPluginV3OneRuntime, IPluginV3QuickRuntime)
        self._runtime_part: IPluginV3OneRuntime | None = running

    def _capability(self, kind: PluginCapabilityType, *wanted: type) -> Any:
        found = self.ask("get_capability_interface", self.plugin.get_capability_interface, kind)
        if found is not None and not isinstance(found, wanted):
            raise self.wrong("get_capability_interface", found, f"an {wanted[0].__name__} for {kind.name}")
        return found

    @property
    def build(self) -> IPluginV3OneBuild:
        if self._build_part is None:
            raise self.wrong("get_capability_interface", None, "an IPluginV3OneBuild for BUILD")
        return self._build_part

    def rank(self, ranks: list[int]) -> None:
        if isinstance(self.plugin, IPluginV3QuickCore):
            self.plugin.input_ranks = ranks  # type: ignore[attr-defined]  # of `plugin.template.QuickPlugin`

    def types(self, inputs: list[DataType]) -> list[DataType]:
        return self._data_types("get_output_data_types", self.ask("get_output_data_types", self.build.get_output_data_types, inputs))

    def shapes(self, inputs: list[DimsExprs], values: list[DimsExprs], builder: IExprBuilder) -> list[DimsExprs]:
        found = self.ask("get_output_shapes", self.build.get_output_shapes, inputs, values, builder)
        if not isinstance(found, (list, tuple)) or len(found) != self.outputs or not all(isinstance(s, DimsExprs) for s in found):
            raise self.wrong("get_output_shapes", found, f"a list of {self.outputs} DimsExprs")
        return list(found)

    def supports(self, position: int, tensors: Descs, inputs: int) -> bool:
        return self._flag(self.ask("supports_format_combination", self.build.supports_format_combination, position, list(tensors), inputs))

    def configure(self, inputs: Descs, outputs: Descs) -> None:
        self.ask("configure_plugin", self.build.configure_plugin, list(inputs), list(outputs))

    def tactics(self) -> list[int]:
        found = self.ask("get_valid_tactics", self.build.get_valid_tactics)
        numbers = [int(t) for t in found] if isinstance(found, (list, tuple)) else None
        if numbers is None or len(set(numbers)) != len(numbers) or any(t < 1 for t in numbers):
            raise self.wrong("get_valid_tactics", found, "a list of different numbers from 1")
        return numbers

    def aliases(self) -> dict[int, int]:
        aliased = getattr(self.build, "get_aliased_input", None)
        if aliased is None:
            return {}
        found = {i: self.ask("get_aliased_input", aliased, i) for i in range(self.outputs)}
        if any(not isinstance(i, int) or isinstance(i, bool) for i in found.values()):
            raise self.wrong("get_aliased_input", list(found.values()), "indices of inputs, -1 for none")
        return {output: i for output, i in found.items() if i >= 0}

    def state(self) -> State:
        found = self.ask("get_fields_to_serialize", self._running.get_fields_to_serialize)
        if not isinstance(found, (list, tuple)):
            raise self.wrong("get_fields_to_serialize", found, "a PluginFieldCollection")
        return {"fields": to_records(collection(found, "get_fields_to_serialize"))}

    @property
    def _running(self) -> IPluginV3OneRuntime:
        if self._runtime_part is None:
            raise self.wrong("get_capability_interface", None, "an IPluginV3OneRuntime for RUNTIME")
        return self._runtime_part

    def attach(self, tactic: int) -> Adapter:
        found = self.ask("attach_to_context", self._running.attach_to_context, IPluginResourceContext())
        if not isinstance(found, IPluginV3):
            raise self.wrong("attach_to_context", found, "a clone of the plugin")
        made = _V3(found)
        made.choose(tactic)
        return made

    def choose(self, tactic: int) -> None:
        self.ask("set_tactic", self._running.set_tactic, tactic)

    def reshape(self, inputs: Descs, outputs: Descs) -> int:
        static = [d.desc for d in inputs], [d.desc for d in outputs]
        self.ask("on_shape_change", self._running.on_shape_change, *static)
        if self._build_part is None:
            return 0
        return self._bytes(self.ask("get_workspace_size", self._build_part.get_workspace_size, list(inputs), list(outputs)))

    def enqueue(self, inputs: Descs, outputs: Descs, sources: list[int], targets: list[int], workspace: int, stream: int) -> None:
        static = [d.desc for d in inputs], [d.desc for d in outputs]
        self.ask("enqueue", self._running.enqueue, *static, sources, targets, workspace, stream)


class _V2Dynamic(Adapter):
    """An `IPluginV2DynamicExt`."""

    plugin: IPluginV2DynamicExt

    def __init__(self, plugin: IPluginV2) -> None:
        super().__init__(plugin, (plugin.plugin_type, plugin.plugin_version, plugin.plugin_namespace), plugin.num_outputs)

    def types(self, inputs: list[DataType]) -> list[DataType]:
        found = [self.ask("get_output_datatype", self.plugin.get_output_datatype, i, inputs) for i in range(self.outputs)]
        return self._data_types("get_output_datatype", found)

    def shapes(self, inputs: list[DimsExprs], values: list[DimsExprs], builder: IExprBuilder) -> list[DimsExprs]:
        found = [self.ask("get_output_dimensions", self.plugin.get_output_dimensions, i, inputs, builder) for i in range(self.outputs)]
        if not all(isinstance(s, DimsExprs) for s in found):
            raise self.wrong("get_output_dimensions", found, "DimsExprs")
        return found

    def supports(self, position: int, tensors: Descs, inputs: int) -> bool:
        described = [d.desc for d in tensors]
        return self._flag(self.ask("supports_format_combination", self.plugin.supports_format_combination, position, described, inputs))

    def configure(self, inputs: Descs, outputs: Descs) -> None:
        self.ask("configure_plugin", self.plugin.configure_plugin, list(inputs), list(outputs))

    def state(self) -> State:
        return {"data": np.frombuffer(self.ask("serialize", lambda: as_bytes(self.plugin.serialize())), np.uint8)}

    def attach(self, tactic: int) -> Adapter:
        status = self.ask("initialize", self.plugin.initialize)
        if status not in (None, 0):
            raise self.wrong("initialize", status, "0")
        return self

    def reshape(self, inputs: Descs, outputs: Descs) -> int:
        self.configure(inputs, outputs)
        described = [d.desc for d in inputs], [d.desc for d in outputs]
        return self._bytes(self.ask("get_workspace_size", self.plugin.get_workspace_size, *described))

    def enqueue(self, inputs: Descs, outputs: Descs, sources: list[int], targets: list[int], workspace: int, stream: int) -> None:
        described = [d.desc for d in inputs], [d.desc for d in outputs]
        self.ask("enqueue", self.plugin.enqueue, *described, sources, targets, workspace, stream)

    def close(self) -> None:
        self.ask("terminate", self.plugin.terminate)
        super().close()


class _V2Fixed(Adapter):
    """An `IPluginV2`, `IPluginV2Ext` or `IPluginV2IOExt`: shapes are numbers; the leading one of implicit batches is hidden."""

    fixed = True
    plugin: Any

    def __init__(self, plugin: IPluginV2) -> None:
        super().__init__(plugin, (plugin.plugin_type, plugin.plugin_version, plugin.plugin_namespace), plugin.num_outputs)

    def types(self, inputs: list[DataType]) -> list[DataType]:
        if not isinstance(self.plugin, IPluginV2Ext):
            return [inputs[0] if inputs else DataType.FLOAT] * self.outputs
        found = [self.ask("get_output_data_type", self.plugin.get_output_data_type, i, inputs) for i in range(self.outputs)]
        return self._data_types("get_output_data_type", found)

    def shapes(self, inputs: list[DimsExprs], values: list[DimsExprs], builder: IExprBuilder) -> list[DimsExprs]:
        skip = 1 if self.batched else 0
        known = [[e.get_constant_value() for e in shape][skip:] for shape in inputs]
        if any(not e.is_constant() for shape in inputs for e in list(shape)[skip:]):
            raise ModelError(
                f"plugin {self.key[0]}: got inputs of shapes {inputs}, expected fixed shapes; make it an IPluginV2DynamicExt or IPluginV3"
            )
        made = []
        for i in range(self.outputs):
            found = self.ask("get_output_shape", self.plugin.get_output_shape, i, [Dims(s) for s in known])
            if not isinstance(found, (Dims, tuple, list)):
                raise self.wrong("get_output_shape", found, "Dims")
            lead: list[Dim] = [inputs[0][0]._dim] if self.batched else []
            made.append(exprs([*lead, *(int(d) for d in found)]))
        return made

    def supports(self, position: int, tensors: Descs, inputs: int) -> bool:
        static = [d.desc for d in tensors]
        if isinstance(self.plugin, IPluginV2IOExt):
            ask = self.plugin.supports_format_combination
            return self._flag(self.ask("supports_format_combination", ask, position, static, inputs, len(tensors) - inputs))
        one = static[position]
        if isinstance(self.plugin, IPluginV2Ext) and one.format is not static[0].format:
            return False
        return self._flag(self.ask("supports_format", self.plugin.supports_format, one.type, one.format))

    def configure(self, inputs: Descs, outputs: Descs) -> None:
        ins, outs = ([d.desc for d in side] for side in (inputs, outputs))
        if isinstance(self.plugin, IPluginV2IOExt):
            self.ask("configure_plugin", self.plugin.configure_plugin, ins, outs)
            return
        skip, first = (1 if self.batched else 0), (ins or outs)[0]
        shapes = [[Dims(list(d.dims)[skip:]) for d in side] for side in (ins, outs)]
        most = max(1, inputs[0].max[0]) if self.batched and inputs else 1
        if isinstance(self.plugin, IPluginV2Ext):
            types = [[d.type for d in side] for side in (ins, outs)]
            broadcast = [False] * len(ins), [False] * len(outs)
            self.ask("configure_plugin", self.plugin.configure_plugin, *shapes, *types, *broadcast, first.format, most)
        else:
            self.ask("configure_with_format", self.plugin.configure_with_format, *shapes, first.type, first.format, most)

    def state(self) -> State:
        return {"data": np.frombuffer(self.ask("serialize", lambda: as_bytes(self.plugin.serialize())), np.uint8)}

    def attach(self, tactic: int) -> Adapter:
        status = self.ask("initialize", self.plugin.initialize)
        if status not in (None, 0):
            raise self.wrong("initialize", status, "0")
        if isinstance(self.plugin, IPluginV2Ext):
            self.ask("attach_to_context", self.plugin.attach_to_context, 0, 0, None)
        return self

    def reshape(self, inputs: Descs, outputs: Descs) -> int:
        return self._bytes(self.ask("get_workspace_size", self.plugin.get_workspace_size, self._batch(inputs)))

    def _batch(self, inputs: Descs) -> int:
        return inputs[0].desc.dims[0] if self.batched and inputs else 1

    def enqueue(self, inputs: Descs, outputs: Descs, sources: list[int], targets: list[int], workspace: int, stream: int) -> None:
        status = self.ask("execute_async", self.plugin.execute_async, self._batch(inputs), sources, targets, workspace, stream)
        if status not in (None, 0):
            raise self.wrong("execute_async", status, "0")

    def close(self) -> None:
        if isinstance(self.plugin, IPluginV2Ext):
            self.ask("detach_from_context", self.plugin.detach_from_context)
        self.ask("terminate", self.plugin.terminate)
        super().close()


def adapt(plugin: Any) -> Adapter:
    """The view of a plugin object.

    Raises:
        ModelError: a plugin without name or outputs, or whose capabilities fail.
        TypeError: no plugin.
    """
    if isinstance(plugin, IPluginV3):
        return _V3(plugin)
    if isinstance(plugin, IPluginV2DynamicExt):
        return _V2Dynamic(plugin)
    if isinstance(plugin, IPluginV2):
        return _V2Fixed(plugin)
    raise TypeError(f"plugin: got {type(plugin).__name__}, expected an IPluginV3 or IPluginV2")


def create(creator: Any, layer: str, namespace: str, fields: PluginFieldCollection) -> Any:
    """The plugin object that a creator makes of fields, for a build.

    Raises:
        ModelError: the creator raised, or made nothing.
    """
    try:
        if isinstance(creator, IPluginCreator):
            made: Any = creator.create_plugin(layer, fields)
        elif isinstance(creator, IPluginCreatorV3Quick):
            made = creator.create_plugin(creator.name, namespace, fields, TensorRTPhase.BUILD)
        else:
            made = creator.create_plugin(layer, fields, TensorRTPhase.BUILD)
    except Exception as error:
        raise ModelError(f"plugin {creator.name}: its creator failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, (IPluginV2, IPluginV3)):
        raise ModelError(f"plugin {creator.name}: got {made!r} from its creator, expected a plugin")
    return made


def remake(creator: IPluginCreatorInterface, layer: str, namespace: str, state: State) -> Adapter:
    """The plugin that a creator makes of what `Adapter.state` gave, for runs.

    Raises:
        ModelError: the creator raised, or made nothing.
    """
    made: Any
    name = creator.name
    try:
        if isinstance(creator, IPluginCreator):
            made = creator.deserialize_plugin(layer, bytes(state["data"]))
        elif isinstance(creator, IPluginCreatorV3Quick):
            made = creator.create_plugin(name, namespace, from_records(state["fields"]), TensorRTPhase.RUNTIME)
        elif isinstance(creator, IPluginCreatorV3One):
            made = creator.create_plugin(layer, from_records(state["fields"]), TensorRTPhase.RUNTIME)
        else:
            raise TypeError(f"a {type(creator).__name__} makes no plugins")
    except Exception as error:
        raise ModelError(f"plugin {name}: its creator failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, (IPluginV2, IPluginV3)):
        raise ModelError(f"plugin {name}: got {made!r} from its creator, expected a plugin")
    return adapt(made)
