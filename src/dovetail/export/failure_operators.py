"""Which operators an exporter of PyTorch could not translate, read off what it was doing when it stopped."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from dovetail.core.optional import require
from dovetail.export.failure_places import causes, frames, of_node, of_trace_node
from dovetail.export.ways_out import OpFailure

_WHY = "exporting from PyTorch"
_DYNAMO_LEAST = 18


def of_dynamo(error: BaseException, opset: int) -> list[OpFailure]:
    """All operators of the program that the dynamo exporter has no translation for, by name; [] if that is not what stopped it."""
    chain = causes(error)
    if not any(type(e).__name__ == "DispatchError" for e in chain):
        return []
    graph, registry, program = (_innermost(chain, name) for name in ("fx_graph", "registry", "decomposed_program"))
    if graph is None or registry is None:
        return []
    modules = [m for m in program.graph_module.modules() if hasattr(m, "graph")] if program is not None else []
    nodes = [node for g in ([m.graph for m in modules] or [graph]) for node in g.nodes if node.op == "call_function"]
    dispatch = require("torch.onnx._internal.exporter._dispatching", "torch", _WHY).dispatch
    found: dict[str, list[Any]] = {}
    complex_: set[str] = set()
    for node in nodes:
        if getattr(node.target, "__name__", "") == "getitem" or str(node.target).startswith("onnx."):
            continue
        function, reason = dispatch(node, registry)
        if function is None:
            name = _original(node)
            found.setdefault(name, []).append(node)
            if "complex" in reason:
                complex_.add(name)
    return [_dynamo_failure(name, calls, opset, name in complex_, program, registry) for name, calls in found.items()]


def _innermost(chain: Sequence[BaseException], name: str) -> Any:
    """The local variable of that name in the innermost frame of PyTorch's that has it."""
    return next((f.f_locals[name] for f in reversed(list(frames(chain))) if name in f.f_locals and "torch" in f.f_code.co_filename), None)


def _name(target: Any) -> str:
    """The qualified name of what a node calls, with the overload where there are several."""
    if not hasattr(target, "_schema"):
        return str(target)
    overloads = [o for o in target.overloadpacket.overloads() if not o.endswith("out")]
    base = str(target._schema.name)
    overload = str(target._schema.overload_name)
    return f"{base}.{overload}" if len(overloads) > 1 and overload else base


def _original(node: Any) -> str:
    """The operator that the user's program has; the exporter may have taken it apart."""
    target = _source(node)
    return _name(target)


def _source(node: Any) -> Any:
    torch = require("torch", "torch", _WHY)
    for source in node.meta.get("from_node") or ():
        space, _, rest = str(getattr(source, "target", "")).partition(".")  # "aten.add.Tensor"
        name, _, overload = rest.partition(".")
        if space and overload and hasattr(torch.ops, space):
            return getattr(getattr(getattr(torch.ops, space), name), overload)
    return node.target


def _call(node: Any) -> str:
    """The name of the node of the user's program that a node is a part of."""
    sources = node.meta.get("from_node") or ()
    return str(sources[0].name) if sources else str(node.name)


def _dynamo_failure(name: str, nodes: Sequence[Any], opset: int, complex_: bool, program: Any, registry: Any) -> OpFailure:
    target = _source(nodes[0])
    schema = getattr(target, "_schema", None)
    same = target is nodes[0].target
    other = _torchscript_since(str(schema.name)) if schema is not None else None
    parts = [part for part in dict.fromkeys(_name(node.target) for node in nodes) if part != name]
    reasons = [f"PyTorch takes it apart into {' and '.join(parts)}, without translation"] if parts else []
    reasons += ["the exporter has none for complex numbers"] if complex_ else []
    return OpFailure(
        op=name, framework="pytorch", exporter="dynamo", opset=opset, where=_places(nodes, of_node), reason="; ".join(reasons),
        calls=len({_call(node) for node in nodes}),
        exporter_since=None if complex_ or not same else _dynamo_since(target, opset),
        other_exporter="torchscript" if other is not None and other <= min(opset, _torchscript_newest()) and not complex_ else "",
        decomposition=() if program is None or not same else _decomposed(target, nodes[0], registry),
        **_signature(schema),
    )  # fmt: skip


