"""Times whole plans of one model on a GPU: the same kernels and weights, steps one after the other or beside each other.

What runs is an engine, over its own memory and graphs, with made-up inputs on the device.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.core.dims import run_program
from dovetail.core.dtypes import dtype
from dovetail.core.errors import BindingError, Error, ExecutionError
from dovetail.core.log import logger
from dovetail.device.cuda.driver import Driver
from dovetail.engine.codec import dumps
from dovetail.engine.plan import Plan, Port
from dovetail.runtime.cuda import CudaEngine
from dovetail.runtime.cuda.arrays import DeviceArray
from dovetail.runtime.cuda.context import Binding, CudaContext
from dovetail.tuner.timing_cache import TimingCache

_WARM, _REPLAYS = 3, 21
_log = logger("tune")


class PlanTimer:
    """Measures plans on one device.

    Args:
        driver: the device.
        environment: all of the device and its libraries that times depend on.
        cache: known times.
        progress: called as progress(stage, done, total).
        wanted: whether anything is to be measured when the time comes; what is known is known anyway.
    """

    def __init__(
        self,
        driver: Driver,
        environment: str,
        cache: TimingCache | None = None,
        progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self.driver, self.environment, self.progress, self._wanted = driver, environment, progress, wanted
        self.cache = TimingCache() if cache is None else cache

    def __call__(
        self, plans: Sequence[Plan], binary: Path, weights: Mapping[str, np.ndarray[Any, Any]], sizes: Mapping[str, int]
    ) -> list[float] | None:
        """Microseconds of a run of each plan; None where they cannot be measured.

        Args:
            plans: of one model; they differ in their main programs only.
            binary: the machine code of their kernels.
            weights: the initializers.
            sizes: values of the symbols.
        """
        parts = [self.environment.encode(), repr(sorted(sizes.items())).encode(), *map(dumps, plans)]
        key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:40]
        known = self.cache.records.get(key)
        us = known.get("plans_us") if known is not None else None
        if isinstance(us, list) and len(us) == len(plans) and all(isinstance(t, int | float) for t in us):
            return [float(t) for t in us]
        if not self._wanted():
            return None
        self.progress("branches", 0, 1)
        try:
            times = self._measure(plans, binary, weights, sizes)
        except KeyboardInterrupt:
            _log.warning("interrupted: whether branches gain by running beside each other is left to the rule")
            return None
        except Error as error:
            _log.warning("plans could not be timed as a whole: %s", error)
            return None
        finally:
            self.progress("branches", 1, 1)
        self.cache.records.put(key, {"plans_us": times})
        self.cache.flush()
        return times

    def _measure(
        self, plans: Sequence[Plan], binary: Path, weights: Mapping[str, np.ndarray[Any, Any]], sizes: Mapping[str, int]
    ) -> list[float]:
        engine = CudaEngine(plans[0], kernels=[binary], weights=weights, driver=self.driver)
        rng = np.random.default_rng(0)
        feeds = {port.name: self._input(port, sizes, rng) for port in plans[0].inputs}
        contexts = []
        for plan in plans:
            engine.plan = plan  # what the next context runs; weights and kernels are the same
            contexts.append(engine.context())
        with self.driver.active():
            events = self.driver.create_event(True), self.driver.create_event(True)
            try:
                runs = [self._run(context, feeds, events) for context in contexts]
                samples: list[list[float]] = [[] for _ in runs]
                for turn in range(_WARM + _REPLAYS):
                    for run, times in zip(runs, samples, strict=True):  # in turns, so that a change of clocks hits all alike
                        us = run()
                        if turn >= _WARM:
                            times.append(us)
            finally:
                for event in events:
                    self.driver.destroy_event(event)
        return [round(statistics.median(times), 3) for times in samples]

    def _run(self, context: CudaContext, feeds: Mapping[str, Any], events: tuple[Any, Any]) -> Callable[[], float]:
        """What runs a context once and gives microseconds: on the device, or of the host where steps run there."""
        results = context.run(feeds)
        try:
            binding = context.bind(feeds, results)
        except (BindingError, ExecutionError):  # something of it is on the host by nature
            return lambda: self._whole(context, feeds)
        return lambda: self._replay(binding, events)

    @staticmethod
    def _whole(context: CudaContext, feeds: Mapping[str, Any]) -> float:
        start = time.perf_counter()
        context.run(feeds)
        return (time.perf_counter() - start) * 1e6

    def _input(self, port: Port, sizes: Mapping[str, int], rng: np.random.Generator) -> Any:
        """An input on the device, as it lies there: normal floats, zeros of all else, which are good as indices."""
        tensor = port.tensor
        if tensor.shape is None or tensor.dtype == "str":
            raise BindingError(f"input {port.name!r}: got {tensor.dtype}, expected numbers to time a run with")
        shape, kind = [run_program(d, sizes) for d in tensor.shape], dtype(tensor.dtype)
        array = rng.standard_normal(shape, np.float32).astype(kind.numpy) if kind.is_float else np.zeros(shape, kind.numpy)
        lying = DeviceArray.of(self.driver, array)
        return lying.transpose([int(axis) for axis in np.argsort(port.order)]) if port.order else lying

    def _replay(self, binding: Binding, events: tuple[Any, Any]) -> float:
        """Microseconds of a run on the device, queued behind another one so that the host's time does not show."""
        driver, stream = self.driver, binding.context.queue.own
        binding.run(stream)
        driver.record(events[0], stream)
        binding.run(stream)
        driver.record(events[1], stream)
        driver.synchronize_event(events[1])
        return driver.elapsed_ns(*events) / 1e3
