"""`Builder`: makes networks, configs and profiles, and builds engines of them, as TensorRT 7 to 11 do."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dovetail.core.env import env
from dovetail.core.errors import Error
from dovetail.tensorrt import device
from dovetail.tensorrt.calibration import calibrate
from dovetail.tensorrt.calibrator import IInt8Calibrator
from dovetail.tensorrt.compilation import Made, compile_network, refusals
from dovetail.tensorrt.config import IBuilderConfig
from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    BuilderFlag,
    ErrorCodeTRT,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
)
from dovetail.tensorrt.hooks import IGpuAllocator, IStreamWriter, call, recorder_property
from dovetail.tensorrt.host_memory import IHostMemory
from dovetail.tensorrt.logger import ILogger, Reporter
from dovetail.tensorrt.network import INetworkDefinition
from dovetail.tensorrt.profile import IOptimizationProfile
from dovetail.tensorrt.progress import Cancelled, Phases

if TYPE_CHECKING:
    from dovetail.tensorrt.engine import ICudaEngine

R = TypeVar("R")
_ALL_NETWORK_FLAGS = sum(1 << int(flag) for flag in NetworkDefinitionCreationFlag.__members__.values())
# The first version whose networks have no implicit batch.
_EXPLICIT_ONLY = 10
_CHUNK = 1 << 20
_OF_7 = {
    "max_workspace_size", "fp16_mode", "int8_mode", "int8_calibrator", "strict_type_constraints", "refittable", "debug_sync",
    "min_find_iterations", "average_find_iterations",
}  # fmt: skip


class Builder(Deprecated):
    """Builds engines. Failures give None or False and a message to the logger.

    The attributes are those of 7, which `build_cuda_engine` goes by.
    """

    max_workspace_size: int = 0
    fp16_mode: bool = False
    int8_mode: bool = False
    int8_calibrator: IInt8Calibrator | None = None
    strict_type_constraints: bool = False
    refittable: bool = False
    debug_sync: bool = False
    min_find_iterations: int = 1
    average_find_iterations: int = 1

    def __init__(self, logger: ILogger) -> None:
        self._reporter = Reporter(logger)
        self._logger = logger
        self.reset()

    def reset(self) -> None:
        """Set all properties back to what they are at first."""
        self._allocator: IGpuAllocator | None = None
        self._threads: int | None = None
        self._max_batch_size = 1
        self._reporter.recorder = None
        for name in _OF_7 & set(vars(self)):
            delattr(self, name)

    # ------------------------------------------------------------------ making parts
    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        """A new network; None for flags that do not exist.

        Batches are explicit, except that a client to which `__version__` says less than 10 gets an implicit one without EXPLICIT_BATCH.

        Args:
            flags: bits of `NetworkDefinitionCreationFlag`.
        """
        try:
            bits = operator.index(flags)
        except TypeError:
            raise TypeError(f"Builder.create_network: flags: got {flags!r}, expected an integer") from None
        if bits & ~_ALL_NETWORK_FLAGS:
            why = f"got the flags {bits:#x}, expected some of {_ALL_NETWORK_FLAGS:#x}"
            self._reporter.error(f"IBuilder::createNetworkV2: {why}.", ErrorCodeTRT.INVALID_ARGUMENT)
            return None
        explicit = bits & (1 << NetworkDefinitionCreationFlag.EXPLICIT_BATCH | 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        implicit = not explicit and int(env().tensorrt_version.split(".")[0]) < _EXPLICIT_ONLY
        return INetworkDefinition(self._reporter, bits, self, implicit)

    def create_builder_config(self) -> IBuilderConfig:
        """A new config."""
        return IBuilderConfig(self._reporter)

    def create_optimization_profile(self) -> IOptimizationProfile:
        """A new profile, which `IBuilderConfig.add_optimization_profile` takes."""
        return IOptimizationProfile()

    def get_plugin_registry(self) -> Any:
        """The registry that networks of this builder take plugins from."""
        from dovetail.tensorrt.plugin_registry import get_plugin_registry

        return get_plugin_registry()

    # ------------------------------------------------------------------ building
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        """Build an engine as the bytes of its file; None where that fails."""
        return self._serialized(network, config, "build_serialized_network")

    def build_serialized_network_to_stream(self, network: INetworkDefinition, config: IBuilderConfig, writer: IStreamWriter) -> bool:
        """Build an engine and write the bytes of its file; False where that fails, or the writer takes no more."""
        expect(IStreamWriter, writer, "Builder.build_serialized_network_to_stream: writer")
        data = self._serialized(network, config, "build_serialized_network_to_stream")
        if data is None:
            return False
        rest = memoryview(data)
        while rest:
            written = call(self._reporter, "write", writer.write, bytes(rest[:_CHUNK]), default=0)
            if not isinstance(written, int) or not 0 < written <= len(rest):
                self._reporter.error(f"The stream writer took {written} of {len(rest)} bytes.", ErrorCodeTRT.FAILED_EXECUTION)
                return False
            rest = rest[written:]
        return True

    def build_engine_with_config(self, network: INetworkDefinition, config: IBuilderConfig) -> ICudaEngine | None:
        """Build an engine; None where that fails."""
        return self._engine(network, config, "build_engine_with_config")

    def build_engine(self, network: INetworkDefinition, config: IBuilderConfig) -> ICudaEngine | None:
        """Build an engine (up to 9); None where that fails."""
        return self._engine(network, config, "build_engine")

    def build_cuda_engine(self, network: INetworkDefinition) -> ICudaEngine | None:
        """Build an engine by the properties of this builder (7); None where that fails."""
        config = self.create_builder_config()
        flags = {
            BuilderFlag.FP16: self.fp16_mode, BuilderFlag.INT8: self.int8_mode, BuilderFlag.STRICT_TYPES: self.strict_type_constraints,
            BuilderFlag.REFIT: self.refittable, BuilderFlag.DEBUG: self.debug_sync,
        }  # fmt: skip
        for flag, wanted in flags.items():
            if wanted:
                config.set_flag(flag)
        if self.max_workspace_size:
            config.max_workspace_size = self.max_workspace_size
        config.int8_calibrator = self.int8_calibrator
        config.min_timing_iterations, config.avg_timing_iterations = self.min_find_iterations, self.average_find_iterations
        config.profiling_verbosity = ProfilingVerbosity.DETAILED
        return self._engine(network, config, "build_cuda_engine")

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        """Whether a network could be built with a config; what stands against it is in the log."""
        expect(INetworkDefinition, network, "Builder.is_network_supported: network")
        refused = refusals(network, expect(IBuilderConfig, config, "Builder.is_network_supported: config"))
        try:
            network._model().module()
        except Error as error:
            refused.append(str(error))
        for reason in refused:
            self._reporter.error(f"IBuilder::isNetworkSupported: {reason}.", ErrorCodeTRT.UNSUPPORTED_STATE)
        return not refused

    # ------------------------------------------------------------------ properties
    @property
    def max_batch_size(self) -> int:
        """The largest batch of networks with an implicit one (up to 9)."""
        return self._max_batch_size

    @max_batch_size.setter
    def max_batch_size(self, value: int) -> None:
        if operator.index(value) < 1:
            self._reporter.error(f"Builder.max_batch_size: got {value}, expected at least 1.", ErrorCodeTRT.INVALID_ARGUMENT)
            return
        self._max_batch_size = operator.index(value)

    @property
    def max_threads(self) -> int:
        """How many threads a build uses, and an engine on a CPU by default; all CPUs of the process at first."""
        from dovetail.device.cpu import default_threads

        return default_threads() if self._threads is None else self._threads

    @max_threads.setter
    def max_threads(self, value: int) -> None:
        if operator.index(value) < 1:
            self._reporter.error(f"Builder.max_threads: got {value}, expected at least 1.", ErrorCodeTRT.INVALID_ARGUMENT)
            return
        self._threads = operator.index(value)

    @property
    def gpu_allocator(self) -> IGpuAllocator | None:
        """Allocates the device memory of engines that are built here; None: the driver does."""
        return self._allocator

    @gpu_allocator.setter
    def gpu_allocator(self, value: IGpuAllocator | None) -> None:
        self._allocator = None if value is None else expect(IGpuAllocator, value, "Builder.gpu_allocator")

    error_recorder = recorder_property("Builder", "Keeps the errors of this builder and of what it makes.")

    @property
    def logger(self) -> ILogger:
        """The logger it was made with."""
        return self._logger

    @property
    def platform_has_fast_fp16(self) -> bool:
        """Whether fp16 is faster than fp32: on a GPU (up to 10)."""
        return device.uses_gpu()

    @property
    def platform_has_fast_int8(self) -> bool:
        """Whether int8 is faster than fp32: not yet (up to 10)."""
        return False

    @property
    def platform_has_tf32(self) -> bool:
        """Whether products may be in TF32: on a GPU (up to 10)."""
        return device.uses_gpu()

    @property
    def num_DLA_cores(self) -> int:
        """How many deep-learning accelerators there are: none."""
        return 0

    @property
    def max_DLA_batch_size(self) -> int:
        """The largest batch of a deep-learning accelerator: there is none."""
        return 0

    # ------------------------------------------------------------------ inside
    def _build(self, network: INetworkDefinition, config: IBuilderConfig, where: str, give: Callable[[Made], R]) -> R | None:
        """What is made of an engine; None, with the reason in the log, where the build fails or is cancelled."""
        expect(INetworkDefinition, network, f"Builder.{where}: network")
        expect(IBuilderConfig, config, f"Builder.{where}: config")
        if refused := refusals(network, config):
            self._reporter.error(f"IBuilder::{where}: {'; '.join(refused)}.", ErrorCodeTRT.INVALID_CONFIG)
            return None
        phases = Phases(config.progress_monitor, self._reporter)
        try:
            with phases.building():
                if config.get_flag(BuilderFlag.INT8) and config.int8_calibrator is not None:
                    calibrate(network, config, self._reporter, self._max_batch_size)
                made = compile_network(
                    network, config, self._reporter, phases, max_batch_size=self._max_batch_size, threads=self._threads
                )  # fmt: skip
                given = give(made)
                phases.step()
                return given
        except Error as error:
            self._reporter.error(f"IBuilder::{where}: {error}", ErrorCodeTRT.INVALID_STATE)
        except Cancelled:
            self._reporter.warning(f"IBuilder::{where}: the progress monitor has cancelled the build.")
        return None

    def _engine(self, network: INetworkDefinition, config: IBuilderConfig, where: str) -> ICudaEngine | None:
        from dovetail.tensorrt.engine import ICudaEngine

        return self._build(network, config, where, lambda made: ICudaEngine(made.engine, made.record, self._reporter.logger))

    def _serialized(self, network: INetworkDefinition, config: IBuilderConfig, where: str) -> IHostMemory | None:
        return self._build(network, config, where, _serialize)


def _serialize(made: Made) -> IHostMemory:
    """The bytes of an engine's file."""
    with tempfile.TemporaryDirectory(prefix="dovetail-engine-") as folder:
        path = Path(folder) / "engine.plan"
        made.engine.save(path, strip_weights=made.record.stripped)
        return IHostMemory(path.read_bytes())
