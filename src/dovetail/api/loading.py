"""`dovetail.load`: an engine file becomes an engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dovetail import plugins as register
from dovetail import runtime
from dovetail.api import remade
from dovetail.api.engine import Artifacts, Engine
from dovetail.core.errors import CompileError, EngineError, TrustError
from dovetail.core.log import logger
from dovetail.engine.file import EngineFile, kernels_member
from dovetail.plugins import Source

if TYPE_CHECKING:
    from dovetail.api.weight_sources import WeightSource

_log = logger("load")


def load(
    path: str | os.PathLike[str] | bytes | bytearray | memoryview,
    *,
    threads: int | None = None,
    trust: bool = False,
    weights: WeightSource | None = None,
    target: str | None = None,
    device: str | None = None,
    plugins: Iterable[Source] = (),
) -> Engine:
    """Open an engine file.

    Compiled kernels inside are used only if a trusted key signed them (this machine's own, or one
    added by `dovetail trust add`). Otherwise the kernels are made again from the stored graph and
    tactics, through the cache of compiled objects; source text in the file is never compiled.

    Args:
        path: of the file; or its contents, as `Engine.to_bytes` gives them.
        threads: default team size; default: all CPUs of the process.
        trust: run the binaries in the file whoever signed them, and import the modules of plugins that it names. Both are code
            with your rights.
        weights: the weights, for a file without them, or other ones: whatever `Engine.refit` takes.
        target: which of the file's targets; default: the best that runs here, on a GPU where one is.
        device: "cpu", "cuda" or "cuda:N"; default: as the target says, on the first GPU.
        plugins: Python files, modules or their names that register the plugins which the engine needs.

    Raises:
        PlanFormatError, PlanVersionError: a damaged file, or one of a newer release.
        TrustError: kernels are not trusted and cannot be made again.
        RefitError: the weights do not fit.
        PluginError: plugins that the engine needs are not registered; without `trust`, nothing is imported for it.
        UsageError: the file has nothing for that device.
        DeviceError: this machine lacks what the engine needs.
    """
    register.load(plugins)
    file = EngineFile(Path(path) if isinstance(path, str | os.PathLike) else bytes(path))
    if trust:
        for name in file.targets:
            register.check_requirements(register.requirements(file.plan(name).meta), str(file.path), search=True)
    given: Mapping[str, np.ndarray[Any, Any]] | None = None
    if weights is not None:
        from dovetail.api.refitting import all_weights

        given = all_weights(file, weights)[0]
    made: list[Artifacts] = []

    def provide(source: EngineFile, chosen: str) -> runtime.Provided:
        if trust:
            return _as_stored(source, chosen)
        artifacts, provided = _make_again(source, chosen, given)
        made.append(artifacts)
        return provided

    opened = runtime.open(file, kernels=provide, weights=given, target=target, threads=threads, device=device)
    artifacts = made[0] if made else _stored_artifacts(file, opened.plan.target)
    return Engine(opened, artifacts)


def _member(file: EngineFile, target: str, name: str) -> bytes | None:
    member = f"targets/{target.replace(':', '-')}/{name}"
    return bytes(file.container.member(member)) if member in file.container else None


def _stored_artifacts(file: EngineFile, target: str) -> Artifacts:
    return Artifacts(
        file.graph, file.source(target), _member(file, target, kernels_member(target)), _member(file, target, "host.so"),
        file.info_of(target), file.build,
    )  # fmt: skip


def _as_stored(file: EngineFile, target: str) -> runtime.Provided:
    """The binaries of the file, on the caller's word."""
    kernels = _member(file, target, kernels_member(target))
    _log.warning("%s: running unsigned machine code because trust=True", file.path)
    return runtime.Provided([] if kernels is None else [kernels], _member(file, target, "host.so"))


def _make_again(
    file: EngineFile, target: str, weights: Mapping[str, np.ndarray[Any, Any]] | None
) -> tuple[Artifacts, runtime.Provided]:
    """Plan and kernels from the stored graph and tactics, or from the cache of what was made of them before."""
    # Weights from elsewhere have no hashes to go by.
    stored = file.plan(target)
    key = remade.key_of(file, target, stored.meta) if weights is None else ""
    made = remade.read(key) if key else None
    if made is None:
        made = _compile(file, target, weights)
        if key:
            remade.write(key, made)
    artifacts = Artifacts(made.graph, made.source, made.kernels, made.host, file.info_of(target), file.build)
    # What a stranger's file says of itself is shown, but as a claim.
    claimed = {**stored.certificate, "stale": True} if stored.certificate else {}
    return artifacts, runtime.Provided([made.kernels], made.host, replace(made.plan, certificate=claimed))


def _compile(
    file: EngineFile, target: str, weights: Mapping[str, np.ndarray[Any, Any]] | None
) -> remade.Remade:
    """Everything after *recognise*, with the recorded tactics."""
    from dovetail import builder
    from dovetail.builder.restore import as_recorded, options_of, ranges_of, restore, spread_of

    stored = file.plan(target)
    arrays = file.weights() if weights is None else weights
    if arrays is None:
        raise EngineError(f"{file.path}: got no weights in the file, expected them or load(…, weights=…)")
    try:
        module = restore(file.graph, stored, arrays)
        built = builder.compile_module(
            module, options_of(stored), choose=as_recorded(stored), ranges=ranges_of(stored), spread=spread_of(stored)
        )
    except CompileError as error:
        package = "'dovetail[cuda]'" if target.startswith("cuda") else "ziglang"
        raise TrustError(
            f"{file.path}: its kernels are not signed by a trusted key and cannot be made again ({error}); "
            f"install a compiler (pip install {package}), or trust the key: dovetail trust add KEY"
        ) from error
    return remade.Remade(built.plan, built.graph_text, built.source, built.binary, built.host_binary)
