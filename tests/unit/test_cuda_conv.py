"""Convolution and pooling templates for a GPU: what they compute, under the interpreter, and what machine code they become."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dovetail.kernels.cpu
import dovetail.kernels.cuda  # noqa: F401 - registers the tactics
from dovetail.codegen.lower import reason_not_lowerable
from dovetail.codegen.tactic import ANY, CHANNELS_LAST, Config, Group, Tactic
from dovetail.codegen.target import Target
from dovetail.core.dims import evaluate, sym
from dovetail.core.dtypes import BF16, F16, F32, DType
from dovetail.ir.layout import Layout, channels_last
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.conv_stem import Stem
from dovetail.kernels.cuda.conv_tactic import ImplicitGemm
from dovetail.kernels.cuda.conv_tma import TmaConv
from dovetail.kernels.cuda.conv_vector import Vector
from dovetail.kernels.cuda.depthwise_tactic import Depthwise
from dovetail.kernels.cuda.pool_tactic import Pool
from dovetail.ops.infer import infer
from dovetail.passes.fuse import fuse
from tests.unit.cuda_harness import (
    SM80,
    SM90,
    Body,
    aot,
    close,
    expected,
    fused,
    kernels_of,
    run_group,
    sass,
)
from tests.unit.ir_builder import Builder, built

GEMM, TMA, VECTOR, STEM = ImplicitGemm(), TmaConv(), Vector(), Stem()
DEPTHWISE, POOL = Depthwise(), Pool()
N = sym("N")


def conv_group(
    x: tuple[Any, ...], w: tuple[int, ...], kind: DType = F16, *, bias: bool = True, residual: bool = False, act: str = "Relu",
    layout: Layout | None = None, image: DType | None = None, scale: bool = False, out: DType | None = None, **attrs: Any,
) -> Group:  # fmt: skip
    """Conv [+ residual] [activation] of channels-last operands, behind a cast of `image` and a scale per channel."""
    rank = len(w) - 2
    full = {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank, "group": 1} | attrs

    def build(b: Body) -> Any:
        value = b.input(image or kind, *x, layout=layout or channels_last(len(x)))
        if image is not None:
            value = b("Cast", value, to=kind)
        if scale:
            value = b("Mul", value, b.input(kind, x[0], x[1], *[1] * rank))
        y = b("Conv", value, b.weight(kind, *w), *([b.weight(kind, w[0])] if bias else []), **full)
        if residual:
            y = b("Add", y, b.input(kind, *y.tensor.shape, layout=channels_last(len(x))))
        y = b(act, y) if act else y
        return b("Cast", y, to=out) if out else y

    return fused(build, "conv", "Conv", channels_last(len(x)))


def pool_group(op: str, x: tuple[Any, ...], kernel: tuple[int, ...], kind: DType = F16, **attrs: Any) -> Group:
    rank = len(kernel)
    full = {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank} | attrs
    return fused(lambda b: b(op, b.input(kind, *x, layout=channels_last(len(x))), kernel=kernel, **full), "pool", op, channels_last(len(x)))


def operands(group: Group, sizes: dict[str, int]) -> list[np.ndarray]:
    """Normal numbers; filters are small, so that sums are near one."""
    rng = np.random.default_rng(11)
    found = []
    for value in group.inputs:
        shape = [evaluate(d, sizes) for d in value.tensor.shape]
        small = 1 / np.sqrt(np.prod(shape[1:])) if value.producer is not None and len(shape) > 2 else 1.0
        found.append((rng.standard_normal(shape) * small).astype(value.tensor.dtype.numpy))
    return found


def check(tactic: Tactic, group: Group, config: Config | None = None, target: Any = SM90, sizes: dict[str, int] | None = None) -> None:
    assert tactic.supports(group, target) is None, tactic.supports(group, target)
    config = config if config is not None else tactic.configs(group, target)[0]
    arrays = operands(group, sizes or {})
    with np.errstate(all="ignore"):
        got = run_group(group, tactic, config, arrays, target, sizes)
        # What a prologue computes is rounded to the operands of the products; a store alone rounds less.
        scaled = group.anchor is not None and group.anchor.input(0).producer is not None
        close(got, expected(group, arrays, sizes), 4e-3 if scaled else 5e-6)


def tile(bm: int = 32, bn: int = 32, bk: int = 16, stages: int = 2, **more: int) -> Config:
    return (("bm", bm), ("bn", bn), ("bk", bk), ("warps", 4), ("stages", stages), *more.items())


DENSE = [
    ((2, 16, 9, 7), (24, 16, 1, 1), {}),
    ((2, 16, 9, 7), (24, 16, 1, 1), {"strides": (2, 3)}),
    ((1, 40, 5, 5), (8, 40, 1, 1), {"pads": (1, 0, 0, 2)}),
    ((2, 24, 9, 7), (40, 24, 3, 3), {"pads": (1, 1, 1, 1), "residual": True}),
    ((1, 32, 8, 11), (32, 32, 3, 3), {"pads": (1, 0, 0, 1), "strides": (2, 2), "dilations": (2, 1)}),
    ((1, 17, 6, 6), (5, 17, 5, 5), {"pads": (2, 2, 2, 2), "bias": False, "act": ""}),
    ((1, 16, 9, 9), (16, 16, 7, 7), {"pads": (3, 3, 3, 3)}),
    ((2, 16, 13), (24, 16, 3), {"pads": (1, 2), "strides": (2,)}),
    ((1, 16, 4, 5, 6), (16, 16, 3, 3, 3), {"pads": (1, 1, 1, 1, 0, 1)}),
    ((1, 16, 4, 5, 6), (16, 16, 1, 3, 1), {"pads": (0, 1, 0, 0, 1, 0)}),
    ((1, 16, 1, 1), (130, 16, 1, 1), {"act": "Sigmoid"}),
    ((0, 16, 4, 4), (16, 16, 3, 3), {}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), DENSE)
def test_dense(x, w, attrs):
    check(GEMM, conv_group(x, w, **attrs), tile())


@pytest.mark.parametrize("kind", [BF16, F32])
def test_dtypes(kind):
    check(GEMM, conv_group((1, 20, 6, 7), (12, 20, 3, 3), kind, pads=(1, 1, 1, 1), residual=True))


@pytest.mark.parametrize("batch", [1, 2, N])
def test_prologue(batch):
    """A scale per image and channel, as of squeeze and excite; a tail of channels."""
    group = conv_group((batch, 40, 5, 3), (24, 40, 1, 1), scale=True, residual=True)
    check(GEMM, group, tile(bk=32), sizes={"N": 2})
    check(GEMM, conv_group((batch, 40, 4, 6), (24, 40, 1, 1), scale=True, strides=(2, 2), image=F32), tile(), sizes={"N": 2})


def test_prologue_of_normalisation():
    """A factor and a shift per channel, known before the run, and an activation."""

    def build(b: Body) -> Any:
        x = b.input(F16, 2, 20, 3, 5, layout=channels_last(4))
        x = b("Relu", b("Add", b("Mul", x, b.weight(F16, 1, 20, 1, 1)), b.weight(F16, 1, 20, 1, 1)))
        return b("Conv", x, b.weight(F16, 16, 20, 1, 1), strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), group=1)

    check(GEMM, fused(build, "conv", "Conv", channels_last(4)), tile(bk=32))


def test_result_of_another_dtype():
    check(GEMM, conv_group((1, 16, 6, 7), (12, 16, 1, 1), F16, out=F32, act="HardSwish"))


@pytest.mark.parametrize("split", [2, 4, 8])
@pytest.mark.parametrize("taps", [1, 3])
def test_split_sums(split, taps):
    group = conv_group((1, 96, 6, 5), (40, 96, taps, taps), pads=(taps // 2,) * 4, residual=True)
    check(GEMM, group, tile(split=split))


def test_operands_of_the_epilogue_are_fetched_before_the_sum():
    group = conv_group((2, 32, 5, 6), (40, 32, 1, 1), residual=True)
    for tactic in (GEMM, TMA):
        (kernel,) = kernels_of(group, tactic, tile(bk=16, fetch=1), SM90)
        assert kernel.source.index("gdc_wait") < kernel.source.index("prefetch_l2") < kernel.source.index("for k")
        check(tactic, group, tile(bk=16, fetch=1))


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("pack", [1, 2])
def test_swapped_tiles(split, pack):
    more = {"swap": 1, "ahead": 1} | ({"split": split} if split > 1 else {}) | ({"pack": pack} if pack > 1 else {})
    channels = 24 // pack
    group = conv_group((2, 24, 5, 6), (40, channels, 3, 3), pads=(1, 1, 1, 1), residual=True, group=pack)
    check(GEMM, group, tile(bm=16, bk=32, **more))
    check(GEMM, conv_group((2, 40, 5, 6), (24, 40, 1, 1), scale=True), tile(bm=16, bk=32, swap=1, **({"split": 2} if split > 1 else {})))


def test_parts_beyond_the_sum_are_empty():
    check(GEMM, conv_group((1, 48, 3, 3), (8, 48, 1, 1)), tile(split=4))


@pytest.mark.parametrize("size", [1, 3])
def test_symbolic_batch(size):
    check(GEMM, conv_group((N, 16, 5, 6), (24, 16, 3, 3), pads=(1, 1, 1, 1), residual=True), tile(), sizes={"N": size})
    check(DEPTHWISE, conv_group((N, 16, 5, 6), (16, 1, 3, 3), pads=(1, 1, 1, 1), group=16), sizes={"N": size})
    check(STEM, conv_group((N, 3, 9, 9), (16, 3, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1)), sizes={"N": size})
    check(POOL, pool_group("MaxPool", (N, 16, 5, 6), (2, 2), strides=(2, 2)), sizes={"N": size})


def test_symbolic_extents():
    h, w = sym("H"), sym("W")
    sizes = {"N": 2, "H": 7, "W": 6}
    check(GEMM, conv_group((N, 16, h, w), (24, 16, 3, 3), pads=(1, 1, 1, 1), strides=(2, 1)), tile(), sizes=sizes)
    check(DEPTHWISE, conv_group((N, 16, h, w), (16, 1, 3, 3), pads=(1, 1, 1, 1), group=16), sizes=sizes)
    check(STEM, conv_group((N, 3, h, w), (16, 3, 3, 3), layout=Layout((0, 1, 2, 3)), pads=(1, 1, 1, 1)), sizes=sizes)


def test_part_of_a_concat():
    """A pitch that is no multiple of a wide access."""
    x = Layout((0, 2, 3, 1), pitch=37)
    check(GEMM, conv_group((1, 16, 5, 4), (24, 16, 3, 3), layout=x, pads=(1, 1, 1, 1)), tile())
    check(DEPTHWISE, conv_group((1, 16, 5, 4), (16, 1, 3, 3), layout=x, pads=(1, 1, 1, 1), group=16))


BOXES = [
    ((2, 64, 9, 7), (40, 64, 1, 1), {}),
    ((3, 32, 9, 7), (40, 32, 3, 3), {"pads": (1, 1, 1, 1), "residual": True}),
    ((2, 32, 10, 12), (32, 32, 3, 3), {"pads": (1, 0, 1, 0), "strides": (2, 2)}),
    ((2, 16, 10, 12), (32, 16, 1, 1), {"strides": (2, 2)}),
    ((1, 32, 20), (24, 32, 5), {"pads": (2, 2), "strides": (2,)}),
    ((1, 32, 3, 6, 6), (16, 32, 3, 3, 3), {"pads": (1,) * 6}),
    ((2, 32, 7, 12), (32, 32, 3, 3), {"pads": (2, 2, 2, 2), "strides": (1, 2), "dilations": (2, 2)}),
]


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize(("x", "w", "attrs"), BOXES)
def test_boxes(x, w, attrs, split):
    check(TMA, conv_group(x, w, **attrs), tile(bm=64, bk=16 if x[1] == 16 else 32, **({"split": split} if split > 1 else {})))


def test_boxes_of_a_symbolic_batch_and_of_a_concat():
    group = conv_group((N, 32, 5, 6), (24, 32, 3, 3), pads=(1, 1, 1, 1), layout=Layout((0, 2, 3, 1), pitch=40))
    check(TMA, group, tile(bk=32), sizes={"N": 3})


GROUPED = [
    ((2, 48, 6, 5), (48, 24, 3, 3), 2, 1), ((1, 32, 6, 5), (32, 4, 3, 3), 8, 4), ((1, 32, 6, 5), (64, 8, 1, 1), 4, 2),
    ((1, 24, 7), (24, 2, 3), 12, 4), ((1, 80, 4, 4), (160, 40, 3, 3), 2, 1), ((1, 8, 5, 5), (24, 1, 3, 3), 8, 8),
]  # fmt: skip


@pytest.mark.parametrize(("x", "w", "groups", "pack"), GROUPED)
def test_grouped(x, w, groups, pack):
    pads = (w[-1] // 2,) * (2 * (len(w) - 2))
    group = conv_group(x, w, pads=pads, group=groups)
    check(GEMM, group, tile(pack=pack))
    check(GEMM, group)


VECTORS = [
    ((1, 300, 1, 1), (9, 300, 1, 1), F16, {}),
    ((3, 20, 1, 1), (7, 20, 1, 1), BF16, {"residual": True}),
    ((1, 2500, 2, 1), (5, 2500, 1, 1), F32, {"bias": False}),
    ((1, 40, 3, 5), (16, 40, 1, 1), F16, {"strides": (2, 3)}),
    ((N, 16, 1), (1, 16, 1), F16, {"act": "Sigmoid"}),
]


@pytest.mark.parametrize(("x", "w", "kind", "attrs"), VECTORS)
def test_few_pixels(x, w, kind, attrs):
    group = conv_group(x, w, kind, **attrs)
    for config in VECTOR.configs(group, SM90)[:2]:
        check(VECTOR, group, config, sizes={"N": 2})


STEMS = [
    ((2, 3, 17, 15), (24, 3, 7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3), "image": F32, "layout": Layout((0, 1, 2, 3))}),
    ((1, 3, 10, 10), (20, 3, 3, 3), {"strides": (2, 2), "pads": (0, 0, 1, 1)}),
    ((2, 4, 9, 9), (72, 4, 3, 3), {"pads": (1, 1, 1, 1), "scale": True}),
    ((1, 1, 30), (16, 1, 11), {"pads": (5, 5)}),
    ((1, 1, 4, 9, 9), (8, 1, 3, 3, 3), {"pads": (1, 0, 1, 1, 0, 1), "layout": Layout((0, 1, 2, 3, 4))}),
    ((1, 3, 24, 24), (16, 3, 11, 11), {"strides": (4, 4), "pads": (2, 2, 2, 2)}),
]


@pytest.mark.parametrize(("x", "w", "attrs"), STEMS)
def test_stem(x, w, attrs):
    check(STEM, conv_group(x, w, **attrs))


def test_stem_in_fp32():
    check(STEM, conv_group((1, 3, 9, 9), (8, 3, 3, 3), F32, pads=(1, 1, 1, 1)))


WINDOWS = [
    ((2, 24, 9, 7), (3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 20, 11, 10), (5, 5), {"strides": (2, 2), "pads": (2, 2, 1, 2)}),
    ((1, 12, 5, 6), (7, 7), {"pads": (3, 3, 3, 3)}),
    ((2, 8, 13), (3,), {"pads": (1, 1), "dilations": (2,)}),
    ((1, 8, 4, 5, 6), (3, 3, 3), {"strides": (1, 2, 1), "pads": (1, 1, 1, 1, 0, 1)}),
    ((1, 8, 2, 12), (3, 17), {"pads": (1, 8, 1, 8)}),
    ((1, 40, 7, 7), (7, 7), {}),
    ((1, 1, 5, 5), (1, 1), {"strides": (2, 2)}),
]


@pytest.mark.parametrize("strip", [None, (2, 2), (1, 4)])
@pytest.mark.parametrize(("x", "kernel", "attrs"), WINDOWS)
def test_depthwise(x, kernel, attrs, strip):
    if strip is not None and len(kernel) == 3 and strip != (2, 2):
        pytest.skip("one strip of three axes is enough")
    group = conv_group(x, (x[1], 1, *kernel), group=x[1], act="HardSwish", **attrs)
    taps = int(np.prod(kernel))
    config = strip and (("bp", 8), ("bc", 16), ("th", 1 if taps > 30 else strip[0]), ("tw", strip[1]), ("warps", 2))
    check(DEPTHWISE, group, config or None)


@pytest.mark.parametrize("kind", [F32, BF16])
def test_depthwise_dtypes(kind):
    check(DEPTHWISE, conv_group((1, 24, 6, 7), (24, 1, 3, 3), kind, pads=(1, 1, 1, 1), group=24, residual=True))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("x", "kernel", "attrs"), WINDOWS)
def test_pool(op, x, kernel, attrs):
    check(POOL, pool_group(op, x, kernel, **attrs))


def test_mean_over_padding_leaves_out_what_ceil_mode_adds():
    attrs = {"strides": (2, 2), "pads": (1, 1, 2, 1), "count_include_pad": True, "ceil_extra": (1, 0)}
    check(POOL, pool_group("AveragePool", (2, 24, 10, 7), (3, 3), **attrs))


def test_maximum_keeps_nan():
    group = pool_group("MaxPool", (1, 8, 4, 4), (2, 2), F32)
    (x,) = operands(group, {})
    x[0, 3, 1, 2] = np.nan
    (got,) = run_group(group, POOL, POOL.configs(group, SM90)[0], [x], SM90)
    np.testing.assert_array_equal(got, expected(group, [x])[0])
    assert np.isnan(got[0, 3]).sum() == 4


ONE = [
    ((1, 32, 1, 1), (8, 32, 1, 1), {}), ((1, 32, 1, 1), (8, 32, 3, 3), {"pads": (1, 1, 1, 1)}), ((1, 32, 3, 4), (8, 32, 3, 4), {}),
    ((1, 32, 1, 1), (8, 32, 1, 1), {"pads": (1, 0, 0, 1), "strides": (2, 2)}), ((1, 32, 2, 5), (8, 32, 3, 3), {"pads": (1, 0, 0, 1)}),
    ((1, 32, 1, 5), (1, 32, 1, 5), {"bias": False}), ((1, 32, 1), (8, 32, 4), {"pads": (0, 3)}),
]  # fmt: skip


@pytest.mark.parametrize(("x", "w", "attrs"), ONE)
def test_one_output_position_of_one_image(x, w, attrs):
    """All axes of a tile's rows have the extent 1, and still there is an offset and a mask per row."""
    group = conv_group(x, w, residual=True, **attrs)
    check(GEMM, group, tile(swap=1))
    for tactic in (GEMM, TMA):
        if tactic.supports(group, SM90) is None:
            check(tactic, group, tile(bk=32))
            check(tactic, group, tile(bk=32, fetch=1))
    few = conv_group((1, 3, *x[2:]), (w[0], 3, *w[2:]), image=F32, **attrs)
    check(STEM, few)
    if VECTOR.supports(group, SM90) is None:
        check(VECTOR, group)
    check(DEPTHWISE, conv_group(x, (32, 1, *w[2:]), group=32, residual=True, **attrs))
    window = {k: v for k, v in attrs.items() if k != "bias"}
    for op in ("MaxPool", "AveragePool"):
        check(POOL, pool_group(op, x, w[2:], **window))


