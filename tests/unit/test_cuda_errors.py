"""Bad input of users with and without a GPU: one clear error each, nothing lost, no half-written file; and every verb on a GPU."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import dovetail
from dovetail.cli import main
from dovetail.core.env import inherited, override
from dovetail.core.errors import BindingError, DeviceError, PlanFormatError, ShapeError, UsageError
from dovetail.engine import cubins
from dovetail.engine.file import EngineFile
from dovetail.runtime.cuda.arrays import DeviceArray
from dovetail.tuner import cuda_choose, cuda_time
from tests.unit.cuda_device import plug_in, pull_out

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
TARGET = "sm_90"
W, B = (np.random.default_rng(i).standard_normal(s).astype(np.float32) for i, s in enumerate(((40, 24), (24,))))


def small_model() -> onnx.ModelProto:
    """relu(x w + b) of up to 64 rows."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="/fc"), helper.make_node("Add", ["m", "b"], ["a"], name="/add"),
        helper.make_node("Relu", ["a"], ["y"], name="/relu"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 24])],
        [numpy_helper.from_array(W, "w"), numpy_helper.from_array(B, "b")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, and engines of it for a GPU (untuned, built without one) and for the CPU."""
    folder = tmp_path_factory.mktemp("engines")
    onnx.save(small_model(), folder / "model.onnx")
    with pytest.MonkeyPatch.context() as patch:
        pull_out(patch)
        dovetail.build(folder / "model.onnx", target=TARGET, shapes={"x": ("1..64", 40)}).save(folder / "gpu.plan")
    dovetail.build(folder / "model.onnx", tune=False, verify="off").save(folder / "cpu.plan")
    return folder


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pull_out(monkeypatch)


def feeds(rows: int = 3) -> dict[str, Any]:
    return {"x": np.random.default_rng(rows).standard_normal((rows, 40)).astype(np.float32)}


def expected(rows: int = 3) -> np.ndarray[Any, Any]:
    return np.maximum(feeds(rows)["x"] @ W + B, 0)


def check(engine: dovetail.Engine) -> None:
    """It computes what it should."""
    np.testing.assert_allclose(engine.run(feeds())["y"], expected(), rtol=1e-5, atol=1e-5)


def verb(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# ---------------------------------------------------------------------- without a GPU
def test_an_engine_for_a_gpu_that_is_not_here_is_built_and_kept(files, no_gpu, tmp_path):
    engine = dovetail.build(small_model(), target=TARGET)
    assert engine.report().json()["actual"]["tuned"] is False
    for use in (engine.run, engine.profile, engine.bench, lambda x: engine.context(), engine.run_async,
                lambda x: engine.verify(), lambda x: engine.tap(["m"], x)):  # fmt: skip
        with pytest.raises(DeviceError, match=r"the engine is for cuda:sm_90, which is not here .*save it and load it there"):
            use(feeds())
    engine.refit({"b": 2 * B})  # what is derived from weights is made where the engine runs
    np.testing.assert_array_equal(engine.weight("b"), 2 * B)
    engine.save(tmp_path / "e.plan")
    np.testing.assert_array_equal(EngineFile(tmp_path / "e.plan").weights()["b"], 2 * B)
    with pytest.raises(DeviceError, match=r"e.plan: the engine is for cuda:sm_90, which cannot be used here: .*no usable NVIDIA driver"):
        dovetail.load(tmp_path / "e.plan")


@pytest.mark.parametrize("name", ["run", "bench", "profile", "verify", "tune", "compare"])
def test_verbs_that_need_the_gpu_say_so(name, files, no_gpu, capsys):
    before = (files / "gpu.plan").read_bytes()
    others = [files / "cpu.plan"] if name == "compare" else []
    code, _, err = verb(capsys, name, files / "gpu.plan", *others)
    assert code == 1 and err.count("error:") == 1 and "Traceback" not in err
    assert "gpu.plan: the engine is for cuda:sm_90" in err and "install the driver" in err
    code, out, _ = verb(capsys, name, files / "gpu.plan", *others, "--json")
    assert code == 1 and json.loads(out)["error"]["type"] == "DeviceError"
    assert (files / "gpu.plan").read_bytes() == before, "nothing is lost"


@pytest.mark.parametrize("name", ["run", "bench", "profile", "verify", "tune"])
def test_an_engine_for_another_kind_of_device_than_asked_for(name, files, no_gpu, capsys):
    code, _, err = verb(capsys, name, files / "cpu.plan", "--device", "cuda")
    assert code == 2 and "cpu.plan: got the device cuda, expected one that runs cpu:" in err and "build the engine for it" in err
    code, _, err = verb(capsys, name, files / "gpu.plan", "--device", "toaster")
    assert code == 2 and "device: got 'toaster', expected 'cpu', 'cuda' or 'cuda:N'" in err
    if name in ("verify", "tune"):
        code, _, err = verb(capsys, name, files / "model.onnx")
        assert code == 2 and "model.onnx: got a file that is no engine, expected one; build it first: dovetail build" in err


def test_engine_files_run_on_the_gpu_that_is_named(files, monkeypatch, capsys):
    first, second = plug_in(monkeypatch), plug_in(monkeypatch, ordinal=1)
    before = dict(first.log)
    for name, options in (("run", []), ("profile", ["--runs", "1"]), ("bench", ["--rounds", "2", "--round-s", "0"]), ("verify", [])):
        seen = sum(second.log.values())
        code, _, err = verb(capsys, name, files / "gpu.plan", "--device", "cuda:1", *options)
        assert code == 0 and sum(second.log.values()) > seen, err
    assert first.log == before, "cuda:0 is not touched"


def test_verbs_that_only_look_need_none(files, no_gpu, capsys):
    code, out, _ = verb(capsys, "inspect", files / "gpu.plan")
    assert code == 0 and "cuda:sm_90" in out
    code, out, _ = verb(capsys, "explain", files / "gpu.plan", "--node", "/fc")
    assert code == 0 and "first by rule (not measured)" in out
    code, out, _ = verb(capsys, "inspect", files / "gpu.plan", "--kernel", "/fc")
    assert code == 0 and "tl.dot" in out and out.startswith("# k_") and "registers and 0 spilled bytes" in out
    code, out, _ = verb(capsys, "inspect", files / "gpu.plan", "--kernel", "/fc", "--json")
    found = json.loads(out)
    assert found["registers"] >= 16 and found["spilled_bytes"] == 0 and found["shared_bytes"] > 0 and found["threads"] % 32 == 0
    code, out, _ = verb(capsys, "doctor")
    assert code == 0 and "optional" in next(line for line in out.splitlines() if line.startswith("| gpu"))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--device", "cuda"], "cuda:0 cannot be asked for its compute capability: .*name it: target='sm_90'"),
        (["--device", "cuda:1", "--fp16"], "cuda:1 cannot be asked"),
        (["--target", "sm_75"], "got 'sm_75', expected .*cuda:sm_80"),
        (["--device", "gpu"], "got 'gpu', expected 'cpu', 'cuda' or 'cuda:N'"),
        (["--target", "sm_90", "--fp16", "--bf16"], "--bf16: not allowed with argument --fp16"),
        (["--fp16"], "a CPU computes in fp32 so far; build with device='cuda'"),
        (["--target", "sm_90", "--time-budget", "-1"], "time_budget: got -1.0"),
        (["--target", "sm_90", "--time-budget", "nan"], "time_budget: got nan"),
    ],
)  # fmt: skip
def test_builds_that_cannot_be_had_leave_nothing(options, message, files, no_gpu, capsys, tmp_path):
    import re

    for target in ("new.plan", "old.plan"):
        path = tmp_path / target
        if target == "old.plan":
            path.write_bytes(b"kept")
        code, _, err = verb(capsys, "build", files / "model.onnx", "-o", path, *options)
        assert code in (1, 2) and re.search(message, err), err
        assert [p.name for p in tmp_path.iterdir()] == ([target] if target == "old.plan" else [])
    assert path.read_bytes() == b"kept"


def test_kernels_are_not_made_again_for_a_gpu_that_is_not_here(files, no_gpu, monkeypatch, tmp_path):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled for nothing")

    monkeypatch.setattr("dovetail.api.loading._make_again", never)
    with override(home=tmp_path / "stranger"), pytest.raises(DeviceError, match=r"gpu.plan: the engine is for cuda:sm_90"):
        dovetail.load(files / "gpu.plan")


def test_without_triton_builds_for_a_gpu_say_so_and_those_for_the_cpu_go_on(no_gpu, monkeypatch):
    import importlib.metadata

    version = importlib.metadata.version

    def missing(name: str) -> str:
        if name == "triton":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(dovetail.CompileError, match=r"triton package is not installed, .* pip install 'dovetail\[cuda\]'"):
        dovetail.build(small_model(), target=TARGET)
    check(dovetail.build(small_model(), tune=False, verify="off"))


def test_the_cpu_needs_neither_triton_nor_cuda(files):
    code = (
        "import sys, numpy as np, dovetail\n"
        f"engine = dovetail.load({str(files / 'cpu.plan')!r})\n"
        "engine.run({'x': np.zeros((2, 40), np.float32)})\n"
        f"dovetail.build({str(files / 'model.onnx')!r}, tune=False, verify='off').run({{'x': np.zeros((2, 40), np.float32)}})\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('triton', 'cuda', 'torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def members(path: Path) -> dict[str, bytes]:
    """What an engine file holds, but for the record of its build, the signature, and the manifest, which has hashes of both."""
    with zipfile.ZipFile(path) as box:
        return {n: box.read(n) for n in box.namelist() if n.rpartition("/")[2] not in ("build.json", "signature", "manifest.json")}


def wide_model(*shape: int | str) -> onnx.ModelProto:
    """relu(x) of a shape."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="/relu")], "wide", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_tensors_that_no_kernel_of_a_gpu_can_index(no_gpu):
    options: Any = {"target": TARGET, "verify": "off"}
    for model, shapes in ((wide_model(1 << 16, 1 << 15), None), (wide_model("N", 1 << 15), {"x": (f"{1 << 16}..{1 << 17}", 1 << 15)})):
        with pytest.raises(dovetail.BuildError, match=r"/relu: got a tensor of f32.*, which reaches 2147483648 elements, .*smaller"):
            dovetail.build(model, shapes=shapes, **options)
    dovetail.build(wide_model("N", 1 << 15), shapes={"x": (f"1..{1 << 17}", 1 << 15)}, **options)  # most runs are small
    dovetail.build(wide_model(1 << 15, 1 << 15), **options)


def test_builds_are_equal_byte_for_byte(files, tmp_path):
    """In another process, with another order of sets, and with kernels that are compiled again."""
    arguments = ["build", str(files / "model.onnx"), "-o", str(tmp_path / "again.plan"), "--target", TARGET, "--shapes", "x:[1..64,40]"]
    code = f"import sys; from dovetail.cli import main; sys.exit(main({arguments!r}))"
    changed = inherited(DOVETAIL_CACHE=str(tmp_path / "cache"), PYTHONHASHSEED="7", PYTHONPATH=str(ROOT / "src"), CUDA_VISIBLE_DEVICES="")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=changed, cwd=tmp_path)
    first, again = members(files / "gpu.plan"), members(tmp_path / "again.plan")
    assert {"targets/cuda-sm_90/kernels.cubins", "targets/cuda-sm_90/plan.json", "graph.ir"} <= set(first)
    assert [n for n in {**first, **again} if first.get(n) != again.get(n)] == []


