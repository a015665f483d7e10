"""Contexts: memory of the clients' allocators."""

import gc

import numpy as np
import pytest

import dovetail.tensorrt as trt
from tests.tensorrt import engines
from tests.tensorrt.contexts import image, reference, same
from tests.tensorrt.coverage import exercises
from tests.tensorrt.engines import Log, at, normal, opened


class Heap(trt.IGpuAllocator):
    """Allocates NumPy arrays."""

    def __init__(self, give=True):
        trt.IGpuAllocator.__init__(self)
        self.live, self.give, self.freed = {}, give, 0

    def allocate(self, size, alignment, flags):
        if not self.give:
            return 0
        array = np.zeros(size + alignment, np.uint8)
        address = -(-at(array) // alignment) * alignment
        self.live[address] = array
        return address

    def deallocate(self, memory):
        self.freed += 1
        return self.live.pop(memory, None) is not None


@exercises("Runtime.gpu_allocator", "IExecutionContext.temporary_allocator", "IGpuAllocator.allocate", "IGpuAllocator.deallocate")
@exercises("ExecutionContextAllocationStrategy", "ExecutionContextAllocationStrategy.STATIC")
@exercises("ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE")
def test_contexts_have_their_memory_of_the_clients_allocator():
    heap, log = Heap(), Log()
    context, x, outputs = image(log=log, gpu_allocator=heap)
    assert context.engine._allocator is heap and len(heap.live) == 1
    assert context.execute_async_v3(0) and next(iter(heap.live.values())).any()
    same(outputs, reference(engines.image(), x=x))
    del context
    gc.collect()
    assert not heap.live and heap.freed == 1
    later = opened(engines.image(), gpu_allocator=heap).create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
    assert not heap.live
    other = Heap()
    assert later.temporary_allocator is None
    later.temporary_allocator = other
    assert later.temporary_allocator is other
    later.set_input_shape("x", x.shape)
    assert later.execute_v2([at(x), *map(at, outputs.values())]) and not heap.live and len(other.live) == 1
    failing = opened(engines.image(), log, gpu_allocator=Heap(give=False))
    log.messages.clear()
    assert failing.create_execution_context() is None and "no memory from the allocator" in log.errors()[0]
    runtime = trt.Runtime(log)
    assert runtime.gpu_allocator is None
    for owner, name in ((runtime, "gpu_allocator"), (later, "temporary_allocator")):
        with pytest.raises(TypeError):
            setattr(owner, name, log)
        setattr(owner, name, None)


class Pool(trt.IGpuAsyncAllocator):
    """Allocates in streams, and grows in place."""

    def __init__(self, grow):
        trt.IGpuAsyncAllocator.__init__(self)
        self.heap, self.grow, self.calls = Heap(), grow, []

    def allocate_async(self, size, alignment, flags, stream):
        self.calls.append(("allocate", flags, stream))
        return self.heap.allocate(2 * size if self.grow else size, alignment, flags)

    def deallocate_async(self, memory, stream):
        self.calls.append(("deallocate", stream))
        return self.heap.deallocate(memory)

    def reallocate(self, address, alignment, new_size):
        self.calls.append(("reallocate", new_size))
        return address if self.grow else 0


@exercises("IGpuAllocator", "IGpuAsyncAllocator", "IGpuAsyncAllocator.allocate", "IGpuAsyncAllocator.deallocate")
@exercises("IGpuAsyncAllocator.allocate_async", "IGpuAsyncAllocator.deallocate_async", "AllocatorFlag.RESIZABLE")
@pytest.mark.parametrize("grow", [False, True])
def test_allocators_of_streams(grow):
    pool = Pool(grow)
    assert isinstance(pool, trt.IGpuAllocator)
    engine = opened(engines.image(), gpu_allocator=pool)
    static = engine.create_execution_context()
    resizable = 1 << int(trt.AllocatorFlag.RESIZABLE)
    assert pool.calls == [("allocate", resizable, 0)]
    del static
    gc.collect()
    assert pool.calls[1:] == [("deallocate", 0)]
    pool.calls.clear()
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
    for n in (1, 2, 1):
        x, y, raw = normal(n, 3, 6, 5), *(np.zeros((n, 4, 6, 5), np.float32) for _ in range(2))
        context.set_input_shape("x", x.shape)
        for name, array in (("x", x), ("y", y), ("raw", raw)):
            context.set_tensor_address(name, at(array))
        assert context.execute_async_v3(6)
        same({"y": y, "raw": raw}, reference(engines.image(), x=x))
    kinds = [call[0] for call in pool.calls]
    assert kinds == (["allocate", "reallocate"] if grow else ["allocate", "reallocate", "deallocate", "allocate"])
    assert ("allocate", resizable, 6) in pool.calls and len(pool.heap.live) == 1


@exercises("IGpuAllocator.allocate_async", "IGpuAllocator.deallocate_async", "IGpuAllocator.reallocate", "IGpuAllocator.free")
def test_allocators_of_the_oldest_kind():
    class Old(trt.IGpuAllocator):
        def __init__(self):
            trt.IGpuAllocator.__init__(self)
            self.heap, self.freed = Heap(), 0

        def allocate(self, size, alignment, flags):
            return self.heap.allocate(size, alignment, flags)

        def free(self, memory):
            self.freed += 1
            self.heap.deallocate(memory)

    old = Old()
    assert old.reallocate(1, 2, 3) == 0 and callable(old.allocate_async) and callable(old.deallocate_async)
    context = opened(engines.image(), gpu_allocator=old).create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)
    for n in (1, 2):
        x, y, raw = normal(n, 3, 6, 5), *(np.zeros((n, 4, 6, 5), np.float32) for _ in range(2))
        context.set_input_shape("x", x.shape)
        assert context.execute_async_v2([at(x), at(y), at(raw)], 0)
        same({"y": y}, reference(engines.image(), x=x))
    assert old.freed == 1 and len(old.heap.live) == 1
