"""`Refitter`: new weights for an engine, by layer and role or by name, all or none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dovetail.core.dtypes import dtype
from dovetail.core.errors import BindingError, Error, RefitError
from dovetail.device.cpu import default_threads
from dovetail.engine.file import EngineFile
from dovetail.engine.plan import WeightSpec
from dovetail.tensorrt.dtypes import to_data_type, to_dtype
from dovetail.tensorrt.engine import ICudaEngine
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, ErrorCodeTRT, TensorLocation, WeightsRole
from dovetail.tensorrt.hooks import recorder_property
from dovetail.tensorrt.logger import ILogger, Reporter
from dovetail.tensorrt.memory import integer
from dovetail.tensorrt.weights import Weights, address, as_weights, prototype, values

_HALF_MAX = 65504.0


class Refitter:
    """Takes new weights one by one and gives them to an engine at once; contexts of the engine run with them from then on.

    Weights that are not given stay as they are. Memory that `Weights` refer to is read by `refit_cuda_engine`.

    Raises:
        TypeError: an engine that was not built to be refitted.
    """

    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        self._engine = expect(ICudaEngine, engine, "Refitter: engine")
        self._reporter = Reporter(logger, engine.error_recorder)
        if not engine.refittable:
            problem = "Refitter: the engine cannot be refitted, expected one that was built with the flag REFIT"
            self._reporter.error(problem, ErrorCodeTRT.INVALID_STATE)
            raise TypeError("pybind11::init(): factory function returned nullptr: the engine cannot be refitted")
        allowed = engine._record.weights
        # Names of the compiler's own constants begin with "~"; nobody else knows them.
        specs = [s for s in engine._engine.plan.weights if not s.name.startswith("~")]
        self._specs = {s.name: s for s in specs if allowed is None or s.name in allowed}
        self._kept = frozenset[str]() if engine._stripped is None else frozenset(EngineFile(engine._stripped).fixed_weights())
        self._roles = {(layer, WeightsRole.__members__[role]): weight for layer, role, weight in self._all_roles()}
        self._given: dict[str, tuple[Weights, TensorLocation]] = {}
        self._ranges: dict[str, tuple[float, float]] = {}
        self._validation = True
        self._threads: int | None = None

    # ------------------------------------------------------------------ settings
    @property
    def logger(self) -> ILogger:
        """Where messages go."""
        return self._reporter.logger

    error_recorder = recorder_property("Refitter", "Where errors are recorded; the engine's at first.")

    @property
    def max_threads(self) -> int:
        """How many threads a refit may use: at first all CPUs of the process."""
        return default_threads() if self._threads is None else self._threads

    @max_threads.setter
    def max_threads(self, count: int) -> None:
        if expect(int, count, "Refitter.max_threads") < 1:
            self._reporter.error(f"Refitter.max_threads: got {count}, expected at least 1", ErrorCodeTRT.INVALID_ARGUMENT)
            return
        self._threads = count

    @property
    def weights_validation(self) -> bool:
        """Whether a refit warns of weights that are not finite, or leave the range of the engine's precision."""
        return self._validation

    @weights_validation.setter
    def weights_validation(self, on: bool) -> None:
        self._validation = expect(bool, on, "Refitter.weights_validation")

    # ------------------------------------------------------------------ what there is
    def get_all(self) -> tuple[list[str], list[WeightsRole]]:
        """Layers and roles of all weights that layers hold, as two lists side by side."""
        return self._split(self._roles)

    def get_missing(self) -> tuple[list[str], list[WeightsRole]]:
        """Layers and roles whose weights a refit still needs; see `get_missing_weights`."""
        missing = set(self.get_missing_weights())
        return self._split(key for key, name in self._roles.items() if name in missing)

    def get_all_weights(self) -> list[str]:
        """Names of all weights."""
        return list(self._specs)

    def get_missing_weights(self) -> list[str]:
        """Names of weights that a refit still needs: of an engine that came without weights all that were not given, else none."""
        if self._engine._stripped is None:
            return []
        return [name for name in self._specs if name not in self._given and name not in self._kept]

    def get_weights_prototype(self, weights_name: str) -> Weights:
        """The type and number of elements of weights, without memory; -1 elements for an unknown name."""
        spec = self._spec(expect(str, weights_name, "Refitter.get_weights_prototype: weights_name"), "get_weights_prototype")
        return prototype(DataType.FLOAT, -1) if spec is None else prototype(_type_of(spec), _count(spec))

    def get_named_weights(self, weights_name: str) -> Weights:
        """The weights that were given by that name; empty ones where none were."""
        name = expect(str, weights_name, "Refitter.get_named_weights: weights_name")
        given = self._given.get(name)
        if given is None:
            self._spec(name, "get_named_weights")
            return Weights()
        return given[0]

    def get_weights_location(self, weights_name: str) -> TensorLocation:
        """The memory that the weights given by that name lie in; HOST where none were."""
        given = self._given.get(expect(str, weights_name, "Refitter.get_weights_location: weights_name"))
        return TensorLocation.HOST if given is None else given[1]

    # ------------------------------------------------------------------ giving weights
    def set_weights(self, layer_name: str, role: WeightsRole, weights: Any) -> bool:
        """Give the weights of a layer; False and an error in the log where they do not fit."""
        key = expect(str, layer_name, "Refitter.set_weights: layer_name"), expect(WeightsRole, role, "Refitter.set_weights: role")
        given = as_weights(weights, "Refitter.set_weights: weights")
        name = self._roles.get(key)
        if name is None and role is WeightsRole.ANY:
            held = [weight for (layer, _), weight in self._roles.items() if layer == layer_name]
            name = held[0] if len(held) == 1 else None
        if name is None:
            roles = [r.name for layer, r in self._roles if layer == layer_name]
            has = f"one of {', '.join(roles)}" if roles else "the name of a layer with weights (get_all)"
            return self._refuse("set_weights", f"got the layer {layer_name!r} and the role {role.name}, expected {has}")
        return self._set(name, given, TensorLocation.HOST, "set_weights")

    def set_named_weights(self, name: str, weights: Any, location: TensorLocation = TensorLocation.HOST) -> bool:
        """Give weights by name, in host memory or on the device; False and an error in the log where they do not fit."""
        expect(str, name, "Refitter.set_named_weights: name")
        given = as_weights(weights, "Refitter.set_named_weights: weights")
        return self._set(name, given, expect(TensorLocation, location, "Refitter.set_named_weights: location"), "set_named_weights")

    def unset_named_weights(self, weights_name: str) -> bool:
        """Take back weights that were given by that name; False and an error in the log where none were."""
        if self._given.pop(expect(str, weights_name, "Refitter.unset_named_weights: weights_name"), None) is None:
            return self._refuse("unset_named_weights", f"got {weights_name!r}, expected weights that were set")
        return True

    def _set(self, name: str, weights: Weights, location: TensorLocation, where: str) -> bool:
        spec = self._spec(name, where)
        if spec is None:
            return False
        kind, count = _type_of(spec), _count(spec)
        if weights.size != count or (weights.dtype is not kind and count):
            return self._refuse(
                where,
                f"got {weights.size} elements of {weights.dtype.name} for {name!r}, expected {count} of {kind.name} ({list(spec.shape)})",
            )
        self._given[name] = (weights, location)
        return True

    # ------------------------------------------------------------------ refitting
    def refit_cuda_engine(self) -> bool:
        """Give the engine what was set, all or none; False and an error in the log where it cannot take it."""
        return self._refit("refit_cuda_engine")

    def refit_cuda_engine_async(self, stream_handle: Any) -> bool:
        """As `refit_cuda_engine`; runs that are queued later have the new weights."""
        integer(stream_handle, "Refitter.refit_cuda_engine_async: stream_handle")
        return self._refit("refit_cuda_engine_async")

    def _refit(self, where: str) -> bool:
        missing = self.get_missing_weights()
        if missing:
            shown = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            return self._refuse(where, f"weights are missing: {shown}; the engine came without weights, so all must be given")
        try:
            changes = {name: self._array(name) for name in self._given}
            if self._validation:
                self._warn(changes)
            if self._engine._stripped is None:
                self._engine._engine.refit(changes)
            elif self._engine._load is None:
                raise RefitError("got an engine without weights and without its file, expected one that a Runtime made")
            else:
                self._engine._adopt(self._engine._load(weights=changes))
        except Error as error:
            self._reporter.error(f"Refitter.{where}: {error}", ErrorCodeTRT.FAILED_EXECUTION)
            return False
        self._engine._set_ranges(self._ranges)
        return True

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        """The weights given by a name, as the engine has them.

        Raises:
            BindingError: on a device that the engine is not on.
        """
        weights, location = self._given[name]
        spec = self._specs[name]
        flat = self._fetched(weights) if location is TensorLocation.DEVICE else values(weights)
        # float64 weights go by the name of FLOAT.
        return np.array(flat, dtype(spec.dtype).numpy).reshape(spec.shape)

    def _fetched(self, weights: Weights) -> np.ndarray[Any, Any]:
        """Weights in the memory of the engine's device: host memory where that is a CPU."""
        from dovetail.runtime.cuda import CudaEngine
        from dovetail.runtime.cuda.arrays import DeviceArray

        runtime = self._engine._engine.runtime
        if not isinstance(runtime, CudaEngine):
            return values(weights)
        kind = to_dtype(weights.dtype)
        if kind.bits < 8:
            raise BindingError(f"refit: got {kind} weights on the device, expected them in host memory")
        return DeviceArray.at(runtime.driver, address(weights), (weights.size,), kind.numpy).numpy()

    def _warn(self, changes: dict[str, np.ndarray[Any, Any]]) -> None:
        """Warn of weights that are no numbers, or none in the engine's precision."""
        half = self._engine._engine.info.get("actual", {}).get("precision") == "fp16"
        for name, array in changes.items():
            if not dtype(array.dtype).is_float or not array.size:
                continue
            largest = float(np.max(np.abs(array.astype(np.float32))))
            if not np.isfinite(largest):
                self._reporter.warning(f"Refitter: weights {name!r} have values that are not finite")
            elif half and largest > _HALF_MAX:
                self._reporter.warning(f"Refitter: weights {name!r} have values beyond {_HALF_MAX}, the largest of FP16")

    # ------------------------------------------------------------------ dynamic ranges
    def set_dynamic_range(self, tensor_name: str, range: Iterable[float]) -> bool:
        """Set the range of a tensor that has one; False and an error in the log for others."""
        name = expect(str, tensor_name, "Refitter.set_dynamic_range: tensor_name")
        low, high = (float(v) for v in range)
        if name not in self._engine._record.ranges:
            return self._refuse("set_dynamic_range", f"got {name!r}, expected a tensor with a dynamic range")
        self._ranges[name] = (low, high)
        return True

    def get_dynamic_range(self, tensor_name: str) -> tuple[float, float]:
        """The range of a tensor; (0, 0) and an error in the log where it has none."""
        name = expect(str, tensor_name, "Refitter.get_dynamic_range: tensor_name")
        found = self._ranges.get(name) or self._engine._record.ranges.get(name)
        if found is None:
            self._refuse("get_dynamic_range", f"got {name!r}, expected a tensor with a dynamic range")
            return 0.0, 0.0
        return found[0], found[1]

    def get_tensors_with_dynamic_range(self) -> list[str]:
        """Names of the tensors that have a range."""
        return list(self._engine._record.ranges)

    # ------------------------------------------------------------------ internal
    def _all_roles(self) -> list[tuple[str, str, str]]:
        """(layer, role, weight) of the record; a weight that no layer of it holds, such as a shape, is one of its own, as in refit maps."""
        known = [row for row in self._engine._record.roles if row[2] in self._specs]
        held = {weight for _, _, weight in known}
        return known + [(name, WeightsRole.CONSTANT.name, name) for name in self._specs if name not in held]

    def _split(self, keys: Iterable[tuple[str, WeightsRole]]) -> tuple[list[str], list[WeightsRole]]:
        pairs = list(keys)
        return [layer for layer, _ in pairs], [role for _, role in pairs]

    def _spec(self, name: str, where: str) -> WeightSpec | None:
        found = self._specs.get(name)
        if found is None:
            self._refuse(where, f"got {name!r}, expected one of the {len(self._specs)} weights of the engine (get_all_weights)")
        return found

    def _refuse(self, where: str, why: str) -> bool:
        self._reporter.error(f"Refitter.{where}: {why}", ErrorCodeTRT.INVALID_ARGUMENT)
        return False


def _type_of(spec: WeightSpec) -> DataType:
    """The element type that clients see: FLOAT for float64, which TensorRT does not have."""
    return DataType.FLOAT if spec.dtype == "f64" else to_data_type(dtype(spec.dtype))


def _count(spec: WeightSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64))
