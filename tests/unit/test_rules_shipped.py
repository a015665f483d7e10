"""The rules of this package: where they fit, where they do not and why, and that outputs stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.unit.rule_models import applied, assert_same, copied, graph, node, operators

EXPORTS = Path(__file__).parent.parent / "samples" / "tensorflow"
RNG = np.random.default_rng(0)


def random(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------- dilated convolution
UNFOLDED = sorted(p for p in EXPORTS.glob("dilated_*.onnx") if "_folded" not in p.name)


def test_there_are_exports() -> None:
    assert len(UNFOLDED) >= 20


@pytest.mark.parametrize("path", UNFOLDED, ids=lambda p: p.stem)
def test_dilated_convolutions_of_tf2onnx(path: Path) -> None:
    model = onnx.load(path)
    before = copied(model)
    log = applied(model, "dilated-conv")
    assert log.fired == ("dilated-conv",) and not log.near_misses
    onnx.checker.check_model(model)
    found = operators(model)
    assert "SpaceToDepth" not in found and "DepthToSpace" not in found
    if "dynamic" not in path.name:
        assert not {"Pad", "Slice"} & set(found)  # both are padding of the convolution now
    (x,) = [v for v in model.graph.input if v.name not in {t.name for t in model.graph.initializer}]
    for free in ((1, 9, 11), (3, 16, 13)):
        shape = [d.dim_value or free[min(k, 2)] for k, d in enumerate(x.type.tensor_type.shape.dim)]
        assert_same(before, model, {x.name: random(*shape)}, 1e-5)


def dilated(
    strides: int = 1, block_out: int = 2, pads: tuple[int, ...] = (0, 0), crop: int = 1, mode: str = "constant", **conv: Any
) -> onnx.ModelProto:
    """A block with borders that are given, in the layout that tf2onnx chooses for any batch."""
    begin, end = pads
    nodes = [
        node("Transpose", "x", "t", perm=[3, 0, 1, 2]),
        node("Pad", "t pads", "p", mode=mode),
        node("SpaceToDepth", "p", "s", blocksize=2),
        node("Transpose", "s", "a", perm=[1, 0, 2, 3]),
        node("Conv", "a w", "c", strides=[strides, strides], **conv),
        node("Transpose", "c", "b", perm=[1, 0, 2, 3]),
        node("DepthToSpace", "b", "d", blocksize=block_out),
        node("Slice", "d starts ends axes", "e"),
        node("Transpose", "e", "y", perm=[1, 2, 3, 0]),
    ]
    weights = {
        "pads": np.array([0, 0, begin, begin, 0, 0, end, end]), "w": random(4, 3, 3, 3), "starts": np.array([0, 0]),
        "ends": np.array([-crop, -crop]), "axes": np.array([2, 3]),
    }  # fmt: skip
    return graph(nodes, {"x": ["N", 8, 10, 3]}, ["y"], weights)


def test_padding_beyond_cropping_and_padded_phases() -> None:
    model = dilated(pads=(2, 4), crop=1)
    before = copied(model)
    assert applied(model, "dilated-conv")
    (conv,) = [n for n in model.graph.node if n.op_type == "Conv"]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in conv.attribute}
    assert values["dilations"] == [2, 2] and values["pads"] == [2, 2, 3, 3]
    assert operators(model) == ["Transpose", "Conv", "Transpose"]
    assert_same(before, model, {"x": random(2, 8, 10, 3)}, 1e-5)


def test_borders_that_do_not_fold_stay_and_the_rest_is_rewritten() -> None:
    for model in (dilated(pads=(0, 0), crop=2), dilated(pads=(2, 4), mode="reflect")):
        before = copied(model)
        assert applied(model, "dilated-conv")
        assert "SpaceToDepth" not in operators(model) and {"Slice", "Pad"} & set(operators(model))
        assert_same(before, model, {"x": random(1, 8, 10, 3)}, 1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"strides": 2, "pads": (2, 4)}, "the convolution has strides [2, 2]"),
        ({"auto_pad": "SAME_UPPER", "pads": (2, 4)}, "auto_pad=SAME_UPPER"),
        ({"block_out": 1, "pads": (2, 4)}, "attribute 'blocksize': got 2, expected 1"),
    ],
)
def test_what_is_no_dilated_convolution_stays_with_the_reason(options: dict[str, Any], reason: str) -> None:
    model = dilated(**options)
    before = model.SerializeToString()
    log = applied(model, "dilated-conv")
    assert not log and model.SerializeToString() == before
    assert any(reason in miss.reason for miss in log.near_misses), log


def test_a_bias_per_pixel_is_not_moved() -> None:
    model = dilated(pads=(2, 4))
    nodes = list(model.graph.node)
    position = next(k for k, n in enumerate(nodes) if n.op_type == "Transpose" and n.input[0] == "c")
    model.graph.node.insert(position, node("Add", "c o", "plus"))
    model.graph.node[position + 1].input[0] = "plus"
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(4, 5, 6), "o"))
    log = applied(model, "dilated-conv")
    assert not log and any("expected one number per channel" in m.reason for m in log.near_misses), log


# ---------------------------------------------------------------------- the tail of DepthToSpace
def tail(perms: tuple[list[int], list[int]], middle: list[onnx.NodeProto], last: str, **options: Any) -> onnx.ModelProto:
    first, second = perms
    nodes = [node("DepthToSpace", "x", "d", blocksize=2), node("Transpose", "d", "t", perm=first), *middle]
    nodes.append(node("Transpose", last, "y", perm=second))
    weights = {
        "starts": np.array([0, 1]), "ends": np.array([-1, 2**31 - 1]), "axes": np.array([1, 2]), "bias": random(3),
        "plane": random(1, 7, 9, 3), "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    # The order [C, N, H, W] is that of tf2onnx around SpaceToBatchND.
    shape: list[int | str] = [3, 8, 4, 5] if first[0] == 1 else ["N", 12, 4, 5]
    return graph(nodes, {"x": shape}, ["y"], weights | options)


CUT, ADD, RELU = node("Slice", "t starts ends axes", "s"), node("Add", "s bias", "a"), node("Relu", "a", "r")
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


@pytest.mark.parametrize(
    ("perms", "middle", "last", "want"),
    [
        ((TO_LAST, TO_FIRST), [CUT, ADD, RELU], "r", ["DepthToSpace", "Reshape", "Slice", "Add", "Relu"]),
        (([1, 2, 3, 0], TO_FIRST), [CUT, ADD, RELU], "r", ["DepthToSpace", "Reshape", "Slice", "Add", "Relu", "Transpose"]),
        ((TO_LAST, TO_FIRST), [node("Clip", "t low high", "r")], "r", ["DepthToSpace", "Clip"]),
        ((TO_LAST, TO_FIRST), [CUT, node("Add", "plane s", "a")], "a", ["DepthToSpace", "Reshape", "Transpose", "Slice", "Add"]),
    ],
)
def test_tails_in_the_order_of_depth_to_space(perms: Any, middle: Any, last: str, want: list[str]) -> None:
    model = tail(perms, middle, last)
    before = copied(model)
    log = applied(model, "depth-to-space-tail")
    assert log.fired == ("depth-to-space-tail",) and operators(model) == want
    assert_same(before, model, {"x": random(*((3, 8, 4, 5) if perms[0][0] == 1 else (2, 12, 4, 5)))})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("behind", [False, True])
def test_tails_behind_a_convolution_go_into_it(mode: str, behind: bool) -> None:
    model = tail((TO_LAST, TO_FIRST), [CUT, ADD, RELU], "r")
    depth = model.graph.node[0]
    depth.attribute.append(onnx.helper.make_attribute("mode", mode))
    depth.input[0] = "q"
    model.graph.node.insert(0, node("Conv", "x w", "q"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(12, 12, 1, 1), "w"))
    want = ["Conv", "Tile", "Add", "Relu", "DepthToSpace", "Slice"]
    if behind:
        model.graph.node[-1].output[0] = "z"
        model.graph.node.append(node("Conv", "z v", "y"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(random(2, 3, 1, 1), "v"))
        want = ["Conv", "Tile", "Add", "Relu", "DepthToSpace", "Transpose", "Slice", "Transpose", "Conv"]
    before = copied(model)
    assert applied(model, "depth-to-space-tail")
    assert [o for o in operators(model) if o != "Reshape"] == want
    assert_same(before, model, {"x": random(2, 12, 4, 5)})


def test_tails_that_are_none_stay() -> None:
    other = tail((TO_LAST, TO_FIRST), [node("Softmax", "t", "s")], "s")
    log = applied(other, "depth-to-space-tail")
    assert not log and operators(other) == ["DepthToSpace", "Transpose", "Softmax", "Transpose"]
    unknown = tail((TO_LAST, TO_FIRST), [node("Add", "t z", "a")], "a")
    unknown.graph.input.append(onnx.helper.make_tensor_value_info("z", 1, ["M"]))
    log = applied(unknown, "depth-to-space-tail")
    assert "what is added is f32[M], expected a known one" in log.near_misses[0].reason
    between = tail((TO_LAST, TO_FIRST), [CUT, ADD, RELU], "r")
    between.graph.node[-1].output[0] = "z"
    between.graph.node.append(node("Conv", "z v", "y"))
    between.graph.initializer.append(onnx.numpy_helper.from_array(random(2, 3, 1, 1), "v"))
    assert "nothing gained" in applied(between, "depth-to-space-tail").near_misses[0].reason


# ---------------------------------------------------------------------- SpaceToDepth
def written_out(
    shape: list[int | str], blocks: list[int], perm: list[int], depth: list[int], image: bool = False, pad: bool = False
) -> onnx.ModelProto:
    nodes = [node("Reshape", "p b" if pad else "x b", "r"), node("Transpose", "r", "t", perm=perm)]
    nodes.append(node("Reshape", "t d", "o" if image else "y"))
    if pad:
        nodes.insert(0, node("Pad", "x pads", "p"))
    if image:
        nodes.append(node("Transpose", "o", "y", perm=TO_FIRST))
    return graph(nodes, {"x": shape}, ["y"], {"b": np.array(blocks), "d": np.array(depth), "pads": np.array([0, 0, 0, 1, 0, 0, 1, 0])})


@pytest.mark.parametrize(
    ("shape", "blocks", "perm", "depth", "options", "want"),
    [
        ([2, 3, 8, 6], [2, 3, 4, 2, 3, 2], [0, 3, 5, 1, 2, 4], [2, 12, 4, 3], {}, ["SpaceToDepth"]),
        ([2, 3, 7, 5], [2, 3, 4, 2, 3, 2], [0, 3, 5, 1, 2, 4], [2, 12, 4, 3], {"pad": True}, ["Pad", "SpaceToDepth"]),
        ([2, 3, 9, 6], [2, 3, 3, 3, 2, 3], [0, 3, 5, 1, 2, 4], [2, 27, 3, 2], {}, ["SpaceToDepth"]),
        (["N", 3, 8, 6], [-1, 3, 4, 2, 3, 2], [0, 3, 5, 1, 2, 4], [-1, 12, 4, 3], {}, ["SpaceToDepth"]),
        ([2, 8, 6, 3], [2, 4, 2, 3, 2, 3], [0, 1, 3, 2, 4, 5], [2, 4, 3, 12], {"image": True}, ["Transpose", "SpaceToDepth"]),
    ],
)
def test_space_to_depth_written_out(shape: Any, blocks: Any, perm: Any, depth: Any, options: Any, want: list[str]) -> None:
    model = written_out(shape, blocks, perm, depth, **options)
    before = copied(model)
    assert applied(model, "space-to-depth").fired == ("space-to-depth",)
    assert operators(model) == want
    assert_same(before, model, {"x": random(*[d if isinstance(d, int) else 2 for d in shape])})


@pytest.mark.parametrize(
    ("shape", "blocks", "perm", "depth", "reason"),
    [
        ([2, 3, 8, 6], [2, 3, 4, 2, 3, 2], [0, 1, 3, 5, 2, 4], [2, 12, 4, 3], "in another order than SpaceToDepth's"),
        ([2, 3, 8, 6], [2, 3, 4, 2, 2, 3], [0, 3, 5, 1, 2, 4], [2, 18, 4, 2], "not those of square blocks"),
        ([2, 3, 6, 8], [2, 3, 4, 2, 3, 2], [0, 3, 5, 1, 2, 4], [2, 12, 4, 3], "not those of square blocks"),
        ([2, 3, 8, 6], [2, 3, 4, 2, 3, 2], [0, 3, 5, 1, 2, 4], [24, 4, 3], "are not those of images in blocks"),
        ([2, 8, 6, 3], [2, 4, 2, 3, 2, 3], [0, 1, 3, 2, 4, 5], [2, 4, 3, 12], ""),  # windows of Swin: two Transposes would be added
        ([2, 8, 6, 3], [2, 4, 2, 3, 2, 3], [0, 2, 4, 1, 3, 5], [2, 4, 3, 12], ""),
    ],
)
def test_what_is_no_space_to_depth_stays(shape: Any, blocks: Any, perm: Any, depth: Any, reason: str) -> None:
    model = written_out(shape, blocks, perm, depth)
    log = applied(model, "space-to-depth")
    assert not log and [reason in m.reason for m in log.near_misses] == [True] * bool(reason), log
