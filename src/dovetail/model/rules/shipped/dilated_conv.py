"""Dilated convolution as TensorFlow writes it: SpaceToBatchND, a convolution without dilation, BatchToSpaceND.

tf2onnx makes twelve nodes of it: SpaceToBatchND becomes Pad, Transpose, SpaceToDepth over channels that hold the batch, and Transpose;
BatchToSpaceND becomes Transpose, DepthToSpace, Slice and Transpose. Cutting an image into b x b phases, convolving each and putting them
together again is convolving with a dilation of b; the padding becomes that of the convolution, and the cropping takes of it.
"""

from __future__ import annotations

from typing import Any

from dovetail.model.rules.definition import define
from dovetail.model.rules.match import Match, Value
from dovetail.model.rules.shipped.borders import activated, after, cropping, padding, transposed

_SWAP = [1, 0, 2, 3]
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def pattern(
    op: Any, x: Any, w: Any, b: Any = None, c: Any = None, low: Any = None, high: Any = None, pads: Any = None, fill: Any = None,
    row: Any = None, column: Any = None, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None,
) -> Any:  # fmt: skip
    """From the padded image to the cropped one, with a bias and an activation in between; borders may be other nodes."""
    padded = op.Pad(x, pads, fill).named("pad_first")
    inner = op.Transpose(x, perm=op.attribute("perm_in")).named("turned_first")
    outer = op.Transpose(padded, perm=op.attribute("perm_in"))
    image = op.any_of(
        outer.named("turned"), op.Reshape(op.any_of(outer, padded), row).named("row"), op.Pad(inner, pads, fill).named("pad_last"),
        op.Pad(x, pads, fill).named("pad_last"), inner, x,
    )  # fmt: skip
    space = op.SpaceToDepth(image, blocksize=op.attribute("block", lambda n: n > 1)).named("space")
    phases = op.Transpose(space, perm=_SWAP)
    there = op.Transpose(op.Transpose(phases, perm=_TO_LAST), perm=_TO_FIRST)  # as tf2onnx leaves it where it does not optimise
    conv = op.Conv(op.any_of(there, phases), w, b).named("conv")
    turned = op.Transpose(conv, perm=_TO_LAST).named("channels_last")
    ends_last = op.Transpose(activated(op, op.any_of(op.Add(turned, c).named("add"), turned), low, high), perm=_TO_FIRST)
    ends_first = activated(op, op.any_of(op.Add(conv, c).named("add"), conv), low, high)
    back = op.Transpose(op.any_of(ends_last, ends_first), perm=_SWAP)
    depth = op.DepthToSpace(back, blocksize=op.attribute("block")).named("depth")
    cut = op.Slice(depth, starts, ends, axes, steps).named("cut")
    cropped = op.any_of(cut, depth)
    return op.any_of(
        op.Transpose(op.Reshape(cropped, column).named("column"), perm=op.attribute("perm_out")).named("last"),
        op.Transpose(cropped, perm=op.attribute("perm_out")).named("last"),
        op.Reshape(cropped, column).named("column"), cut, depth,
    )  # fmt: skip


def dilated_conv(op: Any, w: Any, b: Any, c: Any, low: Any, high: Any, block: int, match: Match) -> Any:
    """SpaceToBatchND, Conv, BatchToSpaceND as one dilated Conv."""
    conv = match["conv"]
    dilations, strides = conv.attribute("dilations", [1, 1]), conv.attribute("strides", [1, 1])
    if match["depth"].attribute("mode", "DCR") != "DCR":
        return match.decline("DepthToSpace takes the phases from other channels than SpaceToDepth put them into (mode CRD)")
    if any(s != 1 for s in strides):
        return match.decline(f"the convolution has strides {strides}: its phases are not those of one convolution")
    if conv.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return match.decline(f"the convolution pads each phase by auto_pad={conv.attribute('auto_pad')}")
    last = match["channels_last"] is not None
    if c is not None and not _per_channel(c, last):
        return match.decline(f"what is added behind the convolution is {c.type}, expected one number per channel")
    image, perm, before, behind = _front(match)
    cropped = _back(match)
    if isinstance(cropped, str):
        return match.decline(cropped)
    cut_before, cut_behind, out = cropped
    own = [p * block for p in conv.attribute("pads", [0, 0, 0, 0])]
    before = [p + q - cut for p, q, cut in zip(before, own[:2], cut_before, strict=True)]
    behind = [p + q - cut for p, q, cut in zip(behind, own[2:], cut_behind, strict=True)]
    if min(*before, *behind) < 0:
        return match.decline("more is cropped than was padded")
    y = op.Conv(
        transposed(op, image, perm), w, b, dilations=[d * block for d in dilations], pads=[*before, *behind], strides=[1, 1],
        group=conv.attribute("group", 1), kernel_shape=conv.attribute("kernel_shape"),
    )  # fmt: skip
    if c is not None:
        y = op.Add(y, op.Reshape(c, op.constant([-1, 1, 1], "i64")) if last else c)
    if match["act"] is not None:
        y = op.same(match["act"], y, *([low, high] if match["act"].op == "Clip" else []))
    return transposed(op, y, out)


