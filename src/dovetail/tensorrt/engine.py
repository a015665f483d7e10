"""`ICudaEngine`: a Dovetail engine as TensorRT shows one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dovetail.api.bindings import Binding
from dovetail.api.engine import Engine
from dovetail.core.dims import Expr
from dovetail.core.errors import Error
from dovetail.engine import memory as plan_memory
from dovetail.runtime import AbsentEngine
from dovetail.tensorrt.bindings import EngineBindings
from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.dims import Dims, invalid
from dovetail.tensorrt.dtypes import to_data_type
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    DataType,
    EngineCapability,
    EngineStat,
    ErrorCodeTRT,
    ExecutionContextAllocationStrategy,
    HardwareCompatibilityLevel,
    ProfilingVerbosity,
    SerializationFlag,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)
from dovetail.tensorrt.hooks import IErrorRecorder, IGpuAllocator, recorder_property
from dovetail.tensorrt.host_memory import IHostMemory
from dovetail.tensorrt.layer_list import EngineLayer, layers_of
from dovetail.tensorrt.logger import ILogger, Logger, Reporter
from dovetail.tensorrt.record import UNBOUNDED, Range, Record
from dovetail.tensorrt.runtime_config import IRuntimeConfig, ISerializationConfig

if TYPE_CHECKING:
    from dovetail.tensorrt.context import IExecutionContext
    from dovetail.tensorrt.inspector import EngineInspector

_FORMAT_TEXT = {TensorFormat.LINEAR: "Row major linear", TensorFormat.HWC: "Channel major", TensorFormat.DHWC: "Channel major"}
_TYPE_TEXT = {
    DataType.FLOAT: "FP32", DataType.HALF: "FP16", DataType.BF16: "BF16", DataType.INT8: "INT8", DataType.INT32: "INT32",
    DataType.INT64: "INT64", DataType.BOOL: "BOOL", DataType.UINT8: "UINT8", DataType.FP8: "FP8", DataType.INT4: "INT4",
    DataType.FP4: "FP4", DataType.E8M0: "E8M0",
}  # fmt: skip


def format_text(data_type: DataType, layout: TensorFormat = TensorFormat.LINEAR) -> str:
    """A format in words, such as `Row major linear FP32 format (kLINEAR)`."""
    return f"{_FORMAT_TEXT.get(layout, layout.name)} {_TYPE_TEXT[data_type]} format (k{layout.name})"


class ICudaEngine(EngineBindings, Deprecated):
    """A compiled network: what it takes and gives, and contexts that run it.

    TensorRT's clients get one from a `Runtime` or a `Builder`. `ICudaEngine(engine)` shows any engine of `dovetail.build` or
    `dovetail.load`.

    Args:
        engine: Dovetail's.
        record: of the network behind it; None: what the engine carries, see `Record.of`.
        logger: where messages go.
        stripped: the file that the engine comes from, if it holds no weights: it runs once a `Refitter` gave them all.

    Raises:
        TypeError: an input or output that TensorRT's types cannot say.
    """

    def __init__(
        self,
        engine: Engine,
        record: Record | None = None,
        logger: ILogger | None = None,
        *,
        allocator: IGpuAllocator | None = None,
        recorder: IErrorRecorder | None = None,
        stripped: bytes | None = None,
        load: Callable[..., Engine] | None = None,
    ) -> None:
        self._engine = engine
        self._record = Record.of(engine) if record is None else record
        self._reporter = Reporter(Logger() if logger is None else logger, recorder)
        self._allocator = allocator
        self._stripped = stripped
        self._load = load
        self._lock = threading.Lock()
        self._layers: list[EngineLayer] | None = None
        bindings = {b.name: b for b in (*engine.inputs, *engine.outputs)}
        inputs, outputs = self._record.inputs, self._record.outputs
        self._tensors: dict[str, Binding] = {name: bindings[name] for name in (*inputs, *outputs)}
        self._names = list(self._tensors)
        self._inputs = frozenset(inputs)
        self._types = {name: _data_type(b) for name, b in self._tensors.items()}
        in_place = aliased(engine)
        self._aliased = {**self._record.aliased, **in_place}
        # Outputs that go to an input's memory when a run is over; the others are made there.
        self._written_back = frozenset(self._record.aliased) - frozenset(in_place)

    # ------------------------------------------------------------------ what it is
    @property
    def name(self) -> str:
        """The network's name."""
        return self._record.name

    error_recorder = recorder_property("ICudaEngine", "Where errors are recorded; None at first.")

    @property
    def num_layers(self) -> int:
        """Steps of a run, counted once per optimization profile."""
        return len(self._engine_layers()) * self.num_optimization_profiles

    @property
    def num_optimization_profiles(self) -> int:
        """The number of optimization profiles, at least 1."""
        return len(self._record.profiles)

    @property
    def refittable(self) -> bool:
        """Whether a `Refitter` may change the weights."""
        return self._record.refittable

    @property
    def engine_capability(self) -> EngineCapability:
        """STANDARD, or what the builder was told."""
        found: EngineCapability = EngineCapability.__members__[self._record.capability]
        return found

    @property
    def hardware_compatibility_level(self) -> HardwareCompatibilityLevel:
        """The GPUs that the engine was built for, as the builder was told."""
        found: HardwareCompatibilityLevel = HardwareCompatibilityLevel.__members__[self._record.compatibility]
        return found

    @property
    def profiling_verbosity(self) -> ProfilingVerbosity:
        """How much an inspector says."""
        found: ProfilingVerbosity = ProfilingVerbosity.__members__[self._record.verbosity]
        return found

    @property
    def tactic_sources(self) -> int:
        """Bits of the `TacticSource`s that the builder was allowed."""
        return self._record.tactic_sources

    @property
    def num_aux_streams(self) -> int:
        """How many streams besides the caller's a run may use: lanes of kernels beyond the first."""
        branches = dict(self._engine.plan.meta).get("report")
        lanes = branches.get("branches", {}).get("lanes", 1) if isinstance(branches, dict) else 1  # type: ignore[union-attr]
        return max(0, int(lanes) - 1)  # type: ignore[arg-type]

    @property
    def has_implicit_batch_dimension(self) -> bool:
        """Whether shapes leave out the batch."""
        return self._record.implicit_batch

    @property
    def max_batch_size(self) -> int:
        """The largest batch of an engine with an implicit one; 1 of others."""
        return self._record.max_batch_size

    @property
    def max_workspace_size(self) -> int:
        """The workspace that the builder was allowed."""
        return self._record.max_workspace_size

    # ------------------------------------------------------------------ memory
    @property
    def device_memory_size(self) -> int:
        """Bytes that a context takes for any profile."""
        return max(self._memory_bytes(i) for i in range(self.num_optimization_profiles))

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes that a context takes for any profile."""
        return self.device_memory_size

    def get_device_memory_size_for_profile(self, profile_index: int) -> int:
        """Bytes that a context takes for the largest shapes of a profile; 0 where there is no such profile."""
        if not self._known_profile(profile_index, "get_device_memory_size_for_profile"):
            return 0
        return self._memory_bytes(profile_index)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        """Bytes that a context takes for the largest shapes of a profile; 0 where there is no such profile."""
        return self.get_device_memory_size_for_profile(profile_index)

    def get_engine_stat(self, stat: EngineStat = EngineStat.TOTAL_WEIGHTS_SIZE) -> int:
        """Bytes of all weights, or of those that were left out of the file that the engine comes from."""
        kind = expect(EngineStat, stat, "ICudaEngine.get_engine_stat: stat")
        if kind is EngineStat.STRIPPED_WEIGHTS_SIZE and self._stripped is None:
            return 0
        return sum(array.nbytes for array in self._engine.weights().values())

    @property
    def streamable_weights_size(self) -> int:
        """Bytes of weights that could stay on the host: 0, all are on the device."""
        return 0

    @property
    def weight_streaming_budget_v2(self) -> int:
        """Bytes of streamable weights that are on the device."""
        return 0

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size: int) -> None:
        self._set_budget(size, 0)

    @property
    def weight_streaming_budget(self) -> int:
        """Bytes of streamable weights that are on the device."""
        return 0

    @weight_streaming_budget.setter
    def weight_streaming_budget(self, size: int) -> None:
        self._set_budget(size, -1)

    @property
    def minimum_weight_streaming_budget(self) -> int:
        """The least budget."""
        return 0

    @property
    def weight_streaming_scratch_memory_size(self) -> int:
        """Bytes that streaming takes besides the budget."""
        return 0

    def get_weight_streaming_automatic_budget(self) -> int:
        """The budget that would be chosen."""
        return 0

    def _set_budget(self, size: int, least: int) -> None:
        """Take a budget: any serves, since nothing is streamed."""
        if expect(int, size, "ICudaEngine.weight_streaming_budget") < least:
            self._reporter.error(f"weight_streaming_budget: got {size}, expected at least {least}", ErrorCodeTRT.INVALID_ARGUMENT)

    # ------------------------------------------------------------------ tensors
    @property
    def num_io_tensors(self) -> int:
        """The number of inputs and outputs."""
        return len(self._names)

    def get_tensor_name(self, index: int) -> str | None:
        """The name of an input or output, inputs first; None and an error in the log beyond the last."""
        if not 0 <= expect(int, index, "ICudaEngine.get_tensor_name: index") < len(self._names):
            self._reporter.error(
                f"ICudaEngine.get_tensor_name: got the index {index}, expected 0 to {len(self._names) - 1}", ErrorCodeTRT.INVALID_ARGUMENT
            )
            return None
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """INPUT or OUTPUT; NONE for what is neither."""
        if expect(str, name, "ICudaEngine.get_tensor_mode: name") not in self._tensors:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> Dims:
        """The shape of an input or output, -1 where it is not fixed; invalid for an unknown name."""
        binding = self._tensor(name, "get_tensor_shape")
        return invalid() if binding is None else Dims(self._declared(binding))

    def get_tensor_dtype(self, name: str) -> DataType:
        """The element type of an input or output; FLOAT for an unknown name."""
        return DataType.FLOAT if self._tensor(name, "get_tensor_dtype") is None else self._types[name]

    def get_tensor_location(self, name: str) -> TensorLocation:
        """HOST for inputs that are read as shapes, else DEVICE."""
        self._tensor(name, "get_tensor_location")
        return TensorLocation.HOST if name in self._record.shape_inputs else TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        """Whether shapes of other tensors depend on the values of this input."""
        return self._tensor(name, "is_shape_inference_io") is not None and name in self._record.shape_inputs

    def get_tensor_format(self, name: str, profile_index: int = 0) -> TensorFormat:
        """The memory order of an input or output: LINEAR, or as the network asked."""
        self._profile(profile_index, "get_tensor_format")
        self._tensor(name, "get_tensor_format")
        found: TensorFormat = TensorFormat.__members__[self._record.formats.get(name, "LINEAR")]
        return found

    def get_tensor_format_desc(self, name: str, profile_index: int = 0) -> str:
        """The memory order and element type of an input or output in words; empty for an unknown name."""
        self._profile(profile_index, "get_tensor_format_desc")
        if self._tensor(name, "get_tensor_format_desc") is None:
            return ""
        return format_text(self._types[name], TensorFormat.__members__[self._record.formats.get(name, "LINEAR")])

    def get_tensor_bytes_per_component(self, name: str, profile_index: int = 0) -> int:
        """-1: no input or output is a vector format, whose elements have components."""
        return self._not_vectorized(name, profile_index, "get_tensor_bytes_per_component")

    def get_tensor_components_per_element(self, name: str, profile_index: int = 0) -> int:
        """-1: no input or output is a vector format, whose elements have components."""
        return self._not_vectorized(name, profile_index, "get_tensor_components_per_element")

    def get_tensor_vectorized_dim(self, name: str, profile_index: int = 0) -> int:
        """-1: no input or output is a vector format."""
        return self._not_vectorized(name, profile_index, "get_tensor_vectorized_dim")

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        """The least, best and largest shape of an input in a profile; invalid ones for what is no input or no profile."""
        known = self._profile(profile_index, "get_tensor_profile_shape")
        if self._tensor(name, "get_tensor_profile_shape") is None or not known or name not in self._inputs:
            return [invalid() for _ in range(3)]
        return [Dims(self._without_batch(shape)) for shape in self._range(name, profile_index)]

    def get_tensor_profile_values(self, name: str, profile_index: int) -> list[list[int]]:
        """The least, best and largest values of an input that is read as a shape; an empty list for all others."""
        known = self._profile(profile_index, "get_tensor_profile_values")
        if self._tensor(name, "get_tensor_profile_values") is None or not known:
            return []
        return [list(row) for row in self._record.profiles[profile_index].values.get(name, ())]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        """The input whose memory an output updates; None where it has memory of its own."""
        self._tensor(name, "get_aliased_input_tensor")
        return self._aliased.get(name)

    def is_debug_tensor(self, name: str) -> bool:
        """Whether a tensor was marked for debugging."""
        return expect(str, name, "ICudaEngine.is_debug_tensor: name") in self._record.debug

    # ------------------------------------------------------------------ what is made of it
    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy | IRuntimeConfig = ExecutionContextAllocationStrategy.STATIC,
        *,
        runtime_config: IRuntimeConfig | None = None,
    ) -> IExecutionContext | None:
        """A context, which runs the engine for one thread at a time; None and an error in the log where it cannot be had."""
        from dovetail.tensorrt.context import IExecutionContext

        chosen = strategy if runtime_config is None else runtime_config
        expect((ExecutionContextAllocationStrategy, IRuntimeConfig), chosen, "ICudaEngine.create_execution_context")
        if isinstance(chosen, IRuntimeConfig):
            chosen = chosen.get_execution_context_allocation_strategy()
        try:
            return IExecutionContext(self, chosen)
        except Error as error:
            self._reporter.error(f"ICudaEngine.create_execution_context: {error}", ErrorCodeTRT.FAILED_INITIALIZATION)
            return None

    def create_execution_context_without_device_memory(self) -> IExecutionContext | None:
        """A context that runs once it was given `device_memory`."""
        return self.create_execution_context(ExecutionContextAllocationStrategy.USER_MANAGED)

    def create_runtime_config(self) -> IRuntimeConfig:
        """What contexts may be made with."""
        return IRuntimeConfig()

    def create_engine_inspector(self) -> EngineInspector:
        """What tells the layers of the engine."""
        from dovetail.tensorrt.inspector import EngineInspector

        return EngineInspector(self)

    def create_serialization_config(self) -> ISerializationConfig:
        """What `serialize_with_config` takes."""
        return ISerializationConfig()

    def serialize(self) -> IHostMemory | None:
        """The engine as bytes, with the weights that it has now; None and an error in the log where that failed."""
        return self._serialized(0)

    def serialize_with_config(self, config: ISerializationConfig) -> IHostMemory | None:
        """The engine as bytes, as the config says; None and an error in the log where that failed."""
        return self._serialized(expect(ISerializationConfig, config, "ICudaEngine.serialize_with_config: config").flags)

    def _serialized(self, flags: int) -> IHostMemory | None:
        strip = bool(flags >> int(SerializationFlag.EXCLUDE_WEIGHTS) & 1)
        if strip and not self.refittable:
            self._reporter.error(
                "ICudaEngine.serialize_with_config: got EXCLUDE_WEIGHTS for an engine whose weights cannot be given back, "
                "expected one that was built with the flag REFIT",
                ErrorCodeTRT.INVALID_STATE,
            )
            return None
        if self._stripped is not None:
            return IHostMemory(self._stripped)
        try:
            return IHostMemory(self._engine.to_bytes(strip_weights=strip))
        except Error as error:
            self._reporter.error(f"ICudaEngine.serialize: {error}", ErrorCodeTRT.FAILED_EXECUTION)
            return None

    def __repr__(self) -> str:
        return f"<ICudaEngine {self.name!r}: {', '.join(self._names)}>"

    # ------------------------------------------------------------------ internal
    def _adopt(self, engine: Engine) -> None:
        """Take the place of an engine without weights."""
        with self._lock:
            self._engine, self._stripped = engine, None

    def _set_ranges(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Keep other dynamic ranges with the engine."""
        if ranges:
            with self._lock:
                self._record = replace(self._record, ranges={**self._record.ranges, **ranges})
                self._record.attach(self._engine)

    def _engine_layers(self) -> list[EngineLayer]:
        with self._lock:
            if self._layers is None:
                self._layers = layers_of(self._engine, self._record)
            return self._layers

    def _tensor(self, name: str, where: str) -> Binding | None:
        """An input or output; None and an error in the log for an unknown name."""
        found = self._tensors.get(expect(str, name, f"ICudaEngine.{where}: name"))
        if found is None:
            self._reporter.error(
                f"ICudaEngine.{where}: got {name!r}, expected one of {', '.join(self._names)}", ErrorCodeTRT.INVALID_ARGUMENT
            )
        return found

    def _profile(self, index: int, where: str) -> bool:
        """Whether there is such a profile; a message in the log if not."""
        return self._known_profile(index, where)

    def _known_profile(self, index: int, where: str) -> bool:
        if 0 <= expect(int, index, f"ICudaEngine.{where}: profile_index") < self.num_optimization_profiles:
            return True
        self._reporter.error(
            f"ICudaEngine.{where}: got the profile {index}, expected 0 to {self.num_optimization_profiles - 1}",
            ErrorCodeTRT.INVALID_ARGUMENT,
        )
        return False

    def _declared(self, binding: Binding) -> tuple[int, ...]:
        """A shape as the network declares it."""
        assert binding.shape is not None
        return self._without_batch(tuple(-1 if isinstance(d, Expr) else d for d in binding.shape))

    def _without_batch(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[1:] if self._record.implicit_batch else shape

    def _not_vectorized(self, name: str, profile_index: int, where: str) -> int:
        self._profile(profile_index, where)
        self._tensor(name, where)
        return -1

    def _range(self, name: str, profile: int) -> Range:
        """The range of an input's shape in a profile, batch included."""
        found = self._record.profiles[profile].shapes.get(name)
        if found is not None:
            return found
        # Not in the profile: its extents are fixed.
        binding = self._tensors[name]
        assert binding.shape is not None
        fixed = tuple(-1 if isinstance(d, Expr) else d for d in binding.shape)
        return fixed, fixed, fixed

    def _largest(self, profile: int) -> dict[str, tuple[int, ...]]:
        """Shapes that memory is measured with: the largest, where there is one."""
        found = {}
        for name in self._record.inputs:
            _, best, most = self._range(name, profile)
            found[name] = tuple(b if m in (UNBOUNDED, -1) else m for b, m in zip(best, most, strict=True))
            found[name] = tuple(max(1, d) if d < 0 else d for d in found[name])
        return found

    def _memory_bytes(self, profile: int) -> int:
        if isinstance(self._engine.runtime, AbsentEngine):
            return 0
        try:
            return self._engine.runtime.memory_bytes(self._largest(profile))
        except Error as error:
            self._reporter.error(f"ICudaEngine.device_memory_size: {error}", ErrorCodeTRT.FAILED_EXECUTION)
            return 0


def aliased(engine: Engine) -> dict[str, str]:
    """Outputs that update an input's memory, with that input."""
    main = engine.plan.main
    root = plan_memory.roots(main)
    inputs = {p.tensor.buffer: p.name for p in main.inputs}
    return {
        p.name: inputs[root[p.tensor.buffer]]
        for p in main.outputs
        if main.buffers[p.tensor.buffer].kind == "output" and root[p.tensor.buffer] in inputs
    }


def _data_type(binding: Binding) -> DataType:
    """The element type of an input or output.

    Raises:
        TypeError: TensorRT has no such type, or no such thing at all.
    """
    if binding.shape is None:
        raise TypeError(f"ICudaEngine: {binding.name!r} is a sequence, expected a tensor; run the engine with dovetail.load")
    try:
        return to_data_type(binding.dtype)
    except TypeError as error:
        raise TypeError(f"ICudaEngine: {binding.name!r}: {error}") from None
