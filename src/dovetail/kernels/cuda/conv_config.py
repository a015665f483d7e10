"""Which tiles a convolution tries: all that fit, ranked by a model of the machine.

The model counts cycles of one multiprocessor: products, operands from L2, latency that the pipeline does not hide, waves of
programs. `cost` knows the machine, and serves products, which the rates of arithmetic and memory rule; the sums of a convolution are
short and its tiles few, so that here latency counts for more. It ranks well enough to keep the measured list short; builds without a
GPU take its first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dovetail.codegen.index import power_of_two
from dovetail.codegen.target import CudaTarget
from dovetail.core.dtypes import F32
from dovetail.kernels.cuda import cost
from dovetail.kernels.cuda.conv import Tile
from dovetail.kernels.cuda.conv_shape import Convolution
from dovetail.kernels.cuda.writer import typical

# Steps up to which a sum is short: its epilogue's loads are a good part of all.
_SHORT = 4
# Pipeline depths of one tile that are worth measuring.
_DEPTHS = 2

TYPICAL = 8
"""What a symbolic batch is taken for."""

# Cycles: of a first load until its product, of one load from L2, of what a step does besides, of an epilogue, and of passing parts
# through memory.
_START, _LATENCY, _STEP, _END, _PART = 1600, 900, 120, 700, 1500
_LAUNCH = 120
"""Cycles that starting one program takes its multiprocessor."""
# Bytes a cycle that one multiprocessor gets from L2, and operations that it does, by unit.
_L2_BYTES = 28
_PEAKS = {"wgmma": 2700, "mma": 1400, "tf32": 1200, "fma": 250}


def rank(conv: Convolution, tiles: Iterable[Tile], target: CudaTarget, operands: int, keep: int) -> list[Tile]:
    """The most promising tiles, best first.

    Args:
        operands: tensors of the result's size that the epilogue reads or writes.
        keep: how many.
    """
    able = [(cycles(conv, t, target, operands), n, t) for n, t in enumerate(dict.fromkeys(tiles)) if fits(conv, t, target, operands)]
    kept: list[Tile] = []
    depths: Counter[Tile] = Counter()
    for _, _, t in sorted(able, key=lambda item: item[:2]):
        shape = replace(t, stages=0)
        depths[shape] += 1
        if depths[shape] <= _DEPTHS:
            kept.append(t)
            if len(kept) == keep:
                break
    return kept


def shared_bytes(conv: Convolution, t: Tile) -> int:
    """Shared memory of the operands in flight."""
    return t.stages * (t.bm + t.bn) * t.bk * conv.dtype.itemsize


def fits(conv: Convolution, t: Tile, target: CudaTarget, operands: int) -> bool:
    """Whether accumulators fit the registers, operands the shared memory, and the pipeline is no deeper than the sum is long."""
    accumulators = t.bm * t.bn // (32 * t.warps)
    if t.stages > max(2, _steps(conv, t) + 1):
        return False
    # Where accumulators take half of the registers, addresses of a deep block do not fit beside them.
    if accumulators > 64 and t.bk * conv.dtype.itemsize > 128:
        return False
    return accumulators <= (128 if operands == 1 else 64) and shared_bytes(conv, t) <= target.shared_bytes - 4096


def cycles(conv: Convolution, t: Tile, target: CudaTarget, operands: int) -> float:
    """Estimated cycles of the whole convolution."""
    programs = _programs(conv, t)
    steps = _steps(conv, t)
    size = conv.dtype.itemsize
    threads = 32 * t.warps
    registers = t.bm * t.bn // threads + 48 + (t.bm + t.bn) * t.bk * size // threads // 16 * 2
    by_shared = target.shared_bytes // max(1, shared_bytes(conv, t))
    resident = max(1, min(by_shared, cost.THREADS[target.capability] // threads, cost.REGISTERS // (registers * threads)))
    processors = target.multiprocessors
    active = min(resident, -(-programs // processors))
    unit = cost.unit(conv.dtype, target, t.bn if t.swap else t.bm, t.warps)
    product = 2 * t.bm * t.bn * t.bk / _PEAKS[unit]
    load = (t.bm + t.bn) * t.bk * size / _L2_BYTES
    step = _STEP + max(_LATENCY / max(1, t.stages - 1), active * product, active * load)
    if not steps > 1:
        step = _LATENCY + active * (product + load)
    end = _END + active * t.bm * t.bn * size * operands / _L2_BYTES
    if t.split > 1:
        end += _PART + t.bm * t.bn * 4 * (active + t.split) / _L2_BYTES
    waves = math.ceil(programs / (processors * resident))
    return waves * (_START + steps * step + end) + _LAUNCH * programs / processors


def _programs(conv: Convolution, t: Tile) -> int:
    """How many programs there are, parts of sums included."""
    columns = -(-conv.width * t.pack // t.bn) * (conv.groups // t.pack)
    return -(-typical(conv.window.pixels, TYPICAL) // t.bm) * columns * t.split


def with_prefetch(conv: Convolution, tiles: Sequence[Tile], target: CudaTarget) -> list[Tile]:
    """The tiles, where programs are few with a prefetch of their filters; the first two also without."""
    if not target.programmatic_launch:
        return list(tiles)
    few = [_programs(conv, t) <= 2 * target.multiprocessors for t in tiles]
    found = [replace(t, ahead=1) if small else t for t, small in zip(tiles, few, strict=True)]
    plain = [t for t, small in zip(tiles[:2], few, strict=False) if small]
    return [*found[:2], *plain, *found[2:]]


def with_fetch(conv: Convolution, tiles: Sequence[Tile], operands: int) -> list[Tile]:
    """The tiles, where sums are short with the epilogue's operands prefetched ahead of them; the first two also otherwise."""
    if operands == 1:
        return list(tiles)
    found = [replace(t, fetch=1) if t.split == 1 and _steps(conv, t) <= _SHORT else t for t in tiles]
    others = [replace(t, fetch=1 - t.fetch) for t in found[:2] if t.split == 1]
    return [*found[:2], *others, *found[2:]]


