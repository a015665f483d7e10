"""Attention on tensor cores: a tile of query rows against blocks of keys, with a running softmax (flash attention).

A tile's rows are the queries of all heads that share a key head, query by query, so that few queries of grouped heads still
fill a tile. Key blocks that no row of the tile may see are not read; only blocks on a border of what is visible, or at the end
of the keys, compare positions. Scores are kept in base 2 and in fp32. Long keys and few rows are split: each part leaves its
sum, peak and unfinished result in temporary buffers, and the last program of a tile to arrive (or a second kernel, where the
number of tiles is not known) adds them in the order of the parts.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dovetail.codegen import triton_scalar
from dovetail.codegen.index import is_multiple
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Emitted, Operand, Step
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, ceil_div
from dovetail.core.dtypes import BOOL, F32, I64
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.attention_shape import AttentionShape, Part, Strides, Tiling, parts
from dovetail.kernels.cuda.dot import dot
from dovetail.kernels.cuda.split_sum import arrival
from dovetail.kernels.cuda.writer import Writer, scaled

_LOG2_E = math.log2(math.e)


def emit(shape: AttentionShape, tiling: Tiling, target: CudaTarget, tactic: str) -> Emitted:
    """The kernel, or two of them where parts are added by a second one."""
    return _Text(shape, tiling, target, tactic).emitted()


class _Text:
    """The text of one configuration."""

    def __init__(self, shape: AttentionShape, tiling: Tiling, target: CudaTarget, tactic: str) -> None:
        self.shape, self.tiling, self.target, self.tactic = shape, tiling, target, tactic
        self.w = Writer(target)
        self.lines: list[str] = []
        self.q_parts, self.v_parts = parts(shape.depth), parts(shape.value_depth)
        self.whole_rows = is_multiple(shape.rows, tiling.m)
        # Scores stay as the product gives them where only a positive factor follows: it then joins the exponent.
        self.raw = shape.scale > 0 and not shape.softcap and (shape.mask is None or shape.mask.dtype == BOOL)
        self.factor = triton_scalar.literal(shape.scale * _LOG2_E, F32)
        self.safe = shape.may_hide_rows or tiling.splits > 1
        self.bounded = shape.lengths is not None or (shape.mask is not None and shape.mask_keys != shape.keys)

    def emitted(self) -> Emitted:
        """Kernels and temporary buffers."""
        shape, tiling = self.shape, self.tiling
        tiles = shape.pairs * ceil_div(shape.rows, tiling.m)
        alone = isinstance(tiles, int)
        self._head()
        # Early: the next kernel fetches its weights meanwhile, and there is room for it once all tiles of this one run.
        self.lines += self.w.release
        self._keys()
        if tiling.splits == 1:
            self._store()
            return self._single(self._kernel(tiles, 0))
        self._leave_part()
        temps = tuple(4 * tiling.splits * shape.pairs * shape.rows * width for width in (shape.value_depth, 2))
        if alone:
            assert isinstance(tiles, int)
            self._last_arriver()
            emitted = self._single(self._kernel(tiles, tiles))
            return Emitted(emitted.steps, temps)
        first = self._kernel(tiles, 0)
        second = _Text(shape, replace(tiling, warps=4), self.target, self.tactic)._combination(tiles)
        return Emitted((self._step(first), self._step(second)), temps)

    def _kernel(self, tiles: Dim, counters: int) -> Kernel:
        shape, tiling = self.shape, self.tiling
        return self.w.kernel(
            self.lines, grid=(tiles * tiling.splits, 1, 1), warps=tiling.warps, stages=tiling.stages, tactic=self.tactic,
            config=tiling.config, flops=shape.flops, bytes=shape.bytes, counters=counters,
        )  # fmt: skip

    @staticmethod
    def _step(kernel: Kernel) -> Step:
        return Step(kernel, tuple(Operand(p.role, p.index) for p in kernel.params))

    def _single(self, kernel: Kernel) -> Emitted:
        return Emitted((self._step(kernel),))

    # ------------------------------------------------------------------ where the tile lies
    def _place(self, splits: int) -> None:
        """batch, head, tile and part of this program, and the rows."""
        shape, tiling, w = self.shape, self.tiling, self.w
        blocks = w.dim(ceil_div(shape.rows, tiling.m))
        self.lines += [*w.wait, "pid = tl.program_id(0)"]
        if splits > 1:
            self.lines += [f"part = pid % {splits}", f"pid = pid // {splits}"]
        self.lines.append(f"pair = pid // {blocks}" if blocks != "1" else "pair = pid")
        if blocks == "1":
            block = "0"
        elif shape.causal:
            # Later tiles see more keys: the longest start first.
            block = f"{blocks} - 1 - pid % {blocks}"
        else:
            block = f"pid % {blocks}"
        heads = w.dim(shape.key_heads)
        self.lines += [
            f"head = pair % {heads}" if heads != "1" else "head = 0",
            f"batch = pair // {heads}" if heads != "1" else "batch = pair",
            f"row0 = ({block}) * {tiling.m}",
            f"rows = row0 + tl.arange(0, {tiling.m})",
            f"count = {w.dim(shape.rows)}",
        ]
        if shape.share == 1:
            self.lines.append("query = rows")
        else:
            self.lines += [f"query = rows // {shape.share}", f"member = rows % {shape.share}"]

    def _base(self, strides: Strides, shared: bool) -> str:
        """Offset of the tile's (batch, head); `shared` counts key heads, else query heads."""
        head = strides[1] if shared else strides[1] * self.shape.share
        terms = [scaled(self.w, "batch", strides[0]), scaled(self.w, "head", head)]
        return " + ".join(t for t in terms if t != "0") or "0"

    def _row_offsets(self, strides: Strides) -> str:
        terms = [scaled(self.w, "query", strides[2])]
        if self.shape.share > 1:
            terms.append(scaled(self.w, "member", strides[1]))
        return " + ".join(t for t in terms if t != "0") or "0"

    def _along(self, index: str, stride: Dim) -> str:
        """`index * stride` as a block, even of stride 0."""
        text = scaled(self.w, index, stride)
        return f"({text})" if text != "0" else f"({index} * 0)"

    def _head(self) -> None:
        shape, w, lines = self.shape, self.w, self.lines
        self._place(self.tiling.splits)
        q, k, v, _ = shape.types
        lines.append(f"qp = {w.pointer(Operand('in', shape.positions[0]), q)} + {self._base(shape.q, False)}")
        lines.append(f"kp = {w.pointer(Operand('in', shape.positions[1]), k)} + {self._base(shape.k, True)}")
        lines.append(f"vp = {w.pointer(Operand('in', shape.positions[2]), v)} + {self._base(shape.v, True)}")
        offsets = self._row_offsets(shape.q)
        lines.append(f"q_rows = {offsets if offsets != '0' else 'query * 0'}")
        for i, part in enumerate(self.q_parts):
            lines.append(f"e{i} = {self._columns(part)}")
            masks = [] if self.whole_rows else ["(rows < count)[:, None]"]
            masks += [f"(e{i} < {shape.depth})[None, :]"] if part.width != part.valid else []
            address = f"qp + q_rows[:, None] + {self._along(f'e{i}', shape.q[3])}[None, :]"
            lines.append(f"q{i} = {_load(address, masks)}")
        lines.append(f"cols = tl.arange(0, {self.tiling.n})")
        for i, part in enumerate(self.v_parts):
            lines.append(f"f{i} = {self._columns(part)}")
            lines.append(f"acc{i} = tl.zeros(({self.tiling.m}, {part.width}), tl.float32)")
        lines.append(f'peak = tl.full(({self.tiling.m},), float("-inf"), tl.float32)')
        lines.append(f"total = tl.zeros(({self.tiling.m},), tl.float32)")
        if shape.mask is not None:
            self._mask_place(shape.mask)

    @staticmethod
    def _columns(part: Part) -> str:
        return f"tl.arange(0, {part.width})" + (f" + {part.start}" if part.start else "")

    def _mask_place(self, mask: TensorType) -> None:
        shape, w = self.shape, self.w
        sample = "batch" if shape.mask_batch is None else f"(batch % {w.dim(shape.mask_batch)})"
        strides = shape.mask_strides
        terms = [scaled(w, sample, strides[0]), scaled(w, "head", strides[1] * shape.share)]
        base = " + ".join(t for t in terms if t != "0") or "0"
        self.lines.append(f"mp = {w.pointer(Operand('in', shape.positions[3]), mask)} + {base}")
        self.mask_rows = self._row_offsets(strides)
        if self.mask_rows != "0":
            self.lines.append(f"m_rows = {self.mask_rows}")

    # ------------------------------------------------------------------ which keys
    def _keys(self) -> None:
        """All blocks of keys of this tile (and part)."""
        shape, n = self.shape, self.tiling.n
        plain = not shape.limited and not self.bounded and self.tiling.splits == 1
        if plain and isinstance(shape.keys, int):
            full = shape.keys // n * n
            self.valid = str(shape.keys)
            if shape.keys <= n:
                self._block("0", masked=shape.keys < n, only=True)
                return
            self._loop("0", str(full), masked=False)
            if full != shape.keys:
                self._block(str(full), masked=True)
            return
        self._borders()
        if shape.left >= 0:
            self._loop("low", "middle", masked=True)
        self._loop("middle", "inner", masked=False)
        self._loop("inner", "high", masked=True)

    def _borders(self) -> None:
        """low … middle … inner … high: blocks from middle to inner are seen whole by all rows; all but high are block borders."""
        shape, tiling, w, lines, n = self.shape, self.tiling, self.w, self.lines, self.tiling.n
        valid = w.dim(shape.keys)
        if shape.mask is not None and shape.mask_keys != shape.keys:
            valid = f"tl.minimum({valid}, {w.dim(shape.mask_keys)})"
        lines.append(f"valid = {valid}")
        self.valid = "valid"
        if shape.lengths is None and shape.limited:
            lines.append(f"shift = {w.dim(shape.past)}")
        if shape.lengths is not None:
            stride = shape.lengths.placement.strides(shape.lengths.shape)[0]
            pointer = w.pointer(Operand("in", shape.positions[-1]), shape.lengths)
            lines += [
                f"length = tl.load({pointer} + {scaled(w, 'batch', stride)}).to(tl.int32)",
                f"shift = length - {w.dim(shape.steps)}",
                "valid = tl.maximum(tl.minimum(valid, length), 0)",
            ]
        lines.append("high = valid")
        lines.append("inner = valid")
        if shape.limited:
            share = f" // {shape.share}" if shape.share > 1 else ""
            lines += [
                f"first = row0{share} + shift",
                f"last = tl.minimum(row0 + {tiling.m - 1}, count - 1){share} + shift",
            ]
        ahead = min([0] * shape.causal + [shape.right] * (shape.right >= 0), default=None)
        if ahead is not None:
            lines += [
                f"high = tl.maximum(tl.minimum(valid, last + {ahead + 1}), 0)",
                f"inner = tl.maximum(tl.minimum(valid, first + {ahead + 1}), 0)",
                f"ends = query + (shift + {ahead})",
            ]
        lines.append(f"inner = inner // {n} * {n}")
        if shape.left >= 0:
            lines += [
                f"begins = query + (shift - {shape.left})",
                f"low = tl.minimum(tl.maximum(first - {shape.left}, 0) // {n} * {n}, (high + {n - 1}) // {n} * {n})",
            ]
        else:
            lines.append("low = 0")
        if tiling.splits > 1:
            lines += [
                f"chunk = (tl.maximum(high - low, 0) + {n * tiling.splits - 1}) // {n * tiling.splits} * {n}",
                "low = low + part * chunk",
                "high = tl.minimum(high, low + chunk)",
                "inner = tl.minimum(inner, low + chunk)",
            ]
        if shape.left >= 0:
            border = f"(tl.maximum(last - {shape.left}, 0) + {n - 1}) // {n} * {n}"
            lines.append(f"middle = tl.maximum(tl.minimum({border}, (high + {n - 1}) // {n} * {n}), low)")
        else:
            lines.append("middle = low")
        lines.append("inner = tl.maximum(inner, middle)")
        self.ahead = ahead

    ahead: int | None = None

    def _loop(self, start: str, end: str, masked: bool) -> None:
        name = self.w.fresh("n")
        self.lines.append(f"for {name} in range({start}, {end}, {self.tiling.n}):")
        body, self.lines = self.lines, []
        self._block(name, masked)
        self.lines = body + ["    " + line for line in self.lines]

    def _block(self, at: str, masked: bool, only: bool = False) -> None:
        """One block of keys; `only` if there is no other: nothing to rescale."""
        shape, w, lines = self.shape, self.w, self.lines
        u = w.fresh("u")
        # With positions that limit rows, and all keys valid, blocks end inside the keys.
        ends_inside = not self.bounded and is_multiple(shape.keys, self.tiling.n)
        guard = masked and not ends_inside
        lines.append(f"c_{u} = cols" if at == "0" else f"c_{u} = {at} + cols")
        lines.append(f"s_{u} = {self._scores(u, at, guard)}")
        self._visible(u, at, masked, guard)
        top = f"tl.max(s_{u}, 1)" + (f" * {self.factor}" if self.raw else "")
        lines.append(f"new_{u} = {top}" if only else f"new_{u} = tl.maximum(peak, {top})")
        safe = f"new_{u}"
        if self.safe:
            safe = f"base_{u}"
            lines.append(f'{safe} = tl.where(new_{u} == float("-inf"), 0.0, new_{u})')
        score = f"s_{u} * {self.factor}" if self.raw else f"s_{u}"
        lines.append(f"w_{u} = tl.exp2({score} - {safe}[:, None])")
        if only:
            lines.append(f"total = tl.sum(w_{u}, 1)")
        else:
            lines.append(f"fade_{u} = tl.exp2(peak - {safe})")
            lines.append(f"total = total * fade_{u} + tl.sum(w_{u}, 1)")
        kind = shape.types[2].dtype
        lines.append(f"x_{u} = w_{u}.to({triton_scalar.tensor_type(kind)})")
        for i, part in enumerate(self.v_parts):
            masks = [f"(c_{u} < {self.valid})[:, None]"] if guard else []
            masks += [f"(f{i} < {shape.value_depth})[None, :]"] if part.width != part.valid else []
            row, column = self._along(f"c_{u}", shape.v[2]), self._along(f"f{i}", shape.v[3])
            lines.append(f"v{i}_{u} = {_load(f'vp + {row}[:, None] + {column}[None, :]', masks)}")
            grown = f"acc{i}" if only else f"acc{i} * fade_{u}[:, None]"
            lines.append(f"acc{i} = {dot(f'x_{u}', f'v{i}_{u}', grown, kind, self.target)}")
        lines.append(f"peak = new_{u}")

    def _scores(self, u: str, at: str, guard: bool) -> str:
        """Loads the keys; the products as one expression."""
        shape = self.shape
        result = ""
        for i, part in enumerate(self.q_parts):
            masks = [f"(c_{u} < {self.valid})[None, :]"] if guard else []
            masks += [f"(e{i} < {shape.depth})[:, None]"] if part.width != part.valid else []
            row, column = self._along(f"e{i}", shape.k[3]), self._along(f"c_{u}", shape.k[2])
            self.lines.append(f"k{i}_{u} = {_load(f'kp + {row}[:, None] + {column}[None, :]', masks)}")
            result = dot(f"q{i}", f"k{i}_{u}", result, shape.types[0].dtype, self.target)
        return result

    def _visible(self, u: str, at: str, masked: bool, guard: bool) -> None:
        """Soft cap, masks and borders on the scores of a block."""
        shape, lines = self.shape, self.lines
        s = f"s_{u}"
        if not self.raw:
            if shape.softcap:
                # tanh(x) = 1 - 2 / (e^2x + 1): exact to a few units of 1, which is what a score needs.
                twice = triton_scalar.literal(2 * shape.scale / shape.softcap * _LOG2_E, F32)
                cap = triton_scalar.literal(shape.softcap * _LOG2_E, F32)
                lines.append(f"{s} = (1.0 - 2.0 / (tl.exp2({s} * {twice}) + 1.0)) * {cap}")
            else:
                lines.append(f"{s} = {s} * {self.factor}")
        seen = [f"(c_{u} < {self.valid})[None, :]"] if guard else []
        if masked and self.ahead is not None:
            seen.append(f"c_{u}[None, :] <= ends[:, None]")
        if masked and shape.left >= 0:
            seen.append(f"c_{u}[None, :] >= begins[:, None]")
        if shape.mask is not None:
            loaded = self._mask(shape.mask, u, guard)
            if shape.mask.dtype == BOOL:
                seen.append(f"({loaded} != 0)")
            else:
                # The least finite number hides a key but for rows that see nothing else: scaled, it must not become infinite.
                added = f"m_{u}"
                lines.append(f"{added} = {triton_scalar.widen(loaded, shape.mask.dtype)}")
                lines.append(f'{added} = tl.where({added} == float("-inf"), {added}, tl.maximum({added} * {_LOG2_E!r}, -3.0e38))')
                lines.append(f"{s} = {s} + {added}")
        if seen:
            joined = " & ".join(f"({x})" for x in seen)
            lines.append(f'{s} = tl.where({joined}, {s}, float("-inf"))')

    def _mask(self, mask: TensorType, u: str, guard: bool) -> str:
        """The mask of a block, as text that broadcasts against the scores."""
        column = self._along(f"c_{u}", self.shape.mask_strides[3])
        inside = f"c_{u} < {self.valid}"
        name = f"b_{u}"
        if self.mask_rows == "0":
            self.lines.append(f"{name} = {_load(f'mp + {column}', [inside] if guard else [])}")
            return f"{name}[None, :]"
        masks = [f"({inside})[None, :]"] if guard else []
        masks += [] if self.whole_rows else ["(rows < count)[:, None]"]
        self.lines.append(f"{name} = {_load(f'mp + m_rows[:, None] + {column}[None, :]', masks)}")
        return name

    # ------------------------------------------------------------------ results
    def _store(self) -> None:
        """The finished tile."""
        shape, w, lines = self.shape, self.w, self.lines
        kind = shape.types[3]
        out = w.pointer(Operand("out", 0), kind)
        lines.append("inverse = 1.0 / tl.where(total == 0.0, 1.0, total)")
        offsets = self._row_offsets(shape.out)
        lines.append(f"o_rows = {offsets if offsets != '0' else 'query * 0'}")
        for i, part in enumerate(self.v_parts):
            masks = [] if self.whole_rows else ["(rows < count)[:, None]"]
            masks += [f"(f{i} < {shape.value_depth})[None, :]"] if part.width != part.valid else []
            place = f"{out} + ({self._base(shape.out, False)}) + o_rows[:, None] + {self._along(f'f{i}', shape.out[3])}[None, :]"
            value = triton_scalar.narrow(f"acc{i} * inverse[:, None]", kind.dtype)
            lines.append(_store(place, value, masks))

    def _part_addresses(self, index: str) -> tuple[str, str]:
        """(unfinished results, statistics) of a part: addresses of the tile's rows."""
        shape, w = self.shape, self.w
        results, statistics = w.pointer(Operand("temp", 0), F32), w.pointer(Operand("temp", 1), F32)
        row = f"(({index} * {w.dim(shape.pairs)} + pair) * count + rows)"
        return f"{results} + {row} * {shape.value_depth}", f"{statistics} + {row} * 2"

    def _leave_part(self) -> None:
        """Write what this part found."""
        lines = self.lines
        results, statistics = self._part_addresses("part")
        rows = [] if self.whole_rows else ["rows < count"]
        lines += [f"left = {results}", f"stats = {statistics}"]
        lines += [_store("stats", "peak", rows), _store("stats + 1", "total", rows)]
        for i, part in enumerate(self.v_parts):
            masks = [f"({r})[:, None]" for r in rows]
            masks += [f"(f{i} < {self.shape.value_depth})[None, :]"] if part.width != part.valid else []
            lines.append(_store(f"left[:, None] + f{i}[None, :]", f"acc{i}", masks))

    def _last_arriver(self) -> None:
        """The program that finds all other parts of its tile done adds them up."""

        def then(clear: str) -> list[str]:
            outer, self.lines = self.lines, [clear]
            self._add_parts()
            self._store()
            inner, self.lines = self.lines, outer
            return inner

        self.lines += arrival(self.w, self.tiling.splits, "pid", then)

    def _add_parts(self) -> None:
        lines = self.lines
        rows = [] if self.whole_rows else ["rows < count"]
        for i, part in enumerate(self.v_parts):
            lines.append(f"acc{i} = tl.zeros(({self.tiling.m}, {part.width}), tl.float32)")
        lines.append(f'peak = tl.full(({self.tiling.m},), float("-inf"), tl.float32)')
        lines.append(f"total = tl.zeros(({self.tiling.m},), tl.float32)")
        results, statistics = self._part_addresses("z")
        lines.append(f"for z in range({self.tiling.splits}):")
        cached = ', cache_modifier=".cg"'
        inner = [
            f"stats_z = {statistics}",
            f"left_z = {results}",
            f"peak_z = {_load('stats_z', rows, cached)}",
            f"total_z = {_load('stats_z + 1', rows, cached)}",
            "new = tl.maximum(peak, peak_z)",
            'base = tl.where(new == float("-inf"), 0.0, new)',
            "fade = tl.exp2(peak - base)",
            "fade_z = tl.exp2(peak_z - base)",
            "total = total * fade + total_z * fade_z",
            "peak = new",
        ]
        for i, part in enumerate(self.v_parts):
            masks = [f"({r})[:, None]" for r in rows]
            masks += [f"(f{i} < {self.shape.value_depth})[None, :]"] if part.width != part.valid else []
            inner.append(f"acc{i}_z = {_load(f'left_z[:, None] + f{i}[None, :]', masks, cached)}")
            inner.append(f"acc{i} = acc{i} * fade[:, None] + acc{i}_z * fade_z[:, None]")
        lines += ["    " + line for line in inner]

    def _combination(self, tiles: Dim) -> Kernel:
        """The second kernel, which adds the parts."""
        self._place(1)
        for i, part in enumerate(self.v_parts):
            self.lines.append(f"f{i} = {self._columns(part)}")
        self.lines += self.w.release
        self._add_parts()
        self._store()
        shape, tiling = self.shape, self.tiling
        moved = shape.pairs * shape.rows * shape.value_depth * 4 * tiling.splits
        return self.w.kernel(
            self.lines, grid=(tiles, 1, 1), warps=4, stages=1, tactic=self.tactic, config=tiling.config, bytes=moved,
        )  # fmt: skip


def _load(address: str, masks: list[str], more: str = "") -> str:
    guarded = f", mask={' & '.join(masks)}, other=0" if masks else ""
    return f"tl.load({address}{guarded}{more})"


def _store(address: str, value: str, masks: list[str]) -> str:
    guarded = f", mask={' & '.join(masks)}" if masks else ""
    return f"tl.store({address}, {value}{guarded})"


def mask_reason(mask: TensorType | None, lengths: TensorType | None) -> str | None:
    """None if the template reads such masks and lengths, else why not."""
    if mask is not None and (mask.dtype != BOOL and (not mask.dtype.is_float or mask.dtype.bits > 32 or mask.dtype.bits < 16)):
        return f"the mask is {mask.dtype}, expected bool, f16, bf16 or f32"
    if mask is not None and not 1 <= mask.rank <= 4:
        return f"the mask has rank {mask.rank}, expected 1 to 4"
    if lengths is not None and (lengths.dtype != I64 or lengths.rank != 1):
        return f"lengths are {lengths}, expected a vector of i64"
    return None
