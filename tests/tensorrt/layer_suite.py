"""Many layers in one network: built once, run once, each output against what NumPy says."""

from typing import Any

import numpy as np

import dovetail
import dovetail.tensorrt as trt
from dovetail.tensorrt.dtypes import to_data_type
from dovetail.tensorrt.logger import Reporter
from dovetail.tensorrt.network import INetworkDefinition


class Log(trt.ILogger):
    """Keeps messages."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity <= trt.Logger.ERROR:
            self.errors.append(msg)


def network(**options: Any) -> tuple[INetworkDefinition, Log]:
    """An empty network and what is logged of it."""
    log = Log()
    return INetworkDefinition(Reporter(log), **options), log


class Suite:
    """A network, its inputs and what its outputs must be."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        self.net, self.log = network(**options)
        self.rng = np.random.default_rng(seed)
        self.inputs: dict[str, np.ndarray] = {}
        self.expected: dict[str, tuple[np.ndarray, float]] = {}

    def random(self, *shape: int) -> np.ndarray:
        """Normal numbers."""
        return self.rng.standard_normal(shape).astype(np.float32)

    def input(self, array: Any, dynamic: bool = False) -> Any:
        """An input with that value; `dynamic`: of sizes that are not fixed."""
        array = np.asarray(array)
        name = f"x{len(self.inputs)}"
        self.inputs[name] = array
        shape = array.shape[1:] if self.net.has_implicit_batch_dimension else array.shape
        return self.net.add_input(name, to_data_type(array.dtype), [-1] * len(shape) if dynamic else shape)

    def const(self, array: Any) -> Any:
        """A constant."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        return self.net.add_constant(array.shape, array).get_output(0)

    def expect(self, tensor: Any, array: Any, tolerance: float = 2e-5) -> None:
        """What an output, or the first output of a layer, must be."""
        tensor = tensor if isinstance(tensor, trt.ITensor) else tensor.get_output(0)
        array = np.asarray(array)
        tensor.name = f"y{len(self.expected)}"
        shape = array.shape[1:] if self.net.has_implicit_batch_dimension else array.shape
        known = list(tensor.shape)
        assert len(known) == len(shape) and all(d in (-1, e) for d, e in zip(known, shape, strict=True)), (known, shape)
        self.net.mark_output(tensor)
        self.expected[tensor.name] = array, tolerance

    def run(self) -> dict[str, np.ndarray]:
        """Build, run and compare."""
        engine = dovetail.build(self.net._model(), optimization_level=0, tune=False, verify="off")
        results = engine.run(self.inputs)
        for name, (array, tolerance) in self.expected.items():
            got = results[name]
            assert got.dtype == array.dtype and got.shape == array.shape, (name, got.dtype, got.shape, array.dtype, array.shape)
            if array.dtype.kind in "biu":
                np.testing.assert_array_equal(got, array, err_msg=name)
            else:
                np.testing.assert_allclose(
                    got.astype(np.float32), array.astype(np.float32), rtol=tolerance, atol=tolerance, err_msg=name
                )
        assert not self.log.errors
        return results
