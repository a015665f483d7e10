"""Which tiles are worth trying for a matrix product, best first, by the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dovetail.codegen.index import power_of_two
from dovetail.codegen.tactic import Group
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, evaluate, symbols
from dovetail.core.dtypes import F32
from dovetail.kernels.cuda import cost, matmul_tma
from dovetail.kernels.cuda.cost import Work
from dovetail.kernels.cuda.gemv import TOGETHER, Strip
from dovetail.kernels.cuda.matmul import Tile
from dovetail.kernels.cuda.matmul_problem import Problem
from dovetail.kernels.cuda.writer import known_early

LIMIT = 16
"""Configurations at most."""

FIRST, OTHERS = 4, 64
"""What an unknown dim counts as: a batch, or a length."""

# Other results of a run fit into the L2 cache besides this much.
_CACHED = 30e6


@dataclass(frozen=True)
class Sizes:
    """A problem in numbers.

    Attributes:
        m, n, k, batch: extents.
        itemsize: bytes of an operand's element.
        out: bytes of all results and other operands per element of the product.
        constant: bytes of operands known before the run.
        moved: bytes of all others.
    """

    m: int
    n: int
    k: int
    batch: int
    itemsize: int
    out: int
    constant: int
    moved: int

    @property
    def dram(self) -> float:
        """Bytes that come from or go to memory rather than the cache."""
        return self.constant + max(0.0, self.moved - _CACHED)


def sizes(group: Group, p: Problem) -> Sizes:
    """The numbers of a problem; unknown dims count as `FIRST` where they are first axes, else as `OTHERS`."""
    env: dict[str, int] = {}
    for value in (*group.inputs, *group.outputs):
        for axis, d in enumerate(value.tensor.shape):
            for name in symbols(d):
                env[name] = min(env.get(name, OTHERS), OTHERS if axis else FIRST)

    def number(d: Dim) -> int:
        return max(1, evaluate(d, env))

    m, n, k, batch = (number(d) for d in (p.n_rows, p.column.extent, p.depth, p.n_batch))
    full = group.outputs[0].tensor.shape
    others = [v.tensor for i, v in enumerate(group.inputs) if i not in (p.left, p.right) and v.tensor.shape == full]
    out = sum(t.dtype.itemsize for t in (*(v.tensor for v in group.outputs), *others))
    operands = [(known_early(group, i), number(group.inputs[i].tensor.size) * p.dtype.itemsize) for i in {p.left, p.right}]
    constant = sum(size for known, size in operands if known)
    moved = sum(size for known, size in operands if not known) + batch * m * n * out
    return Sizes(m, n, k, batch, p.dtype.itemsize, out, constant, moved)


def _unit(p: Problem, tile: Tile, target: CudaTarget) -> str:
    """What computes a tile."""
    return cost.unit(p.dtype, target, tile.bn if tile.swap else tile.bm, tile.warps)


def shared_bytes(tile: Tile, itemsize: int, steps: int) -> int:
    """Shared memory that a tile's stages take."""
    return min(tile.stages, max(1, steps)) * (tile.bm + tile.bn) * tile.bk * itemsize


