"""Runs a client's calibrator: the network in fp32 on its batches, a range for every tensor, and the cache of what was found.

The cache is text as TensorRT's: a header with the algorithm, then a line per tensor with the bits of its scale. There are no quantized
kernels that would use the scales yet, so they are found, checked and kept, and the engine computes without them.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

import dovetail
from dovetail.core.env import env
from dovetail.core.errors import BuildError
from dovetail.tensorrt import device
from dovetail.tensorrt.calibrator import IInt8Calibrator, IInt8LegacyCalibrator
from dovetail.tensorrt.config import IBuilderConfig, calibration_profile
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enums import CalibrationAlgoType, DataType
from dovetail.tensorrt.hooks import call
from dovetail.tensorrt.logger import Reporter
from dovetail.tensorrt.memory import array_at, integer
from dovetail.tensorrt.profile import shapes_of

if TYPE_CHECKING:
    from dovetail.tensorrt.network_base import NetworkBase

_HEADERS = {
    CalibrationAlgoType.LEGACY_CALIBRATION: "LegacyCalibration",
    CalibrationAlgoType.ENTROPY_CALIBRATION: "EntropyCalibration",
    CalibrationAlgoType.ENTROPY_CALIBRATION_2: "EntropyCalibration2",
    CalibrationAlgoType.MINMAX_CALIBRATION: "MinMaxCalibration",
}
_FLOATS = (DataType.FLOAT, DataType.HALF, DataType.BF16)
_BINS, _LEVELS = 2048, 128

Array = np.ndarray[Any, Any]


def calibrate(network: NetworkBase, config: IBuilderConfig, reporter: Reporter, max_batch_size: int) -> dict[str, float]:
    """The scale of each tensor, from the calibrator's cache or by running its batches.

    Raises:
        BuildError: the network or its shapes cannot be built, or the calibrator gives no batches.
    """
    calibrator = config.int8_calibrator
    assert calibrator is not None
    algorithm = call(reporter, "get_algorithm", calibrator.get_algorithm, default=CalibrationAlgoType.ENTROPY_CALIBRATION_2)
    cache = call(reporter, "read_calibration_cache", calibrator.read_calibration_cache, default=None)
    if cache is not None and len(known := bytes(cache)):
        found = parse_cache(known)
        if found is not None:
            reporter.info(f"Calibration table is read from the cache: {len(found)} tensors.")
            return found
        reporter.warning("The calibration cache is of no known form; calibrating again.")
    scales = _measured(network, config, reporter, calibrator, algorithm, max_batch_size)
    text = format_cache(scales, algorithm)
    call(reporter, "write_calibration_cache", calibrator.write_calibration_cache, memoryview(text), default=None)
    return scales


def format_cache(scales: dict[str, float], algorithm: CalibrationAlgoType) -> bytes:
    """The text of a calibration cache."""
    major, minor, patch = (int(part) for part in env().tensorrt_version.split(".")[:3])
    lines = [f"TRT-{major}{minor:02}{patch:02}-{_HEADERS[algorithm]}"]
    lines += [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return ("\n".join(lines) + "\n").encode()


def parse_cache(data: bytes) -> dict[str, float] | None:
    """The scales of a calibration cache; None where it is none."""
    first, *lines = data.decode("utf-8", "replace").splitlines()
    if not first.startswith("TRT-"):
        return None
    found = {}
    for line in filter(None, lines):
        name, _, digits = line.rpartition(": ")
        try:
            (found[name],) = struct.unpack(">f", bytes.fromhex(digits))
        except (ValueError, struct.error):
            return None
    return found


def _measured(
    network: NetworkBase, config: IBuilderConfig, reporter: Reporter, calibrator: IInt8Calibrator, algorithm: CalibrationAlgoType,
    max_batch_size: int,
) -> dict[str, float]:  # fmt: skip
    tensors = {t.name: t for record in network._layers for t in record.outputs if t.dtype in _FLOATS}
    tensors |= {t.name: t for t in network._inputs if t.dtype in _FLOATS}
    shapes = _input_shapes(network, config, calibrator, reporter, max_batch_size)
    outputs = [t for t in tensors.values() if not t.is_network_input]
    engine = dovetail.build(network._model(outputs), device=device.device(), shapes=shapes, tune=False, verify="off")
    ranges = {name: _Range() for name in tensors}
    per_batch = call(reporter, "get_batch_size", calibrator.get_batch_size, default=0)
    reporter.verbose(f"Calibrating with batches of {per_batch} samples.")
    names, batches, types = list(shapes), 0, {t.name: t.dtype for t in network._inputs}
    while True:
        addresses = call(reporter, "get_batch", calibrator.get_batch, list(names), default=None)
        if not addresses:
            break
        if len(addresses) != len(names):
            raise BuildError(f"calibrator: got {len(addresses)} addresses of get_batch, expected one for each of {names}")
        feeds = {
            name: array_at(engine.runtime, f"get_batch of {name}", integer(a, "get_batch"), shapes[name], to_dtype(types[name]).numpy)
            for name, a in zip(names, addresses, strict=True)
        }
        results = {**feeds, **engine.run(feeds)}
        for name, found in ranges.items():
            found.add(_on_host(results[name]))
        batches += 1
    if not batches:
        raise BuildError("calibrator: got no batches and no cache, expected one of them; see what get_batch returns")
    reporter.info(f"Calibrated with {batches} batches by {algorithm.name}.")
    return {name: found.scale(algorithm, calibrator) for name, found in ranges.items()}


def _input_shapes(
    network: NetworkBase, config: IBuilderConfig, calibrator: IInt8Calibrator, reporter: Reporter, max_batch_size: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of batches: the likely ones of the calibration profile; with an implicit batch, as many samples as the calibrator says."""
    profile = calibration_profile(config)
    likely = {} if profile is None else {name: tuple(rows[1]) for name, rows in shapes_of(profile).items()}
    found = {}
    for tensor in network._inputs:
        shape = likely.get(tensor.name, tuple(tensor.shape))
        if -1 in shape:
            raise BuildError(f"calibration: got no shape for the dynamic input {tensor.name!r}, expected one in a profile")
        found[tensor.name] = shape
    if network.has_implicit_batch_dimension:
        count = call(reporter, "get_batch_size", calibrator.get_batch_size, default=max_batch_size)
        found = {name: (count, *shape) for name, shape in found.items()}
    return found