class Noisy:
    """A timer that never gives the same time twice."""

    environment = "noisy"

    def __init__(self) -> None:
        self.rng, self.calls = np.random.default_rng(), 0

    def measure(self, contenders: Any, machine: Any, sizes: Any) -> list[float]:
        self.calls += 1
        return list(self.rng.uniform(1.0, 1.1, len(contenders)))

    def start(self) -> None:
        pass

    close = start

    def network(self, groups: Any, machine: Any) -> Noisy:
        return self

    def compare(self, choices: Any, replays: int) -> list[float]:
        self.calls += 1
        return list(self.rng.uniform(1.0, 2.0, len(choices)))


def test_the_same_timing_cache_gives_the_same_engine(files, no_gpu, monkeypatch, tmp_path):
    timer = Noisy()
    monkeypatch.setattr("dovetail.api.building._timer", lambda options, target: timer)
    monkeypatch.setattr(cuda_choose, "CANDIDATES", (1, 3, 3, 3, 3, 3))
    with override(cache=tmp_path / "cache"):
        dovetail.build(files / "model.onnx", target=TARGET, optimization_level=2).save(tmp_path / "first")
        calls = timer.calls
        dovetail.build(files / "model.onnx", target=TARGET, optimization_level=2).save(tmp_path / "again")
    assert timer.calls == calls >= 1, "the second build knows all times"
    first, again = members(tmp_path / "first"), members(tmp_path / "again")
    assert first == again and b"measured_us" in first["targets/cuda-sm_90/plan.json"]


