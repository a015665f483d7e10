"""Attention whole, in one kernel: scores never reach memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from dovetail.codegen.tactic import ANY, ROWS, Config, Emitted, Group, Tactic, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import Dim
from dovetail.core.dtypes import BF16, F16, F32, F64
from dovetail.kernels.cuda import attention
from dovetail.kernels.cuda.attention_shape import AttentionShape, Strides, Tiling, parts
from dovetail.kernels.cuda.writer import typical
from dovetail.kernels.fused import attention_problem, attributes, broadcast_strides, head_strides

_MAX_DEPTH = 256  # beyond it a tile of results and one of queries do not fit the registers
_REGISTERS = 165  # of 255 per thread, for what tiles hold; the rest are addresses
_MOST_CONFIGS = 10
_SPLITS = (1, 2, 4, 8, 16, 32)
# Extents that the shapes of a plan leave open: one sample, some hundred steps.
_TYPICAL_STEPS = 512


@tactic
class FlashAttention(Tactic):
    """A tile of queries against blocks of keys, with a running softmax."""

    name = "flash"
    device = "cuda"
    kinds = ("attention",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Floats of at most 32 bits, one result, nothing fused, head sizes known and at most 256."""
        problem = attention_problem(group)
        if problem is not None:
            return problem
        anchor = group.anchor
        assert anchor is not None
        attrs = attributes(anchor)
        if attrs["softmax_dtype"] == F64:
            return "softmax in f64"
        q, k, v = (anchor.input(n).tensor for n in range(3))
        if q.dtype not in (F16, BF16, F32) or not q.dtype == k.dtype == v.dtype:
            return f"operands are {q.dtype}, {k.dtype}, {v.dtype}, expected all f16, all bf16 or all f32"
        found = [head_strides(t, attrs[h]) for t, h in ((q, "q_heads"), (k, "kv_heads"), (v, "kv_heads"))]
        for _, _, _, depth in found:
            if not isinstance(depth, int):
                return "head sizes are symbolic"
            if not 1 <= depth <= _MAX_DEPTH:
                return f"head size {depth}, expected 1 to {_MAX_DEPTH}"
        heads, key_heads = found[0][1], found[1][1]
        if heads != key_heads and not (isinstance(heads, int) and isinstance(key_heads, int)):
            return "grouped heads are symbolic"
        if heads == 0 or key_heads == 0:
            return "there are no heads"
        mask, lengths = ((anchor.inputs[n] if len(anchor.inputs) > n else None) for n in (3, 4))
        return attention.mask_reason(None if mask is None else mask.tensor, None if lengths is None else lengths.tensor)

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Contiguous rows but for the keys, whose blocks are read either way."""
        assert group.anchor is not None
        wants = [ROWS] * len(group.inputs)
        key = group.anchor.input(1)
        if key not in (*group.anchor.inputs[:1], *group.anchor.inputs[2:]):
            wants[key.index] = ANY
        return tuple(wants), (ROWS,)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Tiles that fit registers and shared memory, by estimated time."""
        shape = self._shape(group)
        found = [t.config for t in tilings(shape, CudaTarget.of(target))]
        return tuple(found[:_MOST_CONFIGS])

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel, or two where parts of the keys are added by a second one."""
        return attention.emit(self._shape(group), Tiling.of(config), CudaTarget.of(target), self.name)

    @staticmethod
    def _shape(group: Group) -> AttentionShape:
        anchor = group.anchor
        assert anchor is not None
        attrs = attributes(anchor)
        outer = [None if v is None else group.inputs[v.index].tensor for v in anchor.inputs]
        q, k, v = outer[0], outer[1], outer[2]
        assert q is not None and k is not None and v is not None
        q_strides, heads, steps, depth = head_strides(q, attrs["q_heads"])
        k_strides, key_heads, keys, _ = head_strides(k, attrs["kv_heads"])
        v_strides, _, _, value_depth = head_strides(v, attrs["kv_heads"])
        out = group.outputs[0].tensor
        out_strides = head_strides(out, attrs["q_heads"])[0]
        assert isinstance(depth, int) and isinstance(value_depth, int)
        share = 1
        if heads != key_heads:
            assert isinstance(heads, int) and isinstance(key_heads, int)
            share = heads // key_heads
        mask = outer[3] if len(outer) > 3 else None
        mask_strides: Strides = (0, 0, 0, 0)
        mask_keys: Dim = keys
        mask_batch: Dim | None = None
        if mask is not None:
            own = broadcast_strides(mask, 4)
            mask_strides = (own[0], own[1], own[2], mask.placement.strides(mask.shape)[-1])
            mask_keys = mask.shape[-1]
            if mask.rank == 4 and mask.shape[0] not in (1, q.shape[0]):
                mask_batch = mask.shape[0]
        return AttentionShape(
            q.shape[0], key_heads, share, steps, keys, depth, value_depth, attrs["scale"], (q, k, v, out), q_strides, k_strides,
            v_strides, out_strides, tuple(-1 if x is None else x.index for x in anchor.inputs), attrs["is_causal"], attrs["past"],
            attrs["left_window"], attrs["right_window"], attrs["softcap"], mask, mask_strides, mask_keys, mask_batch,
            outer[4] if len(outer) > 4 else None,
        )  # fmt: skip


def tilings(shape: AttentionShape, target: CudaTarget) -> list[Tiling]:
    """Configurations by estimated time, best first; only the best number of parts of each tile and its neighbours."""
    found = []
    for m, n, warps, stages in itertools.product((16, 32, 64, 128), (32, 64, 128, 256), (2, 4, 8), (1, 2, 3)):
        tiling = Tiling(m, n, warps, stages, 1)
        if not _fits(shape, tiling, target):
            continue
        times = {s: _estimate(shape, replace(tiling, splits=s), target) for s in _useful_splits(shape, tiling, target)}
        best = min(times, key=lambda s: (times[s], s))
        found.append((times[best], replace(tiling, splits=best)))
    found.sort(key=lambda item: item[0])
    return [tiling for _, tiling in found]


def _rows(shape: AttentionShape) -> int:
    return max(1, typical(shape.rows, _TYPICAL_STEPS))


def _keys(shape: AttentionShape) -> int:
    return max(1, typical(shape.keys, _TYPICAL_STEPS))


def _useful_splits(shape: AttentionShape, tiling: Tiling, target: CudaTarget) -> list[int]:
    """Numbers of parts with at least two blocks of keys each, where the tiles alone do not fill the machine."""
    blocks = -(-_keys(shape) // tiling.n)
    tiles = typical(shape.pairs) * -(-_rows(shape) // tiling.m)
    return [s for s in _SPLITS if s == 1 or (2 * s <= blocks and s * tiles <= 2 * target.multiprocessors)]


def _fits(shape: AttentionShape, tiling: Tiling, target: CudaTarget) -> bool:
    """Whether a tile is worth compiling: registers, shared memory, and no more padding than needed."""
    m, n, warps, stages = tiling.m, tiling.n, tiling.warps, tiling.stages
    size = shape.types[0].dtype.itemsize
    depth, value_depth = (sum(p.width for p in parts(d)) for d in (shape.depth, shape.value_depth))
    threads = 32 * warps
    if m * n < 256 * warps:  # less than a tensor core instruction per warp
        return False
    if m == 128 and warps == 4 and n * value_depth > 64 * 64:
        return False
    if warps == 2 and m > 32:
        return False
    if (m > 16 and m >= 2 * _rows(shape)) or (n > 32 and n >= 2 * _keys(shape)):
        return False
    held = (m * n + m * value_depth) + (m * n * size // 4 if n > 16 else 0)
    if shape.mask is not None and (shape.mask_strides[2] != 0 or (shape.share > 1 and shape.mask_strides[1] != 0)):
        held += m * n  # a mask with rows of its own, whose elements are loaded one by one
    operands = 0
    if size == 4:
        # Products of fp32 run on ordinary cores, each thread with its share of both operands in registers.
        held += m * depth // 4
        operands = (m + n) * 4 if target.tf32 else 0
        if not target.tf32 and (m * max(n, value_depth // 2) > 8 * threads or n > 64):
            return False
    if (held + operands) // threads > _REGISTERS:
        return False
    single = shape.keys if isinstance(shape.keys, int) else n + 1
    if single <= n and stages > 1:
        return False
    if single > n and stages == 1:
        return False
    shared = (max(1, stages) * n * (depth + value_depth) + m * depth) * size
    return shared <= target.shared_bytes * 9 // 10


def _estimate(shape: AttentionShape, tiling: Tiling, target: CudaTarget) -> float:
    """Microseconds by a simple model: waves of tiles, each the longer of its arithmetic and its loads."""
    m, n, warps, stages, splits = tiling.m, tiling.n, tiling.warps, tiling.stages, tiling.splits
    size = shape.types[0].dtype.itemsize
    depth, value_depth = (sum(p.width for p in parts(d)) for d in (shape.depth, shape.value_depth))
    tiles = typical(shape.pairs) * -(-_rows(shape) // m)
    blocks = -(-_keys(shape) // n)
    if shape.causal and _rows(shape) > m:
        blocks = (blocks + 1) // 2
    per_part = -(-blocks // splits)
    # Of one multiprocessor, per microsecond.
    rate = 2.6e6 if target.capability >= 90 else 1.8e6
    if size == 4:
        rate = rate / 2 if target.tf32 else 0.2e6
    wide = m >= 64 and warps % 4 == 0 and target.capability >= 90
    rate *= (1.0 if wide else 0.5) * min(1.0, warps / 4) * (1.0 if n >= 64 else 0.75)
    exponents = 0.012e6 * min(1.0, warps / 4) * 2.5
    resident = max(1, min(8 // max(1, warps // 2), int(target.shared_bytes // ((stages * n * (depth + value_depth) + m * depth) * size))))
    arithmetic = 2 * m * n * (depth + value_depth) / rate + m * n / exponents
    bandwidth = 0.025e6  # bytes per microsecond of one multiprocessor, from the second-level cache
    load = n * (depth + value_depth) * size / bandwidth
    latency = 0.9 if stages == 1 else 0.6 / stages
    waves = -(-tiles * splits // target.multiprocessors)
    busy = min(resident, waves)
    block = max(arithmetic * busy, load * busy, latency + arithmetic)
    time = 2.0 + -(-waves // resident) * per_part * block
    if splits > 1:
        time += 1.0 + 0.05 * splits + m * value_depth * 4 * splits / bandwidth
    return time
