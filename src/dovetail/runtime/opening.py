"""Opens an engine: a plan in memory, or an engine file whose binaries are trusted or provided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dovetail.core.errors import DeviceError, TrustError, UsageError
from dovetail.core.log import logger
from dovetail.device.cpu.features import require
from dovetail.engine.file import EngineFile
from dovetail.engine.plan import Plan, weights_key
from dovetail.runtime.engine import Binary, RuntimeEngine
from dovetail.runtime.weights import Stored


@dataclass(frozen=True)
class Provided:
    """Binaries from a trusted source. `plan` replaces the file's, where it was made anew."""

    kernels: Sequence[Binary]
    host: Binary | None
    plan: Plan | None = None


Provider = Callable[[EngineFile, str], Provided]
"""Makes binaries for a target of a file that is not trusted, from its data alone.

A step table can reach any memory, so a provider returns the plan that it made itself; it may leave
`plan` out only if it has established that the file's plan is the one it would make.
"""


def open(
    source: Plan | EngineFile | str | Path,
    *,
    kernels: Provider | Binary | Sequence[Binary] | None = None,
    host: Binary | None = None,
    weights: Mapping[str, NDArray[Any]] | None = None,
    target: str | None = None,
    threads: int | None = None,
    device: str | None = None,
    driver: Any = None,
) -> RuntimeEngine:
    """Open an engine.

    Args:
        source: a plan (with `kernels` and `host` binaries and `weights`), or an engine file.
        kernels: for a file, who makes binaries when those inside are not trusted; without it such
            a file is refused.
        host: the host library, for a plan.
        weights: the initializers, for a plan or a file without them.
        target: which of a file's targets; needed only if several run on this machine.
        threads: default team size (None: the CPUs of the process).
        device: "cpu", "cuda" or "cuda:N" (default: where the engine runs best, GPUs being cuda:0).
        driver: a `device.cuda.Driver` in the place of that GPU's own, for trials without one.

    Raises:
        PlanFormatError, PlanVersionError: a damaged file, or one of a newer release.
        TrustError: untrusted binaries and no provider.
        PluginError: plugins that the engine needs are not registered.
        DeviceError: this machine lacks what the engine needs.
    """
    if isinstance(source, Plan):
        if callable(kernels):
            raise UsageError("open: got a provider for a plan, expected its binaries")
        require("plan", source.arch, source.cpu_flags)
        binaries = _binaries(kernels)
        return make(source, binaries, host, weights, threads, None, device=_device(device)[1], driver=driver)
    file = source if isinstance(source, EngineFile) else EngineFile(source)
    if kernels is not None and not callable(kernels):
        raise UsageError("open: got binaries for an engine file, expected a provider or nothing")
    kind, ordinal = _device(device)
    chosen = _choose(file, target, kind, ordinal, driver)
    if chosen.startswith("cuda"):  # before kernels are made again for nothing
        _require_gpu(str(file.path), chosen, ordinal, driver)
    known: Stored | None = None
    try:
        files = file.trusted(chosen)
        plan = files.plan
        require(str(file.path), plan.arch, plan.cpu_flags)
        binaries = _binaries(files.kernels)
        library: Binary | None = files.host
        if weights is None:
            known = Stored(weights_key(plan) or files.digest, file.hashes)
    except TrustError as error:
        if kernels is None:
            raise
        logger("runtime").info("%s: making kernels again", error)
        file.verify()
        _require_plugins(file.plan(chosen), str(file.path))
        provided = kernels(file, chosen)
        plan = file.plan(chosen) if provided.plan is None else provided.plan
        require(str(file.path), plan.arch, plan.cpu_flags)
        binaries, library = list(provided.kernels), provided.host
        # A stranger's word is no key to a cache that other engines share. What the provider says of
        # a plan of its own is none, and the weights' hashes have just been checked.
        if provided.plan is not None and weights is None and weights_key(plan):
            known = Stored(weights_key(plan), file.hashes, checked=True)
    stored = file.weights() if weights is None else weights
    return make(plan, binaries, library, stored, threads, known, device=ordinal, driver=driver, where=str(file.path))


