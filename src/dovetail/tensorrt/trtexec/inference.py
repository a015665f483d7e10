"""Runs trtexec's engine: contexts beside each other, runs for as long as was asked, times, profiles, debug tensors, accuracy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from dovetail.core.errors import UsageError
from dovetail.device.cuda.driver import Driver
from dovetail.tensorrt import device
from dovetail.tensorrt.engine import ICudaEngine
from dovetail.tensorrt.hooks import IProfiler
from dovetail.tensorrt.trtexec.accuracy import distance
from dovetail.tensorrt.trtexec.console import Console, number
from dovetail.tensorrt.trtexec.debug import DebugWriter
from dovetail.tensorrt.trtexec.lanes import Clock, Lane
from dovetail.tensorrt.trtexec.options import InferenceOptions, Options
from dovetail.tensorrt.trtexec.report import LayerTimes, Trace
from dovetail.tensorrt.trtexec.tensors import Tensor

ON_A_CPU = (
    "The engine runs on the CPU: GPU Compute Time is the time of a run there. Nothing is enqueued or copied, so that Enqueue Time, "
    "H2D Latency and D2H Latency are 0."
)


class _Profiler(IProfiler):
    def __init__(self) -> None:
        super().__init__()
        self.times = LayerTimes()

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Take a layer's time."""
        self.times.add(layer_name, ms)


