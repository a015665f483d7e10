"""A frozen graph of TensorFlow to ONNX by tf2onnx; every operator that it does not translate is found before anything is said."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx

from dovetail.core.errors import ExportError, UsageError
from dovetail.core.text import did_you_mean
from dovetail.export.tensorflow_graphs import Frozen
from dovetail.export.tensorflow_gru import rewrite_keras_gru
from dovetail.export.tensorflow_math import OPSET, TRANSLATIONS
from dovetail.export.tensorflow_runtime import quiet, tensorflow_module, tf2onnx_module
from dovetail.export.tensorflow_translations import (
    default_of,
    definition_of,
    handlers,
    inferred_attributes,
)
from dovetail.model.proto_graph import all_nodes

CUSTOM_DOMAIN = "ai.onnx.converters.tensorflow"
"""Where an operator stays that nothing translates."""

OLDEST_OPSET = 9
"""Below, tf2onnx misses most operators, and Dovetail's importer a few."""


@dataclass
class Untranslated:
    """An operator of TensorFlow that tf2onnx does not translate, with all its nodes."""

    op: str
    reason: str = ""
    nodes: list[str] = field(default_factory=list)
    inputs: tuple[str, ...] = ("x",)
    attributes: tuple[tuple[str, str], ...] = ()
    """Names, with the text of their defaults."""
    outputs: int = 1
    since: int | None = None
    """The oldest opset at which tf2onnx translates it, as far as it says; None where none does."""


def newest_opset() -> int:
    """The newest opset that the installed tf2onnx and onnx both know."""
    constants = tf2onnx_module("constants")
    return min(int(max(constants.OPSET_TO_IR_VERSION)), int(onnx.defs.onnx_opset_version()))


def chosen_opset(given: int | None) -> int:
    """The opset to use; by default the newest that tf2onnx writes.

    Raises:
        UsageError: one that it does not write.
    """
    newest = newest_opset()
    if given is None:
        return newest
    if not OLDEST_OPSET <= given <= newest:
        raise UsageError(
            f"--opset: got {given}, expected {OLDEST_OPSET} to {newest}, which tf2onnx {tf2onnx_version()} writes"
            + ("; `dovetail edit` converts the result to a newer one" if given > newest else "")
        )
    return given


def tf2onnx_version() -> str:
    """The version of tf2onnx."""
    return str(tf2onnx_module("version").version)


def convert(
    frozen: Frozen,
    opset: int,
    *,
    inputs_as_nchw: Sequence[str] = (),
    outputs_as_nchw: Sequence[str] = (),
    dequantize: bool = False,
    verbose: bool = False,
) -> tuple[onnx.ModelProto, list[Untranslated]]:
    """The ONNX model, and what of it is no ONNX: those operators are nodes of `CUSTOM_DOMAIN` in the model.

    Args:
        frozen: what to convert.
        opset: of ONNX's operators.
        inputs_as_nchw, outputs_as_nchw: names of 4-d inputs and outputs that get the channels in front.
        dequantize: of a quantised TFLite model, make one that computes in fp32.
        verbose: let TensorFlow and tf2onnx write to stderr.

    Raises:
        UsageError: an unknown name of an input or output.
        ExportError: tf2onnx fails as a whole.
    """
    tensors = {label: tensor for tensor, label in frozen.names.items()}
    nchw = [_tensors(names, ends, tensors, option) for names, ends, option in (
        (inputs_as_nchw, frozen.inputs, "inputs_as_nchw"), (outputs_as_nchw, frozen.outputs, "outputs_as_nchw"),
    )]  # fmt: skip
    tf = tensorflow_module(verbose)
    tfonnx, optimizer = (tf2onnx_module(name, verbose) for name in ("tfonnx", "optimizer"))
    with quiet(verbose), _failures() as failed, tf.Graph().as_default() as graph, tf.device("/cpu:0"):
        try:
            constants = None
            if frozen.graph is not None:
                if frozen.large:
                    constants = tf2onnx_module("tf_utils", verbose).compress_graph_def(frozen.graph)
                tf.import_graph_def(frozen.graph, name="")
            made = tfonnx.process_tf_graph(
                graph,
                continue_on_error=True,
                opset=opset,
                custom_op_handlers=handlers(opset),
                custom_rewriter=[rewrite_keras_gru],
                input_names=list(frozen.inputs),
                output_names=list(frozen.outputs),
                inputs_as_nchw=nchw[0],
                outputs_as_nchw=nchw[1],
                const_node_values=constants,
                tensors_to_rename=dict(frozen.names),
                initialized_tables=frozen.tables,
                tflite_path=None if frozen.tflite is None else str(frozen.tflite),
                dequantize=dequantize,
            )
            made = optimizer.optimize_graph(made, catch_errors=not frozen.large)
            model = made.make_model(_graph_name(frozen))
        except Exception as error:  # tf2onnx raises what its many parts raise
            text = f"{type(error).__name__}: {str(error).strip()[:400]}"
            raise ExportError(f"{frozen.name}: tf2onnx {tf2onnx_version()} fails: {text}") from error
    _restore_ranks(model, frozen, tensors)
    missing = _untranslated(model, graph, failed)
    _keep_imports(model)
    return model, missing


