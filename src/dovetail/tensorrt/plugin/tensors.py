"""Tensors in functions of plugins: `TensorDesc` where a plugin is described, `Tensor` at an address where it runs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dovetail.tensorrt.dtypes import nptype
from dovetail.tensorrt.enums import DataType, TensorFormat
from dovetail.tensorrt.plugin.shapes import Shape, ShapeExpr, ShapeExprs, SizeTensorShapeExpr
from dovetail.tensorrt.plugin_desc import PluginTensorDesc


class _Sealed:
    """An object whose attributes can be made final."""

    _immutable = False
    _what: ClassVar[str] = ""

    def __setattr__(self, name: str, value: Any) -> None:
        if self._immutable and name != "_immutable":
            raise ValueError(f"Cannot modify immutable {self._what} properties")
        super().__setattr__(name, value)

    def _copy(self) -> Any:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._immutable = False
        return made


class TensorDesc(_Sealed):
    """What is known of a tensor at build time: shape as expressions and element type; in `autotune` also shape, format and scale."""

    _what = "TensorDesc"

    def __init__(
        self,
        shape_expr: ShapeExprs | None = None,
        dtype: DataType | None = None,
        format: TensorFormat | None = None,
        scale: float | None = None,
    ) -> None:
        self.shape_expr: Any = shape_expr
        self.dtype: Any = dtype
        self._shape: Shape | None = None
        self._format, self._scale = format, scale
        self._aliased_to: TensorDesc | None = None

    def numel(self) -> int:
        """The number of elements.

        Raises:
            ValueError: there is no shape in numbers; `shape_expr.numel()` is an expression.
        """
        return self.shape.numel()

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self.shape_expr)

    @property
    def is_size_tensor(self) -> bool:
        """Whether it holds an extent."""
        return False

    def like(self) -> Any:
        """A tensor of the same properties, which may be changed."""
        made = self._copy()
        made._aliased_to = None
        if made.shape_expr is not None:
            made.shape_expr = ShapeExprs.from_tuple(made.shape_expr)
        return made

    def aliased(self) -> TensorDesc:
        """A tensor that shares the memory of this one."""
        made: TensorDesc = self._copy()
        made._aliased_to = self
        made._immutable = True
        return made

    def get_aliased(self) -> TensorDesc | None:
        """The tensor whose memory it shares."""
        return self._aliased_to

    @property
    def is_aliased(self) -> bool:
        """Whether it shares another one's memory."""
        return self._aliased_to is not None

    @property
    def has_shape(self) -> bool:
        """Whether there is a shape in numbers."""
        return self._shape is not None

    @property
    def has_shape_expr(self) -> bool:
        """Whether there is a shape in expressions."""
        return self.shape_expr is not None

    @property
    def is_dynamic(self) -> bool:
        """Whether an extent is known in the run only.

        Raises:
            ValueError: there is no shape in numbers.
        """
        return self.shape.is_dynamic

    def _shaped(self) -> Shape:
        if self._shape is None:
            raise ValueError("TensorDesc has no shape information available at this stage. Inspect TensorDesc.has_shape.")
        return self._shape

    @property
    def shape(self) -> Shape:
        """The shape in numbers, where there is one (`has_shape`)."""
        return self._shaped()

    @shape.setter
    def shape(self, value: Shape) -> None:
        self._shape = value

    @property
    def format(self) -> TensorFormat | None:
        """The memory format, where there is a shape."""
        self._shaped()
        return self._format

    @format.setter
    def format(self, value: TensorFormat) -> None:
        self._format = value

    @property
    def scale(self) -> float | None:
        """The scale of INT8 elements, where there is a shape."""
        self._shaped()
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = value


class SizeTensorDesc(TensorDesc):
    """A 0-d INT32 output that holds an extent, which is `opt` in tuning and `upper_bound` at most."""

    def __init__(self, opt: ShapeExpr, upper_bound: ShapeExpr) -> None:
        super().__init__(ShapeExprs(0), DataType.INT32)
        self._opt, self._upper_bound = opt, upper_bound
        self._index: int | None = None
        self._size = SizeTensorShapeExpr(self)

    @property
    def is_size_tensor(self) -> bool:
        """Whether it holds an extent: yes."""
        return True

    @property
    def opt(self) -> ShapeExpr:
        """The extent in tuning."""
        return self._opt

    @property
    def upper_bound(self) -> ShapeExpr:
        """The largest extent."""
        return self._upper_bound

    @property
    def index(self) -> int | None:
        """Which output it is; None until the plugin returned it."""
        return self._index

    def _set_index(self, idx: int) -> None:
        self._index = idx

    def expr(self) -> SizeTensorShapeExpr:
        """The extent."""
        return self._size


