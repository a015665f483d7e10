"""Which register tile to use: rules from measurement, not search.

Measured on an AVX-512 machine with two FMA ports (152 GFLOP/s per core), % of peak:

- 12x32 and 14x32: 95..96 on K = 256..2304, 8x32: 87..93 (with one port 8x32 was enough);
- rows 4 KiB apart share one cache set, and more than 8 of them evict each other: at K = 1024
  12x32 drops to 76, 8x32 to 87, 6x64 keeps 94; at K = 3072 8x48 is best (87), 6x64 81.
"""

from __future__ import annotations

import math

from dovetail.core.dims import Dim
from dovetail.kernels.cpu.microkernel import max_rows
from dovetail.kernels.cpu.text import Isa

_SET_BYTES = 4096  # bytes after which addresses fall into the same L1 set
_WAYS = 8


def rows_without_conflict(row_bytes: int) -> int:
    """How many rows at this distance can stream through L1 together, leaving one way for `b`."""
    distinct = _SET_BYTES // math.gcd(_SET_BYTES, row_bytes) if row_bytes else _SET_BYTES
    lines = min(distinct, _SET_BYTES // 64)
    return lines * (_WAYS - 1)


def choose(isa: Isa, rows: Dim, columns: Dim, row_stride: Dim, depth: Dim) -> tuple[int, int]:
    """(tallest tile, vectors per row) for `rows` x `columns` outputs.

    Args:
        isa: vector shape.
        rows: extent of the tiled axis.
        columns: columns of one group.
        row_stride: elements between neighbouring rows of the left operand.
        depth: length of the reduction; short ones never leave L1, so conflicts do not matter.
    """
    wide = columns if isinstance(columns, int) else 4 * isa.lanes
    vectors = math.ceil(wide / isa.lanes)
    if isinstance(rows, int) and rows * 2 <= max_rows(isa, 2):
        # Few rows: the tile takes them all, and widens until enough accumulators hide the FMA latency.
        fits = [n for n in (8, 6, 4, 3, 2, 1) if max_rows(isa, n) >= rows]
        return rows, max(1, min(fits[0] if fits else 1, vectors))
    if vectors == 1:
        return min(2 * max_rows(isa, 2), max_rows(isa, 1)), 1
    preferred = 2
    if isa.registers == 32 and isinstance(row_stride, int) and isinstance(depth, int) and depth > 256:
        safe = rows_without_conflict(4 * row_stride)
        if safe < max_rows(isa, 2):
            by_width = [n for n in (4, 3) if vectors % n == 0 and max_rows(isa, n) <= max(safe, 6)]
            if depth >= 2048 and vectors % 3 == 0:
                return min(8, max_rows(isa, 3)), 3
            if by_width:
                return max_rows(isa, by_width[0]), by_width[0]
            return min(8, max_rows(isa, 2)), 2
    if vectors == 3 and isa.registers == 32:
        return max_rows(isa, 3), 3
    return max_rows(isa, preferred), preferred
