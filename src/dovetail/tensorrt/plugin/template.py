"""The plugin objects behind decorated functions, and their creator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail.tensorrt.enums import (
    DataType,
    PluginCapabilityType,
    PluginFieldType,
    QuickPluginCreationRequest,
    TensorFormat,
    TensorRTPhase,
)
from dovetail.tensorrt.plugin.attributes import decoded, encoded
from dovetail.tensorrt.plugin.compiled import CompiledKernel
from dovetail.tensorrt.plugin.shapes import BUILDER, Shape, ShapeExpr, ShapeExprs
from dovetail.tensorrt.plugin.tensors import Tensor, TensorDesc, dense_strides
from dovetail.tensorrt.plugin.tuning import Combination
from dovetail.tensorrt.plugin_desc import DynamicPluginTensorDesc, PluginTensorDesc
from dovetail.tensorrt.plugin_expr import DimsExprs, IExprBuilder
from dovetail.tensorrt.plugin_fields import PluginField, PluginFieldCollection
from dovetail.tensorrt.plugin_v3 import (
    IPluginCreatorV3Quick,
    IPluginResourceContext,
    IPluginV3,
    IPluginV3QuickAOTBuild,
    IPluginV3QuickBuild,
    IPluginV3QuickCore,
    IPluginV3QuickRuntime,
)

_KERNEL = "dovetail.kernel"
"""The field that a compiled kernel is serialized in."""


class QuickPlugin(IPluginV3, IPluginV3QuickCore, IPluginV3QuickRuntime):
    """A plugin of decorated functions; what it does follows from its definition (`definitions.Definition`)."""

    _kind = "PLUGIN_V3QUICK"

    def __init__(self, definition: Any, attributes: dict[str, Any]) -> None:
        self.definition, self.attributes = definition, attributes
        self.plugin_name, self.plugin_namespace, self.plugin_version = definition.name, definition.namespace, "1"
        self.num_outputs: int = definition.outputs
        self.input_ranks: list[int] = []
        self._types: list[DataType] = []
        self._inputs: list[TensorDesc] = []
        self._outputs: list[TensorDesc] = []
        self._aliases: list[int] = []
        self._offered: list[Combination] | None = None
        self._chosen: tuple[tuple[DataType, ...], tuple[TensorFormat, ...]] | None = None
        self._tactic = 0

    def get_capability_interface(self, type: PluginCapabilityType) -> Any:
        """The plugin itself."""
        return self

    def clone(self) -> QuickPlugin:
        """A copy."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def attach_to_context(self, resource_context: IPluginResourceContext) -> QuickPlugin:
        """A copy."""
        return self.clone()

    # ---- types and shapes ----
    def _described(self, shapes: Sequence[ShapeExprs]) -> tuple[list[TensorDesc], list[TensorDesc]]:
        """Inputs and outputs as the registered function has them."""
        inputs = []
        for shape, kind in zip(shapes, self._types, strict=True):
            made = TensorDesc(shape, kind)
            made._immutable = True
            inputs.append(made)
        found = self.definition.describe(*inputs, **self.attributes)
        outputs = list(found) if isinstance(found, (tuple, list)) else [found]
        if len(outputs) != self.num_outputs or not all(isinstance(o, TensorDesc) for o in outputs):
            raise TypeError(f"got {found!r}, expected {self.num_outputs} TensorDesc as the annotation of the function says")
        for index, output in enumerate(outputs):
            if output.is_size_tensor:
                output._set_index(index)
        places = {id(t): i for i, t in enumerate(inputs)}
        self._aliases = [places.get(id(o.get_aliased()), -1) for o in outputs]
        return inputs, outputs

    def get_output_data_types(self, input_types: list[DataType]) -> list[DataType]:
        """Those of the tensors that the registered function returns."""
        self._types = list(input_types)
        return [o.dtype for o in self._described([ShapeExprs(rank, _is_dummy=True) for rank in self.input_ranks])[1]]

    def get_output_shapes(self, inputs: list[DimsExprs], shape_inputs: list[DimsExprs], expr_builder: IExprBuilder) -> list[DimsExprs]:
        """Those of the tensors that the registered function returns."""
        token = BUILDER.set(expr_builder)
        try:
            self._inputs, self._outputs = self._described([ShapeExprs.from_tuple(ShapeExpr(e) for e in shape) for shape in inputs])
            return [DimsExprs(e._expr for e in o.shape_expr) for o in self._outputs]
        finally:
            BUILDER.reset(token)

    def get_aliased_input(self, output_index: int) -> int:
        """The input whose memory an output shares."""
        return self._aliases[output_index]

    # ---- formats and tactics ----
    def _combinations(self, in_out: list[DynamicPluginTensorDesc], num_inputs: int) -> list[Combination]:
        if self._offered is None:
            offered = None
            tensors = [*self._inputs, *self._outputs]
            if self.definition.autotune is not None:
                for tensor, described in zip(tensors, in_out, strict=True):
                    tensor._immutable = False
                    tensor.shape, tensor.format, tensor.scale = Shape(described), TensorFormat.LINEAR, described.desc.scale
                    tensor._immutable = True
                chosen = self.definition.selected(self.definition.autotune, self.attributes)
                offered = self.definition.autotune(*self._inputs, *chosen, tuple(self._outputs))
            if offered:
                self._offered = [c for several in offered for c in several.combinations(len(tensors))]
            else:
                self._offered = [Combination(tuple(t.dtype for t in tensors), (TensorFormat.LINEAR,) * len(tensors), ())]
        return self._offered

    def supports_format_combination(self, pos: int, in_out: list[DynamicPluginTensorDesc], num_inputs: int) -> bool:
        """Whether some combination begins with the tensors up to `pos`."""
        types = tuple(d.desc.type for d in in_out[: pos + 1])
        formats = tuple(d.desc.format for d in in_out[: pos + 1])
        offered = self._combinations(in_out, num_inputs)
        return any(c.types[: pos + 1] == types and c.formats[: pos + 1] == formats for c in offered)

    def configure_plugin(self, in_: list[DynamicPluginTensorDesc], out: list[DynamicPluginTensorDesc]) -> None:
        """Take note of the combination that was chosen."""
        tensors = [d.desc for d in (*in_, *out)]
        self._chosen = tuple(d.type for d in tensors), tuple(d.format for d in tensors)

    def get_workspace_size(self, in_: list[DynamicPluginTensorDesc], out: list[DynamicPluginTensorDesc]) -> int:
        """None."""
        return 0

    def get_valid_tactics(self) -> list[int]:
        """Those of the combination that was chosen."""
        found = [t for c in self._offered or () if (c.types, c.formats) == self._chosen for t in c.tactics]
        return list(dict.fromkeys(found))

    def set_tactic(self, tactic: int) -> None:
        """Take a tactic."""
        self._tactic = tactic

    def on_shape_change(self, in_: list[PluginTensorDesc], out: list[PluginTensorDesc]) -> None:
        """Nothing to do."""


