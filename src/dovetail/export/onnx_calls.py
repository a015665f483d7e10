"""What a registered translation writes its ONNX operators with: `op.Mul(x, 2.0)`, the same for every exporter."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dovetail.core.dtypes import F32, STR, DType, dtype
from dovetail.core.errors import ModelError
from dovetail.export.onnx_operators import first_versions, nearest
from dovetail.frontend.arguments import attributes_of, inputs_of, output_count, schema_of, type_code
from dovetail.frontend.reader import element_type
from dovetail.ir.graph import Graph, Value
from dovetail.ir.types import SequenceType, TensorType

Extent = int | str | None
"""Of a shape: a number, the name of a dynamic one, None where nothing is known."""


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor in the graph that is being exported.

    Attributes:
        native: the exporter's own value.
        dtype: element type; None where it is not known.
        shape: extents; None where not even their number is known.
        array: what it holds, where it is a constant.
    """

    native: Any
    dtype: DType | None = None
    shape: tuple[Extent, ...] | None = None
    array: np.ndarray[Any, Any] | None = None

    @property
    def rank(self) -> int | None:
        """The number of axes; None where it is not known."""
        return None if self.shape is None else len(self.shape)

    def __repr__(self) -> str:
        return f"Operand({self.dtype or '?'}, {'shape unknown' if self.shape is None else list(self.shape)})"

    def __bool__(self) -> bool:
        raise ModelError(
            "translation: got a tensor where Python needs True or False, but its value is only known when the model runs; "
            "use op.Where, or decide by dtype, shape or attributes"
        )


Known = tuple[DType | None, tuple[Extent, ...] | None]
"""What is known of a result: element type and extents."""


class Writer(Protocol):
    """How an exporter of PyTorch takes nodes and constants."""

    exporter: str
    opset: int

    def node(
        self, domain: str, op: str, inputs: Sequence[Any], attributes: Mapping[str, Any], types: Sequence[Known]
    ) -> Sequence[Any]:
        """Add a node, with as many results as `types`; absent inputs are None, attributes numbers, texts, lists of these, arrays."""

    def constant(self, array: np.ndarray[Any, Any]) -> Any:
        """Add a constant."""


class Ops:
    """ONNX operators to call: `op.Add(x, 1.0)` adds a node to the graph that is being exported and returns its result.

    Inputs are operands, arrays, Python numbers and lists (constants of the element type that the operator wants there), None where
    an optional one is absent. Attributes are ONNX's, element types also as "f16" or `x.dtype`; None leaves one out. Operators of
    other domains are called by name: `op("my_domain::MyOp", x, alpha=0.5)`.
    """

    def __init__(self, writer: Writer, where: str) -> None:
        self._writer, self._where = writer, where

    @property
    def opset(self) -> int:
        """The opset that is being written."""
        return self._writer.opset

    @property
    def exporter(self) -> str:
        """The exporter that is writing: "dynamo" or "torchscript"."""
        return self._writer.exporter

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *inputs, **attributes: self(name, *inputs, **attributes)

    def constant(self, value: Any, kind: Any = None) -> Operand:
        """A constant: an array, numbers, or a tensor of PyTorch on the CPU; `kind` is an element type such as "f16" or `x.dtype`."""
        array = np.asarray(value)
        if kind is None:
            kind = F32 if array.dtype == np.float64 and not hasattr(value, "dtype") else array.dtype
        array = np.asarray(array, dtype(kind).numpy, order="C")
        return Operand(self._writer.constant(array), dtype(kind), array.shape, array)

    def __call__(
        self, op: str, /, *inputs: Any, outputs: int | None = None, results: Sequence[Any] | None = None, **attributes: Any
    ) -> Any:
        """Add a node.

        Args:
            op: an operator of ONNX, or "domain::Name".
            inputs: operands, arrays, numbers, None.
            outputs: how many results; default: those that the operator always has, one where nothing is known of it.
            results: what results of an operator of another domain are: per result (element type, shape), or an operand like it.
            attributes: as ONNX defines them.

        Returns:
            An operand, or a tuple of them where there are several.

        Raises:
            ModelError: the opset has no such operator, or it does not take these inputs or attributes.
        """
        domain, _, name = op.rpartition("::")
        domain = "" if domain == "ai.onnx" else domain
        where = f"{self._where}: op.{name}" if not domain else f"{self._where}: {op}"
        schema = schema_of(name, self.opset if not domain else 1, domain)
        if schema is None and not domain:
            raise ModelError(f"{where}: {_unknown(name, self.opset)}")
        attrs = attributes_of(schema, attributes, where)
        constants = inputs_of(schema, [_stand_in(v) for v in inputs], where)
        given = [v if isinstance(v, Operand) else self._operand(made) for v, made in zip(inputs, constants, strict=True)]
        while given and given[-1] is None:
            given.pop()
        count = outputs or (len(results) if results else None) or _count(schema, name, attrs, given, where)
        if results is not None:
            types = [_stated(r, where) for r in results]
        else:
            types = _inferred(schema, name, domain, given, attrs, count, self.opset, where)
        made = self._writer.node(domain, name, [None if v is None else v.native for v in given], attrs, types)
        values = tuple(Operand(native, kind, shape) for native, (kind, shape) in zip(made, types, strict=True))
        return values[0] if len(values) == 1 else values

    def _operand(self, value: Any) -> Operand | None:
        return None if value is None else self.constant(value, STR if value.dtype == object else value.dtype)


