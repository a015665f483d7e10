"""Functions and modules of TensorFlow as frozen graphs, with the names of their arguments and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail.core.errors import ExportError, UsageError
from dovetail.export.tensorflow_graphs import Arrays, Frozen, Wanted, freeze_function
from dovetail.export.tensorflow_runtime import quiet, tensorflow_module


def open_function(source: Any, is_concrete: bool, wanted: Wanted) -> Frozen:
    """A `tf.function`, a concrete function, a `tf.Module` with `__call__`, or a plain function of tensors.

    Raises:
        UsageError: nothing that can be called, or nobody has said what its inputs are.
        ExportError: TensorFlow cannot trace or freeze it.
    """
    if is_concrete:
        return _function(source, source, wanted)
    tf = tensorflow_module(wanted.verbose)
    if not callable(source):
        raise UsageError(f"model: got a {type(source).__name__}, expected a Keras model, tf.function, tf.Module with __call__, or path")
    function: Any = source
    if not hasattr(source, "get_concrete_function"):
        bound = source.__call__ if isinstance(source, tf.Module) else source
        function = bound if hasattr(bound, "get_concrete_function") else tf.function(bound)
    specs = [] if wanted.signature is None else specs_of(wanted.signature, tf)
    try:
        with quiet(wanted.verbose), tf.device("/cpu:0"):
            concrete = function.get_concrete_function(*specs)
    except (ValueError, TypeError, AttributeError, tf.errors.OpError) as error:
        if wanted.signature is None:
            raise UsageError(
                f"{_label(source)}: got a function whose inputs nobody has said; "
                "give signature=[tf.TensorSpec([None, 3], tf.float32, 'x'), …]"
            ) from error
        types = [spec_text(s) for s in specs]
        raise ExportError(f"{_label(source)}: TensorFlow cannot trace it with {types}: {one_line(error)}") from error
    return _function(concrete, function, wanted, source if isinstance(source, tf.Module) else None)


def _function(concrete: Any, function: Callable[..., Any], wanted: Wanted, trackable: Any = None) -> Frozen:
    tf, verbose = tensorflow_module(wanted.verbose), wanted.verbose
    own = len(concrete.inputs) - len(concrete.captured_inputs)
    labels = unique([t.op.name for t in concrete.inputs[:own]])
    made = _structured_names(concrete.structured_outputs, tf)
    structure = concrete.structured_input_signature
    leaves = tf.nest.flatten(structure)

    def run(feeds: Arrays) -> Arrays:
        with quiet(verbose), tf.device("/cpu:0"):
            given = iter(labels)
            filled = [tf.constant(feeds[next(given)], leaf.dtype) if isinstance(leaf, tf.TensorSpec) else leaf for leaf in leaves]
            positional, keywords = tf.nest.pack_sequence_as(structure, filled)
            results = tf.nest.flatten(function(*positional, **keywords))
        return {name: np.asarray(value) for name, value in zip(made, results, strict=True)}

    names = dict(zip([t.name for t in concrete.inputs[:own]], labels, strict=True))
    names |= dict(zip([t.name for t in concrete.outputs], made, strict=True))
    label = _label(trackable or function)
    return freeze_function(concrete, run, kind="function", name=label, names=names, wanted=wanted, trackable=trackable)


def _label(source: Any) -> str:
    owner = getattr(source, "__self__", None)
    if owner is not None:
        return type(owner).__name__
    name = getattr(source, "__name__", None) or getattr(getattr(source, "python_function", None), "__name__", None)
    return str(name or type(source).__name__)


def specs_of(signature: Sequence[Any], tf: Any) -> list[Any]:
    """TensorSpecs of what a caller gave: TensorSpecs, tensors or arrays.

    Raises:
        UsageError: no list.
    """
    if not isinstance(signature, list | tuple):
        raise UsageError(f"signature: got a {type(signature).__name__}, expected a list of tf.TensorSpec or arrays")
    return [s if isinstance(s, tf.TensorSpec) else tf.TensorSpec.from_tensor(tf.convert_to_tensor(s)) for s in signature]


def spec_text(spec: Any) -> str:
    """A TensorSpec as float32[?,3]."""
    sizes = "any shape" if spec.shape.rank is None else "[" + ",".join("?" if d is None else str(d) for d in spec.shape.as_list()) + "]"
    return f"{spec.dtype.name}{sizes}"


def _structured_names(structured: Any, tf: Any) -> list[str]:
    """Names for the results of a function: the keys of a dict, `output_0`, … of a tuple."""
    flat = tf.nest.flatten(structured)
    if isinstance(structured, dict) and len(flat) == len(structured):
        return [str(key) for key in sorted(structured)]
    return numbered(len(flat))


def numbered(count: int) -> list[str]:
    """`output_0`, `output_1`, …"""
    return [f"output_{i}" for i in range(count)]


def unique(names: Sequence[str]) -> list[str]:
    """Names with numbers behind those that repeat."""
    result: list[str] = []
    for name in names:
        number, new = 0, name
        while new in result:
            number += 1
            new = f"{name}_{number}"
        result.append(new)
    return result


def identifier(name: str) -> str:
    """A name that TensorFlow takes for an argument."""
    text = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return text if text[:1].isalpha() else f"x_{text}"


def one_line(error: BaseException) -> str:
    """The message of an error of TensorFlow, which has many lines, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(error).__name__
