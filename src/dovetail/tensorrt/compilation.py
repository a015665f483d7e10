"""From a network and a config to an engine of Dovetail, and the record of it that engine files carry."""

from __future__ import annotations

import glob
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dovetail
from dovetail.api.weight_names import required
from dovetail.core.errors import BuildError
from dovetail.tensorrt import config as configs
from dovetail.tensorrt import device
from dovetail.tensorrt.algorithms import asking
from dovetail.tensorrt.config import IBuilderConfig
from dovetail.tensorrt.enums import (
    BuilderFlag,
    DataType,
    HardwareCompatibilityLevel,
    LayerType,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    PreviewFeature,
    TacticSource,
    TensorFormat,
)
from dovetail.tensorrt.logger import Reporter
from dovetail.tensorrt.profile import shapes_of, values_of
from dovetail.tensorrt.progress import Phases
from dovetail.tensorrt.record import KEY, Layer, ProfileRecord, Record
from dovetail.tensorrt.timing_cache import used_by_build

if TYPE_CHECKING:
    from dovetail.tensorrt.network_base import NetworkBase
    from dovetail.tensorrt.tensor import ITensor

REFIT_FLAGS = (BuilderFlag.REFIT, BuilderFlag.REFIT_IDENTICAL, BuilderFlag.REFIT_INDIVIDUAL, BuilderFlag.STRIP_PLAN)
_PRECISIONS = (BuilderFlag.FP16, BuilderFlag.BF16, BuilderFlag.INT8, BuilderFlag.FP8, BuilderFlag.INT4, BuilderFlag.FP4)
_QUANTISED = (BuilderFlag.INT8, BuilderFlag.FP8, BuilderFlag.INT4, BuilderFlag.FP4)
_CONSTRAINTS = (BuilderFlag.OBEY_PRECISION_CONSTRAINTS, BuilderFlag.PREFER_PRECISION_CONSTRAINTS, BuilderFlag.STRICT_TYPES)
# Seconds that measuring on a CPU may take, by optimization level; None: as `dovetail.build` has it.
_BUDGETS = {1: 1.0, 2: 3.0, 3: None, 4: 12.0, 5: 30.0}
_MAX_BRANCHES = 8
# Formats whose elements lie as in HWC where the channels are a multiple of so many.
_CHANNELS_LAST = {
    TensorFormat.HWC: 1, TensorFormat.DHWC: 1, TensorFormat.HWC8: 8, TensorFormat.DHWC8: 8, TensorFormat.HWC16: 16,
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """An engine and its record, which it carries."""

    engine: dovetail.Engine
    record: Record


def compile_network(
    network: NetworkBase, config: IBuilderConfig, reporter: Reporter, phases: Phases, *, max_batch_size: int = 1, threads: int | None = None
) -> Made:
    """Build an engine.

    Raises:
        dovetail.Error: the network or the config cannot be built.
        Cancelled: the progress monitor ended the build.
    """
    start = time.perf_counter()
    if not network._all_outputs():
        raise BuildError("network: got no outputs, expected at least one; say which with mark_output")
    profiles = [ProfileRecord(*_ranges(p, network, i)) for i, p in enumerate(configs.profiles_of(config))]
    profiles = _complete(profiles, network, max_batch_size)
    _say_what_differs(network, config, reporter)
    network._profile = profiles[0].shapes
    model = network._model(network._debug)
    formats = _formats(network)
    phases.step()
    fresh = config.get_flag(BuilderFlag.DISABLE_TIMING_CACHE)
    with used_by_build(config.get_timing_cache(), fresh, config.get_flag(BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)) as times:
        engine = dovetail.build(
            model,
            **_options(network, config, reporter),
            shapes=_shapes(network, profiles),
            io_formats=dict.fromkeys(formats, "channels_last"),
            threads=threads,
            timing_cache=times,
            progress=phases.stage,
        )
    phases.step()
    record = _record(network, config, engine, profiles, formats, max_batch_size)
    engine.annotate(KEY, record.json())
    reporter.info(f"Engine generation completed in {time.perf_counter() - start:.6g} seconds.")
    if config.get_flag(BuilderFlag.MONITOR_MEMORY):
        reporter.verbose(f"Memory of the engine: {engine.report()}")
    return Made(engine, record)


# ---- what is asked of dovetail.build ----


def _options(network: NetworkBase, config: IBuilderConfig, reporter: Reporter) -> dict[str, Any]:
    where = device.device()
    level = config.builder_optimization_level
    options: dict[str, Any] = {
        "device": where,
        "precision": _precision(network, config) if where != "cpu" else "fp32",
        "allow_fallback": True,
        "strict_fp32": config.build_route == "direct" or config.get_flag(BuilderFlag.DISTRIBUTIVE_INDEPENDENCE),
        "verify": "full" if config.get_flag(BuilderFlag.DEBUG) else "sample",
        "optimization_level": level,
        "tune": level > 0 and config.max_num_tactics not in (0, 1),
        "without": _without(config),
        "workspace": config._pools.get(MemoryPoolType.WORKSPACE),
        "target": _target(config, where),
        "selector": None if config.algorithm_selector is None else asking(config.algorithm_selector, reporter),
    }
    if where == "cpu":
        options["time_budget"] = _BUDGETS.get(level)
    elif config.max_aux_streams >= 0:
        options["branches"] = min(config.max_aux_streams + 1, _MAX_BRANCHES)
    if options["precision"] in ("fp16", "bf16"):
        options["fp32_nodes"] = _kept_in_fp32(network, config, reporter)
    return options


def _precision(network: NetworkBase, config: IBuilderConfig) -> str:
    """The precision of a GPU's engine; a strongly typed network says itself what is in which type."""
    if not network.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED):
        if config.get_flag(BuilderFlag.FP16):
            return "fp16"
        if config.get_flag(BuilderFlag.BF16):
            return "bf16"
    return "tf32" if config.get_flag(BuilderFlag.TF32) else "fp32"


