"""What an attention asks for: its extents, operands and visibility, and the configurations of the template that computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dovetail.codegen.index import power_of_two
from dovetail.core.dims import Dim
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.configuration import Configuration

Strides = tuple[Dim, Dim, Dim, Dim]


@dataclass(frozen=True)
class AttentionShape:
    """An attention; strides are element strides along (batch, head, step, innermost).

    Attributes:
        batch, key_heads: B, Hkv.
        share: query heads per key head.
        steps, keys: S and T.
        depth, value_depth: D and Dv.
        types: q, k, v and the output, with their layouts, for alignment.
        q, k, v, out: strides.
        causal, past, left, right, softcap: as in the op Attention.
        mask: type of the mask, None without one; its strides are 0 where it is broadcast.
        mask_keys: keys that the mask covers; the rest are hidden.
        mask_batch: samples after which the mask repeats (None: it does not).
        lengths: type of the valid keys per sample, None without.
        positions: of q, k, v, mask and lengths among the group's inputs.
    """

    batch: Dim
    key_heads: Dim
    share: int
    steps: Dim
    keys: Dim
    depth: int
    value_depth: int
    scale: float
    types: tuple[TensorType, TensorType, TensorType, TensorType]
    q: Strides
    k: Strides
    v: Strides
    out: Strides
    positions: tuple[int, ...]
    causal: bool = False
    past: Dim = 0
    left: int = -1
    right: int = -1
    softcap: float = 0.0
    mask: TensorType | None = None
    mask_strides: Strides = (0, 0, 0, 0)
    mask_keys: Dim = 0
    mask_batch: Dim | None = None
    lengths: TensorType | None = None

    @property
    def rows(self) -> Dim:
        """Rows that read the same keys."""
        return self.steps * self.share

    @property
    def pairs(self) -> Dim:
        """(sample, key head) pairs."""
        return self.batch * self.key_heads

    @property
    def limited(self) -> bool:
        """Whether a row's own position decides what it sees."""
        return self.causal or self.left >= 0 or self.right >= 0

    @property
    def may_hide_rows(self) -> bool:
        """Whether a row may see nothing of what its tile reads."""
        return self.mask is not None or self.lengths is not None or self.left >= 0 or self.right >= 0 or self.causal

    @property
    def flops(self) -> Dim:
        """Operations of both products, all keys counted."""
        return self.pairs * self.rows * self.keys * (2 * self.depth + 2 * self.value_depth)

    @property
    def bytes(self) -> Dim:
        """Traffic when each operand passes once."""
        q, k, v, _ = self.types
        once = self.rows * (self.depth + self.value_depth) * q.dtype.itemsize
        each = self.keys * (self.depth * k.dtype.itemsize + self.value_depth * v.dtype.itemsize)
        return self.pairs * (once + each)


@dataclass(frozen=True)
class Tiling(Configuration):
    """A configuration: rows and keys of a tile, warps, pipeline stages, and parts of the keys."""

    m: int
    n: int
    warps: int
    stages: int
    splits: int


class Part(NamedTuple):
    """Some columns of a head, padded to a power of two."""

    start: int
    width: int
    valid: int


def parts(depth: int) -> tuple[Part, ...]:
    """A head size as one or two blocks: 80 is 64 + 16, which multiplies less padding than 128."""
    whole = max(16, power_of_two(depth))
    half = whole // 2
    rest = max(16, power_of_two(depth - half))
    if half < 16 or depth <= half or half + rest >= whole:
        return (Part(0, whole, depth),)
    return Part(0, half, half), Part(half, rest, depth - half)
