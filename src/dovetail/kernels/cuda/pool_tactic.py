"""MaxPool and AveragePool on channels-last images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dovetail.codegen.tactic import Config, Emitted, Group, Tactic, single, tactic
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import Dim
from dovetail.kernels.cuda.conv_shape import Window, image_layouts, window_of, window_reason
from dovetail.kernels.cuda.depthwise import Counts, Strip, sliding
from dovetail.kernels.cuda.depthwise_tactic import strips
from dovetail.kernels.cuda.writer import Writer
from dovetail.kernels.fused import attributes, in_place, sides

_MAX_COUNTED = 64
"""Taps of an axis whose windows are counted one by one."""


def _no_factor(tap: str) -> str:
    return "0"


@dataclass(frozen=True)
class _Maximum:
    """The largest element; NaN wins."""

    outside: str = 'float("-inf")'
    flops: int = 1

    def prepare(self, w: Writer, mask: str) -> tuple[list[str], Callable[[str], str]]:
        """Nothing."""
        return [], _no_factor

    def step(self, acc: str, x: str, factor: str) -> str:
        """The larger one."""
        return f"tl.maximum({acc}, {x}, propagate_nan=tl.PropagateNan.ALL)"

    def finish(self, w: Writer, acc: str, counts: Counts) -> list[str]:
        """The maximum is the result."""
        return []


@dataclass(frozen=True)
class _Mean:
    """The sum over the number of elements that count.

    Attributes:
        window: the window.
        limits: per axis None if all its taps always count, else (whether those in front count, first index that does not).
    """

    window: Window
    limits: tuple[tuple[bool, Dim] | None, ...]
    outside: str = "0.0"
    flops: int = 1

    def prepare(self, w: Writer, mask: str) -> tuple[list[str], Callable[[str], str]]:
        """Nothing."""
        return [], _no_factor

    def step(self, acc: str, x: str, factor: str) -> str:
        """One more element."""
        return f"{acc} + {x}"

    def finish(self, w: Writer, acc: str, counts: Counts) -> list[str]:
        """The division."""
        if all(limit is None for limit in self.limits):
            return [f"{acc} = {acc} / {float(self.window.taps)!r}"]

        def counted(axis: int, index: str) -> str:
            limit = self.limits[axis]
            if limit is None:
                return f"({index} == {index})"
            upper = f"({index} < {w.dim(limit[1])})"
            return upper if limit[0] else f"(({index} >= 0) & {upper})"

        return [f"{acc} = {acc} / {counts(counted)}"]


def _mean(group: Group, window: Window) -> _Mean:
    assert group.anchor is not None
    attrs = attributes(group.anchor)
    padding = bool(attrs["count_include_pad"])
    extra = tuple(attrs["ceil_extra"]) or (0,) * window.rank
    limits: list[tuple[bool, Dim] | None] = []
    for axis, space in enumerate(window.space):
        high = attrs["pads"][window.rank + axis]
        if padding:
            limits.append(None if extra[axis] == 0 else (True, space + high - extra[axis]))
        else:
            limits.append((False, space) if window.padded[axis] else None)
    return _Mean(window, tuple(limits))


@tactic
class Pool(Tactic):
    """Maximum or mean of windows, 1 to 3 spatial axes."""

    name = "pool"
    device = "cuda"
    kinds = ("pool",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Floats, one result."""
        anchor = group.anchor
        if anchor is None or anchor.op not in ("MaxPool", "AveragePool"):
            return "the group is not built around a pooling"
        if len(anchor.outputs) != 1:
            return "positions of the maxima are wanted, too"
        kernel = attributes(anchor)["kernel"]
        reason = window_reason(group)
        if reason is not None:
            return reason
        if anchor.op == "AveragePool" and max(kernel) > _MAX_COUNTED and any(window_of(group, kernel).padded):
            return f"padded windows of more than {_MAX_COUNTED} taps"
        return None

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Channels last."""
        return image_layouts(group)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """Strips by estimate."""
        window = self._window(group)
        return [s.config for s in strips(window, target, 16 // window.x.dtype.itemsize)]

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """One kernel."""
        anchor, window = group.anchor, self._window(group)
        assert anchor is not None
        rule = _Maximum() if anchor.op == "MaxPool" else _mean(group, window)
        kernel = sliding(group, window, rule, Strip.of(config), CudaTarget.of(target), self.name, anchor.input(0).index, None)
        return single(kernel, in_place(group, sides(group)))

    def _window(self, group: Group) -> Window:
        assert group.anchor is not None
        return window_of(group, attributes(group.anchor)["kernel"])