def _steps(conv: Convolution, t: Tile) -> int:
    """Steps of one program's sum."""
    return -(-conv.window.taps * -(-conv.depth * t.pack // t.bk) // t.split)


def dense_tiles(conv: Convolution, target: CudaTarget) -> list[Tile]:
    """All tiles worth ranking for a convolution without groups."""
    narrow = conv.dtype == F32
    small = target.capability < 90
    found = []
    for bm in (16, 32, 64, 128, 256):
        for bn in (16, 32, 64, 128, 256):
            area = bm * bn
            if area > (64 * 64 if narrow and not target.tf32 else 128 * 256) or (bn > 16 and bn >= 2 * conv.filters):
                continue
            for warps in _warps(area, bm, narrow and not target.tf32):
                for bk in (16, 32) if narrow else (16, 32, 64, 128):
                    if not _depth_fits(conv.depth, bk):
                        continue
                    for stages in (3, 4, 2) if small or narrow else (3, 4, 5, 2):
                        found.append(Tile(bm, bn, bk, warps, stages))
                        if not small and not narrow and bm < 64 <= bn and warps == 4:
                            found.append(Tile(bm, bn, bk, warps, stages, swap=1))
    return [s for t in found for s in _splits(conv, t)]


def _warps(area: int, bm: int, plain: bool) -> Sequence[int]:
    if area >= 128 * 128 or plain:
        return (8,)
    return (4, 8) if area >= 64 * 128 and bm >= 128 else (4,) if area >= 32 * 32 else (2, 4)


def _depth_fits(depth: int, bk: int) -> bool:
    """Whether blocks of channels waste little."""
    least = min(bk for bk in (16, 32, 64, 128) if bk >= min(depth, 32))
    return bk >= least and (bk == least or -(-depth // bk) * bk <= depth * 1.34)


def _splits(conv: Convolution, t: Tile) -> list[Tile]:
    """The tile with its sum in 1, 2, 4 or 8 parts, where rows are known and parts are no shorter than two steps."""
    if not isinstance(conv.window.pixels, int):
        return [t]
    steps = conv.window.taps * -(-conv.depth // t.bk)
    return [t, *(replace(t, split=n) for n in (2, 4, 8) if steps >= 2 * n and t.bm * t.bn <= 128 * 128)]


def grouped_tiles(conv: Convolution, target: CudaTarget) -> list[Tile]:
    """All tiles worth ranking for groups: one group per block, or several narrow ones."""
    found = []
    packs = [p for p in (1, 2, 4, 8, 16) if conv.groups % p == 0 and (p == 1 or conv.depth * p <= 64)]
    for pack in packs:
        depth, width = conv.depth * pack, conv.width * pack
        bk = max(16, min(64, power_of_two(depth)))
        bn = max(16, min(128, power_of_two(width)))
        for bm in (32, 64, 128, 256):
            for stages in (3, 2, 4):
                found.append(Tile(bm, bn, bk, 8 if bm * bn >= 128 * 128 else 4, stages, pack=pack))
    narrow = conv.dtype == F32 and not target.tf32
    return [t for t in found if not narrow or t.bm * t.bn <= 64 * 64]
