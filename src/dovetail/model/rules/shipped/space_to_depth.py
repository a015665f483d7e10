"""SpaceToDepth written out: (Pad,) Reshape to blocks, Transpose, Reshape."""

from __future__ import annotations

from typing import Any

from dovetail.model.rules.definition import define
from dovetail.model.rules.match import Match

_IMAGES_FIRST = [0, 3, 5, 1, 2, 4]  # [N, C, H/b, b, W/b, b]: ONNX's order of the new channels, rows and columns of a block outermost
_CHANNELS_FIRST = [0, 1, 3, 5, 2, 4]
_CHANNELS_LAST = [0, 1, 3, 2, 4, 5]  # [N, H/b, b, W/b, b, C]
_TO_IMAGE = [0, 3, 1, 2]


def pattern(op: Any, x: Any, to_blocks: Any, to_depth: Any) -> Any:
    """Reshape to blocks, Transpose, Reshape; behind channels-last blocks also the Transpose to channels first."""
    blocks = op.Reshape(x, to_blocks).named("blocks")
    first = op.Transpose(blocks, perm=op.attribute("perm", lambda p: list(p) in (_IMAGES_FIRST, _CHANNELS_FIRST)))
    last = op.Reshape(op.Transpose(blocks, perm=_CHANNELS_LAST), to_depth).named("result")
    return op.any_of(op.Transpose(last, perm=_TO_IMAGE), op.Reshape(first, to_depth).named("result"))


def space_to_depth(op: Any, x: Any, perm: list[int] | None, match: Match) -> Any:
    """Reshape, Transpose, Reshape as SpaceToDepth."""
    source, blocks, result = x.shape, match["blocks"].shape, match["result"].shape
    if source is None or blocks is None or result is None:
        return match.decline("the shapes are not known")
    shown = " to ".join(f"[{', '.join(map(str, shape))}]" for shape in (source, blocks, result))
    if len(source) != 4 or len(blocks) != 6 or len(result) != 4:
        return match.decline(f"the shapes {shown} are not those of images in blocks")
    if perm == _CHANNELS_FIRST:
        return match.decline("the new channels stand in another order than SpaceToDepth's: by channel, then by place in the block")
    if perm is not None:
        n, c, h, w = source
        rows, block, columns = blocks[2], blocks[3], blocks[4]
        wanted, made = (n, c, rows, block, columns, block), (n, c * block * block, rows, columns)
    else:
        n, h, w, c = source
        rows, block, columns = blocks[1], blocks[2], blocks[3]
        wanted, made = (n, rows, block, columns, block, c), (n, rows, columns, c * block * block)
    covered = _same((rows * block, columns * block), (h, w))
    if not isinstance(block, int) or block < 2 or blocks != wanted or result != made or not covered:
        return match.decline(f"the shapes {shown} are not those of square blocks")
    return op.SpaceToDepth(x if perm is not None else op.Transpose(x, perm=_TO_IMAGE), blocksize=block)


def _same(sizes: tuple[Any, Any], image: tuple[Any, Any]) -> bool:
    """Whether blocks cover an image; sizes that are named are covered, or the Reshape would fail."""
    return all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(sizes, image, strict=True))


RULE = define([pattern], space_to_depth, "space-to-depth", shipped=True, near=3)
