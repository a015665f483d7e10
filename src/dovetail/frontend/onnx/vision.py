"""ONNX importers of the image and region ops, except Resize (resizing.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dovetail.core.dims import Dim
from dovetail.core.errors import TypeInferenceError
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.frontend.shape_inputs import present, required
from dovetail.ops.movement import shape_text

# GridSample-16 named the modes of two-dimensional images.
_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@onnx_op("GridSample")
def grid_sample(ctx: Context, node: OnnxNode) -> Any:
    """GridSample-16, 20, 22."""
    mode = node.attr("mode", "linear")
    return ctx.emit(
        "GridSample",
        required(node, 0),
        required(node, 1),
        mode=_GRID_MODES.get(mode, mode),
        padding_mode=node.attr("padding_mode", "zeros"),
        align_corners=bool(node.attr("align_corners", 0)),
    )


@onnx_op("AffineGrid")
def affine_grid(ctx: Context, node: OnnxNode) -> Any:
    """AffineGrid-20."""
    size = ctx.dims(required(node, 1))
    return ctx.emit(
        "AffineGrid", required(node, 0), size=size, align_corners=bool(node.attr("align_corners", 0))
    )


@onnx_op("RoiAlign")
def roi_align(ctx: Context, node: OnnxNode) -> Any:
    """RoiAlign-10 (no half-pixel shift), 16, 22."""
    shift = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    return ctx.emit(
        "RoiAlign",
        *(required(node, i) for i in range(3)),
        output_height=node.attr("output_height", 1),
        output_width=node.attr("output_width", 1),
        sampling_ratio=node.attr("sampling_ratio", 0),
        spatial_scale=float(node.attr("spatial_scale", 1.0)),
        mode=node.attr("mode", "avg"),
        coordinate_transformation_mode=node.attr("coordinate_transformation_mode", shift),
    )


@onnx_op("MaxRoiPool")
def max_roi_pool(ctx: Context, node: OnnxNode) -> Any:
    """MaxRoiPool-1, 22."""
    return ctx.emit(
        "MaxRoiPool",
        required(node, 0),
        required(node, 1),
        pooled_shape=tuple(node.attr("pooled_shape")),
        spatial_scale=float(node.attr("spatial_scale", 1.0)),
    )


@onnx_op("MaxUnpool")
def max_unpool(ctx: Context, node: OnnxNode) -> Any:
    """MaxUnpool-9…22: indices address the inferred shape, output_shape may be larger."""
    x, indices = required(node, 0), required(node, 1)
    kernel = node.attr("kernel_shape")
    rank = len(kernel)
    strides, pads = _or_default(node, "strides", [1] * rank), _or_default(node, "pads", [0] * 2 * rank)
    inferred: list[Dim] = list(x.tensor.shape[:2])
    for i, extent in enumerate(x.tensor.shape[2:]):
        inferred.append((extent - 1) * strides[i] - pads[i] - pads[rank + i] + kernel[i])
    given = present(node, 2)
    sizes = tuple(inferred) if given is None else ctx.dims(given)
    return ctx.emit("MaxUnpool", x, indices, pooled_from=tuple(inferred), sizes=sizes)


def _or_default(node: OnnxNode, name: str, default: Sequence[int]) -> tuple[int, ...]:
    given: Any = node.attr(name)
    return tuple(given or default)


@onnx_op("DeformConv")
def deform_conv(ctx: Context, node: OnnxNode) -> Any:
    """DeformConv-19, 22."""
    x, weight = required(node, 0), required(node, 1)
    if x.tensor.rank != 4:
        ctx.unsupported(
            f"deformable convolution over {x.tensor.rank - 2} spatial axes", "only images (N, C, H, W) are supported"
        )
    kernel = node.attr("kernel_shape")
    if kernel is not None and tuple(kernel) != weight.tensor.shape[2:]:
        raise TypeInferenceError(
            f"DeformConv: kernel_shape, got {tuple(kernel)}, expected {shape_text(weight.tensor.shape[2:])} as the "
            "weight has; correct the attribute"
        )
    return ctx.emit(
        "DeformConv",
        x,
        weight,
        required(node, 2),
        node.input(3),
        node.input(4),
        strides=_or_default(node, "strides", (1, 1)),
        pads=_or_default(node, "pads", (0, 0, 0, 0)),
        dilations=_or_default(node, "dilations", (1, 1)),
        group=node.attr("group", 1),
        offset_group=node.attr("offset_group", 1),
    )


@onnx_op("Col2Im")
def col2im(ctx: Context, node: OnnxNode) -> Any:
    """Col2Im-18."""
    image = ctx.dims(required(node, 1))
    rank = len(image)
    blocks = ctx.dims(required(node, 2))
    return ctx.emit(
        "Col2Im",
        required(node, 0),
        image_shape=image,
        block_shape=blocks,
        dilations=_or_default(node, "dilations", [1] * rank),
        pads=_or_default(node, "pads", [0] * 2 * rank),
        strides=_or_default(node, "strides", [1] * rank),
    )


@onnx_op("ImageDecoder")
def image_decoder(ctx: Context, node: OnnxNode) -> Any:
    """ImageDecoder-20 has no place inside an engine."""
    ctx.unsupported(
        "decoding compressed images is not part of an engine", "decode the image first and pass the pixels as an input"
    )
