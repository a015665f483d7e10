"""Scaled dot-product attention: a block of query rows at a time, all its scores in a scratch of the thread.

Per (batch, head, block of queries): copy the scaled queries, multiply by packed keys, apply soft cap, masks and softmax
to the scores in place, multiply by the values read where they lie, divide by the sums. The keys come in panels
(`pack`), the values need contiguous rows only. Keys that no query of the block may see are skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dovetail.core.dims import Dim, ceil_div, minimum
from dovetail.kernels.cpu import microkernel
from dovetail.kernels.cpu.contraction import Panels
from dovetail.kernels.cpu.epilogue import Access, Epilogue
from dovetail.kernels.cpu.microkernel import Tile
from dovetail.kernels.cpu.text import DimTable, Isa, partial_functions

_MAX_THREADS = 64
NO_MASK, BOOLEAN, ADDED = "", "bool", "float"


@dataclass(frozen=True)
class AttentionConfig:
    """An attention.

    Strides are element strides along (batch, head, step); innermost elements are contiguous.

    Attributes:
        batch, heads, key_heads: B, Hq, Hkv.
        steps, keys: S and T.
        depth, value_depth: D and Dv.
        scale: factor of the products.
        q, v, out: strides; keys are packed densely [B, Hkv, panels].
        rows: query rows per block.
        causal, past, left, right, softcap: as in the op Attention (-1: no window).
        mask: NO_MASK, BOOLEAN or ADDED.
        mask_strides: along (batch, head, query), 0 where broadcast; contiguous along keys.
        mask_keys: keys that the mask covers; the rest are hidden.
        mask_batch: samples after which the mask repeats (None: it does not).
        has_lengths: whether an int64 array gives the valid keys per sample.
    """

    isa: Isa
    batch: Dim
    heads: Dim
    key_heads: Dim
    steps: Dim
    keys: Dim
    depth: int
    value_depth: int
    scale: float
    q: tuple[Dim, Dim, Dim]
    v: tuple[Dim, Dim, Dim]
    out: tuple[Dim, Dim, Dim]
    rows: int
    causal: bool = False
    past: Dim = 0
    left: int = -1
    right: int = -1
    softcap: float = 0.0
    mask: str = NO_MASK
    mask_strides: tuple[Dim, Dim, Dim] = (0, 0, 0)
    mask_keys: Dim = 0
    mask_batch: Dim | None = None
    has_lengths: bool = False

    @property
    def key_panels(self) -> Panels:
        """The cut of the keys: full panels only, so that the score tile has one form."""
        return Panels(self.keys, 1, 2 * self.isa.lanes)

    @property
    def pitch(self) -> Dim:
        """Floats between rows of scores; an odd number of cache lines apart in the power-of-two cases."""
        return self.key_panels.count * self.key_panels.width + 16

    @property
    def value_pitch(self) -> int:
        """Floats between rows of the output scratch."""
        return math.ceil(self.value_depth / self.isa.lanes) * self.isa.lanes

    @property
    def scratch(self) -> Dim:
        """Floats of one thread's workspace."""
        return self.rows * (self.depth + self.pitch + self.value_pitch) + 2 * self.isa.lanes

    @property
    def blocks(self) -> Dim:
        """Blocks of query rows in all."""
        return self.batch * self.heads * ceil_div(self.steps, self.rows)

    @property
    def workspace_bytes(self) -> Dim:
        """Workspace of all threads."""
        return minimum(self.blocks, _MAX_THREADS) * (self.scratch * 4)


def default_rows(isa: Isa, steps: Dim) -> int:
    """Query rows per block: a full register tile, or an even share of few steps."""
    most = microkernel.max_rows(isa, 2)
    if isinstance(steps, int):
        return math.ceil(steps / math.ceil(max(1, steps) / most)) or 1
    return most


