"""`torch.compile(model, backend="dovetail")`: each graph that TorchDynamo captures becomes an engine.

    fast = torch.compile(model, backend="dovetail", options={"threads": 2})
    with torch.no_grad():
        y = fast(x)

Options are those of `dovetail.build`, and `fallback=True`, which runs graphs that cannot be built in PyTorch, with a warning. The module's
parameters and buffers are the engine's weights: changes in place are noticed at the next call, and the engine is refitted. Tensors
on the CPU go in and come out without a copy.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dovetail.api.building import build
from dovetail.api.engine import Engine
from dovetail.api.torch_fast_paths import without_fast_paths
from dovetail.builder.oracle import relative_l2
from dovetail.core.errors import Error, ExportError, UsageError
from dovetail.core.log import logger
from dovetail.core.optional import require
from dovetail.core.text import did_you_mean
from dovetail.export.from_pytorch import pytorch
from dovetail.export.torch_names import array_of

_log = logger("export")
_TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 2e-2, "bf16": 5e-2}
_OWN = ("fallback", "exporter", "opset", "check")


def dovetail(
    graph: Any, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """The backend, as TorchDynamo calls it.

    Args:
        graph: the captured torch.fx.GraphModule.
        example_inputs: its inputs.
        options: keyword arguments of `dovetail.build` (device, precision, threads …), and
            fallback: run a graph in PyTorch if it cannot be exported or built (default: raise the error);
            exporter, opset: as of `dovetail.export.pytorch`;
            check: compare the first results with PyTorch's (default: yes).
        mode: none of ours.

    Raises:
        UsageError: unknown options, a graph that trains.
        ExportError, BuildError: the graph cannot be exported or built, and no fallback was asked for.
    """
    chosen = _checked(options, mode)
    try:
        return _compiled(graph, example_inputs, chosen)
    except Error as error:
        if not chosen.get("fallback"):
            raise
        warnings.warn(f"dovetail: a graph of {len(graph.graph.nodes)} nodes runs in PyTorch: {error}", stacklevel=2)
        forward: Callable[..., Any] = graph.forward
        return forward


def _checked(options: Mapping[str, Any] | None, mode: str | None) -> dict[str, Any]:
    if mode not in (None, "default"):
        raise UsageError(f"torch.compile: got mode={mode!r}, expected none with this backend; give options={{'tune': False}} and such")
    known = [*_OWN, *(n for n in inspect.signature(build).parameters if n not in ("model", "example_inputs", "shapes"))]
    for name in options or {}:
        if name not in known:
            raise UsageError(f"torch.compile: got the option {name!r}, expected some of {', '.join(known)}{did_you_mean(name, known)}")
    return dict(options or {})


@dataclass
class _Signature:
    """What goes into a captured graph and comes out.

    Attributes:
        weights: places of parameters and buffers among the inputs, by name.
        inputs: places of the other tensors, by name.
        sizes: places of ints that are sizes: the input and axis that has each.
        outputs: for each result of the graph its place among the engine's outputs, or ("input", place), or ("value", constant).
        dynamic: names of axes by input.
    """

    weights: dict[str, int]
    inputs: dict[str, int]
    sizes: dict[int, tuple[str, int]]
    outputs: list[int | tuple[str, Any]]
    dynamic: dict[str, dict[int, str]]


def _compiled(graph: Any, example_inputs: Sequence[Any], options: dict[str, Any]) -> Callable[..., Any]:
    torch = require("torch", "torch", "torch.compile with Dovetail")
    signature = _signature(torch, graph, example_inputs)
    _refuse_training(torch, graph, example_inputs)
    if not any(isinstance(o, int) for o in signature.outputs) or not signature.inputs:
        forward: Callable[..., Any] = graph.forward  # nothing is computed from inputs
        return forward
    expected = _first_run(torch, graph, example_inputs)
    module = _lifted(torch, without_fast_paths(graph), example_inputs, signature)
    example = tuple(example_inputs[place].detach() for place in signature.inputs.values())
    # TorchDynamo's own trace is still open here, and would get this one's guards.
    with torch._guards.tracing(None):
        model = pytorch(
            module, example, dynamic=signature.dynamic or None, input_names=list(signature.inputs), check=False, name="torch.compile",
            exporter=options.get("exporter", "dynamo"), opset=options.get("opset"),
        )  # fmt: skip
    settings = {k: v for k, v in options.items() if k not in _OWN}
    device = example[0].device
    if device.type == "cuda":
        settings.setdefault("device", str(device))
    engine = build(model, **settings)
    run = _Runner(torch, engine, signature, example_inputs)
    if options.get("check", True):
        _compare(signature, expected, run(*example_inputs), _TOLERANCE[settings.get("precision", "fp32")])
    _log.info("torch.compile: %d nodes became an engine with inputs %s", len(graph.graph.nodes), list(signature.inputs))
    return run


def _signature(torch: Any, graph: Any, example_inputs: Sequence[Any]) -> _Signature:
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    found = _Signature({}, {}, {}, [], {})
    places = {node: i for i, node in enumerate(placeholders)}
    symbols: dict[str, tuple[str, int]] = {}
    for i, (node, value) in enumerate(zip(placeholders, example_inputs, strict=True)):
        if not isinstance(value, torch.Tensor):
            continue
        static = isinstance(value, torch.nn.Parameter) or bool(node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type"))
        if static:
            found.weights[node.name] = i
            continue
        found.inputs[node.name] = i
        for axis, size in enumerate(getattr(node.meta.get("example_value"), "shape", ())):
            if not isinstance(size, int):
                text = str(size)
                symbols.setdefault(text, (node.name, axis))
                found.dynamic.setdefault(node.name, {})[axis] = text if text.isidentifier() else f"{node.name}_{axis}"
    for i, (node, value) in enumerate(zip(placeholders, example_inputs, strict=True)):
        if isinstance(value, torch.Tensor):
            continue
        place = symbols.get(str(node.meta.get("example_value", value)))
        if place is None:
            raise ExportError(
                f"torch.compile: the graph takes the {type(value).__name__} {node.name} = {value}, no size of an input; "
                "give numbers as tensors"
            )
        found.sizes[i] = place
    computed = 0
    for value in next(node for node in graph.graph.nodes if node.op == "output").args[0]:
        if not isinstance(value, torch.fx.Node):
            found.outputs.append(("value", value))
        elif value in places:
            found.outputs.append(("input", places[value]))
        elif isinstance(value.meta.get("example_value"), torch.Tensor):
            found.outputs.append(computed)
            computed += 1
        else:
            kind = type(value.meta.get("example_value")).__name__
            raise ExportError(f"torch.compile: the graph returns {value.name}, a {kind}, expected a tensor; fallback=True takes PyTorch")
    return found


def _refuse_training(torch: Any, graph: Any, example_inputs: Sequence[Any]) -> None:
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in example_inputs):
        raise UsageError(
            "torch.compile: gradients are wanted, but an engine computes none: call the model under torch.no_grad() or "
            "torch.inference_mode(), or take its parameters out with model.requires_grad_(False)"
        )
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        dropout = getattr(node.target, "__name__", "") == "dropout" and True in node.args[2:3]
        if dropout or node.kwargs.get("training") is True:
            raise UsageError(f"torch.compile: {node.name} runs in training mode, expected evaluation mode: call model.eval() first")


def _first_run(torch: Any, graph: Any, example_inputs: Sequence[Any]) -> Sequence[Any]:
    """PyTorch's own results.

    Raises:
        ExportError: the graph writes into its inputs or buffers.
    """
    copies = [t.detach().clone() if isinstance(t, torch.Tensor) else t for t in example_inputs]
    before = [t._version if isinstance(t, torch.Tensor) and not t.is_inference() else 0 for t in copies]
    with torch.no_grad():
        results: Sequence[Any] = graph(*copies)
    for t, version, node in zip(copies, before, (n for n in graph.graph.nodes if n.op == "placeholder"), strict=True):
        if isinstance(t, torch.Tensor) and not t.is_inference() and t._version != version:
            raise ExportError(
                f"torch.compile: the graph writes into {node.name} in place, which an engine does not do to its inputs; return the new "
                "value instead (a buffer of batch normalisation: call model.eval())"
            )
    return results


def _lifted(torch: Any, graph: Any, example_inputs: Sequence[Any], signature: _Signature) -> Any:
    """The graph as a module whose weights are its own and whose inputs and outputs are tensors alone."""

    class Lifted(torch.nn.Module):  # type: ignore[misc]  # torch is imported here
        def __init__(self) -> None:
            super().__init__()
            self.graph = graph
            for name, place in signature.weights.items():
                self.register_buffer(name, example_inputs[place].detach())

        def forward(self, *inputs: Any) -> Any:
            values: list[Any] = list(example_inputs)
            by_name = dict(zip(signature.inputs, inputs, strict=True))
            for name, place in signature.inputs.items():
                values[place] = by_name[name]
            for name, place in signature.weights.items():
                values[place] = getattr(self, name)
            for place, (name, axis) in signature.sizes.items():
                values[place] = by_name[name].shape[axis]
            results = self.graph(*values)
            return tuple(r for r, o in zip(results, signature.outputs, strict=True) if isinstance(o, int))

    return Lifted().eval()


class _Runner:
    """Runs the engine in place of the graph; keeps its weights equal to the module's."""

    def __init__(self, torch: Any, engine: Engine, signature: _Signature, example_inputs: Sequence[Any]) -> None:
        self.engine = engine
        self._torch, self._signature = torch, signature
        self._names = [b.name for b in engine.outputs]
        kept = {s.name for s in engine.plan.weights}
        self._watched = [(name, place) for name, place in signature.weights.items() if name in kept]
        self._seen = self._versions(example_inputs)
        self._lock = threading.Lock()

    def _versions(self, inputs: Sequence[Any]) -> list[tuple[int, int]]:
        return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in (inputs[place] for _, place in self._watched)]

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        now = self._versions(inputs)
        if now != self._seen:
            with self._lock:
                self.engine.refit({n: inputs[p] for (n, p), a, b in zip(self._watched, now, self._seen, strict=True) if a != b})
                self._seen = now
        feeds = {name: inputs[place].detach() for name, place in self._signature.inputs.items()}
        first = next(iter(feeds.values()))
        stream = self._torch.cuda.current_stream(first.device) if first.device.type == "cuda" else None
        results = self.engine.run(feeds, stream=stream)
        outputs: list[Any] = []
        for what in self._signature.outputs:
            if isinstance(what, int):
                outputs.append(self._tensor(results[self._names[what]]))
            else:
                outputs.append(inputs[what[1]] if what[0] == "input" else what[1])
        return tuple(outputs)

    def _tensor(self, value: Any) -> Any:
        if isinstance(value, self._torch.Tensor):
            return value
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            return self._torch.from_numpy(value)
        return self._torch.from_dlpack(value)


def _compare(signature: _Signature, expected: Sequence[Any], actual: Sequence[Any], tolerance: float) -> None:
    for i, (what, want, got) in enumerate(zip(signature.outputs, expected, actual, strict=True)):
        if not isinstance(what, int):
            continue
        a, b = array_of(want), array_of(got)
        error = float("inf") if a.shape != b.shape or a.dtype != b.dtype else relative_l2(b, a)
        if not error <= tolerance:
            raise ExportError(
                f"torch.compile: result {i} of the engine differs from PyTorch's by {error:.2g}, expected at most {tolerance:g}; "
                "options={'check': False} takes it as it is"
            )
