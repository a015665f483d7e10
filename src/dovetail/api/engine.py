"""The engine as the user holds it."""

from __future__ import annotations

import functools
import io
import json
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dovetail.api.bindings import Binding, as_kind, bindings, exporter_of
from dovetail.api.profile import Profile, summarise
from dovetail.api.report import Report, report
from dovetail.api.resident import resident_run
from dovetail.core.dims import Expr, evaluate, symbols
from dovetail.core.errors import BindingError, EngineError, UsageError
from dovetail.engine.file import EngineFile, TargetFiles, add_target, write_engine
from dovetail.engine.plan import Plan, digests
from dovetail.runtime import ExecutionContext, RuntimeEngine
from dovetail.runtime.engine import tap_names
from dovetail.runtime.shapes import sizes_of

if TYPE_CHECKING:
    from dovetail.api.inference import ShapeInference
    from dovetail.api.refitting import Refit
    from dovetail.api.weight_names import WeightNames
    from dovetail.api.weight_sources import WeightSource
    from dovetail.runtime.engine import Refitted
    from dovetail.view.graph import GraphStep

Progress = Callable[[str, int, int], None]

_BENCH_ROUNDS = 10
_OWN_INFO = ("model_sha256", "requested", "actual")


@dataclass(frozen=True)
class Artifacts:
    """What an engine was made of, for saving it and for checking it again.

    Attributes:
        graph: canonical IR text.
        source: C text of the kernels; "" where it is not known.
        kernels, host: compiled libraries.
        info: manifest data (requested, actual, model hash).
        build: data of this build (times, machine, versions).
    """

    graph: str
    source: str
    kernels: bytes | Path | None
    host: bytes | Path | None
    info: dict[str, Any] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)