def _places(nodes: Sequence[Any], where: Callable[[Any], str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(p for p in map(where, nodes) if p))


def _signature(schema: Any) -> dict[str, Any]:
    """Inputs, attributes and results of an operator, as `OpFailure` has them."""
    if schema is None:
        return {}
    tensors = [a for a in schema.arguments if "Tensor" in str(a.type)]
    others = [a for a in schema.arguments if "Tensor" not in str(a.type)]
    return {
        "inputs": tuple(a.name for a in tensors),
        "attributes": tuple((a.name, repr(a.default_value) if a.has_default_value() else "") for a in others),
        "order": tuple(a.name for a in schema.arguments),
        "optional": tuple(a.name for a in tensors if str(a.type).startswith("Optional")),
        "results": len(schema.returns),
    }


def _dynamo_since(target: Any, opset: int) -> int | None:
    """The oldest opset from which on the dynamo exporter translates an operator."""
    registration = require("torch.onnx._internal.exporter._registration", "torch", _WHY)
    newest = int(getattr(require("torch.onnx._constants", "torch", _WHY), "ONNX_MAX_OPSET", 23))
    if newest <= opset:
        return None
    found = registration.ONNXRegistry.from_torchlib(newest).get_decomps(target)
    return min((int(meta.opset_introduced) for meta in found), default=None)


def _torchscript_since(name: str) -> int | None:
    """The oldest opset at which the torchscript exporter translates an operator."""
    require("torch.onnx._internal.torchscript_exporter.utils", "torch", _WHY)  # brings its translations
    registry = require("torch.onnx._internal.torchscript_exporter.registration", "torch", _WHY).registry
    group = registry.get_function_group(name)
    return None if group is None or not group._functions else int(group.get_min_supported())


def _torchscript_newest() -> int:
    return int(getattr(require("torch.onnx._constants", "torch", _WHY), "ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET", 20))


def _decomposed(target: Any, node: Any, registry: Any) -> tuple[str, ...]:
    """What PyTorch can take an operator apart into, if all of that exports; () else, or if the exporter does that anyway."""
    torch = require("torch", "torch", _WHY)
    found = require("torch._decomp", "torch", _WHY).get_decompositions([target])
    if target not in found or target in torch.export.default_decompositions():
        return ()
    make_fx = require("torch.fx.experimental.proxy_tensor", "torch", _WHY).make_fx
    example = [a.meta["val"] if hasattr(a, "meta") else a for a in node.args]
    places = [i for i, value in enumerate(example) if isinstance(value, torch.Tensor)]
    shapes = [example[i].shape for i in places]
    if any(not all(isinstance(extent, int) for extent in shape) for shape in shapes):
        return ()

    def body(*tensors: Any) -> Any:
        args = list(example)
        for i, tensor in zip(places, tensors, strict=True):
            args[i] = tensor
        return target(*args, **{k: v for k, v in node.kwargs.items() if not hasattr(v, "meta")})

    blanks = [torch.zeros(example[i].shape, dtype=example[i].dtype) for i in places]
    table = {**torch.export.default_decompositions(), **found}
    try:
        graph = make_fx(body, decomposition_table=table, tracing_mode="fake")(*blanks).graph
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # it does not take these arguments apart
        return ()
    calls = [n.target for n in graph.nodes if n.op == "call_function" and getattr(n.target, "__name__", "") != "getitem"]
    return tuple(dict.fromkeys(_name(t) for t in calls)) if calls and all(registry.is_registered(t) for t in calls) else ()


# --- torchscript ----------------------------------------------------------------------------------


def of_torchscript(error: BaseException, opset: int) -> list[OpFailure]:
    """All operators of the trace that the torchscript exporter has no translation for; [] if that is not what stopped it."""
    chain = causes(error)
    stopped = next((e for e in chain if type(e).__name__ in ("UnsupportedOperatorError", "SymbolicValueError", "OnnxExporterError")), None)
    if stopped is None:
        return []
    graph = next((f.f_locals["graph"] for f in frames(chain) if f.f_code.co_name == "_optimize_graph" and "graph" in f.f_locals), None)
    at = next((f.f_locals["node"] for f in frames(chain) if f.f_code.co_name == "_run_symbolic_function" and "node" in f.f_locals), None)
    nodes: dict[str, list[Any]] = {}
    if type(stopped).__name__ == "UnsupportedOperatorError" and graph is not None:
        registry = require("torch.onnx._internal.torchscript_exporter.registration", "torch", _WHY).registry
        for node in _all_nodes(graph):
            name = _traced_name(node)
            if not name.startswith(("prim::", "onnx::")) and not registry.is_registered_op(name, opset):
                nodes.setdefault(name, []).append(node)
    if not nodes and at is not None:
        nodes[_traced_name(at)] = [at]
    said = re.split(r"\s+\[Caused by|\s*Please |\n", str(stopped).strip(), maxsplit=1)[0]
    reason = "" if type(stopped).__name__ == "UnsupportedOperatorError" else said
    return [_torchscript_failure(name, calls, opset, reason) for name, calls in nodes.items()]


def _all_nodes(graph: Any) -> list[Any]:
    found = []
    for node in graph.nodes():
        found.append(node)
        for block in node.blocks():
            found += _all_nodes(block)
    return found


def _traced_name(node: Any) -> str:
    """The operator of a node, in-place ones (`add_`) under the name of the others, as the exporter takes them."""
    return str(node.kind()).removesuffix("_")


def _torchscript_failure(name: str, nodes: Sequence[Any], opset: int, reason: str) -> OpFailure:
    torch = require("torch", "torch", _WHY)
    schemas = [s for s in torch._C._jit_get_schemas_for_operator(name) if not s.overload_name.endswith("out")]
    count = len(list(nodes[0].inputs()))
    schema = next((s for s in schemas if len(s.arguments) == count), schemas[0] if schemas else None)
    since = None if reason else _torchscript_since(name)
    other = None
    if schema is not None and hasattr(torch.ops, name.split("::", maxsplit=1)[0]):
        space, _, bare = name.partition("::")
        packet = getattr(getattr(torch.ops, space), bare)
        other = _dynamo_has(getattr(packet, schema.overload_name or "default"), max(opset, _DYNAMO_LEAST))
    return OpFailure(
        op=name, framework="pytorch", exporter="torchscript", opset=opset, where=_places(nodes, of_trace_node), reason=reason,
        calls=len(nodes), exporter_since=since if since is not None and since > opset else None,
        other_exporter="dynamo" if other is not None else "", other_since=other, **_signature(schema),
    )  # fmt: skip


def _dynamo_has(target: Any, opset: int) -> int | None:
    """The opset, if the dynamo exporter has a translation of an operator there."""
    registration = require("torch.onnx._internal.exporter._registration", "torch", _WHY)
    return opset if registration.ONNXRegistry.from_torchlib(opset).is_registered(target) else None
