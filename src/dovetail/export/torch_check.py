"""Whether an exported model computes what the PyTorch module does: on the example inputs, and at other sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.benchmark import peers
from dovetail.core.errors import Error, ExportError
from dovetail.core.optional import require
from dovetail.core.text import first_line
from dovetail.export.report import Difference
from dovetail.export.torch_dynamic import other_sizes, resized, sizes_of
from dovetail.export.torch_names import array_of
from dovetail.export.torch_subject import Subject, tensors
from dovetail.frontend.importer import import_onnx
from dovetail.model.equivalence import difference as relative_difference
from dovetail.ops.evaluate import evaluate

Arrays = dict[str, Any]

TOLERANCES = {"float64": 1e-5, "float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}
"""Relative L2 difference that counts as equal, by the narrowest type of the module's weights and inputs."""

EXAMPLE = "example inputs"
"""The case that is compared first."""

_BAKED = "the export has taken a size for a constant: look in forward for sizes made Python numbers, or try the other exporter"
_CONDITION = 8.0


@dataclass
class Outcome:
    """What the comparison found.

    Attributes:
        differences: one for each output and case.
        evaluator: what ran the ONNX model.
        notes: what was left out, and why.
    """

    differences: list[Difference]
    evaluator: str
    notes: list[str] = field(default_factory=list)


def check_valid(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Have onnx.checker look at a model.

    Raises:
        ExportError: it is invalid.
    """
    try:
        if folder is None:
            onnx.checker.check_model(proto)
        else:
            path = folder / "checked.onnx"
            onnx.save(proto, path)
            onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        reason = first_line(error)
        raise ExportError(f"export: the exporter wrote an invalid model ({reason}); try the other exporter, or another opset") from error


def tolerance_of(subject: Subject) -> float:
    """The tolerance that goes with the types of a module's weights and inputs."""
    names = {str(t.dtype).rpartition(".")[2] for t in (*subject.weights.values(), *subject.leaves.values())}
    return max((TOLERANCES[n] for n in names if n in TOLERANCES), default=TOLERANCES["float32"])


def compare(
    subject: Subject, proto: onnx.ModelProto, folder: Path | None, axes: Mapping[str, Mapping[int, str]], tolerance: float,
    expected: Any,
) -> Outcome:  # fmt: skip
    """Run both on the example inputs, and where axes are dynamic at other sizes.

    An output may be further away than `tolerance` where rounding the inputs and weights moves PyTorch's own output as much.

    Args:
        expected: what the module returns for its example inputs.

    Raises:
        ExportError: an output differs by more, or its shape does; the model does not run.
    """
    evaluator, run = _evaluator(proto, folder)
    found = Outcome([], evaluator)
    _deterministic(subject, expected)
    _one_case(subject, proto, run, EXAMPLE, subject.leaves, expected, tolerance, found)
    if not axes:
        return found
    sizes = sizes_of(axes, subject.leaves)
    refusal = ""
    for other in other_sizes(sizes):
        leaves = resized(subject.leaves, axes, other)
        try:
            wanted = subject.run(leaves)
        except Exception as error:  # what a module raises is its own affair; the next sizes may fit
            refusal = refusal or first_line(error)
            continue
        case = ", ".join(f"{name}={size}" for name, size in other.items())
        _one_case(subject, proto, run, case, leaves, wanted, tolerance, found)
        return found
    found.notes.append(f"not compared at other sizes: PyTorch's own module takes none of those tried ({refusal})")
    return found


def _one_case(
    subject: Subject, proto: onnx.ModelProto, run: Callable[[Arrays], list[Any]], case: str, leaves: Mapping[str, Any], expected: Any,
    tolerance: float, found: Outcome,
) -> None:  # fmt: skip
    known = {v.name for v in proto.graph.input}
    feeds = {name: array_of(t) for name, t in leaves.items() if name in known}
    try:
        actual = run(feeds)
    except Exception as error:  # each evaluator has its own kinds
        reason = first_line(error)
        why = "" if case == EXAMPLE else f"; {_BAKED}"
        raise ExportError(f"{subject.name}: the ONNX model does not run ({case}, {found.evaluator}): {reason}{why}") from error
    floor: list[Any] | None = None
    for i, (value, want, got) in enumerate(zip(proto.graph.output, map(array_of, tensors(expected)), actual, strict=True)):
        difference = Difference.between(value.name, case, want, np.asarray(got))
        if not difference.relative_l2 <= tolerance:
            if floor is None:
                floor = [array_of(t) for t in tensors(_moved(subject, leaves))]
            moved = Difference.between(value.name, case, want, floor[i])
            if not difference.relative_l2 <= _CONDITION * moved.relative_l2:
                shapes = f", shape {got.shape} for {want.shape}" if np.shape(got) != want.shape else ""
                raise ExportError(
                    f"{subject.name}: output {value.name!r} differs from PyTorch's by {difference.relative_l2:.2g} ({case}, "
                    f"{found.evaluator}{shapes}), expected at most {tolerance:g}; nothing was written. Values that forward computes in "
                    "Python, or branches on, are constants in ONNX: look there, try the other exporter, or allow a larger tolerance"
                )
            found.notes.append(
                f"output {value.name!r} is {difference.relative_l2:.1e} off ({case}), which rounding explains: moving inputs and weights "
                f"by a unit in the last place moves PyTorch's own by {moved.relative_l2:.1e}"
            )
        found.differences.append(difference)


def _deterministic(subject: Subject, expected: Any) -> None:
    """Refuse modules whose results are random.

    Raises:
        ExportError: two runs on the same inputs differ.
    """
    again = subject.run()
    for i, (a, b) in enumerate(zip(tensors(expected), tensors(again), strict=True)):
        error = relative_difference(array_of(a), array_of(b))
        if not error <= 1e-3:
            raise ExportError(
                f"{subject.name}: output {i} differs by {error:.2g} between two runs on the same inputs in evaluation mode, expected the "
                "same; look for F.dropout(…, training=True) and random numbers in forward, or skip the comparison (check=False, --no-check)"
            )


def _moved(subject: Subject, leaves: Mapping[str, Any]) -> Any:
    """PyTorch's outputs with every float input and parameter moved by about a unit in the last place, up or down."""
    torch = require("torch", "torch", "exporting from PyTorch")
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Any) -> Any:
        if not tensor.is_floating_point():
            return tensor
        sign = torch.randint(0, 2, tuple(tensor.shape), generator=generator).to(tensor.device) * 2 - 1
        return tensor * (1 + sign * torch.finfo(tensor.dtype).eps).to(tensor.dtype)

    args, kwargs = subject.with_leaves({k: moved(t) for k, t in leaves.items()})
    with torch.no_grad():
        if subject.program is not None:
            return subject.module(*args, **kwargs)
        weights = {k: moved(t.detach()) for k, t in subject.module.named_parameters()}
        return torch.func.functional_call(subject.module, weights, args, kwargs)