def _without(config: IBuilderConfig) -> list[str]:
    """Tactics of libraries that the config leaves out."""
    sources = config.get_tactic_sources()
    if config.get_preview_feature(PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805):
        return ["cublaslt", "cudnn"]
    made = [] if sources & (1 << TacticSource.CUBLAS | 1 << TacticSource.CUBLAS_LT) else ["cublaslt"]
    return made + ([] if sources & 1 << TacticSource.CUDNN else ["cudnn"])


def _target(config: IBuilderConfig, where: str) -> str | None:
    """The target of an engine that is to run on other devices, too."""
    if config.hardware_compatibility_level is not HardwareCompatibilityLevel.AMPERE_PLUS:
        return None
    from dovetail.codegen.target import Target

    return "cuda:sm_80" if where != "cpu" else "cpu:avx2" if "avx" in Target.host().isa else None


def _kept_in_fp32(network: NetworkBase, config: IBuilderConfig, reporter: Reporter) -> list[str]:
    """Layers that stay in fp32: those of that precision or output type, where the config heeds what layers ask for."""
    asked = network._precision()
    if not any(config.get_flag(flag) for flag in _CONSTRAINTS):
        if asked:
            reporter.verbose("Precisions of layers are ignored: neither OBEY_ nor PREFER_PRECISION_CONSTRAINTS is set.")
        return []
    return [glob.escape(name) for name, (precision, types) in asked.items() if DataType.FLOAT in (precision, *types.values())]


def refusals(network: NetworkBase, config: IBuilderConfig) -> list[str]:
    """What of a config no build of a network can honour, each with the reason."""
    why = configs.refusals(config)
    if not network.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED):
        return why
    asked = [flag.name for flag in (*_PRECISIONS, *_CONSTRAINTS) if config.get_flag(flag)]
    return why + [f"a strongly typed network takes no {name}: its types are those of its tensors; clear the flag" for name in asked]