def _softmax_row(spec: AttentionConfig) -> str:
    """C function: scores of one row to unnormalised probabilities; returns 1 / sum (0 for a hidden row)."""
    v, lanes = spec.isa.vector, spec.isa.lanes
    parameters = "float *s, int64_t lo, int64_t hi, int64_t end"
    if spec.mask:
        parameters += f", const {'uint8_t' if spec.mask == BOOLEAN else 'float'} *mask"
    out = [
        f"static __attribute__((noinline)) float @ENTRY@_softmax({parameters}) {{",
        f"  {v} top = dt_set_{v}(-__builtin_inff());",
        f"  for (int64_t t = 0; t < end; t += {lanes}) {{",
        f"    {v} x = dt_load_{v}(s + t);",
    ]
    if spec.softcap:
        cap = float(spec.softcap).hex()
        out.append(f"    x = dt_tanh_{v}(x / dt_set_{v}({cap}f)) * dt_set_{v}({cap}f);")
    if spec.mask:
        value = "mask[t + i] ? 0.0f : -__builtin_inff()" if spec.mask == BOOLEAN else "mask[t + i]"
        # The mask ends at hi at the earliest: elements beyond it are replaced below, and must not be read.
        out += [
            f"    float m[{lanes}];",
            f"    if (t + {lanes} <= hi) for (int64_t i = 0; i < {lanes}; i++) m[i] = {value};",
            f"    else for (int64_t i = 0; i < {lanes}; i++) m[i] = t + i < hi ? {value} : 0.0f;",
            f"    x = x + dt_load_{v}(m);",
        ]
    out += [
        f"    if (t < lo || t + {lanes} > hi) for (int64_t i = 0; i < {lanes}; i++)",
        "      if (t + i < lo || t + i >= hi) x[i] = -__builtin_inff();",
        f"    dt_store_{v}(s + t, x); top = dt_max_{v}(top, x);",
        "  }",
        "  float m = top[0];",
        f"  for (int64_t i = 1; i < {lanes}; i++) m = dt_maxf(m, top[i]);",
        "  if (m == -__builtin_inff()) {",
        "    for (int64_t t = 0; t < end; t++) s[t] = 0.0f;",
        "    return 0.0f;",
        "  }",
        f"  {v} sum = dt_set_{v}(0.0f);",
        f"  for (int64_t t = 0; t < end; t += {lanes}) {{",
        f"    const {v} x = dt_load_{v}(s + t) - dt_set_{v}(m);",
        # A probability below the normal numbers adds nothing to the sum, but slows every product that it enters.
        f"    const {v} e = dt_sel_{v}(dt_lt_{v}(x, dt_set_{v}(-87.0f)), dt_set_{v}(0.0f), dt_exp_{v}(x));",
        f"    dt_store_{v}(s + t, e); sum = sum + e;",
        "  }",
        "  float total = sum[0];",
        f"  for (int64_t i = 1; i < {lanes}; i++) total = total + sum[i];",
        "  return 1.0f / total;",
        "}",
    ]
    return "\n".join(out)


