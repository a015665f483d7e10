"""Options of a build: devices, targets, precisions and levels, what does not fit together, and what a build refuses to call fp16."""

import argparse
import json

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail import builder
from dovetail.builder.flops import HOST, Work, actual_precision, require_precision
from dovetail.builder.machine_code import MachineCode
from dovetail.builder.options import BuildOptions, isa_of
from dovetail.builder.restore import options_of
from dovetail.cli import main, options
from dovetail.codegen.target import CpuTarget, CudaTarget
from dovetail.core.dims import sym
from dovetail.core.errors import BuildError, DeviceError, UsageError
from dovetail.device.cuda import Properties
from tests.unit.small_models import classifier


class FakeDriver:
    """A GPU that can be asked what it is."""

    def __init__(self, capability: int) -> None:
        self.properties = Properties(0, "Some GPU", capability, 100, 1 << 34, 13000)


def no_gpu(ordinal: int) -> None:
    raise DeviceError(f"cuda:{ordinal}: no driver")


@pytest.mark.parametrize(
    ("given", "target", "tf32"),
    [
        ({"target": "sm_90"}, "cuda:sm_90", False),
        ({"target": "cuda:sm_80", "precision": "fp16"}, "cuda:sm_80", False),
        ({"device": "cuda", "target": "sm_90", "precision": "tf32"}, "cuda:sm_90", True),
        ({"device": "cuda:3", "target": "cuda:sm_90", "precision": "bf16"}, "cuda:sm_90", False),
    ],
)
def test_a_gpu_by_name_needs_none_here(given, target, tf32, monkeypatch):
    monkeypatch.setattr("dovetail.device.cuda.driver", no_gpu)
    found = BuildOptions(**given).check()
    assert isinstance(found, CudaTarget) and str(found) == target and found.tf32 is tf32


@pytest.mark.parametrize(("capability", "isa"), [(80, "sm_80"), (86, "sm_86"), (87, "sm_86"), (89, "sm_89"), (90, "sm_90")])
def test_the_gpu_of_this_machine_is_asked(capability, isa, monkeypatch):
    asked = []
    monkeypatch.setattr("dovetail.device.cuda.driver", lambda ordinal: asked.append(ordinal) or FakeDriver(capability))
    assert BuildOptions(device="cuda:2", precision="fp16").check().isa == isa and asked == [2]
    assert BuildOptions(device="cuda:2").ordinal == 2


@pytest.mark.parametrize("capability", [61, 75, 100, 120])
def test_gpus_that_no_code_is_generated_for(capability):
    with pytest.raises(DeviceError, match=rf"compute capability {capability // 10}\.{capability % 10}, expected one of sm_80"):
        isa_of(0, "Some GPU", capability)


def test_no_gpu_and_no_target(monkeypatch):
    monkeypatch.setattr("dovetail.device.cuda.driver", no_gpu)
    with pytest.raises(DeviceError, match=r"cuda:1 cannot be asked.*no driver.*--target sm_90"):
        BuildOptions(device="cuda:1", precision="fp16").check()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "gpu"}, "device: got 'gpu', expected 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": "cuda:x"}, "device: got 'cuda:x'"),
        ({"device": "cpu:0"}, "device: got 'cpu:0'"),
        ({"precision": "int8"}, "precision: got 'int8', expected one of fp32, tf32, fp16, bf16"),
        ({"precision": "fp16"}, r"got 'fp16' for cpu:\S+, expected 'fp32'.*--target sm_90"),
        ({"precision": "tf32", "target": "cpu:avx2"}, "got 'tf32' for cpu:avx2"),
        ({"device": "cuda", "target": "cpu:avx2"}, "got 'cpu:avx2' for the device 'cuda'"),
        ({"target": "sm_50"}, "target: got 'sm_50'"),
        ({"optimization_level": 6}, "optimization_level: got 6, expected 0 to 5"),
        ({"time_budget": -1.0}, "time_budget: got -1.0"),
        ({"time_budget": float("nan")}, "time_budget: got nan"),
        ({"io_formats": {"x": "int8"}}, "io_formats: got 'int8' for 'x'"),
    ],
)
def test_options_that_do_not_fit(given, message):
    with pytest.raises(UsageError, match=message):
        BuildOptions(**given).check()


def test_the_default_is_this_cpu_in_fp32():
    given = BuildOptions()
    target = given.check()
    assert isinstance(target, CpuTarget) and target.supports_host()
    assert given.budget(target) == 6.0 and BuildOptions(time_budget=3.0).budget(target) == 3.0
    assert given.budget(BuildOptions(target="sm_90").check()) == 60.0


# ---------------------------------------------------------------------- the command line
def parsed(*words: str) -> dict:
    parser = argparse.ArgumentParser()
    options.add_build(parser)
    return options.build_options(parser.parse_args(words))


