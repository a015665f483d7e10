"""The interfaces that a client's subclasses implement and a builder, a parser or a runtime calls.

Methods without a default raise RuntimeError where a subclass does not define them. A subclass need not call `__init__`.
The package calls them through `call`, which turns an exception into a logged error and a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar

from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    APILanguage,
    DataType,
    ErrorCodeTRT,
    SeekPosition,
    TensorLocation,
)
from dovetail.tensorrt.logger import Reporter

R = TypeVar("R")


def call(reporter: Reporter, what: str, method: Callable[..., R], *args: Any, default: R) -> R:
    """What a client's method returns; `default` and an error in the log where it raises."""
    try:
        return method(*args)
    except Exception as error:
        reporter.error(f"Exception caught in {what}(): {type(error).__name__}: {error}", ErrorCodeTRT.FAILED_EXECUTION)
        return default


def told(method: Callable[..., object], *args: Any) -> bool:
    """Call a client's method that returns nothing; True, so that `call` can tell when it raised."""
    method(*args)
    return True


def pure(interface: type, method: str) -> NoReturn:
    """Refuse a call of a method that only subclasses define.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(f'Tried to call pure virtual function "{interface.__name__}::{method}"')


class InterfaceInfo(NamedTuple):
    """The kind and version of an interface."""

    kind: str
    major: int
    minor: int


class IVersionedInterface:
    """What all interfaces of a version have in common."""

    _kind: ClassVar[str] = ""
    _major: ClassVar[int] = 1

    @property
    def api_language(self) -> APILanguage:
        """The language that implements the interface: PYTHON."""
        return APILanguage.PYTHON

    @property
    def interface_info(self) -> InterfaceInfo:
        """The kind and version of the interface, such as `IStreamReader` 1.0."""
        return InterfaceInfo(self._kind, self._major, 0)


# ---- watching ----


class IProfiler:
    """Told the time of every layer after a run."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Take the time of one layer, in milliseconds."""
        pure(IProfiler, "report_layer_time")


class Profiler(IProfiler):
    """Prints the time of every layer."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Print the time of one layer."""
        print(f"{layer_name}: {ms}ms")  # noqa: T201


class IProgressMonitor(IVersionedInterface):
    """Told how far a build is, and asked whether it should go on."""

    _kind = "IProgressMonitor"

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase of so many steps starts, inside another or on its own."""
        pure(IProgressMonitor, "phase_start")

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step of a phase is done; False cancels the build."""
        pure(IProgressMonitor, "step_complete")

    def phase_finish(self, phase_name: str) -> None:
        """A phase is over, whether done or cancelled."""
        pure(IProgressMonitor, "phase_finish")


class IErrorRecorder(IVersionedInterface):
    """Keeps the errors of the objects it is given to."""

    MAX_DESC_LENGTH: ClassVar[int] = 127
    _kind = "IErrorRecorder"

    def get_num_errors(self) -> int:
        """The number of errors kept."""
        pure(IErrorRecorder, "get_num_errors")

    def num_errors(self) -> int:
        """The number of errors kept, by `get_num_errors`."""
        return self.get_num_errors()

    def get_error_code(self, arg0: int) -> ErrorCodeTRT:
        """The code of an error by its index."""
        pure(IErrorRecorder, "get_error_code")

    def get_error_desc(self, arg0: int) -> str:
        """The text of an error by its index."""
        pure(IErrorRecorder, "get_error_desc")

    def has_overflowed(self) -> bool:
        """Whether errors were dropped."""
        pure(IErrorRecorder, "has_overflowed")

    def clear(self) -> None:
        """Forget all errors."""
        pure(IErrorRecorder, "clear")

    def report_error(self, arg0: ErrorCodeTRT, arg1: str) -> bool:
        """Keep an error; True when what reports it should stop."""
        pure(IErrorRecorder, "report_error")


def recorder_property(owner: str, doc: str) -> Any:
    """The property `error_recorder` of a class whose objects speak through a `_reporter`.

    Args:
        owner: the class, as messages call it.
    """

    def get(self: Any) -> IErrorRecorder | None:
        recorder: IErrorRecorder | None = self._reporter.recorder
        return recorder

    def put(self: Any, recorder: IErrorRecorder | None) -> None:
        self._reporter.recorder = None if recorder is None else expect(IErrorRecorder, recorder, f"{owner}.error_recorder")

    return property(get, put, doc=doc)