def _restore_ranks(model: onnx.ModelProto, frozen: Frozen, tensors: dict[str, str]) -> None:
    """Give outputs whose shape was lost one of the rank that the function said; ONNX wants one of every output."""
    for value in model.graph.output:
        rank = frozen.ranks.get(tensors.get(value.name, value.name))
        if not value.type.tensor_type.HasField("shape") and rank is not None:
            value.type.tensor_type.shape.SetInParent()
            for _ in range(rank):
                value.type.tensor_type.shape.dim.add()


def _tensors(names: Sequence[str], ends: Sequence[str], tensors: dict[str, str], option: str) -> list[str]:
    found = []
    for name in names:
        tensor = tensors.get(name, name)
        if tensor not in ends:
            known = [label for label, t in tensors.items() if t in ends]
            raise UsageError(f"--{option.replace('_', '-')}: got {name!r}, expected some of {known}{did_you_mean(name, known)}")
        found.append(tensor)
    return found


def _graph_name(frozen: Frozen) -> str:
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in frozen.name.rsplit("/", 1)[-1])
    return name.strip("_") or "model"


@contextmanager
def _failures() -> Iterator[dict[str, str]]:
    """Nodes whose translation failed, with the reason: tf2onnx only logs them."""
    found: dict[str, str] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and isinstance(record.msg, str) and record.msg.startswith("Failed to convert node") and record.args:
                reason = str(record.exc_info[1]).strip().partition("\n")[0].removeprefix("make_sure failure: ")
                found[str(record.args[0])] = reason  # type: ignore[index]  # a tuple, as tf2onnx logs it

    logger = logging.getLogger("tf2onnx.tfonnx")
    collector, level = Collector(logging.ERROR), logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.ERROR)
    try:
        yield found
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)


# ---------------------------------------------------------------------- what nothing translates
def _untranslated(model: onnx.ModelProto, graph: Any, failed: dict[str, str]) -> list[Untranslated]:
    operations = {op.name: op for op in graph.get_operations()}
    opset = next(o.version for o in model.opset_import if o.domain == "")
    found: dict[str, Untranslated] = {}
    for node in all_nodes(model.graph):
        known = node.domain not in ("", CUSTOM_DOMAIN) or (node.domain == "" and _in_opset(node.op_type, opset))
        if known and node.name not in failed:
            continue
        if node.domain == CUSTOM_DOMAIN and node.name not in failed:
            continue  # a translation of the user's left it there
        operation = operations.get(node.name)
        if operation is not None:
            node.op_type = operation.type
            _drop_inferred_attributes(node, operation)
        node.domain = CUSTOM_DOMAIN
        reason = failed.get(node.name, "")
        if node.op_type not in found:
            found[node.op_type] = _describe(node, reason)
        found[node.op_type].nodes.append(node.name)
    for entry in found.values():
        entry.nodes.sort()
    return [found[op] for op in sorted(found)]


def _describe(node: onnx.NodeProto, reason: str) -> Untranslated:
    """What is known of an operator from one of its nodes, and from its definition."""
    definition = definition_of(node.op_type)
    names, attributes = [f"x{i}" for i in range(len(node.input))], []
    if definition is not None:
        if len(definition.input_arg) == len(node.input):
            names = [arg.name for arg in definition.input_arg]
        inferred = inferred_attributes(definition)
        for attribute in definition.attr:
            if attribute.name not in inferred:
                default = default_of(attribute)
                attributes.append((attribute.name, "" if default is None else repr(default)))
    since = _opset_in(reason) if reason else _translated_since(node.op_type)
    return Untranslated(node.op_type, reason, [], tuple(names), tuple(attributes), len(node.output), since)


def _in_opset(op: str, opset: int) -> bool:
    try:
        return bool(onnx.defs.get_schema(op, opset, "").name)
    except onnx.defs.SchemaError:
        return False


def _drop_inferred_attributes(node: onnx.NodeProto, operation: Any) -> None:
    """Take away attributes that only repeat the types and numbers of inputs, and what TensorFlow adds to every node."""
    inferred = inferred_attributes(operation.op_def)
    kept = [a for a in node.attribute if a.name not in inferred and not a.name.startswith("_")]
    del node.attribute[:]
    node.attribute.extend(kept)


def _opset_in(reason: str) -> int | None:
    """The opset that tf2onnx says it needs ("Opset 11 is required for half_pixel_centers=True"); None where it says none."""
    found = re.search(r"opset (?:version )?(?:>=? ?)?(\d+)", reason, re.IGNORECASE)
    return int(found[1]) if found else None


def _translated_since(op: str) -> int | None:
    if op in TRANSLATIONS:
        return OPSET
    versions = tf2onnx_module("handler").tf_op.get_opsets().get("", [])
    return next((version for version, table in enumerate(versions) if op in table), None)


def _keep_imports(model: onnx.ModelProto) -> None:
    """Import exactly the domains that nodes are of."""
    used = {n.domain for n in all_nodes(model.graph)} | {""}
    versions = {o.domain: o.version for o in model.opset_import} | {}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, versions.get(domain, 1)) for domain in sorted(used))
