"""OpSpecs of conversions between element types."""

from __future__ import annotations

from dovetail.core.dtypes import DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import POINTWISE, op

_ROUND_MODES = ("up", "down", "nearest")


@op("Cast", POINTWISE)
def cast(
    x: TensorType, *, to: DType, saturate: bool = True, round_mode: str = "up", clamp: bool = False
) -> TensorType:
    """X converted to `to`. ONNX Cast-28.

    `saturate` clamps to the largest finite value of the 8-bit float types instead of giving an
    infinity or NaN; `round_mode` (up, down, nearest) counts for f8e8m0 only. `clamp`, which only the compiler
    writes, keeps finite numbers finite in f16 and bf16: those beyond the range become its ends, infinities stay.
    """
    if clamp and to.name not in ("f16", "bf16"):
        raise TypeInferenceError(f"Cast: got clamp for {to}, expected f16 or bf16; drop clamp")
    if round_mode not in _ROUND_MODES:
        raise TypeInferenceError(
            f"Cast: got round_mode={round_mode!r}, expected one of {', '.join(_ROUND_MODES)}; "
            "fix the attribute"
        )
    return TensorType(to, x.shape)


@op("BitCast", POINTWISE)
def bit_cast(x: TensorType, *, to: DType) -> TensorType:
    """The same bits read as another dtype of the same width. ONNX BitCast-26."""
    if "string" in (to.kind, x.dtype.kind) or to.bits != x.dtype.bits:
        raise TypeInferenceError(
            f"BitCast: got {x.dtype} to {to}, expected two number dtypes of one width; use Cast"
        )
    return TensorType(to, x.shape)
