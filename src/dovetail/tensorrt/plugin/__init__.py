"""`tensorrt.plugin`: plugins made of decorated functions.

    @plugin.register("mine::double")
    def describe(x: plugin.TensorDesc, factor: float) -> plugin.TensorDesc:
        return x.like()

    @plugin.impl("mine::double")
    def run(x: plugin.Tensor, factor: float, outputs: tuple[plugin.Tensor], stream: int) -> None: ...

    network.add_plugin(plugin.op.mine.double(x, factor=2.0))

    shapes        expressions and numbers for shapes
    tensors       descriptions of tensors, and tensors at addresses
    tuning        types, formats and tactics that a plugin offers
    symbols       scalar arguments and launch parameters of compiled kernels
    definitions   the decorators, and the operators that they define
    template      the plugin objects behind them
"""

from dovetail.tensorrt.plugin.definitions import aot_impl, autotune, impl, op, register
from dovetail.tensorrt.plugin.shapes import (
    Shape,
    ShapeExpr,
    ShapeExprs,
    SizeTensorShapeExpr,
    cdiv,
    max,
    min,
)
from dovetail.tensorrt.plugin.symbols import (
    KernelLaunchParams,
    SymExprs,
    SymInt8,
    SymInt16,
    SymInt32,
    SymIntExprs,
)
from dovetail.tensorrt.plugin.tensors import (
    SizeTensorDesc,
    Tensor,
    TensorDesc,
    from_shape_expr,
    size_tensor,
)
from dovetail.tensorrt.plugin.tuning import AutoTuneCombination

__all__ = [
    "AutoTuneCombination",
    "KernelLaunchParams",
    "Shape",
    "ShapeExpr",
    "ShapeExprs",
    "SizeTensorDesc",
    "SizeTensorShapeExpr",
    "SymExprs",
    "SymInt8",
    "SymInt16",
    "SymInt32",
    "SymIntExprs",
    "Tensor",
    "TensorDesc",
    "aot_impl",
    "autotune",
    "cdiv",
    "from_shape_expr",
    "impl",
    "max",
    "min",
    "op",
    "register",
    "size_tensor",
]
