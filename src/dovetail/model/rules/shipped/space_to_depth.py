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
    depth = op.Reshape(op.Transpose(blocks, perm=op.attribute("perm", lambda p: len(p) == 6)), to_depth).named("result")
    return op.any_of(op.Transpose(depth, perm=_TO_IMAGE).named("image"), depth)


def space_to_depth(op: Any, x: Any, perm: list[int], match: Match) -> Any:
    """Reshape, Transpose, Reshape as SpaceToDepth."""
    source, blocks, result = x.shape, match["blocks"].shape, match["result"].shape
    if source is None or blocks is None or result is None:
        return match.decline("the shapes are not known")
    if len(source) != 4 or len(blocks) != 6 or len(result) != 4:
        return match.decline(f"the shapes {source}, {blocks}, {result} are not those of images in blocks")
    if list(perm) == _CHANNELS_FIRST:
        return match.decline("the new channels stand in another order than SpaceToDepth's: by channel, then by place in the block")
    if list(perm) == _IMAGES_FIRST:
        block = blocks[3]
        whole = (source[0], source[1], source[2], source[3])
        n, c, h, w = whole
        wanted = (n, c, blocks[2], block, blocks[4], block)
        made = (n, c * block * block, blocks[2], blocks[4])
        sizes = (blocks[2] * block, blocks[4] * block)
    elif list(perm) == _CHANNELS_LAST:
        block = blocks[2]
        n, h, w, c = source
        wanted = (n, blocks[1], block, blocks[3], block, c)
        made = (n, blocks[1], blocks[3], c * block * block)
        sizes = (blocks[1] * block, blocks[3] * block)
        if match["image"] is None:
            return match.decline("the result stays channels-last: SpaceToDepth would need two Transposes more")
    else:
        return match.decline(f"the Transpose by {list(perm)} is not that of blocks")
    if not isinstance(block, int) or block < 2 or blocks != wanted or result != made or not _same(sizes, (h, w)):
        return match.decline(f"the shapes {source}, {blocks}, {result} are not those of square blocks")
    if list(perm) == _CHANNELS_LAST:
        return op.SpaceToDepth(op.Transpose(x, perm=_TO_IMAGE), blocksize=block)
    depth = op.SpaceToDepth(x, blocksize=block)
    return depth if match["image"] is None else op.Transpose(depth, perm=_TO_IMAGE)


def _same(sizes: tuple[Any, Any], image: tuple[Any, Any]) -> bool:
    """Whether blocks cover an image; sizes that are named are covered, or the Reshape would fail."""
    return all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(sizes, image, strict=True))


RULE = define([pattern], space_to_depth, "space-to-depth", shipped=True, near=4)
