"""Another version of ONNX's operators, or of its file format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, version_converter

from dovetail.frontend.reader import dtype_name
from dovetail.model.edit import value_types as kinds
from dovetail.model.edit.draft import Draft
from dovetail.model.edit.names import describe
from dovetail.model.model import Model
from dovetail.model.proto_graph import all_graphs, attribute
from dovetail.model.weights import LARGE_BYTES, stored_bytes

# Opsets in which an operator that looks the same got another meaning.
_NEW_MEANING = {
    "Softmax": (13,), "LogSoftmax": (13,), "Hardmax": (13,), "Resize": (11, 13), "GroupNormalization": (21,), "Upsample": (9,),
    "AveragePool": (19,), "RoiAlign": (16,), "Split": (18,), "BatchNormalization": (9,),
}  # fmt: skip
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
    if opset is not None and not 1 <= opset <= newest:
        raise draft.fail(f"got opset {opset}, expected 1 to {newest}; a newer one needs a newer onnx")
    if ir_version is not None and not 3 <= ir_version <= onnx.IR_VERSION:
        raise draft.fail(f"got IR version {ir_version}, expected 3 to {onnx.IR_VERSION}")
    old = draft.opset()
    if opset is not None and opset != old:
        if not old:
            raise draft.fail("the model uses no operator of ONNX's own: there is no opset to convert")
        _convert(draft, old, opset)
    lowest = _lowest_ir(draft.proto)
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


def _lowest_ir(model: onnx.ModelProto) -> int:
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
    if new < 14 <= old:
        _plain_reshapes(draft)
    for graph in reversed(list(all_graphs(draft.graph))):  # bodies first: lists of nodes are replaced by copies
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if _unchanged(node, old, new, types):
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


def _plain_reshapes(draft: Draft) -> None:
    """Drop allowzero=1 (as torch's exporter writes it) from Reshapes whose constant target has no zero: older opsets lack it."""
    constant = draft.constants()
    for node in draft.graph.node:
        if node.op_type == "Reshape" and node.domain in ("", "ai.onnx") and attribute(node, "allowzero", 0):
            target = constant(node.input[1])
            if target is not None and target.all():
                del node.attribute[:]


def _more(found: list[str]) -> str:
    return f" and {len(found) - 3} more" if len(found) > 3 else ""


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
    allowed = {c.type_param_str: c.allowed_type_strs for c in after.type_constraints}
    for position, name in enumerate(node.input):
        formal = after.inputs[min(position, len(after.inputs) - 1)]
        code = kinds.element_of(types.get(name))
        if code and formal.type_str in allowed and f"tensor({dtype_name(code)})" not in allowed[formal.type_str]:
            return False
    return True


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
        following: list[onnx.NodeProto] = []
        for current in nodes:
            if _unchanged(current, version, version + step, one.types):
                _drop_defaults(current, version, version + step)
                following.append(current)
            else:
                following += _by_onnx(one, graph, current, version, version + step)
        nodes = following
    if len(nodes) == 1:
        nodes[0].name = node.name
    return nodes


def _by_onnx(one: _One, graph: onnx.GraphProto, node: onnx.NodeProto, old: int, new: int) -> list[onnx.NodeProto]:
    """The nodes that stand for one in the next version, by onnx's converter on that node alone; their weights are added to the graph."""
    done = version_converter.convert_version(one.model(node, old), new)
    border = {*node.input, *node.output}
    fresh: dict[str, str] = {}
    for name in (*(t.name for t in done.graph.initializer), *(n for made in done.graph.node for n in made.output)):
        if name and name not in border:
            fresh[name] = one.draft.unique(f"{node.output[0]}_{name}")
    for tensor in done.graph.initializer:
        if tensor.name in fresh:
            added = graph.initializer.add()
            added.CopyFrom(tensor)
            added.name = fresh[tensor.name]
            one.added[added.name] = added
    for made in done.graph.node:
        _drop_defaults(made, old, new)  # onnx's converter leaves some
        made.input[:] = [fresh.get(name, name) for name in made.input]
        made.output[:] = [fresh.get(name, name) for name in made.output]
    return list(done.graph.node)


class _One:
    """Models of single nodes, with the types of their operands and the values of those that are small."""

    def __init__(self, draft: Draft, types: Mapping[str, onnx.TypeProto]) -> None:
        self.draft, self.types = draft, types
        self.added: dict[str, onnx.TensorProto] = {}
        """Weights that conversions brought."""
        self._weights, self._constant = draft.weights(), draft.constants()

    def model(self, node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
        """The model of a node that is of an opset."""
        inputs, tensors = [], []
        for name in dict.fromkeys(n for n in node.input if n):
            tensor = self._weights.get(name)
            if name in self.added:
                tensors.append(self.added[name])
                continue
            if tensor is None or stored_bytes(tensor) < LARGE_BYTES:
                value = self._constant(name)
                if value is not None and value.nbytes < LARGE_BYTES:
                    tensors.append(onnx.numpy_helper.from_array(value, name))
                    continue
            inputs.append(self._typed(name))
        graph = onnx.helper.make_graph([node], "one", inputs, [self._typed(n) for n in node.output if n], tensors)
        opsets = [onnx.helper.make_opsetid("", opset)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=max(4, self.draft.proto.ir_version))

    def _typed(self, name: str) -> onnx.ValueInfoProto:
        return kinds.value_info(name, self.types.get(name) or kinds.tensor_type(TensorProto.FLOAT, None))
