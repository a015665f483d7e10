"""Programs of TensorRT's three styles on a GPU as they stand, and engines in CUDA contexts that programs make themselves."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dovetail

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments: str) -> str:
    """What a process of its own prints, with the packages that are installed, not with stand-ins."""
    path = os.pathsep.join(p for p in (str(ROOT / "src"), os.environ.get("PYTHONPATH", "")) if p)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done.stdout


def program(name: str, *arguments: str) -> str:
    """What an example prints, run through the launcher."""
    return python("-m", "dovetail.tensorrt", "--no-standins", str(ROOT / "examples" / f"{name}.py"), *arguments)


def test_2020():
    """pycuda.autoinit makes a context that is not the device's primary one."""
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed")
    said = program("tensorrt_2020")
    before, after = (re.search(rf"^{label}: (.*)$", said, re.MULTILINE)[1].split() for label in ("before", "after"))
    assert len(before) == len(after) == 5 and before != after and all(np.isfinite(float(v)) for v in before + after)


def test_8_to_10(tmp_path):
    said = program("tensorrt_8_10", str(tmp_path / "engine.plan"))
    assert "profile: [(1, 64), (4, 64), (8, 64)]" in said and said.count("below 1e-2: True") == 3
    assert (tmp_path / "engine.plan").stat().st_size > 1000


def test_11():
    assert program("tensorrt_11").count("equal after the refit: True") == 1


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A file of an engine: y = relu(x·w), x [8, 64]."""
    net = dovetail.Network()
    x = net.input("x", "f32", (8, 64))
    w = net.weight("w", np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32))
    net.output(net.op("Relu", net.op("MatMul", x, w)), "y")
    path = tmp_path_factory.mktemp("engines") / "y.plan"
    dovetail.build(net, device="cuda", tune=False, verify="off").save(path)
    return path


OWN_CONTEXT = """
import gc, sys
import numpy as np
from cuda.bindings import driver as cuda
import dovetail, dovetail.tensorrt as trt

def call(name, *arguments):
    error, *values = getattr(cuda, name)(*arguments)
    assert error == cuda.CUresult.CUDA_SUCCESS, (name, error)
    return values[0] if len(values) == 1 else values

def make(device):
    try:
        return call("cuCtxCreate", None, 0, device)
    except TypeError:  # the bindings of CUDA 12
        return call("cuCtxCreate", 0, device)

call("cuInit", 0)
device = call("cuDeviceGet", 0)
own = make(device)
x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
y = np.zeros((8, 32), np.float32)
data = open(sys.argv[1], "rb").read()
engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(data)
context = engine.create_execution_context()
stream = call("cuStreamCreate", 0)
at = [call("cuMemAlloc", a.nbytes) for a in (x, y)]
for _ in range(3):
    call("cuMemcpyHtoDAsync", at[0], x.ctypes.data, x.nbytes, stream)
    context.set_tensor_address("x", int(at[0]))
    context.set_tensor_address("y", int(at[1]))
    assert context.execute_async_v3(int(stream))
    call("cuMemcpyDtoHAsync", y.ctypes.data, at[1], y.nbytes, stream)
    call("cuStreamSynchronize", stream)
native = dovetail.load(sys.argv[1], device="cuda")
same = np.abs(native.run({"x": x})["y"] - y).max()
print("primary", call("cuDevicePrimaryCtxGetState", device)[1])
print("equal", bool(same == 0 and np.abs(y - np.maximum(x @ np.array(native.weight("w")), 0)).max() < 1e-3))
assert int(call("cuCtxGetCurrent")) == int(own)
call("cuCtxDestroy", own)
try:
    native.run({"x": x})
except dovetail.Error as error:
    print("ended", "the client has ended the CUDA context" in str(error))
del context, engine, native
gc.collect()
again = dovetail.load(sys.argv[1], device="cuda")
print("again", bool((again.run({"x": x})["y"] == y).all()), "primary", call("cuDevicePrimaryCtxGetState", device)[1])
"""


def test_an_engine_works_in_the_context_that_the_program_made(plan):
    said = python("-c", OWN_CONTEXT, str(plan))
    assert said.splitlines() == ["primary 0", "equal True", "ended True", "again True primary 1"]


SECOND_DEVICE = """
import sys
import numpy as np
import torch
import dovetail.tensorrt as trt
torch.cuda.set_device(1)
x = torch.randn(8, 64, device="cuda")
engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(open(sys.argv[1], "rb").read())
context = engine.create_execution_context()
y = torch.zeros(8, 32, device="cuda")
context.set_tensor_address("x", x.data_ptr())
context.set_tensor_address("y", y.data_ptr())
assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
torch.cuda.synchronize()
w = torch.from_numpy(np.array(engine._engine.weight("w"))).cuda()
print(engine._engine._runtime.device, bool(torch.allclose(y, (x @ w).relu(), atol=1e-3)))
from cuda.bindings import driver as cuda
print("cuda:0", cuda.cuDevicePrimaryCtxGetState(0)[2])
"""


def test_the_second_device_where_it_is_current(plan):
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    assert python("-c", SECOND_DEVICE, str(plan)).splitlines() == ["cuda:1 True", "cuda:0 0"]
