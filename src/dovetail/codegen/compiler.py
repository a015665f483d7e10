"""The C compiler driver: the clang inside the ziglang package, with a content-addressed cache.

Compiling and linking are two direct calls (`zig clang -c`, `zig ld.lld -shared`): about 45 ms for a
small kernel, without the 15 ms and the second cache of `zig cc`. `DOVETAIL_CC` names another compiler
(`gcc`, `clang`), which then does both steps in one call.

Flags, and why:

- `-ffp-contract=on`: `a*b + c` written as *one C expression* is fused on targets that have FMA.
  The decision is made on the source, never by the optimiser, so a scalar loop tail and its vector
  body round alike and results are bitwise equal for every thread count. Generated pointwise code
  has one operation per statement, hence rounds exactly as NumPy does.
- `-fno-math-errno -fno-trapping-math`: nobody reads errno or floating-point flags; lets loops with
  selects and square roots vectorise. Neither changes a result.
- `-fwrapv`: integers wrap around, as in NumPy.
- `-nostdlib -ffreestanding`: objects depend on nothing; `vmath.prelude` has the
  memcpy and memset that the compiler may still call.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dovetail.codegen.target import CpuTarget, Target
from dovetail.core.env import env
from dovetail.core.errors import CompileError
from dovetail.core.log import logger

_log = logger("compile")

_COMMON = (
    "-std=gnu11", "-O2", "-g0", "-fPIC", "-ffreestanding", "-ffp-contract=on",
    "-fno-math-errno", "-fno-trapping-math", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-fno-strict-aliasing", "-fwrapv", "-fno-ident", "-w",
)  # fmt: skip
_MESSAGE_LINES = 12
_TIMEOUT_S = 600


@functools.cache
def _zig() -> Path:
    try:
        import ziglang
    except ImportError as error:
        raise CompileError(
            "compiler: the ziglang package is not installed, expected it or DOVETAIL_CC; "
            "install with: pip install ziglang"
        ) from error
    folder = Path(ziglang.__file__).parent
    for name in ("zig", "zig.exe"):
        if (folder / name).is_file():
            return folder / name
    raise CompileError(f"compiler: no zig executable in {folder}; reinstall with: pip install ziglang")


def _run(command: Sequence[str]) -> str:
    """Run a command and return its stdout; CompileError with its first message lines."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise CompileError(
            f"compiler: {command[0]!r} not found, expected a C compiler; check DOVETAIL_CC"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CompileError(
            f"compiler: {Path(command[0]).name} took more than {_TIMEOUT_S} s; "
            "build with fewer kernels per object, or a lighter machine load"
        ) from error
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        shown = "\n  ".join(lines[:_MESSAGE_LINES]) or "no message"
        raise CompileError(
            f"compiler: {Path(command[0]).name} exited with {done.returncode}, expected 0:\n  {shown}"
        )
    return done.stdout


@functools.cache
def _version(cc: str) -> str:
    command = shlex.split(cc) if cc else [str(_zig()), "clang"]
    return _run([*command, "--version"]).splitlines()[0]


def compiler_version() -> str:
    """One line naming the compiler that `compile_c` uses; part of the cache key.

    Raises:
        CompileError: no compiler.
    """
    return _version(env().cc)


def flags(target: Target) -> tuple[str, ...]:
    """Compiler flags for `target`, without input and output names."""
    cpu = CpuTarget.of(target)
    result = [*_COMMON]
    if not env().cc:
        result.append(f"--target={cpu.arch}-linux-gnu")
    if cpu.march:
        result.append(f"-march={cpu.march}")
    result += [f"-m{feature}" for feature in cpu.features]
    if cpu.vector_bytes == 64:
        result.append("-mprefer-vector-width=512")
    return tuple(result)


def _compile_command(source: Path, output: Path, target: Target) -> list[str]:
    if env().cc:
        return [*shlex.split(env().cc), *flags(target), "-c", str(source), "-o", str(output)]
    headers = ["-isystem", str(_zig().parent / "lib" / "include")]
    return [str(_zig()), "clang", *flags(target), *headers, "-c", str(source), "-o", str(output)]


