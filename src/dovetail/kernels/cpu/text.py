"""Small pieces of C text that every CPU template shares: vector types, partial loads, run-time dims."""

from __future__ import annotations

from dataclasses import dataclass, field

from dovetail.codegen.target import CpuTarget, Target
from dovetail.core.dims import Dim


@dataclass(frozen=True)
class Isa:
    """What a template must know of an instruction set.

    Attributes:
        lanes: fp32 elements of one vector register.
        registers: vector registers.
    """

    lanes: int
    registers: int

    @staticmethod
    def of(target: Target) -> Isa:
        """The vector shape of a target."""
        cpu = CpuTarget.of(target)
        return Isa(cpu.vector_floats, cpu.n_registers)

    @property
    def vector(self) -> str:
        """C type of one register of fp32, declared by the prelude with the alignment of one element."""
        return f"v{self.lanes}f"

    def splat(self, scalar: str) -> str:
        """A vector of `scalar`, which must be an expression without side effects."""
        # `(v){0} + x` would be an addition: 0 + -0 is +0, so the compiler may not drop it.
        return f"({self.vector}){{{', '.join([scalar] * self.lanes)}}}"

    def load(self, address: str) -> str:
        """A whole register from `address` (a float pointer expression)."""
        return f"*(const {self.vector} *)({address})"

    def store(self, address: str, value: str) -> str:
        """The statement that writes a whole register to `address`."""
        return f"*({self.vector} *)({address}) = {value};"


def partial_functions(isa: Isa, tails: set[int]) -> str:
    """C functions `@ENTRY@_ld<t>` and `@ENTRY@_st<t>` that load and store the first t lanes of a register.

    They move power-of-two pieces of a size known to the compiler, so nothing outside is touched.
    """
    out = []
    for tail in sorted(tails):
        pieces = _pieces(tail, isa.lanes)
        load = [f"static inline {isa.vector} @ENTRY@_ld{tail}(const float *p) {{", f"  {isa.vector} x = {{0}};"]
        store = [f"static inline void @ENTRY@_st{tail}(float *p, {isa.vector} x) {{"]
        for start, size in pieces:
            if size == 1:
                load.append(f"  x[{start}] = p[{start}];")
                store.append(f"  p[{start}] = x[{start}];")
                continue
            piece = f"float __attribute__((vector_size({4 * size}), aligned(4)))"
            lanes = range(isa.lanes)
            wide = ", ".join(str(i - 0 if i < size else 0) for i in lanes)
            chosen = ", ".join(str(isa.lanes + i - start if start <= i < start + size else i) for i in lanes)
            load += [
                f"  {{ typedef {piece} T; T q = *(const T *)(p + {start});",
                f"    {isa.vector} w = __builtin_shufflevector(q, q, {wide});",
                f"    x = __builtin_shufflevector(x, w, {chosen}); }}",
            ]
            part = ", ".join(str(start + i) for i in range(size))
            store.append(
                f"  {{ typedef {piece} T; *(T *)(p + {start}) = __builtin_shufflevector(x, x, {part}); }}"
            )
        out += [*load, "  return x;", "}", *store, "}"]
    return "\n".join(out) + "\n" if out else ""


def _pieces(tail: int, lanes: int) -> list[tuple[int, int]]:
    """(first lane, size) of the power-of-two pieces of `tail` lanes, largest first."""
    pieces, start, size = [], 0, lanes
    while size:
        if tail - start >= size:
            pieces.append((start, size))
            start += size
        size //= 2
    return pieces


def counted_functions(isa: Isa) -> str:
    """C functions `@ENTRY@_ldn` and `@ENTRY@_stn`: the first n lanes, n known at run time only."""
    v = isa.vector
    return (
        f"static inline {v} @ENTRY@_ldn(const float *p, int64_t n) {{\n"
        f"  float t[{isa.lanes}] = {{0}};\n"
        f"  for (int64_t i = 0; i < {isa.lanes}; i++) if (i < n) t[i] = p[i];\n"
        f"  return {isa.load('t')};\n}}\n"
        f"static inline void @ENTRY@_stn(float *p, {v} x, int64_t n) {{\n"
        f"  float t[{isa.lanes}];\n"
        f"  {isa.store('t', 'x')}\n"
        f"  for (int64_t i = 0; i < {isa.lanes}; i++) if (i < n) p[i] = t[i];\n}}\n"
    )


@dataclass
class DimTable:
    """Collects the run-time dims of a kernel: numbers become literals, the rest entries of `d`."""

    entries: list[Dim] = field(default_factory=list)

    def text(self, dim: Dim) -> str:
        """The C expression of `dim` (int64_t)."""
        if isinstance(dim, int):
            return f"{dim}L"
        if dim not in self.entries:
            self.entries.append(dim)
        return f"d[{self.entries.index(dim)}]"
