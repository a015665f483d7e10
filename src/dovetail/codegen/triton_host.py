"""CUDA engines without a GPU: a driver on host memory whose kernels Triton's interpreter runs.

    driver = host_driver(built.kernels)
    engine = runtime.make(built.plan, [built.binary], None, weights, None, None, driver=driver)

Slow, and blind to what only hardware shows (see `triton_interpreter`), but plan, memory, graphs and results are the engine's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.triton_interpreter import interpret
from dovetail.device.cuda.driver import TensorMap
from dovetail.device.cuda.driver_host import HostDriver


def host_driver(kernels: Mapping[str, Kernel], ordinal: int = 0, capability: int = 90) -> HostDriver:
    """A driver for engines over these kernels, by entry."""

    def run(code: bytes, entry: str, grid: tuple[int, int, int], values: Sequence[int | TensorMap]) -> None:
        kernel = kernels[entry]
        given = values[: len(kernel.params)]
        pointers = [v.address if isinstance(v, TensorMap) else v for v in given]
        descriptors = [(v.shape, v.strides) if isinstance(v, TensorMap) else None for v in given]
        dims = [v for v in values[len(kernel.params) :] if isinstance(v, int)]
        interpret(kernel, pointers, dims, grid, descriptors)

    return HostDriver(run, ordinal, capability)
