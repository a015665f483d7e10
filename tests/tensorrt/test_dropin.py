"""`import tensorrt` gives Dovetail: by `install()` in this process, by the launcher in a program and in what it starts."""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import dovetail.tensorrt as trt
from dovetail.core.env import override
from dovetail.core.errors import DeviceError
from dovetail.tensorrt import dropin, standins
from dovetail.tensorrt.__main__ import main
from dovetail.tensorrt.standins import device, finder

SOURCE = Path(trt.__file__).resolve().parents[2]
SITE = SOURCE / "dovetail" / "tensorrt" / "standins" / "site"


@pytest.fixture(autouse=True)
def as_it_was():
    """Every test leaves the process as it found it."""
    variables = {name: os.environ.get(name) for name in ("LD_LIBRARY_PATH", "PYTHONPATH", "DOVETAIL_TENSORRT_STANDINS")}
    before = set(sys.modules)
    yield
    dropin.uninstall()
    assert finder.installed() is None
    assert {name: os.environ.get(name) for name in variables} == variables
    assert not [name for name in set(sys.modules) - before if name.partition(".")[0] in ("tensorrt", "pycuda")]


def python(*arguments, cwd=None, **variables):
    """Run Python on this checkout; (status, stdout, stderr)."""
    environment = {k: v for k, v in os.environ.items() if k not in variables}
    environment |= {"PYTHONPATH": str(SOURCE)} | {k: v for k, v in variables.items() if v is not None}
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300)
    return done.returncode, done.stdout, done.stderr


def launch(*arguments, **options):
    """Run the launcher; its stdout, which must not fail."""
    status, out, errors = python("-m", "dovetail.tensorrt", *arguments, **options)
    assert status == 0, errors
    return out


# ---- in this process


def test_install_gives_our_module_by_all_its_names():
    trt.install(standins=False)
    tensorrt = importlib.import_module("tensorrt")
    assert tensorrt is trt
    for name in ("tensorrt.tensorrt", "tensorrt_bindings", "tensorrt_bindings.tensorrt"):
        assert importlib.import_module(name) is trt
    assert importlib.import_module("tensorrt.enums").DataType is trt.DataType
    assert importlib.import_module("tensorrt_bindings.enums") is importlib.import_module("dovetail.tensorrt.enums")
    assert importlib.util.find_spec("tensorrt") is not None
    assert importlib.metadata.version("tensorrt") == trt.__version__
    assert "tensorrt" in {found.metadata["Name"] for found in importlib.metadata.distributions()}
    with override(tensorrt_version="8.6.1"):
        assert importlib.metadata.version("tensorrt") == "8.6.1"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tensorrt.nothing_of_that_name")
    assert not standins.active()


def test_uninstall_puts_back_what_was_there(monkeypatch):
    own = types.ModuleType("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", own)
    trt.install(standins=True)
    assert importlib.import_module("tensorrt") is trt
    assert importlib.import_module("pycuda.driver").__dovetail_standin__
    trt.uninstall()
    assert importlib.import_module("tensorrt") is own
    assert "pycuda" not in sys.modules
    assert "pycuda.driver" not in sys.modules
    trt.uninstall()


def test_what_is_not_installed_is_not_found_again():
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("the real package is installed")
    trt.install(standins=False)
    importlib.import_module("tensorrt")
    trt.uninstall()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tensorrt")


def test_stand_ins_take_the_place_of_real_bindings():
    real = sys.modules.get("cuda.bindings.driver")
    trt.install(standins=True)
    assert standins.active()
    runtime = importlib.import_module("cuda.bindings.runtime")
    assert runtime is importlib.import_module("dovetail.tensorrt.standins.cuda.bindings.runtime")
    for name in ("cuda.bindings.driver", "cuda.bindings.nvrtc", "cuda.cuda", "pycuda", "pycuda.gpuarray"):
        assert importlib.import_module(name).__dovetail_standin__
    assert importlib.import_module("cuda.cudart").cudaMalloc is runtime.cudaMalloc
    importlib.import_module("cuda.nvrtc")
    trt.uninstall()
    assert sys.modules.get("cuda.bindings.driver") is real


def test_without_stand_ins_cuda_is_what_is_installed():
    trt.install(standins=False)
    found = importlib.util.find_spec("cuda.bindings")
    assert found is None or "dovetail" not in (found.origin or "")
    assert importlib.util.find_spec("pycuda") is None or "dovetail" not in importlib.util.find_spec("pycuda").origin