def make(
    plan: Plan,
    kernels: Sequence[Binary],
    host: Binary | None,
    weights: Mapping[str, NDArray[Any]] | None,
    threads: int | None,
    stored: Stored | None,
    *,
    device: int = 0,
    driver: Any = None,
    where: str = "engine",
) -> RuntimeEngine:
    """The engine of a plan's target: `CudaEngine` for a GPU, else `RuntimeEngine`; arguments as of `open`.

    Raises:
        DeviceError: this machine lacks what the engine needs.
        PluginError: plugins that it needs are not registered; nothing is imported for it.
    """
    _require_plugins(plan, where)
    if plan.target.startswith("cuda"):
        from dovetail.runtime.cuda import CudaEngine

        return CudaEngine(
            plan, kernels=kernels, weights=weights, threads=threads, stored=stored, device=device, driver=driver
        )
    return RuntimeEngine(
        plan, kernels=kernels, host=host, weights=weights, threads=threads, stored=stored
    )


def _require_plugins(plan: Plan, where: str) -> None:
    """Check that the plugins that a plan names are registered.

    Raises:
        PluginError: they are not.
    """
    if plan.meta.get("plugins"):  # most engines need none: they open without that package
        from dovetail.plugins import check_requirements, requirements

        check_requirements(requirements(plan.meta), where)


def _binaries(kernels: Binary | Sequence[Binary] | None) -> list[Binary]:
    if kernels is None:
        return []
    if isinstance(kernels, str | Path | bytes | memoryview):
        return [kernels]
    return list(kernels)


def _device(text: str | None) -> tuple[str, int]:
    """Kind ("" for any) and ordinal of a device.

    Raises:
        UsageError: not a device.
    """
    kind, colon, number = (text or "").partition(":")
    if text is None or text == "cpu" or (kind == "cuda" and (not colon or number.isdecimal())):
        return kind, int(number or 0)
    raise UsageError(f"device: got {text!r}, expected 'cpu', 'cuda' or 'cuda:N'")


def _choose(file: EngineFile, target: str | None, kind: str, ordinal: int, driver: Any) -> str:
    """The target asked for, or the best of those that run here: a GPU's before a CPU's, the most demanding of several."""
    names = [name for name in file.targets if name.startswith(kind)]
    if not names or (target is not None and target in file.targets and target not in names):
        raise UsageError(
            f"{file.path}: got the device {kind}, expected one that runs {target or ', '.join(file.targets)}; build the engine for it"
        )
    if target is not None:
        return target
    if len(names) == 1:
        return names[0]
    fitting: list[tuple[int, int, str]] = []
    problems = []
    for name in names:
        plan = file.plan(name)
        where = f"{file.path} ({name})"
        try:
            require(where, plan.arch, plan.cpu_flags)
            if name.startswith("cuda"):
                _require_gpu(where, name, ordinal, driver)
            fitting.append((not name.startswith("cuda"), -len(plan.cpu_flags), name))
        except DeviceError as error:
            problems.append(str(error))
    if not fitting:
        raise DeviceError("; ".join(problems) or f"{file.path}: holds no target")
    first = min(fitting)[:2]
    return max(name for *rank, name in fitting if tuple(rank) == first)


def _require_gpu(where: str, target: str, ordinal: int, driver: Any) -> None:
    """Check that a GPU is there and runs code of a target.

    Raises:
        DeviceError: it is not, or does not.
    """
    from dovetail.device.cuda.driver import driver as driver_of
    from dovetail.device.cuda.driver import require_capability

    try:
        found = driver_of(ordinal) if driver is None else driver
    except DeviceError as error:
        raise DeviceError(f"{where}: the engine is for {target}, which cannot be used here: {error}") from error
    require_capability(where, target, found.properties)