def test_an_interrupted_build_leaves_no_file(files, no_gpu, capsys, monkeypatch, tmp_path):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dovetail.builder.compile_plan", interrupted)
    code, _, err = verb(capsys, "build", files / "model.onnx", "-o", tmp_path / "m.plan", "--target", TARGET)
    assert code == 1 and err.endswith("interrupted\n") and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- with a GPU
def test_another_part_than_the_engine_is_for(files, monkeypatch):
    plug_in(monkeypatch, capability=80)
    with pytest.raises(DeviceError, match=r"gpu.plan: got a device of compute capability 8.0 .* expected one for sm_90; build for this"):
        dovetail.load(files / "gpu.plan")
    engine = dovetail.build(small_model(), target=TARGET, verify="off")  # a named target may still be built for
    with pytest.raises(DeviceError, match=r"the engine is for cuda:sm_90, which is not here .*got a device of compute capability 8.0"):
        engine.run(feeds())


def test_a_gpu_without_code_of_its_own(monkeypatch):
    plug_in(monkeypatch, capability=75)
    with pytest.raises(DeviceError, match=r"cuda:0 .*compute capability 7.5, expected one of sm_80"):
        dovetail.build(small_model(), device="cuda")


@pytest.fixture
def loaded(files, monkeypatch):
    """The engine file on a GPU, and that."""
    driver = plug_in(monkeypatch)
    return dovetail.load(files / "gpu.plan"), driver


