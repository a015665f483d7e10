"""Fill layers: ramps and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dovetail.core.dims import Dim
from dovetail.core.dtypes import F32
from dovetail.core.errors import ModelError
from dovetail.ir.graph import Value
from dovetail.tensorrt.dtypes import to_dtype
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import DataType, FillOperation, LayerType
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, dims_setting, extents, number, of

_DEFAULTS: dict[FillOperation, tuple[float, float]] = {
    FillOperation.LINSPACE: (0.0, 1.0),
    FillOperation.RANDOM_UNIFORM: (0.0, 1.0),
    FillOperation.RANDOM_NORMAL: (0.0, 1.0),
}


def _parameter(value: Any, where: str) -> float | int:
    """A number; whole ones stay exact."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return number(value, where)


class IFillLayer(ILayer):
    """alpha + beta * index, or random numbers: uniform from alpha to beta, or normal around alpha with deviation beta.

    Input 0 gives the shape where that is known at run time only; inputs 1 and 2 give alpha and beta. A ramp of more than one axis
    has a beta per axis, as input 2.
    """

    __slots__ = ()
    _layer_type, _label, _most_inputs, _shape_inputs = LayerType.FILL, "Fill", 3, (0,)
    shape = dims_setting((), "The shape of the result.")
    operation = Setting[FillOperation](of(FillOperation), FillOperation.LINSPACE, "What it fills with.")
    alpha = Setting[Any](_parameter, None, "The start, minimum or mean.")
    beta = Setting[Any](_parameter, None, "The step, maximum or deviation.")
    to_type = Setting[DataType](of(DataType), DataType.FLOAT, "The element type.")

    def is_alpha_beta_int64(self) -> bool:
        """Whether alpha and beta are whole numbers of type INT64."""
        kept = self._record.values
        return self.to_type is DataType.INT64 and all(isinstance(kept.get(k), int) for k in ("alpha", "beta"))

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        wanted, first, second = (*inputs, None, None, None)[:3]
        kept = self._record.values
        shape: tuple[Dim, ...] = tuple(kept["shape"]) if wanted is None else net.dims(wanted)
        dtype = to_dtype(self.to_type)
        start, step = _DEFAULTS[self.operation]
        alpha: Any = first if first is not None else np.asarray(start if kept.get("alpha") is None else kept["alpha"])
        beta: Any = second if second is not None else np.asarray(step if kept.get("beta") is None else kept["beta"])
        if self.operation is FillOperation.LINSPACE:
            return [_ramp(self, net, shape, alpha, beta, dtype)]
        low, high = (net.cast(v, F32) if isinstance(v, Value) else v.astype(np.float32) for v in (alpha, beta))
        whole = net.extents(shape)
        zeros = net.op("Expand", np.float32(0), whole)
        if self.operation is FillOperation.RANDOM_UNIFORM:
            drawn = net.op("RandomUniformLike", zeros, low=0.0, high=1.0, dtype=F32)
            result = net.op("Add", low, net.op("Mul", drawn, net.op("Sub", high, low)))
        else:
            drawn = net.op("RandomNormalLike", zeros, mean=0.0, scale=1.0, dtype=F32)
            result = net.op("Add", low, net.op("Mul", drawn, high))
        return [net.cast(result, dtype)]


def _ramp(layer: IFillLayer, net: Scope, shape: tuple[Dim, ...], alpha: Any, beta: Any, dtype: Any) -> Value:
    """alpha + the sum of beta * index over axes."""
    rank = len(shape)
    exact = dtype.is_int
    kind = dtype if exact else F32
    start, step = (net.cast(v, kind) if isinstance(v, Value) else v.astype(kind.numpy) for v in (alpha, beta))
    if rank > 1 and len(step.shape) != 1:
        raise ModelError(f"{layer.name}: got one beta for the shape {shape}, expected one per axis, as input 2")
    result = net.op("Reshape", start, np.array((1,) * rank, np.int64))
    for axis, extent in enumerate(shape):
        size = net.op("Squeeze", net.extents([extent]), [0])
        index = net.op("Cast", net.op("Range", np.int64(0), size, np.int64(1)), to=kind)
        factor = step
        if len(step.shape) == 1:
            factor = net.op("Slice", step, [axis], [axis + 1], [0])
        along = net.op("Mul", index, factor)
        result = net.op("Add", result, net.reshape(along, tuple(extent if a == axis else 1 for a in range(rank))))
    return net.cast(result, dtype)


class AddFilling(NetworkBase):
    """The `add_*` method of this family."""

    def add_fill(self, shape: Any, op: FillOperation, output_type: DataType = DataType.FLOAT) -> IFillLayer | None:
        """Make a tensor of a ramp or of random numbers."""
        return self._add(
            IFillLayer,
            [],
            shape=extents(shape, "add_fill: shape"),
            operation=expect(FillOperation, op, "add_fill: op"),
            to_type=expect(DataType, output_type, "add_fill: output_type"),
        )