def _evaluator(proto: onnx.ModelProto, folder: Path | None) -> tuple[str, Callable[[Arrays], list[Any]]]:
    """(name, function) that runs a model: ONNX Runtime, or where it is not there or declines the model Dovetail's reference."""
    version = peers.version("onnxruntime")
    if version is not None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        source: Any = str(folder / "checked.onnx") if folder is not None else proto.SerializeToString()
        try:
            session = ort.InferenceSession(source, options, ["CPUExecutionProvider"])
        except Exception as error:  # an opset or operator that it does not know: ours may
            declined = first_line(error)
        else:
            narrow = any("bfloat16" in i.type or "float8" in i.type for i in (*session.get_inputs(), *session.get_outputs()))
            if not narrow:
                return f"ONNX Runtime {version}", lambda feeds: list(session.run(None, feeds))
            declined = "types that NumPy lacks"
    else:
        declined = "not installed"
    try:
        module = import_onnx(folder / "checked.onnx" if folder is not None else proto)
    except Error as error:
        raise ExportError(
            f"export: nothing here runs the ONNX model, so that it cannot be compared with PyTorch: ONNX Runtime: {declined}; "
            f"Dovetail: {error}; skip the comparison (check=False, --no-check)"
        ) from error
    names = [v.name for v in proto.graph.output]

    def run(feeds: Arrays) -> list[Any]:
        values = evaluate(module, feeds)
        return [values[n] for n in names]

    return "Dovetail's reference", run