class Engine:
    """A compiled model. Thread-safe: any number of threads may run it at once.

    Made by `dovetail.build` and `dovetail.load`.
    """

    def __init__(self, runtime: RuntimeEngine, artifacts: Artifacts) -> None:
        self._runtime = runtime
        self._artifacts = artifacts
        self._plan = runtime.plan
        self._lock = threading.Lock()
        self.inputs: list[Binding] = bindings(runtime.plan.inputs)
        self.outputs: list[Binding] = bindings(runtime.plan.outputs)

    # ------------------------------------------------------------------ running
    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        taps: Collection[str] = (),
        stream: Any = None,
    ) -> dict[str, Any]:
        """Run once.

        Args:
            inputs: one array per input, by name: NumPy, or anything with DLPack or the buffer
                protocol. Contiguous arrays are read in place; an engine on a GPU takes arrays of
                its device as well (DLPack or `__cuda_array_interface__`).
            outputs: arrays to write into, by name; the others are fresh and the caller's.
            threads: team size of this run.
            stream: of an engine on a GPU: the stream to run in (a handle, or a stream of torch or
                cupy). Results on the device then follow in its order; if it is being captured, the
                run becomes part of the caller's graph.
            taps: names of intermediate values to return as well (see `tap_names`); a value
                inside a loop comes as a list, one array per iteration.

        Returns:
            Arrays by name: NumPy's, or of the kind of the first input that is on the device.

        Raises:
            BindingError: a missing or unknown name, a wrong dtype.
            ShapeError: a shape that does not fit.
            ExecutionError: the run itself failed.
        """
        if not taps:
            return self._runtime.run(inputs, outputs, threads=threads, stream=stream)
        if outputs is not None:
            raise UsageError("run: got outputs and taps, expected one of them; taps need buffers of their own")
        results, found = self._runtime.tap(inputs, taps, threads=threads)
        return results | {name: arrays[0] if len(arrays) == 1 else arrays for name, arrays in found.items()}

    def run_async(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None) -> Any:
        """Queue a run on a GPU and return: `.outputs` by name, `.wait()` for complete ones, `.done`.

        Raises:
            UsageError: the engine runs on the CPU.
        """
        return self._runtime.run_async(inputs, outputs, stream=stream)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs given in order or by name.

        Arrays of a library with DLPack (torch, jax, cupy on the host) come back as that library's.

        Returns:
            The array of the only output; a tuple of arrays in order if there are several.

        Raises:
            BindingError: as `run`; too many inputs, or one given twice.
        """
        names = [b.name for b in self.inputs]
        if len(args) > len(names):
            raise BindingError(f"engine: got {len(args)} inputs, expected {len(names)} ({', '.join(names)})")
        feeds = dict(zip(names, args, strict=False))
        twice = sorted(set(feeds) & set(kwargs))
        if twice:
            raise BindingError(f"engine: got {', '.join(twice)} in order and by name, expected it once")
        feeds |= kwargs
        results = self._runtime.run(feeds)
        from_dlpack = exporter_of(list(feeds.values()))
        values = tuple(as_kind(results[b.name], from_dlpack) for b in self.outputs)
        return values[0] if len(values) == 1 else values

    def context(self) -> ExecutionContext:
        """A context for one thread, which keeps its memory; `context.run(inputs, outputs)`."""
        return self._runtime.context()

    # ------------------------------------------------------------------ looking inside
    @property
    def plan(self) -> Plan:
        """The compiled program as data."""
        return self._plan

    @property
    def runtime(self) -> RuntimeEngine:
        """What runs it."""
        return self._runtime

    @property
    def threads(self) -> int:
        """Default team size."""
        return self._runtime.threads

    @property
    def graph(self) -> str:
        """The model as canonical IR text."""
        return self._artifacts.graph

    @property
    def source(self) -> str:
        """C text of the kernels; "" if the engine came without it."""
        return self._artifacts.source

    @property
    def info(self) -> dict[str, Any]:
        """What is known of the model and of the build, as the engine file's manifest has it (JSON data)."""
        return dict(self._artifacts.info)

    @property
    def build_info(self) -> dict[str, Any]:
        """What is known of this build: seconds by stage, machine, versions, where the model was (JSON data)."""
        return dict(self._artifacts.build)

    def annotate(self, name: str, data: Any) -> None:
        """Keep JSON data of the caller's with the engine, in its `info` and in the files that `save` writes from now on.

        Raises:
            UsageError: the name is one of the build's own, or the data are no JSON.
        """
        if name in _OWN_INFO:
            raise UsageError(f"annotate: got the name {name!r}, expected one that the build does not use")
        try:
            kept = json.loads(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"annotate: got data for {name!r} that are no JSON ({error})") from error
        self._artifacts = replace(self._artifacts, info={**self._artifacts.info, name: kept})

    @property
    def model_path(self) -> str:
        """Where the model was that this was built from; "" if it came as bytes."""
        return str(self._artifacts.build.get("source", ""))

    @property
    def certificate(self) -> dict[str, Any]:
        """What verification found (JSON data)."""
        return dict(self._plan.certificate)

    @property
    def tap_names(self) -> list[str]:
        """Intermediate values that `run(taps=…)` can return, in the user's names, sorted."""
        return sorted(tap_names(self._plan.main))

    def tap(self, names: Collection[str], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run once and return the named intermediate values; outputs are not changed by it.

        Raises:
            BindingError: a value without storage, such as one inside a fusion.
        """
        found = self._runtime.tap(inputs, names)[1]
        return {name: arrays[0] if len(arrays) == 1 else arrays for name, arrays in found.items()}

    def infer_shapes(
        self, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any] | None = None
    ) -> dict[str, tuple[int | None, ...] | None]:
        """Shapes of the outputs before a run; None for extents that only a run can tell, and for sequences.

        Args:
            shapes: of inputs by name; what those decide that are left out is None.
            values: of inputs that shapes are computed of, such as the target of a Reshape.

        Raises:
            ShapeError: shapes that do not fit, or values that are no sizes.
        """
        return self.shape_inference.outputs(shapes, values)

    @functools.cached_property
    def shape_inference(self) -> ShapeInference:
        """What `infer_shapes` goes by; its `inputs` are the names of those whose values decide shapes."""
        from dovetail.api.inference import ShapeInference

        return ShapeInference(self)

    def report(self, sizes: Mapping[str, int] | None = None) -> Report:
        """What the build did; memory and arithmetic at the given symbol sizes (default 1)."""
        return report(self._plan, sizes)

    def profile(
        self, inputs: Mapping[str, Any] | None = None, *, runs: int = 10, threads: int | None = None, nvtx: bool = False
    ) -> Profile:
        """Time every step: the median of several runs, after one to warm up.

        Args:
            inputs: default: seeded ones.
            nvtx: mark runs and steps by NVTX ranges, for Nsight Systems; steps then run one by one on a CPU, too.

        Raises:
            UsageError: runs is not positive, inputs cannot be made up, or NVTX is not installed.
        """
        if runs < 1:
            raise UsageError(f"profile: got {runs} runs, expected at least 1")
        feeds = self.sample_inputs() if inputs is None else inputs
        records = [self._runtime.profile(feeds, threads=threads, nvtx_ranges=nvtx)[1] for _ in range(runs + 1)]
        shapes = {name: np.shape(x) for name, x in feeds.items() if hasattr(x, "shape")}
        return summarise(records[1:], threads or self.threads, self._runtime.device, lambda: self._steps_at(shapes))

    def _steps_at(self, shapes: Mapping[str, Sequence[int]]) -> Sequence[GraphStep]:
        """The steps with their bytes and arithmetic for inputs of these shapes."""
        from dovetail.view.graph import fused_graph

        sizes = {s.name: max(1, s.lower) for s in self._plan.symbols} | sizes_of(self._plan, shapes)
        return fused_graph(self._plan, self.graph, sizes).steps

    def save_report(self, path: str | os.PathLike[str], inputs: Mapping[str, Any] | None = None, *, run: bool = True) -> None:
        """Write a page that shows the engine: the fused graph, kernels with times and sources, memory, accuracy (docs/report.md).

        Args:
            path: of the HTML file, which needs no other; it is written whole or not at all.
            inputs: what to time it on; default: seeded ones.
            run: whether to time it at all.

        Raises:
            OSError: it cannot be written.
            UsageError: inputs cannot be made up, or no file can be written in that folder.
        """
        from dovetail.api.pages import save_page

        save_page(self, path, inputs, run)

    def bench(
        self, inputs: Mapping[str, Any] | None = None, *, seconds: float = 2.0, threads: int | None = None
    ) -> dict[str, float]:
        """Latency of whole runs in milliseconds: median_ms, mean_ms, min_ms, max_ms, p90_ms, p99_ms, first_ms, throughput_qps, runs.

        Of an engine on a GPU these are runs from host arrays to host arrays, copies included; the same with `device_` in front
        are of the engine alone, with inputs and outputs on the device. `dovetail bench` compares with other runtimes.
        """
        from dovetail.benchmark.measure import measure

        given = self.sample_inputs() if inputs is None else inputs
        feeds = {k: np.ascontiguousarray(v) if isinstance(v, np.ndarray) and v.ndim else v for k, v in given.items()}
        runs: dict[str, Callable[[], object]] = {"": lambda: self._runtime.run(feeds, threads=threads)}
        alone = resident_run(self._runtime, self.inputs, feeds)
        if alone is not None:
            runs["device_"] = alone
        result = measure(runs, rounds=_BENCH_ROUNDS, round_s=seconds / _BENCH_ROUNDS / len(runs))
        return {row["name"] + k: float(v) for row in result.json()["latencies"] for k, v in row.items() if k != "name"}

    def sample_inputs(self, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Seeded inputs: normal floats, integers 0 and 1, mixed booleans; free symbols take `sizes` or 1.

        Raises:
            UsageError: an input whose values cannot be made up (strings, sequences).
        """
        rng = np.random.default_rng(seed)
        given = sizes or {}
        least = {s.name: max(1, s.lower) for s in self._plan.symbols}
        feeds = {}
        for b in self.inputs:
            if b.shape is None or b.dtype.kind == "string":
                raise UsageError(f"input {b.name!r}: cannot make up values of {b}; pass inputs")
            shape = tuple(
                evaluate(d, {s: given.get(s, least.get(s, 1)) for s in symbols(d)}) if isinstance(d, Expr) else d for d in b.shape
            )
            if b.dtype.is_float:
                feeds[b.name] = rng.standard_normal(shape).astype(np.float32).astype(b.dtype.numpy)
            else:
                feeds[b.name] = np.asarray(rng.integers(0, 2, shape)).astype(b.dtype.numpy)
        return feeds

    # ------------------------------------------------------------------ weights
    def weight(self, name: str) -> np.ndarray[Any, Any]:
        """The current value of an initializer (read-only).

        Raises:
            BindingError: no such weight.
        """
        return self._runtime.weight(name)

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """All initializers by name (read-only)."""
        return {spec.name: self._runtime.weight(spec.name) for spec in self._plan.weights}

    def refit(
        self, weights: WeightSource, *, names: WeightNames | None = None, strict: bool = False, ignore: Collection[str] = ()
    ) -> Refit:
        """Replace weights by the model's own names: all or none, without a rebuild.

        Runs in progress finish with the old weights. The certificate is stale until `verify`. In a `with` block the old weights come back
        at its end.

        Args:
            weights: arrays or tensors by name (a state dict), a path (.safetensors, .npz, .onnx), a ModelProto, or anything with
                `state_dict()`. Weights that are not given stay.
            names: by weight of the engine what it is in the source, where that is not found by itself: a name, a name with the axes of
                a transposition, or a function of the source; see also `match_weights`. Or a function from one name to the other.
            strict: demand every weight.
            ignore: patterns of names in the source to leave aside, such as "classifier.*".

        Raises:
            RefitError: lists all names that are unknown, with near ones, wrong shapes and types, and values that the build relied on.
        """
        from dovetail.api.refitting import Refit, changes_of

        changes = changes_of(
            self._plan, lambda: self._artifacts.graph, self._artifacts.info, weights, names=names, strict=strict, ignore=ignore
        )
        with self._lock:
            done = self._runtime.set_weights(changes)
            before = self._plan
            self._plan = replace(before, certificate={**before.certificate, "stale": True})
        return Refit(self, done, before)

    def _restore(self, refitted: Refitted, before: Plan) -> None:
        """Undo a refit."""
        with self._lock:
            if self._runtime.restore_weights(refitted):
                self._plan = replace(self._plan, certificate=before.certificate)

    def release_memory(self) -> None:
        """Give back what refits keep so that the next one is fast: memory for one more set of weights, at most."""
        self._runtime.release_memory()

    # ------------------------------------------------------------------ checking and saving
    def verify(self, level: str = "full", *, progress: Progress | None = None) -> dict[str, Any]:
        """Check every kernel and the engine against the reference again, here and now.

        Returns:
            The certificate, which the engine keeps.

        Raises:
            VerificationError: names the group or output, the tactic and the number.
        """
        from dovetail.api.checking import verify_again

        with self._lock:
            certificate = verify_again(self, level, progress)
            self._plan = replace(self._plan, certificate=certificate)
        return certificate

    def save(self, path: str | os.PathLike[str], *, strip_weights: bool = False, sign: bool = True) -> None:
        """Write the engine file (`.plan`), through a temporary file.

        Args:
            strip_weights: leave the weights out; `load` then wants them.
            sign: vouch for the compiled kernels with this machine's key.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        self._write(Path(path), strip_weights, sign)

    def add_to(self, path: str | os.PathLike[str], *, sign: bool = True) -> None:
        """Add this engine to an engine file of the same model, as one more target: `load` takes the best that runs where it is.

        The file's other targets keep their bytes and signatures; one of this engine's own target is replaced.

        Raises:
            EngineError: the file is of another model, of other shapes or weights.
            PlanFormatError: it is damaged.
            OSError: it cannot be written; the old file stays.
        """
        file = EngineFile(Path(path))
        if file.graph != self._artifacts.graph:
            raise EngineError(f"{path}: got another model or other shapes, expected those of this engine; build both from the same model")
        if file.hashes != digests(self.weights()):
            raise EngineError(f"{path}: got an engine with other weights, expected those of this one; refit one of the two")
        parts = self._artifacts
        own: dict[str, Any] = {key: parts.info[key] for key in ("requested", "actual") if key in parts.info}
        add_target(Path(path), self._plan.target, TargetFiles(self._plan, parts.kernels, parts.host, parts.source), info=own, sign=sign)

    def to_bytes(self, *, strip_weights: bool = False, sign: bool = True) -> bytes:
        """The contents of the engine file that `save` writes; `load` takes them, too."""
        buffer = io.BytesIO()
        self._write(buffer, strip_weights, sign)
        return buffer.getvalue()

    def _write(self, to: Path | BinaryIO, strip_weights: bool, sign: bool) -> None:
        parts = self._artifacts
        files = TargetFiles(self._plan, parts.kernels, parts.host, parts.source)
        write_engine(
            to, graph=parts.graph, weights=self.weights(), targets={self._plan.target: files},
            info=parts.info, build=parts.build, strip_weights=strip_weights, sign=sign,
        )  # fmt: skip

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from dovetail.api.report import certificate_text
        from dovetail.view.notebook import engine_html

        data = self.report().data if isinstance(self._plan.meta.get("report"), dict) else None
        return engine_html(self.inputs, self.outputs, self._plan.target, data, certificate_text(self._plan.certificate))

    def __repr__(self) -> str:
        ins, outs = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        return f"Engine({ins} -> {outs}, {self._plan.target})"

