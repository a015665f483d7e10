"""Another version of ONNX's operators, or of its file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, version_converter

from dovetail.frontend.functions import body_nodes, schema_body
from dovetail.frontend.reader import dtype_name, read_tensor
from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.edit.names import describe
from dovetail.model.edit.opset_downward import (
    ADAPTERS,
    Call,
    count_from_the_front,
    counts_from_the_end,
)
from dovetail.model.model import Model
from dovetail.model.proto_graph import all_graphs, constant_value, subgraphs
from dovetail.model.weights import LARGE_BYTES, stored_bytes

# Opsets in which an operator that looks the same got another meaning.
_NEW_MEANING = {
    "Softmax": (13,), "LogSoftmax": (13,), "Hardmax": (13,), "Resize": (11, 13), "GroupNormalization": (21,), "Upsample": (9,),
    "AveragePool": (19,), "RoiAlign": (16,), "Split": (18,), "BatchNormalization": (9,),
}  # fmt: skip
_OLDEST = 7  # before, operands were broadcast by an attribute, and onnx infers the types of few operators
_FAILURES = (RuntimeError, ValueError, IndexError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)


def convert_opset(model: Model, opset: int | None = None, *, ir_version: int | None = None) -> Model:
    """The model in another opset, another IR version of the file, or both.

    Operators that mean the same in both opsets stay as they are; onnx's version converter rewrites the others, each alone.

    Args:
        opset: of ONNX's own domain.
        ir_version: default the model's, or the lowest that the opset needs.

    Raises:
        UsageError: versions that this onnx does not know, an IR version that the opset is too new for, or operators that
            cannot be converted: all of them, with the reason.
    """
    draft = Draft(model, "convert-opset")
    if opset is None and ir_version is None:
        raise draft.fail("got no version, expected an opset or an IR version")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OLDEST <= opset <= newest:
        raise draft.fail(f"got opset {opset}, expected {_OLDEST} to {newest}; a newer one needs a newer onnx")
    if ir_version is not None and not 3 <= ir_version <= onnx.IR_VERSION:
        raise draft.fail(f"got IR version {ir_version}, expected 3 to {onnx.IR_VERSION}")
    old = draft.opset()
    if opset is not None and opset != old:
        if not old:
            raise draft.fail("the model uses no operator of ONNX's own: there is no opset to convert")
        _convert(draft, old, opset)
    lowest = lowest_ir(draft.proto)
    if ir_version is not None and ir_version < lowest:
        raise draft.fail(
            f"got IR version {ir_version}, expected at least {lowest}: opset {draft.opset()} came with it; lower the opset, too"
        )
    before = draft.proto.ir_version
    draft.proto.ir_version = max(before, lowest) if ir_version is None else ir_version
    if before < 4 <= draft.proto.ir_version:
        _weights_alone(draft)
    elif draft.proto.ir_version < 4 <= before:
        listed = {v.name for v in draft.graph.input}
        for tensor in draft.graph.initializer:
            if tensor.name not in listed:
                draft.graph.input.append(kinds.value_info(tensor.name, kinds.tensor_type(tensor.data_type, list(tensor.dims))))
    return draft.finish()


def lowest_ir(model: onnx.ModelProto) -> int:
    """The lowest IR version that a model's opsets, and functions if it has some, can be in."""
    own = [o for o in model.opset_import if o.domain in ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training")]
    lowest = int(onnx.helper.find_min_ir_version_for(own, ignore_unknown=True)) if own else 3
    return max(lowest, 8) if model.functions else lowest


def _weights_alone(draft: Draft) -> None:
    """Initializers that had to be listed among the inputs are no inputs any more."""
    weights = draft.weights()
    for position in reversed(range(len(draft.graph.input))):
        if draft.graph.input[position].name in weights:
            del draft.graph.input[position]


def _convert(draft: Draft, old: int, new: int) -> None:
    types = {v.name: v.type for graph in all_graphs(draft.graph) for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= draft.types
    _functions(draft, new)
    problems: dict[str, list[str]] = {}
    one = _One(draft, types)
    for graph in reversed(list(all_graphs(draft.graph))):  # bodies first: lists of nodes are replaced by copies
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if _unchanged(node, old, new, types) and not _adapted(node, old, new):
                _drop_defaults(node, old, new)
                nodes.append(node)
                continue
            try:
                nodes += _converted(one, graph, node, old, new)
            except _FAILURES as error:
                gone = _since(node, new) is None
                reason = f"{node.op_type} is not in opset {new}" if gone else f"{node.op_type}: {kinds.tidy(error)}"
                problems.setdefault(reason, []).append(describe(node))
        if not problems:
            kept = onnx.GraphProto()
            kept.node.extend(nodes)
            del graph.node[:]
            graph.node.extend(kept.node)
    if problems:
        listed = "".join(f"\n  {reason} ({', '.join(found[:3])}{_more(found)})" for reason, found in problems.items())
        raise draft.fail(f"from opset {old} to {new}, these operators stop it:{listed}\nreplace them first, or choose another opset")
    for entry in draft.proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = new
    draft.drop_unused_weights()
    draft.forget_types()


def _functions(draft: Draft, new: int) -> None:
    """Bring the functions of a model to the opset, which has to be the model's: as they stand, or not at all."""
    changed = []
    for function in draft.proto.functions:
        for entry in function.opset_import:
            if entry.domain in ("", "ai.onnx"):
                for node in function.node:
                    if not _unchanged(node, entry.version, new, {}):
                        changed.append(f"{node.op_type} in {function.domain}::{function.name}")
                    _drop_defaults(node, entry.version, new)
                entry.version = new
    if changed:
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise draft.fail(
            f"functions of the model use operators that changed up to opset {new}: {', '.join(changed[:8])}{more}; "
            "`dovetail simplify` puts functions in the place of their calls"
        )


def _more(found: list[str]) -> str:
    return f" and {len(found) - 3} more" if len(found) > 3 else ""


def _adapted(node: onnx.NodeProto, old: int, new: int) -> bool:
    """Whether a node is written in another way before one of the opsets that are left."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if new < 11 <= old and counts_from_the_end(node):
        return True
    return any((node.op_type, version) in ADAPTERS for version in range(new + 1, old + 1))


def _since(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    """The form of an operator in an opset; None if it is not in it."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None
    return None if schema.deprecated else schema


def _unchanged(node: onnx.NodeProto, old: int, new: int, types: Mapping[str, onnx.TypeProto]) -> bool:
    """Whether a node means the same in both opsets as it stands: another domain's, the same form, or one with other element types."""
    if node.domain not in ("", "ai.onnx"):
        return True
    before, after = _since(node, old), _since(node, new)
    if before is None or after is None:
        return False
    low, high = sorted((before.since_version, after.since_version))
    if low == high:
        return True
    if any(low < version <= high for version in _NEW_MEANING.get(node.op_type, ())) or not _same_form(node, before, after):
        return False
    return not _refused_type(node, after, types)


def _refused_type(node: onnx.NodeProto, schema: onnx.defs.OpSchema, types: Mapping[str, onnx.TypeProto]) -> str:
    """An element type of an operand that a form of the operator does not take; "" if it takes all that are known."""
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    for position, name in enumerate(node.input):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        code = kinds.element_of(types.get(name))
        if code and formal.type_str in allowed and f"tensor({dtype_name(code)})" not in allowed[formal.type_str]:
            return dtype_name(code)
    return ""


def _same_form(node: onnx.NodeProto, before: onnx.defs.OpSchema, after: onnx.defs.OpSchema) -> bool:
    """Whether what a node uses of its operator is in both forms. What only one of them has, absent, is as if the form lacked it."""
    if not after.min_input <= len(node.input) <= after.max_input or not after.min_output <= len(node.output) <= after.max_output:
        return False
    known = {a.name: a for a in node.attribute}
    for name in {*before.attributes, *after.attributes}:
        old, new = before.attributes.get(name), after.attributes.get(name)
        if old is None or new is None:
            said = name in known and not (old is not None and _default(old) == known[name].SerializeToString(deterministic=True))
            if said or (new is not None and new.required):
                return False
        elif old.type != new.type or (name not in known and _default(old) != _default(new)):
            return False
    used = zip(before.inputs[: len(node.input)], after.inputs[: len(node.input)], strict=False)
    return all(a.option == b.option for a, b in used)


def _drop_defaults(node: onnx.NodeProto, old: int, new: int) -> None:
    """Remove attributes that the new opset does not know and that say what it takes for granted."""
    before, after = ((_since(node, opset) if node.domain in ("", "ai.onnx") else None) for opset in (old, new))
    for position in reversed(range(len(node.attribute))):
        held = node.attribute[position]
        known = before.attributes.get(held.name) if before is not None else None
        gone = after is not None and known is not None and held.name not in after.attributes
        if gone and _default(known) == held.SerializeToString(deterministic=True):
            del node.attribute[position]


def _default(attribute: Any) -> bytes:
    text: bytes = attribute.default_value.SerializeToString(deterministic=True)
    return text


def _converted(one: _One, graph: onnx.GraphProto, node: onnx.NodeProto, old: int, new: int) -> list[onnx.NodeProto]:
    """The nodes that stand for one in the new opset, version by version: onnx's converter need not know the way where nothing changes."""
    step = 1 if new > old else -1
    nodes = [node]
    for version in range(old, new, step):
        nodes = [made for current in nodes for made in _next(one, graph, current, version, version + step)]
    if len(nodes) == 1:
        nodes[0].name = node.name
    return nodes


def _next(one: _One, graph: onnx.GraphProto, node: onnx.NodeProto, old: int, new: int) -> list[onnx.NodeProto]:
    """The nodes that stand for one in the opset after or before.

    Downwards, an operator that changed is written as it was, and one that is not there any more, or that nobody converts, as the
    function that ONNX defines it by.
    """
    adapter = ADAPTERS.get((node.op_type, old)) if new < old and node.domain in ("", "ai.onnx") else None
    if adapter is not None:
        made = adapter(one.call(graph, node))
        one.learn(made, new)
        for each in made:
            schema = _since(each, new)
            refused = "" if schema is None else _refused_type(each, schema, one.types)
            if refused:
                raise ValueError(f"in opset {new} it takes no {refused}")
    elif _unchanged(node, old, new, one.types):
        made = [node]
    else:
        try:
            made = _by_onnx(one, graph, node, old, new)
        except _FAILURES:
            body = one.body(graph, node, old) if new < old else None
            if body is None:
                raise
            return [part for each in body for part in _next(one, graph, each, old, new)]
    for each in made:
        _drop_defaults(each, old, new)  # onnx's converter leaves some, too
    return [count_from_the_front(one.call(graph, each)) if new == 10 < old and counts_from_the_end(each) else each for each in made]


def _by_onnx(one: _One, graph: onnx.GraphProto, node: onnx.NodeProto, old: int, new: int) -> list[onnx.NodeProto]:
    """The nodes that stand for one in the next version, by onnx's converter on that node alone; their weights are added to the graph."""
    done = version_converter.convert_version(one.model(node, old), new)
    border = {*node.input, *node.output}
    fresh: dict[str, str] = {}
    for tensor in done.graph.initializer:
        if tensor.name not in border:
            fresh[tensor.name] = one.add(graph, tensor, f"{node.output[0]}_{tensor.name}")
    for name in (n for made in done.graph.node for n in made.output if n):
        if name not in border:
            fresh[name] = one.draft.unique(f"{node.output[0]}_{name}")
    for made in done.graph.node:
        made.input[:] = [fresh.get(name, name) for name in made.input]
        made.output[:] = [fresh.get(name, name) for name in made.output]
    return list(done.graph.node)


class _One:
    """Models of single nodes, with the types of their operands and the values of those that are small."""

    def __init__(self, draft: Draft, types: Mapping[str, onnx.TypeProto]) -> None:
        self.draft, self.types = draft, dict(types)
        self.added: dict[str, onnx.TensorProto] = {}
        """Weights that conversions brought."""
        self._weights, self._constant = draft.weights(), draft.constants()
        self._inner: dict[str, onnx.TensorProto | onnx.NodeProto] = {}
        for graph in all_graphs(draft.graph):
            if graph is not draft.graph:
                self._inner |= {t.name: t for t in graph.initializer} | {n.output[0]: n for n in graph.node if n.op_type == "Constant"}

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value of a constant; None for what a run computes."""
        held = self.added.get(name) or self._inner.get(name)
        if held is None:
            return self._constant(name)
        folder = self.draft.folder
        return constant_value(held, folder) if isinstance(held, onnx.NodeProto) else read_tensor(held, folder)

    def add(self, graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str) -> str:
        """Add a weight to a graph; its name, made unique."""
        kept = graph.initializer.add()
        kept.CopyFrom(tensor)
        kept.name = self.draft.unique(name)
        self.added[kept.name] = kept
        self.types[kept.name] = kinds.tensor_type(kept.data_type, list(kept.dims))
        return str(kept.name)

    def call(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> Call:
        """What an adapter may ask about a node of a graph."""
        result = node.output[0]
        return Call(
            node, self.constant, lambda name: kinds.shape_of(self.types.get(name)), lambda name: kinds.element_of(self.types.get(name)),
            lambda value, hint: self.add(graph, onnx.numpy_helper.from_array(value), f"{result}_{hint}"), self.draft.unique,
        )  # fmt: skip

    def learn(self, nodes: Sequence[onnx.NodeProto], opset: int) -> None:
        """Infer the types of values that only some new nodes, which are of an opset, know."""
        inside = {n for node in nodes for n in node.output}
        if all(name in self.types for name in inside):
            return
        outer = [n for n in dict.fromkeys(n for node in nodes for n in node.input if n) if n not in inside and n in self.types]
        tensors = [onnx.numpy_helper.from_array(v, n) for n in outer if (v := self._small(n)) is not None]
        held = {t.name for t in tensors}
        part = onnx.helper.make_graph(nodes, "part", [self._typed(n) for n in outer if n not in held], [], tensors)
        model = onnx.helper.make_model(part, opset_imports=[onnx.helper.make_opsetid("", opset)])
        for name, kind in kinds.infer(model).items():
            self.types.setdefault(name, kind)

    def body(self, graph: onnx.GraphProto, node: onnx.NodeProto, opset: int) -> list[onnx.NodeProto] | None:
        """The nodes of the function that ONNX defines an operator by; None if there is none, or one with bodies of its own."""
        schema = onnx.defs.get_schema(node.op_type, opset)
        function = schema_body(schema, opset, lambda: node, [self.types.get(name) or onnx.TypeProto() for name in node.input])
        if function is None:
            return None
        nodes = body_nodes(function, node.attribute)
        if any(True for part in nodes for _ in subgraphs(part)):
            return None
        written = next((o.version for o in function.opset_import if o.domain in ("", "ai.onnx")), opset)
        if not all(_unchanged(part, written, opset, {}) for part in nodes):
            return None
        given = [*node.input, *[""] * (len(function.input) - len(node.input))]
        names = dict(zip(function.input, given, strict=True)) | dict(zip(function.output, node.output, strict=False))
        kept = []
        for part in nodes:
            names |= {n: self.draft.unique(f"{node.output[0]}_{n}") for n in part.output if n and not names.get(n)}
            held = constant_value(part, None)
            if held is not None:
                names[part.output[0]] = self.add(graph, onnx.numpy_helper.from_array(held), names[part.output[0]])
            else:
                kept.append(part)
        for number, part in enumerate(kept):
            part.name = f"{node.name}/{part.op_type}_{number}" if node.name else ""
            part.input[:] = [names.get(n, n) for n in part.input]
            part.output[:] = [names.get(n, n) for n in part.output]
        self.learn(kept, opset)
        return kept

    def model(self, node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
        """The model of a node that is of an opset."""
        inputs, tensors = [], []
        for name in dict.fromkeys(n for n in node.input if n):
            value = self._small(name)
            if value is not None:
                tensors.append(onnx.numpy_helper.from_array(value, name))
            else:
                inputs.append(self._typed(name))
        graph = onnx.helper.make_graph([node], "one", inputs, [self._typed(n) for n in node.output if n], tensors)
        opsets = [onnx.helper.make_opsetid("", opset)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=max(4, self.draft.proto.ir_version))

    def _small(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value of a small constant."""
        tensor = self._weights.get(name)
        value = self.constant(name) if tensor is None or stored_bytes(tensor) < LARGE_BYTES else None
        return value if value is not None and value.nbytes < LARGE_BYTES else None

    def _typed(self, name: str) -> onnx.ValueInfoProto:
        return kinds.value_info(name, self.types.get(name) or kinds.tensor_type(TensorProto.FLOAT, None))