def _link_command(objects: Sequence[Path], output: Path, target: Target, soname: str = "") -> list[str]:
    inputs = [str(path) for path in objects]
    if env().cc:
        named = [f"-Wl,-soname,{soname}"] if soname else []
        return [*shlex.split(env().cc), "-shared", "-nostdlib", *named, "-o", str(output), *inputs]
    machine = "elf_x86_64" if target.arch == "x86_64" else "aarch64linux"
    named = ["-soname", soname] if soname else []
    return [str(_zig()), "ld.lld", "-m", machine, "-shared", "-s", "--no-undefined", *named, *inputs, "-o", str(output)]


def cache_key(source: str, target: Target) -> str:
    """The content hash under which the object of `source` for `target` is cached."""
    parts = (source, " ".join(flags(target)), compiler_version(), target.arch, target.name)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def compile_c(source: str, target: Target) -> Path:
    """Compile C text to a shared object in the cache and return its path.

    Safe with other threads and processes: objects appear by an atomic rename.

    Raises:
        CompileError: the compiler is missing or rejects the source; shows its first lines.
    """
    return compile_parts([source], target)


def compile_parts(parts: Sequence[str], target: Target, jobs: int | None = None) -> Path:
    """Compile several C texts in parallel and link them to one shared object; each part is cached on its own.

    Raises:
        CompileError: the compiler is missing or rejects a part.
    """
    keys = [cache_key(part, target) for part in parts]
    folder = _folder(target)
    final = folder / f"{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:40]}.so"
    if final.is_file():
        return final
    with ThreadPoolExecutor(max_workers=max(1, jobs or env().jobs)) as pool:
        objects = list(pool.map(lambda pair: _object(pair[0], folder / f"{pair[1]}.o", target), zip(parts, keys, strict=True)))
    _produce(final, lambda scratch: [_link_command(objects, scratch / final.name, target)])
    return final


def compile_library(source: str, target: Target, name: str) -> Path:
    """Compile C text to a shared library of that file name, in a folder of its own in the cache; returns its path.

    Whoever asks the loader for `name` gets this library, once it is loaded or its folder is on the library path.

    Raises:
        CompileError: the compiler is missing or rejects the source.
    """
    key = cache_key(source, target)
    folder = _folder(target)
    final = folder / key / name
    if not final.is_file():
        built = _object(source, folder / f"{key}.o", target)
        _produce(final, lambda scratch: [_link_command([built], scratch / name, target, name)])
    return final


def _folder(target: Target) -> Path:
    return env().cache / "objects" / target.name.replace(":", "-")


def _object(source: str, final: Path, target: Target) -> Path:
    """The object file of one C text."""

    def commands(scratch: Path) -> list[list[str]]:
        text = scratch / "kernels.c"
        text.write_text(source)
        return [_compile_command(text, scratch / final.name, target)]

    if not final.is_file():
        _produce(final, commands)
        _log.debug("compiled %d bytes of C for %s", len(source), target)
    return final


def _produce(final: Path, commands: Callable[[Path], list[list[str]]]) -> None:
    """Run commands that write a file of final's name into a scratch folder, then rename it to final."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix="compile-", dir=final.parent)
    except OSError as error:
        raise CompileError(
            f"compiler: cannot write the cache folder {final.parent}: {error}; set DOVETAIL_CACHE"
        ) from error
    with scratch as name:
        for command in commands(Path(name)):
            _run(command)
        os.replace(Path(name) / final.name, final)


def compile_many(sources: Sequence[str], target: Target, jobs: int | None = None) -> list[Path]:
    """Compile several sources in parallel (`jobs` at a time, default DOVETAIL_JOBS), in order.

    Raises:
        CompileError: for the first source that fails.
    """
    distinct = list(dict.fromkeys(sources))
    with ThreadPoolExecutor(max_workers=max(1, jobs or env().jobs)) as pool:
        paths = dict(zip(distinct, pool.map(lambda s: compile_c(s, target), distinct), strict=True))
    return [paths[s] for s in sources]