def test_options_of_the_command_line():
    words = "--device cuda:1 --bf16 -O5 --time-budget 9 --allow-fallback --io-format x=f16 a=b=channels_last"
    given = parsed(*words.split())
    assert (given["device"], given["precision"], given["optimization_level"]) == ("cuda:1", "bf16", 5)
    assert given["time_budget"] == 9.0 and given["allow_fallback"] is True
    assert given["io_formats"] == {"x": "f16", "a=b": "channels_last"}
    plain = parsed()
    assert (plain["device"], plain["precision"], plain["optimization_level"]) == ("cpu", "fp32", 3)
    assert plain["time_budget"] == 10.0 and plain["allow_fallback"] is False and plain["io_formats"] is None
    assert parsed("--precision", "tf32")["precision"] == parsed("--tf32")["precision"] == "tf32"
    assert parsed("--target", "sm_90")["time_budget"] is None


def test_a_format_without_a_name_is_bad_usage(capsys):
    with pytest.raises(SystemExit):
        parsed("--io-format", "f16")
    assert "expected NAME=FORMAT" in capsys.readouterr().err


def test_inspect_gives_arithmetic_by_element_type(tmp_path, capsys):
    dovetail.build(classifier(), tune=False, verify="off").save(tmp_path / "m.plan")
    assert main(["inspect", str(tmp_path / "m.plan"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["flops_by_dtype"] == {"f32": 2 * 16 * 12 * 12 * 27 + 2 * 16 * 5} and data["flops_at"] == {"N": 1}
    assert data["requested"]["precision"] == data["actual"]["precision"] == "fp32"
    assert data["inputs"][0] == {"name": "x", "dtype": "f32", "shape": ["N", 3, 12, 12], "order": []}


# ---------------------------------------------------------------------- asked and got
WORKS = [Work("conv (Conv)", "f16", 6 * sym("N")), Work("lstm (LSTM)", HOST, 10), Work("angle (MatMul)", "f32", 4)]


def test_most_of_the_arithmetic_must_be_in_the_precision_asked_for():
    asked = BuildOptions(target="sm_90", precision="fp16")
    reasons = {"lstm (LSTM)": "runs on the host: no tactic", "angle (MatMul)": "computes angles from positions"}
    require_precision(WORKS, asked, {"N": [1, None, 4]}, reasons)  # 24 of 38
    with pytest.raises(BuildError, match=r"only 30 % of the arithmetic .* fp16.*lstm \(LSTM\) .* in host: runs on the host.*angle"):
        require_precision(WORKS, asked, {}, reasons)
    require_precision(WORKS, BuildOptions(target="sm_90", precision="fp16", allow_fallback=True), {}, reasons)
    require_precision(WORKS, BuildOptions(target="sm_90", precision="tf32"), {}, reasons)
    require_precision([], asked, {}, {})
    assert actual_precision(WORKS, "fp16") == "fp32" and actual_precision(WORKS[:1], "fp16") == "fp16"


def coordinates() -> object:
    """y = cos(positions w): nothing in it should be fp16."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["a"], name="angle"),
        helper.make_node("Cos", ["a"], ["y"], name="cos"),
    ]
    graph = helper.make_graph(
        nodes, "angles", [helper.make_tensor_value_info("ids", TensorProto.INT64, [4, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(np.ones((2, 8), np.float32), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_build_that_cannot_be_fp16_fails_before_it_compiles(monkeypatch):
    monkeypatch.setattr("dovetail.builder.compile_plan", lambda *a: pytest.fail("compiled"))
    with pytest.raises(BuildError, match=r"only 0 % .*angle \(MatMul\).*computes angles from positions.*--allow-fallback"):
        builder.build(coordinates(), BuildOptions(target="sm_90", precision="fp16"))


def test_what_was_asked_for_is_recorded_and_repeated(monkeypatch):
    monkeypatch.setattr("dovetail.builder.compile_plan", lambda plan, *a: MachineCode(plan, "", None, None))  # type: ignore[arg-type]
    asked = BuildOptions(target="sm_90", precision="fp16", allow_fallback=True, io_formats={"ids": "row_major"})
    plan = builder.build(coordinates(), asked).plan
    report = plan.meta["report"]
    assert report["requested"]["precision"] == "fp16" and report["actual"]["precision"] == "fp32"
    assert {entry["node"]: entry["reason"] for entry in report["kept_in_fp32"]}["cos (Cos)"] == "angles need their low bits"
    again = options_of(plan)
    assert (again.target, again.precision, again.io_formats) == ("cuda:sm_90", "fp16", {"ids": "row_major"})
    assert options_of(builder.build(coordinates(), BuildOptions(target="sm_90", precision="tf32")).plan).check().tf32
