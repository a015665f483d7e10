"""PyTorch's two exporters behind one signature. Each gives a model whose weights have the module's own names."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from dovetail.core.errors import ExportError, UsageError
from dovetail.core.optional import require
from dovetail.export.exported import Scratch
from dovetail.export.torch_dynamic import resized, sizes_of
from dovetail.export.torch_names import array_of, without_prefix
from dovetail.export.torch_subject import Subject, parameters
from dovetail.model.edit.opset import convert_opset, lowest_ir
from dovetail.model.model import Model

LARGE_BYTES = 1_800_000_000
"""Weights of more than this stay in files: one protobuf message holds less than 2 GiB."""

OPSETS = {"dynamo": (7, 23), "torchscript": (7, 20)}
"""The least and the largest opset of each exporter; `opset_range` asks the installed release."""

_DYNAMO_LEAST = 18
_IR_OF_PLAIN_WEIGHTS = 4  # the first in which initializers need not be inputs, too
_INNER = "dovetail_inner"
_WHY = "exporting from PyTorch"


@dataclass
class Written:
    """What an exporter has written.

    Attributes:
        proto: the model; large weights are in `scratch`.
        scratch: their folder, or None.
        notes: warnings of the exporter that say something about the model.
    """

    proto: onnx.ModelProto
    scratch: Scratch | None = None
    notes: list[str] = field(default_factory=list)


def opset_range(exporter: str) -> tuple[int, int]:
    """The least and the largest opset that the installed PyTorch writes with an exporter."""
    constants = require("torch.onnx._constants", "torch", _WHY)
    least, largest = OPSETS[exporter]
    name = "ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET" if exporter == "torchscript" else "ONNX_MAX_OPSET"
    return least, int(getattr(constants, name, largest))


def default_opset(exporter: str) -> int:
    """The opset that the installed PyTorch recommends."""
    constants = require("torch.onnx._constants", "torch", _WHY)
    return int(min(getattr(constants, "ONNX_DEFAULT_OPSET", 18), opset_range(exporter)[1]))


def check_opset(exporter: str, opset: int) -> None:
    """Refuse opsets that an exporter does not write.

    Raises:
        UsageError: out of range.
    """
    least, largest = opset_range(exporter)
    if not least <= opset <= largest:
        other = next(e for e in OPSETS if e != exporter)
        low, high = opset_range(other)
        hint = f"; the {other} exporter writes {low} to {high}" if low <= opset <= high else ""
        raise UsageError(f"opset: got {opset}, expected {least} to {largest}, which the {exporter} exporter of this PyTorch writes{hint}")


def dynamo(subject: Subject, opset: int, axes: Mapping[str, Mapping[int, str]]) -> Written:
    """Export through torch.export: one graph of the whole module, or an error that says what stands against that.

    Below opset 18 the model is written at 18 and converted.

    Raises:
        ExportError: PyTorch cannot export it, or the conversion to the opset fails.
    """
    torch = require("torch", "torch", _WHY)
    require("onnxscript", "torch", "PyTorch's dynamo exporter")
    ir = require("onnx_ir", "torch", "PyTorch's dynamo exporter")
    from dovetail.export.translations import install

    written = max(opset, _DYNAMO_LEAST)
    options: dict[str, Any] = {"dynamo": True, "optimize": False, "verbose": False, "opset_version": written}
    with _quiet() as notes, _explained("dynamo", opset, subject.module), install("dynamo", written) as table:
        if table:
            options["custom_translation_table"] = table
        if subject.program is not None:
            program = torch.onnx.export(subject.program, **options)
        else:
            args, kwargs = _enlarged(subject, axes)
            shapes = subject.map_structure(lambda name: dict(axes.get(name, {})) or None) if axes else None
            program = torch.onnx.export(subject.module, args, kwargs=kwargs, dynamic_shapes=shapes, **options)
        notes += table.notes
        _clean(program.model, set(subject.weights))
    if sum(t.nbytes for t in subject.weights.values()) <= LARGE_BYTES:
        return Written(_at_opset(Model(ir.to_proto(program.model)), opset), None, notes)
    scratch = Scratch()
    path = scratch.path / "model.onnx"
    ir.save(program.model, path, external_data="model.onnx.data")
    return Written(_at_opset(Model(onnx.load(path, load_external_data=False), scratch.path), opset), scratch, notes)


def torchscript(subject: Subject, opset: int, axes: Mapping[str, Mapping[int, str]]) -> Written:
    """Export through a trace: what runs on the example inputs is what is written.

    Raises:
        ExportError: PyTorch cannot export it.
        UsageError: an ExportedProgram, which only the dynamo exporter takes.
    """
    torch = require("torch", "torch", _WHY)
    from dovetail.export.translations import install

    if subject.program is not None:
        raise UsageError("exporter: got 'torchscript' for an ExportedProgram, expected 'dynamo'; or export the module that it came from")
    scratch = Scratch()
    path = scratch.path / "model.onnx"
    # This exporter loses count of axes beside lists, dicts and numbers, and fills in defaults: it gets a module that takes tensors alone.
    plain = not subject.kwargs and all(isinstance(a, torch.Tensor) for a in subject.args)
    flat = not plain or parameters(subject.module) != list(subject.structure)
    module = _flat(torch, subject) if flat else subject.module
    args = tuple(subject.leaves.values()) if flat else subject.args
    with _quiet() as notes, _explained("torchscript", opset, subject.module), install("torchscript", opset) as table:
        torch.onnx.export(
            module, args, str(path), dynamo=False, opset_version=opset,
            input_names=list(subject.leaves), dynamic_axes={k: dict(v) for k, v in axes.items()} or None,
            # In evaluation mode, which the module is in; EVAL would fold batch norms into weights that nobody knows by name.
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
        )  # fmt: skip
        notes += table.notes
    large = sum(t.nbytes for t in subject.weights.values()) > LARGE_BYTES
    proto = onnx.load(path, load_external_data=not large)
    if flat:
        without_prefix(proto, _INNER)
    _declare_unused(proto, subject, axes)
    if large:
        return Written(proto, scratch, notes)
    scratch.remove()
    return Written(proto, None, notes)


EXPORTERS: dict[str, Callable[[Subject, int, Mapping[str, Mapping[int, str]]], Written]] = {"dynamo": dynamo, "torchscript": torchscript}
"""PyTorch's exporters by name."""


