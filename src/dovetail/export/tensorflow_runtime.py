"""TensorFlow and tf2onnx as this package uses them: imported when a job needs them, without what they print."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from dovetail.core import env
from dovetail.core.optional import require

_WHY = "exporting from TensorFlow"


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Drop what is written to stderr inside: TensorFlow's C++ and tf2onnx write dozens of lines that concern nobody.

    Args:
        verbose: let them.
    """
    if verbose:
        yield
        return
    with contextlib.ExitStack() as stack:
        # The descriptor, since C++ writes there; and Python's object, which need not write to the descriptor (in a notebook).
        sink = stack.enter_context(tempfile.TemporaryFile())
        sys.stderr.flush()
        saved = os.dup(2)
        stack.callback(os.close, saved)
        os.dup2(sink.fileno(), 2)
        stack.callback(os.dup2, saved, 2)
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def tensorflow_module(verbose: bool = False) -> Any:
    """The package `tensorflow`.

    Raises:
        UsageError: it is not installed, or not whole.
    """
    if "tensorflow" not in sys.modules:
        # Read once, when its library is loaded.
        level = env.export("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "3")
        try:
            with quiet(verbose):
                require("tensorflow", "tensorflow", _WHY)
        finally:
            env.export("TF_CPP_MIN_LOG_LEVEL", level)
    return require("tensorflow", "tensorflow", _WHY)


def tf2onnx_module(name: str, verbose: bool = False) -> Any:
    """A module of the package `tf2onnx`, such as "tfonnx".

    Raises:
        UsageError: it is not installed, or does not fit what is.
    """
    return require_module(f"tf2onnx.{name}", verbose)


def require_module(name: str, verbose: bool = False) -> Any:
    """A module of TensorFlow or of what stands on it, by its full name.

    Raises:
        UsageError: it is not installed, or does not fit what is.
    """
    tensorflow_module(verbose)
    with quiet(verbose):
        return require(name, "tensorflow", _WHY)


def keras_module() -> Any:
    """The package `keras`, with TensorFlow as its backend.

    Raises:
        UsageError: it is not installed, or runs on another backend.
    """
    from dovetail.core.errors import UsageError

    tensorflow_module()
    with quiet():
        keras = require("keras", "tensorflow", _WHY)
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UsageError(f"Keras: got the backend {backend!r}, expected 'tensorflow'; set KERAS_BACKEND=tensorflow before it is imported")
    return keras
