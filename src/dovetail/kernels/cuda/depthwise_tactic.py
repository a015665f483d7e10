"""Depthwise Conv on channels-last images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dovetail.codegen import triton_scalar
from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Pack, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.kernels.cuda.conv_config import TYPICAL
from dovetail.kernels.cuda.conv_shape import Window, conv_reason, convolution_of, image_layouts
from dovetail.kernels.cuda.depthwise import Counts, Strip, sliding, uses_loop
from dovetail.kernels.cuda.writer import Writer, known_early, typical
from dovetail.kernels.fused import in_place, sides

_HELD = 9
"""Taps whose factors a program loads before it waits, and keeps."""


@dataclass(frozen=True)
class _Filters:
    """Products with a filter per channel, [taps, channels] in memory."""

    group: Group
    position: int
    window: Window
    outside: str = "0.0"
    flops: int = 2

    def prepare(self, w: Writer, mask: str) -> tuple[list[str], Callable[[str], str]]:
        """Few factors are held; more are loaded where they are used."""
        kind = self.group.inputs[self.position].tensor
        pointer = w.pointer(Operand("in", self.position), kind)

        def load(tap: str) -> str:
            # A whole tile, so that each lane gets its own channels by one wide access.
            guard = f", mask=({mask})[None, :], other=0.0" if mask else ""
            return triton_scalar.widen(f"tl.load({pointer} + {tap} * {self.window.channels} + xc{guard})", kind.dtype)

        if self.window.taps > _HELD or not known_early(self.group, self.position):
            return [], load
        return [f"filter{t} = {load(str(t))}" for t in range(self.window.taps)], lambda tap: f"filter{tap}"

    def step(self, acc: str, x: str, factor: str) -> str:
        """One more product."""
        return f"{acc} + {x} * {factor}"

    def finish(self, w: Writer, acc: str, counts: Counts) -> list[str]:
        """The sum is the result."""
        return []


def strips(window: Window, target: Target, wide: int) -> list[Strip]:
    """Strips worth measuring, the most promising first.

    Args:
        wide: channels that one lane loads together.
    """
    cuda = CudaTarget.of(target)
    channels = window.channels
    widths = [bc for bc in (64, 32, 128, 16, 8, 256) if -(-channels // bc) * bc <= channels * 1.3] or [8]
    last = typical(window.out[-1], 56)
    rows = typical(window.out[-2], 56) if window.rank > 1 else 1
    pixels = typical(window.pixels, TYPICAL)
    shapes = [(1, 1), (1, 2), (1, 4), (1, 8)] if uses_loop(window) else [(1, 1), (1, 2), (2, 2), (1, 4), (2, 4), (4, 2)]
    scored: list[tuple[float, int, Strip]] = []
    for th, tw in shapes:
        if th > max(1, rows) or tw > max(1, last) or (not uses_loop(window) and window.taps not in range(2, _HELD + 1) and th * tw > 4):
            continue  # more accumulators than registers beside that many loads
        for order, bc in enumerate(widths[:3]):
            for warps in (4, 2, 8):
                bp = max(1, 32 * warps * wide // bc)
                count = -(-pixels // (th * tw * bp)) * -(-channels // bc)
                scored.append((_cost(window, th, tw, count, warps, cuda) * (1 + 0.02 * order), len(scored), Strip(bp, bc, th, tw, warps)))
    return [s for _, _, s in sorted(scored)[:14]]


def _cost(window: Window, th: int, tw: int, programs: int, warps: int, target: CudaTarget) -> float:
    """Relative time: waves of loads and products of one lane."""
    steps, spans = [1] * window.rank, list(window.kernel)
    for axis, t in zip((window.rank - 2, window.rank - 1), (th, tw), strict=True):
        if axis >= 0:
            steps[axis] = t
            spans[axis] = (t - 1) * min(window.strides[axis], window.kernel[axis]) + window.kernel[axis]
    loads = 1.0
    for span in spans:
        loads *= span
    products = th * tw * window.taps
    resident = target.multiprocessors * max(1, 32 // warps)
    # A first load's latency, then loads and products at the rate of a busy multiprocessor.
    waves = -(-programs // resident)
    share = min(1.0, programs / resident)
    return waves * (900 + share * (32 // warps) * warps * (loads * 5 + products * 3) + th * tw * 20)


@tactic
class Depthwise(Tactic):
    """Convolution of every channel with its own filter, 1 to 3 spatial axes."""

    name = "depthwise"
    device = "cuda"
    kinds = ("conv",)

    def supports(self, group: Group, target: Target) -> str | None:
        """One filter per channel."""
        reason = conv_reason(group)
        if reason is not None:
            return reason
        conv = convolution_of(group)
        if conv.depth != 1 or conv.width != 1:
            return "channels are not filtered one by one"
        return None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        return image_layouts(group)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Strips by estimate."""
        conv = convolution_of(group)
        return [s.config for s in strips(conv.window, target, 16 // conv.dtype.itemsize)]

    def packs(self, group: Group, config: Config, target: Target) -> tuple[Pack, ...]:
        """Filters as [taps, channels]."""
        conv = convolution_of(group)
        rank = conv.window.rank + 2
        return (
            Pack(conv.weights, "Transpose", (("perm", (*range(2, rank), 1, 0)),)),
            Pack(conv.weights, "Reshape", (("shape", (conv.window.taps, conv.filters)),)),
        )

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        conv = convolution_of(group)
        rule = _Filters(group, conv.weights, conv.window)
        assert group.anchor is not None
        source = group.anchor.input(0).index
        kernel = sliding(group, conv.window, rule, Strip.of(config), CudaTarget.of(target), self.name, source, conv.bias)
        return single(kernel, in_place(group, sides(group)))
