"""`dovetail.build`: a model becomes an engine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx

from dovetail import builder, runtime
from dovetail.api.engine import Artifacts, Engine, Progress
from dovetail.builder.options import BuildOptions
from dovetail.builder.select import by_rule
from dovetail.builder.verify import WeightHashes, content_hash, verify_built
from dovetail.device.cpu import default_threads
from dovetail.engine.plan import weights_key
from dovetail.frontend.importer import import_onnx
from dovetail.frontend.reader import ModelSource
from dovetail.runtime.weights import Stored
from dovetail.tuner.choose import Tuner


def build(
    model: ModelSource,
    *,
    device: str = "cpu",
    target: str | None = None,
    precision: str = "fp32",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    threads: int | None = None,
    verify: str = "sample",
    strict_fp32: bool = False,
    tune: bool = True,
    time_budget: float = 6.0,
    progress: Progress | None = None,
) -> Engine:
    """Compile an ONNX model.

    Args:
        model: path, bytes or ModelProto.
        device: "cpu".
        target: instruction set, such as "cpu:avx2"; default: this machine's best.
        precision: "fp32".
        shapes: input shapes by name; a dim is a size, a symbol's name, or a range "1..32".
        threads: default team size of the engine; default: all CPUs of the process.
        verify: how much to check against the reference: "sample" (about ten seconds), "full", "off".
        strict_fp32: forbid Winograd and other transforms that are not direct sums.
        tune: measure candidate kernels; False takes the first by rule.
        time_budget: seconds that measuring may take.
        progress: called as progress(stage, done, total).

    Raises:
        ModelError: the model cannot be read, or (UnsupportedOpError) all that is not supported in it.
        BuildError: it cannot be built as asked, or verification failed.
        UsageError: an unknown option value.
    """
    start = time.perf_counter()
    options = BuildOptions(device, target, precision, shapes, strict_fp32, verify, tune, time_budget)
    team = default_threads() if threads is None else threads
    tuner = Tuner(team, time_budget, progress=progress or (lambda stage, done, total: None)) if tune else None
    with WeightHashes() as hashing:
        built = builder.build(
            model, options, progress=progress, choose=by_rule if tuner is None else tuner, after=hashing.after
        )
        hashes = hashing.of(built.module.weights)
    content = content_hash(built.graph_text, hashes)
    opened = runtime.RuntimeEngine(
        built.plan, kernels=[built.binary], host=built.host_binary, weights=built.module.weights, threads=threads,
        stored=Stored(weights_key(built.plan), hashes, checked=True),
    )  # fmt: skip
    certificate = verify_built(
        built, opened.run, lambda: import_onnx(model, shapes), content=content, level=verify, threads=opened.threads,
        progress=progress,
    )  # fmt: skip
    opened.plan = replace(opened.plan, certificate=certificate)
    info = {"model_sha256": content, **_requested(options, built)}
    seconds = {name: round(value, 4) for name, value in built.seconds.items()}
    record = {
        "seconds": seconds | {"total": round(time.perf_counter() - start, 4)},
        "machine": platform.machine(), "system": platform.system(), "source": _source(model), "versions": _versions(),
    }  # fmt: skip
    return Engine(opened, Artifacts(built.graph_text, built.source, built.binary, built.host_binary, info, record))


def _requested(options: BuildOptions, built: builder.Built) -> dict[str, Any]:
    return {
        "requested": {"device": options.device, "target": options.target, "precision": options.precision,
                      "strict_fp32": options.strict_fp32, "verify": options.verify},
        "actual": {"target": str(built.target), "precision": "fp32"},
    }  # fmt: skip


def _source(model: ModelSource) -> str:
    return os.path.abspath(model) if isinstance(model, str | os.PathLike) else ""


def _versions() -> dict[str, str]:
    import numpy

    from dovetail.codegen.compiler import compiler_version
    from dovetail.core.version import __version__

    return {"dovetail": __version__, "onnx": onnx.__version__, "numpy": numpy.__version__, "compiler": compiler_version()}
