"""Keras models, in memory or in files: called with training=False in a function that is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.core.errors import ExportError, ModelError, UsageError
from dovetail.export.tensorflow_functions import (
    identifier,
    numbered,
    one_line,
    spec_text,
    specs_of,
    unique,
)
from dovetail.export.tensorflow_graphs import Arrays, Frozen, Wanted, freeze_function
from dovetail.export.tensorflow_runtime import keras_module, quiet, tensorflow_module


def load_keras(path: Path, verbose: bool = False) -> Any:
    """The model in a `.keras` or `.h5` file, not compiled.

    Raises:
        ModelError: Keras does not load it.
    """
    keras = keras_module()
    try:
        with quiet(verbose):
            return keras.models.load_model(str(path), compile=False)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError, NotImplementedError) as error:
        hint = "classes of your own have to be registered (keras.saving.register_keras_serializable) in a file named with --plugins"
        raise ModelError(f"{path}: Keras does not load it: {one_line(error)}; {hint}") from error


def open_keras(model: Any, name: str, wanted: Wanted) -> Frozen:
    """A Keras model or layer through a function that calls it with training=False: tf2onnx's own way expects Keras 2.

    Raises:
        UsageError: nobody has said what its inputs are.
        ExportError: Keras cannot trace it, or it cannot be frozen.
    """
    tf, verbose, signature = tensorflow_module(wanted.verbose), wanted.verbose, wanted.signature
    keras_module()
    symbolic = getattr(model, "inputs", None) if signature is None else None
    notes = ["called with training=False"]
    if symbolic:
        structure = getattr(model, "_inputs_struct", None)
        structure = list(symbolic) if structure is None else structure
        labels = _keras_names(structure, symbolic)
        specs = [tf.TensorSpec(t.shape, t.dtype) for t in symbolic]
    elif signature is not None:
        specs = specs_of(signature, tf)
        labels, structure = unique([s.name or f"input_{i}" for i, s in enumerate(specs)]), list(specs)
    else:
        specs = [tf.TensorSpec([None, *shape[1:]], getattr(model, "input_dtype", None) or "float32") for shape in _built(model, name)]
        labels, structure = [f"input_{i}" for i in range(len(specs))], list(specs)
        notes.append("input shapes are those it was built with, the first axis left open; give `signature` for others")
    specs = [tf.TensorSpec(s.shape, s.dtype, name=identifier(label)) for s, label in zip(specs, labels, strict=True)]
    made: list[str] = []

    def call(*tensors: Any) -> list[Any]:
        packed = tf.nest.pack_sequence_as(structure, tensors)
        result = model(packed[0] if isinstance(packed, list | tuple) and len(packed) == 1 else packed, training=False)
        flat = tf.nest.flatten(result)
        made[:] = _keras_outputs(model, result, flat)
        return [tf.identity(t) for t in flat]

    try:
        with quiet(verbose), tf.device("/cpu:0"):
            concrete = tf.function(call, input_signature=specs, autograph=False).get_concrete_function()
    except (ValueError, TypeError, RuntimeError, AttributeError, tf.errors.OpError) as error:
        raise ExportError(f"{name}: Keras cannot trace it with inputs {[spec_text(s) for s in specs]}: {one_line(error)}") from error

    def run(feeds: Arrays) -> Arrays:
        with quiet(verbose), tf.device("/cpu:0"):
            results = concrete(*[tf.constant(feeds[label], spec.dtype) for label, spec in zip(labels, specs, strict=True)])
        return {label: np.asarray(value) for label, value in zip(made, results, strict=True)}

    names = dict(zip([t.name for t in concrete.inputs], labels, strict=False))
    names |= dict(zip([t.name for t in concrete.outputs], made, strict=True))
    frozen = freeze_function(concrete, run, kind="Keras model", name=name, names=names, wanted=wanted)
    frozen.shared_batch = True
    frozen.notes += notes
    return frozen


def _keras_names(structure: Any, symbolic: Sequence[Any]) -> list[str]:
    """The keys of a dict of inputs, else the names of the input layers."""
    if isinstance(structure, dict):
        return [str(key) for key in sorted(structure)]
    return unique([_layer_name(t) for t in symbolic])


def _keras_outputs(model: Any, result: Any, flat: Sequence[Any]) -> list[str]:
    """The keys of a dict of outputs, else the names of the layers that make them."""
    if isinstance(result, dict) and len(result) == len(flat):
        return [str(key) for key in sorted(result)]
    symbolic = getattr(model, "outputs", None) or []
    if len(symbolic) == len(flat):
        return unique([_layer_name(t) for t in symbolic])
    return numbered(len(flat))


def _layer_name(tensor: Any) -> str:
    history = getattr(tensor, "_keras_history", None)
    return str(tensor.name if history is None else history.operation.name)


def _built(model: Any, name: str) -> list[Sequence[Any]]:
    """The shapes that a model without symbolic inputs was built with."""
    found = getattr(model, "_build_shapes_dict", None) or {}
    shapes = list(found.values())
    if not shapes or not all(isinstance(s, list | tuple) and s and all(d is None or isinstance(d, int) for d in s) for s in shapes):
        raise UsageError(f"{name}: got a model whose inputs nobody has said; give signature=[tf.TensorSpec([None, …])], or call it once")
    return shapes


