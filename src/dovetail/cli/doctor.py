"""Show what this machine offers, and the one command that gets what is missing.

    dovetail doctor
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dovetail.cli import output
from dovetail.codegen.target import CUDA_ISAS
from dovetail.core.env import env
from dovetail.core.errors import Error

REQUIRED = ("numpy", "ml_dtypes", "onnx", "safetensors", "ziglang", "rich")
OPTIONAL = {"onnxruntime": "bench --vs onnxruntime", "openvino": "bench --vs openvino", "matplotlib": "bench --plot"}


@dataclass(frozen=True)
class Finding:
    """One capability: `status` is "ok", "optional" (missing, and not needed to build or run) or "missing"."""

    name: str
    status: str
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object with stable keys")


def run(args: argparse.Namespace) -> int:
    """Print the findings; exit code 1 if something needed is missing."""
    found = list(findings())
    healthy = all(f.status != "missing" for f in found)
    rows = [[f.name, f.status, f.detail + (f"; fix: {f.fix}" if f.fix else "")] for f in found]
    text = output.table(["what", "status", "detail"], rows)
    text += "\n" + ("everything needed is here" if healthy else "something needed is missing: see the fixes above")
    output.show(args, {"healthy": healthy, "findings": [asdict(f) for f in found]}, text)
    return 0 if healthy else 1


def findings() -> Iterator[Finding]:
    """All checks, in the order of the layers."""
    from dovetail import __version__

    yield Finding("dovetail", "ok", f"{__version__} at {Path(__file__).resolve().parents[1]}")
    yield _python()
    yield from (_package(name) for name in REQUIRED)
    yield from (_package(name, use) for name, use in OPTIONAL.items())
    yield _checked("cpu", _cpu)
    yield _checked("threads", _threads)
    yield _checked("compiler", _compiler, "pip install --force-reinstall ziglang")
    yield _checked("gpu", _gpu, "to run engines for a GPU: install NVIDIA's driver and pip install 'dovetail[cuda]'", optional=True)
    yield _checked("triton", _triton, "to build for a GPU: pip install 'dovetail[cuda]'", optional=True)
    for library, use in (("cublaslt", "library tactics for products"), ("cudnn", "library tactics for convolutions")):
        yield _checked(library, functools.partial(_library, library), f"only for {use} on a GPU", optional=True)
    yield _folder("cache", env().cache, "DOVETAIL_CACHE")
    yield _folder("keys", env().home, "DOVETAIL_HOME")


def _python() -> Finding:
    # The package does not install on an older Python, so whatever runs this is new enough.
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _package(name: str, use: str = "") -> Finding:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        status = "optional" if use else "missing"
        return Finding(name, status, f"not installed{f' (for {use})' if use else ''}", f"pip install {name}")
    return Finding(name, "ok", f"{importlib.metadata.version(name)} at {Path(spec.origin).parent}")


def _checked(name: str, check: Callable[[], str], fix: str = "", optional: bool = False) -> Finding:
    try:
        return Finding(name, "ok", check())
    except (Error, OSError) as error:
        return Finding(name, "optional" if optional else "missing", " ".join(str(error).split()), fix)


def _cpu() -> str:
    from dovetail.benchmark.machine import cpu_name
    from dovetail.codegen.target import Target

    target = Target.host()
    return f"{cpu_name()}; best target {target}, vectors of {target.vector_bytes * 8} bits"


def _threads() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{usable} usable of {os.cpu_count()} CPUs"


def _compiler() -> str:
    """Compile a small kernel, load it and call it."""
    import ctypes

    from dovetail.codegen.compiler import compile_c, compiler_version
    from dovetail.codegen.target import Target

    library = ctypes.CDLL(str(compile_c("int dovetail_doctor(int x) { return 2 * x + 1; }", Target.host())))
    if library.dovetail_doctor(20) != 41:
        raise Error("compiler: a compiled kernel returned a wrong result; reinstall the compiler")
    return f"{compiler_version()}; compiles and runs a kernel"


def _gpu() -> str:
    """The first GPU."""
    from dovetail.device.cuda import driver

    found = driver(0).properties
    version = f"{found.driver_version // 1000}.{found.driver_version % 1000 // 10}"
    return (
        f"{found.name}, compute capability {found.capability // 10}.{found.capability % 10}, {found.multiprocessors} multiprocessors, "
        f"{found.memory / 2**30:.0f} GiB; driver for CUDA {version}"
    )


def _triton() -> str:
    from dovetail.codegen.triton_compiler import triton_version

    return f"{triton_version()}; compiles for {', '.join(CUDA_ISAS)}, with or without a GPU"


def _library(name: str) -> str:
    from dovetail.device.cuda import shared_library

    reason = shared_library.missing(name)
    if reason is not None:
        raise Error(reason)
    return f"found at {shared_library.find(name) or 'the library path'}"


def _folder(name: str, path: Path, variable: str) -> Finding:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return Finding(name, "missing", f"{path} cannot be written: {error.strerror}", f"export {variable}=/a/writable/folder")
    return Finding(name, "ok", str(path))