def size_tensor(opt: ShapeExpr, upper_bound: ShapeExpr) -> SizeTensorDesc:
    """An output that holds an extent, to be returned with the tensor that has it."""
    return SizeTensorDesc(opt, upper_bound)


def from_shape_expr(shape_expr: tuple[ShapeExpr | int, ...] | ShapeExprs, dtype: DataType) -> TensorDesc:
    """A tensor of a shape of expressions and ints."""
    return TensorDesc(shape_expr if isinstance(shape_expr, ShapeExprs) else ShapeExprs.from_tuple(shape_expr), dtype)


class Tensor(_Sealed):
    """A tensor in memory: `data_ptr`, `shape`, `dtype`, `format`, `scale`, and `strides` in elements.

    `__cuda_array_interface__` lets other packages use the memory, which is the host's for engines on a CPU: there
    `__array_interface__` gives `numpy.asarray` a view.
    """

    _what = "Tensor"

    def __init__(self) -> None:
        self.data_ptr = 0
        self.shape: Any = Shape(())
        self.dtype = DataType.FLOAT
        self.format = TensorFormat.LINEAR
        self.scale = 1.0
        self.strides: tuple[int, ...] = ()
        self._stream = 0
        self._aliased_to: Tensor | None = None

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self.shape)

    def numel(self) -> int:
        """The number of elements.

        Raises:
            ValueError: an extent depends on data.
        """
        if self.is_data_dependent:
            raise ValueError("Tensor has a data-dependent dimension. Examine Tensor.shape to determine wildcards.")
        return int(self.shape.numel())

    @property
    def is_data_dependent(self) -> bool:
        """Whether the plugin decides an extent as it runs."""
        return bool(self.shape.is_dynamic)

    def get_aliased(self) -> Tensor | None:
        """The tensor whose memory it shares."""
        return self._aliased_to

    @property
    def is_aliased(self) -> bool:
        """Whether it shares another one's memory."""
        return self._aliased_to is not None

    def aliased(self, shape: Any = None) -> Tensor:
        """A tensor at the same address, in another shape of the same number of elements.

        Raises:
            ValueError: no shape, or one of more elements.
        """
        made: Tensor = self._copy()
        if shape is not None:
            if not isinstance(shape, (Shape, tuple, PluginTensorDesc)):
                raise ValueError(f"Tensor.aliased: got {type(shape).__name__} as shape, expected a Shape, a tuple or a PluginTensorDesc")
            made.shape = shape if isinstance(shape, Shape) else Shape(shape)
            if not self.is_data_dependent and not made.is_data_dependent and made.numel() > self.numel():
                raise ValueError("Volume of this tensor is less than the provided 'shape'.")
            made.strides = dense_strides(tuple(made.shape))
        made._aliased_to = self
        return made

    def _interface(self) -> dict[str, Any]:
        kind = np.dtype(nptype(self.dtype))
        return {
            "shape": tuple(self.shape), "typestr": kind.str, "data": (self.data_ptr, False), "version": 3,
            "strides": tuple(s * kind.itemsize for s in self.strides),
        }  # fmt: skip

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # 0 stands for no stream here, but is forbidden in the interface; None says that there is nothing to wait for.
        return {**self._interface(), "stream": self._stream or None}

    @property
    def __array_interface__(self) -> dict[str, Any]:
        from dovetail.tensorrt.device import uses_gpu

        if uses_gpu():
            raise AttributeError("__array_interface__: the tensor lies in the GPU's memory; use __cuda_array_interface__")
        return self._interface()


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a dense row-major tensor; extents that are not known count as 1."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * (shape[axis + 1] if shape[axis + 1] > 0 else 1)
    return tuple(strides)
