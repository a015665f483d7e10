"""Compiles Triton kernels to machine code of a GPU, ahead of time, in processes of their own, with a cache by content.

    compiled = compile_kernels(kernels, target)      # entry -> Compiled or the reason why not

Triton is imported by the worker processes only (`triton_worker`): a build needs no GPU, no driver and no torch, a compiler that
crashes or hangs costs one kernel, and processes compile in parallel.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.metadata
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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


@triton.jit
def nearest_tf32(x):
    return tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


"""
"""What stands in front of every source: `prefetch_l2(pointers)` asks for cache lines without waiting for them; `nearest_tf32(x)` rounds
fp32 to 10 bits of fraction, ties away from zero.
"""

_COMMAND = (sys.executable, "-m", "dovetail.codegen.triton_worker")

TIMEOUT_S = 60.0
"""Seconds of CPU time that one kernel may take; a compiler that fights register pressure for longer has lost."""

_PATIENCE = 5.0
"""So many times longer may it take by the clock, as other programs want the CPUs, too."""

_LOOK_S = 0.5  # between looks at the CPU time of a compiler that takes long


class Overdue(str):
    """The reason why a kernel has no machine code that says more of the machine than of the kernel: another try may have some."""

    __slots__ = ()



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
    deadline: float | None = None,
    done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Compiled | str]:
    """Machine code by entry, or the reason why a kernel has none.

    Whatever ends this early, Ctrl-C included, ends the processes with it; what was compiled by then is cached.

    Args:
        kernels: Triton kernels; library calls are passed over, equal ones compiled once.
        jobs: processes; default DOVETAIL_JOBS.
        timeout_s: seconds of CPU time per kernel, so that a busy machine refuses no more than an idle one. One that takes five
            times as long by the clock, or this long beyond the deadline, is given up, too: its reason is `Overdue`, nothing to remember.
        deadline: on the clock of `time.monotonic`: kernels whose turn does not come before it are left out of the result; they
            have their turns in the order given.
        done: called as done(finished, all) as kernels come out.

    Raises:
        CompileError: no Triton, the cache folder cannot be written, or the disk is full.
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
        order = list(missing.items())
        if deadline is None:
            order.sort(key=lambda item: -len(item[1][0].source))  # long ones first, so that none is left alone at the end
        crew = _Crew(order, target, timeout_s, deadline, max(1, min(jobs or env().jobs, len(missing))))
        try:
            for entry, result in crew.answers():
                found[entry] = result
                finished += 1
                done(finished, len(wanted))
        finally:
            crew.close()
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
        raise _unusable(folder, str(error)) from error
    return folder


def _read(path: Path) -> Compiled | None:
    try:
        meta = json.loads(path.with_suffix(".json").read_text())
        binary = path.read_bytes()
        # A file that was cut short is as good as none: what is missing is compiled again.
        return _compiled(binary, meta) if hashlib.sha256(binary).hexdigest() == meta["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _compiled(binary: bytes, meta: Mapping[str, Any]) -> Compiled:
    return Compiled(
        binary, meta["threads"], meta["shared"], meta["scratch"], meta["scratch_align"], meta["registers"], meta["stack"],
        meta["pdl"], meta["cluster"], tuple(meta["descriptors"]),
    )  # fmt: skip


class _Crew:
    """Threads that feed one worker process each until no work is left; a new process follows one that died."""

    def __init__(
        self, order: list[tuple[str, tuple[Kernel, Path]]], target: Target, timeout_s: float, deadline: float | None, count: int
    ) -> None:
        self._work: queue.SimpleQueue[tuple[str, tuple[Kernel, Path]]] = queue.SimpleQueue()
        for item in order:
            self._work.put(item)
        self._answers: queue.SimpleQueue[tuple[str, Compiled | str | CompileError] | None] = queue.SimpleQueue()
        self._target, self._timeout_s, self._deadline = target, timeout_s, deadline
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def answers(self) -> Iterator[tuple[str, Compiled | str]]:
        """Entries with their machine code or the reason why not, as they come out, until all threads are done.

        Raises:
            CompileError: nothing can be compiled here any more.
        """
        left = len(self._threads)
        while left:
            answer = self._answers.get()
            if answer is None:
                left -= 1
            elif isinstance(answer[1], CompileError):
                raise answer[1]
            else:
                yield answer[0], answer[1]

    def close(self) -> None:
        """End what is under way, in the middle of a kernel if need be, and wait until its folders are gone."""
        self._stop.set()
        with self._lock:
            for worker in self._workers:
                worker.kill()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        worker: _Worker | None = None
        try:
            while not self._stop.is_set() and (self._deadline is None or time.monotonic() < self._deadline):
                try:
                    entry, (kernel, path) = self._work.get_nowait()
                except queue.Empty:
                    return
                try:
                    worker = worker or self._hire()
                    waited = worker.waited
                    answer: Compiled | str | CompileError = _compile(worker, kernel, self._target, path, self._timeout_s, self._patience())
                    if worker.dead and waited and not worker.late:
                        # It may have been gone before it was asked; only a fresh one shows whether the kernel is to blame.
                        self._dismiss(worker)
                        worker = self._hire(fresh=True)
                        answer = _compile(worker, kernel, self._target, path, self._timeout_s, self._patience())
                except OSError as error:
                    answer = _unusable(path.parent, str(error))
                except CompileError as error:
                    answer = error
                except Exception as error:  # of any kind: the caller waits for an answer
                    answer = CompileError(f"compiler: a {kernel.tactic} kernel could not be compiled: {type(error).__name__}: {error}")
                self._answers.put((entry, answer))
                if worker is not None and worker.dead:
                    self._dismiss(worker)
                    worker = None
        finally:
            if worker is not None:
                self._dismiss(worker)
            self._answers.put(None)

    def _patience(self) -> float:
        """Seconds by the clock that a kernel may take now."""
        longest = _PATIENCE * self._timeout_s
        if self._deadline is None:
            return longest
        return min(longest, max(self._deadline - time.monotonic(), 0.0) + self._timeout_s)

    def _hire(self, fresh: bool = False) -> _Worker:
        with self._lock:
            if self._stop.is_set():
                raise CompileError("compiler: it was stopped")
            worker = _Worker() if fresh else _take()
            self._workers.add(worker)
        return worker

    def _dismiss(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
        _give_back(worker)


def _unusable(folder: Path, reason: str) -> CompileError:
    return CompileError(
        f"compiler: cannot compile into the cache folder {folder}: {reason}; free space there, or set DOVETAIL_CACHE to a folder that "
        "can be written"
    )


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
            worker.waited = True
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


def _compile(worker: _Worker, kernel: Kernel, target: Target, path: Path, timeout_s: float, patience_s: float) -> Compiled | str:
    launch = kernel.launch
    assert launch is not None
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have pruned the cache meanwhile
    with tempfile.TemporaryDirectory(prefix="compile-", dir=path.parent) as scratch:
        source, output = Path(scratch) / f"{kernel.entry}.py", Path(scratch) / path.name
        source.write_text(module_text(kernel))
        request = {
            "entry": kernel.entry, "source": str(source), "output": str(output), "types": _parameter_types(kernel),
            "aligned": launch.aligned, "warps": launch.warps, "stages": launch.stages, "pdl": launch.pdl,
            "capability": CudaTarget.of(target).capability,
        }  # fmt: skip
        answer = worker.ask(request, timeout_s, patience_s)
        if answer.get("unusable"):
            raise _unusable(path.parent, answer["error"])
        if "error" in answer:
            _log.debug("%s (%s): %s", kernel.entry, kernel.tactic, answer["error"])
            return answer["error"] if isinstance(answer["error"], Overdue) else str(answer["error"])
        binary = output.read_bytes()
        # The record goes last: who finds it finds the code too.
        os.replace(output, path)
        record = Path(scratch) / "record"
        record.write_text(json.dumps(answer | {"sha256": hashlib.sha256(binary).hexdigest()}))
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


def _stat(process: int) -> list[str]:
    """What the system says of a process behind its name; nothing of one that has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _members(group: int) -> list[int]:
    """The processes of a group."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [process for process in found if (fields := _stat(process)) and int(fields[2]) == group]


def _cpu_seconds(processes: Iterable[int]) -> float:
    """CPU time that processes, and those that they have waited for, have used so far."""
    ticks = sum(int(text) for process in processes for text in _stat(process)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


class _Worker:
    """One compiler process."""

    def __init__(self) -> None:
        environment = inherited(("TRITON_INTERPRET",))
        # Its own cache would keep every intermediate form; ours keeps the machine code.
        self._scratch = tempfile.TemporaryDirectory(prefix="triton-")
        kept, passing = (Path(self._scratch.name) / name for name in ("cache", "tmp"))
        kept.mkdir()
        passing.mkdir()
        # Files of the assembler, too, go with the process, in whatever moment it ends.
        environment |= {"TRITON_CACHE_DIR": str(kept), "TMPDIR": str(passing), "TRITON_DISABLE_LINE_INFO": "1"}
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *environment.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
            start_new_session=True,  # an interrupt is for this process, which ends the others
        )  # fmt: skip
        self.dead = False
        self.late: str | None = None  # dead because it took too long: the reason
        self.waited = False  # it has served before

    def kill(self) -> None:
        """End the process and the assembler that it may have started, at once."""
        self.dead = True
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def ask(self, request: Mapping[str, Any], timeout_s: float, patience_s: float) -> dict[str, Any]:
        """The answer to one request; an error in it if the process died or took too long."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None

        answered = threading.Event()
        watch = threading.Thread(target=self._watch, args=(answered, timeout_s, patience_s), daemon=True)
        watch.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            answered.set()
            watch.join()
        if line.endswith("\n"):  # else it died over its answer
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.dead = True
        if self.late is not None:
            return {"error": self.late}
        return {"error": f"the compiler process ended with code {process.wait()}"}

    def _watch(self, answered: threading.Event, timeout_s: float, patience_s: float) -> None:
        """End the process if it takes too long over a request."""
        start, before = time.monotonic(), _cpu_seconds([self._process.pid])
        wait_s = min(timeout_s, patience_s)  # one process after the other works: no more CPU time than that has passed before
        while not answered.wait(wait_s):
            wait_s = _LOOK_S
            used, passed = _cpu_seconds(_members(self._process.pid)) - before, time.monotonic() - start
            if used > timeout_s:
                self.late = f"no result after {timeout_s:g} s of CPU time"
            elif passed > patience_s:
                self.late = Overdue(f"no result after {passed:.0f} s, of which it had a CPU for {used:.0f} s")
            else:
                continue
            self.kill()
            return

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
                self.kill()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._scratch.cleanup()