# ---------------------------------------------------------------- what is refused, and what is asked for
def test_reasons():
    assert "computed inside" in GEMM.supports(conv_group((1, 16, 4, 4), (16, 16, 3, 3), image=F32), SM90)
    assert "few channels" not in (STEM.supports(conv_group((1, 64, 4, 4), (16, 64, 1, 1)), SM90) or "")
    assert STEM.supports(conv_group((1, 64, 4, 4), (16, 64, 1, 1)), SM90) == "blocks of channels are better"
    assert DEPTHWISE.supports(conv_group((1, 8, 4, 4), (16, 1, 3, 3), group=8), SM90) == "channels are not filtered one by one"
    long = conv_group((1, 16, 40), (16, 16, 33))
    assert GEMM.supports(long, SM90) == "an axis of the filters has more than 31 taps"
    assert VECTOR.supports(conv_group((1, 16, 9, 9), (16, 16, 1, 1)), SM90) == "tiles of pixels are better"
    assert TMA.supports(conv_group((1, 16, 4, 4), (16, 16, 1, 1)), SM80) == "the target copies no tiles"
    uneven = conv_group((1, 32, 5, 4), (16, 32, 3, 3), strides=(2, 1))
    assert TMA.supports(uneven, SM90) == "an axis is no multiple of its stride"
    pitched = conv_group((1, 16, 4, 4), (16, 16, 1, 1), layout=Layout((0, 2, 3, 1), pitch=20))
    assert TMA.supports(pitched, SM90) == "rows of the image are not aligned"
    run_time = fused(lambda b: b.graph.add("Conv", (b.input(F16, 1, 8, 4, 4), b.input(F16, 8, 8, 1, 1)), {
        "strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "group": 1}, types=[TensorType(F16, (1, 8, 4, 4))]).outputs[0],
        "conv", "Conv")  # fmt: skip
    assert GEMM.supports(run_time, SM90) == "filters are computed at run time"


def test_layouts():
    group = conv_group((1, 16, 4, 4), (16, 16, 3, 3), residual=True)
    assert GEMM.layouts(group, SM90) == ((CHANNELS_LAST, ANY, ANY, CHANNELS_LAST), (CHANNELS_LAST,))
    stem = conv_group((1, 3, 8, 8), (16, 3, 3, 3), image=F32)
    assert STEM.layouts(stem, SM90) == ((ANY, ANY, ANY), (CHANNELS_LAST,))


@pytest.mark.parametrize("target", [SM80, SM90], ids=str)
@pytest.mark.parametrize("size", [1, 32])
def test_configurations_are_few_and_fit(target, size):
    for x, w, groups in [((64, 56), (256, 64, 1), 1), ((512, 7), (512, 512, 3), 1), ((168, 28), (168, 24, 3), 7), ((19, 5), (7, 19, 3), 1)]:
        group = conv_group((size, x[0], x[1], x[1]), (*w, w[-1]), pads=(w[-1] // 2,) * 4, group=groups)
        configs = GEMM.configs(group, target)
        assert 1 <= len(configs) <= 24 and len(set(configs)) == len(configs)
        for config in configs:
            given = dict(config)
            assert given["stages"] * (given["bm"] + given["bn"]) * given["bk"] * 2 <= target.shared_bytes


def test_packed_filters_have_channels_inside():
    group = conv_group((1, 16, 4, 4), (8, 16, 3, 3))
    packs = GEMM.packs(group, tile(), SM90)
    value = group.inputs[1]
    types = []
    for pack in packs:
        (type_,) = infer(pack.op, (value,), dict(pack.attrs))
        types.append(type_.shape)
        value = Body().graph.add_input("w", type_)
    assert types == [(8, 3, 3, 16), (8, 144)]
    assert GEMM.packs(conv_group((1, 16, 4, 4), (8, 16, 1, 1)), tile(), SM90) == ()


# ---------------------------------------------------------------- machine code
@functools.cache
def code(tactic: Tactic, target: Any, config: Config, x: tuple[int, ...], w: tuple[int, ...], folder: Path, **attrs: Any) -> list[str]:
    kernels = kernels_of(conv_group(x, w, **dict(attrs)), tactic, config, target)
    (compiled,) = aot(kernels, target).values()
    return sass(compiled, folder)


def test_machine_code_of_a_dense_convolution(tmp_path):
    config = tile(128, 64, 64, 3)
    text = code(GEMM, SM90, config, (8, 64, 56, 56), (64, 64, 3, 3), tmp_path, pads=(1, 1, 1, 1), residual=True)
    assert any("HGMMA" in line for line in text)
    assert any("LDGSTS" in line and ".128" in line for line in text)
    assert all(".128" in line for line in text if "LDGSTS" in line.split()[0])
    text = code(GEMM, SM80, config, (8, 64, 56, 56), (64, 64, 3, 3), tmp_path, pads=(1, 1, 1, 1), residual=True)
    assert any("HMMA" in line for line in text)
    assert not any("griddepcontrol" in line for line in text)


def test_machine_code_of_boxes(tmp_path):
    text = code(TMA, SM90, tile(128, 64, 64, 3), (8, 64, 56, 56), (64, 64, 3, 3), tmp_path, pads=(1, 1, 1, 1))
    assert any("HGMMA" in line for line in text) and any("UTMALDG" in line for line in text)
    assert not any("LDGSTS" in line for line in text)


def test_machine_code_of_a_depthwise_convolution(tmp_path):
    config = (("bp", 16), ("bc", 32), ("th", 2), ("tw", 2), ("warps", 2))
    text = code(DEPTHWISE, SM90, config, (1, 96, 28, 28), (96, 1, 3, 3), tmp_path, pads=(1, 1, 1, 1), group=96)
    assert sum("LDG.E.128" in line for line in text) >= 16
    assert any("STG.E.128" in line for line in text)


@pytest.mark.parametrize("target", [SM80, SM90], ids=str)
def test_first_configurations_compile_without_spills(target):
    kernels = []
    for tactic, x, w, attrs in [
        (GEMM, (1, 256, 14, 14), (256, 256, 3, 3), {"pads": (1, 1, 1, 1)}),
        (GEMM, (32, 256, 14, 14), (1024, 256, 1, 1), {"residual": True}),
        (GEMM, (1, 168, 28, 28), (168, 24, 3, 3), {"pads": (1, 1, 1, 1), "group": 7}),
        (STEM, (1, 3, 224, 224), (64, 3, 7, 7), {"pads": (3, 3, 3, 3), "strides": (2, 2), "image": F32, "layout": Layout((0, 1, 2, 3))}),
        (VECTOR, (1, 672, 1, 1), (28, 672, 1, 1), {"act": "HardSigmoid"}),
        (DEPTHWISE, (1, 480, 14, 14), (480, 1, 5, 5), {"pads": (2, 2, 2, 2), "group": 480, "act": "HardSwish"}),
    ]:
        group = conv_group(x, w, **attrs)
        kernels += kernels_of(group, tactic, tactic.configs(group, target)[0], target)
    aot(kernels, target)


# ---------------------------------------------------------------- fusion
def fusions(build: Any, target: Any = SM90) -> list[list[str]]:
    """Ops of each group of a module, by the target's own tactics."""
    module = built(build)
    fuse(module, target, reason_not_lowerable)
    return [[n.op for n in node.regions[0].nodes] for node in module.main.nodes if node.op == "Fusion"]


def test_scale_of_a_block_joins_its_projection():
    def block(b: Builder) -> Any:
        x = b.input(2, 16, 6, 6)
        scale = b("Sigmoid", b.input(2, 16, 1, 1))
        return b("Add", b.conv(b("Mul", x, scale), b.random(8, 16, 1, 1)), b.input(2, 8, 6, 6))

    assert fusions(block) == [["Sigmoid"], ["Mul", "Conv", "Add"]]
    assert fusions(block, Target.parse("cpu:generic"))[-1] == ["Conv", "Add"]


def test_scale_stays_outside_where_it_would_be_computed_once_per_tap():
    def block(b: Builder) -> Any:
        return b.conv(b("Mul", b.input(2, 16, 6, 6), b.input(2, 16, 1, 1)), b.random(8, 16, 3, 3))

    assert fusions(block) == [["Mul"], ["Conv"]]


def test_cast_joins_the_first_convolution():
    def entrance(b: Builder) -> Any:
        x = b("Cast", b.input(1, 3, 9, 9), to=F16)
        return b("Relu", b.conv(x, b.weight(np.ones((8, 3, 3, 3), np.float16)), strides=(2, 2)))

    assert fusions(entrance) == [["Cast", "Conv", "Relu"]]
