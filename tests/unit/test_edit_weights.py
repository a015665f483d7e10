"""Weights of edited models: stripped and restored, left in their files, handed to custom operators."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

import dovetail
from dovetail.model.edit import checked, stripping
from dovetail.plugins import unregister
from tests.unit.edit_models import info, inputs, model_of, ops, outputs

X = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)


def two_layers() -> dovetail.Model:
    """x[N, 64] → MatMul w1 → h → Relu → r → Reshape to [-1, 64] → MatMul w2 → y[N, 64]."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((64, 64)).astype(np.float32),
        "w2": rng.standard_normal((64, 64)).astype(np.float32),
        "to": np.array([-1, 64], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="/first"),
        helper.make_node("Relu", ["h"], ["r"], name="/relu"),
        helper.make_node("Reshape", ["r", "to"], ["f"], name="/flat"),
        helper.make_node("MatMul", ["f", "w2"], ["y"], name="/second"),
    ]
    return model_of(nodes, [info("x", ["N", 64])], [info("y", ["N", 64])], weights)


@pytest.fixture
def external(tmp_path: Path) -> dovetail.Model:
    """The same with all weights, the shape too, in a file of their own."""
    onnx.save(two_layers().proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    return dovetail.Model.load(tmp_path / "m.onnx")


def places(model: dovetail.Model) -> dict[str, bool]:
    return {t.name: t.data_location == TensorProto.EXTERNAL for t in model.proto.graph.initializer}


# ---------------------------------------------------------------------- strip and restore
def test_strip_keeps_names_types_and_hashes() -> None:
    model = two_layers()
    bare = model.strip()
    assert bare.proto.ByteSize() < 1500 < 32 * 1024 < model.proto.ByteSize()
    assert stripping.stripped(bare.proto) == {n: stripping.digest(model.weights[n]) for n in ("w1", "w2")}
    assert bare.weights["to"].tolist() == [-1, 64] and inputs(bare) == inputs(model)
    with pytest.raises(dovetail.ModelError, match=r"initializer 'w1': its values were stripped; put them back: dovetail edit restore"):
        bare.weights["w1"]
    renamed = bare.rename({"x": "image"})  # a stripped model can be edited
    assert renamed.restore(model).proto.graph.initializer == model.proto.graph.initializer


@pytest.mark.parametrize("kind", ["model", "onnx", "npz", "safetensors", "mapping", "external"])
def test_restore_from(kind: str, tmp_path: Path, external: dovetail.Model) -> None:
    model = two_layers()
    arrays = {name: np.array(model.weights[name]) for name in ("w1", "w2")}
    sources: dict[str, object] = {"model": model, "mapping": arrays, "external": tmp_path / "m.onnx"}
    if kind == "onnx":
        model.save(tmp_path / "w.onnx")
    elif kind == "npz":
        np.savez(tmp_path / "w.npz", **arrays)
    elif kind == "safetensors":
        save_file(arrays, tmp_path / "w.safetensors")
    whole = model.strip().restore(sources.get(kind, tmp_path / f"w.{kind}"))
    assert all(np.array_equal(whole.weights[name], model.weights[name]) for name in model.weights)
    assert places(whole)["w1"] == (kind == "external")  # referred to where it lies
    whole.save(tmp_path / "whole.onnx")
    assert checked.same(model, dovetail.Model.load(tmp_path / "whole.onnx"), "restore") == 0


def test_restore_lists_all_that_does_not_fit() -> None:
    model = two_layers()
    bare = model.strip()
    with pytest.raises(dovetail.UsageError) as caught:
        bare.restore({"w1": np.zeros((64, 63), np.float32), "W2": model.weights["w2"]})
    assert "2 of 2 weights do not fit" in str(caught.value)
    assert "'w1' is float32[64, 63], expected float32[64, 64]" in str(caught.value)
    assert "'w2' is missing; did you mean 'w1' or 'W2'?" in str(caught.value)
    other = {"w1": model.weights["w1"], "w2": model.weights["w2"] + 1}
    with pytest.raises(dovetail.UsageError, match=r"'w2' has other values than were stripped"):
        bare.restore(other)
    assert np.array_equal(bare.restore(other, verify=False).weights["w2"], other["w2"])
    named = bare.restore({"w1": model.weights["w1"], "second": model.weights["w2"]}, names={"w2": "second"})
    assert np.array_equal(named.weights["w2"], model.weights["w2"])
    for call, message in (
        (bare.strip, "stripped already"),
        (lambda: model.restore(model), "nothing to restore"),
        (lambda: bare.restore(bare), "is stripped there, too"),
        (lambda: bare.restore(3), "got a int, expected a model"),
        (lambda: bare.restore({}, names={"w3": "x"}), "got a name for 'w3'"),
        (lambda: model.strip(least=10), "expected at least 1024"),
        (lambda: model.strip(least=1 << 20), "nothing to strip"),
    ):
        with pytest.raises(dovetail.UsageError, match=message):
            call()


# ---------------------------------------------------------------------- weights in files
@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.extract(outputs=["r"]), lambda m: m.replace(["h"], ["r"], "Elu"), lambda m: m.replace_op("Relu", "Elu"),
        lambda m: m.insert("h", "Neg"), lambda m: m.delete(["/relu"]), lambda m: m.rename({"w1": "first"}, prefix="p", of=["nodes"]),
        lambda m: m.set_shape({"x": (8, 64)}), lambda m: m.set_dtype("f16"), lambda m: m.convert_opset(21), lambda m: m.batch(4),
        lambda m: m.mark_output(["h"]),
    ],
)  # fmt: skip
def test_weights_stay_in_their_files(edit: Callable[[dovetail.Model], dovetail.Model], external: dovetail.Model, tmp_path: Path) -> None:
    result = edit(external)
    where = places(result)
    assert where.pop("to", False) is False  # what shapes depend on is read
    assert all(where.values()) and where
    assert outputs(result) == outputs(edit(two_layers()))  # shape inference saw as much
    (tmp_path / "elsewhere").mkdir()
    result.save(tmp_path / "elsewhere" / "new.onnx")
    written = dovetail.Model.load(tmp_path / "elsewhere" / "new.onnx")
    assert all(np.array_equal(written.weights[n], result.weights[n]) for n in result.weights)


def test_results_with_weights_in_files_are_compared(external: dovetail.Model) -> None:
    assert checked.same(external, external.convert_opset(21), "convert-opset") == 0
    wrong = external.copy()
    wrong.weights["w2"] = np.zeros((64, 64), np.float32)
    with pytest.raises(dovetail.VerificationError, match="output 'y' differs"):
        checked.same(external, wrong, "rename")
    assert ops(external.replace(["h"], ["y"], two_layers().extract(["h"], ["y"]))) == ops(external)


# ---------------------------------------------------------------------- a layer by a plugin
def test_a_replaced_layer_runs_as_a_plugin() -> None:
    @dovetail.plugin("EditTestCube")
    def cube(x: np.ndarray) -> np.ndarray:
        return x * x * x

    @cube.shape
    def cube_shape(x: object) -> object:
        return x.shape  # type: ignore[attr-defined]

    try:
        model = two_layers().replace(["h"], ["r"], "EditTestCube", domain="my.ops")
        got = dovetail.build(model, tune=False, verify="off").run({"x": X})["y"]
        weights = two_layers().weights
        assert np.allclose(got, (X @ weights["w1"]) ** 3 @ weights["w2"], rtol=1e-3, atol=1e-1)
        assert checked.same(model, model.rename({"w1": "first"}), "rename") == 0
    finally:
        unregister("EditTestCube")
