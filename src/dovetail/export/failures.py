"""Why PyTorch could not export a model, in terms of the user's source, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dovetail.core.errors import Error, ExportError
from dovetail.core.optional import require
from dovetail.export.failure_operators import of_dynamo, of_torchscript
from dovetail.export.failure_places import causes, innermost, raised_at
from dovetail.export.ways_out import OpFailure, WayOut, describe, ways

Kind = Literal[
    "operator", "control_flow", "fake_implementation", "input_type", "dynamic_shape", "translation", "model", "exporter"
]

_SHOWN = 4
"""Operators whose ways out the message has; `ExportError.failures` has those of all."""
_PLACES = 3


@dataclass(frozen=True)
class Failure:
    """One thing that stands against an export.

    Attributes:
        kind: what it is: an operator without translation, control flow by values, a custom operator that cannot be traced, an input of
            a type that models do not have, an extent that is not as dynamic as asked, a fault in a registered translation, an
            error of the model itself, or another error of the exporter.
        text: what happened.
        op: the operator, where it is about one.
        where: places in the user's source.
        ways: the four ways out, for operators.
        advice: what to do, for the others.
    """

    kind: Kind
    text: str
    op: str = ""
    where: tuple[str, ...] = ()
    ways: tuple[WayOut, ...] = ()
    advice: tuple[str, ...] = ()


def explain(error: BaseException, *, exporter: str, opset: int, module: Any) -> ExportError:
    """What an exception of one of PyTorch's exporters means for the user.

    Args:
        error: what was raised.
        exporter: "dynamo" or "torchscript".
        opset: the opset asked for.
        module: what was exported.

    Returns:
        An error to raise, whose `failures` are `Failure`s.
    """
    chain = causes(error)
    title = f"{type(module).__name__}: not exported to ONNX (opset {opset}, {exporter} exporter of PyTorch {_version()})"
    operators = of_dynamo(error, opset) if exporter == "dynamo" else of_torchscript(error, opset)
    if operators:
        return _of_operators(title, operators)
    failure = next(found for reader in _READERS if (found := reader(chain, exporter)) is not None)
    lines = [f"{title}: {failure.text}", *(f"  at {place}" for place in failure.where)]
    if failure.advice:
        lines.append("  what to do:")
        for number, advice in enumerate(failure.advice, 1):
            first, *rest = advice.splitlines()
            lines += [f"  {number}. {first}", *(f"         {line}".rstrip() for line in rest)]
    return ExportError("\n".join(lines), (failure,))


def _version() -> str:
    return str(require("torch", "torch", "exporting from PyTorch").__version__).split("+", maxsplit=1)[0]


def _of_operators(title: str, operators: Sequence[OpFailure]) -> ExportError:
    failures = []
    lines = [f"{title}: {len(operators)} operator{'s are' if len(operators) > 1 else ' is'} not translated"]
    for number, operator in enumerate(operators):
        found = tuple(ways(operator))
        text = f"{operator.op} is not translated" + (f": {operator.reason}" if operator.reason else "")
        failures.append(Failure("operator", text, operator.op, operator.where, found))
        calls = f" ({operator.calls} calls)" if operator.calls > 1 else ""
        lines += ["", f"{operator.op}{calls}" + (f": {operator.reason}" if operator.reason else "")]
        lines += [f"  at {place}" for place in operator.where[:_PLACES]]
        if len(operator.where) > _PLACES:
            lines.append(f"  and {len(operator.where) - _PLACES} more places")
        if number < _SHOWN:
            lines += ["  ways out:", describe(found)]
    if len(operators) > _SHOWN:
        lines += ["", f"(the ways out of the last {len(operators) - _SHOWN} are in the error's `failures`, and in --json)"]
    return ExportError("\n".join(lines), tuple(failures))


# --- other failures: each reader says what it makes of a chain of exceptions, or None -------------


def _said(chain: Sequence[BaseException]) -> str:
    return "\n".join(str(e) for e in chain)


def _places(chain: Sequence[BaseException]) -> tuple[str, ...]:
    found = raised_at(chain)
    return (found,) if found else ()


def _translation(chain: Sequence[BaseException], exporter: str) -> Failure | None:
    """A registered translation, or an operator that it writes, is at fault: the message says it all."""
    ours = next((e for e in chain if isinstance(e, Error)), None)
    return None if ours is None else Failure("translation", str(ours), where=_places(chain))


_NO_FAKE = (
    re.compile(r"no fake impl registered for <?(?:CustomOpDef\()?(?P<op>[\w.]+::[\w.]+)"),
    re.compile(r"(?P<op>[\w.]+::[\w.]+): attempted to run this operator with Meta tensors"),
    re.compile(r"(?P<op>[\w.]+::[\w.]+)[^\n]*?(?:fake impl|Meta kernel|FakeTensor)"),
)


def _fake_implementation(chain: Sequence[BaseException], exporter: str) -> Failure | None:
    """A custom operator that PyTorch cannot run on tensors without data."""
    said = _said(chain)
    found = next((m for pattern in _NO_FAKE if (m := pattern.search(said))), None)
    if found is None:
        return None
    op = found["op"]
    schemas = require("torch", "torch", "exporting from PyTorch")._C._jit_get_schemas_for_operator(op)
    names = [a.name for a in schemas[0].arguments] if schemas else ["x"]
    tensor = next((a.name for a in schemas[0].arguments if str(a.type) == "Tensor"), names[0]) if schemas else "x"
    results = len(schemas[0].returns) if schemas else 1
    blank = ", ".join([f"torch.empty_like({tensor})"] * results)
    stub = (
        f'@torch.library.register_fake("{op}")\n'
        f"def _({', '.join(names)}):\n"
        f"    return {blank}  # of the shape and type of the result"
    )
    return Failure(
        "fake_implementation", f"the custom operator {op} has no fake implementation, which tells shapes only", op, _places(chain),
        advice=(f"say what its results look like, beside its definition:\n{stub}", "--exporter torchscript needs none."),
    )  # fmt: skip


_BRANCH = re.compile(r"(?:^|: )(?P<word>if|elif|while|assert|for)\b.*$|\b(?P<inline>if)\b.*\belse\b")


def _control_flow(chain: Sequence[BaseException], exporter: str) -> Failure | None:
    """Python decides by the contents of a tensor, which the one graph of an export cannot do."""
    names = {type(e).__name__ for e in chain}
    said = _said(chain)
    guarded = names & {"GuardOnDataDependentSymNode", "DataDependentOutputException"} or "dynamic control flow" in said.lower()
    if not guarded and "data-dependent" not in said.lower():
        return None
    where = _places(chain)
    code = where[0].partition(": ")[2] if where else ""
    branch = _BRANCH.search(code)
    word = (branch["word"] or branch["inline"]) if branch else ""
    advice: tuple[str, ...] = {
        "while": (
            "a loop over tensors that stays a loop:\nfrom torch._higher_order_ops.while_loop import while_loop\n"
            "(x,) = while_loop(lambda x: CONDITION, lambda x: (BODY,), (x,))",
        ),
        "assert": ("leave the check out of what is exported; checks of sizes alone may stay",),
    }.get(word, (
        "both sides, and a choice between the results: torch.where(CONDITION, A, B)",
        "a branch that stays a branch (ONNX If):\nx = torch.cond(CONDITION, lambda x: A, lambda x: B, (x,))",
    ))  # fmt: skip
    text = "Python decides by a tensor's contents" if branch else "Python needs a number that only the tensor's contents tell"
    if not branch:
        advice = (
            "say what the number can be, before it is used: torch._check(n >= 0); torch._check(n <= x.shape[0])",
            "keep it a tensor: x[mask], torch.gather, torch.where instead of int(…), .item() and .tolist()",
        )
    if exporter == "dynamo":
        advice += (
            "--exporter torchscript records what the example inputs do, which is right only if all inputs do the same; functions under "
            "@torch.jit.script keep their branches there.",
        )
    return Failure("control_flow", f"{text}, but an exported model is one graph for all inputs", "", where, advice=advice)


_TYPES = (
    re.compile(r"Unsupported input type <class '(?P<type>[^']+)'>"),
    re.compile(r"received an input of unsupported type: (?P<type>\S+)"),
    re.compile(r"Type '(?P<type>[^']+)' cannot be traced"),
)


def _input_type(chain: Sequence[BaseException], exporter: str) -> Failure | None:
    """An argument that is no tensor, number or container of these."""
    said = _said(chain)
    found = next((m for pattern in _TYPES if (m := pattern.search(said))), None)
    if found is None:
        return None
    return Failure(
        "input_type", f"an input is a {found['type'].rpartition('.')[2]}, expected tensors, numbers, and lists, tuples or dicts of these",
        advice=(
            "give the parts that are tensors to a module around yours:\nclass Exported(torch.nn.Module):\n    def __init__(self, model):\n"
            "        super().__init__()\n        self.model = model\n\n    def forward(self, x):\n"
            f"        return self.model({found['type'].rpartition('.')[2]}(x))",
            "a dataclass can be made known to PyTorch: torch.export.register_dataclass(CLASS).",
        ),
    )  # fmt: skip


_STATIC = re.compile(r"static shape of (?P<size>\d+) for dimension inputs\['?(?P<name>[^'\]]+)'?\]\.shape\[(?P<axis>\d+)\]")
_RELATION = re.compile(r"^\s*- (?P<text>Not all values of .+|You marked .+|.*(?:must|specialized|constant).*)$", re.MULTILINE)


def _dynamic_shape(chain: Sequence[BaseException], exporter: str) -> Failure | None:
    """An axis that was to be dynamic, and is a number in what the module does."""
    names, said = {type(e).__name__ for e in chain}, _said(chain)
    fixed = list(dict.fromkeys((m["name"], m["axis"], m["size"]) for m in _STATIC.finditer(said)))
    conflict = "ConstraintViolationError" in names or "Constraints violated" in said or "conflicts between user-specified ranges" in said
    mismatch = re.search(r"(?:When `dynamic_shapes`|Detected mismatch between the structure).*", said)
    if fixed:
        axes = ", ".join(f"axis {axis} of {name} (always {size})" for name, axis, size in fixed)
        first = fixed[0]
        return Failure(
            "dynamic_shape", f"to be dynamic, but fixed by what the module does: {axes}", "", _places(chain),
            advice=(
                f"find where the module has the number {first[2]} for it (reshape, expand, a weight or constant of that size), "
                f"and take the size from the tensor: x.shape[{first[1]}], or -1 in reshape.",
                "leave that axis fixed: without --dynamic " + ", ".join(f"{name}:{axis}=…" for name, axis, _ in fixed) + ".",
                "which line it is, PyTorch logs with TORCH_LOGS=+dynamic in the environment (look for `eval Eq`).",
            ),
        )  # fmt: skip
    if conflict:
        what = [m["text"].strip() for m in _RELATION.finditer(said)] or [str(chain[-1]).strip().splitlines()[0]]
        return Failure(
            "dynamic_shape", f"the dynamic axes do not fit the module: {'; '.join(dict.fromkeys(what))}", "", _places(chain),
            advice=(
                "axes that are always equal get one name: --dynamic x:0=batch --dynamic y:0=batch.",
                "example inputs must lie in the ranges; sizes 0 and 1 count as constants.",
            ),
        )  # fmt: skip
    if mismatch is not None:
        return Failure(
            "dynamic_shape", mismatch.group().partition(" For more information")[0],
            advice=("name axes by input and position: --dynamic NAME:AXIS=SYMBOL; names of inputs are those of forward's parameters.",),
        )  # fmt: skip
    return None


def _model(chain: Sequence[BaseException], exporter: str) -> Failure | None:
    """The module itself fails on these inputs, or in a line of the user's."""
    inner = chain[-1]
    where, names = _places(chain), {type(e).__name__ for e in chain}
    if not where and "TorchExportError" not in names and (exporter == "dynamo" or "OnnxExporterError" in names):
        return None
    first = str(inner).strip().partition("\n\n")[0]
    advice = ["run the module on the example inputs without exporting it: model(*inputs); if that fails too, inputs and module do not fit."]
    if "FakeTensor" in first or exporter == "dynamo":
        advice.append(
            "if it runs, that line needs a tensor's contents, or leaves PyTorch, while the exporter traces with tensors that have none: "
            "write it in PyTorch's operators, or use --exporter torchscript."
        )
    return Failure("model", f"forward failed while it was traced ({type(inner).__name__}: {first})", "", where, advice=tuple(advice))


def _exporter(chain: Sequence[BaseException], exporter: str) -> Failure | None:
    """Anything else: what the exporter says, without what it repeats."""
    inner = chain[-1]
    text = (str(inner).strip() or type(inner).__name__).partition("\n\nThe error above occurred")[0]
    node = re.search(r"Error when translating node (.+?)\. See the stack", _said(chain))
    at = innermost(_said(chain))
    other = "torchscript" if exporter == "dynamo" else "dynamo"
    return Failure(
        "exporter", f"{type(inner).__name__}: {text}" + (f" (at the node {node.group(1)})" if node else ""), "", (at,) if at else (),
        advice=(f"try the other exporter: --exporter {other}.", "export parts of the module alone, to find the one that fails."),
    )  # fmt: skip


_READERS: tuple[Callable[[Sequence[BaseException], str], Failure | None], ...] = (
    _translation, _fake_implementation, _input_type, _dynamic_shape, _control_flow, _model, _exporter,
)  # fmt: skip