def test_older_names_of_cuda_python_are_the_modules_that_took_their_place(tmp_path, monkeypatch):
    pytest.importorskip("cuda.bindings.runtime")
    trt.install(standins=False)
    for older, newer in (("cudart", "runtime"), ("cuda", "driver"), ("nvrtc", "nvrtc")):
        if importlib.machinery.PathFinder.find_spec(f"cuda.{older}", sys.modules["cuda"].__path__) is not None:
            pytest.skip("cuda-python 12 is installed, which has them")
        assert importlib.import_module(f"cuda.{older}") is importlib.import_module(f"cuda.bindings.{newer}")
    trt.uninstall()
    assert "cuda.cudart" not in sys.modules and "cuda.bindings.runtime" in sys.modules
    # A package that has them keeps its own.
    trt.install(standins=False)
    (tmp_path / "cudart.py").write_text("own = True\n")
    monkeypatch.setattr(sys.modules["cuda"], "__path__", [*sys.modules["cuda"].__path__, str(tmp_path)])
    assert importlib.import_module("cuda.cudart").own
    monkeypatch.delitem(sys.modules, "cuda.cudart")


def test_dovetail_does_not_take_the_stand_in_for_a_gpu():
    from dovetail.device.cuda.driver_cuda import CudaDriver

    trt.install(standins=True)
    with pytest.raises(DeviceError, match=r"got the stand-in of dovetail\.tensorrt"):
        CudaDriver(0)


def test_the_loader_knows_the_library_and_its_one_table():
    trt.install(standins=True)
    assert os.environ["LD_LIBRARY_PATH"].split(":")[0] == str(device.library_path().parent)
    library = ctypes.CDLL("libcudart.so")
    at = ctypes.c_void_p()
    assert library.cudaMalloc(ctypes.byref(at), ctypes.c_size_t(100)) == 0
    runtime = importlib.import_module("cuda.bindings.runtime")
    x, y = np.arange(100, dtype=np.uint8), np.zeros(100, np.uint8)
    assert runtime.cudaMemcpy(at.value, x, 100, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)[0] == 0
    assert library.cudaMemcpy(ctypes.c_void_p(y.ctypes.data), at, ctypes.c_size_t(100), 2) == 0
    np.testing.assert_array_equal(x, y)
    assert library.cudaMemcpy(ctypes.c_void_p(y.ctypes.data), at, ctypes.c_size_t(101), 2) == 1
    library.cudaGetErrorString.restype = ctypes.c_char_p
    assert library.cudaGetErrorString(library.cudaGetLastError()) == b"invalid argument"
    assert library.cudaFree(at) == 0
    ran = ctypes.c_int()
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: setattr(ran, "value", data or 0))
    assert library.cudaLaunchHostFunc(None, work, ctypes.c_void_p(7)) == 0
    assert ran.value == 7


def test_installing_again_changes_nothing_but_children():
    trt.install(standins=True)
    trt.install(standins=False)
    assert standins.active()
    assert sum(getattr(one, "dovetail_dropin", False) for one in sys.meta_path) == 1
    trt.install(children=True)
    trt.install(children=True)
    folders = os.environ["PYTHONPATH"].split(":")
    assert folders[0] == str(SITE)
    assert folders.count(str(SITE)) == 1
    assert os.environ["DOVETAIL_TENSORRT_STANDINS"] == "1"


def test_stand_ins_are_wanted_where_there_is_no_gpu(monkeypatch):
    for chosen in (True, False):
        with override(tensorrt_standins=chosen):
            assert standins.wanted() is chosen
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not standins.gpu_present()
    with override(tensorrt_standins=None):
        assert standins.wanted()
        monkeypatch.setattr(standins, "gpu_present", lambda: True)
        assert not standins.wanted()
    assert not standins.active()


# ---- the launcher

SCRIPT = """
import sys
import tensorrt
import helper
if __name__ == "__main__":
    print(tensorrt.__name__, sys.argv[1:], helper.VALUE, __file__ == sys.argv[0])
    sys.exit(3 if "fail" in sys.argv else None)
"""


@pytest.fixture
def script(tmp_path):
    """A program of two files, in a folder with a space in its name."""
    folder = tmp_path / "a program"
    folder.mkdir()
    (folder / "helper.py").write_text("VALUE = 42\n")
    (folder / "main.py").write_text(SCRIPT)
    return folder / "main.py"


def test_a_script_runs_as_it_would_alone(script, tmp_path):
    assert launch(str(script), "-m", "x y", cwd=tmp_path) == "dovetail.tensorrt ['-m', 'x y'] 42 True\n"
    assert python("-m", "dovetail.tensorrt", script.name, "fail", cwd=script.parent)[0] == 3