class JITPlugin(QuickPlugin, IPluginV3QuickBuild):
    """A plugin that calls the Python function of `impl`."""

    def get_fields_to_serialize(self) -> PluginFieldCollection:
        """The attributes that the function takes."""
        return encoded({name: self.attributes[name] for name in self.definition.taken(self.definition.impl)})

    def enqueue(
        self, input_desc: list[PluginTensorDesc], output_desc: list[PluginTensorDesc],
        inputs: list[int], outputs: list[int], workspace: int, stream: int,
    ) -> None:  # fmt: skip
        """Call the function."""
        sources = [_tensor(d, address, stream) for d, address in zip(input_desc, inputs, strict=True)]
        results = [_tensor(d, address, stream) for d, address in zip(output_desc, outputs, strict=True)]
        # Which outputs share memory is plain from their addresses, also where the plugin was made for a run.
        for result in results:
            for source in sources:
                if result.data_ptr == source.data_ptr:
                    result._aliased_to, source._aliased_to = source, result
        for tensor in (*sources, *results):
            tensor._immutable = True
        function: Callable[..., Any] = self.definition.impl
        given = self.definition.selected(function, self.attributes)
        more = {"tactic": self._tactic} if self.definition.wants_tactic(function) else {}
        function(*sources, *given, tuple(results), stream=stream, **more)