def test_shapes_and_arrays_that_do_not_fit(loaded):
    engine, driver = loaded
    check(engine)
    with pytest.raises(ShapeError, match=r"got 65 on axis 0 \(N\), expected 1 to 64"):
        engine.run(feeds(65))
    with pytest.raises(ShapeError, match="input 'x'"):
        engine.run({"x": np.zeros((3, 41), np.float32)})
    with pytest.raises(BindingError, match=r"input 'x'.*float64.*float32"):
        engine.run({"x": np.zeros((3, 40))})
    other = DeviceArray.of(type(driver)(driver._run, 1), feeds()["x"])
    with pytest.raises(BindingError, match=r"input 'x': got an array in cuda:1, expected one on cuda:0"):
        engine.run({"x": other})
    check(engine)


def test_too_little_memory_at_load_and_in_a_run(files, loaded):
    engine, driver = loaded
    check(engine)
    driver.free_bytes, kept = 64, driver.free_bytes
    with pytest.raises(DeviceError, match=r"cuda:0: cannot allocate .* MiB are free; use smaller shapes"):
        dovetail.load(files / "gpu.plan")
    with pytest.raises(DeviceError, match=r"cuda:0: cannot allocate"):
        engine.context().run(feeds(64))
    gc.collect()
    driver.free_bytes += kept - 64
    check(engine)
    check(dovetail.load(files / "gpu.plan"))