def test_a_module_a_folder_and_code_run_too(script):
    expected = "dovetail.tensorrt ['a'] 42 True\n"
    assert launch("-m", "main", "a", cwd=script.parent) == expected
    (script.parent / "__main__.py").write_text(SCRIPT.replace("__file__ == sys.argv[0]", "True"))
    assert launch(str(script.parent), "a") == expected
    code = "import sys, tensorrt, helper; print(sys.argv, __name__, tensorrt.DataType.HALF)"
    assert launch("-c", code, "b", cwd=script.parent) == "['-c', 'b'] __main__ DataType.HALF\n"


def test_errors_of_the_program_are_its_own(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def f():\n    raise KeyError('here')\nf()\n")
    status, _, errors = python("-m", "dovetail.tensorrt", str(path))
    assert status == 1
    assert f'File "{path}", line 2, in f' in errors
    assert "raise KeyError('here')" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_script.py"], "got 'no_such_script.py', expected a script or a Python program on the PATH"),
        (["ls"], "expected a program written in Python"),
        (["-m"], "got -m alone, expected a module after it"),
        (["-c"], "got -c alone, expected code after it"),
    ],
)
def test_what_cannot_run_is_said(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "--no-standins" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["--standins"]) == 2


CHILD = "import tensorrt, pycuda.driver, cuda.cudart as c; print(tensorrt.__name__, c.cudaGetDeviceCount()[1])"


def test_children_of_the_program_do_the_same(tmp_path):
    """Through a shell and another Python; with another sitecustomize, and from another folder."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import builtins\nbuiltins.others = 'ran'\n")
    code = (
        "import subprocess, sys\n"
        f"child = [sys.executable, '-c', {CHILD + '; print(others)'!r}]\n"
        "subprocess.run([sys.executable, '-c', f'import subprocess; subprocess.run({child!r}, check=True, cwd=chr(47))'], check=True)\n"
    )
    path = f"{SOURCE}:{tmp_path / 'site'}"
    assert launch("--standins", "-c", code, PYTHONPATH=path) == "dovetail.tensorrt 1\nran\n"


def test_processes_of_multiprocessing_do_the_same(tmp_path):
    path = tmp_path / "pool.py"
    path.write_text(
        "import multiprocessing, tensorrt\n"
        "def work(x):\n    import pycuda.driver as cuda\n    cuda.init()\n    return tensorrt.volume((x, 3)) + cuda.Device.count()\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        print(pool.map(work, [1, 2]))\n"
    )
    assert launch("--standins", str(path)) == "[4, 7]\n"


def test_children_get_no_stand_ins_where_the_program_has_none():
    look = "import importlib.util as u, tensorrt; f = u.find_spec('pycuda'); print(f is None or 'dovetail' not in f.origin)"
    code = f"import subprocess, sys\n{look}\nsys.stdout.flush()\nsubprocess.run([sys.executable, '-c', {look!r}], check=True)\n"
    assert launch("--no-standins", "-c", code) == "True\nTrue\n"


def test_a_python_without_dovetail_is_left_alone():
    """A child that cannot import Dovetail starts all the same, and misses tensorrt as ever."""
    code = (
        "import sys\nsys.modules['dovetail'] = None\nimport json\n"
        "try:\n    import tensorrt\nexcept ModuleNotFoundError as error:\n    print(error.name)\n"
        "import importlib.util as u\nf = u.find_spec('pycuda')\nprint(f is None)\n"
    )
    status, out, errors = python("-c", code, PYTHONPATH=str(SITE))
    assert status == 0, errors
    assert out.startswith("tensorrt\n")


def test_children_start_without_loading_anything():
    code = "import sys; print(sorted(n for n in sys.modules if n.startswith(('dovetail', 'numpy'))))"
    assert python("-c", code, PYTHONPATH=str(SITE))[1] == "[]\n"


def test_programs_that_find_the_library_themselves_find_it(tmp_path):
    """As Polygraphy does: libcudart.so* in each folder of LD_LIBRARY_PATH."""
    code = (
        "import ctypes, glob, os\n"
        "found = [f for d in os.environ['LD_LIBRARY_PATH'].split(':') for f in glob.glob(os.path.join(d, 'libcudart.so*'))]\n"
        "library = ctypes.CDLL(found[0])\ncount = ctypes.c_int()\nprint(library.cudaGetDeviceCount(ctypes.byref(count)), count.value)\n"
        "import subprocess, sys\n"
        "print(subprocess.run([sys.executable, '-c', 'import ctypes; ctypes.CDLL(\"libcudart.so\")']).returncode)\n"
    )
    assert launch("--standins", "-c", code, LD_LIBRARY_PATH=str(tmp_path)) == "0 1\n0\n"