def _per_channel(value: Value, last: bool) -> bool:
    """Whether a value is the same for all images and pixels.

    Args:
        last: the channels are the last axis.
    """
    shape = value.shape
    if shape is None or len(shape) > 4:
        return False
    if last:
        return all(d == 1 for d in shape[:-1])
    return all(d == 1 for d in shape[-2:]) and (len(shape) < 4 or shape[0] == 1)


def _front(match: Match) -> tuple[Value, list[int], list[int], list[int]]:
    """(source, Transpose that makes it an image in NCHW order, padding before, behind) of the convolution."""
    whole = match["space"]
    source, perm = match["x"], match["perm_in"]
    plain = _input_of(match, whole)
    if match["row"] is not None:  # [1, C, H, W] seen as [C, 1, H, W]
        turned = _input_of(match, match["row"])
        if not _is_row(turned.shape, match["row"].shape):
            return plain, _SWAP, [0, 0], [0, 0]
        order, padded, last = list(perm or range(4)), match["pad_first"], False
    else:
        order = after(perm if perm is not None else range(4), _SWAP)
        padded, last = (match["pad_first"], False) if match["pad_first"] is not None else (match["pad_last"], True)
    if padded is None:
        return source, order, [0, 0], [0, 0]
    found = padding(match, padded, match["pads"], match["fill"])
    # Padding ahead of the Transpose counts the source's axes, behind it those of [C, N, H, W].
    axes = [2, 3] if last else order[2:]
    if found is None or any(found[0][k] or found[1][k] for k in range(4) if k not in axes):
        return plain, _SWAP, [0, 0], [0, 0]
    return source, order, [found[0][k] for k in axes], [found[1][k] for k in axes]


def _back(match: Match) -> tuple[list[int], list[int], list[int]] | str:
    """(cropped before, behind, Transpose of the convolution's result); or why that is not known."""
    before, behind = [0] * 4, [0] * 4
    if match["cut"] is not None:
        found = cropping(match, match["cut"], match["depth"].shape, 4, match["starts"], match["ends"], match["axes"], match["steps"])
        if found is None:
            return "the cropping is not known before the run"
        before, behind = found
        if any(before[:2]) or any(behind[:2]):
            return "images or channels are cropped, too"
    order = list(_SWAP)
    if match["column"] is not None:  # [C, 1, H, W] seen as [1, C, H, W]
        if not _is_row(match["column"].shape, _input_of(match, match["column"]).shape):
            return f"the Reshape to {match['column'].type} is not that of a single image"
        order = [0, 1, 2, 3]
    if match["perm_out"] is not None:
        order = after(order, match["perm_out"])
    return before[2:], behind[2:], order


def _is_row(image: Any, row: Any) -> bool:
    """Whether shapes are [1, C, H, W] and [C, 1, H, W]."""
    return image is not None and row is not None and len(image) == 4 and image[0] == 1 and row == (image[1], 1, *image[2:])


def _input_of(match: Match, value: Value) -> Value:
    """The first input of the node that computes a value of the match."""
    node = match.producer(value)
    assert node is not None
    return Value(node.input[0], None, match)


RULE = define([pattern], dilated_conv, "dilated-conv", shipped=True, near=6)