def test_a_run_that_no_kernel_of_a_gpu_can_index(monkeypatch):
    plug_in(monkeypatch)
    engine = dovetail.build(wide_model("N", 4), target=TARGET, verify="off", tune=False)
    huge = np.broadcast_to(np.float32(-1.0), (1 << 29, 4))  # takes no memory
    with pytest.raises(dovetail.ExecutionError, match=r"/relu: got (sizes|a tensor) of .*2147483648.* at most \d+ on a GPU; use"):
        engine.run({"x": huge})
    np.testing.assert_array_equal(engine.run({"x": huge[:3]})["y"], np.zeros((3, 4)))


def damaged(source: Path, target: Path, member: str, change: Any) -> Path:
    """A copy of an engine file with other bytes in one member."""
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as box:
        content = box.read(member)
    start = bytes(data).index(content)
    data[start : start + len(content)] = change(bytearray(content))
    target.write_bytes(data)
    return target


def flipped(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 0xFF
    return content


@pytest.mark.parametrize("member", ["kernels.cubins", "plan.json"])
def test_damaged_files_are_refused(member, files, loaded, tmp_path, capsys):
    path = damaged(files / "gpu.plan", tmp_path / "bad.plan", f"targets/cuda-sm_90/{member}", flipped)
    for options in ({}, {"trust": True}):
        with pytest.raises(PlanFormatError, match=r"bad.plan.*(does not match|damaged)"):
            dovetail.load(path, **options)
    code, _, err = verb(capsys, "run", path)
    assert code == 1 and err.count("error:") == 1
    cut = tmp_path / "cut.plan"
    cut.write_bytes((files / "gpu.plan").read_bytes()[:-1000])
    with pytest.raises(PlanFormatError, match=r"cut\.plan"):
        dovetail.load(cut)


def test_a_file_of_a_stranger_is_made_again(files, loaded, tmp_path):
    with override(home=tmp_path / "stranger"):
        engine = dovetail.load(files / "gpu.plan")
    check(engine)
    with override(home=tmp_path / "stranger"):
        check(dovetail.load(files / "gpu.plan", trust=True))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "no bundle of cubins"), (b"\x7fELF" * 10, "no bundle of cubins"), (cubins.pack({"k": b"code"})[:-4], "outside the bundle"),
        (cubins.pack({})[:8] + b"\xff" * 8, "kernels in 16 bytes"),
    ],
)  # fmt: skip
def test_damaged_bundles(data, message):
    with pytest.raises(PlanFormatError, match=f"kernels.cubins: got .*{message}.*build the engine again"):
        cubins.unpack(data)


def test_what_machine_code_says_of_itself(files):
    with zipfile.ZipFile(files / "gpu.plan") as box:
        bundle = cubins.unpack(box.read("targets/cuda-sm_90/kernels.cubins"))
    assert bundle
    for code in bundle.values():
        found = cubins.usage(code)
        assert found is not None and 16 <= found.registers <= 255 and found.stack == 0
        assert cubins.usage(bytes(code)[:100]) is None
    assert cubins.usage(b"no cubin") is None


def test_a_missing_library_that_the_engine_calls(loaded, monkeypatch):
    from dovetail.device.cuda import libraries

    monkeypatch.setattr(libraries, "_prepared", {})
    monkeypatch.setitem(libraries._MODULES, "cublaslt", "dovetail.device.cuda.not_there")
    with pytest.raises(DeviceError, match=r"calls the library 'cublaslt', which cannot be used here .*; install it, or build the engine"):
        libraries.prepare("cublaslt", loaded[1], {}, ())


