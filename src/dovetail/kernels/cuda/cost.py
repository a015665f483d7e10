"""What a tiled kernel costs on a GPU, before anything is measured: which configurations fit, and in which order they are worth trying.

    work = Work(flops=2 * 128 * 256 * k, loads=(128 + 256) * k * 2, stores=128 * 256 * 2, warps=8, shared=147_456,
                registers=200, unit="wgmma")
    microseconds = estimate(target, work, programs=384, dram=weights + activations)

Programs come in waves over the multiprocessors; a wave takes as long as the slowest of arithmetic, what one multiprocessor can fetch
and what the L2 cache can deliver to all; a kernel is never faster than its distinct bytes come from memory. The constants reproduce
measured products on an H100 (128x768x768: 3.1 us, 128x768x3072: 7.4, 4096x768x768: 12.7, 4096x3072x768: 37, 4096^3: 206) within 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.codegen.target import CudaTarget
from dovetail.core.dtypes import F32, DType

REGISTERS = 65536
"""Of a multiprocessor."""

THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048}
"""That a multiprocessor holds, by compute capability."""

# Beyond what a block asks for, each one takes this much shared memory.
_RESERVED = 1024
# Of the peak, what a pipelined loop reaches once a tile is large.
_EFFICIENCY = 0.7
# Microseconds between a load and its data, under load.
_FLIGHT = 0.6


@dataclass(frozen=True)
class Machine:
    """Rates of a GPU.

    Attributes:
        flops: per multiprocessor and microsecond, by unit: "wgmma", "mma" (16-bit), "tf32", "fma" (fp32).
        fetch: bytes per microsecond that one multiprocessor can load.
        l2, dram: bytes per microsecond of the whole GPU.
        launch: microseconds between kernels that depend on each other.
        latency: microseconds until the first tile has arrived and the last one is written.
    """

    flops: dict[str, float]
    fetch: float
    l2: float
    dram: float
    launch: float
    latency: float


_MACHINES = {
    80: Machine({"mma": 2.9e6, "tf32": 1.45e6, "fma": 0.18e6}, 0.09e6, 4.0e6, 1.45e6, 1.1, 1.2),
    86: Machine({"mma": 0.85e6, "tf32": 0.42e6, "fma": 0.42e6}, 0.10e6, 2.5e6, 0.80e6, 1.1, 1.2),
    89: Machine({"mma": 1.3e6, "tf32": 0.65e6, "fma": 0.64e6}, 0.14e6, 4.0e6, 0.90e6, 1.1, 1.2),
    90: Machine({"wgmma": 7.5e6, "mma": 4.6e6, "tf32": 3.0e6, "fma": 0.5e6}, 0.106e6, 9.0e6, 2.9e6, 0.7, 1.0),
}


@dataclass(frozen=True)
class Work:
    """One program of a kernel.

    Attributes:
        flops: arithmetic of the main loop.
        loads: bytes that the main loop reads.
        stores: bytes that the epilogue reads and writes.
        warps: of a program.
        shared: bytes of shared memory.
        registers: per thread.
        unit: what computes: see `Machine.flops`.
        efficiency: share of the unit's peak that the tile's shape allows.
        flight: bytes of its loads that are under way at a time; 0: enough.
    """

    flops: float
    loads: float
    stores: float
    warps: int
    shared: int
    registers: int
    unit: str
    efficiency: float = _EFFICIENCY
    flight: int = 0


def machine(target: CudaTarget) -> Machine:
    """The rates of a target's usual part."""
    return _MACHINES[target.capability]


def unit(dtype: DType, target: CudaTarget, tall: int, warps: int) -> str:
    """What computes products of a tile, see `Machine.flops`.

    Args:
        tall: extent of the tile along the rows of an instruction; a warp group's have 64, smaller ones take others at half the rate.
    """
    if dtype == F32:
        return "tf32" if target.tf32 else "fma"
    return "wgmma" if target.capability >= 90 and tall >= 64 and warps % 4 == 0 else "mma"


def fits(target: CudaTarget, *, shared: int, accumulators: int, warps: int, limit: int = 128) -> bool:
    """Whether a program's tiles fit: shared memory, and accumulators (fp32 elements of a program) in `limit` registers of a thread."""
    return shared <= target.shared_bytes and accumulators <= limit * 32 * warps


def registers(accumulators: int, warps: int) -> int:
    """Registers of a thread, estimated: its accumulators, addresses and operands."""
    return min(255, accumulators // (32 * warps) + 72)


def resident(target: CudaTarget, work: Work) -> int:
    """Programs that one multiprocessor holds at a time, at least one."""
    by_shared = (target.shared_bytes + _RESERVED) // (work.shared + _RESERVED)
    by_threads = THREADS[target.capability] // (32 * work.warps)
    by_registers = REGISTERS // (work.registers * 32 * work.warps)
    return max(1, min(by_shared, by_threads, by_registers, 16))


def estimate(target: CudaTarget, work: Work, programs: int, *, dram: float = 0, split: int = 1, partial: float = 0) -> float:
    """Microseconds of one launch among others that depend on it.

    Args:
        target: the GPU.
        work: one program.
        programs: how many there are, parts of a sum included.
        dram: distinct bytes read and written.
        split: programs that share one result, each with a part of the sum.
        partial: bytes of one such part.
    """
    m = machine(target)
    rate = m.flops[work.unit] * work.efficiency
    count = target.multiprocessors
    occupancy = resident(target, work)
    wave = count * occupancy

    def loop(n: int) -> float:
        """Microseconds of the main loops of n programs that run at once."""
        share = -(-n // count)
        fetch = min(m.fetch, share * work.flight / _FLIGHT) if work.flight else m.fetch
        return max(share * work.flops / rate, share * work.loads / fetch, n * work.loads / m.l2)

    def tail(n: int) -> float:
        share = -(-n // count)
        return max(share * work.stores / m.fetch, n * work.stores / m.dram) + m.latency

    whole, rest = divmod(programs, wave)
    # Programs that share a multiprocessor hide each other's start and end.
    hidden = 1.0 if occupancy == 1 else 0.5
    time = 0.0
    for index, n in enumerate([wave] * min(whole, 1) + ([rest] if rest else [])):
        repeats = whole if index == 0 and whole else 1
        time += repeats * loop(n) + tail(n) * (1 + (repeats - 1) * hidden)
    if split > 1:
        time += 0.6 + split * partial / m.fetch + programs * partial / m.l2
    return m.launch + max(time, dram / m.dram + m.latency)
