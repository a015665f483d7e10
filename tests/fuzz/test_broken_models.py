"""Damaged and hostile ONNX: every failure is a dovetail.Error with a message, and nothing is left behind."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.frontend.importer import import_onnx
from models import zoo

ROOT = Path(__file__).resolve().parents[2]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with a few changed, cut off, or some missing."""
    result = bytearray(data)
    kind = rng.integers(0, 3)
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            result[rng.integers(0, len(result))] = rng.integers(0, 256)
    elif kind == 1:
        del result[rng.integers(0, len(result)) :]
    else:
        start = rng.integers(0, len(result))
        del result[start : start + rng.integers(1, 8)]
    return bytes(result)


@pytest.mark.parametrize("name, count", [("dynamic_loop_if", 400), ("dynamic_unet", 40)])
def test_damaged_models_import_or_raise_a_model_error(name: str, count: int) -> None:
    data = zoo.load(name).SerializeToString()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(count):
        try:
            import_onnx(damaged(data, rng))
        except dovetail.ModelError as error:
            assert str(error)
            refused += 1
    assert refused > count / 10


def test_damaged_models_that_still_import_build_or_raise() -> None:
    data = zoo.load("dynamic_loop_if").SerializeToString()
    rng = np.random.default_rng(8)
    outcomes = {"built": 0, "refused": 0}
    for _ in range(60):
        try:
            dovetail.build(damaged(data, rng), verify="off", tune=False)
            outcomes["built"] += 1
        except dovetail.Error:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


def misused(source: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """The model with one node that is well-formed protobuf and wrong ONNX: other attributes, operands, operator or types."""
    result = onnx.ModelProto()
    result.CopyFrom(source)
    graph = result.graph
    chosen = graph.node[rng.integers(0, len(graph.node))]
    kind = rng.integers(0, 6)
    if kind == 0 and chosen.attribute:
        attribute = chosen.attribute[rng.integers(0, len(chosen.attribute))]
        odd = [-1, 0, 7, 2**40, [], [1, 2, 3, 4, 5], [-3, 0], 0.5, [0.5], "text", np.zeros((2, 0), np.int64)]
        value = odd[rng.integers(0, len(odd))]
        value = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        attribute.CopyFrom(helper.make_attribute(attribute.name, value, attr_type=onnx.AttributeProto.INTS if value == [] else None))
    elif kind == 1 and chosen.input:
        del chosen.input[rng.integers(0, len(chosen.input))]
    elif kind == 2 and chosen.input:
        chosen.input.insert(int(rng.integers(0, 3)), str(rng.choice(["", *chosen.input])))
    elif kind == 3:
        chosen.op_type = graph.node[rng.integers(0, len(graph.node))].op_type
    elif kind == 4 and graph.initializer:
        tensor = graph.initializer[rng.integers(0, len(graph.initializer))]
        array = numpy_helper.to_array(tensor)
        others = [array.reshape(-1), array[..., None], array.astype(np.float64), array.astype(np.int32), array.reshape(-1)[:0]]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(others[rng.integers(0, len(others))]), tensor.name))
    else:
        dims = graph.input[rng.integers(0, len(graph.input))].type.tensor_type.shape.dim
        if dims:
            dims[rng.integers(0, len(dims))].dim_value = int(rng.choice([0, 1, 3, 7, 2**40]))
    return result


@pytest.mark.parametrize("name, count", [("dynamic_loop_if", 250), ("dynamic_decoder_kv_cache", 25), ("dynamic_unet", 60)])
def test_misused_operators_import_or_raise_a_model_error(name: str, count: int) -> None:
    source = zoo.load(name)
    rng = np.random.default_rng(9)
    refused = 0
    for _ in range(count):
        try:
            import_onnx(misused(source, rng))
        except dovetail.ModelError as error:
            assert str(error)
            refused += 1
    assert refused > count / 10


