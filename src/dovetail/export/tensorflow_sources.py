"""What a model of TensorFlow may be: SavedModel folder, Keras file or model, function, frozen graph, TFLite file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from dovetail.core.errors import ModelError, UsageError
from dovetail.core.text import did_you_mean
from dovetail.export.tensorflow_graphs import Frozen, Wanted, freeze_graph, with_shapes

PREFIX = "tensorflow:"
"""Before a path, says that it is a model of TensorFlow."""

_KERAS_FILES, _GRAPH_FILES, _LITE_FILES = (".keras", ".h5", ".hdf5"), (".pb", ".pbtxt"), (".tflite",)
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
_EXPECTED = "expected a SavedModel folder, or a .keras, .h5, .pb or .tflite file"


def is_tensorflow(source: object) -> bool:
    """Whether an object, path or specification is one of TensorFlow's; looks at names only, TensorFlow is not imported."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        path = Path(text)
        known = path.suffix.lower() in (*_KERAS_FILES, *_GRAPH_FILES, *_LITE_FILES)
        return text.startswith(PREFIX) or known or any((path / name).is_file() for name in _SAVED_MODEL)
    return any(base.__module__.partition(".")[0] in ("tensorflow", "keras", "tf_keras") for base in type(source).__mro__)


def open_source(source: Any, wanted: Wanted) -> Frozen:
    """A model of TensorFlow as one frozen graph; see `dovetail.export.tensorflow` for the arguments.

    Raises:
        ModelError: no file, or nothing that is a model of TensorFlow.
        UsageError: no such signature, tag, tensor or input; an argument that this kind of model does not take.
        ExportError: it is in training mode, or TensorFlow cannot freeze it.
    """
    if isinstance(source, str | os.PathLike):
        opened = _open_path(Path(os.fspath(source).removeprefix(PREFIX)), wanted)
    else:
        opened = _open_object(source, wanted)
    if opened.kind not in ("frozen graph", "TFLite model"):
        _choose(opened, wanted)
    if opened.tflite is None:
        with_shapes(opened, wanted.shapes)
    elif wanted.shapes:
        raise UsageError(
            f"--shapes: got {sorted(wanted.shapes)} for a TFLite model, whose shapes are fixed; convert it to TFLite again with others"
        )
    return opened


def _open_path(path: Path, wanted: Wanted) -> Frozen:
    if path.name in _SAVED_MODEL:
        path = path.parent
    if not path.exists():
        raise ModelError(f"{path}: does not exist; {_EXPECTED}")
    suffix = path.suffix.lower()
    if path.is_dir():
        if not any((path / name).is_file() for name in _SAVED_MODEL):
            raise ModelError(f"{path}: got a folder without saved_model.pb, expected a SavedModel; give the folder that has that file")
        from dovetail.export.tensorflow_saved_model import open_saved_model

        return open_saved_model(path, wanted)
    if wanted.signature is not None or wanted.tag is not None:
        raise UsageError(f"--signature, --tag: got {wanted.signature or wanted.tag!r} for {path}; only a SavedModel has those")
    if suffix in _GRAPH_FILES:
        return freeze_graph(path, wanted)
    if suffix in _LITE_FILES:
        from dovetail.export.tensorflow_lite import open_tflite

        return open_tflite(path, wanted)
    if suffix in _KERAS_FILES:
        from dovetail.export.tensorflow_keras import load_keras, open_keras

        return open_keras(load_keras(path, wanted.verbose), str(path), replace(wanted, signature=None))
    raise ModelError(f"{path}: got a file of an unknown kind, {_EXPECTED}")


def _open_object(source: Any, wanted: Wanted) -> Frozen:
    if isinstance(wanted.signature, str) or wanted.tag is not None:
        raise UsageError(
            f"signature, tag: got {wanted.signature!r}, {wanted.tag!r} for a {type(source).__name__}; only a SavedModel has such names"
        )
    kinds = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(source).__mro__}
    if kinds & {"keras.Model", "keras.Layer", "tf_keras.Model", "tf_keras.Layer"}:
        from dovetail.export.tensorflow_keras import open_keras

        return open_keras(source, getattr(source, "name", type(source).__name__), wanted)
    from dovetail.export.tensorflow_functions import open_function

    return open_function(source, "tensorflow.ConcreteFunction" in kinds, wanted)


def _choose(frozen: Frozen, wanted: Wanted) -> None:
    """Keep the outputs that are asked for, and put inputs in the order that is asked for.

    Raises:
        UsageError: a name that is none of the model's.
    """
    for option, names, ends in (("--inputs", wanted.inputs, frozen.inputs), ("--outputs", wanted.outputs, frozen.outputs)):
        if names is None:
            continue
        labels = {frozen.names.get(tensor, tensor): tensor for tensor in ends}
        chosen = []
        for name in names:
            tensor = labels.get(name) or labels.get(name.removesuffix(":0")) or (name if name in ends else None)
            if tensor is None:
                raise UsageError(
                    f"{option}: got {name!r}, expected some of those of the {frozen.kind}: {', '.join(labels)}"
                    f"{did_you_mean(name, labels)} (`dovetail edit` cuts at other tensors after the export)"
                )
            chosen.append(tensor)
        ends[:] = [*chosen, *(t for t in ends if t not in chosen)] if option == "--inputs" else chosen
