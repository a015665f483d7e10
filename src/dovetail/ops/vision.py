"""Image and region ops: resize, grid sampling, region pooling, unpooling, deformable convolution."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.core.dims import Dim, floor_div, product
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.movement import shape_text
from dovetail.ops.registry import CONTRACTION, SELECT, op

COORDINATE_MODES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)
NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def _check_choice(where: str, what: str, got: str, expected: Sequence[str]) -> None:
    if got not in expected:
        raise TypeInferenceError(
            f"{where}: {what}, got {got!r}, expected one of {', '.join(expected)}; choose one of these"
        )


def _check_rank(where: str, what: str, t: TensorType, rank: int) -> None:
    if t.rank != rank:
        raise TypeInferenceError(
            f"{where}: {what}, got shape {shape_text(t.shape)}, expected rank {rank}; reshape it"
        )


@op("Resize", SELECT)
def resize(
    x: TensorType,
    roi: TensorType | None = None,
    scales_data: TensorType | None = None,
    *,
    sizes: tuple[Dim, ...],
    scales: tuple[float, ...] = (),
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    antialias: bool = False,
    exclude_outside: bool = False,
    extrapolation_value: float = 0.0,
) -> TensorType:
    """Resample x to `sizes` (one per axis). ONNX Resize-19.

    The coordinate map uses, per axis, the first of these that is given: the run-time vector
    `scales_data`, the attribute `scales`, size / extent. `roi` holds the starts of all axes, then the
    ends (tf_crop_and_resize only). mode is nearest, linear or cubic.
    """
    _check_choice("Resize", "mode", mode, ("nearest", "linear", "cubic"))
    _check_choice(
        "Resize", "coordinate_transformation_mode", coordinate_transformation_mode, COORDINATE_MODES
    )
    _check_choice("Resize", "nearest_mode", nearest_mode, NEAREST_MODES)
    if len(sizes) != x.rank or (scales and len(scales) != x.rank):
        raise TypeInferenceError(
            f"Resize: got {len(sizes)} sizes and {len(scales)} scales, expected {x.rank} sizes and 0 or "
            f"{x.rank} scales for {shape_text(x.shape)}; give one per axis"
        )
    if coordinate_transformation_mode == "tf_crop_and_resize" and roi is None:
        raise TypeInferenceError(
            "Resize: roi, got none, expected 2 * rank values for tf_crop_and_resize; connect it"
        )
    if antialias and mode == "nearest":
        raise TypeInferenceError(
            "Resize: antialias, got True with mode nearest, expected mode linear or cubic; drop antialias"
        )
    return TensorType(x.dtype, tuple(sizes))


@op("GridSample", SELECT)
def grid_sample(
    x: TensorType,
    grid: TensorType,
    *,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> TensorType:
    """Sample x (N, C, D1…Dr) at normalised positions grid (N, O1…Or, r), x coordinate first. ONNX GridSample-22."""
    _check_choice("GridSample", "mode", mode, ("linear", "nearest", "cubic"))
    _check_choice("GridSample", "padding_mode", padding_mode, ("zeros", "border", "reflection"))
    _check_rank("GridSample", "grid", grid, x.rank)
    if x.rank < 3 or (isinstance(grid.shape[-1], int) and grid.shape[-1] != x.rank - 2):
        raise TypeInferenceError(
            f"GridSample: grid, got shape {shape_text(grid.shape)} for an input {shape_text(x.shape)}, expected "
            f"a last extent of {x.rank - 2}; give one coordinate per spatial axis"
        )
    return TensorType(x.dtype, (x.shape[0], x.shape[1], *grid.shape[1:-1]))


@op("RoiAlign", SELECT)
def roi_align(
    x: TensorType,
    rois: TensorType,
    batch_indices: TensorType,
    *,
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    mode: str = "avg",
    coordinate_transformation_mode: str = "half_pixel",
) -> TensorType:
    """Pool x (N, C, H, W) over bilinear samples of each region (x1, y1, x2, y2). ONNX RoiAlign-22."""
    _check_choice("RoiAlign", "mode", mode, ("avg", "max"))
    _check_choice(
        "RoiAlign",
        "coordinate_transformation_mode",
        coordinate_transformation_mode,
        ("half_pixel", "output_half_pixel"),
    )
    _check_rank("RoiAlign", "input", x, 4)
    _check_rank("RoiAlign", "rois", rois, 2)
    _check_rank("RoiAlign", "batch_indices", batch_indices, 1)
    return TensorType(x.dtype, (rois.shape[0], x.shape[1], output_height, output_width))


@op("MaxRoiPool", SELECT)
def max_roi_pool(
    x: TensorType, rois: TensorType, *, pooled_shape: tuple[int, ...], spatial_scale: float = 1.0
) -> TensorType:
    """Maximum of x (N, C, H, W) in a grid of bins over each region (batch, x1, y1, x2, y2). ONNX MaxRoiPool-22."""
    _check_rank("MaxRoiPool", "input", x, 4)
    _check_rank("MaxRoiPool", "rois", rois, 2)
    return TensorType(x.dtype, (rois.shape[0], x.shape[1], *pooled_shape))


@op("MaxUnpool", SELECT)
def max_unpool(
    x: TensorType,
    indices: TensorType,
    *,
    pooled_from: tuple[Dim, ...],
    sizes: tuple[Dim, ...],
) -> TensorType:
    """Zeros of `sizes` with the elements of x put where max pooling found them. ONNX MaxUnpool-22.

    `indices` are flat positions in an array of shape `pooled_from`; `sizes` may be larger at the high ends.
    """
    if not len(pooled_from) == len(sizes) == x.rank:
        raise TypeInferenceError(
            f"MaxUnpool: sizes, got {len(sizes)} and {len(pooled_from)} values, expected {x.rank}; "
            "give one per axis"
        )
    return TensorType(x.dtype, tuple(sizes))


@op("DeformConv", CONTRACTION)
def deform_conv(
    x: TensorType,
    weight: TensorType,
    offset: TensorType,
    bias: TensorType | None = None,
    mask: TensorType | None = None,
    *,
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
    group: int = 1,
    offset_group: int = 1,
) -> TensorType:
    """Convolution whose sampling points are moved by `offset` and weighted by `mask`. ONNX DeformConv-22.

    x (N, C, H, W), weight (M, C / group, kH, kW), offset (N, offset_group * kH * kW * 2, oH, oW).
    """
    _check_rank("DeformConv", "input", x, 4)
    _check_rank("DeformConv", "weight", weight, 4)
    _check_rank("DeformConv", "offset", offset, 4)
    return TensorType(x.dtype, (x.shape[0], weight.shape[0], *offset.shape[2:]))


@op("AffineGrid", SELECT)
def affine_grid(theta: TensorType, *, size: tuple[Dim, ...], align_corners: bool = False) -> TensorType:
    """Sampling positions (N, spatial…, r) of the affine maps theta (N, r, r + 1). ONNX AffineGrid-20.

    `size` is the output size (N, C, spatial…).
    """
    _check_rank("AffineGrid", "theta", theta, 3)
    return TensorType(theta.dtype, (size[0], *size[2:], len(size) - 2))


@op("Col2Im", SELECT)
def col2im(
    x: TensorType,
    *,
    image_shape: tuple[Dim, ...],
    block_shape: tuple[Dim, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    strides: tuple[int, ...],
) -> TensorType:
    """Add up the columns (N, C * block, L) of sliding blocks into an image (N, C, image…). ONNX Col2Im-18."""
    _check_rank("Col2Im", "input", x, 3)
    return TensorType(x.dtype, (x.shape[0], floor_div(x.shape[1], product(block_shape)), *image_shape))
