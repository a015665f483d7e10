"""What trtexec prints of its options and of the device before it begins."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping

from dovetail.tensorrt import device
from dovetail.tensorrt.enums import BuilderFlag, DataType, TempfileControlFlag
from dovetail.tensorrt.trtexec import specs
from dovetail.tensorrt.trtexec.console import enabled, number, version
from dovetail.tensorrt.trtexec.options import (
    BuildOptions,
    InferenceOptions,
    Options,
    Profile,
    ReportingOptions,
    pool_names,
)


def banner(options: Options) -> Iterator[str]:
    """The lines, in the order that scripts know."""
    yield "=== Model Options ==="
    yield f"Format: {'ONNX' if options.model else '*'}"
    yield f"Model: {options.model}"
    yield "Output:"
    yield from _build(options.build)
    yield from _system(options)
    yield from _inference(options.inference, options.build)
    yield from _reporting(options.reporting)
    yield ""
    yield from _device()
    yield ""
    yield f"TensorRT version: {'.'.join(map(str, version()[:3]))}"


def _build(build: BuildOptions) -> Iterator[str]:
    yield "=== Build Options ==="
    pools = (f"{name}: {number(build.pools[p] / 2**20) + ' MiB' if p in build.pools else 'default'}" for name, p in pool_names().items())
    yield f"Memory Pools: {', '.join(pools)}"
    yield "avgTiming: 8"
    yield f"Precision: {_precision(build)}"
    yield f"LayerPrecisions: {_layers(build.layer_precisions)}"
    yield "Layer Device Types: "
    yield f"Calibration: {build.calibration or ('Dynamic' if BuilderFlag.INT8 in build.precisions else '')}"
    yield f"Refit: {enabled(build.refit)}"
    yield f"Strip weights: {enabled(build.strip)}"
    yield f"Version Compatible: {enabled(build.version_compatible)}"
    yield f"ONNX Plugin InstanceNorm: {enabled(build.plugin_instance_norm)}"
    yield f"ONNX kENABLE_PLUGIN_OVERRIDE flag: {enabled(build.plugin_override)}"
    yield "TensorRT runtime: full"
    yield "Lean DLL Path: "
    kinds = (TempfileControlFlag.ALLOW_IN_MEMORY_FILES, TempfileControlFlag.ALLOW_TEMPORARY_FILES)
    in_memory, temporary = ("allow" if build.temporary_files.get(kind, True) else "deny" for kind in kinds)
    yield f"Tempfile Controls: {{ in_memory: {in_memory}, temporary: {temporary} }}"
    yield f"Sparsity: {'Disabled' if build.sparsity == 'disable' else 'Enabled' if build.sparsity == 'enable' else 'Forced'}"
    yield f"Skip inference: {enabled(build.skip_inference)}"
    yield f"Save engine: {build.save}"
    yield f"Load engine: {build.load}"
    yield f"Profiling verbosity: {int(build.verbosity)}"
    tactics = " ".join(f"{source.name} [{'ON' if on else 'OFF'}]," for source, on in build.tactics.items())
    yield f"Tactic sources: {tactics or 'Using default tactic sources'}"
    yield f"timingCacheMode: {build.cache}"
    yield f"timingCacheFile: {build.cache_file}"
    yield f"Enable Monitor Memory: {enabled(build.monitor_memory)}"
    yield f"CPU Only Mode: {enabled(build.cpu_only)}"
    yield f"errorOnTimingCacheMiss: {enabled(build.cache_must_hit)}"
    previews = " ".join(f"{feature.name} [{'ON' if on else 'OFF'}]," for feature, on in build.previews.items())
    yield f"Preview Features: {previews or 'Use default preview flags.'}"
    yield f"MaxAuxStreams: {build.max_streams}"
    yield f"BuilderOptimizationLevel: {build.level}"
    yield f"MaxTactics: {build.max_tactics}"
    yield f"Calibration Profile Index: {build.calibration_profile}"
    yield f"Weight Streaming: {enabled(build.weight_streaming)}"
    yield "Runtime Platform: Same As Build"
    yield f"Debug Tensors: {','.join(build.debug)}"
    yield f"Distributive Independence: {enabled(build.independent)}"
    yield f"Mark Unfused Tensors As Debug Tensors: {enabled(build.debug_unfused)}"
    for word, formats in (("Input(s)", build.input_formats), ("Output(s)", build.output_formats)):
        yield from (f"{word}: {specs.format_text(*found)}" for found in formats)
        if not formats:
            yield f"{word}s format: fp32:CHW"
    for index, profile in enumerate(build.profiles):
        yield from _shapes(f"build shape (profile {index})", profile)
    if not build.profiles:
        yield "Input build shapes: model"
    yield from _shapes("calibration shape", build.calibration_shapes)
    if not build.calibration_shapes:
        yield "Input calibration shapes: model"


def _shapes(word: str, shapes: Profile) -> Iterator[str]:
    return (f"Input {word}: {name}={'+'.join(specs.text_of(s) for s in ranges)}" for name, ranges in shapes.items())


def _precision(build: BuildOptions) -> str:
    if build.strongly_typed:
        return "Strongly Typed"
    order = (BuilderFlag.FP16, BuilderFlag.BF16, BuilderFlag.INT8, BuilderFlag.FP8, BuilderFlag.INT4)
    text = "+".join(["FP32", *(flag.name for flag in order if flag in build.precisions)])
    return text + (f" ({build.constraints} precision constraints)" if build.constraints != "none" else "")


def _layers(found: Mapping[str, tuple[DataType, ...]]) -> str:
    return ",".join(f"{name}:{'+'.join(specs.type_text(kind) for kind in kinds)}" for name, kinds in found.items())


def _system(options: Options) -> Iterator[str]:
    yield "=== System Options ==="
    yield f"Device: {options.device}"
    yield "DLACore: "
    yield "Plugins:" + "".join(f" {path}" for path in options.plugins)
    yield "setPluginsToSerialize:"
    yield "dynamicPlugins:"
    yield "ignoreParsedPluginLibs: 0"
    yield ""


def _inference(inference: InferenceOptions, build: BuildOptions) -> Iterator[str]:
    yield "=== Inference Options ==="
    yield "Batch: Explicit"
    yield from (f"Input inference shape : {name}={specs.text_of(shape)}" for name, shape in inference.shapes.items())
    if not inference.shapes:
        yield "Input inference shapes: model"
    yield f"Iterations: {inference.iterations}"
    yield f"Duration: {number(inference.duration_s)}s (+ {number(inference.warm_up_ms)}ms warm up)"
    yield f"Sleep time: {number(inference.sleep_ms)}ms"
    yield f"Idle time: {number(inference.idle_ms)}ms"
    yield f"Inference Streams: {inference.streams}"
    yield f"ExposeDMA: {enabled(not inference.overlap)}"
    yield f"Data transfers: {enabled(inference.transfers)}"
    yield f"Spin-wait: {enabled(inference.spin)}"
    yield f"Multithreading: {enabled(inference.threads)}"
    yield f"CUDA Graph: {enabled(inference.graph)}"
    yield f"Separate profiling: {enabled(inference.separate_profile)}"
    yield f"Time Deserialize: {enabled(inference.time_deserialize)}"
    yield f"Time Refit: {enabled(inference.time_refit)}"
    yield f"NVTX verbosity: {int(build.verbosity)}"
    yield f"Persistent Cache Ratio: {number(inference.cache_ratio)}"
    yield f"Optimization Profile Index: {inference.profile}"
    yield f"Weight Streaming Budget: {inference.budget}"
    yield "Inputs:"
    yield from (f"{name}<-{path}" for reference in inference.references for name, path in reference.inputs.items())
    yield "Debug Tensor Save Destinations:"
    yield from (f"{name}: {path}" for name, path in inference.debug_files.items())
    yield "Dump All Debug Tensor in Formats: "
    yield from inference.debug_formats


def _reporting(reporting: ReportingOptions) -> Iterator[str]:
    yield "=== Reporting Options ==="
    yield f"Verbose: {enabled(reporting.verbose)}"
    yield f"Averages: {reporting.average} inferences"
    yield f"Percentiles: {','.join(number(p) for p in reporting.percentiles)}"
    yield f"Dump refittable layers:{enabled(reporting.refit)}"
    yield f"Dump output: {enabled(reporting.output)}"
    yield f"Profile: {enabled(reporting.profile)}"
    yield f"Export timing to JSON file: {reporting.export_times}"
    yield f"Export output to JSON file: {reporting.export_output}"
    yield f"Export profile to JSON file: {reporting.export_profile}"


def _device() -> Iterator[str]:
    chosen = device.device()
    yield "=== Device Information ==="
    yield "Available Devices:"
    memory = device.total_memory() >> 20
    if chosen == "cpu":
        from dovetail.codegen.target import Target

        name = platform.processor() or platform.machine()
        yield f'  Device 0: "CPU ({name})"'
        yield f"Selected Device: CPU ({name})"
        yield "Selected Device ID: 0"
        yield f"Instruction set: {Target.host().isa}"
        yield f"CPUs of this process: {len(os.sched_getaffinity(0))}"
        yield f"Memory: {memory} MiB"
        return
    from dovetail.device.cuda import driver

    found = driver(device.ordinal(chosen)).properties
    yield f'  Device {found.ordinal}: "{found.name}"'
    yield f"Selected Device: {found.name}"
    yield f"Selected Device ID: {found.ordinal}"
    yield f"Compute Capability: {found.capability // 10}.{found.capability % 10}"
    yield f"SMs: {found.multiprocessors}"
    yield f"Device Global Memory: {memory} MiB"
