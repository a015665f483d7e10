"""The ONNX backend interface over the public API: translation only.

`compile(model) -> run(inputs) -> outputs` is the short form; `prepare`, `run_model`, `run_node` and
`supports_device` are what `onnx.backend.test` calls. Inputs go in graph order with initializers left out; a sequence
is a list, an absent optional is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from dovetail import api
from dovetail.builder.options import BuildOptions
from dovetail.core.errors import BindingError, Error

Values = list[Any]


def compile(model: onnx.ModelProto) -> Callable[[Sequence[Any]], Values]:
    """Build `model` and return a function from the list of inputs to the list of outputs.

    Raises:
        dovetail.Error: the model is invalid, or an operator is not supported.
    """
    return prepare(model).run


def prepare(model: onnx.ModelProto, device: str = "CPU", **options: Any) -> PreparedModel:
    """Build `model` for `device` ("CPU", "CUDA" or "CUDA:1", as ONNX spells it).

    Raises:
        dovetail.Error: the model is invalid, or an operator is not supported.
    """
    return PreparedModel(api.build(model, device=_device(device), **{"verify": "off", "tune": False, **options}))


def run_model(model: onnx.ModelProto, inputs: Any, device: str = "CPU", **options: Any) -> Values:
    """Build and run once; see `PreparedModel.run`."""
    return prepare(model, device, **options).run(inputs)


def run_node(
    node: onnx.NodeProto,
    inputs: Sequence[Any],
    device: str = "CPU",
    outputs_info: Sequence[tuple[np.dtype[Any], tuple[int, ...]]] | None = None,
    *,
    opset: int | None = None,
) -> Values:
    """Run one node on `inputs`, given in the order of the node's non-empty input names.

    Args:
        node: the node; its domain must be ONNX's own.
        inputs: arrays, one per non-empty input name.
        device: as in `prepare`.
        outputs_info: (dtype, shape) per output; without it ONNX infers the types.
        opset: version of the operator set; default: the newest that onnx knows.
    """
    names = [name for name in node.input if name]
    if len(inputs) != len(names):
        raise BindingError(
            f"{node.op_type}: got {len(inputs)} inputs, expected {len(names)} ({', '.join(names)})"
        )
    arrays = [np.asarray(x) for x in inputs]
    feeds = [_value_info(name, array.dtype, array.shape) for name, array in
             zip(names, arrays, strict=True)]
    kept = [name for name in node.output if name]
    if outputs_info is not None:
        results = [_value_info(name, dtype, shape) for name, (dtype, shape) in
                   zip(kept, outputs_info, strict=True)]
    else:
        results = [onnx.helper.make_empty_tensor_value_info(name) for name in kept]
    graph = onnx.helper.make_graph([node], "node", feeds, results)
    version = opset or onnx.defs.onnx_opset_version()
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    if outputs_info is None:
        model = onnx.shape_inference.infer_shapes(model)
    return prepare(model, device).run(arrays)


def _value_info(name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> onnx.ValueInfoProto:
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, element, list(shape))


def supports_device(device: str) -> bool:
    """Whether engines for `device` ("CPU", "CUDA", perhaps with ":index") can be built and run here."""
    kind = _device(device)
    if kind.partition(":")[0] != "cuda":
        return kind == "cpu"
    try:
        BuildOptions(device=kind).check()
    except Error:
        return False
    return True


def _device(text: str) -> str:
    """The device as `dovetail.build` spells it."""
    kind, _, index = text.lower().partition(":")
    return kind if kind == "cpu" or not index else f"{kind}:{index}"


class PreparedModel:
    """A built model that takes and returns values in graph order."""

    def __init__(self, engine: api.Engine) -> None:
        self.engine = engine
        self._inputs = [binding.name for binding in engine.inputs]
        self._outputs = [binding.name for binding in engine.outputs]

    def run(self, inputs: Any, **_: Any) -> Values:
        """Run on a list (graph order), a dict by name, or one array.

        Raises:
            BindingError: more inputs than the model has.
        """
        if isinstance(inputs, dict):
            feeds = inputs
        else:
            values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            if len(values) > len(self._inputs):
                raise BindingError(
                    f"run: got {len(values)} inputs, expected {len(self._inputs)} "
                    f"({', '.join(self._inputs)})"
                )
            feeds = dict(zip(self._inputs, values, strict=False))
        results = self.engine.run(feeds)
        return [results[name] for name in self._outputs]
