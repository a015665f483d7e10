"""An engine for a device that this machine lacks: it can be looked at, saved and built again, but not run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from dovetail.core.errors import DeviceError
from dovetail.device.cpu import default_threads
from dovetail.engine.check import check
from dovetail.engine.plan import Plan
from dovetail.runtime import weights as weight_sets
from dovetail.runtime.engine import RuntimeEngine, runners
from dovetail.runtime.partial import Parts

Array = np.ndarray[Any, Any]


class AbsentEngine(RuntimeEngine):
    """A plan and its weights without the device that runs them.

    Every method that would run raises DeviceError: what is missing, and where to run instead.
    """

    def __init__(self, plan: Plan, weights: Mapping[str, Array], reason: str) -> None:
        check(plan)
        self.plan, self.reason = plan, reason
        self.threads = default_threads()
        self._host = None
        self._kernels = {}
        self._runner = runners({}, None)
        self._contexts = deque(maxlen=0)
        self._lock = threading.Lock()
        self._weights = weight_sets.WeightSet(weight_sets.fitted(plan, weights), {}, {})
        self._memory = weight_sets.recycler(self._weights)
        self._parts = Parts(plan.weights_program, plan.kernels, self._runner)

    @property
    def device(self) -> str:
        """The first device of its kind, wherever the engine will run."""
        return self.plan.target.partition(":")[0]

    def refusal(self, what: str) -> DeviceError:
        """The error of a method that needs the device."""
        return DeviceError(f"{what}: the engine is for {self.plan.target}, which is not here ({self.reason}); save it and load it there")

    def run(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, threads: int | None = None, stream: Any = None
    ) -> dict[str, Any]:
        """Not here.

        Raises:
            DeviceError: always.
        """
        raise self.refusal("run")

    def run_async(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None, *, stream: Any = None) -> Any:
        """As `run`."""
        raise self.refusal("run_async")

    def context(self) -> Any:
        """As `run`."""
        raise self.refusal("context")

    def profile(self, inputs: Mapping[str, Any], *, threads: int | None = None, nvtx_ranges: bool = False) -> Any:
        """As `run`."""
        raise self.refusal("profile")

    def tap(self, inputs: Mapping[str, Any], names: Collection[str], *, threads: int | None = None) -> Any:
        """As `run`."""
        raise self.refusal("tap")

    def check_nan(self, inputs: Mapping[str, Any], *, threads: int | None = None) -> Any:
        """As `run`."""
        raise self.refusal("check_nan")

    def _refit(self, old: Any, changes: Mapping[str, Any]) -> weight_sets.WeightSet:
        """The initializers alone: what is derived from them is made where the engine runs."""
        new = weight_sets.changed(self.plan, old, changes, self._memory, self.threads)
        return weight_sets.WeightSet(new.arrays, {}, new.hashes, new.raw)
