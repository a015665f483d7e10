"""`trtexec` from its command line to its exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dovetail.core.env import env, override
from dovetail.core.errors import Error, UsageError
from dovetail.tensorrt import device
from dovetail.tensorrt.config import BUILD_ROUTES
from dovetail.tensorrt.enums import LayerInformationFormat
from dovetail.tensorrt.trtexec import build, report
from dovetail.tensorrt.trtexec.banner import banner
from dovetail.tensorrt.trtexec.console import Console, label, version
from dovetail.tensorrt.trtexec.flags import help_text
from dovetail.tensorrt.trtexec.inference import ON_A_CPU, Inference, needs_profile, ready
from dovetail.tensorrt.trtexec.options import Options, parse
from dovetail.tensorrt.trtexec.tensors import write_outputs

_NOT_TIMED = (
    "The e2e network timing is not reported since it is inaccurate due to the extra synchronizations when the profiler is enabled.",
    "To show e2e network timing report, add --separateProfileRun to profile layer timing in a separate run or remove --dumpProfile to "
    "disable the profiler.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run trtexec; the exit code is 0 where it passed, else 1.

    Args:
        arguments: flags, by default the process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console("--verbose" in given or "-v" in given)
    sys.stdout.write(label("RUNNING", given) + "\n")
    try:
        passed = _run(given, console)
    except UsageError as error:
        console.error(str(error))
        console.error("trtexec --help lists all flags.")
        passed = False
    except (Error, OSError) as error:
        console.error(str(error))
        passed = False
    except KeyboardInterrupt:
        console.error("Interrupted before the first run was over.")
        passed = False
    sys.stdout.write(label("PASSED" if passed else "FAILED", given) + "\n")
    sys.stdout.flush()
    return 0 if passed else 1


def _run(arguments: Sequence[str], console: Console) -> bool:
    if not arguments:
        raise UsageError("Model missing or format not recognized: expected --onnx=<file> or --loadEngine=<file>")
    options = parse(arguments, version()[0])
    if options.help or options.help_routes:
        sys.stdout.write((help_text() if options.help else _routes()) + "\n")
        return True
    for note in options.notes:
        console.warning(note)
    with _device(options):
        for line in banner(options):
            console.info(line)
        if options.build.version_only:
            console.info(build.plan_version(options.build.load, env().tensorrt_version))
            return True
        if options.plugins:
            from dovetail.plugins import load

            for path in options.plugins:
                console.info(f"Loading supplied plugin library: {path}")
            load(options.plugins)
        return _engine(options, console)


def _routes() -> str:
    what = {"default": "as is fastest", "direct": "no transforms (such as Winograd's) that change the order of sums"}
    return "\n".join(f"  --setBuildRoute={name:<10} {what[name]}" for name in BUILD_ROUTES)


@contextmanager
def _device(options: Options) -> Iterator[None]:
    """Engines are for the device that the flags name."""
    if options.build.cpu_only:
        with override(tensorrt_device="cpu"):
            yield
        return
    if not options.device:
        yield
        return
    if not device.uses_gpu():
        raise UsageError(f"--device: got {options.device}, expected 0: there is no GPU")
    with override(tensorrt_device=f"cuda:{options.device}"):
        yield


def _engine(options: Options, console: Console) -> bool:
    made = build.make(options, console)
    inference, engine = options.inference, made.engine
    source = inference.refit_from or (options.model if options.build.strip and not options.build.skip_inference else "")
    if source:
        if not inference.refit_from:
            console.info(f"The engine has no weights; it runs with those of {source}.")
        build.refit_from(source, engine, console)
    if engine.refittable:
        if options.reporting.refit:
            build.dump_refittable(engine, console)
        if inference.time_refit:
            build.time_refit(engine, console)
    elif options.reporting.refit or inference.time_refit:
        console.warning("The engine is not refittable: build it with --refit.")
    if options.reporting.profiles:
        build.print_profiles(engine, console)
    if inference.time_deserialize:
        build.time_deserialize(made, options.build, console)
        return True
    if options.build.skip_inference:
        _layers(options, made, console, None)
        console.info("Skipped inference phase since --skipInference is added.")
        return True
    with ready(engine, options, console) as running:
        _layers(options, made, console, running)
        running.debug()
        close = running.check()
        return _infer(options, running, console) and close


def _layers(options: Options, made: build.Built, console: Console, running: Inference | None) -> None:
    """Print and write what the engine says of its layers."""
    reporting = options.reporting
    if not reporting.layers and not reporting.export_layers:
        return
    inspector = made.engine.create_engine_inspector()
    if running is not None:
        inspector.execution_context = running.lanes[0].context
    if reporting.layers:
        console.info("Layer Information:")
        console.info(inspector.get_engine_information(LayerInformationFormat.ONELINE))
    if reporting.export_layers:
        text = inspector.get_engine_information(LayerInformationFormat.JSON)
        Path(reporting.export_layers).write_text(text + "\n", encoding="utf-8")


def _infer(options: Options, running: Inference, console: Console) -> bool:
    inference, reporting = options.inference, options.reporting
    profiled = needs_profile(options)
    timed = inference.separate_profile or not profiled
    if timed:
        console.info("Starting inference")
        traces = running.time()
        notes = [ON_A_CPU] if running.driver is None else []
        console.lines(
            report.performance(
                traces, warm_up_ms=inference.warm_up_ms, average=reporting.average, percentiles=reporting.percentiles,
                streams=inference.streams, notes=notes,
            )
        )  # fmt: skip
        if reporting.export_times:
            report.write_json(reporting.export_times, report.times_json(report.counted(traces, inference.warm_up_ms)[1]))
    elif reporting.export_times:
        console.warning("--exportTimes needs runs without a profiler: add --separateProfileRun.")
    if profiled:
        console.info("Starting inference with the profiler" if timed else "Starting inference")
        if not timed:
            for line in _NOT_TIMED:
                console.info(line)
        times = running.profile()
        if reporting.profile:
            console.lines(times.lines())
        if reporting.export_profile:
            report.write_json(reporting.export_profile, times.json())
    _outputs(options, running, console)
    return True


def _outputs(options: Options, running: Inference, console: Console) -> None:
    reporting, lane = options.reporting, running.lanes[0]
    if reporting.output:
        console.info("Output Tensors:")
        for tensor in lane.outputs:
            console.info(f"{tensor.name}: ({'x'.join(map(str, tensor.shape))})")
            console.info(tensor.text())
    if reporting.export_output:
        write_outputs(reporting.export_output, lane.outputs)
    if reporting.raw_bindings:
        for tensor in lane.tensors:
            tensor.write(tensor.raw_name())
