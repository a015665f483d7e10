"""Environment variables, read once; they change where and how loudly, never results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from dovetail.core.errors import UsageError


@dataclass(frozen=True)
class Env:
    """All `DOVETAIL_*` variables; the field docs below are the user's table in docs/environment.md.

    Attributes:
        cache: compile, packed-weight and timing caches (DOVETAIL_CACHE; default ~/.cache/dovetail).
        home: keys and settings (DOVETAIL_HOME; default ~/.config/dovetail).
        cc: C compiler command instead of the clang in the ziglang package (DOVETAIL_CC).
        jobs: parallel compiles (DOVETAIL_JOBS; default: number of CPUs).
        log: topics to log, comma separated, or "all" (DOVETAIL_LOG).
        dump: folder for IR before and after each pass and kernel sources (DOVETAIL_DUMP).
        verify_ir: run the verifier after each pass (DOVETAIL_VERIFY=1).
        check_nan: check every step's outputs for NaN at run time (DOVETAIL_NAN=1).
        nvtx: mark runs ("runs", DOVETAIL_NVTX=1), or runs and steps ("steps", which then run one by one), for Nsight Systems.
        cublaslt, cudnn: the shared libraries to use instead of those found (DOVETAIL_CUBLASLT, DOVETAIL_CUDNN).
        affinity: CPUs that worker threads are pinned to, in turn; empty pins none (DOVETAIL_AFFINITY=0-3,6).
        tensorrt_standins: whether CUDA is stood in for by host memory where `import tensorrt` gives Dovetail
            (DOVETAIL_TENSORRT_STANDINS=0 or 1); None: where there is no GPU.
        tensorrt_device: where engines of `dovetail.tensorrt` are built and run (DOVETAIL_TENSORRT_DEVICE=cpu, cuda or cuda:N);
            empty: on the GPU that is current in the thread, else the first one, else the CPU.
        tensorrt_version: what `dovetail.tensorrt.__version__` says (DOVETAIL_TENSORRT_VERSION); its clients branch on it.
    """

    cache: Path
    home: Path
    cc: str = ""
    jobs: int = 1
    log: str = ""
    dump: str = ""
    verify_ir: bool = False
    check_nan: bool = False
    nvtx: str = ""
    cublaslt: str = ""
    cudnn: str = ""
    affinity: tuple[int, ...] = ()
    tensorrt_standins: bool | None = None
    tensorrt_device: str = ""
    tensorrt_version: str = "10.16.1.11"


def cpu_list(text: str) -> tuple[int, ...]:
    """The CPUs of a list such as "0-3,6", in its order.

    Raises:
        UsageError: the text is no such list.
    """
    cpus: list[int] = []
    for part in text.split(",") if text.strip() else ():
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or part.strip().endswith("-") or int(last or first) < int(first):
            raise UsageError(f"affinity: got {text!r}, expected CPU numbers and ranges such as 0-3,6")
        cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


def _tensorrt_version() -> str:
    text = os.environ.get("DOVETAIL_TENSORRT_VERSION", "").strip() or Env.tensorrt_version
    if len(text.split(".")) < 3 or not all(part.isdigit() for part in text.split(".")):
        raise UsageError(f"DOVETAIL_TENSORRT_VERSION: got {text!r}, expected a version such as {Env.tensorrt_version}")
    return text


def _tensorrt_device() -> str:
    text = os.environ.get("DOVETAIL_TENSORRT_DEVICE", "").strip()
    kind, _, number = text.partition(":")
    if text in ("", "cpu", "cuda") or (kind == "cuda" and number.isdecimal()):
        return text
    raise UsageError(f"DOVETAIL_TENSORRT_DEVICE: got {text!r}, expected cpu, cuda or cuda:N")


def _flag(name: str) -> bool:
    text = os.environ.get(name, "").strip().lower()
    if text in ("", "0", "false", "no", "off"):
        return False
    if text in ("1", "true", "yes", "on"):
        return True
    raise UsageError(f"{name}: got {text!r}, expected 0 or 1")


def _nvtx() -> str:
    text = os.environ.get("DOVETAIL_NVTX", "").strip().lower()
    if text in ("runs", "steps"):
        return text
    try:
        return "runs" if _flag("DOVETAIL_NVTX") else ""
    except UsageError:
        raise UsageError(f"DOVETAIL_NVTX: got {text!r}, expected 0, 1 (runs) or steps") from None


def _jobs() -> int:
    text = os.environ.get("DOVETAIL_JOBS", "").strip()
    if not text:
        return os.cpu_count() or 1
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"DOVETAIL_JOBS: got {text!r}, expected a positive integer")
    return int(text)


def _read() -> Env:
    user = Path(os.path.expanduser("~"))
    cache_home = os.environ.get("XDG_CACHE_HOME") or user / ".cache"
    config_home = os.environ.get("XDG_CONFIG_HOME") or user / ".config"
    return Env(
        cache=Path(os.environ.get("DOVETAIL_CACHE") or Path(cache_home) / "dovetail"),
        home=Path(os.environ.get("DOVETAIL_HOME") or Path(config_home) / "dovetail"),
        cc=os.environ.get("DOVETAIL_CC", ""),
        jobs=_jobs(),
        log=os.environ.get("DOVETAIL_LOG", ""),
        dump=os.environ.get("DOVETAIL_DUMP", ""),
        verify_ir=_flag("DOVETAIL_VERIFY"),
        check_nan=_flag("DOVETAIL_NAN"),
        nvtx=_nvtx(),
        cublaslt=os.environ.get("DOVETAIL_CUBLASLT", ""),
        cudnn=os.environ.get("DOVETAIL_CUDNN", ""),
        affinity=cpu_list(os.environ.get("DOVETAIL_AFFINITY", "")),
        tensorrt_standins=_flag("DOVETAIL_TENSORRT_STANDINS") if os.environ.get("DOVETAIL_TENSORRT_STANDINS", "").strip() else None,
        tensorrt_device=_tensorrt_device(),
        tensorrt_version=_tensorrt_version(),
    )


_current: Env | None = None


def env() -> Env:
    """The environment, read at the first call."""
    global _current
    if _current is None:
        _current = _read()
    return _current


@contextmanager
def override(**changes: object) -> Iterator[Env]:
    """Replace fields of the environment inside a with block.

    Raises:
        UsageError: no such field.
    """
    global _current
    known = {f.name for f in fields(Env)}
    if set(changes) - known:
        raise UsageError(f"env: no field {sorted(set(changes) - known)}, expected some of {sorted(known)}")
    saved = env()
    _current = replace(saved, **changes)  # type: ignore[arg-type]
    try:
        yield _current
    finally:
        _current = saved


def inherited(without: tuple[str, ...] = (), **changes: str) -> dict[str, str]:
    """The environment that a program started from here gets: this process's, but for some variables."""
    return {k: v for k, v in os.environ.items() if k not in without} | changes


def export(name: str, value: str | None) -> str | None:
    """Set a variable of this process, which those that it starts inherit (None: take it away); returns what it was.

    Flags of Dovetail itself that were read already stay as they were.
    """
    before = os.environ.get(name)
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
    return before