def emit(spec: AttentionConfig, dims: DimTable) -> str:
    """C source; parameters are q, packed keys, v, output, mask (if any), lengths (if any), workspace."""
    isa, text, rows = spec.isa, dims.text, spec.rows
    panel = spec.key_panels.width
    pitch = text(spec.pitch)
    scores = Tile(
        (1, rows), 2, 0, Access("a", ("0", f"{spec.depth}L")), (), f"{spec.depth}L", panel,
        (Access("o0", ("0", "pitch")),), (), Epilogue(), isa.lanes >= 8, scalars=("pitch",),
    )  # fmt: skip
    tiles = {scores.name: microkernel.emit(scores, isa)}
    score_name = scores.name
    values = Panels(spec.value_depth, 2, isa.lanes)
    products = []
    shapes = [(j * values.width, 2, 0) for j in range(values.full)]
    if values.rest:
        shapes.append((values.full * values.width, math.ceil(values.rest / isa.lanes), values.rest % isa.lanes))
    for start, vectors, tail in shapes:
        tile = Tile(
            (1, rows), vectors, tail, Access("a", ("0", "pitch")), (), "end", text(spec.v[2]),
            (Access("o0", ("0", f"{spec.value_pitch}L")),), (), Epilogue(), isa.lanes >= 8, True, ("pitch", "end"),
        )  # fmt: skip
        name = tile.name.replace("_t", "_v", 1)
        tiles[name] = microkernel.emit(tile, isa).replace(tile.name, name)
        products.append(f"{name}(Sc, v + {start}, Oc + {start}, pitch, end, d);")
    blocks = text(ceil_div(spec.steps, rows))
    heads, steps, keys = text(spec.heads), text(spec.steps), text(spec.keys)
    n = 4
    mask_at, lengths_at = (n if spec.mask else -1), n + bool(spec.mask)
    workspace_at = lengths_at + spec.has_lengths
    mask_type = "uint8_t" if spec.mask == BOOLEAN else "float"
    limit = text(minimum(spec.keys, spec.mask_keys)) if spec.mask else keys
    low = f"i + off - {spec.left} > 0 ? i + off - {spec.left} : 0" if spec.left >= 0 else "0"
    reach = [0] if spec.causal else []
    reach += [spec.right] if spec.right >= 0 else []
    high = f"i + off + {min(reach) + 1}" if reach else "valid"
    mask = f"mask + i * {text(spec.mask_strides[2])}" if spec.mask else ""
    out = [
        *tiles.values(),
        _softmax_row(spec),
        "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
        "  const float *Q = p[0], *Kp = p[1], *Vp = p[2];",
        "  float *O = p[3];",
        *([f"  const {mask_type} *Mask = p[{mask_at}];"] if spec.mask else []),
        *([f"  const int64_t *Lengths = p[{lengths_at}];"] if spec.has_lengths else []),
        f"  const int64_t U = {text(spec.blocks)}, pitch = {pitch};",
        f"  if (nt > {_MAX_THREADS}) nt = {_MAX_THREADS};",
        "  if (nt > U) nt = U;",
        "  if (tid >= nt) return;",
        f"  float *Qc = (float *)p[{workspace_at}] + tid * {text(spec.scratch)};",
        f"  float *Sc = Qc + {rows * spec.depth}, *Oc = Sc + {rows} * pitch;",
        f"  float inverse[{rows}];",
        "  for (int64_t u = U * tid / nt; u < U * (tid + 1) / nt; u++) {",
        f"    const int64_t i0 = u % {blocks} * {rows}, h = u / {blocks} % {heads}, b = u / {blocks} / {heads};",
        f"    const int64_t n = {steps} - i0 < {rows} ? {steps} - i0 : {rows};",
        f"    const int64_t g = h / ({heads} / {text(spec.key_heads)});",
        f"    const float *q = Q + b * {text(spec.q[0])} + h * {text(spec.q[1])} + i0 * {text(spec.q[2])};",
        f"    const float *k = Kp + (b * {text(spec.key_heads)} + g) * {text(spec.key_panels.count)} * {panel * spec.depth}L;",
        f"    const float *v = Vp + b * {text(spec.v[0])} + g * {text(spec.v[1])};",
        f"    float *o = O + b * {text(spec.out[0])} + h * {text(spec.out[1])} + i0 * {text(spec.out[2])};",
    ]
    if spec.mask:
        batch, head, _ = (text(s) for s in spec.mask_strides)
        sample = "b" if spec.mask_batch is None else f"b % {text(spec.mask_batch)}"
        out.append(f"    const {mask_type} *mask = Mask + {sample} * {batch} + h * {head};")
    out.append(f"    int64_t valid = {limit}, off = {text(spec.past)};")
    if spec.has_lengths:
        out.append(f"    off = Lengths[b] - {steps}; if (Lengths[b] < valid) valid = Lengths[b]; if (valid < 0) valid = 0;")
    scale = float(spec.scale).hex()
    clamp = "if (hi > valid) hi = valid; if (hi < 0) hi = 0; if (lo > hi) lo = hi;"
    out += [
        # The last row of a block sees the furthest: no key beyond its reach is touched.
        f"    int64_t end; {{ const int64_t i = i0 + n - 1; int64_t lo = 0, hi = {high}; {clamp} end = hi; }}",
        f"    for (int64_t r = 0; r < {rows}; r++) for (int64_t c = 0; c < {spec.depth}; c++)",
        f"      Qc[r * {spec.depth} + c] = r < n ? q[r * {text(spec.q[2])} + c] * {scale}f : 0.0f;",
        f"    for (int64_t j = 0; j * {panel} < end; j++)",
        f"      {score_name}(Qc, k + j * {panel * spec.depth}L, Sc + j * {panel}, pitch, d);",
        "    for (int64_t r = 0; r < n; r++) {",
        f"      const int64_t i = i0 + r; int64_t lo = {low}, hi = {high}; {clamp}",
        f"      inverse[r] = @ENTRY@_softmax(Sc + r * pitch, lo, hi, end{', ' + mask if mask else ''});",
        "    }",
        *("    " + p for p in products),
        f"    for (int64_t r = 0; r < n; r++) for (int64_t c = 0; c < {spec.value_depth}; c++)",
        f"      o[r * {text(spec.out[2])} + c] = Oc[r * {spec.value_pitch} + c] * inverse[r];",
        "  }",
        "}",
    ]
    tails = {spec.value_depth % isa.lanes} - {0}
    return partial_functions(isa, tails) + "\n".join(out) + "\n"
