"""`IRuntimeConfig` and `ISerializationConfig`: what contexts and serialized engines are made with."""

from __future__ import annotations

from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import ExecutionContextAllocationStrategy, SerializationFlag


class IRuntimeConfig:
    """How contexts are made; see `ICudaEngine.create_runtime_config`."""

    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> None:
        """Say who allocates the memory of contexts, and when."""
        self._strategy = expect(
            ExecutionContextAllocationStrategy, strategy, "IRuntimeConfig.set_execution_context_allocation_strategy: strategy"
        )

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        """Who allocates the memory of contexts, and when."""
        return self._strategy


class ISerializationConfig:
    """What of an engine is serialized; see `ICudaEngine.create_serialization_config`."""

    def __init__(self) -> None:
        self._flags = 0

    @property
    def flags(self) -> int:
        """Bits of `SerializationFlag`."""
        return self._flags

    @flags.setter
    def flags(self, flags: int) -> None:
        self._flags = expect(int, flags, "ISerializationConfig.flags")

    def set_flag(self, flag: SerializationFlag) -> bool:
        """Set a flag; True when it is set."""
        self._flags |= 1 << int(expect(SerializationFlag, flag, "ISerializationConfig.set_flag: flag"))
        return True

    def clear_flag(self, flag: SerializationFlag) -> bool:
        """Clear a flag; True when it is clear."""
        self._flags &= ~(1 << int(expect(SerializationFlag, flag, "ISerializationConfig.clear_flag: flag")))
        return True

    def get_flag(self, flag: SerializationFlag) -> bool:
        """Whether a flag is set."""
        return bool(self._flags >> int(expect(SerializationFlag, flag, "ISerializationConfig.get_flag: flag")) & 1)