class AOTPlugin(QuickPlugin, IPluginV3QuickAOTBuild):
    """A plugin that launches the kernel that the function of `aot_impl` gave; on a GPU."""

    kernel: CompiledKernel | None = None

    def get_fields_to_serialize(self) -> PluginFieldCollection:
        """The compiled kernel."""
        if self.kernel is None:
            function: Callable[..., Any] = self.definition.aot_impl
            given = self.definition.selected(function, self.attributes)
            more = {"tactic": self._tactic} if self.definition.wants_tactic(function) else {}
            self.kernel = CompiledKernel.of(function(*self._inputs, *given, tuple(self._outputs), **more))
        data = self.kernel.to_bytes()
        return PluginFieldCollection([PluginField(_KERNEL, data, PluginFieldType.UNKNOWN)])

    def enqueue(
        self, input_desc: list[PluginTensorDesc], output_desc: list[PluginTensorDesc],
        inputs: list[int], outputs: list[int], workspace: int, stream: int,
    ) -> None:  # fmt: skip
        """Launch the kernel."""
        if self.kernel is None:
            raise RuntimeError("the plugin was not made of an engine's field")
        self.kernel.launch([tuple(d.dims) for d in input_desc], inputs, outputs, stream)


def _tensor(described: PluginTensorDesc, address: int, stream: int) -> Tensor:
    made = Tensor()
    made.data_ptr, made.shape, made.dtype, made._stream = address, Shape(described), described.type, stream
    made.format, made.scale = described.format, described.scale
    shape = tuple(described.dims)
    if described.format in (TensorFormat.HWC, TensorFormat.DHWC):
        axis = len(shape) - (3 if described.format is TensorFormat.HWC else 4)
        order = [*range(axis), *range(axis + 1, len(shape)), axis]
        dense = dense_strides(tuple(shape[i] for i in order))
        made.strides = tuple(int(s) for s in np.array(dense)[np.argsort(order)])
    else:
        made.strides = dense_strides(shape)
    return made


class QuickCreator(IPluginCreatorV3Quick):
    """Makes the plugins of one definition."""

    def __init__(self, definition: Any) -> None:
        self.definition = definition
        self.name, self.plugin_namespace, self.plugin_version = definition.name, definition.namespace, "1"
        self.field_names = definition.field_names()

    def create_plugin(
        self, name: str, namespace: str, field_collection: PluginFieldCollection, phase: TensorRTPhase,
        quickPluginType: QuickPluginCreationRequest = QuickPluginCreationRequest.UNKNOWN,
    ) -> QuickPlugin:  # fmt: skip
        """A plugin of the attributes in the fields.

        Raises:
            ValueError: there is no function of the kind that is asked for, or there are both and none is preferred.
        """
        kernel = next((f for f in field_collection if f.name == _KERNEL), None)
        if kernel is not None:
            compiled = AOTPlugin(self.definition, {})
            compiled.kernel = CompiledKernel.from_bytes(kernel.data.tobytes())
            return compiled
        attributes = decoded(field_collection, self.definition.attributes)
        if phase is TensorRTPhase.RUNTIME:
            return JITPlugin(self.definition, attributes)
        return (AOTPlugin if self._ahead_of_time(quickPluginType) else JITPlugin)(self.definition, attributes)

    def _ahead_of_time(self, request: QuickPluginCreationRequest) -> bool:
        wanted = {
            QuickPluginCreationRequest.STRICT_AOT: True, QuickPluginCreationRequest.STRICT_JIT: False,
        }.get(request)  # fmt: skip
        has = {True: self.definition.aot_impl is not None, False: self.definition.impl is not None}
        where = f"{self.plugin_namespace}::{self.name}"
        names = {True: "aot_impl", False: "impl"}
        if wanted is not None:
            if not has[wanted]:
                raise ValueError(f"{where}: got {request.name}, expected a function of {names[wanted]}; define one")
            return wanted
        if all(has.values()):
            if request is QuickPluginCreationRequest.UNKNOWN:
                raise ValueError(
                    f"{where}: got functions of both impl and aot_impl, expected one that is preferred: say aot=True or aot=False, or "
                    "create the network with PREFER_AOT_PYTHON_PLUGINS or PREFER_JIT_PYTHON_PLUGINS"
                )
            return request is QuickPluginCreationRequest.PREFER_AOT
        if not any(has.values()):
            raise ValueError(f"{where}: got no function that runs it, expected one of tensorrt.plugin.impl or aot_impl; define one")
        return has[True]
