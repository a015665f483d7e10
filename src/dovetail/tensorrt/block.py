"""A piece of memory from a client's allocator, which grows."""

from __future__ import annotations

from dovetail.core.errors import ExecutionError
from dovetail.tensorrt.enums import AllocatorFlag
from dovetail.tensorrt.hooks import IGpuAllocator, call
from dovetail.tensorrt.logger import Reporter
from dovetail.tensorrt.memory import ALIGNMENT, integer


class Block:
    """The memory that a client's allocator gave for the values between layers; `release` gives it back."""

    def __init__(self, reporter: Reporter, source: IGpuAllocator) -> None:
        self.source = source
        self.address = 0
        self.size = 0
        self._reporter = reporter
        self._stream: int | None = None

    def grow(self, size: int, stream: int | None) -> bool:
        """Have at least so many bytes; True where the block is another one then. What was in it is gone.

        Args:
            stream: in whose order the memory is used; None: nobody's.

        Raises:
            ExecutionError: the allocator gave none.
        """
        if size <= self.size:
            return False
        moved = self._asked("reallocate", self.address, ALIGNMENT, size) if self.address else 0
        if not moved:
            self.release()
            flags = 1 << int(AllocatorFlag.RESIZABLE)
            if stream is None:
                moved = self._asked("allocate", size, ALIGNMENT, flags)
            else:
                moved = self._asked("allocate_async", size, ALIGNMENT, flags, stream)
        if not moved:
            raise ExecutionError(f"context: got no memory from the allocator, expected {size} bytes")
        self.address, self.size, self._stream = moved, size, stream
        return True

    def release(self) -> None:
        """Give the memory back."""
        address, self.address, self.size = self.address, 0, 0
        if not address:
            return
        if self._stream is None:
            call(self._reporter, "IGpuAllocator.deallocate", self.source.deallocate, address, default=False)
        else:
            call(self._reporter, "IGpuAllocator.deallocate_async", self.source.deallocate_async, address, self._stream, default=False)

    def _asked(self, method: str, *args: int) -> int:
        where = f"IGpuAllocator.{method}"
        given = call(self._reporter, where, getattr(self.source, method), *args, default=0)
        return 0 if given is None else integer(given, where)
