"""How a weight of an engine follows from arrays of another source: as data that can be printed and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Recipe:
    """One rule over named arrays.

    `arrange`: the input with `axes` transposed (None: as it is), then in `shape` (None: as it is).
    `part`: elements `start` to `stop` along `axis` of the input, arranged.
    `concat`: the inputs side by side along `axis`, arranged.
    `folded_weight`: weight, gamma, variance: the weight of a convolution or linear layer with a batch normalisation of `eps` folded
    into it; `axis` is that of the output channels.
    `folded_bias`: beta, gamma, mean, variance and perhaps the bias: what is added then.
    `weight_norm`: magnitude and direction: weight normalisation, resolved.
    """

    rule: str
    inputs: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    axis: int = 0
    start: int = 0
    stop: int = 0
    eps: float = 0.0

    def __call__(self, arrays: Mapping[str, Array]) -> Array:
        """The weight.

        Raises:
            KeyError: an input is not there.
            ValueError: shapes that do not fit the rule.
        """
        found = _RULES[self.rule](self, *(arrays[name] for name in self.inputs))
        if self.axes is not None:
            found = found.transpose(self.axes)
        return found if self.shape is None else found.reshape(self.shape)

    def __str__(self) -> str:
        what = f"{self.rule}({', '.join(self.inputs)})" if self.rule != "arrange" else self.inputs[0]
        what += f" part {self.start}:{self.stop} of axis {self.axis}" if self.rule == "part" else ""
        what += f" transposed {self.axes}" if self.axes is not None else ""
        return what + (f" as {self.shape}" if self.shape is not None else "")


WeightName: TypeAlias = str | tuple[str, tuple[int, ...]] | Recipe | Callable[[Mapping[str, Array]], Array]
"""What a weight of the engine is in the source: a name, a name and the axes of a transposition, or what computes it."""


def _part(recipe: Recipe, x: Array) -> Array:
    return x[(slice(None),) * recipe.axis + (slice(recipe.start, recipe.stop),)]


def _concat(recipe: Recipe, *parts: Array) -> Array:
    return np.concatenate(parts, recipe.axis)


def _scale(recipe: Recipe, gamma: Array, variance: Array) -> Array:
    found: Array = gamma / np.sqrt(variance + np.asarray(recipe.eps, variance.dtype))
    return found


def _folded_weight(recipe: Recipe, weight: Array, gamma: Array, variance: Array) -> Array:
    shape = [1] * weight.ndim
    shape[recipe.axis] = -1
    found: Array = weight * _scale(recipe, gamma, variance).reshape(shape)
    return found


def _folded_bias(recipe: Recipe, beta: Array, gamma: Array, mean: Array, variance: Array, bias: Array | None = None) -> Array:
    centred = -mean if bias is None else bias - mean
    found: Array = centred * _scale(recipe, gamma, variance) + beta
    return found


def _weight_norm(recipe: Recipe, magnitude: Array, direction: Array) -> Array:
    # The norm is over the axes that the magnitude has not.
    over = tuple(i for i, n in enumerate(magnitude.shape) if n == 1)
    if magnitude.ndim == 0:
        over = tuple(range(direction.ndim))
    norm = np.sqrt(np.sum(direction * direction, over, keepdims=True))
    found: Array = direction * (magnitude / norm)
    return found


_RULES: dict[str, Callable[..., Array]] = {
    "arrange": lambda recipe, x: x,
    "part": _part,
    "concat": _concat,
    "folded_weight": _folded_weight,
    "folded_bias": _folded_bias,
    "weight_norm": _weight_norm,
}
