"""SavedModel folders: one of their signatures as a frozen graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dovetail.core.errors import ModelError, UsageError
from dovetail.core.text import did_you_mean
from dovetail.export.tensorflow_functions import one_line
from dovetail.export.tensorflow_graphs import Arrays, Frozen, Wanted, freeze_function
from dovetail.export.tensorflow_runtime import quiet, require_module, tensorflow_module


def open_saved_model(path: Path, wanted: Wanted) -> Frozen:
    """A signature of a SavedModel.

    Raises:
        ModelError: it cannot be loaded, or has no signature.
        UsageError: no such signature or tag; the nearest one.
        ExportError: it is in training mode, or cannot be frozen.
    """
    tf, verbose = tensorflow_module(wanted.verbose), wanted.verbose
    tags = _tags(path, wanted.tag, verbose)
    try:
        with quiet(verbose), tf.device("/cpu:0"):
            loaded = tf.saved_model.load(str(path), tags=tags)
    except (OSError, ValueError, RuntimeError, KeyError, tf.errors.OpError) as error:
        raise ModelError(
            f"{path}: TensorFlow does not load it: {one_line(error)}; save it again, or load the library of its custom ops first"
        ) from error
    known = [name for name in loaded.signatures if not name.startswith("_")]
    name = _signature(path, known, wanted.signature)
    concrete = loaded.signatures[name]
    _, keywords = concrete.structured_input_signature
    own = len(concrete.inputs) - len(concrete.captured_inputs)
    # Tensors of a signature are in the order of its names.
    names = dict(zip([t.name for t in concrete.inputs[:own]], sorted(keywords), strict=True))
    names |= dict(zip([t.name for t in concrete.outputs], sorted(concrete.structured_outputs), strict=True))

    def run(feeds: Arrays) -> Arrays:
        with quiet(verbose), tf.device("/cpu:0"):
            given = {key: tf.constant(feeds[key], spec.dtype) for key, spec in keywords.items()}
            return {key: value.numpy() for key, value in concrete(**given).items()}

    frozen = freeze_function(
        concrete, run, kind="SavedModel", name=f"{path} ({name})", names=names, wanted=wanted, trackable=loaded
    )
    frozen.trace = None  # its operations know the lines of the loader only
    if wanted.signature is None and len(known) > 1:
        frozen.notes.append(f"signature {name!r}; it also has {', '.join(sorted(set(known) - {name}))}")
    return frozen


def _tags(path: Path, tag: str | None, verbose: bool) -> list[str]:
    loader = require_module("tensorflow.python.saved_model.loader_impl", verbose)
    try:
        with quiet(verbose):
            found = [sorted(graph.meta_info_def.tags) for graph in loader.parse_saved_model(str(path)).meta_graphs]
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: got data that is no SavedModel ({one_line(error)}); save it again") from error
    wanted = ["serve"] if tag is None else sorted(t for t in tag.split(",") if t)
    if wanted in found:
        return wanted
    if tag is None and len(found) == 1:
        return found[0]
    options = ", ".join(repr(",".join(tags)) for tags in found)
    raise UsageError(f"--tag: got {tag or 'none'}, expected one of the tag sets of {path}: {options}")


def _signature(path: Path, known: list[str], given: Any) -> str:
    listed = ", ".join(sorted(known)) or "it has none"
    if given is not None:
        if given not in known:
            close = did_you_mean(given, known) if isinstance(given, str) else ""
            raise UsageError(f"--signature: got {given!r}, expected the name of one of those of {path}: {listed}{close}")
        return str(given)
    if not known:
        raise ModelError(
            f"{path}: got a SavedModel without signatures, expected at least one; save it with "
            "tf.saved_model.save(model, path, signatures=model.call.get_concrete_function(...)), or Keras' model.export(path)"
        )
    if "serving_default" in known:
        return "serving_default"
    if len(known) > 1:
        raise UsageError(f"{path}: got several signatures, none of them serving_default; choose with --signature: {listed}")
    return known[0]
