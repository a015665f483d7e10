"""What torch's fp16 error is measured with (bench/gpu/eager_*.py), as far as that needs no torch."""

import zipfile

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench.gpu.eager_error import allowed, entries
from bench.gpu.eager_onnx import Composed, missing
from models import zoo

ROWS = [
    {"model": "b", "fp16": {"y": 0.00412, "z": 0.001}, "fp32 from ONNX Runtime": {"y": 1e-6}},
    {"model": "a", "fp16": {"y": 0.0013}, "fp32 from ONNX Runtime": {"y": 1e-6}},
    {"model": "c", "fp16": {"y": float("nan")}},
    {"model": "d", "fp16": {"y": 0.9}, "fp32 from ONNX Runtime": {"y": 0.06}},
    {"model": "e", "error": "no torch function for X"},
]


def graph(name: str) -> onnx.GraphProto:
    """A shared model's graph without weights: seeding them takes longer than all else here."""
    with zipfile.ZipFile(zoo.ARCHIVE) as archive:
        return onnx.load_from_string(archive.read(f"{name}.onnx")).graph


def composed(proto: onnx.GraphProto) -> Composed:
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.initializer if t.doc_string != "stripped"}
    constants = {n.output[0]: n.attribute[0].t for n in proto.node if n.op_type == "Constant"}
    return Composed(proto.node, arrays | {k: numpy_helper.to_array(t) for k, t in constants.items()})


@pytest.mark.parametrize("name", zoo.names())
def test_all_operators_of_the_shared_models_are_known(name: str) -> None:
    assert not missing(graph(name))


def test_unknown_operators_are_found_in_branches() -> None:
    inner = helper.make_graph([helper.make_node("Det", ["x"], ["y"])], "g", [], [])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    assert missing(helper.make_graph([node, helper.make_node("Relu", ["y"], ["z"])], "g", [], [])) == {"Det"}


@pytest.mark.parametrize(
    ("name", "roots"),
    [
        ("torchvision_vit_b_16", {"Mul": 12, "Softmax": 12}),  # gelu, attention
        ("transformers_t5_opset20", {"Mul": 12, "Softmax": 6}),  # RMS norms, attention
        ("transformers_llama_tiny_opset20", {"Mul": 7, "Softmax": 2}),
        ("dynamic_decoder_kv_cache", {"Mul": 7, "Cos": 1, "Sin": 1}),
        ("torchvision_resnet50", {}),
    ],
)
def test_what_modules_compute_in_fp32(name: str, roots: dict[str, int]) -> None:
    proto = graph(name)
    found = composed(proto).roots
    kinds = [n.op_type for n in proto.node if n.output[0] in found]
    assert {k: kinds.count(k) for k in kinds} == roots


@pytest.mark.parametrize(("other", "matches"), [("x", True), ("z", False)])
def test_a_name_in_a_pattern_is_one_value(other: str, matches: bool) -> None:
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["s", other], ["y"])]
    found = Composed(nodes, {})
    assert (found.within, found.roots) == (({"s", "y"}, {"y"}) if matches else (set(), set()))


def test_a_number_in_a_pattern_is_that_constant() -> None:
    nodes = [
        helper.make_node("Div", ["x", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["one", "e"], ["a"]),
        helper.make_node("Mul", ["a", "x"], ["m"]),
        helper.make_node("Mul", ["half", "m"], ["y"]),
    ]
    arrays = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    assert Composed(nodes, {k: np.asarray(v) for k, v in arrays.items()}).within == {"d", "e", "a", "m", "y"}
    assert not Composed(nodes, {k: np.asarray(v) for k, v in (arrays | {"half": np.float32(1)}).items()}).within


def test_limits_and_entries() -> None:
    assert [allowed(r) for r in ROWS] == pytest.approx([1.5 * 0.00412, 2e-3, 2e-3, 2e-3, 2e-3])
    assert entries(ROWS) == '    "b": 0.0041,'
