"""Transposed convolutions as convolutions: one sub-kernel per output phase, then depth to space.

An output position q * stride + a sums the taps j * stride + a over the inputs q - j. So each phase a is an ordinary
convolution of stride one, all phases are one convolution with more output channels, and the phases are interleaved
afterwards by a Reshape, a Transpose and a Reshape. The weights are rearranged at weight time, where they are known
then; those of a dilated convolution get zeros between their taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from dovetail.ir.graph import Node, Value
from dovetail.ir.rewriter import Rewrite, rule
from dovetail.passes.clean import replace


@dataclass(frozen=True)
class _Phases:
    """Fixed extents of a transposed convolution: per axis taps (those between dilated ones included), strides, and taps of each phase."""

    taps: tuple[int, ...]
    strides: tuple[int, ...]
    group: int
    inputs: int  # per group
    outputs: int  # per group

    @property
    def steps(self) -> tuple[int, ...]:
        """Taps of each phase."""
        return tuple(-(-k // s) for k, s in zip(self.taps, self.strides, strict=True))


def _phases(node: Node) -> _Phases | str:
    w, attrs = node.input(1), node.attrs
    numbers = [d for d in w.tensor.shape if isinstance(d, int)]
    if len(numbers) != w.tensor.rank:
        return "the weights have symbolic extents"
    if any(not isinstance(p, int) or p < 0 for p in (*attrs["pads"], *attrs["output_padding"])):
        return "it has symbolic or negative pads"
    group = int(attrs.get("group", 1))
    channels, outputs, *kernel = numbers
    taps = ((k - 1) * d + 1 for k, d in zip(kernel, attrs["dilations"], strict=True))
    return _Phases(tuple(taps), tuple(attrs["strides"]), group, channels // group, outputs)


def _dilated(rewrite: Rewrite, w: Value, dilations: tuple[int, ...]) -> Value:
    """[C, M/group, k...] with `dilation - 1` zeros after each tap but the last."""
    for axis, dilation in enumerate(dilations, 2):
        shape = w.tensor.shape
        taps = shape[axis]
        if dilation == 1 or taps == 1:
            continue
        w = rewrite.emit("Reshape", w, shape=(*shape[: axis + 1], 1, *shape[axis + 1 :]))
        high = tuple(dilation - 1 if a == axis + 1 else 0 for a in range(w.tensor.rank))
        w = rewrite.emit("Pad", w, pads=(0,) * w.tensor.rank + high)
        w = rewrite.emit("Reshape", w, shape=(*shape[:axis], taps * dilation, *shape[axis + 1 :]))
        w = rewrite.emit("Slice", w, starts=(0,), ends=((taps - 1) * dilation + 1,), axes=(axis,), steps=(1,))
    return w


def _phase_weights(rewrite: Rewrite, w: Value, p: _Phases) -> Value:
    """[C, M/group, k...] as [M * phases, C/group, steps...]: channels outside, then phases, taps reversed."""
    rank = len(p.taps)
    missing = tuple(n * s - k for n, s, k in zip(p.steps, p.strides, p.taps, strict=True))
    if any(missing):
        w = rewrite.emit("Pad", w, pads=(0,) * (2 + rank) + (0, 0, *missing))
    pairs = [extent for pair in zip(p.steps, p.strides, strict=True) for extent in pair]
    w = rewrite.emit("Reshape", w, shape=(p.group, p.inputs, p.outputs, *pairs))
    steps_axes, phase_axes = tuple(range(3, 3 + 2 * rank, 2)), tuple(range(4, 4 + 2 * rank, 2))
    flipped = tuple(a for a, n in zip(steps_axes, p.steps, strict=True) if n > 1)
    if flipped:
        starts = tuple(p.steps[(a - 3) // 2] - 1 for a in flipped)
        w = rewrite.emit("Slice", w, starts=starts, ends=(-1,) * len(flipped), axes=flipped, steps=(-1,) * len(flipped))
    w = rewrite.emit("Transpose", w, perm=(0, 2, *phase_axes, 1, *steps_axes))
    return rewrite.emit("Reshape", w, shape=(p.group * p.outputs * prod(p.strides), p.inputs, *p.steps))


@rule("ConvTranspose")
def transposed_conv_as_conv(node: Node, rewrite: Rewrite) -> str | None:
    """A transposed convolution is a convolution for each phase of its stride, interleaved and cropped."""
    p = _phases(node)
    if isinstance(p, str):
        return p
    x, bias = node.input(0), node.inputs[2] if len(node.inputs) > 2 else None
    rank, channels, phases = len(p.taps), p.group * p.outputs, prod(p.strides)
    low, high = node.attrs["pads"][:rank], node.attrs["pads"][rank:]
    extra = node.attrs["output_padding"]
    covered = [n * s for n, s in zip(p.steps, p.strides, strict=True)]
    # Output padding may reach beyond the last phase; what lies there is the bias alone.
    beyond = tuple(max(k + e - h - c, 0) for k, e, h, c in zip(p.taps, extra, high, covered, strict=True))
    pads = tuple(n - 1 for n in p.steps) * 2
    attrs: dict[str, Any] = {"strides": (1,) * rank, "pads": pads, "dilations": (1,) * rank, "group": p.group}
    inputs = [x, _phase_weights(rewrite, _dilated(rewrite, node.input(1), node.attrs["dilations"]), p)]
    if bias is not None and not any(beyond):
        wide = rewrite.emit("Expand", rewrite.emit("Reshape", bias, shape=(channels, 1)), shape=(channels, phases))
        inputs.append(rewrite.emit("Reshape", wide, shape=(channels * phases,)))
    y = rewrite.emit("Conv", *inputs, **attrs)
    batch, _, *space = y.tensor.shape
    if phases > 1:
        y = rewrite.emit("Reshape", y, shape=(batch, channels, *p.strides, *space))
        order = [axis for i in range(rank) for axis in (2 + rank + i, 2 + i)]
        y = rewrite.emit("Transpose", y, perm=(0, 1, *order))
        y = rewrite.emit("Reshape", y, shape=(batch, channels, *(n * s for n, s in zip(space, p.strides, strict=True))))
    if any(beyond):
        y = rewrite.emit("Pad", y, pads=(0,) * (2 + rank) + (0, 0, *beyond))
    wanted = node.output.tensor.shape[2:]
    axes = [i for i in range(rank) if low[i] != 0 or y.tensor.shape[2 + i] != wanted[i]]
    if axes:
        y = rewrite.emit(
            "Slice",
            y,
            starts=tuple(low[i] for i in axes),
            ends=tuple(low[i] + wanted[i] for i in axes),
            axes=tuple(2 + i for i in axes),
            steps=(1,) * len(axes),
        )
    if bias is not None and any(beyond):
        y = rewrite.emit("Add", y, rewrite.emit("Reshape", bias, shape=(channels, *[1] * rank)))
    if y.type != node.output.type:
        y = rewrite.emit("Reshape", y, shape=node.output.tensor.shape)
    replace(rewrite, node, y)
    return None


TRANSPOSED_RULES = (transposed_conv_as_conv,)