# ---------------------------------------------------------------------- every verb on a GPU
def test_every_verb_on_a_gpu(files, monkeypatch, capsys, tmp_path):
    plug_in(monkeypatch)
    plan, model = tmp_path / "m.plan", files / "model.onnx"

    def done(*arguments: object) -> dict[str, Any]:
        code, out, err = verb(capsys, *arguments, "--json")
        assert code == 0, err
        return dict(json.loads(out))

    built = done("build", model, "-o", plan, "--device", "cuda", "--fp16", "-O0")
    assert built["report"]["actual"]["precision"] == "fp16" and plan.is_file()
    np.savez(tmp_path / "x.npz", **feeds())
    assert done("run", plan, "--inputs", tmp_path / "x.npz", "--outputs", tmp_path / "y.npz")["outputs"][0]["shape"] == [3, 24]
    with np.load(tmp_path / "y.npz") as stored:
        assert np.linalg.norm(stored["y"] - expected()) <= 2e-3 * np.linalg.norm(expected())
    measured = done("bench", plan, "--rounds", "2", "--round-s", "0")
    assert [r["name"] for r in measured["latencies"]] == ["dovetail", "dovetail on cuda:0"]
    assert measured["precision"] == "fp16" and measured["device"] == "cuda:0" and measured["fma_peak_gflops"] is None
    code, out, _ = verb(capsys, "bench", plan, "--rounds", "2", "--round-s", "0")
    assert code == 0 and "dovetail on cuda:0" in out and "FMA peak" not in out
    profile = done("profile", plan, "--runs", "2")
    assert profile["device"] == "cuda:0" and {n for r in profile["rows"] for n in r["origin"]} >= {"/fc", "/relu"}
    code, out, _ = verb(capsys, "profile", plan, "--runs", "1")
    assert code == 0 and "one by one on cuda:0" in out and "/fc" in out
    assert done("verify", plan)["certificate"]["kernels"]["checked"] >= 1
    assert done("compare", model, plan)["ok"]
    assert done("inspect", plan)["flops_by_dtype"].keys() == {"f16"}
    assert done("explain", plan)["groups"]
    tuned = tmp_path / "tuned.plan"
    for name, value in (("_LAUNCHES", 1), ("_SETS", 1), ("_ROUNDS", ((1.35, 8, 1),))):
        monkeypatch.setattr(cuda_time, name, value)
    assert done("tune", files / "gpu.plan", "-o", tuned, "-O1", "--time-budget", "300")["report"]["actual"]["tuned"] is True
    check(dovetail.load(tuned))
    with pytest.raises(UsageError, match="got the device 'cpu' for an engine of cuda:sm_90"):
        dovetail.api.tune(dovetail.load(tuned), device="cpu")


def test_bench_tells_the_engine_from_the_copies(loaded):
    found = loaded[0].bench(feeds(), seconds=0.0)
    assert found["median_ms"] > 0 and found["device_median_ms"] > 0
    assert {k.removeprefix("device_") for k in found} == {k for k in found if not k.startswith("device_")}


def test_onnx_backend(monkeypatch):
    from dovetail import backend

    pull_out(monkeypatch)
    assert backend.supports_device("CPU") and not backend.supports_device("CUDA") and not backend.supports_device("TPU")
    plug_in(monkeypatch)
    assert backend.supports_device("CUDA") and backend.supports_device("CUDA:0") and not backend.supports_device("CUDA:1")
    prepared = backend.prepare(small_model(), "CUDA")
    assert prepared.engine.plan.target == "cuda:sm_90"
    np.testing.assert_allclose(prepared.run([feeds()["x"]])[0], expected(), rtol=1e-5, atol=1e-5)
