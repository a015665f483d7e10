"""Reports of engines as pages: what was built and, where the engine can run here, how fast it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.api.report import certificate_text, report, rules_text
from dovetail.benchmark import machine
from dovetail.core.dims import Expr, symbols
from dovetail.engine.file import EngineFile
from dovetail.engine.plan import Plan
from dovetail.view.document import document
from dovetail.view.page import page, split_sources, write_text

if TYPE_CHECKING:
    from dovetail.api.engine import Engine

_RUNS = 10
_SECONDS = 1.0


@dataclass(frozen=True)
class Contents:
    """What a report is made of.

    Attributes:
        graph: the model as IR text.
        source: text of the kernels.
        info, build: as the engine file has them.
        onnx_ops: operators of the model's nodes by their names, where the model is there.
    """

    plan: Plan
    graph: str
    source: str
    info: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    onnx_ops: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """How fast an engine is here: a profile, latencies of whole runs, what the machine could do, and at which symbol sizes."""

    profile: Mapping[str, Any]
    latency: Mapping[str, float] | None
    machine: machine.Machine | None
    sizes: Mapping[str, int]


def contents_of_file(file: EngineFile, target: str) -> Contents:
    """The contents of an engine file for one of its targets; nothing of it is run."""
    return Contents(file.plan(target), file.graph, file.source(target), file.info_of(target), file.build)


def contents_of_engine(engine: Engine) -> Contents:
    """The contents of an engine."""
    return Contents(engine.plan, engine.graph, engine.source, engine.info, engine.build_info)


def measure(engine: Engine, inputs: Mapping[str, Any] | None = None, *, whole: bool = True) -> Measured:
    """Profile and time an engine, in a few seconds.

    Args:
        inputs: default: seeded ones.
        whole: also time whole runs.
    """
    feeds = engine.sample_inputs() if inputs is None else inputs
    profile = engine.profile(feeds, runs=_RUNS)
    latency = engine.bench(feeds, seconds=_SECONDS) if whole else None
    return Measured(profile.json(), latency, _machine(engine), _sizes(engine, feeds))


def make_document(contents: Contents, title: str, measured: Measured | None = None, not_run: str = "") -> dict[str, Any]:
    """What the page of an engine shows, as JSON data (docs/report.md).

    Args:
        not_run: why there are no measurements.

    Raises:
        PlanFormatError: the plan holds no build report.
    """
    built = report(contents.plan, measured.sizes if measured else None).json()
    return document(
        contents.plan, contents.graph, built, title=title, info=contents.info, build=contents.build,
        profile=measured.profile if measured else None, latency=measured.latency if measured else None,
        machine=measured.machine if measured else None, not_run=not_run, certificate=certificate_text(built["certificate"]),
        onnx_ops=contents.onnx_ops, rules=rules_text(built.get("rules"), built["certificate"].get("level", "off") != "off"),
    )  # fmt: skip


def make_page(contents: Contents, title: str, measured: Measured | None = None, not_run: str = "") -> str:
    """The page of an engine; see `make_document`."""
    data = make_document(contents, title, measured, not_run)
    return page(data, split_sources(contents.source, (k.entry for k in contents.plan.kernels)))


def save_page(engine: Engine, path: str | os.PathLike[str], inputs: Mapping[str, Any] | None, run: bool) -> None:
    """Write the page of an engine; see `Engine.save_report`."""
    measured = measure(engine, inputs) if run else None
    title = Path(engine.model_path).name or "engine"
    write_text(path, make_page(contents_of_engine(engine), title, measured, "" if run else "the report was made without a run"))


def _machine(engine: Engine) -> machine.Machine | None:
    device = engine.runtime.device
    if device == "cpu":
        return machine.cpu(engine.threads)
    from dovetail.device.cuda import driver

    return machine.gpu(driver(int(device.partition(":")[2] or 0)).properties.name)


def _sizes(engine: Engine, feeds: Mapping[str, Any]) -> dict[str, int]:
    """Symbol values of a call."""
    found: dict[str, int] = {}
    for binding in engine.inputs:
        shape = getattr(feeds.get(binding.name), "shape", ())
        for dim, extent in zip(binding.shape or (), shape, strict=False):
            if isinstance(dim, Expr) and symbols(dim) == {str(dim)}:
                found[str(dim)] = int(extent)
    return found
