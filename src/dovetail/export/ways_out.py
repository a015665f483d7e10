"""The four ways out when an operator does not export: a newer opset, a rewrite, a translation, a plugin.

Framework-neutral: an exporter says in an `OpFailure` what it knows of the operator, `ways` says which of the four apply to it and
gives the code to paste.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dovetail.export.onnx_operators import equivalent, first_versions, newest_opset
from dovetail.export.rewrites import rewrite_of
from dovetail.export.stubs import plugin_stub, translation_stub

Kind = Literal["opset", "rewrite", "translation", "plugin"]


@dataclass(frozen=True)
class OpFailure:
    """An operator that an exporter does not translate, and what the exporter knows of it.

    `op` is what the framework calls it ("aten::asinh", "Betainc"). `where` are places: in the user's source where they are known,
    else names of nodes. `inputs` are the names of its tensor operands, `attributes` those of its other arguments with the text of
    their defaults ("" where there is none).
    """

    op: str
    framework: Literal["pytorch", "tensorflow"]
    exporter: str
    opset: int
    where: tuple[str, ...] = ()
    reason: str = ""
    inputs: tuple[str, ...] = ("x",)
    attributes: tuple[tuple[str, str], ...] = ()
    results: int = 1
    exporter_since: int | None = None
    """The oldest opset at which this exporter translates it; None where none does."""
    other_exporter: str = ""
    """Another exporter of the framework that translates it, at this opset or at `other_since`."""
    other_since: int | None = None
    decomposition: tuple[str, ...] = ()
    """The operators that the framework itself can take it apart into, where all of them export."""
    order: tuple[str, ...] = ()
    """All arguments in the operator's own order; default: inputs, then attributes."""
    optional: tuple[str, ...] = ()
    """Inputs that may be absent."""
    calls: int = 1
    """How often the model has it."""


@dataclass(frozen=True)
class WayOut:
    """One of the four ways: whether it applies here, one or two sentences, and code to paste (may be "")."""

    kind: Kind
    applies: bool
    text: str
    code: str = ""


def ways(failure: OpFailure) -> list[WayOut]:
    """The four ways out for an operator, in this order: opset, rewrite, translation, plugin; each says whether it applies."""
    return [_opset(failure), _rewrite(failure), _translation(failure), _plugin(failure)]


def describe(found: Iterable[WayOut], *, indent: str = "  ") -> str:
    """Ways out as text: numbered, those that do not apply with why, code below."""
    lines = []
    for number, way in enumerate(found, 1):
        lines.append(f"{indent}{number}. {_TITLES[way.kind]}: {way.text}")
        lines += [f"{indent}       {line}".rstrip() for line in way.code.splitlines()]
    return "\n".join(lines)


_TITLES: dict[Kind, str] = {
    "opset": "a newer opset",
    "rewrite": "a rewrite with operators that export",
    "translation": "a translation",
    "plugin": "a plugin",
}


def _opset(failure: OpFailure) -> WayOut:
    if failure.exporter_since is not None and failure.exporter_since > failure.opset:
        since = failure.exporter_since
        return WayOut("opset", True, f"the {failure.exporter} exporter translates it from opset {since} on: --opset {since}.")
    if failure.other_exporter:
        other = f"--exporter {failure.other_exporter}"
        if failure.other_since is not None and failure.other_since > failure.opset:
            since = failure.other_since
            return WayOut("opset", True, f"the other exporter has a translation, at opset {since} and newer: {other} --opset {since}.")
        return WayOut("opset", True, f"opset {failure.opset} may do with the other exporter, which has a translation: {other}.")
    name = equivalent(failure.op)
    if name is None:
        return WayOut("opset", False, f"none helps: ONNX has no operator of that meaning up to opset {newest_opset()}.")
    since = first_versions()[name]
    if since > failure.opset:
        return WayOut("opset", True, f"ONNX has {name} since opset {since}: --opset {since}, and the translation below, which uses it.")
    return WayOut("opset", False, f"none is needed: ONNX has {name} since opset {since}, and the translation below uses it.")


def _rewrite(failure: OpFailure) -> WayOut:
    known = rewrite_of(failure.op)
    if known is not None:
        return WayOut("rewrite", True, known.text, known.code)
    if failure.decomposition:
        parts = ", ".join(failure.decomposition)
        return WayOut("rewrite", True, f"PyTorch can take it apart into operators that export ({parts}).", _decompose(failure.op))
    return WayOut("rewrite", False, "none is known here; compute it with other operators in your model.")


def _decompose(op: str) -> str:
    qualified = op.replace("::", ".")
    if qualified.count(".") == 1:
        qualified += ".default"
    return (
        f"op = torch.ops.{qualified}\n"
        "program = torch.export.export(model, inputs)\n"
        "program = program.run_decompositions({**torch.export.default_decompositions(), **torch._decomp.get_decompositions([op])})\n"
        'dovetail.export.pytorch(program, "model.onnx")'
    )


def _translation(failure: OpFailure) -> WayOut:
    name = equivalent(failure.op)
    since = first_versions()[name] if name is not None else 1
    op = f"tf::{failure.op}" if failure.framework == "tensorflow" else failure.op
    both = "" if failure.framework == "tensorflow" else ", for both exporters"
    text = f"write it in ONNX operators{both}; import it before the export, or name its file with --plugins."
    code = translation_stub(op, failure.inputs, failure.attributes, failure.results, name, max(failure.opset, since), failure.order)
    return WayOut("translation", True, text, code)


def _plugin(failure: OpFailure) -> WayOut:
    if failure.framework == "tensorflow":
        text = "let the node stay in the model (--continue-on-error), and run it in Dovetail by a function of yours."
    else:
        text = "export it as a node of a domain of its own, and run that node in Dovetail by a function of yours."
    code = plugin_stub(failure.op, failure.inputs, failure.attributes, failure.results, failure.order, failure.optional)
    return WayOut("plugin", True, text, code)
