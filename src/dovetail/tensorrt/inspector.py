"""`EngineInspector`: the layers of an engine, in TensorRT's words and JSON."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

from dovetail.core.dims import Expr, evaluate, symbols
from dovetail.core.errors import Error
from dovetail.tensorrt.context import IExecutionContext
from dovetail.tensorrt.dtypes import to_data_type
from dovetail.tensorrt.engine import ICudaEngine, format_text
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    ErrorCodeTRT,
    LayerInformationFormat,
    ProfilingVerbosity,
    TensorFormat,
)
from dovetail.tensorrt.hooks import recorder_property
from dovetail.tensorrt.layer_list import EngineLayer
from dovetail.tensorrt.logger import Reporter
from dovetail.view.steps import TensorInfo


class EngineInspector:
    """Tells the layers of an engine; with a context, their shapes as well. Made by `ICudaEngine.create_engine_inspector`."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._context: IExecutionContext | None = None
        self._reporter = Reporter(engine._reporter.logger, engine._reporter.recorder)

    @property
    def execution_context(self) -> IExecutionContext | None:
        """The context whose shapes are told; None at first."""
        return self._context

    @execution_context.setter
    def execution_context(self, context: IExecutionContext | None) -> None:
        if context is not None and expect(IExecutionContext, context, "EngineInspector.execution_context").engine is not self._engine:
            self._reporter.error(
                "EngineInspector.execution_context: got a context of another engine, expected one of the inspected engine",
                ErrorCodeTRT.INVALID_ARGUMENT,
            )
            return
        self._context = context

    error_recorder = recorder_property("EngineInspector", "Where errors are recorded; the engine's at first.")

    def get_layer_information(self, layer_index: int, format: LayerInformationFormat) -> str:
        """A layer in one line or as JSON; an empty text and an error in the log beyond the last."""
        kind = expect(LayerInformationFormat, format, "EngineInspector.get_layer_information: format")
        count = self._engine.num_layers
        if not 0 <= expect(int, layer_index, "EngineInspector.get_layer_information: layer_index") < count:
            self._reporter.error(
                f"EngineInspector.get_layer_information: got the layer {layer_index}, expected 0 to {count - 1}",
                ErrorCodeTRT.INVALID_ARGUMENT,
            )
            return ""
        layers = self._engine._engine_layers()
        profile, index = divmod(layer_index, len(layers))
        sizes = self._sizes()
        if kind is LayerInformationFormat.ONELINE:
            return self._line(layers[index], profile, sizes)
        return json.dumps(self._data(layers[index], profile, sizes), indent=2)

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        """All layers and bindings, in lines or as JSON."""
        kind = expect(LayerInformationFormat, format, "EngineInspector.get_engine_information: format")
        layers, profiles, sizes = self._engine._engine_layers(), range(self._engine.num_optimization_profiles), self._sizes()
        bindings = list(self._engine)
        if kind is LayerInformationFormat.JSON:
            data = [self._data(layer, profile, sizes) for profile in profiles for layer in layers]
            return json.dumps({"Layers": data, "Bindings": bindings}, indent=2)
        lines = [self._line(layer, profile, sizes) for profile in profiles for layer in layers]
        return "\n".join(["Layers:", *lines, "", "Bindings:", *bindings, ""])

    def _sizes(self) -> dict[str, int]:
        """Values of the symbols that the context's shapes define."""
        context = self._context
        if context is None:
            return {}
        try:
            return self._engine._engine.shape_inference.sizes(context._whole_shapes(), context._values)
        except Error as error:
            self._reporter.error(f"EngineInspector: {error}", ErrorCodeTRT.INVALID_STATE)
            return {}

    def _line(self, layer: EngineLayer, profile: int, sizes: dict[str, int]) -> str:
        name = _name(layer, profile)
        if self._engine.profiling_verbosity is not ProfilingVerbosity.DETAILED:
            return name if self._engine.profiling_verbosity is ProfilingVerbosity.LAYER_NAMES_ONLY else ""

        def tensors(infos: Sequence[TensorInfo]) -> str:
            return ", ".join(f"{t.name} ({t.dtype}[{','.join(map(str, _extents(t, sizes)))}])" for t in infos)

        tactic = f"Tactic: {_tactic_value(layer)}, {layer.step.tactic}"
        return f"Layer({layer.type}): {name}, {tactic}, {tensors(layer.step.inputs)} -> {tensors(layer.step.outputs)}"

    def _data(self, layer: EngineLayer, profile: int, sizes: dict[str, int]) -> Any:
        verbosity = self._engine.profiling_verbosity
        if verbosity is not ProfilingVerbosity.DETAILED:
            return _name(layer, profile) if verbosity is ProfilingVerbosity.LAYER_NAMES_ONLY else ""
        step = layer.step
        return {
            "Name": _name(layer, profile),
            "LayerType": layer.type,
            "Inputs": [_tensor(t, sizes) for t in step.inputs],
            "Outputs": [_tensor(t, sizes) for t in step.outputs],
            "ParameterType": layer.type,
            "Origin": layer.type.upper(),
            "Ops": list(step.ops),
            "TacticName": f"{step.tactic}: {step.kernel}" if step.kind == "kernel" else f"{step.tactic} ({step.kind})",
            "TacticValue": _tactic_value(layer),
            "StreamId": step.lane,
            "Metadata": layer.metadata,
        }


def _name(layer: EngineLayer, profile: int) -> str:
    return f"{layer.name} [profile {profile}]" if profile else layer.name


def _tactic_value(layer: EngineLayer) -> str:
    return f"0x{zlib.crc32(f'{layer.step.tactic} {layer.step.kernel}'.encode()):016x}"


def _tensor(info: TensorInfo, sizes: dict[str, int]) -> dict[str, Any]:
    try:
        kind = format_text(to_data_type(info.dtype), TensorFormat.LINEAR)
    except TypeError:  # an element type that TensorRT has no name for
        kind = f"Row major linear {info.dtype}"
    return {"Name": info.name, "Location": "Device", "Dimensions": _extents(info, sizes), "Format/Datatype": kind}


def _extents(info: TensorInfo, sizes: dict[str, int]) -> list[int]:
    """A shape with the sizes that are known, -1 for the others."""
    known = (not isinstance(d, Expr) or symbols(d) <= sizes.keys() for d in info.shape)
    return [evaluate(d, sizes) if sure else -1 for d, sure in zip(info.shape, known, strict=True)]