def _declare_unused(proto: onnx.ModelProto, subject: Subject, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Inputs that no output depends on, which the trace leaves out, are inputs all the same, as with the other exporter."""
    found = {v.name: v for v in proto.graph.input}
    if not found.keys() < subject.leaves.keys():
        return
    inputs = []
    for name, tensor in subject.leaves.items():
        shape = [axes.get(name, {}).get(axis, size) for axis, size in enumerate(tensor.shape)]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array_of(tensor).dtype)
        made = onnx.helper.make_tensor_value_info(name, kind, shape)
        inputs.append(onnx.ValueInfoProto.FromString(found.get(name, made).SerializeToString()))
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)


def _flat(torch: Any, subject: Subject) -> Any:
    """The module as one that takes every tensor of the example arguments in order."""

    class Flat(torch.nn.Module):  # type: ignore[misc]  # torch is imported here
        def __init__(self) -> None:
            super().__init__()
            self.add_module(_INNER, subject.module)

        def forward(self, *tensors: Any) -> Any:
            args, kwargs = subject.with_leaves(dict(zip(subject.leaves, tensors, strict=True)))
            return getattr(self, _INNER)(*args, **kwargs)

    return Flat().eval()


def _enlarged(subject: Subject, axes: Mapping[str, Mapping[int, str]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example arguments with at least 2 along dynamic axes: torch.export takes 0 and 1 for constants."""
    sizes = sizes_of(axes, subject.leaves)
    if all(size > 1 for size in sizes.values()):
        return subject.args, subject.kwargs
    return subject.with_leaves(resized(subject.leaves, axes, {name: max(2, size) for name, size in sizes.items()}))


def _clean(model: Any, weights: set[str]) -> None:
    """Inline functions and fold what is constant, but nothing that a parameter goes into: it is to stay, under its name."""
    passes = require("onnx_ir.passes.common", "torch", "PyTorch's dynamo exporter")
    optimizer = require("onnxscript.optimizer", "torch", "PyTorch's dynamo exporter")

    def foldable(node: Any) -> bool | None:
        return False if any(v is not None and v.is_initializer() and v.name in weights for v in node.inputs) else None

    passes.InlinePass()(model)
    optimizer.fold_constants_ir(model, onnx_shape_inference=True, should_fold=foldable)
    for step in (
        passes.RemoveUnusedNodesPass(), passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(), passes.CommonSubexpressionEliminationPass(), passes.OutputFixPass(),
        passes.NameFixPass(), passes.RemoveUnusedFunctionsPass(), passes.RemoveUnusedOpsetsPass(),
    ):  # fmt: skip
        step(model)


def _at_opset(model: Model, opset: int) -> onnx.ModelProto:
    """The model at the opset asked for, where the exporter writes newer ones only.

    Raises:
        ExportError: an operator has no counterpart there.
    """
    written = model.opset
    if written <= opset:
        return model.proto
    try:
        proto = convert_opset(model, opset).proto
    except UsageError as error:
        raise ExportError(
            f"export: got opset {opset}, but the model, which the dynamo exporter wrote at opset {written}, cannot be converted: {error}; "
            f"take opset {written}, or the torchscript exporter (--exporter torchscript), which writes older ones itself"
        ) from error
    proto.ir_version = min(proto.ir_version, max(lowest_ir(proto), _IR_OF_PLAIN_WEIGHTS))
    return proto


@contextmanager
def _explained(exporter: str, opset: int, module: Any) -> Iterator[None]:
    from dovetail.export.failures import explain

    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise explain(error, exporter=exporter, opset=opset, module=module) from error


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Silence exporters; gives what their warnings say about the model: values of a trace that were taken for constants."""
    notes: list[str] = []
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "torch._export", "torch.fx", "onnx_ir")]
    levels = [log.level for log in loggers]
    internal = require("torch", "torch", _WHY)._C
    # The whole graph, where an operator is not translated; the exporter turns its own switch on, and newer ones print beside it.
    prints, switch = internal._jit_onnx_log, internal._jit_set_onnx_log_enabled
    try:
        switch(False)
        internal._jit_onnx_log = internal._jit_set_onnx_log_enabled = lambda *_: None
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        # torch.export prints graphs to stderr where it fails; what matters of them is in the error.
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("always")
            yield notes
    finally:
        internal._jit_onnx_log, internal._jit_set_onnx_log_enabled = prints, switch
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
    seen = list(dict.fromkeys(f"{Path(w.filename).name}:{w.lineno}" for w in caught if w.category.__name__ == "TracerWarning"))
    if seen:
        more = f" and {len(seen) - 4} more" if len(seen) > 4 else ""
        notes.append(
            f"the trace took a value for a constant at {', '.join(seen[:4])}{more}: other inputs may need another; make axes "
            "that vary dynamic, so that they are compared"
        )