def _unknown(name: str, opset: int) -> str:
    since = first_versions().get(name)
    if since is not None and since > opset:
        return f"it came with opset {since}, expected an operator of opset {opset}; export with --opset {since}, or write it in older ones"
    close = difflib.get_close_matches(name, [n for n, s in first_versions().items() if s <= opset], 3) or nearest(name, opset)
    hint = f"the nearest are {', '.join(close)}" if close else "see https://onnx.ai/onnx/operators"
    return f"ONNX has no operator of that name; {hint}; operators of other domains are called as op('domain::{name}', …)"


_SCRATCH = Graph("translation")
_UNTYPED = Value(_SCRATCH, "", SequenceType(TensorType(F32, ())), None, 0)  # binds no element type


def _stand_in(value: Any) -> Any:
    """An input as the checks of `dovetail.frontend.arguments` take it: an operand of known element type as a value of that type."""
    if not isinstance(value, Operand):
        return value
    return _UNTYPED if value.dtype is None else Value(_SCRATCH, "", TensorType(value.dtype, ()), None, 0)


def _count(schema: Any, name: str, attributes: Mapping[str, Any], given: Sequence[Operand | None], where: str) -> int:
    if name == "Split" and not {"num_outputs", "split"} & attributes.keys():
        sizes = given[1] if len(given) > 1 else None
        extent = sizes.shape[0] if sizes is not None and sizes.shape else None
        if not isinstance(extent, int):
            raise ModelError(f"{where}: got no number of results, expected outputs=…; give it")
        return extent
    return output_count(schema, name, attributes, ()) or 1


def _stated(result: Any, where: str) -> Known:
    if isinstance(result, Operand):
        return result.dtype, result.shape
    if isinstance(result, tuple) and len(result) == 2:
        kind, shape = result
        return None if kind is None else dtype(kind), None if shape is None else tuple(shape)
    raise ModelError(f"{where}: got the result {result!r}, expected (element type, shape) or an operand like it")


def proto_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as `onnx.helper` takes them: arrays as tensors."""
    return {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}


def _type_proto(known: Known) -> onnx.TypeProto:
    kind, shape = known
    assert kind is not None
    return helper.make_tensor_type_proto(type_code(kind), None if shape is None else list(shape))


def _inferred(
    schema: Any, name: str, domain: str, given: Sequence[Operand | None], attributes: Mapping[str, Any], count: int, opset: int, where: str
) -> list[Known]:
    """What ONNX's own inference says of the results; nothing where it does not know the operator, or an input's element type."""
    unknown: list[Known] = [(None, None)] * count
    if schema is None or any(v is not None and v.dtype is None for v in given):
        return unknown
    names = ["" if v is None else f"i{i}" for i, v in enumerate(given)]
    node = helper.make_node(name, names, [f"o{i}" for i in range(count)], domain=domain, **proto_attributes(attributes))
    types = {n: _type_proto((v.dtype, v.shape)) for n, v in zip(names, given, strict=True) if v is not None}
    data = {
        n: numpy_helper.from_array(v.array) for n, v in zip(names, given, strict=True)
        if v is not None and v.array is not None and v.array.dtype != object and v.array.size <= 1024
    }  # fmt: skip
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=[helper.make_opsetid(domain, opset if not domain else 1)]
        )
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"{where}: the inputs do not fit ({str(error).strip().splitlines()[-1].strip()})") from error
    return [_known(found[f"o{i}"]) if f"o{i}" in found else (None, None) for i in range(count)]


def _known(proto: onnx.TypeProto) -> Known:
    if not proto.HasField("tensor_type") or not proto.tensor_type.elem_type:
        return None, None
    tensor = proto.tensor_type
    kind = element_type(tensor.elem_type, "translation")
    if not tensor.HasField("shape"):
        return kind, None
    return kind, tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
