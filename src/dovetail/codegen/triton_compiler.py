"""Compiles Triton kernels to machine code of a GPU, ahead of time, in processes of their own, with a cache by content.

    compiled = compile_kernels(kernels, target)      # entry -> Compiled or the reason why not

Triton is imported by the worker processes only (`triton_worker`): a build needs no GPU, no driver and no torch, a compiler that
crashes or hangs costs one kernel, and processes compile in parallel.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.codegen.kernel import Kernel
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.env import env, inherited
from dovetail.core.errors import CompileError
from dovetail.core.log import logger

_log = logger("compile")

PRELUDE = """\
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def prefetch_l2(pointers):
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1)


"""
"""What stands in front of every source; `prefetch_l2(pointers)` asks for cache lines without waiting for them."""

TIMEOUT_S = 60.0
"""Seconds that one kernel may take; a compiler that fights register pressure for longer has lost."""


@dataclass(frozen=True)
class Compiled:
    """Machine code and what its compiler says of it.

    Attributes:
        binary: the cubin.
        threads: threads of a block.
        shared: bytes of dynamic shared memory.
        scratch, scratch_align: bytes of global memory per block, and their alignment.
        registers: per thread.
        stack: bytes of local memory per thread: spilled registers.
        pdl: launched with programmatic stream serialisation.
        cluster: blocks of a cluster.
        descriptors: per tensor-map parameter `swizzle`, `element`, `kind`, `box`.
    """

    binary: bytes
    threads: int
    shared: int
    scratch: int
    scratch_align: int
    registers: int
    stack: int
    pdl: bool
    cluster: int
    descriptors: tuple[Mapping[str, Any], ...]


def module_text(kernel: Kernel) -> str:
    """The Python module that Triton compiles."""
    return PRELUDE + kernel.source


def triton_version() -> str:
    """The version of the installed Triton.

    Raises:
        CompileError: there is none.
    """
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise CompileError(
            "compiler: the triton package is not installed, expected it to build for a GPU; install with: pip install 'dovetail[cuda]'"
        ) from None


def cache_key(kernel: Kernel, target: Target) -> str:
    """The content hash under which a kernel's machine code is cached."""
    launch = kernel.launch
    assert launch is not None
    types = _parameter_types(kernel)
    parts = (PRELUDE, kernel.source, repr((launch.warps, launch.stages, types, launch.aligned, launch.pdl)), target.isa, triton_version())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def compile_kernels(
    kernels: Iterable[Kernel],
    target: Target,
    *,
    jobs: int | None = None,
    timeout_s: float = TIMEOUT_S,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Compiled | str]:
    """Machine code by entry, or the reason why a kernel has none.

    Args:
        kernels: Triton kernels; library calls are passed over, equal ones compiled once.
        jobs: processes; default DOVETAIL_JOBS.
        timeout_s: seconds per kernel.
        done: called as done(finished, all) as kernels come out.

    Raises:
        CompileError: no Triton, or the cache folder cannot be written.
    """
    wanted = {k.entry: k for k in kernels if k.launch is not None}
    if not wanted:
        return {}
    folder = _folder(target)
    found: dict[str, Compiled | str] = {}
    missing: dict[str, tuple[Kernel, Path]] = {}
    for entry, kernel in wanted.items():
        path = folder / f"{cache_key(kernel, target)}.cubin"
        compiled = _read(path)
        if compiled is None:
            missing[entry] = kernel, path
        else:
            found[entry] = compiled
    finished = len(found)
    done(finished, len(wanted))
    if missing:
        work: queue.SimpleQueue[tuple[str, Kernel, Path]] = queue.SimpleQueue()
        # Long sources first, so that none is left alone at the end.
        for entry, (kernel, path) in sorted(missing.items(), key=lambda item: -len(item[1][0].source)):
            work.put((entry, kernel, path))
        answers: queue.SimpleQueue[tuple[str, Compiled | str]] = queue.SimpleQueue()
        count = max(1, min(jobs or env().jobs, len(missing)))
        stop = threading.Event()
        threads = [threading.Thread(target=_serve, args=(work, answers, target, timeout_s, stop), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(len(missing)):
                entry, result = answers.get()
                found[entry] = result
                finished += 1
                done(finished, len(wanted))
        finally:
            stop.set()
        for thread in threads:
            thread.join()
    return found


def require(found: Mapping[str, Compiled | str], kernels: Iterable[Kernel]) -> dict[str, Compiled]:
    """The machine code of kernels that must all have some.

    Raises:
        CompileError: the first that has none, and why.
    """
    result: dict[str, Compiled] = {}
    for kernel in kernels:
        if kernel.launch is None:
            continue
        compiled = found[kernel.entry]
        if isinstance(compiled, str):
            raise CompileError(f"compiler: triton {triton_version()} refused a {kernel.tactic} kernel {dict(_pairs(kernel))}: {compiled}")
        result[kernel.entry] = compiled
    return result


def _pairs(kernel: Kernel) -> list[tuple[str, Any]]:
    return [item for item in kernel.config if isinstance(item, tuple) and len(item) == 2]


def _folder(target: Target) -> Path:
    folder = env().cache / "cubins" / target.isa
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(f"compiler: cannot write the cache folder {folder}: {error}; set DOVETAIL_CACHE") from error
    return folder


def _read(path: Path) -> Compiled | None:
    try:
        meta = json.loads(path.with_suffix(".json").read_text())
        binary = path.read_bytes()
    except (OSError, ValueError):
        return None
    return _compiled(binary, meta)


def _compiled(binary: bytes, meta: Mapping[str, Any]) -> Compiled:
    return Compiled(
        binary, meta["threads"], meta["shared"], meta["scratch"], meta["scratch_align"], meta["registers"], meta["stack"],
        meta["pdl"], meta["cluster"], tuple(meta["descriptors"]),
    )  # fmt: skip


def _serve(
    work: queue.SimpleQueue[tuple[str, Kernel, Path]],
    answers: queue.SimpleQueue[tuple[str, Compiled | str]],
    target: Target,
    timeout_s: float,
    stop: threading.Event,
) -> None:
    """Feed one worker process until no work is left; a new process follows one that died."""
    worker: _Worker | None = None
    try:
        while not stop.is_set():
            try:
                entry, kernel, path = work.get_nowait()
            except queue.Empty:
                return
            try:
                worker = worker or _take()
                answers.put((entry, _compile(worker, kernel, target, path, timeout_s)))
            except Exception as error:
                answers.put((entry, f"{type(error).__name__}: {error}"))
            if worker is not None and worker.dead:
                worker.close()
                worker = None
    finally:
        if worker is not None:
            _give_back(worker)


# Processes that wait for the next build: starting one takes a second, which small builds feel. Few: each holds a compiler in memory.
_MAX_IDLE = 2
_idle: list[_Worker] = []
_idle_lock = threading.Lock()


def _take() -> _Worker:
    with _idle_lock:
        if _idle:
            return _idle.pop()
    return _Worker()


def _give_back(worker: _Worker) -> None:
    with _idle_lock:
        if not worker.dead and len(_idle) < _MAX_IDLE:
            _idle.append(worker)
            return
    worker.close()


def _end_idle() -> None:
    with _idle_lock:
        ended, _idle[:] = _idle[:], []
    for worker in ended:
        worker.close()


def _forget_idle() -> None:
    """In a forked child: the processes are the parent's."""
    global _idle_lock
    _idle_lock = threading.Lock()
    for worker in _idle:
        worker.disown()
    _idle.clear()


atexit.register(_end_idle)
os.register_at_fork(after_in_child=_forget_idle)


def _compile(worker: _Worker, kernel: Kernel, target: Target, path: Path, timeout_s: float) -> Compiled | str:
    launch = kernel.launch
    assert launch is not None
    with tempfile.TemporaryDirectory(prefix="compile-", dir=path.parent) as scratch:
        source, output = Path(scratch) / f"{kernel.entry}.py", Path(scratch) / path.name
        source.write_text(module_text(kernel))
        request = {
            "entry": kernel.entry, "source": str(source), "output": str(output), "types": _parameter_types(kernel),
            "aligned": launch.aligned, "warps": launch.warps, "stages": launch.stages, "pdl": launch.pdl,
            "capability": CudaTarget.of(target).capability,
        }  # fmt: skip
        answer = worker.ask(request, timeout_s)
        if "error" in answer:
            _log.debug("%s (%s): %s", kernel.entry, kernel.tactic, answer["error"])
            return str(answer["error"])
        binary = output.read_bytes()
        # The record goes last: who finds it finds the code too.
        os.replace(output, path)
        record = Path(scratch) / "record"
        record.write_text(json.dumps(answer))
        os.replace(record, path.with_suffix(".json"))
        return _compiled(binary, answer)


def _parameter_types(kernel: Kernel) -> list[str]:
    """Triton's types of the pointer parameters."""
    launch = kernel.launch
    assert launch is not None
    maps = launch.maps or (None,) * len(launch.types)
    return [
        f"*{kind}" if m is None else f"tensordesc<{kind}[{','.join(map(str, m.block))}]>"
        for kind, m in zip(launch.types, maps, strict=True)
    ]


class _Worker:
    """One compiler process."""

    def __init__(self) -> None:
        environment = inherited(("TRITON_INTERPRET",))
        # Its own cache would keep every intermediate form; ours keeps the machine code.
        self._scratch = tempfile.TemporaryDirectory(prefix="triton-")
        environment |= {"TRITON_CACHE_DIR": self._scratch.name, "TRITON_DISABLE_LINE_INFO": "1"}
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *environment.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dovetail.codegen.triton_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
            start_new_session=True,  # an interrupt is for this process, which ends the others
        )  # fmt: skip
        self.dead = False

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to one request; an error in it if the process died or took too long."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def expire() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(timeout_s, expire)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.dead = True
        if late.is_set():
            return {"error": f"no result after {timeout_s:g} s"}
        return {"error": f"the compiler process ended with code {process.wait()}"}

    def disown(self) -> None:
        """Leave process and folder to the parent of this fork."""
        self._scratch._finalizer.detach()  # type: ignore[attr-defined]  # the only way to keep the folder
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                os.close(pipe.fileno())
        self._process.returncode = 0  # nothing to wait for

    def close(self) -> None:
        """End the process."""
        process = self._process
        if process.stdin is not None:
            try:
                process.stdin.close()
            except OSError:
                process.kill()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._scratch.cleanup()
