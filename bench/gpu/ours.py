"""Our engine in the GPU suite: build, load, replays on resident inputs, accuracy, the slowest steps, the floor."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import dovetail
from bench.gpu import roofline, suite
from bench.gpu.resident import Resident
from dovetail.core.env import override
from dovetail.engine.plan import HostSegment, NativeSegment

Array = np.ndarray[Any, Any]
ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4, "tf32": 4}


@dataclass
class Ours:
    """An engine ready to be timed, and what is known of it.

    Attributes:
        resident: the engine on inputs of its own on the device.
        facts: plain data for the record.
    """

    engine: dovetail.Engine
    resident: Resident
    facts: dict[str, Any] = field(default_factory=dict)


def prepare(
    model: suite.Model, batch: int, feeds: Mapping[str, Array], precision: str, *, out: Path, options: Mapping[str, Any], cold: bool,
    warm: bool, io: str,
) -> Ours:  # fmt: skip
    """Build, save, load; times of each.

    Args:
        io: format of images, such as "f16:channels_last" (the peers get theirs so); "" as the model has them.
        out: where the engine file goes.
        options: further options of `dovetail.build`.
        cold: with an empty cache of its own, else with the user's.
        warm: also build a second time, with what the first one left in the cache.
    """
    proto = model.onnx(batch)
    facts: dict[str, Any] = {"io": io if model.image else ""}
    if model.image and io:
        options = {**options, "io_formats": dict.fromkeys(feeds, io)}
    cache = out / f"cache-{model.name}-{batch}"
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    scope: AbstractContextManager[object] = override(cache=cache) if cold else nullcontext()
    with scope:
        engine, facts["build_s"] = _build(model, proto, batch, precision, options)
        if warm:
            again, facts["warm_build_s"] = _build(model, proto, batch, precision, options)
            del again
        facts |= _load(engine, out / f"{model.name}-{batch}-{precision}.plan")
    facts |= _steps(engine)
    facts["input_strides"] = [None if p.tensor.strides is None else "channels_last" for p in engine.plan.inputs]
    facts["tactics"] = engine.report().tactics
    return Ours(engine, Resident(engine, feeds), facts)


def _build(
    model: suite.Model, proto: onnx.ModelProto, batch: int, precision: str, options: Mapping[str, Any]
) -> tuple[dovetail.Engine, float]:
    start = time.perf_counter()
    engine = dovetail.build(proto, device="cuda", precision=precision, shapes=model.shapes(proto, batch), verify="off", **options)
    return engine, time.perf_counter() - start


def _load(engine: dovetail.Engine, path: Path) -> dict[str, Any]:
    engine.save(path)
    start = time.perf_counter()
    loaded = dovetail.load(path)
    seconds = time.perf_counter() - start
    del loaded
    size = path.stat().st_size
    path.unlink()
    return {"load_s": seconds, "file_bytes": size}


def _steps(engine: dovetail.Engine) -> dict[str, Any]:
    segments = engine.plan.main.segments
    native = [step for s in segments if isinstance(s, NativeSegment) for step in s.steps]
    return {
        "kernels": len(native), "distinct_kernels": len({s.kernel for s in native}),
        "host_steps": [s.op for s in segments if isinstance(s, HostSegment)],
    }  # fmt: skip


def floor(model: suite.Model, batch: int, precision: str, kernels: int, gpu_name: str, target: Any) -> dict[str, Any]:
    """The floors of a model; see `roofline`."""
    proto = model.onnx(batch)
    module = roofline.fused_module(proto, model.shapes(proto, batch), target)
    return roofline.floors(roofline.layers(module, ITEMSIZE[precision], {}), kernels, gpu_name, precision)


def slowest(engine: dovetail.Engine, feeds: Mapping[str, Array], count: int = 3) -> list[dict[str, Any]]:
    """The steps that take longest, each timed alone: their sum exceeds a run's time."""
    given = {b.name: np.ascontiguousarray(feeds[b.name]).astype(b.dtype.numpy) for b in engine.inputs}
    rows = sorted(engine.profile(given, runs=10).rows, key=lambda r: -r.us)
    return [{"nodes": list(r.origin[:4]), "tactic": r.tactic or r.kernel, "us": r.us, "share": r.share} for r in rows[:count]]


def reference(proto: onnx.ModelProto, feeds: Mapping[str, Array], torch_result: Array | None, same_weights: bool) -> tuple[str, Array]:
    """(who says so, the fp32 result): ONNX Runtime, torch with all weights from the model, or the NumPy references."""
    name = proto.graph.output[0].name
    try:
        import onnxruntime
    except ImportError:
        if torch_result is not None and same_weights:
            return "torch fp32", torch_result
        return "NumPy references", _by_references(proto, feeds)[name]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return "ONNX Runtime, CPU", np.asarray(session.run([name], dict(feeds))[0])


def _by_references(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    from dovetail.frontend.importer import import_onnx
    from dovetail.ops.evaluate import evaluate

    module = import_onnx(proto, {k: list(v.shape) for k, v in feeds.items()})
    return dict(evaluate(module, dict(feeds)))


def relative_l2(got: Array, want: Array) -> float:
    """Relative L2 distance; infinite for NaN, Inf or another shape."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    wide = want.astype(np.float64)
    return float(np.linalg.norm(got.astype(np.float64) - wide) / (np.linalg.norm(wide) or 1.0))