def test_a_bug_in_an_importer_keeps_its_trace(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from dovetail.frontend import importer

    def broken(*arguments: object) -> None:
        raise TypeError("unhashable thing")

    monkeypatch.setattr(importer, "find_importer", lambda *key: broken)
    with caplog.at_level("DEBUG", "dovetail.import"), pytest.raises(dovetail.ModelError, match="unhashable thing") as caught:
        import_onnx(model(helper.make_node("Relu", ["x"], ["y"])))
    assert isinstance(caught.value.__cause__, TypeError)
    assert caught.value.__cause__.__traceback__ is not None
    assert "in broken" in caplog.text


def model(*nodes: onnx.NodeProto, weights: dict | None = None, opset: int = 17) -> onnx.ModelProto:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", info[:1], info[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


node = helper.make_node


@pytest.mark.parametrize(
    "broken, error, message",
    [
        (model(node("Relu", ["nowhere"], ["y"])), dovetail.ModelError, "'nowhere'"),
        (model(node("Relu", ["x"], ["z"])), dovetail.ModelError, "outputs"),
        (model(node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])), dovetail.ModelError, "twice"),
        (model(node("Relu", ["x"], ["y"]), opset=9999), dovetail.ModelError, "opset"),
        (model(node("Frobnicate", ["x"], ["y"])), dovetail.UnsupportedOpError, "Frobnicate"),
        (model(node("Transpose", ["x"], ["y"], perm=[0, 0])), dovetail.ModelError, "Transpose"),
        (model(node("Softmax", ["x"], ["y"], axis=7)), dovetail.ModelError, "Softmax"),
        (model(node("Concat", ["x", "w"], ["y"], axis=1), weights={"w": np.ones((4, 4), np.float32)}), dovetail.ModelError, "Concat"),
        (model(node("Add", ["x", "w"], ["y"]), weights={"w": np.ones((4, 4), np.float32)}), dovetail.ModelError, "Add"),
        (model(node("Relu", [], ["y"])), dovetail.ModelError, "Relu"),
        (model(node("Conv", ["x", "x"], ["y"])), dovetail.ModelError, "Conv"),
    ],
    ids=[
        "undefined-input", "missing-output", "defined-twice", "opset", "unknown-op", "perm", "axis", "concat", "broadcast",
        "no-input", "rank",
    ],
)
def test_invalid_graphs_name_what_is_wrong(broken: onnx.ModelProto, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        dovetail.build(broken, verify="off", tune=False)


def test_missing_external_data_names_the_file(tmp_path: Path) -> None:
    whole = model(node("Add", ["x", "w"], ["y"]), weights={"w": np.ones((2, 3), np.float32)})
    onnx.save_model(whole, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(dovetail.ModelError, match=r"w\.bin"):
        dovetail.build(tmp_path / "m.onnx")
    path = whole.graph.initializer[0]
    path.data_location = TensorProto.EXTERNAL
    path.ClearField("raw_data")
    path.external_data.add(key="location", value="../../etc/passwd")
    onnx.save(whole, tmp_path / "hostile.onnx")
    with pytest.raises(dovetail.ModelError, match="leaves the model's folder"):
        dovetail.build(tmp_path / "hostile.onnx")


HOSTILE = ['x"; system("true"); //', "x*/ int main(){} /*", "a\nb", "%s%n", "\u202e\u0000x", "k_0123456789abcdef", "../../x"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_never_reach_the_source(name: str, tmp_path: Path) -> None:
    whole = model(node("Relu", ["x"], [name], name=name), node("Exp", [name], ["y"]))
    engine = dovetail.build(whole, verify="off", tune=False)
    assert name not in engine.source or name.startswith("k_")
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(engine(x), np.exp(x), rtol=1e-6)
    engine.save(tmp_path / "m.plan")
    np.testing.assert_allclose(dovetail.load(tmp_path / "m.plan")(x), np.exp(x), rtol=1e-6)


_FULL_DISK = """
import resource, sys
from dovetail.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
sys.exit(main(["build", sys.argv[1], "-o", sys.argv[2], "-q"]))
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    weights = {"w": np.ones((3, 30000), np.float32)}
    whole = model(node("MatMul", ["x", "w"], ["m"]), node("ReduceMax", ["m"], ["y"], axes=[1]), weights=weights)
    onnx.save(whole, tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    # Writes beyond the limit fail as on a full disk: Python ignores SIGXFSZ.
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, tmp_path / "m.onnx", tmp_path / "out" / "m.plan"],
        cwd=ROOT / "src", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert list((tmp_path / "out").iterdir()) == []


_INTERRUPTED = """
import sys, _thread
from dovetail.cli import main
import dovetail.api as api
original = api.build
def build(model, **options):
    def progress(stage, done, total):
        if done == 3:
            raise KeyboardInterrupt
    return original(model, **options | {"progress": progress})
api.build = build
sys.exit(main(["build", sys.argv[1], "-o", sys.argv[2], "-q"]))
"""


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path) -> None:
    onnx.save(model(node("Relu", ["x"], ["y"])), tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, tmp_path / "m.onnx", tmp_path / "m.plan"],
        cwd=ROOT / "src", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr == "interrupted\n"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
