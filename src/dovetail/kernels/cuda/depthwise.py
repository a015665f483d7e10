"""Sliding windows over channels-last images, channel by channel: depthwise convolution and pooling as one Triton kernel.

A tile is a number of strips by a number of channels; a strip is a small block of neighbouring output positions, of which every lane
computes one set. Each input element is loaded once per strip and serves all windows that cover it, out of registers. Windows with many
taps are walked row by row in a loop instead, with strips along the last axis only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dovetail.codegen import triton_scalar
from dovetail.codegen.index import is_multiple
from dovetail.codegen.kernel import Kernel
from dovetail.codegen.tactic import Group, Operand
from dovetail.codegen.target import CudaTarget
from dovetail.core.dims import Dim, ceil_div, product
from dovetail.ir.graph import Value
from dovetail.kernels.cuda.configuration import Configuration
from dovetail.kernels.cuda.conv_shape import Window
from dovetail.kernels.cuda.writer import Rows, Writer, scaled, tile_epilogue

UNROLLED = 30
"""Taps up to which all loads of a strip are written out."""

_WIDE = 16
"""Taps of the last axis that are written out in a loop over the others."""


@dataclass(frozen=True)
class Strip(Configuration):
    """A configuration.

    Attributes:
        bp, bc: strips and channels of a tile.
        th, tw: output positions of a strip along the last two axes.
        warps: of a program.
    """

    bp: int
    bc: int
    th: int
    tw: int
    warps: int

    def extents(self, rank: int) -> tuple[int, ...]:
        """Output positions along each of `rank` spatial axes."""
        return ((1,) * rank + (self.th, self.tw))[-rank:] if rank > 1 else (self.tw,)


class Rule(Protocol):
    """What is done with the elements of a window.

    Attributes:
        outside: what stands for elements of the padding, and for an accumulator before any element.
        flops: operations per element.
    """

    @property
    def outside(self) -> str: ...  # noqa: D102 - above

    @property
    def flops(self) -> int: ...  # noqa: D102 - above

    def prepare(self, w: Writer, mask: str) -> tuple[list[str], Callable[[str], str]]:
        """(statements before the wait, text of the factor of a tap whose number is given as text).

        Channels are `rn`, and `xc` on a whole tile.
        """

    def step(self, acc: str, x: str, factor: str) -> str:
        """The accumulator after one more element, as text."""

    def finish(self, w: Writer, acc: str, counts: Counts) -> list[str]:
        """Statements after the last element."""


Counts = Callable[[Callable[[int, str], str]], str]
"""How many taps of each window satisfy a test of (axis, index), as text [strips, 1]."""


def uses_loop(window: Window) -> bool:
    """Whether a window is walked in a loop."""
    return window.taps > UNROLLED


def sliding(
    group: Group, window: Window, rule: Rule, strip: Strip, target: CudaTarget, name: str, source: int, bias: Value | None
) -> Kernel:
    """The kernel of a window.

    Args:
        source: position of the image among the group's inputs.
        bias: body value that the anchor adds per channel.
    """
    w = Writer(target)
    x = w.pointer(Operand("in", source), window.x)
    shape = strip.extents(window.rank)
    strips = tuple(ceil_div(extent, t) for extent, t in zip(window.out, shape, strict=True))
    count = product((window.batch, *strips))
    columns = -(-window.channels // strip.bc)
    lines = ["tile = tl.program_id(0)"]
    row, column = (f"(tile // {columns})", f"(tile % {columns})") if columns > 1 else ("tile", "0")
    lines.append(f"rs = {row} * {strip.bp} + tl.arange(0, {strip.bp})")
    lines.append(f"rn = {scaled(w, column, strip.bc)} + tl.arange(0, {strip.bc})")
    lines.append("xc = (rs * 0)[:, None] + rn[None, :]")
    channel_mask = "" if window.channels % strip.bc == 0 else f"rn < {window.channels}"
    number = w.dim(count)
    lines.append(f"rc = tl.minimum(rs, {number} - 1)")
    parts = Rows("rc", ((0, window.batch), *((a + 2, n) for a, n in enumerate(strips)))).split(w, lines)
    before, factor = rule.prepare(w, channel_mask)
    lines += before
    walk = _Walk(w, window, shape, x, channel_mask, parts, lines)
    # The epilogues' early parts stand before the wait, what they use of the walk as well.
    positions = list(itertools.product(*map(range, shape)))
    masks = [] if is_multiple(count, strip.bp) else [f"rs < {number}"]
    finish: list[str] = []
    early: list[str] = []
    for n, at in enumerate(positions):
        rows, row_mask = _outputs(w, window, shape, strips, parts, at, masks, lines)
        epilogue = tile_epilogue(w, group, rows, (1, "rn"), f"acc{n}", row_mask, channel_mask, bias=bias)
        early += epilogue.early
        finish += [*rule.finish(w, f"acc{n}", walk.counts(at)), *epilogue.late]
    lines += [*early, *w.wait, *w.release]
    lines += [f"acc{n} = tl.full(({strip.bp}, {strip.bc}), {rule.outside}, tl.float32)" for n in range(len(positions))]
    accumulators = {at: f"acc{n}" for n, at in enumerate(positions)}
    lines += walk.loop(rule, factor, accumulators) if uses_loop(window) else walk.unrolled(rule, factor, accumulators)
    lines += finish
    return w.kernel(
        lines, grid=(ceil_div(count, strip.bp) * columns, 1, 1), warps=strip.warps, stages=2, tactic=name, config=strip.config,
        flops=window.y.size * (window.taps * rule.flops), bytes=(window.x.size + window.y.size) * window.x.dtype.itemsize,
    )  # fmt: skip


def _outputs(
    w: Writer, window: Window, shape: tuple[int, ...], strips: tuple[Dim, ...], parts: dict[int, str], at: tuple[int, ...],
    masks: Sequence[str], lines: list[str],
) -> tuple[Rows, str]:  # fmt: skip
    """(the output positions of one place of all strips, which of them exist)."""
    found, inside = {0: parts[0]}, list(masks)
    linear = parts[0]
    for axis, (t, u, extent) in enumerate(zip(shape, at, window.out, strict=True)):
        if t == 1:
            index = parts[axis + 2]
        else:
            index = w.fresh("y")
            start = scaled(w, parts[axis + 2], t)
            lines.append(f"{index} = {start} + {u}" if start != "0" else f"{index} = rc * 0 + {u}")
        found[axis + 2] = index
        if t > 1 and extent != strips[axis] * t:
            inside.append(f"({index} < {w.dim(extent)})")
        linear = f"({linear}) * {w.dim(extent)} + {index}" if linear != "0" else index
    name = w.fresh("r")
    lines.append(f"{name} = {linear} + rc * 0")
    rows = Rows(name, window.rows(name).axes, found)
    return rows, " & ".join(f"({m})" if "&" not in m else m for m in inside)


class _Walk:
    """The loads of all strips and what they are used for."""

    def __init__(
        self, w: Writer, window: Window, shape: tuple[int, ...], x: str, channel_mask: str, parts: dict[int, str], lines: list[str],
    ) -> None:  # fmt: skip
        self.w, self.window, self.shape, self.x, self.channel_mask = w, window, shape, x, channel_mask
        strides = window.x_strides
        self.guarded = tuple(
            padded or (t > 1 and not (isinstance(out, int) and out % t == 0))
            for padded, t, out in zip(window.padded, shape, window.out, strict=True)
        )
        self.starts: list[str] = []
        terms = [scaled(w, parts[0], strides[0])]
        for axis, (t, step, low) in enumerate(zip(shape, window.strides, window.low, strict=True)):
            start = w.fresh("f")
            lines.append(f"{start} = {scaled(w, parts[axis + 2], t * step)} - {low} + rc * 0")
            self.starts.append(start)
            terms.append(scaled(w, start, strides[axis + 2]))
        lines.append(f"xo = ({' + '.join(t for t in terms if t != '0')})[:, None] + rn[None, :]")

    def _ok(self, axis: int, index: str) -> str:
        return f"(({index} >= 0) & ({index} < {self.w.dim(self.window.space[axis])}))"

    def counts(self, at: tuple[int, ...]) -> Counts:
        """The taps of the window at one place of each strip that satisfy a test per axis."""

        def count(test: Callable[[int, str], str]) -> str:
            factors = []
            for axis, (u, k) in enumerate(zip(at, self.window.kernel, strict=True)):
                step, dilation = self.window.strides[axis], self.window.dilations[axis]
                terms = [f"{test(axis, f'({self.starts[axis]} + {u * step + t * dilation})')}.to(tl.float32)" for t in range(k)]
                factors.append(f"({' + '.join(terms)})")
            return f"({' * '.join(factors)})[:, None]"

        return count

    def _places(self, axis: int, taps: bool = True) -> dict[int, list[tuple[int, int]]]:
        """Input index -> (place in the strip, tap) pairs that use it, along one axis."""
        found: dict[int, list[tuple[int, int]]] = {}
        for t in range(self.window.kernel[axis] if taps else 1):
            for u in range(self.shape[axis]):
                found.setdefault(u * self.window.strides[axis] + t * self.window.dilations[axis], []).append((u, t))
        return dict(sorted(found.items()))

    def _load(self, name: str, offset: str, masks: Sequence[str], rule: Rule) -> str:
        every = [f"({' & '.join(masks)})[:, None]"] if masks else []
        if self.channel_mask:
            every.append(f"({self.channel_mask})[None, :]")
        guard = f", mask={' & '.join(every)}, other={rule.outside}" if every else ""
        loaded = f"tl.load({self.x}{f' + ({offset})' if offset != '0' else ''} + xo{guard})"
        return f"{name} = {triton_scalar.widen(loaded, self.window.x.dtype)}"

    def unrolled(self, rule: Rule, factor: Callable[[str], str], accumulators: dict[tuple[int, ...], str]) -> list[str]:
        """All loads, written out."""
        w, window = self.w, self.window
        places = [self._places(axis) for axis in range(window.rank)]
        lines, inside = [], {}
        for axis, found in enumerate(places):
            for i in found if self.guarded[axis] else ():
                inside[axis, i] = w.fresh("v")
                lines.append(f"{inside[axis, i]} = {self._ok(axis, f'({self.starts[axis]} + {i})')}")
        factors: dict[int, str] = {}
        for index in itertools.product(*places):
            offset: Dim = 0
            for i, stride in zip(index, window.x_strides[2:], strict=True):
                offset = offset + i * stride
            masks = [inside[axis, i] for axis, i in enumerate(index) if self.guarded[axis]]
            x = w.fresh("x")
            lines.append(self._load(x, w.dim(offset) if offset != 0 else "0", masks, rule))
            for pairs in itertools.product(*(places[axis][i] for axis, i in enumerate(index))):
                at, tap = tuple(u for u, _ in pairs), 0
                for (_, t), k in zip(pairs, window.kernel, strict=True):
                    tap = tap * k + t
                if tap not in factors:
                    factors[tap] = w.fresh("w")
                    lines.append(f"{factors[tap]} = {factor(str(tap))}")
                lines.append(f"{accumulators[at]} = {rule.step(accumulators[at], x, factors[tap])}")
        return lines

    def loop(self, rule: Rule, factor: Callable[[str], str], accumulators: dict[tuple[int, ...], str]) -> list[str]:
        """A loop over the taps of the outer axes, or over all taps; the others written out."""
        w, window = self.w, self.window
        last = window.rank - 1
        inner = window.kernel[last] if window.kernel[last] <= _WIDE else 1
        lines = [f"for k in range(0, {window.taps // inner}):"]
        looped = [axis for axis, k in enumerate(window.kernel) if k > 1 and (axis != last or inner == 1)]
        body, rest, steps = [], "k", dict[int, str]()
        for axis in reversed(looped):
            tap = rest
            if axis != looped[0]:
                tap = f"k{axis}"
                body += [f"{tap} = {rest} % {window.kernel[axis]}", f"q{axis} = {rest} // {window.kernel[axis]}"]
                rest = f"q{axis}"
            steps[axis] = f"({scaled(w, tap, window.dilations[axis])})"
        base = [scaled(w, step, window.x_strides[axis + 2]) for axis, step in steps.items()]
        masks = []
        for axis in range(last):
            if self.guarded[axis]:
                ok = w.fresh("v")
                body.append(f"{ok} = {self._ok(axis, f'({self.starts[axis]} + {steps.get(axis, 0)})')}")
                masks.append(ok)
        places = self._places(last, taps=inner > 1)
        for t in range(inner):
            body.append(f"w{t} = {factor(f'(k * {inner} + {t})' if inner > 1 else 'k')}")
        for i, pairs in places.items():
            own = list(masks)
            if self.guarded[last]:
                own.append(self._ok(last, f"({self.starts[last]} + {steps.get(last, 0)} + {i})"))
            shift = [scaled(w, str(i), window.x_strides[-1])] if i else []
            x = w.fresh("x")
            body.append(self._load(x, " + ".join(base + shift) or "0", own, rule))
            for u, t in pairs:
                acc = accumulators[(*[0] * last, u)]
                body.append(f"{acc} = {rule.step(acc, x, f'w{t}')}")
        return lines + ["    " + line for line in body]
