"""INT8 calibrators and algorithm selectors (up to 10), which a client's subclasses implement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dovetail.tensorrt.dims import Dims
from dovetail.tensorrt.enums import CalibrationAlgoType, DataType, TensorFormat
from dovetail.tensorrt.hooks import IVersionedInterface, pure


class IInt8Calibrator(IVersionedInterface):
    """Feeds batches to a build that looks for ranges, and keeps what it found in a cache."""

    _kind = "IInt8Calibrator"
    _algorithm: ClassVar[CalibrationAlgoType | None] = None

    def get_batch_size(self) -> int:
        """The number of samples in a batch."""
        pure(IInt8Calibrator, "get_batch_size")

    def get_batch(self, names: list[str]) -> Sequence[int] | None:
        """The device addresses of the inputs of those names; None or nothing when there are no more batches."""
        pure(IInt8Calibrator, "get_batch")

    def read_calibration_cache(self) -> Any:
        """The cache of an earlier build, as a buffer; None to calibrate."""
        pure(IInt8Calibrator, "read_calibration_cache")

    def write_calibration_cache(self, cache: memoryview) -> None:
        """Keep the cache of this build."""
        pure(IInt8Calibrator, "write_calibration_cache")

    def get_algorithm(self) -> CalibrationAlgoType:
        """How ranges are found; given by the kind of calibrator.

        Raises:
            RuntimeError: of the base class, where a subclass does not say.
        """
        if self._algorithm is None:
            pure(IInt8Calibrator, "get_algorithm")
        return self._algorithm


class IInt8LegacyCalibrator(IInt8Calibrator):
    """Ranges by a quantile and a cutoff of histograms."""

    _kind = "IInt8LegacyCalibrator"
    _algorithm = CalibrationAlgoType.LEGACY_CALIBRATION

    def get_quantile(self) -> float:
        """The quantile that bounds a range."""
        return 0.5

    def get_regression_cutoff(self) -> float:
        """The share that regression may cut off."""
        return 0.5

    def read_histogram_cache(self, length: int) -> Any:
        """The histograms of an earlier build; None by default."""
        return None

    def write_histogram_cache(self, data: Any, length: int) -> None:
        """Keep the histograms of this build; nothing by default."""


class IInt8EntropyCalibrator(IInt8Calibrator):
    """Ranges of the least relative entropy, per tensor."""

    _kind = "IInt8EntropyCalibrator"
    _algorithm = CalibrationAlgoType.ENTROPY_CALIBRATION


class IInt8EntropyCalibrator2(IInt8Calibrator):
    """Ranges of the least relative entropy, before fusion."""

    _kind = "IInt8EntropyCalibrator2"
    _algorithm = CalibrationAlgoType.ENTROPY_CALIBRATION_2


class IInt8MinMaxCalibrator(IInt8Calibrator):
    """Ranges from the least to the largest value."""

    _kind = "IInt8MinMaxCalibrator"
    _algorithm = CalibrationAlgoType.MINMAX_CALIBRATION


@dataclass(frozen=True, slots=True)
class IAlgorithmIOInfo:
    """How one input or output of an algorithm lies in memory; `strides` in elements."""

    dtype: DataType
    strides: Dims
    vectorized_dim: int = -1
    components_per_element: int = 1
    tensor_format: TensorFormat = TensorFormat.LINEAR


@dataclass(frozen=True, slots=True)
class IAlgorithmVariant:
    """What identifies an algorithm: numbers that stay the same from build to build."""

    implementation: int
    tactic: int


class IAlgorithm:
    """One way to compute a layer."""

    __slots__ = ("_infos", "_time", "_variant", "_workspace")

    def __init__(self, variant: IAlgorithmVariant, infos: Sequence[IAlgorithmIOInfo], timing_msec: float, workspace_size: int) -> None:
        self._variant = variant
        self._infos = tuple(infos)
        self._time = timing_msec
        self._workspace = workspace_size

    @property
    def algorithm_variant(self) -> IAlgorithmVariant:
        """What identifies the algorithm."""
        return self._variant

    @property
    def timing_msec(self) -> float:
        """The time it took, in milliseconds; 0 where it was not measured."""
        return self._time

    @property
    def workspace_size(self) -> int:
        """The scratch memory it needs, in bytes."""
        return self._workspace

    def get_algorithm_io_info(self, index: int) -> IAlgorithmIOInfo | None:
        """How an input, or after them an output, lies in memory; None beyond the last."""
        return self._infos[index] if 0 <= index < len(self._infos) else None


class IAlgorithmContext:
    """A layer that algorithms are chosen for."""

    __slots__ = ("_inputs", "_name", "_shapes")

    def __init__(self, name: str, shapes: Sequence[Sequence[Dims]], num_inputs: int) -> None:
        self._name = name
        self._shapes = tuple(shapes)
        self._inputs = num_inputs

    @property
    def name(self) -> str:
        """The name of the layer."""
        return self._name

    @property
    def num_inputs(self) -> int:
        """The number of inputs."""
        return self._inputs

    @property
    def num_outputs(self) -> int:
        """The number of outputs."""
        return len(self._shapes) - self._inputs

    def get_shape(self, index: int) -> list[Dims]:
        """The least, likely and largest shape of an input or, after them, an output; empty beyond the last."""
        return list(self._shapes[index]) if 0 <= index < len(self._shapes) else []


class IAlgorithmSelector(IVersionedInterface):
    """Chooses among the algorithms of every layer."""

    _kind = "IAlgorithmSelector"

    def select_algorithms(self, context: IAlgorithmContext, choices: list[IAlgorithm]) -> list[int]:
        """The indices of the choices that the build may use."""
        pure(IAlgorithmSelector, "select_algorithms")

    def report_algorithms(self, contexts: list[IAlgorithmContext], choices: list[IAlgorithm]) -> None:
        """Take the choice that was made for each layer."""
        pure(IAlgorithmSelector, "report_algorithms")
