"""Where verification runs the kernels of a group: on this machine's CPU, or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Emitted
from dovetail.codegen.target import CudaTarget
from dovetail.codegen.triton_compiler import compile_kernels
from dovetail.core.errors import DeviceError
from dovetail.device.cpu import KernelLibrary, Pool
from dovetail.device.cuda.driver import Driver
from dovetail.tuner.cuda_launch import DeviceLaunch, Functions
from dovetail.tuner.launch import Launch, Placed, Sizes


class Launcher(Protocol):
    """Runs kernels on operands in host memory."""

    @property
    def variants(self) -> Sequence[int]:
        """The ways to run them, which must give the same bits."""
        ...

    @property
    def difference(self) -> str:
        """What variants differ in, for messages: "… depends on {difference}"."""
        ...

    def bind(
        self, emitted: Emitted, inputs: Sequence[Placed], outputs: Sequence[Placed], sizes: Sizes
    ) -> Callable[[int], None]:
        """What runs the kernels in a variant, and leaves results and guards in the operands.

        It may be called several times; operands are read afresh each time.

        Raises:
            DeviceError: the device refuses.
        """
        ...


class HostLauncher:
    """The engine's own library on the CPUs of this machine, with one thread and with a team."""

    difference = "the number of threads"

    def __init__(self, library: KernelLibrary, workers: Pool, threads: int) -> None:
        self.library, self.workers = library, workers
        self.variants = sorted({1, threads})

    def bind(
        self, emitted: Emitted, inputs: Sequence[Placed], outputs: Sequence[Placed], sizes: Sizes
    ) -> Callable[[int], None]:
        """A step table over the operands; the variant is the number of threads."""
        launch = Launch(emitted, inputs, outputs, sizes, self.library.address)
        return lambda threads: launch.run(self.workers, threads)


class DeviceLauncher:
    """A GPU, twice in a row: results must not differ from run to run, and counters must be left as they were found."""

    difference = "the run"
    variants = (1, 2)

    def __init__(self, driver: Driver, target: CudaTarget, kernels: Sequence[Kernel]) -> None:
        """`kernels` are those that `bind` may see; they come from the compiler's cache."""
        self.functions = Functions(driver, compile_kernels(kernels, target))

    def bind(
        self, emitted: Emitted, inputs: Sequence[Placed], outputs: Sequence[Placed], sizes: Sizes
    ) -> Callable[[int], None]:
        """Copies of the operands on the device."""
        launch = DeviceLaunch(emitted, inputs, outputs, sizes, self.functions)
        last = self.variants[-1]

        def run(variant: int) -> None:
            try:
                launch.run()
            except DeviceError:
                launch.close()
                raise
            if variant == last:
                launch.close()

        return run
