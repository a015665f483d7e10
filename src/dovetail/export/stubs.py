"""Code to paste for operators that do not export: translations and plugins, with the arguments of the operator."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence

Attributes = Sequence[tuple[str, str]]
"""Names of arguments that are no tensors, with the text of their defaults, "" where there is none."""


def identifier(name: str) -> str:
    """A framework's name of an operator or argument as a name of Python."""
    bare = re.sub(r"^.*::", "", name).split(".")[0]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", re.sub(r"\W", "_", bare)).lower().strip("_") or "custom"
    snake = f"op_{snake}" if snake[0].isdigit() else snake
    return {"self": "x", "op": "op_"}.get(snake, f"{snake}_" if keyword.iskeyword(snake) else snake)


def camel(name: str) -> str:
    """A framework's name of an operator as ONNX names are written: "my_library::soft_shrink" is "SoftShrink"."""
    bare = re.sub(r"^.*::", "", name).split(".")[0]
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"\W|_", bare)) or "Custom"


def _options(attributes: Attributes) -> list[str]:
    return [f"{identifier(name)}={default}" if default else identifier(name) for name, default in attributes]


def _ordered(inputs: Sequence[str], attributes: Attributes, order: Sequence[str]) -> list[str]:
    """Parameters of a function that is called with all arguments by position."""
    texts = {name: identifier(name) for name in inputs} | dict(zip((n for n, _ in attributes), _options(attributes), strict=True))
    made = [texts[name] for name in order or (*inputs, *(n for n, _ in attributes))]
    last_required = max((i for i, text in enumerate(made) if "=" not in text), default=-1)
    return [text.split("=")[0] if i < last_required else text for i, text in enumerate(made)]


def translation_stub(
    op: str, inputs: Sequence[str], attributes: Attributes, results: int, onnx_op: str | None, opset: int, order: Sequence[str] = ()
) -> str:
    """A translation of an operator of PyTorch or TensorFlow ("tf::Lgamma") for `dovetail.export.symbolic`.

    Args:
        op: its qualified name.
        inputs: names of its tensor operands.
        attributes: its other arguments.
        results: how many it has.
        onnx_op: the ONNX operator of its meaning, if there is one; the stub then calls that.
        opset: the oldest opset that the translation is for.
        order: all arguments in the operator's order; default: inputs, then attributes.
    """
    operands = [identifier(name) for name in inputs]
    example = f"op.Mul({operands[0] if operands else 'a'}, 2.0)"
    if onnx_op is not None:
        body = f"return op.{onnx_op}({', '.join(operands)})"
        if attributes:
            body += f"  # see what {', '.join(identifier(n) for n, _ in attributes)} mean for it"
    elif results > 1:
        body = f"return {', '.join(['...'] * results)}  # {results} results in ONNX operators, as {example}"
    else:
        body = f"return ...  # in ONNX operators, as {example}"
    parameters = ", ".join(["op", *_ordered(inputs, attributes, order)])
    return f'@dovetail.export.symbolic("{op}", opset={opset})\ndef {identifier(op)}({parameters}):\n    {body}'


def plugin_stub(
    op: str, inputs: Sequence[str], attributes: Attributes, results: int, order: Sequence[str] = (), optional: Sequence[str] = ()
) -> str:
    """A plugin for an operator, and for one of PyTorch the translation that exports it as a node of a domain of its own.

    Args:
        op, inputs, attributes, results, order: as of `translation_stub`.
        optional: inputs that may be absent; at the end, they have the default None.
    """
    operands, options = [identifier(name) for name in inputs], _options(attributes)
    qualified = "::" in op
    name = camel(op) if qualified else op
    after = ["*", *options] if qualified and options else [] if qualified else ["**attributes"]
    required = max((i for i, n in enumerate(inputs) if n not in optional), default=-1)
    parameters = [text if i <= required else f"{text}=None" for i, text in enumerate(operands)]
    plugin = (
        f'@dovetail.plugin("{name}")\n'
        f"def {identifier(op)}_plugin({', '.join(parameters + after)}):\n"
        "    return ...  # NumPy arrays in, NumPy arrays out"
    )
    if not qualified:
        return plugin
    domain = op.split("::", maxsplit=1)[0]
    domain = "custom" if domain in ("aten", "prims", "prim") else domain
    arguments = operands + [f"{identifier(n)}={identifier(n)}" for n, _ in attributes] + ([f"outputs={results}"] if results != 1 else [])
    return (
        f'@dovetail.export.symbolic("{op}")\n'
        f"def {identifier(op)}({', '.join(['op', *_ordered(inputs, attributes, order)])}):\n"
        f'    return op("{domain}::{name}", {", ".join(arguments)})\n\n{plugin}'
    )
