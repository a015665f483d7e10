"""MatMul by cuBLASLt, with bias, residual and activation where its epilogues say exactly what the group says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dovetail.codegen.kernel import Param, make_library_kernel
from dovetail.codegen.tactic import (
    ANY,
    ROWS,
    Config,
    Emitted,
    Group,
    Operand,
    Tactic,
    single,
    tactic,
)
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dims import Dim
from dovetail.device.cuda import shared_library
from dovetail.device.cuda.cublaslt import DIMS, TYPES, WORKSPACE_BYTES, Description
from dovetail.ir.types import TensorType
from dovetail.kernels.cuda.library_group import Chain, chain
from dovetail.kernels.cuda.writer import ALIGNMENT, is_aligned
from dovetail.kernels.fused import Side, broadcast_strides, in_place, sides

PROPOSALS = 6
"""How many of the library's proposals compete."""


@dataclass(frozen=True)
class Problem:
    """A product as cuBLASLt takes it: the call, its dims by name, and the positions of the operands."""

    call: Description
    dims: dict[str, Dim]
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class _Axis:
    """An axis of the result: extent, and strides of A, B, the residual and D along it."""

    extent: Dim
    strides: tuple[Dim, Dim, Dim, Dim]


@tactic
class CublasLt(Tactic):
    """One call of cublasLtMatmul."""

    name = "cublaslt"
    device = "cuda"
    kinds = ("matmul",)

    def supports(self, group: Group, target: Target) -> str | None:
        """Products of one float type whose batches are one stride apart, with an epilogue that is one of the library's."""
        found = problem(group, CudaTarget.of(target))
        return found if isinstance(found, str) else shared_library.missing("cublaslt")

    def layouts(self, group: Group, target: Target) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Rows contiguous, but for the operands, which may lie transposed."""
        assert group.anchor is not None
        wants = [ROWS] * len(group.inputs)
        for value in group.anchor.operands:
            wants[value.index] = ANY
        return tuple(wants), (ROWS,) * len(group.outputs)

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        """The library's proposals in its own order."""
        return tuple((("heuristic", n),) for n in range(PROPOSALS))

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        """The call."""
        found = problem(group, CudaTarget.of(target))
        assert isinstance(found, Problem), found
        call = replace(found.call, heuristic=int(dict(config).get("heuristic", 0)))
        anchor = group.anchor
        assert anchor is not None
        a, b, y = anchor.input(0).tensor, anchor.input(1).tensor, anchor.output.tensor
        kernel = make_library_kernel(
            "cublaslt", call.json(), params=[Param(o.role, o.index) for o in found.operands], dims=[found.dims[name] for name in DIMS],
            workspace_bytes=WORKSPACE_BYTES,
            flops=y.size * a.shape[-1] * 2, bytes=(a.size + b.size + y.size * (1 + call.residual)) * y.dtype.itemsize,
            tactic=self.name, config=config,
        )  # fmt: skip
        return single(kernel, in_place(group, sides(group)))


def problem(group: Group, target: CudaTarget) -> Problem | str:
    """The call that computes a group, or the reason why none does."""
    anchor = group.anchor
    if anchor is None or anchor.op != "MatMul":
        return "the group is not built around a MatMul"
    if any(v.producer is not None for v in anchor.operands):
        return "an operand of MatMul is computed inside the group"
    epilogue = chain(group, ("relu", "gelu"))
    if isinstance(epilogue, str):
        return epilogue
    a, b = (group.inputs[v.index].tensor for v in anchor.operands)
    out = group.outputs[0].tensor
    reason = _type_reason(a, b, out)
    if reason is not None:
        return reason
    added = _added(epilogue, out)
    if isinstance(added, str):
        return added
    bias, residual = added
    laid = _dims(a, b, residual.strides if residual is not None else None, out)
    if isinstance(laid, str):
        return laid
    dims, transa, transb = laid
    call = Description(
        type=a.dtype.name, out=out.dtype.name, transa=transa, transb=transb,
        epilogue="_".join(n for n in (epilogue.activation, "bias" if bias is not None else "") if n), residual=residual is not None,
        tf32=target.tf32,
        alignment=(
            _alignment(a), _alignment(b), _alignment(out if residual is None else group.inputs[residual.position].tensor), _alignment(out),
        ),
    )  # fmt: skip
    operands = [Operand("in", anchor.input(0).index), Operand("in", anchor.input(1).index)]
    operands += [Operand("in", side.position) for side in (residual, bias) if side is not None]
    return Problem(call, dims, (*operands, Operand("out", 0)))


