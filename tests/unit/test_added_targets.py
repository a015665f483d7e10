"""One engine file for several targets: added one after the other, each with its own report, opened by what is there."""

import numpy as np
import pytest
from onnx import helper

import dovetail
from dovetail.cli import main
from dovetail.core.errors import EngineError
from dovetail.engine.file import EngineFile
from tests.unit.plugin_models import F32, onnx_model


def model(scale=1.0, size=5):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="/m"), helper.make_node("Softmax", ["m"], ["y"], name="/s")]
    w = (scale * np.random.default_rng(0).standard_normal((6, size))).astype(np.float32)
    return onnx_model(nodes, {"x": (F32, ["N", 6])}, ["y"], {"w": w})


X = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)


def test_a_file_for_cpus_and_a_gpu(tmp_path) -> None:
    path = tmp_path / "m.plan"
    first = dovetail.build(model(), tune=False, verify="off")
    first.save(path)
    want = first.run({"x": X})["y"]
    for target, precision in (("cpu:generic", "fp32"), ("cuda:sm_90", "fp16"), ("cuda:sm_80", "fp16")):
        dovetail.build(model(), target=target, precision=precision, allow_fallback=True, tune=False, verify="off").add_to(path)
    file = EngineFile(path)
    file.container.verify()
    assert set(file.targets) == {first.report().data["actual"]["target"], "cpu:generic", "cuda:sm_90", "cuda:sm_80"}
    assert file.info_of("cuda:sm_90")["requested"]["precision"] == "fp16" and file.info["requested"]["precision"] == "fp32"
    here = dovetail.load(path)
    assert here.report().data["actual"]["target"] == first.report().data["actual"]["target"]
    assert np.array_equal(here.run({"x": X})["y"], want)
    plain = dovetail.load(path, target="cpu:generic")
    assert np.allclose(plain.run({"x": X})["y"], want, rtol=1e-5) and plain.info["requested"]["target"] == "cpu:generic"
    # Refits reach every target.
    dovetail.refit_file(path, {"w": np.zeros((6, 5), np.float32)}, tmp_path / "n.plan")
    for target in (None, "cpu:generic"):
        assert np.allclose(dovetail.load(tmp_path / "n.plan", target=target).run({"x": X})["y"], 0.2)


@pytest.mark.parametrize("other, why", [(model(size=7), "another model"), (model(scale=2.0), "other weights")])
def test_another_model_is_refused_and_the_file_stays(tmp_path, other, why) -> None:
    path = tmp_path / "m.plan"
    dovetail.build(model(), tune=False, verify="off").save(path)
    before = path.read_bytes()
    with pytest.raises(EngineError, match=why):
        dovetail.build(other, target="cpu:generic", tune=False, verify="off").add_to(path)
    assert path.read_bytes() == before


def test_the_verb(tmp_path, capsys) -> None:
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    plan = str(tmp_path / "m.plan")
    common = [str(tmp_path / "m.onnx"), "-o", plan, "--no-tune", "--verify", "off"]
    assert main(["build", *common]) == 0
    assert main(["build", *common, "--add", "--target", "cpu:generic"]) == 0
    assert len(EngineFile(plan).targets) == 2
    assert main(["build", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "missing.plan"), "--add", "--no-tune", "--verify", "off"]) == 1
    assert "missing.plan" in capsys.readouterr().err
