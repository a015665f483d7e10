"""`dovetail.export.tensorflow`: a model of TensorFlow or Keras as ONNX."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from dovetail.core.errors import UsageError
from dovetail.export.exported import ExportedModel
from dovetail.export.tensorflow_comparison import Case, compare, without_meaning
from dovetail.export.tensorflow_conversion import chosen_opset, convert
from dovetail.export.tensorflow_failures import refuse, untranslated_note
from dovetail.export.tensorflow_graphs import Frozen, Wanted
from dovetail.export.tensorflow_names import drop_unused_inputs, name_sizes
from dovetail.export.tensorflow_report import TensorflowReport, describe, source_operators, versions
from dovetail.export.tensorflow_sources import open_source
from dovetail.model.equivalence import DeclaredInput, declared_inputs
from dovetail.model.model import Model


def tensorflow(
    source: Any,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    signature: str | Sequence[Any] | None = None,
    tag: str | None = None,
    opset: int | None = None,
    shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    inputs_as_nchw: Sequence[str] = (),
    outputs_as_nchw: Sequence[str] = (),
    keep_unused_inputs: bool = False,
    continue_on_error: bool = False,
    dequantize: bool = False,
    large_model: bool = False,
    simplify: bool = False,
    check: bool = True,
    samples: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    verbose: bool = False,
) -> ExportedModel:
    """Export a model of TensorFlow to ONNX, and compare what it computes with TensorFlow.

        model = dovetail.export.tensorflow("saved_model/")
        print(model.report)
        model.save("model.onnx")

    Pictures stay as they are in TensorFlow (channels last), and inputs and outputs keep the names that the user knows: those of a
    signature, of Keras' inputs and output layers, of a function's arguments and the keys of its result, of tensors without ":0".

    Args:
        source: SavedModel folder, `.keras`, `.h5`, frozen `.pb` or `.tflite` file ("tensorflow:PATH" is the same); a Keras model or layer,
            `tf.function`, concrete function, or `tf.Module` with `__call__`.
        inputs: tensors ("x:0") at which a frozen graph begins; default its placeholders. Of other models: the order of their inputs.
        outputs: tensors at which a frozen graph ends; default what nothing reads. Of other models: the outputs to keep.
        signature: which one of a SavedModel; default serving_default, or the only one. Of a function or Keras model whose inputs nobody
            has said: a list of `tf.TensorSpec` or arrays.
        tag: which graph of a SavedModel, by its tags with commas between; default serve, or the only one.
        opset: of ONNX's operators; default the newest that tf2onnx writes.
        shapes: sizes of inputs by name; a string names an open size, None leaves it open.
        dynamic: names of open sizes by input and axis, as `{"x": {0: "batch"}}`.
        inputs_as_nchw, outputs_as_nchw: inputs and outputs that get the channels in front.
        keep_unused_inputs: keep inputs that nothing reads.
        continue_on_error: leave operators that have no translation in the model, as nodes for plugins of their names.
        dequantize: make a model that computes in fp32 of a quantised TFLite model.
        large_model: do without serialised protos, which end at 2 GiB; chosen by itself where variables are that many.
        simplify: simplify the model afterwards.
        check: compare outputs with TensorFlow's.
        samples: the inputs to compare on, by name; default seeded ones.
        tolerance: relative L2 difference that outputs may have; default 1e-4, 1e-2 of fp16 and bf16.
        seed: of the inputs of the comparison.
        verbose: let TensorFlow and tf2onnx write to stderr.

    Returns:
        The model, with its `report`.

    Raises:
        UsageError: TensorFlow is not installed; no such signature, tensor, input or opset.
        ModelError: nothing that is a model of TensorFlow.
        ExportError: a graph in training mode, operators without translation (all of them, with ways out), or outputs that differ.
    """
    clock = _Clock()
    opset = chosen_opset(opset)
    frozen = open_source(source, Wanted(inputs, outputs, signature, tag, dict(shapes or {}), large_model, verbose))
    if dequantize and frozen.tflite is None:
        raise UsageError(f"--dequantize: got a {frozen.kind}, expected a TFLite model")
    clock.lap("read")
    proto, missing = convert(
        frozen, opset, inputs_as_nchw=inputs_as_nchw, outputs_as_nchw=outputs_as_nchw, dequantize=dequantize, verbose=verbose
    )
    if missing and not continue_on_error:
        refuse(frozen, missing, opset)
    name_sizes(proto, frozen, dynamic or {}, shapes or {})
    declared = _declared(proto)
    unused = drop_unused_inputs(proto, keep_unused_inputs)
    if simplify:
        proto = Model(proto).simplify().proto
    report = TensorflowReport(frozen.name, "tf2onnx", versions(), opset, kind=frozen.kind, source_operators=source_operators(frozen))
    model = ExportedModel(proto, report)
    model.check(full=not missing)
    clock.lap("convert")

    report.notes += frozen.notes
    report.unused_inputs, report.unused_kept = unused, keep_unused_inputs
    report.untranslated = {entry.op: entry.nodes for entry in missing}
    report.notes += [untranslated_note(entry) for entry in missing]
    describe(report, model)
    if check:
        _compare(report, frozen, proto, Case(samples, declared, seed, [*inputs_as_nchw, *outputs_as_nchw], tolerance))
    else:
        report.notes.append("not compared with TensorFlow: as asked")
    clock.lap("compare")
    report.seconds = clock.laps
    return model


def _declared(proto: onnx.ModelProto) -> list[DeclaredInput] | str:
    """The inputs, before those that nothing reads are dropped; or why no values can be made up for them."""
    try:
        return declared_inputs(proto)
    except UsageError as error:
        return str(error).partition("; pass")[0]


def _compare(report: TensorflowReport, frozen: Frozen, proto: onnx.ModelProto, case: Case) -> None:
    open_ops = without_meaning(proto)
    if open_ops:
        reason = f"nothing runs {', '.join(open_ops)}; register plugins of these names (--plugins FILE.py)"
    elif isinstance(case.declared, str) and case.samples is None:
        reason = case.declared
    else:
        report.tolerance = case.limit(proto)
        report.differences, report.evaluator, notes = compare(frozen, proto, case)
        report.notes += notes
        return
    report.notes.append(f"not compared with TensorFlow: {reason}")


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now