class Inference:
    """The contexts of an engine, set up to run; use it in a `with` block."""

    def __init__(self, engine: ICudaEngine, options: Options, console: Console, driver: Driver | None) -> None:
        self.engine, self._options, self._console, self.driver = engine, options, console, driver
        self.lanes: list[Lane] = []
        self.interrupted = False

    @property
    def outputs(self) -> list[Tensor]:
        """The outputs of the first context."""
        return self.lanes[0].outputs

    def set_up(self) -> None:
        """Make the contexts and their inputs and outputs.

        Raises:
            Error: that failed.
        """
        inference = self._options.inference
        for index in range(inference.streams):
            lane = Lane(self.engine, inference, self.driver, self._console)
            self.lanes.append(lane)
            lane.fill(inference.references[0].inputs, index, self._console.info if not index else self._console.detail)
            if not index:
                lane.say_bindings()

    def debug(self) -> None:
        """Write the tensors that are watched, in one run of its own.

        Raises:
            Error: one cannot be watched or written.
        """
        inference, build = self._options.inference, self._options.build
        if not inference.debug_files and not inference.debug_formats:
            return
        context = self.lanes[0].context
        with DebugWriter(inference.debug_files, inference.debug_formats, self._console) as writer:
            context.set_debug_listener(writer)
            if inference.debug_formats:
                context.set_all_tensors_debug_state(True)
                if build.debug_unfused:
                    context.unfused_tensors_debug_state = True
            elif not all(context.set_tensor_debug_state(name, True) for name in inference.debug_files):
                raise UsageError("--saveDebugTensors: expected tensors that --markDebug named when the engine was built")
            self.lanes[0].run()
            context.set_all_tensors_debug_state(False)
            if build.debug_unfused:
                context.unfused_tensors_debug_state = False
            context.set_debug_listener(None)
        if missed := sorted(set(inference.debug_files) - writer.seen):
            self._console.warning(f"No values of {', '.join(missed)} were seen: they are inside of fusions.")

    def check(self) -> bool:
        """Compare the outputs with the expected ones; whether all are close enough.

        Raises:
            Error: files that do not fit, or a run that failed.
        """
        inference = self._options.inference
        close = True
        lane = self.lanes[0]
        for reference in (r for r in inference.references if r.outputs):
            lane.fill(reference.inputs, 0, self._console.detail)
            lane.run()
            outputs = {t.name: t for t in lane.outputs}
            for name, path in reference.outputs.items():
                if name not in outputs:
                    raise UsageError(f"--loadRefOutputs: got {name!r}, expected one of {', '.join(outputs)}")
                found = np.array(outputs[name].values)
                outputs[name].read(path, "--loadRefOutputs")
                loss = distance(inference.algorithm, found, outputs[name].values, inference.atol, inference.rtol)
                text = f"{inference.algorithm} accuracy loss for tensor {name} = {number(loss)} (threshold {number(inference.threshold)})"
                if loss <= inference.threshold:
                    self._console.info(f"{text}: passed")
                else:
                    self._console.error(f"{text}: failed")
                    close = False
        lane.fill(inference.references[0].inputs, 0, self._console.detail)
        return close

    def time(self) -> list[Trace]:
        """Run for as long as was asked; the times of all runs, in the order in which they began.

        Raises:
            ExecutionError: a run failed.
        """
        inference = self._options.inference
        if inference.graph and self.driver is not None:
            for lane in self.lanes:
                lane.capture()
        for lane in self.lanes:
            lane.traces.clear()
        clock = Clock(self.driver)
        if inference.threads and len(self.lanes) > 1:
            self._threaded(clock)
        else:
            self._loop(self.lanes, clock)
        for lane in self.lanes:
            lane.fetch()
        return sorted((t for lane in self.lanes for t in lane.traces), key=lambda t: t.start_h2d)

    def profile(self) -> LayerTimes:
        """Run for as long as was asked, with the time of each layer of the first context.

        Raises:
            ExecutionError: a run failed.
        """
        profiler = _Profiler()
        lane = self.lanes[0]
        lane.context.profiler = profiler
        try:
            self._loop([lane], Clock(self.driver))
        finally:
            lane.context.profiler = None
        lane.fetch()
        return profiler.times

    def _threaded(self, clock: Clock) -> None:
        failed: list[BaseException] = []

        def work(lane: Lane) -> None:
            try:
                with _active(self.driver):
                    self._loop([lane], clock)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in self.lanes]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self.interrupted = True
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]

    def _loop(self, lanes: list[Lane], clock: Clock) -> None:
        inference = self._options.inference
        warm, depth = inference.warm_up_ms, 2 if inference.overlap else 1
        done = skipped = 0
        try:
            while not self._over(inference, done, skipped, clock.now()):
                skipped += clock.now() < warm
                for lane in lanes:
                    lane.enqueue(clock)
                for lane in lanes:
                    while len(lane.pending) >= depth:
                        lane.finish(clock)
                done += 1
                if inference.idle_ms:
                    time.sleep(inference.idle_ms / 1e3)
        except KeyboardInterrupt:
            if not done:
                raise
            self.interrupted = True
        for lane in lanes:
            while lane.pending:
                lane.finish(clock)

    def _over(self, inference: InferenceOptions, done: int, skipped: int, now: float) -> bool:
        if self.interrupted:
            return True
        long_enough = inference.duration_s >= 0 and now >= inference.warm_up_ms + 1e3 * inference.duration_s
        return long_enough and done >= max(1, inference.iterations + skipped)


@contextmanager
def _active(driver: Driver | None) -> Iterator[None]:
    """Make a GPU's context the thread's."""
    with ExitStack() as stack:
        if driver is not None:
            stack.enter_context(driver.active())
        yield


@contextmanager
def ready(engine: ICudaEngine, options: Options, console: Console) -> Iterator[Inference]:
    """The contexts of an engine, set up; given back at the end.

    Raises:
        Error: that failed.
    """
    where = device.device()
    driver = None
    if where != "cpu":
        from dovetail.device.cuda import driver as driver_of

        driver = driver_of(device.ordinal(where))
    with _active(driver):
        made = Inference(engine, options, console, driver)
        try:
            made.set_up()
            yield made
        finally:
            for lane in made.lanes:
                lane.close()


def needs_profile(options: Options) -> bool:
    """Whether the times of layers are wanted."""
    return options.reporting.profile or bool(options.reporting.export_profile)