def _say_what_differs(network: NetworkBase, config: IBuilderConfig, reporter: Reporter) -> None:
    """Warn of what the engine will not do although it was asked to."""
    on_cpu = not device.uses_gpu()
    for flag in _PRECISIONS:
        if not config.get_flag(flag):
            continue
        if flag in _QUANTISED:
            reporter.warning(f"{flag.name} was requested, actual is fp32: quantized layers are computed as dequantized values.")
        elif on_cpu:
            reporter.warning(f"{flag.name} was requested, actual is fp32: a CPU computes in fp32.")
    if config.get_flag(BuilderFlag.SPARSE_WEIGHTS):
        reporter.warning("SPARSE_WEIGHTS was requested: all weights are computed with as dense ones.")
    asked = [name for name, (precision, _) in network._precision().items() if precision in (DataType.HALF, DataType.BF16)]
    if asked and on_cpu and any(config.get_flag(flag) for flag in _CONSTRAINTS):
        reporter.warning(f"{len(asked)} layers ask for 16-bit precision, actual is fp32: a CPU computes in fp32. First: {asked[0]}")


# ---- shapes ----


def _ranges(profile: Any, network: NetworkBase, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes and values of a profile, checked against the network.

    Raises:
        BuildError: an input that is not there, or shapes that do not fit it.
    """
    inputs = {t.name: t for t in network._inputs}
    shapes = {name: tuple(tuple(s) for s in rows) for name, rows in shapes_of(profile).items()}
    for name, rows in shapes.items():
        if name not in inputs:
            raise BuildError(f"profile {index}: got shapes of {name!r}, expected names of inputs: {', '.join(inputs)}")
        declared = tuple(inputs[name].shape)
        if len(rows[0]) != len(declared):
            raise BuildError(f"{name}: profile {index} has shapes of {len(rows[0])} extents, the network's is {declared}")
        for axis, extent in enumerate(declared):
            if extent != -1 and any(row[axis] != extent for row in rows):
                raise BuildError(
                    f"{name}: dimension {axis} in profile {index} does not match the network definition (got {rows}, expected {extent})"
                )
    values = {name: tuple(tuple(v) for v in rows) for name, rows in values_of(profile).items()}
    if unknown := sorted(set(values) - set(inputs)):
        raise BuildError(f"profile {index}: got values of {unknown}, expected names of inputs: {', '.join(inputs)}")
    return shapes, values


def _complete(profiles: list[ProfileRecord], network: NetworkBase, max_batch_size: int) -> list[ProfileRecord]:
    """The profiles with the shapes of all inputs; one of the network's own shapes where there is none.

    Raises:
        BuildError: a dynamic input without a profile.
    """
    dynamic = [t for t in network._inputs if -1 in t.shape]
    if dynamic and not profiles:
        raise BuildError(
            "Network has dynamic or shape inputs, but no optimization profile has been defined. "
            f"Dynamic inputs: {', '.join(t.name for t in dynamic)}."
        )
    made = []
    for index, profile in enumerate(profiles or [ProfileRecord()]):
        missing = [t.name for t in dynamic if t.name not in profile.shapes]
        if missing:
            raise BuildError(f"{', '.join(missing)}: dynamic input is missing dimensions in profile {index}.")
        own = {t.name: (tuple(t.shape),) * 3 for t in network._inputs}
        shapes = {name: profile.shapes.get(name, rows) for name, rows in own.items()}
        if network.has_implicit_batch_dimension:
            ends = (1, max_batch_size, max_batch_size)
            shapes = {name: tuple((n, *row) for n, row in zip(ends, rows, strict=True)) for name, rows in shapes.items()}  # type: ignore[misc]
        made.append(ProfileRecord(shapes, profile.values))
    return made


def _shapes(network: NetworkBase, profiles: Sequence[ProfileRecord]) -> dict[str, list[int | str]]:
    """The shapes of inputs as `dovetail.build` takes them: ranges over all profiles, with the first one's likely extents."""
    found: dict[str, list[int | str]] = {}
    for tensor in network._inputs:
        rows = [p.shapes[tensor.name] for p in profiles]
        extents: list[int | str] = []
        for axis in range(len(rows[0][0])):
            low, high = min(r[0][axis] for r in rows), max(r[2][axis] for r in rows)
            extents.append(low if low == high else f"{low}..{high}@{rows[0][1][axis]}")
        found[tensor.name] = extents
    return found


# ---- the formats of inputs and outputs ----


def _formats(network: NetworkBase) -> dict[str, str]:
    """Inputs and outputs that the client takes in one format alone which is not LINEAR, and its name.

    Raises:
        BuildError: one that no engine here has.
    """
    return {t.name: name for t in (*network._inputs, *network._all_outputs()) if (name := _format(t)) is not None}


def _format(tensor: ITensor) -> str | None:
    mask = tensor.allowed_formats
    allowed = [f for f in dict.fromkeys(TensorFormat.__members__.values()) if mask >> int(f) & 1]
    if TensorFormat.LINEAR in allowed:
        return None
    shape = tuple(tensor.shape)
    for kind in allowed:
        multiple = _CHANNELS_LAST.get(kind)
        channels = shape[1] if len(shape) > 2 else 0
        if multiple is not None and len(shape) == (5 if kind.name.startswith("DHWC") else 4) and channels > 0 and channels % multiple == 0:
            return str(kind.name)
    raise BuildError(
        f"{tensor.name}: got the formats {', '.join(map(str, allowed)) or 'none'} for the shape {shape}, expected TensorFormat.LINEAR, or "
        "channels last (HWC, DHWC, HWC8 and HWC16 for multiples of 8 and 16 channels)"
    )


# ---- the record ----


def _record(
    network: NetworkBase, config: IBuilderConfig, engine: dovetail.Engine, profiles: Sequence[ProfileRecord], formats: Mapping[str, str],
    max_batch_size: int,
) -> Record:  # fmt: skip
    names = required(engine.plan, engine.info.get("node_constants", ()))
    individual = config.get_flag(BuilderFlag.REFIT_INDIVIDUAL)
    return Record(
        name=network.name,
        inputs=tuple(t.name for t in network._inputs),
        outputs=tuple(t.name for t in network._all_outputs()),
        layers=tuple(Layer(layer.name, layer.type.name, layer.metadata) for layer in network),
        profiles=tuple(profiles),
        refittable=any(config.get_flag(flag) for flag in REFIT_FLAGS),
        weights=tuple(n for n in names if network.are_weights_marked_refittable(n)) if individual else None,
        roles=tuple((layer, role.name, name) for (layer, role), name in network._weights().items() if name in set(names)),
        shape_inputs=tuple(t.name for t in network._inputs if t.is_shape_tensor),
        debug=tuple(t.name for t in network._debug),
        aliased=_aliased(network),
        debug_unfused=network._debug_unfused,
        formats=dict(formats),
        verbosity=config.profiling_verbosity.name,
        implicit_batch=network.has_implicit_batch_dimension,
        max_batch_size=max_batch_size,
        capability=config.engine_capability.name,
        compatibility=config.hardware_compatibility_level.name,
        tactic_sources=config.get_tactic_sources(),
        max_workspace_size=config.get_memory_pool_limit(MemoryPoolType.WORKSPACE),
        stripped=config.get_flag(BuilderFlag.STRIP_PLAN),
        requested=configs.flag_names(config),
        actual=dict(engine.info["actual"]),
    )


def _aliased(network: NetworkBase) -> dict[str, str]:
    """Outputs that are caches after an update, with the inputs that they were before it, whose memory they take."""
    found = {}
    for layer in network:
        if layer.type is LayerType.KV_CACHE_UPDATE:
            before, after = layer.get_input(0), layer.get_output(0)
            if before is not None and after is not None and before.is_network_input and after.is_network_output:
                found[after.name] = before.name
    return found
