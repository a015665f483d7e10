"""`OnnxParserRefitter`: refits an engine with the weights of an ONNX model, by the model's own names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dovetail.core.errors import ModelError
from dovetail.frontend.reader import read_tensor
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import ErrorCode
from dovetail.tensorrt.logger import ILogger, Reporter
from dovetail.tensorrt.onnx_models import given_array, model_of
from dovetail.tensorrt.parser_errors import ErrorList, ParserError
from dovetail.tensorrt.refitter import Refitter
from dovetail.tensorrt.weights import Weights

_MAX_DEPTH = 24


class OnnxParserRefitter(ErrorList):
    """Hands the weights of models to a `Refitter`, whose `refit_cuda_engine` the caller then calls."""

    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter = expect(Refitter, refitter, "OnnxParserRefitter: refitter")
        self._reporter = Reporter(logger)
        self._errors: list[ParserError] = []
        self._loaded: tuple[onnx.ModelProto, Path | None] | None = None
        self._given: dict[str, np.ndarray[Any, Any]] = {}

    def refit_from_bytes(self, model: Any, path: str | None = None) -> bool:
        """Set the engine's weights to those of a serialized model; False where one is missing or does not fit.

        Args:
            model: the bytes of a ModelProto.
            path: of the model's file, beside which external data lie.
        """
        found = self._read(model, path)
        return found is not None and self._refit(*found, {})

    def refit_from_file(self, model: str) -> bool:
        """`refit_from_bytes` of a file."""
        found = self._read(Path(expect(str, model, "OnnxParserRefitter.refit_from_file: model")), None)
        return found is not None and self._refit(*found, {})

    def load_model_proto(self, model: Any, path: str | None = None) -> bool:
        """Read a serialized model for `refit_model_proto`, before which `load_initializer` may give its weights."""
        self._loaded, self._given = self._read(model, path), {}
        return self._loaded is not None

    def load_initializer(self, name: str, data: Any, size: int) -> bool:
        """Give an initializer of the loaded model its values; False where it has none of that name and size.

        Args:
            data: the address of the values in host memory, or a buffer; it must stay until the refit.
            size: in bytes.
        """
        if self._loaded is None:
            return self._fail("loadInitializer", ErrorCode.INVALID_VALUE, "No model is loaded: call load_model_proto first.")
        try:
            self._given[name] = given_array(self._loaded[0], expect(str, name, "OnnxParserRefitter.load_initializer: name"), data, size)
        except ModelError as error:
            return self._fail("loadInitializer", ErrorCode.INVALID_VALUE, str(error))
        return True

    def refit_model_proto(self) -> bool:
        """Set the engine's weights to those of the loaded model, with the initializers that were given."""
        if self._loaded is None:
            return self._fail("refitModelProto", ErrorCode.INVALID_VALUE, "No model is loaded: call load_model_proto first.")
        return self._refit(*self._loaded, self._given)

    # ------------------------------------------------------------------ inside
    def _read(self, model: Any, path: str | None) -> tuple[onnx.ModelProto, Path | None] | None:
        self._errors = []
        try:
            return model_of(model, path)
        except ModelError as error:
            self._fail("refit", ErrorCode.MODEL_DESERIALIZE_FAILED, str(error))
            return None

    def _refit(self, model: onnx.ModelProto, folder: Path | None, given: dict[str, np.ndarray[Any, Any]]) -> bool:
        wanted = set(self._refitter.get_all_weights())
        done: set[str] = set()
        try:
            for name, tensor in _weights(model.graph):
                if name not in wanted:
                    continue
                if name in done:
                    self._reporter.warning(f"The model has several weights {name!r}, which are taken to be equal.")
                    continue
                array = given[name] if name in given else read_tensor(tensor, folder)
                array = array.astype(np.float32) if array.dtype == np.float64 else array
                if not self._refitter.set_named_weights(name, Weights(np.ascontiguousarray(array))):
                    return self._fail("refit", ErrorCode.REFIT_FAILED, f"Failed to refit the weights {name!r}; the log says why.")
                done.add(name)
        except (ModelError, TypeError) as error:
            return self._fail("refit", ErrorCode.REFIT_FAILED, str(error))
        if missing := sorted(wanted - done):
            text = f"Failed to refit all the weights. The model has none of these {len(missing)}: {', '.join(missing[:10])}"
            return self._fail("refit", ErrorCode.REFIT_FAILED, text)
        return True

    def _fail(self, func: str, code: ErrorCode, text: str) -> bool:
        error = ParserError(code, text, func)
        self._errors.append(error)
        self._reporter.error(str(error))
        return False


def _weights(graph: onnx.GraphProto, depth: int = 0) -> Iterator[tuple[str, onnx.TensorProto]]:
    """The weights of a graph and of those inside of it: initializers, and constants by the names of their outputs."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t
            elif attribute.HasField("g") and depth < _MAX_DEPTH:
                yield from _weights(attribute.g, depth + 1)