class IDebugListener(IVersionedInterface):
    """Told the tensors that are marked for debugging, as they are computed."""

    _kind = "IDebugListener"

    def process_debug_tensor(self, addr: int, location: TensorLocation, type: DataType, shape: Dims, name: str, stream: int) -> bool:
        """Look at a tensor in memory; False when that failed."""
        pure(IDebugListener, "process_debug_tensor")


# ---- memory ----


class IGpuAllocator(IVersionedInterface):
    """Allocates the device memory of a builder or a runtime; addresses are ints, 0 is failure."""

    _kind = "IGpuAllocator"

    def allocate(self, size: int, alignment: int, flags: int) -> int:
        """The address of so many bytes at that alignment; `flags` are bits of `AllocatorFlag`."""
        pure(IGpuAllocator, "allocate")

    def reallocate(self, address: int, alignment: int, new_size: int) -> int:
        """The address of a block after its size changed; 0 where that cannot be done, as by default."""
        return 0

    def deallocate(self, memory: int) -> bool:
        """Give a block back; by default `free`, if the subclass has that. True when it was."""
        if type(self).free is IGpuAllocator.free:
            pure(IGpuAllocator, "deallocate")
        self.free(memory)
        return True

    def free(self, memory: int) -> None:
        """Give a block back: the name of `deallocate` up to 9."""
        if type(self).deallocate is IGpuAllocator.deallocate:
            pure(IGpuAllocator, "free")
        self.deallocate(memory)

    def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int:
        """The address of a block that the work of a stream may use from here on; by default `allocate`."""
        return self.allocate(size, alignment, flags)

    def deallocate_async(self, memory: int, stream: int) -> bool:
        """Give a block back once the work of a stream is done; by default `deallocate`."""
        return self.deallocate(memory)


class IGpuAsyncAllocator(IGpuAllocator):
    """Allocates in the order of a stream; without a stream, in that of stream 0."""

    def allocate(self, size: int, alignment: int, flags: int) -> int:
        """The address of a block, by `allocate_async` on stream 0."""
        return self.allocate_async(size, alignment, flags, 0)

    def deallocate(self, memory: int) -> bool:
        """Give a block back, by `deallocate_async` on stream 0."""
        return self.deallocate_async(memory, 0)

    def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int:
        """The address of a block that the work of a stream may use from here on."""
        pure(IGpuAsyncAllocator, "allocate_async")

    def deallocate_async(self, memory: int, stream: int) -> bool:
        """Give a block back once the work of a stream is done."""
        pure(IGpuAsyncAllocator, "deallocate_async")


class IOutputAllocator(IVersionedInterface):
    """Gives memory to outputs whose size is known in the run only."""

    _kind = "IOutputAllocator"
    tensorrt_version: ClassVar[int] = 1

    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
        """The address of memory for an output, `memory` itself where that is large enough; 0 is failure."""
        pure(IOutputAllocator, "reallocate_output")

    def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
        """`reallocate_output` in the order of a stream; by default without."""
        return self.reallocate_output(tensor_name, memory, size, alignment)

    def notify_shape(self, tensor_name: str, shape: Dims) -> None:
        """Take the shape of an output."""
        pure(IOutputAllocator, "notify_shape")


# ---- reading and writing engines ----


class IStreamReader(IVersionedInterface):
    """A serialized engine that is read from front to back (10)."""

    _kind = "IStreamReader"

    def read(self, size: int) -> bytes:
        """The next so many bytes, fewer at the end."""
        pure(IStreamReader, "read")


class IStreamReaderV2(IVersionedInterface):
    """A serialized engine that is read in any order."""

    _kind = "IStreamReaderV2"

    def read(self, num_bytes: int, stream: int) -> bytes:
        """The next so many bytes, fewer at the end."""
        pure(IStreamReaderV2, "read")

    def seek(self, offset: int, where: SeekPosition) -> bool:
        """Go on reading elsewhere; False when that failed."""
        pure(IStreamReaderV2, "seek")


class IStreamWriter(IVersionedInterface):
    """Where a serialized engine is written to."""

    _kind = "IStreamWriter"

    def write(self, data: bytes) -> int:
        """Write bytes; returns how many were."""
        pure(IStreamWriter, "write")
