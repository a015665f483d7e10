"""Types of a model's tensors, and the checks that an edited model passes; large weights are never looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
from onnx import TypeProto, ValueInfoProto

from dovetail.core.errors import ModelError, UsageError
from dovetail.frontend.reader import dtype_name
from dovetail.model.edit.names import nearest
from dovetail.model.weights import with_weights_as_inputs

Shape = tuple[int | str, ...]


def infer(model: onnx.ModelProto, *, strict: bool = False) -> dict[str, TypeProto]:
    """Types of all tensors of the main graph by name, as far as onnx can tell.

    Raises:
        ModelError: `strict`, and types contradict each other.
    """
    small = with_weights_as_inputs(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(small, strict_mode=strict, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        if strict:
            raise ModelError(tidy(error)) from error
        inferred = small
    values = (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)
    types = {v.name: v.type for v in values if v.HasField("type")}
    for tensor in model.graph.initializer:
        types[tensor.name] = tensor_type(tensor.data_type, tuple(tensor.dims))
    for sparse in model.graph.sparse_initializer:
        types[sparse.values.name] = tensor_type(sparse.values.data_type, tuple(sparse.dims))
    return types


def tidy(error: Exception) -> str:
    """What onnx's tools say, on one line and without the places in their source."""
    text = " ".join(str(error).split())
    text = re.sub(r"/\S+\.(h|cc|cpp):\d+:\s*\S+:\s*", "", text)
    return text.replace("Assertion `false` failed: ", "").strip() or type(error).__name__


def tensor_type(code: int, shape: Sequence[int | str] | None) -> TypeProto:
    """The type of a tensor; `shape` None where its rank is not known."""
    return onnx.helper.make_tensor_type_proto(code, None if shape is None else list(shape))


def element_of(kind: TypeProto | None) -> int:
    """The element type's code; 0 where it is unknown or no tensor."""
    return kind.tensor_type.elem_type if kind is not None and kind.WhichOneof("value") == "tensor_type" else 0


def shape_of(kind: TypeProto | None) -> tuple[int | str | None, ...] | None:
    """Sizes and names of dimensions, None for one without either; None where the rank is not known."""
    if kind is None or kind.WhichOneof("value") != "tensor_type" or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.tensor_type.shape.dim)


def set_shape_of(kind: TypeProto, shape: Sequence[int | str | None]) -> None:
    """Write a shape into a type."""
    kind.tensor_type.ClearField("shape")
    kind.tensor_type.shape.SetInParent()
    for size in shape:
        dim = kind.tensor_type.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size:
            dim.dim_param = size


def text(kind: TypeProto | None) -> str:
    """A type for people: float[N,3,224,224]."""
    if kind is None or not kind.WhichOneof("value"):
        return "unknown type"
    if kind.WhichOneof("value") != "tensor_type":
        return str(kind.WhichOneof("value")).removesuffix("_type")
    shape = shape_of(kind)
    dims = "[…]" if shape is None else "[" + ",".join("?" if d is None else str(d) for d in shape) + "]"
    return dtype_name(kind.tensor_type.elem_type) + dims


def element_code(name: str, where: str) -> int:
    """The code of an element type by one of its names: float16, f16, fp16, half.

    Raises:
        UsageError: no such type.
    """
    wanted = name.lower().strip()
    aliases = {"f64": "double", "float64": "double", "f32": "float", "fp32": "float", "float32": "float", "f16": "float16",
               "fp16": "float16", "half": "float16", "bf16": "bfloat16"}  # fmt: skip
    wanted = aliases.get(wanted, wanted)
    if match := re.fullmatch(r"([iu])(\d+)", wanted):
        wanted = f"{'uint' if match[1] == 'u' else 'int'}{match[2]}"
    codes = {k.lower(): int(v) for k, v in onnx.TensorProto.DataType.items() if v}
    if wanted not in codes:
        raise UsageError(f"{where}: got the element type {name!r}; {nearest(wanted, codes)}")
    return codes[wanted]


def value_info(name: str, kind: TypeProto) -> ValueInfoProto:
    """A ValueInfoProto of its own."""
    value = ValueInfoProto(name=name)
    value.type.CopyFrom(kind)
    return value


def contradictions(model: onnx.ModelProto, types: Mapping[str, TypeProto]) -> Iterator[str]:
    """What onnx's checker leaves out: operands whose element types do not go together, Reshapes to another number of elements."""
    opsets = {o.domain: o.version for o in model.opset_import}
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.domain in ("", "ai.onnx"):
            sizes = [shape_of(types.get(name)) for name in (node.input[0], node.output[0])]
            counts = [math.prod(s) if s is not None and all(isinstance(d, int) for d in s) else None for s in sizes]  # type: ignore[arg-type]
            if None not in counts and counts[0] != counts[1]:
                yield f"Reshape {node.name!r} makes {text(types[node.output[0]])} of {text(types[node.input[0]])}"
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain not in opsets or not onnx.defs.has(node.op_type, domain):
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, opsets[domain], domain)
        except onnx.defs.SchemaError:
            continue  # the checker says so
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        bound: dict[str, tuple[int, str]] = {}
        for position, name in enumerate(node.input):
            formal: Any = schema.inputs[min(position, len(schema.inputs) - 1)] if schema.inputs else None
            code = element_of(types.get(name))
            if formal is None or not name or not code:
                continue
            spelled, key = f"tensor({dtype_name(code)})", formal.type_str
            if spelled not in allowed.get(key, {spelled}):
                yield f"{node.op_type} {node.name!r} takes no {dtype_name(code)} as {formal.name!r}, which {name!r} is"
            elif key in allowed and formal.is_homogeneous:
                first = bound.setdefault(key, (code, name))
                if first[0] != code:
                    yield (
                        f"{node.op_type} {node.name!r} reads {first[1]!r} ({dtype_name(first[0])}) and {name!r} ({dtype_name(code)}), "
                        "expected one type; insert a Cast"
                    )
