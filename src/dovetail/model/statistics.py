"""Statistics of weights, in pieces, so that memory-mapped ones are never copied whole; and what in them is suspicious."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

BINS = 24
"""Number of bins of a histogram, of equal width between min and max."""

_CHUNK = 1 << 20
_FP16_MAX = 65504.0
_FP16_ZERO = 2.0**-25
_WIDE = 100.0
_BELOW_SHARE = 1e-3
_SMALL = 64
_FLOATS = ("float", "double", "bfloat")  # as ONNX and NumPy name them
_COUNTS = ("zeros", "nan", "inf", "denormal", "beyond_fp16", "below_fp16")


def statistics(array: Array, channel_axis: int | None = None) -> dict[str, Any]:
    """Statistics of an array's elements; None for strings.

    Args:
        channel_axis: the axis of output channels, where the array has one: whole channels of zeros are then counted.

    Returns:
        min, max, mean, std, rms (the last two None where squares overflow), abs_max, abs_min_nonzero of finite elements; counts: zeros,
        nan, inf, denormal (in the array's own type), beyond_fp16 (finite, above 65504), below_fp16 (not zero, but zero in fp16),
        zero_channels and channels (None without the axis); constant (more than one element, all equal); histogram: `BINS` counts
        from min to max. Complex numbers count by their real part.
    """
    nothing: dict[str, Any] = dict.fromkeys(("min", "max", "mean", "std", "rms", "abs_max", "abs_min_nonzero"))
    channels = _channels(array, channel_axis)
    if array.dtype == object or array.dtype.kind in "SU":
        return nothing | dict.fromkeys(_COUNTS) | {"zero_channels": None, "channels": None, "constant": False, "histogram": None}
    found = _Moments(_least_normal(array.dtype))
    for chunk in _chunks(array):
        found.add(chunk)
    counts = {
        "zeros": found.zeros, "nan": found.nan, "inf": found.inf, "denormal": found.denormal, "beyond_fp16": found.beyond,
        "below_fp16": found.below, **channels,
    }  # fmt: skip
    if not found.count:
        return nothing | counts | {"constant": False, "histogram": [0] * BINS}
    constant = array.size > 1 and found.count == array.size and found.low == found.high
    return found.values() | counts | {"constant": constant, "histogram": _histogram(array, found.low, found.high)}


class _Moments:
    """Sums over pieces of an array."""

    def __init__(self, least_normal: float) -> None:
        self.low, self.high, self.least = math.inf, -math.inf, math.inf
        self.total = self.squares = self.raw_squares = 0.0
        self.count = self.zeros = self.nan = self.inf = self.denormal = self.beyond = self.below = 0
        self.shift: float | None = None
        self._normal = least_normal

    def add(self, wide: Array) -> None:
        """Take in a piece: float32 or float64."""
        whole = bool(np.isfinite(wide).all())
        finite = wide
        if not whole:
            self.nan += int(np.isnan(wide).sum())
            self.inf += int(np.isinf(wide).sum())
            finite = wide[np.isfinite(wide)]
        if not finite.size:
            return
        size = np.abs(finite)
        zeros = finite.size - int(np.count_nonzero(size))
        self.zeros += zeros
        self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
        least = float(np.min(size, initial=np.inf, where=size > 0)) if zeros else float(size.min())
        self.least = min(self.least, least)
        # Comparisons of all elements are only worth it where the extremes say that there is something to count.
        if least < self._normal:
            self.denormal += int((size < self._normal).sum()) - zeros
        if least <= _FP16_ZERO:
            self.below += int((size <= _FP16_ZERO).sum()) - zeros
        if max(-self.low, self.high) > _FP16_MAX:
            self.beyond += int((size > _FP16_MAX).sum())
        # Sums around the first piece's mean do not cancel.
        self.shift = float(finite.mean(dtype=np.float64)) if self.shift is None else self.shift
        apart = finite.astype(np.float64) - self.shift
        with np.errstate(over="ignore"):
            self.total += float(apart.sum())
            self.squares += float(np.dot(apart, apart))
        self.count += finite.size

    def values(self) -> dict[str, Any]:
        """What they say; at least one element was finite."""
        assert self.shift is not None
        mean = self.total / self.count
        variance = max(0.0, self.squares / self.count - mean * mean)
        center = self.shift + mean
        power = variance + center * center
        return {
            "min": self.low, "max": self.high, "mean": center, "std": math.sqrt(variance) if math.isfinite(variance) else None,
            "rms": math.sqrt(power) if math.isfinite(power) else None, "abs_max": max(abs(self.low), abs(self.high)),
            "abs_min_nonzero": self.least if math.isfinite(self.least) else None,
        }  # fmt: skip


def _chunks(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK].real
        exact = chunk.dtype in (np.float32, np.float64)
        yield np.asarray(chunk if exact else chunk.astype(np.float64))


def _least_normal(kind: np.dtype[Any]) -> float:
    """The least normal number of a float type; 0 for what has no denormals to speak of."""
    try:
        return float(ml_dtypes.finfo(kind).smallest_normal)
    except ValueError:
        return 0.0


def _histogram(array: Array, low: float, high: float) -> list[int]:
    if low == high:
        return [int(array.size)] + [0] * (BINS - 1)
    counts = np.zeros(BINS, np.int64)
    # A difference of the ends may overflow where each does not.
    width = high / BINS - low / BINS
    for chunk in _chunks(array):
        finite = chunk if np.isfinite(chunk).all() else chunk[np.isfinite(chunk)]
        place = finite.astype(np.float64) / width - low / width if width else np.zeros(finite.size)
        counts += np.bincount(np.clip(place, 0, BINS - 1).astype(np.int64), minlength=BINS)
    return [int(c) for c in counts]


def _channels(array: Array, axis: int | None) -> dict[str, Any]:
    text = array.dtype == object or array.dtype.kind in "SU"
    if axis is None or text or not array.size or array.ndim < 2 or not -array.ndim <= axis < array.ndim:
        return {"zero_channels": None, "channels": None}
    count = array.shape[axis]
    dead = np.ones(count, bool)
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    # Along the first axis in pieces, whichever axis the channels are.
    rows = max(1, _CHUNK // max(1, array[0].size))
    for start in range(0, len(array), rows):
        used = (array[start : start + rows] != 0).any(axis=others)
        if axis % array.ndim == 0:
            dead[start : start + rows] = ~used
        else:
            dead &= ~used
    return {"zero_channels": int(dead.sum()), "channels": count}


# ---------------------------------------------------------------------- what is suspicious
@dataclass(frozen=True)
class Suspicion:
    """One kind of oddity: its key, what it means, and the weights that have it, worst first, with counts of elements.

    `serious` is what makes wrong or slow results by itself; the rest is worth a look.
    """

    kind: str
    meaning: str
    serious: bool
    weights: tuple[tuple[str, int], ...]

    @property
    def elements(self) -> int:
        """Elements (or channels, or tensors) in all."""
        return sum(count for _, count in self.weights)

    def json(self) -> dict[str, Any]:
        """Plain data with stable keys."""
        return {
            "kind": self.kind, "meaning": self.meaning, "serious": self.serious, "count": self.elements,
            "weights": [{"name": name, "count": count} for name, count in self.weights],
        }  # fmt: skip


_KINDS = (
    ("nan", "NaN: every output that reads one is NaN", True),
    ("inf", "infinities: 0 times one is NaN", True),
    ("beyond_fp16", "beyond fp16: above 65504, so infinite in fp16", True),
    ("denormal", "denormal: smaller than the type's normal numbers; slow on many CPUs, zero on most GPUs", True),
    ("zero_channels", "channels that are all zero: they compute nothing", False),
    ("below_fp16", f"below fp16: not zero, but zero in fp16 (where over {_BELOW_SHARE:.1%} of a weight is)", False),
    ("constant", "constant: all elements are equal", False),
    ("outliers", f"outliers: the largest is over {_WIDE:.0f} times the root mean square; quantization loses the rest", False),
)


def suspicions(weights: Sequence[Mapping[str, Any]]) -> list[Suspicion]:
    """What is odd in weights that were described by `name`, `dtype` and `statistics`; serious things first.

    Denormals count in types of 32 bits and more (in narrower ones they are ordinary numbers).
    """
    found = []
    for kind, meaning, serious in _KINDS:
        counted = [(str(w["name"]), _amount(kind, w)) for w in weights]
        odd = sorted((pair for pair in counted if pair[1]), key=lambda pair: -pair[1])
        if odd:
            found.append(Suspicion(kind, meaning, serious, tuple(odd)))
    return found


def _amount(kind: str, weight: Mapping[str, Any]) -> int:
    size, floats = math.prod(weight["shape"]), str(weight["dtype"]).startswith(_FLOATS)
    if kind in ("nan", "inf"):
        return int(weight[kind] or 0)
    if weight["abs_max"] is None or not floats:
        return 0
    if kind == "constant":
        # Biases start at zero and scales at one, and exporters write small constants: all of that is ordinary.
        return int(bool(weight["constant"]) and len(weight["shape"]) > 1 and size >= _SMALL)
    if kind == "outliers":
        return int(len(weight["shape"]) > 1 and weight["abs_max"] > _WIDE * (weight["rms"] or 0.0) > 0)
    if kind == "denormal" and weight["dtype"] not in ("float", "double", "bfloat16", "float32", "float64"):
        return 0
    if kind == "below_fp16" and weight["below_fp16"] <= _BELOW_SHARE * size:
        return 0
    if kind == "zero_channels" and weight["zero_channels"] == weight["channels"]:
        return 0  # a constant
    return int(weight[kind] or 0)