def _on_host(array: Any) -> Array:
    """The elements of an array of the engine's device, in fp32."""
    return np.asarray(array.numpy() if hasattr(array, "numpy") else array).astype(np.float32)


class _Range:
    """How the magnitudes of one tensor lie: a histogram that widens by powers of two as larger values come."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.width = 0.0
        self.counts = np.zeros(_BINS, np.int64)

    def add(self, array: Array) -> None:
        """Take the values of a batch; those that are not finite are left out."""
        values = np.abs(array[np.isfinite(array)]).astype(np.float64).reshape(-1)
        most = float(values.max(initial=0.0))
        if most == 0.0:
            self.counts[0] += values.size
            return
        if self.width == 0.0:
            self.width = most / _BINS
        while most > self.width * _BINS:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(_BINS // 2, np.int64)])
            self.width *= 2
        self.largest = max(self.largest, most)
        found = np.minimum((values / self.width).astype(np.int64), _BINS - 1)
        self.counts += np.bincount(found, minlength=_BINS)

    def scale(self, algorithm: CalibrationAlgoType, calibrator: IInt8Calibrator) -> float:
        """The step of an 8-bit integer."""
        if self.largest == 0.0:
            return 1.0 / 127
        if algorithm is CalibrationAlgoType.MINMAX_CALIBRATION:
            return self.largest / 127
        if algorithm is CalibrationAlgoType.LEGACY_CALIBRATION:
            quantile = calibrator.get_quantile() if isinstance(calibrator, IInt8LegacyCalibrator) else 1.0
            share = np.cumsum(self.counts) / self.counts.sum()
            return min(self.largest, (int(np.searchsorted(share, quantile)) + 1) * self.width) / 127
        return min(self.largest, self._of_least_entropy() * self.width) / 127

    def _of_least_entropy(self) -> int:
        """The number of bins to keep whose 128 levels lose the least, by the Kullback-Leibler divergence."""
        counts = self.counts.astype(np.float64)
        counts[0] = counts[1] if len(counts) > 1 else counts[0]  # zeros say nothing about the range
        used = int(np.flatnonzero(self.counts)[-1]) + 1
        best, least = used, math.inf
        for kept in range(min(_LEVELS, used), used + 1):
            loss = _divergence(counts, kept)
            if loss < least:
                best, least = kept, loss
        return best


def _divergence(counts: Array, kept: int) -> float:
    """What is lost when only the first bins are kept, in 128 levels, and the rest is clipped to the last."""
    reference = counts[:kept].copy()
    reference[-1] += counts[kept:].sum()
    level = np.arange(kept) * _LEVELS // kept
    filled = counts[:kept] > 0
    sums = np.bincount(level, counts[:kept], minlength=_LEVELS)
    shares = np.bincount(level, filled, minlength=_LEVELS)
    made = np.where(filled, sums[level] / np.maximum(shares[level], 1), 0.0)
    p, q = reference / max(reference.sum(), 1.0), made / max(made.sum(), 1e-30)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))))