def _type_reason(a: TensorType, b: TensorType, out: TensorType) -> str | None:
    if a.dtype.name not in TYPES or a.dtype != b.dtype:
        return f"operands are {a.dtype.name} and {b.dtype.name}"
    if out.dtype != a.dtype and out.dtype.name != "f32":
        return f"{a.dtype.name} operands and a result of {out.dtype.name}"
    if a.rank < 2 or b.rank < 2:
        return "an operand is a vector"
    if not isinstance(a.shape[-1], int) or a.shape[-1] < 1:
        return f"the depth {a.shape[-1]} is not known and positive"
    return None


def _added(epilogue: Chain, out: TensorType) -> tuple[Side | None, Side | None] | str:
    """(bias along the columns, residual) of the operands that are added."""
    bias: Side | None = None
    residual: Side | None = None
    for side in epilogue.added:
        kind = side.value.tensor
        if kind.dtype != out.dtype:
            return f"{side.value.name} is {kind.dtype.name}, the library adds {out.dtype.name} to a result of {out.dtype.name}"
        along = side.strides
        if kind.shape == out.shape and residual is None:
            residual = side
        elif bias is None and along[-1] == 1 and all(s == 0 for s in along[:-1]) and kind.shape[-1] == out.shape[-1]:
            bias = side
        else:
            return f"{side.value.name} of shape {kind.shape} is neither the library's bias nor its residual"
    return bias, residual


def _dims(
    a: TensorType, b: TensorType, residual: tuple[Dim, ...] | None, out: TensorType
) -> tuple[dict[str, Dim], bool, bool] | str:
    """(dims of the call, whether A lies transposed, whether B does)."""
    rank = out.rank
    strides = [broadcast_strides(t, rank) for t in (a, b)]
    d = out.placement.strides(out.shape)
    c = residual if residual is not None else d
    m, n, k = out.shape[-2], out.shape[-1], a.shape[-1]
    # Strides along the axes of the products themselves, whatever their extents are.
    a_own, b_own = a.placement.strides(a.shape)[-2:], b.placement.strides(b.shape)[-2:]
    rows_of_a, rows_of_b = _rows(a_own, (m, k)), _rows(b_own, (k, n))
    if rows_of_a is None or rows_of_b is None:
        return "an operand of MatMul has neither contiguous rows nor contiguous columns"
    if not (n == 1 or (d[-1] == 1 and c[-1] == 1)):
        return "the result or the residual has no contiguous rows"
    lda, transa = rows_of_a
    ldb, transb = rows_of_b
    batch = [_Axis(out.shape[i], (strides[0][i], strides[1][i], c[i], d[i])) for i in range(rank - 2) if out.shape[i] != 1]
    row = _Axis(m, (lda, 0, c[-2], d[-2]))
    ldc, ldd = _leading(c[-2], m, n), _leading(d[-2], m, n)
    if batch and not transa and all(axis.strides[1] == 0 for axis in batch):
        merged = _merge([*batch, row] if m != 1 else batch)
        if merged is not None:
            m, (lda, _, ldc, ldd) = merged.extent, merged.strides
            batch = []
    one = _merge(batch) if batch else _Axis(1, (0, 0, 0, 0))
    if one is None:
        return "the batches of an operand are not one stride apart"
    dims: dict[str, Dim] = {
        "m": m, "n": n, "k": k, "lda": lda, "ldb": ldb, "ldc": ldc, "ldd": ldd, "batch": one.extent,
        "stride_a": one.strides[0], "stride_b": one.strides[1], "stride_c": one.strides[2], "stride_d": one.strides[3],
    }  # fmt: skip
    narrow = [(lda, m if transa else k), (ldb, k if transb else n), (ldc, n), (ldd, n)]
    if any(isinstance(x, int) and isinstance(least, int) and x < least for x, least in narrow):
        return "rows of an operand overlap"
    return dims, transa, transb


def _rows(strides: Sequence[Dim], shape: tuple[Dim, Dim]) -> tuple[Dim, bool] | None:
    """(distance of rows, False), or (distance of columns, True) of a matrix that lies transposed; None for neither."""
    outer, inner = strides
    if inner == 1 or shape[1] == 1:
        return _leading(outer, shape[0], shape[1]), False
    if outer == 1 or shape[0] == 1:
        return _leading(inner, shape[1], shape[0]), True
    return None


def _leading(stride: Dim, count: Dim, length: Dim) -> Dim:
    """The distance of rows; of one row alone its length, which is what the library wants to see."""
    return length if count == 1 else stride


def _merge(axes: Sequence[_Axis]) -> _Axis | None:
    """Several axes as one, if all operands lie so that one stride says it."""
    whole = axes[-1]
    for axis in reversed(axes[:-1]):
        if any(outer != inner * whole.extent for outer, inner in zip(axis.strides, whole.strides, strict=True)):
            return None
        whole = _Axis(axis.extent * whole.extent, whole.strides)
    return whole


def _alignment(type_: TensorType) -> int:
    return ALIGNMENT if is_aligned(type_) else type_.dtype.itemsize
