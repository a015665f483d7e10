"""TFLite models: their inputs and outputs by the names of their signature, run by TensorFlow's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dovetail.core.errors import ModelError, UsageError
from dovetail.core.text import did_you_mean
from dovetail.export.tensorflow_graphs import Arrays, Frozen, Wanted, plain_names
from dovetail.export.tensorflow_runtime import quiet, tensorflow_module


def open_tflite(path: Path, wanted: Wanted) -> Frozen:
    """A TFLite file; tf2onnx reads it itself, so that there is no graph.

    Raises:
        ModelError: it cannot be read, or is none.
        UsageError: a tensor that it does not have.
    """
    tf, verbose = tensorflow_module(wanted.verbose), wanted.verbose
    inputs, outputs = wanted.inputs, wanted.outputs
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read, {error.strerror}; check the path") from error
    if data[4:8] != b"TFL3":
        raise ModelError(f"{path}: got data that is no TFLite model, expected the identifier TFL3; convert the model again")
    interpreter, given, made = _interpreter(tf, path, data, verbose)
    names = _names(interpreter, given, made)
    for option, chosen, known in (("--inputs", inputs, given), ("--outputs", outputs, made)):
        for name in chosen or ():
            if name not in known and name not in names.values():
                hint = did_you_mean(name, [*known, *names.values()])
                raise UsageError(f"{option}: got {name!r}, expected names of {sorted(known)}{hint}")
    tensors = {label: tensor for tensor, label in names.items()}
    taken = list(given) if inputs is None else [tensors.get(n, n) for n in inputs]
    results = list(made) if outputs is None else [tensors.get(n, n) for n in outputs]

    def run(feeds: Arrays) -> Arrays:
        with quiet(verbose):
            fresh, places, ends = _interpreter(tf, path, data, verbose)
            for tensor, detail in places.items():
                fresh.resize_tensor_input(detail["index"], feeds[names[tensor]].shape)
            fresh.allocate_tensors()
            for tensor, detail in places.items():
                fresh.set_tensor(detail["index"], feeds[names[tensor]])
            fresh.invoke()
            return {names[tensor]: np.asarray(fresh.get_tensor(ends[tensor]["index"])) for tensor in results}

    return Frozen("TFLite model", str(path), taken, results, {t: names[t] for t in (*taken, *results)}, run, tflite=path)


def _interpreter(tf: Any, path: Path, data: bytes, verbose: bool) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """An interpreter, and what it says of inputs and outputs by name of the tensor."""
    try:
        with quiet(verbose):
            # Without delegates: the plain kernels are those that define the results.
            interpreter = tf.lite.Interpreter(
                model_content=data, experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            )
            given = {d["name"]: d for d in interpreter.get_input_details()}
            made = {d["name"]: d for d in interpreter.get_output_details()}
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: TensorFlow does not read it: {str(error).strip()[:300]}; convert the model again") from error
    return interpreter, given, made


def _names(interpreter: Any, given: dict[str, Any], made: dict[str, Any]) -> dict[str, str]:
    """The user's name of each tensor: that of the only signature, else the tensor's without what the converter added."""
    signatures = interpreter.get_signature_list()
    plain = [name.removeprefix("serving_default_") for name in (*given, *made)]
    names = dict(zip((*given, *made), plain_names(plain), strict=True))
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(next(iter(signatures)))
        for details in (runner.get_input_details(), runner.get_output_details()):
            for label, detail in details.items():
                if detail["name"] in names:
                    names[detail["name"]] = label
    return names
