"""`dovetail.export.pytorch`: a module or program of PyTorch becomes an ONNX model, checked against it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import onnx

from dovetail.core.errors import ExportError, UsageError
from dovetail.core.log import logger
from dovetail.core.optional import require
from dovetail.core.text import first_line
from dovetail.export import torch_names
from dovetail.export.exported import ExportedModel
from dovetail.export.report import ExportReport
from dovetail.export.torch_check import check_valid, compare, tolerance_of
from dovetail.export.torch_dynamic import DynamicAxes, axes_of
from dovetail.export.torch_exporters import EXPORTERS, Written, check_opset, default_opset
from dovetail.export.torch_subject import (
    WHOLE,
    Subject,
    device_of,
    evaluating,
    output_names,
    subject,
)
from dovetail.frontend.reader import element_type
from dovetail.model.proto_graph import read_names
from dovetail.model.weights import stored_bytes

_log = logger("export")
_STAGES = ("run", "export", "names", "check", "compare")

Progress = Callable[[str, int, int], None]


def pytorch(
    model: Any,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: DynamicAxes | None = None,
    opset: int | None = None,
    exporter: str = "dynamo",
    allow_fallback: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    simplify: bool = False,
    check: bool = True,
    tolerance: float | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> ExportedModel:
    """Export a model of PyTorch, in evaluation mode, and compare it with the original.

    Args:
        model: torch.nn.Module or torch.export.ExportedProgram.
        args: example inputs: a tuple, or one tensor. A program has its own.
        kwargs: example inputs by name.
        dynamic: axes whose size is open: {"x": {0: "batch"}}, {"x": [0]} or ["x:0=batch"]; "input0" is the first input.
        opset: of ONNX's operators; default: what the installed PyTorch recommends.
        exporter: "dynamo" (torch.export) or "torchscript" (a trace).
        allow_fallback: take the other exporter where this one fails; the report says so.
        input_names, output_names: default: the parameters of `forward`, and the keys of the dict that it returns, "output", or
            "output0", "output1" …
        simplify: simplify the model; parameters that this folds lose their names.
        check: compare outputs with PyTorch's on the example inputs and, where axes are dynamic, at other sizes.
        tolerance: relative L2 difference up to which an output counts as equal; default: by the types of the weights.
        name: what the report calls the model; default: its class.
        progress: called as progress(stage, done, total).

    Returns:
        The model; its initializers have the names of the state dict, and `report` says what was done.

    Raises:
        UsageError: PyTorch or what its exporter needs is missing; arguments, names or an opset that do not fit.
        ExportError: PyTorch cannot export it (with the operator, its place, and ways out), or the result differs from the original.
    """
    if exporter not in EXPORTERS:
        raise UsageError(f"exporter: got {exporter!r}, expected one of {', '.join(EXPORTERS)}")
    torch = require("torch", "torch", "exporting from PyTorch")
    wanted = default_opset(exporter) if opset is None else opset
    check_opset(exporter, wanted)
    given = subject(model, args, kwargs)
    if given.program is not None:
        _refuse_training(given)
    _rename_inputs(given, input_names)
    axes = axes_of(dynamic, given.leaves)
    seconds: dict[str, float] = {}
    step = _Steps(progress, seconds)
    report = ExportReport(name or given.name, exporter, _versions(torch, exporter), wanted, seconds=seconds, notes=given.notes)
    with evaluating(given.module) as switched:
        if switched:
            what = "the module was" if switched[0] == WHOLE else f"{len(switched)} of its parts ({switched[0]!r} …) were"
            report.notes.append(f"{what} in training mode: exported in evaluation mode, and put back")
        step("run")
        expected = _first_run(given)
        step("export")
        written = _export(given, wanted, exporter, axes, allow_fallback, report, opset is None)
        report.notes += written.notes
        step("names")
        _finish_names(written.proto, given, axes, expected, output_names)
        folder = None if written.scratch is None else written.scratch.path
        result = ExportedModel(written.proto, report, folder, written.scratch)
        if simplify:
            step("simplify")
            result = ExportedModel(result.simplify().proto, report, folder, written.scratch)
        _describe(result.proto, given, report)
        step("check")
        check_valid(result.proto, folder)
        if check:
            step("compare")
            report.tolerance = tolerance_of(given) if tolerance is None else tolerance
            outcome = compare(given, result.proto, folder, axes, report.tolerance, expected)
            report.differences, report.evaluator = outcome.differences, outcome.evaluator
            report.notes += outcome.notes
        else:
            report.notes.append("not compared with PyTorch")
    step("done")
    return result


class _Steps:
    """Times stages and tells of them."""

    def __init__(self, progress: Progress | None, seconds: dict[str, float]) -> None:
        self._progress, self._seconds = progress, seconds
        self._stage, self._start = "", 0.0

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        if self._stage:
            self._seconds[self._stage] = round(now - self._start, 4)
            if self._progress is not None:
                self._progress(self._stage, 1, 1)
        self._stage, self._start = stage, now
        if self._progress is not None and stage != "done":
            self._progress(stage, 0, 1)


def _first_run(given: Subject) -> Any:
    """What the module returns for its example inputs.

    Raises:
        ExportError: it fails, with the place in the module.
    """
    place = _Place(given.module)
    try:
        with place if given.program is None else nullcontext():
            return given.run()
    except Exception as error:  # whatever forward raises
        shapes = ", ".join(f"{k} {str(t.dtype).rpartition('.')[2]}{list(t.shape)}" for k, t in given.leaves.items())
        devices = device_of(given.weights, given.leaves)
        hint = f"; weights and inputs are on {' and '.join(devices)}: move them to one" if len(devices) > 1 else "; give inputs that fit"
        reason = first_line(error)
        raise ExportError(f"{given.name}{place.text}: the module itself fails on the example inputs ({shapes}): {reason}{hint}") from error


class _Place:
    """Remembers the innermost part of a module that was running when something failed."""

    def __init__(self, module: Any) -> None:
        self._names = {id(part): name for name, part in module.named_modules() if name}
        self._module, self._handles, self._stack = module, [], []  # type: ignore[var-annotated]  # torch's hook handles
        self.text = ""

    def __enter__(self) -> None:
        for part in self._module.modules():
            if id(part) in self._names:
                self._handles.append(part.register_forward_pre_hook(lambda part, _: self._stack.append(part)))
                self._handles.append(part.register_forward_hook(lambda part, _, __: self._left(part)))

    def _left(self, part: Any) -> None:
        if self._stack and self._stack[-1] is part:
            self._stack.pop()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for handle in self._handles:
            handle.remove()
        if error is not None and self._stack:
            part = self._stack[-1]
            self.text = f", in {self._names[id(part)]!r} ({type(part).__name__})"


def _export(
    given: Subject, opset: int, exporter: str, axes: Mapping[str, Mapping[int, str]], allow_fallback: bool, report: ExportReport, free: bool
) -> Written:
    """By the exporter asked for, or where that fails and it is allowed by the other one."""
    try:
        return EXPORTERS[exporter](given, opset, axes)
    except ExportError as error:
        other = next(e for e in EXPORTERS if e != exporter)
        if not allow_fallback or given.program is not None:
            raise
        if free:
            opset = min(opset, default_opset(other))
        _log.info("%s failed, trying %s: %s", exporter, other, error)
        try:
            check_opset(other, opset)
            written = EXPORTERS[other](given, opset, axes)
        except (ExportError, UsageError) as second:
            raise ExportError(f"{error}\nThe {other} exporter, which was allowed to take its place, fails too: {second}") from error
        report.exporter, report.opset = other, opset
        report.notes.append(f"the {exporter} exporter failed, so the {other} exporter wrote this: {str(error).splitlines()[0]}")
        return written


def _finish_names(
    proto: onnx.ModelProto, given: Subject, axes: Mapping[str, Mapping[int, str]], expected: Any, outputs: Sequence[str] | None
) -> None:
    torch_names.own_weights(proto, given.weights)
    names = output_names(expected)
    if outputs is not None and len(outputs) != len(names):
        raise UsageError(f"output_names: got {len(outputs)} names, expected {len(names)}, for {', '.join(names)}")
    torch_names.name_border(proto, list(given.leaves), list(outputs or names))
    torch_names.name_sizes(proto, axes)
    torch_names.drop_zero_biases(proto, given.weights)
    torch_names.name_nodes(proto)
    proto.graph.name = given.name


def _rename_inputs(given: Subject, names: Sequence[str] | None) -> None:
    if names is None:
        return
    if len(names) != len(given.leaves) or len(set(names)) != len(names):
        raise UsageError(
            f"input_names: got {', '.join(names) or 'none'}, expected {len(given.leaves)} different names, for {', '.join(given.leaves)}"
        )
    given.leaves = dict(zip(names, given.leaves.values(), strict=True))


def _refuse_training(given: Subject) -> None:
    """Refuse a program that was exported in training mode, which nothing can switch any more.

    Raises:
        UsageError: it drops out, or normalises by the statistics of the batch.
    """
    position = {"dropout": 2, "batch_norm": 5, "native_batch_norm": 5, "instance_norm": 5}
    for node in given.program.graph.nodes:
        kind = str(node.target).removeprefix("aten.").partition(".")[0]
        training = kind in position and len(node.args) > position[kind] and node.args[position[kind]] is True and kind != "instance_norm"
        if training or kind in ("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "native_dropout"):
            raise UsageError(
                f"ExportedProgram: it was made of a module in training mode ({node.name} is {node.target}), expected evaluation mode; "
                "call module.eval() before torch.export.export"
            )


def _describe(proto: onnx.ModelProto, given: Subject, report: ExportReport) -> None:
    """Fill in what the finished model is."""
    names = {t.name for t in proto.graph.initializer}
    report.opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), report.opset)
    report.inputs = {v.name: _type_text(v) for v in proto.graph.input if v.name not in names}
    report.outputs = {v.name: _type_text(v) for v in proto.graph.output}
    report.operators = dict(Counter(n.op_type for n in proto.graph.node).most_common())
    report.weights = len(names & given.weights.keys())
    report.weights_bytes = sum(stored_bytes(t) for t in proto.graph.initializer)
    tied = {t.data_ptr() for n, t in given.weights.items() if n in names}
    state = (given.module if given.program is None else given.program).state_dict
    kept = set(state() if callable(state) else state)  # buffers that no state dict has need no name
    report.renamed = [n for n, t in given.weights.items() if n in kept - names and t.is_floating_point() and t.data_ptr() not in tied]
    read = set(read_names(proto.graph.node)) | {v.name for v in proto.graph.output}
    ignored = [name for name in report.inputs if name not in read]
    if ignored:
        report.notes.append(f"no output depends on the input{'s' * (len(ignored) > 1)} {', '.join(ignored)}")


def _type_text(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ",".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    kind = element_type(tensor.elem_type, value.name).name
    return f"{kind}[{dims}]" if tensor.HasField("shape") else kind


def _versions(torch: Any, exporter: str) -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    if exporter == "dynamo":
        found["onnxscript"] = str(getattr(require("onnxscript", "torch", "PyTorch's dynamo exporter"), "__version__", "?"))
    return found | {"onnx": onnx.__version__}
