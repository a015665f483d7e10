"""Sequences and optionals: lists of tensors, which exist between host steps only.

The element type of a sequence is what all its elements share: an extent that is not the same fixed number in all of
them is -1, and rank 0 stands for "scalars, or not known yet" (an empty sequence).
"""

from __future__ import annotations

from dovetail.core.dims import Dim, sym
from dovetail.core.dtypes import BOOL, I64, DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import SequenceType, TensorType, Type
from dovetail.ops.movement import check_axis
from dovetail.ops.registry import HOST, op

VARIES = -1


def shared_type(*types: TensorType) -> TensorType:
    """The element type that tensors of these types have in common; raises TypeInferenceError if none."""
    known = [t for t in types if t.rank] or list(types)
    first = known[0]
    if any(t.dtype != first.dtype for t in types) or any(t.rank != first.rank for t in known):
        raise TypeInferenceError(
            f"sequence: elements, got {', '.join(map(str, types))}, expected one element type and one rank; "
            "cast or reshape them"
        )
    shape = [
        extents[0] if isinstance(extents[0], int) and all(e == extents[0] for e in extents) else VARIES
        for extents in zip(*(t.shape for t in known), strict=True)
    ]
    return TensorType(first.dtype, tuple(shape))


def _sequence(where: str, value: Type) -> SequenceType:
    if not isinstance(value, SequenceType):
        raise TypeInferenceError(
            f"{where}: input, got a tensor {value}, expected a sequence; construct one with SequenceConstruct"
        )
    return value


def _named(where: str, shape: tuple[Dim, ...], symbols: tuple[str, ...]) -> tuple[Dim, ...]:
    """`shape` with its varying extents named by `symbols`, in order."""
    names = iter(symbols)
    try:
        return tuple(sym(next(names)) if d == VARIES else d for d in shape)
    except StopIteration:
        raise TypeInferenceError(
            f"{where}: symbols, got {len(symbols)}, expected one per extent that varies in the element shape "
            f"{shape}; give more names"
        ) from None


@op("SequenceConstruct", HOST)
def sequence_construct(*xs: TensorType) -> SequenceType:
    """The list of the inputs. ONNX SequenceConstruct-11."""
    if not xs:
        raise TypeInferenceError("SequenceConstruct: inputs, got none, expected at least one; use SequenceEmpty")
    return SequenceType(shared_type(*xs))


@op("SequenceEmpty", HOST)
def sequence_empty(*, dtype: DType) -> SequenceType:
    """An empty list. ONNX SequenceEmpty-11."""
    return SequenceType(TensorType(dtype, ()))


@op("SequenceInsert", HOST)
def sequence_insert(s: Type, x: TensorType, position: TensorType | None = None) -> SequenceType:
    """The list with x before `position` (at the end without one). ONNX SequenceInsert-11."""
    return SequenceType(shared_type(_sequence("SequenceInsert", s).element, x))


@op("SequenceErase", HOST)
def sequence_erase(s: Type, position: TensorType | None = None) -> SequenceType:
    """The list without the element at `position` (the last without one). ONNX SequenceErase-11."""
    return _sequence("SequenceErase", s)


@op("SequenceAt", HOST)
def sequence_at(s: Type, position: TensorType, *, symbols: tuple[str, ...] = ()) -> TensorType:
    """One element; `symbols` name its extents that vary. ONNX SequenceAt-11."""
    element = _sequence("SequenceAt", s).element
    return TensorType(element.dtype, _named("SequenceAt", element.shape, symbols))


@op("SequenceLength", HOST)
def sequence_length(s: Type) -> TensorType:
    """Number of elements, an i64 scalar. ONNX SequenceLength-11."""
    _sequence("SequenceLength", s)
    return TensorType(I64, ())


@op("SplitToSequence", HOST)
def split_to_sequence(
    x: TensorType, split: TensorType | None = None, *, axis: int = 0, keepdims: bool = True
) -> SequenceType:
    """Parts of x along `axis`: of a scalar size, of a vector of sizes, or single slices. ONNX SplitToSequence-24.

    keepdims counts only without `split`.
    """
    check_axis("SplitToSequence", axis, x.rank)
    shape = [d if isinstance(d, int) else VARIES for d in x.shape]
    if split is None and not keepdims:
        del shape[axis]
    else:
        shape[axis] = 1 if split is None else VARIES
    return SequenceType(TensorType(x.dtype, tuple(shape)))


@op("ConcatFromSequence", HOST)
def concat_from_sequence(
    s: Type, *, axis: int, new_axis: bool = False, symbols: tuple[str, ...] = ()
) -> TensorType:
    """Elements joined along an axis, or stacked on a new one. ONNX ConcatFromSequence-11.

    `axis` is normalised; `symbols` name the joined extent and those that vary.
    """
    element = _sequence("ConcatFromSequence", s).element
    shape = list(element.shape)
    if new_axis:
        shape.insert(check_axis("ConcatFromSequence", axis, element.rank + 1), VARIES)
    else:
        shape[check_axis("ConcatFromSequence", axis, element.rank)] = VARIES
    return TensorType(element.dtype, _named("ConcatFromSequence", tuple(shape), symbols))


@op("OptionalEmpty", HOST)
def optional_empty(*, dtype: DType) -> SequenceType:
    """An optional without an element. ONNX Optional-28 without an input."""
    return SequenceType(TensorType(dtype, ()))


@op("OptionalHasElement", HOST)
def optional_has_element(x: Type) -> TensorType:
    """Whether an optional has an element, a bool scalar. ONNX OptionalHasElement-28."""
    return TensorType(BOOL, ())
