"""`Runtime`: turns serialized engines into engines."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import dovetail
from dovetail.api.engine import Artifacts, Engine
from dovetail.core.errors import Error, UsageError
from dovetail.device.cpu import default_threads
from dovetail.device.cpu.pool import check_threads
from dovetail.engine.file import EngineFile
from dovetail.runtime import AbsentEngine
from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.device import device
from dovetail.tensorrt.engine import ICudaEngine
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import ErrorCodeTRT, TempfileControlFlag
from dovetail.tensorrt.hooks import (
    IGpuAllocator,
    IStreamReader,
    IStreamReaderV2,
    call,
    recorder_property,
)
from dovetail.tensorrt.logger import ILogger, Reporter

_CHUNK = 16 << 20


class Runtime(Deprecated):
    """Opens serialized engines, those of `dovetail.Engine.save` included."""

    def __init__(self, logger: ILogger) -> None:
        self._reporter = Reporter(logger)
        self._allocator: IGpuAllocator | None = None
        self._threads: int | None = None
        self._folder = tempfile.gettempdir()
        self._tempfiles = 1 << int(TempfileControlFlag.ALLOW_IN_MEMORY_FILES) | 1 << int(TempfileControlFlag.ALLOW_TEMPORARY_FILES)
        self._host_code = False

    @property
    def logger(self) -> ILogger:
        """Where messages go."""
        return self._reporter.logger

    error_recorder = recorder_property("Runtime", "Where errors are recorded, those of engines included; None at first.")

    @property
    def gpu_allocator(self) -> IGpuAllocator | None:
        """Allocates the memory of contexts for the values between layers; None: they have memory of their own."""
        return self._allocator

    @gpu_allocator.setter
    def gpu_allocator(self, allocator: IGpuAllocator | None) -> None:
        self._allocator = None if allocator is None else expect(IGpuAllocator, allocator, "Runtime.gpu_allocator")

    @property
    def max_threads(self) -> int:
        """How many threads a run on the CPU may use: at first all CPUs of the process."""
        return default_threads() if self._threads is None else self._threads

    @max_threads.setter
    def max_threads(self, count: int) -> None:
        try:
            self._threads = check_threads(expect(int, count, "Runtime.max_threads"))
        except UsageError as error:
            self._reporter.error(f"Runtime.max_threads: {error}", ErrorCodeTRT.INVALID_ARGUMENT)

    @property
    def temporary_directory(self) -> str:
        """Where temporary files would go; deserialization makes none."""
        return self._folder

    @temporary_directory.setter
    def temporary_directory(self, path: str) -> None:
        self._folder = expect(str, path, "Runtime.temporary_directory")

    @property
    def tempfile_control_flags(self) -> int:
        """Bits of `TempfileControlFlag`: which temporary files would be allowed."""
        return self._tempfiles

    @tempfile_control_flags.setter
    def tempfile_control_flags(self, flags: int) -> None:
        self._tempfiles = expect(int, flags, "Runtime.tempfile_control_flags")

    @property
    def engine_host_code_allowed(self) -> bool:
        """Whether machine code of the host, and modules of plugins, that an engine brings are trusted, whoever signed them.

        Without it, kernels that no trusted key signed are made again from the engine's graph.
        """
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed: bool) -> None:
        self._host_code = expect(bool, allowed, "Runtime.engine_host_code_allowed")

    @property
    def DLA_core(self) -> int:
        """-1: there is no deep-learning accelerator."""
        return -1

    @property
    def num_DLA_cores(self) -> int:
        """0: there is no deep-learning accelerator."""
        return 0

    def get_plugin_registry(self) -> Any:
        """The registry of plugins, which all runtimes share."""
        from dovetail.tensorrt.plugin_registry import get_plugin_registry

        return get_plugin_registry()

    def deserialize_cuda_engine(
        self, serialized_engine: Any = None, plugin_factory: None = None, *, stream_reader: Any = None, stream_reader_v2: Any = None
    ) -> ICudaEngine | None:
        """The engine of a buffer, or of a reader of one; None and an error in the log where it cannot be opened.

        Raises:
            TypeError: no buffer and no reader, or a plugin factory, which ended with TensorRT 7.
        """
        source = next((s for s in (stream_reader_v2, stream_reader, serialized_engine) if s is not None), None)
        if plugin_factory is not None:
            raise TypeError("Runtime.deserialize_cuda_engine: got a plugin_factory, expected plugins in the registry")
        data = self._read(source) if isinstance(source, IStreamReader | IStreamReaderV2) else _bytes(source)
        if data is None:
            return None
        self._reporter.info(f"Loaded engine size: {len(data) / 2**20:.6g} MiB")
        try:
            return self._open(data)
        except (Error, TypeError) as error:
            self._reporter.error(f"Runtime.deserialize_cuda_engine: {error}", ErrorCodeTRT.INVALID_ARGUMENT)
            return None

    def _open(self, data: bytes) -> ICudaEngine:
        load = partial(dovetail.load, data, threads=self._threads, trust=self._host_code, device=device())
        file = EngineFile(data)
        bare = file.weights() is None
        engine = _without_weights(file) if bare else load()
        return ICudaEngine(
            engine, None, self._reporter.logger, allocator=self._allocator, recorder=self._reporter.recorder,
            stripped=data if bare else None, load=load,
        )  # fmt: skip

    def _read(self, reader: IStreamReader | IStreamReaderV2) -> bytes | None:
        """All that a client's reader gives; None and an error in the log where that failed."""
        parts: list[bytes] = []
        where = f"{type(reader).__name__}.read"
        while True:
            given: Any = (
                call(self._reporter, where, reader.read, _CHUNK, 0, default=None)
                if isinstance(reader, IStreamReaderV2) else call(self._reporter, where, reader.read, _CHUNK, default=None)
            )  # fmt: skip
            if given is None:
                problem = f"Runtime.deserialize_cuda_engine: {where} gave nothing, expected bytes"
                self._reporter.error(problem, ErrorCodeTRT.INVALID_ARGUMENT)
                return None
            part = _bytes(given)
            parts.append(part)
            if len(part) < _CHUNK:
                return b"".join(parts)


def _bytes(source: Any) -> bytes:
    """A buffer as bytes.

    Raises:
        TypeError: it is none.
    """
    if type(source) is bytes:
        return source
    if source is None or isinstance(source, int | str):
        raise TypeError(f"Runtime.deserialize_cuda_engine: got {type(source).__name__}, expected a buffer or a stream reader")
    return bytes(memoryview(source))


def _without_weights(file: EngineFile) -> Engine:
    """The engine of a file without weights: it can be looked at, and takes weights."""
    import numpy as np

    from dovetail.core.dtypes import dtype

    names = [t for t in file.targets if t.startswith(device().partition(":")[0])]
    if not names:
        raise UsageError(f"{file.path}: got an engine for {', '.join(file.targets)}, expected one for {device()}")
    plan = file.plan(names[0])
    zeros = {s.name: np.zeros(s.shape, dtype(s.dtype).numpy) for s in plan.weights} | file.fixed_weights()
    reason = "its file holds no weights; give them all with a Refitter"
    return Engine(AbsentEngine(plan, zeros, reason), Artifacts(file.graph, "", None, None, dict(file.info), file.build))
