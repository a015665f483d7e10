"""Run a program written for TensorRT on Dovetail, unchanged.

    python -m dovetail.tensorrt script.py args…
    python -m dovetail.tensorrt -m module args…
    python -m dovetail.tensorrt -c code args…
    python -m dovetail.tensorrt polygraphy run model.onnx --trt --onnxrt     a program in Python, beside this one or on the PATH

`import tensorrt` gives `dovetail.tensorrt`, in Python processes that the program starts, too. Where there is no GPU, `cuda`,
`pycuda` and `libcudart.so` are stand-ins on host memory; --standins and --no-standins decide that otherwise.
"""

from __future__ import annotations

import builtins
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType

from dovetail.core.errors import Error, UsageError


def _program(name: str) -> Path:
    """The script to run: a file, or a Python program that is installed beside this Python or on the PATH."""
    path = Path(name)
    if path.exists():
        return path
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise UsageError(f"dovetail.tensorrt: got {name!r}, expected a script or a Python program on the PATH")
    with open(found, "rb") as file:
        first = file.readline(200)
    if not (first.startswith(b"#!") and b"python" in first):
        raise UsageError(f"dovetail.tensorrt: got {found}, expected a program written in Python; give its script or -m and its module")
    return Path(found)


def _execute(source: str | bytes, filename: str) -> None:
    """Run a text as `__main__`."""
    module = ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins, __file__=filename)
    sys.modules["__main__"] = module
    exec(compile(source, filename, "exec"), module.__dict__)


def main(arguments: list[str]) -> int:
    """Prepare this process and run the program in it; returns the status for what never began."""
    from dovetail.tensorrt.dropin import install

    standins = None
    while arguments and arguments[0] in ("--standins", "--no-standins"):
        standins = arguments.pop(0) == "--standins"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    kind = arguments.pop(0) if arguments[0] in ("-m", "-c") else ""
    try:
        if not arguments:
            raise UsageError(f"dovetail.tensorrt: got {kind} alone, expected {'a module' if kind == '-m' else 'code'} after it")
        name = arguments[0]
        path = Path() if kind else _program(name)
        install(standins=standins, children=True)
    except Error as error:
        print(error, file=sys.stderr)
        return 2
    if kind == "-m":
        sys.argv[:] = arguments
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[:] = ["-c", *arguments[1:]]
        sys.path[0] = ""
        _execute(name, "<string>")
    else:
        sys.argv[:] = [str(path), *arguments[1:]]
        if path.is_dir():
            runpy.run_path(str(path), run_name="__main__")
        else:
            sys.path[0] = str(path.resolve().parent)
            _execute(path.read_bytes(), str(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
