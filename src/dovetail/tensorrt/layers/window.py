"""What layers have in common that slide a window: kernel size, stride, padding and its modes."""

from __future__ import annotations

from typing import Any

from dovetail.tensorrt.dims import Dims, DimsHW
from dovetail.tensorrt.enums import PaddingMode
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.settings import Setting, dims_setting, extents, of, pair, pair_setting

_UP = (PaddingMode.EXPLICIT_ROUND_UP, PaddingMode.CAFFE_ROUND_UP)
_SAME = {PaddingMode.SAME_UPPER: "SAME_UPPER", PaddingMode.SAME_LOWER: "SAME_LOWER"}


class WindowLayer(ILayer):
    """A layer with strides and padding."""

    __slots__ = ()
    stride_nd = dims_setting((1, 1), "The distance between windows, per spatial axis.")
    stride = pair_setting("stride_nd", "The old name of `stride_nd`.")
    pre_padding = dims_setting((0, 0), "The padding before the first element, per spatial axis.")
    post_padding = dims_setting((0, 0), "The padding after the last element, per spatial axis.")
    padding_mode = Setting[PaddingMode](of(PaddingMode), PaddingMode.EXPLICIT_ROUND_DOWN, "How padding and output size are found.")

    @property
    def padding_nd(self) -> Dims:
        """The padding on both sides, per spatial axis."""
        return self.pre_padding

    @padding_nd.setter
    def padding_nd(self, value: Any) -> None:
        found = extents(value, f"{type(self).__name__}.padding_nd")
        self.pre_padding = self.post_padding = Dims(found)

    @property
    def padding(self) -> DimsHW:
        """The old name of `padding_nd`."""
        return DimsHW(self.pre_padding[-2:])

    @padding.setter
    def padding(self, value: Any) -> None:
        self.padding_nd = Dims(pair(value, f"{type(self).__name__}.padding"))


def window_defaults(rank: int) -> dict[str, Any]:
    """Settings of a layer whose window has that many axes."""
    return {"stride_nd": (1,) * rank, "pre_padding": (0,) * rank, "post_padding": (0,) * rank}


def window_attributes(layer: WindowLayer, *, rounds_up_by_padding: bool) -> dict[str, Any]:
    """Strides and padding as ONNX's attributes.

    Args:
        rounds_up_by_padding: whether a size that is rounded up is had by more padding at the end; else by ceil_mode.
    """
    strides = tuple(layer.stride_nd)
    found: dict[str, Any] = {"strides": strides}
    mode = layer.padding_mode
    if mode in _SAME:
        return found | {"auto_pad": _SAME[mode]}
    post = tuple(layer.post_padding)
    if mode in _UP and rounds_up_by_padding:
        # floor((x + s - 1) / s) is ceil(x / s).
        post = tuple(p + s - 1 for p, s in zip(post, strides, strict=True))
    elif mode in _UP:
        found["ceil_mode"] = 1
    return found | {"pads": (*layer.pre_padding, *post)}
