"""What is said of operators of TensorFlow that nothing translates: all at once, with their nodes, places and ways out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from dovetail.core.errors import ExportError
from dovetail.core.text import counted
from dovetail.export.tensorflow_conversion import Untranslated, tf2onnx_version
from dovetail.export.tensorflow_graphs import Frozen
from dovetail.export.ways_out import OpFailure, describe, ways

_SHOWN = 3


def refuse(frozen: Frozen, missing: Sequence[Untranslated], opset: int) -> NoReturn:
    """Raise the error that lists every operator without translation.

    Raises:
        ExportError: always.
    """
    count = sum(len(entry.nodes) for entry in missing)
    lines = [
        f"{frozen.name}: {counted(len(missing), 'operator')} of TensorFlow without a translation to opset {opset} "
        f"({counted(count, 'node')}), by tf2onnx {tf2onnx_version()}; nothing was written; four ways out of each:"
    ]
    failures = []
    for entry in missing:
        places = [place for node in entry.nodes if (place := source_line(frozen.trace, node))]
        lines += ["", f"{entry.op}: {_nodes(entry)}" + (f", made at {'; '.join(dict.fromkeys(places[:_SHOWN]))}" if places else "")]
        if entry.reason:
            lines.append(f"  why: {entry.reason}")
        failures.append(failure(entry, opset, tuple(places)))
        lines.append(describe(ways(failures[-1])))
    raise ExportError("\n".join(lines), tuple(failures))


def failure(entry: Untranslated, opset: int, places: tuple[str, ...] = ()) -> OpFailure:
    """An operator as the ways out want it."""
    return OpFailure(
        entry.op, "tensorflow", "tf2onnx", opset, where=places or tuple(entry.nodes), reason=entry.reason, inputs=entry.inputs,
        attributes=entry.attributes, results=entry.outputs, exporter_since=entry.since, calls=len(entry.nodes),
    )  # fmt: skip


def untranslated_note(entry: Untranslated) -> str:
    """What the report says of an operator that stayed."""
    return f"{entry.op} has no translation and stayed TensorFlow's ({_nodes(entry)}); a plugin of that name runs it"


def _nodes(entry: Untranslated) -> str:
    shown = ", ".join(entry.nodes[:_SHOWN])
    more = len(entry.nodes) - _SHOWN
    return f"{counted(len(entry.nodes), 'node')}, {shown}" + (f" and {more} more" if more > 0 else "")


def source_line(trace: Any, node: str) -> str:
    """The line of the user's source that made a node, as "model.py:12 in call"; "" where it is not known."""
    if trace is None:
        return ""
    try:
        operation = trace.get_operation_by_name(node)
    except (KeyError, ValueError):
        return ""
    for frame in reversed(operation.traceback or []):
        if "/dovetail/export/" in frame.filename:
            return ""  # a library's own operator, called by the export
        if "site-packages" not in frame.filename and not frame.filename.startswith("<"):
            return f"{frame.filename}:{frame.lineno} in {frame.name}"
    return ""