def estimate(p: Problem, tile: Tile, given: Sizes, target: CudaTarget) -> float:
    """Microseconds of a configuration."""
    steps = -(-given.k // tile.bk)
    part = -(-steps // tile.split)
    depth = part * tile.bk
    accumulators = tile.bm * tile.bn
    step_bytes = (tile.bm + tile.bn) * tile.bk * given.itemsize
    kind = _unit(p, tile, target)
    work = Work(
        flops=2.0 * accumulators * depth,
        loads=(min(tile.bm, given.m) + min(tile.bn, given.n)) * depth * given.itemsize,
        stores=min(tile.bm, given.m) * min(tile.bn, given.n) * given.out,
        warps=tile.warps,
        shared=shared_bytes(tile, given.itemsize, steps) + 1024,
        registers=cost.registers(accumulators, tile.warps),
        unit=kind,
        efficiency=_efficiency(kind, tile),
        flight=max(1, tile.stages - 1) * step_bytes,
    )
    count = -(-given.m // tile.bm) * -(-given.n // tile.bn) * given.batch
    time = cost.estimate(
        target, work, count * tile.split, dram=given.dram, split=tile.split, partial=4.0 * accumulators
    )  # fmt: skip
    # Barriers of each step.
    return time + 0.02 * part


def _efficiency(kind: str, tile: Tile) -> float:
    tall, wide = (tile.bn, tile.bm) if tile.swap else (tile.bm, tile.bn)
    area = tall * wide
    if kind == "wgmma":
        return 0.7 if area >= 128 * 256 else 0.6 if area >= 128 * 128 else 0.5 if wide >= 64 else 0.35
    if kind == "fma":
        return 0.55 if area >= 64 * 64 else 0.35
    return 0.6 if area >= 64 * 128 else 0.5 if area >= 64 * 64 else 0.35


def _stages(tile: Tile, given: Sizes, target: CudaTarget) -> Iterator[Tile]:
    steps = -(-given.k // tile.bk) // tile.split
    most = target.shared_bytes // ((tile.bm + tile.bn) * tile.bk * given.itemsize)
    for stages in (2,) if steps <= 2 else (3, 4, 5):
        if stages <= most and stages <= max(2, steps):
            yield replace(tile, stages=stages)


def _half(given: Sizes, target: CudaTarget) -> Iterator[Tile]:
    """Tiles of 16-bit and TF32 operands."""
    depths = (32, 64, 128) if given.itemsize == 2 else (32, 64)
    for bm in (16, 32, 64, 128, 256):
        for bn in (16, 32, 64, 96, 128, 192, 256):
            if bn in (96, 192) and (bm < 64 or (given.n % bn and given.n < 4 * bn)):
                continue  # two products a step: worth it where it fills the last wave
            if bm > max(16, power_of_two(given.m)) or bn > max(16, power_of_two(given.n)) or bm * bn > 128 * 256:
                continue
            for bk in depths:
                if bk > max(32, power_of_two(given.k)):
                    continue
                for warps in (4, 8):
                    if (warps == 8) != (bm * bn > 128 * 128) and (warps == 4 or bm * bn != 128 * 128):
                        continue
                    yield Tile(bm, bn, bk, warps, 3)
                    if target.capability >= 90 and bm <= 64 <= bn and given.m <= 64 and bn == power_of_two(bn):
                        yield Tile(bm, bn, bk, warps, 3, swap=1)


def _exact(given: Sizes) -> Iterator[Tile]:
    """Tiles of fp32 operands that are multiplied one by one."""
    for bm, bn, warps in ((16, 32, 4), (32, 32, 4), (32, 64, 4), (64, 64, 4), (64, 64, 8), (128, 64, 8), (64, 128, 8), (128, 128, 8)):
        if bm <= max(16, power_of_two(given.m)) and bn <= max(32, power_of_two(given.n)):
            for bk in (16, 32):
                yield Tile(bm, bn, bk, warps, 3)


def tiles(group: Group, p: Problem, target: CudaTarget) -> list[Tile]:
    """Configurations of the pointer kernel, the best guess first."""
    given = sizes(group, p)
    exact = p.dtype == F32 and not target.tf32
    known = isinstance(p.n_rows * p.n_batch * p.column.extent, int) and isinstance(p.depth, int)
    found: list[tuple[float, Tile]] = []
    for tile in _exact(given) if exact else _half(given, target):
        if isinstance(p.depth, int) and p.depth % tile.bk and tile.bk > 32 and p.depth > tile.bk:
            continue
        count = -(-given.m // tile.bm) * -(-given.n // tile.bn) * given.batch
        steps = -(-given.k // tile.bk)
        for split in (1, 2, 3, 4, 6, 8, 12, 16):
            able = known and tile.bn == power_of_two(tile.bn) and count * split <= 2 * target.multiprocessors and split * 2 <= steps
            if split > 1 and not able:
                break
            if -(-steps // -(-steps // split)) != split:
                continue  # the last part would be empty
            for staged in _stages(replace(tile, split=split), given, target):
                shared = shared_bytes(staged, given.itemsize, steps) + 1024
                # Without wgmma, operands take registers, too: beside 128 accumulators a compiler fights for them without end.
                most = 128 if tile.warps == 8 or _unit(p, tile, target) == "wgmma" else 64
                if cost.fits(target, shared=shared, accumulators=tile.bm * tile.bn, warps=tile.warps, limit=most):
                    found.append((estimate(p, staged, given, target), staged))
    found.sort(key=lambda item: item[0])
    limit = 2 * found[0][0] + 1
    kept: list[Tile] = []
    shapes: dict[tuple[int, int, int, int], int] = {}
    # The best of each shape first, so that what the model gets wrong is tried, too; then other depths of the best shapes.
    for rank in range(2):
        for time, tile in found:
            shape = (tile.bm, tile.bn, tile.swap, tile.warps)
            room = len(kept) < (LIMIT - 6, LIMIT - 2)[rank]
            if room and time <= limit and shapes.get(shape, 0) <= rank and tile not in kept:
                kept.append(tile)
                shapes[shape] = shapes.get(shape, 0) + 1
    if target.programmatic_launch:
        kept.append(replace(kept[0], early=0))
    if _ahead(group, p, given, kept[0].bm, target):
        kept[1:1] = [replace(t, ahead=1) for t in kept[:2]]
    return kept


def _ahead(group: Group, p: Problem, given: Sizes, bm: int, target: CudaTarget) -> bool:
    """Whether the right operand can and should be fetched early: few programs would fetch the same."""
    few = -(-given.m // bm) <= 4
    known = isinstance(p.column.extent, int) and isinstance(p.depth, int)
    return target.programmatic_launch and few and not p.batch and known and known_early(group, p.right)


def strips(group: Group, p: Problem, target: CudaTarget) -> list[Strip]:
    """Configurations of the kernel for a single row, the best guess first."""
    given = sizes(group, p)
    known = isinstance(p.n_batch * p.column.extent, int) and isinstance(p.depth, int)
    along = p.right_step == 1
    found: list[tuple[float, Strip]] = []
    for bn in (1, 2, 4, 8, 16) if along else (16, 32, 64, 128, 256):
        for bk in (128, 256, 512, 1024) if along else (16, 32, 64, 128):
            block = bn * bk
            if not 1024 <= block <= 8192 or bn > power_of_two(given.n) or bk > max(power_of_two(given.k), 16 if not along else 128):
                continue
            steps = -(-given.k // bk)
            count = -(-given.n // bn) * given.batch
            for split in (1, 2, 4, 8, 16, 32):
                if split > 1 and (not known or split > steps or count * split > 8 * target.multiprocessors):
                    break
                part = -(-steps // split)
                warps = 4 if block >= 2048 else 2
                work = Work(
                    flops=2.0 * block * part, loads=block * part * given.itemsize, stores=bn * given.out, warps=warps, shared=1024,
                    registers=72 + block // (32 * warps), unit="fma", efficiency=0.4,
                    flight=block * given.itemsize * min(part, TOGETHER) // 2,
                )  # fmt: skip
                time = cost.estimate(target, work, count * split, dram=given.dram, split=split, partial=4.0 * bn)
                # Few programs do not keep the memory busy, many have to be started; rows of a block shorter than a line waste the rest.
                idle = max(0.0, 1 - count * split / (2 * target.multiprocessors))
                line = min(1.0, (bk if along else bn) * given.itemsize / 128)
                time += 0.3 * idle * time + 0.02 * split + 0.001 * count * split + (1 / line - 1)
                found.append((time, Strip(bn, bk, warps, split)))
    # Of what costs about the same, larger blocks first: they have more loads under way.
    found.sort(key=lambda item: (round(item[0] * 10), -item[1].bn * item[1].bk))
    return [strip for _, strip in found[: LIMIT // 2]] or [Strip(16, 64, 4)]


def small_reason(group: Group, p: Problem) -> str | None:
    """None if a product is large enough for programs that walk through tiles, else the reason why not."""
    given = sizes(group, p)
    if given.m < 64 or given.n < 64 or given.k < 32:
        return f"{given.m}x{given.n}x{given.k} is less than a large tile"
    return None


def flattened(tile: matmul_tma.Tile, staging: int, itemsize: int, target: CudaTarget) -> matmul_tma.Tile | None:
    """The tile whose program begins its next tile early, with as many stages as its results leave room for; None if too few."""
    stage = (tile.bm + tile.bn) * tile.bk * itemsize
    stages = min(tile.stages, (target.shared_bytes - 2 * staging - 1024) // stage)
    return replace(tile, flatten=1, stages=stages) if stages >= 2 else None


_COPIED = (
    (128, 256, 8), (256, 128, 8), (128, 192, 8), (128, 128, 8), (128, 128, 4), (64, 256, 4), (64, 192, 4), (128, 64, 4), (64, 128, 4),
    (64, 64, 4),
)  # fmt: skip


def copied(group: Group, p: Problem, target: CudaTarget) -> list[matmul_tma.Tile]:
    """Configurations of the kernel with tiles by the copy engine, the best guess first."""
    given = sizes(group, p)
    stores = matmul_tma.stored(group, p) is not None
    found: list[tuple[float, matmul_tma.Tile]] = []
    for bm, bn, warps in _COPIED:
        if bm > max(64, power_of_two(given.m)) or bn > max(64, power_of_two(given.n)) or (bn == 192 and given.n % bn and given.n < 4 * bn):
            continue
        count = -(-given.m // bm) * -(-given.n // bn)
        staging = bm * bn * group.outputs[0].tensor.dtype.itemsize
        depths = (32,) if given.k < 64 else (64, 128) if bm * bn <= 64 * 128 and given.k >= 512 else (64,)
        for bk in depths:
            for persistent in (1, 0) if count > target.multiprocessors else (0,):
                for store in (1, 0) if stores else (0,):
                    for stages in (3, 4, 5):
                        shared = stages * (bm + bn) * bk * given.itemsize + (staging if store or persistent else 0) + 1024
                        if shared > target.shared_bytes or stages > max(3, -(-given.k // bk)):
                            continue
                        tile = matmul_tma.Tile(bm, bn, bk, warps, stages, persistent=persistent, store=store)
                        time = estimate(p, Tile(bm, bn, bk, warps, stages), given, target)
                        found.append((time * (0.97 if persistent else 1.0) * (0.98 if store else 1.0) - 0.01 * stages, tile))
    found.sort(key=lambda item: item[0])
    kept: list[matmul_tma.Tile] = []
    seen: dict[tuple[int, ...], int] = {}
    for time, tile in found:
        shape = (tile.bm, tile.bn, tile.warps)
        if len(kept) < LIMIT - 4 and time < 2 * found[0][0] and seen.get(shape, 0) < 3:
            kept.append(tile)
            seen[shape] = seen.get(shape, 0) + 1
    walking = {(tile.bm, tile.bn): tile for tile in reversed(kept) if tile.persistent}
    size = group.outputs[0].tensor.dtype.itemsize
    able = [flattened(t, t.bm * t.bn * size, given.itemsize, target) for t in kept if walking.get((t.bm, t.bn)) is t]
    flat = [tile for tile in able if tile is not None][:3]
    if _ahead(group, p, given, kept[0].bm, target) and not kept[0].persistent:
        kept[1:1] = [replace(kept[0], ahead=1)]
    return [*kept, *flat]
